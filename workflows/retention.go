package workflows

import (
	"errors"
	"fmt"
	"time"

	enumspb "go.temporal.io/api/enums/v1"
	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/workflow"

	"holdfast/workspace"
)

// Of the snapshots that a timer makes only some are kept (docs/decisions/0012-retention.md). The others are forgotten right
// after a snapshot was made, when the next one is furthest away: nothing that is done here may hold that up (A7), nor a
// person. What is not done is done later, and costs room until then.

// retaining is what is known of the forgetting of its timed snapshots.
func (w *entity) retaining() *workspace.Retaining {
	if w.state.Retaining == nil {
		w.state.Retaining = &workspace.Retaining{}
	}
	return w.state.Retaining
}

// retainDue says whether timed snapshots are to be forgotten now.
func (w *entity) retainDue(ctx workflow.Context) bool {
	known := w.state.Retaining
	if known == nil || known.Made < workspace.RetainEvery || w.state.Spec.Retention.Off {
		return false
	}
	if w.state.Phase != workspace.Running || w.state.Instance == nil || w.state.Head == nil || w.state.Loss != nil || w.state.Looked() != nil {
		return false
	}
	return workflow.GetVersion(ctx, "forget-timed-snapshots", workflow.DefaultVersion, 1) != workflow.DefaultVersion
}

func (w *entity) retainCommand(ctx workflow.Context) workspace.Command {
	return workspace.Command{Operation: workspace.Operation{
		ID: fmt.Sprintf("retain-%d-%d", w.state.Instance.Token, workflow.Now(ctx).Unix()), Kind: workspace.OperationRetain, Began: workflow.Now(ctx),
	}}
}

// retain removes what no snapshot needs, at most once in workspace.PruneEvery, and then forgets what is not to be kept: in
// this order, so that who reads a snapshot that is forgotten now can read it to the end.
func (w *entity) retain(ctx workflow.Context) error {
	known, target, head := w.retaining(), w.target(w.state.Instance), w.state.Head.Snapshot
	known.Made = 0
	pruned := w.prune(ctx, target, head)
	if temporal.IsCanceledError(pruned) {
		return pruned
	}
	w.step(ctx, workspace.StepForget, w.state.Spec.Retention.String()+" are kept")
	var result workspace.ForgetResult
	err := workflow.ExecuteActivity(w.beforeNextSnapshot(ctx, target.Node, "forget old snapshots"), workspace.ActivityForget, workspace.ForgetInput{
		Target: target, Retention: w.state.Spec.Retention, Head: head, Protect: w.protectedSnapshots(),
	}).Get(ctx, &result)
	if err != nil {
		w.notRetained(ctx, err)
		return err
	}
	known.Time, known.Forgotten, known.Kept = workflow.Now(ctx), result.Forgotten, result.Kept
	if known.LastFailure != nil && known.LastFailure.Step == workspace.StepForget {
		known.Failures, known.LastFailure = 0, nil
	}
	return pruned
}

// prune removes what no snapshot needs, when that was not tried for long enough. Before anything was forgotten there is
// nothing of it.
func (w *entity) prune(ctx workflow.Context, target workspace.Target, head string) error {
	known, now := w.retaining(), workflow.Now(ctx)
	if known.Time.IsZero() || now.Sub(known.PruneBegun) < workspace.PruneEvery {
		return nil
	}
	before := known.PruneBegun
	known.PruneBegun = now // also when it fails: it may take all the time there is, and forgetting comes first the next time
	w.step(ctx, workspace.StepPrune, "")
	var result workspace.PruneResult
	err := workflow.ExecuteActivity(w.beforeNextSnapshot(ctx, target.Node, "remove what no snapshot needs"),
		workspace.ActivityPrune, workspace.PruneInput{Target: target, Head: head}).Get(ctx, &result)
	if err != nil {
		if temporal.IsCanceledError(err) {
			known.PruneBegun = before
		}
		w.notRetained(ctx, err)
		return err
	}
	known.Pruned, known.PrunedBytes = workflow.Now(ctx), result.Bytes
	known.Failures, known.LastFailure = 0, nil
	return nil
}

// notRetained notes why something was not done. What a command or a node's news cut is no failure, and is done after the
// next snapshot.
func (w *entity) notRetained(ctx workflow.Context, err error) {
	known := w.retaining()
	if temporal.IsCanceledError(err) {
		known.Made = workspace.RetainEvery - 1
		return
	}
	kind, words := describe(err)
	var timeout *temporal.TimeoutError
	if errors.As(err, &timeout) && timeout.TimeoutType() == enumspb.TIMEOUT_TYPE_SCHEDULE_TO_CLOSE {
		words = "it was not done when the next snapshot was due, which comes first: " + words
	}
	known.Failures++
	known.LastFailure = &workspace.SnapshotFailure{Time: workflow.Now(ctx), Step: w.state.Operation.Step, Type: timeoutOr(err, kind), Error: words}
}

// beforeNextSnapshot is for what must have ended when the next snapshot is due (A7).
func (w *entity) beforeNextSnapshot(ctx workflow.Context, node, summary string) workflow.Context {
	attempt := retainAttempt
	if due := w.nextSnapshot(); !due.IsZero() {
		attempt = min(attempt, max(due.Sub(workflow.Now(ctx)), time.Second))
	}
	ctx = soon(onNodeReading(ctx, node, summary, attempt, priorityTimed))
	return workflow.WithScheduleToCloseTimeout(ctx, attempt)
}

// protectedSnapshots are those that the workflow itself may go back to or tells of. The stores know more of them.
func (w *entity) protectedSnapshots() []string {
	snapshots := []string{w.state.Head.Snapshot, w.state.Instance.Base, w.protection().Snapshot}
	if w.state.Kept != nil {
		snapshots = append(snapshots, w.state.Kept.Snapshot)
	}
	for i := range w.state.Left {
		snapshots = append(snapshots, w.state.Left[i].Snapshot)
	}
	protected := snapshots[:0]
	for _, snapshot := range snapshots {
		if snapshot != "" {
			protected = append(protected, snapshot)
		}
	}
	return protected
}
