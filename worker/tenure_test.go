package worker

import (
	"path/filepath"
	"strings"
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
