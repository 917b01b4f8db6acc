package workflows

import (
	"fmt"
	"strings"

	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/workflow"

	"holdfast/workspace"
)

// A move takes a running workspace to another node: it is backed up while it runs, stopped through a final backup of what
// little has changed since, and started elsewhere from exactly that. Whatever cannot be done is found out while it runs, as
// far as that is possible, and a move that fails ends with the workspace running where it was
// (docs/decisions/0014-moves.md).

func (w *entity) acceptMove(ctx workflow.Context, request workspace.MoveRequest) (workspace.Accepted, error) {
	return w.accept(ctx, workspace.Command{Move: &request}, workspace.OperationMove)
}

func (w *entity) validateMove(request workspace.MoveRequest) error {
	if request.Node != "" {
		if err := workspace.ValidateName("node", request.Node); err != nil {
			return badInput(err)
		}
	}
	if err := w.validateFrom(request.From); err != nil {
		return err
	}
	switch {
	case w.waitingFor(workspace.OperationMove):
		return w.refuse("it is being moved already; follow it with `holdfast why %s`", w.state.Name)
	case w.state.Phase != workspace.Running || w.state.Instance == nil:
		return w.refuse("it is not running (%s); a stopped workspace is on no node, and `holdfast start %s --node NODE` starts it on one", w.state.Phase, w.state.Name)
	case w.waitingFor(workspace.OperationStop):
		return w.refuse("it is being stopped")
	case w.state.Instance.Node == request.Node:
		return w.refuse("it is running on node %s", request.Node)
	}
	return nil
}

// moving says whether a move is under way or accepted.
func (w *entity) moving() bool { return w.waitingFor(workspace.OperationMove) }

func (w *entity) move(ctx workflow.Context, request *workspace.MoveRequest) error {
	instance := w.state.Instance
	if instance == nil || w.state.Phase != workspace.Running {
		return &refusalError{workspace.ErrorRefused, fmt.Sprintf("workspace %s is not running (%s)", w.state.Name, w.state.Phase)}
	}
	from := instance.Node
	if from == request.Node {
		return &refusalError{workspace.ErrorRefused, fmt.Sprintf("workspace %s is running on node %s", w.state.Name, from)}
	}
	if err := w.leftMeanwhile(request.From); err != nil {
		return err
	}
	if w.somethingElseIsWanted() {
		return w.gaveWay("it was not begun")
	}
	plan := launch{only: request.Node, exclude: from}
	if instance.Volume != "" {
		return w.moveShared(ctx, request, plan)
	}
	if err := w.movable(ctx, plan); err != nil {
		return err
	}
	if ctx.Err() != nil {
		// Given up while its backup was committed, which is waited for and can succeed: it has to go on running, and the stop
		// would end at once, after it had taken the instance for gone.
		return ctx.Err()
	}

	w.state.Operation.Halted = workflow.Now(ctx)
	stopped := w.stop(ctx, &workspace.StopRequest{Subject: request.Subject})
	switch {
	case w.state.Instance != nil:
		return stopped // a hook refused it: it runs on
	case stopped == nil && w.goesOnAfterLoss(ctx, request):
		return w.notMoved(workspace.ErrorNodeLost, fmt.Sprintf("node %s was lost before the content was removed there, and it is started from snapshot %s", from, w.state.Operation.Snapshot))
	case stopped == nil && (ctx.Err() != nil || w.somethingElseIsWanted()):
		return w.gaveWay("it is stopped, and backed up as snapshot " + w.state.Operation.Snapshot)
	case ctx.Err() != nil || temporal.IsCanceledError(stopped) || w.somethingElseIsWanted():
		return stopped
	case stopped == nil && w.state.Kept != nil:
		if err := w.withoutLostNode(ctx); err != nil {
			w.logger.Warn("asking whether the node of a workspace that is moved is there", "error", err)
		}
	}
	if w.state.Kept != nil {
		return w.stayed(ctx, stopped)
	}
	if stopped != nil {
		return stopped
	}
	backup := w.state.Operation.Backup
	err := w.launch(ctx, plan)
	if w.launchable(ctx, err) {
		err = w.comeBack(ctx, from, err)
	}
	w.state.Operation.Backup = backup
	return err
}

// launchable says whether a launch that failed has left a workspace that can be launched in another way.
func (w *entity) launchable(ctx workflow.Context, err error) bool {
	return err != nil && !temporal.IsCanceledError(err) && ctx.Err() == nil && w.state.Kept == nil && w.state.Phase == workspace.Stopped
}

