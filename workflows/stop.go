package workflows

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/workflow"

	"holdfast/workspace"
)

// stop stops the instance through a backup (A1). It is acknowledged when the policy's stores hold a verified final
// snapshot that is committed; then, and only when all stores hold it, the instance and its content are removed.
func (w *entity) stop(ctx workflow.Context, request *workspace.StopRequest) error {
	target, sequence, ok := w.stoppable()
	if !ok && w.state.Phase == workspace.Recovering {
		w.state.Loss = nil
		w.enter(ctx, workspace.Stopped, "its node was lost, and it was stopped before it had gone on elsewhere")
	}
	if !ok {
		return nil // it gave up a start, and nothing of that is left
	}
	if request.AcceptOmissions != "" {
		if w.state.Instance == nil && w.state.Kept.Snapshot == request.AcceptOmissions {
			return w.acceptOmissions(ctx)
		}
		return &refusalError{workspace.ErrorRefused, "there is no list of omissions of snapshot " + request.AcceptOmissions + " to accept; stop without --accept-omissions first"}
	}
	w.state.Block = nil
	w.enter(ctx, workspace.Stopping, "on node "+target.Node)
	if w.state.Instance == nil && target.Token < w.state.Token {
		err := w.reclaim(ctx, target)
		if failureType(err) == workspace.ErrorContentMissing && w.removedAlready() {
			return w.removedBefore(ctx, target)
		}
		if err != nil {
			return w.keep(ctx, target, sequence, err)
		}
		target, sequence = w.keptTarget(), w.state.Kept.Sequence
	}

	if w.state.Kept != nil && w.state.Kept.Quiet {
		return w.settle(ctx, target, sequence) // nothing of it runs anywhere
	}
	w.step(ctx, workspace.StepHalt, "")
	halted, err := w.halt(ctx, target, request)
	if failureType(err) == workspace.ErrorHookFailed && w.state.Instance != nil {
		w.noteFailedHook(err)
		return w.runsOn(ctx, err)
	}
	if err != nil {
		return w.keep(ctx, target, sequence, err)
	}
	w.noteHooks(halted.Hooks)
	w.setQuiet()

	return w.settle(ctx, target, sequence)
}

// halt stops an instance, after its pre-stop hook.
func (w *entity) halt(ctx workflow.Context, target workspace.Target, request *workspace.StopRequest) (halted workspace.StopInstanceResult, err error) {
	grace := w.state.Spec.StopGraceSeconds
	if grace == 0 {
		grace = 10
	}
	err = workflow.ExecuteActivity(onNode(ctx, target.Node, "stop the instance", haltAttempt, priorityStop), workspace.ActivityStopInstance,
		workspace.StopInstanceInput{Target: target, GraceSeconds: grace, PreStop: w.preStop(request)}).Get(ctx, &halted)
	return halted, err
}

// mostFresh is how often content that goes on changing is backed up again before a person is asked what writes to it.
const mostFresh = 3

// settle makes the final snapshot of content on which nothing runs any more, and removes the content once all stores hold
// it. Content that turns out to have changed since its snapshot is kept and backed up anew (invariant 1): the new snapshot
// is the head, and the one before has what it was then.
func (w *entity) settle(ctx workflow.Context, target workspace.Target, sequence uint64) error {
	for fresh := 0; ; fresh++ {
		commit, owed, backup, err := w.snapshot(ctx, target, finalSnapshot, &sequence)
		if failureType(err) == workspace.ErrorContentMissing && w.removedAlready() {
			return w.removedBefore(ctx, target)
		}
		if err != nil {
			return w.keep(ctx, target, sequence, err)
		}
		w.state.Operation.Snapshot, w.state.Operation.Backup = commit.Snapshot, backup
		key := w.state.HolderKey()
		w.state.Instance = nil
		w.state.Kept = &workspace.Kept{
			Node: target.Node, Token: target.Token, Sealed: target.Sealed, Sequence: sequence,
			Snapshot: commit.Snapshot, StatDigest: commit.StatDigest, Owed: owed, Volume: target.Volume, Key: key, Quiet: target.Volume != "",
			Why: "its backup is verified; it has not been removed yet",
		}
		if commit.Omitted > 0 {
			return w.blockOmissions(ctx, commit)
		}
		// invariant 2: acknowledged, because the stores that the policy requires hold it whole.
		w.enter(ctx, workspace.Stopped, "backed up as snapshot "+commit.Snapshot[:8])
		if len(owed) > 0 {
			w.state.Operation.Owed = owed
			w.state.Kept.Why = "not all stores of the policy hold its backup yet"
			return nil
		}
		err = w.remove(ctx)
		if !errors.Is(err, errChanged) {
			return err
		}
		if fresh == mostFresh {
			w.block(ctx, workspace.ErrorContentChanged, "the content on the node goes on changing after it is backed up",
				fmt.Sprintf("find what still writes to it on node %s; then `holdfast stop %s` backs it up again", target.Node, w.state.Name))
			return err
		}
		w.changed(ctx)
	}
}

