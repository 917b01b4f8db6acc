package snapshot

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"holdfast/storage"
	"holdfast/storage/faulty"
)

func isPack(key string) bool { return strings.HasPrefix(key, packPrefix) }

// storedTwice is the number of bytes of blobs that more than one pack of a provider holds: what was uploaded again.
func storedTwice(t testing.TB, r *Repository, p storage.Provider) int64 {
	t.Helper()
	seen, twice := map[blobKey]bool{}, int64(0)
	for _, key := range allKeys(t, p) {
		id, ok := parsePackKey(key)
		if !ok {
			continue
		}
		object, err := p.Stat(t.Context(), key)
		require.NoError(t, err)
		blobs, err := r.loadPackHeader(t.Context(), id, object.Size)
		require.NoError(t, err)
		for _, b := range blobs {
			k := blobKey{b.id, b.location.kind}
			if seen[k] {
				twice += int64(b.location.length)
			}
			seen[k] = true
		}
	}
	return twice
}

func requireWhole(t testing.TB, r *Repository, snapshot string) {
	t.Helper()
	outcome, err := r.VerifyStored(t.Context(), snapshot)
	require.NoError(t, err)
	for url, err := range outcome {
		require.NoError(t, err, url)
	}
}

// TestOutageInTheMiddle: storage goes away after a few packs; the backup ends with an error that says to try again, and
// the next one, in the same process or another, uploads only what was not stored (A2).
func TestOutageInTheMiddle(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for i := range 10 {
		writeFiles(t, dir, map[string][]byte{fmt.Sprintf("d%d/f", i): randomBytes(int64(i), 3<<20)})
	}
	for _, same := range []bool{true, false} {
		for _, stored := range []int{0, 1, 3, 6} {
			t.Run(fmt.Sprintf("after %d packs, same process %v", stored, same), func(t *testing.T) {
				faults, providers := memories(1)
				r := newTestRepository(t, storage.PolicyAll, providers...)
				faults[0].Inject(faulty.Rule{Op: faulty.Put, Match: isPack, Skip: stored})
				_, err := r.Backup(t.Context(), dir, BackupOptions{Kind: Final})
				require.ErrorIs(t, err, faulty.ErrInjected)
				require.True(t, storage.Retryable(err))
				infos, err := r.Snapshots(t.Context())
				require.NoError(t, err)
				require.Empty(t, infos)
				faults[0].Clear()
				before := int64(0)
				for _, key := range allKeys(t, providers[0]) {
					if isPack(key) {
						before += int64(len(read(t, providers[0], key)))
					}
				}
				if !same {
					r = newTestRepository(t, storage.PolicyAll, providers...)
				}
				result, err := r.Backup(t.Context(), dir, BackupOptions{Kind: Final})
				require.NoError(t, err)
				require.Zero(t, storedTwice(t, r, providers[0]), "nothing is uploaded again")
				require.LessOrEqual(t, result.BytesUploaded+before, int64(31<<20))
				requireWhole(t, r, result.Snapshot)
				requireClean(t, r)
			})
		}
	}
}

// TestIndexesAreWrittenAsItGoes: an interruption leaves few packs that no index names.
func TestIndexesAreWrittenAsItGoes(t *testing.T) {
	faults, providers := memories(1)
	options := testOptions()
	options.IndexEvery = 2
	r, err := Create(t.Context(), newTestMirror(t, storage.PolicyAll, providers...), testPassword, options)
	require.NoError(t, err)
	defer r.Close()
	dir := t.TempDir()
	writeFiles(t, dir, map[string][]byte{"f": randomBytes(1, 40<<20)})
	faults[0].Inject(faulty.Rule{Op: faulty.Put, Match: isPack, Skip: 7})
	_, err = r.Backup(t.Context(), dir, BackupOptions{})
	require.Error(t, err)
	other := newTestRepository(t, storage.PolicyAll, providers...)
	require.GreaterOrEqual(t, len(other.indexedPacks()), 6)
}

