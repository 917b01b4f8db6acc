package workflows_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/mock"
	"github.com/stretchr/testify/require"
	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/testsuite"

	"holdfast/workspace"
)

func (a *agents) lost(n int) workspace.NodeNews {
	a.t.Helper()
	a.mutex.Lock()
	defer a.mutex.Unlock()
	require.Greater(a.t, len(a.news), n, "%+v", a.news)
	return a.news[n]
}

// beatsLostOf is a lease whose last beat was sent at a time of the test's clock.
func beatsLostOf(a *agents, after, sent time.Duration) ending {
	return ending{after: after, err: temporal.NewHeartbeatTimeoutError(workspace.LeaseBeat{Epoch: 1, Sent: a.begin.Add(sent)})}
}

// DESIGN section 7: the loss is decided when the second offer was not taken; its workspaces are told then, with when the
// node was last heard of, and told again when it has its lease.
func TestNodeTellsItsWorkspaces(t *testing.T) {
	a := newAgents(t)
	a.script = []ending{beatsLostOf(a, time.Minute, 51*time.Second), notTaken()}
	a.register(time.Second, registration("one"))
	suspect := a.look(time.Minute + 4*time.Second)
	lost := a.look(time.Minute + 7*time.Second)
	a.register(time.Hour, registration("two"))
	back := a.look(time.Hour + time.Second)
	a.run(2 * time.Hour)

	require.Nil(t, suspect.Loss, "losing a lease is suspicion")
	require.NotNil(t, lost.Loss)
	require.Zero(t, lost.AwayAt, "it came in time: the control plane was there")
	require.Equal(t, a.begin.Add(51*time.Second).UTC(), lost.Loss.Heard.UTC())
	require.Equal(t, lost.Loss.At, lost.LostAt)
	require.Equal(t, workspace.NodeNews{Node: "node-1", Epoch: 1, Incarnation: "one"}, a.lost(0), "its first start")
	news := a.lost(1)
	require.True(t, news.Lost)
	require.Empty(t, news.Incarnation)
	require.Equal(t, uint64(2), news.Epoch)
	require.Equal(t, lost.Loss.Heard, news.Heard)
	require.InDelta(t, 66, a.newsAt[1].Seconds(), 1)
	require.Nil(t, back.Loss)
	require.Equal(t, workspace.NodeReady, back.Phase)
	require.Equal(t, workspace.NodeNews{Node: "node-1", Epoch: 3, Incarnation: "two"}, a.lost(2))
	require.WithinDuration(t, a.begin.Add(time.Hour), back.ReturnedAt, time.Second)
	require.Len(t, a.news, 3)
}

// A time-out that comes much later than it was due says that the control plane was away, not the node.
func TestNodeSeesThatTheControlPlaneWasAway(t *testing.T) {
	for late, away := range map[time.Duration]bool{2900 * time.Millisecond: false, 3100 * time.Millisecond: true, time.Minute: true} {
		a := newAgents(t)
		end := 2 * time.Minute
		a.script = []ending{beatsLostOf(a, end, end+time.Second-10*time.Second-late), {after: forever}}
		a.register(time.Second, registration("one"))
		state := a.look(end + 10*time.Second)
		a.run(time.Hour)
		require.Equal(t, workspace.NodeReady, state.Phase)
		require.Equal(t, away, !state.AwayAt.IsZero(), late)
		require.Nil(t, state.Loss)
		require.Equal(t, []workspace.NodeNews{{Node: "node-1", Epoch: 1, Incarnation: "one"}}, a.news, "nobody is told of a loss")
	}
}

// An agent that was stopped is given two minutes to be started again before anything follows.
func TestNodeThatStaysStoppedIsLost(t *testing.T) {
	for _, again := range []bool{false, true} {
		a := newAgents(t, released(time.Minute))
		a.register(time.Second, registration("one"))
		stopped := a.look(time.Minute + 119*time.Second)
		if again {
			a.register(2*time.Minute, registration("two"))
		}
		later := a.look(time.Minute + 125*time.Second)
		a.run(time.Hour)
		if again {
			require.Equal(t, workspace.NodeReady, later.Phase)
			require.Len(t, a.news, 2)
			require.False(t, a.lost(1).Lost)
			require.Equal(t, "two", a.lost(1).Incarnation)
			continue
		}
		require.Nil(t, stopped.Loss)
		require.NotNil(t, later.Loss)
		require.Equal(t, a.begin.Add(61*time.Second).UTC(), later.Loss.Heard.UTC())
		require.True(t, a.lost(1).Lost)
	}
}

