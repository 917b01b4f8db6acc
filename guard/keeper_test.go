package guard

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"holdfast/engine"
	"holdfast/engine/freezer"
)

// kernel is a pretended engine and kernel.
type kernel struct {
	mutex    sync.Mutex
	states   map[string]freezer.State
	pauses   []string // asked of the engine
	freezes  []string // asked of the kernel
	engine   error    // the engine's answer to a pause
	kernel   error
	hang     bool // the engine never answers
	blind    error
	refused  error
	released chan struct{}
}

func (k *kernel) Pause(ctx context.Context, id string) error {
	k.mutex.Lock()
	defer k.mutex.Unlock()
	k.pauses = append(k.pauses, id)
	if k.hang {
		k.mutex.Unlock()
		<-k.released
		k.mutex.Lock()
		return errors.New("late")
	}
	if k.engine == nil {
		k.states[id] = freezer.Stands
	}
	return k.engine
}

func (k *kernel) Freeze(_ context.Context, id string) error {
	k.mutex.Lock()
	defer k.mutex.Unlock()
	k.freezes = append(k.freezes, id)
	if k.kernel == nil {
		k.states[id] = freezer.Stands
	}
	return k.kernel
}

func (k *kernel) States(ids []string) (map[string]freezer.State, error) {
	k.mutex.Lock()
	defer k.mutex.Unlock()
	found := map[string]freezer.State{}
	if k.blind != nil {
		return nil, k.blind
	}
	for _, id := range ids {
		if state := k.states[id]; state != freezer.Absent {
			found[id] = state
		}
	}
	return found, k.refused
}

func (k *kernel) state(id string) freezer.State {
	k.mutex.Lock()
	defer k.mutex.Unlock()
	return k.states[id]
}

func (k *kernel) set(id string, state freezer.State) {
	k.mutex.Lock()
	defer k.mutex.Unlock()
	k.states[id] = state
}

// desk is a keeper with a clock that a test sets.
type desk struct {
	*keeper
	t      *testing.T
	kernel *kernel
	clock  Moment
}

const pauseAfter = 2 * time.Minute

func newDesk(t *testing.T) *desk {
	d := &desk{t: t, kernel: &kernel{states: map[string]freezer.State{}, released: make(chan struct{})}, clock: Moment{Boot: time.Hour, Wall: time.Unix(1e9, 0)}}
	d.keeper = d.another()
	t.Cleanup(d.calls.Wait)
	t.Cleanup(func() { close(d.kernel.released) })
	require.NoError(t, d.beaten(d.clock, pauseAfter))
	return d
}

func (d *desk) another() *keeper {
	return &keeper{pausers: map[string]Pauser{"fake": d.kernel}, logger: slog.New(slog.DiscardHandler), now: func() Moment { return d.clock }, boot: "this"}
}

func (d *desk) pass(boot, wall time.Duration) {
	d.clock = Moment{Boot: d.clock.Boot + boot, Wall: d.clock.Wall.Add(wall)}
}

func (d *desk) runs(id string) {
	d.t.Helper()
	d.kernel.set(id, freezer.Runs)
	require.NoError(d.t, d.hold(Instance{Kind: "fake", ID: id}))
}

// ticked ticks and waits for all that follows.
func (d *desk) ticked() {
	d.tick(context.Background())
	d.calls.Wait()
}

func TestPausesByBothClocks(t *testing.T) {
	cases := map[string]struct {
		boot, wall time.Duration
		want       freezer.State
	}{
		"in time":                         {pauseAfter - time.Second, pauseAfter - time.Second, freezer.Runs},
		"by both":                         {pauseAfter, pauseAfter, freezer.Stands},
		"the wall clock was set back":     {pauseAfter, -time.Hour, freezer.Stands},
		"the other stood still":           {0, pauseAfter, freezer.Stands},
		"a machine that was suspended":    {time.Hour, time.Hour, freezer.Stands},
		"the wall clock was set back far": {time.Second, -100 * time.Hour, freezer.Runs},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			d := newDesk(t)
			d.runs("a")
			d.runs("b")
			d.kernel.set("not exclusive", freezer.Runs)
			d.pass(c.boot, c.wall)
			d.ticked()
			require.Equal(t, c.want, d.kernel.state("a"))
			require.Equal(t, c.want, d.kernel.state("b"))
			require.Equal(t, freezer.Runs, d.kernel.state("not exclusive"))
		})
	}
}

