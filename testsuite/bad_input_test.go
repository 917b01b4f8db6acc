package testsuite_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"holdfast/keys"
	"holdfast/storage"
	"holdfast/workspace"
)

// alone runs the command without a stack, in a directory of its own.
func alone(t *testing.T, environment []string, args ...string) result {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	home := t.TempDir()
	command := exec.CommandContext(ctx, binary(t), args...)
	command.Dir = home
	command.Env = append([]string{"HOME=" + home, "PATH=" + os.Getenv("PATH")}, environment...)
	var stdout, stderr bytes.Buffer
	command.Stdout, command.Stderr = &stdout, &stderr
	command.WaitDelay = 5 * time.Second
	began := time.Now()
	err := command.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatalf("holdfast %s: %v", strings.Join(args, " "), err)
	}
	return result{code: command.ProcessState.ExitCode(), stdout: stdout.String(), stderr: stderr.String(), took: time.Since(began)}
}

// wants checks a command that ended: its code, and words for a person.
func (r result) wants(t *testing.T, code int, says ...string) result {
	t.Helper()
	require.Equal(t, code, r.code, "%s", r)
	text := strings.Join(strings.Fields(r.stdout+" "+r.stderr), " ")
	for _, word := range says {
		require.Contains(t, text, word, "%s", r)
	}
	require.NotContains(t, text, "goroutine ", "a panic is no answer")
	return r
}

// store opens one of the stack's stores without asking any name server.
func (s *stack) store(t *testing.T, i int) storage.Provider {
	t.Helper()
	provider, err := storage.Open(t.Context(), s.File().Stores[i], storage.OpenOptions{
		GCSEndpoint: s.StorageURL(), Logger: slog.New(slog.DiscardHandler),
	})
	require.NoError(t, err)
	t.Cleanup(func() { _ = provider.Close() })
	return provider
}

// object reads an object whole.
func object(t *testing.T, provider storage.Provider, key string) []byte {
	t.Helper()
	body, err := provider.Get(t.Context(), key, 0, -1)
	require.NoError(t, err)
	defer body.Close()
	var data bytes.Buffer
	_, err = data.ReadFrom(body)
	require.NoError(t, err)
	return data.Bytes()
}

// replace writes an object, whatever was there.
func replace(t *testing.T, provider storage.Provider, key string, data []byte) {
	t.Helper()
	_, err := provider.Put(t.Context(), key, data, storage.PutOptions{})
	require.NoError(t, err)
}

// objects lists what a store has below a prefix.
func objects(t *testing.T, provider storage.Provider, prefix string) []storage.Object {
	t.Helper()
	var found []storage.Object
	require.NoError(t, provider.List(t.Context(), prefix, func(object storage.Object) error {
		found = append(found, object)
		return nil
	}))
	return found
}

// stored lists the repositories of workspaces on every store. Locks come and go by themselves.
func (s *stack) stored(t *testing.T, names ...string) [][]storage.Object {
	t.Helper()
	var all [][]storage.Object
	for i := range s.File().Stores {
		for _, name := range names {
			prefix := workspace.RepositoryPrefix(show(t, s, name).ID) + "/"
			found := slices.DeleteFunc(objects(t, s.store(t, i), prefix), func(object storage.Object) bool {
				return strings.HasPrefix(object.Key, prefix+"locks/")
			})
			require.NotEmpty(t, found)
			all = append(all, found)
		}
	}
	return all
}

// untouched wants everything that is kept of a deployment (nodes' content, both stores) to be after do what it was before.
func (s *stack) untouched(t *testing.T, do func()) {
	t.Helper()
	parts := []string{s.repository(""), filepath.Join(s.dir, "store", "catalog")}
	for _, node := range s.Nodes() {
		parts = append(parts, filepath.Join(s.NodeDir(node.Name()), "workspaces"))
	}
	var before []string
	for _, part := range parts {
		before = append(before, manifest(t, part))
	}
	counted := objects(t, s.store(t, 0), "")
	do()
	for i, part := range parts {
		requireSame(t, before[i], part)
	}
	require.Equal(t, counted, objects(t, s.store(t, 0), ""), "the object store changed")
}

