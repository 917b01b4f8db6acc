package activities

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.temporal.io/sdk/temporal"

	"holdfast/dataport"
	"holdfast/engine"
	"holdfast/storage"
	"holdfast/storage/faulty"
	"holdfast/workspace"
)

// script is what each hook's command does in the fake engine, by the command.
func script(r *rig, does map[string]func(ctx context.Context, spec engine.ExecSpec) (int, error)) *[]string {
	ran := new([]string)
	r.engine.exec = func(ctx context.Context, spec engine.ExecSpec) (int, error) {
		command := spec.Command[len(spec.Command)-1]
		*ran = append(*ran, command)
		if do := does[command]; do != nil {
			return do(ctx, spec)
		}
		return 0, nil
	}
	return ran
}

func hook(when workspace.HookPoint, command, onError string) *workspace.Hook {
	return &workspace.Hook{When: when, Command: command, TimeoutSeconds: 1, OnError: onError}
}

func ends(code int, says string) func(context.Context, engine.ExecSpec) (int, error) {
	return func(_ context.Context, spec engine.ExecSpec) (int, error) {
		fmt.Fprint(spec.Stdout, says)
		return code, nil
	}
}

// hangs never ends by itself; deaf does not end when it is killed either, as a stuck engine would not.
func hangs(ctx context.Context, _ engine.ExecSpec) (int, error) {
	<-ctx.Done()
	return -1, ctx.Err()
}

// A17: the hooks run around the reading of a live snapshot, and what they did is told.
func TestSnapshotHooks(t *testing.T) {
	r := newRig(t, storage.PolicyAny)
	target := r.started(1)
	ran := script(r, map[string]func(context.Context, engine.ExecSpec) (int, error){
		"flush": func(_ context.Context, spec engine.ExecSpec) (int, error) {
			require.Equal(t, []string{"/bin/sh", "-c", "flush"}, spec.Command)
			require.Equal(t, "pre-snapshot", spec.Environment["HOLDFAST_HOOK"])
			r.write(1, "flushed", "by the hook")
			return 0, nil
		},
		"thaw": ends(4, "it is "+secretValue),
	})
	input := workspace.BackupInput{Target: target, Kind: "live", PreSnapshot: hook(workspace.HookPreSnapshot, "flush", "fail"), PostSnapshot: hook(workspace.HookPostSnapshot, "thaw", "")}
	made, err := run(r, r.node.Backup, input)
	require.NoError(t, err)
	require.Equal(t, []string{"flush", "thaw"}, *ran)
	require.Equal(t, int64(3), made.Backup.Files, "what the hook wrote is in the snapshot")
	require.Len(t, made.Hooks, 2)
	require.Equal(t, workspace.HookDone, made.Hooks[0].Outcome)
	require.Equal(t, workspace.HookFailed, made.Hooks[1].Outcome)
	require.Equal(t, 4, made.Hooks[1].ExitCode)
	require.NotContains(t, fmt.Sprintf("%+v", made), secretValue, "what a hook prints is in no history")
	r.clean("the log", r.logs.String())

	// A person reads it on the node.
	var log bytes.Buffer
	require.NoError(t, r.node.HookLog(t.Context(), dataport.Claims{WorkspaceID: id, Token: 1}, &log))
	require.Contains(t, log.String(), "the post-snapshot hook ended with status 4")
	require.Contains(t, log.String(), "it is "+secretValue)
	require.ErrorIs(t, r.node.HookLog(t.Context(), dataport.Claims{WorkspaceID: id, Token: 9}, &log), dataport.ErrNotHere)
	info, err := os.Stat(r.node.Volumes.hookLog(id, 1))
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o600), info.Mode().Perm())

	// What the hook writes again changes the content: also the look that may find nothing changed comes after it.
	input.UnlessStatDigest = made.StatDigest
	again, err := run(r, r.node.Backup, input)
	require.NoError(t, err)
	require.False(t, again.Unchanged)

	// A final one has no hooks around it: nothing runs any more.
	*ran = nil
	input.Kind = "final"
	_, err = run(r, r.node.Backup, input)
	require.NoError(t, err)
	require.Empty(t, *ran)
}

// A17: a hook that hangs is killed at its timeout, and one that cannot be killed is left behind: the backup is made.
func TestHangingHook(t *testing.T) {
	release := make(chan struct{})
	gone := make(chan struct{})
	for name, do := range map[string]func(context.Context, engine.ExecSpec) (int, error){
		"hangs": hangs,
		"deaf":  func(context.Context, engine.ExecSpec) (int, error) { defer close(gone); <-release; return 0, nil },
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, storage.PolicyAny)
			target := r.started(1)
			script(r, map[string]func(context.Context, engine.ExecSpec) (int, error){"hang": do})
			made, err := run(r, r.node.Backup, workspace.BackupInput{Target: target, Kind: "live", PreSnapshot: hook(workspace.HookPreSnapshot, "hang", "")})
			require.NoError(t, err)
			require.Equal(t, workspace.HookTimedOut, made.Hooks[0].Outcome)
			require.NotEmpty(t, made.Backup.Snapshot)
			require.GreaterOrEqual(t, made.Hooks[0].TookMillis, int64(1000))
		})
	}
	close(release)
	<-gone
}

