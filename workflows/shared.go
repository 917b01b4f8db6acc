package workflows

import (
	"fmt"
	"time"

	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/workflow"

	"holdfast/workspace"
)

// Going on elsewhere with the very files of a node that is lost, or is left: they are on a shared volume
// (docs/decisions/0019-shared-volumes.md). What is kept there is no node's, and is taken over in an order that no crash breaks:
// the new instance is recorded (invariant 3), it is made sure that nothing of the old one can be at work (quieten), the directory is
// given the new token (invariant 6), the new one is started.

func (w *entity) shared() bool { return w.state.Spec.Volume.Kind == workspace.VolumeShared }

// pinned says whether the newest content can be gone on with on one node only.
func (w *entity) pinned() bool { return w.state.Kept != nil && w.state.Kept.Volume == "" }

// handOver gives up the instance on the lost node, and keeps its content for the next one. Nothing is lost by that.
func (w *entity) handOver(ctx workflow.Context, why string) {
	instance, loss := w.state.Instance, w.state.Loss
	w.state.Recovery = &workspace.Recovery{From: loss.Node, Token: instance.Token, LostAt: loss.At, Volume: instance.Volume}
	w.state.Kept = &workspace.Kept{
		Node: instance.Node, Token: instance.Token, Sequence: instance.Sequence, Sealed: instance.Sealed, Volume: instance.Volume,
		Key: instance.Key, Quiet: instance.Quiet, Held: true, Why: why,
	}
	w.state.Instance = nil
	loss.Replaced = true
	w.describeNow(ctx)
}

// quieten makes sure that nothing works any more on what is kept, before another node may. It is asked after the new instance
// is recorded: from then on the old one goes on in no case, also when its node takes its lease again.
func (w *entity) quieten(ctx workflow.Context) error {
	for again := time.Second; ; again = min(2*again, slowest) {
		kept := w.state.Kept
		if kept.Quiet {
			return nil
		}
		look, err := w.lookAtNode(ctx, kept.Node)
		if err != nil {
			return err
		}
		fence := workspace.FenceOf(look, kept.Node, kept.Key, workflow.Now(ctx))
		if fence.Answers {
			if err = w.stopOn(ctx, kept); err == nil {
				fence.Fenced = true
			} else if temporal.IsCanceledError(err) {
				return err
			}
		}
		if fence.Fenced {
			kept.Quiet = true
			return nil
		}
		w.step(ctx, workspace.StepLook, fence.Why)
		if err := w.awaitNews(ctx, max(again, fence.Until.Sub(workflow.Now(ctx)))); err != nil {
			return err
		}
	}
}

// stopOn has a node that is there stop what it runs of what is kept; nobody else has its files yet.
func (w *entity) stopOn(ctx workflow.Context, kept *workspace.Kept) error {
	w.step(ctx, workspace.StepHalt, fmt.Sprintf("instance %d on node %s", kept.Token, kept.Node))
	target := workspace.Target{WorkspaceID: w.state.ID, Name: w.state.Name, Token: kept.Token, Node: kept.Node, Volume: kept.Volume}
	return workflow.ExecuteActivity(forStart(ctx, kept.Node, fmt.Sprintf("stop instance %d, whose content is taken over", kept.Token), runPromise, priorityRecover),
		workspace.ActivityStopInstance, workspace.StopInstanceInput{Target: target, GraceSeconds: 10}).Get(ctx, nil)
}

// awaitNews waits for a time, or until something is heard of a node.
func (w *entity) awaitNews(ctx workflow.Context, pause time.Duration) error {
	w.heard = false
	_, err := workflow.AwaitWithOptions(ctx, workflow.AwaitOptions{
		Timeout: max(pause, time.Millisecond), TimerOptions: workflow.TimerOptions{Summary: "look at the node again"},
	}, func() bool { return w.heard })
	return err
}

// handed notes that what a node had is another's now. What is left of it there is only its container and its placement.
func (w *entity) handed(ctx workflow.Context, kept *workspace.Kept, to string) {
	if kept.Node == to || kept.Volume == "" {
		return
	}
	_, lost := w.lost[kept.Node]
	w.state.Left = append(w.state.Left, workspace.Kept{
		Node: kept.Node, Token: kept.Token, Volume: kept.Volume, Replaced: true, Handed: true, Back: !lost,
		Why: "node " + to + " went on with its files, on the shared volume",
	})
}

