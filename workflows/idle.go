package workflows

import (
	"fmt"
	"time"

	"go.temporal.io/sdk/workflow"

	"holdfast/workspace"
)

// A workspace may be stopped by itself: when it has not been used for a while, or when its lifetime is over. It is warned of
// first, and the stop is an ordinary one, through a backup. The node is asked only when the time has come, as far as is
// known; one that does not answer does not say that it is idle, and nothing is stopped then
// (docs/decisions/0013-idle-stop.md).

// stopsByItself is false in a history from before there was any of this.
func (w *entity) stopsByItself(ctx workflow.Context) bool {
	return workflow.GetVersion(ctx, "stop-by-itself", workflow.DefaultVersion, 1) != workflow.DefaultVersion
}

// watch begins to watch over an instance that has begun to run. What is not a person's start goes on with the lifetime, and
// with what a person said.
func (w *entity) watch(ctx workflow.Context) {
	if !w.state.Spec.Stop.Any() || !w.stopsByItself(ctx) {
		w.state.Watch = nil
		return
	}
	now := workflow.Now(ctx)
	watch := &workspace.Watch{Token: w.state.Instance.Token, Since: now, Used: now, Use: "it was started"}
	if known := w.state.Watch; known != nil {
		kind := w.state.Operation.Kind
		if byPerson := (kind == workspace.OperationStart || kind == workspace.OperationRestore) && w.state.Operation.Cause == ""; !byPerson {
			watch.Since, watch.Keep, watch.NotBefore = known.Since, known.Keep, known.NotBefore
		}
	}
	w.state.Watch = watch
}

// nextStop is when the workspace is to be warned of, asked about or stopped; zero when nothing is ahead. While it is not
// known whether its instance still runs, nothing is.
func (w *entity) nextStop(ctx workflow.Context) time.Time {
	watch := w.state.Watched()
	if watch == nil || w.state.Loss != nil || w.state.Looked() != nil {
		return time.Time{}
	}
	w.workOutHours(ctx, watch)
	plan := workspace.PlanStop(workflow.Now(ctx), *watch, w.state.Spec.Stop)
	at := plan.Warn
	switch {
	case watch.WarnedOf != "" && watch.WarnedOf == plan.Reason:
		at = plan.Stop
	case plan.Reason == workspace.StopIdle && at.Before(watch.NotAsked):
		at = watch.NotAsked
	}
	sooner := func(other time.Time) {
		if at.IsZero() || other.Before(at) {
			at = other
		}
	}
	if watch.Failures > 0 && w.state.Spec.Stop.ByUse() {
		sooner(watch.NotAsked)
	}
	if watch.Outside != nil && watch.Outside.Problem != "" {
		sooner(watch.Outside.Ends)
	}
	return at
}

func (w *entity) stopDue(ctx workflow.Context) bool {
	at := w.nextStop(ctx)
	return !at.IsZero() && !workflow.Now(ctx).Before(at)
}

// stopByItself warns of a stop whose warning is due, and stops what was warned of, unless it is used.
func (w *entity) stopByItself(ctx workflow.Context) error {
	watch := w.state.Watched()
	plan := workspace.PlanStop(workflow.Now(ctx), *watch, w.state.Spec.Stop)
	if watch.Failures > 0 && w.state.Spec.Stop.ByUse() && !workflow.Now(ctx).Before(watch.NotAsked) {
		_, err := w.askWhetherUsed(ctx, watch) // what follows from an answer is planned anew
		return err
	}
	// The end of the hours is warned of whether it is used or not.
	if plan.Reason == workspace.StopIdle || plan.Reason == workspace.StopHours && watch.WarnedOf == workspace.StopHours {
		if answered, err := w.askWhetherUsed(ctx, watch); err != nil || !answered {
			return err
		}
		due := w.stopDue(ctx)
		if again := workspace.PlanStop(workflow.Now(ctx), *watch, w.state.Spec.Stop); again.Reason != plan.Reason || !due {
			w.notIdle(ctx, watch, "it is used: "+watch.Use)
			watch.NotAsked = workflow.Now(ctx).Add(useAgain)
			return nil
		}
	}
	if watch.WarnedOf != plan.Reason {
		watch.Warned, watch.WarnedOf = workflow.Now(ctx), plan.Reason
		w.logger.Info("the workspace will be stopped by itself", "workspace", w.state.Name, "reason", plan.Reason,
			"at", workspace.PlanStop(workflow.Now(ctx), *watch, w.state.Spec.Stop).Stop, "last_used", watch.Used, "use", watch.Use)
		w.describeNow(ctx)
		return nil
	}
	return w.stopNow(ctx, plan.Reason)
}

