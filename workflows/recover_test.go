package workflows_test

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.temporal.io/sdk/converter"
	"go.temporal.io/sdk/workflow"

	"holdfast/workspace"
)

// loseNow makes a node lost at once, as its workflow decides it, and tells the workspace.
func (w *world) loseNow(node string) {
	now := w.environment.Now()
	w.mutex.Lock()
	state := w.nodes[node]
	state.Phase, state.Since = workspace.NodeLost, now
	state.Loss = &workspace.NodeLoss{At: now, Heard: now.Add(-25 * time.Second), Epoch: state.Epoch}
	w.nodes[node] = state
	w.mutex.Unlock()
	w.environment.SignalWorkflow(workspace.SignalNodeNews, workspace.NodeNews{Node: node, Epoch: state.Epoch, Lost: true, At: now, Heard: now.Add(-25 * time.Second)})
}

func (w *world) returnNow(node string) {
	epoch := w.returnSilently(node)
	w.environment.SignalWorkflow(workspace.SignalNodeNews, workspace.NodeNews{Node: node, Epoch: epoch})
}

// returnSilently makes a node ready before its workspaces are told.
func (w *world) returnSilently(node string) uint64 {
	w.mutex.Lock()
	defer w.mutex.Unlock()
	state := w.nodes[node]
	state.Phase, state.Since, state.Loss, state.Epoch = workspace.NodeReady, w.environment.Now(), nil, state.Epoch+1
	w.nodes[node] = state
	return state.Epoch
}

func (w *world) at(when time.Duration, do func()) { w.environment.RegisterDelayedCallback(do, when) }

func (w *world) lose(when time.Duration, node string) { w.at(when, func() { w.loseNow(node) }) }

func (w *world) comesBack(when time.Duration, node string) { w.at(when, func() { w.returnNow(node) }) }

func (w *world) setting(when time.Duration, change func()) {
	w.at(when, func() {
		w.mutex.Lock()
		defer w.mutex.Unlock()
		change()
	})
}

// running is a workspace that runs on node-1 with a snapshot of its content that is as old as given at the loss, which
// comes at an hour.
func running(t *testing.T, snapshotAge time.Duration) *world {
	w := newWorld(t)
	w.ask(0, workspace.UpdateStart, start())
	if snapshotAge > 0 {
		// A snapshot's time is its node's; here it is when it is asked for.
		w.clock = func() time.Time { return w.environment.Now() }
		w.ask(time.Hour-snapshotAge, workspace.UpdateBackup, workspace.BackupRequest{})
	}
	w.lose(time.Hour, nodeOne)
	return w
}

func (w *world) requireRunsWith(state *workspace.State, node, content string) {
	w.t.Helper()
	require.Equal(w.t, workspace.Running, state.Phase, "%+v\n%v", state, w.calls)
	require.Equal(w.t, node, state.Instance.Node)
	require.Equal(w.t, content, w.content[fmt.Sprintf("%s/%d", node, state.Instance.Token)])
	require.Nil(w.t, state.Loss)
	require.Nil(w.t, state.Block)
}

// B9, A12, invariant 3: a running workspace whose node is lost goes on elsewhere from its newest verified snapshot, as
// another instance, and says what that cost.
func TestLostNodeIsGoneOnWithout(t *testing.T) {
	w := running(t, time.Minute)
	waiting := w.look(time.Hour + 50*time.Second)
	after := w.look(time.Hour + 3*time.Minute)
	w.run(2 * time.Hour)

	require.Equal(t, workspace.Recovering, waiting.Phase)
	require.Contains(t, waiting.Reason, "node node-1 is lost")
	require.Contains(t, waiting.Loss.Waiting, "is given until")
	require.Equal(t, uint64(1), waiting.Instance.Token, "until the record of another is written, it is the instance")
	require.Equal(t, time.Hour+time.Minute, waiting.Loss.NextLook.Sub(waiting.Created).Round(time.Second), "a snapshot that is a minute old is worth a minute")

	w.requireRunsWith(after, nodeTwo, "first++")
	require.Equal(t, uint64(2), after.Instance.Token)
	require.Equal(t, after.Instance.Base, w.records[2].Base)
	recovery := after.Recovery
	require.Equal(t, nodeOne, recovery.From)
	require.Equal(t, nodeTwo, recovery.To)
	require.Equal(t, time.Minute, recovery.LostWork.Round(time.Second), "from the snapshot until the loss was decided")
	require.Contains(t, after.Reason, "at most the last 60 s of work")
	require.Len(t, after.Left, 1)
	require.Equal(t, uint64(1), after.Left[0].Token)
	require.Equal(t, "first+", w.content["node-1/1"], "nothing of it is removed (invariant 1)")
	require.Contains(t, w.placed, workspace.Placed{Node: nodeOne, Token: 1}, "that the node has something of it stays on record")
}

