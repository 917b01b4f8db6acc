package snapshot

import (
	"testing"

	"github.com/stretchr/testify/require"

	"holdfast/storage"
	"holdfast/storage/storagetest"
)

// TestTwoRepositoriesAreNotMixed: stores that were named together and hold a repository each. Nothing is written to
// either, by any of the operations that write; what is in the first can be read.
func TestTwoRepositoriesAreNotMixed(t *testing.T) {
	for name, policy := range map[string]storage.Policy{"any": storage.PolicyAny, "all": storage.PolicyAll} {
		t.Run(name, func(t *testing.T) {
			first, second := storagetest.NewMemory(), storagetest.NewMemory()
			source := t.TempDir()
			for _, p := range []storage.Provider{first, second} {
				_, err := newTestRepository(t, storage.PolicyAll, p).Backup(t.Context(), source, BackupOptions{})
				require.NoError(t, err)
			}
			before := map[storage.Provider][]string{first: allKeys(t, first), second: allKeys(t, second)}

			r, err := OpenOrCreate(t.Context(), newTestMirror(t, policy, first, second), testPassword, testOptions())
			require.NoError(t, err)
			defer r.Close()
			_, err = r.Backup(t.Context(), source, BackupOptions{})
			require.ErrorIs(t, err, ErrOtherRepository)
			_, err = r.Repair(t.Context(), RepairOptions{})
			require.ErrorIs(t, err, ErrOtherRepository)
			_, err = r.Prune(t.Context(), PruneOptions{})
			require.ErrorIs(t, err, ErrOtherRepository)
			_, err = r.RebuildIndex(t.Context(), RebuildIndexOptions{})
			require.ErrorIs(t, err, ErrOtherRepository)
			_, err = r.Forget(t.Context(), ForgetOptions{Snapshots: []string{"latest"}})
			require.ErrorIs(t, err, ErrOtherRepository)
			for p, keys := range before {
				require.Equal(t, keys, allKeys(t, p))
			}
			found, err := r.Snapshots(t.Context())
			require.NoError(t, err)
			require.Len(t, found, 1)
		})
	}
}

// TestALateStoreIsNoOtherRepository: one that has nothing yet, and one that was given a key of its own, take part.
func TestALateStoreIsNoOtherRepository(t *testing.T) {
	first, late := storagetest.NewMemory(), storagetest.NewMemory()
	source := t.TempDir()
	_, err := newTestRepository(t, storage.PolicyAll, first).Backup(t.Context(), source, BackupOptions{})
	require.NoError(t, err)
	for range 2 { // the second time it has all
		r, err := Open(t.Context(), newTestMirror(t, storage.PolicyAll, first, late), testPassword, testOptions())
		require.NoError(t, err)
		_, err = r.Backup(t.Context(), source, BackupOptions{})
		require.NoError(t, err)
		require.NoError(t, r.Close())
	}
}
