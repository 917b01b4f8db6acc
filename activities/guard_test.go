package activities

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"

	"holdfast/engine"
	"holdfast/storage"
	"holdfast/storage/faulty"
	"holdfast/workspace"
)

// A12: the marker pauses the instance that was replaced, at once and no other; a node with its lease pauses nothing.
func TestGuardPausesWhatWasReplaced(t *testing.T) {
	guarding(t, func(w *watch) {
		replaced, other := w.runs(id, 1), w.runs(otherID, 3)
		w.pass(time.Minute)
		require.Zero(t, w.stores[0].Calls(faulty.List)-w.stores[1].Calls(faulty.List))
		before := w.stores[0].Calls(faulty.List)
		w.pass(time.Hour)
		require.Equal(t, before, w.stores[0].Calls(faulty.List), "with its lease it asks nothing")

		w.cut()
		w.pass(20 * time.Second)
		w.is(replaced, engine.StatusRunning, "nothing is known of another instance")
		w.record(id, 2, w.catalog)
		w.pass(guardEvery + time.Second)
		w.is(replaced, engine.StatusPaused, "another instance is recorded")
		w.is(other, engine.StatusRunning, "it is the newest of its workspace")
		instances, paused := w.guard.Load()
		require.Equal(t, 2, *instances)
		require.Equal(t, []workspace.PausedInstance{{WorkspaceID: id, Token: 1, Cause: workspace.PauseReplaced, Replaced: 2, Why: "instance 2 has taken its place"}}, paused)
		require.Equal(t, 1.0, testutil.ToFloat64(w.guard.Metrics.pauses.WithLabelValues(causeReplaced)))

		// The lease again: what was replaced stays paused, for ever.
		w.take()
		w.pass(time.Hour)
		w.is(replaced, engine.StatusPaused, "it was replaced")
		w.is(other, engine.StatusRunning, "it was never paused")
		require.Contains(t, w.guard.Why(workspace.InstanceName(id, 1)), "instance 2")
	})
}

// One store that is away, silent, or answers with errors hides neither the marker on the other nor that one's answer.
func TestGuardHearsEveryStore(t *testing.T) {
	for name, rule := range map[string]faulty.Rule{
		"silent":  {Kind: faulty.Hang},
		"away":    {Kind: faulty.Error, Err: errors.New("lookup: i/o timeout")},
		"refuses": {Kind: faulty.Error, Err: storage.ErrPermission},
	} {
		for away := range 2 {
			t.Run(fmt.Sprintf("%s, store %d", name, away), func(t *testing.T) {
				guarding(t, func(w *watch) {
					w.gone.Store(true)
					replaced, other := w.runs(id, 1), w.runs(otherID, 1)
					w.stores[away].Inject(rule)
					w.cut()
					w.pass(10 * time.Minute)
					w.is(replaced, engine.StatusRunning, "a store says that it is the newest")
					w.record(id, 2, w.catalog)
					w.pass(lookWithin + guardEvery + time.Second)
					w.is(replaced, engine.StatusPaused, "a store has the marker")
					w.is(other, engine.StatusRunning, "and none for the other")
				})
			})
		}
	}
}

// A store that answers with errors only is not reached: it may have a marker and does not say so. One without any record of
// a workspace has answered.
func TestGuardTellsAnErrorFromNothing(t *testing.T) {
	guarding(t, func(w *watch) {
		name := w.runs(id, 1)
		w.gone.Store(true)
		w.cut()
		for _, store := range w.stores {
			store.Inject(faulty.Rule{Op: faulty.List, Kind: faulty.Error, Err: storage.ErrPermission})
		}
		w.pass(DefaultPauseAfter + lookWithin + guardEvery)
		w.is(name, engine.StatusPaused, "nobody says whether it was replaced")
	})
	guarding(t, func(w *watch) {
		name := w.engine.add("node-1", id, 1, engine.StatusRunning) // without a record
		w.gone.Store(true)
		w.cut()
		w.stores[0].Inject(faulty.Rule{Kind: faulty.Hang})
		w.pass(time.Hour)
		w.is(name, engine.StatusRunning, "a store says that it knows of no other")
	})
}

