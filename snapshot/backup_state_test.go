package snapshot

import (
	"bytes"
	"fmt"
	"math/rand"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"holdfast/storage"
	"holdfast/storage/storagetest"
)

// mutator changes a directory at random.
type mutator struct {
	t      *testing.T
	random *rand.Rand
	root   string
	attrs  bool // the file system has extended attributes
	did    []string
}

func (m *mutator) say(format string, arguments ...any) {
	m.did = append(m.did, fmt.Sprintf(format, arguments...))
}

// paths are all entries below the root that keep accepts.
func (m *mutator) paths(keep func(info os.FileInfo) bool) (found []string) {
	require.NoError(m.t, filepath.Walk(m.root, func(path string, info os.FileInfo, err error) error {
		if err == nil && path != m.root && keep(info) {
			found = append(found, path)
		}
		return err
	}))
	return found
}

func (m *mutator) pick(keep func(info os.FileInfo) bool) string {
	found := m.paths(keep)
	if len(found) == 0 {
		return ""
	}
	return found[m.random.Intn(len(found))]
}

func regular(info os.FileInfo) bool { return info.Mode().IsRegular() }
func anything(os.FileInfo) bool     { return true }

// dir is a directory, the root among them.
func (m *mutator) dir() string {
	if found := m.pick(os.FileInfo.IsDir); found != "" && m.random.Intn(4) > 0 {
		return found
	}
	return m.root
}

func (m *mutator) content() []byte {
	n := m.random.Intn(40)
	if m.random.Intn(12) == 0 {
		n = 600<<10 + m.random.Intn(1<<20)
	}
	return randomBytes(m.random.Int63(), n)
}

func (m *mutator) fresh() string {
	return filepath.Join(m.dir(), fmt.Sprintf("n%d", m.random.Intn(100_000)))
}

