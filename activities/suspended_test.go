package activities

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"holdfast/catalog"
	"holdfast/storage"
	"holdfast/storage/faulty"
	"holdfast/workspace"
)

// another is a node like the rig's, on a disk of its own unless it is the same node, which reads and writes the catalog through
// other providers.
func (r *rig) another(name string, c *catalog.Catalog) *Node {
	r.t.Helper()
	node := &Node{
		Name: name, Engine: newFakeEngine(), Volumes: r.node.Volumes, Catalog: c, Identity: r.node.Identity, Beater: quietBeater{},
		Lease: r.node.Lease, Logger: r.node.Logger, Reserve: 1, Snapshots: cheap, Stores: impatient,
	}
	if name == r.node.Name {
		node.Engine = r.engine
		return node
	}
	var err error
	node.Volumes, err = OpenVolumes(r.t.TempDir())
	require.NoError(r.t, err)
	return node
}

// A12, invariants 3 and 7: a node is suspended between its check of the lease and its commit, and finishes after the workspace
// has gone on elsewhere. Whoever is asked what the newest version is says that of the new instance: a start, `snapshots`, and a
// workspace that is to begin with it.
func TestSuspendedNode(t *testing.T) {
	const beforeRecord, beforeSnapshot, afterSnapshot, never = 0, 1, 2, 3
	const ignorant = "before the snapshot, on b, which has not heard of the new instance"
	for name, lands := range map[string][2]int{
		ignorant:                            {never, beforeSnapshot},
		"before the record, on both":        {beforeRecord, beforeRecord},
		"before the record, on a":           {beforeRecord, never},
		"before the record on a, then on b": {beforeRecord, beforeSnapshot},
		"before the snapshot, on both":      {beforeSnapshot, beforeSnapshot},
		"before the snapshot, on a":         {beforeSnapshot, never},
		"before the snapshot, on b":         {never, beforeSnapshot},
		"after the snapshot, on both":       {afterSnapshot, afterSnapshot},
		"after the snapshot, on b":          {never, afterSnapshot},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, storage.PolicyAny)
			target := r.started(1)
			first, err := run(r, r.node.Backup, workspace.BackupInput{Target: target, Kind: "live", Sequence: 1})
			require.NoError(t, err)
			one := commitOf(target, first)
			one.Kind = "live"
			require.NoError(t, runPlain(r, r.node.Commit, workspace.CommitInput{Target: target, Commit: one}))

			// The commit of what was written since is on its way when the node is suspended.
			r.write(1, "late.txt", "written after the first snapshot\n")
			second, err := run(r, r.node.Backup, workspace.BackupInput{Target: target, Kind: "live", Sequence: 2})
			require.NoError(t, err)
			two := commitOf(target, second)
			two.Kind, two.Sequence = "live", 2
			var onTheWay []storage.Provider
			var land [2]chan struct{}
			var sent sync.WaitGroup
			for i := range r.inner {
				land[i] = make(chan struct{})
				slow := faulty.New(r.inner[i])
				sent.Add(1)
				slow.Inject(faulty.Rule{Op: faulty.Put, Kind: faulty.Late, Match: func(key string) bool { return strings.Contains(key, "/commits/") }, Until: land[i], Began: sent.Done, Times: 1})
				onTheWay = append(onTheWay, slow)
			}
			old := r.another("node-1", catalog.New(onTheWay, r.policy))
			finished := make(chan error, 1)
			go func() { finished <- runPlain(r, old.Commit, workspace.CommitInput{Target: target, Commit: two}) }()
			sent.Wait()
			at := func(now int) {
				for i, when := range lands {
					if when == now {
						close(land[i])
						require.Eventually(t, func() bool {
							return strings.Contains(strings.Join(r.inner[i].Keys(), " "), fmt.Sprintf("/commits/%020d/%020d", 1, 2))
						}, time.Minute, time.Millisecond)
					}
				}
			}
			f := r.fleet(nil)
			known := &one
			newest := func(want string) {
				t.Helper()
				answers, err := run(r, r.control.ReadHead, workspace.ReadHeadInput{WorkspaceID: id})
				require.NoError(t, err)
				decision := workspace.DecideHead(known, answers, "", time.Now()) // a start
				if name != ignorant {
					require.Empty(t, decision.Refusal)
				}
				require.Equal(t, want, decision.Head.Snapshot)
				begun, err := r.control.origin(t.Context(), "atlas", "")
				require.NoError(t, err)
				require.Equal(t, want, begun.snapshot)
				f.states[workspace.WorkflowID("atlas")] = workspace.State{ID: id, Name: "atlas", Token: 2, Head: decision.Head}
				listed, err := run(r, r.control.ListSnapshots, workspace.SnapshotsInput{Name: "atlas"})
				require.NoError(t, err)
				heads, seen := 0, false
				for _, line := range listed.Snapshots {
					if line.Head {
						heads++
						require.Equal(t, want, line.Snapshot)
					}
					seen = seen || line.Snapshot == second.Backup.Snapshot
				}
				require.Equal(t, 1, heads, "%+v", listed.Snapshots)
				require.True(t, seen, "what the old node wrote is not lost: it is listed")
			}

			newest(first.Backup.Snapshot)
			at(beforeRecord)
			if name == ignorant {
				r.stores[1].Inject(faulty.Rule{Op: faulty.Put, Match: func(key string) bool { return strings.Contains(key, "/instances/") }})
			}
			recordOn(t, r, 2, "node-2", first.Backup.Snapshot)
			r.stores[1].Clear()
			known = &workspace.Commit{WorkspaceID: id, Token: 2, Snapshot: first.Backup.Snapshot}
			newest(first.Backup.Snapshot)
			at(beforeSnapshot)
			newest(first.Backup.Snapshot)

			fresh, elsewhere := target, r.another("node-2", r.catalog)
			fresh.Token, fresh.Node = 2, "node-2"
			_, err = run(r, elsewhere.PrepareContent, workspace.PrepareContentInput{Target: fresh, Snapshot: first.Backup.Snapshot})
			require.NoError(t, err)
			require.FileExists(t, filepath.Join(elsewhere.Volumes.content(id, 2), "notes.txt"))
			require.NoFileExists(t, filepath.Join(elsewhere.Volumes.content(id, 2), "late.txt"))
			third, err := run(r, elsewhere.Backup, workspace.BackupInput{Target: fresh, Kind: "live", Sequence: 1})
			require.NoError(t, err)
			three := commitOf(fresh, third)
			three.Kind = "live"
			require.NoError(t, runPlain(r, elsewhere.Commit, workspace.CommitInput{Target: fresh, Commit: three}))
			known = &three
			newest(third.Backup.Snapshot)
			at(afterSnapshot)
			newest(third.Backup.Snapshot)

			for i, when := range lands {
				if when == never {
					close(land[i])
				}
			}
			require.NoError(t, <-finished) // it believes that it has committed
			newest(third.Backup.Snapshot)
			// Nor does anything that it does next.
			three = two
			three.Sequence = 3
			typed(t, runPlain(r, old.Commit, workspace.CommitInput{Target: target, Commit: three}), workspace.ErrorStaleToken)
			_, err = run(r, old.Forget, workspace.ForgetInput{Target: target, Head: second.Backup.Snapshot})
			typed(t, err, workspace.ErrorStaleToken)
			typed(t, runPlain(r, old.RemoveInstance, workspace.RemoveInstanceInput{Target: target, Snapshot: second.Backup.Snapshot, StatDigest: second.StatDigest}), workspace.ErrorNotStored)
			require.FileExists(t, filepath.Join(r.content(1), "late.txt"))
		})
	}
}

