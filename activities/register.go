package activities

import (
	"go.temporal.io/sdk/activity"
	"go.temporal.io/sdk/worker"

	"holdfast/workspace"
)

// RegisterControl registers the control side's activities under their stable names.
func RegisterControl(registry worker.ActivityRegistry, c *Control) {
	register(registry, map[string]any{
		workspace.ActivityReadHead:         c.ReadHead,
		workspace.ActivityPlace:            c.Place,
		workspace.ActivitySeal:             c.Seal,
		workspace.ActivityRecordInstance:   c.RecordInstance,
		workspace.ActivityReleasePlacement: c.ReleasePlacement,
		workspace.ActivityRecordDeleted:    c.RecordDeleted,
		workspace.ActivityGrantAccess:      c.GrantAccess,
		workspace.ActivityListSnapshots:    c.ListSnapshots,
		workspace.ActivityDescribeControl:  c.DescribeControl,
		workspace.ActivityAnnounceNode:     c.AnnounceNode,
		workspace.ActivityLookAtNode:       c.LookAtNode,
		workspace.ActivityDrainNode:        c.DrainNode,
	})
}

// RegisterNode registers a node's activities under their stable names.
func RegisterNode(registry worker.ActivityRegistry, n *Node) {
	register(registry, map[string]any{
		workspace.ActivityPrepareImage:    n.PrepareImage,
		workspace.ActivityPrepareContent:  n.PrepareContent,
		workspace.ActivityStartInstance:   n.StartInstance,
		workspace.ActivityStopInstance:    n.StopInstance,
		workspace.ActivityFindInstance:    n.FindInstance,
		workspace.ActivityLookAtUse:       n.LookAtUse,
		workspace.ActivityBackup:          n.Backup,
		workspace.ActivityVerify:          n.Verify,
		workspace.ActivityCommit:          n.Commit,
		workspace.ActivityRepair:          n.Repair,
		workspace.ActivityForget:          n.Forget,
		workspace.ActivityPrune:           n.Prune,
		workspace.ActivityRemoveInstance:  n.RemoveInstance,
		workspace.ActivityDiscardInstance: n.DiscardInstance,
	})
}

// RegisterLease registers the one activity of a node's lease queue.
func RegisterLease(registry worker.ActivityRegistry, h *LeaseHolder) {
	register(registry, map[string]any{workspace.ActivityHoldLease: h.HoldLease})
}

func register(registry worker.ActivityRegistry, functions map[string]any) {
	for name, function := range functions {
		registry.RegisterActivityWithOptions(function, activity.RegisterOptions{Name: name})
	}
}
