package snapshot

import (
	"crypto/sha256"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"

	"holdfast/storage"
	"holdfast/storage/storagetest"
)

// TestCheckOpensLargeFilesAlone: index files that are large when they are opened, or when they are decoded, are opened by a check one
// at a time, and what is wrong with them is said.
func TestCheckOpensLargeFilesAlone(t *testing.T) {
	memory := storagetest.NewMemory()
	r := newTestRepository(t, storage.PolicyAll, memory)
	_, err := r.Backup(t.Context(), smallSource(t), BackupOptions{})
	require.NoError(t, err)
	put := func(plain string) string {
		sealed, err := r.newSealer().file([]byte(plain))
		require.NoError(t, err)
		key := indexPrefix + blobID(sha256.Sum256(sealed)).String()
		overwrite(t, memory, key, sealed)
		return key
	}
	large := strings.Repeat(" ", int(ordinaryIndex.plain)) + "nonsense"
	hostile := `{"packs":[` + strings.Repeat(`{},`, 1_000_000) + `7]}` // 60 MB when it is decoded
	var keys []string
	for _, more := range []string{"", " "} {
		keys = append(keys, put("{"+large+more), put(hostile+more))
	}
	require.NoError(t, r.refreshIndex(t.Context()))
	require.Len(t, r.indexDamage(), len(keys))

	// No mutex of this test: it is by one that the second is known to wait.
	sizes := map[int]*atomic.Int64{}
	for more := range 2 {
		sizes[len(large)+1+more], sizes[len(hostile)+more] = &atomic.Int64{}, &atomic.Int64{}
	}
	var inside atomic.Int64
	var several atomic.Bool
	var begun atomic.Bool
	r.moments.checking = func(index []byte) {
		if opened := sizes[len(index)]; opened != nil {
			opened.Add(1)
		}
		if int64(len(index)) <= ordinaryIndex.plain {
			return
		}
		if inside.Add(1) > 1 {
			several.Store(true)
		}
		if begun.CompareAndSwap(false, true) {
			waitFor(t, "the other large file is there too, or waits for this one", func() bool {
				return several.Load() || somebodyIn("sync.(*Mutex).Lock", "snapshot.(*checker).loadFile")
			})
		}
		inside.Add(-1)
	}
	report, err := r.Check(t.Context(), CheckOptions{})
	require.NoError(t, err)
	require.False(t, several.Load(), "two were open at once")
	for _, more := range []int{0, 1} {
		require.EqualValues(t, 2, sizes[len(large)+1+more].Load(), "once, and once more because it was wrong")
		require.EqualValues(t, 4, sizes[len(hostile)+more].Load(), "each time as an ordinary file first")
	}
	for _, key := range keys {
		require.Contains(t, strings.Join(report.Errors, "\n"), key)
	}
}
