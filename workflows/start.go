package workflows

import (
	"errors"
	"fmt"
	"slices"

	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/workflow"

	"holdfast/workspace"
)

// start brings the workspace to Running, or back to where it was. Content is never touched on the way back.
func (w *entity) start(ctx workflow.Context, request *workspace.StartRequest) error {
	if err := w.startAfterLoss(ctx, request.AcceptVersion); err != nil {
		return err
	}
	if w.state.Instance != nil {
		// A stop that a start interrupted has left its instance as kept content; one that runs was refused before.
		return &refusalError{workspace.ErrorRefused, fmt.Sprintf("workspace %s has an instance on node %s", w.state.Name, w.state.Instance.Node)}
	}
	if w.state.Incomplete {
		if request.Spec != nil {
			w.state.Spec, w.state.Secrets = *request.Spec, request.Secrets
		}
		w.state.Source = request.Source
	} else if request.Spec != nil {
		if request.Spec.Image != "" {
			w.state.Spec.Image = request.Spec.Image
		}
		w.state.Spec.Snapshots, w.state.Spec.Retention = request.Spec.Snapshots, request.Spec.Retention
		w.state.Spec.Hooks, w.state.Spec.StopGraceSeconds = request.Spec.Hooks, request.Spec.StopGraceSeconds
		w.state.Spec.Stop = request.Spec.Stop
	}
	plan := launch{only: request.Node, exclude: request.NotNode}
	if request.AcceptVersion != "" && w.state.Kept != nil {
		// The person goes on without what is on the node. It is saved, and then removed there.
		if !w.isHead(request.AcceptVersion) {
			return w.olderVersion(ctx, request.AcceptVersion)
		}
		w.giveUpKept(ctx, "a start with --accept-version went on without it")
	}
	if w.state.Kept != nil {
		if err := w.withoutLostNode(ctx); err != nil {
			return err
		}
	}
	if w.pinned() {
		if request.Node != "" && request.Node != w.state.Kept.Node || request.NotNode == w.state.Kept.Node {
			return w.olderVersion(ctx, "")
		}
	}
	if err := w.chooseHead(ctx, request.AcceptVersion); err != nil {
		return err
	}
	return w.launch(ctx, plan)
}

func (w *entity) isHead(snapshot string) bool {
	return w.state.Head != nil && w.state.Head.Snapshot == snapshot
}

// olderVersion refuses to start without the newest content, which is on a node (invariant 4).
func (w *entity) olderVersion(ctx workflow.Context, accepted string) error {
	message := fmt.Sprintf("the newest content of workspace %s is on node %s (%s) and a start elsewhere would go on without it; ",
		w.state.Name, w.state.Kept.Node, w.state.Kept.Why)
	switch {
	case w.state.Head == nil:
		message += fmt.Sprintf("there is no verified version yet: start it on that node, or `holdfast download %s`", w.state.Name)
	case accepted != "":
		message += fmt.Sprintf("the newest verified version is snapshot %s, not %s", w.state.Head.Snapshot, accepted)
	default:
		message += fmt.Sprintf("the newest verified version is snapshot %s, %s old: --accept-version %s uses it",
			w.state.Head.Snapshot, workflow.Now(ctx).Sub(w.state.Head.Time).Round(1e9), w.state.Head.Snapshot)
	}
	return &refusalError{workspace.ErrorOlderVersion, message}
}

// giveUpKept notes content that is gone on without. It may hold work that no commit has, so it is saved as a recovered snapshot, and
// then removed from its node (A16, A19), as what a lost node had. What a workflow from before that has left stays.
func (w *entity) giveUpKept(ctx workflow.Context, why string) {
	if workflow.GetVersion(ctx, "save-what-is-given-up", workflow.DefaultVersion, 1) == workflow.DefaultVersion {
		w.leaveKept(why)
		return
	}
	kept := w.state.Kept
	_, lost := w.lost[kept.Node]
	// The snapshot that there may be is not a recovered one, and not surely of what is there now.
	w.state.Left = append(w.state.Left, workspace.Kept{
		Node: kept.Node, Token: kept.Token, Sequence: kept.Sequence, Sealed: kept.Sealed, Why: why, Chosen: why, Replaced: true, Back: !lost,
		Volume: kept.Volume, Key: kept.Key,
	})
	w.state.Kept = nil
}

// leaveKept notes content that stays on its node.
func (w *entity) leaveKept(why string) {
	left := *w.state.Kept
	left.Why, left.Sealed = why, nil
	w.state.Left = append(w.state.Left, left)
	w.state.Kept = nil
}

