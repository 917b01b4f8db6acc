package workflows_test

import (
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"holdfast/workspace"
)

// A5, A12, invariants 3 and 6: what ran on a lost node goes on elsewhere with the very same files, once nothing can be at work on
// them there; nothing was ever backed up, and nothing is lost.
func TestSharedVolumeSurvivesItsNode(t *testing.T) {
	w := runningShared(t)
	waiting := w.look(fenced(time.Hour) - time.Second)
	after := w.look(fenced(time.Hour) + 5*time.Second)
	w.run(2 * time.Hour)

	require.Equal(t, workspace.Recovering, waiting.Phase)
	require.Contains(t, waiting.Loss.Waiting, "guard process of node node-1")
	require.Equal(t, uint64(1), waiting.Instance.Token)
	w.runsShared(after, nodeTwo, "first+.+")
	require.Equal(t, uint64(2), after.Instance.Token)
	require.Equal(t, uint64(1), w.records[2].Adopted)
	require.Equal(t, volume, w.records[2].Volume)
	require.Contains(t, after.Reason, "nothing was lost")
	require.Zero(t, after.Recovery.LostWork)
	require.Empty(t, w.versions, "nothing was backed up for it")
	require.Len(t, after.Left, 1)
	require.True(t, after.Left[0].Handed)
	require.False(t, after.Left[0].Unsaved())
	require.Contains(t, w.placed, workspace.Placed{Node: nodeOne, Token: 1}, "that the node runs something of it stays on record")
}

// What is left on a node that returns is its container: it is stopped and forgotten, and nothing is saved or removed.
func TestReturnedNodeHasNothingOfASharedVolume(t *testing.T) {
	w := runningShared(t)
	w.comesBack(90*time.Minute, nodeOne)
	after := w.look(100 * time.Minute)
	w.run(2 * time.Hour)
	w.runsShared(after, nodeTwo, "first+.+")
	require.Empty(t, after.Left)
	require.Empty(t, after.Salvaged)
	require.False(t, w.runs["node-1/1"])
	require.NotContains(t, w.placed, workspace.Placed{Node: nodeOne, Token: 1})
	require.NotContains(t, w.calls, workspace.ActivityRemoveInstance)
	require.NotContains(t, w.calls, workspace.ActivityBackup)
}

// That so much time has passed is no proof: without a guard process it waits for a person or for the node, and says so.
func TestUnguardedNodeIsWaitedFor(t *testing.T) {
	lost := func(t *testing.T) *world {
		w := newWorld(t)
		w.sharing(nodeOne, nodeTwo)
		w.ask(0, workspace.UpdateStart, startShared())
		w.loseShared(time.Hour, nodeOne, false)
		return w
	}
	t.Run("a person says that it is dead", func(t *testing.T) {
		w := lost(t)
		waiting := w.look(20 * time.Hour)
		w.saysDead(20*time.Hour, nodeOne)
		after := w.look(20*time.Hour + 5*time.Second)
		w.run(21 * time.Hour)
		require.Equal(t, workspace.Recovering, waiting.Phase)
		require.Contains(t, waiting.Reason, "`holdfast node dead node-1`")
		require.Len(t, waiting.Recent, 1, "looking is no operation")
		w.runsShared(after, nodeTwo, "first++")
	})
	t.Run("it returns", func(t *testing.T) {
		w := lost(t)
		w.comesBack(20*time.Hour, nodeOne)
		after := w.look(20*time.Hour + 5*time.Second)
		w.run(21 * time.Hour)
		w.runsShared(after, nodeOne, "first++")
		require.Len(t, w.records, 1)
	})
	t.Run("a start is refused", func(t *testing.T) {
		w := lost(t)
		w.ask(2*time.Hour, workspace.UpdateStart, workspace.StartRequest{})
		still := w.look(2*time.Hour + time.Minute)
		w.run(3 * time.Hour)
		require.True(t, still.Recent[len(still.Recent)-1].Refused)
		require.Len(t, w.records, 1)
	})
}

// returnGrace is for what would be lost: nothing is, so that a person's word is followed at once.
func TestSharedVolumeIsNotWaitedForLonger(t *testing.T) {
	w := runningShared(t)
	w.saysDead(time.Hour+time.Second, nodeOne)
	after := w.look(time.Hour + 3*time.Second)
	w.run(2 * time.Hour)
	w.runsShared(after, nodeTwo, "first+.+")
}

