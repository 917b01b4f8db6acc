package workflows_test

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"holdfast/workspace"
)

// recent is how the last operation of a kind ended.
func recent(t *testing.T, state *workspace.State, kind workspace.OperationKind) workspace.Operation {
	t.Helper()
	for _, operation := range slices.Backward(state.Recent) {
		if operation.Kind == kind {
			return operation
		}
	}
	require.FailNow(t, "no such operation", "%s is not among %+v", kind, state.Recent)
	return workspace.Operation{}
}

// moved starts a workspace, works in it, and moves it after an hour.
func (w *world) moved(request workspace.MoveRequest) (rejected *error) {
	w.ask(0, workspace.UpdateStart, start())
	w.work(30 * time.Minute)
	return w.ask(time.Hour, workspace.UpdateMove, request)
}

// A move ends with the newest content running elsewhere, nothing of it on the old node, and one commit while it ran and
// one when it was stopped.
func TestMove(t *testing.T) {
	for _, node := range []string{"", nodeTwo} {
		w := newWorld(t)
		rejected := w.moved(workspace.MoveRequest{Subject: "ada", Node: node})
		last := w.look(2 * time.Hour)
		w.run(3 * time.Hour)
		require.NoError(t, *rejected)
		require.Equal(t, workspace.Running, last.Phase)
		require.Equal(t, nodeTwo, last.Instance.Node)
		require.Equal(t, map[string]string{nodeTwo + "/2": w.newestContent}, w.content)
		require.Equal(t, map[workspace.Placed]bool{{Node: nodeTwo, Token: 2}: true}, w.placed)
		operation := recent(t, last, workspace.OperationMove)
		require.False(t, operation.Failed, operation.Error)
		require.NotNil(t, operation.Backup)
		require.False(t, operation.Halted.IsZero())
		kinds := []string{w.commits[0].Kind, w.commits[1].Kind}
		require.Equal(t, []string{"live", "final"}, kinds)
	}
}

// What makes a move impossible is found out before anything is stopped.
func TestMoveThatCannotBegin(t *testing.T) {
	for name, spoil := range map[string]func(*world){
		"no other node": func(w *world) {
			w.nodes[nodeTwo] = workspace.NodeState{Info: workspace.NodeInfo{Name: nodeTwo}, Phase: workspace.NodeLost}
		},
		"a store is owed": func(w *world) { w.owed = []string{"file:///b"} },
		"the store refuses": func(w *world) {
			w.inject(workspace.ActivityBackup, permanent(workspace.ErrorStoreDenied, "403"), false, 1)
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			spoil(w)
			w.moved(workspace.MoveRequest{})
			last := w.look(2 * time.Hour)
			w.run(3 * time.Hour)
			require.Equal(t, workspace.Running, last.Phase)
			require.Equal(t, nodeOne, last.Instance.Node)
			require.True(t, recent(t, last, workspace.OperationMove).Failed)
			require.True(t, w.runs[nodeOne+"/1"])
			require.NotContains(t, w.calls, workspace.ActivityStopInstance)
		})
	}
}

// A workspace whose content may not leave its node yet runs there again, with all that it had (invariants 1 and 2).
func TestMoveStays(t *testing.T) {
	for name, spoil := range map[string]func(w *world){
		"omissions": func(w *world) { w.omitted = 2 },
		"a store falls behind": func(w *world) {
			w.after = func(activity string, _ int) error {
				if activity == workspace.ActivityStopInstance {
					w.owed = []string{"file:///b"}
				}
				return nil
			}
		},
		"the final backup is refused": func(w *world) {
			w.inject(workspace.ActivityBackup, permanent(workspace.ErrorDamaged, "a damaged index"), false, 2)
		},
		"removal fails": func(w *world) {
			w.inject(workspace.ActivityRemoveInstance, permanent(workspace.ErrorContentForeign, "another disk"), false, 1)
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			spoil(w)
			w.moved(workspace.MoveRequest{})
			last := w.look(2 * time.Hour)
			w.run(3 * time.Hour)
			require.Equal(t, workspace.Running, last.Phase, "%+v", last.Recent)
			require.Equal(t, nodeOne, last.Instance.Node)
			require.Equal(t, uint64(1), last.Instance.Adopted)
			require.Equal(t, w.newestContent, w.content[nodeOne+"/2"])
			operation := recent(t, last, workspace.OperationMove)
			require.True(t, operation.Failed)
			require.Contains(t, operation.Error, "runs on node "+nodeOne+" again")
		})
	}
}

// A node that cannot start it is no reason for it to stay stopped.
func TestMoveComesBack(t *testing.T) {
	w := newWorld(t)
	w.fail = func(activity string, attempt int) error {
		if activity == workspace.ActivityStartInstance && attempt == 2 {
			return permanent(workspace.ErrorStartFailed, "the image does not start there")
		}
		return nil
	}
	w.moved(workspace.MoveRequest{Node: nodeTwo})
	last := w.look(2 * time.Hour)
	w.run(3 * time.Hour)
	require.Equal(t, workspace.Running, last.Phase)
	require.Equal(t, nodeOne, last.Instance.Node)
	require.Equal(t, w.newestContent, w.content[place(workspace.Target{Node: nodeOne, Token: last.Instance.Token})])
	require.Contains(t, recent(t, last, workspace.OperationMove).Error, "the image does not start there")
}

