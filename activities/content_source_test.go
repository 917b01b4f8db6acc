package activities

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/go-git/go-git/v5"
	"github.com/go-git/go-git/v5/plumbing/object"
	"github.com/stretchr/testify/require"

	"holdfast/dataport"
	"holdfast/keys"
	"holdfast/storage"
	"holdfast/workspace"
)

func tarOf(t *testing.T, files map[string]string) []byte {
	t.Helper()
	var stream bytes.Buffer
	w := tar.NewWriter(&stream)
	for name, text := range files {
		require.NoError(t, w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(text)), Typeflag: tar.TypeReg}))
		_, err := io.WriteString(w, text)
		require.NoError(t, err)
	}
	require.NoError(t, w.Close())
	return stream.Bytes()
}

func (r *rig) awaited(token uint64) {
	r.t.Helper()
	require.Eventually(r.t, func() bool {
		r.node.uploads.mutex.Lock()
		defer r.node.uploads.mutex.Unlock()
		expected := r.node.uploads.expected[workspace.InstanceName(id, token)]
		return expected != nil && expected.awaited
	}, time.Minute, time.Millisecond)
}

// cutReader ends as a stream does whose sender went away.
type cutReader struct{ io.Reader }

func (c cutReader) Read(p []byte) (int, error) {
	n, err := c.Reader.Read(p)
	if errors.Is(err, io.EOF) {
		err = dataport.ErrCut
	}
	return n, err
}

func TestUpload(t *testing.T) {
	r := newRig(t, storage.PolicyAny)
	claims := dataport.Claims{WorkspaceID: id, Name: "atlas", Token: 1}
	archive := tarOf(t, map[string]string{"file": "sent"})
	_, err := r.node.Upload(t.Context(), claims, bytes.NewReader(archive))
	require.ErrorIs(t, err, dataport.ErrConflict, "nobody waits for it")

	target := r.target(1)
	prepare := workspace.PrepareContentInput{Target: target, Source: workspace.Source{Kind: workspace.SourceUpload}}
	prepared := make(chan error, 1)
	go func() {
		_, err := run(r, r.node.PrepareContent, prepare)
		prepared <- err
	}()
	r.awaited(1)
	_, err = r.node.Upload(t.Context(), claims, cutReader{bytes.NewReader(archive)})
	require.ErrorIs(t, err, dataport.ErrCut)
	require.NoDirExists(t, r.content(1), "whole or not at all")
	result, err := r.node.Upload(t.Context(), claims, bytes.NewReader(archive))
	require.NoError(t, err)
	require.Equal(t, int64(1), result.Files)
	require.NoError(t, <-prepared)
	require.Equal(t, "sent", r.read(1, "file"))
	require.Equal(t, contentPrepared, r.state(1))
	_, err = r.node.Upload(t.Context(), claims, bytes.NewReader(archive))
	require.ErrorIs(t, err, dataport.ErrConflict)
	require.Empty(t, r.node.uploads.expected)

	// The agent died between the arrival and the mark: what was sent is there and is not asked for again.
	require.NoError(t, r.node.Volumes.mark(identity{WorkspaceID: id, Name: "atlas", Token: 1, State: contentPreparing}))
	_, err = run(r, r.node.PrepareContent, prepare)
	require.NoError(t, err)
	require.Equal(t, "sent", r.read(1, "file"))
	require.Equal(t, contentPrepared, r.state(1))
}

