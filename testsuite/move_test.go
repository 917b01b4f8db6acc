package testsuite_test

import (
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"holdfast/testsuite/stack"
	"holdfast/workspace"
)

// TestMove is a move on the real stack: every file is there on the other node, the old one has nothing left, and a store
// that is away is found out while the workspace runs, and runs on.
func TestMove(t *testing.T) {
	t.Parallel()
	s := stack.New(t, "any", "process")
	stack.Must(t, s, 0, nil, "start", "web", "--from-dir", fidelityTree(t), "--snapshot-every", "off")
	stack.Must(t, s, 0, nil, "exec", "web", "--", "sh", "-c", "echo edited > work.txt; rm empty.txt; mv plain.txt moved.txt")
	from, old := stack.ContentDir(t, s, "web")
	before := stack.Manifest(t, old)

	stack.Must(t, s, 0, []string{"web runs on node", "nobody could work in it for", "verified and committed"}, "move", "web")
	to, content := stack.ContentDir(t, s, "web")
	require.NotEqual(t, from, to)
	stack.RequireSame(t, before, content)
	require.NoDirExists(t, old)
	require.Equal(t, []workspace.Placed{{Node: to, Token: 2}}, stack.Show(t, s, "web").Placed)
	require.Equal(t, "edited\n", stack.Must(t, s, 0, nil, "exec", "web", "--", "cat", "work.txt").Stdout)

	// To where it is, and to where nothing is.
	stack.Must(t, s, 4, []string{"it is running on node " + to, "nothing was changed"}, "move", "web", "--node", to)
	stack.Must(t, s, 4, []string{"was not moved and runs on", "nothing was changed"}, "move", "web", "--node", "nowhere")
	require.Equal(t, uint64(2), stack.Show(t, s, "web").Instance.Token)

	// One store is away: it is said, and the same instance runs on.
	stack.Must(t, s, 0, nil, "exec", "web", "--", "sh", "-c", "echo more > more.txt")
	require.NoError(t, s.Storage().Kill())
	stack.Must(t, s, 4, []string{"was not moved and runs on", "before these stores have its backup too: gs://"}, "move", "web")
	require.Equal(t, uint64(2), stack.Show(t, s, "web").Instance.Token)
	require.Equal(t, "more\n", stack.Must(t, s, 0, nil, "exec", "web", "--", "cat", "more.txt").Stdout)

	// It is back, and so is the workspace, on its first node.
	require.NoError(t, s.Storage().Start(t.Context()))
	before = stack.Manifest(t, content)
	stack.WaitFor(t, "the store is used again and the workspace moves", stack.Patience, func() bool {
		return stack.CLI(t, s, "move", "web", "--node", from).Code == 0
	})
	node, content := stack.ContentDir(t, s, "web")
	require.Equal(t, from, node)
	stack.RequireSame(t, before, content)
	require.FileExists(t, filepath.Join(content, "more.txt"))
}
