package workflows_test

import (
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/mock"
	"github.com/stretchr/testify/require"
	"go.temporal.io/sdk/converter"
	"go.temporal.io/sdk/testsuite"
	"go.temporal.io/sdk/workflow"

	"holdfast/workspace"
)

// stopping is a start of a workspace that is stopped by itself.
func stopping(idle, lifetime time.Duration) workspace.StartRequest {
	request := start()
	request.Spec.Stop = workspace.StopPolicy{IdleSeconds: int64(idle / time.Second), LifetimeSeconds: int64(lifetime / time.Second)}
	return request
}

// useHolds is how old an answer may be that a stop goes by.
const useHolds = 2 * time.Minute

func ahead(state *workspace.State, now time.Time) *workspace.StopAhead {
	return workspace.StopAheadOf(*state, now)
}

// idleWorld is a workspace that starts at once and is then as use says, by how long it has run; nil is never used.
func idleWorld(t *testing.T, request workspace.StartRequest, use func(ran time.Duration) workspace.LookAtUseResult) *world {
	w := newWorld(t)
	w.clock = func() time.Time { return w.environment.Now() }
	began := w.environment.Now()
	if use != nil {
		w.use = func() workspace.LookAtUseResult { return use(w.environment.Now().Sub(began)) }
	}
	w.ask(0, workspace.UpdateStart, request)
	return w
}

var usedNow = workspace.LookAtUseResult{Use: "its processes took 97 % of a processor"}

func quietSince(ran, since time.Duration) workspace.LookAtUseResult {
	return workspace.LookAtUseResult{QuietMillis: (ran - since).Milliseconds(), Use: "a shell ended"}
}

func alwaysUsed(time.Duration) workspace.LookAtUseResult { return usedNow }

// An idle workspace is warned of, ten minutes before, and then stopped as by a person: through a final backup. It costs
// two questions.
func TestIdleWorkspaceIsWarnedOfAndStopped(t *testing.T) {
	w := idleWorld(t, stopping(2*time.Hour, 0), nil)
	w.work(30 * time.Minute) // what a person did without the node seeing it is in the backup all the same
	before, warned, stopped := w.look(109*time.Minute), w.look(115*time.Minute), w.look(121*time.Minute)
	asked := 0
	w.at(109*time.Minute, func() { asked = w.called(workspace.ActivityLookAtUse) })
	w.run(24 * time.Hour)

	require.Zero(t, asked, "nobody is asked before the time has come")
	require.Empty(t, before.Watch.WarnedOf)
	require.Equal(t, workspace.StopIdle, warned.Watch.WarnedOf)
	require.Equal(t, workspace.Running, warned.Phase)
	told := ahead(warned, warned.Watch.Warned)
	require.True(t, told.Warned)
	require.InDelta(t, 10*time.Minute, told.Stop.Sub(warned.Watch.Warned), float64(time.Second))
	require.Contains(t, told.Words(warned.Watch.Warned), "because it is not used")

	require.Equal(t, workspace.Stopped, stopped.Phase)
	require.Contains(t, stopped.Reason, "it was not used for 2h: backed up as snapshot")
	require.Equal(t, "final", stopped.Head.Kind)
	require.Equal(t, "first+.", w.versions[stopped.Head.Snapshot])
	require.Equal(t, "it was not used for 2h", recent(t, stopped, workspace.OperationStop).Cause)
	require.Nil(t, stopped.Kept)
	require.Equal(t, 2, w.called(workspace.ActivityLookAtUse))
	require.Equal(t, 1, w.called(workspace.ActivityStopInstance))
}

// A build that nobody watches is not idle. The policy bounds how often the node is asked.
func TestUsedWorkspaceRunsOn(t *testing.T) {
	for idle, most := range map[time.Duration]int{2 * time.Hour: 14, time.Minute: 24*60/5 + 1} {
		w := idleWorld(t, stopping(idle, 0), alwaysUsed)
		last := w.look(24*time.Hour - time.Minute)
		w.run(24 * time.Hour)
		require.Equal(t, workspace.Running, last.Phase)
		require.Empty(t, last.Watch.WarnedOf)
		require.Contains(t, last.Watch.Use, "97 %")
		require.LessOrEqual(t, w.called(workspace.ActivityLookAtUse), most)
		require.Greater(t, w.called(workspace.ActivityLookAtUse), most/2)
		require.Zero(t, w.called(workspace.ActivityStopInstance))
	}
}

