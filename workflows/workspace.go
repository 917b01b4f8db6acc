package workflows

import (
	"errors"
	"strings"
	"time"

	"go.temporal.io/sdk/log"
	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/workflow"

	"holdfast/workspace"
)

// Workspace is a workspace's whole life: it ends when the workspace is deleted.
func Workspace(ctx workflow.Context, input workspace.Input) error {
	w := &entity{logger: workflow.GetLogger(ctx), lost: map[string]workspace.NodeNews{}}
	if err := w.setup(ctx, input); err != nil {
		return err
	}
	return w.run(ctx)
}

// entity is a running workspace workflow. Everything that must survive continue-as-new is in state and queue.
type entity struct {
	state  workspace.State
	queue  []workspace.Command
	logger log.Logger

	// news are the signals of nodes; lost is the newest news of each node that is lost, heard that there was any.
	news  workflow.ReceiveChannel
	lost  map[string]workspace.NodeNews
	heard bool

	// interrupt cancels the operation under way; nil while none may be interrupted.
	interrupt workflow.CancelFunc
	// cut ends what the operation does on a node that is lost, so that it goes on elsewhere (takesOver); wasCut says that it did.
	cut    workflow.CancelFunc
	wasCut bool
	// interruptedBy is the command that did.
	interruptedBy workspace.OperationKind
}

func (w *entity) setup(ctx workflow.Context, input workspace.Input) error {
	if input.State != nil {
		w.state, w.queue = *input.State, input.Commands
	} else {
		w.state = workspace.State{
			Name:       input.Name,
			Owner:      input.Owner,
			Created:    workflow.Now(ctx),
			Phase:      workspace.Pending,
			Since:      workflow.Now(ctx),
			Incomplete: true,
		}
		if err := workflow.SideEffect(ctx, func(workflow.Context) any { return workspace.NewID() }).Get(&w.state.ID); err != nil {
			return err
		}
	}
	if w.state.Watch != nil && !w.stopsByItself(ctx) {
		w.state.Watch = nil
	}
	if err := workflow.SetQueryHandlerWithOptions(ctx, workspace.QueryState, func() (workspace.State, error) {
		return w.view(), nil
	}, workflow.QueryHandlerOptions{Description: "everything known about the workspace"}); err != nil {
		return err
	}
	if err := w.handleUpdates(ctx); err != nil {
		return err
	}
	w.listen(ctx)
	return w.publish(ctx)
}

// run takes one command at a time until the workspace is deleted.
func (w *entity) run(ctx workflow.Context) error {
	for {
		switch {
		case len(w.queue) > 0:
			command := w.queue[0]
			w.queue = w.queue[1:]
			if err := w.perform(ctx, command); err != nil {
				return err
			}
		case w.state.Phase == workspace.Deleted:
			return workflow.Await(ctx, func() bool { return workflow.AllHandlersFinished(ctx) })
		case w.lookDue(ctx):
			if err := w.decide(ctx); err != nil {
				return err
			}
		case w.findDue(ctx):
			if err := w.perform(ctx, w.findCommand(ctx)); err != nil {
				return err
			}
		case w.releasable():
			if err := w.perform(ctx, w.releaseCommand(ctx)); err != nil {
				return err
			}
		case workflow.GetInfo(ctx).GetContinueAsNewSuggested():
			if err := workflow.Await(ctx, func() bool { return workflow.AllHandlersFinished(ctx) || len(w.queue) > 0 }); err != nil {
				return err
			}
			w.drainNews(ctx)
			if len(w.queue) == 0 && !w.lookDue(ctx) {
				return workflow.NewContinueAsNewError(ctx, workspace.WorkspaceWorkflow, workspace.Input{Name: w.state.Name, State: &w.state})
			}
		case w.stopDue(ctx):
			if err := w.stopByItself(ctx); err != nil {
				return err
			}
		case w.snapshotDue(ctx):
			if err := w.perform(ctx, w.snapshotCommand(ctx)); err != nil {
				return err
			}
		case w.retainDue(ctx):
			if err := w.perform(ctx, w.retainCommand(ctx)); err != nil {
				return err
			}
		case w.salvageable(ctx) != nil:
			if err := w.perform(ctx, w.salvageCommand(ctx)); err != nil {
				return err
			}
		default:
			if err := w.idle(ctx); err != nil {
				return err
			}
		}
	}
}

