package testsuite_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"holdfast/devstack"
	"holdfast/devstack/devtest"
	"holdfast/testsuite/stack"
	"holdfast/workspace"
)

// mountTmpfs mounts a small file system, which only root can, and unmounts it when the test ends.
func mountTmpfs(t *testing.T, dir, options string) string {
	t.Helper()
	if os.Geteuid() != 0 {
		devtest.Missing(t, "root", errors.New("only root mounts a small file system"))
	}
	require.NoError(t, os.MkdirAll(dir, 0o700))
	flags := uintptr(0)
	if rest, ro := strings.CutPrefix(options, "ro,"); ro {
		flags, options = unix.MS_RDONLY, rest
	}
	require.NoError(t, unix.Mount("tmpfs", dir, "tmpfs", flags, options+",mode=700"), "mounting a small file system")
	t.Cleanup(func() {
		// Detached: whoever still holds a file in it must not keep the test's directory from being removed.
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Errorf("unmounting %s: %v", dir, err)
		}
	})
	return dir
}

// resize gives a small file system another size.
func resize(t *testing.T, dir, size string) {
	t.Helper()
	require.NoError(t, unix.Mount("tmpfs", dir, "tmpfs", unix.MS_REMOUNT, "size="+size+",mode=700"))
}

// free is how many bytes a file system has left.
func free(t *testing.T, dir string) int64 {
	t.Helper()
	var stat unix.Statfs_t
	require.NoError(t, unix.Statfs(dir, &stat))
	return int64(stat.Bavail) * stat.Bsize
}

