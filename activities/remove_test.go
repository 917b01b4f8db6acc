package activities

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"holdfast/engine"
	"holdfast/storage"
	"holdfast/storage/faulty"
	"holdfast/workspace"
)

// recommit replaces the commit of instance 1 by a changed one on the given stores, and removes it from the others.
func recommit(t *testing.T, r *rig, change func(*workspace.Commit), stores ...int) {
	t.Helper()
	commits, _, _ := r.catalog.Commits(t.Context(), id)
	require.Len(t, commits, 1)
	for _, inner := range r.inner {
		for _, key := range inner.Keys() {
			if strings.Contains(key, "/commits/") {
				require.NoError(t, inner.Delete(t.Context(), key))
			}
		}
	}
	if change == nil {
		return
	}
	change(&commits[0])
	for _, i := range stores {
		one := newCatalogOf(r.stores[i])
		require.NoError(t, one.Commit(t.Context(), commits[0], nil))
	}
}

// invariant 1 (A1): each violation alone keeps the content and the container's removal undone, and is told by its type.
// Every check in RemoveInstance has a case here that fails without it.
func TestRemovalIsRefused(t *testing.T) {
	both := []int{0, 1}
	nothing := func(*workspace.Commit) {}
	for name, test := range map[string]struct {
		policy  storage.Policy
		violate func(t *testing.T, r *rig, input *workspace.RemoveInstanceInput)
		kind    workspace.ErrorType // empty: it passes, and is tried again
	}{
		"no commit": {violate: func(t *testing.T, r *rig, _ *workspace.RemoveInstanceInput) {
			recommit(t, r, nil)
		}, kind: workspace.ErrorNotStored},
		"a live commit only": {violate: func(t *testing.T, r *rig, _ *workspace.RemoveInstanceInput) {
			recommit(t, r, func(c *workspace.Commit) { c.Kind = "live" }, both...)
		}, kind: workspace.ErrorNotStored},
		"a commit of another snapshot": {violate: func(t *testing.T, r *rig, _ *workspace.RemoveInstanceInput) {
			recommit(t, r, func(c *workspace.Commit) { c.Snapshot = strings.Repeat("0", 64) }, both...)
		}, kind: workspace.ErrorNotStored},
		"a final commit of another snapshot beside a live one of this": {violate: func(t *testing.T, r *rig, input *workspace.RemoveInstanceInput) {
			recommit(t, r, func(c *workspace.Commit) { c.Snapshot = strings.Repeat("0", 64) }, both...)
			require.NoError(t, r.catalog.Commit(t.Context(), workspace.Commit{WorkspaceID: id, Token: 1, Sequence: 2, Snapshot: input.Snapshot, Kind: "live"}, nil))
		}, kind: workspace.ErrorNotStored},
		"a commit of other content": {violate: func(t *testing.T, r *rig, _ *workspace.RemoveInstanceInput) {
			recommit(t, r, func(c *workspace.Commit) { c.StatDigest = "other" }, both...)
		}, kind: workspace.ErrorNotStored},
		"a commit of another token": {violate: func(t *testing.T, r *rig, input *workspace.RemoveInstanceInput) {
			r.record(2, input.Snapshot)
			recommit(t, r, func(c *workspace.Commit) { c.Token = 2 }, both...)
		}, kind: workspace.ErrorNotStored},
		"a commit on too few stores": {policy: storage.PolicyAll, violate: func(t *testing.T, r *rig, _ *workspace.RemoveInstanceInput) {
			recommit(t, r, nothing, 0)
		}, kind: workspace.ErrorNotStored},
		"the store with the commit is away": {violate: func(t *testing.T, r *rig, _ *workspace.RemoveInstanceInput) {
			recommit(t, r, nothing, 1)
			r.stores[1].Inject(faulty.Rule{Op: faulty.List, Match: func(key string) bool { return strings.HasPrefix(key, "catalog/") }, Kind: faulty.Error})
		}},
		"omissions that nobody accepted": {violate: func(t *testing.T, r *rig, _ *workspace.RemoveInstanceInput) {
			recommit(t, r, func(c *workspace.Commit) { c.Omitted = 1 }, both...)
		}, kind: workspace.ErrorOmissions},
		"a pack missing on one store": {violate: func(t *testing.T, r *rig, _ *workspace.RemoveInstanceInput) {
			require.NoError(t, r.inner[1].Delete(t.Context(), packsOf(r, 1)[0]))
		}, kind: workspace.ErrorNotStored},
		"a pack cut short on one store": {violate: func(t *testing.T, r *rig, _ *workspace.RemoveInstanceInput) {
			r.inner[0].Corrupt(packsOf(r, 0)[0], func(data []byte) []byte { return data[:len(data)-1] })
		}, kind: workspace.ErrorNotStored},
		"a pack with a wrong bit on one store": {violate: func(t *testing.T, r *rig, _ *workspace.RemoveInstanceInput) {
			r.inner[1].Corrupt(packsOf(r, 1)[0], func(data []byte) []byte { data[len(data)/2] ^= 1; return data })
		}, kind: workspace.ErrorNotStored},
		"a pack missing on all stores": {violate: func(t *testing.T, r *rig, _ *workspace.RemoveInstanceInput) {
			for i := range r.inner {
				require.NoError(t, r.inner[i].Delete(t.Context(), packsOf(r, i)[0]))
			}
		}, kind: workspace.ErrorNotStored},
		"a store that cannot be looked at": {violate: func(_ *testing.T, r *rig, _ *workspace.RemoveInstanceInput) {
			cannotLook(r.stores[1])
		}, kind: workspace.ErrorNotStored},
		"a file written after the snapshot": {violate: func(_ *testing.T, r *rig, _ *workspace.RemoveInstanceInput) {
			r.write(1, "late", "x")
		}, kind: workspace.ErrorContentChanged},
		"a mode changed after the snapshot": {violate: func(t *testing.T, r *rig, _ *workspace.RemoveInstanceInput) {
			require.NoError(t, os.Chmod(filepath.Join(r.content(1), "notes.txt"), 0o600))
		}, kind: workspace.ErrorContentChanged},
		"content put back with its old times": {violate: func(t *testing.T, r *rig, _ *workspace.RemoveInstanceInput) {
			path := filepath.Join(r.content(1), "notes.txt")
			info, err := os.Stat(path)
			require.NoError(t, err)
			require.NoError(t, os.WriteFile(path, []byte("what a person WROTE\n"), 0o644))
			require.NoError(t, os.Chtimes(path, info.ModTime(), info.ModTime()))
		}, kind: workspace.ErrorContentChanged},
		"something that comes up again and writes": {violate: func(t *testing.T, r *rig, _ *workspace.RemoveInstanceInput) {
			// The engine's host restarted it: it is stopped before the content is compared, and what it wrote is seen.
			name := r.engine.add("node-1", id, 1, engine.StatusRunning)
			r.engine.before = func(call, what string) {
				if call == "stop" && what == name && r.engine.status(name) == engine.StatusRunning {
					r.write(1, "last words", "x")
				}
			}
		}, kind: workspace.ErrorContentChanged},
		"a lease that is gone": {violate: func(_ *testing.T, r *rig, _ *workspace.RemoveInstanceInput) {
			r.pass(7 * time.Second)
		}},
		"a lease that goes while it looks": {violate: func(_ *testing.T, r *rig, _ *workspace.RemoveInstanceInput) {
			r.engine.before = func(call, _ string) {
				if call == "list" && r.now.steady == 0 {
					r.pass(7 * time.Second)
				}
			}
		}},
		"an identity of another workspace": {violate: func(t *testing.T, r *rig, _ *workspace.RemoveInstanceInput) {
			foreign(t, r, 1)
		}, kind: workspace.ErrorContentForeign},
		"a link in the content's place": {violate: func(t *testing.T, r *rig, _ *workspace.RemoveInstanceInput) {
			require.NoError(t, os.Rename(r.content(1), r.content(1)+".real"))
			require.NoError(t, os.Symlink(r.content(1)+".real", r.content(1)))
		}, kind: workspace.ErrorContentMissing},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			policy := storage.PolicyAny
			if test.policy != (storage.Policy{}) || strings.Contains(name, "too few") {
				policy = storage.PolicyAll
			}
			r := newRig(t, policy)
			input := r.stopped(1)
			container := "holdfast-" + workspace.InstanceName(id, 1)
			test.violate(t, r, &input)
			for range 2 {
				err := runPlain(r, r.node.RemoveInstance, input)
				if test.kind == "" {
					transient(t, err)
				} else {
					typed(t, err, test.kind)
				}
				require.FileExists(t, filepath.Join(r.content(1), "notes.txt"))
				require.FileExists(t, filepath.Join(r.node.Volumes.dir(id, 1), "identity.json"))
				require.Contains(t, r.engine.names(), container)
			}
		})
	}
}

