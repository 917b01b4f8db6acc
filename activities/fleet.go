package activities

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"go.temporal.io/api/serviceerror"
	"go.temporal.io/sdk/activity"
	"golang.org/x/sync/errgroup"
	"golang.org/x/time/rate"

	"holdfast/activities/pulse"
	"holdfast/catalog"
	"holdfast/storage"
	"holdfast/workspace"
)

const (
	// tellPage is how many placements are told between two checkpoints, tellParallel how many at once, tellRate how many a
	// second: a node's workspaces must not keep Temporal from its other work.
	tellPage     = 64
	tellParallel = 8
	tellRate     = 200
	// sweepPause is between two sweeps, and sweepPatience while not everybody could be told.
	sweepPause    = time.Second
	sweepPatience = 10 * time.Second
	// fleetFor is how old what is known of all nodes may be: fifty workspaces that ask at once cost one look.
	fleetFor = time.Second
)

// AnnounceNode tells every workspace that the catalog places on a node some news of it. It sweeps until two sweeps in a
// row find nothing new, because a workspace can be recorded there in the moment of the loss; while a store cannot be
// listed it goes on, because that one may know of more. Each workspace decides for itself, so that telling twice is harmless.
func (c *Control) AnnounceNode(ctx context.Context, news workspace.NodeNews) (workspace.AnnounceResult, error) {
	var before workspace.AnnounceCheckpoint
	if activity.HasHeartbeatDetails(ctx) {
		if err := activity.GetHeartbeatDetails(ctx, &before); err != nil {
			c.Logger.Warn("reading how far an announcement was", "node", news.Node, "error", err) // invariant 9: a hint
		}
	}
	a := &announcement{control: c, news: news, told: map[string]bool{}, checkpoint: before, limit: rate.NewLimiter(tellRate, tellPage), patience: sweepPatience}
	if c.sweepPatience > 0 {
		a.patience = c.sweepPatience
	}
	err := pulse.Run(ctx, c.Client, pulse.Options{Checkpoint: a.at}, a.run)
	return workspace.AnnounceResult{Told: a.checkpoint.Told}, classify(err)
}

type announcement struct {
	control  *Control
	news     workspace.NodeNews
	limit    *rate.Limiter
	patience time.Duration

	mutex      sync.Mutex
	told       map[string]bool // instances, by name
	checkpoint workspace.AnnounceCheckpoint
}

func (a *announcement) at() any {
	a.mutex.Lock()
	defer a.mutex.Unlock()
	return a.checkpoint
}