// A node is waited for at most two minutes, however old the snapshot is, and never less than what shows a storm.
func TestLongestAndShortestGrace(t *testing.T) {
	for age, grace := range map[time.Duration]time.Duration{30 * time.Minute: 2 * time.Minute, time.Second: 5 * time.Second} {
		w := running(t, age)
		before := w.look(time.Hour + grace - time.Second)
		after := w.look(time.Hour + grace + 5*time.Second)
		w.run(2 * time.Hour)
		require.Equal(t, workspace.Recovering, before.Phase, age)
		w.requireRunsWith(after, nodeTwo, "first++")
	}
}

// A node that returns before another instance was recorded keeps its workspaces: the same instance, its own content.
func TestNodeThatReturnsInTimeKeepsItsWorkspaces(t *testing.T) {
	w := running(t, time.Minute)
	w.comesBack(time.Hour+30*time.Second, nodeOne)
	after := w.look(time.Hour + 40*time.Second)
	w.run(2 * time.Hour)
	w.requireRunsWith(after, nodeOne, "first++") // it was found, or started, again
	require.Equal(t, uint64(1), after.Instance.Token)
	require.Nil(t, after.Recovery)
	require.Empty(t, after.Left)
	require.Len(t, w.records, 1)
}

// The last look is directly before the record: a node that returned during the preparations, of which nobody has been
// told yet, keeps its workspaces.
func TestNodeThatReturnsBeforeTheRecordKeepsItsWorkspaces(t *testing.T) {
	w := running(t, time.Minute)
	w.after = func(activity string, _ int) error {
		if state := w.nodes[nodeOne]; activity == workspace.ActivitySeal && state.Loss != nil {
			state.Phase, state.Loss, state.Epoch = workspace.NodeReady, nil, 2
			w.nodes[nodeOne] = state
		}
		return nil
	}
	after := w.look(time.Hour + 3*time.Minute)
	w.run(2 * time.Hour)
	w.requireRunsWith(after, nodeOne, "first++")
	require.Len(t, w.records, 1)
	require.Nil(t, after.Recovery)
}

// A10: without a snapshot there is nothing to go on with. It never starts empty, and goes on by itself when the node returns.
func TestLostNodeWithTheOnlyContentBlocks(t *testing.T) {
	w := running(t, 0)
	blocked := w.look(2 * time.Hour)
	refused := w.ask(2*time.Hour, workspace.UpdateStart, workspace.StartRequest{})
	still := w.look(2*time.Hour + time.Minute)
	w.comesBack(20*time.Hour, nodeOne)
	after := w.look(21 * time.Hour)
	w.run(22 * time.Hour)
	require.Equal(t, workspace.Blocked, blocked.Phase, "%+v", blocked)
	require.Equal(t, workspace.ErrorNodeLost, blocked.Block.Type)
	require.Contains(t, blocked.Block.Message, "nothing was ever backed up")
	require.NoError(t, *refused)
	last := still.Recent[len(still.Recent)-1]
	require.True(t, last.Refused, "%+v", last)
	require.Contains(t, last.Error, "only that node has it")
	w.requireRunsWith(after, nodeOne, "first++")
	require.Len(t, w.records, 1)
}

