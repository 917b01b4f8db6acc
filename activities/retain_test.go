package activities

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"holdfast/catalog"
	"holdfast/snapshot"
	"holdfast/storage"
	"holdfast/storage/faulty"
	"holdfast/workspace"
)

// Invariants 1 and 3: of what a timer made, what the retention keeps stays, and of everything else all: the base of a later
// instance, a person's snapshot, a recovered one, a final one, and one that its commit does not name. Both stores are what
// stock restic takes for whole, before and after what nothing needs is removed, and everything that stays can be restored.
func TestForgetAndPrune(t *testing.T) {
	r := newRetained(t)
	r.timed(5)
	base := r.snapshots[1]
	person := r.make(false, nil)
	removal := r.finishedLive()
	require.NoError(t, runPlain(r.rig, r.node.RemoveInstance, removal))
	r.goBack(base)
	uncommitted := r.make(true, func(*workspace.Commit) bool { return false })
	r.sequence--
	others := r.make(true, func(c *workspace.Commit) bool { c.Snapshot = uncommitted; c.Timed = false; return true })
	saved, err := run(r.rig, r.node.Backup, workspace.BackupInput{Target: r.target, Kind: "recovered"})
	require.NoError(t, err)
	r.timed(6)
	before := r.bytes(0)

	result, err := r.keepLast(3, r.snapshots[3])
	require.NoError(t, err)
	require.Equal(t, workspace.ForgetResult{Forgotten: 6, Kept: 5}, result)
	kept := append([]string{base, person, removal.Snapshot, uncommitted, others, saved.Backup.Snapshot, r.snapshots[3]}, r.snapshots[8:]...)
	r.holds(kept...)
	again, err := r.keepLast(3, r.snapshots[3])
	require.NoError(t, err)
	require.Equal(t, workspace.ForgetResult{Kept: 5}, again, "done already (invariant 8)")
	require.Equal(t, before, r.bytes(0), "forgetting removes no content")
	r.check()

	pruned, err := run(r.rig, r.node.Prune, workspace.PruneInput{Target: r.target, Head: r.newest()})
	require.NoError(t, err)
	require.Positive(t, pruned.Bytes)
	require.Less(t, r.bytes(0), before)
	require.Equal(t, r.bytes(0), r.bytes(1))
	r.holds(kept...)
	r.check()
	for store := range r.stores { // from either store alone
		r.stores[1-store].Inject(faulty.Rule{Op: faulty.Get, Match: func(key string) bool { return strings.Contains(key, "/data/") }, Kind: faulty.Error, Err: errors.New("away")})
		repository, err := r.node.repository(t.Context(), id, r.sealed.Password)
		require.NoError(t, err)
		for i, snapshotID := range kept {
			to := filepath.Join(t.TempDir(), "restored")
			_, err := repository.Restore(t.Context(), snapshotID, to, snapshot.RestoreOptions{})
			require.NoError(t, err)
			require.FileExists(t, filepath.Join(to, "notes.txt"))
			if i == len(kept)-1 {
				text, err := os.ReadFile(filepath.Join(to, "notes.txt"))
				require.NoError(t, err)
				require.Equal(t, "instance 2, version 7\n", string(text))
			}
		}
		require.NoError(t, repository.Close())
		r.stores[1-store].Clear()
	}

	r.fleet(nil).states[workspace.WorkflowID("atlas")] = workspace.State{ID: id, Name: "atlas", Token: 2, Head: &workspace.Commit{Snapshot: r.newest()}}
	listed, err := run(r.rig, r.control.ListSnapshots, workspace.SnapshotsInput{Name: "atlas"})
	require.NoError(t, err)
	var shown []string
	for _, line := range listed.Snapshots {
		shown = append(shown, line.Snapshot)
	}
	require.ElementsMatch(t, kept, shown, "what was forgotten is not listed")
}

