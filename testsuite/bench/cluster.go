package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"holdfast/devstack"
	"holdfast/engine"
	"holdfast/engine/detect"
	"holdfast/engine/process"
	"holdfast/testsuite/link"
	"holdfast/testsuite/requests"
	"holdfast/workspace"
)

// patience is how long anything may take before the run ends with an error.
const patience = 10 * time.Minute

// cluster is a stack whose agents reach Temporal through links that can be cut.
type cluster struct {
	*devstack.Stack
	b       *bench
	kind    string // of the engine
	links   map[string]*link.Link
	linkErr error
}

// bringUp starts a new stack with so many nodes of the process engine.
func (b *bench) bringUp(ctx context.Context, nodes int) (*cluster, error) {
	var names []string
	for i := range nodes {
		names = append(names, fmt.Sprintf("node-%d", i+1))
	}
	return b.bringUpNamed(ctx, detect.Process, names)
}

// bringUpNamed starts a new stack of one kind of engine. A Docker engine is that of the machine and of all who use it: what is a node's in it is
// known by the node's name, which must be nobody else's.
func (b *bench) bringUpNamed(ctx context.Context, kind string, nodes []string) (*cluster, error) {
	b.stacks++
	c := &cluster{b: b, kind: kind, links: map[string]*link.Link{}}
	options := devstack.StackOptions{
		Binary: b.binary, DataDir: filepath.Join(b.dir, fmt.Sprintf("stack-%d", b.stacks)), Policy: "any", Engine: kind, NoRestart: true, Nodes: nodes,
		Temporal: devstack.TemporalOptions{Binary: b.temporal, Headless: true},
		Roles:    devstack.ProductRoles(), NoMetrics: true,
	}
	role := options.Roles.Node
	options.Roles.Node = func(file devstack.StackFile, node, dir string) devstack.Command {
		command := role(file, node, dir)
		command.Env = []string{"TEMPORAL_ADDRESS=" + c.through(node, file.TemporalAddress)}
		return command
	}
	stack, err := devstack.StartStack(ctx, options)
	if err != nil {
		return nil, errors.Join(err, c.closeLinks())
	}
	c.Stack = stack
	if c.linkErr != nil {
		return nil, errors.Join(c.linkErr, c.end(ctx))
	}
	return c, nil
}

// through is where a node reaches Temporal: one link for each node, also over restarts of its agent. It is asked for by
// one node after the other.
func (c *cluster) through(node, address string) string {
	if c.links[node] == nil {
		l, err := link.New(address)
		if err != nil {
			c.linkErr = errors.Join(c.linkErr, err)
			return address
		}
		c.links[node] = l
	}
	return c.links[node].Address()
}

func (c *cluster) closeLinks() error {
	var errs []error
	for _, l := range c.links {
		errs = append(errs, l.Close())
	}
	return errors.Join(errs...)
}

// end stops everything, with the instances, and removes what the stack has written.
func (c *cluster) end(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), patience)
	defer cancel()
	err := errors.Join(c.Stop(ctx), c.closeLinks())
	for _, node := range c.Nodes() {
		err = errors.Join(err, c.endInstances(ctx, node.Name()))
	}
	return errors.Join(err, os.RemoveAll(filepath.Dir(c.LogDir())))
}

// engine opens a node's engine, as its agent has it.
func (c *cluster) engine(ctx context.Context, node string) (engine.Engine, error) {
	return c.b.open(ctx, c.kind, filepath.Join(c.NodeDir(node), "engine"))
}

// open opens an engine of a kind; dir is where one of processes keeps what it runs.
func (b *bench) open(ctx context.Context, kind, dir string) (engine.Engine, error) {
	return detect.Open(ctx, kind, detect.Options{
		Process: process.Options{Root: dir, Supervisor: []string{b.binary, "engine-supervise"}}, Logger: slog.New(slog.DiscardHandler),
	})
}

// endInstances stops and removes all that a node runs; its agent is not asked.
func (c *cluster) endInstances(ctx context.Context, node string) error {
	containers, err := c.engine(ctx, node)
	if err != nil {
		return err
	}
	instances, err := containers.List(ctx, map[string]string{engine.LabelNode: node})
	for _, instance := range instances {
		err = errors.Join(err, containers.Stop(ctx, instance.ID, 0), containers.Remove(ctx, instance.ID))
	}
	return errors.Join(err, containers.Close())
}

// start asks for a workspace on a node and returns when that was accepted, which is not when it runs.
func (c *cluster) start(ctx context.Context, name, node string, snapshots workspace.SnapshotPolicy) error {
	return requests.Start(ctx, c.Client(), name, workspace.StartRequest{Subject: "bench", Node: node, Spec: &workspace.Spec{
		Volume: workspace.Volume{Kind: workspace.VolumeLocal}, Snapshots: snapshots,
	}})
}

// ask sends an update and waits for its acceptance.
func (c *cluster) ask(ctx context.Context, workflow, update string, request any) error {
	return requests.Update(ctx, c.Client(), workflow, update, request)
}

// query reads a workflow's state.
func query[T any](ctx context.Context, c *cluster, workflow string) (state T, err error) {
	return requests.Query[T](ctx, c.Client(), workflow)
}

// until waits until a condition holds for each of the workspaces, and returns how they were then.
func (c *cluster) until(ctx context.Context, names []string, what string, done func(workspace.State) bool) (map[string]workspace.State, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	return requests.Until(ctx, c.Client(), names, what, done)
}

func running(state workspace.State) bool { return requests.Running(state) }

// fill starts workspaces on a node and gives each 1 MB of files, of which it returns the digests.
func (c *cluster) fill(ctx context.Context, count int, node string, snapshots workspace.SnapshotPolicy) (names []string, digests map[string]string, err error) {
	for i := range count {
		names = append(names, fmt.Sprintf("w-%03d", i+1))
	}
	for _, name := range names {
		if err := c.start(ctx, name, node, snapshots); err != nil {
			return nil, nil, err
		}
	}
	states, err := c.until(ctx, names, "they run", running)
	if err != nil {
		return nil, nil, err
	}
	digests = map[string]string{}
	for i, name := range names {
		dir := c.content(states[name])
		if err := requests.WriteFiles(dir, uint64(i), filesEach, 50<<10); err != nil {
			return nil, nil, err
		}
		if digests[name], err = requests.Digest(dir); err != nil {
			return nil, nil, err
		}
	}
	return names, digests, nil
}

// content is the directory of the workspace's instance.
func (c *cluster) content(state workspace.State) string {
	return requests.ContentDir(c.NodeDir(state.Instance.Node), state)
}

// same compares what each workspace has now with what it had.
func (c *cluster) same(states map[string]workspace.State, digests map[string]string) error {
	for name, want := range digests {
		got, err := requests.Digest(c.content(states[name]))
		if err != nil {
			return err
		}
		if got != want {
			return fmt.Errorf("%s runs on %s without all of its content", name, states[name].Instance.Node)
		}
	}
	return nil
}

// filesEach is how many files a workspace has.
const filesEach = 20
