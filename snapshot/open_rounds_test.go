package snapshot

import (
	"context"
	"fmt"
	"io"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"holdfast/storage"
	"holdfast/storage/storagetest"
)

// far is a store that every answer takes a round trip from.
type far struct {
	storage.Provider
	trip time.Duration
}

func (f *far) List(ctx context.Context, prefix string, visit func(storage.Object) error) error {
	time.Sleep(f.trip)
	return f.Provider.List(ctx, prefix, visit)
}

func (f *far) Get(ctx context.Context, key string, offset, length int64) (io.ReadCloser, error) {
	time.Sleep(f.trip)
	return f.Provider.Get(ctx, key, offset, length)
}

func (f *far) Stat(ctx context.Context, key string) (storage.Object, error) {
	time.Sleep(f.trip)
	return f.Provider.Stat(ctx, key)
}

// TestOpeningTakesTwoRoundTrips: one to see what there is, and one to read it, the index too, however many files it has (as
// long as they are small) and however many stores there are. In the bubble only round trips take time.
func TestOpeningTakesTwoRoundTrips(t *testing.T) {
	for _, indexes := range []int{0, 1, aheadLoaders} {
		t.Run(fmt.Sprint(indexes), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				near := []storage.Provider{storagetest.NewMemory(), storagetest.NewMemory()}
				writer := newTestRepository(t, storage.PolicyAll, near...)
				for i := range indexes {
					dir := t.TempDir()
					writeFiles(t, dir, map[string][]byte{"f": randomBytes(int64(i), 1000)})
					_, err := writer.Backup(t.Context(), dir, BackupOptions{Kind: Final})
					require.NoError(t, err)
				}
				require.Len(t, allKeysBelow(t, near[0], indexPrefix), indexes)
				const trip = 100 * time.Millisecond
				providers := make([]storage.Provider, len(near))
				for i, p := range near {
					providers[i] = &far{p, trip}
				}
				mirror := newTestMirror(t, storage.PolicyAll, providers...)
				began := time.Now()
				r, err := Open(t.Context(), mirror, testPassword, testOptions())
				require.NoError(t, err)
				defer func() { require.NoError(t, r.Close()) }()
				require.Equal(t, 2*trip, time.Since(began))
				require.Len(t, r.indexedPacks(), len(writer.indexedPacks()))
			})
		})
	}
}

// TestOpeningLeavesNothingBehind: what was asked ahead and is not needed any more ends with the opening, and its error is
// that of the question that decides.
func TestOpeningLeavesNothingBehind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { // which fails while a goroutine is left
		memory := storagetest.NewMemory()
		provider := &far{memory, time.Second}
		_, err := Open(t.Context(), newTestMirror(t, storage.PolicyAll, provider), testPassword, testOptions())
		require.ErrorIs(t, err, ErrNoRepository)
		newTestRepository(t, storage.PolicyAll, memory)
		_, err = Open(t.Context(), newTestMirror(t, storage.PolicyAll, provider), []byte("another"), testOptions())
		require.ErrorIs(t, err, ErrWrongPassword)
		ctx, cancel := context.WithTimeout(t.Context(), 1500*time.Millisecond)
		defer cancel()
		_, err = Open(ctx, newTestMirror(t, storage.PolicyAll, provider), testPassword, testOptions())
		require.ErrorIs(t, err, context.DeadlineExceeded)
	})
}

// TestSnapshotStoredAfterTheIndexWasRead: who opened a repository before another process stored a snapshot, and finds that
// snapshot, reads the index that it needs too.
func TestSnapshotStoredAfterTheIndexWasRead(t *testing.T) {
	memory := storagetest.NewMemory()
	writer := newTestRepository(t, storage.PolicyAll, memory)
	reader := newTestRepository(t, storage.PolicyAll, memory)
	dir := t.TempDir()
	for i := range 2 { // the second time within moments of another look at the index
		content := []byte(strings.Repeat("new", i+1))
		writeFiles(t, dir, map[string][]byte{"f": content})
		result, err := writer.Backup(t.Context(), dir, BackupOptions{Kind: Final})
		require.NoError(t, err)
		require.Equal(t, content, dumped(t, reader, result.Snapshot, "f"))
	}
}
