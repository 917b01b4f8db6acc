package guard

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"holdfast/engine"
	"holdfast/engine/freezer"
)

const (
	// tickEvery is how often it is looked whether the time has come, and then whether everything stands.
	tickEvery = 500 * time.Millisecond
	// engineWithin is what the engine gets before the kernel is used, which gets freezeWithin. workspace.FenceMargin counts on both.
	engineWithin = 3 * time.Second
	freezeWithin = 2 * time.Second
	// lookWithin bounds a look at the kernel: what a process's own memory lock hides for longer is taken to run.
	lookWithin = time.Second
	// unseenEvery is how often the engine is asked to pause an instance of which the kernel shows nothing.
	unseenEvery = 5 * time.Second
)

// Record is what a guard knows, as it is on the disk and handed to the next one.
type Record struct {
	Boot      string     `json:"boot"` // of the machine: nothing that ran before it was started runs now
	Instances []Instance `json:"instances"`
	// Beat is when the newest beat was sent that was acknowledged, and PauseAfter what counts from it.
	Beat       Moment        `json:"beat"`
	PauseAfter time.Duration `json:"pause_after"`
}

// held is an instance with what is known of it.
type held struct {
	Instance
	busy  bool // it is being paused
	asked Moment
	said  string // what was said of it last: each thing is logged once
}

// keeper decides. Its methods are safe for concurrent use, and none waits for an engine or a disk.
type keeper struct {
	pausers map[string]Pauser
	logger  *slog.Logger
	now     func() Moment
	boot    string

	mutex      sync.Mutex
	instances  []*held
	beat       Moment
	pauseAfter time.Duration
	due        bool // the time has passed
	failing    int  // pauses in a row that failed
	looking    bool
	calls      sync.WaitGroup
}

// take takes over what an earlier guard knew. What an earlier start of the machine ran, runs no more.
func (k *keeper) take(record Record) {
	k.mutex.Lock()
	defer k.mutex.Unlock()
	now := k.now()
	k.beat, k.pauseAfter = record.Beat, record.PauseAfter
	if record.Boot != k.boot {
		k.instances, k.beat = nil, now
		return
	}
	if k.beat.Boot > now.Boot { // not of this machine's clock
		k.beat = Moment{}
	}
	for _, instance := range record.Instances {
		k.add(instance)
	}
}

func (k *keeper) record() Record {
	k.mutex.Lock()
	defer k.mutex.Unlock()
	record := Record{Boot: k.boot, Beat: k.beat, PauseAfter: k.pauseAfter, Instances: []Instance{}}
	for _, one := range k.instances {
		record.Instances = append(record.Instances, one.Instance)
	}
	return record
}

// add adds an instance that is not there. The mutex is held.
func (k *keeper) add(instance Instance) {
	if !slices.ContainsFunc(k.instances, func(h *held) bool { return h.Instance == instance }) {
		k.instances = append(k.instances, &held{Instance: instance})
	}
}