// dismiss ends what is left on a node of an instance whose content was taken over. Its content is not looked at.
func (s *salvaging) dismiss(ctx workflow.Context) error {
	s.step(ctx, workspace.StepHalt, fmt.Sprintf("instance %d on node %s, whose files another instance has", s.token, s.node))
	if err := s.do(s.within(ctx, "stop the instance that was replaced", haltAttempt),
		workspace.ActivityStopInstance, workspace.StopInstanceInput{Target: s.target, GraceSeconds: 10, Dismiss: true}, nil); err != nil {
		return err
	}
	return s.forget(ctx)
}

// takesOver runs a command that works on content which outlives its node: when that is lost, the command goes on where the
// content can be reached (A3).
func (w *entity) takesOver(ctx workflow.Context, command func(workflow.Context) error) error {
	if !w.state.OnVolume() {
		return command(ctx)
	}
	for {
		if err := w.elsewhere(ctx); err != nil {
			if w.state.Phase == workspace.Stopping { // only who gives it up ends that
				w.enter(ctx, workspace.Stopped, "the stop was given up before its backup was done; the content is on shared volume "+w.state.Kept.Volume)
			}
			return err
		}
		cut, cancel := workflow.WithCancel(ctx)
		w.cut, w.wasCut = cancel, false
		err := command(cut)
		w.cut = nil
		cancel()
		if err == nil || !w.wasCut || ctx.Err() != nil || !w.state.OnVolume() {
			return err
		}
		w.logger.Info("the node was lost on the way: it is gone on with elsewhere", "node", w.holder())
	}
}

// elsewhere waits, when the node with the content is lost, until it returns or another can go on with the content, and has that
// take it over.
func (w *entity) elsewhere(ctx workflow.Context) error {
	for again := time.Second; ; again = min(2*again, slowest) {
		node := w.holder()
		look, err := w.lookAtNode(ctx, node)
		switch {
		case temporal.IsCanceledError(err):
			return err
		case err != nil:
			if err := w.awaitNews(ctx, again); err != nil {
				return err
			}
			continue
		case !look.Known:
			return nil
		}
		fence := workspace.FenceOf(look, node, w.state.HolderKey(), workflow.Now(ctx))
		if fence.Answers || look.Node.Loss == nil && look.Node.Phase != workspace.NodeReady {
			return nil // there, or not yet known to be lost
		}
		if w.state.Instance != nil {
			instance := w.state.Instance
			_ = w.keptOf(w.target(instance), instance.Sequence, "node "+node+" was lost while it was stopped")
		}
		kept, why := w.state.Kept, fence.Why
		switch {
		case look.Brake.Held && look.Node.Loss != nil && look.Node.Loss.Dead == "":
			why = "held: " + look.Brake.Why
		case kept.Quiet || fence.Fenced:
			err := w.takeOver(ctx, node)
			if err == nil || temporal.IsCanceledError(err) {
				return err
			}
			_, why = describe(err)
			if kept.Quiet {
				fence.Until = time.Time{}
			}
		}
		w.step(ctx, workspace.StepLook, why)
		if w.state.Operation.Kind == workspace.OperationStop {
			w.state.Block = nil
			w.enter(ctx, workspace.Stopping, "node "+node+" is lost; "+why)
		}
		if err := w.awaitNews(ctx, max(again, fence.Until.Sub(workflow.Now(ctx)))); err != nil {
			return err
		}
	}
}

// keptOf keeps content in the place of the instance that worked on it.
func (w *entity) keptOf(target workspace.Target, sequence uint64, why string) *workspace.Kept {
	key := w.state.HolderKey()
	quiet := w.state.Instance != nil && w.state.Instance.Quiet || w.state.Kept != nil && w.state.Kept.Token == target.Token && w.state.Kept.Quiet
	w.state.Instance = nil
	w.state.Kept = &workspace.Kept{
		Node: target.Node, Token: target.Token, Sealed: target.Sealed, Sequence: sequence, Held: true, Why: why, Volume: target.Volume,
		Key: key, Quiet: quiet && target.Volume != "",
	}
	return w.state.Kept
}

