package snapshot

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// requireTool skips a test that needs something this machine lacks, and fails it when HOLDFAST_REQUIRE names that.
func requireTool(t *testing.T, name string, present bool) {
	t.Helper()
	if present {
		return
	}
	if slices.Contains(strings.Split(os.Getenv("HOLDFAST_REQUIRE"), ","), name) {
		t.Fatalf("%s is required here (HOLDFAST_REQUIRE) and missing", name)
	}
	t.Skipf("needs %s, which is not there", name)
}

func requireCommand(t *testing.T, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	requireTool(t, name, err == nil)
	return path
}

func requireRoot(t *testing.T) {
	t.Helper()
	requireTool(t, "root", os.Geteuid() == 0)
}

// mountTmpfs mounts a tmpfs of this test's own, which needs root.
func mountTmpfs(t *testing.T, options string) string {
	t.Helper()
	requireRoot(t)
	dir := t.TempDir()
	if err := unix.Mount("none", dir, "tmpfs", 0, options); err != nil {
		t.Fatalf("mounting a tmpfs with %s: %v", options, err)
	}
	t.Cleanup(func() { must(t, unix.Unmount(dir, 0)) })
	return dir
}

// worldDir is a temporary directory that other users can reach and write to.
func worldDir(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	must(t, os.Chmod(filepath.Dir(dir), 0o755))
	must(t, os.Chmod(dir, 0o777))
	return dir
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// buildFidelityTree makes one of everything that DESIGN 8 lists, as far as this user may.
func buildFidelityTree(t *testing.T, root string) {
	t.Helper()
	path := func(name string) string { return filepath.Join(root, name) }
	write := func(name string, content []byte, mode os.FileMode) {
		t.Helper()
		must(t, os.WriteFile(path(name), content, 0o600))
		must(t, os.Chmod(path(name), mode))
	}
	must(t, os.MkdirAll(root, 0o755))
	random := make([]byte, 3<<20)
	state := uint64(42)
	for i := range random {
		state = state*6364136223846793005 + 1442695040888963407
		random[i] = byte(state >> 56)
	}
	write("empty", nil, 0o644)
	write("plain file", []byte("hello\n"), 0o640)
	write("big", random, 0o600)
	write("setuid", []byte("x"), 0o755|os.ModeSetuid)
	write("setgid", []byte("x"), 0o755|os.ModeSetgid)
	write("unreadable", []byte("secret"), 0o000)
	write("not utf-8 \xff\xfe \x80", []byte("name"), 0o644)
	write("line\nbreak \"quote\" \\ <&> \u2028 é", []byte("name"), 0o644)
	write("-rf *", []byte("name"), 0o644)
	write(strings.Repeat("n", 255), []byte("long"), 0o644)
	must(t, os.Mkdir(path("dir"), 0o755))
	must(t, os.Mkdir(path("dir/empty"), 0o711))
	must(t, os.Mkdir(path("sticky"), 0o755))
	must(t, os.Chmod(path("sticky"), 0o777|os.ModeSticky))
	must(t, os.Mkdir(path("setgid dir"), 0o755))
	must(t, os.Chmod(path("setgid dir"), 0o775|os.ModeSetgid))
	write("setgid dir/in", []byte("in"), 0o644)
	must(t, os.Mkdir(path("closed"), 0o755))
	must(t, os.Mkdir(path("closed/inner"), 0o755))
	write("closed/inner/file", []byte("inside a closed directory"), 0o400)
	must(t, os.Symlink("dir/empty", path("link")))
	must(t, os.Symlink("/nowhere/\xff", path("dangling")))
	must(t, os.Symlink(strings.Repeat("l", 4000), path("long link")))
	must(t, os.Link(path("big"), path("dir/big again")))
	must(t, os.Link(path("big"), path("zz big too")))
	must(t, unix.Mkfifo(path("fifo"), 0o620))
	must(t, os.Link(path("fifo"), path("fifo too")))
	// Sparse: a hole of 8 MiB between data, and one at the end.
	sparse, err := os.Create(path("sparse"))
	must(t, err)
	_, err = sparse.WriteAt([]byte("begin"), 0)
	must(t, err)
	_, err = sparse.WriteAt([]byte("middle"), 8<<20+13)
	must(t, err)
	must(t, sparse.Truncate(13<<20+1))
	must(t, sparse.Close())
	if err := unix.Setxattr(path("plain file"), "user.text", []byte("binary \x00\xff value"), 0); err == nil {
		must(t, unix.Setxattr(path("plain file"), "user.empty=%name", nil, 0))
		must(t, unix.Setxattr(path("dir"), "user.on a directory", []byte("1"), 0))
	} else if !errors.Is(err, unix.ENOTSUP) {
		t.Fatal(err)
	}
	if setfacl, err := exec.LookPath("setfacl"); err == nil {
		acl := exec.Command(setfacl, "-m", "u:1234:rwx,g:4321:r", path("plain file"), path("dir"))
		if out, err := acl.CombinedOutput(); err == nil {
			must(t, exec.Command(setfacl, "-d", "-m", "u:1234:rwx", path("dir")).Run())
		} else if !bytes.Contains(out, []byte("not supported")) {
			t.Fatalf("setfacl: %s", out)
		}
	}
	if os.Geteuid() == 0 {
		must(t, unix.Mknod(path("null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))))
		must(t, unix.Mknod(path("block"), unix.S_IFBLK|0o600, int(unix.Mkdev(259, 70000))))
		must(t, os.Lchown(path("dir"), 1000, 100))
		must(t, os.Lchown(path("big"), 4_000_000_000, 12345))
		must(t, os.Lchown(path("dangling"), 1000, 1000))
		must(t, os.Lchown(path("setuid"), 7, 7))
		must(t, os.Chmod(path("setuid"), 0o755|os.ModeSetuid))
		_ = unix.Lsetxattr(path("link"), "trusted.on_a_link", []byte("yes"), 0)
		_ = unix.Setxattr(path("plain file"), "security.capability", // cap_net_bind_service=ep
			[]byte{1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}, 0)
	}
	// Times last, the deepest first, since everything above changes them.
	moment := time.Date(2001, 2, 3, 4, 5, 6, 123456789, time.UTC)
	var all []string
	must(t, filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
		all = append(all, path)
		return err
	}))
	for i := len(all) - 1; i >= 0; i-- {
		times := []unix.Timespec{unix.NsecToTimespec(moment.Add(time.Hour).UnixNano()), unix.NsecToTimespec(moment.UnixNano())}
		must(t, unix.UtimesNanoAt(unix.AT_FDCWD, all[i], times, unix.AT_SYMLINK_NOFOLLOW))
		moment = moment.Add(1234567 * time.Microsecond)
	}
	old := unix.NsecToTimespec(time.Date(1950, 1, 1, 0, 0, 0, 999999999, time.UTC).UnixNano())
	must(t, unix.UtimesNanoAt(unix.AT_FDCWD, path("empty"), []unix.Timespec{old, old}, unix.AT_SYMLINK_NOFOLLOW))
	must(t, os.Chmod(path("closed/inner"), 0o100))
	must(t, os.Chmod(path("closed"), 0o000))
	must(t, os.Chmod(root, 0o750))
	t.Cleanup(func() {
		os.Chmod(path("closed"), 0o700)
		os.Chmod(path("closed/inner"), 0o700)
	})
}

// treeRecords describes every entry below root in full, one line each, for comparison.
func treeRecords(t *testing.T, root string) map[string]string {
	t.Helper()
	records := map[string]string{}
	first := map[inodeKey]string{}
	must(t, filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var stat unix.Stat_t
		if err := unix.Lstat(path, &stat); err != nil {
			return err
		}
		name, _ := filepath.Rel(root, path)
		record := fmt.Sprintf("mode %o owner %d:%d mtime %d.%09d", stat.Mode, stat.Uid, stat.Gid, stat.Mtim.Sec, stat.Mtim.Nsec)
		switch stat.Mode & unix.S_IFMT {
		case unix.S_IFREG:
			content, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			record += fmt.Sprintf(" size %d hash %x", stat.Size, sha256.Sum256(content))
		case unix.S_IFLNK:
			text, err := os.Readlink(path)
			if err != nil {
				return err
			}
			record += fmt.Sprintf(" -> %q", text)
		case unix.S_IFCHR, unix.S_IFBLK:
			record += fmt.Sprintf(" device %d", stat.Rdev)
		}
		if stat.Mode&unix.S_IFMT != unix.S_IFDIR && stat.Nlink > 1 {
			key := inodeKey{uint64(stat.Dev), stat.Ino}
			if first[key] == "" {
				first[key] = name
			}
			record += fmt.Sprintf(" links %d same as %q", stat.Nlink, first[key])
		}
		var xattrs []extendedAttribute
		buffer := make([]byte, 4096)
		n, err := unix.Llistxattr(path, buffer)
		if err != nil && !errors.Is(err, unix.ENOTSUP) {
			return err
		}
		for attribute := range strings.SplitSeq(strings.TrimSuffix(string(buffer[:max(n, 0)]), "\x00"), "\x00") {
			value := make([]byte, 4096)
			if size, err := unix.Lgetxattr(path, attribute, value); err == nil {
				xattrs = append(xattrs, extendedAttribute{attribute, value[:size]})
			}
		}
		slices.SortFunc(xattrs, func(a, b extendedAttribute) int { return strings.Compare(a.Name, b.Name) })
		for _, attribute := range xattrs {
			record += fmt.Sprintf(" %q=%q", attribute.Name, attribute.Value)
		}
		records[name] = record
		return nil
	}))
	return records
}

