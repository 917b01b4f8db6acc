package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/cenkalti/backoff/v5"

	"holdfast/dataport"
	"holdfast/workspace"
)

// follower watches an operation until it ends. Following never changes anything: stopping it leaves the operation as
// it is.
type follower struct {
	control control
	show    progress
	now     func() time.Time
	// wait sleeps between two looks.
	wait func(ctx context.Context, d time.Duration) error
	// upload, when set, sends the promised directory to the node that waits for it.
	upload func(ctx context.Context) error
}

const (
	pollFirst = 200 * time.Millisecond
	pollMost  = 2 * time.Second
	// uploadAttempts is how often an upload that was cut is begun again.
	uploadAttempts = 5
	// missingLooks is how often an operation may be absent before it counts as forgotten: between being accepted and
	// being begun it is in no list for a moment.
	missingLooks = 5
)

func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-timer.C:
		return nil
	}
}

// follow returns how the operation ended, and the workspace's state then.
func (f *follower) follow(ctx context.Context, name, operationID string) (workspace.Operation, workspace.State, error) {
	defer f.show.Close()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	uploads := f.newUploads(ctx, cancel)
	defer uploads.stop()

	pace := &backoff.ExponentialBackOff{InitialInterval: pollFirst, Multiplier: 1.5, MaxInterval: pollMost}
	pace.Reset()
	missing, lastStep := 0, workspace.Step("-")
	for {
		state, err := f.control.State(ctx, name)
		switch {
		case ctx.Err() != nil:
			return workspace.Operation{}, state, f.left(ctx, name)
		case err != nil && !transient(err):
			return workspace.Operation{}, state, err
		case err != nil:
			f.show.Update(status{key: "away", text: name + ": " + asFailure(err).Error() + "; the operation goes on without us, still asking"})
		default:
			if ended := findOperation(state.Recent, operationID); ended != nil {
				if err := uploads.finished(ended); err != nil {
					return *ended, state, err
				}
				return *ended, state, nil
			}
			current := state.Operation
			switch {
			case current != nil && current.ID == operationID:
				missing = 0
				if current.Step != lastStep {
					lastStep = current.Step
					pace.Reset()
				}
				pending, err := f.control.Pending(ctx, name)
				if err != nil {
					pending = nil // for display only; the next look may have it
				}
				if current.Step == workspace.StepUpload && state.Instance != nil {
					uploads.begin(state.Instance.Token)
				}
				if !uploads.running() {
					f.show.Update(describeStatus(state, pending, f.now()))
				}
			case findOperation(state.Waiting, operationID) != nil:
				missing = 0
				text := name + ": accepted"
				if current != nil {
					text += fmt.Sprintf(", after the %s that is under way (%s)", current.Kind, current.Step)
				}
				f.show.Update(status{key: text, text: text})
			default:
				if missing++; missing >= missingLooks {
					return workspace.Operation{}, state, fail(exitFailed, "workspace %q no longer knows how operation %s ended", name, operationID).
						withMend("`holdfast show %s` says how the workspace is now", name)
				}
			}
		}
		if err := f.wait(ctx, pace.NextBackOff()); err != nil {
			return workspace.Operation{}, state, f.left(ctx, name)
		}
	}
}

// transient reports whether asking again may help.
func transient(err error) bool {
	f := asFailure(err)
	return f.code == exitTimedOut || isUnreachable(err) || isNoWorker(err)
}

// errInterrupted is the cause when a person pressed Ctrl-C.
var errInterrupted = errors.New("interrupted")

// left says that only the following ended.
func (f *follower) left(ctx context.Context, name string) error {
	cause := context.Cause(ctx)
	what := "no longer followed"
	switch {
	case errors.Is(cause, context.DeadlineExceeded):
		what = "the time to wait is over"
	case !errors.Is(cause, errInterrupted) && !errors.Is(cause, context.Canceled):
		return cause // the upload gave up
	}
	return fail(exitTimedOut, "%s: the operation on workspace %q goes on", what, name).
		withSafe("nothing was interrupted or undone").
		withMend("`holdfast why %s` shows how far it is", name)
}

func findOperation(operations []workspace.Operation, id string) *workspace.Operation {
	for i := range operations {
		if operations[i].ID == id {
			return &operations[i]
		}
	}
	return nil
}

