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
	s := newStack(t, "all", "process", func(options *devstack.StackOptions) {
		options.Nodes = []string{"large", "small", "tiny"}
		small = mountTmpfs(t, filepath.Join(options.DataDir, "nodes", "small"), "size=272m")
		tiny = mountTmpfs(t, filepath.Join(options.DataDir, "nodes", "tiny"), "size=64m")
		store = mountTmpfs(t, filepath.Join(base, "store"), "size=64m")
		options.Storage.DirectoryURL = "file://" + store
	})

	t.Run("a full workspace is backed up and restored", func(t *testing.T) {
		must(t, s, 0, nil, "start", "full", "--node", "small")
		node, content := contentDir(t, s, "full")
		require.Equal(t, "small", node)
		// Bytes that are alike take room on the disk and none in the stores.
		r := cli(t, s, "exec", "full", "--", "sh", "-c", "mkdir a; echo x > a/file; cat /dev/zero > fill")
		require.NotZero(t, r.code, "the disk was not filled: %s", r)
		require.Less(t, free(t, small), int64(64<<10), "the disk is not full")
		before := manifest(t, content)

		must(t, s, 0, []string{"is stopped"}, "stop", "full")
		require.NoDirExists(t, filepath.Dir(content))
		require.Greater(t, free(t, small), int64(256<<20), "the room came back")
		must(t, s, 0, nil, "start", "full", "--node", "large")
		_, content = contentDir(t, s, "full")
		requireSame(t, before, content)
	})

	t.Run("a node without room is passed over", func(t *testing.T) {
		must(t, s, 0, []string{"is stopped"}, "stop", "full")
		before := show(t, s, "full").Head.Snapshot
		// Nothing is on it, so that it is asked first or second; it has less than its reserve.
		r := must(t, s, 1, []string{"node tiny has", "MB free", "mend:"}, "start", "full", "--node", "tiny")
		require.NotContains(t, r.String(), "panic")
		state := show(t, s, "full")
		require.Equal(t, workspace.Stopped, state.Phase)
		require.Equal(t, before, state.Head.Snapshot)
		require.Nil(t, state.Kept)
		entries, err := os.ReadDir(filepath.Join(tiny, "workspaces"))
		require.NoError(t, err)
		require.Empty(t, entries, "something was left on the node that refused")
		must(t, s, 0, []string{"restored from snapshot"}, "start", "full", "--not-node", "large")
		require.Equal(t, "small", show(t, s, "full").Instance.Node)
	})

	t.Run("the disk fills during a restore", func(t *testing.T) {
		must(t, s, 0, nil, "start", "big", "--node", "large")
		_, content := contentDir(t, s, "big")
		must(t, s, 0, nil, "exec", "big", "--", "sh", "-c", "mkdir d; yes holdfast | head -c 300M > d/big; echo y > d/little")
		before := manifest(t, content)
		must(t, s, 0, nil, "stop", "big")
		must(t, s, 0, []string{"is stopped"}, "stop", "full") // its node is empty again
		head, stored := show(t, s, "big").Head.Snapshot, s.stored(t, "big", "full")

		must(t, s, 1, []string{"no space left", "safe:", "mend:"}, "start", "big", "--node", "small")
		require.Equal(t, stored, s.stored(t, "big", "full"), "a repository changed")
		state := show(t, s, "big")
		require.Equal(t, workspace.Stopped, state.Phase, "%+v", state.Block)
		require.Equal(t, head, state.Head.Snapshot)
		require.Nil(t, state.Kept)
		entries, err := os.ReadDir(filepath.Join(small, "workspaces"))
		require.NoError(t, err)
		require.Empty(t, entries, "half a restore was left")

		// The same without being told which node: the next one takes it.
		must(t, s, 0, []string{"restored from snapshot"}, "start", "big")
		node, content := contentDir(t, s, "big")
		require.Equal(t, "large", node)
		requireSame(t, before, content)
		must(t, s, 0, nil, "stop", "big")
	})

	t.Run("a store fills during a backup", func(t *testing.T) {
		must(t, s, 0, nil, "start", "random", "--node", "large")
		_, content := contentDir(t, s, "random")
		must(t, s, 0, nil, "exec", "random", "--", "sh", "-c", "head -c 96M /dev/urandom > noise; echo z > note")
		before, stored := manifest(t, content), s.stored(t, "big", "full")
		r := cli(t, s, "stop", "random", "--timeout", "60s")
		require.Contains(t, []int{1, 5}, r.code, "%s", r)
		why := waitSays(t, s, []string{"an object store has no room left", "make room in the store"}, "why", "random")
		require.Contains(t, []workspace.Phase{workspace.Blocked, workspace.Stopping}, show(t, s, "random").Phase)
		t.Logf("a full store is said as: %s", why.stdout)
		_, content = contentDir(t, s, "random")
		requireSame(t, before, content) // nothing was removed
		require.Equal(t, stored, s.stored(t, "big", "full"), "another workspace's repository changed")

		resize(t, store, "512m")
		waitState(t, s, "random", "is stopped", patience, func(state workspace.State) bool {
			if state.Phase == workspace.Blocked && state.Operation == nil { // it had given up, and is told to go on
				detached(t, s, "stop", "random")
			}
			return state.Phase == workspace.Stopped && state.Kept == nil && state.Operation == nil
		})
		must(t, s, 0, nil, "start", "random", "--node", "large")
		_, content = contentDir(t, s, "random")
		requireSame(t, before, content)
	})
}