// stopNow stops the workspace as a person would.
func (w *entity) stopNow(ctx workflow.Context, reason workspace.StopReason) error {
	token, cause := w.state.Instance.Token, w.state.Spec.Stop.Cause(reason)
	w.logger.Info("the workspace is stopped by itself", "workspace", w.state.Name, "reason", reason)
	if err := w.perform(ctx, workspace.Command{
		Operation: workspace.Operation{
			ID: fmt.Sprintf("%s-%d-%d", reason, token, workflow.Now(ctx).Unix()), Kind: workspace.OperationStop, Began: workflow.Now(ctx), Cause: cause,
		},
		Stop: &workspace.StopRequest{Subject: "holdfast"},
	}); err != nil {
		return err
	}
	if w.state.Phase == workspace.Stopped {
		w.state.Reason = cause + ": " + w.state.Reason
		w.describeNow(ctx)
	}
	if watch := w.state.Watched(); watch != nil { // a hook refused it
		w.unwarn(ctx, watch, "its stop was given up")
		watch.NotBefore = workflow.Now(ctx).Add(workspace.StopAgain)
	}
	return nil
}

// askWhetherUsed asks the node when the instance was last used. answered is false when it did not say, or a person or news
// of a node came first.
func (w *entity) askWhetherUsed(ctx workflow.Context, watch *workspace.Watch) (answered bool, err error) {
	asked, cancel := workflow.WithCancel(ctx)
	defer cancel()
	instance := w.state.Instance
	w.heard = false
	began := workflow.Now(ctx)
	var answer workspace.LookAtUseResult
	question := workflow.ExecuteActivity(asking(asked, instance.Node), workspace.ActivityLookAtUse, workspace.LookAtUseInput{Target: w.target(instance)})
	if err := workflow.Await(ctx, func() bool { return question.IsReady() || len(w.queue) > 0 || w.heard }); err != nil {
		return false, err
	}
	if len(w.queue) > 0 || w.heard { // also what came together with the answer is done first
		return false, nil
	}
	now := workflow.Now(ctx)
	if err := question.Get(ctx, &answer); err != nil {
		_, watch.Failure = describe(err)
		watch.Failures++
		watch.NotAsked = now.Add(useAgain)
		w.notIdle(ctx, watch, "its node does not say whether it is used")
		if watch.WarnedOf == workspace.StopHours {
			w.unwarn(ctx, watch, "its node does not say whether it is used")
		}
		w.logger.Warn("a node did not say whether a workspace is used, so it is not stopped", "workspace", w.state.Name, "node", instance.Node, "error", err)
		return false, nil
	}
	watch.Asked, watch.Failures, watch.Failure = now, 0, ""
	if used := now.Add(-time.Duration(answer.QuietMillis) * time.Millisecond); used.After(watch.Used) {
		watch.Used, watch.Use = used, answer.Use
	}
	// One that no worker took note of for a while says nothing of that while: the node is asked again at once.
	return now.Sub(began) <= useHolds, nil
}

// notIdle takes a warning of an idle stop back. One of the end of its lifetime stands, used or not, and so does one of the end of
// its hours: it is asked about again.
func (w *entity) notIdle(ctx workflow.Context, watch *workspace.Watch, why string) {
	if watch.WarnedOf == workspace.StopIdle {
		w.unwarn(ctx, watch, why)
	}
}

// unwarn takes a warning back.
func (w *entity) unwarn(ctx workflow.Context, watch *workspace.Watch, why string) {
	if watch.WarnedOf != "" {
		w.logger.Info("the workspace is not stopped by itself now", "workspace", w.state.Name, "reason", why)
	}
	watch.Warned, watch.WarnedOf = time.Time{}, ""
	w.describeNow(ctx)
}

// acceptKeep does what was asked at once: it must not wait for a snapshot that is being made.
func (w *entity) acceptKeep(ctx workflow.Context, request workspace.KeepRequest) (workspace.Accepted, error) {
	watch, now := w.state.Watched(), workflow.Now(ctx)
	if watch == nil {
		return workspace.Accepted{}, w.refuseKeep()
	}
	operation := workspace.Operation{ID: workflow.GetCurrentUpdateInfo(ctx).ID, Kind: workspace.OperationKeep, Began: now, Ended: now}
	watch.Keep = nil
	if request.Seconds > 0 {
		watch.Keep = &workspace.Keep{Until: now.Add(time.Duration(request.Seconds) * time.Second), At: now, By: request.Subject}
	}
	w.unwarn(ctx, watch, "a person keeps it")
	w.remember(operation)
	w.heard = true // whoever waits for what was due looks again
	return workspace.Accepted{OperationID: operation.ID}, nil
}

func (w *entity) validateKeep(request workspace.KeepRequest) error {
	if err := request.Validate(); err != nil {
		return badInput(err)
	}
	return w.refuseKeep()
}

// refuseKeep is why there is nothing to be put off; nil when there is.
func (w *entity) refuseKeep() error {
	switch {
	case w.waitingFor(workspace.OperationStop):
		return w.refuse("it is being stopped; `holdfast start %s` goes on with its content", w.state.Name)
	case w.state.Phase != workspace.Running:
		return w.refuse("it is not running (%s): there is no stop to put off", w.state.Phase)
	case w.state.Watched() == nil:
		return w.refuse("nothing stops it by itself, so it runs on anyway; a start with --idle-stop, --lifetime or --hours changes that")
	}
	return nil
}
