package workflows

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/workflow"

	"holdfast/workspace"
)

// Going on after the loss of a node (DESIGN section 7). News of a node is a signal; what is true is asked of the node's
// workflow, and DecideRecovery says what follows: staying, waiting, going on elsewhere, or blocking.

// listen takes news of nodes, beside everything else.
func (w *entity) listen(ctx workflow.Context) {
	w.news = workflow.GetSignalChannelWithOptions(ctx, workspace.SignalNodeNews,
		workflow.SignalChannelOptions{Description: "a node that has something of this workspace is lost, or has returned"})
	workflow.Go(ctx, func(ctx workflow.Context) {
		for {
			var news workspace.NodeNews
			w.news.Receive(ctx, &news)
			if ctx.Err() != nil {
				return
			}
			w.hear(ctx, news)
		}
	})
}

// drainNews hears what has arrived and was not heard yet: continuing as new would lose it.
func (w *entity) drainNews(ctx workflow.Context) {
	var news workspace.NodeNews
	for w.news.ReceiveAsync(&news) {
		w.hear(ctx, news)
	}
}

func (w *entity) hear(ctx workflow.Context, news workspace.NodeNews) {
	w.heard = true
	if news.Lost {
		w.lost[news.Node] = news
		w.back(news.Node, false)
		w.notice(ctx)
		if w.interrupt != nil && w.state.Operation != nil && w.state.Operation.Kind == workspace.OperationSalvage {
			w.interruptedBy = workspace.OperationRecover
			w.interrupt()
			w.interrupt = nil
		}
		if news.Word != "" && w.undecided() && w.state.Loss.Node == news.Node {
			w.state.Loss.NextLook = workflow.Now(ctx)
		}
		return
	}
	delete(w.lost, news.Node)
	w.back(news.Node, true)
	w.restarted(ctx, news)
	loss := w.state.Loss
	switch {
	case loss == nil || loss.Node != news.Node:
	case w.undecided():
		loss.NextLook = workflow.Now(ctx) // it is asked at once
	case !loss.Replaced:
		w.state.Loss = nil // what waits for it there goes on
		w.describeNow(ctx)
	}
}

// holder is the node that has the newest content, if one has.
func (w *entity) holder() string {
	switch {
	case w.state.Instance != nil:
		return w.state.Instance.Node
	case w.state.Kept != nil:
		return w.state.Kept.Node
	default:
		return ""
	}
}

// notice sets the loss by what was heard of the node that has the newest content, and cuts what only waits there. It is
// called whenever one of the two may have changed.
func (w *entity) notice(ctx workflow.Context) {
	loss, node := w.state.Loss, w.holder()
	if loss != nil && loss.Replaced && w.state.Phase == workspace.Recovering {
		return // it is being gone on without
	}
	if loss != nil && loss.Node != node {
		w.state.Loss, loss = nil, nil
	}
	news, lost := w.lost[node]
	if !lost {
		return
	}
	if loss == nil {
		loss = &workspace.Loss{Node: node, At: news.At, Heard: news.Heard, NextLook: workflow.Now(ctx)}
		w.state.Loss = loss
	}
	loss.Epoch = max(loss.Epoch, news.Epoch)
	switch {
	case w.cut != nil:
		w.wasCut = true
		w.cut()
		w.cut = nil
	case w.interrupt != nil && w.waitsForItsNode():
		w.interruptedBy = workspace.OperationRecover
		w.interrupt()
		w.interrupt = nil
	}
	w.describeNow(ctx)
}

// waitsForItsNode says whether the operation under way can only wait for a node that is lost while something better can
// be done. A stop is not among them before its backup is acknowledged: it goes on when the node returns (A3).
func (w *entity) waitsForItsNode() bool {
	if w.state.Operation == nil {
		return false
	}
	switch w.state.Operation.Kind {
	case workspace.OperationBackup, workspace.OperationSnapshot, workspace.OperationRetain, workspace.OperationAdopt, workspace.OperationFind:
		return true
	case workspace.OperationMove:
		// While it runs, and once every store has its content.
		return w.state.Phase == workspace.Running || w.state.Operation.Step == workspace.StepRemove
	case workspace.OperationStop, workspace.OperationRelease:
		return w.state.Operation.Step == workspace.StepRemove // of content that every store has
	}
	return false
}

// undecided says whether a loss leaves something to be decided: something ran on the node, or is gone on without.
func (w *entity) undecided() bool {
	loss := w.state.Loss
	switch {
	case loss == nil:
		return false
	case loss.Replaced:
		return w.state.Phase == workspace.Recovering
	case w.state.Instance == nil:
		return false
	}
	return w.state.Phase == workspace.Running || w.state.Phase == workspace.Recovering ||
		w.state.Phase == workspace.Blocked && w.state.Block != nil && w.state.Block.Type == workspace.ErrorNodeLost
}

