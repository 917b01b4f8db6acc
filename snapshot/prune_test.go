package snapshot

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"math/rand"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"holdfast/storage"
	"holdfast/storage/faulty"
	"holdfast/storage/storagetest"
)

// TestPrune removes all that no snapshot needs and nothing else; a dry run says the same and does nothing.
func TestPrune(t *testing.T) {
	s := makeScene(t, 1)
	memory := s.clone(t)
	r := newTestRepository(t, storage.PolicyAll, memory)
	before := allKeys(t, memory)
	options := thorough()
	options.DryRun = true
	planned, err := r.Prune(t.Context(), options)
	require.NoError(t, err)
	require.Equal(t, before, allKeys(t, memory))
	require.True(t, planned.DryRun)

	report, err := r.Prune(t.Context(), thorough())
	require.NoError(t, err)
	requireSound(t, memory)
	requireContent(t, s.kept, memory)
	require.Equal(t, len(s.kept), report.Snapshots)
	require.Positive(t, report.PacksRemoved)
	require.Positive(t, report.PacksRepacked)
	require.Zero(t, report.UnusedLeft)
	require.Zero(t, report.PacksYoung)
	require.Less(t, report.IndexesWritten, report.IndexesRemoved)
	require.Equal(t, planned.UsedBytes, report.UsedBytes)
	require.Equal(t, planned.UnusedBytes, report.UnusedBytes)
	require.Equal(t, planned.BytesRepacked, report.BytesRepacked)
	require.Equal(t, planned.UnusedLeft, report.UnusedLeft)
	stored, packs := int64(0), 0
	for _, key := range allKeys(t, memory) {
		if isPack(key) {
			stored += int64(len(read(t, memory, key)))
			packs++
		}
		require.NotContains(t, s.unindexed, key)
		require.False(t, strings.HasPrefix(key, lockPrefix))
	}
	require.InDelta(t, report.UsedBytes, stored, float64(2000+100*packs), "nothing but what is needed is left")
	require.Zero(t, storedTwice(t, r, memory))

	// The same process goes on, and there is nothing more to do.
	after := allKeys(t, memory)
	report, err = r.Prune(t.Context(), thorough())
	require.NoError(t, err)
	require.Zero(t, report.PacksRemoved+report.PacksRepacked+report.PacksWritten)
	require.Equal(t, after, allKeys(t, memory))
	result, err := r.Backup(t.Context(), s.forgotten, BackupOptions{})
	require.NoError(t, err)
	require.NotZero(t, result.BytesAdded, "what was removed is stored again")
	requireWhole(t, r, result.Snapshot)
	requireSound(t, memory)
	text, err := json.Marshal(report)
	require.NoError(t, err)
	require.Contains(t, string(text), `"packs_removed":0`)
}

// TestPruneThresholds: how much is written anew is as the options say.
func TestPruneThresholds(t *testing.T) {
	s := makeScene(t, 2)
	prune := func(change func(*PruneOptions)) *PruneReport {
		memory := s.clone(t)
		options := thorough()
		change(&options)
		report, err := newTestRepository(t, storage.PolicyAll, memory).Prune(t.Context(), options)
		require.NoError(t, err)
		requireSound(t, memory)
		requireContent(t, s.kept, memory)
		return report
	}
	all := prune(func(*PruneOptions) {})
	unlimited := prune(func(o *PruneOptions) { o.MaxUnused, _ = ParseMaxUnused("unlimited") })
	require.Positive(t, unlimited.UnusedLeft)
	require.Positive(t, unlimited.PacksRemoved)
	some := prune(func(o *PruneOptions) { o.MaxUnused, _ = ParseMaxUnused(fmt.Sprint(unlimited.UnusedLeft - 1)) })
	require.Less(t, some.UnusedLeft, unlimited.UnusedLeft)
	require.Less(t, some.BytesRepacked, all.BytesRepacked)
	limited := prune(func(o *PruneOptions) { o.MaxRepack = all.BytesRepacked / 2 })
	require.LessOrEqual(t, limited.BytesRepacked, all.BytesRepacked/2)
	require.Positive(t, limited.UnusedLeft)
	require.EqualValues(t, 50, percentUnused(5)(950), "5 % of what stays")
}