// chooseHead compares the workflow's head with every provider's (invariant 4).
func (w *entity) chooseHead(ctx workflow.Context, accept string) error {
	if w.state.Token == 0 {
		return nil // a new id: nothing can be in the catalog
	}
	w.step(ctx, workspace.StepReadHead, "comparing the newest version with what the stores hold")
	var answers workspace.ReadHeadResult
	if err := workflow.ExecuteActivity(controlSoon(ctx, "read the head on every store"), workspace.ActivityReadHead,
		workspace.ReadHeadInput{WorkspaceID: w.state.ID}).Get(ctx, &answers); err != nil {
		return err
	}
	for _, answer := range answers.Providers {
		// Tokens go on above all that the catalog has (invariant 3), whatever this workflow remembers.
		w.state.Token = max(w.state.Token, answer.Token)
	}
	decision := workspace.DecideHead(w.state.Head, answers, accept, workflow.Now(ctx))
	if w.state.Kept != nil || w.state.OnVolume() {
		// The newest content is on the node, or on its volume, and is gone on with: nothing is gone back to.
		return nil
	}
	if decision.Refusal != "" && !(w.state.Incomplete && w.state.Head == nil) {
		message := decision.Refusal + "; nothing was started"
		if decision.AcceptVersion != "" {
			message += "; --accept-version " + decision.AcceptVersion + " starts with that one"
		}
		return &refusalError{workspace.ErrorOlderVersion, message}
	}
	w.state.Head = decision.Head
	if w.state.Head == nil && !w.state.Incomplete {
		// A10: a workspace that expects content never starts empty.
		return &refusalError{workspace.ErrorSnapshotMissing, "the workspace has had content, but no store has a version of it"}
	}
	return nil
}

// launch says how an instance is to be made.
type launch struct {
	only, exclude string
	// back, when set, is the node to go back to when no other takes it, and failed says why none did.
	back   string
	failed *error
	// base, when set, is an older snapshot to go back to (restore).
	base string
	// replaces is set when the instance is made in the place of one on a lost node.
	replaces bool
	// priority on the node's queue; 0 is that of a person who waits.
	priority int
}

// launch places, records, prepares and starts instances until one runs. Each attempt is an instance with a token of its
// own (invariant 3).
func (w *entity) launch(ctx workflow.Context, plan launch) error {
	phase, reason, head := w.state.Phase, w.state.Reason, w.state.Head
	if phase == workspace.Stopping || phase == workspace.Blocked || phase == workspace.Recovering {
		phase = workspace.Stopped
	}
	w.enter(ctx, workspace.Starting, "")
	w.state.Block, w.state.Recovery = nil, nil
	var tried []string
	if plan.exclude != "" {
		tried = append(tried, plan.exclude)
	}
	var last error
	for {
		node, err := w.place(ctx, plan, tried)
		if plan.back != "" && failureType(err) == workspace.ErrorNoNode {
			*plan.failed = err
			if last != nil {
				*plan.failed = last
			}
			node, err = w.place(ctx, launch{only: plan.back}, nil)
			plan.back = ""
		}
		if err != nil {
			if last != nil && failureType(err) == workspace.ErrorNoNode {
				err = last
			}
			return w.backTo(ctx, phase, reason, head, err)
		}
		if err = w.attempt(ctx, plan, node); err == nil {
			return nil
		}
		if undo := w.undo(ctx, node.Node); undo != nil {
			return undo
		}
		if ctx.Err() != nil || !anotherNodeMayDo(err) || w.pinned() {
			return w.backTo(ctx, phase, reason, head, err)
		}
		last = err
		tried = append(tried, node.Node)
		w.logger.Info("start failed on a node, trying the next", "node", node.Node, "error", err)
	}
}

// anotherNodeMayDo tells failures of a node from failures that every node would have.
func anotherNodeMayDo(err error) bool {
	switch failureType(err) {
	case workspace.ErrorNodeFull, workspace.ErrorNodeReplaced, workspace.ErrorNodeUnguarded, workspace.ErrorVolumeMissing, workspace.ErrorDiskFull, workspace.ErrorStartFailed:
		return true
	}
	var timeout *temporal.TimeoutError
	return errors.As(err, &timeout)
}