// compareTrees fails the test unless both trees are the same in everything, as this code and as rsync sees it.
func compareTrees(t *testing.T, want, got string) {
	t.Helper()
	compareRecords(t, treeRecords(t, want), treeRecords(t, got))
	if os.Geteuid() != 0 {
		return // rsync could not enter the closed directories
	}
	rsync := requireCommand(t, "rsync")
	command := exec.Command(rsync, "-aHAXn", "--checksum", "--itemize-changes", "--delete", want+"/", got+"/")
	out, err := command.CombinedOutput()
	if err != nil || len(out) > 0 {
		t.Errorf("rsync sees differences (%v):\n%s", err, out)
	}
}

func compareRecords(t *testing.T, want, got map[string]string) {
	t.Helper()
	for name, record := range want {
		if got[name] != record {
			t.Errorf("%q:\n want %s\n got  %s", name, record, got[name])
		}
	}
	for name := range got {
		if want[name] == "" {
			t.Errorf("%q is there and should not be", name)
		}
	}
}

// requireNothing fails unless neither target nor anything that was being restored into it is in its directory.
func requireNothing(t *testing.T, target string) {
	t.Helper()
	entries, err := os.ReadDir(filepath.Dir(target))
	must(t, err)
	for _, entry := range entries {
		if entry.Name() == filepath.Base(target) || strings.Contains(entry.Name(), ".restoring-") {
			t.Errorf("%s was left behind", entry.Name())
		}
	}
}

// asNobody runs one test of this binary again as an unprivileged user, with the given environment.
func asNobody(t *testing.T, test string, environment ...string) {
	t.Helper()
	requireRoot(t)
	// The binary may lie where that user cannot go; the link leads straight to it.
	command := exec.Command("/proc/self/exe", "-test.run=^"+test+"$", "-test.v")
	command.Env = append(os.Environ(), environment...)
	command.Dir = "/"
	command.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	out, err := command.CombinedOutput()
	if err != nil || !bytes.Contains(out, []byte("--- PASS: "+test)) {
		t.Errorf("as an ordinary user: %v\n%s", err, out)
	}
}