// The brake is asked before every record: while it holds, nothing moves.
func TestBrakeHoldsWorkspaces(t *testing.T) {
	w := running(t, time.Minute)
	w.setting(time.Hour, func() { w.brake = workspace.Brake{Held: true, Why: "3 of 4 nodes were lost"} })
	held := w.look(3 * time.Hour)
	w.setting(3*time.Hour, func() { w.brake = workspace.Brake{} })
	after := w.look(3*time.Hour + time.Minute)
	w.run(4 * time.Hour)
	require.Equal(t, workspace.Recovering, held.Phase)
	require.Contains(t, held.Reason, "3 of 4 nodes were lost")
	require.Len(t, held.Recent, 2, "looking is no operation")
	w.requireRunsWith(after, nodeTwo, "first++")
}

// A person's word is followed at once.
func TestPersonsWordIsFollowedAtOnce(t *testing.T) {
	w := running(t, 30*time.Minute)
	w.at(time.Hour+10*time.Second, func() {
		w.mutex.Lock()
		state := w.nodes[nodeOne]
		loss := *state.Loss
		loss.Dead = "ada"
		state.Loss = &loss
		w.nodes[nodeOne] = state
		w.mutex.Unlock()
		w.environment.SignalWorkflow(workspace.SignalNodeNews, workspace.NodeNews{Node: nodeOne, Epoch: 1, Lost: true, At: loss.At, Heard: loss.Heard, Word: "ada"})
	})
	before := w.look(time.Hour + 9*time.Second)
	after := w.look(time.Hour + 11*time.Second)
	w.run(2 * time.Hour)
	require.Equal(t, workspace.Recovering, before.Phase)
	w.requireRunsWith(after, nodeTwo, "first++")
}

// The brake that is drawn while an instance is prepared holds it: the last look is directly before the record.
func TestBrakeIsAskedBeforeTheRecord(t *testing.T) {
	w := running(t, time.Minute)
	w.after = func(activity string, _ int) error {
		if activity == workspace.ActivitySeal && w.nodes[nodeOne].Loss != nil {
			w.brake = workspace.Brake{Held: true, Why: "a storm"}
		}
		return nil
	}
	held := w.look(2 * time.Hour)
	w.run(3 * time.Hour)
	require.Equal(t, workspace.Recovering, held.Phase)
	require.Equal(t, uint64(1), held.Instance.Token)
	require.Len(t, w.records, 1)
}

// A person who does not want to wait names the version.
func TestPersonGoesOnWithoutTheLostNode(t *testing.T) {
	w := running(t, time.Minute)
	snapshot := fmt.Sprintf("%064d", 1)
	w.ask(time.Hour+time.Second, workspace.UpdateStart, workspace.StartRequest{})
	refused := w.look(time.Hour + 2*time.Second)
	w.ask(time.Hour+3*time.Second, workspace.UpdateStart, workspace.StartRequest{AcceptVersion: snapshot})
	after := w.look(time.Hour + 4*time.Second)
	w.run(2 * time.Hour)
	last := refused.Recent[len(refused.Recent)-1]
	require.True(t, last.Refused)
	require.Contains(t, last.Error, "--accept-version "+snapshot)
	require.Equal(t, workspace.Recovering, refused.Phase)
	w.requireRunsWith(after, nodeTwo, "first++")
	require.Len(t, after.Left, 1)
}

// A stop that is asked for while the node is lost is a stop through a backup: it waits for the node, and is done when
// that returns (A1, A3). A person may go on from the snapshot meanwhile.
func TestStopOfALostWorkspaceWaits(t *testing.T) {
	for _, person := range []bool{false, true} {
		w := running(t, time.Minute)
		w.ask(time.Hour+time.Second, workspace.UpdateStop, workspace.StopRequest{})
		stopping := w.look(4 * time.Hour)
		if person {
			w.ask(4*time.Hour, workspace.UpdateStart, workspace.StartRequest{})
			refused := w.look(4*time.Hour + time.Minute)
			w.ask(4*time.Hour+2*time.Minute, workspace.UpdateStart, workspace.StartRequest{AcceptVersion: fmt.Sprintf("%064d", 1)})
			after := w.look(4*time.Hour + 3*time.Minute)
			w.run(5 * time.Hour)
			require.Contains(t, refused.Recent[len(refused.Recent)-1].Error, "--accept-version", "%+v", refused)
			w.requireRunsWith(after, nodeTwo, "first++")
			continue
		}
		w.comesBack(4*time.Hour, nodeOne)
		after := w.look(5 * time.Hour)
		w.run(6 * time.Hour)
		require.Equal(t, workspace.Stopping, stopping.Phase)
		require.NotNil(t, stopping.Loss)
		require.Contains(t, workspace.Explain(*stopping, nil, stopping.Since).Doing, "Node node-1 is lost")
		require.Equal(t, workspace.Stopped, after.Phase)
		require.Nil(t, after.Loss)
		require.Nil(t, after.Kept)
		require.Equal(t, "final", after.Head.Kind)
	}
}

