package activities

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"holdfast/activities/pulse"
	"holdfast/catalog"
	"holdfast/snapshot"
	"holdfast/workspace"
)

// The tags by which a snapshot says which commit is to name it, and that a timer made it. Only that commit makes it one that
// may be forgotten.
const (
	tagToken    = "token:"
	tagSequence = "sequence:"
	tagTimed    = "timed"
)

const (
	// askEvery is after how many removals the stores are asked again whether this instance is still the newest.
	askEvery = 16
	// mostRepacked bounds what one Prune writes anew, in bytes: a minute over a slow link.
	mostRepacked = 256 << 20
)

// Forget forgets those timed snapshots of a running workspace that its retention does not keep: their files alone, and
// nothing of what they hold, which is what Prune is for.
//
// It names each by its id, and only when every store answered and all say the same: this instance is the newest one, the
// newest version is the one that the workflow knows, and that one is whole everywhere. A removal that was cut half-way
// leaves a snapshot on some of the stores: it is listed, and forgotten the next time (invariant 8).
func (n *Node) Forget(ctx context.Context, input workspace.ForgetInput) (workspace.ForgetResult, error) {
	var result workspace.ForgetResult
	err := n.locked(ctx, input.Target, pulse.Options{}, func(ctx context.Context) (err error) {
		result, err = n.forget(ctx, input)
		return err
	})
	return result, err
}

func (n *Node) forget(ctx context.Context, input workspace.ForgetInput) (workspace.ForgetResult, error) {
	var result workspace.ForgetResult
	if err := n.Lease.Check(); err != nil { // invariant 7
		return result, err
	}
	id := input.Target.WorkspaceID
	stores, err := n.Catalog.StoresOf(ctx, id)
	if err != nil {
		return result, err
	}
	repository, err := n.repositoryOn(ctx, stores, id, input.Target.Sealed)
	if err != nil {
		return result, err
	}
	defer repository.Close()
	infos, err := repository.Snapshots(ctx)
	if err != nil {
		return result, fmt.Errorf("listing snapshots: %w", err)
	}
	stored := map[string]bool{}
	for i := range infos {
		stored[infos[i].ID] = true
	}
	history, err := n.agreed(ctx, input.Target, input.Head, commitsOf(infos))
	if err != nil {
		return result, err
	}
	protected := map[string]bool{history.Head: true}
	for _, snapshot := range slices.Concat(history.Bases, input.Protect) {
		protected[snapshot] = true
	}
	ids := input.Retention.Forget(history.Commits, stored, protected)
	for _, commit := range history.Commits {
		if commit.Timed && stored[commit.Snapshot] {
			result.Kept++
		}
	}
	if len(ids) == 0 {
		return result, nil
	}
	// What stays must be there: a snapshot is not to be had back.
	verified, err := n.verifyOn(ctx, repository, stores, id, history.Head)
	if err != nil {
		return result, err
	}
	if len(verified.Owed) > 0 {
		return result, permanent(workspace.ErrorNotStored, fmt.Errorf("nothing is forgotten: not every store holds the newest snapshot %s whole: %v", history.Head, verified.Why))
	}
	report, err := repository.Forget(ctx, snapshot.ForgetOptions{
		Snapshots: ids, Protect: slices.Sorted(maps.Keys(protected)),
		// One that is the newest by a clock that was wrong stays, and keeps no other from going.
		LeaveProtected: true,
		Allowed:        n.allowed(input.Target, input.Head, askEvery),
	})
	if report != nil {
		result.Forgotten = report.Removed
		result.Kept -= report.Removed
	}
	return result, err
}

// commitsOf are the commits that decide over snapshots: those that are to name what a timer made, and of each instance of which
// there is any of that the newest, which says what the instance ended with.
func commitsOf(infos []snapshot.Info) (keys []catalog.CommitKey) {
	timed, newest := map[uint64]bool{}, map[uint64]uint64{}
	for i := range infos {
		key, ok := commitIn(&infos[i])
		if !ok {
			continue
		}
		newest[key.Token] = max(newest[key.Token], key.Sequence)
		if slices.Contains(infos[i].Tags, tagTimed) {
			timed[key.Token] = true
			keys = append(keys, key)
		}
	}
	for token := range timed {
		keys = append(keys, catalog.CommitKey{Token: token, Sequence: newest[token]})
	}
	return keys
}

