package snapshot

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"holdfast/storage"
	"holdfast/storage/faulty"
)

// storeSnapshots stores snapshot files of one and the same empty tree, and returns their ids.
func storeSnapshots(t testing.TB, r *Repository, files ...snapshotFile) []string {
	t.Helper()
	c := newCrafter(t, r)
	tree := c.tree()
	c.endIndex()
	var ids []string
	for _, file := range files {
		file.Tree = &tree
		ids = append(ids, c.file(snapshotPrefix, file).String())
	}
	return ids
}

func remainingSnapshots(t testing.TB, r *Repository) (ids []string) {
	t.Helper()
	infos, err := r.Snapshots(t.Context())
	require.NoError(t, err)
	for _, info := range infos {
		ids = append(ids, info.ID)
	}
	return ids
}

func day(n int) time.Time { return time.Date(2026, 3, n, 12, 0, 0, 0, time.UTC) }

// TestForgetLikeRestic compares which snapshots random policies keep with what stock restic says, over random times,
// zones, hosts, paths and tags.
func TestForgetLikeRestic(t *testing.T) { eachRestic(t, testForgetLikeRestic) }

func testForgetLikeRestic(t *testing.T, version resticVersion) {
	restic := version.path
	old := version.old // the oldest snapshot did not fill up a number, and below 0 was nothing
	const seed = 20260126
	random := rand.New(rand.NewSource(seed))
	removed, policies := 0, 0
	for range 4 {
		repository, provider := directoryRepository(t)
		r := newTestRepository(t, storage.PolicyAll, provider)
		var files []snapshotFile
		at := time.Now().Add(-time.Hour)
		for range 20 + random.Intn(40) {
			at = at.Add(-time.Duration(random.ExpFloat64() * float64([]time.Duration{time.Hour, 24 * time.Hour, 300 * time.Hour, 2000 * time.Hour}[random.Intn(4)])))
			file := snapshotFile{
				Time:     at.In([]*time.Location{time.UTC, time.FixedZone("", 5*3600+1800), time.FixedZone("", -11*3600)}[random.Intn(3)]),
				Hostname: []string{"one", "one", "two"}[random.Intn(3)], Paths: [][]string{{"/a"}, {"/a"}, {"/a", "/b"}, {"/b", "/a"}}[random.Intn(4)],
			}
			for _, tag := range []string{"x", "y", "z"} {
				if random.Intn(3) == 0 {
					file.Tags = append(file.Tags, tag)
				}
			}
			files = append(files, file)
		}
		ids := storeSnapshots(t, r, files...)
		for range 12 {
			options, arguments := randomPolicy(random)
			if options.Keep.wantsNothing() {
				continue
			}
			policies++
			options.DryRun = true
			report, err := r.Forget(t.Context(), options)
			require.NoError(t, err)
			keep, always := map[string]bool{}, map[string]bool{}
			for _, id := range ids {
				keep[id] = true
			}
			for _, group := range report.Groups {
				for _, s := range group.Keep {
					filled := !slices.ContainsFunc(s.Reasons, func(why string) bool { return !strings.HasPrefix(why, "oldest ") && why != "the newest" })
					always[s.ID] = slices.Equal(s.Reasons, []string{"the newest"}) || old && filled
				}
				for _, s := range group.Remove {
					delete(keep, s.ID)
					removed++
				}
			}
			want := resticKeeps(t, restic, repository, ids, arguments)
			for _, id := range ids {
				if !always[id] {
					require.Equal(t, want[id], keep[id], "snapshot %s, restic forget %s; seed %d", id, strings.Join(arguments, " "), seed)
				}
			}
		}
		require.ElementsMatch(t, ids, remainingSnapshots(t, r), "a dry run removes nothing")
		require.Empty(t, locksOn(t, provider))
	}
	t.Logf("%d policies removed %d snapshots", policies, removed)
	require.Greater(t, removed, 200)
}

