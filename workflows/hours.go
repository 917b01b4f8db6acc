package workflows

import (
	"go.temporal.io/sdk/workflow"

	"holdfast/workspace"
)

// Outside of its working hours a workspace that is not used is stopped, as by an idle stop. When that is depends on the rules of
// a time zone, which another version of this program may know otherwise: so it is worked out once for each stretch of time outside,
// recorded in the history, and gone by from the record (docs/decisions/0020-working-hours.md).

// keepsHours is false in a history of a worker that knew nothing of hours: it has decided without them.
func (w *entity) keepsHours(ctx workflow.Context) bool {
	return workflow.GetVersion(ctx, "working-hours", workflow.DefaultVersion, 1) != workflow.DefaultVersion
}

// workOutHours has it recorded when a workspace is next outside of its hours, unless that is known.
func (w *entity) workOutHours(ctx workflow.Context, watch *workspace.Watch) {
	hours, now := w.state.Spec.Stop.Hours, workflow.Now(ctx)
	if hours == "" || watch.KnowsOutside(now, w.state.Spec.Stop) || !w.keepsHours(ctx) {
		return
	}
	if watch.WarnedOf == workspace.StopHours {
		w.unwarn(ctx, watch, "its hours begin, or what was said of them has changed")
	}
	from := watch.HoursFrom(now)
	var outside workspace.Outside
	if err := workflow.SideEffect(ctx, func(workflow.Context) any { return workspace.OutsideOf(hours, from) }).Get(&outside); err != nil {
		outside = workspace.Outside{Hours: hours, From: from, Ends: now.Add(useAgain), Problem: err.Error()}
	}
	if outside.Problem != "" {
		w.logger.Error("the working hours of a workspace cannot be worked out, so it is not stopped for them", "workspace", w.state.Name, "hours", hours, "error", outside.Problem)
	}
	watch.Outside = &outside
}
