package enginetest

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"holdfast/engine"
)

// lifeCycle goes through all states, and repeats each step: what is done already is a success.
func lifeCycle(t *testing.T, b *bench) {
	ctx := b.context()
	info, err := b.engine.Info(ctx)
	require.NoError(t, err)
	if b.factory.Pretends != "" {
		require.Equal(t, b.factory.Pretends, info.Kind)
	} else {
		require.Contains(t, []string{"docker", "process"}, info.Kind)
	}

	spec := b.spec()
	id := b.create(spec)
	again, err := b.engine.Create(ctx, spec)
	require.NoError(t, err)
	require.Equal(t, id, again)
	found, err := b.engine.Inspect(ctx, id)
	require.NoError(t, err)
	require.Equal(t, engine.StatusCreated, found.Status)
	require.Equal(t, id, found.ID)
	require.Equal(t, spec.Name, found.Name)
	for name, value := range spec.Labels {
		require.Equal(t, value, found.Labels[name])
	}
	require.ErrorIs(t, b.engine.Ready(ctx, id), engine.ErrNotRunning, "a created instance is not ready")
	_, err = b.engine.Exec(ctx, id, engine.ExecSpec{Command: []string{"/bin/sh", "-c", "exit 0"}})
	require.ErrorIs(t, err, engine.ErrNotRunning)
	require.NoError(t, b.engine.Stop(ctx, id, time.Second), "stopping what never ran is done already")

	before := time.Now().Add(-time.Minute)
	for range 2 {
		require.NoError(t, b.engine.Start(ctx, id))
		require.NoError(t, b.engine.Ready(ctx, id))
	}
	found, err = b.engine.Inspect(ctx, id)
	require.NoError(t, err)
	require.Equal(t, engine.StatusRunning, found.Status)
	require.True(t, found.StartedAt.After(before), "started at %s", found.StartedAt)
	require.Error(t, b.engine.Remove(ctx, id), "a running instance is not removed")
	require.Equal(t, engine.StatusRunning, b.status(id))

	for range 2 {
		require.NoError(t, b.engine.Stop(ctx, id, time.Minute))
	}
	found, err = b.engine.Inspect(ctx, id)
	require.NoError(t, err)
	require.Equal(t, engine.StatusExited, found.Status)
	require.Zero(t, found.ExitCode, "the default command ends in order on SIGTERM")
	require.False(t, found.OOMKilled)
	require.True(t, found.FinishedAt.After(before), "finished at %s", found.FinishedAt)

	require.NoError(t, b.engine.Start(ctx, id), "an exited instance starts again")
	b.works(id)
	require.NoError(t, b.engine.Stop(ctx, id, time.Minute))

	require.NoError(t, os.WriteFile(filepath.Join(spec.ContentDir, "kept"), []byte("content"), 0o644))
	for range 2 {
		require.NoError(t, b.engine.Remove(ctx, id))
	}
	data, err := os.ReadFile(filepath.Join(spec.ContentDir, "kept"))
	require.NoError(t, err, "removal never touches the content")
	require.Equal(t, "content", string(data))
	_, err = b.engine.Inspect(ctx, id)
	require.ErrorIs(t, err, engine.ErrNotFound)
	require.ErrorIs(t, b.engine.Start(ctx, id), engine.ErrNotFound)
	require.ErrorIs(t, b.engine.Stop(ctx, id, 0), engine.ErrNotFound)
}

func namesAndLabels(t *testing.T, b *bench) {
	ctx := b.context()
	spec := b.spec()
	id := b.create(spec)
	other := spec
	other.Labels = map[string]string{engine.LabelWorkspace: spec.Labels[engine.LabelWorkspace], engine.LabelToken: "2", engine.LabelNode: "test"}
	_, err := b.engine.Create(ctx, other)
	require.ErrorIs(t, err, engine.ErrConflict)

	second := b.spec()
	second.Labels[engine.LabelWorkspace] = spec.Labels[engine.LabelWorkspace]
	second.Labels[engine.LabelToken] = "2"
	secondID := b.create(second)
	require.NotEqual(t, id, secondID)
	b.create(b.spec()) // somebody else's

	list := func(labels map[string]string) []string {
		found, err := b.engine.List(ctx, labels)
		require.NoError(t, err)
		var ids []string
		for _, one := range found {
			ids = append(ids, one.ID)
		}
		return ids
	}
	workspace := spec.Labels[engine.LabelWorkspace]
	require.ElementsMatch(t, []string{id, secondID}, list(map[string]string{engine.LabelWorkspace: workspace}), "also instances that do not run")
	require.ElementsMatch(t, []string{secondID}, list(map[string]string{engine.LabelWorkspace: workspace, engine.LabelToken: "2"}))
	require.ElementsMatch(t, []string{id, secondID}, list(map[string]string{engine.LabelWorkspace: workspace, engine.LabelToken: ""}), "an empty value matches any")
	require.Empty(t, list(map[string]string{engine.LabelWorkspace: workspace, "holdfast.absent": ""}))
	require.Subset(t, list(nil), []string{id, secondID})
}