func randomPolicy(random *rand.Rand) (ForgetOptions, []string) {
	var options ForgetOptions
	arguments := []string{"forget", "--dry-run", "--json"}
	k := &options.Keep
	counts := []*int{&k.Last, &k.Hourly, &k.Daily, &k.Weekly, &k.Monthly, &k.Yearly}
	for i, name := range []string{"last", "hourly", "daily", "weekly", "monthly", "yearly"} {
		if random.Intn(3) == 0 {
			*counts[i] = 1 + random.Intn(6)
			arguments = append(arguments, fmt.Sprintf("--keep-%s=%d", name, *counts[i]))
		}
	}
	ages := []*Age{&k.Within, &k.WithinHourly, &k.WithinDaily, &k.WithinWeekly, &k.WithinMonthly, &k.WithinYearly}
	for i, name := range []string{"", "-hourly", "-daily", "-weekly", "-monthly", "-yearly"} {
		if random.Intn(5) == 0 {
			*ages[i] = Age{Years: random.Intn(2), Months: random.Intn(3), Days: random.Intn(20), Hours: 1 + random.Intn(30)}
			arguments = append(arguments, fmt.Sprintf("--keep-within%s=%s", name, ages[i]))
		}
	}
	lists := [][]string{{"x"}, {"x", "y"}, {"z"}}
	if random.Intn(4) == 0 {
		k.Tags = append(k.Tags, lists[random.Intn(3)])
		arguments = append(arguments, "--keep-tag", strings.Join(k.Tags[0], ","))
	}
	if random.Intn(4) == 0 {
		options.Tags = append(options.Tags, lists[random.Intn(3)], lists[random.Intn(3)])
		arguments = append(arguments, "--tag", strings.Join(options.Tags[0], ","), "--tag", strings.Join(options.Tags[1], ","))
	}
	if random.Intn(4) == 0 {
		options.Hosts = []string{"two"}
		arguments = append(arguments, "--host", "two")
	}
	if random.Intn(4) == 0 {
		options.Paths = []string{"/b"}
		arguments = append(arguments, "--path", "/b")
	}
	if random.Intn(2) == 0 {
		options.GroupBy = [][]string{{}, {"host"}, {"tags", "paths"}}[random.Intn(3)]
		arguments = append(arguments, "--group-by", strings.Join(options.GroupBy, ","))
	}
	return options, arguments
}

// resticKeeps is which of the snapshots restic would keep.
func resticKeeps(t *testing.T, restic, repository string, ids, arguments []string) map[string]bool {
	t.Helper()
	command := exec.Command(restic, append([]string{"--no-cache", "--no-lock", "-r", repository}, arguments...)...)
	command.Env = append(os.Environ(), "RESTIC_PASSWORD="+string(testPassword))
	command.Stderr = os.Stderr
	out, err := command.Output()
	require.NoError(t, err)
	var groups []struct {
		Remove []struct {
			ID string `json:"id"`
		} `json:"remove"`
	}
	require.NoError(t, json.Unmarshal(out, &groups), string(out))
	keep := map[string]bool{}
	for _, id := range ids {
		keep[id] = true
	}
	for _, group := range groups {
		for _, s := range group.Remove {
			require.True(t, keep[s.ID])
			delete(keep, s.ID)
		}
	}
	return keep
}