// A12: a machine that was suspended wakes with its lease long gone, and knows it: its clock that goes on while it sleeps says so.
// What it does after its look at the stores is not done.
func TestSuspendedNodeWakes(t *testing.T) {
	r := newRig(t, storage.PolicyAny)
	target := r.started(1)
	made, err := run(r, r.node.Backup, workspace.BackupInput{Target: target, Kind: "live", Sequence: 1})
	require.NoError(t, err)
	// It is suspended while its look at the stores is under way, and the machine's steady clock stands still.
	woke := make(chan struct{})
	var once sync.Once
	r.stores[0].Inject(faulty.Rule{Op: faulty.List, Kind: faulty.Late, Until: woke, Began: func() {
		once.Do(func() {
			r.now.wall = r.now.wall.Add(time.Minute)
			close(woke)
		})
	}})
	err = runPlain(r, r.node.Commit, workspace.CommitInput{Target: target, Commit: commitOf(target, made)})
	transient(t, err)
	require.ErrorContains(t, err, ErrNoLease.Error())
	for i := range r.inner {
		require.NotContains(t, strings.Join(r.inner[i].Keys(), " "), "/commits/")
	}
	require.False(t, errors.Is(err, context.Canceled))
}

// recordOn records an instance on a node.
func recordOn(t *testing.T, r *rig, token uint64, node, base string) {
	t.Helper()
	_, err := r.control.RecordInstance(t.Context(), workspace.InstanceRecord{
		WorkspaceID: id, Name: "atlas", Owner: "ada", Token: token, Node: node, Base: base, Time: time.Unix(int64(token), 0).UTC(),
	})
	require.NoError(t, err)
}