func (m *mutator) step() {
	t := m.t
	switch m.random.Intn(20) {
	case 0, 1, 2:
		path := m.fresh()
		m.say("write %s", path)
		require.NoError(t, os.WriteFile(path, m.content(), 0o644))
	case 3:
		if path := m.pick(regular); path != "" {
			m.say("rewrite %s", path)
			require.NoError(t, os.WriteFile(path, m.content(), 0o644))
		}
	case 4: // the same size and mtime, only the ctime tells
		if path := m.pick(func(i os.FileInfo) bool { return regular(i) && i.Size() > 0 }); path != "" {
			m.say("rewrite %s in secret", path)
			info, err := os.Lstat(path)
			require.NoError(t, err)
			require.NoError(t, os.WriteFile(path, randomBytes(m.random.Int63(), int(info.Size())), 0o644))
			require.NoError(t, os.Chtimes(path, info.ModTime(), info.ModTime()))
		}
	case 5:
		if path := m.pick(anything); path != "" {
			m.say("remove %s", path)
			require.NoError(t, os.RemoveAll(path))
		}
	case 6:
		if path := m.pick(anything); path != "" {
			to := m.fresh()
			m.say("move %s to %s", path, to)
			_ = os.Rename(path, to) // not into itself
		}
	case 7:
		if path := m.pick(func(i os.FileInfo) bool { return i.Mode()&os.ModeSymlink == 0 }); path != "" {
			m.say("chmod %s", path)
			require.NoError(t, os.Chmod(path, 0o700|os.FileMode(m.random.Intn(0o100))))
		}
	case 8:
		m.say("chmod the top")
		require.NoError(t, os.Chmod(m.root, 0o700|os.FileMode(m.random.Intn(0o100))))
	case 9, 10:
		if path := m.pick(func(i os.FileInfo) bool { return regular(i) || i.IsDir() }); path != "" && m.attrs {
			m.say("set an attribute of %s", path)
			require.NoError(t, unix.Setxattr(path, "user.a", randomBytes(m.random.Int63(), m.random.Intn(8)), 0))
		}
	case 11:
		if path := m.pick(func(i os.FileInfo) bool { return regular(i) || i.IsDir() }); path != "" && m.attrs {
			m.say("remove the attribute of %s", path)
			_ = unix.Removexattr(path, "user.a")
		}
	case 12:
		if path := m.pick(regular); path != "" {
			to := m.fresh()
			m.say("link %s as %s", path, to)
			require.NoError(t, os.Link(path, to))
		}
	case 13:
		path := filepath.Join(m.dir(), IgnoreFile)
		m.say("rules in %s", path)
		_ = os.WriteFile(path, fmt.Appendf(nil, "n%d*\n", m.random.Intn(10)), 0o644) // unless it is a directory
	case 14:
		if path := m.pick(func(i os.FileInfo) bool { return regular(i) && i.Name() == IgnoreFile }); path != "" {
			m.say("no rules in %s", path)
			require.NoError(t, os.Remove(path))
		}
	case 15:
		if path := m.pick(os.FileInfo.IsDir); path != "" {
			m.say("a file for the directory %s", path)
			require.NoError(t, os.RemoveAll(path))
			require.NoError(t, os.WriteFile(path, m.content(), 0o644))
		}
	case 16:
		if path := m.pick(regular); path != "" {
			m.say("a directory for the file %s", path)
			require.NoError(t, os.Remove(path))
			require.NoError(t, os.Mkdir(path, 0o755))
			require.NoError(t, os.WriteFile(filepath.Join(path, "in"), m.content(), 0o644))
		}
	case 17:
		path := m.fresh()
		m.say("a link %s", path)
		require.NoError(t, os.Symlink(fmt.Sprintf("to-%d", m.random.Intn(5)), path))
	case 18:
		path := m.fresh()
		m.say("a FIFO %s", path)
		require.NoError(t, unix.Mkfifo(path, 0o600))
	case 19:
		path := m.fresh()
		m.say("a directory %s", path)
		require.NoError(t, os.MkdirAll(filepath.Join(path, "d", "e"), 0o755))
		require.NoError(t, os.WriteFile(filepath.Join(path, "d", "e", "f"), m.content(), 0o644))
	}
}

func newMutator(t *testing.T, seed int64) *mutator {
	// A directory of few bytes' path: some entries are sockets, whose paths have a short limit.
	root := filepath.Join(t.TempDir(), "w")
	require.NoError(t, os.Mkdir(root, 0o755))
	return &mutator{t: t, random: rand.New(rand.NewSource(seed)), root: root, attrs: unix.Setxattr(root, "user.try", []byte("x"), 0) == nil}
}

// comparable is what a backup says that does not depend on how it found out.
func comparable(t *testing.T, r *Repository, result *BackupResult) map[string]any {
	t.Helper()
	s, err := r.resolveSnapshot(t.Context(), result.Snapshot)
	require.NoError(t, err)
	root := *s.Holdfast.Root
	return map[string]any{
		"tree": result.Tree, "digest": result.StatDigest, "files": result.Files, "dirs": result.Dirs, "bytes": result.Bytes,
		"omissions": result.Omissions, "unreadable": result.Unreadable, "excluded": result.Excluded, "root": root,
	}
}

// counts are what a backup says of its parent.
func counts(t *testing.T, r *Repository, result *BackupResult) [3]uint64 {
	t.Helper()
	s, err := r.resolveSnapshot(t.Context(), result.Snapshot)
	require.NoError(t, err)
	return [3]uint64{s.Summary.FilesNew, s.Summary.FilesChanged, s.Summary.FilesUnmodified}
}

