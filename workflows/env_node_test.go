package workflows_test

import (
	"time"

	enumspb "go.temporal.io/api/enums/v1"
	"go.temporal.io/sdk/temporal"

	"holdfast/workspace"
)

// doOn is do for an activity of a node: one that is lost never answers.
func doOn[R any](w *world, node, name string, effect func() (R, error)) (R, error) {
	w.mutex.Lock()
	gone := w.nodes[node].Phase != workspace.NodeReady
	w.mutex.Unlock()
	if gone {
		switch name {
		case workspace.ActivityPrepareImage, workspace.ActivityPrepareContent, workspace.ActivityStartInstance, workspace.ActivityDiscardInstance, workspace.ActivityFindInstance, workspace.ActivityLookAtUse:
			// A start does not wait for a node that does not take its work.
			return *new(R), temporal.NewTimeoutError(enumspb.TIMEOUT_TYPE_SCHEDULE_TO_START, nil)
		}
		// Tried again for ever; this environment gives up after ten attempts.
		return *new(R), temporal.NewApplicationErrorWithOptions("no agent takes it", "", temporal.ApplicationErrorOptions{NextRetryDelay: time.Hour})
	}
	return do(w, name, func() (R, error) {
		if w.failOn != nil {
			if err := w.failOn(node, name); err != nil {
				return *new(R), err
			}
		}
		return effect()
	})
}

func (w *world) noteHooks(preStop, preSnapshot *workspace.Hook) {
	w.mutex.Lock()
	defer w.mutex.Unlock()
	w.preStop, w.preSnapshot = preStop, preSnapshot
}

// hooksDone are hooks that went well; how long each took is how often it has run.
func (w *world) hooksDone(hooks ...*workspace.Hook) (results []workspace.HookResult) {
	for _, hook := range hooks {
		if hook != nil {
			w.hooks[hook.When]++
			results = append(results, workspace.HookResult{When: hook.When, Outcome: workspace.HookDone, TookMillis: w.hooks[hook.When]})
		}
	}
	return results
}
