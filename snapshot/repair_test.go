package snapshot

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"holdfast/storage"
	"holdfast/storage/faulty"
	"holdfast/storage/storagetest"
)

// owing makes a repository whose second store was away for the second backup, and gives that backup.
func owing(t *testing.T, first, second *storagetest.Memory) *BackupResult {
	t.Helper()
	dir := t.TempDir()
	writeFiles(t, dir, map[string][]byte{"a": randomBytes(1, 100_000)})
	_, err := newTestRepository(t, storage.PolicyAll, first, second).Backup(t.Context(), dir, BackupOptions{})
	require.NoError(t, err)
	writeFiles(t, dir, map[string][]byte{"b": randomBytes(2, 100_000), "c/d": randomBytes(3, 100_000)})
	result, err := newTestRepository(t, storage.PolicyAll, first).Backup(t.Context(), dir, BackupOptions{})
	require.NoError(t, err)
	return result
}

// whole says whether a store alone holds a snapshot whole, and restores it.
func whole(t *testing.T, p storage.Provider, snapshot string) {
	t.Helper()
	r := newTestRepository(t, storage.PolicyAll, p)
	outcome, err := r.VerifyStored(t.Context(), snapshot)
	require.NoError(t, err)
	require.NoError(t, outcome[p.URL()])
	_, err = r.Restore(t.Context(), snapshot, filepath.Join(t.TempDir(), "restored"), RestoreOptions{})
	require.NoError(t, err)
}

// TestRepairIsCutAnywhere: a repair whose second store fails at its nth write, for every n, leaves there no snapshot
// that is not whole, and the next repair copies only what is still owed.
func TestRepairIsCutAnywhere(t *testing.T) {
	for n := 1; ; n++ {
		first, second := storagetest.NewMemory(), storagetest.NewMemory()
		result := owing(t, first, second)
		cut := faulty.New(second)
		cut.Inject(faulty.Rule{
			Op: faulty.Put, Kind: faulty.Error, Err: storage.ErrPermission, Skip: n - 1,
			Match: func(key string) bool { return !strings.HasPrefix(key, lockPrefix) },
		})
		before := len(allKeys(t, second))
		report, err := newTestRepository(t, storage.PolicyAll, first, cut).Repair(t.Context(), RepairOptions{})
		if err == nil {
			require.Greater(t, n, 3, "packs, an index and a snapshot were owed")
			whole(t, second, result.Snapshot)
			return
		}
		require.ErrorIs(t, err, storage.ErrPermission)
		require.Equal(t, len(allKeys(t, second))-before, report.Copied[second.URL()], "what is reported is what was done")
		if _, err := second.Stat(t.Context(), snapshotPrefix+result.Snapshot); err == nil {
			whole(t, second, result.Snapshot)
		} else {
			require.ErrorIs(t, err, storage.ErrNotFound)
		}
		again, err := newTestRepository(t, storage.PolicyAll, first, second).Repair(t.Context(), RepairOptions{})
		require.NoError(t, err)
		whole(t, second, result.Snapshot)
		last, err := newTestRepository(t, storage.PolicyAll, first, second).Repair(t.Context(), RepairOptions{})
		require.NoError(t, err)
		require.Empty(t, last.Copied, "nothing is owed any more")
		require.Positive(t, again.Copied[second.URL()])
	}
}

// TestRepairBesideABackup: what a backup stores while packs are copied, on a mirror whose second store is behind, is not
// half copied: a store never shows a snapshot, nor an index, of packs that it lacks.
func TestRepairBesideABackup(t *testing.T) {
	first, second := storagetest.NewMemory(), storagetest.NewMemory()
	result := owing(t, first, second)
	dir := t.TempDir()
	writeFiles(t, dir, map[string][]byte{"new": randomBytes(9, 100_000)})
	var beside *BackupResult
	r := newTestRepository(t, storage.PolicyAll, first, second)
	_, err := r.Repair(t.Context(), RepairOptions{Progress: func(storage.RepairProgress) {
		if beside == nil {
			var err error
			beside, err = newTestRepository(t, storage.PolicyAll, first).Backup(t.Context(), dir, BackupOptions{})
			require.NoError(t, err)
		}
	}})
	require.NoError(t, err)
	require.NotNil(t, beside)
	whole(t, second, result.Snapshot)
	_, err = second.Stat(t.Context(), snapshotPrefix+beside.Snapshot)
	require.ErrorIs(t, err, storage.ErrNotFound, "its packs came after the packs were listed")
	found, err := newTestRepository(t, storage.PolicyAll, second).Check(t.Context(), CheckOptions{ReadData: true})
	require.NoError(t, err)
	require.Empty(t, found.Errors)
	_, err = r.Repair(t.Context(), RepairOptions{})
	require.NoError(t, err)
	whole(t, second, beside.Snapshot)
}

// TestRepairAndLocks: a repair waits for no prune and lets none begin.
func TestRepairAndLocks(t *testing.T) {
	first, second := storagetest.NewMemory(), storagetest.NewMemory()
	owing(t, first, second)
	other := newTestRepository(t, storage.PolicyAll, first, second)
	lock, err := other.lockExclusive(t.Context(), 0)
	require.NoError(t, err)
	r := newTestRepository(t, storage.PolicyAll, first, second)
	_, err = r.Repair(t.Context(), RepairOptions{})
	require.ErrorIs(t, err, ErrLocked)
	lock.release(t.Context())

	var refused error
	_, err = r.Repair(t.Context(), RepairOptions{Progress: func(storage.RepairProgress) {
		if refused == nil {
			_, refused = other.lockExclusive(t.Context(), 0)
		}
	}})
	require.NoError(t, err)
	require.ErrorIs(t, refused, ErrLocked)
	require.Empty(t, locksOf(t, first))
	require.Empty(t, locksOf(t, second))
}

func locksOf(t *testing.T, p storage.Provider) (keys []string) {
	for _, key := range allKeys(t, p) {
		if strings.HasPrefix(key, lockPrefix) {
			keys = append(keys, key)
		}
	}
	return keys
}

// TestRepairOfTwoRepositories: what is not one repository is not mixed.
func TestRepairOfTwoRepositories(t *testing.T) {
	for name, create := range map[string]func() storage.Provider{
		"listings with checksums":    func() storage.Provider { return storagetest.NewMemory() },
		"listings without checksums": func() storage.Provider { return openDirectory(t, filepath.Join(t.TempDir(), "repository")) },
	} {
		t.Run(name, func(t *testing.T) {
			first, second := create(), create()
			for _, p := range []storage.Provider{first, second} {
				_, err := newTestRepository(t, storage.PolicyAll, p).Backup(t.Context(), t.TempDir(), BackupOptions{})
				require.NoError(t, err)
			}
			before := allKeys(t, second)
			_, err := RepairMirror(t.Context(), newTestMirror(t, storage.PolicyAll, first, second), nil)
			require.ErrorIs(t, err, ErrOtherRepository)
			require.Equal(t, before, allKeys(t, second))
		})
	}
}
