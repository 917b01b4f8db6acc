package workflows_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"holdfast/workspace"
)

// A12, invariant 3: what the replaced instance's node still commits is never gone on from, whenever it lands: before the new
// instance is recorded, before its first snapshot, or after it. The next start goes on with the new instance's work, and what the
// node had is saved beside it.
func TestLateCommitOfAReplacedInstance(t *testing.T) {
	for _, when := range []string{"before the record", "before the first snapshot", "after the first snapshot"} {
		t.Run(when, func(t *testing.T) {
			w := running(t, time.Minute)
			late := workspace.Commit{Token: 1, Sequence: 9, Snapshot: fmt.Sprintf("%064d", 99), Kind: "final", Time: time.Unix(1<<40, 0).UTC()}
			w.setting(time.Hour+time.Second, func() {
				w.content["node-1/1"] += " and more"
				w.versions[late.Snapshot] = w.content["node-1/1"]
			})
			lands := func() { w.commits = append(w.commits, late) }
			switch when {
			case "before the record": // and after the version to go on from was chosen
				w.after = func(activity string, attempt int) error {
					if activity == workspace.ActivitySeal && attempt == 2 {
						lands()
					}
					return nil
				}
			case "before the first snapshot":
				w.setting(time.Hour+10*time.Minute, lands)
			default:
				w.setting(time.Hour+30*time.Minute, lands)
			}
			w.ask(time.Hour+20*time.Minute, workspace.UpdateBackup, workspace.BackupRequest{})
			w.comesBack(2*time.Hour, nodeOne)
			between := w.look(2*time.Hour + 30*time.Minute)
			stop := w.ask(3*time.Hour, workspace.UpdateStop, workspace.StopRequest{})
			again := w.ask(4*time.Hour, workspace.UpdateStart, workspace.StartRequest{})
			after := w.look(5 * time.Hour)
			w.run(6 * time.Hour)
			require.NoError(t, *stop)
			require.NoError(t, *again)
			require.Contains(t, w.commits, late)
			require.Equal(t, nodeTwo, between.Instance.Node)
			require.NotEqual(t, late.Snapshot, between.Head.Snapshot)
			require.Equal(t, workspace.Running, after.Phase, "%+v", after)
			require.Equal(t, "first+++", w.content[fmt.Sprintf("%s/%d", after.Instance.Node, after.Instance.Token)])
			require.Equal(t, uint64(3), after.Instance.Token)
			require.NotEqual(t, late.Snapshot, w.records[3].Base)
			saved := 0
			for snapshot, kind := range w.kinds {
				if kind == "recovered" {
					saved++
					require.Equal(t, "first+ and more", w.versions[snapshot])
				}
			}
			require.Equal(t, 1, saved)
		})
	}
}

// The same on one store only, which has not heard of the new instance either: a start says that the stores differ, names the
// version of the new one, and never takes the other by itself (invariants 3 and 4).
func TestLateCommitOnAStoreThatKnowsNoOtherInstance(t *testing.T) {
	w := running(t, time.Minute)
	late := workspace.Commit{Token: 1, Sequence: 9, Snapshot: fmt.Sprintf("%064d", 99), Kind: "final"}
	w.versions[late.Snapshot] = "first+ and more"
	w.ask(3*time.Hour, workspace.UpdateStop, workspace.StopRequest{})
	w.setting(4*time.Hour-time.Minute, func() {
		heads := w.readHead("gs://a", "file:///b")
		heads.Providers[1] = workspace.ProviderHead{Provider: "file:///b", Token: 1, Head: &late}
		w.heads = &heads
	})
	w.ask(4*time.Hour, workspace.UpdateStart, workspace.StartRequest{})
	refused := w.look(4*time.Hour + time.Minute)
	wrong := w.ask(5*time.Hour, workspace.UpdateStart, workspace.StartRequest{AcceptVersion: late.Snapshot})
	still := w.look(5*time.Hour + time.Minute)
	w.at(6*time.Hour, func() {
		w.ask(0, workspace.UpdateStart, workspace.StartRequest{AcceptVersion: still.Head.Snapshot})
	})
	after := w.look(7 * time.Hour)
	w.run(8 * time.Hour)
	require.NoError(t, *wrong)
	for _, state := range []*workspace.State{refused, still} {
		last := state.Recent[len(state.Recent)-1]
		require.True(t, last.Refused, "%+v", last)
		require.Equal(t, workspace.ErrorOlderVersion, last.ErrorType)
		require.Contains(t, last.Error, "file:///b has the older version")
		require.Contains(t, last.Error, "--accept-version "+state.Head.Snapshot)
		require.NotEqual(t, late.Snapshot, state.Head.Snapshot)
	}
	require.Equal(t, workspace.Running, after.Phase, "%+v", after)
	require.Equal(t, "first+++", w.content[fmt.Sprintf("%s/%d", after.Instance.Node, after.Instance.Token)])
}
