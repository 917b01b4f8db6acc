package snapshot

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"holdfast/storage"
)

// TestStockResticCopiesAndCompares: restic copies snapshots of ours into a repository of its own, whose data we read, and
// its own into ours; and what it finds changed between two of ours is what was changed (A13).
func TestStockResticCopiesAndCompares(t *testing.T) {
	eachRestic(t, func(t *testing.T, restic resticVersion) {
		repository, provider := directoryRepository(t)
		source := filepath.Join(t.TempDir(), "source")
		writeFiles(t, source, map[string][]byte{
			"same": randomBytes(1, 3_000_000), "dir/changed": []byte("before"), "dir/removed": []byte("gone"), "empty": {},
		})
		r := newTestRepository(t, storage.PolicyAll, provider)
		first, err := r.Backup(t.Context(), source, BackupOptions{Kind: Final})
		require.NoError(t, err)
		require.NoError(t, os.Remove(filepath.Join(source, "dir", "removed")))
		writeFiles(t, source, map[string][]byte{"dir/changed": []byte("after this"), "added": []byte("new")})
		second, err := r.Backup(t.Context(), source, BackupOptions{Kind: Final})
		require.NoError(t, err)

		out := stock(t, restic.path, repository, "", "diff", first.Snapshot, second.Snapshot)
		for _, line := range []string{"+    /added\n", "M    /dir/changed\n", "-    /dir/removed\n"} {
			require.Contains(t, out, line)
		}
		for _, line := range []string{"/same", "/empty"} {
			require.NotContains(t, out, line)
		}

		other := filepath.Join(t.TempDir(), "other")
		stock(t, restic.path, other, "", "init", "--from-repo", repository, "--copy-chunker-params")
		stock(t, restic.path, other, "", "copy", "--from-repo", repository)
		requireNoResticErrors(t, restic.path, other)
		copied := openedRepository(t, other)
		infos, err := copied.Snapshots(t.Context())
		require.NoError(t, err)
		require.Len(t, infos, 2)
		for i, tree := range []string{"before", "after this"} {
			requireWhole(t, copied, infos[i].ID)
			require.Equal(t, tree, string(dumped(t, copied, infos[i].ID, "dir/changed")))
			require.Equal(t, randomBytes(1, 3_000_000), dumped(t, copied, infos[i].ID, "same"))
		}

		// Back: what restic stored there goes into ours, and both go on with it.
		writeFiles(t, source, map[string][]byte{"by restic": randomBytes(2, 2_000_000)})
		stock(t, restic.path, other, source, "backup", ".", "--tag", "theirs")
		stock(t, restic.path, repository, "", "copy", "--from-repo", other, "--tag", "theirs", "latest")
		requireNoResticErrors(t, restic.path, repository)
		r = newTestRepository(t, storage.PolicyAll, provider)
		infos, err = r.Snapshots(t.Context())
		require.NoError(t, err)
		require.Len(t, infos, 3)
		require.Equal(t, []string{"theirs"}, infos[2].Tags)
		requireWhole(t, r, infos[2].ID)
		require.Equal(t, randomBytes(2, 2_000_000), dumped(t, r, infos[2].ID, "by restic"))
		third, err := r.Backup(t.Context(), source, BackupOptions{Kind: Final})
		require.NoError(t, err)
		require.Less(t, third.BytesAdded, int64(100_000), "what restic copied is not stored again")
		requireSound(t, provider)
		requireNoResticErrors(t, restic.path, repository)
	})
}

// openedRepository is the repository in a directory, opened.
func openedRepository(t *testing.T, dir string) *Repository {
	t.Helper()
	provider, err := storage.OpenDirectory(dir, storage.DirectoryOptions{})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, provider.Close()) })
	return newTestRepository(t, storage.PolicyAll, provider)
}