// Nothing is reached: everything is paused after PauseAfter and not before, and goes on with the lease, but what was
// replaced meanwhile.
func TestGuardPausesAllWhenAlone(t *testing.T) {
	guardingAfter(t, 5*time.Minute, func(w *watch) {
		one, two := w.runs(id, 1), w.runs(otherID, 1)
		foreign := w.engine.add("node-2", id, 7, engine.StatusRunning)
		ended := w.engine.add("node-1", strings.Repeat("m", 26), 1, engine.StatusExited)
		w.alone()
		w.pass(5*time.Minute - time.Second)
		w.is(one, engine.StatusRunning, "it is not so long yet")
		w.pass(lookWithin + guardEvery + 10*time.Second)
		for _, name := range []string{one, two} {
			w.is(name, engine.StatusPaused, "nothing was reached for too long")
		}
		w.is(foreign, engine.StatusRunning, "it is another node's")
		w.is(ended, engine.StatusExited, "it had ended")
		require.Contains(t, w.guard.Why(workspace.InstanceName(id, 1)), "reached neither Temporal nor a store")
		require.Equal(t, 2.0, testutil.ToFloat64(w.guard.Metrics.pauses.WithLabelValues(causeAlone)))

		// Reached again, but without its lease: they stay paused, since nothing says that they are to run.
		w.back()
		w.pass(5 * time.Minute)
		w.is(one, engine.StatusPaused, "the node has no lease")
		w.record(id, 2, w.catalog)
		w.take()
		w.pass(settleEvery)
		w.is(one, engine.StatusPaused, "it was replaced")
		w.is(two, engine.StatusRunning, "it goes on")
		require.Contains(t, w.logs.String(), "instance resumed")
	})
}

// Temporal alone, or one store alone, is enough to be reached.
func TestGuardIsNotAlone(t *testing.T) {
	guarding(t, func(w *watch) {
		name := w.runs(id, 1)
		w.alone()
		w.gone.Store(false)
		w.pass(time.Hour)
		w.is(name, engine.StatusRunning, "Temporal answers")
		w.gone.Store(true)
		w.pass(DefaultPauseAfter + lookWithin + guardSlowly + guardEvery)
		w.is(name, engine.StatusPaused, "nothing answers")
	})
}

// A lease that is held again resumes nothing while the stores that have to be asked do not answer, and says so.
func TestGuardResumesNothingUnasked(t *testing.T) {
	guarding(t, func(w *watch) {
		name := w.runs(id, 1)
		w.alone()
		w.pass(DefaultPauseAfter + lookWithin + guardEvery)
		w.is(name, engine.StatusPaused, "nothing was reached")
		w.gone.Store(false)
		w.take()
		w.pass(10 * time.Minute)
		w.is(name, engine.StatusPaused, "no store says whether it was replaced")
		require.Contains(t, w.guard.Why(workspace.InstanceName(id, 1)), "cannot be asked")
		require.Contains(t, w.logs.String(), "stays paused")
		w.stores[1].Clear()
		w.pass(settleEvery + lookWithin + time.Second)
		w.is(name, engine.StatusRunning, "the policy's number of stores has answered")
	})
}

// invariant 7: a lease that ended while the stores were asked resumes nothing; one that came back meanwhile pauses nothing for
// want of one, but what was replaced.
func TestGuardLooksAtTheLeaseLast(t *testing.T) {
	c := &handClock{}
	w := newFakeEngine()
	g := &Guard{Engine: w, Lease: heldLease(c)}
	name := w.add("node-1", id, 1, engine.StatusPaused)
	c.pass(7*time.Second, 7*time.Second)
	require.ErrorIs(t, g.ask(t.Context(), name, false, ""), ErrNoLease)
	require.Equal(t, engine.StatusPaused, w.status(name))
	g.Lease.renew(1, c.read())
	require.NoError(t, g.ask(t.Context(), name, false, ""))
	require.Equal(t, engine.StatusRunning, w.status(name))

	require.ErrorIs(t, g.ask(t.Context(), name, true, causeAlone), errNotAlone)
	require.Equal(t, engine.StatusRunning, w.status(name))
	require.NoError(t, g.ask(t.Context(), name, true, causeReplaced))
	require.Equal(t, engine.StatusPaused, w.status(name))
}

// A container engine may run what is another deployment's, whose node has the same name: that is not this guard's to pause.
func TestGuardLeavesWhatIsNotOnItsDisk(t *testing.T) {
	volumes, err := OpenVolumes(t.TempDir())
	require.NoError(t, err)
	require.NoError(t, os.MkdirAll(volumes.dir(id, 1), 0o700))
	guarding(t, func(w *watch) {
		w.volumes = volumes
		w.restart(time.Second)
		w.take()
		here, elsewhere := w.runs(id, 1), w.runs(otherID, 1)
		w.alone()
		w.pass(DefaultPauseAfter + lookWithin + guardEvery)
		w.is(here, engine.StatusPaused, "nothing is reached")
		w.is(elsewhere, engine.StatusRunning, "it is not this node's")
	})
}

