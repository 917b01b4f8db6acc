package nodes_test

import (
	"encoding/json"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"holdfast/devstack"
	"holdfast/testsuite/stack"
	"holdfast/workspace"
)

func threeNodes(o *devstack.StackOptions) { o.Nodes = []string{"node-1", "node-2", "node-3"} }

func nodeShow(t *testing.T, s *stack.Stack, name string) workspace.NodeState {
	t.Helper()
	var state workspace.NodeState
	r := stack.Must(t, s, 0, nil, "node", "show", name, "-o", "json")
	require.NoError(t, json.Unmarshal([]byte(r.Stdout), &state), r.Stdout)
	return state
}

// TestDrain drains a node of the real stack: a control worker is killed in the middle, and the command that follows; every
// workspace runs elsewhere with every file, none was moved twice, never more at once than was said, and nothing is left there.
func TestDrain(t *testing.T) {
	t.Parallel()
	s := stack.New(t, "any", "process", threeNodes)
	names := []string{"one", "two", "three", "four", "five", "six"}
	before := map[string]string{}
	for i, name := range names {
		stack.Must(t, s, 0, nil, "start", name, "--node", "node-1", "--from-dir", stack.RandomTree(t, int64(20+i), 6, 64<<10))
		_, content := stack.ContentDir(t, s, name)
		before[name] = stack.Manifest(t, content)
	}

	// Nowhere to go: it is said who stays, and what helps; and each runs on.
	stack.Must(t, s, 0, nil, "node", "cordon", "node-2")
	stack.Must(t, s, 0, nil, "node", "cordon", "node-3")
	stack.Must(t, s, 0, []string{"node-1 is cordoned"}, "node", "drain", "node-1", "--detach", "--parallel", "2")
	stack.WaitSays(t, s, []string{"being drained by tester", "0 moved", "6 still there", "was not moved and runs on", "holdfast node uncordon"}, "node", "show", "node-1")
	stack.Must(t, s, 0, []string{"its node is being drained by tester"}, "why", "one")
	stack.Must(t, s, 0, []string{"the drain of node node-1 has ended", "holdfast node uncordon node-1"}, "node", "drain", "--disable", "node-1")
	for _, name := range names {
		stack.WaitState(t, s, name, "it runs where it was", stack.Patience, func(state workspace.State) bool {
			return state.Operation == nil && state.Phase == workspace.Running && state.Instance.Node == "node-1" && state.Instance.Token == 1
		})
	}

	// There is room, but whoever follows goes away, and so does the control worker.
	stack.Must(t, s, 0, nil, "node", "uncordon", "node-2")
	stack.Must(t, s, 0, nil, "node", "uncordon", "node-3")
	following := exec.Command(stack.Binary(t), "node", "drain", "node-1", "--parallel", "2")
	following.Dir = s.Dir
	following.Env = []string{"HOME=" + s.Dir, "HOLDFAST_STATE_DIR=" + s.Dir, "HOLDFAST_OWNER=tester"}
	var said strings.Builder
	following.Stderr = &said
	require.NoError(t, following.Start())
	most := 0
	var state workspace.NodeState
	look := func() workspace.NodeState {
		if r := stack.CLI(t, s, "node", "show", "node-1", "-o", "json"); r.Code == 0 { // a worker that was just started may be late
			state = workspace.NodeState{}
			require.NoError(t, json.Unmarshal([]byte(r.Stdout), &state))
		}
		most = max(most, len(state.Drain.Moving))
		return state
	}
	stack.WaitFor(t, "something is being moved", stack.Patience, func() bool { d := look().Drain; return d.Active() && len(d.Moving) > 0 })
	require.NoError(t, following.Process.Signal(syscall.SIGINT))
	require.Error(t, following.Wait())
	require.Equal(t, 5, following.ProcessState.ExitCode(), said.String())
	require.Contains(t, strings.Join(strings.Fields(said.String()), " "), "the drain of node node-1 goes on")
	require.NoError(t, s.Control().Kill())
	require.NoError(t, s.Control().Start(t.Context()))
	stack.WaitFor(t, "the node is drained", stack.Patience, func() bool { return !look().Drain.Drained.IsZero() })
	stack.Must(t, s, 0, []string{"node node-1 is drained", "It stays cordoned"}, "node", "drain", "node-1")
	stack.Must(t, s, 0, []string{"drained"}, "node", "list")
	drain := nodeShow(t, s, "node-1").Drain
	require.Equal(t, len(names), drain.Moved)
	require.LessOrEqual(t, most, 2)
	require.Empty(t, drain.On)
	require.Zero(t, drain.LeftCount)
	for _, name := range names {
		state := stack.Show(t, s, name)
		require.Equal(t, workspace.Running, state.Phase)
		require.NotEqual(t, "node-1", state.Instance.Node)
		require.Equal(t, uint64(2), state.Instance.Token, "%s was moved once", name)
		_, content := stack.ContentDir(t, s, name)
		stack.RequireSame(t, before[name], content)
	}
	left, err := filepath.Glob(filepath.Join(s.NodeDir("node-1"), "workspaces", "*.2"))
	require.NoError(t, err)
	require.Empty(t, left)
	left, err = filepath.Glob(filepath.Join(s.NodeDir("node-1"), "workspaces", "*.1"))
	require.NoError(t, err)
	require.Empty(t, left, "nothing of them is on the node")

	// It is taken away. Nothing recovers, because nothing was there, and the drain says so.
	require.NoError(t, s.Node("node-1").Kill())
	stack.WaitFor(t, "the node is lost", stack.Patience, func() bool { return nodeShow(t, s, "node-1").Loss != nil })
	stack.Must(t, s, 0, []string{"it was drained, and is gone since"}, "node", "show", "node-1")
	for _, name := range names {
		require.Equal(t, uint64(2), stack.Show(t, s, name).Instance.Token)
	}
}

// TestDrainDeadline stops with a backup what could not be moved, when that is asked for, and drops nothing.
func TestDrainDeadline(t *testing.T) {
	t.Parallel()
	s := stack.New(t, "any", "process")
	stack.Must(t, s, 0, nil, "start", "web", "--node", "node-1", "--from-dir", stack.RandomTree(t, 31, 6, 64<<10))
	_, content := stack.ContentDir(t, s, "web")
	before := stack.Manifest(t, content)
	stack.Must(t, s, 0, nil, "node", "cordon", "node-2")
	began := time.Now()
	stack.Must(t, s, 0, []string{"node node-1 is drained: 0 moved, 1 gone and not running"},
		"node", "drain", "node-1", "--deadline", "5s", "--stop-at-deadline")
	require.Greater(t, time.Since(began), 5*time.Second)
	state := stack.Show(t, s, "web")
	require.Equal(t, workspace.Stopped, state.Phase)
	require.Equal(t, "final", state.Head.Kind)
	require.NoDirExists(t, content)
	stack.Must(t, s, 0, nil, "node", "uncordon", "node-2")
	stack.Must(t, s, 0, nil, "start", "web")
	node, content := stack.ContentDir(t, s, "web")
	require.Equal(t, "node-2", node)
	stack.RequireSame(t, before, content)
}