// TestPruneMergesSmallPacks: many small backups do not leave many small packs and indexes for ever.
func TestPruneMergesSmallPacks(t *testing.T) {
	memory := storagetest.NewMemory()
	r := newTestRepository(t, storage.PolicyAll, memory)
	dir := t.TempDir()
	for i := range 12 {
		writeFiles(t, dir, map[string][]byte{fmt.Sprintf("f%d", i): randomBytes(int64(i), 5000)})
		_, err := r.Backup(t.Context(), dir, BackupOptions{})
		require.NoError(t, err)
	}
	kept := contentOf(t, memory)
	unfinished := snapshotPrefix + blobID{}.String() + "-tmp-1" // what a restic that was killed may leave
	overwrite(t, memory, unfinished, []byte("half"))
	report, err := r.Prune(t.Context(), PruneOptions{Grace: -1})
	require.NoError(t, err)
	require.NoError(t, memory.Delete(t.Context(), unfinished))
	require.EqualValues(t, 24, report.PacksRepacked)
	require.LessOrEqual(t, report.PacksWritten, int64(3), "two of data, one of trees")
	require.Equal(t, 1, report.IndexesWritten)
	requireContent(t, kept, memory)
	requireSound(t, memory)
	require.Equal(t, int(report.PacksWritten), len(slices.DeleteFunc(allKeys(t, memory), func(key string) bool { return !isPack(key) })))
	for i := range 3 { // too few to be worth it
		writeFiles(t, dir, map[string][]byte{fmt.Sprintf("g%d", i): randomBytes(int64(i), 5000)})
		_, err := r.Backup(t.Context(), dir, BackupOptions{})
		require.NoError(t, err)
	}
	report, err = r.Prune(t.Context(), PruneOptions{Grace: -1})
	require.NoError(t, err)
	require.Zero(t, report.PacksRepacked)
}

// TestPruneGrace: what a backup that was cut off stored is not taken from the one that goes on, wherever that runs.
func TestPruneGrace(t *testing.T) {
	s := makeScene(t, 3)
	for _, indexed := range []bool{false, true} {
		provider := newOlder(s.clone(t))
		provider.makeOlder(t, 100*time.Hour, "")
		faults := faulty.New(provider)
		dir := t.TempDir()
		for i := range 8 {
			writeFiles(t, dir, map[string][]byte{fmt.Sprintf("d%d/f", i): randomBytes(int64(1000+i), 3<<20)})
		}
		options := testOptions()
		if indexed {
			options.IndexEvery = 1
		}
		open := func() *Repository {
			r, err := Open(t.Context(), newTestMirror(t, storage.PolicyAll, faults), testPassword, options)
			require.NoError(t, err)
			t.Cleanup(func() { require.NoError(t, r.Close()) })
			return r
		}
		old := allKeys(t, provider)
		faults.Inject(faulty.Rule{Op: faulty.Put, Match: isPack, Skip: 4})
		_, err := open().Backup(t.Context(), dir, BackupOptions{Hostname: "h", Paths: []string{"/w"}})
		require.Error(t, err)
		faults.Clear()
		young := int64(0) // how many bytes are in four packs is a matter of how the chunks were dealt out
		for _, key := range allKeys(t, provider) {
			if isPack(key) && !slices.Contains(old, key) {
				young += int64(len(read(t, provider, key)))
			}
		}

		limit, _ := ParseMaxUnused("0")
		report, err := open().Prune(t.Context(), PruneOptions{MaxUnused: limit})
		require.NoError(t, err)
		require.EqualValues(t, 4, report.PacksYoung, "the packs of the backup that was cut off")
		require.Positive(t, report.PacksRemoved, "the old ones go")
		requireContent(t, s.kept, provider)
		result, err := open().Backup(t.Context(), dir, BackupOptions{Hostname: "h", Paths: []string{"/w"}})
		require.NoError(t, err)
		require.LessOrEqual(t, result.BytesUploaded, 24<<20-young+64<<10, "24 MiB without what was stored, and 64 KiB of headers, trees and index")
		require.Zero(t, storedTwice(t, open(), provider))
		requireSound(t, provider)

		// Without anybody who went on, it goes when it is old.
		provider.makeOlder(t, DefaultPruneGrace+time.Minute, "")
		require.NoError(t, provider.Delete(t.Context(), snapshotPrefix+result.Snapshot))
		report, err = open().Prune(t.Context(), PruneOptions{MaxUnused: limit})
		require.NoError(t, err)
		require.Zero(t, report.PacksYoung)
		require.Positive(t, report.PacksRemoved)
		requireContent(t, s.kept, provider)
		requireSound(t, provider)
	}
}

