package workflows_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/mock"
	"github.com/stretchr/testify/require"
	enumspb "go.temporal.io/api/enums/v1"
	"go.temporal.io/sdk/activity"
	"go.temporal.io/sdk/converter"
	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/testsuite"
	"go.temporal.io/sdk/workflow"

	"holdfast/workspace"
)

// agents is a pretended node: what its agent does with each lease that it is offered.
type agents struct {
	t           *testing.T
	environment *testsuite.TestWorkflowEnvironment
	script      []ending // of the offers, one after the other; later ones are held for ever
	offers      []time.Duration
	leases      []workspace.LeaseInput // of the offers that ended
	begin       time.Time

	mutex  sync.Mutex
	news   []workspace.NodeNews // that the node's workspaces were told
	newsAt []time.Duration
	drains []workspace.DrainInput // the rounds that were begun
	round  func(context.Context, workspace.DrainInput) (workspace.DrainResult, error)
}

// ending is how an offer ends.
type ending struct {
	after  time.Duration
	result workspace.LeaseResult
	err    error
	silent bool // nobody takes it
	late   bool // that it was taken is seen only after its end
}

const forever = 30 * 24 * time.Hour

func released(after time.Duration) ending {
	return ending{after: after, result: workspace.LeaseResult{Released: true}}
}

func beatsLost(after time.Duration) ending {
	return ending{after: after, err: temporal.NewHeartbeatTimeoutError(workspace.LeaseBeat{Epoch: 1})}
}

func notTaken() ending {
	return ending{after: 5 * time.Second, silent: true, err: temporal.NewTimeoutError(enumspb.TIMEOUT_TYPE_SCHEDULE_TO_START, nil)}
}

func newAgents(t *testing.T, script ...ending) *agents {
	a := &agents{t: t, environment: newEnvironment(), script: script}
	a.begin = a.environment.Now()
	a.environment.RegisterActivityWithOptions(func(context.Context) (workspace.ControlInfo, error) {
		return workspace.ControlInfo{VerifyKey: []byte("public")}, nil
	}, activity.RegisterOptions{Name: workspace.ActivityDescribeControl})
	a.environment.RegisterActivityWithOptions(func(_ context.Context, news workspace.NodeNews) (workspace.AnnounceResult, error) {
		a.mutex.Lock()
		defer a.mutex.Unlock()
		a.news = append(a.news, news)
		a.newsAt = append(a.newsAt, a.environment.Now().Sub(a.begin))
		return workspace.AnnounceResult{Told: 1}, nil
	}, activity.RegisterOptions{Name: workspace.ActivityAnnounceNode})
	a.environment.RegisterActivityWithOptions(func(ctx context.Context, input workspace.DrainInput) (workspace.DrainResult, error) {
		a.mutex.Lock()
		a.drains = append(a.drains, input)
		a.mutex.Unlock()
		if a.round == nil {
			return workspace.DrainResult{}, nil
		}
		return a.round(ctx, input)
	}, activity.RegisterOptions{Name: workspace.ActivityDrainNode})
	a.environment.RegisterActivityWithOptions(func(context.Context, workspace.LeaseInput) (workspace.LeaseResult, error) {
		return workspace.LeaseResult{}, errors.New("not mocked")
	}, activity.RegisterOptions{Name: workspace.ActivityHoldLease})
	a.environment.OnActivity(workspace.ActivityHoldLease, mock.Anything, mock.Anything).AfterFn(a.offered).Return(
		func(_ context.Context, lease workspace.LeaseInput) (workspace.LeaseResult, error) {
			e := a.ending(len(a.leases))
			a.leases = append(a.leases, lease)
			return e.result, e.err
		})
	return a
}

func (a *agents) ending(n int) ending {
	if n < len(a.script) {
		return a.script[n]
	}
	return ending{after: forever}
}

// offered is called when a lease is offered, and says how long it goes on.
func (a *agents) offered() time.Duration {
	e := a.ending(len(a.offers))
	a.offers = append(a.offers, a.environment.Now().Sub(a.begin))
	if !e.silent {
		at := 100 * time.Millisecond
		if e.late {
			at = e.after + 10*time.Millisecond
		}
		a.environment.RegisterDelayedCallback(func() {
			state := a.state()
			a.environment.SignalWorkflow(workspace.SignalLeaseTaken, workspace.LeaseTaken{Epoch: state.Epoch, Incarnation: state.Info.Incarnation})
		}, at)
	}
	return e.after
}