// A snapshot that is only where nobody can look now, or that nobody can read, was not forgotten, and a person who looks for it
// is not told so.
func TestWhatCannotBeSeenIsListed(t *testing.T) {
	for name, hide := range map[string]func(t *testing.T, r *retained){
		"its store cannot be listed": func(t *testing.T, r *retained) {
			require.NoError(t, os.Remove(r.path(0, workspace.RepositoryPrefix(id)+"/snapshots/"+r.snapshots[0])))
			r.stores[1].Inject(faulty.Rule{Op: faulty.List, Match: func(key string) bool { return strings.Contains(key, "/snapshots/") }, Kind: faulty.Error, Err: errors.New("away")})
		},
		"it is damaged": func(t *testing.T, r *retained) {
			for store := range r.dirs {
				path := r.path(store, workspace.RepositoryPrefix(id)+"/snapshots/"+r.snapshots[0])
				require.NoError(t, os.Remove(path))
				require.NoError(t, os.WriteFile(path, []byte("what is left of it after the disk failed"), 0o644))
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRetained(t)
			r.timed(3)
			r.fleet(nil).states[workspace.WorkflowID("atlas")] = workspace.State{ID: id, Name: "atlas", Token: 1, Head: &workspace.Commit{Snapshot: r.newest()}}
			hide(t, r)
			listed, err := run(r.rig, r.control.ListSnapshots, workspace.SnapshotsInput{Name: "atlas"})
			require.NoError(t, err)
			var shown []string
			for _, line := range listed.Snapshots {
				shown = append(shown, line.Snapshot)
			}
			require.Equal(t, r.snapshots, shown)
			require.Len(t, listed.Notes, 1)
			require.Contains(t, listed.Notes[0], "not all that the stores hold could be seen")
		})
	}
}

// An instance that ended without a final snapshot, because its node was lost, and that was gone on without from an older
// version, because the store with its newest was away then: what a timer made of it last is all that is left of its work.
func TestForgetKeepsWhatAnInstanceEndedWith(t *testing.T) {
	r := newRetained(t)
	r.timed(4)
	base, last := r.snapshots[1], r.newest()
	r.goBack(base)
	r.timed(3)
	result, err := r.keepLast(1)
	require.NoError(t, err)
	require.Equal(t, workspace.ForgetResult{Forgotten: 4, Kept: 3}, result)
	r.holds(base, last, r.newest())
}

// Invariants 3 and 7: while anything is not as it should be, nothing is forgotten and nothing is pruned, by its own reason.
func TestNothingIsForgottenUnless(t *testing.T) {
	for name, test := range map[string]struct {
		violate func(t *testing.T, r *retained)
		kind    workspace.ErrorType // empty: it passes, and is tried again
		says    string
		prune   bool // it keeps a prune from being done, too
	}{
		"a store is away": {violate: func(_ *testing.T, r *retained) { away(r.stores[1]) }, prune: true},
		"a store's catalog is away": {violate: func(_ *testing.T, r *retained) {
			r.stores[1].Inject(faulty.Rule{Match: func(key string) bool { return strings.HasPrefix(key, "catalog/") }, Kind: faulty.Error, Err: errors.New("away")})
		}, says: "nothing is removed", prune: true},
		"a store's snapshots cannot be listed": {violate: func(_ *testing.T, r *retained) {
			r.stores[0].Inject(faulty.Rule{Op: faulty.List, Match: func(key string) bool { return strings.Contains(key, "/snapshots/") }, Kind: faulty.Error, Err: errors.New("away")})
		}, prune: true},
		"the stores hold different commits": {violate: func(t *testing.T, r *retained) {
			r.recommit(1, 1, func(c *workspace.Commit) { c.Kind, c.Timed = "final", false })
		}, kind: workspace.ErrorConflict, says: "nothing is removed"},
		"the stores hold different heads": {violate: func(t *testing.T, r *retained) {
			r.recommit(0, 5, func(c *workspace.Commit) { c.Snapshot = r.snapshots[0] })
		}, kind: workspace.ErrorConflict, says: "nothing is removed", prune: true},
		"another instance is recorded": {violate: func(t *testing.T, r *retained) { r.record(2, r.newest()) },
			kind: workspace.ErrorStaleToken, says: "nothing is removed", prune: true},
		"another instance is recorded on one store": {violate: func(t *testing.T, r *retained) {
			require.NoError(t, newCatalogOf(r.stores[1]).RecordInstance(t.Context(), workspace.InstanceRecord{WorkspaceID: id, Name: "atlas", Owner: "ada", Token: 2, Node: "node-2", Base: r.newest()}))
		}, kind: workspace.ErrorStaleToken, says: "nothing is removed", prune: true},
		"the stores know a newer version": {violate: func(_ *testing.T, r *retained) {
			r.make(true, nil)
		}, kind: workspace.ErrorConflict, says: "nothing is removed", prune: true},
		"the lease is gone": {violate: func(_ *testing.T, r *retained) { r.pass(7 * time.Second) }, says: ErrNoLease.Error(), prune: true},
		"a store lacks a pack of the newest version": {violate: func(t *testing.T, r *retained) {
			require.NoError(t, os.RemoveAll(r.path(1, workspace.RepositoryPrefix(id)+"/data")))
		}, kind: workspace.ErrorNotStored, says: "nothing is forgotten: not every store holds"},
		"no store has a pack of the newest version": {violate: func(t *testing.T, r *retained) {
			for store := range r.dirs {
				require.NoError(t, os.RemoveAll(r.path(store, workspace.RepositoryPrefix(id)+"/data")))
				require.NoError(t, os.MkdirAll(r.path(store, workspace.RepositoryPrefix(id)+"/data"), 0o755))
			}
		}, kind: workspace.ErrorNotStored, says: "verifying"},
		"another program works on the repository": {violate: func(t *testing.T, r *retained) {
			r.lock()
		}, says: "locked by another program", prune: true},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRetained(t)
			r.timed(5)
			test.violate(t, r)
			before, packs := [][]string{r.on(0), r.on(1)}, r.bytes(0)
			judge := func(err error) {
				t.Helper()
				if test.kind == "" {
					transient(t, err)
				} else {
					typed(t, err, test.kind)
				}
				require.ErrorContains(t, err, test.says)
				require.Equal(t, before, [][]string{r.on(0), r.on(1)})
				require.Equal(t, packs, r.bytes(0))
			}
			_, err := r.keepLast(1)
			judge(err)
			if test.prune {
				require.NoError(t, os.Remove(r.path(0, workspace.RepositoryPrefix(id)+"/snapshots/"+r.snapshots[1])))
				require.NoError(t, os.Remove(r.path(1, workspace.RepositoryPrefix(id)+"/snapshots/"+r.snapshots[1])))
				before = [][]string{r.on(0), r.on(1)}
				_, err := run(r.rig, r.node.Prune, workspace.PruneInput{Target: r.target, Head: r.newest()})
				judge(err)
			}
		})
	}
}