func TestBeatsPutItOff(t *testing.T) {
	d := newDesk(t)
	d.runs("a")
	for range 10 {
		d.pass(pauseAfter/2, pauseAfter/2)
		require.NoError(t, d.beaten(d.clock, pauseAfter))
		d.ticked()
	}
	require.Equal(t, freezer.Runs, d.kernel.state("a"))
	sent := d.clock
	d.pass(pauseAfter/2, pauseAfter/2)
	require.NoError(t, d.beaten(Moment{Boot: sent.Boot - time.Minute, Wall: sent.Wall}, pauseAfter), "one that was on its way")
	d.ticked()
	require.Equal(t, freezer.Runs, d.kernel.state("a"), "it takes nothing from the newest")
	require.ErrorIs(t, d.beaten(Moment{Boot: d.clock.Boot + time.Minute, Wall: d.clock.Wall}, pauseAfter), ErrInvalid)
	require.ErrorIs(t, d.beaten(d.clock, 0), ErrInvalid)
	d.pass(pauseAfter/2, pauseAfter/2)
	d.ticked()
	require.Equal(t, freezer.Stands, d.kernel.state("a"), "it counts from the sending of the newest")
	require.NoError(t, d.beaten(d.clock, pauseAfter))
	d.ticked()
	require.Equal(t, freezer.Stands, d.kernel.state("a"), "what goes on is the agent's to decide")
}

// The control side counts with what the newest acknowledged beat said: a longer time must not count before it said so.
func TestALongerTimeCountsFromItsFirstBeat(t *testing.T) {
	d := newDesk(t)
	d.runs("a")
	d.greet(time.Hour)
	d.pass(pauseAfter, pauseAfter)
	d.ticked()
	require.Equal(t, freezer.Stands, d.kernel.state("a"))

	d = newDesk(t)
	d.runs("a")
	require.NoError(t, d.beaten(d.clock, time.Hour))
	d.pass(pauseAfter, pauseAfter)
	d.ticked()
	require.Equal(t, freezer.Runs, d.kernel.state("a"))
	d.greet(time.Minute)
	d.ticked()
	require.Equal(t, freezer.Stands, d.kernel.state("a"), "a shorter one counts at once")
}

// An agent that was frozen in the middle of a start, or of letting one go on, does it when it is let go.
func TestWhatGoesOnIsPausedAgain(t *testing.T) {
	d := newDesk(t)
	d.runs("a")
	d.runs("b")
	d.kernel.set("b", freezer.Absent)
	d.pass(pauseAfter, pauseAfter)
	d.kernel.engine = engine.ErrNotRunning
	d.ticked()
	d.kernel.engine = nil
	require.Equal(t, freezer.Stands, d.kernel.state("a"), "its engine was wrong: something of it ran")
	d.kernel.set("a", freezer.Runs)
	d.kernel.set("b", freezer.Runs)
	d.ticked()
	require.Equal(t, freezer.Stands, d.kernel.state("a"))
	require.Equal(t, freezer.Stands, d.kernel.state("b"))
}

func TestTheKernelIsEnough(t *testing.T) {
	d := newDesk(t)
	d.runs("a")
	d.kernel.engine = engine.ErrUnavailable
	d.pass(pauseAfter, pauseAfter)
	d.ticked()
	require.Equal(t, []string{"a"}, d.kernel.pauses)
	require.Equal(t, []string{"a"}, d.kernel.freezes)
	require.Equal(t, freezer.Stands, d.kernel.state("a"))
}

