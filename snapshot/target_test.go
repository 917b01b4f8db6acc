package snapshot

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// bothWays runs a test with openat2 and, as on an older kernel, one component at a time.
func bothWays(t *testing.T, test func(t *testing.T, open func(path string) *target)) {
	for _, componentWise := range []bool{false, true} {
		t.Run(fmt.Sprintf("componentWise=%v", componentWise), func(t *testing.T) {
			test(t, func(path string) *target {
				created, err := newTarget(path, false)
				must(t, err)
				if !componentWise && created.componentWise {
					t.Skip("this kernel has no openat2")
				}
				created.componentWise = componentWise
				return created
			})
		})
	}
}

func TestTargetRefusesUnsafeNames(t *testing.T) {
	bothWays(t, func(t *testing.T, open func(string) *target) {
		created := open(filepath.Join(t.TempDir(), "new"))
		defer created.finish(nil)
		root, err := created.open("")
		must(t, err)
		defer root.close()
		for _, name := range []string{"", ".", "..", "/", "a/b", "/etc", "../up", "a\x00b", "..\x00"} {
			calls := map[string]func() error{
				"mkdir":   func() error { return root.mkdir(name) },
				"symlink": func() error { return root.symlink("x", name) },
				"create":  func() error { _, err := root.createFile(name, 0o600); return err },
				"open":    func() error { _, err := root.openFile(name, unix.O_RDONLY); return err },
				"mknod":   func() error { _, err := root.mknod(name, unix.S_IFIFO, 0); return err },
				"link":    func() error { return root.link(root, name, "ok") },
				"link to": func() error { return root.link(root, "ok", name) },
			}
			for call, do := range calls {
				if err := do(); !errors.Is(err, ErrUnsafePath) {
					t.Errorf("%s %q: %v, want ErrUnsafePath", call, name, err)
				}
			}
		}
		if err := root.mkdir(strings.Repeat("x", 256)); !errors.Is(err, ErrLimitExceeded) {
			t.Errorf("a name of 256 bytes: %v", err)
		}
		for _, path := range []string{"..", "../x", "a/../..", "/etc", "a//b", "./a", "/"} {
			if _, err := created.open(path); !errors.Is(err, ErrUnsafePath) {
				t.Errorf("opening %q: %v, want ErrUnsafePath", path, err)
			}
		}
	})
}

// A link that was planted earlier in the tree must not lead a later entry anywhere, also not back inside.
func TestTargetNeverFollowsLinks(t *testing.T) {
	bothWays(t, func(t *testing.T, open func(string) *target) {
		base := t.TempDir()
		outside := filepath.Join(base, "outside")
		must(t, os.MkdirAll(filepath.Join(outside, "sub"), 0o755))
		must(t, os.WriteFile(filepath.Join(outside, "file"), []byte("mine"), 0o644))
		created := open(filepath.Join(base, "new"))
		defer created.finish(nil)
		root, err := created.open("")
		must(t, err)
		defer root.close()
		must(t, root.mkdir("real"))
		real, err := created.open("real")
		must(t, err)
		must(t, real.mkdir("sub"))
		real.close()
		for name, text := range map[string]string{"abs": outside, "rel": "../outside", "in": "real", "file": outside + "/file"} {
			must(t, root.symlink(text, name))
		}
		for _, path := range []string{"abs", "rel", "in", "abs/sub", "rel/sub", "in/sub", "file"} {
			if _, err := created.open(path); !errors.Is(err, ErrUnsafePath) {
				t.Errorf("opening %q: %v, want ErrUnsafePath", path, err)
			}
		}
		if _, err := root.openFile("file", unix.O_RDWR); !errors.Is(err, ErrUnsafePath) {
			t.Errorf("opening a link as a file: %v", err)
		}
		if _, err := root.createFile("file", 0o600); err == nil {
			t.Error("a file was created through a link")
		}
		// What is there stays what it is, whatever it is.
		for _, name := range []string{"abs", "real", "file"} {
			if err := root.mkdir(name); !errors.Is(err, ErrDamaged) {
				t.Errorf("a directory over %q: %v", name, err)
			}
			if err := root.symlink("x", name); !errors.Is(err, ErrDamaged) {
				t.Errorf("a link over %q: %v", name, err)
			}
		}
		// Metadata lands on the link.
		m := &metadata{mode: 0o777, uid: uint32(os.Geteuid()), gid: uint32(os.Getegid()), mtime: unix.Timespec{Sec: 1}, atime: unix.Timespec{Sec: 1}}
		before, err := os.Stat(outside + "/file")
		must(t, err)
		must(t, setMetadata(root.fd, "file", "file", m, &created.warnings))
		after, err := os.Stat(outside + "/file")
		must(t, err)
		if before.Mode() != after.Mode() || !before.ModTime().Equal(after.ModTime()) {
			t.Error("metadata was set through a link")
		}
	})
}

