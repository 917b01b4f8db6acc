package activities

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.temporal.io/api/serviceerror"
	"go.temporal.io/sdk/activity"
	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/testsuite"

	"holdfast/workspace"
)

// handClock is moved by tests; its two clocks can be moved apart.
type handClock struct {
	mutex sync.Mutex
	now   moment
}

func (c *handClock) read() moment {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	return c.now
}

func (c *handClock) pass(wall, steady time.Duration) {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	c.now = moment{c.now.wall.Add(wall), c.now.steady + steady}
}

func heldLease(c *handClock) *Lease {
	l := &Lease{clock: c.read}
	l.begin(workspace.LeaseInput{Epoch: 1, Timeout: 10 * time.Second})
	l.renew(1, c.read())
	return l
}

// DESIGN section 7, invariant 7: suspect 6 s after the sending of the last acknowledged beat, fenced after 7 s.
func TestLeaseTimes(t *testing.T) {
	c := &handClock{}
	l := heldLease(c)
	for _, step := range []struct {
		pass       time.Duration
		new, check error
	}{
		{0, nil, nil},
		{5999 * time.Millisecond, nil, nil},
		{time.Millisecond, ErrSuspect, nil},
		{999 * time.Millisecond, ErrSuspect, nil},
		{time.Millisecond, ErrNoLease, ErrNoLease},
		{time.Hour, ErrNoLease, ErrNoLease},
	} {
		c.pass(step.pass, step.pass)
		require.Equal(t, step.new, l.CheckNew(), "%v", c.now.steady)
		require.Equal(t, step.check, l.Check(), "%v", c.now.steady)
	}
	l.renew(1, c.read())
	require.NoError(t, l.CheckNew())
}

// Both clocks: a machine that was suspended wakes with a steady clock that stood still, and a wall clock that was set
// back hides what has passed.
func TestLeaseBothClocks(t *testing.T) {
	for name, pass := range map[string][2]time.Duration{
		"suspended":    {time.Hour, 0},
		"set back":     {-time.Hour, 7 * time.Second},
		"set forwards": {7 * time.Second, 0},
	} {
		c := &handClock{}
		l := heldLease(c)
		c.pass(pass[0], pass[1])
		require.ErrorIs(t, l.Check(), ErrNoLease, name)
	}
	var real Lease
	require.ErrorIs(t, real.Check(), ErrNoLease, "no lease was ever given")
	real.begin(workspace.LeaseInput{Epoch: 1, Timeout: 10 * time.Second})
	require.ErrorIs(t, real.Check(), ErrNoLease, "no beat was acknowledged yet")
	real.renew(1, real.now())
	require.NoError(t, real.CheckNew())
}

// What an old epoch's loop still does changes nothing in a newer lease.
func TestLeaseEpochs(t *testing.T) {
	c := &handClock{}
	l := heldLease(c)
	old := c.read()
	c.pass(5*time.Second, 5*time.Second)
	l.begin(workspace.LeaseInput{Epoch: 2, Timeout: 10 * time.Second})
	require.ErrorIs(t, l.Check(), ErrNoLease, "a new lease is not live before its first beat")
	l.renew(1, c.read())
	require.ErrorIs(t, l.Check(), ErrNoLease, "the old epoch's beat does not make it live")
	l.renew(2, c.read())
	l.drop(1)
	l.renew(1, old)
	require.NoError(t, l.CheckNew())
	l.drop(2)
	require.ErrorIs(t, l.Check(), ErrNoLease)
}

// leaseClient is the lease's connection to Temporal.
type leaseClient struct {
	beat    func(n int, ctx context.Context, beat workspace.LeaseBeat) error
	signal  error
	mutex   sync.Mutex
	beats   int
	signals []workspace.LeaseTaken
}

func (c *leaseClient) RecordActivityHeartbeat(ctx context.Context, _ []byte, details ...any) error {
	c.mutex.Lock()
	c.beats++
	n := c.beats
	c.mutex.Unlock()
	return c.beat(n, ctx, details[0].(workspace.LeaseBeat))
}

func (c *leaseClient) SignalWorkflow(_ context.Context, workflowID, _, name string, arg any) error {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	c.signals = append(c.signals, arg.(workspace.LeaseTaken))
	if workflowID != "node/node-1" || name != workspace.SignalLeaseTaken {
		return errors.New("the wrong workflow")
	}
	return c.signal
}

type holding struct {
	lease  *Lease
	client *leaseClient
	stop   chan struct{}
	done   chan struct{}
	result workspace.LeaseResult
	err    error
}

// hold runs HoldLease on a clock of its own.
func hold(t *testing.T, c *handClock, client *leaseClient, input workspace.LeaseInput) *holding {
	t.Helper()
	h := &holding{lease: &Lease{clock: c.read}, client: client, stop: make(chan struct{}), done: make(chan struct{})}
	holder := &LeaseHolder{Lease: h.lease, Incarnation: "this", Client: client, Logger: slog.New(slog.DiscardHandler)}
	var suite testsuite.WorkflowTestSuite
	environment := suite.NewTestActivityEnvironment()
	environment.SetTestTimeout(3 * time.Minute)
	environment.SetWorkerStopChannel(h.stop)
	environment.RegisterActivity(holder.HoldLease)
	go func() {
		defer close(h.done)
		value, err := environment.ExecuteActivity(holder.HoldLease, input)
		if h.err = err; err == nil {
			h.err = value.Get(&h.result)
		}
	}()
	return h
}