// TestPruneByTheProvidersClock: how old something is, is a matter of the clock that stamped it.
func TestPruneByTheProvidersClock(t *testing.T) {
	for _, fast := range []time.Duration{200 * time.Hour, -200 * time.Hour} {
		provider := newOlder(makeScene(t, 4).memory)
		provider.fast = fast
		packs := func() []string {
			return slices.DeleteFunc(allKeys(t, provider), func(key string) bool { return !isPack(key) })
		}
		before := packs()
		report, err := newTestRepository(t, storage.PolicyAll, provider).Prune(t.Context(), PruneOptions{})
		require.NoError(t, err)
		require.Positive(t, report.PacksYoung)
		require.Equal(t, before, packs(), "all is young")
		provider.makeOlder(t, 100*time.Hour, packPrefix)
		report, err = newTestRepository(t, storage.PolicyAll, provider).Prune(t.Context(), PruneOptions{})
		require.NoError(t, err)
		require.Zero(t, report.PacksYoung)
		require.Positive(t, report.PacksRemoved)
	}
}

// TestPruneNeverMakesAnythingWorse damages each object in each way, on one provider or on all, and prunes: either nothing
// is changed, or whatever could be read before can be read after. What a snapshot needs and is not whole in the
// listings always stops it.
func TestPruneNeverMakesAnythingWorse(t *testing.T) {
	t.Parallel()
	s := makeScene(t, 5)
	damages := map[string]func(data []byte) []byte{
		"absent": nil, "cut": func(data []byte) []byte { return data[:len(data)-1] }, "flipped": func(data []byte) []byte { return flip(data, len(data)/3) },
	}
	refused, went := 0, 0
	for _, key := range keysWithoutLocks(t, s.memory) {
		if key == configKey || strings.HasPrefix(key, keyPrefix) {
			continue
		}
		for name, damage := range damages {
			for _, both := range []bool{true, false} {
				providers := []storage.Provider{s.clone(t), s.clone(t)}
				for _, p := range providers[:map[bool]int{true: 2, false: 1}[both]] {
					whole := read(t, p, key)
					require.NoError(t, p.Delete(t.Context(), key))
					if damage != nil {
						overwrite(t, p, key, damage(whole))
					}
				}
				before := contentOf(t, providers...)
				objects := []map[string]string{objectsOf(t, providers[0]), objectsOf(t, providers[1])}
				report, err := newTestRepository(t, storage.PolicyAll, providers...).Prune(t.Context(), thorough())
				what := fmt.Sprintf("%s %s, on both: %v; %v", key, name, both, err)
				if err != nil { // all is as it was, to the byte
					refused++
					for i, p := range providers {
						require.True(t, maps.Equal(objects[i], objectsOf(t, p)), what)
					}
					require.Zero(t, report.PacksRemoved, what)
				} else {
					went++
					after := contentOf(t, providers...)
					for id, content := range before {
						require.Equal(t, content, after[id], what)
					}
				}
				isSnapshot := strings.HasPrefix(key, snapshotPrefix)
				require.False(t, err == nil && isIndex(key) && both && damage != nil, "a damaged index stops it, whatever it names; "+what)
				lost := len(before) < len(s.kept)
				require.False(t, err == nil && lost && !(isSnapshot && both && name == "absent"), what)
				if name != "flipped" && !both && isSnapshot {
					require.ErrorIs(t, err, ErrNotStoredWhole, what)
				}
			}
		}
	}
	t.Logf("%d refused, %d went on", refused, went)
	require.Positive(t, refused)
	require.Positive(t, went, "what nothing needs does not stop it")
}