// nextLook is when the loss is to be looked at; zero when only news can change anything.
func (w *entity) nextLook() time.Time {
	if !w.undecided() {
		return time.Time{}
	}
	return w.state.Loss.NextLook
}

func (w *entity) lookDue(ctx workflow.Context) bool {
	next := w.nextLook()
	return !next.IsZero() && !workflow.Now(ctx).Before(next)
}

func (w *entity) lookAtNode(ctx workflow.Context, node string) (workspace.LookAtNodeResult, error) {
	var look workspace.LookAtNodeResult
	err := workflow.ExecuteActivity(controlSoon(ctx, "ask whether node "+node+" is there"), workspace.ActivityLookAtNode,
		workspace.LookAtNodeInput{Node: node}).Get(ctx, &look)
	return look, err
}

// decide looks at the node and does what follows. Like perform it returns an error only when the workflow is cancelled.
func (w *entity) decide(ctx workflow.Context) error {
	loss := w.state.Loss
	look, err := w.lookAtNode(ctx, loss.Node)
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case err != nil:
		_, words := describe(err)
		w.wait(ctx, "asking whether it is there failed: "+words, workflow.Now(ctx).Add(recoverAgain))
		return nil
	}
	if look.Node.Loss != nil {
		loss.At, loss.Heard = look.Node.Loss.At, look.Node.Loss.Heard
	}
	decision := workspace.DecideRecovery(w.state, look, workflow.Now(ctx))
	switch decision.Action {
	case workspace.RecoveryStay:
		delete(w.lost, loss.Node)
		return w.perform(ctx, w.ownCommand(ctx, workspace.OperationAdopt))
	case workspace.RecoveryMove:
		return w.perform(ctx, w.ownCommand(ctx, workspace.OperationRecover))
	case workspace.RecoveryBlock:
		loss.Waiting, loss.NextLook = decision.Why, workflow.Now(ctx).Add(slowest)
		w.block(ctx, workspace.ErrorNodeLost, decision.Why,
			fmt.Sprintf("nothing, when node %s returns: it goes on there by itself; a workspace never starts empty in the place of content that it had", loss.Node))
	default:
		w.wait(ctx, decision.Why, decision.Until)
	}
	return nil
}

func (w *entity) ownCommand(ctx workflow.Context, kind workspace.OperationKind) workspace.Command {
	return workspace.Command{Operation: workspace.Operation{
		ID: fmt.Sprintf("%s-%d-%d", kind, w.state.Token, w.state.Loss.Attempts), Kind: kind, Began: workflow.Now(ctx),
	}}
}

// wait says why nothing is done until the next look.
func (w *entity) wait(ctx workflow.Context, why string, until time.Time) {
	loss := w.state.Loss
	loss.Waiting, loss.NextLook = why, until
	w.state.Block = nil
	w.enter(ctx, workspace.Recovering, loss.What()+"; "+why)
	w.describeNow(ctx)
}

// adopt goes on with the instance that was on the node when it went away. It is found running, or started again where it
// was: a machine that was switched off has stopped it.
func (w *entity) adopt(ctx workflow.Context) error {
	instance, look := w.state.Instance, w.state.Look
	w.step(ctx, workspace.StepRun, "on node "+instance.Node+", which has returned")
	err := w.startAgain(ctx, instance)
	if err == nil {
		w.looked(look)
		w.state.Loss, w.state.Block = nil, nil
		w.enter(ctx, workspace.Running, "on node "+instance.Node+", which was away for a while; nothing was lost")
		return nil
	}
	loss := w.state.Loss
	var timeout *temporal.TimeoutError
	switch kind, words := describe(err); {
	case temporal.IsCanceledError(err), loss == nil:
		return err
	case kind == workspace.ErrorContentMissing && w.state.Head != nil && instance.Volume == "":
		// It came back without its disk.
		loss.Gone = true
		w.replace(ctx, "node "+instance.Node+" came back without it")
		w.wait(ctx, "it came back without the content", workflow.Now(ctx))
		return err
	case kind == "" || passes(kind) || errors.As(err, &timeout):
		w.wait(ctx, "going on there failed: "+words, workflow.Now(ctx).Add(recoverAgain))
		return err
	default:
		w.state.Loss = nil
		return w.keep(ctx, w.target(instance), instance.Sequence, err)
	}
}

// passes says whether what keeps an instance from being started again on its node ends by itself some day.
func passes(kind workspace.ErrorType) bool {
	return kind == workspace.ErrorNoNode || kind == workspace.ErrorVolumeMissing || kind == workspace.ErrorNodeUnguarded
}

