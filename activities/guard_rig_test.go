package activities

import (
	"context"
	"errors"
	"log/slog"
	"path/filepath"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"holdfast/catalog"
	"holdfast/engine"
	"holdfast/storage"
	"holdfast/storage/faulty"
	"holdfast/storage/storagetest"
	"holdfast/workspace"
)

// watch is a node's guard in a bubble with a clock of its own, two stores, and a Temporal that is there or away.
type watch struct {
	volumes *Volumes // nil: the guard takes all for this node's
	t       *testing.T
	guard   *Guard
	lease   *Lease
	engine  *fakeEngine
	stores  [2]*faulty.Provider
	catalog *catalog.Catalog
	logs    *logBuffer
	began   time.Time
	slept   atomic.Int64 // so many nanoseconds is the wall clock ahead of the steady one
	gone    atomic.Bool  // Temporal is away
	after   time.Duration
	stop    context.CancelFunc
	ended   chan struct{}
	beats   chan struct{} // closed: no more
}

// guarding runs a test whose guard begins with a lease.
func guarding(t *testing.T, test func(*watch)) {
	t.Helper()
	guardingAfter(t, 0, test)
}

// guardingAfter is guarding with a PauseAfter.
func guardingAfter(t *testing.T, after time.Duration, test func(*watch)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := &watch{t: t, engine: newFakeEngine(), logs: &logBuffer{}, began: time.Now(), after: after}
		var providers []storage.Provider
		for i := range w.stores {
			w.stores[i] = faulty.New(storagetest.NewMemory())
			providers = append(providers, w.stores[i])
		}
		w.catalog = catalog.New(providers, storage.PolicyAny)
		w.start(filepath.Join(t.TempDir(), "guard.json"))
		w.take()
		w.pass(time.Second)
		defer func() {
			w.cut()
			w.end()
		}()
		test(w)
	})
}

func (w *watch) clock() moment {
	return moment{wall: time.Now().Add(time.Duration(w.slept.Load())).Round(0), steady: time.Since(w.began)}
}

// start starts the agent, and its guard with it.
func (w *watch) start(memory string) {
	w.lease = &Lease{clock: w.clock}
	w.guard = &Guard{
		Node: "node-1", Engine: w.engine, Catalog: w.catalog, Lease: w.lease, Memory: memory, Metrics: NewGuardMetrics(), Volumes: w.volumes,
		Temporal: func(context.Context) error {
			if w.gone.Load() {
				return errors.New("no route to host")
			}
			return nil
		},
		Logger: slog.New(slog.NewTextHandler(w.logs, nil)), PauseAfter: w.after,
	}
	ctx, cancel := context.WithCancel(context.Background())
	w.stop, w.ended = cancel, make(chan struct{})
	go func() {
		defer close(w.ended)
		w.guard.Run(ctx)
	}()
}

// end ends the agent.
func (w *watch) end() {
	w.stop()
	<-w.ended
}

// restart ends the agent and starts it again after a time.
func (w *watch) restart(after time.Duration) {
	w.cut()
	w.end()
	time.Sleep(after)
	w.start(w.guard.Memory)
}

// take gives the node a lease, which is renewed until it is cut.
func (w *watch) take() {
	w.lease.begin(workspace.LeaseInput{Epoch: 1, Timeout: 10 * time.Second})
	w.lease.renew(1, w.clock())
	lease, beats := w.lease, make(chan struct{})
	w.beats = beats
	go func() {
		ticker := time.NewTicker(beatInterval)
		defer ticker.Stop()
		for {
			select {
			case <-ticker.C:
				lease.renew(1, w.clock())
			case <-beats:
				return
			}
		}
	}()
}

// cut ends the beats: the node is fenced 7 s later.
func (w *watch) cut() {
	if w.beats != nil {
		close(w.beats)
		w.beats = nil
	}
}

// pass lets time go by on both clocks.
func (w *watch) pass(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

// runs has an instance that runs, with its record.
func (w *watch) runs(workspaceID string, token uint64) string {
	w.record(workspaceID, token, w.catalog)
	return w.engine.add("node-1", workspaceID, token, engine.StatusRunning)
}

// record writes an instance record: the marker, when the token is newer than what runs.
func (w *watch) record(workspaceID string, token uint64, c *catalog.Catalog) {
	w.t.Helper()
	require.NoError(w.t, c.RecordInstance(context.Background(), workspace.InstanceRecord{
		WorkspaceID: workspaceID, Name: "atlas", Token: token, Node: "node-2",
	}))
}

// alone cuts the node off from everything.
func (w *watch) alone() {
	w.cut()
	w.gone.Store(true)
	for _, store := range w.stores {
		store.Inject(faulty.Rule{Kind: faulty.Hang})
	}
}

// back ends that, but for the lease.
func (w *watch) back() {
	w.gone.Store(false)
	for _, store := range w.stores {
		store.Clear()
	}
}

func (w *watch) is(name string, status engine.Status, why string) {
	w.t.Helper()
	require.Equal(w.t, status, w.engine.status(name), "%s: %s\n%s", name, why, w.logs)
}
