package snapshot

import (
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"holdfast/storage"
	"holdfast/storage/faulty"
)

// TestPacksOfAFailedBackupThatAreGone: a backup failed and left packs that no index names, somebody pruned them, and the
// same process backs up again: what it remembers of them is not what is stored.
func TestPacksOfAFailedBackupThatAreGone(t *testing.T) {
	faults, providers := memories(1)
	r := newTestRepository(t, storage.PolicyAll, providers...)
	dir := t.TempDir()
	writeFiles(t, dir, map[string][]byte{"a": []byte("a")})
	_, err := r.Backup(t.Context(), dir, BackupOptions{})
	require.NoError(t, err)
	before := allKeys(t, providers[0])
	writeFiles(t, dir, map[string][]byte{"b": randomBytes(1, 3<<20), "c": randomBytes(2, 3<<20), "d": randomBytes(3, 3<<20)})
	faults[0].Inject(faulty.Rule{Op: faulty.Put, Match: isPack, Skip: 1})
	_, err = r.Backup(t.Context(), dir, BackupOptions{})
	require.Error(t, err)
	faults[0].Clear()
	gone := 0
	for _, key := range allKeys(t, providers[0]) {
		if isPack(key) && !slices.Contains(before, key) {
			require.NoError(t, providers[0].Delete(t.Context(), key))
			gone++
		}
	}
	require.Positive(t, gone)
	result, err := r.Backup(t.Context(), dir, BackupOptions{})
	require.NoError(t, err)
	require.Contains(t, contentOf(t, providers...), result.Snapshot, "it can be read whole")
}
