package workflows

import (
	"fmt"

	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/workflow"

	"holdfast/workspace"
)

// handleUpdates registers the updates. A handler records the command and returns at once: ten waiting updates would
// refuse the next, and a waiting handler holds up continue-as-new.
func (w *entity) handleUpdates(ctx workflow.Context) error {
	for _, update := range []struct {
		name        string
		handler     any
		validator   any
		description string
	}{
		{workspace.UpdateStart, w.acceptStart, w.validateStart, "start the workspace"},
		{workspace.UpdateStop, w.acceptStop, w.validateStop, "stop the workspace through a backup"},
		{workspace.UpdateBackup, w.acceptBackup, w.validateBackup, "snapshot the running workspace"},
		{workspace.UpdateRestore, w.acceptRestore, w.validateRestore, "start from an older snapshot"},
		{workspace.UpdateDelete, w.acceptDelete, w.validateDelete, "delete the workspace"},
		{workspace.UpdateUnstick, w.acceptUnstick, w.validateUnstick, "seal a stuck attempt, keep its content"},
		{workspace.UpdateMove, w.acceptMove, w.validateMove, "take the running workspace to another node"},
		{workspace.UpdateKeep, w.acceptKeep, w.validateKeep, "put off that it is stopped by itself"},
	} {
		if err := workflow.SetUpdateHandlerWithOptions(ctx, update.name, update.handler, workflow.UpdateHandlerOptions{
			Validator:   update.validator,
			Description: update.description,
		}); err != nil {
			return err
		}
	}
	return nil
}

func (w *entity) accept(ctx workflow.Context, command workspace.Command, kind workspace.OperationKind) (workspace.Accepted, error) {
	id := workflow.GetCurrentUpdateInfo(ctx).ID
	command.Operation = workspace.Operation{ID: id, Kind: kind, Began: workflow.Now(ctx)}
	w.queue = append(w.queue, command)
	if w.mayInterrupt(kind) {
		w.interruptedBy = kind
		w.interrupt()
		w.interrupt = nil
	}
	return workspace.Accepted{OperationID: id}, nil
}

// mayInterrupt says whether a new command ends the one under way. A stop whose backup waits for storage gives way to a
// start, which goes on from the content that is there; a removal that has begun is never cut.
func (w *entity) mayInterrupt(by workspace.OperationKind) bool {
	if w.interrupt == nil || w.state.Operation == nil {
		return false
	}
	if w.state.Operation.Kind == workspace.OperationSalvage || w.state.Operation.Kind == workspace.OperationRetain {
		return true // it goes on later
	}
	step := w.state.Operation.Step
	switch by {
	case workspace.OperationUnstick:
		return step != workspace.StepRemove && step != workspace.StepDelete
	case workspace.OperationStart, workspace.OperationRestore, workspace.OperationDelete:
		switch w.state.Operation.Kind {
		case workspace.OperationStop, workspace.OperationRelease:
			if w.state.Loss != nil && (step == workspace.StepHalt || step == workspace.StepRecord) || step == workspace.StepLook {
				return true // it waits for a node that may never return
			}
			return step == workspace.StepBackup || step == workspace.StepVerify || step == workspace.StepCommit || step == workspace.StepRepair
		case workspace.OperationMove:
			// While it is being stopped; before that there is nothing to start, and after it that is what the move does.
			return w.state.Phase == workspace.Stopping && (step == workspace.StepBackup || step == workspace.StepVerify || step == workspace.StepCommit)
		}
	case workspace.OperationStop:
		switch w.state.Operation.Kind {
		case workspace.OperationStart, workspace.OperationRestore, workspace.OperationBackup, workspace.OperationSnapshot,
			workspace.OperationRecover, workspace.OperationAdopt, workspace.OperationFind:
			return true // a start that a person gives up is undone; it may be waiting for a git server or an upload
		case workspace.OperationMove:
			return step != workspace.StepHalt && step != workspace.StepRemove
		case workspace.OperationRelease:
			return step == workspace.StepRepair
		}
	}
	return false
}

