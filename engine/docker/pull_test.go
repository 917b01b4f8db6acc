package docker

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"holdfast/engine"
)

// fakeRegistry is a registry with one image, on loopback, which engines talk to over plain HTTP. It serves what the
// distribution specification asks for a pull, and misbehaves on demand.
type fakeRegistry struct {
	server *httptest.Server
	name   string // repository
	blobs  map[string][]byte
	types  map[string]string
	tag    string // digest of the manifest

	mu       sync.Mutex
	mode     string
	requests int           // of them, those that hang, while it hangs
	release  chan struct{} // ends what hangs
}

const manifestType = "application/vnd.docker.distribution.manifest.v2+json"

func newRegistry(t *testing.T) *fakeRegistry {
	t.Helper()
	r := &fakeRegistry{name: "holdfast-test-" + randomName(t) + "/image", blobs: map[string][]byte{}, types: map[string]string{}, release: make(chan struct{})}
	r.build(t)
	r.server = httptest.NewServer(r)
	t.Cleanup(func() {
		close(r.release)
		r.server.CloseClientConnections()
		r.server.Close()
	})
	return r
}

func (r *fakeRegistry) build(t *testing.T) {
	var layer, packed bytes.Buffer
	archive := tar.NewWriter(&layer)
	content := []byte("from the registry " + r.name)
	require.NoError(t, archive.WriteHeader(&tar.Header{Name: "file", Mode: 0o644, Size: int64(len(content)), Typeflag: tar.TypeReg}))
	_, err := archive.Write(content)
	require.NoError(t, err)
	require.NoError(t, archive.Close())
	zipped := gzip.NewWriter(&packed)
	_, err = zipped.Write(layer.Bytes())
	require.NoError(t, err)
	require.NoError(t, zipped.Close())
	config, err := json.Marshal(map[string]any{
		"architecture": runtime.GOARCH, "os": "linux", "config": map[string]any{"Cmd": []string{"/file"}},
		"rootfs": map[string]any{"type": "layers", "diff_ids": []string{digest(layer.Bytes())}},
	})
	require.NoError(t, err)
	manifest, err := json.Marshal(map[string]any{
		"schemaVersion": 2, "mediaType": manifestType,
		"config": map[string]any{"mediaType": "application/vnd.docker.container.image.v1+json", "size": len(config), "digest": digest(config)},
		"layers": []any{map[string]any{"mediaType": "application/vnd.docker.image.rootfs.diff.tar.gzip", "size": packed.Len(), "digest": digest(packed.Bytes())}},
	})
	require.NoError(t, err)
	for _, blob := range [][]byte{config, packed.Bytes(), manifest} {
		r.blobs[digest(blob)] = blob
	}
	r.tag = digest(manifest)
}

func digest(data []byte) string { return fmt.Sprintf("sha256:%x", sha256.Sum256(data)) }

func (r *fakeRegistry) behave(mode string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.mode, r.requests = mode, 0
}

func (r *fakeRegistry) count() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.requests
}

func (r *fakeRegistry) reference() string {
	return strings.TrimPrefix(r.server.URL, "http://") + "/" + r.name + ":1"
}

