package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"holdfast/testsuite/crowd"
)

// The crowd's nodes: what is lost at once is one host of them, a quarter.
const (
	crowdHosts     = 4
	crowdNodesEach = 5
)

// crowd measures the loss of a quarter of twenty nodes, whose instances are pretended, and what it takes of Temporal.
func (b *bench) crowd(ctx context.Context) (err error) {
	dir := filepath.Join(b.dir, "crowd")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return fmt.Errorf("making a directory: %w", err)
	}
	c, err := crowd.Start(ctx, crowd.Options{
		Dir: dir, Temporal: b.temporal, Hosts: crowdHosts, NodesEach: crowdNodesEach, Patience: 2 * patience, Say: b.say,
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.End(ctx), os.RemoveAll(dir)) }()
	f, err := c.Fill(ctx, b.crowded)
	if err != nil {
		return err
	}
	loss, err := c.Lose(ctx, f, 0)
	if err != nil {
		return err
	}
	b.report("\n### %d workspaces on %d nodes, of which %d lose power at once\n", b.crowded, crowdHosts*crowdNodesEach, loss.Nodes)
	b.report("| seconds | |\n|---|---:|")
	for _, row := range []struct {
		what string
		took time.Duration
	}{
		{"all started at once, until the last runs", f.Started},
		{"all backed up at once, until the last has its snapshot", f.Saved},
		{"from the loss until the last node's is decided", loss.Noticed},
		{fmt.Sprintf("from the loss until the first of %d runs elsewhere", loss.Workspaces), loss.First},
		{"until the last runs elsewhere", loss.Last},
		{"from the nodes' return until nothing is left on them of what was replaced", loss.Back},
	} {
		b.report("| %s | %.1f |", row.what, row.took.Seconds())
	}
	u := loss.Usage
	b.report("\n| the most that was seen | |\n|---|---:|")
	for _, row := range []struct {
		what string
		most crowd.Most
	}{
		{"events of a history", u.Events}, {"bytes of a history", u.Bytes}, {"updates of a run", u.Updates}, {"updates in flight", u.InFlight}, {"pending activities", u.Activities},
	} {
		b.report("| %s (%s) | %d |", row.what, row.most.Where, row.most.Value)
	}
	b.report("| memory of the control worker, MB | %d |\n| memory of Temporal, MB | %d |", u.ControlMemory>>20, u.TemporalMemory>>20)
	return u.Within(crowd.Limits{}) // what Temporal has refused is no measurement
}
