package snapshot

import (
	"bytes"
	"math/rand"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"holdfast/storage"
)

// randomBytes are the same for the same seed, and cannot be compressed.
func randomBytes(seed int64, n int) []byte {
	b := make([]byte, n)
	rand.New(rand.NewSource(seed)).Read(b)
	return b
}

func writeFiles(t testing.TB, root string, files map[string][]byte) {
	t.Helper()
	for name, content := range files {
		path := filepath.Join(root, name)
		require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
		require.NoError(t, os.WriteFile(path, content, 0o644))
	}
}

// dumped is one file of a snapshot.
func dumped(t testing.TB, r *Repository, snapshot, path string) []byte {
	t.Helper()
	s, err := r.resolveSnapshot(t.Context(), snapshot)
	require.NoError(t, err)
	tree := *s.Tree
	names := strings.Split(path, "/")
	for i, name := range names {
		nodes, err := r.loadTree(t.Context(), tree)
		require.NoError(t, err)
		n := (&scanDir{previous: nodes}).previousNode(name)
		require.NotNil(t, n, "the snapshot has no %s", path)
		if i < len(names)-1 {
			tree = *n.Subtree
			continue
		}
		content := []byte{}
		for _, id := range n.Content {
			blob, err := r.loadBlob(t.Context(), id, dataBlob)
			require.NoError(t, err)
			content = append(content, blob...)
		}
		require.Equal(t, int(n.Size), len(content))
		return content
	}
	return nil
}

func hasEntry(t testing.TB, r *Repository, snapshot, name string) bool {
	t.Helper()
	return entryType(t, r, snapshot, name) != ""
}

// entryType is the type of an entry at the top of a snapshot, "" when there is none.
func entryType(t testing.TB, r *Repository, snapshot, name string) string {
	t.Helper()
	s, err := r.resolveSnapshot(t.Context(), snapshot)
	require.NoError(t, err)
	nodes, err := r.loadTree(t.Context(), *s.Tree)
	require.NoError(t, err)
	if n := (&scanDir{previous: nodes}).previousNode(name); n != nil {
		return n.Type
	}
	return ""
}

func wholeMemoryRepository(t testing.TB) *Repository {
	t.Helper()
	_, providers := memories(1)
	return newTestRepository(t, storage.PolicyAll, providers...)
}

// TestUnchangedFilesAreTakenOver: what is as it was is not read again, whatever else changed.
func TestUnchangedFilesAreTakenOver(t *testing.T) {
	r := wholeMemoryRepository(t)
	dir := t.TempDir()
	writeFiles(t, dir, map[string][]byte{"a": []byte("a"), "d/b": randomBytes(1, 3<<20), "d/e/c": []byte("c"), "d/g": []byte("gone soon")})
	first, err := r.Backup(t.Context(), dir, BackupOptions{})
	require.NoError(t, err)
	var read []string
	var mu sync.Mutex
	r.moments.read = func(path string, _ int) { mu.Lock(); read = append(read, path); mu.Unlock() }

	again, err := r.Backup(t.Context(), dir, BackupOptions{})
	require.NoError(t, err)
	require.Empty(t, read)
	require.Equal(t, first.Tree, again.Tree)
	require.Equal(t, first.Snapshot, again.Parent)
	require.Zero(t, again.BytesAdded)
	require.Zero(t, again.PacksUploaded)
	require.Equal(t, first.StatDigest, again.StatDigest)
	require.Equal(t, first.Bytes, again.Bytes)

	// A change that puts size and mtime back still shows.
	stat, err := os.Stat(filepath.Join(dir, "d/e/c"))
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "d/e/c"), []byte("C"), 0o644))
	require.NoError(t, os.Chtimes(filepath.Join(dir, "d/e/c"), stat.ModTime(), stat.ModTime()))
	require.NoError(t, os.Remove(filepath.Join(dir, "d/g")))
	third, err := r.Backup(t.Context(), dir, BackupOptions{Kind: Final})
	require.NoError(t, err)
	require.Equal(t, []string{"d/e/c"}, read)
	require.Equal(t, "C", string(dumped(t, r, third.Snapshot, "d/e/c")))

	// Another host's snapshot is nobody's parent.
	other, err := r.Backup(t.Context(), dir, BackupOptions{Hostname: "elsewhere"})
	require.NoError(t, err)
	require.Empty(t, other.Parent)
	require.Zero(t, other.BytesAdded)
}

