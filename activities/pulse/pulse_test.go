package pulse_test

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.temporal.io/api/serviceerror"
	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/testsuite"

	"holdfast/activities/pulse"
)

// beater answers each beat with the next of its answers; the last one stays.
type beater struct {
	mutex   sync.Mutex
	answers []error
	details []any
	beats   atomic.Int64
}

func (b *beater) RecordActivityHeartbeat(_ context.Context, _ []byte, details ...any) error {
	b.mutex.Lock()
	defer b.mutex.Unlock()
	b.beats.Add(1)
	b.details = append(b.details, details...)
	answer := b.answers[0]
	if len(b.answers) > 1 {
		b.answers = b.answers[1:]
	}
	return answer
}

func run(t *testing.T, b *beater, options pulse.Options, work func(context.Context) error) error {
	t.Helper()
	var suite testsuite.WorkflowTestSuite
	environment := suite.NewTestActivityEnvironment()
	environment.SetTestTimeout(2 * time.Minute)
	var result error
	do := func(ctx context.Context) error {
		result = pulse.Run(ctx, b, options, work)
		return nil
	}
	environment.RegisterActivity(do)
	_, err := environment.ExecuteActivity(do)
	require.NoError(t, err)
	return result
}

func untilDone(ctx context.Context) error {
	<-ctx.Done()
	return ctx.Err()
}

// fast beats often and, unless a test is about that, never gives up: a machine that is busy elsewhere is no silence.
func fast() pulse.Options {
	return pulse.Options{Interval: time.Millisecond, GiveUpAfter: time.Hour}
}

func TestEveryBeatCarriesTheCheckpoint(t *testing.T) {
	b := &beater{answers: []error{nil}}
	options := fast()
	options.Checkpoint = func() any { return "checkpoint" }
	require.NoError(t, run(t, b, options, func(ctx context.Context) error {
		for b.beats.Load() < 3 && ctx.Err() == nil {
			time.Sleep(time.Millisecond)
		}
		return ctx.Err()
	}))
	for _, detail := range b.details {
		require.Equal(t, "checkpoint", detail)
	}
}

func TestWorkOutlivesAnOutageOfTheControlPlane(t *testing.T) {
	away := serviceerror.NewUnavailable("away")
	b := &beater{answers: []error{nil, away, away, away, nil}}
	options := fast()
	require.NoError(t, run(t, b, options, func(ctx context.Context) error {
		for b.beats.Load() < 8 && ctx.Err() == nil {
			time.Sleep(time.Millisecond)
		}
		return ctx.Err()
	}))
}

func TestWorkEndsWithTheCause(t *testing.T) {
	for name, test := range map[string]struct {
		answer error
		cause  error
	}{
		"silence":       {serviceerror.NewUnavailable("away"), pulse.ErrSilence},
		"given up":      {serviceerror.NewNotFound("no such activity"), pulse.ErrTimedOut},
		"any other one": {errors.New("odd"), pulse.ErrSilence},
	} {
		t.Run(name, func(t *testing.T) {
			options := fast()
			options.GiveUpAfter = 50 * time.Millisecond
			err := run(t, &beater{answers: []error{test.answer}}, options, untilDone)
			require.ErrorIs(t, err, test.cause)
		})
	}
	err := run(t, &beater{answers: []error{nil, temporal.NewCanceledError()}}, fast(), untilDone)
	require.True(t, temporal.IsCanceledError(err), "%v", err)
}

// Who is waited for hears at once that it was given up, not with the next beat.
func TestABeatSoonerThanTheNext(t *testing.T) {
	b := &beater{answers: []error{nil, temporal.NewCanceledError()}}
	waitedFor := make(chan struct{})
	err := run(t, b, pulse.Options{Interval: time.Hour, GiveUpAfter: 2 * time.Hour, Sooner: waitedFor}, func(ctx context.Context) error {
		waitedFor <- struct{}{}
		return untilDone(ctx)
	})
	require.True(t, temporal.IsCanceledError(err), "%v", err)
}

func TestAStallEndsTheBeats(t *testing.T) {
	b := &beater{answers: []error{nil}}
	options := fast()
	options.StallAfter = 20 * time.Millisecond
	options.Progress = func() int64 { return 7 }
	require.ErrorIs(t, run(t, b, options, untilDone), pulse.ErrStalled)
}

func TestProgressIsNoStall(t *testing.T) {
	b := &beater{answers: []error{nil}}
	options := fast()
	options.StallAfter = 1 // nanosecond: any look that finds no progress ends it
	var progress atomic.Int64
	options.Progress = func() int64 { return progress.Add(1) }
	require.NoError(t, run(t, b, options, func(ctx context.Context) error {
		for b.beats.Load() < 5 && ctx.Err() == nil {
			time.Sleep(time.Millisecond)
		}
		return ctx.Err()
	}))
}

func TestTheWorksOwnErrorStays(t *testing.T) {
	own := errors.New("disk on fire")
	require.ErrorIs(t, run(t, &beater{answers: []error{nil}}, fast(), func(context.Context) error { return own }), own)
}

func TestAStoppingWorkerIsNotWaitedFor(t *testing.T) {
	stopping := make(chan struct{})
	var suite testsuite.WorkflowTestSuite
	environment := suite.NewTestActivityEnvironment()
	environment.SetWorkerStopChannel(stopping)
	b := &beater{answers: []error{nil}}
	var result error
	do := func(ctx context.Context) error {
		result = pulse.Run(ctx, b, fast(), func(ctx context.Context) error {
			close(stopping)
			return untilDone(ctx)
		})
		return nil
	}
	environment.RegisterActivity(do)
	_, err := environment.ExecuteActivity(do)
	require.NoError(t, err)
	require.ErrorIs(t, result, pulse.ErrStopping)
}
