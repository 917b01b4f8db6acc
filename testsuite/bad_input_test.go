package testsuite_test

import (
	"bytes"
	"context"
	"errors"
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
	"holdfast/testsuite/stack"
	"holdfast/workspace"
)

// alone runs the command without a stack, in a directory of its own.
func alone(t *testing.T, environment []string, args ...string) stack.Result {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), stack.Patience)
	defer cancel()
	home := t.TempDir()
	command := exec.CommandContext(ctx, stack.Binary(t), args...)
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
	return stack.Result{Code: command.ProcessState.ExitCode(), Stdout: stdout.String(), Stderr: stderr.String(), Took: time.Since(began)}
}

// replace writes an object, whatever was there.
func replace(t *testing.T, provider storage.Provider, key string, data []byte) {
	t.Helper()
	_, err := provider.Put(t.Context(), key, data, storage.PutOptions{})
	require.NoError(t, err)
}

// repositories lists the objects of the repositories of workspaces on every store. Locks come and go by themselves.
func repositories(t *testing.T, s *stack.Stack, names ...string) [][]storage.Object {
	t.Helper()
	var all [][]storage.Object
	for i := range s.File().Stores {
		for _, name := range names {
			prefix := workspace.RepositoryPrefix(stack.Show(t, s, name).ID) + "/"
			found := slices.DeleteFunc(stack.Objects(t, s.Store(t, i), prefix), func(object storage.Object) bool {
				return strings.HasPrefix(object.Key, prefix+"locks/")
			})
			require.NotEmpty(t, found)
			all = append(all, found)
		}
	}
	return all
}

// untouched wants everything that is kept of a deployment (nodes' content, both stores) to be after do what it was before.
func untouched(t *testing.T, s *stack.Stack, do func()) {
	t.Helper()
	parts := []string{s.Repository(""), filepath.Join(s.Dir, "store", "catalog")}
	for _, node := range s.Nodes() {
		parts = append(parts, filepath.Join(s.NodeDir(node.Name()), "workspaces"))
	}
	var before []string
	for _, part := range parts {
		before = append(before, stack.Manifest(t, part))
	}
	counted := stack.Objects(t, s.Store(t, 0), "")
	do()
	for i, part := range parts {
		stack.RequireSame(t, before[i], part)
	}
	require.Equal(t, counted, stack.Objects(t, s.Store(t, 0), ""), "the object store changed")
}

