package workflows_test

import (
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"holdfast/workspace"
)

// Whoever keeps it has it run on from the warning, whatever the node says, and `why` tells who and until when.
func TestKeep(t *testing.T) {
	w := idleWorld(t, stopping(2*time.Hour, 3*time.Hour), nil)
	kept := w.ask(115*time.Minute, workspace.UpdateKeep, workspace.KeepRequest{Subject: "ada", Seconds: 4 * 3600})
	on, late, stopped := w.look(5*time.Hour), w.look(5*time.Hour+50*time.Minute), w.look(5*time.Hour+56*time.Minute)
	w.run(7 * time.Hour)
	require.NoError(t, *kept)
	require.Equal(t, workspace.Running, on.Phase)
	require.Empty(t, on.Watch.WarnedOf)
	require.Equal(t, "ada", on.Watch.Keep.By)
	now := on.Watch.Keep.At.Add(2 * time.Hour)
	require.Contains(t, ahead(on, now).Kept(now), "ada said 2 h ago that it is not stopped by itself before ")
	require.Equal(t, on.Watch.Keep.Until, ahead(on, now).Stop)
	require.False(t, recent(t, on, workspace.OperationKeep).Failed)
	require.Equal(t, workspace.Running, late.Phase)
	require.NotEmpty(t, late.Watch.WarnedOf, "the warning comes again before it ends")
	require.Equal(t, workspace.Stopped, stopped.Phase)
}

// The last moment is not too late: the node is being asked, for the last time.
func TestKeepWhileTheNodeIsAsked(t *testing.T) {
	w := idleWorld(t, stopping(2*time.Hour, 0), nil)
	asked := 0
	w.use = func() workspace.LookAtUseResult {
		if asked++; asked == 2 {
			w.at(0, func() {
				w.environment.UpdateWorkflow(workspace.UpdateKeep, "at the last moment", &updateCallback{new(error)}, workspace.KeepRequest{Subject: "ada", Seconds: 3600})
			})
		}
		return workspace.LookAtUseResult{QuietMillis: 1 << 40}
	}
	w.after = func(activity string, _ int) error {
		if activity == workspace.ActivityLookAtUse && asked == 2 {
			return errors.New("the answer is lost") // so that the update is there before it is asked again
		}
		return nil
	}
	on := w.look(170 * time.Minute)
	w.run(4 * time.Hour)
	require.Equal(t, workspace.Running, on.Phase)
	require.Equal(t, "ada", on.Watch.Keep.By)
}

func TestKeepOff(t *testing.T) {
	w := idleWorld(t, stopping(2*time.Hour, 0), nil)
	w.ask(time.Minute, workspace.UpdateKeep, workspace.KeepRequest{Subject: "ada", Seconds: 40 * 3600})
	off := w.ask(3*time.Hour, workspace.UpdateKeep, workspace.KeepRequest{Subject: "ada"})
	warned, stopped := w.look(3*time.Hour+5*time.Minute), w.look(3*time.Hour+11*time.Minute)
	w.run(4 * time.Hour)
	require.NoError(t, *off)
	require.Nil(t, warned.Watch.Keep)
	require.Equal(t, workspace.Running, warned.Phase)
	require.Equal(t, workspace.StopIdle, warned.Watch.WarnedOf, "also then the warning comes first")
	require.Equal(t, workspace.Stopped, stopped.Phase)
}

func TestKeepIsRefused(t *testing.T) {
	w := newWorld(t)
	hour := workspace.KeepRequest{Subject: "ada", Seconds: 3600}
	w.ask(0, workspace.UpdateStart, start())
	needless := w.ask(time.Minute, workspace.UpdateKeep, hour)
	w.ask(2*time.Minute, workspace.UpdateStop, workspace.StopRequest{})
	stopped := w.ask(3*time.Minute, workspace.UpdateKeep, hour)
	w.ask(4*time.Minute, workspace.UpdateStart, stopping(time.Hour, 0))
	long := w.ask(5*time.Minute, workspace.UpdateKeep, workspace.KeepRequest{Subject: "ada", Seconds: 31 * 24 * 3600})
	negative := w.ask(5*time.Minute, workspace.UpdateKeep, workspace.KeepRequest{Subject: "ada", Seconds: -1})
	fine := w.ask(6*time.Minute, workspace.UpdateKeep, hour)
	w.run(10 * time.Minute)
	require.ErrorContains(t, *needless, "nothing stops it by itself")
	require.ErrorContains(t, *stopped, "it is not running (Stopped)")
	require.ErrorContains(t, *long, "keep 744h0m0s: want 1m to 720h")
	require.ErrorContains(t, *negative, "keep -1s: want 1m to 720h")
	require.NoError(t, *fine)
}