func (a *agents) state() workspace.NodeState {
	a.t.Helper()
	value, err := a.environment.QueryWorkflow(workspace.QueryState)
	require.NoError(a.t, err)
	var state workspace.NodeState
	require.NoError(a.t, value.Get(&state))
	return state
}

func (a *agents) look(at time.Duration) *workspace.NodeState {
	state := new(workspace.NodeState)
	a.environment.RegisterDelayedCallback(func() { *state = a.state() }, at)
	return state
}

func registration(incarnation string) workspace.RegisterRequest {
	return workspace.RegisterRequest{Info: workspace.NodeInfo{Name: "node-1", Incarnation: incarnation, Recipient: "age1node-1", Lock: "lock"}}
}

// register announces an agent at a time and returns the rejection, if any.
func (a *agents) register(at time.Duration, request workspace.RegisterRequest) *error {
	rejected := new(error)
	*rejected = errors.New("was never asked")
	a.environment.RegisterDelayedCallback(func() {
		a.environment.UpdateWorkflow(workspace.UpdateRegister, fmt.Sprint(at), &testsuite.TestUpdateCallback{
			OnAccept: func() { *rejected = nil }, OnReject: func(err error) { *rejected = err }, OnComplete: func(any, error) {},
		}, request)
	}, at)
	return rejected
}

func (a *agents) run(until time.Duration) {
	a.environment.RegisterDelayedCallback(a.environment.CancelWorkflow, until)
	a.environment.ExecuteWorkflow(workspace.NodeWorkflow, workspace.NodeInput{Node: "node-1"})
	require.True(a.t, a.environment.IsWorkflowCompleted())
}

func is(t *testing.T, state *workspace.NodeState, phase workspace.NodePhase, epoch uint64, reason string) {
	t.Helper()
	require.Equal(t, phase, state.Phase, "%+v", *state)
	require.Equal(t, epoch, state.Epoch)
	require.Contains(t, state.Reason, reason)
}

func TestNodeIsOfferedAndReady(t *testing.T) {
	a := newAgents(t)
	before := a.look(time.Second)
	a.register(2*time.Second, registration("one"))
	offered := a.look(2*time.Second + 50*time.Millisecond)
	ready := a.look(3 * time.Second)
	later := a.look(time.Hour)
	a.run(2 * time.Hour)
	is(t, before, workspace.NodeLost, 0, "")
	is(t, offered, workspace.NodeOffered, 1, "")
	is(t, ready, workspace.NodeReady, 1, "")
	is(t, later, workspace.NodeReady, 1, "")
	require.Len(t, a.offers, 1)
}

func TestNodeRegistrationIsChecked(t *testing.T) {
	a := newAgents(t)
	var refused []*error
	for i, change := range []func(*workspace.NodeInfo){
		func(i *workspace.NodeInfo) { i.Name = "node-2" },
		func(i *workspace.NodeInfo) { i.Name = "Not a name" },
		func(i *workspace.NodeInfo) { i.Incarnation = "" },
		func(i *workspace.NodeInfo) { i.Recipient = "" },
	} {
		request := registration("one")
		change(&request.Info)
		refused = append(refused, a.register(time.Duration(i+1)*time.Second, request))
	}
	state := a.look(10 * time.Second)
	a.run(time.Minute)
	for _, err := range refused {
		require.Error(t, *err)
		require.NotContains(t, (*err).Error(), "never asked")
	}
	is(t, state, workspace.NodeLost, 0, "")
	require.Empty(t, a.offers)
}