func (k *keeper) hold(instance Instance) error {
	pauser := k.pausers[instance.Kind]
	if pauser == nil {
		return fmt.Errorf("%w: an instance of the engine %q", ErrInvalid, instance.Kind)
	}
	if _, err := pauser.States([]string{instance.ID}); err != nil { // what could never be frozen is not taken
		return fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	k.mutex.Lock()
	defer k.mutex.Unlock()
	k.add(instance)
	return nil
}

func (k *keeper) release(instance Instance) {
	k.mutex.Lock()
	defer k.mutex.Unlock()
	k.instances = slices.DeleteFunc(k.instances, func(h *held) bool { return h.Instance == instance })
}

// greet takes an agent's time. It counts at once when it is shorter; a longer one counts from the first beat that carried it
// and was acknowledged: until then the control side counts with the shorter one.
func (k *keeper) greet(pauseAfter time.Duration) {
	k.mutex.Lock()
	defer k.mutex.Unlock()
	if k.pauseAfter <= 0 || pauseAfter < k.pauseAfter {
		k.pauseAfter = pauseAfter
	}
}

// beaten takes an acknowledged beat: when it was sent, and the time that it carried. An older one than the newest changes nothing.
func (k *keeper) beaten(sent Moment, pauseAfter time.Duration) error {
	k.mutex.Lock()
	defer k.mutex.Unlock()
	now := k.now()
	if pauseAfter <= 0 || sent.Boot > now.Boot || sent.Boot < 0 {
		return fmt.Errorf("%w: a beat of the future, or without a time", ErrInvalid)
	}
	if sent.Boot >= k.beat.Boot {
		k.beat, k.pauseAfter = sent, pauseAfter
	}
	return nil
}

func (k *keeper) empty() bool {
	k.mutex.Lock()
	defer k.mutex.Unlock()
	return len(k.instances) == 0
}

// overdue says whether everything has to stand. The mutex is held.
func (k *keeper) overdue() bool {
	return len(k.instances) > 0 && k.now().Since(k.beat) >= k.pauseAfter
}

// tick looks at the clocks, and when the time has passed at the kernel: what runs is paused. It goes on looking, since an
// agent that was frozen in the middle of a start or a resumption goes on with it when it is let go.
func (k *keeper) tick(ctx context.Context) {
	k.mutex.Lock()
	defer k.mutex.Unlock()
	due := k.overdue()
	if due != k.due {
		k.due = due
		if due {
			k.logger.Warn("no beat of the lease was acknowledged for too long: what is exclusive is paused", "after", k.pauseAfter, "last", k.beat.Wall.UTC().Format(time.RFC3339), "instances", len(k.instances))
		} else {
			k.logger.Info("the node has its lease again; its agent decides what goes on")
		}
	}
	if !due || k.looking {
		return
	}
	k.looking = true
	all := slices.Clone(k.instances)
	k.calls.Go(func() {
		k.look(ctx, all)
		k.mutex.Lock()
		defer k.mutex.Unlock()
		k.looking = false
	})
}

// look sees what runs and has it paused, each by itself: one that hangs holds up no other.
func (k *keeper) look(ctx context.Context, all []*held) {
	ids := map[string][]string{}
	for _, one := range all {
		ids[one.Kind] = append(ids[one.Kind], one.ID)
	}
	states := map[Instance]freezer.State{}
	unseen := map[string]bool{}
	for kind, list := range ids {
		found, err := k.states(ctx, kind, list)
		if err != nil {
			k.logger.Error("the kernel does not show what runs; all of it is taken to", "engine", kind, "error", err)
			unseen[kind] = true
		}
		for id, state := range found {
			states[Instance{Kind: kind, ID: id}] = state
		}
	}
	k.mutex.Lock()
	defer k.mutex.Unlock()
	for _, one := range all {
		state := states[one.Instance]
		if unseen[one.Kind] {
			state = freezer.Runs
		}
		k.saw(ctx, one, state)
	}
}

// saw acts on what was seen of an instance. The mutex is held.
func (k *keeper) saw(ctx context.Context, one *held, state freezer.State) {
	switch {
	case one.busy:
	case state == freezer.Stands:
		k.say(one, slog.LevelWarn, "an exclusive instance stands still", nil)
		k.failing = 0
	case state == freezer.Absent && k.now().Since(one.asked) < unseenEvery:
	case !k.overdue(): // a beat came meanwhile
	default:
		one.busy, one.asked = true, k.now()
		k.calls.Go(func() {
			err := k.pause(ctx, one.Instance)
			k.mutex.Lock()
			defer k.mutex.Unlock()
			one.busy = false
			switch {
			case err == nil: // the next look sees it
			case errors.Is(err, engine.ErrNotRunning), errors.Is(err, engine.ErrNotFound):
				k.say(one, slog.LevelInfo, "nothing runs of an exclusive instance", nil)
			default:
				k.failing++
				k.say(one, slog.LevelError, "an exclusive instance could not be paused; it is tried again at once, and IT MAY STILL RUN", err)
			}
		})
	}
}

// say logs what is new of an instance. The mutex is held.
func (k *keeper) say(one *held, level slog.Level, what string, err error) {
	said := what
	if err != nil {
		said += err.Error()
	}
	if one.said == said {
		return
	}
	one.said = said
	k.logger.Log(context.Background(), level, what, "engine", one.Kind, "instance", one.ID, "error", err)
}

func (k *keeper) states(ctx context.Context, kind string, ids []string) (map[string]freezer.State, error) {
	type answer struct {
		states map[string]freezer.State
		err    error
	}
	done := make(chan answer, 1)
	k.calls.Go(func() {
		states, err := k.pausers[kind].States(ids)
		done <- answer{states, err}
	})
	timer := time.NewTimer(lookWithin)
	defer timer.Stop()
	select {
	case got := <-done:
		return got.states, got.err
	case <-timer.C:
		return nil, errors.New("it does not answer")
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// pause asks the engine, so that it knows, and then the kernel, which needs nobody.
func (k *keeper) pause(ctx context.Context, instance Instance) error {
	pauser := k.pausers[instance.Kind]
	asking, cancel := context.WithTimeout(ctx, engineWithin)
	err := within(asking, func() error { return pauser.Pause(asking, instance.ID) })
	cancel()
	if err == nil {
		return nil
	}
	freezing, cancel := context.WithTimeout(ctx, freezeWithin)
	defer cancel()
	frozen := within(freezing, func() error { return pauser.Freeze(freezing, instance.ID) })
	switch {
	case frozen == nil:
		return nil
	case errors.Is(frozen, engine.ErrNotRunning) && (errors.Is(err, engine.ErrNotRunning) || errors.Is(err, engine.ErrNotFound)):
		return frozen
	}
	return fmt.Errorf("the engine: %w; the kernel: %w", err, frozen)
}

// within leaves behind what does not honour its context: a disk that hangs does not.
func within(ctx context.Context, call func() error) error {
	done := make(chan error, 1)
	go func() { done <- call() }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}
