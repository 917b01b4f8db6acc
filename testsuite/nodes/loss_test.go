package nodes_test

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"holdfast/testsuite/stack"
	"holdfast/workspace"
)

// otherNode is the node of a stack of two that is not the given one.
func otherNode(t *testing.T, s *stack.Stack, node string) string {
	t.Helper()
	for _, other := range s.Nodes() {
		if other.Name() != node {
			return other.Name()
		}
	}
	t.Fatal("there is one node only")
	return ""
}

// TestLostNode proves B9 and A12 for a node whose agent dies for good: its workspaces go on elsewhere from their newest
// verified snapshot, and say what that cost; one that was never backed up waits for the node, and is found there when it
// returns; one that is being stopped waits too, and is stopped with its backup then.
func TestLostNode(t *testing.T) {
	t.Parallel()
	s := stack.New(t, "any", "process")
	stack.Must(t, s, 0, nil, "start", "web", "--from-dir", stack.RandomTree(t, 11, 6, 64<<10))
	node, content := stack.ContentDir(t, s, "web")
	other := otherNode(t, s, node)
	stack.Must(t, s, 0, nil, "start", "bare", "--node", node)
	stack.Must(t, s, 0, nil, "start", "halted", "--node", node, "--from-dir", stack.RandomTree(t, 12, 6, 64<<10))
	stack.Must(t, s, 0, nil, "backup", "web")
	before := stack.Manifest(t, content)
	require.NoError(t, os.WriteFile(filepath.Join(content, "late.txt"), []byte("written after the snapshot"), 0o644))
	_, bare := stack.ContentDir(t, s, "bare")
	require.NoError(t, os.WriteFile(filepath.Join(bare, "only.txt"), []byte("never backed up"), 0o644))
	was := stack.Show(t, s, "web")

	killed := time.Now()
	require.NoError(t, s.Node(node).Kill())
	operation := stack.Detached(t, s, "stop", "halted")
	state := stack.WaitState(t, s, "web", "it goes on elsewhere", stack.Patience, func(state workspace.State) bool {
		return state.Phase == workspace.Running && state.Instance.Node == other && state.Operation == nil
	})
	t.Logf("it runs elsewhere %s after the kill, of which %s were for the node to return", time.Since(killed).Round(time.Second), workspace.ReturnGrace(was, state.Recovery.LostAt).Round(time.Second))
	require.Greater(t, state.Instance.Token, was.Instance.Token)
	require.Equal(t, was.Head.Snapshot, state.Recovery.Snapshot)
	require.Positive(t, state.Recovery.LostWork)
	_, restored := stack.ContentDir(t, s, "web")
	stack.RequireSame(t, before, restored)
	require.FileExists(t, filepath.Join(content, "late.txt"), "what the node has stays there (invariant 1)")
	stack.Must(t, s, 0, []string{"node " + node + " was lost; it runs on node " + other, "at most the last"}, "why", "web")
	stack.Must(t, s, 0, []string{"web: node " + node + " was lost"}, "list")
	stack.Must(t, s, 0, []string{"recovered", "left"}, "show", "web")

	// A10: nothing was ever backed up, so that it waits for the node.
	blocked := stack.WaitState(t, s, "bare", "it waits for its node", stack.Patience, func(state workspace.State) bool { return state.Phase == workspace.Blocked })
	require.Equal(t, workspace.ErrorNodeLost, blocked.Block.Type)
	stack.Must(t, s, 0, []string{"nothing was ever backed up", node}, "why", "bare")
	stack.Must(t, s, 4, []string{"only that node has it"}, "start", "bare")
	// A1: a stop is a backup, so that it waits too.
	waiting := stack.Show(t, s, "halted")
	require.Equal(t, workspace.Stopping, waiting.Phase)
	stack.Must(t, s, 0, []string{"Node " + node + " is lost"}, "why", "halted")

	require.NoError(t, s.Node(node).Start(t.Context()))
	found := stack.WaitState(t, s, "bare", "it is found on its node", stack.Patience, func(state workspace.State) bool { return state.Phase == workspace.Running })
	require.Equal(t, blocked.Instance.Token, found.Instance.Token)
	require.FileExists(t, filepath.Join(bare, "only.txt"))
	stack.WaitState(t, s, "halted", "it is stopped with its backup", stack.Patience, func(state workspace.State) bool {
		over, done := stack.Ended(state, operation)
		return done && !over.Failed && state.Phase == workspace.Stopped && state.Kept == nil
	})
	state = stack.Show(t, s, "web")
	require.Equal(t, other, state.Instance.Node, "what went on elsewhere stays there")
	// A12: what the node still had is saved beside it, and offered.
	saved := stack.WaitState(t, s, "web", "what its node still had is saved, and gone from there", stack.Patience, func(state workspace.State) bool {
		return len(state.Salvaged) == 1 && len(state.Left) == 0
	})
	recovered := saved.Salvaged[0].Snapshot
	require.NotEqual(t, recovered, saved.Head.Snapshot)
	require.NoDirExists(t, filepath.Dir(content))
	stack.Must(t, s, 0, []string{"recovered", workspace.Short(recovered), "kept until a person removes it"}, "snapshots", "web")
	stack.Must(t, s, 0, []string{"saved", "is in the recovered snapshot " + workspace.Short(recovered), "stays in the stores until a person removes it"}, "show", "web")
	stack.Must(t, s, 0, []string{"holdfast download web --snapshot " + workspace.Short(recovered)}, "why", "web")
	tarred := filepath.Join(t.TempDir(), "recovered.tar")
	stack.Must(t, s, 0, nil, "download", "web", "--snapshot", workspace.Short(recovered), "-o", tarred)
	listed, err := exec.Command("tar", "-tf", tarred).CombinedOutput()
	require.NoError(t, err, string(listed))
	require.Contains(t, string(listed), "late.txt")
	stack.Must(t, s, 0, nil, "stop", "web")
	stack.Must(t, s, 0, nil, "start", "web", "--node", other)
	_, again := stack.ContentDir(t, s, "web")
	stack.RequireSame(t, before, again)
}

