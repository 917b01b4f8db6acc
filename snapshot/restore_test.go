package snapshot

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// Everything that DESIGN 8 lists comes back as it was, from a snapshot that stock restic made (A13+), as root and as an
// ordinary user.
func TestRestoreFidelityFromRestic(t *testing.T) {
	if base := os.Getenv("SNAPSHOT_TEST_FIDELITY"); base != "" {
		restoreFidelity(t, base, describeRestic(t, base+"/restic"))
		return
	}
	eachRestic(t, func(t *testing.T, restic resticVersion) {
		t.Run("self", func(t *testing.T) { restoreFidelity(t, t.TempDir(), restic) })
		if restic.old {
			return // who restores has nothing to do with which restic wrote it, and the newest stores all of the tree
		}
		t.Run("ordinary user", func(t *testing.T) {
			base := worldDir(t)
			copyProgram(t, restic.path, base+"/restic")
			asNobody(t, "TestRestoreFidelityFromRestic", "SNAPSHOT_TEST_FIDELITY="+base)
		})
	})
}

func restoreFidelity(t *testing.T, base string, restic resticVersion) {
	source := filepath.Join(base, "source")
	buildFidelityTree(t, source)
	must(t, os.Remove(source+"/fifo too")) // no restic stores that it is the same as another one
	if restic.old {                        // two things that it does not store as they are
		must(t, os.Remove(source+"/dangling"))
		_ = unix.Lremovexattr(source+"/link", "trusted.on_a_link")
	}
	openClosed(t, source)
	r := resticRepository(t, restic.path, base+"/repository", source)
	target := filepath.Join(base, "target")
	var last Progress
	report, err := r.Restore(t.Context(), "latest", target, RestoreOptions{Path: source, Progress: func(p Progress) { last = p }})
	must(t, err)
	if len(report.Warnings) > 0 {
		t.Errorf("warnings: %v", report.Warnings)
	}
	if last.Files != report.Files || last.Bytes != report.Bytes || last.TotalFiles != report.Files {
		t.Errorf("progress ended at %+v, the report says %+v", last, report)
	}
	compareTrees(t, source, target)
	requireHoles(t, target+"/sparse")
	// The whole snapshot has the absolute path in it.
	whole := filepath.Join(base, "whole")
	_, err = r.Restore(t.Context(), "latest", whole, RestoreOptions{})
	must(t, err)
	compareTrees(t, source, whole+source)
	// One file of it.
	one := filepath.Join(base, "one")
	report, err = r.Restore(t.Context(), "latest", one, RestoreOptions{Path: source + "/setgid dir/in"})
	must(t, err)
	content, err := os.ReadFile(one + "/in")
	if err != nil || string(content) != "in" || report.Files != 1 {
		t.Errorf("one file: %q, %v, %+v", content, err, report)
	}
	for _, missing := range []string{"/no", source + "/no", source + "/plain file/below", source + "/link/below"} {
		if _, err := r.Restore(t.Context(), "latest", base+"/missing", RestoreOptions{Path: missing}); !errors.Is(err, ErrNoPath) {
			t.Errorf("%s: %v, want ErrNoPath", missing, err)
		}
		requireNothing(t, base+"/missing")
	}
}

// openClosed lets an ordinary user read what it wants to back up; root reads everything anyway.
func openClosed(t *testing.T, source string) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	must(t, os.Chmod(source+"/closed", 0o500))
	must(t, os.Chmod(source+"/closed/inner", 0o500))
	must(t, os.Chmod(source+"/unreadable", 0o400))
}

// What an ordinary user may not set is a warning; the content is there, and set-id bits are not given to the wrong owner.
func TestRestoreAsOrdinaryUserWarns(t *testing.T) {
	if base := os.Getenv("SNAPSHOT_TEST_WARNS"); base != "" {
		c := newCrafter(t, memoryRepository(t))
		setuid := c.fileNode("setuid", "x")
		setuid.Mode = 0o755 | os.ModeSetuid
		device := node{Name: "disk", Type: "dev", Mode: 0o660 | os.ModeDevice, Device: unix.Mkdev(8, 0)}
		closed := dirNode("closed", c.tree(c.fileNode("in", "in"), dirNode("inner", c.tree(c.fileNode("deep", "deep")))))
		closed.Mode, closed.UID = 0, uint32(os.Geteuid())
		id := c.snapshot(c.tree(closed, device, setuid))
		target := filepath.Join(base, "target")
		report, err := c.repository.Restore(t.Context(), id, target, RestoreOptions{})
		must(t, err)
		all := strings.Join(report.Warnings, "\n")
		for _, want := range []string{"setuid: owner 0:0 not set", "set-user-id", "disk: device 8:0 not made"} {
			if !strings.Contains(all, want) {
				t.Errorf("no warning says %q:\n%s", want, all)
			}
		}
		stat, err := os.Lstat(target + "/setuid")
		must(t, err)
		if stat.Mode() != 0o755 {
			t.Errorf("mode %v", stat.Mode())
		}
		must(t, os.Chmod(target+"/closed", 0o700))
		if content, err := os.ReadFile(target + "/closed/in"); err != nil || string(content) != "in" {
			t.Errorf("%q, %v", content, err)
		}
		return
	}
	asNobody(t, "TestRestoreAsOrdinaryUserWarns", "SNAPSHOT_TEST_WARNS="+worldDir(t))
}