// TestFilesThatChangeWhileRead: a file is read again until it was left alone, three times at most, and is named if it
// never was (A14).
func TestFilesThatChangeWhileRead(t *testing.T) {
	for name, test := range map[string]struct {
		change  func(t *testing.T, path string, attempt int)
		omitted bool
		want    func(content []byte) bool
	}{
		"once": {
			change: func(t *testing.T, path string, attempt int) {
				if attempt == 1 {
					assert.NoError(t, os.WriteFile(path, []byte("second"), 0o644))
				}
			},
			want: func(content []byte) bool { return string(content) == "second" },
		},
		"once, times put back": {
			change: func(t *testing.T, path string, attempt int) {
				if attempt == 1 {
					stat, err := os.Stat(path)
					assert.NoError(t, err)
					assert.NoError(t, os.WriteFile(path, []byte("FIRST"), 0o644))
					assert.NoError(t, os.Chtimes(path, stat.ModTime(), stat.ModTime()))
				}
			},
			want: func(content []byte) bool { return string(content) == "FIRST" },
		},
		"always": {
			change: func(t *testing.T, path string, attempt int) {
				assert.NoError(t, os.WriteFile(path, bytes.Repeat([]byte{byte(attempt)}, 10+attempt), 0o644))
			},
			omitted: true,
			want:    func(content []byte) bool { return len(content) >= 11 },
		},
		"becomes shorter": {
			change:  func(t *testing.T, path string, attempt int) { assert.NoError(t, os.Truncate(path, int64(3-attempt))) },
			omitted: true,
			want:    func(content []byte) bool { return len(content) <= 3 },
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := wholeMemoryRepository(t)
			dir := t.TempDir()
			writeFiles(t, dir, map[string][]byte{"f": []byte("first"), "other": []byte("still")})
			r.moments.read = func(path string, attempt int) {
				if path == "f" {
					test.change(t, filepath.Join(dir, path), attempt)
				}
			}
			result, err := r.Backup(t.Context(), dir, BackupOptions{})
			require.NoError(t, err)
			content := dumped(t, r, result.Snapshot, "f")
			require.True(t, test.want(content), "%q", content)
			digest, err := StatDigest(t.Context(), dir, nil)
			require.NoError(t, err)
			stored, err := r.Omissions(t.Context(), result.Snapshot)
			require.NoError(t, err)
			require.Equal(t, result.Omissions, stored, "the snapshot carries the list (A14)")
			if !test.omitted {
				require.Empty(t, result.Omissions)
				require.Equal(t, digest, result.StatDigest)
				return
			}
			require.Len(t, result.Omissions, 1)
			require.Equal(t, Omission{Path: "f", Kind: OmissionChanged, Reason: "it changed each of 3 times that it was read"}, result.Omissions[0])
			require.NotEqual(t, digest, result.StatDigest, "what is stored is not what is there (invariant 1)")
			require.Zero(t, result.Unreadable)

			// What may be mixed is never taken over.
			reads := 0
			r.moments.read = func(string, int) { reads++ }
			result, err = r.Backup(t.Context(), dir, BackupOptions{})
			require.NoError(t, err)
			require.Equal(t, 1, reads)
			require.Empty(t, result.Omissions)
			now, err := os.ReadFile(filepath.Join(dir, "f"))
			require.NoError(t, err)
			require.Equal(t, now, dumped(t, r, result.Snapshot, "f"))
		})
	}
}

