package testsuite_test

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"holdfast/devstack/devtest"
	"holdfast/storage/resolver/dnsserver"
	"holdfast/testsuite/stack"
	"holdfast/workspace"
)

// download fetches a workspace's content and unpacks it.
func download(t *testing.T, s *stack.Stack, says string, args ...string) string {
	t.Helper()
	archive := filepath.Join(t.TempDir(), "content.tar")
	stack.Must(t, s, 0, []string{says}, append([]string{"download", "-o", archive}, args...)...)
	into := filepath.Join(t.TempDir(), "content")
	require.NoError(t, os.Mkdir(into, 0o755))
	output, err := exec.Command("tar", "--numeric-owner", "--xattrs", "--xattrs-include=*", "--acls", "-xpf", archive, "-C", into).CombinedOutput()
	require.NoError(t, err, "tar: %s", output)
	return into
}

// requireSameTar compares with what tar unpacked: its format keeps no more than the seconds of some times, and the times
// of links not at all, so that those are left out. Content, modes, owners, links and attributes are compared.
func requireSameTar(t *testing.T, want, got string) {
	t.Helper()
	output, err := exec.Command("rsync", "-aHAXn", "--no-times", "--checksum", "--itemize-changes", "--delete", want+"/", got+"/").CombinedOutput()
	require.NoError(t, err, string(output))
	require.Empty(t, string(output), "the download differs from the content")
	entries, err := os.ReadDir(got)
	require.NoError(t, err)
	require.NotEmpty(t, entries)
}

// TestDownloadInEveryState is A6: running, waiting for storage, blocked, stopped; with a store away and with all of them.
func TestDownloadWithoutStores(t *testing.T) {
	t.Parallel()
	s := stack.New(t, "all", "process")
	stack.Must(t, s, 0, nil, "start", "web", "--from-dir", fidelityTree(t))
	stack.Must(t, s, 0, nil, "exec", "web", "--", "sh", "-c", "echo edited > work.txt")
	node, content := stack.ContentDir(t, s, "web")
	before := stack.Manifest(t, content)

	requireSameTar(t, before, download(t, s, "as they are now", "web"))
	one := download(t, s, "as they are now", "web", "--path", "bin")
	require.FileExists(t, filepath.Join(one, "run.sh"))
	require.NoFileExists(t, filepath.Join(one, "work.txt"))

	// Stopping, and no store can be reached: neither by name nor in its directory.
	for _, server := range s.DNS() {
		server.SetMode(dnsserver.Drop)
	}
	require.NoError(t, s.Storage().Kill())
	store := filepath.Join(s.Dir, "store")
	require.NoError(t, os.Rename(store, store+".away"))
	stack.Must(t, s, 5, []string{"goes on", "nothing was interrupted"}, "stop", "web", "--timeout", "3s")
	require.Equal(t, workspace.Stopping, stack.Show(t, s, "web").Phase)
	requireSameTar(t, before, download(t, s, "on node "+node, "web"))
	stack.RequireSame(t, before, content)

	// Both are back, and it goes on by itself.
	require.NoError(t, os.Rename(store+".away", store))
	require.NoError(t, s.Storage().Start(t.Context()))
	for _, server := range s.DNS() {
		server.SetMode(dnsserver.Answer)
	}
	state := stack.WaitState(t, s, "web", "is stopped", stack.Patience, func(state workspace.State) bool {
		return state.Phase == workspace.Stopped && state.Kept == nil && state.Operation == nil
	})
	require.NoDirExists(t, content)

	// Stopped: from the stores, and its age is said; also with the object store gone, from the second one.
	requireSameTar(t, before, download(t, s, "ago", "web"))
	require.NoError(t, s.Storage().Kill())
	requireSameTar(t, before, download(t, s, state.Head.Snapshot[:8], "web", "--snapshot", state.Head.Snapshot))
	require.NoError(t, s.Storage().Start(t.Context()))
	requireSameTar(t, before, download(t, s, "ago", "web", "--snapshot", state.Head.Snapshot))
}