// Whatever a repository holds, nothing outside of the target changes, and nothing half done stays.
func TestRestoreHostileRepositories(t *testing.T) {
	raw := func(c *crafter, json string) blobID { return c.blob(treeBlob, []byte(json)) }
	for name, test := range map[string]struct {
		root func(c *crafter, outside string) blobID
		want error
	}{
		"dot dot":    {func(c *crafter, _ string) blobID { return c.tree(dirNode("..", c.tree(c.fileNode("evil", "x")))) }, ErrUnsafePath},
		"dot":        {func(c *crafter, _ string) blobID { return c.tree(dirNode(".", c.tree(c.fileNode("evil", "x")))) }, ErrUnsafePath},
		"empty name": {func(c *crafter, _ string) blobID { return c.tree(c.fileNode("", "x")) }, ErrUnsafePath},
		"slash":      {func(c *crafter, _ string) blobID { return c.tree(c.fileNode("../outside/evil", "x")) }, ErrUnsafePath},
		"absolute":   {func(c *crafter, outside string) blobID { return c.tree(c.fileNode(outside+"/evil", "x")) }, ErrUnsafePath},
		"quoted slash": {func(c *crafter, _ string) blobID {
			return raw(c, `{"nodes":[{"name":"..\\x2foutside\\x2fevil","type":"file","uid":0,"gid":0,"content":[]}]}`)
		}, ErrUnsafePath},
		"NUL": {func(c *crafter, _ string) blobID {
			return raw(c, `{"nodes":[{"name":"a\\x00b","type":"file","uid":0,"gid":0,"content":[]}]}`)
		}, ErrUnsafePath},
		"link, then a directory of the same name": {func(c *crafter, outside string) blobID {
			return c.tree(linkNode("a", outside), dirNode("a", c.tree(c.fileNode("evil", "x"))))
		}, ErrDamaged},
		"link, then a file of the same name": {func(c *crafter, outside string) blobID {
			return c.tree(linkNode("a", outside+"/file"), c.fileNode("a", "x"))
		}, ErrDamaged},
		"the same name in another order": {func(c *crafter, outside string) blobID {
			return c.tree(linkNode("a", outside), c.fileNode("b", "x"), dirNode("a", c.tree(c.fileNode("evil", "x"))))
		}, ErrDamaged},
		"a long name": {func(c *crafter, _ string) blobID { return c.tree(c.fileNode(strings.Repeat("n", 300), "x")) }, ErrLimitExceeded},
		"a directory without a tree": {func(c *crafter, _ string) blobID {
			return raw(c, `{"nodes":[{"name":"a","type":"dir","uid":0,"gid":0}]}`)
		}, ErrDamaged},
		"an unknown kind": {func(c *crafter, _ string) blobID {
			return raw(c, `{"nodes":[{"name":"a","type":"wormhole","uid":0,"gid":0}]}`)
		}, ErrDamaged},
		"no JSON":        {func(c *crafter, _ string) blobID { return raw(c, "tree") }, ErrDamaged},
		"a missing tree": {func(c *crafter, _ string) blobID { return c.tree(dirNode("a", blobID{1, 2, 3})) }, ErrDamaged},
		"a missing blob": {func(c *crafter, _ string) blobID { n := c.fileNode("a", "x"); n.Content[0][0]++; return c.tree(n) }, ErrDamaged},
		"a tree as data": {func(c *crafter, _ string) blobID {
			n := c.fileNode("a", "x")
			n.Content = []blobID{c.tree()}
			return c.tree(n)
		}, ErrDamaged},
		"a link to \"\"":  {func(c *crafter, _ string) blobID { return c.tree(linkNode("a", "")) }, ErrDamaged},
		"a link with NUL": {func(c *crafter, _ string) blobID { return c.tree(linkNode("a", "a\x00b")) }, ErrDamaged},
		"directories deeper than any path": {func(c *crafter, _ string) blobID {
			tree := c.tree(c.fileNode("bottom", "x"))
			for range maxDepth + 1 {
				tree = c.tree(dirNode("d", tree))
			}
			return tree
		}, ErrLimitExceeded},
		"billions of entries": {func(c *crafter, _ string) blobID {
			tree := c.tree(c.fileNode("leaf", "x"))
			for range 12 {
				var nodes []node
				for i := range 10 {
					nodes = append(nodes, dirNode(fmt.Sprint(i), tree))
				}
				tree = c.tree(nodes...)
			}
			return tree
		}, ErrLimitExceeded},
		"a gigabyte of zeros": {func(c *crafter, _ string) blobID {
			n := c.fileNode("huge", strings.Repeat("\x00", 1<<20))
			for len(n.Content) < 1024 {
				n.Content = append(n.Content, n.Content[0])
			}
			return c.tree(n)
		}, nil},
		"a link that leads outside": {func(c *crafter, outside string) blobID {
			return c.tree(dirNode("dir", c.tree(c.fileNode("evil", "x"))), linkNode("dir2", outside))
		}, nil},
		"a size that is not true": {func(c *crafter, _ string) blobID {
			n := c.fileNode("a", "x")
			n.Size = 1 << 62
			return c.tree(n)
		}, nil},
		"another file's inode": {func(c *crafter, _ string) blobID {
			a, b := c.fileNode("a", "first"), c.fileNode("b", "second")
			a.Links, a.Inode, b.Links, b.Inode = 2, 7, 2, 7
			return c.tree(a, b)
		}, nil},
		"a socket": {func(c *crafter, _ string) blobID {
			return c.tree(c.fileNode("a", "x"), node{Name: "s", Type: "socket"})
		}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			base := t.TempDir()
			outside := filepath.Join(base, "outside")
			must(t, os.MkdirAll(outside, 0o755))
			must(t, os.WriteFile(outside+"/file", []byte("theirs"), 0o640))
			before := treeRecords(t, outside)
			c := newCrafter(t, memoryRepository(t))
			id := c.snapshot(test.root(c, outside))
			target := filepath.Join(base, "target")
			report, err := c.repository.restore(t.Context(), id, target, RestoreOptions{}, 10_000)
			if !errors.Is(err, test.want) || (test.want == nil) != (err == nil) {
				t.Errorf("got %v, want %v", err, test.want)
			}
			if err != nil {
				requireNothing(t, target)
			}
			if after := treeRecords(t, outside); !maps.Equal(before, after) {
				t.Errorf("outside was changed: %v", after)
			}
			switch name {
			case "another file's inode":
				b, _ := os.ReadFile(target + "/b")
				if string(b) != "second" || len(report.Warnings) == 0 {
					t.Errorf("b is %q, warnings %v", b, report.Warnings)
				}
			case "a size that is not true", "a socket":
				a, _ := os.ReadFile(target + "/a")
				if string(a) != "x" || len(report.Warnings) == 0 {
					t.Errorf("a is %q, warnings %v", a, report.Warnings)
				}
			case "a gigabyte of zeros":
				requireHoles(t, target+"/huge")
			}
		})
	}
}

