package workspace

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// What a replaced instance had is told at every step: where it is, why, and until when.
func TestWhatIsToldOfReplacedContent(t *testing.T) {
	now := time.Date(2026, 1, 25, 12, 0, 0, 0, time.UTC)
	saved := strings.Repeat("ab", 32)
	base := Kept{Node: "node-1", Token: 3, Why: "its node was lost", Replaced: true}
	for name, test := range map[string]struct {
		change func(*Kept)
		says   string
		saved  bool
	}{
		"its node is lost":         {func(*Kept) {}, "When the node returns, or its agent is started again, it is saved as a recovered snapshot; it stays there until every store holds that.", false},
		"it is being saved":        {func(k *Kept) { k.Back = true }, "It is being saved as a recovered snapshot, and stays there until every store holds that.", false},
		"it is saved":              {func(k *Kept) { k.Back, k.Snapshot = true, saved }, "It is removed there as soon as every store is seen to hold that.", true},
		"a store is late":          {func(k *Kept) { k.Back, k.Snapshot, k.Next = true, saved, now.Add(3*time.Minute) }, "It is gone on with in 3 min.", true},
		"it is to be saved again":  {func(k *Kept) { k.Back, k.Snapshot, k.Again = true, saved, true }, "It is being saved as a recovered snapshot", true},
		"it lacks something":       {func(k *Kept) { k.Back, k.Snapshot, k.Omitted = true, saved, 3 }, "when the node's agent is started again and they can be read.", true},
		"its node is lost again":   {func(k *Kept) { k.Snapshot = saved }, "It is removed there when the node returns and every store is seen to hold that.", true},
		"a person went on without": {func(k *Kept) { k.Replaced = false }, "Other content stays on node node-1 (instance 3), not removed by itself: its node was lost.", false},
	} {
		t.Run(name, func(t *testing.T) {
			kept := base
			test.change(&kept)
			require.Contains(t, kept.Stays(now), test.says)
			require.Contains(t, kept.Stays(now), "node node-1 (instance 3)")
			state := State{Name: "web", Phase: Running, Instance: &Instance{Token: 4, Node: "node-2"}, Left: []Kept{kept}}
			told := Explain(state, nil, now)
			require.Contains(t, strings.Join(told.Safe, "\n"), test.says)
			require.Equal(t, test.saved, offers(told, saved))
		})
	}
}

// offers says whether a download of a snapshot is among what a person can do.
func offers(told Explanation, snapshot string) bool {
	for _, action := range told.Can {
		if action.Command == "holdfast download web --snapshot "+Short(snapshot) {
			return true
		}
	}
	return false
}

func TestWhatIsToldOfSalvagedContent(t *testing.T) {
	now := time.Date(2026, 1, 25, 12, 0, 0, 0, time.UTC)
	older, newer := strings.Repeat("ab", 32), strings.Repeat("cd", 32)
	state := State{Name: "web", Phase: Stopped, Salvaged: []Salvaged{
		{Node: "node-1", Token: 3, Snapshot: older, Saved: now.Add(-time.Hour), Removed: now.Add(-time.Hour), Files: 2, Bytes: 3000},
		{Node: "node-2", Token: 7, Snapshot: newer, Saved: now, Removed: now, Files: 1, Bytes: 10},
	}}
	told := Explain(state, nil, now)
	require.Contains(t, told.Safe, "What instance 3 still had when node node-1 returned is in the recovered snapshot abababab (2 files, 2.93KiB), saved at 2026-01-25 11:00:00 UTC. It is on no node any more, is never the newest version, and stays in the stores until a person removes it.")
	require.True(t, offers(told, newer))
	require.False(t, offers(told, older), "the newest is enough; the list has the others")
	require.Equal(t, newer, state.RecoveredSnapshot())
}
