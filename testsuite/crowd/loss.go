package crowd

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"holdfast/testsuite/crowd/pretend"
	"holdfast/testsuite/requests"
	"holdfast/workspace"
)

// Loss is what came of the loss of some hosts.
type Loss struct {
	// Nodes and Workspaces are how many were lost.
	Nodes, Workspaces int
	// Noticed is when the last loss was decided, First and Last when the first and the last workspace ran elsewhere, all from
	// the moment of the loss. Held is for how long the brake held them, until a person said that they may move.
	Noticed, Held, First, Last time.Duration
	// Back is how long the nodes' return took, until nothing was left on them of what had been replaced.
	Back time.Duration
	// Usage is the most that was seen from before the loss until after the return.
	Usage Usage
}

// storm says whether a loss is one that the brake has to hold: as workspace.DecideBrake does, which is what is tested.
func storm(lost, all int) bool { return lost >= 3 && lost*100 > all*30 || lost == all }

// Lose has the power of some hosts fail at once, sees all that ran there go on elsewhere, with nothing else moved, and switches them
// on again: then nothing runs twice, and what they still had is saved.
func (c *Crowd) Lose(ctx context.Context, f *Filled, hosts ...int) (result Loss, err error) {
	lost := c.Nodes(hosts...)
	here, others := f.on(lost)
	if len(here) == 0 {
		return result, fmt.Errorf("nothing runs on %v: there is nothing to lose", lost)
	}
	result.Nodes, result.Workspaces = len(lost), len(here)
	if result.Usage, err = c.Look(ctx, f.Names); err != nil {
		return result, err
	}
	for _, name := range here {
		if err := os.WriteFile(filepath.Join(c.content(f.states[name]), lateFile), []byte(name), 0o644); err != nil {
			return result, fmt.Errorf("writing what no snapshot has: %w", err)
		}
	}
	end := c.watch(ctx, f.Names)
	watching := func() error {
		seen, err := end()
		result.Usage.add(seen)
		return err
	}
	at := time.Now()
	for _, i := range hosts {
		if err := c.hosts[i].child.Kill(); err != nil {
			return result, err
		}
	}
	if err := c.followLoss(ctx, f, &result, lost, here, at); err != nil {
		_ = watching()
		return result, err
	}
	if err := c.untouched(ctx, f, others); err != nil {
		_ = watching()
		return result, err
	}
	at = time.Now()
	for _, i := range hosts {
		if err := c.hosts[i].child.Start(); err != nil {
			_ = watching()
			return result, err
		}
	}
	if err := c.followReturn(ctx, f, lost, here); err != nil {
		_ = watching()
		return result, err
	}
	result.Back = time.Since(at)
	c.options.Say("what they still had is saved, and gone from there, %.1f s after they were switched on", result.Back.Seconds())
	if err := watching(); err != nil {
		return result, err
	}
	seen, err := c.Look(ctx, f.Names)
	result.Usage.add(seen)
	return result, err
}

// followLoss waits until all that was lost runs elsewhere.
func (c *Crowd) followLoss(ctx context.Context, f *Filled, result *Loss, lost, here []string, at time.Time) error {
	nodes, err := c.untilNodes(ctx, lost, "the losses are decided", func(state workspace.NodeState) bool { return state.Loss != nil })
	if err != nil {
		return err
	}
	for _, node := range nodes {
		result.Noticed = max(result.Noticed, node.Loss.At.Sub(at))
	}
	c.options.Say("the loss of %d nodes with %d workspaces is decided after %.1f s", len(lost), len(here), result.Noticed.Seconds())
	all, err := c.nodeStates(ctx, c.Nodes())
	if err != nil {
		return err
	}
	latest := nodes[0].Loss.At
	for _, node := range nodes {
		if node.Loss.At.After(latest) {
			latest = node.Loss.At
		}
	}
	// As it was when the last loss was decided: on a busy machine it may be known here only after the brake has let go by itself.
	brake, want := workspace.DecideBrake(nodes[0], all, latest), storm(len(lost), len(all))
	if brake.Held != want {
		return fmt.Errorf("%d of %d nodes were lost at once: the brake holds: %t (%s), want %t", len(lost), len(all), brake.Held, brake.Why, want)
	}
	if want {
		if err := c.proceed(ctx, f, lost, here, brake.Until); err != nil {
			return err
		}
		result.Held = time.Since(at)
		c.options.Say("the brake held them; after %.1f s a person says that they may move", result.Held.Seconds())
	}
	states, err := c.until(ctx, here, "all run elsewhere", func(state workspace.State) bool {
		return requests.Running(state) && !slices.Contains(lost, state.Instance.Node)
	})
	if err != nil {
		return err
	}
	for name, state := range states {
		runs := state.Since.Sub(at)
		if result.First == 0 || runs < result.First {
			result.First = runs
		}
		result.Last = max(result.Last, runs)
		if state.Recovery == nil || state.Recovery.Snapshot != f.states[name].Head.Snapshot {
			return fmt.Errorf("%s went on from another snapshot than its newest: %+v", name, state.Recovery)
		}
	}
	c.options.Say("all of them run elsewhere after %.1f s", result.Last.Seconds())
	return c.same(f, states)
}

