package workflows_test

import (
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"holdfast/workspace"
)

// restarted tells the workspace that another start of node-1's agent has the lease; before, it changes what is there.
func (w *world) restarted(when time.Duration, incarnation string, change func()) {
	w.setting(when, change)
	w.at(when, func() {
		w.environment.SignalWorkflow(workspace.SignalNodeNews, workspace.NodeNews{Node: nodeOne, Epoch: 2, Incarnation: incarnation})
	})
}

func runningAt(t *testing.T, backup bool) *world {
	w := newWorld(t)
	w.clock = func() time.Time { return w.environment.Now() }
	w.ask(0, workspace.UpdateStart, start())
	if backup {
		w.ask(30*time.Minute, workspace.UpdateBackup, workspace.BackupRequest{})
	}
	return w
}

func (w *world) called(activity string) (n int) {
	for _, call := range w.calls {
		if call == activity {
			n++
		}
	}
	return n
}

// The container outlived the agent: nothing happens to it, and it is looked for once for each start of the agent.
func TestInstanceThatOutlivesItsAgentGoesOn(t *testing.T) {
	w := runningAt(t, true)
	w.restarted(time.Hour, "two", func() {})
	w.restarted(2*time.Hour, "three", func() {})
	after := w.look(3 * time.Hour)
	w.run(4 * time.Hour)
	w.requireRunsWith(after, nodeOne, "first+")
	require.Nil(t, after.Look)
	require.Equal(t, 2, w.called(workspace.ActivityFindInstance))
	require.Equal(t, 1, w.called(workspace.ActivityStartInstance))
	require.Len(t, after.Recent, 2, "a look that found it is not told: %+v", after.Recent)
}

// The container ended with its machine, the content is there: the same instance is started again from it, with its own
// token and record (invariant 3), whether there is a snapshot or not. Until it runs the state does not say so.
func TestInstanceThatEndedIsStartedAgain(t *testing.T) {
	for _, backup := range []bool{true, false} {
		w := runningAt(t, backup)
		w.restarted(time.Hour, "two", func() {
			w.runs["node-1/1"] = false
			w.content["node-1/1"] += " and more"
			w.newestContent = w.content["node-1/1"]
		})
		phase := workspace.Phase("")
		w.fail = func(activity string, attempt int) error {
			if activity == workspace.ActivityStartInstance && attempt == 2 {
				w.at(0, func() { phase = w.state().Phase })
				return errors.New("the engine is starting")
			}
			return nil
		}
		after := w.look(time.Hour + time.Minute)
		w.run(2 * time.Hour)
		w.requireRunsWith(after, nodeOne, "first+ and more+")
		require.Equal(t, workspace.Recovering, phase)
		require.Equal(t, uint64(1), after.Instance.Token)
		require.Len(t, w.records, 1)
		require.Nil(t, after.Look)
		require.Nil(t, after.Recovery)
		require.Empty(t, after.Left)
		require.Contains(t, after.Reason, "was started again")
		last := after.Recent[len(after.Recent)-1]
		require.Equal(t, workspace.OperationFind, last.Kind)
		require.False(t, last.Failed, last.Error)
	}
}

// The machine is switched off and on once more after the node has answered and before the answer is heard: the answer is
// from before, and the instance is looked for again.
func TestAnswerFromBeforeTheNextStart(t *testing.T) {
	w := runningAt(t, true)
	w.after = func(activity string, attempt int) error {
		if activity == workspace.ActivityFindInstance && attempt == 1 {
			w.runs["node-1/1"] = false
			w.environment.SignalWorkflow(workspace.SignalNodeNews, workspace.NodeNews{Node: nodeOne, Epoch: 3, Incarnation: "three"})
		}
		return nil
	}
	w.restarted(time.Hour, "two", func() {})
	after := w.look(2 * time.Hour)
	w.run(3 * time.Hour)
	require.Equal(t, 2, w.called(workspace.ActivityFindInstance))
	w.requireRunsWith(after, nodeOne, "first++")
	require.Nil(t, after.Look)
}

// The content is gone: it goes on from the newest verified snapshot, as another instance, and says what that cost and
// that the node was not lost.
func TestInstanceWhoseContentIsGoneIsRecovered(t *testing.T) {
	w := runningAt(t, true)
	w.restarted(time.Hour, "two", func() { delete(w.content, "node-1/1"); w.runs["node-1/1"] = false })
	after := w.look(time.Hour + time.Minute)
	w.run(2 * time.Hour)
	w.requireRunsWith(after, nodeTwo, "first++")
	require.Equal(t, uint64(2), after.Instance.Token)
	require.NotNil(t, after.Recovery)
	require.Equal(t, 30*time.Minute, after.Recovery.LostWork.Round(time.Second))
	require.Contains(t, after.Reason, "node node-1 had lost its content")
	require.Contains(t, after.Reason, "at most the last")
	require.NotContains(t, after.Reason, "node-1 was lost")
	require.Nil(t, after.Look)
	require.Len(t, after.Left, 1)
}