// TestForgetKeepsWhatIsNeeded: no directory loses its newest snapshot, nor its newest final one, whatever a person says.
func TestForgetKeepsWhatIsNeeded(t *testing.T) {
	_, providers := memories(2)
	r := newTestRepository(t, storage.PolicyAll, providers...)
	tagged := func(kind Kind) []string { return []string{kind.tag()} }
	ids := storeSnapshots(t, r,
		snapshotFile{Time: day(1), Hostname: "a", Paths: []string{"/w"}, Tags: tagged(Final)},
		snapshotFile{Time: day(2), Hostname: "a", Paths: []string{"/w"}, Tags: tagged(Recovered)},
		snapshotFile{Time: day(3), Hostname: "a", Paths: []string{"/w"}, Tags: tagged(Final)},
		snapshotFile{Time: day(4), Hostname: "a", Paths: []string{"/w"}, Tags: tagged(Live)},
		snapshotFile{Time: day(5), Hostname: "a", Paths: []string{"/w"}, Tags: tagged(Live)},
		snapshotFile{Time: day(1), Hostname: "b", Paths: []string{"/w"}},
		snapshotFile{Time: day(2), Hostname: "b", Paths: []string{"/w"}},
	)
	// The IDs are random: an unknown one is told by all of its digits, since one in 65,536 begins with four zeros too.
	unknown := strings.Repeat("0", 64)
	for name, options := range map[string]ForgetOptions{
		"the newest":                    {Snapshots: []string{ids[4]}},
		"the newest final":              {Snapshots: []string{ids[3], ids[2]}},
		"the only recovered":            {Snapshots: []string{ids[1]}},
		"the newest without a kind":     {Snapshots: []string{ids[6][:12]}},
		"the latest":                    {Snapshots: []string{"latest"}},
		"one that the caller protects":  {Snapshots: []string{ids[0]}, Protect: []string{ids[0]}},
		"no policy":                     {},
		"no policy, with a filter":      {Hosts: []string{"a"}},
		"a policy and names":            {Keep: KeepPolicy{Last: 1}, Snapshots: []string{ids[0]}},
		"a filter and names":            {Tags: [][]string{{"x"}}, Snapshots: []string{ids[0]}},
		"a grouping that is not there":  {Keep: KeepPolicy{Last: 1}, GroupBy: []string{"kind"}},
		"one that does not exist":       {Snapshots: []string{unknown}},
		"an unknown one beside another": {Snapshots: []string{ids[0], "zz"}},
	} {
		report, err := r.Forget(t.Context(), options)
		require.Error(t, err, name)
		require.Nil(t, report, name)
		switch {
		case strings.HasPrefix(name, "no policy") || strings.Contains(name, " and names") || strings.HasPrefix(name, "a grouping"):
			require.ErrorIs(t, err, storage.ErrInvalid, name)
		case len(options.Snapshots) > 0 && options.Snapshots[0] != unknown && !strings.HasPrefix(name, "an unknown"):
			require.ErrorIs(t, err, ErrProtected, name)
		default:
			require.ErrorIs(t, err, ErrNoSnapshot, name)
		}
		require.Len(t, remainingSnapshots(t, r), len(ids), name)
		require.Empty(t, locksOn(t, providers[0]))
	}
	// A policy by tags alone wants none of them.
	nothing := KeepPolicy{Tags: [][]string{{"nobody has this"}}}
	report, err := r.Forget(t.Context(), ForgetOptions{Keep: nothing, GroupBy: []string{}, Protect: []string{ids[0]}})
	require.NoError(t, err)
	require.Equal(t, 2, report.Removed)
	require.ElementsMatch(t, []string{ids[0], ids[1], ids[2], ids[4], ids[6]}, remainingSnapshots(t, r))
	require.Equal(t, snapshotsOn(t, providers[0]), snapshotsOn(t, providers[1]))
	require.Len(t, snapshotsOn(t, providers[0]), 5)
	report, err = r.Forget(t.Context(), ForgetOptions{Snapshots: []string{ids[0][:20], ids[0]}})
	require.NoError(t, err)
	require.Equal(t, 1, report.Removed)
	require.NotContains(t, remainingSnapshots(t, r), ids[0])
	text, err := json.Marshal(report)
	require.NoError(t, err)
	require.Contains(t, string(text), `"removed":1`)
	require.Contains(t, string(text), `"keep":[]`)
}

