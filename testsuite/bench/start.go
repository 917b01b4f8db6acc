package main

import (
	"cmp"
	"context"
	crand "crypto/rand"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	enumspb "go.temporal.io/api/enums/v1"
	"golang.org/x/sync/errgroup"

	"holdfast/engine"
	"holdfast/engine/detect"
	"holdfast/workspace"
)

// aloneAtOnce is how many an engine alone is asked for at the same time: Docker is as fast with 4 as with 50.
const aloneAtOnce = 8

// start measures how long a new workspace takes to run with the process engine, startDocker with the machine's Docker.
func (b *bench) start(ctx context.Context) error {
	return b.startsOf(ctx, detect.Process, []string{"node-1", "node-2"})
}

func (b *bench) startDocker(ctx context.Context) error {
	own := "bench-" + strings.ToLower(crand.Text()[:8])
	return b.startsOf(ctx, detect.Docker, []string{own + "-1", own + "-2"})
}

// startsOf measures one at a time, beside the engine alone, and many at once, beside the engine alone with as many.
func (b *bench) startsOf(ctx context.Context, kind string, nodes []string) (err error) {
	c, err := b.bringUpNamed(ctx, kind, nodes)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.end(ctx)) }()
	off := workspace.SnapshotPolicy{Off: true}
	var single, floor []time.Duration
	steps := map[string][]time.Duration{}
	for i := range b.starts + 1 {
		// People do not start at the beat of any timer.
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(rand.N(time.Second)):
		}
		name := fmt.Sprintf("one-%d", i)
		took, err := c.startOne(ctx, name, off)
		if err != nil {
			return err
		}
		alone, err := b.startAlone(ctx, kind, []string{fmt.Sprintf("alone-%d", i)})
		if err != nil {
			return err
		}
		if i == 0 { // the first one makes what the node has once
			continue
		}
		single, floor = append(single, took), append(floor, alone)
		if err := c.stepsOf(ctx, name, took, steps); err != nil {
			return err
		}
	}
	var many, manyAlone []time.Duration
	for round := range b.rounds {
		b.say("starting %d at once, round %d of %d", b.workspaces, round+1, b.rounds)
		took, err := c.startMany(ctx, round, off)
		if err != nil {
			return err
		}
		var names []string
		for i := range b.workspaces {
			names = append(names, fmt.Sprintf("alone-%d-%d", round, i))
		}
		alone, err := b.startAlone(ctx, kind, names)
		if err != nil {
			return err
		}
		many, manyAlone = append(many, took), append(manyAlone, alone)
	}
	b.report("\n### Start of a new workspace with the %s engine, from the request until it runs\n", kind)
	b.report("| | n | least s | median s | most s |\n|---|---:|---:|---:|---:|")
	b.row("one, at any moment", single)
	b.row("the engine alone, beside it", floor)
	b.row(fmt.Sprintf("%d at once on two nodes, until the last runs", b.workspaces), many)
	b.row(fmt.Sprintf("%d at once by the engine alone", b.workspaces), manyAlone)
	b.report("\n| where the time of one goes | n | least s | median s | most s |\n|---|---:|---:|---:|---:|")
	for _, step := range slices.Sorted(maps.Keys(steps)) {
		b.row(step, steps[step])
	}
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

// startAlone is the floor: what the engine needs for the same instances, all at once, when nobody else is asked.
func (b *bench) startAlone(ctx context.Context, kind string, names []string) (took time.Duration, err error) {
	dir := filepath.Join(b.dir, "alone")
	containers, err := b.open(ctx, kind, filepath.Join(dir, "engine"))
	if err != nil {
		return 0, err
	}
	ids := make([]string, len(names))
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), patience)
		defer cancel()
		for _, id := range ids {
			if id != "" {
				err = errors.Join(err, containers.Stop(ctx, id, 0), containers.Remove(ctx, id))
			}
		}
		err = errors.Join(err, containers.Close())
	}()
	for _, name := range names {
		if err := os.MkdirAll(filepath.Join(dir, name), 0o755); err != nil {
			return 0, fmt.Errorf("making a content directory: %w", err)
		}
	}
	began := time.Now()
	image, err := containers.PrepareImage(ctx, "", nil)
	if err != nil {
		return 0, err
	}
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(aloneAtOnce)
	for i, name := range names {
		group.Go(func() (err error) {
			spec := engine.Spec{Name: "holdfast-bench-" + filepath.Base(b.dir) + "-" + name, Image: image.Reference, ContentDir: filepath.Join(dir, name)}
			if ids[i], err = containers.Create(ctx, spec); err != nil {
				return err
			}
			return cmp.Or(containers.Start(ctx, ids[i]), containers.Ready(ctx, ids[i]))
		})
	}
	if err := group.Wait(); err != nil {
		return 0, err
	}
	return time.Since(began), nil
}

// stepsOf adds how long each activity of a workspace's start took, from when it was asked for until its result was there, and what is left for
// all else. The history is read once it runs, and has nothing but the start and the stop.
func (c *cluster) stepsOf(ctx context.Context, name string, took time.Duration, steps map[string][]time.Duration) error {
	asked, kinds := map[int64]time.Time{}, map[int64]string{}
	each := map[string]time.Duration{}
	rest := took
	history := c.Client().GetWorkflowHistory(ctx, workspace.WorkflowID(name), "", false, enumspb.HISTORY_EVENT_FILTER_TYPE_ALL_EVENT)
	for history.HasNext() {
		event, err := history.Next()
		if err != nil {
			return fmt.Errorf("reading the history of %s: %w", name, err)
		}
		if scheduled := event.GetActivityTaskScheduledEventAttributes(); scheduled != nil {
			asked[event.GetEventId()], kinds[event.GetEventId()] = event.GetEventTime().AsTime(), scheduled.GetActivityType().GetName()
		}
		if completed := event.GetActivityTaskCompletedEventAttributes(); completed != nil {
			id := completed.GetScheduledEventId()
			lasted := event.GetEventTime().AsTime().Sub(asked[id])
			each[kinds[id]] += lasted
			rest -= lasted
			if kinds[id] == workspace.ActivityStartInstance {
				break
			}
		}
	}
	for kind, lasted := range each {
		steps[kind] = append(steps[kind], lasted)
	}
	steps["workflow tasks, and what is between the steps"] = append(steps["workflow tasks, and what is between the steps"], rest)
	return nil
}