// TestLostAndDamagedPiecesHeal: a backup notices packs that the index names and nobody has any more, and stores their
// content again while it exists; and it does without an index file that is damaged.
func TestLostAndDamagedPiecesHeal(t *testing.T) {
	for _, what := range []string{"pack lost", "data lost", "pack cut short", "index damaged", "index lost"} {
		t.Run(what, func(t *testing.T) {
			_, providers := memories(1)
			r := newTestRepository(t, storage.PolicyAll, providers...)
			dir := t.TempDir()
			writeFiles(t, dir, map[string][]byte{"a": randomBytes(1, 1<<20), "d/b": randomBytes(2, 3000)})
			_, err := r.Backup(t.Context(), dir, BackupOptions{})
			require.NoError(t, err)
			dataPacks := map[string]bool{}
			r.eachBlob(func(b packedBlob) bool {
				dataPacks[packKey(b.location.pack)] = b.location.kind == dataBlob
				return true
			})
			for _, key := range allKeys(t, providers[0]) {
				switch {
				case what == "pack lost" && isPack(key), what == "data lost" && dataPacks[key], what == "index lost" && strings.HasPrefix(key, indexPrefix):
					require.NoError(t, providers[0].Delete(t.Context(), key))
				case what == "pack cut short" && isPack(key):
					overwrite(t, providers[0], key, read(t, providers[0], key)[:100])
				case what == "index damaged" && strings.HasPrefix(key, indexPrefix):
					overwrite(t, providers[0], key, []byte("nonsense"))
				}
			}
			for _, fresh := range []bool{false, true} {
				if fresh {
					r = newTestRepository(t, storage.PolicyAll, providers...)
				}
				result, err := r.Backup(t.Context(), dir, BackupOptions{Kind: Final})
				require.NoError(t, err)
				requireWhole(t, r, result.Snapshot)
				require.Equal(t, randomBytes(2, 3000), dumped(t, r, result.Snapshot, "d/b"))
			}
		})
	}
}

// TestProviderThatWasDown: with the policy "any" one provider is enough, the other is named as owed, is shown no
// snapshot whose content it lacks, and gets it as it is, encrypted, from the next backup (A8, A9).
func TestProviderThatWasDown(t *testing.T) {
	faults, providers := memories(2)
	r := newTestRepository(t, storage.PolicyAny, providers...)
	dir := t.TempDir()
	writeFiles(t, dir, map[string][]byte{"a": randomBytes(1, 1<<20)})
	first, err := r.Backup(t.Context(), dir, BackupOptions{})
	require.NoError(t, err)
	require.Empty(t, first.Owed)

	writeFiles(t, dir, map[string][]byte{"b": randomBytes(2, 1<<20)})
	faults[1].Inject(faulty.Rule{Op: faulty.Any})
	second, err := newTestRepository(t, storage.PolicyAny, providers...).Backup(t.Context(), dir, BackupOptions{})
	require.NoError(t, err)
	require.Equal(t, []string{providers[1].URL()}, second.Owed)
	_, err = newTestRepository(t, storage.PolicyAny, providers...).Backup(t.Context(), dir, BackupOptions{})
	require.NoError(t, err)
	all := newTestMirror(t, storage.PolicyAll, providers...)
	strict, err := Open(t.Context(), all, testPassword, testOptions())
	require.NoError(t, err)
	defer strict.Close()
	_, err = strict.Backup(t.Context(), dir, BackupOptions{})
	require.ErrorIs(t, err, faulty.ErrInjected)
	require.True(t, storage.Retryable(err))

	// It fails only from the middle on: what it has so far shows no new snapshot.
	faults[1].Clear()
	before := len(snapshotsOn(t, providers[1]))
	faults[1].Inject(faulty.Rule{Op: faulty.Put, Match: isPack})
	writeFiles(t, dir, map[string][]byte{"c": randomBytes(3, 1<<20)})
	half, err := newTestRepository(t, storage.PolicyAny, providers...).Backup(t.Context(), dir, BackupOptions{})
	require.NoError(t, err)
	require.Equal(t, []string{providers[1].URL()}, half.Owed)
	require.NotContains(t, snapshotsOn(t, providers[1]), snapshotPrefix+half.Snapshot)
	require.GreaterOrEqual(t, len(snapshotsOn(t, providers[1])), before)

	// It cannot be listed, but takes what it is given: what it lacks of before is not known, so it gets no snapshot.
	faults[1].Clear()
	faults[1].Inject(faulty.Rule{Op: faulty.List, Match: func(prefix string) bool { return prefix == "" }})
	blind, err := newTestRepository(t, storage.PolicyAny, providers...).Backup(t.Context(), dir, BackupOptions{})
	require.NoError(t, err)
	require.Equal(t, []string{providers[1].URL()}, blind.Owed)
	faults[1].Clear()
	require.NotContains(t, snapshotsOn(t, providers[1]), snapshotPrefix+blind.Snapshot)

	puts := faults[0].Calls(faulty.Put)
	mended := newTestRepository(t, storage.PolicyAll, providers...)
	last, err := mended.Backup(t.Context(), dir, BackupOptions{})
	require.NoError(t, err)
	require.Empty(t, last.Owed)
	require.Zero(t, last.PacksUploaded)
	require.Equal(t, puts+2, faults[0].Calls(faulty.Put), "a lock and a snapshot")
	for _, s := range []string{first.Snapshot, second.Snapshot, half.Snapshot, last.Snapshot} {
		requireWhole(t, mended, s)
	}
	require.Equal(t, allKeys(t, providers[0]), allKeys(t, providers[1]))
}

