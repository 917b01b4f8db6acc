package nodes_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"holdfast/devstack"
	"holdfast/engine"
	"holdfast/testsuite/stack"
	"holdfast/workspace"
)

// another is an agent beside those of the stack, with a data directory that is given, and its log.
func another(t *testing.T, s *stack.Stack, node, dir string) (agent *devstack.Child, log func() string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "agent.log")
	file, err := os.Create(path)
	require.NoError(t, err)
	agent = &devstack.Child{
		Name: "another " + node, Path: stack.Binary(t), Dir: s.Dir, Log: file,
		Args: []string{"worker", "--node", node, "--data-dir", dir, "--log-level", "debug"},
		Env: []string{
			"HOME=" + s.Dir, "PATH=" + os.Getenv("PATH"), "HOLDFAST_STATE_DIR=" + s.Dir, "HOLDFAST_CONFIG=" + filepath.Join(s.Dir, "holdfast.yaml"),
			"TEMPORAL_ADDRESS=" + s.File().TemporalAddress, "TEMPORAL_NAMESPACE=" + s.File().Namespace,
		},
	}
	t.Cleanup(func() {
		require.NoError(t, agent.Kill())
		stack.EndInstances(t, dir)
		require.NoError(t, file.Close())
		if t.Failed() {
			t.Logf("%s:\n%s", agent.Name, stack.Tail(path, 60))
		}
	})
	require.NoError(t, agent.Start())
	return agent, func() string {
		text, err := os.ReadFile(path)
		require.NoError(t, err)
		return string(text)
	}
}

// refusedOften waits until an agent was refused the node several times more.
func refusedOften(t *testing.T, log func() string) {
	t.Helper()
	const words = "another agent still has this node"
	before := strings.Count(log(), words)
	stack.WaitFor(t, "it was refused several times more", stack.Patience, func() bool { return strings.Count(log(), words) >= before+3 })
}

// TestTwoAgentsOfOneName proves invariants 6 and 7 for two agents that were given one node's name, each with a disk of its own: one
// of them holds the lease, and all that is asked of the node is answered by it. The other says why it does nothing, takes no
// work and disturbs nothing, on the node or on its own disk. Only when the first is lost it gets the node, and then the first is the one that waits.
func TestTwoAgentsOfOneName(t *testing.T) {
	t.Parallel()
	s := stack.New(t, "any", "process")
	stack.Must(t, s, 0, nil, "start", "web", "--node", "node-1", "--from-dir", stack.RandomTree(t, 51, 6, 64<<10))
	was, held := stack.Show(t, s, "web"), nodeShow(t, s, "node-1")
	_, content := stack.ContentDir(t, s, "web")
	count := counts(t, s, "web", content)

	_, said := another(t, s, "node-1", filepath.Join(s.Dir, "second"))
	stack.WaitFor(t, "it says why it does nothing", stack.Patience, func() bool {
		return strings.Contains(said(), "another agent has this node: this one does nothing") && strings.Contains(said(), held.Info.Address)
	})
	for range 2 { // what one of its polls took would be answered for its own disk, which is empty
		refusedOften(t, said)
		stack.Must(t, s, 0, nil, "backup", "web")
	}
	now := nodeShow(t, s, "node-1")
	require.Equal(t, workspace.NodeReady, now.Phase)
	require.Equal(t, held.Epoch, now.Epoch, "the lease went to and fro")
	require.Equal(t, held.Info.Incarnation, now.Info.Incarnation)
	state := stack.Show(t, s, "web")
	require.Equal(t, was.Instance.Token, state.Instance.Token)
	require.Equal(t, was.Instance.Container, state.Instance.Container)
	grows(t, count)
	require.NotContains(t, said(), "lease taken")

	// The first is lost: its name may be used again, and the workspace goes on.
	require.NoError(t, s.Node("node-1").Kill())
	stack.WaitFor(t, "the second has the node", stack.Patience, func() bool {
		now = nodeShow(t, s, "node-1")
		return now.Phase == workspace.NodeReady && now.Info.Incarnation != held.Info.Incarnation
	})
	require.Contains(t, said(), "agent takes work")
	goesOn := func(state workspace.State) bool {
		return state.Phase == workspace.Running && state.Operation == nil && state.Instance.Token > was.Instance.Token
	}
	state = stack.WaitState(t, s, "web", "it goes on from its snapshot", stack.Patience, goesOn)
	stack.Must(t, s, 0, nil, "exec", "web", "--", "test", "-e", "count")

	// The first comes back: it waits, pauses what was replaced, and removes nothing of it.
	_, first := another(t, s, "node-1", s.NodeDir("node-1"))
	stack.WaitFor(t, "the first says why it does nothing", stack.Patience, func() bool {
		return strings.Contains(first(), "another agent has this node: this one does nothing")
	})
	old := engineOf(t, s, "node-1")
	stack.WaitFor(t, "what was replaced is paused", stack.Patience, func() bool { return statuses(t, old, was.ID)["1"] == engine.StatusPaused })
	stands(t, count)
	refusedOften(t, first)
	require.NotContains(t, first(), "lease taken")
	require.FileExists(t, filepath.Join(content, "count"))
	again := nodeShow(t, s, "node-1")
	require.Equal(t, now.Epoch, again.Epoch, "the lease went to and fro")
	require.Equal(t, workspace.NodeReady, again.Phase)
	require.Equal(t, state.Instance.Token, stack.WaitState(t, s, "web", "it runs on", stack.Patience, goesOn).Instance.Token)
}
