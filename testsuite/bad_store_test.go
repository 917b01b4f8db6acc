package testsuite_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"holdfast/workspace"
)

// TestStartFromADamagedRepository proves that a repository whose config cannot be read is never gone on without: a start
// waits for a person, leaves nothing half there, changes no store, and goes on when the config is back.
func TestStartFromADamagedRepository(t *testing.T) {
	t.Parallel()
	s := newStack(t, "all", "process")
	tree := randomTree(t, 11, 5, 64<<10)
	must(t, s, 0, nil, "start", "web", "--from-dir", tree)
	_, content := contentDir(t, s, "web")
	before := manifest(t, content)
	must(t, s, 0, nil, "stop", "web")
	state := show(t, s, "web")

	config := workspace.RepositoryPrefix(state.ID) + "/config"
	good := object(t, s.store(t, 0), config)
	bad := append([]byte(nil), good...)
	bad[len(bad)/2] ^= 1
	for i := range s.File().Stores {
		replace(t, s.store(t, i), config, bad)
	}
	must(t, s, 1, []string{"config", "safe:", "mend:"}, "start", "web")
	blocked := show(t, s, "web")
	require.Equal(t, workspace.Blocked, blocked.Phase)
	require.Equal(t, workspace.ErrorDamaged, blocked.Block.Type)
	require.Nil(t, blocked.Instance)
	require.Equal(t, state.Head.Snapshot, blocked.Head.Snapshot)
	s.nothingHalf(t)

	for i := range s.File().Stores {
		require.Equal(t, bad, object(t, s.store(t, i), config), "it must not be written anew by itself")
		replace(t, s.store(t, i), config, good)
	}
	must(t, s, 0, nil, "start", "web")
	_, content = contentDir(t, s, "web")
	requireSame(t, before, content)
}

// nothingHalf wants no content on any node.
func (s *stack) nothingHalf(t *testing.T) {
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
	s := newStack(t, "all", "process")
	must(t, s, 0, nil, "start", "web", "--from-dir", randomTree(t, 12, 5, 64<<10))
	_, content := contentDir(t, s, "web")
	before := manifest(t, content)

	directory, aside := filepath.Join(s.dir, "store"), filepath.Join(s.dir, "store.unmounted")
	require.NoError(t, os.Rename(directory, aside))
	kept := manifest(t, aside)
	must(t, s, 1, []string{"file://" + directory, "safe:", "mend:", "kept on node"}, "stop", "web")
	state := show(t, s, "web")
	require.Equal(t, workspace.Blocked, state.Phase)
	require.Equal(t, workspace.ErrorStoreMissing, state.Block.Type)
	require.NoDirExists(t, directory, "a store that is not there must not be made: its disk may be unmounted")
	requireSame(t, kept, aside)
	_, content = contentDir(t, s, "web")
	requireSame(t, before, content)
	// Nor by who asks what is wrong.
	must(t, s, 1, []string{"file://" + directory, "mend:"}, "doctor")
	require.NoDirExists(t, directory)

	require.NoError(t, os.Rename(aside, directory))
	must(t, s, 0, []string{"is stopped"}, "stop", "web")
	require.NoDirExists(t, filepath.Dir(content))
	must(t, s, 0, nil, "start", "web")
	_, content = contentDir(t, s, "web")
	requireSame(t, before, content)

	// A control worker that is told of a bucket that is not there does not begin, and says which.
	alone(t, []string{"HOLDFAST_STATE_DIR=" + s.dir, "HOLDFAST_STORE=gs://nobucket", "HOLDFAST_MASTER_KEY=" + s.File().MasterKey,
		"HOLDFAST_GCS_ENDPOINT=" + s.StorageURL()},
		"worker", "--control").wants(t, 1, "gs://nobucket")
}
