package workspace

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestParseSnapshotEvery(t *testing.T) {
	for text, want := range map[string]time.Duration{"5m": 5 * time.Minute, "10s": 10 * time.Second, "24h": 24 * time.Hour, "off": 0, "0": 0} {
		policy, err := ParseSnapshotEvery(text)
		require.NoError(t, err, text)
		require.Equal(t, want, policy.Every(), text)
		require.Equal(t, want == 0, policy.Off, text)
	}
	require.Equal(t, DefaultSnapshotEvery, SnapshotPolicy{}.Every())
	for text, want := range map[string]string{
		"": "want a time such as 5m", "often": "want a time such as 5m", "0s": "want 10s to 24h", "-5m": "want 10s to 24h", "9s": `9s: want 10s to 24h`,
		"25h": "want 10s to 24h", "1500ms": "want whole seconds", "10": "want a time such as 5m",
	} {
		_, err := ParseSnapshotEvery(text)
		require.ErrorContains(t, err, want, text)
		require.ErrorContains(t, err, "snapshot interval", text)
	}
	require.Error(t, SnapshotPolicy{EverySeconds: 60, Off: true}.Validate())
	require.Error(t, Spec{Snapshots: SnapshotPolicy{EverySeconds: 1}}.Validate())
}

// The moments of one workspace lie an interval apart; those of many are spread over it.
func TestNextSnapshot(t *testing.T) {
	base := time.Date(2026, 1, 25, 12, 0, 0, 1, time.UTC)
	for _, every := range []time.Duration{10 * time.Second, 5 * time.Minute, 24 * time.Hour} {
		buckets := make([]int, 10)
		for i := range 1000 {
			name := fmt.Sprintf("workspace-%d", i)
			due := NextSnapshot(name, every, base)
			require.True(t, due.After(base) && !due.After(base.Add(every)), "%s", due)
			require.Equal(t, due.Add(every), NextSnapshot(name, every, due), "strictly after")
			require.Equal(t, due, NextSnapshot(name, every, due.Add(-1)))
			require.Equal(t, due.Add(3*every), NextSnapshot(name, every, due.Add(2*every+every/2)), "what was missed is not made up for")
			buckets[int(due.Sub(base)-1)*10/int(every)]++
		}
		for _, n := range buckets {
			require.InDelta(t, 100, n, 50, "%v", buckets)
		}
	}
	// Before 1970 the remainder is negative.
	old := time.Date(1960, 1, 1, 0, 0, 0, 0, time.UTC)
	require.True(t, NextSnapshot("a", time.Minute, old).After(old) && !NextSnapshot("a", time.Minute, old).After(old.Add(time.Minute)))
}

// The bound holds whatever the durations are: whoever plays the timer through never finds a moment that would cost more.
func TestSnapshotBound(t *testing.T) {
	for every := range 30 {
		for took := range 100 {
			every, took := time.Duration(every+1)*time.Second, time.Duration(took)*time.Second
			bound := snapshotBound(every, took)
			begun := NextSnapshot("atlas", every, time.Unix(1000, 0))
			next := NextSnapshot("atlas", every, begun.Add(took))
			// Right before the next one is committed, the one before it is all there is.
			require.Equal(t, bound, next.Add(took).Sub(begun), "every %s, took %s", every, took)
		}
	}
}

