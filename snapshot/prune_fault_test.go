package snapshot

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"holdfast/storage"
	"holdfast/storage/faulty"
	"holdfast/storage/storagetest"
)

// onlyBehind accepts what an interrupted removal on one of two providers leaves: an old index, or its removal, on one of
// them. It is no damage: each provider alone is whole.
func onlyBehind(t testing.TB, providers ...storage.Provider) {
	t.Helper()
	for _, p := range providers {
		requireSound(t, p)
	}
}

// TestPruneInterrupted stops a prune at every single request, in several ways, on one provider or of two: every snapshot
// can be read, every provider by itself is sound, and the next prune ends the work.
func TestPruneInterrupted(t *testing.T) {
	t.Parallel()
	s := makeScene(t, 7)
	kinds := map[string]faulty.Rule{
		"cut":              {},                                  // nothing works from there on
		"once":             {Times: 1},                          // one request fails
		"answer lost":      {Times: 1, Kind: faulty.LostAnswer}, // it was done, and nobody knows
		"cut, answer lost": {Kind: faulty.LostAnswer},           // the same from there on
		"lies":             {Times: 1, Kind: faulty.NotStored},  // it was not done, and success is said
		"short":            {Times: 1, Kind: faulty.Truncate},   // half of a listing, a body, an object
		"wrong":            {Times: 1, Kind: faulty.WrongBytes}, // what is read or stored is not what it was
	}
	for name, kind := range kinds {
		for mirrored := range 2 {
			t.Run(fmt.Sprintf("%s, of %d", name, 1+mirrored), func(t *testing.T) {
				often := name == "cut" || name == "lies" || mirrored == 0 && name != "once" && name != "cut, answer lost"
				if !often && os.Getenv("HOLDFAST_CAMPAIGN") == "" {
					t.Skip("in the campaign")
				}
				interruptEverywhere(t, s, kind, mirrored, func(r *Repository) error {
					_, err := r.Prune(t.Context(), thorough())
					return err
				})
			})
		}
	}
}

// interruptEverywhere runs something once for each of its requests, with that one failing.
func interruptEverywhere(t *testing.T, s *scene, kind faulty.Rule, mirrored int, run func(r *Repository) error) {
	failed, at := 0, 0
	for ; ; at++ {
		faults := faulty.New(s.clone(t))
		providers := []storage.Provider{faults}
		for range mirrored {
			providers = append(providers, s.clone(t))
		}
		r := newTestRepository(t, storage.PolicyAll, providers...)
		rule := kind
		rule.Skip = at
		before := faults.Calls(faulty.Any)
		faults.Inject(rule)
		err := run(r)
		what := fmt.Sprintf("request %d: %v", at, err)
		if err != nil {
			failed++
		}
		done := faults.Calls(faulty.Any)-before <= at // it was never reached
		faults.Clear()
		removeLocks(t, providers...)
		if unchanged(t, s, providers...) {
			require.False(t, done)
			continue // what is as it was need not be looked at again
		}
		require.Equal(t, s.kept, contentOf(t, providers...), what)
		onlyBehind(t, providers...)
		if done {
			require.NoError(t, err)
			break
		}

		require.NoError(t, run(newTestRepository(t, storage.PolicyAll, providers...)), "the next, after %s", what)
		require.Equal(t, s.kept, contentOf(t, providers...), what)
		requireSound(t, providers...)
	}
	t.Logf("%d requests, %d failures", at, failed)
	require.Greater(t, at, 20)
	require.Positive(t, failed)
}

// unchanged reports whether all stores hold exactly what the scene's does. No object is ever written over.
func unchanged(t testing.TB, s *scene, providers ...storage.Provider) bool {
	t.Helper()
	for _, p := range providers {
		if !slices.Equal(keysWithoutLocks(t, p), keysWithoutLocks(t, s.memory)) {
			return false
		}
	}
	return true
}

// TestBackupDuringPrune begins a backup before every single request of a prune. What it backs up is content that nothing
// needs any more, and that lies in packs which the prune removes.
func TestBackupDuringPrune(t *testing.T) {
	s := makeScene(t, 8)
	duringEverything(t, s, func(r *Repository) error { _, err := r.Prune(t.Context(), thorough()); return err })
}

func duringEverything(t *testing.T, s *scene, run func(r *Repository) error) {
	locked, stored, refused := 0, 0, 0
	for at := 1; ; at++ {
		memory := s.clone(t)
		calls := &everyCall{Provider: memory}
		r := newTestRepository(t, storage.PolicyAll, calls)
		calls.calls, calls.at = 0, at
		want := contents{}
		for id, content := range s.kept {
			want[id] = content
		}
		calls.before = func() {
			result, err := newTestRepository(t, storage.PolicyAll, memory).Backup(t.Context(), s.forgotten, BackupOptions{})
			if err != nil {
				require.ErrorIs(t, err, ErrLocked)
				locked++
				return
			}
			stored++
			want[result.Snapshot] = contentOf(t, memory)[result.Snapshot]
			require.NotZero(t, want[result.Snapshot])
		}
		err := run(r)
		if err != nil {
			refused++
			require.True(t, errors.Is(err, ErrLocked) || errors.Is(err, ErrNotStoredWhole), "%d: %v", at, err)
		}
		requireContent(t, want, memory)
		requireSound(t, memory)
		require.Empty(t, locksOn(t, memory))
		if calls.calls < at {
			require.NoError(t, err)
			break
		}
	}
	t.Logf("%d backups were refused, %d stored; %d prunes were refused", locked, stored, refused)
	require.Positive(t, locked)
	require.Positive(t, stored)
}