// proceed sees that the brake holds each of the workspaces where it is, or that it has let go by itself, and then does what an
// operator does who knows that the loss is one.
func (c *Crowd) proceed(ctx context.Context, f *Filled, lost, here []string, until time.Time) error {
	states, err := c.until(ctx, here, "the brake holds them", func(state workspace.State) bool {
		held := state.Phase == workspace.Recovering && state.Loss != nil && strings.HasPrefix(state.Loss.Waiting, "held: ")
		return held || !until.IsZero() && time.Now().After(until)
	})
	if err != nil {
		return err
	}
	for name, state := range states {
		if state.Token != f.states[name].Token && (until.IsZero() || state.Instance != nil && state.Instance.Began.Before(until)) {
			return fmt.Errorf("%s was moved although the brake holds until %s", name, until)
		}
	}
	return each(ctx, lost, func(ctx context.Context, _ int, name string) error {
		return requests.Update(ctx, c.client, workspace.NodeWorkflowID(name), workspace.UpdateOrder, workspace.NodeOrder{Kind: workspace.OrderProceed, Subject: subject})
	})
}

// untouched says that workspaces run as they did, and were not started again.
func (c *Crowd) untouched(ctx context.Context, f *Filled, names []string) error {
	states, err := c.until(ctx, names, "they run on", requests.Running)
	if err != nil {
		return err
	}
	journals, err := c.journals()
	if err != nil {
		return err
	}
	for name, state := range states {
		was := f.states[name]
		if state.Token != was.Token || state.Instance.Node != was.Instance.Node {
			return fmt.Errorf("%s ran on %s with token %d, and was moved to %s with token %d", name, was.Instance.Node, was.Token, state.Instance.Node, state.Token)
		}
		journal, instance := journals[was.Instance.Node], "holdfast-"+workspace.InstanceName(was.ID, was.Token)
		if paused, runs := journal.Running()[instance]; !runs || paused {
			return fmt.Errorf("%s does not run on %s: it runs: %t, it is paused: %t", name, was.Instance.Node, runs, paused)
		}
		if started := journal.Count(pretend.Started)[instance]; started != 1 {
			return fmt.Errorf("%s was started %d times on %s: want 1", name, started, was.Instance.Node)
		}
	}
	return c.same(f, states)
}

// followReturn waits until nothing is left of what was replaced on nodes that are there again.
func (c *Crowd) followReturn(ctx context.Context, f *Filled, lost, here []string) error {
	if err := c.untilReady(ctx, lost); err != nil {
		return err
	}
	states, err := c.until(ctx, here, "what they left is saved", func(state workspace.State) bool {
		return requests.Running(state) && len(state.Left) == 0
	})
	if err != nil {
		return err
	}
	for name, state := range states {
		if len(state.Salvaged) != 1 || state.Salvaged[0].Files != filesEach+1 || state.Salvaged[0].Node != f.states[name].Instance.Node {
			return fmt.Errorf("what %s had on %s was not saved as it was: %+v", name, f.states[name].Instance.Node, state.Salvaged)
		}
		f.states[name] = state
	}
	if err := c.same(f, states); err != nil {
		return err
	}
	if err := c.once(f.states); err != nil {
		return err
	}
	return c.clean(lost, f.states)
}