// The worst case for a history: it is used each time after the warning.
func TestQuestionsAreBounded(t *testing.T) {
	questions := 0
	w := idleWorld(t, stopping(time.Minute, 0), nil)
	w.use = func() workspace.LookAtUseResult {
		if questions++; questions%2 == 0 {
			return usedNow
		}
		return workspace.LookAtUseResult{QuietMillis: 1 << 40}
	}
	last := w.look(24*time.Hour - time.Minute)
	w.run(24 * time.Hour)
	require.Equal(t, workspace.Running, last.Phase)
	require.LessOrEqual(t, questions, 2*24*60/5+2)
	require.Greater(t, questions, 500, "else this is not the worst case")
}

// Use after the warning takes it back, and the whole time begins anew.
func TestUseAfterTheWarning(t *testing.T) {
	w := idleWorld(t, stopping(2*time.Hour, 0), func(ran time.Duration) workspace.LookAtUseResult {
		if ran < 119*time.Minute {
			return quietSince(ran, 0)
		}
		return quietSince(ran, 118*time.Minute)
	})
	warned, on, late, stopped := w.look(111*time.Minute), w.look(121*time.Minute), w.look(237*time.Minute), w.look(239*time.Minute)
	w.run(5 * time.Hour)
	require.Equal(t, workspace.StopIdle, warned.Watch.WarnedOf)
	require.Equal(t, workspace.Running, on.Phase)
	require.Empty(t, on.Watch.WarnedOf)
	require.Equal(t, "a shell ended", on.Watch.Use)
	require.Equal(t, workspace.Running, late.Phase)
	require.Equal(t, workspace.StopIdle, late.Watch.WarnedOf)
	require.Equal(t, workspace.Stopped, stopped.Phase)
}

// A node that does not answer does not say that it is idle: nothing is stopped, and once it answers again its person is
// warned first.
func TestSilentNodeIsNotIdle(t *testing.T) {
	for name, silentFrom := range map[string]time.Duration{"before the warning": 0, "between the warning and the stop": 115 * time.Minute} {
		t.Run(name, func(t *testing.T) {
			w := idleWorld(t, stopping(2*time.Hour, 0), nil)
			silent := errors.New("the engine does not answer")
			w.setting(silentFrom, func() {
				w.fail = func(activity string, _ int) error {
					if activity == workspace.ActivityLookAtUse {
						return silent
					}
					return nil
				}
			})
			unknown := w.look(10 * time.Hour)
			w.setting(10*time.Hour, func() { w.fail = nil })
			warned, stopped := w.look(10*time.Hour+6*time.Minute), w.look(10*time.Hour+17*time.Minute)
			w.run(11 * time.Hour)
			require.Equal(t, workspace.Running, unknown.Phase)
			require.Empty(t, unknown.Watch.WarnedOf)
			require.Contains(t, ahead(unknown, unknown.Watch.NotAsked).Unknown, "the engine does not answer")
			require.LessOrEqual(t, unknown.Watch.Failures, 8*12+3)
			require.Greater(t, unknown.Watch.Failures, 50)
			require.Equal(t, workspace.Running, warned.Phase)
			require.Equal(t, workspace.StopIdle, warned.Watch.WarnedOf)
			require.Zero(t, warned.Watch.Failures)
			require.Equal(t, workspace.Stopped, stopped.Phase)
		})
	}
}

// An answer that no worker took note of for minutes says nothing of those minutes: somebody may have come meanwhile.
func TestAnswerThatWaited(t *testing.T) {
	w := idleWorld(t, stopping(2*time.Hour, 0), nil)
	quiet := workspace.LookAtUseResult{QuietMillis: (1000 * time.Hour).Milliseconds(), Use: "a shell ended"}
	answer := func(result workspace.LookAtUseResult) *testsuite.MockCallWrapper {
		return w.environment.OnActivity(workspace.ActivityLookAtUse, mock.Anything, mock.Anything).Return(result, nil)
	}
	answer(quiet).Once() // it is warned of
	answer(quiet).After(useHolds + time.Second).Once()
	answer(usedNow)
	warned, on := w.look(119*time.Minute), w.look(125*time.Minute)
	w.run(3 * time.Hour)
	require.Equal(t, workspace.StopIdle, warned.Watch.WarnedOf)
	require.Equal(t, workspace.Running, on.Phase)
	require.Empty(t, on.Watch.WarnedOf)
	require.Contains(t, on.Watch.Use, "97 %")

	w = idleWorld(t, stopping(2*time.Hour, 0), nil)
	answer(quiet).Once()
	answer(quiet).After(useHolds)
	stopped := w.look(120*time.Minute + useHolds + time.Minute)
	w.run(3 * time.Hour)
	require.Equal(t, workspace.Stopped, stopped.Phase, "one that came in time")
}