func (w *entity) startAgain(ctx workflow.Context, instance *workspace.Instance) error {
	node, err := w.place(ctx, launch{only: instance.Node}, nil)
	if err != nil {
		return err
	}
	sealed, err := w.sealTo(ctx, node, workspace.SealInput{})
	if err != nil {
		return err
	}
	w.step(ctx, workspace.StepRun, "on node "+instance.Node+", which is there again")
	var started workspace.StartInstanceResult
	if err := workflow.ExecuteActivity(forStart(ctx, instance.Node, "find the instance, or start it again", runPromise, priorityRecover),
		workspace.ActivityStartInstance, workspace.StartInstanceInput{
			Target: w.target(instance), Image: instance.Image, Spec: w.state.Spec, Secrets: sealed.Secrets, Exclusive: instance.Volume != "",
		}).Get(ctx, &started); err != nil {
		return err
	}
	instance.Container = started.Container
	return nil
}

// recover makes an instance elsewhere, of the newest verified snapshot. What fails is tried again later by itself, unless
// only a person can mend it.
func (w *entity) recover(ctx workflow.Context) error {
	w.enter(ctx, workspace.Recovering, w.state.Loss.What()+"; it is gone on elsewhere")
	// invariant 4: nobody is asked here, so that a store which may hold something newer is waited for.
	if err := w.chooseHead(ctx, ""); err != nil {
		return w.notYet(ctx, err)
	}
	tried, home := []string{w.state.Loss.Node}, false
	for {
		plan := launch{replaces: true, priority: priorityRecover}
		node, err := w.place(ctx, plan, tried)
		if failureType(err) == workspace.ErrorNoNode && w.state.Loss.Replaced && !home {
			home = true
			node, err = w.placeWhereItWas(ctx)
		}
		if err != nil {
			return w.notYet(ctx, err)
		}
		if err = w.attempt(ctx, plan, node); err == nil {
			w.recovered(ctx)
			return nil
		}
		if !w.state.Loss.Replaced {
			return w.notYet(ctx, err) // nothing was recorded: all is as it was
		}
		if undo := w.undo(ctx, node.Node); undo != nil {
			return undo
		}
		if ctx.Err() != nil || !anotherNodeMayDo(err) || w.pinned() {
			return w.notYet(ctx, err)
		}
		tried = append(tried, node.Node)
	}
}

// placeWhereItWas uses the node that was lost when it is there again and no other is. What it still runs of the instance
// that was replaced is stopped first.
func (w *entity) placeWhereItWas(ctx workflow.Context) (workspace.PlaceResult, error) {
	node, err := w.place(ctx, launch{only: w.state.Loss.Node}, nil)
	if err != nil {
		return node, err
	}
	for _, left := range w.state.Left {
		if left.Node != node.Node {
			continue
		}
		target := workspace.Target{WorkspaceID: w.state.ID, Name: w.state.Name, Token: left.Token, Node: left.Node, Volume: left.Volume}
		if err := workflow.ExecuteActivity(forStart(ctx, node.Node, fmt.Sprintf("stop instance %d, which was replaced", left.Token), runPromise, priorityRecover),
			workspace.ActivityStopInstance, workspace.StopInstanceInput{Target: target, GraceSeconds: 10, Dismiss: left.Handed}).Get(ctx, nil); err != nil {
			return node, err
		}
	}
	return node, nil
}

// mayReplace is the last look before a new instance is recorded: a node that has returned keeps its workspaces, and the
// brake may hold them by now. From here on what is on the node is not the newest content any more.
func (w *entity) mayReplace(ctx workflow.Context) error {
	look, err := w.lookAtNode(ctx, w.state.Loss.Node)
	if err != nil {
		return err
	}
	decision := workspace.DecideRecovery(w.state, look, workflow.Now(ctx))
	if decision.Action != workspace.RecoveryMove {
		return &refusalError{workspace.ErrorNodeLost, "another instance was not recorded: " + decision.Why}
	}
	switch {
	case w.state.Loss.Replaced:
	case w.state.Instance.Volume != "":
		w.handOver(ctx, "node "+w.state.Loss.Node+" was lost")
	default:
		w.replace(ctx, "node "+w.state.Loss.Node+" was lost, and the workspace went on elsewhere")
	}
	return nil
}

// replace goes on without the instance on the lost node, and notes what that costs.
func (w *entity) replace(ctx workflow.Context, why string) {
	instance, loss := w.state.Instance, w.state.Loss
	w.state.Recovery = &workspace.Recovery{
		From: loss.Node, Token: instance.Token, LostAt: loss.At, LostWork: workspace.LostWork(w.state, loss.At), Gone: loss.Gone,
	}
	if w.state.Head != nil {
		w.state.Recovery.Snapshot = w.state.Head.Snapshot
	}
	w.state.Left = append(w.state.Left, workspace.Kept{
		Node: instance.Node, Token: instance.Token, Sequence: instance.Sequence, Sealed: instance.Sealed, Why: why,
		Replaced: true, Volume: instance.Volume,
	})
	w.state.Instance = nil
	loss.Replaced = true
	w.describeNow(ctx)
}