func (w *entity) refuse(format string, args ...any) error {
	return temporal.NewNonRetryableApplicationError("workspace "+w.state.Name+": "+fmt.Sprintf(format, args...), string(workspace.ErrorRefused), nil)
}

// badInput gives an invalid field's error the type by which the command knows it.
func badInput(err error) error {
	if err == nil {
		return nil
	}
	return temporal.NewNonRetryableApplicationError(err.Error(), string(workspace.ErrorInvalid), nil)
}

// waitingFor says whether such a command is under way or accepted.
func (w *entity) waitingFor(kind workspace.OperationKind) bool {
	for _, command := range w.queue {
		if command.Operation.Kind == kind {
			return true
		}
	}
	return w.state.Operation != nil && w.state.Operation.Kind == kind
}

func (w *entity) acceptStart(ctx workflow.Context, request workspace.StartRequest) (workspace.Accepted, error) {
	return w.accept(ctx, workspace.Command{Start: &request}, workspace.OperationStart)
}

func (w *entity) validateStart(request workspace.StartRequest) error {
	if err := workspace.ValidateName("name", w.state.Name); err != nil {
		return badInput(err)
	}
	if request.Spec != nil {
		if err := request.Spec.Validate(); err != nil {
			return badInput(err)
		}
	}
	if err := request.Source.Validate(); err != nil {
		return badInput(err)
	}
	for _, node := range []string{request.Node, request.NotNode} {
		if node == "" {
			continue
		}
		if err := workspace.ValidateName("node", node); err != nil {
			return badInput(err)
		}
	}
	switch {
	case w.state.Phase == workspace.Deleted:
		return w.refuse("it is being deleted; start again when that is done")
	case w.waitingFor(workspace.OperationStart) || w.waitingFor(workspace.OperationRestore):
		return w.refuse("it is being started already; follow it with `holdfast why %s`", w.state.Name)
	case w.waitingFor(workspace.OperationDelete):
		return w.refuse("it is being deleted")
	case w.moving() && w.state.Phase != workspace.Stopping:
		return w.refuse("it is being moved and runs again after that; follow it with `holdfast why %s`", w.state.Name)
	case w.waitingFor(workspace.OperationRecover) || w.waitingFor(workspace.OperationAdopt):
		return w.refuse("it is being recovered after the loss of its node; follow it with `holdfast why %s`", w.state.Name)
	case w.waitingFor(workspace.OperationFind) && w.state.Phase == workspace.Recovering:
		return w.refuse("it is being started again on its node; follow it with `holdfast why %s`", w.state.Name)
	case w.state.Phase == workspace.Running && !w.waitingFor(workspace.OperationStop):
		return w.refuse("it is running on node %s", w.state.Instance.Node)
	case w.state.Incomplete:
		return nil
	case request.Source.Kind != workspace.SourceEmpty:
		return w.refuse("it has content already, which a start with --from-dir, --from-git or --from-snapshot would replace; use a new name, or `holdfast restore`")
	}
	return nil
}

func (w *entity) acceptStop(ctx workflow.Context, request workspace.StopRequest) (workspace.Accepted, error) {
	return w.accept(ctx, workspace.Command{Stop: &request}, workspace.OperationStop)
}

func (w *entity) validateStop(request workspace.StopRequest) error {
	if request.AcceptOmissions != "" {
		if err := workspace.ValidateSnapshotID(request.AcceptOmissions); err != nil {
			return badInput(err)
		}
	}
	if err := w.validateFrom(request.From); err != nil {
		return err
	}
	switch {
	case w.waitingFor(workspace.OperationStop):
		return w.refuse("it is being stopped already; follow it with `holdfast why %s`", w.state.Name)
	case w.waitingFor(workspace.OperationStart), w.waitingFor(workspace.OperationRestore), w.moving():
		return nil
	case w.state.Instance == nil && w.state.Kept == nil && w.state.Phase != workspace.Recovering:
		return w.refuse("it is not running (%s)", w.state.Phase)
	}
	return nil
}