// TestBadInput is what people get wrong: each gives an error that names the field and the mend, has the right exit code, and
// changes no data.
func TestBadInput(t *testing.T) {
	t.Parallel()
	s := newStack(t, "all", "process")
	tree := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(tree, "file"), []byte("content"), 0o644))
	must(t, s, 0, nil, "start", "web", "--from-dir", tree)
	must(t, s, 0, nil, "backup", "web")
	must(t, s, 0, nil, "start", "rest", "--from-dir", tree)
	must(t, s, 0, nil, "stop", "rest")
	id := show(t, s, "web").ID

	t.Run("commands that are refused", func(t *testing.T) {
		s.untouched(t, func() {
			zeros := strings.Repeat("0", 64)
			for _, c := range []struct {
				code int
				says []string
				args []string
			}{
				{3, []string{`no workspace "nobody"`, "mend:", "holdfast list"}, []string{"stop", "nobody"}},
				{3, []string{"nobody"}, []string{"show", "nobody"}},
				{3, []string{"nobody"}, []string{"why", "nobody"}},
				{3, []string{"nobody"}, []string{"exec", "nobody", "--", "true"}},
				{3, []string{"nobody"}, []string{"download", "nobody"}},
				{3, []string{"nobody"}, []string{"delete", "nobody"}},
				{3, []string{"nobody"}, []string{"restore", "nobody", "--snapshot", zeros}},
				{3, []string{"nobody"}, []string{"unstick", "nobody"}},
				{3, []string{"nobody"}, []string{"snapshots", "nobody"}},
				{3, []string{"nobody"}, []string{"key", "show", "nobody"}},
				{2, []string{"workspace name", "a-z, 0-9"}, []string{"start", "Web_1"}},
				{2, []string{"workspace name"}, []string{"start", "../web"}},
				{2, []string{"workspace name"}, []string{"stop", "web/"}},
				{2, []string{"--node"}, []string{"start", "other", "--node", "Node One"}},
				{2, []string{"--from-dir"}, []string{"start", "other", "--from-dir", filepath.Join(tree, "nowhere")}},
				{2, []string{"--from-dir", "not a directory"}, []string{"start", "other", "--from-dir", filepath.Join(tree, "file")}},
				{2, []string{"--from-git"}, []string{"start", "other", "--from-git", "ftp://host/x"}},
				{2, []string{"--volume-size"}, []string{"start", "other", "--volume-size", "much"}},
				{2, []string{"environment"}, []string{"start", "other", "--env", "1X=y"}},
				{2, []string{"image"}, []string{"start", "other", "--image", "two words"}},
				{2, []string{"--snapshot"}, []string{"restore", "rest", "--snapshot", "newest"}},
				{2, []string{"--discard-data", "own name"}, []string{"delete", "rest", "--discard-data", "web"}},
				{2, []string{"there is no such directory"}, []string{"download", "web", "-o", filepath.Join(tree, "nowhere", "x.tar")}},
				{2, []string{"path"}, []string{"download", "web", "--path", "../../etc"}},
				{4, []string{"running"}, []string{"start", "web"}},
				{4, []string{"stop"}, []string{"delete", "web"}},
				{4, []string{"not running"}, []string{"stop", "rest"}},
				{4, []string{"not running"}, []string{"exec", "rest", "--", "true"}},
				{4, []string{"stop"}, []string{"restore", "web", "--snapshot", zeros}},
				{4, []string{"has content already"}, []string{"start", "rest", "--from-dir", tree}},
			} {
				t.Run(strings.Join(c.args[:min(len(c.args), 3)], " "), func(t *testing.T) {
					cli(t, s, c.args...).wants(t, c.code, c.says...)
				})
			}
		})
	})

	t.Run("a node that never registered", func(t *testing.T) {
		must(t, s, 1, []string{"node-9", "never registered", "mend:"}, "start", "rest", "--node", "node-9")
		require.Equal(t, workspace.Stopped, show(t, s, "rest").Phase)
	})

	t.Run("unwritable directories", func(t *testing.T) {
		closed := mountTmpfs(t, filepath.Join(t.TempDir(), "closed"), "ro,size=1m") // not even root writes there
		worker := []string{"HOLDFAST_STATE_DIR=" + s.dir, "HOLDFAST_ENGINE=process"}
		s.untouched(t, func() {
			alone(t, worker, "worker", "--node", "node-8", "--data-dir", closed+"/node").
				wants(t, 1, "making the data directory", closed+"/node", "mend: make it writable", "--data-dir")
			alone(t, nil, "--state-dir", closed+"/state", "dev").
				wants(t, 1, "making the data directory", closed+"/state", "safe:", "mend: make it writable", "--state-dir")
			alone(t, nil, "snapshot", "backup", "--repo", "file://"+closed+"/repository", "--password-file", password(t, "x"), tree).
				wants(t, 1, closed+"/repository", "read-only", "safe: nothing was changed", "mend: make "+closed+" writable")
			must(t, s, 1, []string{closed, "read-only", "mend: make the directory writable", "-o"},
				"download", "web", "-o", filepath.Join(closed, "web.tar"))
		})
		entries, err := os.ReadDir(closed)
		require.NoError(t, err)
		require.Empty(t, entries)
	})

	t.Run("wrong keys", func(t *testing.T) {
		other := filepath.Join(t.TempDir(), "master.key")
		_, err := keys.CreateLocalKey(other)
		require.NoError(t, err)
		codec := filepath.Join(t.TempDir(), "codec.key")
		_, err = keys.LoadOrCreateCodecKey(codec)
		require.NoError(t, err)
		s.untouched(t, func() {
			must(t, s, 1, []string{"master key", "mend:", "--master-key"}, "--master-key", other, "key", "show", "web")
			must(t, s, 1, []string{"key"}, "--codec-key", codec, "show", "web")
			alone(t, []string{"HOLDFAST_STATE_DIR=" + s.dir, "HOLDFAST_MASTER_KEY=" + other}, "worker", "--control").wants(t, 1, "master key")
			alone(t, nil, "snapshot", "list", "--repo", "file://"+s.repository(id), "--password-file", password(t, "a wrong one")).
				wants(t, 1, "wrong password", "safe: nothing was changed", "mend: name the right --password-file")
			alone(t, nil, "snapshot", "restore", "--repo", "file://"+s.repository(id), "--password-file", password(t, "a wrong one"),
				"latest", "--target", filepath.Join(tree, "never")).wants(t, 1, "password")
			require.NoFileExists(t, filepath.Join(tree, "never"))
		})
	})

	t.Run("a bucket that does not exist", func(t *testing.T) {
		s.untouched(t, func() {
			gcs := []string{"HOLDFAST_GCS_ENDPOINT=" + s.StorageURL()}
			alone(t, gcs, "snapshot", "backup", "--repo", "gs://nobucket", "--password-file", password(t, "x"), tree).
				wants(t, 3, "gs://nobucket", "mend:")
			alone(t, nil, "snapshot", "list", "--repo", "file://"+filepath.Join(tree, "no", "where"), "--password-file", password(t, "x")).
				wants(t, 3, "mend:")
		})
	})

	t.Run("a port that is in use", func(t *testing.T) {
		taken, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(t, err)
		defer taken.Close()
		_, port, err := net.SplitHostPort(taken.Addr().String())
		require.NoError(t, err)
		dir := filepath.Join(t.TempDir(), "state")
		// What an earlier stack left there.
		left := map[string]string{"nodes": "", "store": ""}
		for part := range left {
			require.NoError(t, os.MkdirAll(filepath.Join(dir, part), 0o700))
			require.NoError(t, os.WriteFile(filepath.Join(dir, part, "file"), []byte("content"), 0o600))
			left[part] = manifest(t, filepath.Join(dir, part))
		}
		s.untouched(t, func() {
			// With an empty cache: it is said before a server is looked for or built.
			for _, flag := range []string{"--temporal-port", "--ui-port"} {
				alone(t, nil, "--state-dir", dir, "dev", flag, port).wants(t, 1, "port "+port, "in use by another program",
					"safe: nothing was left running", "mend: free the port, or choose another")
			}
		})
		for part, before := range left {
			requireSame(t, before, filepath.Join(dir, part))
		}
		require.NoFileExists(t, filepath.Join(dir, "stack.json"), "a stack that did not start is described")
	})

	t.Run("a directory on which a stack runs", func(t *testing.T) {
		alone(t, nil, "--state-dir", s.dir, "dev").wants(t, 4, "another stack runs", strconv.Itoa(os.Getpid()), "mend:")
	})

	t.Run("Temporal unreachable", func(t *testing.T) {
		s.untouched(t, func() {
			alone(t, []string{"HOLDFAST_STATE_DIR=" + s.dir, "TEMPORAL_ADDRESS=127.0.0.1:1"}, "stop", "web").
				wants(t, 1, "127.0.0.1:1", "cannot be reached", "safe:", "mend:", "TEMPORAL_ADDRESS")
		})
		require.Equal(t, workspace.Running, show(t, s, "web").Phase)
	})

	t.Run("a damaged config object", func(t *testing.T) { s.damagedConfig(t, "web") })
}

