package snapshot

import (
	"crypto/sha256"
	"strings"
	"sync"
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

	var mu sync.Mutex
	opened, inside, several := map[int]int{}, 0, false
	first := sync.OnceFunc(func() { // of the large ones: until the other is there too, or waits for it
		waitFor(t, "the other large file", func() bool {
			mu.Lock()
			defer mu.Unlock()
			return several || somebodyIn("sync.(*Mutex).Lock", "snapshot.(*checker).loadFile")
		})
	})
	r.moments.checking = func(index []byte) {
		mu.Lock()
		opened[len(index)]++
		if int64(len(index)) <= ordinaryIndex.plain {
			mu.Unlock()
			return
		}
		inside++
		several = several || inside > 1
		mu.Unlock()
		first()
		mu.Lock()
		inside--
		mu.Unlock()
	}
	report, err := r.Check(t.Context(), CheckOptions{})
	require.NoError(t, err)
	require.False(t, several, "two were open at once")
	for _, more := range []int{0, 1} {
		require.Equal(t, 2, opened[len(large)+1+more], "once, and once more because it was wrong")
		require.Equal(t, 4, opened[len(hostile)+more], "each time as an ordinary file first")
	}
	for _, key := range keys {
		require.Contains(t, strings.Join(report.Errors, "\n"), key)
	}
}