// An agent that is there but does not take its lease is lost after the second offer.
func TestNodeThatAnnouncesItselfAndNeverTakesItsLease(t *testing.T) {
	a := newAgents(t, notTaken(), notTaken(), notTaken())
	for at := time.Second; at < time.Minute; at += 3 * time.Second {
		a.register(at, registration("one"))
	}
	once := a.look(8 * time.Second)
	twice := a.look(12 * time.Second)
	a.run(time.Hour)
	require.Nil(t, once.Loss)
	require.NotNil(t, twice.Loss)
}

// A loss that ends while the workspaces are told of it is not told to the end.
func TestNodeThatReturnsWhileItsWorkspacesAreTold(t *testing.T) {
	a := newAgents(t, beatsLost(time.Minute), notTaken())
	a.environment.OnActivity(workspace.ActivityAnnounceNode, mock.Anything, mock.Anything).After(time.Hour).Return(
		func(_ context.Context, news workspace.NodeNews) (workspace.AnnounceResult, error) {
			a.mutex.Lock()
			defer a.mutex.Unlock()
			a.news = append(a.news, news)
			return workspace.AnnounceResult{}, nil
		})
	a.register(time.Second, registration("one"))
	a.register(2*time.Minute, registration("one"))
	a.run(90 * time.Minute)
	require.False(t, a.lost(len(a.news)-1).Lost, "%+v", a.news)
}

// order gives a person's order at a time and returns the refusal, if any.
func (a *agents) order(at time.Duration, kind workspace.NodeOrderKind, subject string) *error {
	return a.give(at, workspace.NodeOrder{Kind: kind, Subject: subject})
}

func (a *agents) give(at time.Duration, order workspace.NodeOrder) *error {
	rejected := new(error)
	*rejected = errors.New("was never asked")
	a.environment.RegisterDelayedCallback(func() {
		a.environment.UpdateWorkflow(workspace.UpdateOrder, fmt.Sprint(order.Kind, at), &testsuite.TestUpdateCallback{
			OnAccept: func() { *rejected = nil }, OnReject: func(err error) { *rejected = err }, OnComplete: func(any, error) {},
		}, order)
	}, at)
	return rejected
}

// A person's word about a node is recorded, told to its workspaces, and ends when the node has its lease again.
func TestNodeOrders(t *testing.T) {
	a := newAgents(t, beatsLost(time.Minute), notTaken())
	a.register(time.Second, registration("one"))
	refused := []*error{
		a.order(2*time.Second, workspace.OrderDead, "ada"), a.order(2*time.Second, workspace.OrderProceed, "ada"),
		a.order(2*time.Second, workspace.OrderCordon, ""), a.order(2*time.Second, "explode", "ada"),
	}
	cordon := a.order(3*time.Second, workspace.OrderCordon, "ada")
	cordoned := a.look(4 * time.Second)
	a.order(5*time.Second, workspace.OrderUncordon, "ada")
	suspect := a.order(64*time.Second, workspace.OrderDead, "ada")
	proceed := a.order(2*time.Minute, workspace.OrderProceed, "ada")
	proceeding := a.look(2*time.Minute + time.Second)
	dead := a.order(3*time.Minute, workspace.OrderDead, "bob")
	later := a.look(4 * time.Minute)
	a.register(time.Hour, registration("two"))
	back := a.look(time.Hour + time.Second)
	a.run(2 * time.Hour)
	for _, err := range append(refused, suspect) {
		require.Error(t, *err)
		require.NotContains(t, (*err).Error(), "never asked")
	}
	require.NoError(t, *cordon)
	require.NoError(t, *proceed)
	require.NoError(t, *dead)
	require.Equal(t, "ada", cordoned.Cordoned)
	require.Equal(t, "ada", proceeding.Loss.Proceed)
	require.Empty(t, later.Cordoned)
	require.Equal(t, "bob", later.Loss.Dead)
	require.Contains(t, later.Reason, "bob said that it is dead")
	require.Nil(t, back.Loss)
	var words []string
	for _, news := range a.news {
		words = append(words, news.Word)
	}
	require.Equal(t, []string{"", "", "ada", "bobada", ""}, words)
}