func (a *announcement) run(ctx context.Context) error {
	resumed := a.checkpoint.After
	for quiet := 0; quiet < 2; {
		placements, listing := a.control.Catalog.Placements(ctx, a.news.Node)
		found, telling := a.sweep(ctx, placements, resumed)
		resumed = ""
		pause := sweepPause
		switch err := errors.Join(listing, telling); {
		case ctx.Err() != nil:
			return ctx.Err()
		case err != nil:
			a.control.Logger.Warn("not every workspace of a node could be told yet", "node", a.news.Node, "told", a.checkpoint.Told, "error", err)
			quiet, pause = 0, a.patience
		case found > 0:
			quiet = 0
		default:
			quiet++
		}
		if quiet == 2 {
			return nil
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// sweep tells the instances that were not told before, page by page; those up to after were told by an earlier attempt.
func (a *announcement) sweep(ctx context.Context, placements []catalog.Placement, after string) (found int, err error) {
	untold := slices.DeleteFunc(slices.Clone(placements), func(p catalog.Placement) bool {
		name := workspace.InstanceName(p.WorkspaceID, p.Token)
		return a.told[name] || after != "" && name <= after
	})
	// In the order of the checkpoint.
	slices.SortFunc(untold, func(x, y catalog.Placement) int {
		if workspace.InstanceName(x.WorkspaceID, x.Token) < workspace.InstanceName(y.WorkspaceID, y.Token) {
			return -1
		}
		return 1
	})
	var failed error
	for page := range slices.Chunk(untold, tellPage) {
		var group errgroup.Group
		group.SetLimit(tellParallel)
		errs := make([]error, len(page))
		for i, placement := range page {
			group.Go(func() error {
				errs[i] = a.tell(ctx, placement)
				return nil
			})
		}
		_ = group.Wait() // each error is in errs
		err := errors.Join(errs...)
		failed = errors.Join(failed, err)
		if failed == nil {
			a.mutex.Lock()
			last := page[len(page)-1]
			a.checkpoint.After = workspace.InstanceName(last.WorkspaceID, last.Token)
			a.mutex.Unlock()
		}
		if ctx.Err() != nil {
			return len(untold), ctx.Err()
		}
	}
	return len(untold), failed
}

func (a *announcement) tell(ctx context.Context, placement catalog.Placement) error {
	if err := a.limit.Wait(ctx); err != nil {
		return err
	}
	instance := workspace.InstanceName(placement.WorkspaceID, placement.Token)
	described, err := a.control.Catalog.Placement(ctx, a.news.Node, placement.WorkspaceID, placement.Token)
	switch {
	case errors.Is(err, storage.ErrNotFound):
		return nil // released meanwhile
	case err != nil:
		return fmt.Errorf("reading whose %s is: %w", instance, err)
	}
	err = a.control.Client.SignalWorkflow(ctx, workspace.WorkflowID(described.Name), "", workspace.SignalNodeNews, a.news)
	var missing *serviceerror.NotFound
	if err != nil && !errors.As(err, &missing) {
		return fmt.Errorf("telling workspace %s: %w", described.Name, err)
	}
	a.mutex.Lock()
	defer a.mutex.Unlock()
	a.told[instance] = true
	if missing == nil {
		a.checkpoint.Told++
	}
	return nil
}

// LookAtNode says what is known of a node, and whether the brake holds the workspaces of lost nodes.
func (c *Control) LookAtNode(ctx context.Context, input workspace.LookAtNodeInput) (workspace.LookAtNodeResult, error) {
	result, err := c.lookAtNode(ctx, input)
	return result, classify(err)
}

func (c *Control) lookAtNode(ctx context.Context, input workspace.LookAtNodeInput) (workspace.LookAtNodeResult, error) {
	var result workspace.LookAtNodeResult
	state, err := c.node(ctx, input.Node)
	switch {
	case errors.Is(err, errNoNode):
		return result, nil
	case err != nil:
		return result, err
	}
	result.Known, result.Node = true, state
	if state.Loss == nil {
		return result, nil
	}
	all, err := c.fleet.look(ctx, c, time.Now().Add(-fleetFor))
	if err != nil {
		return result, err
	}
	result.Brake = workspace.DecideBrake(state, all.states, time.Now())
	return result, nil
}

// fleetView keeps what is known of all nodes for a moment.
type fleetView struct {
	mutex sync.Mutex
	fleetState
}

// fleetState is what was known of all nodes at a time.
type fleetState struct {
	taken   time.Time
	states  []workspace.NodeState
	unheard []error // one for each node that could not be asked about, which is not among the states
}

// look returns what was known at a time or later; who asks at once with others gets the same look.
func (f *fleetView) look(ctx context.Context, c *Control, since time.Time) (fleetState, error) {
	f.mutex.Lock()
	defer f.mutex.Unlock()
	if f.taken.After(since) {
		return f.fleetState, nil
	}
	began := time.Now()
	names, err := c.nodes(ctx)
	if err != nil {
		return fleetState{}, err
	}
	states, errs := make([]workspace.NodeState, len(names)), make([]error, len(names))
	group, groupCtx := errgroup.WithContext(ctx)
	group.SetLimit(2 * tellParallel)
	for i, name := range names {
		group.Go(func() error {
			state, err := c.node(groupCtx, name)
			switch {
			case errors.Is(err, errNoNode): // visibility is late
				return nil
			case err != nil && ctx.Err() == nil:
				// One node that cannot be asked about holds up nobody. It counts neither as lost nor as there.
				c.Logger.Warn("asking about a node", "node", name, "error", err)
				errs[i] = err
				return nil
			}
			states[i] = state
			return ctx.Err()
		})
	}
	if err := group.Wait(); err != nil {
		return fleetState{}, err
	}
	f.fleetState = fleetState{
		taken:   began,
		states:  slices.DeleteFunc(states, func(s workspace.NodeState) bool { return s.Info.Name == "" }),
		unheard: slices.DeleteFunc(errs, func(err error) bool { return err == nil }),
	}
	return f.fleetState, nil
}
