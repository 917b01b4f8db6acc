package workflows_test

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.temporal.io/sdk/temporal"

	"holdfast/workspace"
)

// waiting does something in the middle of a wait: while a timer of the workflow runs, or before an activity that has failed
// is tried again. Every activity's every first attempt fails, so that there is such a pause in each.
type waiting struct {
	*world
	waits []wait
	// ranOut has the timers that were waited for to their end.
	ranOut map[string]bool
	// at is the number of the wait in the middle of which do is called, from 1 on; 0 is never.
	at int
	do func()
}

// wait is for a timer, or for the next attempt of an activity of which so many calls had been made with this one.
type wait struct {
	timer, activity string
	calls           int
}

// lifeOfWaits is a life in which everything is waited for.
type lifeOfWaits func(w *world)

var livesOfWaits = map[string]lifeOfWaits{
	// The stores lose what was written twice, and one of them stays behind after that.
	"stop": func(w *world) {
		w.owed = []string{"file:///b"}
		lost, late := 0, 0
		w.after = func(activity string, _ int) error {
			switch {
			case activity == workspace.ActivityVerify && lost < 2:
				lost++
				return permanent(workspace.ErrorNotStored, "a pack is gone")
			case activity == workspace.ActivityRepair && late < 2:
				late++
				w.owed = []string{"file:///b"}
			}
			return nil
		}
		w.ask(0, workspace.UpdateStart, start())
		w.ask(time.Hour, workspace.UpdateStop, workspace.StopRequest{})
		w.ask(2*time.Hour, workspace.UpdateStart, workspace.StartRequest{})
	},
	"restore": func(w *world) {
		w.ask(0, workspace.UpdateStart, start())
		w.ask(time.Hour, workspace.UpdateStop, workspace.StopRequest{})
		w.at(2*time.Hour, func() {
			w.mutex.Lock()
			defer w.mutex.Unlock()
			if len(w.commits) > 0 { // what was to be backed up may have been given up
				w.ask(0, workspace.UpdateRestore, workspace.RestoreRequest{Snapshot: w.commits[0].Snapshot})
			}
		})
	},
	"timed": func(w *world) {
		w.ask(0, workspace.UpdateStart, startEvery(20*time.Minute))
		w.work(30 * time.Minute)
		w.ask(time.Hour, workspace.UpdateStop, workspace.StopRequest{})
	},
	// Twice it is asked whether it is used, and stopped by itself; it is started again meanwhile.
	"idle": func(w *world) {
		w.ask(0, workspace.UpdateStart, stopping(40*time.Minute, 0))
		w.work(30 * time.Minute)
		w.ask(2*time.Hour, workspace.UpdateStart, workspace.StartRequest{})
	},
	"retention": func(w *world) {
		w.retainsNext()
		w.ask(0, workspace.UpdateStart, startEvery(20*time.Minute))
		w.work(10 * time.Minute)
		w.ask(30*time.Minute, workspace.UpdateStop, workspace.StopRequest{})
	},
	"move": func(w *world) {
		w.ask(0, workspace.UpdateStart, start())
		w.ask(time.Hour, workspace.UpdateMove, workspace.MoveRequest{})
	},
	// The brake holds it, then no other node takes it for a while.
	"recover": func(w *world) {
		w.clock = func() time.Time { return w.environment.Now() }
		w.ask(0, workspace.UpdateStart, start())
		w.ask(59*time.Minute, workspace.UpdateBackup, workspace.BackupRequest{})
		w.setting(30*time.Minute, func() { w.brake = workspace.Brake{Held: true, Why: "half of the fleet is away"} })
		w.setting(70*time.Minute, func() {
			w.brake = workspace.Brake{}
			w.nodes[nodeTwo] = workspace.NodeState{Info: workspace.NodeInfo{Name: nodeTwo}, Phase: workspace.NodeSuspect}
		})
		w.setting(80*time.Minute, func() {
			w.nodes[nodeTwo] = workspace.NodeState{Info: workspace.NodeInfo{Name: nodeTwo}, Phase: workspace.NodeReady, Epoch: 1}
		})
		w.lose(time.Hour, nodeOne)
		w.comesBack(2*time.Hour, nodeOne)
	},
	// What ran has ended, and its node cannot start it again at first.
	"find": func(w *world) {
		w.ask(0, workspace.UpdateStart, start())
		w.restarted(time.Hour, "two", func() {
			w.runs[nodeOne+"/1"] = false
			w.nodes[nodeOne] = workspace.NodeState{Info: workspace.NodeInfo{Name: nodeOne}, Phase: workspace.NodeSuspect}
		})
		w.setting(70*time.Minute, func() {
			w.nodes[nodeOne] = workspace.NodeState{Info: workspace.NodeInfo{Name: nodeOne}, Phase: workspace.NodeReady, Epoch: 2}
		})
	},
}

// wait notes a wait, and has something done half-way through that which it is about.
func (w *waiting) wait(what wait, long time.Duration) {
	w.waits = append(w.waits, what)
	if len(w.waits) == w.at {
		w.environment.RegisterDelayedCallback(w.do, long/2)
	}
}

// requireGivenUp says that the wait in the middle of which something was done ended with that, and not in its own time.
func (w *waiting) requireGivenUp() {
	w.t.Helper()
	what := w.waits[w.at-1]
	if what.timer != "" {
		require.False(w.t, w.ranOut[what.timer], "it went on waiting for its timer")
		return
	}
	if len(w.calls) > what.calls {
		require.NotEqual(w.t, what.activity, w.calls[what.calls], "it went on with the next attempt")
	}
}