// Invariant 7: the lease is asked for before each removal.
func TestForgetStopsWithoutALease(t *testing.T) {
	r := newRetained(t)
	r.timed(6)
	r.atRemoval(2, func() { r.pass(7 * time.Second) })
	_, err := r.keepLast(1)
	transient(t, err)
	require.ErrorContains(t, err, ErrNoLease.Error())
	require.Len(t, r.on(0), 4)
	require.Len(t, r.on(1), 4)
	require.Contains(t, r.on(0), r.newest())
	r.rig.node.Lease.renew(1, r.now)
	result, err := r.keepLast(1)
	require.NoError(t, err)
	require.Equal(t, workspace.ForgetResult{Forgotten: 3, Kept: 1}, result)
	r.holds(r.newest())
}

// A command that ends it is heard between two removals: what waits for the lock on the node does not wait for all of them.
func TestForgetIsCutBetweenRemovals(t *testing.T) {
	r := newRetained(t)
	r.timed(6)
	_, err := run(r.rig, func(ctx context.Context, input workspace.ForgetInput) (workspace.ForgetResult, error) {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		r.atRemoval(2, cancel)
		return r.node.Forget(ctx, input)
	}, workspace.ForgetInput{Target: r.target, Retention: workspace.Retention{Last: 1}, Head: r.newest()})
	require.ErrorContains(t, err, context.Canceled.Error())
	for store := range r.dirs {
		require.GreaterOrEqual(t, len(r.on(store)), 4, "it went on")
		require.Contains(t, r.on(store), r.newest())
	}
	r.stores[1].Clear()
	_, err = r.keepLast(1)
	require.NoError(t, err, "it holds no lock, and is gone on with")
	r.holds(r.newest())
}

// Invariant 7: whether a newer instance is recorded is asked again after every few removals.
func TestForgetStopsForANewerInstance(t *testing.T) {
	r := newRetained(t)
	r.timed(askEvery + 6)
	r.atRemoval(3, func() {
		require.NoError(t, catalog.New(r.plain, storage.PolicyAll).RecordInstance(t.Context(), workspace.InstanceRecord{
			WorkspaceID: id, Name: "atlas", Owner: "ada", Token: 2, Node: "node-2", Base: r.newest(),
		}))
	})
	_, err := r.keepLast(1)
	typed(t, err, workspace.ErrorStaleToken)
	require.Len(t, r.on(0), 6, "it goes on to the next look at most")
	require.Contains(t, r.on(1), r.newest())
}

