package activities

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"go.temporal.io/sdk/activity"

	"holdfast/activities/pulse"
	"holdfast/snapshot"
	"holdfast/storage"
	"holdfast/workspace"
)

// Backup snapshots an instance's content. It needs no lease: packs are content that nobody follows until a commit
// (invariant 7). What earlier attempts stored, here or on another node, is found in the store and not sent again.
func (n *Node) Backup(ctx context.Context, input workspace.BackupInput) (workspace.BackupResult, error) {
	var result workspace.BackupResult
	progress := &meter{note: n.StorageNote}
	target := input.Target
	around := &hooks{node: n, target: target}
	err := n.locked(ctx, target, progress.options(), func(ctx context.Context) (err error) {
		volumes, err := n.on(target.Volume)
		if err != nil {
			return err
		}
		content, _, err := volumes.usable(target.WorkspaceID, target.Token) // invariant 5
		if err != nil {
			return err
		}
		if input.Kind == string(snapshot.Live) {
			// Within the attempt: what a hook holds still is let go when the attempt ends, however it does.
			defer func() {
				if after := around.run(context.WithoutCancel(ctx), input.PostSnapshot); err == nil {
					err = after // else the first failure decides whether it is tried again
				}
			}()
			if err := around.run(ctx, input.PreSnapshot); err != nil {
				return err
			}
		}
		began := time.Now()
		if input.UnlessStatDigest != "" && input.Kind == string(snapshot.Live) {
			// A look at the directory alone, so that it needs no store, too.
			digest, err := snapshot.StatDigest(ctx, content, nil)
			if err != nil {
				return fmt.Errorf("comparing the content with its last snapshot: %w", err)
			}
			if digest == input.UnlessStatDigest {
				result = workspace.BackupResult{Time: began, Unchanged: true}
				return nil
			}
		}
		if input.Kind == string(snapshot.Final) || input.Kind == string(snapshot.Recovered) {
			// It is of content that nothing writes to, also when the engine's host restarted the container.
			if err := n.halt(ctx, n.labels(target), 10*time.Second); err != nil {
				return err
			}
		}
		repository, err := n.repository(ctx, target.WorkspaceID, target.Sealed)
		if err != nil {
			return err
		}
		defer repository.Close()
		if input.Kind == string(snapshot.Recovered) {
			if found, err := n.savedBefore(ctx, repository, target, content, progress); err != nil || found != nil {
				if found != nil {
					result = *found
				}
				return err
			}
		}
		began = time.Now()
		made, err := repository.Backup(ctx, content, snapshot.BackupOptions{
			Kind:      snapshot.Kind(input.Kind),
			Hostname:  "holdfast-" + target.Name,
			Paths:     []string{"/workspace"},
			Time:      began,
			Tags:      tagsOf(input),
			StateFile: volumes.state(target.WorkspaceID, target.Token),
			Progress:  progress.update,
		})
		if err != nil {
			return fmt.Errorf("backing up: %w", err)
		}
		result = workspace.BackupResult{
			Backup: workspace.Backup{
				Snapshot: made.Snapshot, Files: made.Files, Dirs: made.Dirs, Bytes: made.Bytes,
				BytesUploaded: made.BytesUploaded, PacksUploaded: made.PacksUploaded, Attempts: activity.GetInfo(ctx).Attempt,
			},
			Time: began, StatDigest: made.StatDigest, Owed: topLevel(n.Catalog, target.WorkspaceID, made.Owed),
		}
		result.Backup.Omitted, result.Omissions = omissions(made.Omissions)
		result.Backup.Excluded, result.Excluded = made.Excluded.Total(), excluded(made.Excluded)
		result.Unsettled = changedMeanwhile(made.Omissions)
		return nil
	})
	result.Hooks = around.results
	return result, err
}

// tagsOf are the tags of a snapshot. They say which commit is to name it (commitIn).
func tagsOf(input workspace.BackupInput) []string {
	tags := []string{"holdfast", fmt.Sprintf("%s%d", tagToken, input.Target.Token)}
	if input.Sequence > 0 {
		tags = append(tags, fmt.Sprintf("%s%d", tagSequence, input.Sequence))
	}
	if input.Timed {
		tags = append(tags, tagTimed)
	}
	return tags
}