// The guard tells the lease's beats what is paused, and pauses by itself: neither waits for a disk that hangs.
func TestGuardWaitsForNoDisk(t *testing.T) {
	volumes, err := OpenVolumes(t.TempDir())
	require.NoError(t, err)
	require.NoError(t, os.MkdirAll(volumes.dir(id, 1), 0o700))
	identity := filepath.Join(volumes.dir(id, 1), "identity.json")
	require.NoError(t, syscall.Mkfifo(identity, 0o600)) // whoever opens it waits for somebody who writes
	w := newFakeEngine()
	g := &Guard{Node: "node-1", Engine: w, Lease: heldLease(&handClock{}), Volumes: volumes, Logger: slog.New(slog.DiscardHandler)}
	w.add("node-1", id, 1, engine.StatusPaused)
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	listed := make(chan []*guarded, 1)
	go func() {
		instances, _ := g.list(ctx)
		listed <- instances
	}()
	select {
	case instances := <-listed:
		require.Len(t, instances, 1, "it is taken for this node's")
		_, paused := g.Load()
		require.Len(t, paused, 1)
	case <-time.After(30 * time.Second):
		require.Fail(t, "the guard waits for the disk")
	}
	require.NoError(t, os.WriteFile(identity, nil, 0o600))
	g.calls.Wait()
}

// Pauses survive the agent. The next one goes on by the same rules, and counts from what the one before had reached.
func TestGuardAfterARestart(t *testing.T) {
	guarding(t, func(w *watch) {
		one, two := w.runs(id, 1), w.runs(otherID, 1)
		w.alone()
		w.pass(DefaultPauseAfter + lookWithin + guardEvery)
		w.restart(time.Minute)
		w.pass(10 * time.Minute)
		w.is(one, engine.StatusPaused, "nothing was reached since")
		w.back()
		w.record(id, 2, w.catalog)
		w.pass(time.Minute)
		w.is(two, engine.StatusPaused, "the node has no lease")
		require.Contains(t, w.guard.Why(workspace.InstanceName(id, 1)), "instance 2")
		w.restart(time.Second)
		w.take()
		w.pass(2 * time.Second)
		w.is(one, engine.StatusPaused, "it was replaced")
		w.is(two, engine.StatusRunning, "it is the newest")
	})
	guarding(t, func(w *watch) {
		name := w.runs(id, 1)
		w.pass(time.Minute)
		w.alone()
		for range 20 { // an agent that cannot begin is started again and again
			w.restart(5 * time.Second)
			w.pass(5 * time.Second)
		}
		w.is(name, engine.StatusPaused, "it did not begin to count anew each time")
	})
	guarding(t, func(w *watch) { // what was replaced while no agent was there
		name := w.runs(id, 1)
		w.record(id, 2, w.catalog)
		w.restart(time.Hour)
		w.pass(2 * time.Second)
		w.is(name, engine.StatusPaused, "the marker was there already")
	})
	guarding(t, func(w *watch) { // the lease comes before there was any look
		name := w.runs(id, 1)
		w.record(id, 2, w.catalog)
		w.restart(time.Second)
		w.take()
		w.pass(2 * time.Second)
		w.is(name, engine.StatusPaused, "what was replaced is looked for once, lease or not")
	})
}

// A machine that was suspended wakes with its lease long gone by the wall clock alone, and decides at once.
func TestGuardWakesUp(t *testing.T) {
	guarding(t, func(w *watch) {
		name := w.runs(id, 1)
		w.alone()
		w.slept.Store(int64(time.Hour))
		w.pass(lookWithin + time.Second)
		w.is(name, engine.StatusPaused, "an hour has passed, in which nothing was reached")
		w.back()
		w.take()
		w.pass(lookWithin + time.Second)
		w.is(name, engine.StatusRunning, "it is still the newest")
	})
	guarding(t, func(w *watch) {
		replaced, current := w.runs(id, 1), w.runs(otherID, 1)
		w.record(id, 2, w.catalog)
		w.cut()
		w.slept.Store(int64(time.Hour))
		w.pass(time.Second)
		w.is(replaced, engine.StatusPaused, "the marker is read before its lease comes back")
		w.is(current, engine.StatusRunning, "the stores are there and have none for it")
	})
}