// invariants 6 and 8: a removal removes exactly its instance, once, and again finds nothing to do.
func TestRemoval(t *testing.T) {
	r := newRig(t, storage.PolicyAny)
	input := r.stopped(1)
	r.record(2, input.Snapshot)
	_, err := run(r, r.node.PrepareContent, workspace.PrepareContentInput{Target: r.target(2), Snapshot: input.Snapshot})
	require.NoError(t, err)
	_, err = run(r, r.node.StartInstance, workspace.StartInstanceInput{Target: r.target(2)})
	require.NoError(t, err)
	r.record(11, input.Snapshot)
	second := "holdfast-" + workspace.InstanceName(id, 2)
	for range 2 {
		require.NoError(t, runPlain(r, r.node.RemoveInstance, input))
		require.NoDirExists(t, r.node.Volumes.dir(id, 1))
		require.Equal(t, engine.StatusRunning, r.engine.status(second))
		require.Equal(t, "what a person wrote\n", r.read(2, "notes.txt"))
	}
	left, err := os.ReadDir(filepath.Join(r.root, "trash"))
	require.NoError(t, err)
	require.Empty(t, left)

	// It was cut after the rename: the container that was still there goes too.
	name := r.engine.add("node-1", id, 1, engine.StatusRunning)
	require.NoError(t, runPlain(r, r.node.RemoveInstance, input))
	require.False(t, slices.Contains(r.engine.names(), name))
}