func TestRecoveryPoint(t *testing.T) {
	now := explainNow
	running := func(change func(*State)) State {
		state := State{
			Name: "web", Phase: Running, Since: now.Add(-time.Hour), Instance: &Instance{Token: 2, Node: "n1", Began: now.Add(-time.Hour)},
			Protection: &Protection{Token: 2, Snapshot: snapshotA, Time: now.Add(-2 * time.Minute), TookMillis: 11_400, Due: now.Add(3 * time.Minute)},
		}
		if change != nil {
			change(&state)
		}
		return state
	}
	for name, test := range map[string]struct {
		state State
		want  RecoveryPoint
		says  []string
	}{
		"fresh": {running(nil), RecoveryPoint{AgeSeconds: 120, BoundSeconds: 312, IntervalSeconds: 300},
			[]string{"at most 5m12s of work (a snapshot every 5m)", "content of 2 min ago, in snapshot aaaaaaaa", "in 3 min, at 12:03:00 UTC"}},
		"unchanged": {running(func(s *State) { s.Protection.Unchanged = true }), RecoveryPoint{AgeSeconds: 120, BoundSeconds: 312, IntervalSeconds: 300},
			[]string{"nothing had changed since snapshot aaaaaaaa"}},
		"late": {running(func(s *State) {
			s.Protection.Time, s.Protection.Failures = now.Add(-20*time.Minute), 3
			s.Protection.LastFailure = &SnapshotFailure{Time: now.Add(-time.Minute), Step: StepBackup, Error: "lookup x: no such host"}
		}), RecoveryPoint{AgeSeconds: 1200, BoundSeconds: 312, IntervalSeconds: 300, Exceeded: true},
			[]string{"20 min ago", "older than the promised 5m12s", "3 times in a row", "name cannot be resolved"}},
		"nothing yet": {running(func(s *State) { s.Protection = nil }), RecoveryPoint{AgeSeconds: 3600, BoundSeconds: 300, IntervalSeconds: 300, Exceeded: true},
			[]string{"hold nothing of it yet"}},
		"of the instance before": {running(func(s *State) { s.Protection.Token = 1 }), RecoveryPoint{AgeSeconds: 3600, BoundSeconds: 300, IntervalSeconds: 300, Exceeded: true},
			[]string{"hold nothing of it yet"}},
		"off": {running(func(s *State) { s.Spec.Snapshots.Off, s.Protection.Due = true, time.Time{} }), RecoveryPoint{AgeSeconds: 120},
			[]string{"none: snapshots while it runs are off"}},
		"age not known": {running(func(s *State) { s.Protection.Time = time.Time{} }), RecoveryPoint{AgeSeconds: -1, BoundSeconds: 312, IntervalSeconds: 300},
			[]string{"older than what is on the node"}},
		"now": {running(func(s *State) { s.Operation = &Operation{Kind: OperationSnapshot} }), RecoveryPoint{AgeSeconds: 120, BoundSeconds: 312, IntervalSeconds: 300},
			[]string{"one is being made now"}},
		"due": {running(func(s *State) { s.Protection.Due = now }), RecoveryPoint{AgeSeconds: 120, BoundSeconds: 312, IntervalSeconds: 300}, []string{"due now"}},
	} {
		t.Run(name, func(t *testing.T) {
			point := RecoveryPointOf(test.state, now)
			require.Equal(t, test.want.AgeSeconds, point.AgeSeconds)
			require.Equal(t, test.want.BoundSeconds, point.BoundSeconds)
			require.Equal(t, test.want.IntervalSeconds, point.IntervalSeconds)
			require.Equal(t, test.want.Exceeded, point.Exceeded)
			words := strings.Join([]string{point.Bound(), point.Held(), point.Next(now), point.Failed(now)}, "\n")
			for _, says := range test.says {
				require.Contains(t, words, says)
			}
			require.Equal(t, point, Explain(test.state, nil, now).RecoveryPoint)
		})
	}
	for seconds, want := range map[int64]string{0: "0s", 12: "12s", 60: "1m", 312: "5m12s", 3600: "1h", 3612: "1h0m12s", 3660: "1h1m", 86400: "24h", 1200: "20m", 36000: "10h"} {
		require.Equal(t, want, exact(seconds))
	}
	require.Nil(t, RecoveryPointOf(State{Phase: Stopped}, now))
	require.Nil(t, RecoveryPointOf(running(func(s *State) { s.Phase = Stopping }), now))
}

// What a timed snapshot owes a store is told, and what it does not owe any more is not.
func TestOwedByATimedSnapshot(t *testing.T) {
	state := State{
		Phase: Running, Instance: &Instance{Token: 2}, Head: explainHead(), Protection: &Protection{Token: 2, Snapshot: snapshotA, Owed: []string{"gs://b"}},
		Recent: []Operation{{Kind: OperationBackup, Snapshot: snapshotA, Owed: []string{"gs://b"}}},
	}
	require.Equal(t, []string{"gs://b"}, OwedOf(state, snapshotA))
	state.Protection.Owed = nil
	require.Empty(t, OwedOf(state, snapshotA))
}
