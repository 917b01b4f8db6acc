package nodes_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"holdfast/activities"
	"holdfast/devstack"
	"holdfast/testsuite/stack"
	"holdfast/workspace"
)

// sharedStack is a stack whose nodes reach one shared volume, and pause what runs on them soon.
func sharedStack(t *testing.T, engine string) (s *stack.Stack, volume, dir string) {
	t.Helper()
	dir = t.TempDir()
	volume, _, err := activities.MakeShared(dir)
	require.NoError(t, err)
	s = stack.New(t, "any", engine, func(options *devstack.StackOptions) {
		plain := options.Roles.Node
		options.Roles.Node = func(file devstack.StackFile, node, data string) devstack.Command {
			command := plain(file, node, data)
			command.Args = append(command.Args, "--shared-volumes", dir, "--pause-after", "10s")
			return command
		}
	})
	return s, volume, dir
}

// onVolume is where the workspace's content is on the shared volume.
func onVolume(dir string, state workspace.State) string {
	return filepath.Join(dir, "workspaces", workspace.InstanceName(state.ID, state.Instance.Token), "content")
}

// TestSharedVolumeSurvivesItsNode proves A5: a node dies with everything that runs on it, and another goes on with the very same
// files, also those that were never backed up. Nothing is restored and nothing is lost; what the first had is forgotten when it returns.
func TestSharedVolumeSurvivesItsNode(t *testing.T) {
	t.Parallel()
	s, volume, dir := sharedStack(t, "process")
	stack.Must(t, s, 0, nil, "start", "web", "--volume", "shared", "--from-dir", stack.RandomTree(t, 41, 8, 256<<10))
	state := stack.Show(t, s, "web")
	node := state.Instance.Node
	require.Equal(t, volume, state.Instance.Volume)
	stack.Must(t, s, 0, []string{"shared, on " + volume}, "show", "web")
	stack.Must(t, s, 0, []string{"shared volume", volume + " on " + dir}, "node", "show", node)
	require.NoError(t, os.WriteFile(filepath.Join(onVolume(dir, state), "uncommitted"), []byte("never backed up"), 0o640))
	before := stack.Manifest(t, onVolume(dir, state))

	require.NoError(t, s.Node(node).Kill())
	killInstance(t, s, state)
	stack.WaitSays(t, s, []string{"guard process of node " + node}, "why", "web")
	after := stack.WaitState(t, s, "web", "another node goes on with it", stack.Patience, func(state workspace.State) bool {
		return state.Phase == workspace.Running && state.Instance.Node != node && state.Operation == nil
	})
	stack.RequireSame(t, before, onVolume(dir, after))
	require.Equal(t, volume, after.Instance.Volume)
	require.Zero(t, after.Recovery.LostWork)
	require.Empty(t, s.StoredNames(t, after.ID, "/snapshots/"), "it was never backed up")
	stack.Must(t, s, 0, []string{"nothing was lost"}, "why", "web")

	require.NoError(t, s.Node(node).Start(t.Context()))
	stack.WaitState(t, s, "web", "what the first node had is forgotten", stack.Patience, func(state workspace.State) bool { return len(state.Left) == 0 })
	require.Empty(t, instancesOf(t, s, node))
	stack.RequireSame(t, before, onVolume(dir, after))
	stack.Must(t, s, 0, nil, "move", "web", "--node", node)
	moved := stack.Show(t, s, "web")
	require.Equal(t, node, moved.Instance.Node)
	stack.RequireSame(t, before, onVolume(dir, moved))
	require.Empty(t, s.StoredNames(t, after.ID, "/snapshots/"), "a move needs no backup")
	stack.Must(t, s, 0, nil, "stop", "web")
	entries, err := os.ReadDir(filepath.Join(dir, "workspaces"))
	require.NoError(t, err)
	require.Empty(t, entries)
	stack.Must(t, s, 0, nil, "start", "web")
	stack.RequireSame(t, before, onVolume(dir, stack.Show(t, s, "web")))
}

// TestFrozenAgentOfASharedVolume proves A12 for content that two nodes reach: an agent is frozen and what it runs works on. Nobody
// else is at work on the files before that stands still, and it never works on again.
func TestFrozenAgentOfASharedVolume(t *testing.T) {
	t.Parallel()
	s, _, dir := sharedStack(t, "process")
	stack.Must(t, s, 0, nil, "start", "web", "--volume", "shared")
	state := stack.Show(t, s, "web")
	node := state.Instance.Node
	stack.Must(t, s, 0, nil, "exec", "web", "--", "sh", "-c", "(while :; do echo old >> count; sleep 0.05; done) </dev/null >/dev/null 2>&1 &")
	lines := func(state workspace.State) []string {
		text, err := os.ReadFile(filepath.Join(onVolume(dir, state), "count"))
		if err != nil {
			return nil
		}
		return strings.Fields(string(text))
	}
	grows(t, func() int64 { return int64(len(lines(state))) })

	require.NoError(t, s.Node(node).Pause())
	after := stack.WaitState(t, s, "web", "another node goes on with it", stack.Patience, func(state workspace.State) bool {
		return state.Phase == workspace.Running && state.Instance.Node != node && state.Operation == nil
	})
	atTakeOver := len(lines(after))
	stands(t, func() int64 { return int64(len(lines(after))) })
	stack.Must(t, s, 0, nil, "exec", "web", "--", "sh", "-c", "(while :; do echo new >> count; sleep 0.05; done) </dev/null >/dev/null 2>&1 &")
	grows(t, func() int64 { return int64(len(lines(after))) })

	require.NoError(t, s.Node(node).Resume())
	stack.WaitState(t, s, "web", "what the first node had is forgotten", stack.Patience, func(state workspace.State) bool { return len(state.Left) == 0 })
	require.Empty(t, instancesOf(t, s, node))
	grows(t, func() int64 { return int64(len(lines(after))) })
	written := lines(after)
	for i, word := range written {
		want := "old"
		if i >= atTakeOver {
			want = "new"
		}
		require.Equal(t, want, word, "line %d of %d; %d at the take-over", i, len(written), atTakeOver)
	}
}