// TestGrowingLargeFile: the same for a file of many chunks.
func TestGrowingLargeFile(t *testing.T) {
	r := wholeMemoryRepository(t)
	dir := t.TempDir()
	content := randomBytes(3, 5<<20)
	writeFiles(t, dir, map[string][]byte{"f": content})
	r.moments.read = func(path string, attempt int) {
		if attempt == 1 {
			content = append(content, randomBytes(4, 2<<20)...)
			assert.NoError(t, os.WriteFile(filepath.Join(dir, path), content, 0o644))
		}
	}
	result, err := r.Backup(t.Context(), dir, BackupOptions{})
	require.NoError(t, err)
	require.Empty(t, result.Omissions)
	require.True(t, bytes.Equal(content, dumped(t, r, result.Snapshot, "f")))
}

// TestEntriesReplacedAfterTheListing: nothing but regular files is ever opened, no link is followed, and what is gone is
// no omission of a live snapshot.
func TestEntriesReplacedAfterTheListing(t *testing.T) {
	outside := filepath.Join(t.TempDir(), "outside")
	require.NoError(t, os.WriteFile(outside, []byte("not ours"), 0o644))
	for name, test := range map[string]struct {
		replace func(t *testing.T, path string)
		want    string
		omitted map[Kind]bool
	}{
		"vanished":  {func(*testing.T, string) {}, "", map[Kind]bool{Final: true}},
		"a FIFO":    {func(t *testing.T, path string) { require.NoError(t, unix.Mkfifo(path, 0o600)) }, "fifo", nil},
		"a link":    {func(t *testing.T, path string) { require.NoError(t, os.Symlink(outside, path)) }, "symlink", nil},
		"a file":    {func(t *testing.T, path string) { require.NoError(t, os.WriteFile(path, []byte("new"), 0o600)) }, "file", nil},
		"a socket":  {makeSocket, "", map[Kind]bool{Live: true, Final: true}},
		"directory": {func(t *testing.T, path string) { require.NoError(t, os.Mkdir(path, 0o700)) }, "", map[Kind]bool{Live: true, Final: true}},
	} {
		for _, kind := range []Kind{Live, Final} {
			t.Run(name+" "+string(kind), func(t *testing.T) {
				r := wholeMemoryRepository(t)
				// A short path, since a socket's is limited.
				dir, err := os.MkdirTemp("", "h")
				require.NoError(t, err)
				defer os.RemoveAll(dir)
				writeFiles(t, dir, map[string][]byte{"f": []byte("first"), "other": []byte("still")})
				r.moments.listed = func(string) {
					assert.NoError(t, os.Remove(filepath.Join(dir, "f")))
					test.replace(t, filepath.Join(dir, "f"))
				}
				result, err := r.Backup(t.Context(), dir, BackupOptions{Kind: kind})
				require.NoError(t, err)
				require.Equal(t, test.want, entryType(t, r, result.Snapshot, "f"))
				require.Equal(t, test.omitted[kind], len(result.Omissions) == 1, "%v", result.Omissions)
				if name == "a file" {
					require.Equal(t, "new", string(dumped(t, r, result.Snapshot, "f")))
				}
			})
		}
	}
}

func makeSocket(t *testing.T, path string) {
	t.Helper()
	listener, err := net.Listen("unix", path)
	require.NoError(t, err)
	t.Cleanup(func() { _ = listener.Close() })
}

// TestDirectoriesReplacedAfterTheListing: a directory that has become a link leads nowhere.
func TestDirectoriesReplacedAfterTheListing(t *testing.T) {
	outside := t.TempDir()
	writeFiles(t, outside, map[string][]byte{"secret": []byte("not ours")})
	r := wholeMemoryRepository(t)
	dir := t.TempDir()
	writeFiles(t, dir, map[string][]byte{"d/f": []byte("x"), "gone/f": []byte("x")})
	r.moments.listed = func(path string) {
		if path == "" {
			assert.NoError(t, os.RemoveAll(filepath.Join(dir, "d")))
			assert.NoError(t, os.RemoveAll(filepath.Join(dir, "gone")))
			assert.NoError(t, os.Symlink(outside, filepath.Join(dir, "d")))
		}
	}
	result, err := r.Backup(t.Context(), dir, BackupOptions{})
	require.NoError(t, err)
	require.Len(t, result.Omissions, 1)
	require.Equal(t, "d", result.Omissions[0].Path)
	require.False(t, hasEntry(t, r, result.Snapshot, "d"))
	require.False(t, hasEntry(t, r, result.Snapshot, "gone"))
}

