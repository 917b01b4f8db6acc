package activities

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"holdfast/storage"
	"holdfast/storage/faulty"
	"holdfast/workspace"
)

// stored counts the packs and snapshots of the repository on a store.
func (r *rig) stored(store int) (packs, snapshots int) {
	for _, key := range r.inner[store].Keys() {
		switch part := strings.TrimPrefix(key, workspace.RepositoryPrefix(id)+"/"); {
		case strings.HasPrefix(part, "data/"):
			packs++
		case strings.HasPrefix(part, "snapshots/"):
			snapshots++
		}
	}
	return packs, snapshots
}

// TestDoubleWriteRollOut proves A8's roll-out: a workspace that it has not come to is written to one store and is stopped
// for good with that; from its next start on it is written to both, nothing of it is removed before both have it whole
// (invariant 1), and what was written once can still be restored, in the end from either store.
func TestDoubleWriteRollOut(t *testing.T) {
	r := newRig(t, storage.PolicyAny)
	r.control.SingleWrite = 100
	removal := r.stopped(1)
	verified, err := run(r, r.node.Verify, workspace.VerifyInput{Target: removal.Target, Snapshot: removal.Snapshot})
	require.NoError(t, err)
	require.Equal(t, []string{r.stores[0].URL()}, verified.Whole)
	require.Empty(t, verified.Owed, "nothing is owed to a store that its policy does not name")
	packs, snapshots := r.stored(1)
	require.Zero(t, packs+snapshots)
	require.NoError(t, runPlain(r, r.node.RemoveInstance, removal))
	require.NoDirExists(t, r.content(1))
	heads := r.catalog.ReadHead(t.Context(), id).Providers
	require.Equal(t, heads[0].Head, heads[1].Head, "the catalog is on both all the same")

	r.control.SingleWrite = 0
	target := r.target(2)
	r.record(2, removal.Snapshot)
	_, err = run(r, r.node.PrepareContent, workspace.PrepareContentInput{Target: target, Snapshot: removal.Snapshot})
	require.NoError(t, err)
	text, err := os.ReadFile(filepath.Join(r.content(2), "notes.txt"))
	require.NoError(t, err)
	require.Equal(t, "what a person wrote\n", string(text))
	_, err = run(r, r.node.StartInstance, workspace.StartInstanceInput{Target: target, Image: "image:", Secrets: r.sealed.Secrets})
	require.NoError(t, err)
	r.write(2, "more.txt", "more")
	second := r.finished(target)
	if err := runPlain(r, r.node.RemoveInstance, second); err != nil {
		typed(t, err, workspace.ErrorNotStored)
		require.DirExists(t, r.content(2))
		_, err = run(r, r.node.Repair, workspace.RepairInput{Target: target})
		require.NoError(t, err)
		require.NoError(t, runPlain(r, r.node.RemoveInstance, second))
	}
	_, err = run(r, r.node.Repair, workspace.RepairInput{Target: target})
	require.NoError(t, err)
	// The setting is lowered: no copy is given up for that.
	r.control.SingleWrite = 100
	recorded, err := run(r, r.control.RecordInstance, workspace.InstanceRecord{WorkspaceID: id, Name: "atlas", Owner: "ada", Token: 3, Base: second.Snapshot})
	require.NoError(t, err)
	require.Empty(t, recorded.Stores)

	away(r.stores[0]) // the second store is enough, for what was written once too
	for i, snapshot := range []string{removal.Snapshot, second.Snapshot} {
		target := r.target(uint64(4 + i))
		r.record(target.Token, snapshot)
		_, err = run(r, r.node.PrepareContent, workspace.PrepareContentInput{Target: target, Snapshot: snapshot})
		require.NoError(t, err)
		require.FileExists(t, filepath.Join(r.content(target.Token), "notes.txt"))
	}
}

// Invariant 1: content that was backed up while its workspace was written to one store stays, once a newer record says
// both, until both have it.
func TestGrownPolicyKeepsTheContent(t *testing.T) {
	r := newRig(t, storage.PolicyAny)
	r.control.SingleWrite = 100
	removal := r.stopped(1)
	r.control.SingleWrite = 0
	r.record(2, removal.Snapshot) // such as the seal of an unstick
	typed(t, runPlain(r, r.node.RemoveInstance, removal), workspace.ErrorNotStored)
	require.DirExists(t, r.content(1))
	repaired, err := run(r, r.node.Repair, workspace.RepairInput{Target: removal.Target})
	require.NoError(t, err)
	require.Positive(t, repaired.Objects)
	packs, snapshots := r.stored(1)
	require.Positive(t, packs)
	require.Equal(t, 1, snapshots)
	require.NoError(t, runPlain(r, r.node.RemoveInstance, removal))
}

// The only store of a workspace being away passes; the other one's having nothing of it is no answer.
func TestWrittenOnceAndAway(t *testing.T) {
	r := newRig(t, storage.PolicyAny)
	r.control.SingleWrite = 100
	removal := r.stopped(1)
	require.NoError(t, runPlain(r, r.node.RemoveInstance, removal))
	r.record(2, removal.Snapshot)
	target := r.target(2)
	away(r.stores[0])
	_, err := run(r, r.node.PrepareContent, workspace.PrepareContentInput{Target: target, Snapshot: removal.Snapshot})
	transient(t, err)
	r.stores[0].Clear()
	_, err = run(r, r.node.PrepareContent, workspace.PrepareContentInput{Target: target, Snapshot: removal.Snapshot})
	require.NoError(t, err)
}

// Invariant 8: a record whose answer was lost stands, whatever the setting is when it is written again.
func TestRecordedByAnotherSetting(t *testing.T) {
	for _, first := range []int{0, 100} {
		r := newRig(t, storage.PolicyAny)
		record := workspace.InstanceRecord{WorkspaceID: id, Name: "atlas", Owner: "ada", Token: 1, Node: "node-1"}
		r.control.SingleWrite = first
		before, err := run(r, r.control.RecordInstance, record)
		require.NoError(t, err)
		r.control.SingleWrite = 100 - first
		again, err := run(r, r.control.RecordInstance, record)
		require.NoError(t, err)
		require.Equal(t, before, again)
		record.Base = strings.Repeat("0", 64)
		_, err = run(r, r.control.RecordInstance, record)
		typed(t, err, workspace.ErrorConflict)
	}
}

// What is looked at is what is told: the stores of a workspace are found once for a look, because too few stores may answer
// at one moment to say which they are and enough the next, and a store that was not looked at would count as whole
// (invariants 1 and 2).
func TestVerifyTellsOnlyWhatItLookedAt(t *testing.T) {
	r := newRig(t, storage.PolicyAny)
	r.control.SingleWrite = 100
	removal := r.stopped(1)
	for _, store := range r.stores {
		store.Inject(faulty.Rule{Op: faulty.List, Times: 1, Match: func(prefix string) bool { return strings.Contains(prefix, "/instances/") }})
	}
	verified, err := run(r, r.node.Verify, workspace.VerifyInput{Target: removal.Target, Snapshot: removal.Snapshot})
	require.NoError(t, err)
	for _, store := range r.stores {
		require.Positive(t, store.Fired(), "it was asked which stores the workspace has")
	}
	require.Equal(t, []string{r.stores[0].URL()}, verified.Whole)
	require.Equal(t, []string{r.stores[1].URL()}, verified.Owed, "all stores are the workspace's while nobody says which are")
}
