package process

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"holdfast/engine"
)

// TestSeparation: an instance does not get the agent's environment, nor see the engine's records (A18).
func TestSeparation(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root for a private root directory")
	}
	t.Setenv("AGENT_SECRET", "planted-in-the-agent")
	e := newTestEngine(t, Options{})
	content := filepath.Join(e.options.Root, "..", "content")
	content, err := filepath.Abs(content)
	require.NoError(t, err)
	require.NoError(t, os.Mkdir(content, 0o755))
	id := startTest(t, e, engine.Spec{ContentDir: content, Hostname: "inside", Environment: map[string]string{"MINE": "yes"}})
	require.NotContains(t, output(t, e, id, "env; cat /proc/1/environ"), "planted")
	require.Equal(t, "yes\n", output(t, e, id, "echo $MINE"))
	require.Equal(t, "inside\n", output(t, e, id, "hostname"))
	require.Empty(t, output(t, e, id, "ls -A "+e.options.Root))
	require.Equal(t, "1\n", output(t, e, id, "for p in /proc/[0-9]*; do basename $p; done | sort -n | head -1"))
	require.NotContains(t, output(t, e, id, "cat /proc/[0-9]*/cmdline | tr '\\0' ' '"), "-test.", "the machine's processes are not seen")
	info, err := os.Stat(filepath.Join(e.options.Root, strings.Split(id, ".")[0], specFile))
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o600), info.Mode().Perm())
	_, err = os.Lstat("/workspace")
	require.ErrorIs(t, err, os.ErrNotExist, "the machine's own root is as it was")
}

