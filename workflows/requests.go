package workflows

import (
	"go.temporal.io/sdk/workflow"

	"holdfast/workspace"
)

// Access gives a person a short-lived token for a node's data port. One workflow for each request, so that its history
// says who asked for what, and when.
func Access(ctx workflow.Context, input workspace.AccessInput) (workspace.AccessResult, error) {
	var result workspace.AccessResult
	if err := workspace.ValidateName("name", input.Name); err != nil {
		return result, badInput(err)
	}
	if err := workspace.ValidatePath(input.Path); err != nil {
		return result, badInput(err)
	}
	err := workflow.ExecuteActivity(controlSoon(ctx, "grant "+string(input.Verb)), workspace.ActivityGrantAccess, input).Get(ctx, &result)
	return result, err
}

// Snapshots lists a workspace's snapshots. The control side reads them, because it alone can open any repository.
func Snapshots(ctx workflow.Context, input workspace.SnapshotsInput) (workspace.SnapshotsResult, error) {
	var result workspace.SnapshotsResult
	if err := workspace.ValidateName("name", input.Name); err != nil {
		return result, badInput(err)
	}
	err := workflow.ExecuteActivity(controlSoon(ctx, "list snapshots"), workspace.ActivityListSnapshots, input).Get(ctx, &result)
	return result, err
}
