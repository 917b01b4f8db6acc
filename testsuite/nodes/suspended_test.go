package nodes_test

import (
	"fmt"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"holdfast/devstack"
	"holdfast/testsuite/stack"
	"holdfast/workspace"
)

// hold has the object store keep requests waiting that are about objects with text in their names, after the first few of
// them; with no text it lets all go on (gcsemulator.Hold).
func hold(t *testing.T, s *stack.Stack, text string, pass int64) {
	t.Helper()
	response, err := http.Post(fmt.Sprintf("%s/_hold?text=%s&pass=%d", s.StorageURL(), url.QueryEscape(text), pass), "", nil)
	require.NoError(t, err)
	require.NoError(t, response.Body.Close())
	require.Equal(t, http.StatusOK, response.StatusCode)
}

// held is how many requests wait at the object store.
func held(t *testing.T, s *stack.Stack) int64 {
	t.Helper()
	return s.Stats(t, "none/").Held
}

// TestSuspendedNodeCommitsLate proves A12 on the whole product: a node is suspended between its check of the lease and its
// commit, its workspace goes on elsewhere, and the commit is finished before the new instance's first snapshot. It is never the
// newest version, for nobody who asks; what the node had is saved beside the new instance's work, and not put over it.
func TestSuspendedNodeCommitsLate(t *testing.T) {
	t.Parallel()
	s := stack.New(t, "any", "process", func(o *devstack.StackOptions) { o.Storage.NoDirectory = true })
	stack.Must(t, s, 0, nil, "start", "web", "--from-dir", stack.RandomTree(t, 31, 6, 64<<10))
	node, content := stack.ContentDir(t, s, "web")
	other := otherNode(t, s, node)
	stack.Must(t, s, 0, nil, "backup", "web")
	was := stack.Show(t, s, "web")
	first := stack.Manifest(t, content)
	require.NoError(t, os.WriteFile(filepath.Join(content, "late.txt"), []byte("written after the first snapshot"), 0o644))
	old := stack.Manifest(t, content)

	// The second backup has asked everything that it asks before a commit, and its write is on its way to the store.
	commits := fmt.Sprintf("catalog/workspaces/%s/commits/%020d/", was.ID, was.Instance.Token)
	key := fmt.Sprintf("%s%020d.json", commits, was.Instance.Sequence+1)
	hold(t, s, key, 0)
	stack.Detached(t, s, "backup", "web")
	stack.WaitFor(t, "the commit is on its way", stack.Patience, func() bool { return held(t, s) > 0 })
	suspended := time.Now()
	require.NoError(t, s.Node(node).Pause())

	state := stack.WaitState(t, s, "web", "it goes on elsewhere", stack.Patience, func(state workspace.State) bool {
		return state.Phase == workspace.Running && state.Instance.Node == other && state.Operation == nil
	})
	t.Logf("it runs elsewhere %s after its node was suspended", time.Since(suspended).Round(time.Second))
	require.Equal(t, was.Head.Snapshot, state.Head.Snapshot)
	require.Equal(t, state.Instance.Token, state.Head.Token)
	require.Len(t, stack.Objects(t, s.Store(t, 0), commits), 1)

	hold(t, s, "", 0)
	stack.WaitFor(t, "the old node's commit has landed", stack.Patience, func() bool { return len(stack.Objects(t, s.Store(t, 0), key)) == 1 }) // while it stands still
	// Nobody follows it: not who begins with the workspace's newest version, read from the stores,
	stack.Must(t, s, 0, nil, "start", "twin", "--from-snapshot", "web")
	_, twin := stack.ContentDir(t, s, "twin")
	stack.RequireSame(t, first, twin)
	// not the list, where it stands as what it is,
	listed := stack.Must(t, s, 0, []string{workspace.Short(was.Head.Snapshot) + " *"}, "snapshots", "web").Stdout
	require.Contains(t, listed, "live")
	// and not what goes on with it.
	_, fresh := stack.ContentDir(t, s, "web")
	stack.RequireSame(t, first, fresh)
	require.NoError(t, os.WriteFile(filepath.Join(fresh, "new.txt"), []byte("of the new instance"), 0o644))
	newer := stack.Manifest(t, fresh)

	require.NoError(t, s.Node(node).Resume())
	saved := stack.WaitState(t, s, "web", "what its node had is saved", stack.Patience, func(state workspace.State) bool { return savedOf(state, was.Instance.Token) != "" })
	recovered := savedOf(saved, was.Instance.Token)
	require.Equal(t, other, saved.Instance.Node)
	require.Equal(t, state.Instance.Token, saved.Instance.Token)
	require.Equal(t, was.Head.Snapshot, saved.Head.Snapshot, "no snapshot was made since")
	stack.Must(t, s, 0, []string{"recovered", workspace.Short(recovered)}, "snapshots", "web")
	stack.RequireSame(t, newer, fresh)
	stack.RequireSame(t, old, restored(t, s, "web", recovered))

	// The stop makes the new instance's first snapshot, and the start compares with the store (invariant 4).
	stack.Must(t, s, 0, []string{"is stopped"}, "stop", "web")
	stack.Must(t, s, 0, nil, "start", "web", "--node", node)
	_, again := stack.ContentDir(t, s, "web")
	stack.RequireSame(t, newer, again)
}

// savedOf is the recovered snapshot of what an instance had, once it is on no node any more.
func savedOf(state workspace.State, token uint64) string {
	for _, saved := range state.Salvaged {
		if saved.Token == token {
			return saved.Snapshot
		}
	}
	return ""
}

// restored is what a download of a snapshot gives.
func restored(t *testing.T, s *stack.Stack, name, snapshot string) string {
	t.Helper()
	dir := t.TempDir()
	tarred := filepath.Join(dir, "content.tar")
	stack.Must(t, s, 0, nil, "download", name, "--snapshot", snapshot, "-o", tarred)
	into := filepath.Join(dir, "content")
	require.NoError(t, os.Mkdir(into, 0o700))
	output, err := exec.Command("tar", "-xpf", tarred, "-C", into).CombinedOutput()
	require.NoError(t, err, string(output))
	return into
}
