package worker

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"go.temporal.io/sdk/client"
	"go.temporal.io/sdk/interceptor"
	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/worker"

	"holdfast/activities"
	"holdfast/workspace"
)

// tenure is a time in which the node's name is this agent's, and it takes what is on the node's queues. Before the node's workflow
// has let it in it polls none of them: a task that another agent of that name should have would be answered for another disk.
type tenure struct {
	work, salvage, lease worker.Worker
}

func (a *agent) begin(work client.Client, node *activities.Node, holder *activities.LeaseHolder) (*tenure, error) {
	gate := []interceptor.WorkerInterceptor{&nameGate{agent: a}}
	t := &tenure{
		work: worker.New(work, workspace.NodeQueue(a.config.Name), worker.Options{
			DisableWorkflowWorker:              true,
			WorkerStopTimeout:                  a.config.StopGrace,
			MaxConcurrentActivityExecutionSize: a.config.Concurrency,
			MaxConcurrentActivityTaskPollers:   2,
			Interceptors:                       gate,
		}),
		// What came back after a loss can be a whole node's. It has a queue of its own, so that none of it takes the place of a start,
		// a stop or a snapshot of what runs.
		salvage: worker.New(work, workspace.SalvageQueue(a.config.Name), worker.Options{
			DisableWorkflowWorker:              true,
			WorkerStopTimeout:                  a.config.StopGrace,
			MaxConcurrentActivityExecutionSize: a.config.Salvages,
			MaxConcurrentActivityTaskPollers:   1,
			Interceptors:                       gate,
		}),
		lease: worker.New(a.client, workspace.LeaseQueue(a.config.Name), worker.Options{
			DisableWorkflowWorker: true,
			WorkerStopTimeout:     5 * time.Second,
			// One that ends and one that begins.
			MaxConcurrentActivityExecutionSize: 2,
			MaxConcurrentActivityTaskPollers:   2,
		}),
	}
	activities.RegisterNode(t.work, node)
	activities.RegisterNode(t.salvage, node)
	activities.RegisterLease(t.lease, holder)
	if err := t.lease.Start(); err != nil {
		return nil, fmt.Errorf("starting the lease worker: %w", err)
	}
	if err := t.work.Start(); err != nil {
		t.lease.Stop()
		return nil, fmt.Errorf("starting the worker: %w", err)
	}
	if err := t.salvage.Start(); err != nil {
		t.work.Stop()
		t.lease.Stop()
		return nil, fmt.Errorf("starting the worker for what was replaced: %w", err)
	}
	return t, nil
}

// end brings what is under way to a safe point and gives the lease back, in this order.
func (t *tenure) end() {
	var stopping sync.WaitGroup
	for _, w := range []worker.Worker{t.work, t.salvage} {
		stopping.Go(w.Stop)
	}
	stopping.Wait()
	t.lease.Stop()
}

// nameGate keeps this agent from work that is another's. One that was cut off and lost its node to another agent of that name polls again
// before it hears of that.
type nameGate struct {
	interceptor.WorkerInterceptorBase
	agent *agent
}

// InterceptActivity implements interceptor.WorkerInterceptor.
func (g *nameGate) InterceptActivity(_ context.Context, next interceptor.ActivityInboundInterceptor) interceptor.ActivityInboundInterceptor {
	return &gated{ActivityInboundInterceptorBase: interceptor.ActivityInboundInterceptorBase{Next: next}, agent: g.agent}
}

type gated struct {
	interceptor.ActivityInboundInterceptorBase
	agent *agent
}

// ExecuteActivity implements interceptor.ActivityInboundInterceptor. What it refuses is tried again, by whose it is.
func (g *gated) ExecuteActivity(ctx context.Context, input *interceptor.ExecuteActivityInput) (any, error) {
	if err := g.agent.entitled(ctx); err != nil {
		return nil, err
	}
	return g.Next.ExecuteActivity(ctx, input)
}