// TestTheStateFileChangesNothing: whatever happened to a directory, the snapshot is the one that a backup makes that reads
// everything, and the one that a backup makes with the parent snapshot.
func TestTheStateFileChangesNothing(t *testing.T) {
	seeds := []int64{1, 2, 3, 4}
	if text := os.Getenv("HOLDFAST_STATE_SEEDS"); text != "" { // a number of random ones
		var n int
		_, err := fmt.Sscan(text, &n)
		require.NoError(t, err)
		seeds = nil
		for range n {
			seeds = append(seeds, rand.Int63())
		}
	}
	for _, seed := range seeds {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			r := wholeMemoryRepository(t)
			m := newMutator(t, seed)
			r.moments.untold = m.random.Intn(4) == 0
			state := filepath.Join(t.TempDir(), "state")
			for range 40 {
				m.step()
			}
			makeSocket(t, filepath.Join(m.root, "s"))
			for round := range 8 {
				backup := func(host, state string) *BackupResult {
					result, err := r.Backup(t.Context(), m.root, BackupOptions{Hostname: host, Paths: []string{"/"}, StateFile: state})
					require.NoError(t, err)
					return result
				}
				withState := backup("state", state)
				withParent := backup("parent", "")
				fresh := backup(fmt.Sprintf("fresh %d", round), "")
				said := fmt.Sprintf("seed %d, round %d: %s", seed, round, strings.Join(m.did, "\n"))
				require.Equal(t, comparable(t, r, fresh), comparable(t, r, withParent), said)
				require.Equal(t, comparable(t, r, fresh), comparable(t, r, withState), said)
				require.Equal(t, counts(t, r, withParent), counts(t, r, withState), said)
				m.did = nil
				for range m.random.Intn(4) * m.random.Intn(4) {
					m.step()
				}
				switch m.random.Intn(8) {
				case 0:
					m.say("the state file is lost")
					require.NoError(t, os.Remove(state))
				case 1:
					m.say("the state file is damaged")
					data, err := os.ReadFile(state)
					require.NoError(t, err)
					data[m.random.Intn(len(data))] ^= 1 << m.random.Intn(8)
					require.NoError(t, os.WriteFile(state, data, 0o600))
				case 2:
					m.say("a backup without the state file")
					backup("state", "")
					backup("parent", "")
				}
			}
		})
	}
}

// readFiles notes which files backups read.
func readFiles(r *Repository) (read func() []string) {
	var mu sync.Mutex
	var paths []string
	r.moments.read = func(path string, _ int) { mu.Lock(); paths = append(paths, path); mu.Unlock() }
	return func() []string {
		mu.Lock()
		defer mu.Unlock()
		slices.Sort(paths)
		found := paths
		paths = nil
		return found
	}
}

// packs is how many reads of packs there were since the last call.
func (m *meteredGets) packs() (n int) {
	m.mutex.Lock()
	defer m.mutex.Unlock()
	for key, reads := range m.reads {
		if isPack(key) {
			n += reads
			delete(m.reads, key)
		}
	}
	return n
}

func meteredRepository(t testing.TB) (*Repository, *meteredGets) {
	t.Helper()
	gets := &meteredGets{Provider: storagetest.NewMemory()}
	return newTestRepository(t, storage.PolicyAll, gets), gets
}