// TestBadInput is what people get wrong: each gives an error that names the field and the mend, has the right exit code, and
// changes no data.
func TestBadInput(t *testing.T) {
	t.Parallel()
	s := stack.New(t, "all", "process")
	tree := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(tree, "file"), []byte("content"), 0o644))
	stack.Must(t, s, 0, nil, "start", "web", "--from-dir", tree)
	stack.Must(t, s, 0, nil, "backup", "web")
	stack.Must(t, s, 0, nil, "start", "rest", "--from-dir", tree)
	stack.Must(t, s, 0, nil, "stop", "rest")
	id := stack.Show(t, s, "web").ID

	t.Run("commands that are refused", func(t *testing.T) {
		untouched(t, s, func() {
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
					stack.CLI(t, s, c.args...).Wants(t, c.code, c.says...)
				})
			}
		})
	})

	t.Run("a node that never registered", func(t *testing.T) {
		stack.Must(t, s, 1, []string{"node-9", "never registered", "mend:"}, "start", "rest", "--node", "node-9")
		require.Equal(t, workspace.Stopped, stack.Show(t, s, "rest").Phase)
	})

	t.Run("unwritable directories", func(t *testing.T) {
		closed := mountTmpfs(t, filepath.Join(t.TempDir(), "closed"), "ro,size=1m") // not even root writes there
		worker := []string{"HOLDFAST_STATE_DIR=" + s.Dir, "HOLDFAST_ENGINE=process"}
		untouched(t, s, func() {
			alone(t, worker, "worker", "--node", "node-8", "--data-dir", closed+"/node").
				Wants(t, 1, "making the data directory", closed+"/node", "mend: make it writable", "--data-dir")
			alone(t, nil, "--state-dir", closed+"/state", "dev").
				Wants(t, 1, "making the data directory", closed+"/state", "safe:", "mend: make it writable", "--state-dir")
			alone(t, nil, "snapshot", "backup", "--repo", "file://"+closed+"/repository", "--password-file", password(t, "x"), tree).
				Wants(t, 1, closed+"/repository", "read-only", "safe: nothing was changed", "mend: make "+closed+" writable")
			stack.Must(t, s, 1, []string{closed, "read-only", "mend: make the directory writable", "-o"},
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
		untouched(t, s, func() {
			stack.Must(t, s, 1, []string{"master key", "mend:", "--master-key"}, "--master-key", other, "key", "show", "web")
			stack.Must(t, s, 1, []string{"key"}, "--codec-key", codec, "show", "web")
			alone(t, []string{"HOLDFAST_STATE_DIR=" + s.Dir, "HOLDFAST_MASTER_KEY=" + other}, "worker", "--control").Wants(t, 1, "master key")
			alone(t, nil, "snapshot", "list", "--repo", "file://"+s.Repository(id), "--password-file", password(t, "a wrong one")).
				Wants(t, 1, "wrong password", "safe: nothing was changed", "mend: name the right --password-file")
			alone(t, nil, "snapshot", "restore", "--repo", "file://"+s.Repository(id), "--password-file", password(t, "a wrong one"),
				"latest", "--target", filepath.Join(tree, "never")).Wants(t, 1, "password")
			require.NoFileExists(t, filepath.Join(tree, "never"))
		})
	})

	t.Run("a bucket that does not exist", func(t *testing.T) {
		untouched(t, s, func() {
			gcs := []string{"HOLDFAST_GCS_ENDPOINT=" + s.StorageURL()}
			alone(t, gcs, "snapshot", "backup", "--repo", "gs://nobucket", "--password-file", password(t, "x"), tree).
				Wants(t, 3, "gs://nobucket", "mend:")
			alone(t, nil, "snapshot", "list", "--repo", "file://"+filepath.Join(tree, "no", "where"), "--password-file", password(t, "x")).
				Wants(t, 3, "mend:")
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
			left[part] = stack.Manifest(t, filepath.Join(dir, part))
		}
		untouched(t, s, func() {
			// With an empty cache: it is said before a server is looked for or built.
			for _, flag := range []string{"--temporal-port", "--ui-port"} {
				alone(t, nil, "--state-dir", dir, "dev", flag, port).Wants(t, 1, "port "+port, "in use by another program",
					"safe: nothing was left running", "mend: free the port, or choose another")
			}
		})
		for part, before := range left {
			stack.RequireSame(t, before, filepath.Join(dir, part))
		}
		require.NoFileExists(t, filepath.Join(dir, "stack.json"), "a stack that did not start is described")
	})

	t.Run("a directory on which a stack runs", func(t *testing.T) {
		alone(t, nil, "--state-dir", s.Dir, "dev").Wants(t, 4, "another stack runs", strconv.Itoa(os.Getpid()), "mend:")
	})

	t.Run("Temporal unreachable", func(t *testing.T) {
		untouched(t, s, func() {
			alone(t, []string{"HOLDFAST_STATE_DIR=" + s.Dir, "TEMPORAL_ADDRESS=127.0.0.1:1"}, "stop", "web").
				Wants(t, 1, "127.0.0.1:1", "cannot be reached", "safe:", "mend:", "TEMPORAL_ADDRESS")
		})
		require.Equal(t, workspace.Running, stack.Show(t, s, "web").Phase)
	})

	t.Run("a damaged config object", func(t *testing.T) { damagedConfig(t, s, "web") })
}

func password(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "password")
	require.NoError(t, os.WriteFile(path, []byte(text+"\n"), 0o600))
	return path
}

// damagedConfig damages a repository's config everywhere: a stop cannot back up, says so, and keeps the content; once the
// config is back it goes on.
func damagedConfig(t *testing.T, s *stack.Stack, name string) {
	state := stack.Show(t, s, name)
	_, content := stack.ContentDir(t, s, name)
	before := stack.Manifest(t, content)
	config := workspace.RepositoryPrefix(state.ID) + "/config"
	good := stack.Object(t, s.Store(t, 0), config)
	bad := append([]byte(nil), good...)
	bad[len(bad)/2] ^= 1
	for i := range s.File().Stores {
		replace(t, s.Store(t, i), config, bad)
	}
	repo := (&url.URL{Scheme: "file", Path: s.Repository(state.ID)}).String()
	secret := password(t, strings.TrimSpace(stack.Must(t, s, 0, nil, "key", "show", name).Stdout))
	alone(t, nil, "snapshot", "check", "--repo", repo, "--password-file", secret).Wants(t, 1, "config", "damaged")

	stack.Must(t, s, 1, []string{"config", "safe:", "mend:", "kept on node"}, "stop", name)
	state = stack.Show(t, s, name)
	require.Equal(t, workspace.Blocked, state.Phase)
	require.NotNil(t, state.Block)
	require.Equal(t, workspace.ErrorDamaged, state.Block.Type)
	_, content = stack.ContentDir(t, s, name)
	stack.RequireSame(t, before, content)

	for i := range s.File().Stores {
		replace(t, s.Store(t, i), config, good)
	}
	stack.Must(t, s, 0, []string{"is stopped"}, "stop", name)
	require.NoDirExists(t, filepath.Dir(content))
	stack.Must(t, s, 0, nil, "start", name)
	_, content = stack.ContentDir(t, s, name)
	stack.RequireSame(t, before, content)
}

// TestImageThatDoesNotExist asks a registry that answers, and has no such image; and one that does not answer.
func TestImageThatDoesNotExist(t *testing.T) {
	t.Parallel()
	s := stack.New(t, "any", "docker")
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
	stack.Must(t, s, 0, nil, "start", "other", "--snapshot-every", "off")
	stack.Must(t, s, 0, nil, "exec", "other", "--", "sh", "-c", "echo content > file")
	stack.Must(t, s, 0, nil, "stop", "other")
	stored := repositories(t, s, "other")
	stack.Must(t, s, 1, []string{"image", image, "mend: name another with --image"}, "start", "web", "--image", image)
	require.Equal(t, stored, repositories(t, s, "other"), "another workspace's repository changed")
	state := stack.Show(t, s, "web")
	require.Nil(t, state.Instance)
	require.Nil(t, state.Kept)
	for _, node := range s.Nodes() {
		entries, err := os.ReadDir(filepath.Join(s.NodeDir(node.Name()), "workspaces"))
		require.NoError(t, err)
		require.Empty(t, entries, "the start left something on %s", node.Name())
	}
}
