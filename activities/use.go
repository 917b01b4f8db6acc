package activities

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/docker/go-units"

	"holdfast/activities/pulse"
	"holdfast/dataport"
	"holdfast/engine"
	"holdfast/workspace"
)

// What counts as use of an instance. It is used while a person is connected to it through the data port, whatever is done
// there, and over every look between two counts of its work (engine.Work) whose average is at or above one of these.
// docs/decisions/0013-idle-stop.md says why these and no others.
const (
	// useCPU is a share of one processor: 1 %. An editor's server, a language server or a backup daemon that has nothing
	// to do takes 0.1 to 0.5 %; a compiler, a test or a slow download takes more than 2 %.
	useCPU = 0.01
	// useIO is in bytes a second: 16 KiB/s. What daemons log and poll is 1 to 5 KiB/s; a copy or a download over a poor
	// link is 50 KiB/s and more, though it may take less than useCPU.
	useIO = 16 << 10
	// useEvery is how often everything is counted, and so the length over which the averages are taken: long enough that a
	// second's burst of a daemon that wakes up (1 % of a minute is 0.6 s) is not work, and short beside any policy.
	useEvery = time.Minute
	// useUnseen is how long an instance may go without a look that tells before it counts as used: what was not seen is
	// never taken for nothing. Three looks, so that one that was late or fell into a hook does not matter.
	useUnseen = 3 * useEvery
	// useShortest is the least time between two counts: over less, the clock ticks in which the kernel counts are too coarse.
	useShortest = 5 * time.Second
	// useWithin bounds one count, so that an engine that hangs does not keep the others from being looked at.
	useWithin = 20 * time.Second
)

// unseen is why an instance counts as used of which nothing is known.
const unseen = "what it did before could not be seen"

// uses keeps when each instance on the node was last used. It is kept in memory: after a start of the agent every instance
// counts as used then, because nobody knows better. The zero value is ready.
type uses struct {
	mutex sync.Mutex
	seen  map[string]*use // by workspace.InstanceName
	clock func() time.Time
}

// use is what is known of one instance.
type use struct {
	counting sync.Mutex // held while its work is counted

	last      time.Time
	what      string
	connected map[dataport.Verb]int

	work  engine.Work
	at    time.Time // of work; zero when it is not to be compared with
	told  time.Time // the end of the last look that told whether it was used
	hooks int       // of ours that run in it now: what they do is no use
}

func (u *uses) now() time.Time {
	if u.clock != nil {
		return u.clock()
	}
	return time.Now()
}

// of finds what is known of an instance; one that is new here counts as used now. The mutex is held.
func (u *uses) of(name string) *use {
	if u.seen == nil {
		u.seen = map[string]*use{}
	}
	known := u.seen[name]
	if known == nil {
		known = &use{last: u.now(), told: u.now(), what: unseen, connected: map[dataport.Verb]int{}}
		u.seen[name] = known
	}
	return known
}

// connect notes that a person is connected to an instance until done is called.
func (u *uses) connect(claims dataport.Claims) (done func()) {
	name := workspace.InstanceName(claims.WorkspaceID, claims.Token)
	count := func(by int) {
		u.mutex.Lock()
		defer u.mutex.Unlock()
		known := u.of(name)
		known.connected[claims.Verb] += by
		known.last, known.what = u.now(), connection(claims.Verb)+" ended"
	}
	count(1)
	return func() { count(-1) }
}

// connection is what a person who is connected has, in words.
func connection(verb dataport.Verb) string {
	switch verb {
	case dataport.VerbExec:
		return "a command of `holdfast exec`"
	case dataport.VerbLogs:
		return "`holdfast logs`"
	default:
		return "a " + string(verb)
	}
}

// answer says how long an instance has not been used.
func (u *uses) answer(name string) workspace.LookAtUseResult {
	u.mutex.Lock()
	defer u.mutex.Unlock()
	known := u.of(name)
	var open []string
	for _, verb := range slices.Sorted(maps.Keys(known.connected)) {
		if n := known.connected[verb]; n == 1 {
			open = append(open, connection(verb)+" is open")
		} else if n > 1 {
			open = append(open, fmt.Sprintf("%s is open %d times", connection(verb), n))
		}
	}
	if len(open) > 0 {
		return workspace.LookAtUseResult{Use: strings.Join(open, ", ")}
	}
	if u.now().Sub(known.told) >= useUnseen {
		return workspace.LookAtUseResult{Use: unseen}
	}
	return workspace.LookAtUseResult{QuietMillis: max(u.now().Sub(known.last).Milliseconds(), 0), Use: known.what}
}

// WatchUse looks at every instance on the node again and again, until the context ends.
func (n *Node) WatchUse(ctx context.Context) {
	ticker := time.NewTicker(useEvery)
	defer ticker.Stop()
	for {
		n.lookAtAll(ctx)
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return
		}
	}
}

func (n *Node) lookAtAll(ctx context.Context) {
	listing, cancel := context.WithTimeout(ctx, useWithin)
	instances, err := n.Engine.List(listing, map[string]string{engine.LabelNode: n.Name})
	cancel()
	if err != nil {
		if ctx.Err() == nil {
			n.Logger.Warn("looking for instances whose use is to be seen", "error", err)
		}
		return // useUnseen sees to it that this is not taken for quiet
	}
	here := map[string]bool{}
	for _, instance := range instances {
		name, ok := instanceName(instance)
		if !ok {
			continue
		}
		here[name] = true
		n.lookAt(ctx, name, instance)
	}
	n.use.forget(here)
}

