// Package enginetest is the conformance suite that every engine passes.
package enginetest

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"holdfast/engine"
)

// Factory says how to test an engine.
type Factory struct {
	// Open makes an engine over the same instances each time that it is called within one test.
	Open func(t *testing.T) engine.Engine
	// Image is what PrepareImage is given; empty is the engine's default.
	Image string
	// Private says that the instance has namespaces of its own: content at /workspace, its own list of processes.
	Private bool
	// OtherOwners says that processes inside can make files of other owners.
	OtherOwners bool
	// CountsFiles says that Work counts what goes through files at once, whatever they lie on.
	CountsFiles bool
	// SameOutput says that commands' output takes the same way as in a variant of the engine that runs the whole suite: the
	// two tests that spend seconds on waiting for that to go wrong are left out.
	SameOutput bool
	// Pretends is the kind of an engine whose instances have no processes. Only what is about instances alone is run: it has no
	// commands, output, use of the machine, or anything that would go on writing, so that all that tells of those cannot be.
	Pretends string
}

// Run runs the suite. Every instance has a random name and is removed by the id that its creation gave.
func Run(t *testing.T, factory Factory) {
	for _, test := range []struct {
		name   string
		run    func(*testing.T, *bench)
		output bool // see SameOutput
		alone  bool // see Pretends
	}{
		{name: "LifeCycle", run: lifeCycle, alone: true},
		{name: "NamesAndLabels", run: namesAndLabels, alone: true},
		{name: "BadInput", run: badInput, alone: true},
		{name: "Exec", run: execute},
		{name: "ExecStreams", run: executeStreams},
		{name: "ExecSlowConsumer", run: executeSlowConsumer, output: true},
		{name: "ExecLeavesWriters", run: executeLeavesWriters, output: true},
		{name: "ExecTerminal", run: executeTerminal},
		{name: "ExecKilled", run: executeKilled},
		{name: "Logs", run: logs},
		{name: "ReadySaysWhyNot", run: readySaysWhyNot},
		{name: "StopIsComplete", run: stopIsComplete},
		{name: "StopsWhereItStands", run: stopsWhereItStands},
		{name: "StopGivesGrace", run: stopGivesGrace},
		{name: "PauseAndStop", run: pauseAndStop},
		{name: "PauseFindsEverything", run: pauseFindsEverything},
		{name: "PausedWhileStopped", run: pausedWhileStopped},
		{name: "Content", run: content},
		{name: "OtherOwners", run: otherOwners},
		{name: "SecretsStaySecret", run: secretsStaySecret},
		{name: "PauseIsKept", run: pauseIsKept, alone: true},
		{name: "EngineRestart", run: engineRestart, alone: true},
		{name: "Stats", run: stats},
		{name: "Work", run: work},
	} {
		if test.output && factory.SameOutput || factory.Pretends != "" && !test.alone {
			continue
		}
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			b := &bench{t: t, factory: factory, engine: factory.Open(t)}
			t.Cleanup(func() { require.NoError(t, b.engine.Close()) })
			test.run(t, b)
		})
	}
}

// bench is one test's engine and what it made.
type bench struct {
	t       *testing.T
	factory Factory
	engine  engine.Engine
}

// context ends when something hangs: a test asks for less only when it is about that.
func (b *bench) context() context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	b.t.Cleanup(cancel)
	return ctx
}

func random() string {
	var raw [6]byte
	if _, err := rand.Read(raw[:]); err != nil {
		panic(err)
	}
	return hex.EncodeToString(raw[:])
}

// spec describes an instance with a random name and an empty content directory.
func (b *bench) spec(command ...string) engine.Spec {
	b.t.Helper()
	image, err := b.engine.PrepareImage(b.context(), b.factory.Image, nil)
	require.NoError(b.t, err)
	require.NotEmpty(b.t, image.Reference)
	dir, err := filepath.EvalSymlinks(b.t.TempDir())
	require.NoError(b.t, err)
	content := filepath.Join(dir, "content")
	require.NoError(b.t, os.Mkdir(content, 0o755))
	workspace := "ws-" + random()
	return engine.Spec{
		Name: "holdfast-test-" + workspace + "-1", Image: image.Reference, Command: command, ContentDir: content,
		Labels: map[string]string{engine.LabelWorkspace: workspace, engine.LabelToken: "1", engine.LabelNode: "test"},
	}
}

// create makes the instance and sees to its removal.
func (b *bench) create(spec engine.Spec) string {
	b.t.Helper()
	id, err := b.engine.Create(b.context(), spec)
	require.NoError(b.t, err)
	require.NotEmpty(b.t, id)
	remover := b.factory.Open(b.t)
	b.t.Cleanup(func() {
		defer remover.Close()
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
		defer cancel()
		if _, err := remover.Inspect(ctx, id); err != nil {
			require.ErrorIs(b.t, err, engine.ErrNotFound)
			return
		}
		require.NoError(b.t, remover.Stop(ctx, id, 0))
		require.NoError(b.t, remover.Remove(ctx, id))
	})
	return id
}

// start makes an instance that runs and is ready.
func (b *bench) start(spec engine.Spec) string {
	b.t.Helper()
	id := b.create(spec)
	require.NoError(b.t, b.engine.Start(b.context(), id))
	require.NoError(b.t, b.engine.Ready(b.context(), id))
	return id
}

// run executes a shell script inside and returns its output; it must end with 0.
func (b *bench) run(id, script string) string {
	b.t.Helper()
	var out, failed bytes.Buffer
	code, err := b.engine.Exec(b.context(), id, engine.ExecSpec{Command: []string{"/bin/sh", "-c", script}, Stdout: &out, Stderr: &failed})
	require.NoError(b.t, err)
	require.Zero(b.t, code, "%s: %s%s", script, out.String(), failed.String())
	return out.String()
}

// works makes sure that an instance that is ready takes commands, where there are any.
func (b *bench) works(id string) {
	b.t.Helper()
	require.NoError(b.t, b.engine.Ready(b.context(), id))
	if b.factory.Pretends == "" {
		b.run(id, "exit 0")
	}
}

func (b *bench) status(id string) engine.Status {
	b.t.Helper()
	found, err := b.engine.Inspect(b.context(), id)
	require.NoError(b.t, err)
	return found.Status
}

// eventually waits for a condition, so long that a slow machine is no reason to give up.
func (b *bench) eventually(what string, condition func() bool) {
	b.t.Helper()
	require.Eventually(b.t, condition, time.Minute, 20*time.Millisecond, what)
}

// lineWriter keeps what is written and may be read meanwhile.
type lineWriter struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (w *lineWriter) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.buf.Write(p)
}

func (w *lineWriter) String() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.buf.String()
}

var _ io.Writer = (*lineWriter)(nil)

// processesWith counts the machine's live processes whose command line has the text.
func processesWith(text string) int {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return -1
	}
	count := 0
	for _, entry := range entries {
		data, err := os.ReadFile(filepath.Join("/proc", entry.Name(), "cmdline"))
		if err == nil && strings.Contains(string(data), text) {
			count++
		}
	}
	return count
}