// A backup of a running workspace that waits for a lost node is given up for going on elsewhere.
func TestLossInTheMiddleOfABackup(t *testing.T) {
	w := running(t, time.Minute)
	w.fail = func(activity string, attempt int) error {
		if activity == workspace.ActivityBackup && attempt > 1 {
			return errors.New("no route to the store")
		}
		return nil
	}
	w.ask(time.Hour-10*time.Second, workspace.UpdateBackup, workspace.BackupRequest{})
	after := w.look(time.Hour + 3*time.Minute)
	w.run(2 * time.Hour)
	w.requireRunsWith(after, nodeTwo, "first++")
	i := len(after.Recent) - 2
	require.Equal(t, workspace.OperationBackup, after.Recent[i].Kind)
	require.Equal(t, workspace.ErrorNodeLost, after.Recent[i].ErrorType)
}

// The node is lost when a stop is acknowledged and only the removal is left: the stop is done, and a start goes on elsewhere
// from the snapshot of exactly that content, without a question.
func TestLossInTheMiddleOfARemoval(t *testing.T) {
	w := newWorld(t)
	w.ask(0, workspace.UpdateStart, start())
	w.fail = func(activity string, _ int) error {
		if activity == workspace.ActivityRemoveInstance {
			return errors.New("the disk is slow")
		}
		return nil
	}
	w.ask(time.Minute, workspace.UpdateStop, workspace.StopRequest{})
	w.lose(time.Hour, nodeOne)
	stopped := w.look(2 * time.Hour)
	w.ask(2*time.Hour, workspace.UpdateStart, workspace.StartRequest{})
	after := w.look(3 * time.Hour)
	w.run(4 * time.Hour)
	require.Equal(t, workspace.Stopped, stopped.Phase, "%+v", stopped)
	stop := stopped.Recent[1]
	require.Equal(t, workspace.OperationStop, stop.Kind)
	require.False(t, stop.Failed, "%+v", stop)
	require.Equal(t, []string{"content on node node-1"}, stop.Owed)
	require.NotNil(t, stopped.Kept)
	w.requireRunsWith(after, nodeTwo, "first++")
	require.Len(t, after.Left, 1)
}

// A start or a restore on a node that is lost before anything ran goes on with the next node.
func TestLossInTheMiddleOfAStart(t *testing.T) {
	for _, step := range []string{workspace.ActivityPrepareImage, workspace.ActivityPrepareContent} {
		w := newWorld(t)
		w.ask(0, workspace.UpdateStart, start())
		w.ask(time.Minute, workspace.UpdateStop, workspace.StopRequest{})
		w.at(30*time.Minute, func() {
			w.mutex.Lock()
			defer w.mutex.Unlock()
			w.fail = func(activity string, _ int) error {
				if activity == step && w.nodes[nodeOne].Loss == nil {
					w.at(0, func() { w.loseNow(nodeOne) })
					return errors.New("it is slow")
				}
				return nil
			}
		})
		w.ask(time.Hour, workspace.UpdateStart, workspace.StartRequest{})
		after := w.look(20 * time.Hour)
		w.run(21 * time.Hour)
		w.requireRunsWith(after, nodeTwo, "first++")
	}
}