// backTo ends a start that failed: the workspace is where it was, or waits for a person when its only version cannot
// be restored.
func (w *entity) backTo(ctx workflow.Context, phase workspace.Phase, reason string, head *workspace.Commit, err error) error {
	kind, words := describe(err)
	w.state.Instance = nil
	if head != nil && !w.isHead(head.Snapshot) {
		// A failed restore of an older snapshot has recorded it as the base of the newest instance, which makes it the
		// head. A later start must not go back in time because of that.
		if err := w.seal(ctx, head); err != nil {
			return err
		}
	}
	if head == nil && w.state.Head != nil && w.state.Kept == nil &&
		workflow.GetVersion(ctx, "no-head-from-a-failed-restore", workflow.DefaultVersion, 1) != workflow.DefaultVersion {
		// The same for one that never had content: it has none still, and not a snapshot that nobody can restore.
		if err := w.seal(ctx, nil); err != nil {
			return err
		}
		w.state.Head = nil
	}
	if phase == workspace.Starting {
		phase = workspace.Stopped
	}
	switch kind {
	case workspace.ErrorDamaged, workspace.ErrorSnapshotMissing, workspace.ErrorWrongKey, workspace.ErrorContentForeign, workspace.ErrorContentMissing:
		w.block(ctx, kind, words, "nothing was changed; `holdfast snapshots "+w.state.Name+"` lists the versions, `holdfast restore --snapshot` starts from another one")
		return err
	}
	if temporal.IsCanceledError(err) {
		words = "given up"
	}
	if reason == "" || words != "" {
		reason = "the last start failed: " + words
	}
	w.enter(ctx, phase, reason)
	w.resumeStop(ctx, err)
	return err
}

// resumeStop goes on with the backup that a start had taken over, when the start has failed: content that nobody backs
// up and nobody uses would otherwise wait for a person who believes it stopped (A2).
func (w *entity) resumeStop(ctx workflow.Context, err error) {
	if w.state.Kept == nil || w.state.Kept.Snapshot != "" || w.state.Incomplete || temporal.IsCanceledError(err) || w.waitingFor(workspace.OperationStop) {
		return
	}
	w.queue = append(w.queue, workspace.Command{
		Operation: workspace.Operation{ID: fmt.Sprintf("resume-%d", w.state.Token), Kind: workspace.OperationStop, Began: workflow.Now(ctx)},
		Stop:      &workspace.StopRequest{Subject: "holdfast"},
	})
}

func (w *entity) place(ctx workflow.Context, plan launch, tried []string) (workspace.PlaceResult, error) {
	input := workspace.PlaceInput{Name: w.state.Name, Only: plan.only, Exclude: tried, SizeBytes: w.state.Spec.Volume.SizeBytes}
	switch {
	case w.pinned():
		input.Only = w.state.Kept.Node
	case w.state.Kept != nil:
		input.Shared, input.Volume, input.Prefer = true, w.state.Kept.Volume, w.state.Kept.Node
	case w.state.Instance != nil:
		input.Shared, input.Volume = w.state.Instance.Volume != "", w.state.Instance.Volume
	default:
		input.Shared = w.shared()
	}
	w.step(ctx, workspace.StepPlace, "")
	var result workspace.PlaceResult
	err := workflow.ExecuteActivity(controlSoon(ctx, "choose a node"), workspace.ActivityPlace, input).Get(ctx, &result)
	return result, err
}