func TestTargetOpensDeepDirectories(t *testing.T) {
	bothWays(t, func(t *testing.T, open func(string) *target) {
		created := open(filepath.Join(t.TempDir(), "new"))
		name := strings.Repeat("d", 250)
		var path []string
		for range 40 { // 10,000 bytes, far beyond what one system call takes
			dir, err := created.open(strings.Join(path, "/"))
			must(t, err)
			must(t, dir.mkdir(name))
			dir.close()
			path = append(path, name)
		}
		parent := filepath.Dir(created.path)
		must(t, created.finish(nil))
		if entries, _ := os.ReadDir(parent); len(entries) != 0 {
			t.Errorf("not removed: %v", entries)
		}
	})
}

func TestTargetMustNotExist(t *testing.T) {
	base := t.TempDir()
	must(t, os.Mkdir(base+"/dir", 0o755))
	must(t, os.WriteFile(base+"/file", nil, 0o644))
	must(t, os.Symlink("nowhere", base+"/dangling"))
	for _, name := range []string{"dir", "file", "dangling", "dir/.", ".", "..", "dir/"} {
		if _, err := newTarget(base+"/"+name, false); !errors.Is(err, ErrTargetExists) {
			t.Errorf("%s: %v, want ErrTargetExists", name, err)
		}
	}
	if _, err := newTarget("/", false); !errors.Is(err, ErrTargetExists) {
		t.Errorf("/: %v, want ErrTargetExists", err)
	}
	if _, err := newTarget(base+"/missing/new", false); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("missing parent: %v", err)
	}
	if entries, _ := os.ReadDir(base); len(entries) != 3 {
		t.Errorf("something was created: %v", entries)
	}
}

// invariant 5: the final name appears by one rename, and never replaces what appeared meanwhile.
func TestTargetCommitNeverReplaces(t *testing.T) {
	for _, kind := range []string{"empty directory", "file", "directory"} {
		t.Run(kind, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "new")
			created, err := newTarget(path, false)
			must(t, err)
			switch kind {
			case "file":
				must(t, os.WriteFile(path, []byte("theirs"), 0o644))
			case "directory":
				must(t, os.MkdirAll(path+"/theirs", 0o755))
			default:
				must(t, os.Mkdir(path, 0o755))
			}
			var before, after unix.Stat_t
			must(t, unix.Lstat(path, &before))
			err = created.finish(created.commit(t.Context(), nil, nil))
			if !errors.Is(err, ErrTargetExists) {
				t.Errorf("commit: %v, want ErrTargetExists", err)
			}
			must(t, unix.Lstat(path, &after))
			if before.Ino != after.Ino {
				t.Error("what was there has been replaced")
			}
			if entries, _ := os.ReadDir(filepath.Dir(path)); len(entries) != 1 {
				t.Errorf("left behind: %v", entries)
			}
		})
	}
}

func TestTargetCommitFailuresLeaveNothing(t *testing.T) {
	cause := errors.New("not today")
	ended, cancel := context.WithCancelCause(t.Context())
	cancel(cause)
	for name, commit := range map[string]func(*target) error{
		"prepare": func(created *target) error {
			return created.commit(t.Context(), func(string) error { return cause }, nil)
		},
		"ended context": func(created *target) error { return created.commit(ended, nil, nil) },
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "new")
			created, err := newTarget(path, false)
			must(t, err)
			root, err := created.open("")
			must(t, err)
			must(t, root.mkdir("inside"))
			root.close()
			if err := created.finish(commit(created)); !errors.Is(err, cause) {
				t.Errorf("got %v, want %v", err, cause)
			}
			requireNothing(t, path)
		})
	}
}

func TestTargetPreparesBeforeTheRename(t *testing.T) {
	path := filepath.Join(t.TempDir(), "new")
	created, err := newTarget(path, false)
	must(t, err)
	err = created.finish(created.commit(t.Context(), func(dir string) error {
		if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the target is there before the rename: %v", err)
		}
		return os.WriteFile(filepath.Join(dir, "identity"), []byte("x"), 0o600)
	}, nil))
	must(t, err)
	if _, err := os.Stat(path + "/identity"); err != nil {
		t.Error(err)
	}
}