// TestUnchangedDirectoriesCostNothing: with a state file no tree is read from the store, also not when a part changed, and
// the file stays as it is when nothing did.
func TestUnchangedDirectoriesCostNothing(t *testing.T) {
	r, gets := meteredRepository(t)
	read := readFiles(r)
	dir, state := t.TempDir(), filepath.Join(t.TempDir(), "state")
	writeFiles(t, dir, map[string][]byte{"a": []byte("a"), "d/b": randomBytes(1, 3<<20), "d/e/c": []byte("c"), "f/g": []byte("g")})
	options := BackupOptions{StateFile: state}
	first, err := r.Backup(t.Context(), dir, options)
	require.NoError(t, err)
	require.Len(t, read(), 4)
	before, err := os.ReadFile(state)
	require.NoError(t, err)

	gets.packs()
	again, err := r.Backup(t.Context(), dir, options)
	require.NoError(t, err)
	require.Empty(t, read())
	require.Zero(t, gets.packs(), "a tree was read from the store")
	require.Equal(t, first.Tree, again.Tree)
	require.Equal(t, first.Snapshot, again.Parent)
	require.Equal(t, first.StatDigest, again.StatDigest)
	require.Zero(t, again.PacksUploaded)
	after, err := os.ReadFile(state)
	require.NoError(t, err)
	require.True(t, bytes.Equal(before, after), "the state file was written although nothing changed")

	writeFiles(t, dir, map[string][]byte{"d/e/c": []byte("C"), "d/e/new": []byte("n")})
	gets.packs()
	third, err := r.Backup(t.Context(), dir, options)
	require.NoError(t, err)
	require.Equal(t, []string{"d/e/c", "d/e/new"}, read())
	require.Zero(t, gets.packs(), "a tree was read from the store")
	require.Equal(t, [3]uint64{1, 1, 3}, counts(t, r, third))
	require.NoFileExists(t, state+stateTemporary)

	// A directory's own change is noted once.
	require.NoError(t, os.Chmod(filepath.Join(dir, "f"), 0o700))
	third, err = r.Backup(t.Context(), dir, options)
	require.NoError(t, err)
	before, err = os.ReadFile(state)
	require.NoError(t, err)
	_, err = r.Backup(t.Context(), dir, options)
	require.NoError(t, err)
	after, err = os.ReadFile(state)
	require.NoError(t, err)
	require.True(t, bytes.Equal(before, after), "the state file was written although nothing changed")
	require.Empty(t, read())

	// Without it the parent snapshot serves.
	require.NoError(t, os.Remove(state))
	fourth, err := r.Backup(t.Context(), dir, options)
	require.NoError(t, err)
	require.Empty(t, read())
	require.Equal(t, third.Tree, fourth.Tree)
	require.NotZero(t, gets.packs())
	require.FileExists(t, state)
}

// TestTheLastSnapshotInMemoryReadsEverything: where a mapping leaves no trace, what the state file knows counts only for
// live snapshots.
func TestTheLastSnapshotInMemoryReadsEverything(t *testing.T) {
	var fs unix.Statfs_t
	if unix.Statfs("/dev/shm", &fs) != nil || fs.Type != unix.TMPFS_MAGIC {
		t.Skip("there is no tmpfs at /dev/shm")
	}
	dir, err := os.MkdirTemp("/dev/shm", "holdfast-test-")
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(dir)) })
	writeFiles(t, dir, map[string][]byte{"a": []byte("a"), "d/b": []byte("b")})
	r := wholeMemoryRepository(t)
	read := readFiles(r)
	state := filepath.Join(t.TempDir(), "state")
	_, err = r.Backup(t.Context(), dir, BackupOptions{StateFile: state})
	require.NoError(t, err)
	require.Len(t, read(), 2)
	_, err = r.Backup(t.Context(), dir, BackupOptions{StateFile: state})
	require.NoError(t, err)
	require.Empty(t, read())
	_, err = r.Backup(t.Context(), dir, BackupOptions{StateFile: state, Kind: Final})
	require.NoError(t, err)
	require.Equal(t, []string{"a", "d/b"}, read())
}

// TestDoubtfulFilesAreReadAgain: what was omitted, or changed each time it was read, is not taken over.
func TestDoubtfulFilesAreReadAgain(t *testing.T) {
	r := wholeMemoryRepository(t)
	dir, state := t.TempDir(), filepath.Join(t.TempDir(), "state")
	writeFiles(t, dir, map[string][]byte{"d/busy": []byte("0"), "d/calm": []byte("c")})
	busy := true
	r.moments.read = func(path string, attempt int) {
		if busy && path == "d/busy" {
			require.NoError(t, os.WriteFile(filepath.Join(dir, path), fmt.Append(nil, attempt), 0o644))
		}
	}
	first, err := r.Backup(t.Context(), dir, BackupOptions{StateFile: state})
	require.NoError(t, err)
	require.Len(t, first.Omissions, 1)
	busy = false
	read := readFiles(r)
	second, err := r.Backup(t.Context(), dir, BackupOptions{StateFile: state})
	require.NoError(t, err)
	require.Equal(t, []string{"d/busy"}, read())
	require.Empty(t, second.Omissions)
	third, err := r.Backup(t.Context(), dir, BackupOptions{StateFile: state})
	require.NoError(t, err)
	require.Empty(t, read())
	require.Equal(t, second.Tree, third.Tree)
	require.Equal(t, "3", string(dumped(t, r, third.Snapshot, "d/busy")))
}

