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

	"holdfast/workspace"
)

// bucketNames lists the objects of the emulated bucket below a prefix, through its own interface.
func (s *stack) bucketNames(t *testing.T, prefix string) []string {
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
func (s *stack) loseFromBucket(t *testing.T, names []string) {
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
func (s *stack) packs(t *testing.T, id string) []string {
	t.Helper()
	packs, err := filepath.Glob(filepath.Join(s.repository(id), "data", "*", "*"))
	require.NoError(t, err)
	require.NotEmpty(t, packs)
	return packs
}

// TestSnapshotGone proves A9 and A10: packs that one store has lost come from the other, and the person is told; the
// next stop stores them again; packs that both stores have lost or damaged make the start fail with nothing started,
// nothing half there and nothing removed.
func TestSnapshotGone(t *testing.T) {
	t.Parallel()
	s := newStack(t, "all", "process")
	must(t, s, 0, nil, "start", "web", "--from-dir", randomTree(t, 7, 6, 1<<20))
	node, content := contentDir(t, s, "web")
	before := manifest(t, content)
	must(t, s, 0, nil, "stop", "web")
	state := show(t, s, "web")
	prefix := workspace.RepositoryPrefix(state.ID) + "/data/"
	require.Empty(t, s.instances(t))

	lost := s.bucketNames(t, prefix)
	s.loseFromBucket(t, lost)
	must(t, s, 0, []string{"were missing or damaged on gs://holdfast", "came from another store"}, "start", "web", "--not-node", node)
	node, content = contentDir(t, s, "web")
	requireSame(t, before, content)

	// A stop is done only when every store holds everything that the snapshot references, also what was stored long ago
	// (invariant 1).
	must(t, s, 0, []string{"is stopped"}, "stop", "web")
	require.Subset(t, s.bucketNames(t, prefix), lost, "a stop was done although a store lacks old packs")
	require.Empty(t, s.instances(t))

	// Now one store has lost them and the other has damaged ones of the right size.
	s.loseFromBucket(t, s.bucketNames(t, prefix))
	damaged := map[string][]byte{}
	for _, path := range s.packs(t, state.ID) {
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
	must(t, s, 1, []string{"safe:", "mend:"}, "start", "web", "--not-node", node)
	state = show(t, s, "web")
	require.Equal(t, workspace.Blocked, state.Phase)
	require.Nil(t, state.Instance)
	require.Contains(t, []workspace.ErrorType{workspace.ErrorDamaged, workspace.ErrorSnapshotMissing}, state.Block.Type)
	require.Empty(t, s.instances(t), "something half restored is left") // invariant 5
	must(t, s, 0, []string{"Blocked"}, "why", "web")

	// The damage is mended from elsewhere (a copy of the store): nothing stands in the way of a start.
	for path, whole := range damaged {
		require.NoError(t, os.WriteFile(path, whole, 0o600))
	}
	must(t, s, 0, []string{"came from another store"}, "start", "web")
	_, content = contentDir(t, s, "web")
	requireSame(t, before, content)
}

// TestForeignIdentity proves invariant 5: content whose identity file names another instance is neither snapshotted nor
// removed.
func TestForeignIdentity(t *testing.T) {
	t.Parallel()
	s := newStack(t, "any", "process")
	must(t, s, 0, nil, "start", "web", "--from-dir", randomTree(t, 8, 3, 1<<20))
	_, content := contentDir(t, s, "web")
	before := manifest(t, content)
	state := show(t, s, "web")
	path := filepath.Join(filepath.Dir(content), "identity.json")
	mine, err := os.ReadFile(path)
	require.NoError(t, err)
	foreign := strings.Replace(string(mine), state.ID, strings.Repeat("a", len(state.ID)), 1)
	require.NotEqual(t, string(mine), foreign)
	require.NoError(t, os.WriteFile(path, []byte(foreign), 0o600))

	must(t, s, 1, []string{"belongs to another workspace or instance", "safe:"}, "stop", "web")
	state = show(t, s, "web")
	require.Equal(t, workspace.Blocked, state.Phase)
	require.Equal(t, workspace.ErrorContentForeign, state.Block.Type)
	require.Nil(t, state.Head, "foreign content was snapshotted")
	requireSame(t, before, content)
	must(t, s, 4, nil, "delete", "web")
	requireSame(t, before, content)

	require.NoError(t, os.WriteFile(path, mine, 0o600))
	must(t, s, 0, []string{"is stopped"}, "stop", "web")
	require.NoDirExists(t, filepath.Dir(content))
	must(t, s, 0, nil, "start", "web")
	_, content = contentDir(t, s, "web")
	requireSame(t, before, content)
}