// objectsOf are all objects of a provider.
func objectsOf(t testing.TB, p storage.Provider) map[string]string {
	t.Helper()
	objects := map[string]string{}
	for _, key := range allKeys(t, p) {
		objects[key] = string(read(t, p, key))
	}
	return objects
}

// TestPruneKeepsTheGoodCopy: when a blob lies in two packs, one of them may have been found damaged, and the other been
// stored for that.
func TestPruneKeepsTheGoodCopy(t *testing.T) {
	memory := storagetest.NewMemory()
	dir := t.TempDir()
	writeFiles(t, dir, map[string][]byte{"f": randomBytes(1, 100_000)})
	storeTwice(t, newTestRepository(t, storage.PolicyAll, memory), newTestRepository(t, storage.PolicyAll, memory), dir)
	r := newTestRepository(t, storage.PolicyAll, memory)
	var packs []blobID
	for _, pack := range r.indexedPacks() {
		if pack.size > 100_000 {
			packs = append(packs, pack.id)
		}
	}
	require.Len(t, packs, 2)
	refused := map[string]int{}
	for i := range packs {
		damaged := storagetest.NewMemory()
		copyTo(t, damaged, memory)
		overwrite(t, damaged, packKey(packs[i]), flip(read(t, damaged, packKey(packs[i])), 500))
		want := contentOf(t, damaged)
		require.Len(t, want, 2)
		for _, name := range []string{"without", "with"} {
			provider := map[string]storage.Provider{"with": damaged, "without": &noChecksums{damaged}}[name]
			_, err := newTestRepository(t, storage.PolicyAll, provider).Prune(t.Context(), thorough())
			if err != nil {
				require.ErrorIs(t, err, ErrDamaged)
				refused[name]++
			}
			requireContent(t, want, damaged)
		}
	}
	require.Zero(t, refused["with"], "a checksum in the listing tells which one is good")
	require.Equal(t, 1, refused["without"], "the one that was to stay is read first")
}

// noChecksums is a provider that lists none, as S3 and directories do.
type noChecksums struct{ storage.Provider }

func (p *noChecksums) List(ctx context.Context, prefix string, each func(storage.Object) error) error {
	return p.Provider.List(ctx, prefix, func(o storage.Object) error {
		o.HasCRC32C = false
		return each(o)
	})
}

