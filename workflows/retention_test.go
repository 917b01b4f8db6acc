package workflows_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	enumspb "go.temporal.io/api/enums/v1"
	"go.temporal.io/sdk/activity"
	"go.temporal.io/sdk/temporal"

	"holdfast/workspace"
)

// retainedWorld is a timed world with work before every snapshot: the n-th is made n*every-1min after its start, so that
// twelfth is when the first retention runs.
func retainedWorld(t *testing.T, hours int) *world {
	w := timedWorld(t)
	w.environment.SetTestTimeout(10 * time.Minute)
	for n := range hours * 6 {
		w.work(time.Duration(n)*every + time.Minute)
	}
	return w
}

// twelfth is when the n-th retention begins.
func twelfth(n int) time.Duration { return time.Duration(n*workspace.RetainEvery)*every - time.Minute }

// retainsNext has the workspace be one that continued as new with all but one of the snapshots that make a retention due, and
// whose stores hold what no snapshot needs.
func (w *world) retainsNext() {
	w.input.State = &workspace.State{
		Name: "atlas", ID: "abcdefghijklmnopqrstuvwxyz", Owner: "ada", Phase: workspace.Pending, Incomplete: true,
		Retaining: &workspace.Retaining{Made: workspace.RetainEvery - 1, Time: time.Date(2026, 1, 25, 12, 0, 0, 0, time.UTC)},
	}
}

// Right after every twelfth timed snapshot the older ones are forgotten, and once a day what nothing needs is removed, before
// more is forgotten.
func TestRetention(t *testing.T) {
	w := retainedWorld(t, 30)
	request := startEvery(every)
	request.Spec.Retention = workspace.Retention{Last: 3, Daily: 2}
	w.ask(0, workspace.UpdateStart, request)
	before := w.look(twelfth(1) - time.Second)
	once := w.look(twelfth(1) + time.Minute)
	twice := w.look(twelfth(2) + time.Minute)
	last := w.look(29 * time.Hour)
	w.run(30 * time.Hour)

	require.Equal(t, workspace.RetainEvery-1, before.Retaining.Made)
	require.Equal(t, 7, once.Retaining.Forgotten)
	require.Equal(t, 5, once.Retaining.Kept)
	require.Zero(t, once.Retaining.Made)
	require.Zero(t, once.Retaining.PruneBegun, "nothing was forgotten before")
	require.False(t, twice.Retaining.Pruned.IsZero())
	require.Equal(t, int64(1<<20), twice.Retaining.PrunedBytes)
	require.Len(t, w.forgets, 15)
	require.Len(t, w.prunes, 2)
	require.Len(t, last.Recent, 1, "what a timer does pushes out nothing that a person asked for")
	for i, asked := range w.forgets {
		commit := w.commits[(i+1)*workspace.RetainEvery-1]
		require.Equal(t, workspace.Retention{Last: 3, Daily: 2}, asked.Retention)
		require.Equal(t, commit.Snapshot, asked.Head)
		require.Contains(t, asked.Protect, commit.Snapshot)
		require.Equal(t, commit.Token, asked.Target.Token)
		require.NotEmpty(t, asked.Target.Sealed)
	}
	for _, commit := range w.commits {
		require.True(t, commit.Timed)
	}
	require.Less(t, index(w.calls, workspace.ActivityForget), index(w.calls, workspace.ActivityPrune))
	require.Equal(t, workspace.ActivityForget, w.calls[index(w.calls, workspace.ActivityPrune)+1])
}

func index(calls []string, name string) int {
	for i, call := range calls {
		if call == name {
			return i
		}
	}
	return -1
}

// Nothing is forgotten when a person said so, and a person's backup is none of those that are.
func TestNoRetention(t *testing.T) {
	w := retainedWorld(t, 5)
	request := startEvery(every)
	request.Spec.Retention = workspace.Retention{Off: true}
	w.ask(0, workspace.UpdateStart, request)
	w.ask(time.Minute+time.Second, workspace.UpdateBackup, workspace.BackupRequest{})
	w.run(5 * time.Hour)
	require.Empty(t, w.forgets)
	require.Greater(t, len(w.commits), 2*workspace.RetainEvery)
	require.False(t, w.commits[0].Timed)
	require.True(t, w.commits[1].Timed)
}

