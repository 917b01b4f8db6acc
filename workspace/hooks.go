package workspace

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// HookPoint says when a hook runs.
type HookPoint string

// The points.
const (
	HookPreStop      HookPoint = "pre-stop"      // before the instance is stopped
	HookPreSnapshot  HookPoint = "pre-snapshot"  // before a running instance's content is read
	HookPostSnapshot HookPoint = "post-snapshot" // after that, also when it failed
)

// The values of Hook.OnError.
const (
	HookContinue = "continue" // the failure is told, and what the hook belongs to is done all the same
	HookFail     = "fail"     // what the hook belongs to is not done; nothing is changed
)

// Hook is a command that a person wants run at a certain point, by /bin/sh inside the instance, in its content (A17). It
// can be run again for the same stop or snapshot, when an attempt was cut.
type Hook struct {
	When    HookPoint `json:"when"`
	Command string    `json:"command"` // not secret: it is in histories and in the catalog
	// TimeoutSeconds is when it is killed and counts as failed: at most MaxHookTimeout; 0 means DefaultHookTimeout.
	TimeoutSeconds int64 `json:"timeout_seconds,omitempty"`
	// OnError is HookContinue or HookFail; empty is HookContinue, since content without a hook's help is worth more than none.
	OnError string `json:"on_error,omitempty"`
}

// The time that a hook has. The most is less than an activity may be without progress.
const (
	DefaultHookTimeout = 30 * time.Second
	MaxHookTimeout     = 5 * time.Minute
)

// maxHookCommand bounds a command: what is longer belongs into a file of the workspace.
const maxHookCommand = 4 << 10

// Timeout is the time that the hook has.
func (h Hook) Timeout() time.Duration {
	if h.TimeoutSeconds == 0 {
		return DefaultHookTimeout
	}
	return time.Duration(h.TimeoutSeconds) * time.Second
}

// Validate names what is wrong.
func (h Hook) Validate() error {
	switch {
	case !slices.Contains([]HookPoint{HookPreStop, HookPreSnapshot, HookPostSnapshot}, h.When):
		return invalid("hook", "%q: want pre-stop, pre-snapshot or post-snapshot", h.When)
	case strings.TrimSpace(h.Command) == "":
		return invalid("hook", "%s has no command", h.When)
	case strings.ContainsRune(h.Command, 0) || len(h.Command) > maxHookCommand:
		return invalid("hook", "%s: want a command of at most %d bytes without NUL; put longer ones into a script in the workspace", h.When, maxHookCommand)
	case h.TimeoutSeconds < 0 || h.TimeoutSeconds > int64(MaxHookTimeout/time.Second):
		return invalid("hook", "%s: the timeout %s: want 1s to 5m", h.When, time.Duration(h.TimeoutSeconds)*time.Second)
	case h.OnError != "" && h.OnError != HookContinue && h.OnError != HookFail:
		return invalid("hook", "%s: on-error %q: want continue or fail", h.When, h.OnError)
	}
	return nil
}

// ParseHook reads what a person writes: WHEN[,timeout=TIME][,on-error=continue|fail]:COMMAND.
func ParseHook(text string) (Hook, error) {
	head, command, found := strings.Cut(text, ":")
	if !found {
		return Hook{}, invalid("hook", "%q: want WHEN[,timeout=TIME][,on-error=continue|fail]:COMMAND", text)
	}
	fields := strings.Split(head, ",")
	hook := Hook{When: HookPoint(fields[0]), Command: command}
	for _, field := range fields[1:] {
		switch name, value, _ := strings.Cut(field, "="); name {
		case "timeout":
			timeout, err := time.ParseDuration(value)
			if err != nil || timeout <= 0 || timeout%time.Second != 0 {
				return hook, invalid("hook", "%s: the timeout %q: want whole seconds, 1s to 5m", hook.When, value)
			}
			hook.TimeoutSeconds = int64(timeout / time.Second)
		case "on-error":
			if hook.OnError = value; value == "" {
				return hook, invalid("hook", "%s: on-error: want continue or fail", hook.When)
			}
		default:
			return hook, invalid("hook", "%s: %q is not known: want timeout=TIME or on-error=continue|fail", hook.When, field)
		}
	}
	return hook, hook.Validate()
}

// validateHooks checks all hooks: each point has at most one.
func validateHooks(hooks []Hook) error {
	seen := map[HookPoint]bool{}
	for _, hook := range hooks {
		if err := hook.Validate(); err != nil {
			return err
		}
		if seen[hook.When] {
			return invalid("hook", "%s is given twice: write one command that does both", hook.When)
		}
		seen[hook.When] = true
	}
	return nil
}

// Hook is the hook for a point, nil when there is none.
func (s Spec) Hook(when HookPoint) *Hook {
	for i := range s.Hooks {
		if s.Hooks[i].When == when {
			return &s.Hooks[i]
		}
	}
	return nil
}

// HookOutcome says how a hook ended.
type HookOutcome string

// The outcomes.
const (
	HookDone     HookOutcome = "done"
	HookFailed   HookOutcome = "failed"    // it ended with another status than 0, or could not be begun
	HookTimedOut HookOutcome = "timed out" // it was killed
	HookNotRun   HookOutcome = "not run"   // nothing ran that it could be run in
)

// HookResult is how a hook ended the last time that it ran. What it printed stays on the node (`holdfast logs --hooks`): it
// may be secret.
type HookResult struct {
	When       HookPoint   `json:"when"`
	Time       time.Time   `json:"time"`
	Outcome    HookOutcome `json:"outcome"`
	ExitCode   int         `json:"exit_code,omitempty"`
	TookMillis int64       `json:"took_millis,omitempty"`
	Problem    string      `json:"problem,omitempty"` // why it could not be begun
}

// Words say how it ended.
func (r HookResult) Words() string {
	took := (time.Duration(r.TookMillis) * time.Millisecond).String()
	switch {
	case r.Outcome == HookDone:
		return fmt.Sprintf("the %s hook was done in %s", r.When, took)
	case r.Outcome == HookTimedOut:
		return fmt.Sprintf("the %s hook did not end in time and was killed after %s", r.When, took)
	case r.Outcome == HookNotRun:
		return fmt.Sprintf("the %s hook was not run: the instance does not run", r.When)
	case r.Problem != "":
		return fmt.Sprintf("the %s hook could not be run: %s", r.When, r.Problem)
	default:
		return fmt.Sprintf("the %s hook ended with status %d after %s", r.When, r.ExitCode, took)
	}
}

// Failed reports whether the hook did not do what it is for.
func (r HookResult) Failed() bool { return r.Outcome == HookFailed || r.Outcome == HookTimedOut }
