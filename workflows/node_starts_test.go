package workflows_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"holdfast/workspace"
)

// A machine that is switched off and on within seconds is never lost, and nothing runs there any more: each start of its
// agent that takes the lease is told once, and the same one that missed its beats is not told again.
func TestNodeTellsOfEveryStartOfItsAgent(t *testing.T) {
	a := newAgents(t)
	a.register(time.Second, registration("one"))
	a.register(time.Minute, registration("two"))
	a.register(2*time.Minute, registration("two"))
	a.run(time.Hour)
	require.Equal(t, []workspace.NodeNews{
		{Node: "node-1", Epoch: 1, Incarnation: "one"}, {Node: "node-1", Epoch: 2, Incarnation: "two"},
	}, a.news)
	require.InDelta(t, 60.1, a.newsAt[1].Seconds(), 0.05, "when it has the lease, not when it announces itself")

	b := newAgents(t, beatsLost(time.Minute), ending{after: time.Hour})
	b.register(time.Second, registration("one"))
	b.run(3 * time.Hour)
	require.Len(t, b.news, 1, "%+v", b.news)

	// An agent that announced itself and never took a lease is no news.
	c := newAgents(t, notTaken())
	c.register(time.Second, registration("one"))
	c.run(4 * time.Second)
	require.Empty(t, c.news)
}

// A start of the agent is told after continue-as-new only if it was not before.
func TestNodeTellsOfAStartOnceOverContinueAsNew(t *testing.T) {
	for _, told := range []string{"one", ""} {
		a := newAgents(t)
		a.environment.RegisterDelayedCallback(a.environment.CancelWorkflow, time.Minute)
		a.environment.ExecuteWorkflow(workspace.NodeWorkflow, workspace.NodeInput{Node: "node-1", State: &workspace.NodeState{
			Info: registration("one").Info, Phase: workspace.NodeReady, Epoch: 4, Announced: workspace.NodeNews{Node: "node-1", Epoch: 4, Incarnation: told},
		}})
		if told != "" {
			require.Empty(t, a.news)
			continue
		}
		require.Equal(t, []workspace.NodeNews{{Node: "node-1", Epoch: 5, Incarnation: "one"}}, a.news)
	}
}