// An agent that was started again may not know yet what runs: nobody is asked about its use, and nothing is stopped.
func TestRestartedAgentIsNotIdle(t *testing.T) {
	w := idleWorld(t, stopping(2*time.Hour, 0), nil)
	w.restarted(115*time.Minute, "two", func() {
		w.fail = func(activity string, _ int) error {
			if activity == workspace.ActivityFindInstance {
				return errors.New("the engine does not answer yet")
			}
			return nil
		}
	})
	unknown, asked := w.look(150*time.Minute), 0
	w.at(150*time.Minute, func() { asked = w.called(workspace.ActivityLookAtUse) })
	w.setting(150*time.Minute, func() { w.fail = nil })
	last := w.look(5 * time.Hour)
	w.run(6 * time.Hour)
	require.Equal(t, workspace.Running, unknown.Phase)
	require.NotNil(t, unknown.Look)
	require.Equal(t, 1, asked, "the one of the warning")
	require.Equal(t, workspace.Stopped, last.Phase)
}

// While a node is lost nothing is stopped by itself.
func TestLostNodeIsNotIdle(t *testing.T) {
	w := idleWorld(t, stopping(2*time.Hour, 0), nil)
	w.ask(time.Hour, workspace.UpdateBackup, workspace.BackupRequest{})
	w.setting(115*time.Minute, func() { w.brake = workspace.Brake{Held: true, Why: "a storm"} })
	w.lose(115*time.Minute, nodeOne)
	lost := w.look(4 * time.Hour)
	w.comesBack(4*time.Hour, nodeOne)
	last := w.look(4*time.Hour + 30*time.Minute)
	w.run(5 * time.Hour)
	require.NotEqual(t, workspace.Stopped, lost.Phase)
	require.Equal(t, workspace.Stopped, last.Phase)
	require.Contains(t, last.Reason, "it was not used for 2h")
}

// A lifetime is over whether it is used or not, and whatever its node says of that; a move does not begin it anew.
func TestLifetime(t *testing.T) {
	w := idleWorld(t, stopping(5*time.Hour, 72*time.Hour), alwaysUsed)
	w.ask(20*time.Hour, workspace.UpdateMove, workspace.MoveRequest{Subject: "ada"})
	w.setting(60*time.Hour, func() {
		w.fail = func(activity string, _ int) error {
			if activity == workspace.ActivityLookAtUse {
				return errors.New("the engine does not answer")
			}
			return nil
		}
	})
	moved := w.look(21 * time.Hour)
	before, warned, stopped := w.look(71*time.Hour+45*time.Minute), w.look(72*time.Hour-9*time.Minute), w.look(72*time.Hour+time.Minute)
	w.run(80 * time.Hour)
	require.Equal(t, nodeTwo, moved.Instance.Node)
	require.Empty(t, before.Watch.WarnedOf)
	require.Equal(t, workspace.StopLifetime, warned.Watch.WarnedOf)
	require.Equal(t, workspace.Stopped, stopped.Phase)
	require.Contains(t, stopped.Reason, "its lifetime of 72h was over: backed up")
	require.Equal(t, 2, w.called(workspace.ActivityStopInstance), "the move's and this one")
}

// What a person asks for during the warning is done first.
func TestCommandDuringTheWarning(t *testing.T) {
	w := idleWorld(t, stopping(2*time.Hour, 0), nil)
	w.ask(112*time.Minute, workspace.UpdateBackup, workspace.BackupRequest{})
	w.ask(115*time.Minute, workspace.UpdateMove, workspace.MoveRequest{Subject: "ada"})
	moved, on, stopped := w.look(119*time.Minute), w.look(3*time.Hour), w.look(115*time.Minute+2*time.Hour+time.Minute)
	w.run(6 * time.Hour)
	require.Equal(t, nodeTwo, moved.Instance.Node)
	require.Empty(t, moved.Watch.WarnedOf, "on another node it is as if it was just used")
	require.Equal(t, workspace.Running, on.Phase)
	require.Equal(t, workspace.Stopped, stopped.Phase)
}