// The node that it came from has its image and had room for it: it is asked first, before others are tried once more.
func TestMoveComesBackToItsOwnNode(t *testing.T) {
	w := newWorld(t)
	var refused int
	w.failOn = func(node, activity string) error {
		if node == nodeOne && activity == workspace.ActivityStartInstance {
			refused++
			return permanent(workspace.ErrorStartFailed, "the image does not start there")
		}
		return nil
	}
	request := start()
	request.Node = nodeTwo
	w.ask(0, workspace.UpdateStart, request)
	w.work(30 * time.Minute)
	w.ask(time.Hour, workspace.UpdateMove, workspace.MoveRequest{})
	last := w.look(2 * time.Hour)
	w.run(3 * time.Hour)
	require.Equal(t, workspace.Running, last.Phase)
	require.Equal(t, nodeTwo, last.Instance.Node)
	require.Equal(t, 1, refused, "it was tried again elsewhere before its own node was asked")
}

// A move that a person ends while it looks for a node has not found that there is none.
func TestMoveGivesWayWhileItLooksForANode(t *testing.T) {
	w := newWorld(t)
	w.fail = func(activity string, attempt int) error {
		if activity != workspace.ActivityPlace || attempt != 2 {
			return nil
		}
		w.ask(0, workspace.UpdateStop, workspace.StopRequest{})
		return errors.New("not at the first try")
	}
	w.moved(workspace.MoveRequest{})
	last := w.look(2 * time.Hour)
	w.run(3 * time.Hour)
	operation := recent(t, last, workspace.OperationMove)
	require.Equal(t, workspace.ErrorInterrupted, operation.ErrorType, operation.Error)
	require.False(t, operation.Refused)
	require.Equal(t, workspace.Stopped, last.Phase)
}

// A move gives way before it begins, too: what a person asked for while it waited is what happens.
func TestMoveGivesWayBeforeItBegins(t *testing.T) {
	w := newWorld(t)
	asked := false
	w.fail = func(activity string, _ int) error {
		// While a backup is under way, so that both wait for its end.
		if activity == workspace.ActivityCommit && !asked {
			asked = true
			w.ask(0, workspace.UpdateMove, workspace.MoveRequest{})
			w.ask(0, workspace.UpdateUnstick, workspace.UnstickRequest{})
			return errors.New("not at the first try")
		}
		return nil
	}
	w.ask(0, workspace.UpdateStart, start())
	w.ask(time.Hour, workspace.UpdateBackup, workspace.BackupRequest{})
	last := w.look(2 * time.Hour)
	w.run(3 * time.Hour)
	operation := recent(t, last, workspace.OperationMove)
	require.Equal(t, workspace.ErrorInterrupted, operation.ErrorType, "%+v", last.Recent)
	require.Contains(t, operation.Error, "it was not begun")
	require.NotContains(t, w.calls, workspace.ActivityStopInstance)
	require.Equal(t, workspace.Stopped, last.Phase)
}

// Whichever activity fails, in whichever way, from the move on, a full copy exists at every step, and when the fault is gone
// and a person has asked for it the workspace runs with the newest content.
func TestMoveFailingWithEveryError(t *testing.T) {
	for _, name := range everyActivity {
		for kind, fault := range everyError() {
			for _, lost := range []bool{false, true} {
				if lost && name == workspace.ActivityRemoveInstance && kind == string(workspace.ErrorContentChanged) {
					continue // a node that has removed the content cannot find that it has changed
				}
				for _, from := range []int{1, 2} {
					t.Run(fmt.Sprintf("%s/%s/lost=%t/from=%d", name, kind, lost, from), func(t *testing.T) {
						t.Parallel()
						w := newWorld(t)
						w.environment.RegisterDelayedCallback(func() {
							w.mutex.Lock()
							defer w.mutex.Unlock()
							clear(w.attempts)
							w.inject(name, fault, lost, from)
						}, 50*time.Minute)
						w.moved(workspace.MoveRequest{})
						w.environment.RegisterDelayedCallback(func() { w.fail, w.after = nil, nil }, 5*time.Hour)
						w.ask(6*time.Hour, workspace.UpdateUnstick, workspace.UnstickRequest{})
						w.ask(7*time.Hour, workspace.UpdateStart, start())
						last := w.look(8 * time.Hour)
						w.run(9 * time.Hour)
						require.Equal(t, workspace.Running, last.Phase, "%+v\nblock %+v\ncalls %v", last.Recent, last.Block, w.calls)
						at := fmt.Sprintf("%s/%d", last.Instance.Node, last.Instance.Token)
						require.Equal(t, w.newestContent, w.content[at], "the workspace runs with something else than the newest content")
					})
				}
			}
		}
	}
}

