package workflows

import (
	"fmt"
	"time"

	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/workflow"

	"holdfast/workspace"
)

// What an instance that was replaced after the loss of its node had is not thrown away and not put over newer work (A12):
// when the node has returned, the instance is stopped there, and its content is snapshotted as one that no commit names.
// A person finds it with `holdfast snapshots`. The content itself stays on the node.

// salvageSlice bounds one attempt, so that a large content does not hold up the snapshots of what runs. The next attempt
// finds in the stores what this one has sent.
const salvageSlice = 4 * time.Minute

// back notes that a node which has something of a replaced instance can be asked for it.
func (w *entity) back(node string, is bool) {
	for i := range w.state.Left {
		if left := &w.state.Left[i]; left.Node == node && left.Replaced && left.Snapshot == "" {
			left.Back = is
		}
	}
}

// salvageable is what can be saved now, nil when nothing can.
func (w *entity) salvageable() *workspace.Kept {
	if w.state.Loss != nil || w.state.Incomplete {
		return nil
	}
	for i := range w.state.Left {
		if left := &w.state.Left[i]; left.Back && left.Snapshot == "" {
			return left
		}
	}
	return nil
}

func (w *entity) salvageCommand(ctx workflow.Context) workspace.Command {
	return workspace.Command{Operation: workspace.Operation{
		ID: fmt.Sprintf("salvage-%d-%d", w.salvageable().Token, workflow.Now(ctx).Unix()), Kind: workspace.OperationSalvage, Began: workflow.Now(ctx),
	}}
}

// salvage stops a replaced instance and saves what it had. What cannot be saved is tried again when its node returns the
// next time; one that was cut, or took too long, goes on when nothing else is to be done.
func (w *entity) salvage(ctx workflow.Context) error {
	left := *w.salvageable()
	target := workspace.Target{WorkspaceID: w.state.ID, Name: w.state.Name, Token: left.Token, Node: left.Node, Sealed: left.Sealed}
	within := func(summary string, attempt time.Duration) workflow.Context {
		return workflow.WithScheduleToCloseTimeout(onNodeReading(ctx, target.Node, summary, min(attempt, salvageSlice), priorityRelease), salvageSlice)
	}
	w.step(ctx, workspace.StepHalt, fmt.Sprintf("instance %d on node %s, which was replaced", left.Token, left.Node))
	err := workflow.ExecuteActivity(within("stop the instance that was replaced", haltAttempt),
		workspace.ActivityStopInstance, workspace.StopInstanceInput{Target: target, GraceSeconds: 10}).Get(ctx, nil)
	var result workspace.BackupResult
	if err == nil {
		w.step(ctx, workspace.StepBackup, "what the instance that was replaced had")
		err = workflow.ExecuteActivity(within("save what the instance that was replaced had", backupAttempt),
			workspace.ActivityBackup, workspace.BackupInput{Target: target, Kind: "recovered"}).Get(ctx, &result)
	}
	if err == nil {
		w.step(ctx, workspace.StepVerify, "snapshot "+result.Backup.Snapshot)
		err = workflow.ExecuteActivity(within("look at every stored object", verifyAttempt),
			workspace.ActivityVerify, workspace.VerifyInput{Target: target, Snapshot: result.Backup.Snapshot}).Get(ctx, nil)
	}
	w.salvaged(left, result, err)
	if err == nil {
		w.state.Operation.Snapshot, w.state.Operation.Backup = result.Backup.Snapshot, &result.Backup
	}
	return err
}

// salvaged notes how it ended. A command may have changed what is left meanwhile.
func (w *entity) salvaged(was workspace.Kept, result workspace.BackupResult, err error) {
	for i := range w.state.Left {
		left := &w.state.Left[i]
		if left.Node != was.Node || left.Token != was.Token {
			continue
		}
		if err == nil {
			left.Snapshot, left.Back, left.Sealed = result.Backup.Snapshot, false, nil
			left.Why = fmt.Sprintf("its node was lost; when it returned, this was saved as the recovered snapshot %s (`holdfast snapshots %s`)", result.Backup.Snapshot, w.state.Name)
			return
		}
		if kind, words := describe(err); kind != "" && !temporal.IsCanceledError(err) {
			left.Back = false
			left.Why = "its node was lost; saving it when the node returned failed: " + words
		}
	}
}