// TestPruneDuringBackup begins a backup before every single request of a prune too, but one that looks at the index then,
// goes on while the prune does, and stores its snapshot when the prune has ended.
func TestPruneDuringBackup(t *testing.T) {
	s := makeScene(t, 9)
	refused, locked := 0, 0
	for at := 1; ; at++ {
		memory := s.clone(t)
		calls := &everyCall{Provider: memory}
		r := newTestRepository(t, storage.PolicyAll, calls)
		calls.calls, calls.at = 0, at
		type outcome struct {
			snapshot string
			err      error
		}
		goOn, listed, ended := make(chan struct{}), make(chan struct{}), make(chan outcome, 1)
		backup := newTestRepository(t, storage.PolicyAll, memory)
		backup.moments.listed = func(path string) {
			if path == "" {
				close(listed)
				<-goOn
			}
		}
		begun := false
		calls.before = func() {
			begun = true
			go func() {
				result, err := backup.Backup(t.Context(), s.forgotten, BackupOptions{})
				if err != nil {
					ended <- outcome{err: err}
					return
				}
				ended <- outcome{snapshot: result.Snapshot}
			}()
			select {
			case <-listed:
			case o := <-ended:
				ended <- o
			}
		}
		_, err := r.Prune(t.Context(), thorough())
		close(goOn)
		if !begun {
			require.NoError(t, err)
			requireContent(t, s.kept, memory)
			break
		}
		o := <-ended
		want := contents{}
		for id, content := range s.kept {
			want[id] = content
		}
		if o.err == nil {
			found := contentOf(t, memory)
			require.Contains(t, found, o.snapshot, "the backup's snapshot can be read; prune: %v", err)
			want[o.snapshot] = found[o.snapshot]
		} else {
			require.ErrorIs(t, o.err, ErrLocked)
			locked++
		}
		if err != nil {
			require.ErrorIs(t, err, ErrLocked)
			refused++
		}
		requireContent(t, want, memory)
		requireSound(t, memory)
	}
	t.Logf("%d prunes were refused, %d backups", refused, locked)
	require.Positive(t, refused)
	require.Positive(t, locked)
}

// TestPruneStopsWhenItsLockIsLost: at whichever removal somebody takes the lock for left over and begins, what is removed
// after that look is no more than what was on its way.
func TestPruneStopsWhenItsLockIsLost(t *testing.T) {
	s := makeScene(t, 10)
	for _, prefix := range []string{packPrefix, indexPrefix} { // a put of which the lock is lost
		memory := s.clone(t)
		calls := &everyCall{Provider: memory}
		r := newTestRepository(t, storage.PolicyAll, calls)
		var first int
		_, err := r.Prune(t.Context(), thorough())
		require.NoError(t, err)
		for i, what := range calls.made {
			if first == 0 && strings.HasPrefix(what, "put "+prefix) {
				first = i + 1
			}
		}
		require.NotZero(t, first)

		memory = s.clone(t)
		calls = &everyCall{Provider: memory, at: first, before: func() { removeLocks(t, memory) }}
		r = newTestRepository(t, storage.PolicyAll, calls)
		before := keysWithoutLocks(t, memory)
		_, err = r.Prune(t.Context(), thorough())
		require.ErrorIs(t, err, errLockLost)
		require.Subset(t, keysWithoutLocks(t, memory), before, "nothing is removed")
		requireContent(t, s.kept, memory)
		requireSound(t, memory)
	}
}

// TestPruneLosesItsLockWhileItRemoves: when the lock goes while old indexes are removed, the packs stay.
func TestPruneLosesItsLockWhileItRemoves(t *testing.T) {
	s := makeScene(t, 13)
	memory := s.clone(t)
	hook := &deleteHook{Provider: memory}
	hook.set(func(key string) {
		if isIndex(key) {
			removeLocks(t, memory)
		}
	})
	var packs []string
	for _, key := range allKeys(t, memory) {
		if isPack(key) {
			packs = append(packs, key)
		}
	}
	_, err := newTestRepository(t, storage.PolicyAll, hook).Prune(t.Context(), thorough())
	require.ErrorIs(t, err, errLockLost)
	require.Subset(t, allKeys(t, memory), packs)
	requireContent(t, s.kept, memory)
	requireSound(t, memory)
}