// changed notes that the content on the node is newer than its snapshot.
func (w *entity) changed(ctx workflow.Context) {
	w.logger.Warn("the content changed after its backup; backing it up again")
	w.enter(ctx, workspace.Stopping, "the content on node "+w.state.Kept.Node+" changed after its backup: it is backed up again")
}

// blockOmissions waits for a person: a snapshot with omissions never permits removal (invariant 1).
func (w *entity) blockOmissions(ctx workflow.Context, commit workspace.Commit) error {
	kept := w.state.Kept
	kept.Held = true
	kept.Why = fmt.Sprintf("%d things in it could not be backed up as they were", commit.Omitted)
	w.block(ctx, workspace.ErrorOmissions,
		fmt.Sprintf("the backup is stored, but %d things could not be read as they were", commit.Omitted),
		fmt.Sprintf("look at the list; `holdfast start %s` goes on with the content, which is kept on node %s; `holdfast stop %s --accept-omissions %s` accepts to lose what is listed",
			w.state.Name, kept.Node, w.state.Name, commit.Snapshot))
	w.state.Block.Omitted, w.state.Block.Omissions = commit.Omitted, commit.Omissions
	return &refusalError{workspace.ErrorOmissions, w.state.Block.Message}
}

// removedBefore ends a stop of content whose removal was done and only its answer was lost.
func (w *entity) removedBefore(ctx workflow.Context, target workspace.Target) error {
	w.state.Operation.Snapshot = w.state.Kept.Snapshot
	w.enter(ctx, workspace.Stopped, "backed up as snapshot "+w.state.Kept.Snapshot[:8])
	return w.released(ctx, target)
}

// reclaim gives kept content a token of its own again. An unstick, or a start that failed, has recorded a newer one since,
// so that nothing which still writes with the old one is ever the head (invariant 3); without this no stop could commit
// what was kept.
func (w *entity) reclaim(ctx workflow.Context, old workspace.Target) error {
	w.step(ctx, workspace.StepRecord, "the content that was kept gets a new token")
	target, err := w.recordKept(ctx, old, workspace.PlaceResult{Node: old.Node, Volume: old.Volume}, control)
	if err != nil {
		return err
	}
	if err := workflow.ExecuteActivity(onNode(ctx, target.Node, "take over what was kept", contentPromise, priorityStop),
		workspace.ActivityPrepareContent, workspace.PrepareContentInput{Target: target, Adopt: old.Token}).Get(ctx, nil); err != nil {
		return err
	}
	w.state.Kept = &workspace.Kept{Node: target.Node, Token: target.Token, Sealed: target.Sealed, Held: true, Why: "it is not backed up", Volume: target.Volume, Key: w.state.Kept.Key,
		// Still of exactly that content: a removal whose answer was lost is recognised by it.
		Snapshot: w.state.Kept.Snapshot, StatDigest: w.state.Kept.StatDigest}
	return nil
}

// recordKept records a new token for kept content, on the node that has it or on one that reaches it (invariant 3).
func (w *entity) recordKept(ctx workflow.Context, old workspace.Target, node workspace.PlaceResult,
	how func(workflow.Context, string) workflow.Context) (workspace.Target, error) {
	w.state.Token++
	record := workspace.InstanceRecord{
		WorkspaceID: w.state.ID, Name: w.state.Name, Owner: w.state.Owner, Token: w.state.Token, Node: node.Node, Adopted: old.Token, Volume: node.Volume,
		Time: workflow.Now(ctx), Spec: w.state.Spec, Secrets: w.state.Secrets,
	}
	if w.state.Head != nil {
		record.Base = w.state.Head.Snapshot
	}
	var recorded workspace.RecordInstanceResult
	if err := workflow.ExecuteActivity(how(ctx, fmt.Sprintf("record token %d for what node %s kept", record.Token, old.Node)),
		workspace.ActivityRecordInstance, record).Get(ctx, &recorded); err != nil {
		return old, err
	}
	w.state.Stores = recorded.Stores
	w.state.Placed = append(w.state.Placed, workspace.Placed{Node: node.Node, Token: record.Token})
	if w.state.Head != nil {
		head := *w.state.Head
		head.Token, head.Sequence = record.Token, 0
		w.state.Head = &head
	}
	target := old
	target.Token, target.Node, target.Volume = record.Token, node.Node, node.Volume
	return target, nil
}