// An upload that is under way when its attempt ends goes on, and the next attempt takes it.
func TestUploadOutlivesAnAttempt(t *testing.T) {
	r := newRig(t, storage.PolicyAny)
	target := r.target(1)
	prepare := workspace.PrepareContentInput{Target: target, Source: workspace.Source{Kind: workspace.SourceUpload}}
	first, end := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		_, err := run(r, func(ctx context.Context, input workspace.PrepareContentInput) (workspace.PrepareContentResult, error) {
			ctx, cancel := context.WithCancel(ctx)
			defer cancel()
			defer context.AfterFunc(first, cancel)()
			return r.node.PrepareContent(ctx, input)
		}, prepare)
		ended <- err
	}()
	r.awaited(1)
	stream, sender := io.Pipe()
	uploaded := make(chan error, 1)
	go func() {
		_, err := r.node.Upload(t.Context(), dataport.Claims{WorkspaceID: id, Token: 1}, stream)
		uploaded <- err
	}()
	archive := tarOf(t, map[string]string{"file": "sent slowly"})
	_, err := sender.Write(archive[:600])
	require.NoError(t, err)
	end()
	require.Error(t, <-ended)

	second := make(chan error, 1)
	go func() {
		_, err := run(r, r.node.PrepareContent, prepare)
		second <- err
	}()
	r.awaited(1)
	_, err = sender.Write(archive[600:])
	require.NoError(t, err)
	require.NoError(t, sender.Close())
	require.NoError(t, <-uploaded)
	require.NoError(t, <-second)
	require.Equal(t, "sent slowly", r.read(1, "file"))
}

func (r *rig) gitSecrets(url string) []byte {
	r.t.Helper()
	plain, err := json.Marshal(workspace.Secrets{GitURL: url})
	require.NoError(r.t, err)
	sealed, err := keys.SealTo(r.node.Identity.Recipient(), plain, keys.PurposeWorkspaceSecrets)
	require.NoError(r.t, err)
	return sealed
}

func TestPrepareClones(t *testing.T) {
	r := newRig(t, storage.PolicyAny)
	work := t.TempDir()
	repository, err := git.PlainInit(work, false)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(work, "README"), []byte("cloned"), 0o600))
	tree, err := repository.Worktree()
	require.NoError(t, err)
	_, err = tree.Add("README")
	require.NoError(t, err)
	_, err = tree.Commit("first", &git.CommitOptions{Author: &object.Signature{Name: "ada", When: time.Unix(1, 0)}})
	require.NoError(t, err)
	bare := filepath.Join(t.TempDir(), "bare.git")
	_, err = git.PlainClone(bare, true, &git.CloneOptions{URL: work})
	require.NoError(t, err)

	prepare := workspace.PrepareContentInput{
		Target: r.target(1), Source: workspace.Source{Kind: workspace.SourceGit, Describe: "bare.git"}, Secrets: r.gitSecrets(bare),
	}
	for range 2 {
		_, err = run(r, r.node.PrepareContent, prepare)
		require.NoError(t, err)
		require.Equal(t, "cloned", r.read(1, "README"))
	}
}

// What a git server answers, and the URL with its token, never gets into an error (invariant 10 for its type).
func TestCloneErrorsQuoteNothing(t *testing.T) {
	r := newRig(t, storage.PolicyAny)
	for status, permanent := range map[int]bool{
		http.StatusUnauthorized: true, http.StatusForbidden: true, http.StatusNotFound: true, http.StatusInternalServerError: false,
	} {
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, request *http.Request) {
			w.WriteHeader(status)
			_, _ = io.WriteString(w, "no access to "+request.URL.String()+" with "+secretToken)
		}))
		url := "http://ada:" + secretToken + "@" + server.Listener.Addr().String() + "/repo.git"
		_, err := run(r, r.node.PrepareContent, workspace.PrepareContentInput{
			Target: r.target(1), Source: workspace.Source{Kind: workspace.SourceGit, Describe: "repo.git"}, Secrets: r.gitSecrets(url),
		})
		server.Close()
		if permanent {
			typed(t, err, workspace.ErrorSource)
		} else {
			transient(t, err)
		}
		require.ErrorContains(t, err, "repo.git")
	}
	http.DefaultClient.CloseIdleConnections()
	if transport, ok := http.DefaultTransport.(*http.Transport); ok {
		transport.CloseIdleConnections()
	}
}