func password(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "password")
	require.NoError(t, os.WriteFile(path, []byte(text+"\n"), 0o600))
	return path
}

// damagedConfig damages a repository's config everywhere: a stop cannot back up, says so, and keeps the content; once the
// config is back it goes on.
func (s *stack) damagedConfig(t *testing.T, name string) {
	state := show(t, s, name)
	_, content := contentDir(t, s, name)
	before := manifest(t, content)
	config := workspace.RepositoryPrefix(state.ID) + "/config"
	good := object(t, s.store(t, 0), config)
	bad := append([]byte(nil), good...)
	bad[len(bad)/2] ^= 1
	for i := range s.File().Stores {
		replace(t, s.store(t, i), config, bad)
	}
	repo := (&url.URL{Scheme: "file", Path: s.repository(state.ID)}).String()
	secret := password(t, strings.TrimSpace(must(t, s, 0, nil, "key", "show", name).stdout))
	alone(t, nil, "snapshot", "check", "--repo", repo, "--password-file", secret).wants(t, 1, "config", "damaged")

	must(t, s, 1, []string{"config", "safe:", "mend:", "kept on node"}, "stop", name)
	state = show(t, s, name)
	require.Equal(t, workspace.Blocked, state.Phase)
	require.NotNil(t, state.Block)
	require.Equal(t, workspace.ErrorDamaged, state.Block.Type)
	_, content = contentDir(t, s, name)
	requireSame(t, before, content)

	for i := range s.File().Stores {
		replace(t, s.store(t, i), config, good)
	}
	must(t, s, 0, []string{"is stopped"}, "stop", name)
	require.NoDirExists(t, filepath.Dir(content))
	must(t, s, 0, nil, "start", name)
	_, content = contentDir(t, s, name)
	requireSame(t, before, content)
}