// TestLifeOfAWorkspace is what else a person does: environment, sources, older versions, unsticking, deleting.
func TestLifeOfAWorkspace(t *testing.T) {
	t.Parallel()
	s := stack.New(t, "any", "process")

	t.Run("environment", func(t *testing.T) {
		file := filepath.Join(t.TempDir(), "env")
		require.NoError(t, os.WriteFile(file, []byte("# ours\nFROM_FILE=a b=c\nTOLD=file\n"), 0o600))
		stack.Must(t, s, 0, nil, "start", "env", "--env-file", file, "--env", "TOLD=flag", "--env", "EMPTY=")
		r := stack.Must(t, s, 0, nil, "exec", "env", "--env", "ONCE=1", "--", "sh", "-c", `echo "$FROM_FILE|$TOLD|${EMPTY-unset}|$ONCE"`)
		require.Equal(t, "a b=c|flag||1\n", r.Stdout)
		// They are the workspace's: another start, on another node, has them again.
		node := stack.Show(t, s, "env").Instance.Node
		stack.Must(t, s, 0, nil, "stop", "env")
		stack.Must(t, s, 0, nil, "start", "env", "--not-node", node)
		r = stack.Must(t, s, 0, nil, "exec", "env", "--", "sh", "-c", `echo "$FROM_FILE|$TOLD|${EMPTY-unset}|${ONCE-unset}"`)
		require.Equal(t, "a b=c|flag||unset\n", r.Stdout)
		require.NotContains(t, stack.Must(t, s, 0, []string{"FROM_FILE"}, "show", "env").String(), "a b=c")
	})

	t.Run("from git", func(t *testing.T) {
		bare, head := gitRepository(t)
		stack.Must(t, s, 0, nil, "start", "git", "--from-git", "file://"+bare)
		r := stack.Must(t, s, 0, nil, "exec", "git", "--", "sh", "-c", "cat README; cat .git/HEAD; git rev-parse HEAD 2>/dev/null || true")
		require.Contains(t, r.Stdout, "hello from git")
		_, content := stack.ContentDir(t, s, "git")
		found, err := exec.Command("git", "-c", "safe.directory=*", "-C", content, "rev-parse", "HEAD").CombinedOutput()
		require.NoError(t, err, string(found))
		require.Equal(t, head, strings.TrimSpace(string(found)))
		stack.Must(t, s, 0, nil, "stop", "git")

		// One that is not there fails for good, and leaves nothing.
		stack.Must(t, s, 1, []string{"nowhere.git", "mend:"}, "start", "nogit", "--from-git", "file://"+bare+"/nowhere.git")
		require.Nil(t, stack.Show(t, s, "nogit").Instance)
	})

	t.Run("from another workspace's snapshot", func(t *testing.T) {
		stack.Must(t, s, 0, nil, "start", "copy", "--from-snapshot", "git")
		require.Equal(t, "hello from git\n", stack.Must(t, s, 0, nil, "exec", "copy", "--", "cat", "README").Stdout)
		// It is its own from there on.
		stack.Must(t, s, 0, nil, "exec", "copy", "--", "sh", "-c", "echo changed > README")
		stack.Must(t, s, 0, nil, "stop", "copy")
		require.NotEqual(t, stack.Show(t, s, "git").ID, stack.Show(t, s, "copy").ID)
		stack.Must(t, s, 0, nil, "start", "git")
		require.Equal(t, "hello from git\n", stack.Must(t, s, 0, nil, "exec", "git", "--", "cat", "README").Stdout)
		stack.Must(t, s, 0, nil, "stop", "git")
		stack.Must(t, s, 3, []string{"nobody"}, "start", "orphan", "--from-snapshot", "nobody")
	})

	t.Run("an older version", func(t *testing.T) {
		stack.Must(t, s, 0, nil, "start", "old")
		stack.Must(t, s, 0, nil, "exec", "old", "--", "sh", "-c", "echo one > version; echo kept > both")
		stack.Must(t, s, 0, []string{"is backed up"}, "backup", "old")
		first := stack.Show(t, s, "old").Head.Snapshot
		stack.Must(t, s, 0, nil, "exec", "old", "--", "sh", "-c", "echo two > version; echo new > second")
		stack.Must(t, s, 0, nil, "stop", "old")
		second := stack.Show(t, s, "old").Head.Snapshot
		require.NotEqual(t, first, second)
		listed := stack.Must(t, s, 0, nil, "snapshots", "old", "--full").Stdout
		require.Less(t, strings.Index(listed, first), strings.Index(listed, second), "oldest first: %s", listed)
		require.GreaterOrEqual(t, strings.Index(listed, first), 0)

		stack.Must(t, s, 0, []string{"restored from snapshot " + first[:8]}, "restore", "old", "--snapshot", first)
		require.Equal(t, "one\nkept\nno second\n", stack.Must(t, s, 0, nil, "exec", "old", "--", "sh", "-c", "cat version both; cat second 2>/dev/null || echo no second").Stdout)
		stack.Must(t, s, 0, nil, "stop", "old")
		// What was gone back from is not lost.
		stack.Must(t, s, 0, nil, "restore", "old", "--snapshot", second)
		require.Equal(t, "two\n", stack.Must(t, s, 0, nil, "exec", "old", "--", "cat", "version").Stdout)
		stack.Must(t, s, 0, nil, "stop", "old")
		// Nor silently taken: a restore of what does not exist changes nothing.
		head := stack.Show(t, s, "old").Head.Snapshot
		r := stack.CLI(t, s, "restore", "old", "--snapshot", strings.Repeat("0", 64))
		require.NotZero(t, r.Code, "%s", r)
		require.Equal(t, head, stack.Show(t, s, "old").Head.Snapshot)
		stack.Must(t, s, 0, nil, "start", "old")
		require.Equal(t, "two\n", stack.Must(t, s, 0, nil, "exec", "old", "--", "cat", "version").Stdout)
		stack.Must(t, s, 0, nil, "stop", "old")
	})

	t.Run("unstick", func(t *testing.T) { unsticks(t, s) })

	t.Run("delete", func(t *testing.T) {
		stack.Must(t, s, 0, nil, "start", "gone")
		stack.Must(t, s, 0, nil, "exec", "gone", "--", "sh", "-c", "echo mine > file")
		stack.Must(t, s, 4, []string{"stop it first"}, "delete", "gone")
		stack.Must(t, s, 0, nil, "stop", "gone")
		state := stack.Show(t, s, "gone")
		stack.Must(t, s, 0, []string{"is deleted"}, "delete", "gone")
		stack.WaitFor(t, "the workspace is gone", stack.Patience, func() bool { return stack.CLI(t, s, "start", "gone", "--detach").Code == 0 })
		// The same name is another workspace, and the old one's snapshots are still in the stores (invariant 6).
		stack.WaitState(t, s, "gone", "runs", stack.Patience, func(state workspace.State) bool { return state.Phase == workspace.Running })
		again := stack.Show(t, s, "gone")
		require.NotEqual(t, state.ID, again.ID)
		require.Equal(t, "nothing\n", stack.Must(t, s, 0, nil, "exec", "gone", "--", "sh", "-c", "cat file 2>/dev/null || echo nothing").Stdout)
		require.FileExists(t, filepath.Join(s.Repository(state.ID), "snapshots", state.Head.Snapshot))
		require.NotEmpty(t, stack.Objects(t, s.Store(t, 0), workspace.RepositoryPrefix(state.ID)+"/snapshots/"))

		stack.Must(t, s, 0, nil, "exec", "gone", "--", "sh", "-c", "echo secret > file")
		stack.Must(t, s, 0, nil, "stop", "gone")
		stack.Must(t, s, 2, []string{"own name"}, "delete", "gone", "--discard-data", "other")
		stack.Must(t, s, 0, []string{"is deleted"}, "delete", "gone", "--discard-data", "gone")
		require.Empty(t, stack.Objects(t, s.Store(t, 0), workspace.RepositoryPrefix(again.ID)+"/"), "its repository is dropped")
		require.Empty(t, stack.Objects(t, s.Store(t, 1), workspace.RepositoryPrefix(again.ID)+"/"))
		require.NotEmpty(t, stack.Objects(t, s.Store(t, 0), workspace.RepositoryPrefix(state.ID)+"/snapshots/"), "the older one's is not")
	})
}