// acceptOmissions releases content whose snapshot has omissions, because a person read the list and accepts it. The
// snapshot is the one that the list was of: content that has changed since is refused by the node.
func (w *entity) acceptOmissions(ctx workflow.Context) error {
	w.state.Kept.AcceptedOmissions, w.state.Kept.Held = true, false
	w.state.Block = nil
	w.state.Operation.Snapshot = w.state.Kept.Snapshot
	w.enter(ctx, workspace.Stopped, "backed up as snapshot "+w.state.Kept.Snapshot[:8]+", with omissions that were accepted")
	if len(w.state.Kept.Owed) > 0 {
		w.state.Operation.Owed = w.state.Kept.Owed
		return nil
	}
	err := w.remove(ctx)
	if errors.Is(err, errChanged) {
		w.changed(ctx)
		return w.settle(ctx, w.keptTarget(), w.state.Kept.Sequence)
	}
	return err
}

// stoppable is what a stop works on: the instance, or content that was kept.
func (w *entity) stoppable() (target workspace.Target, sequence uint64, ok bool) {
	switch {
	case w.state.Instance != nil:
		return w.target(w.state.Instance), w.state.Instance.Sequence, true
	case w.state.Kept != nil:
		return w.keptTarget(), w.state.Kept.Sequence, true
	default:
		return workspace.Target{}, 0, false
	}
}

func (w *entity) keptTarget() workspace.Target {
	kept := w.state.Kept
	return workspace.Target{WorkspaceID: w.state.ID, Name: w.state.Name, Token: kept.Token, Node: kept.Node, Volume: kept.Volume, Sealed: kept.Sealed}
}

// keep ends a stop that was cut or cannot go on: the content stays on its node, and a start goes on with it.
func (w *entity) keep(ctx workflow.Context, target workspace.Target, sequence uint64, err error) error {
	w.keptOf(target, sequence, "it is not backed up")
	kind, words := describe(err)
	if temporal.IsCanceledError(err) {
		w.enter(ctx, workspace.Stopped, "the stop was given up before its backup was done; the content is on node "+target.Node)
		return err
	}
	w.block(ctx, kind, words, fmt.Sprintf("the content is kept on node %s; mend the cause, then `holdfast stop %s` tries again, or `holdfast start %s` goes on with it; `holdfast download %s` fetches it",
		target.Node, w.state.Name, w.state.Name, w.state.Name))
	return err
}

// errChanged: the node refused the removal because the content is no longer what was backed up. It is backed up again.
var errChanged = errors.New("the content changed after its backup")

// remove removes the instance and its content from the node. The node looks for itself whether it may (invariant 1);
// errChanged is its refusal of content that has to be backed up again.
func (w *entity) remove(ctx workflow.Context) error {
	w.step(ctx, workspace.StepRemove, "")
	target := w.keptTarget()
	err := workflow.ExecuteActivity(onNode(ctx, target.Node, "remove the instance and its content", removeAttempt, priorityRelease),
		workspace.ActivityRemoveInstance, workspace.RemoveInstanceInput{
			Target: target, Snapshot: w.state.Kept.Snapshot, StatDigest: w.state.Kept.StatDigest, AcceptedOmissions: w.state.Kept.AcceptedOmissions,
		}).Get(ctx, nil)
	switch failureType(err) {
	case workspace.ErrorNotStored:
		w.state.Kept.Why = "a store does not hold its backup whole"
		return nil // released later, once it does
	case workspace.ErrorContentChanged:
		w.state.Kept.Held = true
		w.state.Kept.Why = "it was changed after its backup"
		w.state.Kept.Snapshot, w.state.Kept.StatDigest = "", ""
		return fmt.Errorf("%w: %w", errChanged, err)
	}
	if temporal.IsCanceledError(err) && (w.interruptedBy == workspace.OperationRecover || w.wasCut && w.state.Operation.Kind == workspace.OperationStop) {
		// The stop is done, and its node is lost: what is left there is removed when it returns.
		w.state.Kept.Why = "its node was lost before it was removed there"
		w.state.Operation.Owed = append(w.state.Operation.Owed, "content on node "+target.Node)
		return nil
	}
	if err != nil {
		w.state.Kept.Held = true
		if temporal.IsCanceledError(err) {
			return err
		}
		_, words := describe(err)
		w.state.Kept.Why = "removing it failed: " + words
		w.state.Operation.Owed = append(w.state.Operation.Owed, "content on node "+target.Node)
		return nil // the stop is done: what is left is safe and is only in the way
	}
	return w.released(ctx, target)
}