// A14: with the person's word a snapshot with omissions lets its content go; nothing else does.
func TestRemovalWithAcceptedOmissions(t *testing.T) {
	r := newRig(t, storage.PolicyAny)
	input := r.stopped(1)
	recommit(t, r, func(c *workspace.Commit) { c.Omitted = 1 }, 0, 1)
	input.AcceptedOmissions = true
	r.write(1, "late", "x")
	typed(t, runPlain(r, r.node.RemoveInstance, input), workspace.ErrorContentChanged)
	require.NoError(t, os.Remove(filepath.Join(r.content(1), "late")))
	typed(t, runPlain(r, r.node.RemoveInstance, input), workspace.ErrorContentChanged) // the directory was written to
	made, err := run(r, r.node.Backup, workspace.BackupInput{Target: input.Target, Kind: "final"})
	require.NoError(t, err)
	commit := commitOf(input.Target, made)
	commit.Sequence, commit.Omitted = 2, 1
	require.NoError(t, runPlain(r, r.node.Commit, workspace.CommitInput{Target: input.Target, Commit: commit}))
	input.Snapshot, input.StatDigest = made.Backup.Snapshot, made.StatDigest
	require.NoError(t, runPlain(r, r.node.RemoveInstance, input))
	require.NoDirExists(t, r.content(1))
}

// invariant 7: without a lease nothing is begun, not even the stopping of what runs.
func TestRemovalWithoutALeaseTouchesNothing(t *testing.T) {
	r := newRig(t, storage.PolicyAny)
	input := r.stopped(1)
	name := r.engine.add("node-1", id, 1, engine.StatusRunning)
	r.pass(7 * time.Second)
	transient(t, runPlain(r, r.node.RemoveInstance, input))
	require.Equal(t, engine.StatusRunning, r.engine.status(name))
}

// A removal that is cancelled while a store hangs removes nothing, at once.
func TestRemovalGivenUp(t *testing.T) {
	r := newRig(t, storage.PolicyAll)
	input := r.stopped(1)
	hangs := make(chan struct{})
	var once sync.Once
	r.stores[0].Inject(faulty.Rule{Op: faulty.List, Kind: faulty.Hang, Match: func(string) bool {
		once.Do(func() { close(hangs) })
		return true
	}})
	err := runPlain(r, func(inner context.Context, input workspace.RemoveInstanceInput) error {
		inner, stop := context.WithCancel(inner)
		go func() {
			<-hangs
			stop()
		}()
		return r.node.RemoveInstance(inner, input)
	}, input)
	require.ErrorContains(t, err, "looking for the commit of", "what it was at when the store hung")
	require.ErrorContains(t, err, context.Canceled.Error())
	require.NotContains(t, err.Error(), context.DeadlineExceeded.Error(), "the store was waited for until its own time was over")
	require.FileExists(t, filepath.Join(r.content(1), "notes.txt"))
}

// Invariant 2: a store that was away only for the catalog has what leads from the workspace's name to its newest version
// before the content goes.
func TestRemovalBringsTheCatalogEverywhere(t *testing.T) {
	r := newRig(t, storage.PolicyAny)
	input := r.stopped(1)
	var keys []string
	require.NoError(t, r.stores[1].List(t.Context(), "catalog/", func(o storage.Object) error {
		if !strings.HasPrefix(o.Key, "catalog/nodes/") {
			keys = append(keys, o.Key)
		}
		return nil
	}))
	require.Len(t, keys, 4, "the name, the password, the record, the commit: %v", keys)
	for _, key := range keys {
		require.NoError(t, r.stores[1].Delete(t.Context(), key))
	}
	require.NoError(t, runPlain(r, r.node.RemoveInstance, input))
	require.NoDirExists(t, r.content(1))
	for _, key := range keys {
		_, err := r.stores[1].Stat(t.Context(), key)
		require.NoError(t, err, key)
	}
}
