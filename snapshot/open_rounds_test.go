package snapshot

import (
	"context"
	"fmt"
	"io"
	"strings"
	"sync/atomic"
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
	trip   time.Duration
	silent string       // what begins so is not answered for hours
	asked  atomic.Int64 // questions that are not answered yet
}

func (f *far) travel(ctx context.Context, key string) error {
	f.asked.Add(1)
	defer f.asked.Add(-1)
	trip := f.trip
	if f.silent != "" && strings.HasPrefix(key, f.silent) {
		trip = 5 * time.Hour
	}
	select {
	case <-time.After(trip):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (f *far) List(ctx context.Context, prefix string, visit func(storage.Object) error) error {
	if err := f.travel(ctx, prefix); err != nil {
		return err
	}
	return f.Provider.List(ctx, prefix, visit)
}

func (f *far) Get(ctx context.Context, key string, offset, length int64) (io.ReadCloser, error) {
	if err := f.travel(ctx, key); err != nil {
		return nil, err
	}
	return f.Provider.Get(ctx, key, offset, length)
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
					providers[i] = &far{Provider: p, trip: trip}
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
	synctest.Test(t, func(t *testing.T) {
		memory := storagetest.NewMemory()
		provider := &far{Provider: memory, trip: time.Second, silent: indexPrefix}
		newTestRepository(t, storage.PolicyAll, memory)
		_, err := Open(t.Context(), newTestMirror(t, storage.PolicyAll, provider), []byte("another"), testOptions())
		require.ErrorIs(t, err, ErrWrongPassword)
		synctest.Wait() // who was told to end does; who was not waits for hours
		require.Zero(t, provider.asked.Load())
		ctx, cancel := context.WithTimeout(t.Context(), 1500*time.Millisecond)
		defer cancel()
		_, err = Open(ctx, newTestMirror(t, storage.PolicyAll, provider), testPassword, testOptions())
		require.ErrorIs(t, err, context.DeadlineExceeded)
		synctest.Wait()
		require.Zero(t, provider.asked.Load())
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
