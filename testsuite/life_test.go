package testsuite_test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"holdfast/devstack/devtest"
	"holdfast/testsuite/stack"
	"holdfast/workspace"
)

// fidelityTree makes a directory with everything that a file system of today has (A13).
func fidelityTree(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "tree")
	path := func(name string) string { return filepath.Join(dir, name) }
	write := func(name, content string, mode os.FileMode) {
		require.NoError(t, os.MkdirAll(filepath.Dir(path(name)), 0o755))
		require.NoError(t, os.WriteFile(path(name), []byte(content), 0o600))
		require.NoError(t, os.Chmod(path(name), mode))
	}
	write("plain.txt", "plain\n", 0o644)
	write("empty.txt", "", 0o640)
	write("bin/run.sh", "#!/bin/sh\necho hello\n", 0o755)
	write("bin/sticky", "setuid and setgid\n", 0o755|os.ModeSetuid|os.ModeSetgid)
	write("closed/only-read", "read\n", 0o400)
	write("a name with  spaces/and\ttab", "x", 0o644)
	write("new\nline", "y", 0o644)
	write("-rf", "z", 0o644)
	write("ümläut/日本語", "unicode", 0o644)
	write("not-utf8-\xff\xfe", "bytes", 0o644)
	write(`back\slash"quote'`, "q", 0o644)
	write(strings.Repeat("n", 255), "long", 0o644)
	write("deep/"+strings.Repeat("d/", 40)+"file", "deep", 0o644)
	write(".hidden/.git/HEAD", "ref: refs/heads/main\n", 0o644)
	for _, name := range []string{"tmp", "shared", "nothing"} {
		require.NoError(t, os.Mkdir(path(name), 0o700))
	}
	require.NoError(t, os.Chmod(path("tmp"), 0o777|os.ModeSticky))
	require.NoError(t, os.Chmod(path("shared"), 0o2775|os.ModeSetgid))
	require.NoError(t, os.Link(path("plain.txt"), path("bin/hardlink")))
	require.NoError(t, os.Symlink("../plain.txt", path("bin/relative")))
	require.NoError(t, os.Symlink("/nowhere/at/all", path("dangling")))
	require.NoError(t, os.Symlink("dangling-\xff", path("odd-target")))
	sparse, err := os.Create(path("sparse.img"))
	require.NoError(t, err)
	require.NoError(t, sparse.Truncate(64<<20))
	_, err = sparse.WriteAt([]byte("in the middle"), 31<<20)
	require.NoError(t, err)
	require.NoError(t, sparse.Close())
	require.NoError(t, unix.Setxattr(path("plain.txt"), "user.holdfast", []byte("value\x00with zero"), 0))
	require.NoError(t, unix.Setxattr(path("shared"), "user.dir", []byte("of a directory"), 0))
	if os.Geteuid() == 0 {
		require.NoError(t, os.Lchown(path("closed/only-read"), 1234, 2345))
		require.NoError(t, os.Lchown(path("dangling"), 1234, 2345))
		require.NoError(t, unix.Mkfifo(path("fifo"), 0o620))
	}
	require.NoError(t, os.Chmod(path("closed"), 0o500))
	t.Cleanup(func() { _ = os.Chmod(path("closed"), 0o700) })
	old := time.Date(2001, 2, 3, 4, 5, 6, 789012345, time.UTC)
	for _, name := range []string{"empty.txt", "nothing", "closed"} {
		require.NoError(t, os.Chtimes(path(name), old, old))
	}
	before := unix.Timespec{Sec: -1234567, Nsec: 5}
	require.NoError(t, unix.UtimesNanoAt(unix.AT_FDCWD, path("dangling"), []unix.Timespec{before, before}, unix.AT_SYMLINK_NOFOLLOW))
	return dir
}

// TestStopAndStartElsewhere is the main job (A1): what was there before a stop is there after a start on another node,
// in every respect that a file has (A13), and the stores can be read by stock restic.
func TestStopAndStartElsewhere(t *testing.T) {
	t.Parallel()
	s := stack.New(t, "all", "process")
	tree := fidelityTree(t)
	stack.Must(t, s, 0, []string{"is running on node"}, "start", "web", "--from-dir", tree)
	node, content := stack.ContentDir(t, s, "web")
	// The directory's own modes and times are the volume's, not what was sent.
	stack.RequireSame(t, tree, content)

	// A day's work, by the person in the workspace.
	stack.Must(t, s, 0, []string{"hello"}, "exec", "web", "--", "sh", "-c", "cd /workspace 2>/dev/null; ./bin/run.sh; echo work > work.txt; rm empty.txt; mv plain.txt renamed.txt; mkdir made; chmod 711 made")
	require.FileExists(t, filepath.Join(content, "work.txt"))
	before := stack.Manifest(t, content)

	stack.Must(t, s, 0, []string{"is stopped", "verified and committed"}, "stop", "web")
	state := stack.Show(t, s, "web")
	require.Equal(t, workspace.Stopped, state.Phase)
	require.Nil(t, state.Kept)
	require.NoDirExists(t, filepath.Dir(content), "the content has to be gone from its node after a verified stop")
	resticCheck(t, s, state)

	stack.Must(t, s, 0, []string{"restored from snapshot"}, "start", "web", "--not-node", node)
	other, restored := stack.ContentDir(t, s, "web")
	require.NotEqual(t, node, other)
	stack.RequireSame(t, before, restored)
	sparse, err := os.Stat(filepath.Join(restored, "sparse.img"))
	require.NoError(t, err)
	require.Less(t, sparse.Sys().(*syscall.Stat_t).Blocks*512, int64(8<<20), "the sparse file has to be sparse again")
	stack.Must(t, s, 0, []string{"work"}, "exec", "web", "--", "cat", "work.txt")
}

// resticCheck has stock restic read everything in the directory store's repository of a workspace.
func resticCheck(t *testing.T, s *stack.Stack, state workspace.State) {
	t.Helper()
	restic, err := exec.LookPath("restic")
	if err != nil {
		if devtest.Required("restic") {
			t.Fatal("restic is required (HOLDFAST_REQUIRE) and is not here")
		}
		t.Log("restic is not here: its check was left out")
		return
	}
	password := strings.TrimSpace(stack.Must(t, s, 0, nil, "key", "show", state.Name).Stdout)
	require.NotEmpty(t, password)
	command := exec.Command(restic, "-r", s.Repository(state.ID), "--no-cache", "check", "--read-data")
	command.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + t.TempDir(), "RESTIC_PASSWORD=" + password}
	output, err := command.CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	require.NoError(t, err, string(output))
	require.Contains(t, string(output), "no errors were found")
}
