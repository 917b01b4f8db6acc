package workflows_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"holdfast/workspace"
)

// lifeWithLosses runs a workspace through the loss of its node, its return after the workspace went on elsewhere, and a
// loss from which the node returns in time; and starts it once more at the end when nothing fails any more.
func (w *world) lifeWithLosses() (last *workspace.State) {
	w.clock = func() time.Time { return w.environment.Now() }
	w.ask(0, workspace.UpdateStart, start())
	w.ask(59*time.Minute, workspace.UpdateBackup, workspace.BackupRequest{})
	w.lose(time.Hour, nodeOne)
	w.comesBack(2*time.Hour, nodeOne)
	w.lose(3*time.Hour, nodeTwo)
	w.comesBack(3*time.Hour+30*time.Second, nodeTwo)
	w.ask(4*time.Hour, workspace.UpdateStop, workspace.StopRequest{})
	w.environment.RegisterDelayedCallback(func() { w.fail, w.after = nil, nil }, 5*time.Hour)
	w.ask(6*time.Hour, workspace.UpdateUnstick, workspace.UnstickRequest{})
	w.ask(7*time.Hour, workspace.UpdateStart, start())
	// Their agents are started again: what could not be saved before is now.
	w.comesBack(7*time.Hour+10*time.Minute, nodeOne)
	w.comesBack(7*time.Hour+10*time.Minute, nodeTwo)
	last = w.look(8 * time.Hour)
	w.run(9 * time.Hour)
	return last
}

// requireNothingReplaced wants nothing on any node of an instance that was replaced (A19): what they had is saved.
func (w *world) requireNothingReplaced(last *workspace.State) {
	w.t.Helper()
	for _, left := range last.Left {
		require.False(w.t, left.Replaced, "%+v\nrecent %+v\ncalls %v", left, last.Recent, w.calls)
	}
	for _, saved := range last.Salvaged {
		require.NotContains(w.t, w.content, fmt.Sprintf("%s/%d", saved.Node, saved.Token))
		require.Equal(w.t, "recovered", w.kinds[saved.Snapshot])
	}
}

// A1, A10, A12, invariants 1, 3 and 8, with nodes that are lost: whichever activity fails, in whichever way, before its
// work or with its result lost, a full copy of what the person last had exists at every step, and when the fault is gone
// the workspace runs with it.
func TestLossesWithEveryActivityFailingWithEveryError(t *testing.T) {
	for _, name := range everyActivity {
		for kind, fault := range everyError() {
			for _, lost := range []bool{false, true} {
				if lost && name == workspace.ActivityRemoveInstance && kind == string(workspace.ErrorContentChanged) {
					continue // a node that has removed the content cannot find that it has changed
				}
				for _, from := range []int{1, 2, 3} {
					t.Run(fmt.Sprintf("%s/%s/lost=%t/from=%d", name, kind, lost, from), func(t *testing.T) {
						t.Parallel()
						w := newWorld(t)
						w.inject(name, fault, lost, from)
						last := w.lifeWithLosses()
						require.Equal(t, workspace.Running, last.Phase, "%+v\nblock %+v\nloss %+v\ncalls %v", last.Recent, last.Block, last.Loss, w.calls)
						at := fmt.Sprintf("%s/%d", last.Instance.Node, last.Instance.Token)
						require.Equal(t, w.newestContent, w.content[at], "the workspace runs with something else than the newest content")
						w.requireNothingReplaced(last)
					})
				}
			}
		}
	}
}

// Cancelling the workflow at every call loses nothing.
func TestCancellationAtEveryAwaitOfARecovery(t *testing.T) {
	whole := newWorld(t)
	whole.lifeWithLosses()
	for n := 1; n <= len(whole.calls); n++ {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			w := newWorld(t)
			w.fail = func(string, int) error {
				if len(w.calls) == n {
					w.environment.CancelWorkflow()
				}
				return nil
			}
			w.lifeWithLosses()
			require.True(t, w.fullCopy())
			require.Error(t, w.environment.GetWorkflowError())
		})
	}
}

// A command may come in at every call of a recovery: it ends in a state that the next command leads out of, and no
// content is lost.
func TestCommandAtEveryCallOfARecovery(t *testing.T) {
	for _, update := range []string{workspace.UpdateStop, workspace.UpdateUnstick, workspace.UpdateStart, workspace.UpdateDelete, workspace.UpdateBackup} {
		for n := 8; n <= 36; n++ {
			t.Run(fmt.Sprintf("%s/%d", update, n), func(t *testing.T) {
				t.Parallel()
				w := newWorld(t)
				w.fail = func(string, int) error {
					if len(w.calls) == n {
						request := map[string]any{
							workspace.UpdateStop: workspace.StopRequest{}, workspace.UpdateUnstick: workspace.UnstickRequest{}, workspace.UpdateStart: workspace.StartRequest{},
							workspace.UpdateDelete: workspace.DeleteRequest{}, workspace.UpdateBackup: workspace.BackupRequest{},
						}[update]
						w.ask(0, update, request)
					}
					return nil
				}
				last := w.lifeWithLosses()
				require.True(t, w.fullCopy())
				if update == workspace.UpdateDelete && w.attempts[workspace.ActivityRecordDeleted] > 0 {
					return // it was stopped at that moment; its workflow has ended
				}
				require.Equal(t, workspace.Running, last.Phase, "%+v\nblock %+v\nloss %+v\ncalls %v", last.Recent, last.Block, last.Loss, w.calls)
				at := fmt.Sprintf("%s/%d", last.Instance.Node, last.Instance.Token)
				require.Equal(t, w.newestContent, w.content[at])
				w.requireNothingReplaced(last)
			})
		}
	}
}
