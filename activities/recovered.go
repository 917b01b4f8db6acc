package activities

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"go.temporal.io/sdk/activity"

	"holdfast/snapshot"
	"holdfast/workspace"
)

// What an instance that was replaced still had is in a snapshot of the kind recovered, which no commit names (invariant 3). So
// what a commit says of a final snapshot, the snapshot says itself: which instance it is of, the digest of the content that it
// was made of, and what it lacks. Its name is the hash of its file, so that nobody can have changed that.

// savedBefore is the recovered snapshot that exactly this content has already, as a Backup would tell of it; nil when there is
// none, or the stores that the policy requires do not hold it whole. An agent that is killed after it has stored one, and
// before it could say so, does not make another each time (invariant 8).
func (n *Node) savedBefore(ctx context.Context, repository *snapshot.Repository, target workspace.Target, content string, progress *meter) (*workspace.BackupResult, error) {
	infos, err := repository.Snapshots(ctx)
	if err != nil {
		return nil, fmt.Errorf("looking for a recovered snapshot: %w", err)
	}
	infos = slices.DeleteFunc(infos, func(info snapshot.Info) bool { return !isRecovered(&info, target.Token) })
	if len(infos) == 0 {
		return nil, nil
	}
	digest, err := snapshot.StatDigest(ctx, content, nil)
	if err != nil {
		return nil, fmt.Errorf("comparing the content with its recovered snapshot: %w", err)
	}
	for i := range infos {
		if infos[i].StatDigest != digest {
			continue
		}
		omitted, err := repository.Omissions(ctx, infos[i].ID)
		if err != nil {
			return nil, fmt.Errorf("looking at what recovered snapshot %s lacks: %w", infos[i].ID, err)
		}
		if changedMeanwhile(omitted) {
			continue // it may not have the content as it is
		}
		verified, err := n.verify(ctx, target, infos[i].ID)
		if errors.Is(err, snapshot.ErrNotStoredWhole) && ctx.Err() == nil {
			// Its storing was cut: what one store has of it is given to the others.
			if _, err = n.repairRepository(ctx, target.WorkspaceID, progress); err == nil {
				verified, err = n.verify(ctx, target, infos[i].ID)
			}
			if err != nil && ctx.Err() == nil {
				continue // another one is made, which stores what is missing
			}
		}
		if err != nil {
			return nil, err
		}
		result := &workspace.BackupResult{
			Backup: workspace.Backup{
				Snapshot: infos[i].ID, Files: infos[i].Files, Bytes: infos[i].Bytes, Excluded: infos[i].Excluded, Attempts: activity.GetInfo(ctx).Attempt,
			},
			Time: infos[i].Time, StatDigest: digest, Owed: verified.Owed,
		}
		result.Backup.Omitted, result.Omissions = omitsOf(&infos[i], omitted)
		return result, nil
	}
	return nil, nil
}

// isRecovered says whether a snapshot is of what this instance had when it was replaced.
func isRecovered(info *snapshot.Info, token uint64) bool {
	return info.Kind == snapshot.Recovered && slices.Contains(info.Tags, fmt.Sprintf("%s%d", tagToken, token))
}

// omitsOf counts what keeps content from being removed. A list that is longer than the snapshot names is counted as if all of
// the rest did.
func omitsOf(info *snapshot.Info, named []snapshot.Omission) (int64, []workspace.Omission) {
	count, first := omissions(named)
	return count + max(info.Omissions-int64(len(named)), 0), first
}

// saved checks that an instance was replaced, and that a recovered snapshot of exactly its content, without omissions, is
// stored (invariant 1). That every store holds it whole is seen after that.
func (n *Node) saved(ctx context.Context, input workspace.RemoveInstanceInput) error {
	target := input.Target
	// invariant 3: what the newest instance has is the newest content, which only a commit lets go.
	newest, err := n.Catalog.NewestToken(ctx, target.WorkspaceID)
	if err != nil {
		return fmt.Errorf("the content stays: %w", err)
	}
	if newest <= target.Token {
		return permanent(workspace.ErrorRefused, fmt.Errorf("the content stays: no instance after %d is recorded", target.Token))
	}
	repository, err := n.repository(ctx, target.WorkspaceID, target.Sealed)
	if err != nil {
		return err
	}
	defer repository.Close()
	infos, unseen, err := repository.SnapshotsSeen(ctx)
	if err != nil {
		return fmt.Errorf("looking for recovered snapshot %s: %w", input.Snapshot, err)
	}
	i := slices.IndexFunc(infos, func(info snapshot.Info) bool { return info.ID == input.Snapshot })
	switch {
	case i < 0 && unseen != nil:
		return fmt.Errorf("looking for recovered snapshot %s: %w", input.Snapshot, unseen)
	case i < 0:
		return notSaved(input)
	}
	named, err := repository.Omissions(ctx, input.Snapshot)
	if err != nil {
		return fmt.Errorf("looking at what recovered snapshot %s lacks: %w", input.Snapshot, err)
	}
	return letsGo(&infos[i], named, input)
}

func notSaved(input workspace.RemoveInstanceInput) error {
	return permanent(workspace.ErrorNotStored, fmt.Errorf("the content stays: no recovered snapshot %s of it is stored", input.Snapshot))
}

// letsGo says whether a snapshot is a recovered one of exactly this content, which lacks nothing unless a person accepted that.
func letsGo(info *snapshot.Info, named []snapshot.Omission, input workspace.RemoveInstanceInput) error {
	if !isRecovered(info, input.Target.Token) || input.StatDigest == "" || info.StatDigest != input.StatDigest {
		return notSaved(input)
	}
	if omitted, _ := omitsOf(info, named); omitted > 0 && !input.AcceptedOmissions {
		return permanent(workspace.ErrorOmissions, fmt.Errorf("the content stays: snapshot %s does not hold %d things as they were", input.Snapshot, omitted))
	}
	return nil
}
