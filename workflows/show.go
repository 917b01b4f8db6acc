package workflows

import (
	"fmt"
	"strings"
	"time"

	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/workflow"

	"holdfast/workspace"
)

// The search attributes, typed. They are for lists and for the Web UI; nothing is ever decided by them.
var (
	attributeKind         = temporal.NewSearchAttributeKeyKeyword(workspace.AttributeKind)
	attributeState        = temporal.NewSearchAttributeKeyKeyword(workspace.AttributeState)
	attributeOwner        = temporal.NewSearchAttributeKeyKeyword(workspace.AttributeOwner)
	attributeLastSnapshot = temporal.NewSearchAttributeKeyTime(workspace.AttributeLastSnapshot)
)

// enter changes the phase. What is published follows when the step or the operation changes.
func (w *entity) enter(ctx workflow.Context, phase workspace.Phase, reason string) {
	changed := w.state.Phase != phase
	if changed {
		w.state.Since = workflow.Now(ctx)
	}
	w.state.Phase, w.state.Reason = phase, reason
	if changed {
		// A failure here is a workflow being torn down; the phase stands whatever is shown.
		_ = w.publish(ctx)
	}
}

// block waits for a person.
func (w *entity) block(ctx workflow.Context, kind workspace.ErrorType, message, mend string) {
	w.state.Block = &workspace.Block{Type: kind, Message: message, Mend: mend}
	w.enter(ctx, workspace.Blocked, message)
}

// step says where the operation is.
func (w *entity) step(ctx workflow.Context, step workspace.Step, detail string) {
	if w.state.Operation == nil {
		return
	}
	w.state.Operation.Step, w.state.Operation.Detail = step, detail
	w.describeNow(ctx)
}

// publish shows the state in the search attributes (one history event, so only on transitions) and in the details.
func (w *entity) publish(ctx workflow.Context) error {
	w.describeNow(ctx)
	updates := []temporal.SearchAttributeUpdate{
		attributeKind.ValueSet("workspace"),
		attributeState.ValueSet(string(w.state.Phase)),
		attributeOwner.ValueSet(w.state.Owner),
	}
	if at := w.lastSnapshot(); !at.IsZero() {
		updates = append(updates, attributeLastSnapshot.ValueSet(at))
	}
	return workflow.UpsertTypedSearchAttributes(ctx, updates...)
}

// lastSnapshot is the moment whose content the stores hold: of a running workspace also when a look found that nothing had
// changed since.
func (w *entity) lastSnapshot() time.Time {
	if w.state.Instance != nil && w.protection().Snapshot != "" && !w.protection().Time.IsZero() {
		return w.protection().Time
	}
	if w.state.Head != nil {
		return w.state.Head.Time
	}
	return time.Time{}
}

// describeNow writes the details that Temporal's Web UI shows. They cost no history event and are computed from the state.
func (w *entity) describeNow(ctx workflow.Context) {
	var text strings.Builder
	text.WriteString(fmt.Sprintf("### %s: %s\n", w.state.Name, w.state.Phase))
	line := func(format string, args ...any) { text.WriteString(fmt.Sprintf("- "+format+"\n", args...)) }
	if w.state.Reason != "" {
		line("%s", w.state.Reason)
	}
	if operation := w.state.Operation; operation != nil {
		line("%s: %s %s", operation.Kind, operation.Step, operation.Detail)
	}
	if instance := w.state.Instance; instance != nil {
		line("instance %d on node %s", instance.Token, instance.Node)
	}
	if head := w.state.Head; head != nil {
		line("newest version: snapshot `%s`, %s", head.Snapshot, head.Time.UTC().Format("2006-01-02 15:04:05 MST"))
	}
	if point := workspace.RecoveryPointOf(w.state, workflow.Now(ctx)); point != nil {
		line("%s", point.Bound())
		if failed := point.Failed(workflow.Now(ctx)); failed != "" {
			line("the last snapshot: %s", failed)
		}
	}
	if ahead := workspace.StopAheadOf(w.state, workflow.Now(ctx)); ahead != nil {
		line("%s", ahead.Words(workflow.Now(ctx)))
		if kept := ahead.Kept(workflow.Now(ctx)); kept != "" {
			line("%s", kept)
		}
	}
	if kept := w.state.Kept; kept != nil {
		line("content kept on node %s: %s", kept.Node, kept.Why)
	}
	if loss := w.state.Loss; loss != nil {
		line("%s since %s: %s", loss.What(), loss.At.UTC().Format("2006-01-02 15:04:05 MST"), loss.Waiting)
	}
	if recovery := w.state.Recovery; recovery != nil {
		line("%s", recovery.Words())
	}
	if block := w.state.Block; block != nil {
		line("waits for a person: %s", block.Mend)
	}
	workflow.SetCurrentDetails(ctx, text.String())
}