// entitled returns nil when the node is this agent's. A live lease says so; without one (a backup needs none) its workflow is asked.
func (a *agent) entitled(ctx context.Context) error {
	if a.lease.Check() == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, registerWithin)
	defer cancel()
	var state workspace.NodeState
	value, err := a.client.QueryWorkflow(ctx, workspace.NodeWorkflowID(a.config.Name), "", workspace.QueryState)
	if err == nil {
		err = value.Get(&state)
	}
	if err != nil {
		return fmt.Errorf("asking whether the node is still this agent's: %w", err)
	}
	if state.Info.Incarnation != a.info.Incarnation {
		return fmt.Errorf("the node is that of the agent at %s now", state.Info.Address)
	}
	return nil
}

const (
	registerEvery  = 3 * time.Second
	registerWithin = 10 * time.Second
	// refusedSaid is how often an agent that waits for its name says so again.
	refusedSaid = time.Minute
)

// serve takes work whenever the node is this agent's, until the context ends; closing refuses new streams and waits for their end.
func (a *agent) serve(ctx context.Context, closing func() error) error {
	for a.admitted(ctx) {
		held, err := a.hold()
		if err != nil {
			return err
		}
		taken := a.keepRegistered(ctx)
		if !taken {
			// In this order: refuse new streams, bring what is under way to a safe point, give the lease back.
			a.config.Logger.Info("agent stops")
			err := closing()
			held.end()
			return err
		}
		held.end()
	}
	a.config.Logger.Info("agent stops")
	return closing()
}

// admitted announces the agent until the node is its own; false when the context ended before.
func (a *agent) admitted(ctx context.Context) bool {
	ticker := time.NewTicker(registerEvery)
	defer ticker.Stop()
	var said time.Time
	var before string
	for {
		err := a.register(ctx)
		switch {
		case err == nil:
			return true
		case ctx.Err() != nil:
			return false
		case !nameTaken(err):
			a.config.Logger.Warn("announcing the node", "error", err)
		case time.Since(said) >= refusedSaid || err.Error() != before:
			said, before = time.Now(), err.Error()
			a.config.Logger.Warn("another agent has this node: this one does nothing, and asks again until it may", "reason", err)
		default:
			a.config.Logger.Debug("another agent still has this node")
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return false
		}
	}
}

// keepRegistered announces the agent whenever it has no lease, until the context ends, or another agent has the node by then (taken).
func (a *agent) keepRegistered(ctx context.Context) (taken bool) {
	ticker := time.NewTicker(registerEvery)
	defer ticker.Stop()
	quick := time.NewTicker(100 * time.Millisecond)
	defer quick.Stop()
	announced := time.Now()
	for {
		held := a.lease.Check() == nil
		if held && !a.ready {
			a.ready = true
			a.config.Logger.Info("agent takes work", "address", a.info.Address, "engine", a.info.Engine)
			if a.config.Ready != nil {
				a.config.Ready()
			}
		}
		if held {
			quick.Stop()
		}
		// A volume that has come or gone is announced at once; the lease is not touched by that.
		news := a.ready && !sameVolume(a.info.Volume, a.mounted.now())
		if (!held || news) && time.Since(announced) >= registerEvery {
			announced = time.Now()
			err := a.register(ctx)
			switch {
			case nameTaken(err):
				a.config.Logger.Warn("another agent has taken this node: this one stops taking work", "reason", err)
				return true
			case err != nil && ctx.Err() == nil:
				a.config.Logger.Warn("announcing the node", "error", err)
			}
		}
		select {
		case <-ticker.C:
		case <-quick.C:
		case <-ctx.Done():
			return false
		}
	}
}

// nameTaken says whether a registration was refused because the node is another agent's.
func nameTaken(err error) bool {
	refused, ok := errors.AsType[*temporal.ApplicationError](err)
	return ok && refused.Type() == string(workspace.ErrorNameTaken)
}
