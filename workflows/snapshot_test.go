package workflows_test

import (
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.temporal.io/sdk/converter"
	"go.temporal.io/sdk/workflow"

	"holdfast/workspace"
)

// timedWorld begins nine minutes before the first snapshot of a ten-minute interval is due.
func timedWorld(t *testing.T) *world {
	w := newWorld(t)
	due := workspace.NextSnapshot("atlas", every, time.Date(2026, 1, 25, 12, 0, 0, 0, time.UTC))
	w.environment.SetStartTime(due.Add(-9 * time.Minute))
	return w
}

const every = 10 * time.Minute

// A7: a running workspace is snapshotted once an interval; nothing is stored while nothing changes, and that counts as
// fresh all the same.
func TestTimedSnapshots(t *testing.T) {
	w := timedWorld(t)
	w.ask(0, workspace.UpdateStart, startEvery(every))
	begun := w.look(time.Second)
	first := w.look(11 * time.Minute)
	still := w.look(31 * time.Minute)
	w.work(31*time.Minute + time.Second)
	worked := w.look(42 * time.Minute)
	w.ask(45*time.Minute, workspace.UpdateStop, workspace.StopRequest{})
	w.look(46 * time.Minute)
	stopped := w.look(2 * time.Hour)
	w.run(3 * time.Hour)

	require.Equal(t, workspace.NextSnapshot("atlas", every, begun.Instance.Began), begun.Protection.Due)
	require.Empty(t, begun.Protection.Snapshot)
	require.Equal(t, "live", first.Head.Kind)
	require.Equal(t, first.Head.Snapshot, first.Protection.Snapshot)
	require.False(t, first.Protection.Unchanged)
	require.WithinDuration(t, begun.Protection.Due, first.Protection.Time, time.Second)
	require.Equal(t, begun.Protection.Due.Add(every), first.Protection.Due)

	require.Equal(t, first.Head, still.Head, "nothing was stored")
	require.True(t, still.Protection.Unchanged)
	require.WithinDuration(t, first.Protection.Time.Add(2*every), still.Protection.Time, time.Second)
	require.NotEqual(t, first.Head.Snapshot, worked.Head.Snapshot)
	require.Equal(t, "first+.", w.versions[worked.Head.Snapshot])
	require.Equal(t, uint64(2), worked.Head.Sequence)

	require.Len(t, w.commits, 3)
	require.Equal(t, "final", w.commits[2].Kind)
	require.Equal(t, workspace.Stopped, stopped.Phase)
	require.Len(t, stopped.Recent, 2, "what a timer does pushes out nothing that a person asked for: %+v", stopped.Recent)
	require.Equal(t, 2, w.unchanged, "a stopped workspace is not looked at")
}

// What was being written to while it was read is read again, whatever its stat records say.
func TestUnsettledContentIsSnapshottedAgain(t *testing.T) {
	w := timedWorld(t)
	w.unsettled = true
	w.ask(0, workspace.UpdateStart, startEvery(every))
	w.look(35 * time.Minute)
	w.run(36 * time.Minute)
	require.Zero(t, w.unchanged)
	require.Len(t, w.commits, 3)
}

// A7: a store that is away is told and not waited for. The next snapshot is due at its own time; nothing piles up.
func TestTimedSnapshotWhileStorageIsAway(t *testing.T) {
	for step, name := range map[workspace.Step]string{
		workspace.StepBackup: workspace.ActivityBackup, workspace.StepVerify: workspace.ActivityVerify, workspace.StepCommit: workspace.ActivityCommit,
	} {
		t.Run(name, func(t *testing.T) {
			w := timedWorld(t)
			away := true
			w.fail = func(activity string, _ int) error {
				if away && activity == name {
					return errors.New("lookup storage.googleapis.com: i/o timeout")
				}
				return nil
			}
			w.ask(0, workspace.UpdateStart, startEvery(every))
			once := w.look(11 * time.Minute)
			often := w.look(51 * time.Minute)
			w.environment.RegisterDelayedCallback(func() { away = false }, 52*time.Minute)
			mended := w.look(61 * time.Minute)
			w.run(62 * time.Minute)

			require.Equal(t, workspace.Running, once.Phase)
			require.Equal(t, 1, once.Protection.Failures)
			require.Equal(t, step, once.Protection.LastFailure.Step)
			require.Contains(t, once.Protection.LastFailure.Error, "i/o timeout")
			require.Equal(t, 5, often.Protection.Failures)
			require.Equal(t, once.Protection.Due.Add(4*every), often.Protection.Due)
			require.Nil(t, often.Head)
			require.Nil(t, often.Operation)
			require.True(t, workspace.RecoveryPointOf(*often, often.Since.Add(50*time.Minute)).Exceeded)
			require.Equal(t, 16, w.attempts[name], "three attempts each time")
			require.Zero(t, mended.Protection.Failures)
			require.Nil(t, mended.Protection.LastFailure)
			require.NotNil(t, mended.Head)
		})
	}
}