// A node that returns before another instance was recorded keeps its workspaces.
func TestSharedVolumeStaysWithANodeThatReturns(t *testing.T) {
	for name, returns := range map[string]func(w *world){
		"in time": func(w *world) { w.comesBack(time.Hour+30*time.Second, nodeOne) },
		"in the last moment": func(w *world) {
			w.after = func(activity string, _ int) error {
				if state := w.nodes[nodeOne]; activity == workspace.ActivitySeal && state.Loss != nil {
					state.Phase, state.Loss, state.Epoch = workspace.NodeReady, nil, 2
					w.nodes[nodeOne] = state
				}
				return nil
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := runningShared(t)
			returns(w)
			after := w.look(time.Hour + 5*time.Minute)
			w.run(2 * time.Hour)
			w.runsShared(after, nodeOne, "first+.+")
			require.Len(t, w.records, 1)
		})
	}
}

// A node that takes its lease between the last look and the record may have let its instance go on. So it is looked at again, and
// asked to stop what it runs before anything is taken over.
func TestNodeThatReturnsAfterTheRecordIsAskedToStop(t *testing.T) {
	w := runningShared(t)
	w.after = func(activity string, _ int) error {
		if state := w.nodes[nodeOne]; activity == workspace.ActivityRecordInstance && state.Loss != nil {
			state.Phase, state.Loss, state.Epoch = workspace.NodeReady, nil, 2
			w.nodes[nodeOne] = state
		}
		return nil
	}
	after := w.look(time.Hour + 5*time.Minute)
	w.run(2 * time.Hour)
	w.runsShared(after, nodeTwo, "first+.+")
	require.False(t, w.runs["node-1/1"])
	require.Contains(t, w.calls, workspace.ActivityStopInstance)
}

// The same when it is lost again at once: it is waited for until its guard process has surely paused what it had let go on.
func TestNodeThatIsLostAgainAfterTheRecord(t *testing.T) {
	w := runningShared(t)
	w.after = func(activity string, _ int) error {
		if state := w.nodes[nodeOne]; activity == workspace.ActivityRecordInstance && state.Loss != nil {
			state.Guard.Beaten = w.environment.Now()
			w.nodes[nodeOne] = state
		}
		return nil
	}
	again := fenced(time.Hour) + pausedAfter + workspace.FenceMargin
	before := w.look(again - 5*time.Second)
	after := w.look(again + 10*time.Second)
	w.run(2 * time.Hour)
	require.Equal(t, workspace.Recovering, before.Phase)
	require.Equal(t, workspace.StepLook, before.Operation.Step)
	w.runsShared(after, nodeTwo, "first+.+")
}

// Another machine that has come to have the node's name says nothing about what the first runs: it is neither asked nor waited out.
func TestAnotherMachineOfTheNameSaysNothing(t *testing.T) {
	w := runningShared(t)
	w.at(time.Hour+30*time.Second, func() {
		w.mutex.Lock()
		node := w.nodes[nodeOne]
		node.Info.Recipient = "age1another"
		w.nodes[nodeOne] = node
		w.mutex.Unlock()
		w.returnNow(nodeOne)
	})
	waiting := w.look(3 * time.Hour)
	w.loseShared(3*time.Hour, nodeOne, true)
	w.saysDead(3*time.Hour+time.Minute, nodeOne)
	after := w.look(3*time.Hour + 2*time.Minute)
	w.run(4 * time.Hour)
	require.Equal(t, workspace.Recovering, waiting.Phase)
	require.Contains(t, waiting.Reason, "another one")
	require.NotContains(t, w.calls[:len(w.calls)/2], workspace.ActivityStopInstance)
	w.runsShared(after, nodeTwo, "first+.+")
}

// The brake holds it as it holds any other.
func TestBrakeHoldsSharedVolumes(t *testing.T) {
	w := runningShared(t)
	w.setting(time.Hour, func() { w.brake = workspace.Brake{Held: true, Why: "3 of 4 nodes were lost"} })
	before := w.look(3 * time.Hour)
	w.setting(3*time.Hour, func() { w.brake = workspace.Brake{} })
	after := w.look(3*time.Hour + time.Minute)
	w.run(4 * time.Hour)
	require.Contains(t, before.Reason, "3 of 4 nodes were lost")
	w.runsShared(after, nodeTwo, "first+.+")
}

