package snapshot

import (
	"bytes"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"holdfast/storage"
	"holdfast/storage/faulty"
	"holdfast/storage/storagetest"
)

// allKeys lists a provider.
func allKeys(t testing.TB, p storage.Provider) []string {
	t.Helper()
	var keys []string
	require.NoError(t, p.List(t.Context(), "", func(o storage.Object) error { keys = append(keys, o.Key); return nil }))
	slices.Sort(keys)
	return keys
}

func read(t testing.TB, p storage.Provider, key string) []byte {
	t.Helper()
	data, err := storage.ReadAll(t.Context(), p, key, 0, -1)
	require.NoError(t, err)
	return data
}

func overwrite(t testing.TB, p storage.Provider, key string, data []byte) {
	t.Helper()
	_, err := p.Put(t.Context(), key, data, storage.PutOptions{})
	require.NoError(t, err)
}

// TestVerifyStoredMissesNothing: whatever single object one provider lacks, has cut short, or has with other bytes, is
// found, on that provider and on no other; old packs included (invariant 1).
func TestVerifyStoredMissesNothing(t *testing.T) {
	for name, make := range map[string]func(t *testing.T) storage.Provider{
		"listing with checksums": func(*testing.T) storage.Provider { return storagetest.NewMemory() },
		"listing without checksums": func(t *testing.T) storage.Provider {
			_, provider := directoryRepository(t)
			return provider
		},
	} {
		t.Run(name, func(t *testing.T) {
			damaged, sound := make(t), storagetest.NewMemory()
			r := newTestRepository(t, storage.PolicyAll, damaged, sound)
			dir := t.TempDir()
			// Several backups, so that the last one needs packs and indexes of all.
			var last *BackupResult
			for i := range 3 {
				writeFiles(t, dir, map[string][]byte{filepath.Join("d", string(rune('a'+i))): randomBytes(int64(i), 100_000)})
				var err error
				last, err = r.Backup(t.Context(), dir, BackupOptions{Kind: Final})
				require.NoError(t, err)
			}
			keys := slices.DeleteFunc(allKeys(t, damaged), func(key string) bool {
				// Trees and snapshots of the backups before are not needed by the last.
				return strings.HasPrefix(key, snapshotPrefix) && !strings.HasSuffix(key, last.Snapshot)
			})
			require.NotEmpty(t, keys)
			needed := map[string]bool{}
			s, err := r.resolveSnapshot(t.Context(), last.Snapshot)
			require.NoError(t, err)
			references, err := r.references(t.Context(), s)
			require.NoError(t, err)
			for id := range references.packs {
				needed[packKey(id)] = true
			}
			require.Len(t, references.packs, 4, "three of data, one with the last trees")

			look := func(fresh bool) map[string]error {
				r := r
				if fresh { // another process, which remembers nothing of the writing
					r = newTestRepository(t, storage.PolicyAll, damaged, sound)
				}
				outcome, err := r.VerifyStored(t.Context(), last.Snapshot)
				require.NoError(t, err)
				require.Len(t, outcome, 2)
				require.NoError(t, outcome[sound.URL()])
				return outcome
			}
			require.NoError(t, look(false)[damaged.URL()])
			require.NoError(t, look(true)[damaged.URL()])
			for _, key := range keys {
				if strings.HasPrefix(key, packPrefix) && !needed[key] || strings.HasPrefix(key, lockPrefix) {
					continue
				}
				whole := read(t, damaged, key)
				changes := map[string]func(){
					"deleted":   func() { require.NoError(t, damaged.Delete(t.Context(), key)) },
					"truncated": func() { overwrite(t, damaged, key, whole[:len(whole)-1]) },
				}
				// A listing without checksums cannot tell packs of one size apart.
				if name == "listing with checksums" || !strings.HasPrefix(key, packPrefix) {
					changes["swapped"] = func() {
						other := bytes.Clone(whole)
						other[len(other)/2] ^= 1
						overwrite(t, damaged, key, other)
					}
				}
				for what, change := range changes {
					change()
					require.ErrorIs(t, look(false)[damaged.URL()], ErrNotStoredWhole, "%s %s", key, what)
					require.ErrorIs(t, look(true)[damaged.URL()], ErrNotStoredWhole, "%s %s, seen by another process", key, what)
					overwrite(t, damaged, key, whole)
				}
			}
			require.NoError(t, look(false)[damaged.URL()])
		})
	}
}