// A person may change their mind at every call of a move: what they then asked for is what happens, with the newest content.
func TestMoveInterruptedAtEveryCall(t *testing.T) {
	whole := newWorld(t)
	whole.moved(workspace.MoveRequest{})
	whole.run(3 * time.Hour)
	first := slices.Index(whole.calls, workspace.ActivityStartInstance) + 2
	for by, request := range map[string]any{
		workspace.UpdateStop: workspace.StopRequest{}, workspace.UpdateStart: workspace.StartRequest{}, workspace.UpdateUnstick: workspace.UnstickRequest{},
	} {
		for n := first; n <= len(whole.calls); n++ {
			t.Run(fmt.Sprintf("%s/%d/%s", by, n, whole.calls[n-1]), func(t *testing.T) {
				w := newWorld(t)
				var rejected *error
				w.fail = func(string, int) error {
					if len(w.calls) == n {
						rejected = w.ask(0, by, request)
					}
					return nil
				}
				w.moved(workspace.MoveRequest{})
				between, started := w.look(2*time.Hour), 0
				w.environment.RegisterDelayedCallback(func() { started = w.attempts[workspace.ActivityStartInstance] }, 2*time.Hour)
				w.ask(150*time.Minute, workspace.UpdateStart, workspace.StartRequest{})
				last := w.look(4 * time.Hour)
				w.run(5 * time.Hour)
				require.NotNil(t, rejected)
				if *rejected == nil && by == workspace.UpdateStop {
					require.Equal(t, workspace.Stopped, between.Phase, "%+v", between.Recent)
					if n < len(whole.calls) {
						move := recent(t, last, workspace.OperationMove)
						require.Equal(t, workspace.ErrorInterrupted, move.ErrorType, "a move that a stop ended counts as done: %+v", move)
						require.Equal(t, 1, started, "it was started elsewhere although a stop had been asked for: %v", w.calls)
					}
				}
				if *rejected == nil && by == workspace.UpdateStart {
					require.Equal(t, workspace.Running, between.Phase, "%+v", between.Recent)
				}
				require.Equal(t, workspace.Running, last.Phase, "%+v", last.Recent)
				require.Equal(t, w.newestContent, w.content[place(workspace.Target{Node: last.Instance.Node, Token: last.Instance.Token})])
			})
		}
	}
}

// A node that is lost during a move is no worse than at another time: before the workspace is stopped it recovers, while it
// is stopped the backup goes on when the node returns, and once the stores have everything it goes on elsewhere.
func TestMoveFromANodeThatIsLost(t *testing.T) {
	for name, want := range map[string]workspace.Phase{
		workspace.ActivityVerify: workspace.Running, workspace.ActivityStopInstance: workspace.Stopping, workspace.ActivityRemoveInstance: workspace.Running,
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.ask(10*time.Minute, workspace.UpdateBackup, workspace.BackupRequest{})
			lost := false
			w.fail = func(activity string, _ int) error {
				if activity == name && w.attempts[workspace.ActivityCommit] > 0 && !lost {
					lost = true
					now := w.environment.Now()
					w.nodes[nodeOne] = workspace.NodeState{Info: workspace.NodeInfo{Name: nodeOne}, Phase: workspace.NodeLost, Epoch: 1,
						Loss: &workspace.NodeLoss{At: now.Add(-time.Hour), Heard: now.Add(-time.Hour), Epoch: 1}}
					w.environment.RegisterDelayedCallback(func() {
						w.environment.SignalWorkflow(workspace.SignalNodeNews, workspace.NodeNews{Node: nodeOne, Epoch: 1, Lost: true, At: now, Heard: now})
					}, time.Second)
				}
				if lost && activity == name {
					return errors.New("the node does not answer")
				}
				return nil
			}
			w.moved(workspace.MoveRequest{})
			last := w.look(2 * time.Hour)
			w.run(3 * time.Hour)
			require.Equal(t, want, last.Phase, "%+v %s", last.Recent, last.Reason)
			if want == workspace.Running {
				require.Equal(t, nodeTwo, last.Instance.Node)
				require.Equal(t, workspace.ErrorNodeLost, recent(t, last, workspace.OperationMove).ErrorType)
			}
		})
	}
}

// What cannot be moved is refused, with what to do.
func TestMoveIsRefused(t *testing.T) {
	w := newWorld(t)
	w.ask(0, workspace.UpdateStart, start())
	here := w.ask(10*time.Minute, workspace.UpdateMove, workspace.MoveRequest{Node: nodeOne})
	bad := w.ask(11*time.Minute, workspace.UpdateMove, workspace.MoveRequest{Node: "Not a name"})
	w.ask(time.Hour, workspace.UpdateStop, workspace.StopRequest{})
	stopped := w.ask(2*time.Hour, workspace.UpdateMove, workspace.MoveRequest{})
	w.run(3 * time.Hour)
	require.ErrorContains(t, *here, "it is running on node node-1")
	require.ErrorContains(t, *bad, "node ")
	require.ErrorContains(t, *stopped, "holdfast start atlas --node NODE")
}