// idle waits for a command or for news, or until something is due.
func (w *entity) idle(ctx workflow.Context) error {
	w.heard = false
	asked := func() bool { return len(w.queue) > 0 || w.heard }
	due, what := w.nextSnapshot(), "the next snapshot"
	if look := w.nextLook(); !look.IsZero() && (due.IsZero() || look.Before(due)) {
		due, what = look, "ask about the lost node again"
	}
	if find, ok := w.nextFind(); ok && (due.IsZero() || find.Before(due)) {
		due, what = find, "look for the instance again"
	}
	if stop := w.nextStop(ctx); !stop.IsZero() && (due.IsZero() || stop.Before(due)) {
		due, what = stop, "see whether it is to be stopped by itself"
	}
	if next := w.nextSalvage(); !next.IsZero() && (due.IsZero() || next.Before(due)) {
		due, what = next, "go on with what an instance that was replaced had"
	}
	if due.IsZero() {
		return workflow.Await(ctx, asked)
	}
	_, err := workflow.AwaitWithOptions(ctx, workflow.AwaitOptions{
		// Never none at all: that would wait for ever.
		Timeout: max(due.Sub(workflow.Now(ctx)), time.Millisecond), TimerOptions: workflow.TimerOptions{Summary: what},
	}, asked)
	return err
}

// perform runs one command to its end. It returns an error only when the workflow itself is cancelled: how a command
// ended is part of the state.
func (w *entity) perform(ctx workflow.Context, command workspace.Command) error {
	operation := command.Operation
	w.state.Operation = &operation
	operationCtx, cancel := workflow.WithCancel(ctx)
	w.interrupt, w.interruptedBy = cancel, ""

	var err error
	switch operation.Kind {
	case workspace.OperationStart:
		err = w.start(operationCtx, command.Start)
	case workspace.OperationRestore:
		err = w.restore(operationCtx, command.Restore)
	case workspace.OperationStop:
		if err = w.leftMeanwhile(command.Stop.From); err == nil {
			err = w.takesOver(operationCtx, func(ctx workflow.Context) error { return w.stop(ctx, command.Stop) })
		}
	case workspace.OperationBackup:
		err = w.backup(operationCtx)
	case workspace.OperationSnapshot:
		err = w.timedSnapshot(operationCtx)
	case workspace.OperationRetain:
		err = w.retain(operationCtx)
	case workspace.OperationDelete:
		err = w.delete(operationCtx, command.Delete)
	case workspace.OperationUnstick:
		err = w.unstick(operationCtx)
	case workspace.OperationMove:
		err = w.move(operationCtx, command.Move)
	case workspace.OperationRelease:
		err = w.takesOver(operationCtx, w.release)
	case workspace.OperationRecover:
		err = w.recover(operationCtx)
	case workspace.OperationAdopt:
		err = w.adopt(operationCtx)
	case workspace.OperationFind:
		err = w.find(operationCtx)
	case workspace.OperationSalvage:
		err = w.salvage(operationCtx)
	}
	w.interrupt = nil
	cancel()

	if ctx.Err() != nil {
		// The workflow itself was cancelled. What was being done is over; nothing was removed that is not safe.
		return ctx.Err()
	}
	w.finish(ctx, &operation, err)
	w.notice(ctx)
	return w.publish(ctx)
}