func (r *fakeRegistry) ServeHTTP(w http.ResponseWriter, request *http.Request) {
	r.mu.Lock()
	mode := r.mode
	hangs := mode == "hang" || mode == "hang in the middle" && strings.Contains(request.URL.Path, "/blobs/")
	if hangs || !strings.HasPrefix(mode, "hang") {
		r.requests++
	}
	r.mu.Unlock()
	refuse := func(status int, code, message string) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(status)
		fmt.Fprintf(w, `{"errors":[{"code":%q,"message":%q}]}`, code, message)
	}
	content := request.URL.Path != "/v2/"
	switch {
	case hangs:
		select {
		case <-r.release:
		case <-request.Context().Done():
		}
		return
	case mode == "basic":
		w.Header().Set("Www-Authenticate", `Basic realm="test"`)
		refuse(401, "UNAUTHORIZED", "authentication required")
		return
	case mode == "password":
		if name, password, ok := request.BasicAuth(); !ok || name != "user" || password != "pass" {
			w.Header().Set("Www-Authenticate", `Basic realm="test"`)
			refuse(401, "UNAUTHORIZED", "authentication required")
			return
		}
	case mode == "denied" && content:
		refuse(403, "DENIED", "requested access to the resource is denied")
		return
	case mode == "unauthorized" && content:
		refuse(401, "UNAUTHORIZED", "authentication required")
		return
	case mode == "absent" && content:
		refuse(404, "MANIFEST_UNKNOWN", "manifest unknown")
		return
	case mode == "no repository" && content:
		refuse(404, "NAME_UNKNOWN", "repository name not known to registry")
		return
	case mode == "busy" && content:
		refuse(429, "TOOMANYREQUESTS", "you have reached your pull rate limit")
		return
	case mode == "broken":
		refuse(503, "UNAVAILABLE", "come back later")
		return
	}
	w.Header().Set("Docker-Distribution-Api-Version", "registry/2.0")
	prefix := "/v2/" + r.name + "/"
	rest, ours := strings.CutPrefix(request.URL.Path, prefix)
	switch {
	case request.URL.Path == "/v2/":
		return
	case ours && strings.HasPrefix(rest, "manifests/"):
		w.Header().Set("Content-Type", manifestType)
		w.Header().Set("Docker-Content-Digest", r.tag)
		_, _ = w.Write(r.blobs[r.tag])
	case ours && r.blobs[strings.TrimPrefix(rest, "blobs/")] != nil:
		w.Header().Set("Content-Type", "application/octet-stream")
		_, _ = w.Write(r.blobs[strings.TrimPrefix(rest, "blobs/")])
	default:
		refuse(404, "BLOB_UNKNOWN", "blob unknown")
	}
}

// hang has an engine ask while the registry hangs, with more patience each time until it has come to the request that
// hangs: how soon it asks is the machine's affair.
func (r *fakeRegistry) hang(t *testing.T, mode string, ask func(patience time.Duration)) {
	t.Helper()
	for patience := 2 * time.Second; ; patience *= 2 {
		r.behave(mode)
		ask(patience)
		if r.count() > 0 {
			return
		}
		require.Less(t, patience, time.Minute, "the registry was never asked")
	}
}

// TestPull lets the real engine pull from registries that fail in every way (A14).
func TestPull(t *testing.T) {
	requireDocker(t)
	for mode, want := range map[string]error{
		"basic": engine.ErrImageDenied, "denied": engine.ErrImageDenied, "unauthorized": engine.ErrImageDenied,
		"absent": engine.ErrImageNotFound, "no repository": engine.ErrImageNotFound,
		"hang": engine.ErrRegistryTimeout, "hang in the middle": engine.ErrRegistryTimeout,
		"busy": engine.ErrRegistryTimeout, "broken": engine.ErrRegistryTimeout,
	} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			registry := newRegistry(t)
			ask := func(patience time.Duration) {
				e := open(t, Options{PullTimeout: patience})
				_, err := e.PrepareImage(t.Context(), registry.reference(), nil)
				t.Log(err)
				require.ErrorIs(t, err, want)
				for _, other := range []error{engine.ErrImageDenied, engine.ErrImageNotFound, engine.ErrRegistryName, engine.ErrRegistryTimeout} {
					require.Equal(t, other == want, errors.Is(err, other), "one kind only: %v", err)
				}
			}
			if strings.HasPrefix(mode, "hang") {
				registry.hang(t, mode, ask)
				return
			}
			registry.behave(mode)
			ask(2 * time.Minute)
			require.Positive(t, registry.count(), "the registry was asked")
		})
	}
	t.Run("no such name", func(t *testing.T) {
		t.Parallel()
		e := open(t, Options{PullTimeout: 3 * time.Minute}) // where no name server answers, it is asked several times
		_, err := e.PrepareImage(t.Context(), "holdfast-test-"+randomName(t)+".invalid/image:1", nil)
		t.Log(err)
		require.ErrorIs(t, err, engine.ErrRegistryName)
	})
	t.Run("refused", func(t *testing.T) {
		t.Parallel()
		e := open(t, Options{})
		_, err := e.PrepareImage(t.Context(), "127.0.0.1:1/holdfast-test-"+randomName(t)+":1", nil)
		require.ErrorIs(t, err, engine.ErrRegistryTimeout)
	})
	t.Run("not a reference", func(t *testing.T) {
		t.Parallel()
		e := open(t, Options{})
		_, err := e.PrepareImage(t.Context(), "UPPER case", nil)
		require.ErrorIs(t, err, engine.ErrImageNotFound)
	})
	t.Run("cancelled", func(t *testing.T) {
		t.Parallel()
		registry := newRegistry(t)
		registry.behave("hang")
		e := open(t, Options{})
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		defer cancel()
		_, err := e.PrepareImage(ctx, registry.reference(), nil)
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.NotErrorIs(t, err, engine.ErrRegistryTimeout)
	})
}

