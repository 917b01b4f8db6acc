package workflows_test

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/stretchr/testify/require"
	historypb "go.temporal.io/api/history/v1"

	"holdfast/workspace"
)

// scenario does what one golden history shows and says when that is over.
type scenario struct {
	name string
	id   string
	run  func(*scene)
}

const (
	atlas        = "workspace/atlas"
	idleStopLate = "idle_stop_late"
)

var scenarios = []scenario{
	{"start_stop_start", atlas, func(s *scene) {
		s.start()
		s.request(workspace.UpdateStop, workspace.StopRequest{Subject: "ada"}, workspace.Stopped)
		s.request(workspace.UpdateBackup, workspace.BackupRequest{}, "") // refused: leaves nothing in the history
		s.request(workspace.UpdateStart, workspace.StartRequest{Subject: "ada", NotNode: nodeOne}, workspace.Running)
		s.request(workspace.UpdateBackup, workspace.BackupRequest{Subject: "ada"}, workspace.Running)
	}},
	{"stop_retries", atlas, func(s *scene) {
		s.failing(func(name string, attempt int) error {
			switch {
			case name == workspace.ActivityBackup && attempt < 3:
				return errors.New("lookup storage.googleapis.com: i/o timeout")
			case name == workspace.ActivityVerify && attempt == 1:
				return permanent(workspace.ErrorNotStored, "a pack is missing")
			case name == workspace.ActivityRepair && attempt == 1:
				return errors.New("connection refused")
			}
			return nil
		})
		s.start()
		s.locked(func() { s.owed = []string{"file:///b"} })
		s.ask(workspace.UpdateStop, workspace.StopRequest{Subject: "ada"})
		s.until("removed", func(state workspace.State) bool {
			return state.Phase == workspace.Stopped && state.Kept == nil && state.Operation == nil
		})
	}},
	{"start_interrupts_stop", atlas, func(s *scene) {
		s.failing(func(name string, _ int) error {
			if name == workspace.ActivityBackup {
				return errors.New("no route to the store")
			}
			return nil
		})
		s.start()
		s.ask(workspace.UpdateStop, workspace.StopRequest{Subject: "ada"})
		s.reached(workspace.ActivityBackup)
		s.request(workspace.UpdateStart, workspace.StartRequest{Subject: "ada"}, workspace.Running)
	}},
	{"unstick", atlas, func(s *scene) {
		s.failing(func(name string, _ int) error {
			if name == workspace.ActivityBackup {
				return errors.New("stuck")
			}
			return nil
		})
		s.start()
		s.ask(workspace.UpdateStop, workspace.StopRequest{Subject: "ada"})
		s.reached(workspace.ActivityBackup)
		s.request(workspace.UpdateUnstick, workspace.UnstickRequest{Subject: "ada"}, workspace.Stopped)
		s.failing(nil)
		s.request(workspace.UpdateStart, workspace.StartRequest{Subject: "ada"}, workspace.Running)
	}},
	{"restore", atlas, func(s *scene) {
		s.start()
		first := s.request(workspace.UpdateStop, workspace.StopRequest{Subject: "ada"}, workspace.Stopped)
		s.request(workspace.UpdateStart, workspace.StartRequest{Subject: "ada"}, workspace.Running)
		s.request(workspace.UpdateStop, workspace.StopRequest{Subject: "ada"}, workspace.Stopped)
		missing := fmt.Sprintf("%064d", 99)
		s.request(workspace.UpdateRestore, workspace.RestoreRequest{Subject: "ada", Snapshot: missing}, workspace.Blocked)
		s.request(workspace.UpdateRestore, workspace.RestoreRequest{Subject: "ada", Snapshot: first.Head.Snapshot, Node: nodeTwo}, workspace.Running)
	}},
	{"restore_before_any_content", atlas, func(s *scene) {
		s.failing(func(name string, attempt int) error {
			if name == workspace.ActivityPrepareImage && attempt == 1 {
				return permanent(workspace.ErrorImageNotFound, "no such image")
			}
			return nil
		})
		s.beginWith(start())
		s.until("given up", func(state workspace.State) bool { return state.Operation == nil && len(state.Recent) == 1 })
		s.request(workspace.UpdateRestore, workspace.RestoreRequest{Subject: "ada", Snapshot: fmt.Sprintf("%064d", 99)}, workspace.Blocked)
		s.request(workspace.UpdateStart, workspace.StartRequest{Subject: "ada"}, workspace.Running)
	}},
	{"delete", atlas, func(s *scene) {
		s.start()
		s.failing(func(name string, attempt int) error {
			if name == workspace.ActivityBackup && attempt == 1 {
				return permanent(workspace.ErrorStoreDenied, "403")
			}
			return nil
		})
		s.request(workspace.UpdateStop, workspace.StopRequest{Subject: "ada"}, workspace.Blocked)
		s.request(workspace.UpdateStop, workspace.StopRequest{Subject: "ada"}, workspace.Stopped)
		s.ask(workspace.UpdateDelete, workspace.DeleteRequest{Subject: "ada"})
		require.NoError(s.t, s.client.GetWorkflow(s.t.Context(), s.id, "").Get(s.t.Context(), nil))
	}},
	{"omissions", atlas, func(s *scene) {
		s.locked(func() { s.omitted = 2 })
		s.start()
		blocked := s.request(workspace.UpdateStop, workspace.StopRequest{Subject: "ada"}, workspace.Blocked)
		s.request(workspace.UpdateStop, workspace.StopRequest{Subject: "ada", AcceptOmissions: blocked.Kept.Snapshot}, workspace.Stopped)
	}},
	{"timed_snapshots", atlas, func(s *scene) {
		s.startWith(startEvery(workspace.MinSnapshotEvery))
		s.until("snapshotted, and found unchanged", func(state workspace.State) bool { return state.Protection.Unchanged })
		s.locked(s.change)
		s.until("snapshotted again", func(state workspace.State) bool { return state.Head.Sequence == 2 })
		s.failing(func(name string, _ int) error {
			if name == workspace.ActivityBackup {
				return errors.New("no route to the store")
			}
			return nil
		})
		s.until("failed", func(state workspace.State) bool { return state.Protection.Failures == 1 })
		s.locked(func() { delete(s.attempts, workspace.ActivityBackup) })
		s.reached(workspace.ActivityBackup) // of the next
		s.failing(nil)
		s.request(workspace.UpdateStop, workspace.StopRequest{Subject: "ada"}, workspace.Stopped)
	}},
	{"idle_stop", atlas, func(s *scene) {
		s.startWith(stopping(workspace.MinStop, 0))
		warned := func(state workspace.State) bool {
			return state.Watch != nil && state.Watch.WarnedOf == workspace.StopIdle
		}
		s.until("warned", warned)
		require.NoError(s.t, s.ask(workspace.UpdateKeep, workspace.KeepRequest{Subject: "ada", Seconds: 60}))
		s.until("kept", func(state workspace.State) bool { return !warned(state) })
		s.until("warned again", warned)
		s.until("stopped", func(state workspace.State) bool { return state.Phase == workspace.Stopped && state.Operation == nil })
	}},
	{"working_hours", atlas, func(s *scene) {
		request := start()
		// Three days from now are outside of them.
		day := time.Now().UTC().Add(72 * time.Hour).Weekday().String()[:3]
		request.Spec.Stop.Hours = day + " 08:00-20:00 Europe/Berlin"
		s.startWith(request)
		warned := func(state workspace.State) bool {
			return state.Watch != nil && state.Watch.WarnedOf == workspace.StopHours
		}
		s.until("warned", warned)
		require.NoError(s.t, s.ask(workspace.UpdateKeep, workspace.KeepRequest{Subject: "ada", Seconds: 10 * 24 * 3600}))
		s.until("kept", func(state workspace.State) bool { return !warned(state) && state.Operation == nil })
		require.NoError(s.t, s.ask(workspace.UpdateKeep, workspace.KeepRequest{Subject: "ada"}))
		s.until("warned again", warned)
		s.request(workspace.UpdateStop, workspace.StopRequest{Subject: "ada"}, workspace.Stopped)
	}},
	// A command comes in the same task as the last answer before the stop: no worker decides meanwhile.
	{idleStopLate, atlas, func(s *scene) {
		asked, answer, questions := make(chan struct{}), make(chan struct{}), 0
		s.deaf = func(_ context.Context, activity string) {
			if activity != workspace.ActivityLookAtUse {
				return
			}
			if questions++; questions == 2 {
				close(asked)
				<-answer
			}
		}
		s.startWith(stopping(workspace.MinStop, 0))
		<-asked
		s.control.Stop()
		close(answer)
		s.happened("the answer", func(history *historypb.History) bool {
			return history.Events[len(history.Events)-2].GetActivityTaskCompletedEventAttributes() != nil
		})
		s.askLater(workspace.UpdateBackup, workspace.BackupRequest{Subject: "ada"})
		s.takeCommands()
		s.until("stopped", func(state workspace.State) bool { return state.Phase == workspace.Stopped && state.Operation == nil })
	}},
	{"retention", atlas, func(s *scene) {
		s.retainsNext()
		s.failing(func(name string, _ int) error {
			if name == workspace.ActivityForget {
				return errors.New("no route to the store")
			}
			return nil
		})
		s.startWith(startEvery(workspace.MinSnapshotEvery))
		s.reached(workspace.ActivityForget)
		s.request(workspace.UpdateStop, workspace.StopRequest{Subject: "ada"}, workspace.Stopped)
		s.failing(nil)
		s.request(workspace.UpdateStart, workspace.StartRequest{Subject: "ada"}, workspace.Running)
		s.locked(s.change)
		s.until("forgotten", func(state workspace.State) bool {
			return state.Operation == nil && state.Retaining.Forgotten == 7 && state.Retaining.Made == 0
		})
		s.request(workspace.UpdateBackup, workspace.BackupRequest{Subject: "ada"}, workspace.Running)
	}},
	{"node_lease", "node/" + nodeOne, func(s *scene) {
		begin(s, workspace.NodeWorkflow, workspace.NodeInput{Node: nodeOne})
		register := func(incarnation string) {
			s.ask(workspace.UpdateRegister, workspace.RegisterRequest{Info: workspace.NodeInfo{
				Name: nodeOne, Incarnation: incarnation, Recipient: "age1" + nodeOne, Address: "127.0.0.1:1", Engine: "process", Version: "test",
			}})
		}
		register("first")
		s.leaseIs(1, workspace.NodeReady)
		s.lease.of(1) <- errors.New("the agent was cut off") // suspicion: it is offered again
		s.leaseIs(2, workspace.NodeReady)
		s.lease.of(2) <- nil // renewed
		s.leaseIs(3, workspace.NodeReady)
		register("second") // supersedes
		s.leaseIs(4, workspace.NodeReady)
		s.lease.of(4) <- errReleased
		s.leaseIs(4, workspace.NodeLost)
	}},
	{"node_loss", "node/" + nodeOne, func(s *scene) {
		begin(s, workspace.NodeWorkflow, workspace.NodeInput{Node: nodeOne})
		register := func(incarnation string) {
			s.ask(workspace.UpdateRegister, workspace.RegisterRequest{Info: workspace.NodeInfo{
				Name: nodeOne, Incarnation: incarnation, Recipient: "age1" + nodeOne, Address: "127.0.0.1:1", Engine: "process", Version: "test",
			}})
		}
		register("first")
		s.leaseIs(1, workspace.NodeReady)
		go s.leases.Stop() // nobody takes the next offer; it returns when the lease below has ended
		<-s.leases.stopping
		s.lease.of(1) <- errors.New("the agent was cut off")
		s.leaseIs(2, workspace.NodeLost)
		s.reached(workspace.ActivityAnnounceNode)
		s.takeLeases()
		register("second")
		s.leaseIs(3, workspace.NodeReady)
		require.Eventually(s.t, func() bool { return s.called(workspace.ActivityAnnounceNode) == 2 }, 30*time.Second, 20*time.Millisecond)
	}},
	{"node_frozen", "node/" + nodeOne, func(s *scene) {
		s.lease.frozen.Store(2)
		s.drainable()
		s.lease.of(1) <- errors.New("the agent does not go on")
		s.leaseIs(2, workspace.NodeLost)
		s.reached(workspace.ActivityAnnounceNode)
		require.NoError(s.t, s.ask(workspace.UpdateRegister, workspace.RegisterRequest{Info: workspace.NodeInfo{
			Name: nodeOne, Incarnation: "first", Recipient: "age1" + nodeOne, Address: "127.0.0.1:1", Engine: "process", Version: "test",
		}}))
		s.leaseIs(3, workspace.NodeReady)
	}},
	{"node_drain", "node/" + nodeOne, func(s *scene) {
		s.drainable()
		s.order(workspace.OrderDrain)
		s.drainIs(func(d *workspace.NodeDrain) bool { return !d.Drained.IsZero() })
		require.Equal(s.t, 1, s.called("moved"))
		s.order(workspace.OrderUndrain)
		s.order(workspace.OrderDrain) // and cut by another in its first round
		s.order(workspace.OrderDrain)
		s.order(workspace.OrderUncordon)
		s.drainIs(func(d *workspace.NodeDrain) bool { return !d.Active() })
	}},
	{"recover", atlas, func(s *scene) {
		s.start()
		s.request(workspace.UpdateBackup, workspace.BackupRequest{Subject: "ada"}, workspace.Running)
		s.loseNode(nodeOne, false)
		s.runsOn(nodeTwo) // gone on without
		s.loseNode(nodeTwo, true)
		s.until("held", func(state workspace.State) bool { return state.Phase == workspace.Recovering && state.Operation == nil })
		s.bringBack(nodeTwo)
		s.runsOn(nodeTwo) // found again
	}},
	{"salvage", atlas, func(s *scene) {
		s.start()
		s.request(workspace.UpdateBackup, workspace.BackupRequest{Subject: "ada"}, workspace.Running)
		s.loseNode(nodeOne, false)
		s.runsOn(nodeTwo)
		s.bringBack(nodeOne) // what it had is saved
		s.until("saved", func(state workspace.State) bool {
			return state.Operation == nil && len(state.Salvaged) == 1
		})
		s.bringBack(nodeOne) // its agent is started again
		s.request(workspace.UpdateStop, workspace.StopRequest{Subject: "ada"}, workspace.Stopped)
	}},
	{"given_up", atlas, func(s *scene) {
		s.start()
		backed := s.request(workspace.UpdateBackup, workspace.BackupRequest{Subject: "ada"}, workspace.Running)
		s.locked(s.change)
		s.failing(func(name string, _ int) error {
			if name == workspace.ActivityBackup {
				return errors.New("no route to the store")
			}
			return nil
		})
		s.locked(func() { delete(s.attempts, workspace.ActivityBackup) })
		s.ask(workspace.UpdateStop, workspace.StopRequest{Subject: "ada"})
		s.reached(workspace.ActivityBackup)
		s.request(workspace.UpdateUnstick, workspace.UnstickRequest{Subject: "ada"}, workspace.Stopped)
		s.failing(nil)
		s.request(workspace.UpdateStart, workspace.StartRequest{Subject: "ada", NotNode: nodeOne, AcceptVersion: backed.Head.Snapshot}, workspace.Running)
		s.until("saved, and removed", func(state workspace.State) bool {
			return state.Operation == nil && len(state.Left) == 0 && len(state.Salvaged) == 1
		})
	}},
	{"move", atlas, func(s *scene) {
		s.start()
		s.locked(s.change)
		s.request(workspace.UpdateMove, workspace.MoveRequest{Subject: "ada"}, workspace.Running)
		// It finds no other node, and runs on.
		s.locked(func() { s.nodes[nodeOne] = workspace.NodeState{Phase: workspace.NodeLost} })
		s.request(workspace.UpdateMove, workspace.MoveRequest{Subject: "ada"}, workspace.Running)
		// Its content may not leave the node, and is gone on with there.
		s.locked(func() { s.nodes[nodeOne], s.omitted = workspace.NodeState{Phase: workspace.NodeReady}, 2 })
		s.request(workspace.UpdateMove, workspace.MoveRequest{Subject: "ada"}, workspace.Running)
	}},
	{"shared_volume", atlas, func(s *scene) {
		s.locked(func() { s.sharing(nodeOne, nodeTwo) })
		s.startWith(startShared())
		s.leaves(nodeOne)
		s.runsOn(nodeTwo) // with the same files
		s.returns(nodeOne)
		s.request(workspace.UpdateMove, workspace.MoveRequest{Subject: "ada"}, workspace.Running)
		s.returns(nodeTwo)
		s.locked(func() {
			s.failOn = func(node, activity string) error {
				if node == nodeOne && activity == workspace.ActivityBackup {
					return errors.New("the store is away")
				}
				return nil
			}
		})
		require.NoError(s.t, s.ask(workspace.UpdateStop, workspace.StopRequest{Subject: "ada"}))
		s.until("backing up", func(state workspace.State) bool {
			return state.Operation != nil && state.Operation.Step == workspace.StepBackup
		})
		s.leaves(nodeOne)
		s.until("stopped", func(state workspace.State) bool {
			return state.Operation == nil && state.Phase == workspace.Stopped && state.Kept == nil
		}) // by the other node
	}},
	{"access", "access/atlas", func(s *scene) {
		run := begin(s, workspace.AccessWorkflow, workspace.AccessInput{Name: "atlas", Verb: workspace.VerbDownload, Path: "notes", Subject: "ada"})
		require.NoError(s.t, run.Get(s.t.Context(), nil))
	}},
	{"snapshots", "snapshots/atlas", func(s *scene) {
		run := begin(s, workspace.SnapshotsWorkflow, workspace.SnapshotsInput{Name: "atlas"})
		require.NoError(s.t, run.Get(s.t.Context(), nil))
	}},
}

// loseNode has a node be lost, long ago, and tells the workspace.
func (s *scene) loseNode(node string, held bool) {
	now := time.Now()
	s.locked(func() {
		s.brake = workspace.Brake{Held: held, Why: "a storm"}
		s.nodes[node] = workspace.NodeState{Phase: workspace.NodeLost, Epoch: 1, Loss: &workspace.NodeLoss{At: now.Add(-time.Hour), Heard: now.Add(-time.Hour), Epoch: 1}}
	})
	s.signal(workspace.SignalNodeNews, workspace.NodeNews{Node: node, Epoch: 1, Lost: true, At: now, Heard: now})
}

// bringBack has it return, and tells the workspace.
func (s *scene) bringBack(node string) {
	s.locked(func() { s.nodes[node] = workspace.NodeState{Phase: workspace.NodeReady, Epoch: 2} })
	s.signal(workspace.SignalNodeNews, workspace.NodeNews{Node: node, Epoch: 2})
}

func (s *scene) runsOn(node string) {
	s.until("running on "+node, func(state workspace.State) bool {
		return state.Phase == workspace.Running && state.Operation == nil && state.Instance.Node == node
	})
}
