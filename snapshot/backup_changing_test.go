package snapshot

import (
	"bytes"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

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
	dir := mountTmpfs(t, "size=1m")
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