// While no node can take it, it is tried again for ever; a node that is added is used.
func TestRecoveryWaitsForANode(t *testing.T) {
	w := running(t, time.Minute)
	w.setting(time.Hour, func() { delete(w.nodes, nodeTwo) })
	waiting := w.look(24 * time.Hour)
	w.setting(24*time.Hour, func() { w.nodes[nodeTwo] = workspace.NodeState{Phase: workspace.NodeReady} })
	after := w.look(24*time.Hour + 3*time.Minute)
	w.run(25 * time.Hour)
	require.Equal(t, workspace.Recovering, waiting.Phase)
	require.Equal(t, uint64(1), waiting.Instance.Token)
	require.LessOrEqual(t, len(waiting.Recent), 3, "the same failure is told once: %+v", waiting.Recent)
	w.requireRunsWith(after, nodeTwo, "first++")
}

// The node that the recovery goes to is lost too: it goes on with the next.
func TestLossOfTheNodeThatRecoveryWentTo(t *testing.T) {
	w := running(t, time.Minute)
	w.lose(3*time.Hour, nodeTwo)
	w.comesBack(2*time.Hour, nodeOne)
	after := w.look(4 * time.Hour)
	w.run(5 * time.Hour)
	w.requireRunsWith(after, nodeOne, "first++")
	require.Equal(t, uint64(3), after.Instance.Token)
	require.Len(t, after.Left, 1, "what the first node had was saved")
	require.Len(t, after.Salvaged, 1)
}

// invariant 4: a store that cannot be listed may have a newer version. Nobody is asked, so it is waited for.
func TestRecoveryNeverGoesBackSilently(t *testing.T) {
	w := running(t, time.Minute)
	w.setting(time.Hour, func() {
		heads := w.readHead("gs://a", "file:///b")
		heads.Providers[1] = workspace.ProviderHead{Provider: "file:///b", Error: "connection refused"}
		w.heads = &heads
	})
	waiting := w.look(3 * time.Hour)
	w.setting(3*time.Hour, func() { w.heads = nil })
	after := w.look(3*time.Hour + 3*time.Minute)
	w.run(4 * time.Hour)
	require.Equal(t, workspace.Recovering, waiting.Phase)
	require.Contains(t, waiting.Reason, "file:///b cannot be listed")
	w.requireRunsWith(after, nodeTwo, "first++")
}

// A node that comes back without its disk has nothing to go on with: the snapshot is.
func TestNodeThatReturnsWithoutItsDisk(t *testing.T) {
	w := running(t, time.Minute)
	w.setting(time.Hour+time.Second, func() {
		w.fail = func(activity string, attempt int) error {
			if activity == workspace.ActivityStartInstance && w.nodes[nodeOne].Loss == nil && attempt == 2 {
				return permanent(workspace.ErrorContentMissing, "the node holds no such content")
			}
			return nil
		}
	})
	w.comesBack(time.Hour+10*time.Second, nodeOne)
	after := w.look(2 * time.Hour)
	w.run(3 * time.Hour)
	w.requireRunsWith(after, nodeTwo, "first++")
	require.NotNil(t, after.Recovery)
}

// Continuing as new carries a loss, and the news that came in the same moment.
func TestContinueAsNewWithALoss(t *testing.T) {
	w := running(t, time.Minute)
	w.setting(time.Hour, func() { w.brake = workspace.Brake{Held: true, Why: "a storm"} })
	w.at(2*time.Hour, func() { w.environment.SetContinueAsNewSuggested(true) })
	w.environment.ExecuteWorkflow(workspace.WorkspaceWorkflow, workspace.Input{Name: "atlas", Owner: "ada"})
	w.end()
	var again *workflow.ContinueAsNewError
	require.ErrorAs(t, w.environment.GetWorkflowError(), &again)
	var input workspace.Input
	require.NoError(t, converter.GetDefaultDataConverter().FromPayloads(again.Input, &input))
	require.Equal(t, nodeOne, input.State.Loss.Node)

	next := newWorld(t)
	next.commits, next.records, next.versions, next.content, next.newestContent, next.nodes = w.commits, w.records, w.versions, w.content, w.newestContent, w.nodes
	after := next.look(3 * time.Hour) // this environment's clock begins anew
	next.environment.RegisterDelayedCallback(next.environment.CancelWorkflow, 4*time.Hour)
	next.environment.ExecuteWorkflow(workspace.WorkspaceWorkflow, input)
	next.end()
	next.requireRunsWith(after, nodeTwo, "first++")
}
