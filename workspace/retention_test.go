package workspace

import (
	"fmt"
	"math/rand"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestParseRetention(t *testing.T) {
	for text, want := range map[string]Retention{
		"last=12,hourly=24,daily=14": {Last: 12, Hourly: 24, Daily: 14},
		"daily=3, last=1":            {Last: 1, Daily: 3},
		"last=1000":                  {Last: 1000},
		"none":                       {Off: true},
	} {
		got, err := ParseRetention(text)
		require.NoError(t, err, text)
		require.Equal(t, want, got)
		again, err := ParseRetention(got.String())
		require.NoError(t, err)
		require.Equal(t, want, again)
	}
	for text, wants := range map[string]string{
		"":                "want for example",
		"off":             "want for example",
		"last":            "want for example",
		"last=x":          "want for example",
		"last=1,last=2":   "each once",
		"weekly=2":        "want for example",
		"last=1,":         "want for example",
		"hourly=24":       "want last=1 at least",
		"last=0,daily=2":  "want last=1 at least",
		"last=-1":         "last=-1: want 1 to 1000",
		"last=1001":       "last=1001: want 1 to 1000",
		"last=1,daily=-1": "daily=-1: want 0 to 1000",
	} {
		_, err := ParseRetention(text)
		require.ErrorContains(t, err, wants, text)
		require.ErrorContains(t, err, "retention", text)
	}
	require.NoError(t, Retention{}.Validate())
	require.Error(t, Retention{Off: true, Last: 1}.Validate())
	require.Error(t, Retention{Hourly: 1}.Validate())
	require.Error(t, Spec{Retention: Retention{Last: -1}}.Validate())
	require.Equal(t, "last=12,hourly=24,daily=14", Retention{}.String())
}

// timedEvery are timed commits of token 1, one each interval, the oldest first.
func timedEvery(n int, every time.Duration) (commits []Commit, stored map[string]bool) {
	stored = map[string]bool{}
	begin := time.Date(2026, 1, 25, 0, 0, 0, 0, time.UTC)
	for i := range n {
		commit := Commit{Token: 1, Sequence: uint64(i + 1), Snapshot: fmt.Sprintf("s%04d", i+1), Kind: "live", Timed: true, Time: begin.Add(time.Duration(i) * every)}
		commits, stored[commit.Snapshot] = append(commits, commit), true
	}
	return commits, stored
}

func without(stored map[string]bool, forgotten []string) map[string]bool {
	left := map[string]bool{}
	for id, is := range stored {
		if is && !slices.Contains(forgotten, id) {
			left[id] = true
		}
	}
	return left
}

// By default an hour of every snapshot, a day of hours, and two weeks of days are kept.
func TestDefaultRetention(t *testing.T) {
	commits, stored := timedEvery(30*24*12, 5*time.Minute)
	left := without(stored, Retention{}.Forget(commits, stored, nil))
	// The newest hour, the 23 hours before it, and the 13 days before them.
	require.Len(t, left, 12+23+13)
	last := len(commits)
	for _, i := range []int{last, last - 11, last - 12, last - 23*12, last - 24*12, last - 13*24*12} {
		require.Contains(t, left, fmt.Sprintf("s%04d", i))
	}
	for _, i := range []int{1, last - 13, last - 24*12 - 12, last - 14*24*12} {
		require.NotContains(t, left, fmt.Sprintf("s%04d", i))
	}
	require.Empty(t, Retention{Off: true}.Forget(commits, stored, nil))
}

// Invariant 3: what is newest is said by tokens and sequences; clocks that were wrong decide nothing.
func TestRetentionGoesByTheOrderOfCommits(t *testing.T) {
	commits, stored := timedEvery(20, time.Minute)
	for i := range commits { // the clock ran backwards
		commits[i].Time = commits[i].Time.Add(-time.Duration(i) * 2 * time.Minute)
	}
	commits = append(commits, Commit{Token: 2, Sequence: 1, Snapshot: "head", Kind: "live", Timed: true, Time: time.Unix(0, 0)})
	stored["head"] = true
	slices.Reverse(commits[3:9]) // however they are given
	left := without(stored, Retention{Last: 3}.Forget(commits, stored, nil))
	require.Equal(t, map[string]bool{"head": true, "s0020": true, "s0019": true}, left)
}

// What no timer made stays, and so does what is protected.
func TestRetentionForgetsTimedOnesAlone(t *testing.T) {
	commits, stored := timedEvery(30, time.Minute)
	commits[3].Kind, commits[3].Timed = "final", false
	commits[4].Timed = false                                                                   // a person's, or an older version's
	commits[5].Kind = "final"                                                                  // whatever else it says
	commits[6].Kind = "unknown"                                                                // a newer version's
	commits = append(commits, Commit{Token: 1, Sequence: 31, Snapshot: "s0009", Kind: "live"}) // named by another commit too
	stored["recovered"] = true                                                                 // no commit names it
	forgotten := Retention{Last: 2}.Forget(commits, stored, map[string]bool{"s0002": true, "s0008": true})
	left := without(stored, forgotten)
	for _, id := range []string{"s0002", "s0004", "s0005", "s0006", "s0007", "s0008", "s0009", "s0029", "s0030", "recovered"} {
		require.Contains(t, left, id)
	}
	require.Len(t, left, 10)
	delete(stored, "s0001")
	require.NotContains(t, Retention{Last: 2}.Forget(commits, stored, nil), "s0001", "it was forgotten before")
}

// The newest of every instance stays: one that ended without a final snapshot, and after which another began with an older
// version (a store was away, a person went back), has what it had last nowhere else.
func TestRetentionKeepsWhatAnInstanceEndedWith(t *testing.T) {
	commits, stored := timedEvery(60, time.Minute)
	for i := range commits {
		commits[i].Token = uint64(1 + i/20)
	}
	commits[39] = Commit{Token: 2, Sequence: 40, Snapshot: "s0040", Kind: "final"} // instance 2 was stopped
	left := without(stored, Retention{Last: 2}.Forget(commits, stored, nil))
	require.Equal(t, map[string]bool{"s0020": true, "s0040": true, "s0059": true, "s0060": true}, left)
	// What is not stored any more was not the last.
	delete(stored, "s0020")
	delete(stored, "s0040")
	left = without(stored, Retention{Last: 2}.Forget(commits, stored, nil))
	require.Equal(t, map[string]bool{"s0019": true, "s0039": true, "s0059": true, "s0060": true}, left)
}

// randomHistory is a history with several tokens, kinds, gaps in what is stored, and clocks that jump.
func randomHistory(random *rand.Rand) (commits []Commit, stored, protected map[string]bool) {
	stored, protected = map[string]bool{}, map[string]bool{}
	at := time.Date(2026, 1, 25, 0, 0, 0, 0, time.UTC)
	for token := uint64(1); token <= uint64(1+random.Intn(3)); token++ {
		for sequence := range uint64(random.Intn(60)) {
			at = at.Add(time.Duration(random.ExpFloat64() * float64([]time.Duration{time.Minute, time.Hour, 24 * time.Hour}[random.Intn(3)])))
			if random.Intn(10) == 0 {
				at = at.Add(-time.Duration(random.Intn(100)) * time.Hour)
			}
			commit := Commit{Token: token, Sequence: sequence + 1, Snapshot: fmt.Sprintf("%d.%d", token, sequence+1), Kind: "live", Timed: random.Intn(6) > 0, Time: at}
			if random.Intn(8) == 0 {
				commit.Kind, commit.Timed = "final", false
			}
			commits = append(commits, commit)
			stored[commit.Snapshot] = random.Intn(10) > 0
			protected[commit.Snapshot] = random.Intn(20) == 0
		}
	}
	return commits, stored, protected
}

func TestRetentionProperties(t *testing.T) {
	const seed = 20261125
	random := rand.New(rand.NewSource(seed))
	removed := 0
	for round := range 3000 {
		commits, stored, protected := randomHistory(random)
		r := Retention{Last: 1 + random.Intn(5), Hourly: random.Intn(8), Daily: random.Intn(5)}
		shuffled := slices.Clone(commits)
		random.Shuffle(len(shuffled), func(i, j int) { shuffled[i], shuffled[j] = shuffled[j], shuffled[i] })
		forgotten := r.Forget(shuffled, stored, protected)
		removed += len(forgotten)
		left := without(stored, forgotten)
		say := fmt.Sprintf("seed %d, round %d, %s: %v of %+v", seed, round, r, forgotten, commits)

		newest := map[uint64]*Commit{}
		before, after := 0, 0
		for i := range commits {
			commit := &commits[i]
			if stored[commit.Snapshot] {
				before++
				if commit.Newer(newest[commit.Token]) {
					newest[commit.Token] = commit
				}
			}
			if left[commit.Snapshot] {
				after++
			}
			if slices.Contains(forgotten, commit.Snapshot) {
				require.True(t, commit.Timed && commit.Kind == "live" && stored[commit.Snapshot] && !protected[commit.Snapshot], say)
			}
		}
		for _, ended := range newest {
			require.NotContains(t, forgotten, ended.Snapshot, "the newest of an instance that is stored: %s", say)
			require.Positive(t, after, say)
		}
		require.Equal(t, before-after, len(forgotten), "each once: %s", say)

		// Idempotent.
		require.Empty(t, r.Forget(commits, left, protected), say)
		// Monotone: a retention that keeps more forgets nothing that this one keeps.
		more := Retention{Last: r.Last + random.Intn(3), Hourly: r.Hourly + random.Intn(3), Daily: r.Daily + random.Intn(3)}
		require.Subset(t, append(forgotten, "-"), append(more.Forget(commits, stored, protected), "-"), say)
		// In steps, as it happens, the same is left as at once.
		if half := len(commits) / 2; half > 0 {
			then := map[string]bool{}
			for _, commit := range commits[:half] {
				then[commit.Snapshot] = stored[commit.Snapshot]
			}
			early := r.Forget(commits[:half], then, protected)
			late := r.Forget(commits, without(stored, early), protected)
			require.ElementsMatch(t, forgotten, slices.Concat(early, late), say)
		}
	}
	require.Greater(t, removed, 10000)
}

func TestRetainingWords(t *testing.T) {
	now := time.Date(2026, 1, 25, 12, 0, 0, 0, time.UTC)
	var none *Retaining
	require.Empty(t, none.Done(now))
	require.Empty(t, none.Failed(now))
	done := &Retaining{Time: now.Add(-30 * time.Minute), Forgotten: 11, Kept: 24}
	require.Equal(t, "11 forgotten 30 min ago, 24 kept", done.Done(now))
	require.Empty(t, done.Failed(now))
	done.Pruned, done.PrunedBytes = now.Add(-3*time.Hour), 5<<20
	require.Equal(t, "11 forgotten 30 min ago, 24 kept; 5MiB that nothing needed were removed 3 h ago", done.Done(now))
	for kind, words := range map[string]string{
		TimeoutScheduleToClose:   "when the next snapshot was due",
		string(ErrorConflict):    "the stores do not say the same",
		string(ErrorStoreDenied): "an object store denies access",
		"":                       "another program works on the workspace's repository",
		string(ErrorWrongKey):    "the password or master key",
	} {
		failed := &Retaining{Failures: 2, LastFailure: &SnapshotFailure{Time: now.Add(-time.Hour), Step: StepForget, Type: kind, Error: "the repository is locked by another program"}}
		require.Contains(t, failed.Failed(now), "it failed 2 times in a row, the last time 60 min ago while forgetting old snapshots: ")
		require.Contains(t, failed.Failed(now), words)
	}
}
