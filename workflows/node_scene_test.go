package workflows_test

import (
	"time"

	"github.com/stretchr/testify/require"

	"holdfast/workspace"
)

// drainable begins a node's workflow and has the node take its lease.
func (s *scene) drainable() {
	s.t.Helper()
	begin(s, workspace.NodeWorkflow, workspace.NodeInput{Node: nodeOne})
	require.NoError(s.t, s.ask(workspace.UpdateRegister, workspace.RegisterRequest{Info: workspace.NodeInfo{
		Name: nodeOne, Incarnation: "first", Recipient: "age1" + nodeOne, Address: "127.0.0.1:1", Engine: "process", Version: "test",
	}}))
	s.leaseIs(1, workspace.NodeReady)
}

func (s *scene) order(kind workspace.NodeOrderKind) {
	s.t.Helper()
	require.NoError(s.t, s.ask(workspace.UpdateOrder, workspace.NodeOrder{Kind: kind, Subject: "ada", Drain: &workspace.DrainRequest{Deadline: time.Hour}}))
}

func (s *scene) drainIs(is func(*workspace.NodeDrain) bool) {
	s.t.Helper()
	require.Eventually(s.t, func() bool {
		var state workspace.NodeState
		value, err := s.client.QueryWorkflow(s.t.Context(), s.id, "", workspace.QueryState)
		return err == nil && value.Get(&state) == nil && is(state.Drain)
	}, 30*time.Second, 20*time.Millisecond)
}
