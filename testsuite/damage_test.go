package testsuite_test

import (
	"encoding/json"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"holdfast/testsuite/stack"
	"holdfast/workspace"
)

// bucketNames lists the objects of the emulated bucket below a prefix, through its own interface.
func bucketNames(t *testing.T, s *stack.Stack, prefix string) []string {
	t.Helper()
	var names []string
	for page := ""; ; {
		response, err := http.Get(s.StorageURL() + "/storage/v1/b/holdfast/o?prefix=" + url.QueryEscape(prefix) + "&pageToken=" + url.QueryEscape(page))
		require.NoError(t, err)
		var list struct {
			Items         []struct{ Name string }
			NextPageToken string
		}
		err = json.NewDecoder(response.Body).Decode(&list)
		response.Body.Close()
		require.NoError(t, err)
		for _, item := range list.Items {
			names = append(names, item.Name)
		}
		if page = list.NextPageToken; page == "" {
			return names
		}
	}
}

// loseFromBucket deletes objects from the emulated bucket behind the product's back.
func loseFromBucket(t *testing.T, s *stack.Stack, names []string) {
	t.Helper()
	require.NotEmpty(t, names, "there is nothing to lose")
	for _, name := range names {
		request, err := http.NewRequestWithContext(t.Context(), http.MethodDelete, s.StorageURL()+"/storage/v1/b/holdfast/o/"+url.PathEscape(name), nil)
		require.NoError(t, err)
		response, err := http.DefaultClient.Do(request)
		require.NoError(t, err)
		require.NoError(t, response.Body.Close())
		require.Less(t, response.StatusCode, 300, response.Status)
	}
}

// packs are the files of the repository's packs in the directory store.
func packs(t *testing.T, s *stack.Stack, id string) []string {
	t.Helper()
	packs, err := filepath.Glob(filepath.Join(s.Repository(id), "data", "*", "*"))
	require.NoError(t, err)
	require.NotEmpty(t, packs)
	return packs
}

// TestSnapshotGone proves A9 and A10: packs that one store has lost come from the other, and the person is told; the
// next stop stores them again; packs that both stores have lost or damaged make the start fail with nothing started,
// nothing half there and nothing removed.
func TestSnapshotGone(t *testing.T) {
	t.Parallel()
	s := stack.New(t, "all", "process")
	stack.Must(t, s, 0, nil, "start", "web", "--from-dir", stack.RandomTree(t, 7, 6, 1<<20))
	node, content := stack.ContentDir(t, s, "web")
	before := stack.Manifest(t, content)
	stack.Must(t, s, 0, nil, "stop", "web")
	state := stack.Show(t, s, "web")
	prefix := workspace.RepositoryPrefix(state.ID) + "/data/"
	require.Empty(t, instances(t, s))

	lost := bucketNames(t, s, prefix)
	loseFromBucket(t, s, lost)
	stack.Must(t, s, 0, []string{"were missing or damaged on gs://holdfast", "came from another store"}, "start", "web", "--not-node", node)
	node, content = stack.ContentDir(t, s, "web")
	stack.RequireSame(t, before, content)

	// A stop is done only when every store holds everything that the snapshot references, also what was stored long ago
	// (invariant 1).
	stack.Must(t, s, 0, []string{"is stopped"}, "stop", "web")
	require.Subset(t, bucketNames(t, s, prefix), lost, "a stop was done although a store lacks old packs")
	require.Empty(t, instances(t, s))

	// Now one store has lost them and the other has damaged ones of the right size.
	loseFromBucket(t, s, bucketNames(t, s, prefix))
	damaged := map[string][]byte{}
	for _, path := range packs(t, s, state.ID) {
		whole, err := os.ReadFile(path)
		require.NoError(t, err)
		damaged[path] = whole
		bad := append([]byte(nil), whole...)
		for i := 0; i < len(bad); i += 64 << 10 {
			bad[i] ^= 0x40
		}
		require.NoError(t, os.Chmod(path, 0o600))
		require.NoError(t, os.WriteFile(path, bad, 0o600))
	}
	stack.Must(t, s, 1, []string{"safe:", "mend:"}, "start", "web", "--not-node", node)
	state = stack.Show(t, s, "web")
	require.Equal(t, workspace.Blocked, state.Phase)
	require.Nil(t, state.Instance)
	require.Contains(t, []workspace.ErrorType{workspace.ErrorDamaged, workspace.ErrorSnapshotMissing}, state.Block.Type)
	require.Empty(t, instances(t, s), "something half restored is left") // invariant 5
	stack.Must(t, s, 0, []string{"Blocked"}, "why", "web")

	// The damage is mended from elsewhere (a copy of the store): nothing stands in the way of a start.
	for path, whole := range damaged {
		require.NoError(t, os.WriteFile(path, whole, 0o600))
	}
	stack.Must(t, s, 0, []string{"came from another store"}, "start", "web")
	_, content = stack.ContentDir(t, s, "web")
	stack.RequireSame(t, before, content)
}

// TestForeignIdentity proves invariant 5: content whose identity file names another instance is neither snapshotted nor
// removed.
func TestForeignIdentity(t *testing.T) {
	t.Parallel()
	s := stack.New(t, "any", "process")
	stack.Must(t, s, 0, nil, "start", "web", "--from-dir", stack.RandomTree(t, 8, 3, 1<<20))
	_, content := stack.ContentDir(t, s, "web")
	before := stack.Manifest(t, content)
	state := stack.Show(t, s, "web")
	path := filepath.Join(filepath.Dir(content), "identity.json")
	mine, err := os.ReadFile(path)
	require.NoError(t, err)
	foreign := strings.Replace(string(mine), state.ID, strings.Repeat("a", len(state.ID)), 1)
	require.NotEqual(t, string(mine), foreign)
	require.NoError(t, os.WriteFile(path, []byte(foreign), 0o600))

	stack.Must(t, s, 1, []string{"belongs to another workspace or instance", "safe:"}, "stop", "web")
	state = stack.Show(t, s, "web")
	require.Equal(t, workspace.Blocked, state.Phase)
	require.Equal(t, workspace.ErrorContentForeign, state.Block.Type)
	require.Nil(t, state.Head, "foreign content was snapshotted")
	stack.RequireSame(t, before, content)
	stack.Must(t, s, 4, nil, "delete", "web")
	stack.RequireSame(t, before, content)

	require.NoError(t, os.WriteFile(path, mine, 0o600))
	stack.Must(t, s, 0, []string{"is stopped"}, "stop", "web")
	require.NoDirExists(t, filepath.Dir(content))
	stack.Must(t, s, 0, nil, "start", "web")
	_, content = stack.ContentDir(t, s, "web")
	stack.RequireSame(t, before, content)
}