// attempt makes one instance on one node.
func (w *entity) attempt(ctx workflow.Context, plan launch, node workspace.PlaceResult) error {
	w.state.Token++
	instance := &workspace.Instance{Token: w.state.Token, Node: node.Node, Began: workflow.Now(ctx), Base: plan.base, Volume: node.Volume}
	if node.Volume != "" {
		instance.Key = node.Recipient
	}
	if instance.Base == "" && w.state.Head != nil {
		instance.Base = w.state.Head.Snapshot
	}

	w.step(ctx, workspace.StepRecord, "node "+node.Node)
	priority := plan.priority
	if priority == 0 {
		priority = priorityStart
	}
	var seal workspace.SealInput
	fromOrigin := w.state.Incomplete && w.state.Source.Kind == workspace.SourceSnapshot
	if fromOrigin {
		seal.OriginName, seal.OriginSnapshot = w.state.Source.Workspace, w.state.Source.Snapshot
	}
	sealed, err := w.sealTo(ctx, node, seal)
	if err != nil {
		return err
	}
	instance.Sealed = sealed.Password
	if plan.replaces {
		if err := w.mayReplace(ctx); err != nil {
			return err
		}
	}
	if w.state.Kept != nil {
		instance.Adopted = w.state.Kept.Token
	}

	// invariant 3: the record is on the required stores before anything of the instance runs.
	var recorded workspace.RecordInstanceResult
	if err := workflow.ExecuteActivity(controlSoon(ctx, fmt.Sprintf("record instance %d on node %s", instance.Token, node.Node)),
		workspace.ActivityRecordInstance, workspace.InstanceRecord{
			WorkspaceID: w.state.ID, Name: w.state.Name, Owner: w.state.Owner, Token: instance.Token, Node: node.Node,
			Base: instance.Base, Adopted: instance.Adopted, Volume: instance.Volume, Time: instance.Began, Spec: w.state.Spec, Secrets: w.state.Secrets,
		}).Get(ctx, &recorded); err != nil {
		return err
	}
	w.state.Instance, w.state.Stores = instance, recorded.Stores
	w.state.Placed = append(w.state.Placed, workspace.Placed{Node: instance.Node, Token: instance.Token})
	if instance.Base != "" && (w.state.Head == nil || w.state.Head.Token < instance.Token) {
		// By the rule of invariant 3 the head is now the base of the newest recorded token.
		head := workspace.Commit{WorkspaceID: w.state.ID, Snapshot: instance.Base}
		if w.isHead(instance.Base) {
			head = *w.state.Head
		}
		head.Token, head.Sequence = instance.Token, 0
		w.state.Head = &head
	}
	target := w.target(instance)

	w.step(ctx, workspace.StepImage, w.state.Spec.Image)
	var image workspace.PrepareImageResult
	if err := workflow.ExecuteActivity(forStart(ctx, node.Node, "prepare image "+w.state.Spec.Image, imagePromise, priority),
		workspace.ActivityPrepareImage, workspace.PrepareImageInput{Target: target, Image: w.state.Spec.Image}).Get(ctx, &image); err != nil {
		return err
	}
	instance.Image, instance.Notes = image.Reference, image.Notes

	content := workspace.PrepareContentInput{
		Target: target, Adopt: instance.Adopted, Snapshot: instance.Base, SizeBytes: w.state.Spec.Volume.SizeBytes,
	}
	step, detail := workspace.StepContent, "restoring snapshot "+instance.Base
	switch {
	case instance.Adopted != 0:
		detail = "going on with the content that is on the node"
	case w.state.Incomplete:
		content.Snapshot, content.Source, content.Secrets = "", w.state.Source, sealed.Secrets
		content.OriginID, content.OriginPassword = sealed.OriginID, sealed.OriginPassword
		detail = w.state.Source.Describe
		if fromOrigin {
			content.Snapshot = sealed.OriginSnapshot
		}
		if w.state.Source.Kind == workspace.SourceUpload {
			step = workspace.StepUpload
		}
	}
	kept := w.state.Kept
	if kept != nil && kept.Volume != "" && (kept.Node != node.Node || kept.Key != node.Recipient) {
		if err := w.quieten(ctx); err != nil {
			return err
		}
		detail = "going on with the content as it is on the shared volume"
	}
	w.step(ctx, step, detail)
	var prepared workspace.PrepareContentResult
	err = workflow.ExecuteActivity(forStart(ctx, node.Node, string(step)+" "+detail, contentPromise, priority),
		workspace.ActivityPrepareContent, content).Get(ctx, &prepared)
	if failureType(err) == workspace.ErrorContentMissing && w.removedAlready() {
		// The removal was done and only its answer was lost. The snapshot is of exactly that content.
		w.state.Kept, instance.Adopted, content.Adopt = nil, 0, 0
		w.step(ctx, workspace.StepContent, "restoring snapshot "+instance.Base)
		err = workflow.ExecuteActivity(forStart(ctx, node.Node, "restore snapshot "+instance.Base, contentPromise, priority),
			workspace.ActivityPrepareContent, content).Get(ctx, &prepared)
	}
	if err != nil {
		return err
	}
	w.state.Operation.Restored = prepared.Restored
	if instance.Adopted != 0 {
		// From here on the content carries the new token.
		w.handed(ctx, kept, node.Node)
		w.state.Kept = &workspace.Kept{Node: node.Node, Token: instance.Token, Why: "its start was not finished", Volume: instance.Volume, Key: instance.Key}
	}

	w.step(ctx, workspace.StepRun, "")
	var started workspace.StartInstanceResult
	if err := workflow.ExecuteActivity(forStart(ctx, node.Node, "start the instance", runPromise, priority),
		workspace.ActivityStartInstance, workspace.StartInstanceInput{
			Target: target, Image: image.Reference, Spec: w.state.Spec, Secrets: sealed.Secrets, Exclusive: instance.Volume != "",
		}).Get(ctx, &started); err != nil {
		return err
	}
	instance.Container = started.Container
	w.state.Kept = nil
	w.state.Incomplete = false
	w.enter(ctx, workspace.Running, "on node "+node.Node)
	w.running(ctx)
	w.watch(ctx)
	return nil
}