// TestForgetSeesAllOrNothing: while any provider or snapshot cannot be seen, or anybody works, nothing is removed.
func TestForgetSeesAllOrNothing(t *testing.T) {
	faults, providers := memories(2)
	r := newTestRepository(t, storage.PolicyAny, providers...)
	var files []snapshotFile
	for i := range 6 {
		files = append(files, snapshotFile{Time: day(i + 1), Hostname: "a", Paths: []string{"/w"}})
	}
	ids := storeSnapshots(t, r, files...)
	unfinished := snapshotPrefix + blobID{}.String() + "-tmp-1" // what a restic that was killed may leave
	overwrite(t, providers[0], unfinished, []byte("half"))
	forget := func() (*ForgetReport, error) {
		return newTestRepository(t, storage.PolicyAny, providers...).Forget(t.Context(), ForgetOptions{Keep: KeepPolicy{Last: 2}})
	}
	refused := func(want error) {
		t.Helper()
		report, err := forget()
		require.ErrorIs(t, err, want)
		require.Nil(t, report)
		for _, f := range faults {
			f.Clear()
		}
		require.Len(t, snapshotsOn(t, providers[0]), 7)
		require.Len(t, snapshotsOn(t, providers[1]), 6)
	}
	faults[1].Inject(faulty.Rule{Op: faulty.List, Match: func(prefix string) bool { return prefix == snapshotPrefix }})
	refused(faulty.ErrInjected)
	faults[1].Inject(faulty.Rule{Op: faulty.List, Match: func(prefix string) bool { return prefix == lockPrefix }})
	refused(faulty.ErrInjected)
	for _, f := range faults {
		f.Inject(faulty.Rule{Op: faulty.Get, Match: func(key string) bool { return strings.HasSuffix(key, ids[3]) }, Kind: faulty.WrongBytes})
	}
	refused(ErrDamaged)
	held, err := r.lock(t.Context())
	require.NoError(t, err)
	refused(ErrLocked)
	held.release(t.Context())

	// A removal that fails half-way says so; the next one goes on.
	faults[1].Inject(faulty.Rule{Op: faulty.Delete, Match: func(key string) bool { return strings.HasPrefix(key, snapshotPrefix) }, Skip: 2})
	report, err := forget()
	require.ErrorIs(t, err, faulty.ErrInjected)
	require.Equal(t, 2, report.Removed)
	faults[1].Clear()
	require.NoError(t, providers[0].Delete(t.Context(), unfinished))
	require.Len(t, snapshotsOn(t, providers[1]), 4)
	report, err = forget()
	require.NoError(t, err)
	require.Equal(t, 2, report.Removed)
	for _, p := range providers {
		require.Len(t, snapshotsOn(t, p), 2)
		require.Empty(t, locksOn(t, p))
	}
	require.ElementsMatch(t, ids[4:], remainingSnapshots(t, r))
}

// TestForgetStopsWhenItsLockIsLost: somebody took the lock for left over, and may have begun a backup.
func TestForgetStopsWhenItsLockIsLost(t *testing.T) {
	_, providers := memories(1)
	hook := &deleteHook{Provider: providers[0]}
	r := newTestRepository(t, storage.PolicyAll, hook)
	var files []snapshotFile
	for i := range 6 {
		files = append(files, snapshotFile{Time: day(i + 1), Hostname: "a", Paths: []string{"/w"}})
	}
	storeSnapshots(t, r, files...)
	hook.set(func(key string) {
		if strings.HasPrefix(key, snapshotPrefix) {
			for _, lock := range locksOn(t, providers[0]) {
				require.NoError(t, providers[0].Delete(t.Context(), lock))
			}
		}
	})
	report, err := r.Forget(t.Context(), ForgetOptions{Keep: KeepPolicy{Last: 1}})
	require.ErrorIs(t, err, errLockLost)
	require.Equal(t, 1, report.Removed)
	require.Len(t, snapshotsOn(t, providers[0]), 5)
}

