package snapshot

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"holdfast/storage"
	"holdfast/storage/storagetest"
)

// Whatever has become of the unfinished directory, the next restore makes exactly the snapshot of it: only what has the
// right hash stays, nothing that was planted does, and nothing outside is touched. invariant 5
func TestRestoreBelievesNothingLeftOver(t *testing.T) {
	t.Parallel()
	source := resumeSource(t)
	metered := &meteredGets{Provider: storagetest.NewMemory()}
	r := newTestRepository(t, storage.PolicyAll, metered)
	made, err := r.Backup(t.Context(), source, BackupOptions{})
	must(t, err)
	largest := int64(0) // stored bytes of any one blob
	r.eachBlob(func(b packedBlob) bool { largest = max(largest, int64(b.location.length)); return true })
	poke := func(path string, at int64) error {
		file, err := os.OpenFile(path, os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		_, err = file.WriteAt([]byte("tampered"), at)
		return errors.Join(err, file.Close())
	}
	swap := func(path string, make func() error) error { return errors.Join(os.RemoveAll(path), make()) }
	for name, test := range map[string]struct {
		spoil   func(dir, outside string) error
		fetches bool // something has to be fetched again
	}{
		"nothing":              {func(string, string) error { return nil }, false},
		"a byte of a blob":     {func(dir, _ string) error { return poke(dir+"/large", 5<<20) }, true},
		"a small file":         {func(dir, _ string) error { return poke(dir+"/small/1/f1", 0) }, true},
		"a hole filled":        {func(dir, _ string) error { return poke(dir+"/everything/sparse", 4<<20) }, true},
		"a file cut short":     {func(dir, _ string) error { return os.Truncate(dir+"/large", 9<<20-1) }, true},
		"a file grown":         {func(dir, _ string) error { return os.Truncate(dir+"/large", 12<<20) }, false},
		"an empty file grown":  {func(dir, _ string) error { return os.Truncate(dir+"/everything/empty", 5) }, false},
		"a file removed":       {func(dir, _ string) error { return os.Remove(dir + "/small/1/f1") }, true},
		"a directory removed":  {func(dir, _ string) error { return os.RemoveAll(dir + "/small/1") }, true},
		"a mode and attribute": {func(dir, _ string) error { return strange(dir + "/small/1/f1") }, false},
		"a directory's":        {func(dir, _ string) error { return strange(dir + "/small/1") }, false},
		"planted entries": {func(dir, outside string) error {
			return errors.Join(os.MkdirAll(dir+"/small/planted/deep", 0o755), os.WriteFile(dir+"/small/planted/deep/f", nil, 0o600),
				os.Symlink(outside, dir+"/small/link"), os.Link(outside+"/file", dir+"/hard"), unix.Mkfifo(dir+"/fifo", 0o600))
		}, false},
		"a link instead of a file": {func(dir, outside string) error {
			return swap(dir+"/small/1/f1", func() error { return os.Symlink(outside+"/file", dir+"/small/1/f1") })
		}, true},
		"a link instead of a directory": {func(dir, outside string) error {
			return swap(dir+"/small/1", func() error { return os.Symlink(outside+"/tree", dir+"/small/1") })
		}, true},
		"a link with another text": {func(dir, outside string) error {
			return swap(dir+"/everything/link", func() error { return os.Symlink(outside, dir+"/everything/link") })
		}, false},
		"another file of the same content under a name elsewhere": {func(dir, outside string) error {
			return swap(dir+"/small/1/f1", func() error { return os.Link(outside+"/same", dir+"/small/1/f1") })
		}, true},
		"a directory instead of a file": {func(dir, _ string) error {
			return swap(dir+"/small/1/f1", func() error { return os.MkdirAll(dir+"/small/1/f1/below", 0o700) })
		}, true},
		"a file instead of a directory": {func(dir, _ string) error {
			return swap(dir+"/small/1", func() error { return os.WriteFile(dir+"/small/1", []byte("x"), 0o600) })
		}, true},
		"a FIFO instead of a file": {func(dir, _ string) error {
			return swap(dir+"/small/1/f1", func() error { return unix.Mkfifo(dir+"/small/1/f1", 0o600) })
		}, true},
		"names of one file torn apart": {func(dir, _ string) error {
			content, err := os.ReadFile(dir + "/dir/linked")
			return errors.Join(err, swap(dir+"/a second name", func() error { return os.WriteFile(dir+"/a second name", content, 0o600) }))
		}, false},
	} {
		t.Run(name, func(t *testing.T) {
			base := t.TempDir()
			outside, target := filepath.Join(base, "outside"), filepath.Join(base, "restored", "target")
			same, err := os.ReadFile(source + "/small/1/f1")
			must(t, err)
			writeFiles(t, outside, map[string][]byte{"file": []byte("theirs"), "same": same, "tree/f1": same, "tree/f5": []byte("theirs")})
			must(t, os.Mkdir(filepath.Dir(target), 0o755))
			left := cutRestore(t, r, made.Snapshot, target)
			_, plain := missing(t, r, made.Snapshot, left)
			if plain != 0 {
				t.Fatalf("%d bytes are missing before anything was spoilt", plain)
			}
			linked := name == "another file of the same content under a name elsewhere"
			before := treeRecords(t, outside)
			must(t, test.spoil(left, outside))
			metered.content(r)
			report, err := r.Restore(t.Context(), made.Snapshot, target, RestoreOptions{})
			must(t, err)
			compareTrees(t, source, target)
			requireOnly(t, target)
			requireHoles(t, target+"/everything/sparse")
			compareRecords(t, before, treeRecords(t, outside))
			fetched := metered.content(r)
			if (fetched > 0) != test.fetches {
				t.Errorf("%d bytes were fetched", fetched)
			}
			if name != "a directory removed" && name != "a link instead of a directory" && name != "a file instead of a directory" && fetched > largest {
				t.Errorf("%d bytes were fetched for one blob of at most %d", fetched, largest)
			}
			if (report.Reused < report.Bytes) != test.fetches {
				t.Errorf("%d of %d bytes were reused", report.Reused, report.Bytes)
			}
			if linked {
				var stat unix.Stat_t
				must(t, unix.Stat(outside+"/same", &stat))
				if stat.Nlink != 1 {
					t.Errorf("what is outside has %d names", stat.Nlink)
				}
			}
		})
	}
}

// strange gives a file or directory a mode and attributes that no snapshot has.
func strange(path string) error {
	acl := []byte{2, 0, 0, 0, 1, 0, 7, 0, 255, 255, 255, 255, 2, 0, 7, 0, 57, 5, 0, 0, 4, 0, 7, 0, 255, 255, 255, 255,
		16, 0, 7, 0, 255, 255, 255, 255, 32, 0, 7, 0, 255, 255, 255, 255}
	_ = unix.Setxattr(path, "system.posix_acl_default", acl, 0) // of a directory, where there are ACLs
	if err := unix.Setxattr(path, "user.planted", []byte("x"), 0); err != nil && !errors.Is(err, unix.ENOTSUP) {
		return err
	}
	return unix.Chmod(path, 0o7777)
}

// A directory that somebody else could have written to is not gone on with, and not left.
func TestRestoreTrustsOnlyItsOwnLeftOver(t *testing.T) {
	c := newCrafter(t, memoryRepository(t))
	id := c.snapshot(c.someTree())
	for name, change := range map[string]func(dir string) error{
		"open to others": func(dir string) error { return os.Chmod(dir, 0o755) },
		"of another user": func(dir string) error {
			requireRoot(t)
			return os.Chown(dir, 65534, 65534)
		},
	} {
		t.Run(name, func(t *testing.T) {
			target := filepath.Join(t.TempDir(), "target")
			must(t, change(cutRestore(t, c.repository, id, target)))
			report, err := c.repository.Restore(t.Context(), id, target, RestoreOptions{})
			must(t, err)
			if report.Reused != 0 {
				t.Errorf("%d bytes were believed", report.Reused)
			}
			requireOnly(t, target)
		})
	}
}

// A crashed attempt that wrote half of a blob, or whose zeros stand where a hole belongs, is mended with holes.
func TestRestoreMendsHalfWrittenFiles(t *testing.T) {
	c := newCrafter(t, memoryRepository(t))
	content := append(bytes.Repeat([]byte{'x'}, 20_000), make([]byte, 1<<20)...)
	content = append(content, bytes.Repeat([]byte{'y'}, 20_000)...)
	n := c.fileNode("file", string(content))
	tail := c.fileNode("tail", strings.Repeat("z", 10_000))
	n.Content, n.Size = append(n.Content, tail.Content...), n.Size+tail.Size
	id := c.snapshot(c.tree(n))
	target := filepath.Join(t.TempDir(), "target")
	left := cutRestore(t, c.repository, id, target)
	must(t, os.WriteFile(left+"/file", append(bytes.Repeat([]byte{0xff}, len(content)), strings.Repeat("z", 10_000)...), 0o600))
	report, err := c.repository.Restore(t.Context(), id, target, RestoreOptions{})
	must(t, err)
	if report.Reused != 10_000 {
		t.Errorf("%d bytes were reused", report.Reused)
	}
	got, err := os.ReadFile(target + "/file")
	must(t, err)
	if !bytes.Equal(got, append(content, strings.Repeat("z", 10_000)...)) {
		t.Error("the content differs")
	}
	requireHoles(t, target+"/file")
}