// Trees are checked when they are decoded. Should that barrier fail, the plan and the target are two more.
func TestPlanChecksNamesItself(t *testing.T) {
	for _, names := range [][]string{{".."}, {"a/b"}, {""}, {"."}, {"a", "a"}, {"b", "a"}, {"a\x00"}} {
		p := &planner{plan: &plan{dirs: []plannedDir{{}}}, warnings: &warningList{}, links: map[inodeKey]int32{}}
		var nodes []node
		for _, name := range names {
			nodes = append(nodes, linkNode(name, "x"))
		}
		_, err := p.addDir(0, nodes)
		if !errors.Is(err, ErrUnsafePath) && !errors.Is(err, ErrDamaged) {
			t.Errorf("%q: %v", names, err)
		}
	}
}

func TestRestoreRefusesAnExistingTarget(t *testing.T) {
	c := newCrafter(t, memoryRepository(t))
	id := c.snapshot(c.someTree())
	for _, kind := range []string{"empty directory", "file"} {
		target := filepath.Join(t.TempDir(), "target")
		if kind == "file" {
			must(t, os.WriteFile(target, []byte("theirs"), 0o600))
		} else {
			must(t, os.Mkdir(target, 0o700))
		}
		if _, err := c.repository.Restore(t.Context(), id, target, RestoreOptions{}); !errors.Is(err, ErrTargetExists) {
			t.Errorf("%s: %v", kind, err)
		}
		if entries, _ := os.ReadDir(filepath.Dir(target)); len(entries) != 1 {
			t.Errorf("%s: %v", kind, entries)
		}
	}
	if _, err := c.repository.Restore(t.Context(), "abcdef", t.TempDir()+"/new", RestoreOptions{}); !errors.Is(err, ErrNoSnapshot) {
		t.Errorf("no such snapshot: %v", err)
	}
}
