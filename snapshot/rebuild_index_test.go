package snapshot

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"holdfast/storage"
	"holdfast/storage/faulty"
	"holdfast/storage/storagetest"
)

func isIndex(key string) bool { return strings.HasPrefix(key, indexPrefix) }

// TestRebuildIndex: from nothing but the packs, on whichever provider they are, the index comes back.
func TestRebuildIndex(t *testing.T) {
	s := makeScene(t, 30)
	t.Run("nothing is wrong", func(t *testing.T) {
		memory := s.clone(t)
		r := newTestRepository(t, storage.PolicyAll, memory)
		report, err := r.RebuildIndex(t.Context(), RebuildIndexOptions{})
		require.NoError(t, err)
		require.Len(t, report.Added, len(s.unindexed))
		before := allKeys(t, memory)
		report, err = r.RebuildIndex(t.Context(), RebuildIndexOptions{})
		require.NoError(t, err)
		require.Zero(t, report.IndexesWritten)
		require.Positive(t, report.Packs)
		require.Equal(t, before, allKeys(t, memory))
		requireContent(t, s.kept, memory)
	})
	for name, lose := range map[string]func(*storagetest.Memory, string){
		"all are lost":    func(m *storagetest.Memory, key string) { require.NoError(t, m.Delete(t.Context(), key)) },
		"all are damaged": func(m *storagetest.Memory, key string) { m.Corrupt(key, func(d []byte) []byte { return flip(d, 40) }) },
	} {
		t.Run(name, func(t *testing.T) {
			first, second := s.clone(t), s.clone(t)
			for i, key := range first.Keys() {
				switch {
				case isIndex(key):
					lose(first, key)
					lose(second, key)
				case isPack(key) && i%2 == 0: // half of the packs on each
					require.NoError(t, first.Delete(t.Context(), key))
				case isPack(key):
					require.NoError(t, second.Delete(t.Context(), key))
				}
			}
			r := newTestRepository(t, storage.PolicyAll, first, second)
			_, err := r.Prune(t.Context(), thorough())
			require.Error(t, err)
			dry, err := r.RebuildIndex(t.Context(), RebuildIndexOptions{DryRun: true})
			require.NoError(t, err)
			report, err := r.RebuildIndex(t.Context(), RebuildIndexOptions{})
			require.NoError(t, err)
			require.Equal(t, dry.Added, report.Added)
			require.Len(t, report.Added, int(report.Packs))
			require.Equal(t, 1, report.IndexesWritten)
			require.Empty(t, report.Missing)
			require.Empty(t, report.Damaged)
			require.Equal(t, report.IndexesBefore, len(report.DamagedIndexes))
			requireContent(t, s.kept, first, second)
			_, err = RepairMirror(t.Context(), newTestMirror(t, storage.PolicyAll, first, second), nil)
			require.NoError(t, err)
			requireSound(t, first, second)
			requireContent(t, s.kept, first)
			// The same process goes on with it.
			result, err := r.Backup(t.Context(), s.forgotten, BackupOptions{})
			require.NoError(t, err)
			require.Zero(t, result.BytesAdded, "even what nothing needs is known again")
		})
	}
}

// TestRebuildIndexReports what it finds, and what can still be read can be read after it.
func TestRebuildIndexReports(t *testing.T) {
	s := makeScene(t, 31)
	base := newTestRepository(t, storage.PolicyAll, s.clone(t))
	for _, pack := range base.indexedPacks() {
		memory := s.clone(t)
		key := packKey(pack.id)
		memory.Corrupt(key, func(data []byte) []byte { return flip(data, len(data)-30) }) // within the header
		require.Equal(t, s.kept, contentOf(t, memory), "the blobs are whole")
		r := newTestRepository(t, storage.PolicyAll, memory)
		report, err := r.RebuildIndex(t.Context(), RebuildIndexOptions{})
		require.NoError(t, err)
		require.Contains(t, report.Damaged, pack.id.String())
		require.Positive(t, report.IndexesWritten, "for the packs that none named")
		requireContent(t, s.kept, memory)

		require.NoError(t, memory.Delete(t.Context(), key))
		before := contentOf(t, memory)
		report, err = newTestRepository(t, storage.PolicyAll, memory).RebuildIndex(t.Context(), RebuildIndexOptions{})
		require.NoError(t, err)
		require.Equal(t, []string{pack.id.String()}, report.Missing)
		requireContent(t, before, memory)
	}

	// An index that says something else of a pack than the pack itself.
	memory := s.clone(t)
	r := newTestRepository(t, storage.PolicyAll, memory)
	c := newCrafter(t, r)
	id := c.blob(dataBlob, randomBytes(77, 5000))
	c.blob(dataBlob, randomBytes(78, 5000))
	pack := c.endPack(dataBlob)
	c.index.Packs[0].Blobs[0].ID, c.index.Packs[0].Blobs[1].ID = c.index.Packs[0].Blobs[1].ID, c.index.Packs[0].Blobs[0].ID
	c.endIndex()
	orphan := storagePackOfGarbage(t, memory)
	report, err := newTestRepository(t, storage.PolicyAll, memory).RebuildIndex(t.Context(), RebuildIndexOptions{})
	require.NoError(t, err)
	require.Equal(t, []string{pack.String()}, report.Corrected)
	require.Contains(t, report.Damaged, orphan.String())
	fresh := newTestRepository(t, storage.PolicyAll, memory)
	_, err = fresh.loadBlob(t.Context(), id, dataBlob)
	require.NoError(t, err)
	_, there := fresh.indexedPack(orphan)
	require.False(t, there)
	require.Contains(t, allKeys(t, memory), packKey(orphan), "it is not removed")
}