func badInput(t *testing.T, b *bench) {
	ctx := b.context()
	file := filepath.Join(t.TempDir(), "file")
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	for name, change := range map[string]func(*engine.Spec){
		"no name":              func(s *engine.Spec) { s.Name = "" },
		"name with a path":     func(s *engine.Spec) { s.Name = "../up" },
		"relative content":     func(s *engine.Spec) { s.ContentDir = "content" },
		"root as content":      func(s *engine.Spec) { s.ContentDir = "/" },
		"absent content":       func(s *engine.Spec) { s.ContentDir += "-absent" },
		"content is a file":    func(s *engine.Spec) { s.ContentDir = file },
		"variable without end": func(s *engine.Spec) { s.Environment = map[string]string{"A=B": "x"} },
		"negative memory":      func(s *engine.Spec) { s.MemoryBytes = -1 },
		"negative CPUs":        func(s *engine.Spec) { s.CPUs = -1 },
	} {
		spec := b.spec()
		change(&spec)
		_, err := b.engine.Create(ctx, spec)
		require.ErrorIs(t, err, engine.ErrInvalid, name)
	}
	for _, id := range []string{"", "absent-" + random(), "../x", "/"} {
		_, err := b.engine.Inspect(ctx, id)
		require.ErrorIs(t, err, engine.ErrNotFound, "%q", id)
		require.NoError(t, b.engine.Remove(ctx, id), "%q", id)
		require.ErrorIs(t, b.engine.Pause(ctx, id), engine.ErrNotFound, "%q", id)
		_, err = b.engine.Exec(ctx, id, engine.ExecSpec{Command: []string{"true"}})
		require.ErrorIs(t, err, engine.ErrNotFound, "%q", id)
		require.ErrorIs(t, b.engine.Logs(ctx, id, engine.LogOptions{}, &bytes.Buffer{}), engine.ErrNotFound, "%q", id)
		_, err = b.engine.Stats(ctx, id)
		require.ErrorIs(t, err, engine.ErrNotFound, "%q", id)
		_, err = b.engine.Work(ctx, id)
		require.ErrorIs(t, err, engine.ErrNotFound, "%q", id)
	}
	ended, cancel := context.WithCancel(ctx)
	cancel()
	_, err := b.engine.Create(ended, b.spec())
	require.ErrorIs(t, err, context.Canceled)

	spec := b.spec("/no/such/program-" + random())
	id := b.create(spec)
	// Where a small init starts the command, only Ready can tell that there is no such program.
	if err := b.engine.Start(ctx, id); err == nil {
		b.eventually("it exits", func() bool { return b.status(id) == engine.StatusExited })
	}
	require.ErrorIs(t, b.engine.Ready(ctx, id), engine.ErrNotRunning, "a command that does not exist")
}

func readySaysWhyNot(t *testing.T, b *bench) {
	ctx := b.context()
	spec := b.spec("/bin/sh", "-c", "echo the last words $SECRET; exit 7")
	spec.Environment = map[string]string{"SECRET": "planted-" + random()}
	id := b.create(spec)
	require.NoError(t, b.engine.Start(ctx, id))
	b.eventually("the instance exits", func() bool { return b.status(id) == engine.StatusExited })
	err := b.engine.Ready(ctx, id)
	require.ErrorIs(t, err, engine.ErrNotRunning)
	require.ErrorContains(t, err, "the last words")
	require.NotContains(t, err.Error(), spec.Environment["SECRET"])
	found, err := b.engine.Inspect(ctx, id)
	require.NoError(t, err)
	require.Equal(t, 7, found.ExitCode)
}

// engineRestart is an agent that starts again: it finds its instances and goes on with them.
func engineRestart(t *testing.T, b *bench) {
	ctx := b.context()
	spec := b.spec()
	first := b.factory.Open(t)
	id, err := first.Create(ctx, spec)
	require.NoError(t, err)
	b.create(spec) // the same one: sees to its removal
	require.NoError(t, first.Start(ctx, id))
	require.NoError(t, first.Ready(ctx, id))
	require.NoError(t, first.Close())

	found, err := b.engine.List(ctx, map[string]string{engine.LabelWorkspace: spec.Labels[engine.LabelWorkspace]})
	require.NoError(t, err)
	require.Len(t, found, 1)
	require.Equal(t, id, found[0].ID)
	require.Equal(t, engine.StatusRunning, found[0].Status)
	b.works(id)
	require.NoError(t, b.engine.Stop(ctx, id, time.Minute))
	require.Equal(t, engine.StatusExited, b.status(id))
}

func stats(t *testing.T, b *bench) {
	ctx := b.context()
	spec := b.spec()
	id := b.create(spec)
	_, err := b.engine.Stats(ctx, id)
	require.ErrorIs(t, err, engine.ErrNotRunning)
	require.NoError(t, b.engine.Start(ctx, id))
	require.NoError(t, b.engine.Ready(ctx, id))
	before, err := b.engine.Stats(ctx, id)
	require.NoError(t, err)
	require.Positive(t, before.MemoryBytes)
	require.Positive(t, before.PIDs)
	b.run(id, "i=0; while [ $i -lt 300000 ]; do i=$((i+1)); done")
	after, err := b.engine.Stats(ctx, id)
	require.NoError(t, err)
	require.Greater(t, after.CPUSeconds, before.CPUSeconds)
}
