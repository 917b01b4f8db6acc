package testsuite_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"holdfast/testsuite/stack"
	"holdfast/workspace"
)

// TestStartFromADamagedRepository proves that a repository whose config cannot be read is never gone on without: a start
// waits for a person, leaves nothing half there, changes no store, and goes on when the config is back.
func TestStartFromADamagedRepository(t *testing.T) {
	t.Parallel()
	s := stack.New(t, "all", "process")
	tree := stack.RandomTree(t, 11, 5, 64<<10)
	stack.Must(t, s, 0, nil, "start", "web", "--from-dir", tree)
	_, content := stack.ContentDir(t, s, "web")
	before := stack.Manifest(t, content)
	stack.Must(t, s, 0, nil, "stop", "web")
	state := stack.Show(t, s, "web")

	config := workspace.RepositoryPrefix(state.ID) + "/config"
	good := stack.Object(t, s.Store(t, 0), config)
	bad := append([]byte(nil), good...)
	bad[len(bad)/2] ^= 1
	for i := range s.File().Stores {
		replace(t, s.Store(t, i), config, bad)
	}
	stack.Must(t, s, 1, []string{"config", "safe:", "mend:"}, "start", "web")
	blocked := stack.Show(t, s, "web")
	require.Equal(t, workspace.Blocked, blocked.Phase)
	require.Equal(t, workspace.ErrorDamaged, blocked.Block.Type)
	require.Nil(t, blocked.Instance)
	require.Equal(t, state.Head.Snapshot, blocked.Head.Snapshot)
	nothingHalf(t, s)

	for i := range s.File().Stores {
		require.Equal(t, bad, stack.Object(t, s.Store(t, i), config), "it must not be written anew by itself")
		replace(t, s.Store(t, i), config, good)
	}
	stack.Must(t, s, 0, nil, "start", "web")
	_, content = stack.ContentDir(t, s, "web")
	stack.RequireSame(t, before, content)
}

// nothingHalf wants no content on any node.
func nothingHalf(t *testing.T, s *stack.Stack) {
	t.Helper()
	for _, node := range s.Nodes() {
		entries, err := os.ReadDir(filepath.Join(s.NodeDir(node.Name()), "workspaces"))
		require.NoError(t, err)
		require.Empty(t, entries, "something is left on %s", node.Name())
	}
}

// TestStoreThatDoesNotExist proves that a store that is not there (a bucket removed, a disk not mounted) is named, is not
// made anew by itself, and blocks with the content kept; when it is there again the stop goes through.
func TestStoreThatDoesNotExist(t *testing.T) {
	t.Parallel()
	s := stack.New(t, "all", "process")
	stack.Must(t, s, 0, nil, "start", "web", "--from-dir", stack.RandomTree(t, 12, 5, 64<<10))
	_, content := stack.ContentDir(t, s, "web")
	before := stack.Manifest(t, content)

	directory, aside := filepath.Join(s.Dir, "store"), filepath.Join(s.Dir, "store.unmounted")
	require.NoError(t, os.Rename(directory, aside))
	kept := stack.Manifest(t, aside)
	stack.Must(t, s, 1, []string{"file://" + directory, "safe:", "mend:", "kept on node"}, "stop", "web")
	state := stack.Show(t, s, "web")
	require.Equal(t, workspace.Blocked, state.Phase)
	require.Equal(t, workspace.ErrorStoreMissing, state.Block.Type)
	require.NoDirExists(t, directory, "a store that is not there must not be made: its disk may be unmounted")
	stack.RequireSame(t, kept, aside)
	_, content = stack.ContentDir(t, s, "web")
	stack.RequireSame(t, before, content)
	// Nor by who asks what is wrong.
	stack.Must(t, s, 1, []string{"file://" + directory, "mend:"}, "doctor")
	require.NoDirExists(t, directory)

	require.NoError(t, os.Rename(aside, directory))
	stack.Must(t, s, 0, []string{"is stopped"}, "stop", "web")
	require.NoDirExists(t, filepath.Dir(content))
	stack.Must(t, s, 0, nil, "start", "web")
	_, content = stack.ContentDir(t, s, "web")
	stack.RequireSame(t, before, content)

	// A control worker that is told of a bucket that is not there does not begin, and says which.
	alone(t, []string{"HOLDFAST_STATE_DIR=" + s.Dir, "HOLDFAST_STORE=gs://nobucket", "HOLDFAST_MASTER_KEY=" + s.File().MasterKey,
		"HOLDFAST_GCS_ENDPOINT=" + s.StorageURL()},
		"worker", "--control").Wants(t, 1, "gs://nobucket")
}
