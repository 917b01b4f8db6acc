package nodes_test

import (
	"context"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"holdfast/devstack"
	"holdfast/engine"
	"holdfast/engine/detect"
	"holdfast/engine/process"
	"holdfast/testsuite/link"
	"holdfast/testsuite/stack"
	"holdfast/workspace"
)

// temporalPath is one agent's path to Temporal, which a test can cut once the stack runs.
type temporalPath struct{ *link.Link }

// through has one node's agent reach Temporal through the path.
func (p *temporalPath) through(t *testing.T, node string) func(*devstack.StackOptions) {
	return func(options *devstack.StackOptions) {
		plain := options.Roles.Node
		options.Roles.Node = func(file devstack.StackFile, name, dir string) devstack.Command {
			command := plain(file, name, dir)
			if name != node {
				return command
			}
			if p.Link == nil { // a link outlives its agent
				made, err := link.New(file.TemporalAddress)
				if err != nil {
					t.Error(err)
					return command
				}
				p.Link = made
				t.Cleanup(func() {
					if err := made.Close(); err != nil {
						t.Error(err)
					}
				})
			}
			command.Env = append(command.Env, "TEMPORAL_ADDRESS="+p.Address())
			return command
		}
	}
}

// engineOf opens the engine of a node as its agent has it.
func engineOf(t *testing.T, s *stack.Stack, node string) engine.Engine {
	t.Helper()
	opened, err := detect.Open(t.Context(), s.File().Engine, detect.Options{
		Process: process.Options{Root: filepath.Join(s.NodeDir(node), "engine"), Supervisor: []string{stack.Binary(t), "engine-supervise"}},
		Logger:  slog.New(slog.DiscardHandler),
	})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, opened.Close()) })
	return opened
}

// statuses are those of a workspace's instances in an engine, by token.
func statuses(t *testing.T, containers engine.Engine, id string) map[string]engine.Status {
	t.Helper()
	all := map[string]engine.Status{}
	for _, instance := range stack.ContainersOf(context.Background(), t, containers, id) {
		all[instance.Labels[engine.LabelToken]] = instance.Status
	}
	return all
}

// counts has a workspace count in a file, as a program does that a person left running in it, and returns the file's size.
func counts(t *testing.T, s *stack.Stack, name, content string) func() int64 {
	t.Helper()
	stack.Must(t, s, 0, nil, "exec", name, "--", "sh", "-c", "(while :; do echo x >> count; sleep 0.05; done) </dev/null >/dev/null 2>&1 &")
	file := filepath.Join(content, "count")
	size := func() int64 {
		info, err := os.Stat(file)
		if err != nil {
			return 0
		}
		return info.Size()
	}
	grows(t, size)
	return size
}

func grows(t *testing.T, size func() int64) {
	t.Helper()
	from := size()
	stack.WaitFor(t, "it counts", stack.Patience, func() bool { return size() > from })
}

// stands proves that nobody counts: for longer than several of its steps.
func stands(t *testing.T, size func() int64) {
	t.Helper()
	stood := size()
	require.Never(t, func() bool { return size() != stood }, 2*time.Second, 100*time.Millisecond, "a paused instance works")
}

