// Package pulse keeps a long activity alive with heartbeats that it sends itself.
//
// activity.RecordHeartbeat does not fit: it throttles, it loses the checkpoint when called without one, and one failed
// flush (Temporal away for a few seconds) cancels the activity, which would end a backup because of the very outage it
// is to survive (sdk-go issues 2131 and 437). So the beats go through client.RecordActivityHeartbeat, each carries the
// checkpoint, and only a silence of GiveUpAfter ends the work.
package pulse

import (
	"context"
	"errors"
	"fmt"
	"time"

	"go.temporal.io/api/serviceerror"
	"go.temporal.io/sdk/activity"
	"go.temporal.io/sdk/temporal"
)

// Beater sends one heartbeat; client.Client does.
type Beater interface {
	RecordActivityHeartbeat(ctx context.Context, taskToken []byte, details ...any) error
}

// Options adjust a pulse. The zero value is useful inside an activity that has a heartbeat timeout.
type Options struct {
	// Interval is the time between beats. Default: a sixth of the heartbeat timeout.
	Interval time.Duration
	// Timeout bounds one beat. Default: the interval.
	Timeout time.Duration
	// GiveUpAfter is how long no beat may have been acknowledged before the work is cancelled: the server has then
	// long handed it to somebody else, and one operation at a time is the rule (invariant 6). Default: the heartbeat
	// timeout times 0.9.
	GiveUpAfter time.Duration
	// StallAfter stops the beats when Progress has not changed for so long, so that a hung upload times out instead of
	// being kept alive by a ticker. 0 means never.
	StallAfter time.Duration
	// Progress counts what was done; any change is progress. Needed for StallAfter.
	Progress func() int64
	// Checkpoint is sent with every beat; a beat without one would erase the last (temporal.md section 1).
	Checkpoint func() any
	// Sooner, when set, has a beat sent at once for each value: somebody waits for the end of this work, which may have
	// been given up already.
	Sooner <-chan struct{}
}

func (o Options) applyDefaults(heartbeat time.Duration) Options {
	if heartbeat <= 0 {
		heartbeat = 30 * time.Second
	}
	if o.Interval <= 0 {
		o.Interval = heartbeat / 6
	}
	if o.Timeout <= 0 {
		o.Timeout = o.Interval
	}
	if o.GiveUpAfter <= 0 {
		o.GiveUpAfter = heartbeat * 9 / 10
	}
	if o.Checkpoint == nil {
		o.Checkpoint = func() any { return nil }
	}
	return o
}

// Errors that end the work. They are the context's cause.
var (
	// ErrSilence: no beat was acknowledged for too long. The work is retried, perhaps elsewhere.
	ErrSilence = errors.New("the control plane has not acknowledged a heartbeat for too long")
	// ErrTimedOut: the server has given this attempt up already.
	ErrTimedOut = errors.New("this attempt was given up by the control plane")
	// ErrStalled: nothing was done for too long.
	ErrStalled = errors.New("nothing was done for too long")
	// ErrStopping: the worker is being stopped. What is done so far is safe; the rest is done when it is started again.
	ErrStopping = errors.New("the worker is being stopped")
)

// Run does the work while it beats. The work's context ends with the cause when the activity was cancelled, timed out
// on the server, the worker stops, or no beat got through. Run returns when the work has returned.
func Run(ctx context.Context, beater Beater, options Options, work func(context.Context) error) error {
	info := activity.GetInfo(ctx)
	options = options.applyDefaults(info.HeartbeatTimeout)
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)

	stop := make(chan struct{})
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		beat(ctx, beater, info.TaskToken, options, stop, activity.GetWorkerStopChannel(ctx), cancel)
	}()
	err := work(ctx)
	close(stop)
	<-stopped
	if cause := context.Cause(ctx); err != nil && cause != nil && errors.Is(err, context.Canceled) {
		if temporal.IsCanceledError(cause) {
			return cause
		}
		return fmt.Errorf("%w: %w", cause, err)
	}
	return err
}

func beat(ctx context.Context, beater Beater, taskToken []byte, options Options, stop, stopping <-chan struct{}, cancel context.CancelCauseFunc) {
	acknowledged := time.Now()
	var progress int64
	moved := time.Now()
	if options.Progress != nil {
		progress = options.Progress()
	}
	ticker := time.NewTicker(options.Interval)
	defer ticker.Stop()
	for {
		if options.Progress != nil && options.StallAfter > 0 {
			if now := options.Progress(); now != progress {
				progress, moved = now, time.Now()
			} else if time.Since(moved) > options.StallAfter {
				cancel(ErrStalled)
				return
			}
		}
		sent := time.Now()
		err := send(ctx, beater, taskToken, options, stop)
		var gone *serviceerror.NotFound
		switch {
		case err == nil:
			acknowledged = sent
		case temporal.IsCanceledError(err):
			cancel(temporal.NewCanceledError())
			return
		case errors.As(err, &gone):
			cancel(ErrTimedOut)
			return
		case errors.Is(err, activity.ErrActivityPaused), errors.Is(err, activity.ErrActivityReset):
			cancel(err)
			return
		}
		// Both clocks: a machine that was suspended wakes up with a monotonic clock that stood still.
		if since := max(time.Since(acknowledged), time.Now().Round(0).Sub(acknowledged.Round(0))); since > options.GiveUpAfter {
			cancel(ErrSilence)
			return
		}
		select {
		case <-ticker.C:
		case <-options.Sooner:
		case <-stop:
			return
		case <-stopping:
			cancel(ErrStopping)
			return
		case <-ctx.Done():
			return
		}
	}
}

// send sends one beat; when the work ends meanwhile the beat is not waited for.
func send(ctx context.Context, beater Beater, taskToken []byte, options Options, stop <-chan struct{}) error {
	ctx, cancel := context.WithTimeout(ctx, options.Timeout)
	defer cancel()
	go func() {
		select {
		case <-stop:
			cancel()
		case <-ctx.Done():
		}
	}()
	return beater.RecordActivityHeartbeat(ctx, taskToken, options.Checkpoint())
}