// A start that no person asked for, after a move whose node was lost, goes on with the lifetime.
func TestMoveFromALostNodeGoesOnWithTheLifetime(t *testing.T) {
	w := idleWorld(t, stopping(0, 10*time.Hour), nil)
	lost := false
	w.fail = func(activity string, _ int) error {
		if activity != workspace.ActivityRemoveInstance || w.runs[nodeTwo+"/2"] {
			return nil
		}
		if !lost {
			lost = true
			w.lose(0, nodeOne)
		}
		return errors.New("the node does not answer")
	}
	w.ask(time.Hour, workspace.UpdateMove, workspace.MoveRequest{Subject: "ada"})
	moved, stopped := w.look(2*time.Hour), w.look(10*time.Hour+time.Minute)
	w.run(11 * time.Hour)
	require.Equal(t, nodeTwo, moved.Instance.Node)
	require.NotEmpty(t, recent(t, moved, workspace.OperationStart).Cause)
	require.Equal(t, workspace.Stopped, stopped.Phase)
}

// Neither a command nor the loss of the node waits for a node that takes its time to answer.
func TestNothingWaitsForTheAnswer(t *testing.T) {
	slow := func(t *testing.T) *world {
		w := idleWorld(t, stopping(2*time.Hour, 0), nil)
		w.environment.OnActivity(workspace.ActivityLookAtUse, mock.Anything, mock.Anything).After(time.Minute).Return(usedNow, nil)
		return w
	}
	const asked = 110*time.Minute + 10*time.Second
	t.Run("a command", func(t *testing.T) {
		w := slow(t)
		w.ask(asked, workspace.UpdateBackup, workspace.BackupRequest{})
		soon := w.look(asked + 10*time.Second)
		w.run(2 * time.Hour)
		require.Equal(t, workspace.OperationBackup, soon.Recent[len(soon.Recent)-1].Kind)
	})
	t.Run("a loss", func(t *testing.T) {
		w := slow(t)
		w.ask(time.Hour, workspace.UpdateBackup, workspace.BackupRequest{})
		w.setting(asked, func() { w.brake = workspace.Brake{Held: true, Why: "a storm"} })
		w.lose(asked, nodeOne)
		soon := w.look(asked + 10*time.Second)
		w.run(2 * time.Hour)
		require.Equal(t, workspace.Recovering, soon.Phase)
	})
}

// A person's start begins a lifetime anew, and ends what was said before it.
func TestStartBeginsALifetimeAnew(t *testing.T) {
	w := idleWorld(t, stopping(0, 10*time.Hour), nil)
	w.ask(4*time.Hour, workspace.UpdateKeep, workspace.KeepRequest{Subject: "ada", Seconds: 40 * 3600})
	w.ask(5*time.Hour, workspace.UpdateStop, workspace.StopRequest{})
	w.ask(6*time.Hour, workspace.UpdateStart, workspace.StartRequest{})
	on, stopped := w.look(15*time.Hour), w.look(16*time.Hour+time.Minute)
	w.run(17 * time.Hour)
	require.Equal(t, workspace.Running, on.Phase)
	require.Equal(t, workspace.Stopped, stopped.Phase)
}

func TestStopDuringTheWarning(t *testing.T) {
	w := idleWorld(t, stopping(2*time.Hour, 0), nil)
	w.ask(112*time.Minute, workspace.UpdateStop, workspace.StopRequest{Subject: "ada"})
	w.ask(115*time.Minute, workspace.UpdateStart, workspace.StartRequest{Subject: "ada"})
	again := w.look(3 * time.Hour)
	w.run(3*time.Hour + time.Minute)
	require.Equal(t, workspace.Running, again.Phase, "a start begins the time anew")
	require.Empty(t, again.Watch.WarnedOf)
}

// Invariant 1: what an idle stop cannot back up whole is kept, as after any stop, and it is not tried again by itself.
func TestIdleStopThatFailsKeepsTheContent(t *testing.T) {
	t.Run("a store denies access", func(t *testing.T) {
		w := idleWorld(t, stopping(time.Hour, 0), nil)
		w.inject(workspace.ActivityBackup, permanent(workspace.ErrorStoreDenied, "403"), false, 1)
		last := w.look(9 * time.Hour)
		w.run(10 * time.Hour)
		require.Equal(t, workspace.Blocked, last.Phase)
		require.Equal(t, workspace.ErrorStoreDenied, last.Block.Type)
		require.Equal(t, map[string]string{"node-1/1": "first+"}, w.content)
		require.Equal(t, 1, w.called(workspace.ActivityStopInstance))
	})
	t.Run("omissions", func(t *testing.T) {
		w := idleWorld(t, stopping(time.Hour, 0), nil)
		w.omitted = 2
		last := w.look(9 * time.Hour)
		w.run(10 * time.Hour)
		require.Equal(t, workspace.Blocked, last.Phase)
		require.Equal(t, workspace.ErrorOmissions, last.Block.Type)
		require.Equal(t, map[string]string{"node-1/1": "first+"}, w.content)
		require.Zero(t, w.called(workspace.ActivityRemoveInstance))
	})
}