// takeOver gives kept content a token of its own on another node than the one that had it, without starting anything.
func (w *entity) takeOver(ctx workflow.Context, from string) error {
	kept := w.state.Kept
	node, err := w.place(ctx, launch{exclude: from}, []string{from})
	if err != nil {
		return err
	}
	sealed, err := w.sealTo(ctx, node, workspace.SealInput{})
	if err != nil {
		return err
	}
	w.step(ctx, workspace.StepRecord, "node "+node.Node+" goes on with what node "+from+" had")
	target, err := w.recordKept(ctx, w.keptTarget(), node, controlSoon)
	if err != nil {
		return err
	}
	if err := w.quieten(ctx); err != nil {
		return err
	}
	target.Sealed = sealed.Password
	w.step(ctx, workspace.StepContent, "taking over what node "+from+" had")
	if err := workflow.ExecuteActivity(forStart(ctx, node.Node, "take over what node "+from+" had", contentPromise, priorityStop),
		workspace.ActivityPrepareContent, workspace.PrepareContentInput{Target: target, Adopt: kept.Token}).Get(ctx, nil); err != nil {
		return err
	}
	w.handed(ctx, kept, node.Node)
	w.state.Kept = &workspace.Kept{Node: target.Node, Token: target.Token, Sealed: target.Sealed, Volume: target.Volume, Key: node.Recipient, Quiet: true, Held: true,
		Why: "it is not backed up", Snapshot: kept.Snapshot, StatDigest: kept.StatDigest}
	w.state.Loss = nil
	w.notice(ctx)
	return nil
}

// setQuiet notes that nothing of what is being stopped runs any more.
func (w *entity) setQuiet() {
	if w.state.Instance != nil {
		w.state.Instance.Quiet = w.state.Instance.Volume != ""
	} else if w.state.Kept != nil {
		w.state.Kept.Quiet = w.state.Kept.Volume != ""
	}
}

// reachable refuses a start of content on a shared volume while something may still work on it (A5).
func (w *entity) reachable(ctx workflow.Context) error {
	kept := w.state.Kept
	if kept.Quiet {
		return nil
	}
	look, err := w.lookAtNode(ctx, kept.Node)
	if err != nil {
		return err
	}
	if fence := workspace.FenceOf(look, kept.Node, kept.Key, workflow.Now(ctx)); !fence.Fenced && !fence.Answers {
		return &refusalError{workspace.ErrorNodeLost, fmt.Sprintf("the newest content of workspace %s is on shared volume %s, and node %s, which had it, is lost: %s; nothing was started",
			w.state.Name, kept.Volume, kept.Node, fence.Why)}
	}
	return nil
}

// moveShared is move for a workspace on a shared volume: it is stopped, and another node goes on with its files. Nothing is
// backed up for that and nothing is restored.
func (w *entity) moveShared(ctx workflow.Context, request *workspace.MoveRequest, plan launch) error {
	instance := w.state.Instance
	if _, err := w.place(ctx, plan, []string{plan.exclude}); temporal.IsCanceledError(err) {
		return err
	} else if err != nil {
		_, words := describe(err)
		return w.notBegun(failureType(err), "there is no node that takes it: "+words)
	}
	w.state.Operation.Halted = workflow.Now(ctx)
	w.step(ctx, workspace.StepHalt, "")
	halted, err := w.halt(ctx, w.target(instance), &workspace.StopRequest{Subject: request.Subject})
	switch {
	case failureType(err) == workspace.ErrorHookFailed:
		w.noteFailedHook(err)
		return w.runsOn(ctx, err)
	case temporal.IsCanceledError(err) && w.interruptedBy == workspace.OperationRecover:
		return err // its node is lost: it is gone on with as any other
	case err != nil:
		return w.keep(ctx, w.target(instance), instance.Sequence, err)
	}
	w.noteHooks(halted.Hooks)
	instance.Quiet = true
	w.keptOf(w.target(instance), instance.Sequence, "it is being moved")
	if ctx.Err() != nil || w.somethingElseIsWanted() {
		w.enter(ctx, workspace.Stopped, "it was being moved")
		return w.gaveWay("it is stopped, and its files are on the shared volume")
	}
	var failed error
	plan.back, plan.failed = instance.Node, &failed
	if err := w.launch(ctx, plan); err != nil || failed == nil {
		return err
	}
	kind, words := describe(failed)
	return w.notMoved(kind, fmt.Sprintf("it runs on node %s, with all that it had: %s", w.state.Instance.Node, words))
}
