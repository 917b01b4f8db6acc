package crowd

import (
	"context"
	"errors"
	"fmt"
	"time"

	"holdfast/testsuite/requests"
	"holdfast/workspace"
)

// Silence is what came of a time in which agents could not hear Temporal.
type Silence struct {
	// Lost is how many nodes were taken for lost meanwhile, Settled how long it took afterwards until all had their leases and all
	// workspaces were known to run.
	Lost    int
	Settled time.Duration
}

// Freeze has Temporal's process stand still for a time. Nothing may move and nothing be started again.
func (c *Crowd) Freeze(ctx context.Context, f *Filled, d time.Duration) (Silence, error) {
	return c.silence(ctx, f, c.Nodes(), func(ctx context.Context) error {
		return errors.Join(c.temporal.Pause(), pause(ctx, d), c.temporal.Resume())
	})
}

// CutAll has every agent's connection be silent for a time. Nothing may move and nothing be started again.
func (c *Crowd) CutAll(ctx context.Context, f *Filled, d time.Duration) (Silence, error) {
	return c.CutSome(ctx, f, d)
}

// CutSome has the connections of some hosts' agents be silent for a time, of all when none is named. It has to be so many that the
// brake holds what runs there, and not longer than that: nothing may move and nothing be started again.
func (c *Crowd) CutSome(ctx context.Context, f *Filled, d time.Duration, hosts ...int) (Silence, error) {
	return c.silence(ctx, f, c.Nodes(hosts...), func(ctx context.Context) error {
		c.cut(hosts...)
		defer c.mend()
		return pause(ctx, d)
	})
}

func (c *Crowd) silence(ctx context.Context, f *Filled, silent []string, make func(context.Context) error) (result Silence, err error) {
	before := time.Now()
	epochs := map[string]uint64{}
	nodes, err := c.nodeStates(ctx, silent)
	if err != nil {
		return result, err
	}
	for _, node := range nodes {
		epochs[node.Info.Name] = node.Epoch
	}
	if err := make(ctx); err != nil {
		return result, err
	}
	began := time.Now()
	// Each has a new lease: whatever was going to follow from the end of the old one has been decided.
	nodes, err = c.untilNodes(ctx, silent, "every node has a lease again", func(state workspace.NodeState) bool {
		return state.Phase == workspace.NodeReady && state.Loss == nil && state.Epoch > epochs[state.Info.Name]
	})
	if err != nil {
		return result, err
	}
	for _, node := range nodes {
		if node.LostAt.After(before) {
			result.Lost++
		}
	}
	states, err := c.until(ctx, f.Names, "they run as before", func(state workspace.State) bool {
		return requests.Running(state) && state.Loss == nil
	})
	if err != nil {
		return result, err
	}
	result.Settled = time.Since(began)
	if err := c.untouched(ctx, f, f.Names); err != nil {
		return result, err
	}
	c.options.Say("nothing was moved; %d nodes were taken for lost; all was settled after %.1f s", result.Lost, result.Settled.Seconds())
	return result, c.once(states)
}

// Works has every workspace backed up, and some stopped and started again: all that people do still goes.
func (c *Crowd) Works(ctx context.Context, f *Filled, some int) error {
	saved, err := c.backUp(ctx, f.Names)
	if err != nil {
		return err
	}
	for name, state := range saved {
		f.states[name] = state
	}
	names := f.Names[:min(some, len(f.Names))]
	if err := each(ctx, names, func(ctx context.Context, _ int, name string) error {
		return requests.Update(ctx, c.client, workspace.WorkflowID(name), workspace.UpdateStop, workspace.StopRequest{Subject: subject})
	}); err != nil {
		return err
	}
	if _, err := c.until(ctx, names, "they are stopped", func(state workspace.State) bool {
		return state.Phase == workspace.Stopped && state.Operation == nil && state.Kept == nil
	}); err != nil {
		return err
	}
	if err := each(ctx, names, func(ctx context.Context, _ int, name string) error {
		return requests.Start(ctx, c.client, name, workspace.StartRequest{Subject: subject})
	}); err != nil {
		return err
	}
	states, err := c.until(ctx, names, "they run again", requests.Running)
	if err != nil {
		return err
	}
	for name, state := range states {
		f.states[name] = state
	}
	if err := c.same(f, f.states); err != nil {
		return fmt.Errorf("after all had been backed up, and some stopped and started again: %w", err)
	}
	return c.once(f.states)
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(d):
		return nil
	}
}
