package activities

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"time"

	"go.temporal.io/sdk/temporal"

	"holdfast/dataport"
	"holdfast/engine"
	"holdfast/workspace"
)

const (
	// hookTail is how much of a hook's output is kept: its end says what went wrong.
	hookTail = 16 << 10
	// hookLogMost bounds the file of all of them; the newest half stays when it is larger.
	hookLogMost = 256 << 10
	// hookKill is how long a hook that was killed may take to be gone before nobody waits for it any more.
	hookKill = 5 * time.Second
)

// hooks collects how the hooks of one activity ended.
type hooks struct {
	node    *Node
	target  workspace.Target
	results []workspace.HookResult
}

// run runs a hook, when there is one. The error is permanent, and only for a hook whose failure is to end what it belongs
// to; what it printed is in no error, log or history, since it may be secret.
func (h *hooks) run(ctx context.Context, hook *workspace.Hook) error {
	if hook == nil {
		return nil
	}
	result, err := h.node.runHook(ctx, h.target, *hook)
	if err != nil {
		return err
	}
	h.results = append(h.results, result)
	if result.Failed() {
		h.node.Logger.Warn("hook", "workspace", h.target.Name, "hook", hook.When, "outcome", result.Outcome, "exit_code", result.ExitCode, "problem", result.Problem)
		if hook.OnError == workspace.HookFail {
			return temporal.NewApplicationErrorWithOptions(result.Words(), string(workspace.ErrorHookFailed),
				temporal.ApplicationErrorOptions{NonRetryable: true, Details: []any{result}})
		}
	}
	return nil
}

// runHook runs a hook inside the running instance and keeps the end of its output. It returns within the hook's timeout
// and hookKill, whatever the hook or the engine does. The error is of the context alone.
func (n *Node) runHook(ctx context.Context, target workspace.Target, hook workspace.Hook) (workspace.HookResult, error) {
	began := time.Now()
	result := workspace.HookResult{When: hook.When, Time: began, Outcome: workspace.HookDone}
	output := &lastBytes{most: hookTail}
	type ending struct {
		code int
		err  error
	}
	ended := make(chan ending, 1)
	limited, cancel := context.WithTimeout(ctx, hook.Timeout())
	defer cancel()
	go func() {
		code, err := n.execHook(limited, target, hook, output)
		ended <- ending{code, err}
	}()
	var end ending
	select {
	case end = <-ended:
	case <-limited.Done():
		select {
		case <-ended:
		case <-time.After(hookKill): // the engine does not answer: it is left behind
		}
	}
	result.TookMillis = time.Since(began).Milliseconds()
	switch {
	case ctx.Err() != nil:
		return result, context.Cause(ctx)
	case limited.Err() != nil:
		result.Outcome = workspace.HookTimedOut
	case errors.Is(end.err, errNothingRuns):
		result.Outcome = workspace.HookNotRun
	case end.err != nil:
		result.Outcome, result.Problem = workspace.HookFailed, end.err.Error()
	case end.code != 0:
		result.Outcome, result.ExitCode = workspace.HookFailed, end.code
	}
	if err := n.keepHookOutput(target, result, output.take()); err != nil {
		n.Logger.Warn("what a hook printed could not be kept", "workspace", target.Name, "hook", hook.When, "error", err)
	}
	return result, nil
}

var errNothingRuns = errors.New("no instance runs")

func (n *Node) execHook(ctx context.Context, target workspace.Target, hook workspace.Hook, output io.Writer) (int, error) {
	instances, err := n.Engine.List(ctx, n.labels(target))
	if err != nil {
		return 0, fmt.Errorf("looking for the instance: %w", err)
	}
	for _, instance := range instances {
		if instance.Status == engine.StatusPaused { // it would wait until the hook's time is over
			return 0, fmt.Errorf("%w: %s", engine.ErrPaused, n.Guard.Why(workspace.InstanceName(target.WorkspaceID, target.Token)))
		}
		if instance.Status != engine.StatusRunning {
			continue
		}
		defer n.apart(ctx, target, instance)()
		code, err := n.Engine.Exec(ctx, instance.ID, engine.ExecSpec{
			Command:     []string{"/bin/sh", "-c", hook.Command},
			Environment: map[string]string{"HOLDFAST_HOOK": string(hook.When)},
			Stdout:      output, Stderr: output,
		})
		if errors.Is(err, engine.ErrNotRunning) || errors.Is(err, engine.ErrNotFound) {
			return 0, errNothingRuns
		}
		return code, err
	}
	return 0, errNothingRuns
}

// hookLog is the file with what an instance's hooks printed. It lies beside the content, and goes with it.
func (v *Volumes) hookLog(id string, token uint64) string {
	return filepath.Join(v.dir(id, token), "hooks.log")
}

// keepHookOutput appends to the instance's hook log.
func (n *Node) keepHookOutput(target workspace.Target, result workspace.HookResult, output []byte) error {
	volumes, err := n.on(target.Volume)
	if err != nil {
		return err
	}
	if _, err := volumes.identify(target.WorkspaceID, target.Token); err != nil {
		return err // nothing is written into a directory that is not the instance's (invariant 5)
	}
	path := volumes.hookLog(target.WorkspaceID, target.Token)
	kept, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	kept = append(kept, fmt.Sprintf("--- %s: %s\n", result.Time.UTC().Format(time.RFC3339), result.Words())...)
	kept = append(kept, output...)
	if len(output) > 0 && output[len(output)-1] != '\n' {
		kept = append(kept, '\n')
	}
	if len(kept) > hookLogMost {
		kept = kept[len(kept)-hookLogMost/2:]
	}
	return os.WriteFile(path, kept, 0o600)
}

// HookLog writes the end of what the instance's hooks printed.
func (n *Node) HookLog(_ context.Context, claims dataport.Claims, w io.Writer) error {
	volumes, err := n.on(claims.Volume)
	if err != nil {
		return fmt.Errorf("%w: %w", dataport.ErrNotHere, err)
	}
	if _, err := volumes.identify(claims.WorkspaceID, claims.Token); err != nil {
		return fmt.Errorf("%w: %w", dataport.ErrNotHere, err)
	}
	kept, err := os.ReadFile(volumes.hookLog(claims.WorkspaceID, claims.Token))
	if errors.Is(err, os.ErrNotExist) {
		return nil // none has run
	}
	if err != nil {
		return fmt.Errorf("reading what the hooks printed: %w", err)
	}
	_, err = w.Write(kept)
	return err
}

// lastBytes keeps the end of what is written to it.
type lastBytes struct {
	mutex sync.Mutex
	most  int
	bytes []byte
	lost  bool
}

func (l *lastBytes) Write(p []byte) (int, error) {
	l.mutex.Lock()
	defer l.mutex.Unlock()
	l.bytes = append(l.bytes, p...)
	if extra := len(l.bytes) - l.most; extra > 0 {
		l.bytes, l.lost = append(l.bytes[:0], l.bytes[extra:]...), true
	}
	return len(p), nil
}

// take is what was kept so far.
func (l *lastBytes) take() []byte {
	l.mutex.Lock()
	defer l.mutex.Unlock()
	kept := append([]byte(nil), l.bytes...)
	if l.lost {
		kept = append([]byte("… (only the end)\n"), kept...)
	}
	return kept
}
