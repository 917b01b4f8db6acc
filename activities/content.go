package activities

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"github.com/docker/go-units"
	"github.com/go-git/go-git/v5"
	"github.com/go-git/go-git/v5/plumbing/transport"

	"holdfast/snapshot"
	"holdfast/workspace"
)

// identityFile is the name beside the content that Volumes keeps an identity under.
const identityFile = "identity.json"

// uploadPatience is how long a start waits for the directory that somebody promised to send.
const uploadPatience = 15 * time.Minute

// PrepareContent has the instance's content in place: adopted, restored, or from its first source. What is in place
// already is recognised by its identity file.
func (n *Node) PrepareContent(ctx context.Context, input workspace.PrepareContentInput) (workspace.PrepareContentResult, error) {
	var result workspace.PrepareContentResult
	progress := &meter{}
	options := progress.options()
	if input.Source.Kind == workspace.SourceUpload || input.Source.Kind == workspace.SourceGit {
		options.StallAfter = 0 // a person's link may be slow, and has its own patience
	}
	target := input.Target
	err := n.locked(ctx, target, options, func(ctx context.Context) error {
		if err := n.Lease.CheckNew(); err != nil { // invariant 7
			return err
		}
		volumes, err := n.onOrElsewhere(target.Volume) // invariant 5
		if err != nil {
			return err
		}
		if _, _, err := volumes.usable(target.WorkspaceID, target.Token); err == nil {
			return nil
		}
		if input.Adopt != 0 {
			// The containers of older tokens are gone before their content gets a new name.
			if err := n.dismissOlder(ctx, target); err != nil {
				return err
			}
			return volumes.adopt(target.WorkspaceID, target.Name, input.Adopt, target.Token)
		}
		mark := identity{
			WorkspaceID: target.WorkspaceID, Name: target.Name, Token: target.Token, Base: input.Snapshot,
			State: contentPreparing, Time: time.Now(),
		}
		arrived, err := n.cleared(ctx, volumes, input, mark)
		if err != nil {
			return err
		}
		if arrived {
			mark.State = contentPrepared
			return volumes.mark(mark)
		}
		if err := n.admit(volumes, max(0, input.SizeBytes-occupied(volumes.content(target.WorkspaceID, target.Token)))); err != nil {
			return err
		}
		if err := n.begin(volumes, mark); err != nil {
			return err
		}
		restored, err := n.fill(ctx, volumes, input, progress)
		if err != nil {
			return err
		}
		result.Restored = restored
		mark.State = contentPrepared
		return volumes.mark(mark)
	})
	return result, err
}

// admit refuses work that the node's disk, or the shared volume, has no room for (A18).
func (n *Node) admit(volumes *Volumes, size int64) error {
	free, err := volumes.free()
	if err != nil {
		return err
	}
	if free < n.reserve()+size {
		wants := ""
		if size > 0 {
			wants = " and the workspace wants " + units.HumanSize(float64(size))
		}
		return permanent(workspace.ErrorNodeFull, fmt.Errorf("node %s has %s free; it keeps %s%s", n.Name, units.HumanSize(float64(free)), units.HumanSize(float64(n.reserve())), wants))
	}
	return nil
}

// cleared deals with what an earlier attempt left half done: it is not content and goes to the trash, before the room
// on the disk is counted. What stays is an upload that is in place (it came there whole or not at all; whoever sent it
// was told that it arrived and does not send it again), and of a restore what it has verified already: another attempt
// for the same token and snapshot goes on from there. When the operation is given up, all goes with the instance.
func (n *Node) cleared(ctx context.Context, volumes *Volumes, input workspace.PrepareContentInput, mark identity) (arrived bool, err error) {
	found, err := volumes.identify(mark.WorkspaceID, mark.Token)
	switch {
	case errors.Is(err, errNoContent):
		return false, nil
	case err != nil:
		return false, err
	case found.State != contentPreparing:
		return false, fmt.Errorf("%s was whole once and is not any more: %w", workspace.InstanceName(mark.WorkspaceID, mark.Token), errNoContent)
	case input.Snapshot != "" && found.Base == input.Snapshot:
		return n.keepRestored(ctx, volumes, mark)
	case input.Source.Kind == workspace.SourceUpload && input.Snapshot == "":
		if n.uploads.receiving(mark.WorkspaceID, mark.Token) {
			return false, nil // it began for an attempt before this one and goes on
		}
		if _, err := os.Lstat(volumes.content(mark.WorkspaceID, mark.Token)); err == nil {
			return true, nil
		}
	}
	return false, volumes.trash(ctx, mark.WorkspaceID, mark.Token)
}

// keepRestored leaves in an instance's directory only what a restore of its base has put there. The content itself is
// there whole and verified, or not at all (invariant 5): then only the mark is missing (invariant 8).
func (n *Node) keepRestored(ctx context.Context, volumes *Volumes, mark identity) (arrived bool, err error) {
	content := volumes.content(mark.WorkspaceID, mark.Token)
	switch info, err := os.Lstat(content); {
	case err == nil && info.IsDir():
		return true, nil
	case err == nil:
		return false, volumes.trash(ctx, mark.WorkspaceID, mark.Token)
	case !errors.Is(err, os.ErrNotExist):
		return false, fmt.Errorf("looking for the restored content: %w", err)
	}
	kept, err := snapshot.Unfinished(content)
	if err != nil {
		return false, err
	}
	dir := volumes.dir(mark.WorkspaceID, mark.Token)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return false, fmt.Errorf("looking at what an earlier attempt left: %w", err)
	}
	for _, entry := range entries {
		path := filepath.Join(dir, entry.Name())
		if entry.Name() == identityFile || slices.Contains(kept, path) {
			continue
		}
		if err := removeTree(ctx, path); err != nil {
			return false, fmt.Errorf("removing what an earlier attempt left: %w", err)
		}
	}
	return false, nil
}