// describeStatus is one line about an operation under way.
func describeStatus(state workspace.State, pending []workspace.PendingActivity, now time.Time) status {
	e := workspace.Explain(state, pending, now)
	step := string(e.Step)
	if step == "" {
		step = "about to begin"
	}
	line := status{key: step, text: state.Name + ": " + step}
	if e.Progress != nil {
		line.done, line.total = e.Progress.Bytes, e.Progress.TotalBytes
		line.text += ": " + e.Far
	}
	if e.Failure == nil {
		return line
	}
	waiting := "trying again"
	if e.Failure.OfStorage() {
		waiting = "waiting for storage"
	}
	// What is the same for every attempt makes the key, so that an outage of hours is not a line every half minute.
	line.key += "|" + string(e.Failure.Class) + e.Failure.Words
	line.done, line.total = 0, 0
	line.waits = true
	line.text = fmt.Sprintf("%s: %s, %s: %s (attempt %d)", state.Name, step, waiting, e.Failure.Words, e.Attempt)
	if !e.NextRetry.IsZero() {
		line.text += ", next try in " + ago(e.NextRetry.Sub(now))
	}
	if e.Far != "" {
		line.text += "; so far " + e.Far
	}
	line.detail = "last error: " + e.Failure.Error
	if len(e.Safe) > 0 {
		line.detail += "\nsafe: " + e.Safe[0]
	}
	return line
}

// uploads sends a directory once for each instance that waits for it, again when it was cut.
type uploads struct {
	follower *follower
	ctx      context.Context
	fail     context.CancelCauseFunc
	cancel   context.CancelFunc
	end      context.CancelFunc // of the one under way
	token    uint64
	done     chan error // nil while none is under way
	last     error
}

func (f *follower) newUploads(ctx context.Context, fail context.CancelCauseFunc) *uploads {
	ctx, cancel := context.WithCancel(ctx)
	return &uploads{follower: f, ctx: ctx, fail: fail, cancel: cancel, end: func() {}}
}

func (u *uploads) begin(token uint64) {
	if u.follower.upload == nil || u.token == token {
		return
	}
	u.end() // what waits for the instance before this one
	u.settle()
	u.token = token
	done := make(chan error, 1)
	u.done = done
	ctx, end := context.WithCancel(u.ctx)
	u.end = end
	go func() {
		defer end()
		var err error
		pause := &backoff.ExponentialBackOff{InitialInterval: time.Second, Multiplier: 2, MaxInterval: 15 * time.Second}
		pause.Reset()
		for attempt := 1; ; {
			if err = u.follower.upload(ctx); err == nil || ctx.Err() != nil {
				break
			}
			// The step is said before the node has taken it up, so that who is early finds nobody waiting, and who sends
			// again finds the content there. The operation's own end is what bounds that.
			early := errors.Is(err, dataport.ErrConflict)
			if !early && (attempt == uploadAttempts || !uploadAgain(err)) {
				u.fail(err)
				break
			}
			if !early {
				attempt++
			}
			if u.follower.wait(ctx, pause.NextBackOff()) != nil {
				break
			}
		}
		done <- err
	}()
}

// uploadAgain reports whether sending again may help; a directory that cannot be read does not mend itself.
func uploadAgain(err error) bool {
	for _, passing := range []error{dataport.ErrCut, dataport.ErrBusy, dataport.ErrUnavailable, dataport.ErrShuttingDown,
		dataport.ErrExpired, dataport.ErrReplayed, errNoGrant} {
		if errors.Is(err, passing) {
			return true
		}
	}
	return false
}

func (u *uploads) running() bool {
	if u.done == nil {
		return false
	}
	select {
	case u.last = <-u.done:
		u.done = nil
		return false
	default:
		return true
	}
}

// settle waits for the upload under way, if any.
func (u *uploads) settle() {
	if u.done != nil {
		u.last = <-u.done
		u.done = nil
	}
}

// finished is called when the operation has ended: an upload's own error says more than what the node knows.
func (u *uploads) finished(operation *workspace.Operation) error {
	u.cancel()
	u.settle()
	if operation.Failed && u.last != nil && !errors.Is(u.last, context.Canceled) {
		return u.last
	}
	return nil
}

func (u *uploads) stop() {
	u.cancel()
	u.settle()
}