// Nothing is taken over by a node without the volume, with another one, or without a guard process.
func TestOnlyANodeThatMayTakesOver(t *testing.T) {
	for name, change := range map[string]func(*workspace.NodeInfo){
		"no volume":      func(info *workspace.NodeInfo) { info.Volume = nil },
		"another volume": func(info *workspace.NodeInfo) { info.Volume = &workspace.NodeVolume{ID: "zzzzzzzzzzzzzzzzzzzzzzzzzz"} },
		"not mounted": func(info *workspace.NodeInfo) {
			info.Volume = &workspace.NodeVolume{Problem: "nothing is mounted there"}
		},
		"no guard": func(info *workspace.NodeInfo) { info.Guarded = false },
	} {
		t.Run(name, func(t *testing.T) {
			w := runningShared(t)
			w.setting(time.Hour-time.Minute, func() {
				node := w.nodes[nodeTwo]
				change(&node.Info)
				w.nodes[nodeTwo] = node
			})
			waiting := w.look(3 * time.Hour)
			w.setting(3*time.Hour, func() { w.sharing(nodeTwo) })
			after := w.look(3*time.Hour + 5*time.Minute)
			w.run(4 * time.Hour)
			require.Equal(t, workspace.Recovering, waiting.Phase)
			require.Equal(t, uint64(1), waiting.Instance.Token, "nothing was recorded")
			w.runsShared(after, nodeTwo, "first+.+")
		})
	}
}

// The node that takes over dies, too, at each of its steps: what it may have started is fenced before a third goes on.
func TestSecondNodeDiesToo(t *testing.T) {
	for _, step := range []string{workspace.ActivityPrepareImage, workspace.ActivityPrepareContent, workspace.ActivityStartInstance} {
		for _, lost := range []string{"before it", "its answer"} {
			t.Run(step+", "+lost, func(t *testing.T) {
				w := runningShared(t)
				w.sharing(nodeThree)
				dies := func() bool {
					state := w.nodes[nodeTwo]
					if state.Phase != workspace.NodeReady {
						return false
					}
					now := w.environment.Now()
					state.Phase, state.Guard = workspace.NodeLost, workspace.NodeGuard{Guarded: true, PauseAfter: pausedAfter, Beaten: now}
					state.Loss = &workspace.NodeLoss{At: now, Heard: now, Epoch: 1}
					w.nodes[nodeTwo] = state
					return true
				}
				w.failOn = func(node, activity string) error {
					if node == nodeTwo && activity == step && lost == "before it" && dies() {
						return heartbeatTimeout()
					}
					return nil
				}
				w.after = func(activity string, _ int) error {
					if activity == step && w.records[w.newest()].Node == nodeTwo && lost != "before it" && dies() {
						return heartbeatTimeout()
					}
					return nil
				}
				after := w.look(2 * time.Hour)
				w.run(3 * time.Hour)
				content := "first+.+"
				if step == workspace.ActivityStartInstance && lost != "before it" {
					content += "+" // it ran on node-2 for a moment
				}
				w.runsShared(after, nodeThree, content)
			})
		}
	}
}

// What fails is tried again, with every kind of error at every step; nothing else is ever taken for the content.
func TestTakingOverWithEveryError(t *testing.T) {
	for name, failure := range everyError() {
		for _, step := range []string{workspace.ActivityPlace, workspace.ActivitySeal, workspace.ActivityRecordInstance, workspace.ActivityLookAtNode,
			workspace.ActivityPrepareImage, workspace.ActivityPrepareContent, workspace.ActivityStartInstance} {
			t.Run(step+"/"+name, func(t *testing.T) {
				w := runningShared(t)
				failed := false
				w.fail = func(activity string, _ int) error {
					if activity == step && w.nodes[nodeOne].Loss != nil && !failed && w.environment.Now().Sub(w.nodes[nodeOne].Loss.At) > time.Minute {
						failed = true
						return failure
					}
					return nil
				}
				after := w.look(6 * time.Hour)
				w.run(7 * time.Hour)
				require.True(t, failed)
				switch after.Phase {
				case workspace.Running:
					require.Equal(t, nodeTwo, after.Instance.Node)
				case workspace.Blocked, workspace.Stopped, workspace.Recovering: // for a person to mend
					require.NotEmpty(t, after.Reason)
				default:
					t.Fatalf("%+v", after)
				}
				require.Len(t, w.content, 1, "%v", w.content)
				for _, content := range w.content {
					require.Contains(t, []string{"first+.", "first+.+"}, content)
				}
			})
		}
	}
}