// recovered ends a loss that was gone on without.
func (w *entity) recovered(ctx workflow.Context) {
	recovery := w.state.Recovery
	recovery.To, recovery.At = w.state.Instance.Node, workflow.Now(ctx)
	recovery.Snapshot = w.state.Instance.Base
	w.state.Loss = nil
	w.enter(ctx, workspace.Running, recovery.Words())
}

// notYet ends an attempt to go on elsewhere: it is made again later, or a person is waited for.
func (w *entity) notYet(ctx workflow.Context, err error) error {
	loss := w.state.Loss
	kind, words := describe(err)
	var timeout *temporal.TimeoutError
	switch {
	case temporal.IsCanceledError(err) || ctx.Err() != nil:
		if loss.Replaced {
			// The person's next command decides.
			w.state.Loss = nil
			w.enter(ctx, workspace.Stopped, "going on after the loss of node "+loss.Node+" was given up")
		}
		return err
	case !loss.Replaced, kind == "", kind == workspace.ErrorNoNode, kind == workspace.ErrorNodeFull, kind == workspace.ErrorNodeReplaced, kind == workspace.ErrorNodeUnguarded, kind == workspace.ErrorDiskFull,
		kind == workspace.ErrorVolumeMissing, kind == workspace.ErrorNodeLost, kind == workspace.ErrorOlderVersion, errors.As(err, &timeout):
		if !w.pinned() {
			loss.Attempts++
			pause := min(recoverAgain<<min(loss.Attempts-1, 4), recoverSlowest)
			var refusal *refusalError
			if errors.As(err, &refusal) && refusal.kind == workspace.ErrorNodeLost {
				pause = time.Second // what is true now says what follows
			}
			w.wait(ctx, words, workflow.Now(ctx).Add(pause))
			return err
		}
	}
	w.state.Loss = nil
	w.block(ctx, kind, loss.What()+", and going on elsewhere failed: "+words,
		fmt.Sprintf("mend the cause, then `holdfast start %s`; `holdfast snapshots %s` lists the versions", w.state.Name, w.state.Name))
	return err
}

// startAfterLoss lets a person start a workspace whose node is lost without waiting for what is decided by itself. What
// is on the node stays there.
func (w *entity) startAfterLoss(ctx workflow.Context, accepted string) error {
	loss, instance := w.state.Loss, w.state.Instance
	if loss == nil || loss.Replaced || instance == nil {
		w.state.Loss = nil
		return nil
	}
	if accepted != "" && w.isHead(accepted) {
		w.replace(ctx, "a start with --accept-version went on without it")
		w.state.Loss = nil
		return nil
	}
	message := fmt.Sprintf("workspace %s has its newest content on node %s, which is lost (%s); ", w.state.Name, loss.Node, loss.Waiting)
	if w.state.Head == nil {
		message += "there is no verified version yet, so that only that node has it"
	} else {
		message += fmt.Sprintf("it goes on by itself; the newest verified version is snapshot %s, %s old: --accept-version %s goes on with it now",
			w.state.Head.Snapshot, workflow.Now(ctx).Sub(w.state.Head.Time).Round(time.Second), w.state.Head.Snapshot)
	}
	return &refusalError{workspace.ErrorOlderVersion, message}
}

// withoutLostNode goes on without content that was kept on a node which is lost when a snapshot of exactly that
// content is the newest version: nothing is gone back to. Else the start is refused (invariant 4).
func (w *entity) withoutLostNode(ctx workflow.Context) error {
	if w.state.Kept.Volume != "" {
		return w.reachable(ctx) // it is not lost with the node
	}
	look, err := w.lookAtNode(ctx, w.state.Kept.Node)
	switch {
	case err != nil:
		return err
	case !look.Known || look.Node.Phase != workspace.NodeLost:
		return nil
	case !w.removedAlready() || w.state.Head.Omitted > 0 && !w.state.Kept.AcceptedOmissions:
		w.state.Kept.Why = strings.TrimSuffix(w.state.Kept.Why, nodeIsLost) + nodeIsLost
		refusal := w.olderVersion(ctx, "")
		if last := len(w.state.Recent) - 1; last >= 0 && w.state.Recent[last].Kind == workspace.OperationStop && w.state.Recent[last].ErrorType == workspace.ErrorInterrupted {
			w.resumeStop(ctx, refusal) // which this start has given up in vain (A2)
		}
		return refusal
	}
	w.giveUpKept(ctx, "its node is lost; a snapshot of exactly this content was gone on with")
	w.notice(ctx)
	return nil
}

const nodeIsLost = "; the node is lost"