// sealTo seals the repository's password and the person's secrets to a node.
func (w *entity) sealTo(ctx workflow.Context, node workspace.PlaceResult, seal workspace.SealInput) (workspace.SealResult, error) {
	seal.WorkspaceID, seal.Name, seal.Owner = w.state.ID, w.state.Name, w.state.Owner
	seal.Node, seal.Recipient, seal.Secrets = node.Node, node.Recipient, w.state.Secrets
	var sealed workspace.SealResult
	err := workflow.ExecuteActivity(controlSoon(ctx, "seal the keys to node "+node.Node), workspace.ActivitySeal, seal).Get(ctx, &sealed)
	return sealed, err
}

// removedAlready says whether kept content that its node does not have was removed after its backup: the newest version
// is a final snapshot of exactly that content, on which nothing has run since.
func (w *entity) removedAlready() bool {
	return w.state.Kept != nil && w.state.Kept.Snapshot != "" && w.isHead(w.state.Kept.Snapshot)
}

// undo takes back what an attempt left on its node. What never ran is removed; what may have run is kept.
func (w *entity) undo(ctx workflow.Context, node string) error {
	instance := w.state.Instance
	w.state.Instance = nil
	if instance == nil {
		return nil // nothing was recorded, nothing was begun
	}
	// Also when the start itself was given up.
	ctx, _ = workflow.NewDisconnectedContext(ctx)
	if instance.Adopted != 0 {
		// The content was there before and stays; only a container may have to go, which the next start or stop sees to.
		if w.state.Kept == nil {
			w.state.Kept = &workspace.Kept{Node: node, Token: instance.Token, Why: "its start was not finished", Volume: instance.Volume, Key: instance.Key}
		}
		if w.state.Kept.Node == node {
			w.state.Kept.Sealed = instance.Sealed
		} else if err := w.releasePlacements(controlSoon(ctx, "release the placement"), node, instance.Token, instance.Token); err != nil {
			w.logger.Warn("releasing the placement of a start that failed", "node", node, "error", err)
		}
		return nil
	}
	err := workflow.ExecuteActivity(forStart(ctx, node, "undo the start", discardPromise, priorityStart), workspace.ActivityDiscardInstance,
		workspace.DiscardInstanceInput{Target: w.target(instance)}).Get(ctx, nil)
	if err != nil {
		unused := w.state.Incomplete || w.state.Operation.Step != workspace.StepRun
		if unused && slices.Contains([]workspace.ErrorType{"", workspace.ErrorNotFound}, failureType(err)) {
			// Nothing ran on it and it is only a copy; what is left of it on a silent node is found by its agent's scan.
			return nil
		}
		w.state.Kept = &workspace.Kept{Node: node, Token: instance.Token, Sealed: instance.Sealed, Volume: instance.Volume, Key: instance.Key,
			Why: "its start failed after it may have run"}
		return nil
	}
	// A store that is away must not hold up the person who waits: what is not released now is with the next release.
	if err := w.releasePlacements(controlSoon(ctx, "release the placement"), node, instance.Token, instance.Token); err != nil {
		w.logger.Warn("releasing the placement of a start that failed", "node", node, "error", err)
	}
	return nil
}

func (w *entity) target(instance *workspace.Instance) workspace.Target {
	return workspace.Target{
		WorkspaceID: w.state.ID, Name: w.state.Name, Token: instance.Token, Node: instance.Node, Volume: instance.Volume, Sealed: instance.Sealed,
	}
}

// restore makes a new instance whose base is an older snapshot. What was the head stays in the store.
func (w *entity) restore(ctx workflow.Context, request *workspace.RestoreRequest) error {
	if w.state.Instance != nil {
		return &refusalError{workspace.ErrorRefused, fmt.Sprintf("workspace %s has an instance on node %s", w.state.Name, w.state.Instance.Node)}
	}
	if w.state.Kept != nil {
		if w.state.Kept.Snapshot == "" {
			return &refusalError{workspace.ErrorRefused, "content that is not backed up is kept on node " + w.state.Kept.Node}
		}
		w.giveUpKept(ctx, "an older snapshot was restored while a store did not yet hold it")
	}
	if err := w.chooseHead(ctx, request.Snapshot); err != nil {
		var refusal *refusalError
		if !errors.As(err, &refusal) {
			return err
		}
		// Going back is what the person asked for, by name.
	}
	incomplete := w.state.Incomplete
	w.state.Incomplete = false
	err := w.launch(ctx, launch{only: request.Node, base: request.Snapshot})
	if err != nil && incomplete && w.state.Head == nil && w.state.Kept == nil {
		w.state.Incomplete = true // its first content is still to come
	}
	return err
}