// released forgets content that its node no longer holds.
func (w *entity) released(ctx workflow.Context, target workspace.Target) error {
	w.state.Kept = nil
	return w.releasePlacements(control(ctx, "release the placement"), target.Node, 0, target.Token)
}

// releasePlacements releases what was placed on a node with the tokens from first to last: content that was adopted has
// been placed there once for each of its tokens.
func (w *entity) releasePlacements(ctx workflow.Context, node string, first, last uint64) error {
	for i := 0; i < len(w.state.Placed); {
		placed := w.state.Placed[i]
		if placed.Node != node || placed.Token < first || placed.Token > last {
			i++
			continue
		}
		if err := workflow.ExecuteActivity(ctx, workspace.ActivityReleasePlacement,
			workspace.ReleasePlacementInput{WorkspaceID: w.state.ID, Token: placed.Token, Node: placed.Node}).Get(ctx, nil); err != nil {
			return err
		}
		w.state.Placed = slices.Delete(w.state.Placed, i, i+1)
	}
	return nil
}

// releasable says whether content that stayed on a node can be released by itself.
func (w *entity) releasable() bool {
	kept := w.state.Kept
	return kept != nil && kept.Snapshot != "" && !kept.Held && w.state.Instance == nil
}

func (w *entity) releaseCommand(ctx workflow.Context) workspace.Command {
	return workspace.Command{Operation: workspace.Operation{
		ID: fmt.Sprintf("release-%d", w.state.Kept.Token), Kind: workspace.OperationRelease, Began: workflow.Now(ctx),
	}}
}

// release brings the stores that are late up to date, looks again, and then removes the content (invariant 2).
func (w *entity) release(ctx workflow.Context) error {
	target := w.keptTarget()
	if w.state.Kept.Held {
		return w.settle(ctx, target, w.state.Kept.Sequence) // another node has taken it over: it has a token of its own now
	}
	for again := time.Second; ; again = min(2*again, slowest) {
		w.step(ctx, workspace.StepRepair, "")
		if err := workflow.ExecuteActivity(onNodeReading(ctx, target.Node, "bring late stores up to date", verifyAttempt, priorityRelease),
			workspace.ActivityRepair, workspace.RepairInput{Target: target}).Get(ctx, nil); err != nil {
			return w.hold(err)
		}
		w.step(ctx, workspace.StepVerify, "snapshot "+w.state.Kept.Snapshot)
		var verified workspace.VerifyResult
		if err := workflow.ExecuteActivity(onNodeReading(ctx, target.Node, "look at every stored object", verifyAttempt, priorityRelease),
			workspace.ActivityVerify, workspace.VerifyInput{Target: target, Snapshot: w.state.Kept.Snapshot}).Get(ctx, &verified); err != nil {
			return w.hold(err)
		}
		w.state.Kept.Owed = verified.Owed
		if len(verified.Owed) == 0 {
			err := w.remove(ctx)
			if errors.Is(err, errChanged) {
				w.changed(ctx)
				return w.settle(ctx, target, w.state.Kept.Sequence)
			}
			if err != nil || w.state.Kept == nil || w.state.Kept.Held {
				return err
			}
		}
		if err := workflow.Sleep(ctx, again); err != nil {
			return w.hold(err)
		}
	}
}

// hold ends a release that was given up: the next command decides.
func (w *entity) hold(err error) error {
	if !temporal.IsCanceledError(err) {
		_, words := describe(err)
		w.state.Kept.Held = true
		w.state.Kept.Why = "bringing the stores up to date failed: " + words
	}
	return err
}