// TestImageThatDoesNotExist asks a registry that answers, and has no such image; and one that does not answer.
func TestImageThatDoesNotExist(t *testing.T) {
	t.Parallel()
	s := newStack(t, "any", "docker")
	registry := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/v2/" {
			w.WriteHeader(http.StatusOK)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusNotFound)
		_, _ = w.Write([]byte(`{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown"}]}`))
	}))
	defer registry.Close()
	image := strings.TrimPrefix(registry.URL, "http://") + "/nothing:1"
	must(t, s, 0, nil, "start", "other", "--snapshot-every", "off")
	must(t, s, 0, nil, "exec", "other", "--", "sh", "-c", "echo content > file")
	must(t, s, 0, nil, "stop", "other")
	stored := s.stored(t, "other")
	must(t, s, 1, []string{"image", image, "mend: name another with --image"}, "start", "web", "--image", image)
	require.Equal(t, stored, s.stored(t, "other"), "another workspace's repository changed")
	state := show(t, s, "web")
	require.Nil(t, state.Instance)
	require.Nil(t, state.Kept)
	for _, node := range s.Nodes() {
		entries, err := os.ReadDir(filepath.Join(s.NodeDir(node.Name()), "workspaces"))
		require.NoError(t, err)
		require.Empty(t, entries, "the start left something on %s", node.Name())
	}
}
