package testsuite_test

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
	"holdfast/workspace"
)

func threeNodes(o *devstack.StackOptions) { o.Nodes = []string{"node-1", "node-2", "node-3"} }

func nodeShow(t *testing.T, s *stack, name string) workspace.NodeState {
	t.Helper()
	var state workspace.NodeState
	r := must(t, s, 0, nil, "node", "show", name, "-o", "json")
	require.NoError(t, json.Unmarshal([]byte(r.stdout), &state), r.stdout)
	return state
}

// TestDrain drains a node of the real stack: a control worker is killed in the middle, and the command that follows; every
// workspace runs elsewhere with every file, none was moved twice, never more at once than was said, and nothing is left there.
func TestDrain(t *testing.T) {
	t.Parallel()
	s := newStack(t, "any", "process", threeNodes)
	names := []string{"one", "two", "three", "four", "five", "six"}
	before := map[string]string{}
	for i, name := range names {
		must(t, s, 0, nil, "start", name, "--node", "node-1", "--from-dir", randomTree(t, int64(20+i), 6, 64<<10))
		_, content := contentDir(t, s, name)
		before[name] = manifest(t, content)
	}

	// Nowhere to go: it is said who stays, and what helps; and each runs on.
	must(t, s, 0, nil, "node", "cordon", "node-2")
	must(t, s, 0, nil, "node", "cordon", "node-3")
	must(t, s, 0, []string{"node-1 is cordoned"}, "node", "drain", "node-1", "--detach", "--parallel", "2")
	waitSays(t, s, []string{"being drained by tester", "0 moved", "6 still there", "was not moved and runs on", "holdfast node uncordon"}, "node", "show", "node-1")
	must(t, s, 0, []string{"its node is being drained by tester"}, "why", "one")
	must(t, s, 0, []string{"the drain of node node-1 has ended", "holdfast node uncordon node-1"}, "node", "drain", "--disable", "node-1")
	for _, name := range names {
		waitState(t, s, name, "it runs where it was", patience, func(state workspace.State) bool {
			return state.Operation == nil && state.Phase == workspace.Running && state.Instance.Node == "node-1" && state.Instance.Token == 1
		})
	}

	// There is room, but whoever follows goes away, and so does the control worker.
	must(t, s, 0, nil, "node", "uncordon", "node-2")
	must(t, s, 0, nil, "node", "uncordon", "node-3")
	following := exec.Command(binary(t), "node", "drain", "node-1", "--parallel", "2")
	following.Dir = s.dir
	following.Env = []string{"HOME=" + s.dir, "HOLDFAST_STATE_DIR=" + s.dir, "HOLDFAST_OWNER=tester"}
	var said strings.Builder
	following.Stderr = &said
	require.NoError(t, following.Start())
	most := 0
	var state workspace.NodeState
	look := func() workspace.NodeState {
		if r := cli(t, s, "node", "show", "node-1", "-o", "json"); r.code == 0 { // a worker that was just started may be late
			state = workspace.NodeState{}
			require.NoError(t, json.Unmarshal([]byte(r.stdout), &state))
		}
		most = max(most, len(state.Drain.Moving))
		return state
	}
	waitFor(t, "something is being moved", patience, func() bool { d := look().Drain; return d.Active() && len(d.Moving) > 0 })
	require.NoError(t, following.Process.Signal(syscall.SIGINT))
	require.Error(t, following.Wait())
	require.Equal(t, 5, following.ProcessState.ExitCode(), said.String())
	require.Contains(t, strings.Join(strings.Fields(said.String()), " "), "the drain of node node-1 goes on")
	require.NoError(t, s.Control().Kill())
	require.NoError(t, s.Control().Start(t.Context()))
	waitFor(t, "the node is drained", patience, func() bool { return !look().Drain.Drained.IsZero() })
	must(t, s, 0, []string{"node node-1 is drained", "It stays cordoned"}, "node", "drain", "node-1")
	must(t, s, 0, []string{"drained"}, "node", "list")
	drain := nodeShow(t, s, "node-1").Drain
	require.Equal(t, len(names), drain.Moved)
	require.LessOrEqual(t, most, 2)
	require.Empty(t, drain.On)
	require.Zero(t, drain.LeftCount)
	for _, name := range names {
		state := show(t, s, name)
		require.Equal(t, workspace.Running, state.Phase)
		require.NotEqual(t, "node-1", state.Instance.Node)
		require.Equal(t, uint64(2), state.Instance.Token, "%s was moved once", name)
		_, content := contentDir(t, s, name)
		requireSame(t, before[name], content)
	}
	left, err := filepath.Glob(filepath.Join(s.NodeDir("node-1"), "workspaces", "*.2"))
	require.NoError(t, err)
	require.Empty(t, left)
	left, err = filepath.Glob(filepath.Join(s.NodeDir("node-1"), "workspaces", "*.1"))
	require.NoError(t, err)
	require.Empty(t, left, "nothing of them is on the node")

	// It is taken away. Nothing recovers, because nothing was there, and the drain says so.
	require.NoError(t, s.Node("node-1").Kill())
	waitFor(t, "the node is lost", patience, func() bool { return nodeShow(t, s, "node-1").Loss != nil })
	must(t, s, 0, []string{"it was drained, and is gone since"}, "node", "show", "node-1")
	for _, name := range names {
		require.Equal(t, uint64(2), show(t, s, name).Instance.Token)
	}
}

// TestDrainDeadline stops with a backup what could not be moved, when that is asked for, and drops nothing.
func TestDrainDeadline(t *testing.T) {
	t.Parallel()
	s := newStack(t, "any", "process")
	must(t, s, 0, nil, "start", "web", "--node", "node-1", "--from-dir", randomTree(t, 31, 6, 64<<10))
	_, content := contentDir(t, s, "web")
	before := manifest(t, content)
	must(t, s, 0, nil, "node", "cordon", "node-2")
	began := time.Now()
	must(t, s, 0, []string{"node node-1 is drained: 0 moved, 1 gone and not running"},
		"node", "drain", "node-1", "--deadline", "5s", "--stop-at-deadline")
	require.Greater(t, time.Since(began), 5*time.Second)
	state := show(t, s, "web")
	require.Equal(t, workspace.Stopped, state.Phase)
	require.Equal(t, "final", state.Head.Kind)
	require.NoDirExists(t, content)
	must(t, s, 0, nil, "node", "uncordon", "node-2")
	must(t, s, 0, nil, "start", "web")
	node, content := contentDir(t, s, "web")
	require.Equal(t, "node-2", node)
	requireSame(t, before, content)
}