// TestOmissionsOfAnOrdinaryUser: what may not be read is named; everything else is stored.
func TestOmissionsOfAnOrdinaryUser(t *testing.T) {
	if base := os.Getenv("SNAPSHOT_TEST_OMISSIONS"); base != "" {
		r := wholeMemoryRepository(t)
		dir := filepath.Join(base, "dir")
		writeFiles(t, dir, map[string][]byte{"closed": []byte("x"), "open": []byte("y"), "d/f": []byte("z"), "no list/f": []byte("f")})
		makeSocket(t, filepath.Join(dir, "so\xffcket"))
		for _, name := range []string{"closed", "d"} {
			require.NoError(t, os.Chmod(filepath.Join(dir, name), 0))
		}
		require.NoError(t, os.Chmod(filepath.Join(dir, "no list"), 0o111))
		result, err := r.Backup(t.Context(), dir, BackupOptions{Kind: Final})
		require.NoError(t, err)
		kinds := map[string]OmissionKind{}
		for _, o := range result.Omissions {
			kinds[o.Path] = o.Kind
			require.NotEmpty(t, o.Reason)
		}
		require.Equal(t, map[string]OmissionKind{
			"closed": OmissionUnreadable, "d": OmissionUnreadable, "no list": OmissionUnreadable, `"so\xffcket"`: OmissionUnsupported,
		}, kinds)
		require.Equal(t, int64(3), result.Unreadable)
		require.Equal(t, "y", string(dumped(t, r, result.Snapshot, "open")))
		require.False(t, hasEntry(t, r, result.Snapshot, "closed"))
		require.True(t, hasEntry(t, r, result.Snapshot, "d"), "an unreadable directory is kept as an empty one")
		infos, err := r.Snapshots(t.Context())
		require.NoError(t, err)
		require.Equal(t, int64(4), infos[0].Omissions)
		require.Equal(t, Final, infos[0].Kind)
		digest, err := StatDigest(t.Context(), dir, nil)
		require.NoError(t, err)
		require.Equal(t, result.StatDigest, digest)

		require.NoError(t, os.Chmod(dir, 0))
		_, err = r.Backup(t.Context(), dir, BackupOptions{})
		require.ErrorIs(t, err, ErrSourceMissing)
		return
	}
	// A short path, since a socket's is limited.
	base, err := os.MkdirTemp("", "h")
	require.NoError(t, err)
	defer os.RemoveAll(base)
	require.NoError(t, os.Chmod(base, 0o777))
	asNobody(t, "TestOmissionsOfAnOrdinaryUser", "SNAPSHOT_TEST_OMISSIONS="+base)
}

func TestNothingToBackUp(t *testing.T) {
	r := wholeMemoryRepository(t)
	_, err := r.Backup(t.Context(), filepath.Join(t.TempDir(), "absent"), BackupOptions{})
	require.ErrorIs(t, err, ErrSourceMissing)
	file := filepath.Join(t.TempDir(), "file")
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	_, err = r.Backup(t.Context(), file, BackupOptions{})
	require.ErrorIs(t, err, ErrSourceMissing)
	_, err = StatDigest(t.Context(), file, nil)
	require.ErrorIs(t, err, ErrSourceMissing)
	empty, err := r.Backup(t.Context(), t.TempDir(), BackupOptions{Kind: Final})
	require.NoError(t, err, "an empty directory is content too")
	require.Zero(t, empty.Files)
	infos, err := r.Snapshots(t.Context())
	require.NoError(t, err)
	require.Len(t, infos, 1, "a failed backup leaves no snapshot")
}