func TestLimits(t *testing.T) {
	e := newTestEngine(t, Options{})
	info, err := e.Info(t.Context())
	require.NoError(t, err)
	for _, note := range info.Notes {
		if strings.Contains(note, "not enforced") {
			t.Skip(note)
		}
	}
	crowded := startTest(t, e, engine.Spec{PIDs: 100})
	code, err := e.Exec(t.Context(), crowded, engine.ExecSpec{Command: []string{"/bin/sh", "-c", "i=0; while [ $i -lt 200 ]; do sleep 600 & i=$((i+1)); done"}})
	require.NoError(t, err)
	require.NotZero(t, code, "more processes than allowed")

	content := t.TempDir()
	id := startTest(t, e, engine.Spec{ContentDir: content, MemoryBytes: 64 << 20, CPUs: 0.2,
		Command: []string{"/bin/sh", "-c", "while [ ! -e go ]; do sleep 0.05; done; dd if=/dev/zero of=/dev/null bs=200M count=1; exit 3"}})
	begun := time.Now()
	before, err := e.Stats(t.Context(), id)
	require.NoError(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	_, err = e.Exec(ctx, id, engine.ExecSpec{Command: []string{"/bin/sh", "-c", "while :; do :; done"}})
	require.ErrorIs(t, err, context.DeadlineExceeded)
	after, err := e.Stats(t.Context(), id)
	require.NoError(t, err)
	// Of the time that it took, whatever that was. What the kernel gives too much at once it takes back in the next period.
	require.Less(t, after.CPUSeconds-before.CPUSeconds, 0.2*time.Since(begun).Seconds()+0.3, "a fifth of a CPU")
	require.NoError(t, os.WriteFile(filepath.Join(content, "go"), nil, 0o644))
	require.Eventually(t, func() bool {
		seen, err := e.Inspect(t.Context(), id)
		return err == nil && seen.Status == engine.StatusExited && seen.OOMKilled
	}, time.Minute, 20*time.Millisecond, "more memory than allowed")
}

func TestCgroupsAreRemoved(t *testing.T) {
	e := newTestEngine(t, Options{})
	id := startTest(t, e, engine.Spec{})
	found, err := e.load(id)
	require.NoError(t, err)
	if len(found.run.Cgroups) == 0 {
		t.Skip("no cgroup may be made here")
	}
	for _, dir := range found.run.Cgroups {
		require.DirExists(t, dir)
	}
	require.NoError(t, e.Stop(t.Context(), id, time.Second))
	for _, dir := range found.run.Cgroups {
		require.NoDirExists(t, dir)
	}
}

func TestRecords(t *testing.T) {
	e := newTestEngine(t, Options{})
	_, err := e.PrepareImage(t.Context(), "debian:12", nil)
	require.ErrorIs(t, err, engine.ErrImageNotFound)
	require.ErrorContains(t, err, "--engine docker")
	inside := filepath.Join(e.options.Root, "name", "content")
	require.NoError(t, os.MkdirAll(inside, 0o755))
	for _, content := range []string{inside, e.options.Root, filepath.Dir(e.options.Root)} {
		_, err = e.Create(t.Context(), engine.Spec{Name: "name", ContentDir: content})
		require.ErrorIs(t, err, engine.ErrInvalid, "content and records must not lie in one another: %s", content)
	}
	require.NoError(t, os.RemoveAll(filepath.Join(e.options.Root, "name")))

	good, err := e.Create(t.Context(), engine.Spec{Name: "good", ContentDir: t.TempDir()})
	require.NoError(t, err)
	bad, err := e.Create(t.Context(), engine.Spec{Name: "bad", ContentDir: t.TempDir()})
	require.NoError(t, err)
	path := filepath.Join(e.options.Root, "bad", specFile)
	kept, err := os.ReadFile(path)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(path, []byte(`{"spec":{"Environment":{"S":"planted`), 0o600))
	list, err := e.List(t.Context(), nil)
	require.ErrorContains(t, err, "damaged")
	require.NotContains(t, err.Error(), "planted")
	require.Len(t, list, 1)
	require.Equal(t, good, list[0].ID)
	_, err = e.Create(t.Context(), engine.Spec{Name: "bad", ContentDir: t.TempDir()})
	require.Error(t, err)
	require.NotErrorIs(t, err, engine.ErrConflict)
	require.NoError(t, os.WriteFile(path, kept, 0o600))

	// An id of a removed instance does not find the new one of the same name.
	require.NoError(t, e.Remove(t.Context(), bad))
	again, err := e.Create(t.Context(), engine.Spec{Name: "bad", ContentDir: t.TempDir()})
	require.NoError(t, err)
	require.NotEqual(t, bad, again)
	_, err = e.Inspect(t.Context(), bad)
	require.ErrorIs(t, err, engine.ErrNotFound)

	// Something strange in the directory is not deleted.
	strange := filepath.Join(e.options.Root, "bad", rootMount, "content")
	require.NoError(t, os.WriteFile(strange, nil, 0o600))
	require.Error(t, e.Remove(t.Context(), again))
	require.FileExists(t, strange)
	require.NoError(t, os.Remove(strange))
	foreign := filepath.Join(e.options.Root, "bad", "strange") // after the description, in the order of names
	require.NoError(t, os.Mkdir(foreign, 0o700))
	require.ErrorContains(t, e.Remove(t.Context(), again), "strange")
	_, err = e.Inspect(t.Context(), again)
	require.NoError(t, err, "it is found as long as something of it is there")
	require.NoError(t, os.Remove(foreign))
	require.NoError(t, e.Remove(t.Context(), again))
}

// Who is killed while it writes or removes leaves things that no later Remove knows by name, or a directory that is no
// instance any more: none of it stays, and nothing else goes.
func TestRemainsOfWhoWasKilled(t *testing.T) {
	e := newTestEngine(t, Options{})
	id, err := e.Create(t.Context(), engine.Spec{Name: "cut", ContentDir: t.TempDir()})
	require.NoError(t, err)
	dir := filepath.Join(e.options.Root, "cut")
	require.NoError(t, os.WriteFile(filepath.Join(dir, ".exit.json123"), []byte("half"), 0o600))
	require.NoError(t, e.Remove(t.Context(), id))
	require.NoDirExists(t, dir)

	kept, err := e.Create(t.Context(), engine.Spec{Name: "kept", ContentDir: t.TempDir()})
	require.NoError(t, err)
	gone := []string{filepath.Join(e.options.Root, goneInstance+"1"), filepath.Join(e.options.Root, goneInstance+"2")}
	others := []string{filepath.Join(e.options.Root, ".new-1"), filepath.Join(e.options.Root, "lost+found")}
	for _, path := range append(gone, others...) {
		require.NoError(t, os.Mkdir(path, 0o700))
	}
	require.NoError(t, os.WriteFile(filepath.Join(gone[1], specFile), []byte("{}"), 0o600))
	opened, err := New(e.options)
	require.NoError(t, err)
	for _, path := range gone {
		require.NoDirExists(t, path)
	}
	for _, path := range others {
		require.DirExists(t, path)
	}
	_, err = opened.Inspect(t.Context(), kept)
	require.NoError(t, err)
}