// A loss that the look after the writing finds is mended by the next snapshot, not by a loop that nobody waits for.
func TestTimedSnapshotThatIsNotStored(t *testing.T) {
	w := timedWorld(t)
	w.fail = func(activity string, attempt int) error {
		if activity == workspace.ActivityVerify && attempt == 1 {
			return permanent(workspace.ErrorNotStored, "a pack is missing")
		}
		return nil
	}
	w.ask(0, workspace.UpdateStart, startEvery(every))
	lost := w.look(11 * time.Minute)
	next := w.look(20 * time.Minute)
	w.run(21 * time.Minute)
	require.Equal(t, string(workspace.ErrorNotStored), lost.Protection.LastFailure.Type)
	require.Nil(t, lost.Head)
	require.NotNil(t, next.Head)
	require.Equal(t, 2, w.attempts[workspace.ActivityBackup])
}

// A node that does not take the work is told too, by its own kind.
func TestTimedSnapshotOfASilentNode(t *testing.T) {
	w := timedWorld(t)
	w.fail = func(activity string, _ int) error {
		if activity == workspace.ActivityBackup {
			return heartbeatTimeout()
		}
		return nil
	}
	w.ask(0, workspace.UpdateStart, startEvery(every))
	silent := w.look(11 * time.Minute)
	w.run(12 * time.Minute)
	require.Equal(t, workspace.TimeoutHeartbeat, silent.Protection.LastFailure.Type)
	point := workspace.RecoveryPointOf(*silent, silent.Protection.LastFailure.Time.Add(time.Minute))
	require.Equal(t, "it failed once, the last time 60 s ago while backing up: the node's agent stopped answering in the middle of it", point.Failed(silent.Protection.LastFailure.Time.Add(time.Minute)))
}

// duringSnapshot asks for something while a timed snapshot is under way, at each of its steps, and says what was.
func duringSnapshot(t *testing.T, name, update string, request any) (w *world, during, after *workspace.State, rejected error) {
	t.Helper()
	w = timedWorld(t)
	during, asked := new(workspace.State), false
	w.fail = func(activity string, attempt int) error {
		if activity != name || attempt > 2 {
			return nil
		}
		if !asked {
			asked = true
			w.environment.RegisterDelayedCallback(func() {
				*during = w.state()
				w.environment.UpdateWorkflow(update, "during", &updateCallback{rejected: &rejected}, request)
			}, 500*time.Millisecond)
		}
		return errors.New("again") // so that the step takes seconds
	}
	w.ask(0, workspace.UpdateStart, startEvery(every))
	after = w.look(11 * time.Minute)
	w.run(12 * time.Minute)
	require.Equal(t, workspace.OperationSnapshot, during.Operation.Kind)
	return w, during, after, rejected
}

// A person's stop ends a timed snapshot at once, wherever it is.
func TestStopInterruptsTimedSnapshot(t *testing.T) {
	for _, name := range []string{workspace.ActivityBackup, workspace.ActivityVerify, workspace.ActivityCommit} {
		t.Run(name, func(t *testing.T) {
			w, _, after, rejected := duringSnapshot(t, name, workspace.UpdateStop, workspace.StopRequest{})
			require.NoError(t, rejected)
			require.Equal(t, workspace.Stopped, after.Phase, "%+v", after.Recent)
			require.Equal(t, 1, w.attempts[workspace.ActivityStopInstance])
			require.Len(t, w.commits, 1)
			require.Equal(t, "final", w.commits[0].Kind)
			require.Len(t, after.Recent, 2)
		})
	}
}

// Never two at once: a backup that a person asks for is made after the one that is under way.
func TestBackupWaitsForTimedSnapshot(t *testing.T) {
	w, _, after, rejected := duringSnapshot(t, workspace.ActivityVerify, workspace.UpdateBackup, workspace.BackupRequest{})
	require.NoError(t, rejected)
	require.Equal(t, workspace.Running, after.Phase)
	require.Len(t, w.commits, 2)
	require.Equal(t, workspace.OperationBackup, after.Recent[1].Kind)
	require.False(t, after.Recent[1].Failed)
}

// What runs and is only being snapshotted is not stuck.
func TestUnstickDuringTimedSnapshot(t *testing.T) {
	_, _, after, rejected := duringSnapshot(t, workspace.ActivityBackup, workspace.UpdateUnstick, workspace.UnstickRequest{})
	require.ErrorContains(t, rejected, "it is not stuck (Running)")
	require.Equal(t, workspace.Running, after.Phase)
	require.NotNil(t, after.Head)
}