// One that was suspended while it had no lease does not wait for the time of its next look.
func TestGuardWakesUpBetweenLooks(t *testing.T) {
	guarding(t, func(w *watch) {
		name := w.runs(id, 1)
		w.cut()
		w.pass(guardPatience + time.Minute)
		before := w.stores[0].Calls(faulty.List)
		for w.stores[0].Calls(faulty.List) == before { // until it has just looked
			w.pass(100 * time.Millisecond)
		}
		w.record(id, 2, w.catalog)
		w.slept.Store(int64(time.Minute))
		w.pass(time.Second)
		w.is(name, engine.StatusPaused, "it asked when it woke up")
	})
}

// The looks of a node without a lease are bounded: in time with a store that is silent, in number with many instances, and
// they slow down.
func TestGuardAsksWithMeasure(t *testing.T) {
	const many = 150
	guarding(t, func(w *watch) {
		for i := range many {
			w.engine.add("node-1", fmt.Sprintf("%026d", i), 1, engine.StatusRunning)
		}
		w.stores[1].Inject(faulty.Rule{Kind: faulty.Hang})
		w.cut()
		w.pass(time.Minute)
		last := "holdfast-" + workspace.InstanceName(fmt.Sprintf("%026d", many-1), 1)
		w.record(fmt.Sprintf("%026d", many-1), 2, newCatalogOf(w.stores[0]))
		w.pass(time.Minute)
		w.is(last, engine.StatusPaused, "each has its turn")
		before := [2]int{w.stores[0].Calls(faulty.List), w.stores[1].Calls(faulty.List)}
		w.pass(time.Minute)
		require.LessOrEqual(t, w.stores[0].Calls(faulty.List)-before[0], 60/2*lookMost)
		require.LessOrEqual(t, w.stores[1].Calls(faulty.List)-before[1], (60/4+1)*lookAtOnce, "one that is silent is left alone for the rest of a look")
		w.pass(guardPatience)
		before[0] = w.stores[0].Calls(faulty.List)
		w.pass(time.Minute)
		require.LessOrEqual(t, w.stores[0].Calls(faulty.List)-before[0], 4*lookMost, "it has slowed down")
	})
}

// An engine that fails or hangs on one instance keeps no other from being paused, and is asked again.
func TestGuardAndABadEngine(t *testing.T) {
	guarding(t, func(w *watch) {
		fails, hangs, good := w.runs(id, 1), w.runs(otherID, 1), w.runs(strings.Repeat("m", 26), 1)
		release := make(chan struct{})
		w.engine.mutex.Lock()
		w.engine.fail = func(call, name string) error {
			if call == "pause" && name == fails {
				return engine.ErrUnavailable
			}
			return nil
		}
		w.engine.before = func(call, name string) {
			if call == "pause" && name == hangs {
				<-release // not even its own time-out ends it
			}
		}
		w.engine.mutex.Unlock()
		w.alone()
		w.pass(DefaultPauseAfter + lookWithin + guardEvery)
		w.is(good, engine.StatusPaused, "it is nobody else's trouble")
		w.is(fails, engine.StatusRunning, "it failed")
		require.Positive(t, testutil.ToFloat64(w.guard.Metrics.failures))
		w.engine.mutex.Lock()
		w.engine.fail = nil
		w.engine.mutex.Unlock()
		w.pass(lookWithin + guardEvery)
		w.is(fails, engine.StatusPaused, "it was tried again")

		// A pause that takes effect after the lease has come back is not for ever.
		w.back()
		w.take()
		w.pass(time.Minute)
		w.is(good, engine.StatusRunning, "it goes on")
		close(release)
		w.pass(watchEvery)
		w.is(hangs, engine.StatusRunning, "so does the one whose pause came late")
	})
}

// While the engine cannot say what runs, what ran the last time is paused all the same.
func TestGuardWhenTheEngineCannotList(t *testing.T) {
	guarding(t, func(w *watch) {
		name := w.runs(id, 1)
		w.cut()
		w.pass(30 * time.Second)
		w.engine.mutex.Lock()
		w.engine.fail = func(call, _ string) error {
			if call == "list" {
				return engine.ErrUnavailable
			}
			return nil
		}
		w.engine.mutex.Unlock()
		w.record(id, 2, w.catalog)
		w.pass(guardEvery + time.Second)
		w.is(name, engine.StatusPaused, "it is known from before")
	})
}
