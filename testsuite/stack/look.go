package stack

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/http"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"holdfast/storage"
	"holdfast/storage/gcsemulator"
	"holdfast/workspace"
)

// Place is where a workspace's content is on this machine, from its instance or the content that was kept; empty
// when no node holds any.
func (s *Stack) Place(state workspace.State) (node, dir string) {
	var token uint64
	switch {
	case state.Instance != nil:
		node, token = state.Instance.Node, state.Instance.Token
	case state.Kept != nil:
		node, token = state.Kept.Node, state.Kept.Token
	default:
		return "", ""
	}
	return node, filepath.Join(s.NodeDir(node), "workspaces", workspace.InstanceName(state.ID, token))
}

// ContentDir is the directory that the workspace's instance sees as /workspace.
func ContentDir(t *testing.T, s *Stack, name string) (node, dir string) {
	t.Helper()
	node, dir = s.Place(Show(t, s, name))
	require.NotEmpty(t, node, "no node holds content of %s", name)
	return node, filepath.Join(dir, "content")
}

// Stats is what the object store has counted.
func (s *Stack) Stats(t *testing.T, prefix string) gcsemulator.Stats {
	t.Helper()
	var stats gcsemulator.Stats
	response, err := http.Get(s.StorageURL() + "/_stats?prefix=" + prefix)
	require.NoError(t, err)
	defer response.Body.Close()
	require.Equal(t, http.StatusOK, response.StatusCode)
	require.NoError(t, json.NewDecoder(response.Body).Decode(&stats))
	return stats
}

// Throttle sets the object store's speed for uploads; 0 is none.
func (s *Stack) Throttle(t *testing.T, bytesPerSecond int64) {
	t.Helper()
	response, err := http.Post(fmt.Sprintf("%s/_throttle?bytes_per_second=%d", s.StorageURL(), bytesPerSecond), "", nil)
	require.NoError(t, err)
	require.NoError(t, response.Body.Close())
	require.Equal(t, http.StatusOK, response.StatusCode)
}

// Repository is the directory of the workspace's repository in the directory store.
func (s *Stack) Repository(id string) string {
	return filepath.Join(s.Dir, "store", filepath.FromSlash(workspace.RepositoryPrefix(id)))
}

// StoredNames lists what the directory store holds that has all these words in its path.
func (s *Stack) StoredNames(t *testing.T, words ...string) []string {
	t.Helper()
	root := filepath.Join(s.Dir, "store")
	var found []string
	require.NoError(t, filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) && path != root {
			return nil // it went meanwhile
		}
		if err != nil || entry.IsDir() {
			return err
		}
		name, err := filepath.Rel(root, path)
		for _, word := range words {
			if !strings.Contains(name, word) {
				return err
			}
		}
		found = append(found, name)
		return err
	}))
	return found
}

// Store opens one of the stack's stores without asking any name server.
func (s *Stack) Store(t *testing.T, i int) storage.Provider {
	t.Helper()
	provider, err := storage.Open(t.Context(), s.File().Stores[i], storage.OpenOptions{
		GCSEndpoint: s.StorageURL(), Logger: slog.New(slog.DiscardHandler),
	})
	require.NoError(t, err)
	t.Cleanup(func() { _ = provider.Close() })
	return provider
}

// Object reads an object whole.
func Object(t *testing.T, provider storage.Provider, key string) []byte {
	t.Helper()
	body, err := provider.Get(t.Context(), key, 0, -1)
	require.NoError(t, err)
	defer body.Close()
	var data bytes.Buffer
	_, err = data.ReadFrom(body)
	require.NoError(t, err)
	return data.Bytes()
}

// Objects lists what a store has below a prefix.
func Objects(t *testing.T, provider storage.Provider, prefix string) []storage.Object {
	t.Helper()
	var found []storage.Object
	require.NoError(t, provider.List(t.Context(), prefix, func(object storage.Object) error {
		found = append(found, object)
		return nil
	}))
	return found
}