// TestFrozenTemporalMovesNothing proves that a pause of the control plane moves no workspace, with one other node to go
// to: every lease is overdue when it goes on, and that says nothing about the nodes.
func TestFrozenTemporalMovesNothing(t *testing.T) {
	t.Parallel()
	s := stack.New(t, "any", "process")
	var before []workspace.State
	for i, node := range s.Nodes() {
		name := []string{"one", "two"}[i]
		stack.Must(t, s, 0, nil, "start", name, "--node", node.Name())
		stack.Must(t, s, 0, nil, "backup", name)
		before = append(before, stack.Show(t, s, name))
	}
	require.NoError(t, s.Temporal().Pause())
	time.Sleep(60 * time.Second) // the pause is what is tested
	require.NoError(t, s.Temporal().Resume())
	// Longer than a loss takes to be decided, and than any of these is waited for.
	settle := time.Now().Add(90 * time.Second)
	for time.Now().Before(settle) {
		for _, was := range before {
			r := stack.CLI(t, s, "show", was.Name, "-o", "json")
			if r.Code != 0 {
				continue // the workers are not connected again yet
			}
			var now workspace.State
			require.NoError(t, json.Unmarshal([]byte(r.Stdout), &now))
			require.NotNil(t, now.Instance, r.Stdout)
			require.Equal(t, was.Instance.Token, now.Instance.Token, "%s was moved", was.Name)
		}
		time.Sleep(5 * time.Second) // a token only grows: none that was moved can be missed
	}
	for _, was := range before {
		now := stack.WaitState(t, s, was.Name, "it runs as before", stack.Patience, func(state workspace.State) bool {
			return state.Phase == workspace.Running && state.Operation == nil
		})
		require.Equal(t, was.Instance.Token, now.Instance.Token)
		require.Equal(t, was.Instance.Node, now.Instance.Node)
		stack.Must(t, s, 0, []string{"is stopped"}, "stop", was.Name)
	}
}