func snapshotsOn(t testing.TB, p storage.Provider) (keys []string) {
	for _, key := range allKeys(t, p) {
		if strings.HasPrefix(key, snapshotPrefix) {
			keys = append(keys, key)
		}
	}
	return keys
}

// TestNothingIsBelievedOfOneProviderWhileAnotherIsAway: that something is not there is said only when everybody was
// asked.
func TestNothingIsBelievedOfOneProviderWhileAnotherIsAway(t *testing.T) {
	faults, providers := memories(2)
	faults[1].Inject(faulty.Rule{Op: faulty.List})
	_, err := Open(t.Context(), newTestMirror(t, storage.PolicyAny, providers...), testPassword, testOptions())
	require.ErrorIs(t, err, faulty.ErrInjected)
	require.NotErrorIs(t, err, ErrNoRepository)
	_, err = Create(t.Context(), newTestMirror(t, storage.PolicyAll, providers...), testPassword, testOptions())
	require.ErrorIs(t, err, faulty.ErrInjected)
	faults[1].Clear()
	_, err = Open(t.Context(), newTestMirror(t, storage.PolicyAny, providers...), testPassword, testOptions())
	require.ErrorIs(t, err, ErrNoRepository)

	r := newTestRepository(t, storage.PolicyAny, providers...)
	faults[1].Inject(faulty.Rule{Op: faulty.List})
	_, err = r.resolveSnapshot(t.Context(), "latest")
	require.ErrorIs(t, err, faulty.ErrInjected)
	_, err = r.resolveSnapshot(t.Context(), strings.Repeat("ab", 32))
	require.ErrorIs(t, err, faulty.ErrInjected)
	require.NotErrorIs(t, err, ErrNoSnapshot)
	faults[1].Clear()
	_, err = r.resolveSnapshot(t.Context(), "latest")
	require.ErrorIs(t, err, ErrNoSnapshot)
}

func TestOpening(t *testing.T) {
	_, providers := memories(2)
	open := func() error {
		r, err := Open(t.Context(), newTestMirror(t, storage.PolicyAll, providers...), testPassword, testOptions())
		if err == nil {
			require.NoError(t, r.Close())
		}
		return err
	}
	require.ErrorIs(t, open(), ErrNoRepository)
	r := newTestRepository(t, storage.PolicyAll, providers...)
	require.NoError(t, open())
	_, err := Create(t.Context(), newTestMirror(t, storage.PolicyAll, providers...), testPassword, testOptions())
	require.ErrorIs(t, err, storage.ErrExists)
	_, err = Open(t.Context(), newTestMirror(t, storage.PolicyAll, providers...), []byte("wrong"), testOptions())
	require.ErrorIs(t, err, ErrWrongPassword)

	// A config that is damaged on one provider is read from the other; on both it is said.
	config := read(t, providers[0], configKey)
	damaged := append([]byte{}, config...)
	damaged[20] ^= 1
	overwrite(t, providers[0], configKey, damaged)
	require.NoError(t, open())
	overwrite(t, providers[1], configKey, damaged)
	require.ErrorIs(t, open(), ErrDamaged)
	require.NotErrorIs(t, open(), ErrWrongPassword)
	seal := func(text string) {
		for _, p := range providers {
			overwrite(t, p, configKey, r.box.seal(nil, []byte(text)))
		}
	}
	id := strings.Repeat("0", 64)
	seal(`{"version":1,"id":"` + id + `","chunker_polynomial":"3da3358b4dc173"}`)
	require.ErrorIs(t, open(), ErrUnsupportedVersion)
	seal(`{"version":2,"id":"` + id + `","chunker_polynomial":"4"}`)
	require.ErrorIs(t, open(), ErrDamaged)
	seal(`{"version":2}`)
	require.ErrorIs(t, open(), ErrDamaged)

	// Without a config nothing is created over what is there.
	for _, p := range providers {
		require.NoError(t, p.Delete(t.Context(), configKey))
		overwrite(t, p, packKey(blobID{1}), []byte("a pack"))
	}
	_, err = OpenOrCreate(t.Context(), newTestMirror(t, storage.PolicyAll, providers...), testPassword, testOptions())
	require.ErrorIs(t, err, ErrDamaged)
}