var offered = workspace.LeaseInput{Node: "node-1", Epoch: 4, Incarnation: "this", Timeout: 10 * time.Second, VerifyKey: make([]byte, 32)}

// The lease counts from the sending of a beat: an answer that took its time has used up a part of it.
func TestLeaseCountsFromTheSending(t *testing.T) {
	c := &handClock{}
	acknowledged := make(chan struct{})
	var sent workspace.LeaseBeat
	h := hold(t, c, &leaseClient{beat: func(n int, _ context.Context, beat workspace.LeaseBeat) error {
		if n == 1 {
			sent = beat
			c.pass(1500*time.Millisecond, 1500*time.Millisecond)
			close(acknowledged)
			return nil
		}
		return serviceerror.NewUnavailable("away") // a second beat, on a slow machine, must not renew it
	}}, offered)
	<-acknowledged
	require.Eventually(t, func() bool { return h.lease.Check() == nil }, time.Minute, time.Millisecond)
	require.Equal(t, uint64(4), sent.Epoch)
	require.Equal(t, moment{}.wall, sent.Sent)
	require.Equal(t, []workspace.LeaseTaken{{Epoch: 4, Incarnation: "this"}}, h.client.signals)
	_, known := h.lease.VerifyKey()
	require.True(t, known)
	c.pass(5499*time.Millisecond, 5499*time.Millisecond)
	require.NoError(t, h.lease.Check())
	c.pass(time.Millisecond, time.Millisecond)
	require.ErrorIs(t, h.lease.Check(), ErrNoLease)
	close(h.stop)
	<-h.done
	require.NoError(t, h.err)
	require.True(t, h.result.Released)
}

// A beat that hangs does not hold up the fence: it needs nobody to notice.
func TestHangingBeatDoesNotDelayTheFence(t *testing.T) {
	t.Parallel()
	c := &handClock{}
	hanging, let := make(chan struct{}), make(chan struct{})
	h := hold(t, c, &leaseClient{beat: func(n int, ctx context.Context, _ workspace.LeaseBeat) error {
		if n == 2 {
			close(hanging)
			<-let // not even its own time-out ends it
			return ctx.Err()
		}
		return nil
	}}, offered)
	<-hanging
	require.NoError(t, h.lease.CheckNew())
	c.pass(6*time.Second, 6*time.Second)
	require.ErrorIs(t, h.lease.CheckNew(), ErrSuspect)
	c.pass(time.Second, time.Second)
	require.ErrorIs(t, h.lease.Check(), ErrNoLease)
	close(let)
	require.Eventually(t, func() bool { return h.lease.CheckNew() == nil }, time.Minute, time.Millisecond, "it beats on and is live again")
	close(h.stop)
	<-h.done
	require.NoError(t, h.err)
}

// What says for sure that the lease is gone ends it at once; what may pass does not.
func TestLeaseIsTakenAway(t *testing.T) {
	for name, test := range map[string]struct {
		answer error
		gone   bool
	}{
		"timed out on the server": {serviceerror.NewNotFound("no such activity"), true},
		"cancelled":               {temporal.NewCanceledError(), true},
		"paused":                  {activity.ErrActivityPaused, true},
		"reset":                   {activity.ErrActivityReset, true},
		"unreachable":             {serviceerror.NewUnavailable("away"), false},
		"slow":                    {serviceerror.NewDeadlineExceeded("slow"), false},
		"odd":                     {errors.New("odd"), false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := &handClock{}
			second := make(chan struct{})
			h := hold(t, c, &leaseClient{beat: func(n int, _ context.Context, _ workspace.LeaseBeat) error {
				if n == 2 {
					defer close(second)
					return test.answer
				}
				return nil
			}}, offered)
			<-second
			if test.gone {
				<-h.done
				require.Error(t, h.err)
				require.ErrorIs(t, h.lease.Check(), ErrNoLease)
				return
			}
			require.NoError(t, h.lease.Check())
			close(h.stop)
			<-h.done
			require.NoError(t, h.err)
			require.ErrorIs(t, h.lease.Check(), ErrNoLease, "given back")
		})
	}
}

func TestLeaseOfAnotherStart(t *testing.T) {
	c := &handClock{}
	other := offered
	other.Incarnation = "another"
	h := hold(t, c, &leaseClient{beat: func(int, context.Context, workspace.LeaseBeat) error { return nil }}, other)
	<-h.done
	typed(t, h.err, workspace.ErrorConflict)
	require.Empty(t, h.client.signals)
	require.ErrorIs(t, h.lease.Check(), ErrNoLease)
}

// A lease that nobody knows of is not held.
func TestLeaseThatCannotBeSaid(t *testing.T) {
	h := hold(t, &handClock{}, &leaseClient{signal: serviceerror.NewUnavailable("away")}, offered)
	<-h.done
	transient(t, h.err)
	require.ErrorIs(t, h.lease.Check(), ErrNoLease)
}

// Before its activity ends by the clock the lease is handed back, for the workflow to renew it.
func TestLeaseIsRenewedInTime(t *testing.T) {
	long := offered
	long.Timeout = 24 * time.Hour // longer than the activity may still take
	h := hold(t, &handClock{}, &leaseClient{beat: func(int, context.Context, workspace.LeaseBeat) error { return nil }}, long)
	<-h.done
	require.NoError(t, h.err)
	require.False(t, h.result.Released)
}