// TestVerifyStoredOfProvidersThatCannotBeListed: not having been seen is not having it (invariant 1).
func TestVerifyStoredOfProvidersThatCannotBeListed(t *testing.T) {
	faults, providers := memories(2)
	r := newTestRepository(t, storage.PolicyAll, providers...)
	dir := t.TempDir()
	writeFiles(t, dir, map[string][]byte{"f": []byte("f")})
	result, err := r.Backup(t.Context(), dir, BackupOptions{})
	require.NoError(t, err)
	faults[1].Inject(faulty.Rule{Op: faulty.List})
	outcome, err := r.VerifyStored(t.Context(), result.Snapshot)
	require.NoError(t, err)
	require.NoError(t, outcome[faults[0].URL()])
	require.ErrorIs(t, outcome[faults[1].URL()], faulty.ErrInjected)
	require.NotErrorIs(t, outcome[faults[1].URL()], ErrNotStoredWhole)
	faults[1].Clear()
	// A listing that ends early without saying so.
	faults[1].Inject(faulty.Rule{Op: faulty.List, Kind: faulty.Truncate, Match: func(prefix string) bool { return prefix == "" }})
	outcome, err = r.VerifyStored(t.Context(), result.Snapshot)
	require.NoError(t, err)
	require.ErrorIs(t, outcome[faults[1].URL()], ErrNotStoredWhole)
	_, err = r.VerifyStored(t.Context(), strings.Repeat("0", 64))
	require.ErrorIs(t, err, ErrNoSnapshot)
}

// TestVerifyStoredSeesLies: a provider that says it stored and did not is found out by the look that follows.
func TestVerifyStoredSeesLies(t *testing.T) {
	for _, prefix := range []string{packPrefix, indexPrefix, snapshotPrefix} {
		faults, providers := memories(2)
		r := newTestRepository(t, storage.PolicyAll, providers...)
		faults[0].Inject(faulty.Rule{Op: faulty.Put, Kind: faulty.NotStored, Times: 1, Match: func(key string) bool { return strings.HasPrefix(key, prefix) }})
		dir := t.TempDir()
		writeFiles(t, dir, map[string][]byte{"f": []byte("f")})
		result, err := r.Backup(t.Context(), dir, BackupOptions{Kind: Final})
		require.NoError(t, err)
		outcome, err := r.VerifyStored(t.Context(), result.Snapshot)
		require.NoError(t, err)
		require.ErrorIs(t, outcome[faults[0].URL()], ErrNotStoredWhole, prefix)
		require.NoError(t, outcome[faults[1].URL()])
	}
}

// TestVerifyStoredOfABlobThatNoIndexNames: content that an old index named, which no store has any more, is not stored, also
// when everything that the newest backup wrote is there (invariant 1).
func TestVerifyStoredOfABlobThatNoIndexNames(t *testing.T) {
	_, providers := memories(2)
	r := newTestRepository(t, storage.PolicyAll, providers...)
	dir := t.TempDir()
	writeFiles(t, dir, map[string][]byte{"old/f": randomBytes(1, 10_000)})
	_, err := r.Backup(t.Context(), dir, BackupOptions{})
	require.NoError(t, err)
	var old []string
	for _, key := range allKeys(t, providers[0]) {
		if isIndex(key) {
			old = append(old, key)
		}
	}
	require.NotEmpty(t, old)
	writeFiles(t, dir, map[string][]byte{"old/g": randomBytes(2, 10_000)})
	result, err := r.Backup(t.Context(), dir, BackupOptions{})
	require.NoError(t, err)
	for _, provider := range providers {
		for _, key := range old {
			require.NoError(t, provider.Delete(t.Context(), key))
		}
	}
	outcome, err := newTestRepository(t, storage.PolicyAll, providers...).VerifyStored(t.Context(), result.Snapshot)
	require.Error(t, err, "%v", outcome)
}