// A3: a stop whose node is lost while it is backed up goes on on another node, and is a stop like any other.
func TestStopGoesOnOnAnotherNode(t *testing.T) {
	for _, step := range []string{workspace.ActivityStopInstance, workspace.ActivityBackup, workspace.ActivityVerify, workspace.ActivityCommit} {
		t.Run(step, func(t *testing.T) {
			w := newWorld(t)
			w.sharing(nodeOne, nodeTwo)
			w.ask(0, workspace.UpdateStart, startShared())
			w.work(30 * time.Minute)
			w.failOn = func(node, activity string) error {
				if node == nodeOne && activity == step && w.nodes[nodeOne].Epoch == 1 {
					return errors.New("the node is in trouble") // until it is lost
				}
				return nil
			}
			w.ask(time.Hour, workspace.UpdateStop, workspace.StopRequest{Subject: "ada"})
			w.loseShared(time.Hour+20*time.Second, nodeOne, true)
			meanwhile := w.look(time.Hour + time.Minute)
			after := w.look(2 * time.Hour)
			w.comesBack(3*time.Hour, nodeOne)
			last := w.look(4 * time.Hour)
			w.run(5 * time.Hour)
			if step == workspace.ActivityStopInstance {
				require.Equal(t, workspace.Stopping, meanwhile.Phase)
				require.Contains(t, meanwhile.Reason, "guard process of node node-1")
			}
			require.Equal(t, workspace.Stopped, after.Phase, "%+v\n%v", after, w.calls)
			require.Nil(t, after.Kept, "%+v", after.Kept)
			require.Nil(t, after.Loss)
			require.Empty(t, w.content, "it is removed from the volume")
			require.Equal(t, "first+.", w.versions[after.Head.Snapshot])
			require.Equal(t, nodeTwo, after.Head.Node)
			require.Equal(t, "final", after.Head.Kind)
			operation := after.Recent[len(after.Recent)-1]
			require.Equal(t, workspace.OperationStop, operation.Kind)
			require.False(t, operation.Failed, "%+v", operation)
			require.Empty(t, last.Left)
			require.Empty(t, w.placed)
		})
	}
}

// The same after its backup was acknowledged: what is left to be done is done by another node.
func TestReleaseGoesOnOnAnotherNode(t *testing.T) {
	w := newWorld(t)
	w.sharing(nodeOne, nodeTwo)
	w.ask(0, workspace.UpdateStart, startShared())
	w.failOn = func(node, activity string) error {
		if node == nodeOne && activity == workspace.ActivityRemoveInstance {
			return errors.New("the node is in trouble")
		}
		return nil
	}
	w.ask(time.Hour, workspace.UpdateStop, workspace.StopRequest{Subject: "ada"})
	w.loseShared(time.Hour+20*time.Second, nodeOne, true)
	after := w.look(2 * time.Hour)
	w.run(3 * time.Hour)
	require.Equal(t, workspace.Stopped, after.Phase)
	require.Nil(t, after.Kept, "%+v", after.Kept)
	require.Empty(t, w.content)
	require.Equal(t, "first+", w.versions[after.Head.Snapshot])
	require.Equal(t, uint64(2), after.Head.Token)
	require.NotZero(t, after.Head.Sequence, "what is removed was committed by the token that it has now")
}

// A person who starts it again does not wait for a stop that goes on elsewhere.
func TestStartTakesOverAStopThatGoesOnElsewhere(t *testing.T) {
	w := newWorld(t)
	w.sharing(nodeOne, nodeTwo)
	w.ask(0, workspace.UpdateStart, startShared())
	w.failOn = func(node, activity string) error {
		if activity == workspace.ActivityBackup {
			return errors.New("the store is away")
		}
		return nil
	}
	w.ask(time.Hour, workspace.UpdateStop, workspace.StopRequest{Subject: "ada"})
	w.loseShared(time.Hour+20*time.Second, nodeOne, true)
	w.ask(2*time.Hour, workspace.UpdateStart, workspace.StartRequest{})
	after := w.look(2*time.Hour + time.Minute)
	w.run(3 * time.Hour)
	w.runsShared(after, nodeTwo, "first++")
}