// DESIGN section 7: losing a lease is suspicion; it is offered again at once, with a higher epoch, and a node that takes
// it is ready as if nothing had been.
func TestNodeThatMissedItsBeatsIsOfferedAgain(t *testing.T) {
	a := newAgents(t, beatsLost(time.Minute), ending{after: forever})
	a.register(time.Second, registration("one"))
	suspect := a.look(time.Minute + time.Second + 50*time.Millisecond)
	again := a.look(time.Minute + 2*time.Second)
	a.run(time.Hour)
	is(t, suspect, workspace.NodeSuspect, 2, "timed out")
	is(t, again, workspace.NodeReady, 2, "")
	require.Equal(t, uint64(1), a.leases[0].Epoch)
	require.Equal(t, []byte("public"), a.leases[0].VerifyKey)
	require.Equal(t, 10*time.Second, a.leases[0].Timeout)
}

// Not taken in 15 s: lost. The offer is not repeated to nobody; the agent announces itself when it is back.
func TestNodeThatDoesNotTakeItsLeaseIsLost(t *testing.T) {
	a := newAgents(t, beatsLost(time.Minute), notTaken())
	a.register(time.Second, registration("one"))
	suspect := a.look(time.Minute + 4*time.Second)
	lost := a.look(time.Minute + 7*time.Second)
	still := a.look(time.Hour)
	a.register(time.Hour+time.Second, registration("one"))
	back := a.look(time.Hour + 2*time.Second)
	a.run(2 * time.Hour)
	is(t, suspect, workspace.NodeSuspect, 2, "timed out")
	is(t, lost, workspace.NodeLost, 2, "does not take its lease")
	is(t, still, workspace.NodeLost, 2, "")
	is(t, back, workspace.NodeReady, 3, "")
	require.Len(t, a.offers, 3)
}

// The server hands an offer to the poll of an agent that is frozen or cut off: for it the activity has started, and goes on.
func TestSuspectWhoseOfferIsSwallowedIsLost(t *testing.T) {
	a := newAgents(t)
	a.script = []ending{beatsLostOf(a, time.Minute, 51*time.Second), {after: forever, silent: true}}
	a.register(time.Second, registration("one"))
	suspect := a.look(time.Minute + 4*time.Second)
	lost := a.look(time.Minute + 7*time.Second)
	a.register(time.Hour, registration("one"))
	back := a.look(time.Hour + time.Second)
	a.run(2 * time.Hour)
	is(t, suspect, workspace.NodeSuspect, 2, "timed out")
	require.Nil(t, suspect.Loss)
	is(t, lost, workspace.NodeLost, 2, "does not take its lease")
	require.NotNil(t, lost.Loss)
	require.Zero(t, lost.AwayAt, "the control plane was there")
	is(t, back, workspace.NodeReady, 3, "")
	require.Nil(t, back.Loss)
}

// An agent that announces itself while its offer runs out is offered again at once.
func TestNodeThatAnnouncesItselfWhileTheOfferRunsOut(t *testing.T) {
	a := newAgents(t, notTaken())
	a.register(time.Second, registration("one"))
	a.register(4*time.Second, registration("one"))
	ready := a.look(7 * time.Second)
	a.run(time.Minute)
	is(t, ready, workspace.NodeReady, 2, "")
}

func TestNodeThatStopsIsLostAtOnce(t *testing.T) {
	a := newAgents(t, released(time.Minute))
	a.register(time.Second, registration("one"))
	stopped := a.look(time.Minute + 2*time.Second)
	a.register(2*time.Hour, registration("two"))
	again := a.look(2*time.Hour + time.Second)
	a.run(3 * time.Hour)
	is(t, stopped, workspace.NodeLost, 1, "its agent was stopped")
	is(t, again, workspace.NodeReady, 2, "")
	require.Equal(t, "two", again.Info.Incarnation)
}

// An agent announces itself every few seconds until it has its lease: the last announcement can come after the offer.
// It is not an announcement for the time after the stop.
func TestNodeThatStopsIsNotOfferedAgain(t *testing.T) {
	a := newAgents(t, released(time.Minute))
	a.register(time.Second, registration("one"))
	a.register(1050*time.Millisecond, registration("one"))
	stopped := a.look(2 * time.Minute)
	a.run(time.Hour)
	is(t, stopped, workspace.NodeLost, 1, "its agent was stopped")
	require.Len(t, a.offers, 1)
}

