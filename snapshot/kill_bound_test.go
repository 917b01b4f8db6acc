package snapshot

import (
	"context"
	"fmt"
	"math/rand"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"holdfast/storage"
	"holdfast/storage/storagetest"
)

// packGate is a provider that keeps every pack waiting while it is shut, and counts what is on its way to it.
type packGate struct {
	storage.Provider

	mu                   sync.Mutex
	shut                 chan struct{} // nil while open
	packs, bytes         int           // on their way now
	mostPacks, mostBytes int           // at any moment
	widest               int           // the largest pack
}

func (g *packGate) Put(ctx context.Context, key string, data []byte, options storage.PutOptions) (storage.Object, error) {
	if !isPack(key) {
		return g.Provider.Put(ctx, key, data, options)
	}
	g.mu.Lock()
	g.packs, g.bytes = g.packs+1, g.bytes+len(data)
	g.mostPacks, g.mostBytes, g.widest = max(g.mostPacks, g.packs), max(g.mostBytes, g.bytes), max(g.widest, len(data))
	shut := g.shut
	g.mu.Unlock()
	defer func() {
		g.mu.Lock()
		g.packs, g.bytes = g.packs-1, g.bytes-len(data)
		g.mu.Unlock()
	}()
	if shut != nil {
		select {
		case <-shut:
		case <-ctx.Done():
			return storage.Object{}, ctx.Err()
		}
	}
	return g.Provider.Put(ctx, key, data, options)
}

func (g *packGate) waiting() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.packs
}

func (g *packGate) close() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.shut = make(chan struct{})
}

func (g *packGate) open() {
	g.mu.Lock()
	defer g.mu.Unlock()
	close(g.shut)
	g.shut = nil
}

// TestPackSize: whatever the sizes and the order of its blobs, a pack has at most PackSize bytes with its header, unless
// it is one blob that is larger: a chunk of 4 MiB that comes last does not make it wider.
func TestPackSize(t *testing.T) {
	const smallest = 4 << 20
	content := randomBytes(1, smallest+1<<20)
	content = append(content, content...)
	random := rand.New(rand.NewSource(1))
	sealed := func(int) int { return 1 + random.Intn(maxChunkSize+envelopeOverhead) }
	for name, test := range map[string]struct {
		packSize, blobs int
		next            func(i int) int // the sealed length of the blob with this number
	}{
		"chunks of any size": {packSize: DefaultPackSize, blobs: 40, next: sealed},
		"the largest chunk comes last": {packSize: DefaultPackSize, blobs: 16, next: func(i int) int {
			return []int{DefaultPackSize/2 - 200, maxChunkSize + envelopeOverhead}[i%2]
		}},
		"room for the last blob but not its entry": {packSize: smallest, blobs: 2 * (compressedEntrySize + 2), next: func(i int) int {
			return []int{smallest - packFrameSize - plainEntrySize - 1000, 1000 - i/2}[i%2]
		}},
	} {
		t.Run(name, func(t *testing.T) {
			gate := &packGate{Provider: storagetest.NewMemory()}
			options := testOptions()
			options.PackSize = test.packSize
			r, err := Create(t.Context(), newTestMirror(t, storage.PolicyAll, gate), testPassword, options)
			require.NoError(t, err)
			defer r.Close()
			p := newPacker(t.Context(), r)
			for i := range test.blobs {
				length := test.next(i)
				require.NoError(t, p.add(t.Context(), dataBlob, blobID{byte(i)}, content[:length], uint32(i%3)))
			}
			require.NoError(t, p.finish(t.Context()))
			require.LessOrEqual(t, gate.widest, test.packSize)
			require.Greater(t, gate.widest, test.packSize/2)

			p = newPacker(t.Context(), r)
			require.NoError(t, p.add(t.Context(), treeBlob, blobID{1}, make([]byte, test.packSize), 0))
			require.NoError(t, p.add(t.Context(), treeBlob, blobID{2}, content[:100], 0))
			require.NoError(t, p.finish(t.Context()))
			require.Equal(t, test.packSize+plainEntrySize+packFrameSize, gate.widest, "one that is too large is alone in its pack")
		})
	}
}

// TestInFlight: at no moment are more than packUploads packs on their way to a provider, also while a backup that
// resumes copies to it what it was still owed when its predecessor was killed, and sends what is new.
func TestInFlight(t *testing.T) {
	fast, slow := storagetest.NewMemory(), &packGate{Provider: storagetest.NewMemory()}
	dir := t.TempDir()
	const (
		perPack = 8 // files of this size fill a pack
		// Two packs for the first, two for the second, and the open ones hold between one file each and all they can.
		files = (2+2+1)*perPack + 1
	)
	for i := range files {
		writeFiles(t, dir, map[string][]byte{fmt.Sprintf("f%02d", i): randomBytes(int64(i), 500<<10)})
	}
	packsOf := func(p storage.Provider) int {
		return len(slices.DeleteFunc(allKeys(t, p), func(key string) bool { return !isPack(key) }))
	}
	// The first one is killed when the fast provider has packs that the slow one has not: the most there can be.
	slow.close()
	ctx, kill := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	first := newTestRepository(t, storage.PolicyAll, fast, slow)
	go func() {
		_, err := first.Backup(ctx, dir, BackupOptions{Kind: Final})
		ended <- err
	}()
	require.Eventually(t, func() bool { return slow.waiting() == packUploads && packsOf(fast) == packUploads }, 30*time.Second, time.Millisecond)
	kill()
	require.ErrorIs(t, <-ended, context.Canceled)
	require.Zero(t, packsOf(slow))

	again := newTestRepository(t, storage.PolicyAll, fast, slow)
	var reads atomic.Int64
	again.moments.read = func(string, int) { reads.Add(1) }
	var result *BackupResult
	go func() {
		var err error
		result, err = again.Backup(t.Context(), dir, BackupOptions{Kind: Final})
		ended <- err
	}()
	// What was owed is on its way, and leaves a place to the packs of new content that are full by now.
	require.Eventually(t, func() bool {
		return slow.waiting() >= packUploads && reads.Load() == files && packsOf(fast) > packUploads
	}, 30*time.Second, time.Millisecond)
	slow.open()
	require.NoError(t, <-ended)
	require.Equal(t, packUploads, slow.mostPacks)
	require.LessOrEqual(t, slow.mostBytes, packUploads*again.options.PackSize)
	requireWhole(t, again, result.Snapshot)
	require.Zero(t, storedTwice(t, again, fast))
	require.Zero(t, storedTwice(t, again, slow))
}