// forget drops what is known of instances that are not here any more.
func (u *uses) forget(here map[string]bool) {
	u.mutex.Lock()
	defer u.mutex.Unlock()
	maps.DeleteFunc(u.seen, func(name string, known *use) bool {
		for _, n := range known.connected {
			if n > 0 {
				return false
			}
		}
		return !here[name] && known.hooks == 0
	})
}

func instanceName(instance engine.Instance) (string, bool) {
	token, err := strconv.ParseUint(instance.Labels[engine.LabelToken], 10, 64)
	id := instance.Labels[engine.LabelWorkspace]
	return workspace.InstanceName(id, token), err == nil && id != ""
}

// lookAt counts the work of one instance and compares it with the last count.
func (n *Node) lookAt(ctx context.Context, name string, instance engine.Instance) {
	n.use.mutex.Lock()
	known := n.use.of(name)
	n.use.mutex.Unlock()
	known.counting.Lock()
	defer known.counting.Unlock()
	if instance.Status == engine.StatusExited || instance.Status == engine.StatusCreated {
		n.use.nothingRuns(known)
		return
	}
	if n.use.counted(known) {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, useWithin)
	defer cancel()
	work, err := n.Engine.Work(ctx, instance.ID)
	switch {
	case errors.Is(err, engine.ErrNotRunning), errors.Is(err, engine.ErrNotFound):
		return // it has just ended: the next look tells
	case err != nil:
		n.Logger.Warn("counting what an instance does", "instance", name, "error", err)
		n.use.used(known, "what it does could not be counted")
		return
	}
	n.use.compare(known, work, instance.Status == engine.StatusPaused)
}

// nothingRuns: it does nothing, and what it does when it runs again is compared with nothing.
func (u *uses) nothingRuns(known *use) {
	u.mutex.Lock()
	defer u.mutex.Unlock()
	now := u.now()
	if now.Sub(known.told) >= useUnseen { // it may have ended a moment ago
		known.last, known.what = now, unseen
	}
	known.at, known.told = time.Time{}, now
}

// counted says that the last count is too young for another.
func (u *uses) counted(known *use) bool {
	u.mutex.Lock()
	defer u.mutex.Unlock()
	return !known.at.IsZero() && u.now().Sub(known.at) < useShortest
}

func (u *uses) used(known *use, what string) {
	u.mutex.Lock()
	defer u.mutex.Unlock()
	known.last, known.what, known.told, known.at = u.now(), what, u.now(), time.Time{}
}

// compare judges the time between the last count and this one. One that is paused does nothing because it may not: that is
// not for it to be stopped for.
func (u *uses) compare(known *use, work engine.Work, paused bool) {
	u.mutex.Lock()
	defer u.mutex.Unlock()
	now := u.now()
	before, since := known.work, known.at
	known.work, known.at = work, now
	seconds := now.Sub(since).Seconds()
	what := ""
	switch {
	case paused:
		what = "it is paused"
	case known.hooks > 0, since.IsZero():
		if now.Sub(known.told) < useUnseen {
			return // nothing is known of that time; the looks before and after it tell
		}
		what = unseen
	case now.Sub(since) >= useUnseen:
		what = unseen
	default:
		// Counts that fell are of something that ended, or was started again: that too is a change.
		cpu, io := math.Abs(work.CPUSeconds-before.CPUSeconds)/seconds, math.Abs(float64(work.IOBytes-before.IOBytes))/seconds
		switch {
		case cpu >= useCPU:
			what = fmt.Sprintf("its processes took %.0f %% of a processor", cpu*100)
		case io >= useIO:
			what = fmt.Sprintf("its processes read and wrote %s a second", units.BytesSize(math.Round(io)))
		}
	}
	known.told = now
	if what != "" {
		known.last, known.what = now, what
	}
}

// apart keeps what one of the instance's hooks does out of what counts as its use: that is what Holdfast does by itself,
// every few minutes, and no person's doing. What the hook leaves running counts like everything else.
func (n *Node) apart(ctx context.Context, target workspace.Target, instance engine.Instance) (done func()) {
	name := workspace.InstanceName(target.WorkspaceID, target.Token)
	n.lookAt(ctx, name, instance)
	n.use.hooked(name, 1)
	return func() {
		n.use.hooked(name, -1)
		n.lookAt(context.WithoutCancel(ctx), name, instance)
	}
}

func (u *uses) hooked(name string, by int) {
	u.mutex.Lock()
	defer u.mutex.Unlock()
	known := u.of(name)
	known.hooks += by
	if by < 0 {
		known.at = time.Time{} // what the hook did is in the next count, which is compared with nothing
	}
}

// LookAtUse says how long an instance on this node has not been used. It changes nothing and waits for no other operation,
// so that it needs no lease. An instance that is not here, or an engine that does not answer, is an error: it is never
// said to be quiet then.
func (n *Node) LookAtUse(ctx context.Context, input workspace.LookAtUseInput) (workspace.LookAtUseResult, error) {
	var result workspace.LookAtUseResult
	err := pulse.Run(ctx, n.Beater, pulse.Options{}, func(ctx context.Context) error {
		instances, err := n.Engine.List(ctx, n.labels(input.Target))
		if err != nil {
			return fmt.Errorf("looking for the instance: %w", err)
		}
		if len(instances) == 0 {
			return fmt.Errorf("workspace %s has no instance %d on node %s", input.Target.Name, input.Target.Token, n.Name)
		}
		name := workspace.InstanceName(input.Target.WorkspaceID, input.Target.Token)
		n.lookAt(ctx, name, instances[0])
		result = n.use.answer(name)
		return ctx.Err()
	})
	if err != nil {
		return workspace.LookAtUseResult{}, classify(err)
	}
	return result, nil
}