// A10: without a snapshot it never starts empty. Its content is found by a start once the disk is back.
func TestInstanceWhoseOnlyContentIsGoneBlocks(t *testing.T) {
	w := runningAt(t, false)
	w.restarted(time.Hour, "two", func() { delete(w.content, "node-1/1"); w.runs["node-1/1"] = false; w.newestContent = "" })
	blocked := w.look(2 * time.Hour)
	w.setting(3*time.Hour, func() { w.content["node-1/1"] = "first+" })
	w.ask(3*time.Hour, workspace.UpdateStart, workspace.StartRequest{})
	after := w.look(4 * time.Hour)
	w.run(5 * time.Hour)
	require.Equal(t, workspace.Blocked, blocked.Phase, "%+v", blocked)
	require.Equal(t, workspace.ErrorContentMissing, blocked.Block.Type)
	require.Contains(t, blocked.Block.Mend, "never starts empty")
	require.Equal(t, nodeOne, blocked.Kept.Node)
	require.Nil(t, blocked.Look)
	w.requireRunsWith(after, nodeOne, "first++")
}

// What cannot be looked at now is looked at again, and it is said meanwhile that it is not known.
func TestInstanceThatCannotBeFoundIsLookedForAgain(t *testing.T) {
	w := runningAt(t, true)
	w.restarted(time.Hour, "two", func() { w.runs["node-1/1"] = false })
	w.fail = func(activity string, attempt int) error {
		if activity == workspace.ActivityFindInstance && attempt <= 60 {
			return errors.New("the engine does not answer")
		}
		return nil
	}
	unknown := w.look(time.Hour + 61*time.Second)
	var given *workspace.State // after a look was given up, before the next
	for i := range 360 {
		w.at(time.Hour+time.Duration(i)*time.Second, func() {
			if state := w.state(); given == nil && state.Look != nil && state.Look.Attempts > 0 && state.Operation == nil {
				given = &state
			}
		})
	}
	after := w.look(10 * time.Hour)
	w.run(11 * time.Hour)
	require.NotNil(t, unknown.Look)
	require.NotNil(t, given)
	require.Contains(t, given.Look.Why, "the engine does not answer")
	require.Contains(t, workspace.Explain(*given, nil, given.Since.Add(time.Hour)).Doing, "the engine does not answer")
	doing := workspace.Explain(*unknown, nil, unknown.Since.Add(time.Hour)).Doing
	require.Contains(t, doing, "node-1")
	require.NotContains(t, doing, "Nothing: it is running")
	w.requireRunsWith(after, nodeOne, "first++")
	require.Nil(t, after.Look)
}

// What cannot be started again is tried again, and it is said meanwhile that it does not run, and why.
func TestInstanceThatCannotBeStartedAgainSaysWhy(t *testing.T) {
	w := runningAt(t, true)
	w.restarted(time.Hour, "two", func() { w.runs["node-1/1"] = false })
	away := true
	w.fail = func(activity string, attempt int) error {
		if activity == workspace.ActivityStartInstance && attempt > 1 && away {
			return errors.New("the engine is starting")
		}
		return nil
	}
	var given *workspace.State
	for i := range 600 {
		w.at(time.Hour+time.Duration(i)*time.Second, func() {
			if state := w.state(); given == nil && state.Look != nil && state.Look.Attempts > 0 && state.Operation == nil {
				given, away = &state, false
			}
		})
	}
	after := w.look(2 * time.Hour)
	w.run(3 * time.Hour)
	require.NotNil(t, given)
	require.Equal(t, workspace.Recovering, given.Phase)
	require.Contains(t, given.Reason, "starting it again there failed")
	require.Contains(t, given.Reason, "the engine is starting")
	require.Contains(t, workspace.Explain(*given, nil, given.Since).Doing, "the engine is starting")
	w.requireRunsWith(after, nodeOne, "first++")
	require.Nil(t, after.Look)
}

// A node that is lost while its instance is looked for is gone on without, as any other.
func TestLossWhileTheInstanceIsLookedFor(t *testing.T) {
	w := runningAt(t, true)
	w.inject(workspace.ActivityFindInstance, errors.New("the engine does not answer"), false, 1)
	w.restarted(time.Hour, "two", func() { w.runs["node-1/1"] = false })
	w.lose(time.Hour+10*time.Second, nodeOne)
	after := w.look(time.Hour + 10*time.Minute)
	w.run(2 * time.Hour)
	w.requireRunsWith(after, nodeTwo, "first++")
	require.Nil(t, after.Look)
}

// A stop is a stop, whatever became of the container.
func TestStopWhileTheInstanceIsLookedFor(t *testing.T) {
	w := runningAt(t, true)
	w.inject(workspace.ActivityFindInstance, errors.New("the engine does not answer"), false, 1)
	w.restarted(time.Hour, "two", func() { w.runs["node-1/1"] = false })
	w.ask(time.Hour+5*time.Second, workspace.UpdateStop, workspace.StopRequest{})
	after := w.look(time.Hour + time.Minute)
	w.run(2 * time.Hour)
	require.Equal(t, workspace.Stopped, after.Phase, "%+v", after)
	require.Nil(t, after.Look)
	require.Nil(t, after.Kept)
}