// A pause that fails is tried again, and said to whoever asks.
func TestAFailedPauseIsTriedAgain(t *testing.T) {
	d := newDesk(t)
	d.runs("a")
	d.kernel.engine, d.kernel.kernel = engine.ErrUnavailable, errors.New("it does not stand still")
	d.pass(pauseAfter, pauseAfter)
	for range 3 {
		d.ticked()
	}
	require.Len(t, d.kernel.freezes, 3)
	due, failing := d.state()
	require.True(t, due)
	require.True(t, failing)
	d.kernel.kernel = nil
	d.ticked()
	d.ticked()
	require.Equal(t, freezer.Stands, d.kernel.state("a"))
	_, failing = d.state()
	require.False(t, failing)
}

func TestWhatIsNotSeenIsTakenToRun(t *testing.T) {
	d := newDesk(t)
	d.runs("a")
	d.kernel.blind = errors.New("no /proc")
	d.pass(pauseAfter, pauseAfter)
	d.ticked()
	require.Equal(t, freezer.Stands, d.kernel.state("a"))
	d.kernel.set("a", freezer.Runs)
	d.ticked()
	require.Equal(t, freezer.Stands, d.kernel.state("a"), "it is asked for again at once")

	// A container of an engine whose cgroups this process does not see.
	d = newDesk(t)
	d.runs("a")
	d.kernel.set("a", freezer.Absent)
	d.pass(pauseAfter, pauseAfter)
	d.ticked()
	d.ticked()
	require.Equal(t, []string{"a"}, d.kernel.pauses, "the engine is asked, but not all the time")
}

// An engine that hangs holds up neither the kernel nor another instance.
func TestAnEngineThatHangs(t *testing.T) {
	d := newDesk(t)
	d.runs("a")
	d.runs("b")
	d.kernel.hang = true
	d.pass(pauseAfter, pauseAfter)
	began := time.Now()
	d.ticked()
	require.Equal(t, freezer.Stands, d.kernel.state("a"))
	require.Equal(t, freezer.Stands, d.kernel.state("b"))
	require.Less(t, time.Since(began), engineWithin+freezeWithin)
}

func TestRecordOfAnEarlierGuard(t *testing.T) {
	d := newDesk(t)
	d.runs("a")
	record := d.record()
	d.pass(pauseAfter/2, pauseAfter/2)
	next := d.another()
	next.take(record)
	require.Equal(t, record, next.record(), "it does not begin to count again")
	d.pass(pauseAfter/2, pauseAfter/2)
	next.tick(t.Context())
	next.calls.Wait()
	require.Equal(t, freezer.Stands, d.kernel.state("a"))

	record.Boot = "an earlier start of the machine"
	next = d.another()
	next.take(record)
	require.True(t, next.empty(), "nothing of it runs")

	record.Boot, record.Beat.Boot = "this", d.clock.Boot+time.Hour
	next = d.another()
	next.take(record)
	require.True(t, next.overdue(), "a beat of the future is none")
}

func TestOnlyWhatCanBePausedIsHeld(t *testing.T) {
	d := newDesk(t)
	require.ErrorIs(t, d.hold(Instance{Kind: "other", ID: "a"}), ErrInvalid)
	d.kernel.refused = freezer.ErrRefused
	require.ErrorIs(t, d.hold(Instance{Kind: "fake", ID: ""}), ErrInvalid)
	require.True(t, d.empty())
	d.kernel.refused = nil
	d.runs("a")
	d.runs("a")
	require.Len(t, d.record().Instances, 1)
	d.release(Instance{Kind: "fake", ID: "a"})
	require.True(t, d.empty())
	d.pass(time.Hour, time.Hour)
	d.ticked()
	require.Equal(t, freezer.Runs, d.kernel.state("a"))
}
