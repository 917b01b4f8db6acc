package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"holdfast/snapshot"
)

// checked runs a check and decodes what it says.
func checked(t *testing.T, want int, args []string) (snapshot.CheckReport, ran) {
	t.Helper()
	got := command(t, nil, append(slices.Clone(args), "-o", "json")...)
	var report snapshot.CheckReport
	if err := json.Unmarshal([]byte(got.stdout), &report); err != nil || got.code != want {
		t.Fatalf("exit code %d instead of %d, %v: %s%s", got.code, want, err, got.stdout, got.stderr)
	}
	return report, command(t, nil, args...)
}

// overwrite changes a stored file, which is read-only.
func overwrite(t *testing.T, path string, change func([]byte) []byte) {
	t.Helper()
	data, err := os.ReadFile(path)
	if err == nil {
		err = os.Remove(path)
	}
	if err == nil {
		err = os.WriteFile(path, change(data), 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// flat is text without its line breaks.
func flat(text string) string { return strings.Join(strings.Fields(text), " ") }

// TestBinaryCheckOfTwoStores: a check says which store holds what damage, which snapshots need it, and how to mend it; doing
// just that mends it.
func TestBinaryCheckOfTwoStores(t *testing.T) {
	root := t.TempDir()
	first, second := filepath.Join(root, "first"), filepath.Join(root, "second")
	ids, with := repositoryOf(t, first, 2)
	both := func(args ...string) []string { return with(append(args, "--repo", "file://"+second)...) }
	if got := command(t, nil, both("snapshot", "repair")...); got.code != exitDone {
		t.Fatal(got.stderr)
	}
	report, got := checked(t, exitDone, both("snapshot", "check", "--read-data"))
	if report.States[snapshot.StateSound] != 2 || !strings.Contains(got.stdout, "no errors were found\n") || !strings.Contains(got.stdout, "2 snapshots sound") {
		t.Errorf("an undamaged repository: %s", got.stdout)
	}

	packs, err := filepath.Glob(filepath.Join(second, "data", "*", "*"))
	if err != nil || len(packs) < 4 {
		t.Fatal(packs, err)
	}
	overwrite(t, filepath.Join(second, "config"), func(data []byte) []byte { return data[:5] })
	flipped := packs[1]
	overwrite(t, flipped, func(data []byte) []byte { data[3] ^= 1; return data })
	overwrite(t, packs[2], func([]byte) []byte { return nil })
	if err := os.Remove(packs[3]); err != nil {
		t.Fatal(err)
	}
	report, got = checked(t, exitFailed, both("snapshot", "check", "--read-data"))
	if len(report.Damage) != 4 || report.Stores[1].Damaged+report.Stores[1].Missing != 0 || report.Stores[0].Damaged != 3 || report.Stores[0].Missing != 1 {
		t.Errorf("%+v", report)
	}
	wantIn(t, "check", flat(got.stdout), "the config: damaged on file://"+second+"; whole on file://"+first, "pack "+filepath.Base(flipped)[:8]+" (1 unreadable blob)",
		"missing on file://"+second, "can be restored whole, but not from every store")
	mend := "holdfast snapshot repair --read-data --repo file://" + second + " --repo file://" + first
	wantIn(t, "check", flat(got.stderr), "safe: every snapshot that is listed can be restored whole", "`"+mend+"`")
	if strings.Contains(got.stderr, "remov") {
		t.Errorf("nothing is to be removed by hand: %s", got.stderr)
	}
	// Without reading, a repair mends what the listings show.
	if got := command(t, nil, both("snapshot", "repair")...); got.code != exitDone {
		t.Fatal(got.stdout, got.stderr)
	}
	if report, _ = checked(t, exitFailed, both("snapshot", "check", "--read-data")); len(report.Damage) != 1 || report.Damage[0].ID != filepath.Base(flipped) {
		t.Errorf("%+v", report.Damage)
	}
	got = command(t, nil, both("snapshot", "repair", "--read-data")...)
	if got.code != exitDone {
		t.Fatal(got.stdout, got.stderr)
	}
	wantIn(t, "repair", flat(got.stdout), "1 of these took the place of damaged ones", "every copy of them was read")
	if report, _ := checked(t, exitDone, both("snapshot", "check", "--read-data")); report.States[snapshot.StateSound] != 2 {
		t.Errorf("after the mend: %+v", report)
	}

	if err := os.Rename(filepath.Join(first, "config"), filepath.Join(root, "config")); err != nil {
		t.Fatal(err)
	}
	lost := command(t, nil, with("snapshot", "check")...)
	if lost.code != exitFailed {
		t.Errorf("exit code %d", lost.code)
	}
	wantIn(t, "a store without config", flat(lost.stderr), "the file config is missing", "--repo OTHER", "snapshot repair")
	report, _ = checked(t, exitFailed, both("snapshot", "check"))
	if len(report.Damage) != 1 || report.Damage[0].Kind != snapshot.DamageConfig || report.Damage[0].Stores[0].Problem != snapshot.ProblemMissing {
		t.Errorf("%+v of %v", report.Damage, ids)
	}
}

// TestBinaryCheckOfAPart: what was not read is said, and never passes for read.
func TestBinaryCheckOfAPart(t *testing.T) {
	repo := filepath.Join(t.TempDir(), "repo")
	ids, with := repositoryOf(t, repo, 3)
	for _, args := range [][]string{{"--read-data", "--read-data-subset", "1/2"}, {"--read-data-subset", "0/2"}, {"--read-data-subset", ""}, {"--read-data-subset", "101%"}} {
		if got := command(t, nil, with(append([]string{"snapshot", "check"}, args...)...)...); got.code != exitUsage || !strings.Contains(got.stderr, "--read-data-subset") {
			t.Errorf("%v: exit code %d: %s", args, got.code, got.stderr)
		}
	}
	for _, subset := range []string{"", "1/2", "2/2", "20%", "1"} {
		args := with("snapshot", "check")
		if subset != "" {
			args = append(args, "--read-data-subset", subset)
		}
		report, got := checked(t, exitDone, args)
		if report.Read.Packs+report.Read.UnreadPacks != report.Packs || report.Read.Subset != subset || report.States[snapshot.StateUnproven] != 3 {
			t.Errorf("%q: %+v", subset, report)
		}
		if strings.Contains(got.stdout, "no errors were found\n") || strings.Contains(got.stdout, "sound") {
			t.Errorf("%q: %s", subset, got.stdout)
		}
		wantIn(t, subset, flat(got.stdout), "no errors were found in what was read; nothing is known of")
	}

	// Damaged in the only store: what it costs, and that all else can be had.
	snapshots := map[string]bool{}
	packs, err := filepath.Glob(filepath.Join(repo, "data", "*", "*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, pack := range packs {
		var whole []byte
		overwrite(t, pack, func(data []byte) []byte { whole = slices.Clone(data); data[3] ^= 1; return data })
		report, got := checked(t, exitFailed, with("snapshot", "check", "--read-data"))
		if len(report.Damage) != 1 || report.States[snapshot.StateDamaged] != 1 || report.States[snapshot.StateSound] != 2 {
			t.Errorf("%+v", report)
		}
		need := report.Damage[0].NeededBy[0]
		snapshots[need.Snapshot] = true
		wantIn(t, "check", flat(got.stdout), need.Snapshot[:8]+":"+need.Paths[0].Path+" (lost)", "2 snapshots sound", "1 path that no store has")
		wantIn(t, "check", flat(got.stderr), "--path PATH", "--repo OTHER", "`holdfast snapshot rebuild-index`, then `holdfast snapshot backup`")
		overwrite(t, pack, func([]byte) []byte { return whole })
	}
	if len(snapshots) != len(ids) {
		t.Errorf("%v instead of %v", snapshots, ids)
	}
}

// TestMendsOfWhatNoStoreHasWhole: what is still needed is restored before anything is removed, and nothing is to be removed
// while a copy that was not read may be whole.
func TestMendsOfWhatNoStoreHasWhole(t *testing.T) {
	pack := func(second snapshot.Problem) snapshot.Damage {
		return snapshot.Damage{Kind: snapshot.DamagePack, ID: "ab", Key: "data/ab/ab", Lost: true, Stores: []snapshot.DamagedCopy{
			{Store: "gs://one", Problem: snapshot.ProblemDamaged, Hidden: true}, {Store: "gs://two", Problem: second},
		}}
	}
	found := &snapshot.CheckReport{Stores: []snapshot.StoreVerdict{{Store: "gs://one"}, {Store: "gs://two"}}, Damage: []snapshot.Damage{pack(snapshot.ProblemDamaged)}}
	repos := []string{"gs://one", "gs://two"}
	mends := strings.Join(mendsAfterCheck(found, repos), "\n")
	restore, remove := strings.Index(mends, "`holdfast snapshot restore`"), strings.Index(mends, "remove the packs")
	if restore < 0 || remove < restore || strings.Contains(mends, "data/ab/ab from") || strings.Contains(mends, "snapshot repair") {
		t.Errorf("damaged on both: %s", mends)
	}
	found.Damage = []snapshot.Damage{pack(snapshot.ProblemUnreadable)}
	mends = strings.Join(mendsAfterCheck(found, repos), "\n")
	if strings.Contains(mends, "remove") || !strings.Contains(mends, "check again when gs://two") {
		t.Errorf("unreadable on one: %s", mends)
	}
	found.Damage = []snapshot.Damage{pack(snapshot.ProblemDamaged), {Kind: snapshot.DamageSnapshot, Key: "snapshots/cd", Lost: true}}
	found.Stores = append(found.Stores, snapshot.StoreVerdict{Store: "gs://three", Error: "away"})
	mends = strings.Join(mendsAfterCheck(found, repos), "\n")
	if strings.Contains(mends, "remov") || !strings.Contains(mends, "make gs://three reachable") {
		t.Errorf("a store that is away: %s", mends)
	}
}