// What a person says of it when a stopped workspace is started counts from then on, and stays when nothing is said.
func TestRetentionOfAStoppedWorkspace(t *testing.T) {
	w := retainedWorld(t, 9)
	w.ask(0, workspace.UpdateStart, startEvery(every))
	w.ask(time.Hour, workspace.UpdateStop, workspace.StopRequest{})
	spec := *startEvery(every).Spec
	spec.Retention = workspace.Retention{Off: true}
	w.ask(time.Hour+2*time.Minute, workspace.UpdateStart, workspace.StartRequest{Spec: &spec})
	w.ask(2*time.Hour, workspace.UpdateStop, workspace.StopRequest{})
	w.ask(2*time.Hour+2*time.Minute, workspace.UpdateStart, workspace.StartRequest{})
	last := w.look(8 * time.Hour)
	w.run(9 * time.Hour)
	require.Equal(t, workspace.Running, last.Phase)
	require.Equal(t, spec.Retention, last.Spec.Retention)
	require.Empty(t, w.forgets, "nothing is ever to be forgotten")
}

// What an instance began with is named to the node, and counting goes on over a stop.
func TestRetentionOverAStop(t *testing.T) {
	w := retainedWorld(t, 5)
	w.ask(0, workspace.UpdateStart, startEvery(every))
	w.ask(time.Hour, workspace.UpdateStop, workspace.StopRequest{})
	w.ask(time.Hour+2*time.Minute, workspace.UpdateStart, workspace.StartRequest{})
	again := w.look(time.Hour + 3*time.Minute)
	w.run(twelfth(1) + 2*every)
	require.Len(t, w.forgets, 1)
	require.NotEmpty(t, again.Instance.Base)
	require.Contains(t, w.forgets[0].Protect, again.Instance.Base)
}

// Whatever keeps it from being done, a running workspace runs on, is snapshotted at its time, is told why, and it is done
// after the next twelve.
func TestRetentionFailingWithEveryError(t *testing.T) {
	for kind, fault := range everyError() {
		for _, name := range []string{workspace.ActivityForget, workspace.ActivityPrune} {
			for _, lost := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s/%s/lost=%t", name, kind, lost), func(t *testing.T) {
					t.Parallel()
					w := retainedWorld(t, 9)
					w.inject(name, fault, lost, 1)
					w.ask(0, workspace.UpdateStart, startEvery(every))
					// A prune is first tried when something was forgotten.
					at := twelfth(1)
					if name == workspace.ActivityPrune {
						at = twelfth(2)
					}
					failed := w.look(at + every + time.Minute)
					w.environment.RegisterDelayedCallback(func() { w.fail, w.after = nil, nil }, at+2*every)
					w.ask(at+2*every, workspace.UpdateBackup, workspace.BackupRequest{})
					mended := w.look(twelfth(4) - every)
					w.run(twelfth(4))
					require.Equal(t, workspace.Running, failed.Phase)
					require.Nil(t, failed.Block)
					require.Equal(t, 1, failed.Retaining.Failures, "%+v", failed.Retaining)
					require.NotEmpty(t, failed.Retaining.Failed(failed.Since.Add(time.Hour)))
					require.Zero(t, failed.Protection.Failures)
					require.Equal(t, uint64(at/every)+2, failed.Head.Sequence, "it is snapshotted at its time")
					require.Len(t, failed.Recent, 1)
					if name == workspace.ActivityForget {
						require.Zero(t, mended.Retaining.Failures)
						require.Nil(t, mended.Retaining.LastFailure)
						require.False(t, mended.Retaining.Time.IsZero())
					} else {
						require.False(t, failed.Retaining.Time.IsZero(), "it was forgotten all the same")
						require.Equal(t, 1, mended.Retaining.Failures, "it is tried again after a day")
					}
				})
			}
		}
	}
}

// A7: what is not done when the next snapshot is due is given up for it.
func TestRetentionGivesWayToTheNextSnapshot(t *testing.T) {
	w := retainedWorld(t, 5)
	w.fail = func(activity string, _ int) error {
		if activity == workspace.ActivityForget {
			return temporal.NewTimeoutError(enumspb.TIMEOUT_TYPE_SCHEDULE_TO_CLOSE, nil)
		}
		return nil
	}
	var allowed []time.Duration
	w.deaf = func(ctx context.Context, name string) {
		if name == workspace.ActivityForget {
			allowed = append(allowed, activity.GetInfo(ctx).ScheduleToCloseTimeout)
		}
	}
	w.ask(0, workspace.UpdateStart, startEvery(every))
	late := w.look(twelfth(1) + every + time.Minute)
	w.run(twelfth(1) + 2*every)
	require.Len(t, allowed, 1)
	require.LessOrEqual(t, allowed[0], every)
	require.Greater(t, allowed[0], every-time.Minute)
	require.Equal(t, 1, late.Retaining.Failures)
	require.Contains(t, late.Retaining.LastFailure.Error, "the next snapshot was due")
	require.Equal(t, workspace.TimeoutScheduleToClose, late.Retaining.LastFailure.Type)
	require.Equal(t, uint64(workspace.RetainEvery+1), late.Head.Sequence)
}