// finish records how an operation ended.
func (w *entity) finish(ctx workflow.Context, operation *workspace.Operation, err error) {
	operation.Ended = workflow.Now(ctx)
	if err != nil {
		operation.Failed = true
		operation.ErrorType, operation.Error = describe(err)
		if temporal.IsCanceledError(err) && w.interruptedBy != "" {
			operation.ErrorType = workspace.ErrorInterrupted
			operation.Error = "given up for the sake of a later " + string(w.interruptedBy) + "; nothing was removed"
			if w.interruptedBy == workspace.OperationRecover {
				operation.ErrorType, operation.Error = workspace.ErrorNodeLost, "its node was lost; nothing was removed"
			}
		}
		var refusal *refusalError
		operation.Refused = errors.As(err, &refusal)
		w.logger.Info("operation ended without doing what was asked", "operation", operation.Kind, "type", operation.ErrorType)
	}
	w.state.Operation = nil
	if w.state.Looked() == nil {
		w.state.Look = nil // of an instance that is over
	}
	if errors.Is(err, errNotItsTurn) {
		return // nothing was done
	}
	if operation.Kind == workspace.OperationSnapshot || operation.Kind == workspace.OperationRetain || operation.Kind == workspace.OperationFind && operation.Step == workspace.StepFind {
		return // told in Protection, Retaining and Look: hundreds a day would push out what people asked for
	}
	if last := len(w.state.Recent) - 1; last >= 0 && operation.Failed && w.state.Recent[last].Kind == operation.Kind && w.state.Recent[last].Error == operation.Error &&
		(operation.OfDrain() || operation.Kind == workspace.OperationRecover || operation.Kind == workspace.OperationAdopt || operation.Kind == workspace.OperationFind || operation.Kind == workspace.OperationSalvage) {
		w.state.Recent = append([]workspace.Operation(nil), w.state.Recent[:last]...) // the same again is told once
	}
	w.remember(*operation)
}

// remember adds to the recent operations.
func (w *entity) remember(operation workspace.Operation) {
	w.state.Recent = append(w.state.Recent, operation)
	if extra := len(w.state.Recent) - workspace.MaxRecent; extra > 0 {
		w.state.Recent = append([]workspace.Operation(nil), w.state.Recent[extra:]...)
	}
}

// view is the state with the waiting commands in it, and without what only a node may read.
func (w *entity) view() workspace.State {
	state := w.state
	for _, command := range w.queue {
		state.Waiting = append(state.Waiting, command.Operation)
	}
	state.Secrets = nil
	if state.Instance != nil {
		instance := *state.Instance
		instance.Sealed = nil
		state.Instance = &instance
	}
	if state.Kept != nil {
		kept := *state.Kept
		kept.Sealed = nil
		state.Kept = &kept
	}
	if len(state.Left) > 0 {
		state.Left = append([]workspace.Kept(nil), state.Left...)
		for i := range state.Left {
			state.Left[i].Sealed = nil
		}
	}
	return state
}

// refusalError is a command that changed nothing and can be asked again with what it names.
type refusalError struct {
	kind    workspace.ErrorType
	message string
}

func (e *refusalError) Error() string { return e.message }

// describe turns an activity's failure into its type and words for a person.
func describe(err error) (workspace.ErrorType, string) {
	if err == nil {
		return "", ""
	}
	var refusal *refusalError
	if errors.As(err, &refusal) {
		return refusal.kind, refusal.message
	}
	var application *temporal.ApplicationError
	if errors.As(err, &application) {
		return workspace.ErrorType(application.Type()), strings.TrimSpace(application.Message())
	}
	var timeout *temporal.TimeoutError
	if errors.As(err, &timeout) {
		words := "it took longer than it may: " + timeout.TimeoutType().String()
		if cause := errors.Unwrap(timeout); cause != nil {
			_, last := describe(cause)
			words += "; the last error was: " + last
		}
		return "", words
	}
	return "", err.Error()
}

// failureType is the type of a permanent failure, empty for anything else.
func failureType(err error) workspace.ErrorType {
	kind, _ := describe(err)
	return kind
}