// TestPruneRefuses names what stands in its way.
func TestPruneRefuses(t *testing.T) {
	s := makeScene(t, 6)
	first, second := faulty.New(s.clone(t)), faulty.New(s.clone(t))
	providers := []storage.Provider{first, second}
	keys := keysWithoutLocks(t, first)
	refuse := func(policy storage.Policy, want error, text string) {
		t.Helper()
		r := newTestRepository(t, policy, providers...)
		_, err := r.Prune(t.Context(), thorough())
		require.ErrorIs(t, err, want)
		require.ErrorContains(t, err, text)
		first.Clear()
		second.Clear()
		require.Subset(t, keysWithoutLocks(t, first), keys)
		require.Equal(t, s.kept, contentOf(t, first))
		keys = keysWithoutLocks(t, first)
	}
	second.Inject(faulty.Rule{Op: faulty.List})
	refuse(storage.PolicyAny, faulty.ErrInjected, second.URL())
	second.Inject(faulty.Rule{Op: faulty.List, Match: func(prefix string) bool { return prefix == "" }})
	refuse(storage.PolicyAny, faulty.ErrInjected, "not all providers can be listed")
	second.Inject(faulty.Rule{Op: faulty.Put})
	refuse(storage.PolicyAny, errLockLost, "1 of 2 providers")
	second.Inject(faulty.Rule{Op: faulty.Put, Match: isPack})
	before := keysWithoutLocks(t, first)
	refuse(storage.PolicyAny, faulty.ErrInjected, second.URL())
	require.Equal(t, before, keysWithoutLocks(t, first), "the packs that it wrote are taken back")
	second.Inject(faulty.Rule{Op: faulty.Put, Match: func(key string) bool { return strings.HasPrefix(key, indexPrefix) }})
	refuse(storage.PolicyAll, faulty.ErrInjected, second.URL())
	second.Inject(faulty.Rule{Op: faulty.List, Kind: faulty.Truncate, Match: func(prefix string) bool { return prefix == "" }})
	refuse(storage.PolicyAll, ErrNotStoredWhole, "nothing was changed")

	// A backup that owes something to one provider.
	second.Inject(faulty.Rule{Op: faulty.Put, Match: isPack})
	owing := newTestRepository(t, storage.PolicyAny, providers...)
	writeFiles(t, s.forgotten, map[string][]byte{"new": randomBytes(99, 30_000)})
	result, err := owing.Backup(t.Context(), s.forgotten, BackupOptions{})
	require.NoError(t, err)
	require.NotEmpty(t, result.Owed)
	second.Clear()
	keys, s.kept = keysWithoutLocks(t, first), contentOf(t, first)
	refuse(storage.PolicyAll, ErrNotStoredWhole, "RepairMirror")
	_, err = owing.Prune(t.Context(), thorough())
	require.ErrorIs(t, err, faulty.ErrInjected, "this mirror knows that one is behind")
	_, err = RepairMirror(t.Context(), newTestMirror(t, storage.PolicyAll, providers...), nil)
	require.NoError(t, err)
	s.kept = contentOf(t, providers...)
	_, err = newTestRepository(t, storage.PolicyAll, providers...).Prune(t.Context(), thorough())
	require.NoError(t, err)
	requireContent(t, s.kept, first)
	requireContent(t, s.kept, second)
	requireSound(t, providers...)

	// A pack that nothing needs is gone, and the index does not know.
	_, err = newTestRepository(t, storage.PolicyAll, providers...).Backup(t.Context(), s.forgotten, BackupOptions{Hostname: "x"})
	require.NoError(t, err)
	writeFiles(t, s.forgotten, map[string][]byte{"newer": randomBytes(100, 30_000)})
	before = allKeys(t, first)
	result, err = newTestRepository(t, storage.PolicyAll, providers...).Backup(t.Context(), s.forgotten, BackupOptions{Hostname: "x"})
	require.NoError(t, err)
	for _, p := range providers {
		require.NoError(t, p.Delete(t.Context(), snapshotPrefix+result.Snapshot))
		for _, key := range allKeys(t, p) {
			if isPack(key) && !slices.Contains(before, key) {
				require.NoError(t, p.Delete(t.Context(), key))
			}
		}
	}
	keys, s.kept = keysWithoutLocks(t, first), contentOf(t, first)
	refuse(storage.PolicyAll, ErrDamaged, "RebuildIndex")
	_, err = newTestRepository(t, storage.PolicyAll, providers...).RebuildIndex(t.Context(), RebuildIndexOptions{})
	require.NoError(t, err)
	_, err = newTestRepository(t, storage.PolicyAll, providers...).Prune(t.Context(), thorough())
	require.NoError(t, err)
	requireContent(t, s.kept, first)

	empty := newTestRepository(t, storage.PolicyAll, storagetest.NewMemory())
	_, err = empty.Prune(t.Context(), thorough())
	require.ErrorIs(t, err, ErrNoSnapshot)
}