// TestKeepPolicy shows what random comparison with an old restic does not: numbers without end, the oldest snapshot that
// fills up a number, times in the future, and months that are not 30 days.
func TestKeepPolicy(t *testing.T) {
	now := time.Date(2026, 3, 31, 18, 0, 0, 0, time.UTC)
	kept := func(p KeepPolicy, times ...time.Time) (indexes []int) {
		group := make([]storedSnapshot, len(times))
		for i, at := range times {
			group[i].Time = at
		}
		for i, reasons := range p.apply(group, now) {
			if len(reasons) > 0 {
				indexes = append(indexes, i)
			}
		}
		return indexes
	}
	march := func(day, hour int) time.Time { return time.Date(2026, 3, day, hour, 0, 0, 0, time.UTC) }
	twice := []time.Time{march(31, 12), march(31, 11), march(30, 12), march(30, 11), march(29, 12), march(29, 11)}
	require.Equal(t, []int{0, 2}, kept(KeepPolicy{Daily: 2}, twice...))
	require.Equal(t, []int{0, 2, 4, 5}, kept(KeepPolicy{Daily: 4}, twice...), "the oldest fills up what is left")
	require.Equal(t, []int{0, 2, 4}, kept(KeepPolicy{Daily: 3}, twice...))
	require.Equal(t, []int{0, 2, 4, 5}, kept(KeepPolicy{Daily: -1}, twice...))
	require.Equal(t, []int{0, 1, 2, 3, 4, 5}, kept(KeepPolicy{Last: -1}, twice...))
	require.Equal(t, []int{0, 1, 2, 5}, kept(KeepPolicy{Last: 3, Monthly: 5}, twice...))

	future := now.AddDate(2, 0, 0)
	require.Equal(t, []int{0, 1}, kept(KeepPolicy{Within: Age{Days: 1}}, future, march(31, 12), march(30, 11)))
	require.Equal(t, []int{0}, kept(KeepPolicy{Within: Age{Months: 1}}, march(30, 12), time.Date(2026, 2, 28, 12, 0, 0, 0, time.UTC)),
		"a month before March 30 is February 30, which is March 2")
	require.Equal(t, []int{0, 1}, kept(KeepPolicy{Within: Age{Months: 1}}, time.Date(2026, 2, 28, 12, 0, 0, 0, time.UTC),
		time.Date(2026, 1, 28, 18, 0, 0, 0, time.UTC)))
}

func TestParseAge(t *testing.T) {
	for text, want := range map[string]Age{
		"1y5m7d2h": {1, 5, 7, 2}, "30d": {Days: 30}, "2h": {Hours: 2}, "7d1y": {Years: 1, Days: 7}, "0h": {},
	} {
		got, err := ParseAge(text)
		require.NoError(t, err)
		require.Equal(t, want, got)
		if want != (Age{}) {
			again, err := ParseAge(got.String())
			require.NoError(t, err)
			require.Equal(t, want, again)
		}
	}
	for _, text := range []string{"", "d", "5", "5x", "-5d", "1y 2d", "5d3", "99999999999999999999d", "1000001d"} {
		_, err := ParseAge(text)
		require.ErrorIs(t, err, storage.ErrInvalid, text)
	}
}

// What must stay and was named is left when the caller says so, and the others go; who has to allow each removal ends it.
func TestForgetLeavesTheProtectedAndAsks(t *testing.T) {
	_, provider := directoryRepository(t)
	r := newTestRepository(t, storage.PolicyAll, provider)
	var files []snapshotFile
	for n := 1; n <= 6; n++ {
		files = append(files, snapshotFile{Time: day(n), Hostname: "one", Paths: []string{"/a"}})
	}
	ids := storeSnapshots(t, r, files...)
	_, err := r.Forget(t.Context(), ForgetOptions{Snapshots: ids, Protect: ids[:1]})
	require.ErrorIs(t, err, ErrProtected)
	require.Len(t, remainingSnapshots(t, r), 6)

	asked, enough := 0, errors.New("enough")
	options := ForgetOptions{Snapshots: ids, Protect: ids[:1], LeaveProtected: true, Allowed: func(context.Context) error {
		if asked++; asked == 3 {
			return enough
		}
		return nil
	}}
	report, err := r.Forget(t.Context(), options)
	require.ErrorIs(t, err, enough)
	require.Equal(t, 2, report.Removed)
	require.Equal(t, []string{ids[0], ids[3], ids[4], ids[5]}, remainingSnapshots(t, r))

	options.Snapshots = ids[3:]
	options.Snapshots = append(options.Snapshots, ids[0])
	report, err = r.Forget(t.Context(), options)
	require.NoError(t, err)
	require.Equal(t, 2, report.Removed)
	require.Equal(t, []string{ids[0], ids[5]}, remainingSnapshots(t, r), "a protected one, and the newest")
	require.Len(t, report.Groups[0].Keep, 2)
}