// comeBack starts a workspace that could not be started elsewhere on the node that it was on, which has its image and had
// room for it, and on any other when that does not take it any more.
func (w *entity) comeBack(ctx workflow.Context, from string, failed error) error {
	w.logger.Warn("a move found no node that starts the workspace, going back", "error", failed)
	again := w.launch(ctx, launch{only: from})
	if w.launchable(ctx, again) {
		again = w.launch(ctx, launch{})
	}
	switch {
	case temporal.IsCanceledError(again):
		return again
	case again != nil:
		return failed
	}
	_, words := describe(failed)
	return w.notMoved(failureType(failed), fmt.Sprintf("starting it elsewhere failed, and it runs on node %s, from the backup that the move made: %s",
		w.state.Instance.Node, words))
}

// movable finds out, while the workspace runs, what would keep it from being moved, and stores most of what it has, so that
// it is not stopped for long.
func (w *entity) movable(ctx workflow.Context, plan launch) error {
	instance := w.state.Instance
	if _, err := w.place(ctx, plan, []string{plan.exclude}); temporal.IsCanceledError(err) {
		return err
	} else if err != nil {
		_, words := describe(err)
		return w.notBegun(failureType(err), "there is no node that takes it: "+words)
	}
	_, owed, _, err := w.snapshot(ctx, w.target(instance), liveSnapshot, &instance.Sequence)
	if err != nil {
		return err
	}
	if len(owed) > 0 {
		return w.notBegun(workspace.ErrorNotStored, "its content cannot leave node "+instance.Node+
			" before these stores have its backup too: "+strings.Join(owed, ", "))
	}
	return nil
}

// somethingElseIsWanted says whether a person has asked for what only makes sense while it does not run.
func (w *entity) somethingElseIsWanted() bool {
	return w.waitingFor(workspace.OperationStop) || w.waitingFor(workspace.OperationDelete) || w.waitingFor(workspace.OperationUnstick)
}

// goesOnAfterLoss queues a start of a workspace that was being moved when its node was lost after the backup was
// acknowledged: its person expects it to run, and the loss has ended everything that the move could still do.
func (w *entity) goesOnAfterLoss(ctx workflow.Context, request *workspace.MoveRequest) bool {
	if w.interruptedBy != workspace.OperationRecover || w.somethingElseIsWanted() {
		return false
	}
	w.queue = append(w.queue, workspace.Command{
		Operation: workspace.Operation{ID: "start-" + w.state.Operation.ID, Kind: workspace.OperationStart, Began: workflow.Now(ctx), Cause: "its node was lost while it was moved"},
		Start:     &workspace.StartRequest{Subject: request.Subject},
	})
	return true
}

// stayed starts a workspace again where it was, because its content may not leave its node yet (invariants 1 and 2).
func (w *entity) stayed(ctx workflow.Context, stopped error) error {
	kind, why := workspace.ErrorNotStored, w.state.Kept.Why
	if stopped != nil {
		kind, why = describe(stopped)
	}
	if kind == workspace.ErrorOmissions {
		why += fmt.Sprintf("; `holdfast stop %s` names them", w.state.Name)
	}
	node := w.state.Kept.Node
	if err := w.launch(ctx, launch{}); err != nil {
		if temporal.IsCanceledError(err) {
			return err
		}
		failed, words := describe(err)
		return w.notMoved(failed, fmt.Sprintf("%s; starting it again on node %s failed: %s", why, node, words))
	}
	return w.notMoved(kind, fmt.Sprintf("it runs on node %s again, with all that it had: %s", node, why))
}

// notBegun is a move that was found to be impossible before anything was stopped.
func (w *entity) notBegun(kind workspace.ErrorType, why string) error {
	return &refusalError{kind, fmt.Sprintf("workspace %s was not moved and runs on: %s", w.state.Name, why)}
}

// notMoved is a move that ended after it had stopped the workspace, and not with it on another node; why begins with what
// has become of it.
func (w *entity) notMoved(kind workspace.ErrorType, why string) error {
	return temporal.NewNonRetryableApplicationError(fmt.Sprintf("workspace %s was not moved; %s", w.state.Name, why), string(kind), nil)
}

// gaveWay is a move that ended because a person asked for something else meanwhile, which is done next.
func (w *entity) gaveWay(why string) error {
	return w.notMoved(workspace.ErrorInterrupted, "it gave way to a later command: "+why)
}