// omissions counts what keeps content from being removed and carries the first of it. A socket has no content that
// could be lost: it is in the snapshot's list, and blocks nothing (docs/decisions/0003-sockets.md).
func omissions(found []snapshot.Omission) (int64, []workspace.Omission) {
	var count int64
	var first []workspace.Omission
	for _, omission := range found {
		if omission.Kind == snapshot.OmissionUnsupported {
			continue
		}
		count++
		if len(first) < workspace.MaxOmissions {
			first = append(first, workspace.Omission{Path: omission.Path, Kind: string(omission.Kind), Reason: omission.Reason})
		}
	}
	return count, first
}

// changedMeanwhile says whether something changed each time that it was read, so that the snapshot may not have it as it is
// although its stat records are the newest.
func changedMeanwhile(found []snapshot.Omission) bool {
	return slices.ContainsFunc(found, func(o snapshot.Omission) bool { return o.Kind == snapshot.OmissionChanged })
}

// excluded is what rules in the content left out, shortened for a message.
func excluded(found *snapshot.Excluded) *workspace.Excluded {
	if found == nil {
		return nil
	}
	result := &workspace.Excluded{Count: found.Count, Problems: found.Problems[:min(len(found.Problems), workspace.MaxExclusions)]}
	for _, exclusion := range found.Paths[:min(len(found.Paths), workspace.MaxExclusions)] {
		result.Paths = append(result.Paths, workspace.Exclusion(exclusion))
	}
	return result
}

// Verify looks, in requests of its own, at every object that a snapshot references (invariant 1). It succeeds when the
// stores that the policy requires hold the snapshot whole, and names those that do not.
func (n *Node) Verify(ctx context.Context, input workspace.VerifyInput) (workspace.VerifyResult, error) {
	var result workspace.VerifyResult
	err := pulse.Run(ctx, n.Beater, pulse.Options{}, func(ctx context.Context) error {
		var err error
		result, err = n.verify(ctx, input.Target, input.Snapshot)
		return err
	})
	return result, classify(err)
}

func (n *Node) verify(ctx context.Context, target workspace.Target, id string) (result workspace.VerifyResult, err error) {
	stores, err := n.Catalog.StoresOf(ctx, target.WorkspaceID)
	if err != nil {
		return result, err
	}
	// The same stores: one that is not looked at must not count as whole.
	repository, err := n.repositoryOn(ctx, stores, target.WorkspaceID, target.Sealed)
	if err != nil {
		return result, err
	}
	defer repository.Close()
	return n.verifyOn(ctx, repository, stores, target.WorkspaceID, id)
}

// verifyOn is verify with a repository that was opened on these stores.
func (n *Node) verifyOn(ctx context.Context, repository *snapshot.Repository, stores []storage.Provider, workspaceID, id string) (workspace.VerifyResult, error) {
	result := workspace.VerifyResult{Why: map[string]string{}}
	failures, err := repository.VerifyStored(ctx, id)
	if errors.Is(err, storage.ErrNotFound) || errors.Is(err, snapshot.ErrNoSnapshot) {
		// Every store answered that it lacks what the look itself has to read. Backing up again mends that, looking again
		// does not.
		return result, permanent(workspace.ErrorNotStored, fmt.Errorf("verifying snapshot %s: %w: %w", id, snapshot.ErrNotStoredWhole, err))
	}
	if err != nil {
		return result, fmt.Errorf("verifying snapshot %s: %w", id, err)
	}
	unreachable := map[string]error{}
	for _, provider := range stores {
		failure, looked := failures[storage.Sub(provider, workspace.RepositoryPrefix(workspaceID)).URL()]
		if !looked {
			failure = errors.New("it was not looked at")
		}
		if failure == nil {
			result.Whole = append(result.Whole, provider.URL())
			continue
		}
		result.Owed = append(result.Owed, provider.URL())
		result.Why[provider.URL()] = failure.Error()
		if !errors.Is(failure, snapshot.ErrNotStoredWhole) {
			unreachable[provider.URL()] = failure
		}
	}
	if len(result.Whole) >= n.Catalog.Policy().Count(len(stores)) {
		return result, nil
	}
	if len(unreachable) > 0 {
		return result, fmt.Errorf("verifying snapshot %s: %w", id, ofStores(ctx, "looking at what is stored of", id, unreachable))
	}
	return result, permanent(workspace.ErrorNotStored, fmt.Errorf("verifying snapshot %s: %w: %v", id, snapshot.ErrNotStoredWhole, result.Why))
}

