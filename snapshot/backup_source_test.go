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
	"testing"
	"time"

	"github.com/stretchr/testify/require"

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

func makeSocket(t *testing.T, path string) {
	t.Helper()
	listener, err := net.Listen("unix", path)
	require.NoError(t, err)
	t.Cleanup(func() { _ = listener.Close() })
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
		closed, err := os.Stat(filepath.Join(dir, "d"))
		require.NoError(t, err)
		require.NoError(t, r.List(t.Context(), result.Snapshot, "", false, func(e Entry) error {
			if e.Path == "d" {
				require.True(t, closed.ModTime().Equal(e.ModTime), "it is what lstat says of it, not opened")
				require.Zero(t, e.Mode)
			}
			return nil
		}))
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