// TestPruneRandomHistories: after any sequence of backups, forgets, prunes and rebuilt indexes every snapshot that was
// not forgotten is what it was.
func TestPruneRandomHistories(t *testing.T) {
	t.Parallel()
	rounds := 4
	if os.Getenv("HOLDFAST_CAMPAIGN") != "" {
		rounds = 100
	}
	for round := range rounds {
		seed := int64(20260127 + round)
		random := rand.New(rand.NewSource(seed))
		providers := []storage.Provider{storagetest.NewMemory(), storagetest.NewMemory()}[:1+random.Intn(2)]
		dir := filepath.Join(t.TempDir(), "w")
		r := newTestRepository(t, storage.PolicyAll, providers...)
		var times int
		for range 25 {
			switch n := random.Intn(10); {
			case n < 5 || times == 0:
				files := map[string][]byte{}
				for range 1 + random.Intn(4) {
					content := randomBytes(random.Int63n(40), random.Intn(60_000)) // some come back
					if random.Intn(8) == 0 {
						content = randomBytes(random.Int63(), 1<<20+random.Intn(2<<20))
					}
					files[fmt.Sprintf("d%d/f%d", random.Intn(3), random.Intn(6))] = content
				}
				writeFiles(t, dir, files)
				if random.Intn(2) == 0 {
					require.NoError(t, os.RemoveAll(filepath.Join(dir, fmt.Sprintf("d%d", random.Intn(3)))))
				}
				times++
				_, err := r.Backup(t.Context(), dir, BackupOptions{Hostname: "h", Paths: []string{"/w"}, Time: day(1).Add(time.Duration(times) * time.Hour)})
				require.NoError(t, err)
			case n < 7:
				before := contentOf(t, providers...)
				report, err := r.Forget(t.Context(), ForgetOptions{Keep: KeepPolicy{Last: 1 + random.Intn(4)}})
				require.NoError(t, err)
				for _, group := range report.Groups {
					for _, info := range group.Remove {
						delete(before, info.ID)
					}
				}
				requireContent(t, before, providers...)
			case n < 9:
				before := contentOf(t, providers...)
				options := PruneOptions{Grace: -1}
				options.MaxUnused, _ = ParseMaxUnused([]string{"0", "5%", "30%", "unlimited"}[random.Intn(4)])
				if random.Intn(3) == 0 {
					options.MaxRepack = int64(random.Intn(1 << 20))
				}
				_, err := r.Prune(t.Context(), options)
				require.NoError(t, err, "seed %d", seed)
				requireContent(t, before, providers...)
				requireSound(t, providers...)
			default:
				before := contentOf(t, providers...)
				_, err := r.RebuildIndex(t.Context(), RebuildIndexOptions{})
				require.NoError(t, err)
				requireContent(t, before, providers...)
				requireSound(t, providers...)
			}
		}
	}
}

func TestParseMaxUnused(t *testing.T) {
	for text, want := range map[string]int64{"0": 0, "0%": 0, "50%": 1000, "10k": 10 << 10, "3M": 3 << 20, "2g": 2 << 30, "1T": 1 << 40, "7": 7, "unlimited": 1 << 62} {
		limit, err := ParseMaxUnused(text)
		require.NoError(t, err, text)
		require.Equal(t, want, limit(1000), text)
	}
	for _, text := range []string{"", "%", "100%", "-1%", "NaN%", "-1", "1Q", "M", "99999999999T", "1.5G"} {
		_, err := ParseMaxUnused(text)
		require.ErrorIs(t, err, storage.ErrInvalid, text)
	}
}
