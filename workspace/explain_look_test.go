package workspace

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// While it is not known whether the instance runs, nothing says that it does.
func TestExplainWhatIsLookedFor(t *testing.T) {
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	state := State{Name: "atlas", Phase: Running, Instance: &Instance{Node: "node-1", Token: 3}, Look: &Look{Node: "node-1", Token: 3, Incarnation: "two"}}
	doing := func() string { return Explain(state, nil, now).Doing }
	require.Equal(t, "The agent of node node-1 was started again: whether the instance still runs is not known yet.", doing())
	state.Look.Why = "the engine does not answer"
	require.Contains(t, doing(), "because looking for it failed: the engine does not answer")
	state.Phase, state.Look.Next = Recovering, now.Add(20*time.Second)
	require.Contains(t, doing(), "It does not run: node node-1 was started again, and its instance has ended")
	require.Contains(t, doing(), "tried again in 20 s")
	state.Look.Token, state.Phase = 2, Running
	require.Nil(t, state.Looked(), "of an instance that is over")
	require.Equal(t, "Nothing: it is running.", doing())
}
