package workspace

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func pausedFor(cause PauseCause, token, replaced uint64, doubt string) PausedInstance {
	p := PausedInstance{WorkspaceID: NewID(), Token: token, Cause: cause, Replaced: replaced, Doubt: doubt}
	p.Why = p.Words()
	return p
}

func told(t *testing.T, paused Paused) (size int, read Paused) {
	t.Helper()
	data, err := json.Marshal(paused)
	require.NoError(t, err)
	require.NoError(t, json.Unmarshal(data, &read))
	return len(data), read
}

// Whatever is paused, a beat tells it in few bytes, and whoever asks about one learns the same reason as on the node.
func TestPausedIsToldInFewBytes(t *testing.T) {
	const doubt = "asking gs://one/catalog: lookup storage.example.com: no server answers"
	mixed := func(count int) (all []PausedInstance) {
		for i := range count {
			switch i % 4 {
			case 0:
				all = append(all, pausedFor(PauseReplaced, uint64(i+1), uint64(i+2), ""))
			case 1:
				all = append(all, pausedFor(PauseDoubt, 1, 0, doubt))
			default:
				all = append(all, pausedFor(PauseEnding, 7, 0, ""))
			}
		}
		return all
	}
	alike := func(count int, cause PauseCause, replaced uint64, doubt string) (all []PausedInstance) {
		for range count {
			all = append(all, pausedFor(cause, 1, replaced, doubt))
		}
		return all
	}
	for name, test := range map[string]struct {
		paused    []PausedInstance
		instances int
	}{
		"one":                       {alike(1, PauseReplaced, 2, ""), 9},
		"50 replaced":               {alike(50, PauseReplaced, 2, ""), 50},
		"50 in doubt":               {alike(50, PauseDoubt, 0, doubt), 60},
		"100 of all kinds":          {mixed(100), 101},
		"1,000, which are all":      {alike(1000, PauseDoubt, 0, doubt), 1000},
		"1,000, and one other":      {append(alike(999, PauseAlone, 0, ""), pausedFor(PauseReplaced, 4, 6, "")), 1000},
		"tokens that are far apart": {[]PausedInstance{pausedFor(PauseReplaced, 1, 1<<40, ""), pausedFor(PauseReplaced, 2, 3, "")}, 2},
	} {
		summary := SummarizePaused(test.paused, test.instances)
		size, read := told(t, summary)
		require.LessOrEqual(t, size, 700, name)
		require.Equal(t, len(test.paused), read.Count, name)
		require.Zero(t, read.Unnamed(), name)
		for _, want := range test.paused {
			got, found := read.Of(InstanceName(want.WorkspaceID, want.Token))
			require.True(t, found, name)
			require.Equal(t, want, got, name)
		}
		if test.instances > len(test.paused) {
			for range 1000 {
				_, found := read.Of(InstanceName(NewID(), 1))
				require.False(t, found, "%s: one that is not paused", name)
			}
		}
	}
	require.Equal(t, Paused{}, SummarizePaused(nil, 3))
}

// What does not fit is counted, and an instance that is not named is not said to run.
func TestTooManyPausedAreCounted(t *testing.T) {
	var all []PausedInstance
	for range 400 {
		all = append(all, pausedFor(PauseReplaced, 1, 2, ""))
	}
	size, read := told(t, SummarizePaused(all, 401))
	require.LessOrEqual(t, size, 700)
	found := 0
	for _, p := range all {
		if _, ok := read.Of(InstanceName(p.WorkspaceID, p.Token)); ok {
			found++
		}
	}
	require.Greater(t, found, 150)
	require.Equal(t, 400-found, read.Unnamed())
	for range 100 {
		_, ok := read.Of(InstanceName(NewID(), 1))
		require.False(t, ok, "one runs, so that not all that are not named are paused")
	}
}

// Long errors that differ take nobody's cause away.
func TestPausedForDifferentDoubts(t *testing.T) {
	var all []PausedInstance
	for i := range 100 {
		all = append(all, pausedFor(PauseDoubt, 1, 0, fmt.Sprintf("store %d: %s", i%3, strings.Repeat(fmt.Sprint(i%3), 200))))
	}
	_, read := told(t, SummarizePaused(all, 101))
	for _, want := range all {
		got, found := read.Of(InstanceName(want.WorkspaceID, want.Token))
		require.True(t, found)
		require.Equal(t, PauseDoubt, got.Cause)
	}
}

// The bounds hold for everything that a node can say.
func TestPausedAlwaysFits(t *testing.T) {
	random := rand.New(rand.NewPCG(3, 4))
	causes := []PauseCause{PauseReplaced, PauseAlone, PauseDoubt, PauseEnding}
	for range 500 {
		var all []PausedInstance
		for range random.IntN(200) {
			p := pausedFor(causes[random.IntN(4)], random.Uint64N(50)+1, 0, "")
			switch p.Cause {
			case PauseReplaced:
				p.Replaced = p.Token + random.Uint64N(1<<20) + 1
			case PauseDoubt:
				p.Doubt = "asking about " + p.WorkspaceID + strings.Repeat([]string{": <refused>", "é\x00\xff", "\"a\" "}[random.IntN(3)], random.IntN(90))
			}
			all = append(all, p)
		}
		size, read := told(t, SummarizePaused(all, len(all)+random.IntN(2)))
		require.LessOrEqual(t, size, 700)
		if len(all) > 100 {
			continue
		}
		require.Zero(t, read.Unnamed(), fmt.Sprint(len(all)))
		for _, want := range all {
			got, found := read.Of(InstanceName(want.WorkspaceID, want.Token))
			require.True(t, found)
			require.Equal(t, want.Cause, got.Cause)
			if got.Replaced != 0 {
				require.Equal(t, want.Replaced, got.Replaced, "what is said is true")
			}
			require.NotContains(t, got.Doubt, want.WorkspaceID)
		}
	}
}

// A beat of another version, or one that was damaged, says nothing wrong.
func TestPausedOfAnother(t *testing.T) {
	name := InstanceName(NewID(), 1)
	for _, paused := range []Paused{
		{}, {Count: 3, Size: -1, Groups: []PausedGroup{{Cause: PauseAlone, Marks: []byte{1}}}},
		{Count: 3, Size: 99, Groups: []PausedGroup{{Cause: PauseAlone, Marks: []byte{1}}}},
		{Count: 3, Size: 0, Groups: []PausedGroup{{Cause: PauseAlone, Marks: []byte{1}}}},
	} {
		_, found := paused.Of(name)
		require.False(t, found)
		require.Equal(t, paused.Count, paused.Unnamed())
	}
	_, found := Paused{Count: 1, Groups: []PausedGroup{{Cause: PauseAlone, Rest: true}}}.Of("no instance")
	require.False(t, found)
}