// TestFullDisks is A18: disks that are full during a backup and during a restore. The nodes "small" and "tiny" have disks
// of their own that are easily filled; the second store lies on another one.
func TestFullDisks(t *testing.T) {
	t.Parallel()
	// An agent admits nothing below 256 MiB free, so that a disk is a little larger.
	var small, tiny, store string
	base := t.TempDir()
	s := stack.New(t, "all", "process", func(options *devstack.StackOptions) {
		options.Nodes = []string{"large", "small", "tiny"}
		small = mountTmpfs(t, filepath.Join(options.DataDir, "nodes", "small"), "size=272m")
		tiny = mountTmpfs(t, filepath.Join(options.DataDir, "nodes", "tiny"), "size=64m")
		store = mountTmpfs(t, filepath.Join(base, "store"), "size=64m")
		options.Storage.DirectoryURL = "file://" + store
	})

	t.Run("a full workspace is backed up and restored", func(t *testing.T) {
		stack.Must(t, s, 0, nil, "start", "full", "--node", "small")
		node, content := stack.ContentDir(t, s, "full")
		require.Equal(t, "small", node)
		// Bytes that are alike take room on the disk and none in the stores.
		r := stack.CLI(t, s, "exec", "full", "--", "sh", "-c", "mkdir a; echo x > a/file; cat /dev/zero > fill")
		require.NotZero(t, r.Code, "the disk was not filled: %s", r)
		require.Less(t, free(t, small), int64(64<<10), "the disk is not full")
		before := stack.Manifest(t, content)

		stack.Must(t, s, 0, []string{"is stopped"}, "stop", "full")
		require.NoDirExists(t, filepath.Dir(content))
		require.Greater(t, free(t, small), int64(256<<20), "the room came back")
		stack.Must(t, s, 0, nil, "start", "full", "--node", "large")
		_, content = stack.ContentDir(t, s, "full")
		stack.RequireSame(t, before, content)
	})

	t.Run("a node without room is passed over", func(t *testing.T) {
		stack.Must(t, s, 0, []string{"is stopped"}, "stop", "full")
		before := stack.Show(t, s, "full").Head.Snapshot
		// Nothing is on it, so that it is asked first or second; it has less than its reserve.
		r := stack.Must(t, s, 1, []string{"node tiny has", "MB free", "mend:"}, "start", "full", "--node", "tiny")
		require.NotContains(t, r.String(), "panic")
		state := stack.Show(t, s, "full")
		require.Equal(t, workspace.Stopped, state.Phase)
		require.Equal(t, before, state.Head.Snapshot)
		require.Nil(t, state.Kept)
		entries, err := os.ReadDir(filepath.Join(tiny, "workspaces"))
		require.NoError(t, err)
		require.Empty(t, entries, "something was left on the node that refused")
		stack.Must(t, s, 0, []string{"restored from snapshot"}, "start", "full", "--not-node", "large")
		require.Equal(t, "small", stack.Show(t, s, "full").Instance.Node)
	})

	t.Run("the disk fills during a restore", func(t *testing.T) {
		stack.Must(t, s, 0, nil, "start", "big", "--node", "large")
		_, content := stack.ContentDir(t, s, "big")
		stack.Must(t, s, 0, nil, "exec", "big", "--", "sh", "-c", "mkdir d; yes holdfast | head -c 300M > d/big; echo y > d/little")
		before := stack.Manifest(t, content)
		stack.Must(t, s, 0, nil, "stop", "big")
		stack.Must(t, s, 0, []string{"is stopped"}, "stop", "full") // its node is empty again
		head, stored := stack.Show(t, s, "big").Head.Snapshot, repositories(t, s, "big", "full")

		stack.Must(t, s, 1, []string{"no space left", "safe:", "mend:"}, "start", "big", "--node", "small")
		require.Equal(t, stored, repositories(t, s, "big", "full"), "a repository changed")
		state := stack.Show(t, s, "big")
		require.Equal(t, workspace.Stopped, state.Phase, "%+v", state.Block)
		require.Equal(t, head, state.Head.Snapshot)
		require.Nil(t, state.Kept)
		entries, err := os.ReadDir(filepath.Join(small, "workspaces"))
		require.NoError(t, err)
		require.Empty(t, entries, "half a restore was left")

		// The same without being told which node: the next one takes it.
		stack.Must(t, s, 0, []string{"restored from snapshot"}, "start", "big")
		node, content := stack.ContentDir(t, s, "big")
		require.Equal(t, "large", node)
		stack.RequireSame(t, before, content)
		stack.Must(t, s, 0, nil, "stop", "big")
	})

	t.Run("a store fills during a backup", func(t *testing.T) {
		stack.Must(t, s, 0, nil, "start", "random", "--node", "large")
		_, content := stack.ContentDir(t, s, "random")
		stack.Must(t, s, 0, nil, "exec", "random", "--", "sh", "-c", "head -c 96M /dev/urandom > noise; echo z > note")
		before, stored := stack.Manifest(t, content), repositories(t, s, "big", "full")
		r := stack.CLI(t, s, "stop", "random", "--timeout", "60s")
		require.Contains(t, []int{1, 5}, r.Code, "%s", r)
		why := stack.WaitSays(t, s, []string{"an object store has no room left", "make room in the store"}, "why", "random")
		require.Contains(t, []workspace.Phase{workspace.Blocked, workspace.Stopping}, stack.Show(t, s, "random").Phase)
		t.Logf("a full store is said as: %s", why.Stdout)
		_, content = stack.ContentDir(t, s, "random")
		stack.RequireSame(t, before, content) // nothing was removed
		require.Equal(t, stored, repositories(t, s, "big", "full"), "another workspace's repository changed")

		resize(t, store, "512m")
		stack.WaitState(t, s, "random", "is stopped", stack.Patience, func(state workspace.State) bool {
			if state.Phase == workspace.Blocked && state.Operation == nil { // it had given up, and is told to go on
				stack.Detached(t, s, "stop", "random")
			}
			return state.Phase == workspace.Stopped && state.Kept == nil && state.Operation == nil
		})
		stack.Must(t, s, 0, nil, "start", "random", "--node", "large")
		_, content = stack.ContentDir(t, s, "random")
		stack.RequireSame(t, before, content)
	})
}