func newWaiting(t *testing.T, life lifeOfWaits, at int, do func(*waiting)) *waiting {
	w := &waiting{world: newWorld(t), ranOut: map[string]bool{}, at: at}
	w.do = func() { do(w) }
	w.environment.SetOnTimerScheduledListener(func(timer string, long time.Duration) {
		w.mutex.Lock()
		defer w.mutex.Unlock()
		w.wait(wait{timer: timer}, long)
	})
	w.environment.SetOnTimerFiredListener(func(timer string) { w.ranOut[timer] = true })
	life(w.world)
	w.fail = func(activity string, attempt int) error {
		if attempt%2 == 0 {
			return nil
		}
		w.wait(wait{activity: activity, calls: len(w.calls)}, time.Second)
		return errors.New("connection reset by peer")
	}
	return w
}

// waitsOf counts the waits of a life, and shows that there are timers and pauses among them.
func waitsOf(t *testing.T, name string, life lifeOfWaits) int {
	w := newWaiting(t, life, 0, nil)
	last := w.look(4 * time.Hour)
	w.run(5 * time.Hour)
	require.True(t, w.fullCopy())
	timers := 0
	for _, what := range w.waits {
		if what.timer != "" {
			timers++
		}
	}
	t.Logf("%s: %d timers and %d pauses, %s", name, timers, len(w.waits)-timers, last.Phase)
	return len(w.waits)
}

// findable says whether a workspace's state leads to what its person last had: on the node of its instance, on that of
// what it keeps, where it may have a newer token already, or in its head.
func (w *world) findable(state workspace.State) bool {
	if w.newestContent == "" || state.Head != nil && w.versions[state.Head.Snapshot] == w.newestContent {
		return true
	}
	on := func(node string, token uint64) bool {
		for ; token <= w.newest(); token++ {
			if w.content[fmt.Sprintf("%s/%d", node, token)] == w.newestContent {
				return true
			}
		}
		return false
	}
	switch {
	case state.Instance != nil:
		return on(state.Instance.Node, state.Instance.Token)
	case state.Kept != nil:
		return on(state.Kept.Node, state.Kept.Token)
	}
	return false
}

// A cancellation is heard in the middle of every wait, which ends with it: nothing is lost, and the state leads to what the
// person last had.
func TestCancellationInEveryWait(t *testing.T) {
	for name, life := range livesOfWaits {
		for n := range waitsOf(t, name, life) {
			n++
			t.Run(fmt.Sprint(name, n), func(t *testing.T) {
				t.Parallel()
				var asked time.Time
				w := newWaiting(t, life, n, func(w *waiting) {
					asked = w.environment.Now()
					w.environment.CancelWorkflow()
				})
				w.run(5 * time.Hour)
				what := w.waits[n-1]
				require.False(t, asked.IsZero(), what)
				require.True(t, temporal.IsCanceledError(w.environment.GetWorkflowError()), "%+v: %v", what, w.environment.GetWorkflowError())
				w.requireGivenUp()
				require.Less(t, w.environment.Now().Sub(asked), time.Minute, "it ended long after %+v", what)
				require.True(t, w.fullCopy(), what)
				require.True(t, w.findable(w.state()), "%+v: %+v\ncontent %v", what, w.state(), w.content)
			})
		}
	}
}

// A command that comes in the middle of any wait is heard at once: an unstick has ended what is waited for a moment later,
// and whatever the command was, the workspace can be run again with all that its person last had.
func TestCancellationByACommandInEveryWait(t *testing.T) {
	requests := map[string]any{
		workspace.UpdateUnstick: workspace.UnstickRequest{}, workspace.UpdateStart: workspace.StartRequest{}, workspace.UpdateStop: workspace.StopRequest{},
	}
	for name, life := range livesOfWaits {
		waits := waitsOf(t, name, life)
		for update, request := range requests {
			for n := range waits {
				n++
				t.Run(fmt.Sprintf("%s/%s/%d", name, update, n), func(t *testing.T) {
					t.Parallel()
					var refused *error
					var then workspace.State
					var soon *workspace.State
					w := newWaiting(t, life, n, func(w *waiting) {
						then = w.state()
						refused = w.ask(0, update, request)
						soon = w.look(time.Minute)
					})
					w.setting(5*time.Hour, func() { w.fail, w.after = nil, nil })
					w.ask(6*time.Hour, workspace.UpdateUnstick, workspace.UnstickRequest{})
					w.ask(7*time.Hour, workspace.UpdateStart, start())
					last := w.look(8 * time.Hour)
					w.run(9 * time.Hour)
					what := w.waits[n-1]
					require.NotNil(t, refused, what)
					if update == workspace.UpdateUnstick && *refused == nil {
						// A removal that has begun is never cut; an unstick records a token itself; what belongs to no operation ends
						// soon by itself, and its timer may run on with nobody waiting for it.
						if then.Operation != nil && then.Operation.Step != workspace.StepRemove && what.activity != workspace.ActivityRecordInstance {
							w.requireGivenUp()
						}
						require.Equal(t, workspace.OperationUnstick, soon.Recent[len(soon.Recent)-1].Kind, "%+v: %+v", what, soon)
						require.NotEqual(t, workspace.Running, soon.Phase, what)
					}
					require.True(t, w.fullCopy(), what)
					require.Equal(t, workspace.Running, last.Phase, "%+v: %+v\nblock %+v\nloss %+v\ncalls %v", what, last.Recent, last.Block, last.Loss, w.calls)
					at := fmt.Sprintf("%s/%d", last.Instance.Node, last.Instance.Token)
					require.Equal(t, w.newestContent, w.content[at], what)
				})
			}
		}
	}
}