// A store that is late is brought up to date although nothing changes, and is told until it is.
func TestOwedSnapshotIsRepairedWhileRunning(t *testing.T) {
	w := timedWorld(t)
	w.owed = []string{"file:///b"}
	away := true
	w.fail = func(activity string, _ int) error {
		if away && activity == workspace.ActivityRepair {
			return errors.New("the second store is away")
		}
		return nil
	}
	w.ask(0, workspace.UpdateStart, startEvery(every))
	owed := w.look(31 * time.Minute)
	w.environment.RegisterDelayedCallback(func() { away = false }, 32*time.Minute)
	repaired := w.look(41 * time.Minute)
	w.run(42 * time.Minute)
	require.Equal(t, []string{"file:///b"}, owed.Protection.Owed)
	require.Zero(t, owed.Protection.Failures)
	require.Equal(t, []string{"file:///b"}, workspace.OwedOf(*owed, owed.Head.Snapshot))
	require.Empty(t, repaired.Protection.Owed)
	require.Len(t, w.commits, 1)
}

// What was restored is as it is in its snapshot, from the moment at which it runs.
func TestRecoveryPointOfARestart(t *testing.T) {
	w := timedWorld(t)
	w.ask(0, workspace.UpdateStart, startEvery(every))
	w.ask(time.Minute, workspace.UpdateStop, workspace.StopRequest{})
	w.ask(5*time.Hour, workspace.UpdateStart, workspace.StartRequest{})
	again := w.look(5*time.Hour + time.Second)
	w.run(6 * time.Hour)
	require.Equal(t, workspace.Running, again.Phase)
	point := workspace.RecoveryPointOf(*again, again.Since.Add(30*time.Second))
	require.Equal(t, again.Head.Snapshot, point.Snapshot)
	require.Equal(t, int64(30), point.AgeSeconds)
	require.False(t, point.Exceeded)
}

// A stopped workspace takes another interval when it is started.
func TestIntervalOfARestart(t *testing.T) {
	w := timedWorld(t)
	w.ask(0, workspace.UpdateStart, start())
	none := w.look(30 * time.Minute)
	w.ask(time.Hour, workspace.UpdateStop, workspace.StopRequest{})
	w.ask(2*time.Hour, workspace.UpdateStart, startEvery(time.Minute))
	soon := w.look(2*time.Hour + 2*time.Minute)
	w.run(3 * time.Hour)
	require.Nil(t, none.Head)
	require.True(t, none.Protection.Due.IsZero())
	require.Equal(t, "live", soon.Head.Kind)
}

// A workspace that runs for months continues as new between two snapshots, and is snapshotted as before.
func TestContinueAsNewWhileRunning(t *testing.T) {
	w := timedWorld(t)
	w.ask(0, workspace.UpdateStart, startEvery(every))
	w.environment.RegisterDelayedCallback(func() { w.environment.SetContinueAsNewSuggested(true) }, 11*time.Minute)
	w.environment.ExecuteWorkflow(workspace.WorkspaceWorkflow, workspace.Input{Name: "atlas", Owner: "ada"})
	w.end()
	var again *workflow.ContinueAsNewError
	require.True(t, errors.As(w.environment.GetWorkflowError(), &again), "%v", w.environment.GetWorkflowError())
	var input workspace.Input
	require.NoError(t, converter.GetDefaultDataConverter().FromPayloads(again.Input, &input))
	require.Equal(t, workspace.Running, input.State.Phase)
	require.Len(t, w.commits, 1)

	next := newWorld(t)
	next.records, next.commits, next.content, next.started, next.runs, next.versions = w.records, w.commits, w.content, w.started, w.runs, w.versions
	next.newestContent, next.next = w.newestContent, w.next
	due := input.State.Protection.Due
	next.environment.SetStartTime(due)
	next.work(0)
	after := next.look(time.Minute)
	later := next.look(every + time.Minute)
	next.environment.RegisterDelayedCallback(next.environment.CancelWorkflow, every+2*time.Minute)
	next.environment.ExecuteWorkflow(workspace.WorkspaceWorkflow, input)
	next.end()
	require.Equal(t, workspace.Running, after.Phase)
	require.WithinDuration(t, due, after.Protection.Time, time.Second)
	require.Equal(t, due.Add(every), after.Protection.Due)
	require.Equal(t, uint64(2), later.Head.Sequence)
	require.Equal(t, "first+.", w.versions[later.Head.Snapshot])
	require.WithinDuration(t, due.Add(every), later.Protection.Time, time.Second)
}