// TestCreationThatWasInterrupted: a key without a config is used, not doubled: stock restic would be confused by two.
func TestCreationThatWasInterrupted(t *testing.T) {
	faults, providers := memories(1)
	faults[0].Inject(faulty.Rule{Op: faulty.Put, Match: func(key string) bool { return key == configKey }})
	_, err := OpenOrCreate(t.Context(), newTestMirror(t, storage.PolicyAll, providers...), testPassword, testOptions())
	require.ErrorIs(t, err, faulty.ErrInjected)
	require.Len(t, allKeys(t, providers[0]), 1)
	faults[0].Clear()
	_, err = OpenOrCreate(t.Context(), newTestMirror(t, storage.PolicyAll, providers...), []byte("another"), testOptions())
	require.ErrorIs(t, err, ErrWrongPassword)
	newTestRepository(t, storage.PolicyAll, providers...)
	require.Len(t, allKeys(t, providers[0]), 2)
}

// TestCancellation ends soon, with the context's error, and leaves no lock behind.
func TestCancellation(t *testing.T) {
	faults, providers := memories(1)
	r := newTestRepository(t, storage.PolicyAll, providers...)
	dir := t.TempDir()
	writeFiles(t, dir, map[string][]byte{"f": randomBytes(1, 20<<20)})
	ctx, cancel := context.WithCancelCause(t.Context())
	why := fmt.Errorf("somebody said so")
	faults[0].Inject(faulty.Rule{Op: faulty.Put, Match: isPack, Skip: 1, Kind: faulty.Hang})
	var reported atomic.Int64
	_, err := r.Backup(ctx, dir, BackupOptions{Progress: func(p Progress) {
		if reported.Add(1); p.PacksUploaded == 1 {
			cancel(why)
		}
	}})
	require.ErrorIs(t, err, context.Canceled)
	require.Positive(t, reported.Load())
	for _, key := range allKeys(t, providers[0]) {
		require.False(t, strings.HasPrefix(key, lockPrefix), key)
	}
}

// TestSnapshotFile: what a snapshot says of itself.
func TestSnapshotFile(t *testing.T) {
	r := wholeMemoryRepository(t)
	dir := filepath.Join(t.TempDir(), "dir")
	writeFiles(t, dir, map[string][]byte{"f": []byte("12345"), "d/g": []byte("1")})
	require.NoError(t, os.Chmod(dir, 0o710))
	at := time.Date(2030, 1, 2, 3, 4, 5, 6, time.UTC)
	result, err := r.Backup(t.Context(), dir, BackupOptions{Kind: Recovered, Tags: []string{"x"}, Hostname: "h", Paths: []string{"/w"}, Time: at})
	require.NoError(t, err)
	require.Equal(t, int64(2), result.Files)
	require.Equal(t, int64(2), result.Dirs)
	require.Equal(t, int64(6), result.Bytes)
	infos, err := r.Snapshots(t.Context())
	require.NoError(t, err)
	require.Len(t, infos, 1)
	info := infos[0]
	require.Equal(t, []string{"x", "holdfast:recovered"}, info.Tags)
	require.Equal(t, Recovered, info.Kind)
	require.True(t, at.Equal(info.Time))
	require.Equal(t, int64(6), info.Bytes)
	s, err := r.resolveSnapshot(t.Context(), result.Snapshot[:10])
	require.NoError(t, err)
	require.Equal(t, os.ModeDir|0o710, s.Holdfast.Root.Mode)
	require.Equal(t, result.StatDigest, s.Holdfast.StatDigest)
	text, err := json.Marshal(result)
	require.NoError(t, err)
	for _, name := range []string{"snapshot", "files", "dirs", "bytes", "bytes_added", "bytes_uploaded", "packs_uploaded", "unreadable", "duration_seconds"} {
		require.Contains(t, string(text), `"`+name+`"`)
	}
	_, err = r.Backup(t.Context(), dir, BackupOptions{Kind: "other"})
	require.ErrorIs(t, err, storage.ErrInvalid)
}