// TestSparseFilesAreNotRead: a hole costs nothing but its place.
func TestSparseFilesAreNotRead(t *testing.T) {
	r := wholeMemoryRepository(t)
	dir := t.TempDir()
	path := filepath.Join(dir, "sparse")
	file, err := os.Create(path)
	require.NoError(t, err)
	const size = 200<<30 + 12345
	require.NoError(t, file.Truncate(size))
	_, err = file.WriteAt([]byte("in the middle"), 77<<30+5)
	require.NoError(t, err)
	require.NoError(t, file.Close())
	begun := time.Now()
	result, err := r.Backup(t.Context(), dir, BackupOptions{})
	require.NoError(t, err)
	require.Less(t, time.Since(begun), 20*time.Second, "reading 200 GiB takes longer")
	require.Equal(t, int64(size), result.Bytes)
	require.Less(t, result.BytesAdded, int64(64<<20))
	s, err := r.resolveSnapshot(t.Context(), result.Snapshot)
	require.NoError(t, err)
	nodes, err := r.loadTree(t.Context(), *s.Tree)
	require.NoError(t, err)
	require.Equal(t, uint64(size), nodes[0].Size)
	total, found := int64(0), false
	for _, id := range nodes[0].Content {
		at := r.blobLocations(id, dataBlob)[0]
		if total <= 77<<30+5 && 77<<30+5 < total+at.plainSize() {
			blob, err := r.loadBlob(t.Context(), id, dataBlob)
			require.NoError(t, err)
			require.True(t, bytes.HasPrefix(blob[77<<30+5-total:], []byte("in the middle")))
			found = true
		}
		total += at.plainSize()
	}
	require.Equal(t, int64(size), total)
	require.True(t, found)
}

// TestChunksFollowContent: an insertion leaves most chunks as they were, and another repository cuts elsewhere.
func TestChunksFollowContent(t *testing.T) {
	r := wholeMemoryRepository(t)
	dir := t.TempDir()
	content := randomBytes(9, 40<<20)
	writeFiles(t, dir, map[string][]byte{"f": content})
	first, err := r.Backup(t.Context(), dir, BackupOptions{})
	require.NoError(t, err)
	require.Equal(t, int64(len(content)), first.BytesAdded)
	// Insertions of odd lengths, not only of a few bytes: those go well with chunks that are almost of fixed size too.
	added := int64(0)
	for i, n := range []int{8, 5000, 70_001, 300_000} {
		content = slices.Concat(content[:(i+1)<<20], randomBytes(int64(90+i), n), content[(i+1)<<20:])
		writeFiles(t, dir, map[string][]byte{"f": content})
		next, err := r.Backup(t.Context(), dir, BackupOptions{})
		require.NoError(t, err)
		added += next.BytesAdded
	}
	require.Less(t, added, int64(40<<20), "four insertions may cost a few chunks each")
	sizes := func(r *Repository) (list []int64) {
		r.eachBlob(func(b packedBlob) bool {
			if b.location.kind == dataBlob {
				list = append(list, b.location.plainSize())
			}
			return true
		})
		return list
	}
	other := wholeMemoryRepository(t)
	_, err = other.Backup(t.Context(), dir, BackupOptions{})
	require.NoError(t, err)
	require.NotEqual(t, sizes(r), sizes(other), "the key decides where chunks end")
	for _, size := range sizes(other) {
		require.LessOrEqual(t, size, int64(maxChunkSize))
	}
}