// unsticks is A11: a stop that waits for stores that never come is sealed, its content kept, and the person works on.
func unsticks(t *testing.T, s *stack.Stack) {
	stack.Must(t, s, 4, []string{"not stuck"}, "unstick", "env")
	stack.Must(t, s, 0, nil, "start", "stuck")
	stack.Must(t, s, 0, nil, "exec", "stuck", "--", "sh", "-c", "echo precious > file")
	node, content := stack.ContentDir(t, s, "stuck")
	before := stack.Manifest(t, content)
	store := filepath.Join(s.Dir, "store")
	away := func() (back func()) {
		require.NoError(t, s.Storage().Kill())
		require.NoError(t, os.Rename(store, store+".away"))
		var once sync.Once
		return func() {
			once.Do(func() {
				require.NoError(t, os.Rename(store+".away", store))
				require.NoError(t, s.Storage().Start(t.Context()))
			})
		}
	}

	// A person who wants to work on takes the stop back. The instance's record has to be on a store before it runs
	// (invariant 3): the start waits for one, and then goes on with what is there.
	back := away()
	defer func() { back() }()
	stack.Must(t, s, 5, nil, "stop", "stuck", "--timeout", "2s")
	stack.WaitSays(t, s, []string{"nothing removes it", "holdfast download stuck"}, "why", "stuck")
	stack.Must(t, s, 5, nil, "start", "stuck", "--timeout", "2s")
	stack.RequireSame(t, before, content)
	back()
	stack.WaitState(t, s, "stuck", "runs again", stack.Patience, func(state workspace.State) bool {
		return state.Phase == workspace.Running && state.Operation == nil
	})
	_, content = stack.ContentDir(t, s, "stuck")
	stack.RequireSame(t, before, content)

	back = away()
	stack.Must(t, s, 5, nil, "stop", "stuck", "--timeout", "2s")
	stack.RequireSame(t, before, content)

	stack.WaitState(t, s, "stuck", "the stop is stuck", stack.Patience, func(state workspace.State) bool {
		return state.Operation != nil && state.Operation.Step == workspace.StepBackup
	})

	// Sealing needs a store to write the new token to (invariant 3): it is accepted and waits for one.
	stack.Must(t, s, 5, nil, "unstick", "stuck", "--timeout", "2s")
	stack.RequireSame(t, before, content)
	back()
	state := stack.WaitState(t, s, "stuck", "is unstuck", stack.Patience, func(state workspace.State) bool {
		return state.Phase == workspace.Stopped && state.Operation == nil
	})
	require.NotNil(t, state.Kept)
	require.True(t, state.Kept.Held, "what was unstuck is not released by itself")
	stack.RequireSame(t, before, content)
	require.GreaterOrEqual(t, state.Token, uint64(2), "the attempt is sealed with a new token")

	// Elsewhere would go on without it (invariant 4); here it goes on with it.
	stack.Must(t, s, 4, []string{"newest content", node}, "start", "stuck", "--not-node", node)
	stack.Must(t, s, 0, []string{"going on with the content"}, "start", "stuck")
	_, content = stack.ContentDir(t, s, "stuck")
	stack.RequireSame(t, before, content)
	stack.Must(t, s, 0, []string{"is stopped"}, "stop", "stuck")
	require.NoDirExists(t, filepath.Dir(content))
	stack.Must(t, s, 0, nil, "start", "stuck", "--not-node", node)
	_, content = stack.ContentDir(t, s, "stuck")
	stack.RequireSame(t, before, content)
	stack.Must(t, s, 0, nil, "stop", "stuck")
}

// gitRepository is a bare repository with one commit.
func gitRepository(t *testing.T) (bare, head string) {
	t.Helper()
	if _, err := exec.LookPath("git"); err != nil {
		devtest.Missing(t, "git", err)
	}
	dir := t.TempDir()
	run := func(args ...string) string {
		command := exec.Command("git", args...)
		command.Dir = dir
		command.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + dir, "GIT_CONFIG_NOSYSTEM=1"}
		output, err := command.CombinedOutput()
		require.NoError(t, err, "git %v: %s", args, output)
		return strings.TrimSpace(string(bytes.TrimSpace(output)))
	}
	run("init", "-q", "work")
	require.NoError(t, os.WriteFile(filepath.Join(dir, "work", "README"), []byte("hello from git\n"), 0o644))
	run("-C", "work", "add", "README")
	run("-C", "work", "-c", "user.name=Ada", "-c", "user.email=ada@example.com", "commit", "-q", "-m", "first")
	run("clone", "-q", "--bare", "work", "bare.git")
	return filepath.Join(dir, "bare.git"), run("-C", "work", "rev-parse", "HEAD")
}
