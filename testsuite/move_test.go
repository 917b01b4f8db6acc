package testsuite_test

import (
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"holdfast/workspace"
)

// TestMove is a move on the real stack: every file is there on the other node, the old one has nothing left, and a store
// that is away is found out while the workspace runs, and runs on.
func TestMove(t *testing.T) {
	t.Parallel()
	s := newStack(t, "any", "process")
	must(t, s, 0, nil, "start", "web", "--from-dir", fidelityTree(t), "--snapshot-every", "off")
	must(t, s, 0, nil, "exec", "web", "--", "sh", "-c", "echo edited > work.txt; rm empty.txt; mv plain.txt moved.txt")
	from, old := contentDir(t, s, "web")
	before := manifest(t, old)

	must(t, s, 0, []string{"web runs on node", "nobody could work in it for", "verified and committed"}, "move", "web")
	to, content := contentDir(t, s, "web")
	require.NotEqual(t, from, to)
	requireSame(t, before, content)
	require.NoDirExists(t, old)
	require.Equal(t, []workspace.Placed{{Node: to, Token: 2}}, show(t, s, "web").Placed)
	require.Equal(t, "edited\n", must(t, s, 0, nil, "exec", "web", "--", "cat", "work.txt").stdout)

	// To where it is, and to where nothing is.
	must(t, s, 4, []string{"it is running on node " + to, "nothing was changed"}, "move", "web", "--node", to)
	must(t, s, 4, []string{"was not moved and runs on", "nothing was changed"}, "move", "web", "--node", "nowhere")
	require.Equal(t, uint64(2), show(t, s, "web").Instance.Token)

	// One store is away: it is said, and the same instance runs on.
	must(t, s, 0, nil, "exec", "web", "--", "sh", "-c", "echo more > more.txt")
	require.NoError(t, s.Storage().Kill())
	must(t, s, 4, []string{"was not moved and runs on", "before these stores have its backup too: gs://"}, "move", "web")
	require.Equal(t, uint64(2), show(t, s, "web").Instance.Token)
	require.Equal(t, "more\n", must(t, s, 0, nil, "exec", "web", "--", "cat", "more.txt").stdout)

	// It is back, and so is the workspace, on its first node.
	require.NoError(t, s.Storage().Start(t.Context()))
	before = manifest(t, content)
	waitFor(t, "the store is used again and the workspace moves", patience, func() bool {
		return cli(t, s, "move", "web", "--node", from).code == 0
	})
	node, content := contentDir(t, s, "web")
	require.Equal(t, from, node)
	requireSame(t, before, content)
	require.FileExists(t, filepath.Join(content, "more.txt"))
}