// ofStores is the error of several stores: what is permanent for one of them does not make the whole permanent while
// another may only be away.
func ofStores(ctx context.Context, doing, what string, causes map[string]error) error {
	return &storage.MirrorError{Doing: doing, Key: what, Causes: causes, Ended: ctx.Err()}
}

// Commit makes a verified snapshot the head (invariants 3 and 7).
func (n *Node) Commit(ctx context.Context, input workspace.CommitInput) error {
	return classify(pulse.Run(ctx, n.Beater, pulse.Options{}, func(ctx context.Context) error {
		return n.Catalog.Commit(ctx, input.Commit, n.Lease.Check) // invariant 7
	}))
}

// Repair copies what late stores lack of a workspace: the repository's objects as they are, and the catalog's. It
// succeeds when nothing is owed any more.
func (n *Node) Repair(ctx context.Context, input workspace.RepairInput) (workspace.RepairResult, error) {
	var result workspace.RepairResult
	progress := &meter{note: n.StorageNote}
	err := pulse.Run(ctx, n.Beater, progress.options(), func(ctx context.Context) error {
		copied, err := n.repairRepository(ctx, input.Target.WorkspaceID, progress)
		if err != nil {
			return err
		}
		described, err := n.Catalog.Repair(ctx, input.Target.WorkspaceID, input.Target.Name)
		if err != nil {
			return fmt.Errorf("bringing the catalog of late stores up to date: %w", err)
		}
		for _, report := range []storage.RepairReport{copied, described} {
			for provider, objects := range report.Copied {
				result.Objects += int64(objects)
				result.Bytes += report.Bytes[provider]
			}
		}
		return nil
	})
	return result, classify(err)
}

// repairRepository copies what late stores lack of a workspace's repository.
func (n *Node) repairRepository(ctx context.Context, id string, progress *meter) (storage.RepairReport, error) {
	var none storage.RepairReport
	stores, err := n.Catalog.StoresOf(ctx, id)
	if err != nil {
		return none, err
	}
	mirror, err := repositoryMirror(n.Catalog.Policy(), stores, id, n.Stores)
	if err != nil {
		return none, err
	}
	defer mirror.Close()
	copied, err := snapshot.RepairMirror(ctx, mirror, func(p storage.RepairProgress) {
		progress.update(snapshot.Progress{Files: int64(p.Done), TotalFiles: int64(p.Total), BytesUploaded: p.Bytes})
	})
	if err != nil {
		return none, fmt.Errorf("bringing late stores up to date: %w", err)
	}
	return copied, nil
}

