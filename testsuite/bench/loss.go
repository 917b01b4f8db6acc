package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"holdfast/workspace"
)

// loss measures the death of a node with many workspaces until all of them run elsewhere with their content.
func (b *bench) loss(ctx context.Context) error {
	var noticed, first, last, grace, beyond, longest []time.Duration
	for round := range b.rounds {
		b.say("a node with %d workspaces dies, round %d of %d", b.workspaces, round+1, b.rounds)
		r, err := b.loseMany(ctx)
		if err != nil {
			return err
		}
		noticed, first, last = append(noticed, r.noticed), append(first, r.first), append(last, r.last)
		grace, beyond, longest = append(grace, r.grace), append(beyond, r.beyond), append(longest, r.longest)
	}
	b.report("\n### A node of three with %d workspaces of 1 MB dies, snapshots every %s, each of its own age\n", b.workspaces, b.every)
	b.report("| seconds after the kill | n | least s | median s | most s |\n|---|---:|---:|---:|---:|")
	b.row("the loss is decided", noticed)
	b.row("the first runs elsewhere", first)
	b.row("the last runs elsewhere", last)
	b.report("\n| of which, in seconds | n | least s | median s | most s |\n|---|---:|---:|---:|---:|")
	b.row("the node is waited for (the age of the newest snapshot, at most 2 min): the median workspace", grace)
	b.row("from the end of that wait until it runs: the median workspace", beyond)
	b.row("from the end of that wait until it runs: the last workspace", longest)
	return nil
}

type lost struct{ noticed, first, last, grace, beyond, longest time.Duration }

func (b *bench) loseMany(ctx context.Context) (result lost, err error) {
	c, err := b.bringUp(ctx, 3)
	if err != nil {
		return result, err
	}
	defer func() { err = errors.Join(err, c.end(ctx)) }()
	names, digests, err := c.fill(ctx, b.workspaces, "node-1", workspace.SnapshotPolicy{EverySeconds: int64(b.every / time.Second)})
	if err != nil {
		return result, err
	}
	b.say("waiting until each has a snapshot of its content, within %s", b.every)
	if _, err := c.until(ctx, names, "each is snapshotted", func(state workspace.State) bool {
		return running(state) && state.Head != nil && state.Head.Files == filesEach
	}); err != nil {
		return result, err
	}
	at := time.Now()
	if err := c.Node("node-1").Kill(); err != nil {
		return result, err
	}
	states, err := c.until(ctx, names, "all run elsewhere", func(state workspace.State) bool {
		return running(state) && state.Instance.Node != "node-1"
	})
	if err != nil {
		return result, err
	}
	if err := c.same(states, digests); err != nil {
		return result, err
	}
	var waits, rests []time.Duration
	for _, state := range states {
		runs, decided := state.Since.Sub(at), state.Recovery.LostAt
		if result.first == 0 || runs < result.first {
			result.first = runs
		}
		result.noticed, result.last = decided.Sub(at), max(result.last, runs)
		// What it was when the loss was decided, as the workspace has recorded it.
		wait := workspace.ReturnGrace(workspace.State{Head: &workspace.Commit{Time: decided.Add(-state.Recovery.LostWork)}}, decided)
		waits, rests = append(waits, wait), append(rests, state.Since.Sub(decided)-wait)
		result.longest = max(result.longest, state.Since.Sub(decided)-wait)
	}
	result.grace, result.beyond = median(waits), median(rests)
	return result, nil
}

// freeze measures what moves when Temporal stands still: nothing may.
func (b *bench) freeze(ctx context.Context) (err error) {
	c, err := b.bringUp(ctx, 3)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.end(ctx)) }()
	var names []string
	for i := range b.workspaces {
		names = append(names, fmt.Sprintf("w-%03d", i))
		if err := c.start(ctx, names[i], c.Nodes()[i%3].Name(), workspace.SnapshotPolicy{Off: true}); err != nil {
			return err
		}
	}
	before, err := c.until(ctx, names, "all run", running)
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := c.ask(ctx, workspace.WorkflowID(name), workspace.UpdateBackup, workspace.BackupRequest{Subject: "bench"}); err != nil {
			return err
		}
	}
	// Each has a snapshot to go on from, so that nothing but the decision keeps it where it is.
	if _, err := c.until(ctx, names, "all are backed up", func(state workspace.State) bool { return running(state) && state.Head != nil }); err != nil {
		return err
	}
	b.say("Temporal stands still for %s", b.freezeFor)
	if err := errors.Join(c.Temporal().Pause(), wait(ctx, b.freezeFor), c.Temporal().Resume()); err != nil {
		return err
	}
	// Longer than a loss takes to be decided, and than any of these is waited for.
	if err := wait(ctx, 3*time.Minute); err != nil {
		return err
	}
	after, err := c.until(ctx, names, "all run", running)
	if err != nil {
		return err
	}
	moved := 0
	for _, name := range names {
		if after[name].Token != before[name].Token {
			moved++
		}
	}
	b.report("\n### Temporal stands still for %s: %d workspaces on three nodes\n", b.freezeFor, b.workspaces)
	b.report("moved: %d", moved)
	return nil
}

func wait(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(d):
		return nil
	}
}
