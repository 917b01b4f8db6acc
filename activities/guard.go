package activities

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/google/renameio/v2"

	"holdfast/catalog"
	"holdfast/engine"
	"holdfast/workspace"
)

// DefaultPauseAfter is Guard.PauseAfter when that is 0.
const DefaultPauseAfter = 2 * time.Minute

const (
	// guardEvery is between two looks of a node without a lease; guardSlowly once it has had none for guardPatience. Other
	// nodes take its workspaces over within minutes; later than that it is mostly Temporal that is away, and the lease
	// returns with it. A whole fleet that asks the stores every 2 s for hours would cost more than it is worth.
	guardEvery    = 2 * time.Second
	guardSlowly   = 15 * time.Second
	guardPatience = 10 * time.Minute
	// lookAfter is how long a node is without a lease before it looks. No other can have taken its workspaces over by then,
	// and an agent that was started again has mostly got its lease.
	lookAfter = 5 * time.Second
	// settleEvery is between two looks while the lease is held and it is not clear what is to become of a paused instance;
	// watchEvery while there seems to be none: an engine may pause one long after it was asked to.
	settleEvery = 5 * time.Second
	watchEvery  = 30 * time.Second
	// engineWithin bounds one call to the engine.
	engineWithin = 10 * time.Second
	// rememberEvery is how often it is written down that something was reached.
	rememberEvery = 30 * time.Second
)

// Guard is the second level of a node's fence. The first level, the Lease, keeps what the node does from being the newest
// version (invariant 7); this one keeps a person from going on in an instance that was replaced. While the node has no
// lease it looks for the marker, a newer instance record in the catalog, and pauses the instance that has one at once. When
// nothing has been reached for PauseAfter it pauses all. Once the lease is held again, what is still current is let go on;
// what was replaced stays paused until it is salvaged (docs/decisions/0016-fence-pauses.md).
//
// Pauses are the engine's, so that they outlive the agent. Nothing else pauses instances: every paused one of the node is
// the guard's. Its fields are set once, before Run.
type Guard struct {
	Node    string
	Engine  engine.Engine
	Catalog *catalog.Catalog
	Lease   *Lease
	// Volumes, when set, knows the workspaces' names.
	Volumes *Volumes
	// Temporal returns nil when Temporal answers. Nil: it never does.
	Temporal func(context.Context) error
	Logger   *slog.Logger
	// PauseAfter is how long nothing has to be reached before all instances are paused. Default DefaultPauseAfter.
	PauseAfter time.Duration
	// Memory is the file that keeps over a start of the agent when something was last reached: one that is started again
	// and again must not begin to count each time. Empty: it is not kept.
	Memory string
	// Metrics, when set, counts what it does.
	Metrics *GuardMetrics

	calls sync.WaitGroup // to the engine and the disk; none holds up the guard
	mutex sync.Mutex
	// reached is when a question was asked that was answered; leased when the lease was last seen to be held.
	reached, leased moment
	written         moment // what of reached was written down
	writing         bool
	known           map[string]*guarded // by workspace.InstanceName
	listeners       map[*listener]bool
	unsure          bool // it was without a lease: what was replaced meanwhile has not been looked for
	looks           uint64
	alone           bool // that nothing is reached was said
}

// guarded is what is known of an instance that runs or is paused.
type guarded struct {
	name      string // workspace.InstanceName
	workspace string // its id
	title     string // the workspace's name, when it is known
	token     uint64
	id        string // the engine's
	paused    bool
	replaced  uint64 // the newest recorded token, when that is a newer one
	doubt     error  // why it could not be asked whether it was replaced
	looked    uint64 // the number of the look that last asked about it
	busy      bool   // the engine is pausing or resuming it
}

func (g *Guard) pauseAfter() time.Duration {
	if g.PauseAfter > 0 {
		return g.PauseAfter
	}
	return DefaultPauseAfter
}