// TestPartitionedNodePausesWhatWasReplaced proves A12 for a node that is cut off from Temporal and not from the stores: its
// workspace goes on elsewhere, what it still runs is paused as soon as it can be seen that it was replaced, and when it
// returns, that is stopped and saved. What was not replaced runs on there all the time.
func TestPartitionedNodePausesWhatWasReplaced(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{"process", detect.Docker} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			var path temporalPath
			s := stack.New(t, "any", kind, path.through(t, "node-1"))
			for _, name := range []string{"web", "bare"} {
				stack.Must(t, s, 0, nil, "start", name, "--node", "node-1")
				if kind == detect.Docker {
					id := stack.Show(t, s, name).ID
					t.Cleanup(func() { stack.RemoveContainers(t, id) })
				}
			}
			was, bare := stack.Show(t, s, "web"), stack.Show(t, s, "bare")
			_, content := stack.ContentDir(t, s, "web")
			old := engineOf(t, s, "node-1")
			_, bareContent := stack.ContentDir(t, s, "bare")
			count, bareCount := counts(t, s, "web", content), counts(t, s, "bare", bareContent)
			connected := make(chan stack.Result, 1)
			go func() {
				defer close(connected)
				connected <- stack.CLI(t, s, "exec", "web", "--", "sh", "-c", "echo begun | tee begun; sleep 3600")
			}()
			stack.WaitFor(t, "somebody is connected", stack.Patience, func() bool {
				_, err := os.Stat(filepath.Join(content, "begun"))
				return err == nil
			})
			stack.Must(t, s, 0, nil, "backup", "web") // bare never was, so that it waits for its node (A10)

			path.Cut()
			cut := time.Now()
			stack.WaitFor(t, "another instance is recorded", stack.Patience, func() bool {
				return len(s.StoredNames(t, "catalog/workspaces/"+was.ID+"/instances/")) > 1
			})
			recorded := time.Now()
			stack.WaitFor(t, "the one that was replaced is paused", stack.Patience, func() bool {
				return statuses(t, old, was.ID)["1"] == engine.StatusPaused
			})
			t.Logf("replaced %s after the cut, and paused %s later", recorded.Sub(cut).Round(time.Second), time.Since(recorded).Round(100*time.Millisecond))
			stands(t, count)
			now := stack.WaitState(t, s, "web", "it runs elsewhere", stack.Patience, func(state workspace.State) bool {
				return state.Phase == workspace.Running && state.Operation == nil && state.Instance.Token > was.Instance.Token
			})
			require.Equal(t, "node-2", now.Instance.Node)
			stack.Must(t, s, 0, nil, "exec", "web", "--", "test", "-e", "count")
			require.Equal(t, engine.StatusRunning, statuses(t, old, bare.ID)["1"], "nothing has taken its place")
			grows(t, bareCount)
			stood := count()

			path.Mend()
			saved := stack.WaitState(t, s, "web", "what it had is saved, and gone from there", stack.Patience, func(state workspace.State) bool {
				return len(state.Left) == 0 && len(state.Salvaged) == 1 && state.Operation == nil
			})
			require.NotContains(t, statuses(t, old, was.ID), "1", "what was replaced is gone")
			require.Equal(t, now.Instance.Token, saved.Instance.Token)
			requireSaved(t, s, "web", saved.Salvaged[0].Snapshot, stood)
			// Who was connected was told why nothing moved, beside what the command printed.
			told := <-connected
			require.Equal(t, "begun\n", told.Stdout)
			require.Contains(t, strings.Join(strings.Fields(told.Stderr), " "), "note: workspace web is paused: instance 2 has taken its place", told)
			stack.WaitState(t, s, "bare", "it is found where it was", stack.Patience, func(state workspace.State) bool {
				return state.Phase == workspace.Running && state.Operation == nil && state.Instance.Token == bare.Instance.Token
			})
			grows(t, bareCount)
			stack.Must(t, s, 0, []string{"is stopped"}, "stop", "web")
			stack.Must(t, s, 0, []string{"is stopped"}, "stop", "bare")
		})
	}
}

// requireSaved proves that a snapshot has all that was counted; what is stopped may count on until it has ended.
func requireSaved(t *testing.T, s *stack.Stack, name, snapshot string, counted int64) {
	t.Helper()
	tarred := filepath.Join(t.TempDir(), "recovered.tar")
	stack.Must(t, s, 0, nil, "download", name, "--snapshot", snapshot, "-o", tarred)
	dir := t.TempDir()
	output, err := exec.Command("tar", "-xpf", tarred, "-C", dir).CombinedOutput()
	require.NoError(t, err, string(output))
	info, err := os.Stat(filepath.Join(dir, "count"))
	require.NoError(t, err)
	require.GreaterOrEqual(t, info.Size(), counted, "the recovered snapshot has what was counted")
}