// A hook may refuse it. It is warned of and tried again, an hour later at the earliest.
func TestHookRefusesAnIdleStop(t *testing.T) {
	w := idleWorld(t, hooked(stopping(2*time.Hour, 0)), nil)
	w.fail = func(activity string, _ int) error {
		if activity == workspace.ActivityStopInstance {
			return hookFailed(workspace.HookPreStop)
		}
		return nil
	}
	refused, warned := w.look(121*time.Minute), w.look(175*time.Minute)
	tried := 0
	w.at(179*time.Minute, func() { tried = w.called(workspace.ActivityStopInstance) })
	w.setting(179*time.Minute, func() { w.fail = nil })
	stopped := w.look(181 * time.Minute)
	w.run(5 * time.Hour)
	require.Equal(t, workspace.Running, refused.Phase)
	require.Empty(t, refused.Watch.WarnedOf)
	require.Equal(t, workspace.StopIdle, warned.Watch.WarnedOf)
	require.Equal(t, 1, tried)
	require.Equal(t, workspace.Stopped, stopped.Phase)
}

// Without a policy nobody is asked and nothing is stopped.
func TestNoPolicyStopsNothing(t *testing.T) {
	w := idleWorld(t, start(), nil)
	last := w.look(300 * 24 * time.Hour)
	w.run(301 * 24 * time.Hour)
	require.Equal(t, workspace.Running, last.Phase)
	require.Nil(t, last.Watch)
	require.Nil(t, ahead(last, last.Since))
	require.Zero(t, w.called(workspace.ActivityLookAtUse))
}

// A stopped workspace takes another policy when it is started.
func TestAnotherPolicyAtAStart(t *testing.T) {
	w := idleWorld(t, start(), nil)
	w.ask(time.Minute, workspace.UpdateStop, workspace.StopRequest{})
	w.ask(2*time.Minute, workspace.UpdateStart, stopping(time.Hour, 0))
	stopped := w.look(63 * time.Minute)
	w.ask(64*time.Minute, workspace.UpdateStart, start())
	last := w.look(100 * time.Hour)
	w.run(101 * time.Hour)
	require.Equal(t, workspace.Stopped, stopped.Phase)
	require.Equal(t, workspace.Running, last.Phase)
	require.Nil(t, last.Watch)
}

// A workflow that continues as new goes on with the warning, and with what a person said.
func TestContinueAsNewKeepsTheWatch(t *testing.T) {
	for _, keep := range []bool{false, true} {
		w := idleWorld(t, stopping(2*time.Hour, 0), nil)
		if keep {
			w.ask(112*time.Minute, workspace.UpdateKeep, workspace.KeepRequest{Subject: "ada", Seconds: 7200})
		}
		w.at(113*time.Minute, func() { w.environment.SetContinueAsNewSuggested(true) })
		w.ask(114*time.Minute, workspace.UpdateBackup, workspace.BackupRequest{}) // wakes it
		w.environment.ExecuteWorkflow(workspace.WorkspaceWorkflow, workspace.Input{Name: "atlas", Owner: "ada"})
		w.end()
		var again *workflow.ContinueAsNewError
		require.True(t, errors.As(w.environment.GetWorkflowError(), &again), "%v", w.environment.GetWorkflowError())
		var input workspace.Input
		require.NoError(t, converter.GetDefaultDataConverter().FromPayloads(again.Input, &input))

		next := newWorld(t)
		next.environment.SetStartTime(w.environment.Now())
		next.commits, next.records, next.versions, next.newestContent, next.content = w.commits, w.records, w.versions, w.newestContent, w.content
		next.started, next.runs, next.placed, next.next = w.started, w.runs, w.placed, w.next
		early, late := next.look(5*time.Minute), next.look(7*time.Minute)
		end := next.look(120 * time.Minute)
		next.at(121*time.Minute, next.environment.CancelWorkflow)
		next.environment.ExecuteWorkflow(workspace.WorkspaceWorkflow, input)
		next.end()
		require.Equal(t, workspace.Running, early.Phase)
		if keep {
			require.Equal(t, workspace.Running, late.Phase)
			require.Equal(t, "ada", late.Watch.Keep.By)
		} else {
			require.Equal(t, workspace.StopIdle, early.Watch.WarnedOf)
			require.Equal(t, workspace.Stopped, late.Phase)
		}
		require.Equal(t, workspace.Stopped, end.Phase)
		require.Empty(t, next.violated)
	}
}
