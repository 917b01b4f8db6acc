package workflows_test

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"holdfast/workspace"
)

// everyError is the closed list, an untyped (transient) error that stays, and a dead node.
func everyError() map[string]error {
	all := map[string]error{
		"transient": errors.New("connection reset by peer"),
		"dead node": heartbeatTimeout(),
	}
	for _, kind := range []workspace.ErrorType{
		workspace.ErrorInvalid, workspace.ErrorNotFound, workspace.ErrorConflict, workspace.ErrorStaleToken, workspace.ErrorNodeFull, workspace.ErrorNodeReplaced, workspace.ErrorNodeUnguarded, workspace.ErrorVolumeMissing,
		workspace.ErrorNoNode, workspace.ErrorImageNotFound, workspace.ErrorImageDenied, workspace.ErrorStartFailed,
		workspace.ErrorStoreMissing, workspace.ErrorStoreDenied, workspace.ErrorStoreFull, workspace.ErrorWrongKey, workspace.ErrorDamaged,
		workspace.ErrorSnapshotMissing, workspace.ErrorContentMissing, workspace.ErrorContentForeign, workspace.ErrorContentChanged,
		workspace.ErrorDiskFull, workspace.ErrorUploadMissing, workspace.ErrorSource, workspace.ErrorNotStored, workspace.ErrorOmissions,
		workspace.ErrorRefused, workspace.ErrorNodeLost, workspace.ErrorHookFailed,
	} {
		all[string(kind)] = permanent(kind, "injected "+string(kind))
	}
	return all
}

var everyActivity = []string{
	workspace.ActivityReadHead, workspace.ActivityPlace, workspace.ActivitySeal, workspace.ActivityRecordInstance,
	workspace.ActivityReleasePlacement, workspace.ActivityPrepareImage, workspace.ActivityPrepareContent, workspace.ActivityStartInstance,
	workspace.ActivityStopInstance, workspace.ActivityBackup, workspace.ActivityVerify, workspace.ActivityCommit,
	workspace.ActivityRepair, workspace.ActivityRemoveInstance, workspace.ActivityDiscardInstance, workspace.ActivityLookAtNode,
	workspace.ActivityLookAtUse,
}

// lives are the workspaces that everything happens to: one that only commands act on, one that a timer snapshots, and one
// that is stopped by itself before its person does.
var lives = map[string]workspace.StartRequest{
	"commands": start(), "timed": hooked(startEvery(20 * time.Minute)), "idle": stopping(40*time.Minute, 0),
}

// life starts and stops a workspace twice, and once more at the end when nothing fails any more. There is work between
// two snapshots, and none.
func (w *world) life(first workspace.StartRequest) (last *workspace.State) {
	w.ask(0, workspace.UpdateStart, first)
	w.ask(time.Hour, workspace.UpdateStop, workspace.StopRequest{})
	w.ask(2*time.Hour, workspace.UpdateStart, workspace.StartRequest{})
	w.ask(3*time.Hour, workspace.UpdateStop, workspace.StopRequest{})
	w.environment.RegisterDelayedCallback(func() { w.fail, w.after = nil, nil }, 5*time.Hour)
	if !first.Spec.Snapshots.Off {
		w.work(30 * time.Minute)
		w.work(150 * time.Minute)
	}
	w.ask(6*time.Hour, workspace.UpdateUnstick, workspace.UnstickRequest{})
	w.ask(7*time.Hour, workspace.UpdateStart, start())
	last = w.look(8 * time.Hour)
	w.run(9 * time.Hour)
	return last
}

// A1, A10, A12, invariants 1, 3 and 8: whichever activity fails, in whichever way and at whichever call, before its work
// or with its result lost, a full copy of what the person last had exists at every step, and when the fault is gone the
// workspace starts with it.
func TestEveryActivityFailingWithEveryError(t *testing.T) {
	for life, first := range lives {
		for _, name := range everyActivity {
			for kind, fault := range everyError() {
				for _, lost := range []bool{false, true} {
					if lost && name == workspace.ActivityRemoveInstance && kind == string(workspace.ErrorContentChanged) {
						continue // a node that has removed the content cannot find that it has changed
					}
					for _, from := range []int{1, 2} {
						t.Run(fmt.Sprintf("%s/%s/%s/lost=%t/from=%d", life, name, kind, lost, from), func(t *testing.T) {
							t.Parallel()
							failing(t, first, name, fault, lost, from)
						})
					}
				}
			}
		}
	}
}

// inject makes an activity fail from an attempt on, before its work or with its result lost.
func (w *world) inject(name string, fault error, lost bool, from int) {
	failure := func(activity string, attempt int) error {
		if activity == name && attempt >= from {
			return fault
		}
		return nil
	}
	if lost {
		w.after = failure
	} else {
		w.fail = failure
	}
}

func failing(t *testing.T, first workspace.StartRequest, name string, fault error, lost bool, from int) {
	w := newWorld(t)
	w.inject(name, fault, lost, from)
	last := w.life(first)
	require.Equal(t, workspace.Running, last.Phase, "%+v\nblock %+v\ncalls %v", last.Recent, last.Block, w.calls)
	at := fmt.Sprintf("%s/%d", last.Instance.Node, last.Instance.Token)
	require.Equal(t, w.newestContent, w.content[at], "the workspace runs with something else than the newest content")
}

// Cancelling the workflow at every call loses nothing and leaves nothing removed that is not backed up.
func TestCancellationAtEveryAwait(t *testing.T) {
	for life, first := range lives {
		whole := newWorld(t)
		whole.life(first)
		for n := 1; n <= len(whole.calls); n++ {
			t.Run(fmt.Sprint(life, n), func(t *testing.T) {
				w := newWorld(t)
				w.fail = func(string, int) error {
					if len(w.calls) == n {
						w.environment.CancelWorkflow()
					}
					return nil
				}
				w.life(first)
				require.True(t, w.fullCopy())
				require.Error(t, w.environment.GetWorkflowError())
			})
		}
	}
}

// A stop may be interrupted by a start or an unstick at every call of it: the person gets the newest content back.
func TestInterruptionAtEveryCall(t *testing.T) {
	for _, by := range []string{workspace.UpdateStart, workspace.UpdateUnstick} {
		for n := 1; n <= 16; n++ {
			t.Run(fmt.Sprintf("%s/%d", by, n), func(t *testing.T) {
				w := newWorld(t)
				w.fail = func(string, int) error {
					if len(w.calls) == n {
						var request any = workspace.StartRequest{}
						if by == workspace.UpdateUnstick {
							request = workspace.UnstickRequest{}
						}
						w.ask(0, by, request)
					}
					return nil
				}
				w.ask(0, workspace.UpdateStart, start())
				w.ask(time.Hour, workspace.UpdateStop, workspace.StopRequest{})
				w.ask(2*time.Hour, workspace.UpdateStart, start())
				w.ask(3*time.Hour, workspace.UpdateStart, start()) // when it was that start that was interrupted
				last := w.look(4 * time.Hour)
				w.run(5 * time.Hour)
				require.Equal(t, workspace.Running, last.Phase, "%+v\n%v", last, w.calls)
				at := fmt.Sprintf("%s/%d", last.Instance.Node, last.Instance.Token)
				require.Equal(t, w.newestContent, w.content[at])
			})
		}
	}
}