// TestAttributesMoveChangeTimes: what changeTimesTell says of the file systems at hand is so.
func TestAttributesMoveChangeTimes(t *testing.T) {
	for _, base := range []string{t.TempDir(), "/dev/shm"} {
		file, err := os.CreateTemp(base, "holdfast-test-")
		if err != nil {
			continue
		}
		defer os.Remove(file.Name())
		defer file.Close()
		var fs unix.Statfs_t
		require.NoError(t, unix.Fstatfs(int(file.Fd()), &fs))
		if !changeTimesTell(int64(fs.Type)) || unix.Setxattr(file.Name(), "user.x", []byte("1"), 0) != nil {
			continue
		}
		var before, after unix.Stat_t
		require.NoError(t, unix.Fstat(int(file.Fd()), &before))
		require.Eventually(t, func() bool { record := recordOf(&before); return record.settled() }, 10*time.Second, time.Millisecond)
		require.NoError(t, unix.Setxattr(file.Name(), "user.x", []byte("2"), 0))
		require.NoError(t, unix.Fstat(int(file.Fd()), &after))
		require.NotEqual(t, before.Ctim, after.Ctim, base)
	}
	for release, since := range map[string]bool{"6.6.0": true, "6.5.9-generic": false, "7.0-rc1": true, "6.18.44-fc": true, "5.15": false, "x": false, "6.10+": true} {
		require.Equal(t, since, kernelSince(release, 6, 6), release)
	}
}

// TestUnsettledEntriesAreDoubtful: what was changed so recently that another change may leave the same ctime is not taken
// over by the next backup.
func TestUnsettledEntriesAreDoubtful(t *testing.T) {
	r := wholeMemoryRepository(t)
	dir := t.TempDir()
	writeFiles(t, dir, map[string][]byte{"file": []byte("x")})
	require.NoError(t, os.Symlink("to", filepath.Join(dir, "link")))
	fd, err := openRoot(dir)
	require.NoError(t, err)
	defer unix.Close(fd)
	b := &backup{r: r}
	b.state.writer = r.newStateWriter(filepath.Join(t.TempDir(), "state"), nil)
	look := func(name string, young bool) scanEntry {
		for { // until the look itself was quick enough
			if young {
				require.NoError(t, os.Lchown(filepath.Join(dir, name), os.Getuid(), os.Getgid()))
			}
			var stat unix.Stat_t
			require.NoError(t, fstatat(fd, name, &stat))
			e := scanEntry{name: name, stat: recordOf(&stat)}
			if !young && !e.stat.settled() {
				continue
			}
			if name == "link" {
				require.NoError(t, b.entryOnce(t.Context(), 0, &scanDir{}, fd, &e))
			} else {
				b.takeOver(&scanDir{}, fd, &e, []blobID{{1}})
			}
			if e.stat.settled() != young {
				return e
			}
		}
	}
	for _, name := range []string{"file", "link"} {
		for _, young := range []bool{true, false} {
			e := look(name, young)
			record, ok := parseRecord(b.record(&scanDir{entries: []scanEntry{e}}, blobID{}), "")
			require.True(t, ok)
			entry, ok := record.entries.next()
			require.True(t, ok)
			require.Equal(t, name, string(entry.name))
			require.Equal(t, young, entry.stat == nil, "%s, changed just now: %v", name, young)
		}
	}
}