// A move hands the files over: nothing is backed up for it and nothing is restored, and what it left is forgotten.
func TestMoveOfASharedVolume(t *testing.T) {
	w := newWorld(t)
	w.sharing(nodeOne, nodeTwo)
	w.ask(0, workspace.UpdateStart, startShared())
	w.ask(time.Hour, workspace.UpdateMove, workspace.MoveRequest{Subject: "ada"})
	after := w.look(2 * time.Hour)
	w.run(3 * time.Hour)
	w.runsShared(after, nodeTwo, "first++")
	require.Empty(t, w.versions)
	require.Empty(t, after.Left)
	require.False(t, w.runs["node-1/1"])
	require.Equal(t, map[workspace.Placed]bool{{Node: nodeTwo, Token: 2}: true}, w.placed)
	operation := after.Recent[len(after.Recent)-1]
	require.False(t, operation.Failed, "%+v", operation)
}

func TestMoveOfASharedVolumeThatFails(t *testing.T) {
	t.Run("no node takes it", func(t *testing.T) {
		w := newWorld(t)
		w.sharing(nodeOne)
		w.ask(0, workspace.UpdateStart, startShared())
		w.ask(time.Hour, workspace.UpdateMove, workspace.MoveRequest{Subject: "ada"})
		after := w.look(2 * time.Hour)
		w.run(3 * time.Hour)
		w.runsShared(after, nodeOne, "first+")
		require.Equal(t, uint64(1), after.Instance.Token)
	})
	t.Run("it does not start there", func(t *testing.T) {
		w := newWorld(t)
		w.sharing(nodeOne, nodeTwo)
		w.ask(0, workspace.UpdateStart, startShared())
		w.failOn = func(node, activity string) error {
			if node == nodeTwo && activity == workspace.ActivityStartInstance {
				return permanent(workspace.ErrorStartFailed, "it exits at once")
			}
			return nil
		}
		w.ask(time.Hour, workspace.UpdateMove, workspace.MoveRequest{Subject: "ada"})
		after := w.look(2 * time.Hour)
		w.run(3 * time.Hour)
		w.runsShared(after, nodeOne, "first++")
		i := slices.IndexFunc(after.Recent, func(o workspace.Operation) bool { return o.Kind == workspace.OperationMove })
		require.Contains(t, after.Recent[i].Error, "it exits at once")
	})
	t.Run("its node is lost meanwhile", func(t *testing.T) {
		w := newWorld(t)
		w.sharing(nodeOne, nodeTwo)
		w.ask(0, workspace.UpdateStart, startShared())
		w.failOn = func(node, activity string) error {
			if node == nodeOne && activity == workspace.ActivityStopInstance {
				return errors.New("the node is in trouble")
			}
			return nil
		}
		w.ask(time.Hour, workspace.UpdateMove, workspace.MoveRequest{Subject: "ada"})
		w.loseShared(time.Hour+20*time.Second, nodeOne, true)
		after := w.look(2 * time.Hour)
		w.run(3 * time.Hour)
		w.runsShared(after, nodeTwo, "first++")
	})
}

// Unstick and a start afterwards: what may still run is stopped before another node goes on.
func TestUnstickOfASharedVolume(t *testing.T) {
	w := runningShared(t)
	w.ask(time.Hour+10*time.Second, workspace.UpdateUnstick, workspace.UnstickRequest{})
	w.ask(time.Hour+20*time.Second, workspace.UpdateStart, workspace.StartRequest{})
	refused := w.look(time.Hour + 30*time.Second)
	w.ask(2*time.Hour, workspace.UpdateStart, workspace.StartRequest{})
	after := w.look(2*time.Hour + time.Minute)
	w.run(3 * time.Hour)
	last := refused.Recent[len(refused.Recent)-1]
	require.True(t, last.Refused, "%+v", last)
	require.Contains(t, last.Error, "guard process of node node-1")
	w.runsShared(after, nodeTwo, "first+.+")
}