// TestNodeThatReachesNothingPauses proves the second rule of the guard: with neither Temporal nor a store for --pause-after,
// every instance is paused, an agent that is started again meanwhile leaves it so and lets no command into it, and all go on
// as they were when everything is back: nothing moved, nothing ended.
func TestNodeThatReachesNothingPauses(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{"process", detect.Docker} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			var unwatched atomic.Bool // a start does not wait for the lease, and so not for Temporal
			s := stack.New(t, "any", kind, func(options *devstack.StackOptions) {
				options.Nodes = []string{"node-1"}
				options.Storage.NoDirectory = true
				plain := options.Roles.Node
				options.Roles.Node = func(file devstack.StackFile, name, dir string) devstack.Command {
					command := plain(file, name, dir)
					command.Args = append(command.Args, "--pause-after", "10s")
					if unwatched.Load() {
						command.Ready = func(context.Context) error { return nil }
					}
					return command
				}
			})
			stack.Must(t, s, 0, nil, "start", "web")
			was := stack.Show(t, s, "web")
			if kind == detect.Docker {
				t.Cleanup(func() { stack.RemoveContainers(t, was.ID) })
			}
			_, content := stack.ContentDir(t, s, "web")
			count := counts(t, s, "web", content)
			containers := engineOf(t, s, "node-1")
			stack.Must(t, s, 0, nil, "backup", "web")

			// Temporal alone is nothing to pause for: a store says that no other has taken its place.
			require.NoError(t, s.Temporal().Pause())
			require.Never(t, func() bool { return statuses(t, containers, was.ID)["1"] != engine.StatusRunning }, 30*time.Second, time.Second)
			// The agent dies, and is started while nothing answers: it guards what runs before it has found Temporal.
			require.NoError(t, s.Node("node-1").Kill())
			require.NoError(t, s.Storage().Kill())
			unwatched.Store(true)
			require.NoError(t, s.Node("node-1").Start(t.Context()))
			stack.WaitFor(t, "it is paused", stack.Patience, func() bool { return statuses(t, containers, was.ID)["1"] == engine.StatusPaused })
			stands(t, count)
			// And once more, with what is paused by now.
			require.NoError(t, s.Node("node-1").Kill())
			require.NoError(t, s.Node("node-1").Start(t.Context()))
			stands(t, count)
			require.Equal(t, engine.StatusPaused, statuses(t, containers, was.ID)["1"])

			// The lease alone does not let it go on: whether it was replaced is a store's word.
			require.NoError(t, s.Temporal().Resume())
			stack.WaitFor(t, "why says that it is paused", stack.Patience, func() bool {
				r := stack.CLI(t, s, "why", "web")
				return strings.Contains(strings.Join(strings.Fields(r.Stdout), " "), "paused by node node-1: whether another instance has taken its place cannot be asked")
			})
			stack.Must(t, s, 4, []string{"is paused"}, "exec", "web", "--", "true")
			stack.Must(t, s, 0, []string{"web: paused by node node-1"}, "list")
			stack.Must(t, s, 0, []string{"instance 1 of web"}, "node", "show", "node-1")
			stands(t, count)

			require.NoError(t, s.Storage().Start(t.Context()))
			stack.WaitFor(t, "it goes on", stack.Patience, func() bool { return statuses(t, containers, was.ID)["1"] == engine.StatusRunning })
			grows(t, count)
			now := stack.WaitState(t, s, "web", "it runs as before", stack.Patience, func(state workspace.State) bool {
				return state.Phase == workspace.Running && state.Operation == nil && state.Look == nil
			})
			require.Equal(t, was.Instance.Token, now.Instance.Token)
			require.Equal(t, was.Instance.Container, now.Instance.Container)
			stack.Must(t, s, 0, nil, "exec", "web", "--", "test", "-e", "count")
			stack.Must(t, s, 0, []string{"is stopped"}, "stop", "web")
		})
	}
}
