package workflows_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.temporal.io/sdk/temporal"

	"holdfast/workspace"
)

func hooked(request workspace.StartRequest) workspace.StartRequest {
	for _, when := range []workspace.HookPoint{workspace.HookPreStop, workspace.HookPreSnapshot, workspace.HookPostSnapshot} {
		request.Spec.Hooks = append(request.Spec.Hooks, workspace.Hook{When: when, Command: string(when) + ".sh", OnError: workspace.HookFail})
	}
	return request
}

// hookFailed is a hook's failure as a node reports it.
func hookFailed(when workspace.HookPoint) error {
	return temporal.NewApplicationErrorWithOptions("the "+string(when)+" hook ended with status 3 after 10ms", string(workspace.ErrorHookFailed),
		temporal.ApplicationErrorOptions{NonRetryable: true, Details: []any{workspace.HookResult{When: when, Outcome: workspace.HookFailed, ExitCode: 3}}})
}

// A17: a pre-stop hook that fails and is to end the stop does: the workspace runs on, nothing was changed, and the
// person stops it without the hook.
func TestPreStopHookEndsAStop(t *testing.T) {
	w := newWorld(t)
	w.fail = func(activity string, _ int) error {
		if activity == workspace.ActivityStopInstance && w.preStop != nil {
			return hookFailed(workspace.HookPreStop)
		}
		return nil
	}
	w.ask(0, workspace.UpdateStart, hooked(start()))
	stop := w.ask(time.Minute, workspace.UpdateStop, workspace.StopRequest{})
	on := w.look(2 * time.Minute)
	w.ask(3*time.Minute, workspace.UpdateStop, workspace.StopRequest{})
	still := w.look(4 * time.Minute)
	w.ask(5*time.Minute, workspace.UpdateStop, workspace.StopRequest{SkipHooks: true})
	stopped := w.look(6 * time.Minute)
	w.run(7 * time.Minute)
	require.NoError(t, *stop)
	require.Equal(t, workspace.Running, on.Phase)
	require.Contains(t, on.Reason, "the last stop was given up: the pre-stop hook ended with status 3")
	require.True(t, on.Recent[1].Refused)
	require.Equal(t, workspace.ErrorHookFailed, on.Recent[1].ErrorType)
	require.Equal(t, 3, on.Hooks[0].ExitCode)
	require.NotNil(t, on.Instance)
	require.Equal(t, workspace.Running, still.Phase, "a stop without --skip-hooks tries again")
	require.Equal(t, workspace.Stopped, stopped.Phase)
	require.Nil(t, stopped.Kept)
	require.Len(t, w.commits, 1)
}

// Hooks go to where they run, and what came of them is kept, one for each point.
func TestHooksAreNoted(t *testing.T) {
	w := timedWorld(t)
	w.ask(0, workspace.UpdateStart, hooked(startEvery(every)))
	w.work(15 * time.Minute)
	running := w.look(21 * time.Minute)
	w.ask(22*time.Minute, workspace.UpdateStop, workspace.StopRequest{})
	stopped := w.look(23 * time.Minute)
	w.run(24 * time.Minute)
	require.Len(t, running.Hooks, 2)
	require.Equal(t, workspace.HookPreSnapshot, running.Hooks[0].When)
	require.Equal(t, int64(2), running.Hooks[0].TookMillis, "of the second snapshot")
	require.Len(t, stopped.Hooks, 3)
	require.Equal(t, workspace.HookPreStop, stopped.Hooks[2].When)
}

// A pre-snapshot hook that fails and is to keep snapshots from being made is told; the workspace runs on and stops.
func TestPreSnapshotHookEndsASnapshot(t *testing.T) {
	w := timedWorld(t)
	w.fail = func(activity string, _ int) error {
		if activity == workspace.ActivityBackup && w.preSnapshot != nil {
			return hookFailed(workspace.HookPreSnapshot)
		}
		return nil
	}
	w.ask(0, workspace.UpdateStart, hooked(startEvery(every)))
	w.ask(11*time.Minute, workspace.UpdateBackup, workspace.BackupRequest{})
	running := w.look(12 * time.Minute)
	w.ask(13*time.Minute, workspace.UpdateStop, workspace.StopRequest{})
	stopped := w.look(14 * time.Minute)
	w.run(15 * time.Minute)
	require.Equal(t, string(workspace.ErrorHookFailed), running.Protection.LastFailure.Type)
	require.Equal(t, 2, w.attempts[workspace.ActivityBackup]-1, "neither is tried again: %v", w.calls)
	require.Equal(t, workspace.ErrorHookFailed, running.Recent[1].ErrorType)
	require.Equal(t, 3, running.Hooks[0].ExitCode)
	require.Equal(t, workspace.Stopped, stopped.Phase, "the final snapshot has no such hook")
}