// TestPullAndKeep pulls an image, uses the copy without asking again, and uses it when the registry cannot be asked.
func TestPullAndKeep(t *testing.T) {
	requireDocker(t)
	registry := newRegistry(t)
	e := open(t, Options{})
	var said []string
	pulled, err := e.PrepareImage(t.Context(), registry.reference(), func(text string) { said = append(said, text) })
	require.NoError(t, err)
	removeImage(t, e, pulled.ID)
	require.Equal(t, registry.reference(), pulled.Reference)
	require.False(t, pulled.Made || pulled.Cached)
	require.NotEmpty(t, said)

	registry.behave("hang")
	again, err := e.PrepareImage(t.Context(), registry.reference(), nil)
	require.NoError(t, err)
	require.Equal(t, pulled, again)
	require.Zero(t, registry.count(), "what is here is not asked for")

	ask := func(patience time.Duration) {
		cached, err := open(t, Options{PullTimeout: patience, AlwaysPull: true}).PrepareImage(t.Context(), registry.reference(), nil)
		require.NoError(t, err)
		require.True(t, cached.Cached)
		require.Equal(t, pulled.ID, cached.ID)
	}
	registry.hang(t, "hang", ask)
	registry.behave("broken")
	ask(2 * time.Minute)
	require.Positive(t, registry.count())
	asking := open(t, Options{AlwaysPull: true})
	registry.behave("denied")
	_, err = asking.PrepareImage(t.Context(), registry.reference(), nil)
	require.ErrorIs(t, err, engine.ErrImageDenied, "a registry that was asked and refuses is not overruled by the copy")
	registry.behave("")
	fresh, err := asking.PrepareImage(t.Context(), registry.reference(), nil)
	require.NoError(t, err)
	require.False(t, fresh.Cached)
}

func TestPullWithCredentials(t *testing.T) {
	requireDocker(t)
	registry := newRegistry(t)
	registry.behave("password")
	wrong := open(t, Options{Credentials: func(string) (string, string, bool) { return "user", "planted-wrong-secret", true }})
	_, err := wrong.PrepareImage(t.Context(), registry.reference(), nil)
	require.ErrorIs(t, err, engine.ErrImageDenied)
	require.NotContains(t, err.Error(), "planted")
	right := open(t, Options{Credentials: func(host string) (string, string, bool) {
		return "user", "pass", strings.HasPrefix(registry.reference(), host+"/")
	}})
	pulled, err := right.PrepareImage(t.Context(), registry.reference(), nil)
	require.NoError(t, err)
	removeImage(t, right, pulled.ID)
}

// TestDefaultImage: the registry's image when it can be had; else one made here, without asking a dead registry each time.
func TestDefaultImage(t *testing.T) {
	requireDocker(t)
	registry := newRegistry(t)
	var e *Engine
	var made engine.Image
	registry.hang(t, "hang", func(patience time.Duration) {
		e = open(t, Options{DefaultImage: registry.reference(), DefaultImageTimeout: patience, HostImage: "holdfast-test-" + randomName(t) + "/host"})
		var said []string
		var err error
		made, err = e.PrepareImage(t.Context(), "", func(text string) { said = append(said, text) })
		require.NoError(t, err)
		removeImage(t, e, made.ID)
		require.True(t, made.Made)
		require.Contains(t, strings.Join(said, "\n"), "made from this machine's programs", "it is said")
	})
	registry.behave("hang")
	again, err := e.PrepareImage(t.Context(), "", nil)
	require.NoError(t, err)
	require.Equal(t, made, again, "the same programs give the same image")
	require.Zero(t, registry.count(), "a registry that just failed is left alone")

	registry.behave("")
	other := open(t, Options{DefaultImage: registry.reference(), DefaultImageTimeout: 2 * time.Minute, HostImage: e.options.HostImage})
	pulled, err := other.PrepareImage(t.Context(), "", nil)
	require.NoError(t, err)
	removeImage(t, other, pulled.ID)
	require.False(t, pulled.Made)
	require.Equal(t, registry.reference(), pulled.Reference)
}