// Run guards the node's instances until the context ends. It runs beside everything else of the agent, also before the
// agent has found Temporal, and waits for nobody: every question and every call to the engine has a time-out of its own.
func (g *Guard) Run(ctx context.Context) {
	defer g.calls.Wait()
	g.recall()
	var last moment
	pause, was := time.Duration(0), false
	for {
		now, held := g.Lease.now(), g.Lease.Check() == nil
		if held {
			g.mutex.Lock()
			g.reached, g.leased = now, now
			g.mutex.Unlock()
		}
		g.remember()
		// By both clocks: a machine that wakes up looks at once, whatever its timers were set to.
		if held != was || now.since(last) >= pause {
			last, was = now, held
			if held {
				pause = g.settle(ctx)
			} else {
				pause = g.look(ctx)
			}
		}
		timer := time.NewTimer(time.Second)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return
		}
	}
}

// list asks the engine what runs and what is paused, and returns it with what was asked about longest ago first. While
// the engine does not answer it is what was there the last time.
func (g *Guard) list(ctx context.Context) ([]*guarded, error) {
	ctx, cancel := context.WithTimeout(ctx, engineWithin)
	defer cancel()
	instances, err := g.Engine.List(ctx, map[string]string{engine.LabelNode: g.Node})
	if err != nil {
		g.Logger.Warn("the guard cannot list the instances", "error", err)
	}
	instances = slices.DeleteFunc(instances, func(instance engine.Instance) bool {
		_, ours := instanceName(instance)
		return !ours || instance.Status != engine.StatusRunning && instance.Status != engine.StatusPaused
	})
	titles, elsewhere := g.identify(ctx, g.unknown(instances))
	g.mutex.Lock()
	defer g.mutex.Unlock()
	if err == nil {
		here := map[string]*guarded{}
		for _, instance := range instances {
			name, _ := instanceName(instance)
			if elsewhere[name] {
				continue
			}
			known := g.known[name]
			if known == nil || known.id != instance.ID {
				token, _ := strconv.ParseUint(instance.Labels[engine.LabelToken], 10, 64)
				known = &guarded{name: name, workspace: instance.Labels[engine.LabelWorkspace], token: token, id: instance.ID, title: titles[name]}
			}
			if !known.busy {
				g.is(known, instance.Status == engine.StatusPaused)
			}
			here[name] = known
		}
		g.known = here
	}
	all := slices.Collect(maps.Values(g.known))
	slices.SortFunc(all, func(a, b *guarded) int { return cmp.Or(cmp.Compare(a.looked, b.looked), cmp.Compare(a.name, b.name)) })
	paused := 0
	for _, known := range all {
		if known.paused {
			paused++
		}
	}
	g.Metrics.show(paused)
	return all, err
}

// unknown are those instances that were not there the last time.
func (g *Guard) unknown(instances []engine.Instance) (unknown []engine.Instance) {
	g.mutex.Lock()
	defer g.mutex.Unlock()
	for _, instance := range instances {
		name, _ := instanceName(instance)
		if known := g.known[name]; known == nil || known.id != instance.ID {
			unknown = append(unknown, instance)
		}
	}
	return unknown
}

// identify looks on the node's disk for the names of the instances' workspaces, and for instances that are not there: a container
// engine may be that of several nodes, and of another deployment with a node of the same name, and what it runs for those
// is theirs to pause. A disk that hangs holds up nobody: nothing is known then, and all are taken for this node's.
func (g *Guard) identify(ctx context.Context, instances []engine.Instance) (titles map[string]string, elsewhere map[string]bool) {
	if g.Volumes == nil || len(instances) == 0 {
		return nil, nil
	}
	ctx, cancel := context.WithTimeout(ctx, answerSoon)
	defer cancel()
	type found struct {
		titles    map[string]string
		elsewhere map[string]bool
	}
	done := make(chan found, 1)
	g.calls.Go(func() {
		looked := found{titles: map[string]string{}, elsewhere: map[string]bool{}}
		for _, instance := range instances {
			name, _ := instanceName(instance)
			id, token, err := workspace.ParseInstanceName(name)
			if err != nil {
				continue
			}
			_, err = os.Lstat(g.Volumes.dir(id, token))
			// What is exclusive is not on the node's own disk, and nowhere at all once another node has taken it over.
			looked.elsewhere[name] = errors.Is(err, fs.ErrNotExist) && instance.Labels[engine.LabelExclusive] != engine.Exclusive
			if mark, err := g.Volumes.identify(id, token); err == nil {
				looked.titles[name] = mark.Name
			}
		}
		done <- looked
	})
	select {
	case looked := <-done:
		return looked.titles, looked.elsewhere
	case <-ctx.Done():
		return nil, nil
	}
}

