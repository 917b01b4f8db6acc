package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"holdfast/engine"
	"holdfast/workspace"
)

// partition measures how long two instances of a workspace are at work when their node is cut off from Temporal and still reaches a store: it
// pauses what was replaced as soon as it reads the marker there.
func (b *bench) partition(ctx context.Context) error {
	var both, last []time.Duration
	twice := 0
	for round := range b.rounds {
		b.say("a node with %d workspaces is cut off, round %d of %d", b.workspaces, round+1, b.rounds)
		overlaps, spread, err := b.cutOff(ctx)
		if err != nil {
			return err
		}
		for _, overlap := range overlaps {
			if overlap > 0 {
				twice++
			}
		}
		both, last = append(both, overlaps...), append(last, spread)
	}
	b.report("\n### A node of three with %d workspaces, just snapshotted, is cut off from Temporal and reaches a store\n", b.workspaces)
	b.report("| | n | least s | median s | most s |\n|---|---:|---:|---:|---:|")
	b.row("two instances of a workspace at work", both)
	b.row("from the first that runs elsewhere to the last", last)
	b.report("\nat work twice at any time: %d of %d", twice, len(both))
	return nil
}

// sighting is when an instance was first seen to run elsewhere, and first seen not to be at work on the node that was cut off.
type sighting struct{ elsewhere, paused time.Time }

// cutOff returns for each workspace for how long two of its instances were at work, 0 when the old one was paused first.
func (b *bench) cutOff(ctx context.Context) (overlaps []time.Duration, spread time.Duration, err error) {
	c, err := b.bringUp(ctx, 3)
	if err != nil {
		return nil, 0, err
	}
	defer func() { err = errors.Join(err, c.end(ctx)) }()
	names, digests, err := c.fill(ctx, b.workspaces, "node-1", workspace.SnapshotPolicy{Off: true})
	if err != nil {
		return nil, 0, err
	}
	for _, name := range names {
		if err := c.ask(ctx, workspace.WorkflowID(name), workspace.UpdateBackup, workspace.BackupRequest{Subject: "bench"}); err != nil {
			return nil, 0, err
		}
	}
	if _, err := c.until(ctx, names, "all are backed up", func(state workspace.State) bool {
		return running(state) && state.Head != nil && state.Head.Files == filesEach
	}); err != nil {
		return nil, 0, err
	}
	watching, stop := context.WithCancel(ctx)
	defer stop()
	seen := map[string]*sighting{}
	var watched error
	var watcher sync.WaitGroup
	watcher.Go(func() { watched = c.watch(watching, len(names), seen) })
	c.links["node-1"].Cut()
	states, err := c.until(ctx, names, "all run elsewhere", func(state workspace.State) bool {
		return running(state) && state.Instance.Node != "node-1"
	})
	if err == nil {
		err = c.same(states, digests)
	}
	if err != nil {
		return nil, 0, err
	}
	watcher.Wait() // it ends when nothing is at work twice, or with its patience
	if watched != nil {
		return nil, 0, watched
	}
	var first, last time.Time
	for _, s := range seen {
		overlaps = append(overlaps, max(s.paused.Sub(s.elsewhere), 0))
		if first.IsZero() || s.elsewhere.Before(first) {
			first = s.elsewhere
		}
		if s.elsewhere.After(last) {
			last = s.elsewhere
		}
	}
	return overlaps, last.Sub(first), nil
}

// watch looks at what the engines run, ten times a second, until so many workspaces are seen to run elsewhere and not to be at work on node-1. It asks neither an agent nor a workflow.
func (c *cluster) watch(ctx context.Context, count int, seen map[string]*sighting) (err error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	engines := map[string]engine.Engine{}
	defer func() {
		for _, opened := range engines {
			err = errors.Join(err, opened.Close())
		}
	}()
	for _, node := range c.Nodes() {
		if engines[node.Name()], err = c.engine(ctx, node.Name()); err != nil {
			return err
		}
	}
	ticker := time.NewTicker(100 * time.Millisecond)
	defer ticker.Stop()
	for {
		for node, containers := range engines {
			instances, err := containers.List(ctx, nil)
			if err != nil {
				return fmt.Errorf("looking at what %s runs: %w", node, err)
			}
			now := time.Now()
			for _, instance := range instances {
				id := instance.Labels[engine.LabelWorkspace]
				if seen[id] == nil {
					seen[id] = &sighting{}
				}
				s := seen[id]
				switch {
				case node != "node-1" && instance.Status == engine.StatusRunning && s.elsewhere.IsZero():
					s.elsewhere = now
				case node == "node-1" && instance.Status != engine.StatusRunning && s.paused.IsZero():
					s.paused = now
				}
			}
		}
		done := 0
		for _, s := range seen {
			if !s.elsewhere.IsZero() && !s.paused.IsZero() {
				done++
			}
		}
		if done == count {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waiting until nothing is at work twice: %d of %d are not: %w", done, count, context.Cause(ctx))
		case <-ticker.C:
		}
	}
}