// occupied is the room in bytes that earlier attempts to restore to content take up already.
func occupied(content string) int64 {
	left, err := snapshot.Unfinished(content)
	if err != nil {
		return 0 // counted twice then, which refuses too much and never too little
	}
	var blocks int64
	for _, dir := range left {
		_ = filepath.WalkDir(dir, func(_ string, entry fs.DirEntry, err error) error {
			if err != nil {
				return nil //nolint:nilerr // as above
			}
			if info, err := entry.Info(); err == nil {
				if stat, ok := info.Sys().(*syscall.Stat_t); ok {
					blocks += stat.Blocks
				}
			}
			return nil
		})
	}
	return blocks * 512
}

// begin makes the instance's directory.
func (n *Node) begin(volumes *Volumes, mark identity) error {
	// Only the instance's own: what is missing above it is a disk or a volume that is not there (invariant 5).
	if err := os.Mkdir(volumes.dir(mark.WorkspaceID, mark.Token), 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("making the instance's directory: %w", err)
	}
	return volumes.mark(mark)
}

func (n *Node) fill(ctx context.Context, volumes *Volumes, input workspace.PrepareContentInput, progress *meter) (*workspace.Restore, error) {
	content := volumes.content(input.Target.WorkspaceID, input.Target.Token)
	switch {
	case input.Source.Kind == workspace.SourceSnapshot:
		return n.restore(ctx, input.OriginID, input.OriginPassword, input.Snapshot, content, "", progress)
	case input.Snapshot != "":
		state := volumes.state(input.Target.WorkspaceID, input.Target.Token)
		return n.restore(ctx, input.Target.WorkspaceID, input.Target.Sealed, input.Snapshot, content, state, progress)
	case input.Source.Kind == workspace.SourceUpload:
		return nil, n.awaitUpload(ctx, volumes, input.Target)
	case input.Source.Kind == workspace.SourceGit:
		return nil, n.clone(ctx, input, content)
	default:
		if err := os.Mkdir(content, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
			return nil, fmt.Errorf("making an empty workspace: %w", err)
		}
		return nil, nil
	}
}

// restore restores a snapshot whole and verified, or not at all (invariant 5). In state, unless it is empty, it notes what
// the content is for backups to the same repository: content that moved is not read again.
func (n *Node) restore(ctx context.Context, id string, sealed []byte, wanted, content, state string, progress *meter) (*workspace.Restore, error) {
	repository, err := n.repository(ctx, id, sealed)
	if err != nil {
		return nil, err
	}
	defer repository.Close()
	report, err := repository.Restore(ctx, wanted, content, snapshot.RestoreOptions{StateFile: state, Progress: progress.update})
	if err != nil {
		return nil, fmt.Errorf("restoring snapshot %s: %w", wanted, err)
	}
	const mostWarnings = 20
	return &workspace.Restore{
		Snapshot: report.Snapshot, Files: report.Files, Bytes: report.Bytes, Fallbacks: report.Fallbacks,
		Warnings: report.Warnings[:min(len(report.Warnings), mostWarnings)], Excluded: report.Excluded.Total(),
	}, nil
}

// refusals are what a git server says and trying again does not change.
var refusals = []error{
	transport.ErrRepositoryNotFound, transport.ErrAuthenticationRequired, transport.ErrAuthorizationFailed, transport.ErrEmptyRemoteRepository,
}

// clone clones a git repository to a new directory and renames it into place.
func (n *Node) clone(ctx context.Context, input workspace.PrepareContentInput, content string) error {
	secrets, err := n.secrets(input.Secrets)
	if err != nil {
		return err
	}
	work := content + ".cloning"
	if err := os.RemoveAll(work); err != nil {
		return fmt.Errorf("cleaning up a clone that was cut: %w", err)
	}
	_, err = git.PlainCloneContext(ctx, work, false, &git.CloneOptions{URL: secrets.GitURL})
	switch {
	case ctx.Err() != nil:
		return fmt.Errorf("cloning %s: %w", input.Source.Describe, ctx.Err())
	case err != nil:
		for _, refused := range refusals {
			if errors.Is(err, refused) {
				// The plain one: the client appends what the server answered, which can quote the URL with its token.
				return permanent(workspace.ErrorSource, fmt.Errorf("cloning %s: %w", input.Source.Describe, refused))
			}
		}
		return fmt.Errorf("cloning %s: the git client failed (its message is left out because it can quote the URL): %T", input.Source.Describe, err)
	}
	if err := os.Rename(work, content); err != nil {
		return fmt.Errorf("putting the clone in place: %w", err)
	}
	return syncDir(filepath.Dir(content))
}

// awaitUpload waits until the data port has put the promised directory in place.
func (n *Node) awaitUpload(ctx context.Context, volumes *Volumes, target workspace.Target) error {
	arrived, done := n.uploads.expect(target.WorkspaceID, target.Token)
	defer done()
	patience := time.NewTimer(uploadPatience)
	defer patience.Stop()
	for {
		if _, err := os.Lstat(volumes.content(target.WorkspaceID, target.Token)); err == nil {
			return nil
		}
		select {
		case <-arrived:
		case <-patience.C:
			if n.uploads.receiving(target.WorkspaceID, target.Token) {
				patience.Reset(uploadPatience)
				continue
			}
			return permanent(workspace.ErrorUploadMissing, errors.New("the directory that was promised for this workspace was not sent; start it again"))
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
