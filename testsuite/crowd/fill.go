package crowd

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"

	"holdfast/testsuite/requests"
	"holdfast/workspace"
)

const (
	subject = "crowd"
	// filesEach files of sizeEach bytes are a workspace's content.
	filesEach = 4
	sizeEach  = 2 << 10
	// lateFile is written after the snapshot.
	lateFile = "written-after-the-snapshot"
)

// Filled are workspaces that run, with content and a snapshot of it.
type Filled struct {
	// Names are theirs.
	Names []string
	// Started and Saved are how long it took until the last ran, and until the last had its snapshot.
	Started, Saved time.Duration
	states         map[string]workspace.State
	digests        map[string]string
}

// each does something for each of the names, some at once.
func each(ctx context.Context, names []string, do func(ctx context.Context, i int, name string) error) error {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(atOnce)
	for i, name := range names {
		group.Go(func() error { return do(ctx, i, name) })
	}
	return group.Wait()
}

// Fill starts so many workspaces at once, wherever they are placed, gives each content of its own and has it backed up.
func (c *Crowd) Fill(ctx context.Context, count int) (*Filled, error) {
	f := &Filled{states: map[string]workspace.State{}, digests: map[string]string{}}
	for i := range count {
		f.Names = append(f.Names, fmt.Sprintf("w-%04d", i+1))
	}
	began := time.Now()
	if err := each(ctx, f.Names, func(ctx context.Context, _ int, name string) error {
		// No timer snapshots them: what is compared is as old as it is said to be.
		return requests.Start(ctx, c.client, name, workspace.StartRequest{Subject: subject, Spec: &workspace.Spec{
			Volume: workspace.Volume{Kind: workspace.VolumeLocal}, Snapshots: workspace.SnapshotPolicy{Off: true},
		}})
	}); err != nil {
		return nil, err
	}
	states, err := c.until(ctx, f.Names, "they run", requests.Running)
	if err != nil {
		return nil, err
	}
	for _, state := range states {
		f.Started = max(f.Started, state.Since.Sub(began))
	}
	c.options.Say("%d workspaces run on %d nodes after %.1f s", count, len(c.Nodes()), f.Started.Seconds())
	for i, name := range f.Names {
		dir := c.content(states[name])
		if err := requests.WriteFiles(dir, uint64(i), filesEach, sizeEach); err != nil {
			return nil, err
		}
		if f.digests[name], err = requests.Digest(dir); err != nil {
			return nil, err
		}
	}
	began = time.Now()
	if f.states, err = c.backUp(ctx, f.Names); err != nil {
		return nil, err
	}
	for _, state := range f.states {
		if state.Head.Files != filesEach {
			return nil, fmt.Errorf("the snapshot of %s has %d files: want %d", state.Name, state.Head.Files, filesEach)
		}
	}
	f.Saved = time.Since(began)
	c.options.Say("each has a snapshot after another %.1f s", f.Saved.Seconds())
	return f, nil
}

// backUp has each of the workspaces backed up, and waits until all are.
func (c *Crowd) backUp(ctx context.Context, names []string) (map[string]workspace.State, error) {
	before, err := c.until(ctx, names, "they run", requests.Running)
	if err != nil {
		return nil, err
	}
	if err := each(ctx, names, func(ctx context.Context, _ int, name string) error {
		return requests.Update(ctx, c.client, workspace.WorkflowID(name), workspace.UpdateBackup, workspace.BackupRequest{Subject: subject})
	}); err != nil {
		return nil, err
	}
	return c.until(ctx, names, "they are backed up", func(state workspace.State) bool {
		return requests.Running(state) && state.Head.Newer(before[state.Name].Head)
	})
}

// content is the directory that the workspace's instance sees as /workspace.
func (c *Crowd) content(state workspace.State) string {
	return requests.ContentDir(c.NodeDir(state.Instance.Node), state)
}

// same compares what workspaces have now with what they had.
func (c *Crowd) same(f *Filled, states map[string]workspace.State) error {
	for name, state := range states {
		got, err := requests.Digest(c.content(state))
		if err != nil {
			return err
		}
		if got != f.digests[name] {
			return fmt.Errorf("%s runs on %s without its content", name, state.Instance.Node)
		}
	}
	return nil
}

// on are those of the workspaces that run on some of the nodes, and the others.
func (f *Filled) on(nodes []string) (here, elsewhere []string) {
	wanted := map[string]bool{}
	for _, node := range nodes {
		wanted[node] = true
	}
	for _, name := range f.Names {
		if wanted[f.states[name].Instance.Node] {
			here = append(here, name)
		} else {
			elsewhere = append(elsewhere, name)
		}
	}
	return here, elsewhere
}

// once says that every workspace runs in one place, where its workflow has it, and that nothing else runs on any node.
func (c *Crowd) once(states map[string]workspace.State) error {
	journals, err := c.journals()
	if err != nil {
		return err
	}
	running := map[string]string{}
	for node, journal := range journals {
		for name, paused := range journal.Running() {
			if other, twice := running[name]; twice {
				return fmt.Errorf("instance %s runs on %s and on %s", name, other, node)
			}
			if paused {
				return fmt.Errorf("instance %s is paused on %s", name, node)
			}
			running[name] = node
		}
	}
	for _, state := range states {
		name := "holdfast-" + workspace.InstanceName(state.ID, state.Instance.Token)
		if running[name] != state.Instance.Node {
			return fmt.Errorf("%s is said to run on %s, and its instance runs on %q", state.Name, state.Instance.Node, running[name])
		}
		delete(running, name)
	}
	for name, node := range running {
		return fmt.Errorf("instance %s runs on %s, and is nobody's (%d are)", name, node, len(running))
	}
	return nil
}

// clean says that nodes hold nothing but what the workspaces have there.
func (c *Crowd) clean(nodes []string, states map[string]workspace.State) error {
	wanted := map[string]bool{}
	for _, state := range states {
		wanted[filepath.Dir(c.content(state))] = true
	}
	for _, node := range nodes {
		for _, kind := range []string{"workspaces", "trash"} {
			entries, err := os.ReadDir(filepath.Join(c.NodeDir(node), kind))
			if err != nil {
				return fmt.Errorf("looking at what node %s holds: %w", node, err)
			}
			for _, entry := range entries {
				if path := filepath.Join(c.NodeDir(node), kind, entry.Name()); !wanted[path] {
					return fmt.Errorf("node %s still holds %s", node, filepath.Join(kind, entry.Name()))
				}
			}
		}
	}
	return nil
}