// TestWritesWithinOneTickOfTheClock: a file that was written just now is not read before a further write must show in its
// times. They come from a clock that stands still for milliseconds on kernels before 6.13.
func TestWritesWithinOneTickOfTheClock(t *testing.T) {
	r := wholeMemoryRepository(t)
	dir := t.TempDir()
	path := filepath.Join(dir, "f")
	for i := range 3 {
		writeFiles(t, dir, map[string][]byte{"f": []byte("before")})
		r.moments.listed = func(string) { assert.NoError(t, os.WriteFile(path, []byte("first"), 0o644)) }
		r.moments.read = func(_ string, attempt int) {
			stat, err := os.Stat(path)
			assert.NoError(t, err)
			changed := time.Unix(stat.Sys().(*syscall.Stat_t).Ctim.Unix())
			assert.GreaterOrEqual(t, time.Since(changed), clockGranularity, "read too soon after it was written")
			if attempt == 1 {
				assert.NoError(t, os.WriteFile(path, []byte("FIRST"), 0o644))
				assert.NoError(t, os.Chtimes(path, stat.ModTime(), stat.ModTime()))
			}
		}
		result, err := r.Backup(t.Context(), dir, BackupOptions{})
		require.NoError(t, err)
		require.Equal(t, "FIRST", string(dumped(t, r, result.Snapshot, "f")), "round %d", i)
	}
	now := time.Unix(1_000_000, 0)
	for age, want := range map[time.Duration]time.Duration{
		0: clockGranularity, 5 * time.Millisecond: 15 * time.Millisecond, clockGranularity: 0, time.Hour: 0, -time.Hour: 0,
		-5 * time.Millisecond: 25 * time.Millisecond,
	} {
		record := statRecord{ctime: unix.NsecToTimespec(now.Add(-age).UnixNano())}
		require.Equal(t, want, record.unsettled(now), age)
	}
}

// TestFilesInMemoryAreReadAgain: on a file system that does not note writes through a mapping, the last snapshot takes
// nothing over from the one before.
func TestFilesInMemoryAreReadAgain(t *testing.T) {
	const memory = "/dev/shm"
	var fs unix.Statfs_t
	if err := unix.Statfs(memory, &fs); err != nil || fs.Type != unix.TMPFS_MAGIC {
		t.Skip("needs a tmpfs at " + memory)
	}
	dir, err := os.MkdirTemp(memory, "holdfast-test")
	require.NoError(t, err)
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "f")
	require.NoError(t, os.WriteFile(path, []byte("before"), 0o600))
	file, err := os.OpenFile(path, os.O_RDWR, 0)
	require.NoError(t, err)
	defer file.Close()
	mapped, err := unix.Mmap(int(file.Fd()), 0, 6, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	require.NoError(t, err)
	defer func() { require.NoError(t, unix.Munmap(mapped)) }()
	copy(mapped, "bEFORE") // the page is writable from now on
	r := wholeMemoryRepository(t)
	_, err = r.Backup(t.Context(), dir, BackupOptions{Kind: Live})
	require.NoError(t, err)
	copy(mapped, "AFTER!")
	result, err := r.Backup(t.Context(), dir, BackupOptions{Kind: Final})
	require.NoError(t, err)
	require.Equal(t, "AFTER!", string(dumped(t, r, result.Snapshot, "f")))
}

// TestWritesThroughAMapping: the same on a disk, where writing back makes the next store show.
func TestWritesThroughAMapping(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "f")
	require.NoError(t, os.WriteFile(path, []byte("before"), 0o600))
	file, err := os.OpenFile(path, os.O_RDWR, 0)
	require.NoError(t, err)
	defer file.Close()
	mapped, err := unix.Mmap(int(file.Fd()), 0, 6, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	require.NoError(t, err)
	defer func() { require.NoError(t, unix.Munmap(mapped)) }()
	r := wholeMemoryRepository(t)
	for i, content := range []string{"bEFORE", "AFTER!", "after?"} {
		copy(mapped, content)
		kind := Live
		if i == 2 {
			kind = Final
		}
		result, err := r.Backup(t.Context(), dir, BackupOptions{Kind: kind})
		require.NoError(t, err)
		require.Equal(t, content, string(dumped(t, r, result.Snapshot, "f")))
	}
}