// Load is how many instances run or are paused on the node, as it last saw, and which of them are paused, and why; nil, nil before it has
// looked for the first time. It waits for neither a disk nor the engine.
func (g *Guard) Load() (instances *int, paused []workspace.PausedInstance) {
	if g == nil {
		return nil, nil
	}
	held := g.Lease.Check() == nil
	g.mutex.Lock()
	defer g.mutex.Unlock()
	if g.known == nil {
		return nil, nil
	}
	for _, name := range slices.Sorted(maps.Keys(g.known)) {
		if known := g.known[name]; known.paused {
			paused = append(paused, known.why(held))
		}
	}
	count := len(g.known)
	return &count, paused
}

// Why says why an instance is paused; nil knows of none.
func (g *Guard) Why(name string) string {
	const unknown = "its node is deciding whether it may go on"
	if g == nil {
		return unknown
	}
	held := g.Lease.Check() == nil
	g.mutex.Lock()
	defer g.mutex.Unlock()
	if known := g.known[name]; known != nil {
		return known.why(held).Why
	}
	return unknown
}

// why says why an instance is paused, to somebody with the lease or without. The guard's mutex is held.
func (k *guarded) why(held bool) workspace.PausedInstance {
	paused := workspace.PausedInstance{WorkspaceID: k.workspace, Name: k.title, Token: k.token, Replaced: k.replaced}
	switch {
	case k.replaced > 0:
		paused.Cause = workspace.PauseReplaced
	case !held:
		paused.Cause = workspace.PauseAlone
	case k.doubt != nil:
		paused.Cause, paused.Doubt = workspace.PauseDoubt, k.doubt.Error()
	default:
		paused.Cause = workspace.PauseEnding
	}
	paused.Why = paused.Words()
	return paused
}

// memory is the file Memory.
type memory struct {
	Reached time.Time `json:"reached"`
}

// recall takes up what an earlier start of the agent wrote down.
func (g *Guard) recall() {
	now := g.Lease.now()
	g.mutex.Lock()
	defer g.mutex.Unlock()
	g.reached, g.unsure = now, true
	if g.Memory != "" {
		var kept memory
		data, err := os.ReadFile(g.Memory)
		if err == nil {
			err = json.Unmarshal(data, &kept)
		}
		switch {
		case err == nil && kept.Reached.Before(now.wall): // else the clock was set back
			g.reached = moment{wall: kept.Reached, steady: now.steady - now.wall.Sub(kept.Reached)}
		case err != nil && !os.IsNotExist(err):
			g.Logger.Warn("when the node last reached anything could not be read; it counts from now", "error", err)
		}
	}
	g.leased = g.reached
}

// remember writes down when something was last reached, now and then.
func (g *Guard) remember() {
	g.mutex.Lock()
	defer g.mutex.Unlock()
	if g.Memory == "" || g.writing || g.reached.since(g.written) < min(rememberEvery, g.pauseAfter()/4) {
		return
	}
	g.writing = true
	reached := g.reached
	g.calls.Go(func() { // a disk that hangs holds up nobody
		data, err := json.Marshal(memory{Reached: reached.wall})
		if err == nil {
			err = renameio.WriteFile(g.Memory, data, 0o600)
		}
		if err != nil {
			g.Logger.Warn("when the node last reached anything could not be written down", "error", err)
		}
		g.mutex.Lock()
		defer g.mutex.Unlock()
		g.written, g.writing = reached, false
	})
}
