package snapshot

import (
	"context"
	"crypto/sha256"
	"io"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"

	"holdfast/storage"
	"holdfast/storage/storagetest"
)

// TestIndexesBeyondTheOrdinary: index files that nobody writes so, which are small where they are stored and large when they are
// opened, or decoded, are opened one at a time: four of them need what one needs. They are read as well as any other.
func TestIndexesBeyondTheOrdinary(t *testing.T) {
	memory := storagetest.NewMemory()
	writer := newTestRepository(t, storage.PolicyAll, memory)
	r := newTestRepository(t, storage.PolicyAll, memory)
	const blobs = 280_000 // 31 MB of JSON, 13 MB when decoded
	for i := range 2 {
		pack := indexPack{ID: blobID{byte(i)}, Blobs: make([]indexBlob, blobs)}
		for j := range pack.Blobs {
			pack.Blobs[j] = indexBlob{ID: blobID{byte(i), byte(j), byte(j >> 8), byte(j >> 16)}, Type: dataBlob, Offset: uint32(j) * 100, Length: 100}
		}
		_, _, err := writer.storeFile(t.Context(), indexPrefix, indexFile{Packs: []indexPack{pack}})
		require.NoError(t, err)
	}
	// 3 MB of JSON, that are 60 MB when decoded, and are no index.
	hostile := `{"packs":[` + strings.Repeat(`{},`, 1_000_000) + `7]}`
	for i := range 2 {
		sealed, err := writer.newSealer().file([]byte(hostile + strings.Repeat(" ", i)))
		require.NoError(t, err)
		require.Less(t, len(sealed), 10_000)
		overwrite(t, memory, indexPrefix+blobID(sha256.Sum256(sealed)).String(), sealed)
	}
	large, several := 0, false
	r.moments.decoding = func(index []byte) {
		if int64(len(index)) > ordinaryIndex.plain {
			large++
			several = several || somebodyIn("snapshot.(*Repository).readIndex", "errgroup.(*Group).Go.func1")
		}
	}
	require.NoError(t, r.refreshIndex(t.Context()))
	require.Equal(t, 2, large)
	require.False(t, several, "one that is large is decoded beside others")
	require.Len(t, r.indexedPacks(), 2)
	count := 0
	r.eachBlob(func(packedBlob) bool { count++; return true })
	require.Equal(t, 2*blobs, count)
	require.Len(t, r.indexDamage(), 2)
	for _, err := range r.indexDamage() {
		require.ErrorIs(t, err, ErrDamaged)
	}

	// What would become large is not decoded beside others either.
	l, err := list(t.Context(), r.store, indexPrefix)
	require.NoError(t, err)
	for id := range r.indexDamage() {
		read, err := r.readIndex(t.Context(), l, id, nil, ordinaryIndex)
		require.NoError(t, err)
		require.ErrorIs(t, read.err, errNotOrdinary)
	}
	// And what is large where it is stored is not read beside others.
	key := indexPrefix + blobID{1}.String()
	overwrite(t, memory, key, make([]byte, ordinaryIndex.stored+1))
	asked := &counted{Provider: memory}
	l, err = list(t.Context(), r.store, indexPrefix)
	require.NoError(t, err)
	aside := newTestRepository(t, storage.PolicyAll, asked)
	before := asked.gets.Load()
	read, err := aside.readIndex(t.Context(), l, blobID{1}, nil, ordinaryIndex)
	require.NoError(t, err)
	require.ErrorIs(t, read.err, errNotOrdinary)
	require.Equal(t, before, asked.gets.Load())
	read, err = aside.readIndex(t.Context(), l, blobID{1}, nil, anyIndex)
	require.NoError(t, err)
	require.ErrorIs(t, read.err, ErrDamaged)
}

// TestDamagedIndexIsReadElsewhere: whichever store has an index file damaged, the other's is taken when a repository is opened.
func TestDamagedIndexIsReadElsewhere(t *testing.T) {
	for damaged := range 2 {
		providers := []storage.Provider{storagetest.NewMemory(), storagetest.NewMemory()}
		dir := t.TempDir()
		writeFiles(t, dir, map[string][]byte{"f": []byte("content")})
		_, err := newTestRepository(t, storage.PolicyAll, providers...).Backup(t.Context(), dir, BackupOptions{Kind: Final})
		require.NoError(t, err)
		for _, key := range allKeysBelow(t, providers[damaged], indexPrefix) {
			overwrite(t, providers[damaged], key, flip(read(t, providers[damaged], key), 40))
		}
		r := newTestRepository(t, storage.PolicyAll, providers...)
		require.Empty(t, r.indexDamage())
		require.Len(t, r.indexedPacks(), 2, "of data, and of trees")
	}
}

// counted counts what is read.
type counted struct {
	storage.Provider
	gets atomic.Int64
}

func (c *counted) Get(ctx context.Context, key string, offset, length int64) (io.ReadCloser, error) {
	c.gets.Add(1)
	return c.Provider.Get(ctx, key, offset, length)
}