// duringRetention asks for something while a retention is under way, at each of its steps, and says what was.
func duringRetention(t *testing.T, name, update string, request any) (w *world, during, after *workspace.State, rejected error) {
	t.Helper()
	w = retainedWorld(t, 7)
	begins := twelfth(1)
	if name == workspace.ActivityPrune {
		begins = twelfth(2)
	}
	during, asked := new(workspace.State), false
	w.fail = func(activity string, _ int) error {
		if activity != name {
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
	after = w.look(begins + 20*time.Second)
	w.environment.RegisterDelayedCallback(func() { w.fail = nil }, begins+30*time.Second)
	w.run(begins + 3*every)
	require.Equal(t, workspace.OperationRetain, during.Operation.Kind)
	return w, during, after, rejected
}

// Any command of a person ends it at once, wherever it is, and is done.
func TestCommandsInterruptRetention(t *testing.T) {
	for _, name := range []string{workspace.ActivityForget, workspace.ActivityPrune} {
		t.Run(name+"/stop", func(t *testing.T) {
			w, _, after, rejected := duringRetention(t, name, workspace.UpdateStop, workspace.StopRequest{})
			require.NoError(t, rejected)
			require.Equal(t, workspace.Stopped, after.Phase, "%+v", after.Recent)
			require.Equal(t, 1, w.attempts[name], "it was not tried again")
			require.Equal(t, "final", w.commits[len(w.commits)-1].Kind)
			require.Len(t, after.Recent, 2)
			require.Zero(t, after.Retaining.Failures, "being interrupted is no failure")
			require.Equal(t, workspace.RetainEvery-1, after.Retaining.Made)
		})
		t.Run(name+"/backup", func(t *testing.T) {
			w, during, after, rejected := duringRetention(t, name, workspace.UpdateBackup, workspace.BackupRequest{})
			require.NoError(t, rejected)
			require.Equal(t, workspace.Running, after.Phase)
			require.Equal(t, workspace.OperationBackup, after.Recent[1].Kind)
			require.False(t, after.Recent[1].Failed)
			require.Equal(t, during.Head.Sequence+1, after.Head.Sequence)
			require.Zero(t, after.Retaining.Failures, "being interrupted is no failure")
			require.Equal(t, 2, w.attempts[name], "it is done after the next snapshot")
		})
		t.Run(name+"/unstick", func(t *testing.T) {
			_, _, after, rejected := duringRetention(t, name, workspace.UpdateUnstick, workspace.UnstickRequest{})
			require.ErrorContains(t, rejected, "it is not stuck (Running)")
			require.Equal(t, workspace.Running, after.Phase)
		})
	}
}

// Cancelling the workflow at each of its calls loses nothing: what the person last had is found by the state that is left.
func TestCancellationAtEveryCallOfRetention(t *testing.T) {
	life := func(cancelAt int) *world {
		w := newWorld(t)
		w.fail = func(string, int) error {
			if len(w.calls) == cancelAt {
				w.environment.CancelWorkflow()
			}
			return nil
		}
		livesOfWaits["retention"](w)
		w.run(5 * time.Hour)
		return w
	}
	whole := life(0)
	require.Len(t, whole.prunes, 1)
	require.Len(t, whole.forgets, 1)
	for n := 1; n <= len(whole.calls); n++ {
		w := life(n)
		require.True(t, w.fullCopy(), whole.calls[n-1])
		require.True(t, w.findable(w.state()), "%s: %+v", whole.calls[n-1], w.state())
		require.Error(t, w.environment.GetWorkflowError())
	}
}

// The loss of its node ends it too: nothing waits for what a lost node may never answer.
func TestLossInterruptsRetention(t *testing.T) {
	w := retainedWorld(t, 5)
	asked := false
	w.fail = func(activity string, _ int) error {
		if activity == workspace.ActivityForget && !asked {
			asked = true
			w.environment.RegisterDelayedCallback(func() { w.loseNow(nodeOne) }, 500*time.Millisecond)
		}
		if activity == workspace.ActivityForget {
			return errors.New("again")
		}
		return nil
	}
	w.ask(0, workspace.UpdateStart, startEvery(every))
	after := w.look(twelfth(1) + 4*time.Minute)
	w.run(twelfth(1) + 5*time.Minute)
	require.True(t, asked)
	require.Equal(t, 1, w.attempts[workspace.ActivityForget])
	require.Equal(t, workspace.Running, after.Phase, "%+v", after)
	require.Equal(t, nodeTwo, after.Instance.Node)
	require.Zero(t, after.Retaining.Failures, "it was not cut, and waited for what does not answer")
}
