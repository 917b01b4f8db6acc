package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
	enumspb "go.temporal.io/api/enums/v1"
	"go.temporal.io/sdk/client"
	"go.temporal.io/sdk/temporal"

	"holdfast/devstack"
	"holdfast/engine"
	"holdfast/engine/detect"
	"holdfast/engine/process"
	"holdfast/testsuite/link"
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
	operation := c.Client().NewWithStartWorkflowOperation(client.StartWorkflowOptions{
		ID: workspace.WorkflowID(name), TaskQueue: workspace.ControlQueue, WorkflowIDConflictPolicy: enumspb.WORKFLOW_ID_CONFLICT_POLICY_USE_EXISTING,
		TypedSearchAttributes: temporal.NewSearchAttributes(
			temporal.NewSearchAttributeKeyKeyword(workspace.AttributeKind).ValueSet("workspace"),
			temporal.NewSearchAttributeKeyKeyword(workspace.AttributeState).ValueSet(string(workspace.Pending)),
			temporal.NewSearchAttributeKeyKeyword(workspace.AttributeOwner).ValueSet("bench"),
		),
	}, workspace.WorkspaceWorkflow, workspace.Input{Name: name, Owner: "bench"})
	handle, err := c.Client().UpdateWithStartWorkflow(ctx, client.UpdateWithStartWorkflowOptions{
		StartWorkflowOperation: operation,
		UpdateOptions: client.UpdateWorkflowOptions{
			UpdateID: uuid.NewString(), UpdateName: workspace.UpdateStart, WaitForStage: client.WorkflowUpdateStageCompleted,
			Args: []any{workspace.StartRequest{Subject: "bench", Node: node, Spec: &workspace.Spec{
				Volume: workspace.Volume{Kind: workspace.VolumeLocal}, Snapshots: snapshots,
			}}},
		},
	})
	if err == nil {
		err = handle.Get(ctx, nil)
	}
	if err != nil {
		return fmt.Errorf("starting %s: %w", name, err)
	}
	return nil
}

// ask sends an update and waits for its acceptance.
func (c *cluster) ask(ctx context.Context, workflow, update string, request any) error {
	handle, err := c.Client().UpdateWorkflow(ctx, client.UpdateWorkflowOptions{
		WorkflowID: workflow, UpdateID: uuid.NewString(), UpdateName: update, Args: []any{request}, WaitForStage: client.WorkflowUpdateStageCompleted,
	})
	if err == nil {
		err = handle.Get(ctx, nil)
	}
	if err != nil {
		return fmt.Errorf("asking %s for %s: %w", workflow, update, err)
	}
	return nil
}

// query reads a workflow's state.
func query[T any](ctx context.Context, c *cluster, workflow string) (state T, err error) {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	value, err := c.Client().QueryWorkflow(ctx, workflow, "", workspace.QueryState)
	if err == nil {
		err = value.Get(&state)
	}
	if err != nil {
		return state, fmt.Errorf("asking %s for its state: %w", workflow, err)
	}
	return state, nil
}

// until waits until a condition holds for each of the workspaces, and returns how they were then. Times are read from the
// states, so that how often they are asked does not matter; asking costs what is measured its processors.
func (c *cluster) until(ctx context.Context, names []string, what string, done func(workspace.State) bool) (map[string]workspace.State, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	states, left := map[string]workspace.State{}, slices.Clone(names)
	for {
		var last string
		left = slices.DeleteFunc(left, func(name string) bool {
			state, err := query[workspace.State](ctx, c, workspace.WorkflowID(name))
			if err != nil {
				last = err.Error()
				return false
			}
			states[name] = state
			last = fmt.Sprintf("%s: %s %s", name, state.Phase, state.Reason)
			return done(state)
		})
		if len(left) == 0 {
			return states, nil
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("waiting until %s: %d of %d are not there yet: %s: %w", what, len(left), len(names), last, context.Cause(ctx))
		case <-time.After(500 * time.Millisecond):
		}
	}
}

func running(state workspace.State) bool {
	return state.Phase == workspace.Running && state.Operation == nil
}

// fill starts workspaces on a node and gives each some files, of which it returns the digests.
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
		if err := writeFiles(dir, uint64(i)); err != nil {
			return nil, nil, err
		}
		if digests[name], err = digest(dir); err != nil {
			return nil, nil, err
		}
	}
	return names, digests, nil
}

// content is the directory of the workspace's instance.
func (c *cluster) content(state workspace.State) string {
	return filepath.Join(c.NodeDir(state.Instance.Node), "workspaces", workspace.InstanceName(state.ID, state.Instance.Token), "content")
}

// same compares what each workspace has now with what it had.
func (c *cluster) same(states map[string]workspace.State, digests map[string]string) error {
	for name, want := range digests {
		got, err := digest(c.content(states[name]))
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

// writeFiles makes a workspace's files, 1 MB in all, that neither compress nor repeat.
func writeFiles(dir string, seed uint64) error {
	random := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)})
	content := make([]byte, 50<<10)
	for i := range filesEach {
		_, _ = random.Read(content) // never fails
		path := filepath.Join(dir, fmt.Sprintf("part-%d", i%4), fmt.Sprintf("file-%d", i))
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, content, 0o644)); err != nil {
			return fmt.Errorf("writing a workspace's content: %w", err)
		}
	}
	return nil
}

// digest is of all files below a directory, with their names.
func digest(dir string) (string, error) {
	all := sha256.New()
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		content, err := os.ReadFile(path)
		fmt.Fprintf(all, "%s %x\n", strings.TrimPrefix(path, dir), sha256.Sum256(content))
		return err
	})
	if err != nil {
		return "", fmt.Errorf("reading a workspace's content: %w", err)
	}
	return fmt.Sprintf("%x", all.Sum(nil)), nil
}
