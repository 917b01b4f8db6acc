package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"holdfast/workspace"
)

// fault is one way in which a node is lost, and how it comes back.
type fault struct {
	name string
	make func(context.Context, *cluster, string) error
	undo func(context.Context, *cluster, string) error
}

func faults() []fault {
	again := func(ctx context.Context, c *cluster, node string) error { return c.Node(node).Start(ctx) }
	return []fault{
		{"its agent is killed, what it runs goes on", func(_ context.Context, c *cluster, node string) error {
			return c.Node(node).Kill()
		}, again},
		{"power is lost: its agent and all that it runs", func(ctx context.Context, c *cluster, node string) error {
			return errors.Join(c.Node(node).Kill(), c.endInstances(ctx, node))
		}, again},
		{"its agent is frozen", func(_ context.Context, c *cluster, node string) error {
			return c.Node(node).Pause()
		}, func(_ context.Context, c *cluster, node string) error { return c.Node(node).Resume() }},
		{"it is cut off from Temporal", func(_ context.Context, c *cluster, node string) error {
			c.links[node].Cut()
			return nil
		}, func(_ context.Context, c *cluster, node string) error {
			c.links[node].Mend()
			return nil
		}},
	}
}

// detect measures how long each kind of fault takes to be noticed, and until a workspace that was snapshotted just before
// runs elsewhere with its content.
func (b *bench) detect(ctx context.Context) (err error) {
	c, err := b.bringUp(ctx, 3)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.end(ctx)) }()
	names, digests, err := c.fill(ctx, 1, "node-1", workspace.SnapshotPolicy{Off: true})
	if err != nil {
		return err
	}
	b.report("\n### A node is lost: one workspace, snapshotted just before, on one of three nodes\n")
	b.report("| | n | noticed after s: least | median | most | runs elsewhere after s: least | median | most |\n|---|---:|---:|---:|---:|---:|---:|---:|")
	for _, f := range faults() {
		var noticed, runs []time.Duration
		for round := range b.faults {
			b.say("%s, round %d of %d", f.name, round+1, b.faults)
			lost, back, err := c.lose(ctx, names[0], f)
			if err != nil {
				return fmt.Errorf("%s: %w", f.name, err)
			}
			states, err := c.until(ctx, names, "it still runs", running)
			if err != nil {
				return err
			}
			if err := c.same(states, digests); err != nil {
				return err
			}
			b.say("noticed after %.1f s, it ran elsewhere after %.1f s", lost.Seconds(), back.Seconds())
			noticed, runs = append(noticed, lost), append(runs, back)
		}
		b.report("| %s | %d | %s | %s |", f.name, len(noticed), spread(noticed), spread(runs))
	}
	return nil
}

// lose makes a fault on the workspace's node, and undoes it once the workspace runs elsewhere.
func (c *cluster) lose(ctx context.Context, name string, f fault) (noticed, runs time.Duration, err error) {
	id := workspace.WorkflowID(name)
	before, err := query[workspace.State](ctx, c, id)
	if err != nil {
		return 0, 0, err
	}
	node := before.Instance.Node
	if err := c.ask(ctx, id, workspace.UpdateBackup, workspace.BackupRequest{Subject: "bench"}); err != nil {
		return 0, 0, err
	}
	if _, err := c.until(ctx, []string{name}, "it is backed up", func(state workspace.State) bool {
		return running(state) && state.Head.Newer(before.Head)
	}); err != nil {
		return 0, 0, err
	}
	at := time.Now()
	if err := f.make(ctx, c, node); err != nil {
		return 0, 0, err
	}
	states, err := c.until(ctx, []string{name}, "it runs elsewhere", func(state workspace.State) bool {
		return running(state) && state.Instance.Node != node
	})
	if err != nil {
		return 0, 0, errors.Join(err, f.undo(ctx, c, node))
	}
	if err := f.undo(ctx, c, node); err != nil {
		return 0, 0, err
	}
	// Until the node is there again and what it still had is saved, the next fault would be another one.
	if _, err := c.until(ctx, []string{name}, "what the node still had is saved", func(state workspace.State) bool {
		return running(state) && saved(state, node)
	}); err != nil {
		return 0, 0, err
	}
	state := states[name]
	return state.Recovery.LostAt.Sub(at), state.Since.Sub(at), c.ready(ctx, node)
}

// saved says whether nothing of an instance that was replaced is on the node any more.
func saved(state workspace.State, node string) bool {
	for _, left := range state.Left {
		if left.Node == node {
			return false
		}
	}
	return true
}

// ready waits until a node has its lease.
func (c *cluster) ready(ctx context.Context, node string) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		state, err := query[workspace.NodeState](ctx, c, workspace.NodeWorkflowID(node))
		if err == nil && state.Phase == workspace.NodeReady {
			return nil
		}
		select {
		case <-ctx.Done():
			return errors.Join(fmt.Errorf("waiting until node %s is ready: %w", node, context.Cause(ctx)), err)
		case <-time.After(500 * time.Millisecond):
		}
	}
}