// commitIn is which commit a snapshot says is to name it; ok is false for one that says nothing of that.
func commitIn(info *snapshot.Info) (key catalog.CommitKey, ok bool) {
	if info.Kind != snapshot.Live && info.Kind != snapshot.Final {
		return key, false
	}
	for _, tag := range info.Tags {
		if digits, found := strings.CutPrefix(tag, tagToken); found {
			key.Token, _ = strconv.ParseUint(digits, 10, 64)
		} else if digits, found := strings.CutPrefix(tag, tagSequence); found {
			key.Sequence, _ = strconv.ParseUint(digits, 10, 64)
		}
	}
	return key, key.Token > 0 && key.Sequence > 0
}

// agreed reads the history that decides over snapshots: every store of the policy answers, all say the same, and it is what
// the workflow knows too (invariants 3 and 7). What a store lacks of the catalog because it was away is copied first.
func (n *Node) agreed(ctx context.Context, target workspace.Target, head string, keys []catalog.CommitKey) (catalog.History, error) {
	history, err := n.Catalog.Alike(ctx, target.WorkspaceID, keys)
	if errors.Is(err, catalog.ErrDiffer) {
		if _, err := n.Catalog.Repair(ctx, target.WorkspaceID, target.Name); err != nil {
			return history, fmt.Errorf("nothing is removed: bringing the catalog of late stores up to date: %w", err)
		}
		history, err = n.Catalog.Alike(ctx, target.WorkspaceID, keys)
	}
	switch {
	case errors.Is(err, catalog.ErrDiffer):
		return history, permanent(workspace.ErrorConflict, fmt.Errorf("nothing is removed: %w", err))
	case err != nil:
		return history, fmt.Errorf("nothing is removed: %w", err)
	case history.Token != target.Token:
		return history, fmt.Errorf("nothing is removed: instance %d is recorded, and this one is %d: %w", history.Token, target.Token, catalog.ErrStale)
	case history.Head != head || head == "":
		return history, permanent(workspace.ErrorConflict, fmt.Errorf("nothing is removed: the stores' newest version is snapshot %q, and the workspace knows %q", history.Head, head))
	}
	return history, nil
}

// allowed says before each removal whether this node may go on: the lease is live (invariant 7), and, before the first of
// every so many, the stores still agree that this is the newest instance.
func (n *Node) allowed(target workspace.Target, head string, every int) func(context.Context) error {
	removals := 0
	return func(ctx context.Context) error {
		if removals%every == 0 {
			if _, err := n.agreed(ctx, target, head, nil); err != nil {
				return err
			}
		}
		removals++
		return n.Lease.Check() // after the looks, which may have taken long
	}
}

// Prune removes what no snapshot of a running workspace needs, and what it writes anew for that is bounded. It is under the
// same conditions as Forget. What stores that were away lack of the repository is copied first: without that nothing can be
// removed, because what is needed must be whole on each of them.
func (n *Node) Prune(ctx context.Context, input workspace.PruneInput) (workspace.PruneResult, error) {
	var result workspace.PruneResult
	progress := &meter{note: n.StorageNote}
	target := input.Target
	err := n.locked(ctx, target, progress.options(), func(ctx context.Context) error {
		if err := n.Lease.Check(); err != nil { // invariant 7
			return err
		}
		if _, err := n.agreed(ctx, target, input.Head, nil); err != nil {
			return err
		}
		if _, err := n.repairRepository(ctx, target.WorkspaceID, progress); err != nil {
			return err
		}
		repository, err := n.repository(ctx, target.WorkspaceID, target.Sealed)
		if err != nil {
			return err
		}
		defer repository.Close()
		report, err := repository.Prune(ctx, snapshot.PruneOptions{
			MaxRepack: mostRepacked, Grace: n.PruneGrace, Progress: progress.update,
			Allowed: n.allowed(target, input.Head, 1),
		})
		if report != nil {
			result.Bytes = report.BytesRemoved - report.BytesWritten
		}
		return err
	})
	return result, err
}