// TestPruneSeesWhatChanged: a program that does not honour locks wrote or removed something while new packs were written.
func TestPruneSeesWhatChanged(t *testing.T) {
	s := makeScene(t, 14)
	for name, change := range map[string]func(r *Repository, memory *storagetest.Memory){
		"a snapshot is new": func(r *Repository, memory *storagetest.Memory) { storeSnapshots(t, r, snapshotFile{Time: day(1)}) },
		"a snapshot of what is there is new": func(r *Repository, memory *storagetest.Memory) {
			infos, err := r.Snapshots(t.Context())
			require.NoError(t, err)
			tree, err := parseID(infos[0].Tree)
			require.NoError(t, err)
			newCrafter(t, r).file(snapshotPrefix, snapshotFile{Time: day(1), Tree: &tree})
		},
		"a snapshot is gone": func(_ *Repository, memory *storagetest.Memory) {
			for id := range s.kept {
				require.NoError(t, memory.Delete(t.Context(), snapshotPrefix+id))
				return
			}
		},
		"an index is new": func(r *Repository, _ *storagetest.Memory) { newCrafter(t, r).endIndex() },
		"packs are gone": func(_ *Repository, memory *storagetest.Memory) {
			for _, key := range memory.Keys() {
				if isPack(key) {
					require.NoError(t, memory.Delete(t.Context(), key))
				}
			}
		},
	} {
		memory := s.clone(t)
		r := newTestRepository(t, storage.PolicyAll, memory)
		before := map[string]bool{}
		hook := &putHook{Provider: memory, before: func(key string) {
			if isIndex(key) && len(before) == 0 {
				change(r, memory)
				for _, key := range keysWithoutLocks(t, memory) {
					before[key] = true
				}
			}
		}}
		_, err := newTestRepository(t, storage.PolicyAll, hook).Prune(t.Context(), thorough())
		require.Error(t, err, name)
		for _, key := range keysWithoutLocks(t, memory) {
			delete(before, key)
		}
		require.Empty(t, before, "%s: nothing is removed", name)
	}
}

// putHook does something before each write.
type putHook struct {
	storage.Provider
	before func(key string)
}

func (p *putHook) Put(ctx context.Context, key string, data []byte, options storage.PutOptions) (storage.Object, error) {
	p.before(key)
	return p.Provider.Put(ctx, key, data, options)
}

// TestPruneByAnotherThatDied: whatever a prune that was killed left, a backup goes on, and nothing that it stored is lost
// by the prune that comes after.
func TestPruneByAnotherThatDied(t *testing.T) {
	s := makeScene(t, 11)
	for at := 0; ; at += 3 {
		memory := s.clone(t)
		faults := faulty.New(memory)
		r := newTestRepository(t, storage.PolicyAll, faults)
		before := faults.Calls(faulty.Any)
		faults.Inject(faulty.Rule{Skip: at})
		_, err := r.Prune(t.Context(), thorough())
		reached := faults.Calls(faulty.Any)-before > at
		faults.Clear()
		removeLocks(t, memory)
		result, backupErr := newTestRepository(t, storage.PolicyAll, memory).Backup(t.Context(), s.forgotten, BackupOptions{})
		require.NoError(t, backupErr)
		want := contentOf(t, memory)
		require.Len(t, want, len(s.kept)+1)
		require.Contains(t, want, result.Snapshot)
		requireSound(t, memory)
		_, nextErr := newTestRepository(t, storage.PolicyAll, memory).Prune(t.Context(), thorough())
		require.NoError(t, nextErr)
		requireContent(t, want, memory)
		requireSound(t, memory)
		if !reached {
			require.NoError(t, err)
			break
		}
	}
}

// TestPruneTwoProvidersOneGoesAway: whenever one of two goes away, each by itself is a whole repository.
func TestPruneTwoProvidersOneGoesAway(t *testing.T) {
	s := makeScene(t, 12)
	for at := 0; ; at++ {
		first, second := storagetest.NewMemory(), faulty.New(s.clone(t))
		copyTo(t, first, s.memory)
		r := newTestRepository(t, storage.PolicyAny, first, second)
		before := second.Calls(faulty.Any)
		second.Inject(faulty.Rule{Skip: at})
		_, err := r.Prune(t.Context(), thorough())
		if second.Calls(faulty.Any)-before <= at {
			require.NoError(t, err)
			break
		}
		second.Clear()
		removeLocks(t, first, second)
		if unchanged(t, s, first, second) {
			require.Error(t, err)
			continue
		}
		for _, p := range []storage.Provider{first, second} {
			requireContent(t, s.kept, p)
			requireSound(t, p)
		}
		// The one that was there is backed up to meanwhile, and the other brought up to date.
		result, err := newTestRepository(t, storage.PolicyAll, first).Backup(t.Context(), s.forgotten, BackupOptions{})
		require.NoError(t, err)
		both := newTestRepository(t, storage.PolicyAll, first, second)
		_, err = RepairMirror(t.Context(), newTestMirror(t, storage.PolicyAll, first, second), nil)
		require.NoError(t, err)
		want := contentOf(t, first)
		require.Contains(t, want, result.Snapshot)
		_, err = both.Prune(t.Context(), thorough())
		require.NoError(t, err)
		requireContent(t, want, first)
		requireContent(t, want, second)
		requireSound(t, first, second)
	}
}