// seal records a token that no instance has, so that whatever an older one still writes is never the head.
func (w *entity) seal(ctx workflow.Context, head *workspace.Commit) error {
	ctx, _ = workflow.NewDisconnectedContext(ctx)
	w.state.Token++
	record := workspace.InstanceRecord{
		WorkspaceID: w.state.ID, Name: w.state.Name, Owner: w.state.Owner, Token: w.state.Token,
		Time: workflow.Now(ctx), Spec: w.state.Spec, Secrets: w.state.Secrets,
	}
	if head != nil {
		record.Base = head.Snapshot
	}
	if err := workflow.ExecuteActivity(control(ctx, fmt.Sprintf("seal with token %d", record.Token)), workspace.ActivityRecordInstance, record).Get(ctx, nil); err != nil {
		return err
	}
	if head != nil {
		sealed := *head
		sealed.Token, sealed.Sequence = record.Token, 0
		w.state.Head = &sealed
	}
	return nil
}

// unstick gives up what was under way (accepting it cancelled that), seals it with a new token, keeps what is there and
// allows a start (A11).
func (w *entity) unstick(ctx workflow.Context) error {
	if w.state.Instance != nil {
		w.state.Kept = &workspace.Kept{
			Node: w.state.Instance.Node, Token: w.state.Instance.Token, Sealed: w.state.Instance.Sealed, Sequence: w.state.Instance.Sequence,
			Volume: w.state.Instance.Volume, Key: w.state.Instance.Key, Quiet: w.state.Instance.Quiet,
		}
		w.state.Instance = nil
	}
	w.step(ctx, workspace.StepRecord, "sealing the attempt that is stuck")
	if err := w.seal(ctx, w.state.Head); err != nil {
		return err
	}
	w.state.Block, w.state.Loss = nil, nil
	reason := "unstuck"
	if w.state.Kept != nil {
		w.state.Kept.Held = true
		w.state.Kept.Why = "what was going on with it was given up by `holdfast unstick`"
		reason += "; its content is kept on node " + w.state.Kept.Node
	}
	w.enter(ctx, workspace.Stopped, reason)
	return nil
}

// delete ends the workspace. Its backups stay in the stores unless the person named it to discard its data.
func (w *entity) delete(ctx workflow.Context, request *workspace.DeleteRequest) error {
	if w.state.Instance != nil {
		return &refusalError{workspace.ErrorRefused, fmt.Sprintf("workspace %s is not stopped (%s)", w.state.Name, w.state.Phase)}
	}
	w.step(ctx, workspace.StepDelete, "")
	if w.state.Kept != nil {
		if request.DiscardData == "" {
			return &refusalError{workspace.ErrorRefused, "its newest content is only on node " + w.state.Kept.Node}
		}
		target := w.keptTarget()
		look, err := w.lookAtNode(ctx, target.Node)
		if err != nil {
			return err
		}
		if look.Known && look.Node.Loss != nil && target.Volume != "" && (w.state.Kept.Quiet || workspace.FenceOf(look, target.Node, w.state.Kept.Key, workflow.Now(ctx)).Fenced) {
			// Another node can.
			if err := w.takeOver(ctx, target.Node); err != nil {
				return err
			}
		} else if look.Known && look.Node.Loss != nil {
			// Nobody can remove anything there now. If the node returns, what it holds belongs to nobody, is kept and listed.
			w.leaveKept("its node was lost when the workspace was deleted")
		}
	}
	if w.state.Kept != nil {
		target := w.keptTarget()
		if err := workflow.ExecuteActivity(onNode(ctx, target.Node, "discard the content", removeAttempt, priorityRelease),
			workspace.ActivityDiscardInstance, workspace.DiscardInstanceInput{Target: target, DiscardData: request.DiscardData}).Get(ctx, nil); err != nil {
			return err
		}
		if err := w.released(ctx, target); err != nil {
			return err
		}
	}
	if w.state.Token > 0 {
		if err := workflow.ExecuteActivity(control(ctx, "record that it is deleted"), workspace.ActivityRecordDeleted, workspace.RecordDeletedInput{
			WorkspaceID: w.state.ID, Name: w.state.Name, Token: w.state.Token, Subject: request.Subject, DiscardData: request.DiscardData,
		}).Get(ctx, nil); err != nil {
			return err
		}
	}
	w.enter(ctx, workspace.Deleted, "")
	return nil
}
