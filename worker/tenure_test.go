package worker

import (
	"context"
	"errors"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"holdfast/activities"
	"holdfast/testsuite/link"
	"holdfast/workspace"
)

// invariants 6 and 7: an agent that was cut off, and whose node is another machine's by the time it returns, stops taking work: it holds no
// lease, and what it was handed before it heard of that it refuses.
func TestAgentWhoseNameWasTaken(t *testing.T) {
	s := newStack(t)
	path, err := link.New(s.place.Address)
	require.NoError(t, err)
	defer func() { require.NoError(t, path.Close()) }()
	lease, stop := s.agent(func(c *NodeConfig) { c.Temporal.HostPort = path.Address() })
	live(t, lease)
	first := s.nodeIs(workspace.NodeReady)

	path.Cut()
	s.nodeIs(workspace.NodeLost)
	original := s.place
	s.place.DataDir, s.place.EngineRoot = filepath.Join(t.TempDir(), "node-1"), filepath.Join(t.TempDir(), "engine")
	second, stopSecond := s.agent()
	s.place = original
	live(t, second)
	taken := s.nodeIs(workspace.NodeReady)
	require.NotEqual(t, first.Info.Incarnation, taken.Info.Incarnation)

	path.Mend()
	for _, words := range []string{"another agent has taken this node", "another agent has this node: this one does nothing"} {
		require.Eventually(t, func() bool { return strings.Contains(s.logs.String(), words) }, patience, 50*time.Millisecond, words)
	}
	require.Error(t, lease.Check())
	live(t, second)
	require.Equal(t, taken.Epoch, s.nodeIs(workspace.NodeReady).Epoch, "the lease went to and fro")

	// What each would say to a task that it was handed.
	config := NodeConfig{Name: "node-1"}
	for incarnation, refused := range map[string]bool{first.Info.Incarnation: true, taken.Info.Incarnation: false} {
		a := &agent{config: config, lease: &activities.Lease{}, client: s.client, info: workspace.NodeInfo{Incarnation: incarnation}}
		err := a.entitled(t.Context())
		if refused {
			require.ErrorContains(t, err, taken.Info.Address)
		} else {
			require.NoError(t, err)
		}
	}
	stopSecond()
	stop()
}

// invariants 6 and 7: an agent takes nothing from its node's queues before the node is its own, however long another has it.
func TestAgentThatIsNotAdmittedTakesNothing(t *testing.T) {
	s := newStack(t)
	lease, stop := s.agent()
	live(t, lease)
	s.nodeIs(workspace.NodeReady)

	var began atomic.Int32
	second := &agent{
		config: NodeConfig{Name: "node-1", Config: Config{Logger: s.logger}}, lease: &activities.Lease{}, client: s.client,
		info: workspace.NodeInfo{Name: "node-1", Incarnation: "second", Recipient: "another machine's key", Address: "127.0.0.1:1"},
		hold: func() (*tenure, error) {
			began.Add(1)
			return nil, errors.New("it began to take work")
		},
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	served := make(chan error, 1)
	go func() { served <- second.serve(ctx, func() error { return nil }) }()
	require.Eventually(t, func() bool {
		return strings.Contains(s.logs.String(), "another agent has this node: this one does nothing")
	}, patience, 50*time.Millisecond)
	require.Zero(t, began.Load())
	cancel()
	require.NoError(t, <-served)
	require.Zero(t, began.Load())
	stop()
}
