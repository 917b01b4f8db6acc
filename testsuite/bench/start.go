package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"time"

	"holdfast/engine"
	"holdfast/engine/process"
	"holdfast/workspace"
)

// start measures how long a new workspace takes to run: one at a time, beside the engine alone, and many at once.
func (b *bench) start(ctx context.Context) (err error) {
	c, err := b.bringUp(ctx, 2)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.end(ctx)) }()
	off := workspace.SnapshotPolicy{Off: true}
	var single, floor []time.Duration
	for i := range b.starts + 1 {
		// People do not start at the beat of any timer.
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(rand.N(time.Second)):
		}
		took, err := c.startOne(ctx, fmt.Sprintf("one-%d", i), off)
		if err != nil {
			return err
		}
		alone, err := b.startAlone(ctx, fmt.Sprintf("alone-%d", i))
		if err != nil {
			return err
		}
		if i > 0 { // the first one makes what the node has once
			single, floor = append(single, took), append(floor, alone)
		}
	}
	var many []time.Duration
	for round := range b.rounds {
		b.say("starting %d at once, round %d of %d", b.workspaces, round+1, b.rounds)
		took, err := c.startMany(ctx, round, off)
		if err != nil {
			return err
		}
		many = append(many, took)
	}
	b.report("\n### Start of a new workspace, from the request until it runs\n")
	b.report("| | n | least s | median s | most s |\n|---|---:|---:|---:|---:|")
	b.row("one, at any moment", single)
	b.row("the process engine alone, beside it", floor)
	b.row(fmt.Sprintf("%d at once on two nodes, until the last runs", b.workspaces), many)
	return nil
}

func (c *cluster) startOne(ctx context.Context, name string, snapshots workspace.SnapshotPolicy) (time.Duration, error) {
	began := time.Now()
	if err := c.start(ctx, name, "", snapshots); err != nil {
		return 0, err
	}
	states, err := c.until(ctx, []string{name}, "it runs", running)
	if err != nil {
		return 0, err
	}
	took := states[name].Since.Sub(began)
	return took, c.stop(ctx, []string{name})
}

func (c *cluster) startMany(ctx context.Context, round int, snapshots workspace.SnapshotPolicy) (time.Duration, error) {
	var names []string
	for i := range c.b.workspaces {
		names = append(names, fmt.Sprintf("many-%d-%d", round, i))
	}
	began := time.Now()
	errs := make([]error, len(names))
	var all sync.WaitGroup
	for i, name := range names {
		all.Go(func() { errs[i] = c.start(ctx, name, "", snapshots) })
	}
	all.Wait()
	if err := errors.Join(errs...); err != nil {
		return 0, err
	}
	states, err := c.until(ctx, names, "all run", running)
	if err != nil {
		return 0, err
	}
	var took time.Duration
	for _, state := range states {
		took = max(took, state.Since.Sub(began))
	}
	return took, c.stop(ctx, names)
}

// stop stops workspaces, which backs them up, so that they are not in the way of the next.
func (c *cluster) stop(ctx context.Context, names []string) error {
	for _, name := range names {
		if err := c.ask(ctx, workspace.WorkflowID(name), workspace.UpdateStop, workspace.StopRequest{Subject: "bench"}); err != nil {
			return err
		}
	}
	_, err := c.until(ctx, names, "all are stopped", func(state workspace.State) bool {
		return state.Phase == workspace.Stopped && state.Operation == nil && state.Kept == nil
	})
	return err
}

// startAlone is the floor: what the engine needs for the same instance when nobody else is asked.
func (b *bench) startAlone(ctx context.Context, name string) (took time.Duration, err error) {
	dir := filepath.Join(b.dir, "alone")
	content := filepath.Join(dir, name)
	if err := os.MkdirAll(content, 0o755); err != nil {
		return 0, err
	}
	containers, err := process.New(process.Options{
		Root: filepath.Join(dir, "engine"), Supervisor: []string{b.binary, "engine-supervise"}, Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, containers.Close()) }()
	began := time.Now()
	image, err := containers.PrepareImage(ctx, "", nil)
	if err != nil {
		return 0, err
	}
	id, err := containers.Create(ctx, engine.Spec{Name: name, Image: image.Reference, ContentDir: content})
	if err != nil {
		return 0, err
	}
	if err := errors.Join(containers.Start(ctx, id), containers.Ready(ctx, id)); err != nil {
		return 0, errors.Join(err, containers.Remove(ctx, id))
	}
	took = time.Since(began)
	return took, errors.Join(containers.Stop(ctx, id, 0), containers.Remove(ctx, id))
}