// RemoveInstance removes an instance's container and content, after its own look that invariant 1 holds at this moment.
// One that is gone already is a success (invariant 8).
func (n *Node) RemoveInstance(ctx context.Context, input workspace.RemoveInstanceInput) error {
	target := input.Target
	return n.locked(ctx, target, pulse.Options{}, func(ctx context.Context) error {
		if err := n.Lease.Check(); err != nil { // invariant 7
			return err
		}
		volumes, err := n.on(target.Volume) // invariant 5: what is not mounted is not gone
		if err != nil {
			return err
		}
		content, _, err := volumes.usable(target.WorkspaceID, target.Token) // invariant 5
		if errors.Is(err, errNoContent) {
			if _, again := volumes.identify(target.WorkspaceID, target.Token); errors.Is(again, errNoContent) {
				return n.dismiss(ctx, n.labels(target)) // it was removed before
			}
		}
		if err != nil {
			return err
		}
		lets := n.committed
		if input.Recovered {
			lets = n.saved
		}
		if err := lets(ctx, input); err != nil {
			return err
		}
		if err := n.halt(ctx, n.labels(target), 10*time.Second); err != nil {
			return err
		}
		// invariant 2: every store of the policy also has the commit, without which a snapshot that it holds whole is nobody's head.
		if _, err := n.Catalog.Repair(ctx, target.WorkspaceID, target.Name); err != nil {
			return fmt.Errorf("the content stays: bringing the catalog of late stores up to date: %w", err)
		}
		// invariant 1: every referenced object is on every store that the newest record names (after the repair
		// of the catalog no store has a newer one), seen in a request after the writing …
		verified, err := n.verify(ctx, target, input.Snapshot)
		if err != nil {
			return err
		}
		if len(verified.Owed) > 0 {
			return permanent(workspace.ErrorNotStored, fmt.Errorf("the content stays: not every store holds snapshot %s whole: %v", input.Snapshot, verified.Why))
		}
		// … and the content is still exactly what was snapshotted, by the same rules: what they leave out is the person's to
		// lose, a change of the rules is not.
		digest, err := snapshot.StatDigest(ctx, content, nil)
		if err != nil {
			return fmt.Errorf("comparing the content with its snapshot: %w", err)
		}
		if digest != input.StatDigest {
			return permanent(workspace.ErrorContentChanged, errors.New("the content was changed after it was snapshotted: it stays"))
		}
		if err := n.Lease.Check(); err != nil { // invariant 7: the looks above may have taken long
			return err
		}
		if err := n.dismiss(ctx, n.labels(target)); err != nil {
			return err
		}
		return volumes.trash(ctx, target.WorkspaceID, target.Token)
	})
}

// committed checks that a final snapshot of the content, without omissions unless a person accepted them, is committed
// on the stores that the policy requires (invariant 1).
func (n *Node) committed(ctx context.Context, input workspace.RemoveInstanceInput) error {
	commits, holders, failed := n.Catalog.CommitsOf(ctx, input.Target.WorkspaceID, input.Target.Token)
	i := slices.IndexFunc(commits, func(c workspace.Commit) bool {
		return c.Token == input.Target.Token && c.Snapshot == input.Snapshot && c.Kind == string(snapshot.Final) && c.StatDigest == input.StatDigest
	})
	required := n.Catalog.Policy().Count(len(n.Catalog.Providers()))
	switch {
	case i >= 0 && commits[i].Omitted > 0 && !input.AcceptedOmissions:
		return permanent(workspace.ErrorOmissions, fmt.Errorf("the content stays: snapshot %s does not hold %d things as they were", input.Snapshot, commits[i].Omitted))
	case i >= 0 && len(holders[input.Snapshot]) >= required:
		return nil
	case len(failed) > 0:
		return ofStores(ctx, "looking for the commit of", input.Snapshot, failed)
	default:
		return permanent(workspace.ErrorNotStored, fmt.Errorf("the content stays: no final snapshot %s of it is committed", input.Snapshot))
	}
}

// DiscardInstance removes an instance that never ran. One that may have run is removed only when a person said so, by
// the workspace's name (invariant 1).
func (n *Node) DiscardInstance(ctx context.Context, input workspace.DiscardInstanceInput) error {
	target := input.Target
	return n.locked(ctx, target, pulse.Options{}, func(ctx context.Context) error {
		if err := n.Lease.Check(); err != nil { // invariant 7
			return err
		}
		volumes, err := n.on(target.Volume)
		if err != nil {
			return err
		}
		found, err := volumes.identify(target.WorkspaceID, target.Token)
		switch {
		case errors.Is(err, errNoContent):
			return n.dismiss(ctx, n.labels(target))
		case err != nil:
			return err
		case found.State == contentStarted && (input.DiscardData == "" || input.DiscardData != target.Name):
			return permanent(workspace.ErrorRefused, errors.New("something may have run on this content: it stays"))
		}
		if err := n.dismiss(ctx, n.labels(target)); err != nil {
			return err
		}
		return volumes.trash(ctx, target.WorkspaceID, target.Token)
	})
}
