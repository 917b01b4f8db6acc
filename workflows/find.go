package workflows

import (
	"errors"
	"fmt"
	"time"

	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/workflow"

	"holdfast/workspace"
)

// Another start of a node's agent says nothing about the node's machine: it may have been switched off and on before
// anybody called the node lost, and then nothing runs there that ran before. So after every one the workspace looks for its
// instance: one that runs is gone on with, one that has ended is started again from the content that is there, and without
// that the workspace goes on from its newest verified snapshot (docs/decisions/0011-restarted-nodes.md).

// restarted notes that the instance has to be looked for.
func (w *entity) restarted(ctx workflow.Context, news workspace.NodeNews) {
	if news.Incarnation == "" || workflow.GetVersion(ctx, "look-for-the-instance", workflow.DefaultVersion, 1) == workflow.DefaultVersion {
		return
	}
	instance := w.state.Instance
	if instance == nil || instance.Node != news.Node {
		return
	}
	if known := w.state.Looked(); known != nil && known.Incarnation == news.Incarnation {
		known.Next = time.Time{}
		return
	}
	w.state.Look = &workspace.Look{Node: instance.Node, Token: instance.Token, Incarnation: news.Incarnation, Since: workflow.Now(ctx)}
	if w.interrupt != nil && w.state.Operation != nil && forgoable(w.state.Operation.Kind) {
		// What nobody asked for may take hours; it begins again when it is known what runs.
		w.interruptedBy = workspace.OperationFind
		w.interrupt()
		w.interrupt = nil
	}
	w.describeNow(ctx)
}

// forgoable is what nobody asked for and nobody waits for.
func forgoable(kind workspace.OperationKind) bool {
	return kind == workspace.OperationSnapshot || kind == workspace.OperationSalvage || kind == workspace.OperationRetain
}

// nextFind is when the instance is to be looked for; ok is false when it is not.
func (w *entity) nextFind() (at time.Time, ok bool) {
	look := w.state.Looked()
	if look == nil || w.state.Loss != nil || w.state.Phase != workspace.Running && w.state.Phase != workspace.Recovering {
		return time.Time{}, false
	}
	return look.Next, true
}

func (w *entity) findDue(ctx workflow.Context) bool {
	at, ok := w.nextFind()
	return ok && !workflow.Now(ctx).Before(at)
}

func (w *entity) findCommand(ctx workflow.Context) workspace.Command {
	look := w.state.Looked()
	return workspace.Command{Operation: workspace.Operation{
		ID: fmt.Sprintf("find-%d-%s-%d", look.Token, look.Incarnation, look.Attempts), Kind: workspace.OperationFind, Began: workflow.Now(ctx),
	}}
}

// find looks for the instance and starts it again when it has ended. What the node cannot answer now is asked again.
func (w *entity) find(ctx workflow.Context) error {
	instance, look := w.state.Instance, w.state.Looked()
	w.step(ctx, workspace.StepFind, "on node "+instance.Node+", whose agent was started again")
	var found workspace.FindInstanceResult
	err := workflow.ExecuteActivity(forStart(ctx, instance.Node, "look whether the instance runs", findPromise, priorityRecover),
		workspace.ActivityFindInstance, workspace.FindInstanceInput{Target: w.target(instance)}).Get(ctx, &found)
	if err == nil && found.Runs {
		w.looked(look)
		if w.state.Phase != workspace.Running {
			w.enter(ctx, workspace.Running, "on node "+instance.Node)
		}
		return nil
	}
	if err == nil {
		w.enter(ctx, workspace.Recovering, fmt.Sprintf("node %s was started again and its instance has ended; it is started again there, with the content that is there", instance.Node))
		err = w.startAgain(ctx, instance)
	}
	var timeout *temporal.TimeoutError
	switch kind, words := describe(err); {
	case err == nil:
		w.looked(look)
		w.state.Block = nil
		w.enter(ctx, workspace.Running, fmt.Sprintf("on node %s, which was started again; the instance had ended and was started again with the content that was there", instance.Node))
		return nil
	case temporal.IsCanceledError(err):
		return err
	case kind == workspace.ErrorContentMissing:
		return w.findNothing(ctx, err)
	case kind == "" || passes(kind) || errors.As(err, &timeout):
		look.Attempts++
		look.Why, look.Next = words, workflow.Now(ctx).Add(min(recoverAgain<<min(look.Attempts-1, 4), recoverSlowest))
		if w.state.Phase == workspace.Recovering {
			w.enter(ctx, workspace.Recovering, fmt.Sprintf("node %s was started again and its instance has ended; starting it again there failed: %s", instance.Node, words))
		}
		return err
	default:
		w.state.Look = nil
		return w.keep(ctx, w.target(instance), instance.Sequence, err)
	}
}

// looked ends a look that was answered. The agent may have started once more meanwhile: that look is still to be made,
// because the answer can be from before.
func (w *entity) looked(look *workspace.Look) {
	if w.state.Look == look {
		w.state.Look = nil
	}
}

// findNothing goes on from the newest verified snapshot, as after the loss of the node. Without one it never starts empty
// (A10): a disk that is not mounted yet is found by the person's next start.
func (w *entity) findNothing(ctx workflow.Context, err error) error {
	instance, now := w.state.Instance, workflow.Now(ctx)
	w.state.Look = nil
	if instance.Volume != "" {
		// It was there for every node to see: what became of it is for a person to find out, and nothing is gone back to meanwhile.
		kept := w.keep(ctx, w.target(instance), instance.Sequence, err)
		w.state.Block.Mend = fmt.Sprintf("look on shared volume %s for %s; then `holdfast start %s`, or go back with `holdfast start %s --accept-version SNAPSHOT`",
			instance.Volume, workspace.InstanceName(w.state.ID, instance.Token), w.state.Name, w.state.Name)
		return kept
	}
	if w.state.Head == nil {
		kept := w.keep(ctx, w.target(instance), instance.Sequence, err)
		w.state.Kept.Why = "nothing was ever backed up, and its node did not have it when its agent was started again"
		w.state.Block.Mend = fmt.Sprintf("bring the disk of node %s back, then `holdfast start %s`; a workspace never starts empty in the place of content that it had",
			instance.Node, w.state.Name)
		return kept
	}
	w.state.Loss = &workspace.Loss{Node: instance.Node, At: now, Heard: now, Gone: true}
	w.replace(ctx, "node "+instance.Node+" had lost it when its agent was started again")
	w.wait(ctx, "it goes on from the newest verified snapshot", now)
	return err
}