// A removal that one store did not hear of is gone on with.
func TestForgetAfterHalfARemoval(t *testing.T) {
	r := newRetained(t)
	r.timed(4)
	r.stores[1].Inject(faulty.Rule{Op: faulty.Delete, Match: func(key string) bool { return strings.Contains(key, "/snapshots/") }, Kind: faulty.Error, Err: errors.New("away")})
	_, err := r.keepLast(1)
	transient(t, err)
	require.Len(t, r.on(0), 3)
	require.Len(t, r.on(1), 4)
	r.stores[1].Clear()
	result, err := r.keepLast(1)
	require.NoError(t, err)
	require.Equal(t, workspace.ForgetResult{Forgotten: 3, Kept: 1}, result)
	r.holds(r.newest())
}

// A store that was away and lacks commits gets them first; it does not keep snapshots from being forgotten until the
// workspace is stopped.
func TestForgetMendsALateCatalog(t *testing.T) {
	r := newRetained(t)
	r.timed(4)
	for _, sequence := range []int{2, 4} {
		require.NoError(t, os.Remove(r.commitPath(1, sequence)))
	}
	result, err := r.keepLast(1)
	require.NoError(t, err)
	require.Equal(t, workspace.ForgetResult{Forgotten: 3, Kept: 1}, result)
	require.FileExists(t, r.commitPath(1, 2))
	r.holds(r.newest())
}

// A clock that was wrong makes a snapshot the newest by its time for ever. It stays, and keeps no other from going.
func TestForgetWithAClockThatWasWrong(t *testing.T) {
	r := newRetained(t)
	r.timed(2)
	repository, err := r.node.repository(t.Context(), id, r.sealed.Password)
	require.NoError(t, err)
	r.sequence++
	future, err := repository.Backup(t.Context(), r.content(1), snapshot.BackupOptions{
		Kind: snapshot.Live, Hostname: "holdfast-atlas", Paths: []string{"/workspace"}, Time: time.Now().Add(1000 * time.Hour),
		Tags: tagsOf(workspace.BackupInput{Target: r.target, Sequence: r.sequence, Timed: true}),
	})
	require.NoError(t, err)
	require.NoError(t, repository.Close())
	require.NoError(t, r.catalog.Commit(t.Context(), workspace.Commit{WorkspaceID: id, Token: 1, Sequence: r.sequence, Snapshot: future.Snapshot, Kind: "live", Timed: true}, nil))
	r.timed(2)
	result, err := r.keepLast(1)
	require.NoError(t, err)
	require.Equal(t, workspace.ForgetResult{Forgotten: 3, Kept: 2}, result)
	r.holds(future.Snapshot, r.newest())
}

// What stores lack of the repository because they were away is copied before what nothing needs is removed.
func TestPruneBringsLateStoresUpToDate(t *testing.T) {
	r := newRetained(t)
	r.timed(3)
	_, err := r.keepLast(1)
	require.NoError(t, err)
	require.NoError(t, os.RemoveAll(r.path(1, workspace.RepositoryPrefix(id)+"/data")))
	pruned, err := run(r.rig, r.node.Prune, workspace.PruneInput{Target: r.target, Head: r.newest()})
	require.NoError(t, err)
	require.Positive(t, pruned.Bytes)
	r.holds(r.newest())
	require.Equal(t, r.bytes(0), r.bytes(1))
	r.check()
}

// Invariant 7: a prune asks before it removes what was there, and what it leaves is whole.
func TestPruneStopsWithoutALease(t *testing.T) {
	for _, part := range []string{"/index/", "/data/"} {
		t.Run(part, func(t *testing.T) {
			r := newRetained(t)
			r.timed(3)
			_, err := r.keepLast(1)
			require.NoError(t, err)
			before := r.bytes(0)
			gone := false
			r.stores[0].Inject(faulty.Rule{Op: faulty.List, Match: func(key string) bool {
				// The last look before indexes go is at everything; the one after that, before packs go, at indexes alone.
				if !gone && strings.Contains(key, "/locks/") && r.pruneIs(part) {
					gone = true
					r.pass(7 * time.Second)
				}
				return false
			}, Kind: faulty.Error})
			_, err = run(r.rig, r.node.Prune, workspace.PruneInput{Target: r.target, Head: r.newest()})
			require.True(t, gone)
			transient(t, err)
			require.ErrorContains(t, err, ErrNoLease.Error())
			require.GreaterOrEqual(t, r.bytes(0), before, "no pack was removed")
			r.stores[0].Clear()
			r.holds(r.newest())
			r.rig.node.Lease.renew(1, r.now)
			_, err = run(r.rig, r.node.Prune, workspace.PruneInput{Target: r.target, Head: r.newest()})
			require.NoError(t, err)
			require.Less(t, r.bytes(0), before)
			r.holds(r.newest())
			r.check()
		})
	}
}
