package workflows

import (
	"errors"
	"slices"

	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/workflow"

	"holdfast/workspace"
)

// noteHooks keeps how each hook ended the last time.
func (w *entity) noteHooks(results []workspace.HookResult) {
	for _, result := range results {
		i := slices.IndexFunc(w.state.Hooks, func(known workspace.HookResult) bool { return known.When == result.When })
		if i < 0 {
			w.state.Hooks = append(w.state.Hooks, result)
			continue
		}
		w.state.Hooks[i] = result
	}
}

// noteFailedHook keeps how the hook ended that is the cause of an error.
func (w *entity) noteFailedHook(err error) {
	var application *temporal.ApplicationError
	if failureType(err) != workspace.ErrorHookFailed || !errors.As(err, &application) || !application.HasDetails() {
		return
	}
	var result workspace.HookResult
	if application.Details(&result) == nil {
		w.noteHooks([]workspace.HookResult{result})
	}
}

// preStop is the hook that a stop runs first: none where nothing runs, or where the person said so.
func (w *entity) preStop(request *workspace.StopRequest) *workspace.Hook {
	if w.state.Instance == nil || request.SkipHooks {
		return nil
	}
	return w.state.Spec.Hook(workspace.HookPreStop)
}

// runsOn ends a stop whose hook failed and was to keep the instance from being stopped then. Nothing was changed; the person can
// stop it without the hook.
func (w *entity) runsOn(ctx workflow.Context, err error) error {
	_, words := describe(err)
	w.enter(ctx, workspace.Running, "on node "+w.state.Instance.Node+"; the last stop was given up: "+words)
	return &refusalError{workspace.ErrorHookFailed, "workspace " + w.state.Name + " runs on: " + words}
}