// validateFrom refuses what a drain asks for when it is no longer so, or a person's command would be cut or put off by it.
func (w *entity) validateFrom(node string) error {
	if node == "" {
		return nil
	}
	if busy, is := w.view().BusyWith(); is {
		return w.refuse("its %s goes first", busy.Kind)
	}
	if w.state.Phase != workspace.Running || w.state.Instance == nil || w.state.Instance.Node != node {
		return w.refuse("it is not running on node %s (%s)", node, w.state.Phase)
	}
	return nil
}

// leftMeanwhile refuses it when what was under way when it was accepted has taken the workspace elsewhere.
func (w *entity) leftMeanwhile(node string) error {
	if node == "" || w.state.Instance != nil && w.state.Instance.Node == node {
		return nil
	}
	return &refusalError{workspace.ErrorRefused, fmt.Sprintf("workspace %s is not on node %s any more", w.state.Name, node)}
}

func (w *entity) acceptBackup(ctx workflow.Context, _ workspace.BackupRequest) (workspace.Accepted, error) {
	return w.accept(ctx, workspace.Command{}, workspace.OperationBackup)
}

func (w *entity) validateBackup(workspace.BackupRequest) error {
	if w.state.Phase != workspace.Running {
		return w.refuse("it is not running (%s); what a stopped workspace holds is in its last snapshot", w.state.Phase)
	}
	if w.waitingFor(workspace.OperationBackup) {
		return w.refuse("it is being backed up already")
	}
	return nil
}

func (w *entity) acceptRestore(ctx workflow.Context, request workspace.RestoreRequest) (workspace.Accepted, error) {
	return w.accept(ctx, workspace.Command{Restore: &request}, workspace.OperationRestore)
}

func (w *entity) validateRestore(request workspace.RestoreRequest) error {
	if err := workspace.ValidateSnapshotID(request.Snapshot); err != nil {
		return badInput(err)
	}
	switch {
	case w.state.Instance != nil || w.waitingFor(workspace.OperationStart) || w.waitingFor(workspace.OperationRestore) || w.moving():
		return w.refuse("it is not stopped (%s); stop it first, so that what it holds now is backed up", w.state.Phase)
	case w.state.Kept != nil && w.state.Kept.Snapshot == "":
		return w.refuse("content that is not backed up is kept on node %s; `holdfast stop %s` first", w.state.Kept.Node, w.state.Name)
	}
	return nil
}

func (w *entity) acceptDelete(ctx workflow.Context, request workspace.DeleteRequest) (workspace.Accepted, error) {
	return w.accept(ctx, workspace.Command{Delete: &request}, workspace.OperationDelete)
}

func (w *entity) validateDelete(request workspace.DeleteRequest) error {
	switch {
	case request.DiscardData != "" && request.DiscardData != w.state.Name:
		return w.refuse("--discard-data wants the workspace's own name, got %q", request.DiscardData)
	case w.waitingFor(workspace.OperationDelete):
		return w.refuse("it is being deleted already")
	case w.state.Phase == workspace.Running || w.state.Phase == workspace.Starting || w.state.Phase == workspace.Recovering || w.state.Phase == workspace.Stopping && request.DiscardData == "":
		return w.refuse("it is not stopped (%s); stop it first, so that it is backed up", w.state.Phase)
	case w.state.Kept != nil && request.DiscardData == "":
		return w.refuse("its newest content is only on node %s (%s); `holdfast stop %s` backs it up, --discard-data %s drops it", w.state.Kept.Node, w.state.Kept.Why, w.state.Name, w.state.Name)
	}
	return nil
}

func (w *entity) acceptUnstick(ctx workflow.Context, _ workspace.UnstickRequest) (workspace.Accepted, error) {
	return w.accept(ctx, workspace.Command{}, workspace.OperationUnstick)
}

func (w *entity) validateUnstick(workspace.UnstickRequest) error {
	if w.waitingFor(workspace.OperationUnstick) {
		return w.refuse("it is being unstuck already")
	}
	if w.state.Phase == workspace.Running || w.state.Phase == workspace.Stopped || w.state.Phase == workspace.Pending {
		if w.state.Operation == nil || forgoable(w.state.Operation.Kind) {
			return w.refuse("it is not stuck (%s)", w.state.Phase)
		}
	}
	return nil
}