// That the lease was taken may be seen only after its end: the node is not ready then.
func TestNodeWhoseLeaseWasGivenBackAtOnce(t *testing.T) {
	for _, late := range []bool{false, true} {
		e := released(time.Second)
		e.late = late
		a := newAgents(t, e)
		a.register(time.Second, registration("one"))
		stopped := a.look(10 * time.Second)
		a.run(time.Minute)
		is(t, stopped, workspace.NodeLost, 1, "its agent was stopped")
	}
}

// A new start of the agent supersedes the old one at once: it does not wait for a time-out.
func TestNodeWhoseAgentStartedAgain(t *testing.T) {
	a := newAgents(t)
	a.register(time.Second, registration("one"))
	a.register(time.Minute, registration("two"))
	ready := a.look(time.Minute + time.Second)
	a.run(time.Hour)
	is(t, ready, workspace.NodeReady, 2, "")
	require.Equal(t, "two", ready.Info.Incarnation)
	require.Equal(t, time.Minute, a.offers[1])
}

// What an old epoch or an old start says changes nothing.
func TestNodeIgnoresOldSignals(t *testing.T) {
	silent := ending{after: forever, silent: true}
	a := newAgents(t, silent)
	a.register(time.Second, registration("two"))
	for i, signal := range []workspace.LeaseTaken{{Epoch: 0, Incarnation: "two"}, {Epoch: 1, Incarnation: "one"}, {Epoch: 2, Incarnation: "two"}} {
		a.environment.RegisterDelayedCallback(func() { a.environment.SignalWorkflow(workspace.SignalLeaseTaken, signal) }, time.Duration(i+2)*time.Second)
	}
	state := a.look(10 * time.Second)
	a.run(time.Minute)
	is(t, state, workspace.NodeOffered, 1, "")
}

// A lease that reached the end of its activity is given again, without a moment of suspicion.
func TestNodeRenewsItsLease(t *testing.T) {
	a := newAgents(t, ending{after: time.Hour})
	a.register(time.Second, registration("one"))
	ready := a.look(time.Hour + 3*time.Second)
	a.run(2 * time.Hour)
	is(t, ready, workspace.NodeReady, 2, "")
}

// Continue-as-new carries all that is known; the next run offers at once what has to be offered.
func TestNodeContinuesAsNew(t *testing.T) {
	for name, test := range map[string]struct {
		end     ending
		again   bool // the agent announces itself in the same moment
		phase   workspace.NodePhase
		offered bool // the next run offers without waiting for an announcement
	}{
		"renewed":                     {end: ending{after: time.Minute}, phase: workspace.NodeReady, offered: true},
		"timed out":                   {end: beatsLost(time.Minute), phase: workspace.NodeSuspect, offered: true},
		"stopped":                     {end: released(time.Minute), phase: workspace.NodeLost},
		"not taken":                   {end: notTaken(), phase: workspace.NodeLost},
		"not taken, but it announces": {end: notTaken(), again: true, phase: workspace.NodeOffered, offered: true},
	} {
		t.Run(name, func(t *testing.T) {
			a := newAgents(t, test.end)
			a.environment.SetContinueAsNewSuggested(true)
			a.register(time.Second, registration("one"))
			if test.again {
				a.register(4*time.Second, registration("one"))
			}
			a.environment.ExecuteWorkflow(workspace.NodeWorkflow, workspace.NodeInput{Node: "node-1"})
			var next *workflow.ContinueAsNewError
			require.ErrorAs(t, a.environment.GetWorkflowError(), &next)
			var input workspace.NodeInput
			require.NoError(t, converter.GetDefaultDataConverter().FromPayloads(next.Input, &input))
			require.Equal(t, "node-1", input.Node)
			require.Equal(t, test.phase, input.State.Phase)
			require.Equal(t, uint64(1), input.State.Epoch)
			require.Equal(t, "one", input.State.Info.Incarnation)

			b := newAgents(t)
			state := b.look(time.Second)
			b.environment.RegisterDelayedCallback(b.environment.CancelWorkflow, time.Minute)
			b.environment.ExecuteWorkflow(workspace.NodeWorkflow, input)
			if test.offered {
				is(t, state, workspace.NodeReady, 2, "")
			} else {
				is(t, state, workspace.NodeLost, 1, "")
				require.Empty(t, b.offers)
			}
		})
	}
}
