package workflows

import (
	"go.temporal.io/sdk/worker"
	"go.temporal.io/sdk/workflow"

	"holdfast/workspace"
)

// Register registers every workflow under its stable name.
func Register(registry worker.WorkflowRegistry) {
	for name, function := range map[string]any{
		workspace.WorkspaceWorkflow: Workspace,
		workspace.NodeWorkflow:      Node,
		workspace.AccessWorkflow:    Access,
		workspace.SnapshotsWorkflow: Snapshots,
	} {
		registry.RegisterWorkflowWithOptions(function, workflow.RegisterOptions{Name: name})
	}
}