func storagePackOfGarbage(t *testing.T, p storage.Provider) blobID {
	t.Helper()
	id := blobID{9, 9, 9}
	overwrite(t, p, packKey(id), randomBytes(5, 3000))
	return id
}

// TestRebuildIndexRefuses to work on half of the truth.
func TestRebuildIndexRefuses(t *testing.T) {
	s := makeScene(t, 32)
	first, second := s.clone(t), faulty.New(s.clone(t))
	for _, rule := range []faulty.Rule{
		{Op: faulty.List}, {Op: faulty.Put}, {Op: faulty.Put, Match: isIndex}, {Op: faulty.Put, Match: isIndex, Kind: faulty.NotStored},
		{Op: faulty.Get, Match: isIndex, Kind: faulty.WrongBytes},
	} {
		r := newTestRepository(t, storage.PolicyAny, first, second)
		before := keysWithoutLocks(t, first)
		second.Inject(rule)
		report, err := r.RebuildIndex(t.Context(), RebuildIndexOptions{})
		second.Clear()
		require.Error(t, err, rule)
		if report != nil {
			require.Zero(t, report.IndexesRemoved)
		}
		require.Equal(t, before, keysWithoutLocks(t, first))
		require.Equal(t, before, keysWithoutLocks(t, second))
		removeLocks(t, first, second)
	}
	// A pack that cannot be read just now is not one that is damaged.
	alone := faulty.New(s.clone(t))
	alone.Inject(faulty.Rule{Op: faulty.Get, Match: isPack, Skip: 3, Times: 1})
	_, err := newTestRepository(t, storage.PolicyAll, alone).RebuildIndex(t.Context(), RebuildIndexOptions{})
	require.ErrorIs(t, err, faulty.ErrInjected)
}

// TestRebuildIndexSeesWhatChanged: a program that does not honour locks stored something meanwhile.
func TestRebuildIndexSeesWhatChanged(t *testing.T) {
	s := makeScene(t, 35)
	for name, change := range map[string]func(c *crafter, memory *storagetest.Memory){
		"a pack is new":   func(c *crafter, _ *storagetest.Memory) { c.blob(dataBlob, randomBytes(1, 50)); c.endPack(dataBlob) },
		"an index is new": func(c *crafter, _ *storagetest.Memory) { c.endIndex() },
		"a pack is gone": func(_ *crafter, memory *storagetest.Memory) {
			require.NoError(t, memory.Delete(t.Context(), s.unindexed[0]))
		},
	} {
		memory := s.clone(t)
		c := newCrafter(t, newTestRepository(t, storage.PolicyAll, memory))
		hook := &putHook{Provider: memory}
		changed := false
		hook.before = func(key string) {
			if isIndex(key) && !changed {
				changed = true
				change(c, memory)
			}
		}
		report, err := newTestRepository(t, storage.PolicyAll, hook).RebuildIndex(t.Context(), RebuildIndexOptions{})
		require.ErrorIs(t, err, ErrLocked, name)
		require.Zero(t, report.IndexesRemoved, name)
		require.Equal(t, s.kept, contentOf(t, memory), name)
		for _, key := range keysWithoutLocks(t, s.memory) {
			if isIndex(key) {
				require.Contains(t, allKeys(t, memory), key, name)
			}
		}
	}
}

// TestRebuildIndexInterrupted stops it at every single request.
func TestRebuildIndexInterrupted(t *testing.T) {
	t.Parallel()
	s := makeScene(t, 33)
	for name, kind := range map[string]faulty.Rule{"cut": {}, "lies": {Times: 1, Kind: faulty.NotStored}, "wrong": {Times: 1, Kind: faulty.WrongBytes}} {
		t.Run(name, func(t *testing.T) {
			interruptEverywhere(t, s, kind, 0, func(r *Repository) error {
				_, err := r.RebuildIndex(t.Context(), RebuildIndexOptions{})
				return err
			})
		})
	}
}

// TestBackupDuringRebuildIndex begins a backup before every single request of it.
func TestBackupDuringRebuildIndex(t *testing.T) {
	duringEverything(t, makeScene(t, 34), func(r *Repository) error {
		_, err := r.RebuildIndex(t.Context(), RebuildIndexOptions{})
		return err
	})
}
