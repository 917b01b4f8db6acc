package main

import (
	"context"
	"errors"
	"time"

	"holdfast/workspace"
)

// drain measures how long it takes until all that runs on a node runs elsewhere, each backed up there and restored here.
func (b *bench) drain(ctx context.Context) error {
	var all, each []time.Duration
	for round := range b.rounds {
		b.say("a node with %d workspaces is drained, round %d of %d", b.workspaces, round+1, b.rounds)
		took, away, err := b.drainMany(ctx)
		if err != nil {
			return err
		}
		all, each = append(all, took), append(each, away)
	}
	b.report("\n### A node of three with %d workspaces of 1 MB is drained, %d at once\n", b.workspaces, b.parallel)
	b.report("| | n | least s | median s | most s |\n|---|---:|---:|---:|---:|")
	b.row("from the order until the last runs elsewhere", all)
	b.row("how long a person could not work: the median workspace", each)
	return nil
}

func (b *bench) drainMany(ctx context.Context) (took, away time.Duration, err error) {
	c, err := b.bringUp(ctx, 3)
	if err != nil {
		return 0, 0, err
	}
	defer func() { err = errors.Join(err, c.end(ctx)) }()
	names, digests, err := c.fill(ctx, b.workspaces, "node-1", workspace.SnapshotPolicy{Off: true})
	if err != nil {
		return 0, 0, err
	}
	began := time.Now()
	order := workspace.NodeOrder{Kind: workspace.OrderDrain, Subject: "bench", Drain: &workspace.DrainRequest{Parallel: b.parallel}}
	if err := c.ask(ctx, workspace.NodeWorkflowID("node-1"), workspace.UpdateOrder, order); err != nil {
		return 0, 0, err
	}
	states, err := c.until(ctx, names, "all run elsewhere", func(state workspace.State) bool {
		return running(state) && state.Instance.Node != "node-1"
	})
	if err != nil {
		return 0, 0, err
	}
	if err := c.same(states, digests); err != nil {
		return 0, 0, err
	}
	var pauses []time.Duration
	for _, state := range states {
		took = max(took, state.Since.Sub(began))
		if last := state.Recent[len(state.Recent)-1]; last.Kind == workspace.OperationMove {
			pauses = append(pauses, last.Ended.Sub(last.Halted))
		}
	}
	return took, median(pauses), nil
}