func TestOutputIsBounded(t *testing.T) {
	e := newTestEngine(t, Options{LogBytes: 64 << 10})
	id := startTest(t, e, engine.Spec{Command: []string{"/bin/sh", "-c", "i=0; while [ $i -lt 20000 ]; do echo line-$i; i=$((i+1)); done; echo the end; exec sleep 600"}})
	var out bytes.Buffer
	require.Eventually(t, func() bool {
		out.Reset()
		return e.Logs(t.Context(), id, engine.LogOptions{}, &out) == nil && strings.HasSuffix(out.String(), "the end\n")
	}, time.Minute, 50*time.Millisecond)
	require.Less(t, out.Len(), 80<<10)
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	require.Greater(t, len(lines), 1000)
	for i, line := range lines[:len(lines)-1] {
		require.Equal(t, fmt.Sprintf("line-%d", 20000-len(lines)+1+i), line, "no line is broken or missing")
	}
	found, err := e.load(id)
	require.NoError(t, err)
	var size int64
	for _, name := range []string{outputFile, oldOutputFile} {
		info, err := os.Stat(filepath.Join(found.dir, name))
		require.NoError(t, err)
		size += info.Size()
	}
	require.LessOrEqual(t, size, int64(80<<10))
	out.Reset()
	require.NoError(t, e.Logs(t.Context(), id, engine.LogOptions{Tail: 2}, &out))
	require.Equal(t, "line-19999\nthe end\n", out.String())
}

// TestLogsDuringRotation reads again and again while the log is rotated: no look may lack what was moved away meanwhile.
func TestLogsDuringRotation(t *testing.T) {
	e := newTestEngine(t, Options{})
	id, err := e.Create(t.Context(), engine.Spec{Name: "rotating", ContentDir: t.TempDir()})
	require.NoError(t, err)
	found, err := e.load(id)
	require.NoError(t, err)
	log, err := newRotatingLog(filepath.Join(found.dir, outputFile), filepath.Join(found.dir, oldOutputFile), 200)
	require.NoError(t, err)
	enough := make(chan struct{})
	written := make(chan error, 1)
	go func() {
		for i := 0; ; i++ {
			select {
			case <-enough:
				written <- log.Close()
				return
			default:
			}
			if _, err := fmt.Fprintf(log, "%d\n", i); err != nil {
				written <- err
				return
			}
		}
	}()
	for range 2000 {
		var out bytes.Buffer
		require.NoError(t, e.Logs(t.Context(), id, engine.LogOptions{}, &out))
		lines := strings.Fields(out.String())
		for i, line := range lines {
			first, err := strconv.Atoi(lines[0])
			require.NoError(t, err)
			if line != strconv.Itoa(first+i) && i < len(lines)-1 { // the last one may be half written
				t.Fatalf("after %s comes %s", lines[i-1], line)
			}
		}
	}
	close(enough)
	require.NoError(t, <-written)
}

func TestLastLines(t *testing.T) {
	for _, test := range []struct {
		in   string
		n    int
		want string
	}{{"a\nb\nc\n", 2, "b\nc\n"}, {"a\nb\nc", 1, "c"}, {"a\n", 5, "a\n"}, {"", 1, ""}, {"a\nb\n", 0, "a\nb\n"}, {"\n\n", 1, "\n"}} {
		require.Equal(t, test.want, string(lastLines([]byte(test.in), test.n)), "%q %d", test.in, test.n)
	}
}