// What a killed process left is removed by the next one; what a live one is filling is not.
func TestTargetRemovesOnlyAbandoned(t *testing.T) {
	base := t.TempDir()
	path := filepath.Join(base, "new")
	abandoned := filepath.Join(base, ".new.restoring-0123456789abcdef")
	must(t, os.MkdirAll(abandoned+"/a/b", 0o700))
	must(t, os.Chmod(abandoned+"/a", 0))
	kept := []string{".new.restoring-short", ".new.restoring-0123456789abcdeX", ".other.restoring-0123456789abcdef", ".newer"}
	for _, name := range kept {
		must(t, os.Mkdir(filepath.Join(base, name), 0o700))
	}
	live, err := newTarget(path, false)
	must(t, err)
	if _, err := os.Lstat(abandoned); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the abandoned directory is still there: %v", err)
	}
	second, err := newTarget(path, false)
	must(t, err)
	must(t, second.finish(second.commit(t.Context(), nil, nil)))
	kept = append(kept, live.temp)
	for _, name := range kept {
		if _, err := os.Lstat(filepath.Join(base, name)); err != nil {
			t.Errorf("removed although not abandoned: %v", err)
		}
	}
	if err := live.finish(live.commit(t.Context(), nil, nil)); !errors.Is(err, ErrTargetExists) {
		t.Errorf("the slower one: %v", err)
	}
}

func TestRemoveTreeNeverLeaves(t *testing.T) {
	base := t.TempDir()
	must(t, os.MkdirAll(base+"/keep/dir", 0o755))
	must(t, os.WriteFile(base+"/keep/file", []byte("x"), 0o644))
	must(t, os.MkdirAll(base+"/gone/a/b/c", 0o755))
	must(t, os.Symlink("../../keep", base+"/gone/a/link"))
	must(t, os.Symlink(base+"/keep", base+"/gone/abs"))
	must(t, os.Link(base+"/keep/file", base+"/gone/a/b/hard"))
	must(t, os.Chmod(base+"/gone/a/b", 0o000))
	parent, err := unix.Open(base, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	must(t, err)
	defer unix.Close(parent)
	must(t, removeTree(parent, "gone"))
	must(t, removeTree(parent, "gone"))
	entries, err := os.ReadDir(base)
	must(t, err)
	if len(entries) != 1 {
		t.Errorf("left: %v", entries)
	}
	for _, name := range []string{"keep/dir", "keep/file"} {
		if _, err := os.Stat(filepath.Join(base, name)); err != nil {
			t.Error(err)
		}
	}
}

func TestRemoveTreeAsOrdinaryUser(t *testing.T) {
	if base := os.Getenv("SNAPSHOT_TEST_REMOVE"); base != "" {
		parent, err := unix.Open(base, unix.O_RDONLY|unix.O_DIRECTORY, 0)
		must(t, err)
		must(t, os.MkdirAll(base+"/gone/a/b/c", 0o755))
		must(t, os.WriteFile(base+"/gone/a/b/file", nil, 0o000))
		for _, dir := range []string{"gone/a/b/c", "gone/a/b", "gone/a", "gone"} {
			must(t, os.Chmod(filepath.Join(base, dir), map[bool]os.FileMode{true: 0o500, false: 0}[dir == "gone/a"]))
		}
		must(t, removeTree(parent, "gone"))
		if _, err := os.Lstat(base + "/gone"); !errors.Is(err, os.ErrNotExist) {
			t.Error(err)
		}
		return
	}
	asNobody(t, "TestRemoveTreeAsOrdinaryUser", "SNAPSHOT_TEST_REMOVE="+worldDir(t))
}

func TestWriteSparse(t *testing.T) {
	dir := t.TempDir()
	data := make([]byte, 200<<10)
	for _, at := range []int{0, 4095, 4096, 50_000, 100 << 10, 200<<10 - 1} {
		data[at] = 1
	}
	for _, pieces := range []int{1, 4095, 4096, 4097, 70_000, len(data)} {
		if pieces == 1 {
			pieces = 333
		}
		file, err := os.Create(filepath.Join(dir, fmt.Sprint(pieces)))
		must(t, err)
		for offset := 0; offset < len(data); offset += pieces {
			must(t, writeSparse(int(file.Fd()), data[offset:min(len(data), offset+pieces)], int64(offset)))
		}
		must(t, file.Truncate(int64(len(data))))
		must(t, file.Close())
		got, err := os.ReadFile(file.Name())
		must(t, err)
		if !slices.Equal(got, data) {
			t.Errorf("pieces of %d: content differs", pieces)
		}
		var stat unix.Stat_t
		must(t, unix.Stat(file.Name(), &stat))
		if pieces >= 4096*3 && stat.Blocks*512 > 8*4096 {
			t.Errorf("pieces of %d: %d bytes allocated, the zeros are no holes", pieces, stat.Blocks*512)
		}
	}
}