// A hook whose failure is to keep a snapshot from being made does so for good; what was frozen before it is let go.
func TestFailingSnapshotHook(t *testing.T) {
	r := newRig(t, storage.PolicyAny)
	target := r.started(1)
	ran := script(r, map[string]func(context.Context, engine.ExecSpec) (int, error){"flush": ends(3, "no database")})
	input := workspace.BackupInput{Target: target, Kind: "live", PreSnapshot: hook(workspace.HookPreSnapshot, "flush", "fail"), PostSnapshot: hook(workspace.HookPostSnapshot, "thaw", "fail")}
	before := r.stores[0].Calls(faulty.Put)
	_, err := run(r, r.node.Backup, input)
	typed(t, err, workspace.ErrorHookFailed)
	require.Equal(t, before, r.stores[0].Calls(faulty.Put))
	require.Equal(t, []string{"flush", "thaw"}, *ran)
	var application *temporal.ApplicationError
	require.ErrorAs(t, err, &application)
	var result workspace.HookResult
	require.NoError(t, application.Details(&result))
	require.Equal(t, 3, result.ExitCode)
	require.NotContains(t, err.Error(), "no database")

	// A store's failure is what decides whether it is tried again, and the hook after it runs all the same.
	*ran = nil
	script(r, map[string]func(context.Context, engine.ExecSpec) (int, error){"thaw": ends(5, "")})
	for _, store := range r.stores {
		store.Inject(faulty.Rule{Kind: faulty.Error, Err: errors.New("connection reset")})
	}
	_, err = run(r, r.node.Backup, input)
	require.Error(t, err)
	require.False(t, errors.As(err, &application) && application.NonRetryable(), "%v", err)
}

// invariant 6, A17: before a stop the hook runs in what runs, and only there; its failure stops the stop when it says so.
func TestPreStopHook(t *testing.T) {
	r := newRig(t, storage.PolicyAny)
	target := r.started(1)
	name := "holdfast-" + workspace.InstanceName(id, 1)
	script(r, map[string]func(context.Context, engine.ExecSpec) (int, error){
		"save": ends(1, ""),
		"gone": func(context.Context, engine.ExecSpec) (int, error) {
			return 0, fmt.Errorf("exec: %w", engine.ErrUnavailable)
		},
	})
	_, err := run(r, r.node.StopInstance, workspace.StopInstanceInput{Target: target, PreStop: hook(workspace.HookPreStop, "save", "fail")})
	typed(t, err, workspace.ErrorHookFailed)
	require.Equal(t, engine.StatusRunning, r.engine.status(name))

	halted, err := run(r, r.node.StopInstance, workspace.StopInstanceInput{Target: target, PreStop: hook(workspace.HookPreStop, "gone", "continue")})
	require.NoError(t, err)
	require.Equal(t, workspace.HookFailed, halted.Hooks[0].Outcome)
	require.Contains(t, halted.Hooks[0].Problem, "cannot be reached")
	require.Equal(t, engine.StatusExited, r.engine.status(name))

	// Nothing runs: there is nothing that the hook could fail at, and nothing that it may keep from being backed up.
	halted, err = run(r, r.node.StopInstance, workspace.StopInstanceInput{Target: target, PreStop: hook(workspace.HookPreStop, "save", "fail")})
	require.NoError(t, err)
	require.Equal(t, workspace.HookNotRun, halted.Hooks[0].Outcome)
}

// What hooks print is bounded, and its end is what stays.
func TestHookLogIsBounded(t *testing.T) {
	r := newRig(t, storage.PolicyAny)
	target := r.started(1)
	script(r, map[string]func(context.Context, engine.ExecSpec) (int, error){"loud": ends(0, strings.Repeat("x", 1<<20)+"the end")})
	for range 2 * hookLogMost / hookTail {
		result, err := r.node.runHook(t.Context(), target, *hook(workspace.HookPreStop, "loud", ""))
		require.NoError(t, err)
		require.Equal(t, workspace.HookDone, result.Outcome)
	}
	kept, err := os.ReadFile(r.node.Volumes.hookLog(id, 1))
	require.NoError(t, err)
	require.LessOrEqual(t, len(kept), hookLogMost)
	require.True(t, bytes.HasSuffix(kept, []byte("the end\n")))

	// invariant 5: nothing is written into a directory that is not the instance's.
	foreign(t, r, 1)
	_, err = r.node.runHook(t.Context(), target, *hook(workspace.HookPreStop, "loud", ""))
	require.NoError(t, err)
	after, err := os.ReadFile(r.node.Volumes.hookLog(id, 1))
	require.NoError(t, err)
	require.True(t, slices.Equal(kept, after))

	// The end of the activity is the end of the wait.
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	script(r, map[string]func(context.Context, engine.ExecSpec) (int, error){"hang": hangs})
	_, err = r.node.runHook(ctx, target, workspace.Hook{When: workspace.HookPreStop, Command: "hang"})
	require.ErrorIs(t, err, context.DeadlineExceeded)
}
