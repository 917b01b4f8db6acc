package testsuite_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"holdfast/devstack"
	"holdfast/devstack/devtest"
	"holdfast/engine/process"
	"holdfast/guard"
	"holdfast/storage/gcsemulator"
	"holdfast/worker"
	"holdfast/workspace"
)

// patience is how long something may take that has to happen by itself. A machine that is several times slower than usual
// needs less; who waits so long waits in vain.
const patience = 5 * time.Minute

// campaign says whether the long forms of the tests run (HOLDFAST_CAMPAIGN=1).
func campaign() bool { return os.Getenv("HOLDFAST_CAMPAIGN") != "" }

// stack is the whole product on this machine, in a temporary directory.
type stack struct {
	*devstack.Stack
	dir string
	// run runs the command; nil is as any program. A stack whose nodes are elsewhere has it run where they are reached.
	run func(*exec.Cmd) error
	// dirs are the directories of nodes that are not the stack's own.
	dirs map[string]string
}

// NodeDir is where a node keeps everything.
func (s *stack) NodeDir(name string) string {
	if dir, other := s.dirs[name]; other {
		return dir
	}
	return s.Stack.NodeDir(name)
}

// bringUp keeps stacks that start at the same time from finding the same free ports.
var bringUp sync.Mutex

// newStack brings up two nodes, a control worker, two stores and Temporal, all children of the built command. When the
// test ends everything is stopped, with the instances that are still there.
func newStack(t *testing.T, policy, engine string, adjust ...func(*devstack.StackOptions)) *stack {
	t.Helper()
	if engine == "docker" && exec.Command("docker", "version").Run() != nil {
		devtest.Missing(t, "docker", errors.New("the engine does not answer"))
	}
	takePlace(t)
	options := devstack.StackOptions{
		Binary: binary(t), DataDir: filepath.Join(t.TempDir(), "state"), Policy: policy, Engine: engine,
		Roles: devstack.ProductRoles(), NoMetrics: true,
		Temporal:  devstack.TemporalOptions{Binary: devtest.Binary(t), Headless: true, Fast: true},
		NoRestart: true, // what a test kills stays away until the test starts it
	}
	for _, change := range adjust {
		change(&options)
	}
	bringUp.Lock()
	began := time.Now()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	running, err := devstack.StartStack(ctx, options)
	bringUp.Unlock()
	if err != nil {
		logs, _ := filepath.Glob(filepath.Join(options.DataDir, "logs", "*.log"))
		for _, log := range logs {
			t.Logf("%s:\n%s", filepath.Base(log), tail(log, 40))
		}
		t.Fatalf("starting the stack: %v", err)
	}
	s := &stack{Stack: running, dir: options.DataDir}
	t.Cleanup(func() { s.end(t) })
	file := running.File()
	recipient, err := worker.ControlRecipient(ctx, worker.Config{Stores: file.Stores, Policy: file.Policy, GCSEndpoint: file.GCSEndpoint, DNS: file.DNS})
	require.NoError(t, err)
	require.NoError(t, running.SetControlRecipient(recipient))
	t.Logf("the stack is up after %s", time.Since(began).Round(time.Millisecond))
	return s
}

// end stops everything. The engine's root is the test's own directory, so that every instance in it is the test's.
func (s *stack) end(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if t.Failed() {
		logs, _ := filepath.Glob(filepath.Join(s.LogDir(), "*.log"))
		for _, log := range logs {
			if name := filepath.Base(log); name != "temporal.log" && name != "storage.log" {
				t.Logf("%s:\n%s", name, tail(log, 30))
			}
		}
	}
	if err := s.Stop(ctx); err != nil {
		t.Errorf("stopping the stack: %v", err)
	}
	for _, node := range s.Nodes() {
		// One whose agent was killed for good is still there, whatever it holds.
		if err := guard.Stop(ctx, worker.GuardDir(s.NodeDir(node.Name()))); err != nil {
			t.Errorf("stopping the guard of %s: %v", node.Name(), err)
		}
	}
	if s.File().Engine != "process" {
		return
	}
	for _, node := range s.Nodes() {
		endInstances(t, s.NodeDir(node.Name()))
	}
}

// endInstances stops and removes all that the process engine runs in a node's directory.
func endInstances(t *testing.T, dir string) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	containers, err := process.New(process.Options{Root: filepath.Join(dir, "engine"), Supervisor: []string{binary(t), "engine-supervise"}, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Errorf("opening the engine in %s: %v", dir, err)
		return
	}
	instances, err := containers.List(ctx, nil)
	if err != nil {
		t.Errorf("listing the instances in %s: %v", dir, err)
	}
	for _, instance := range instances {
		if instance.ID == "" {
			t.Error("an instance without an id")
			continue
		}
		if err := errors.Join(containers.Stop(ctx, instance.ID, time.Second), containers.Remove(ctx, instance.ID)); err != nil {
			t.Errorf("removing instance %s: %v", instance.Name, err)
		}
	}
	if err := containers.Close(); err != nil {
		t.Error(err)
	}
}

// tail is the end of a file.
func tail(path string, lines int) string {
	content, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	all := strings.Split(strings.TrimSpace(string(content)), "\n")
	return strings.Join(all[max(len(all)-lines, 0):], "\n")
}

// result is how a command ended.
type result struct {
	code   int
	stdout string
	stderr string
	took   time.Duration
}

func (r result) String() string {
	return fmt.Sprintf("exit code %d after %s\n%s%s", r.code, r.took.Round(time.Millisecond), r.stdout, r.stderr)
}

// cli runs the command against the stack, as a person in another terminal does.
func cli(t *testing.T, s *stack, args ...string) result {
	t.Helper()
	var stdout bytes.Buffer
	r := cliTo(t, s, &stdout, args...)
	r.stdout = stdout.String()
	return r
}

// cliTo is cli with the standard output going elsewhere.
func cliTo(t *testing.T, s *stack, stdout io.Writer, args ...string) result {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	command := exec.CommandContext(ctx, binary(t), args...)
	command.Dir = s.dir
	// What a test does not ask for does not happen: no timer snapshots its workspaces unless it says so.
	command.Env = []string{"HOME=" + s.dir, "PATH=" + os.Getenv("PATH"), "HOLDFAST_STATE_DIR=" + s.dir, "HOLDFAST_OWNER=tester", "HOLDFAST_SNAPSHOT_EVERY=off"}
	var stderr bytes.Buffer
	command.Stdout, command.Stderr = stdout, &stderr
	began := time.Now()
	run := s.run
	if run == nil {
		run = (*exec.Cmd).Run
	}
	err := run(command)
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatalf("holdfast %s: %v", strings.Join(args, " "), err)
	}
	if command.ProcessState.ExitCode() < 0 {
		t.Fatalf("holdfast %s did not end: %s", strings.Join(args, " "), stderr.String())
	}
	took := time.Since(began)
	if took > 10*time.Second {
		t.Logf("holdfast %s took %s", strings.Join(args, " "), took.Round(time.Second))
	}
	return result{code: command.ProcessState.ExitCode(), stderr: stderr.String(), took: took}
}

// must runs a command that has to end with a code and to say some words on either output.
func must(t *testing.T, s *stack, code int, says []string, args ...string) result {
	t.Helper()
	r := cli(t, s, args...)
	if r.code != code {
		t.Fatalf("holdfast %s: want exit code %d: %s", strings.Join(args, " "), code, r)
	}
	// Lines for people are wrapped where they happen to end.
	text := strings.Join(strings.Fields(r.stdout+" "+r.stderr), " ")
	for _, word := range says {
		if !strings.Contains(text, word) {
			t.Errorf("holdfast %s: %q is missing in %s", strings.Join(args, " "), word, r)
		}
	}
	return r
}

// show is the workspace as `show -o json` gives it.
func show(t *testing.T, s *stack, name string) workspace.State {
	t.Helper()
	var state workspace.State
	r := must(t, s, 0, nil, "show", name, "-o", "json")
	require.NoError(t, json.Unmarshal([]byte(r.stdout), &state), r.stdout)
	return state
}

// place is where a workspace's content is on this machine, from its instance or the content that was kept; empty
// when no node holds any.
func (s *stack) place(state workspace.State) (node, dir string) {
	var token uint64
	switch {
	case state.Instance != nil:
		node, token = state.Instance.Node, state.Instance.Token
	case state.Kept != nil:
		node, token = state.Kept.Node, state.Kept.Token
	default:
		return "", ""
	}
	return node, filepath.Join(s.NodeDir(node), "workspaces", workspace.InstanceName(state.ID, token))
}

// contentDir is the directory that the workspace's instance sees as /workspace.
func contentDir(t *testing.T, s *stack, name string) (node, dir string) {
	t.Helper()
	node, dir = s.place(show(t, s, name))
	require.NotEmpty(t, node, "no node holds content of %s", name)
	return node, filepath.Join(dir, "content")
}

// untilNextLook is how long the next look at a condition waits after one that began at a time. A look is a process of the
// command, most often: tests that look all the time would leave the processors to nobody else.
func untilNextLook(began time.Time) time.Duration {
	return min(max(4*time.Since(began), 50*time.Millisecond), time.Second)
}

// waitFor waits until a condition holds; it says what is missing when it never does.
func waitFor(t *testing.T, what string, atMost time.Duration, condition func() bool) {
	t.Helper()
	deadline := time.Now().Add(atMost)
	for {
		began := time.Now()
		if condition() {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("still not after %s: %s", atMost, what)
		}
		time.Sleep(untilNextLook(began))
	}
}

// waitState waits until the workspace's state satisfies a condition.
func waitState(t *testing.T, s *stack, name, what string, atMost time.Duration, condition func(workspace.State) bool) workspace.State {
	t.Helper()
	var state workspace.State
	deadline := time.Now().Add(atMost)
	for {
		began := time.Now()
		if r := cli(t, s, "show", name, "-o", "json"); r.code == 0 {
			state = workspace.State{}
			require.NoError(t, json.Unmarshal([]byte(r.stdout), &state))
			if condition(state) {
				return state
			}
		}
		if time.Now().After(deadline) {
			text, _ := json.MarshalIndent(state, "", " ")
			t.Fatalf("%s still not after %s: %s: %s", name, atMost, what, text)
		}
		time.Sleep(untilNextLook(began))
	}
}

// waitSays waits until a command says some words.
func waitSays(t *testing.T, s *stack, says []string, args ...string) result {
	t.Helper()
	var r result
	waitFor(t, fmt.Sprintf("%v says %q", args, says), patience, func() bool {
		r = cli(t, s, args...)
		text := strings.Join(strings.Fields(r.stdout+" "+r.stderr), " ")
		return r.code == 0 && !slices.ContainsFunc(says, func(word string) bool { return !strings.Contains(text, word) })
	})
	return r
}

// manifest takes a copy of a whole tree, of everything that a file can have, for a later comparison.
func manifest(t *testing.T, dir string) string {
	t.Helper()
	if _, err := exec.LookPath("rsync"); err != nil {
		devtest.Missing(t, "rsync", err)
	}
	copied := filepath.Join(t.TempDir(), "manifest")
	output, err := exec.Command("rsync", "-aHAXS", dir+"/", copied+"/").CombinedOutput()
	require.NoError(t, err, string(output))
	// The copy itself has to be what it was taken of, or nothing that is compared with it means anything.
	requireSame(t, dir, copied)
	return copied
}

// differences are those between two trees as rsync itemizes them: content by checksum, modes, owners, times, links,
// ACLs and extended attributes.
func differences(t *testing.T, want, got string) string {
	t.Helper()
	if _, err := exec.LookPath("rsync"); err != nil {
		devtest.Missing(t, "rsync", err)
	}
	output, err := exec.Command("rsync", "-aHAXn", "--checksum", "--itemize-changes", "--delete", want+"/", got+"/").CombinedOutput()
	require.NoError(t, err, string(output))
	return string(output)
}

func requireSame(t *testing.T, want, got string) {
	t.Helper()
	require.Empty(t, differences(t, want, got), "the trees differ")
}

// stats is what the object store has counted.
func (s *stack) stats(t *testing.T, prefix string) gcsemulator.Stats {
	t.Helper()
	var stats gcsemulator.Stats
	response, err := http.Get(s.StorageURL() + "/_stats?prefix=" + prefix)
	require.NoError(t, err)
	defer response.Body.Close()
	require.Equal(t, http.StatusOK, response.StatusCode)
	require.NoError(t, json.NewDecoder(response.Body).Decode(&stats))
	return stats
}

// throttle sets the object store's speed for uploads; 0 is none.
func (s *stack) throttle(t *testing.T, bytesPerSecond int64) {
	t.Helper()
	response, err := http.Post(fmt.Sprintf("%s/_throttle?bytes_per_second=%d", s.StorageURL(), bytesPerSecond), "", nil)
	require.NoError(t, err)
	require.NoError(t, response.Body.Close())
	require.Equal(t, http.StatusOK, response.StatusCode)
}

// repository is the directory of the workspace's repository in the directory store.
func (s *stack) repository(id string) string {
	return filepath.Join(s.dir, "store", filepath.FromSlash(workspace.RepositoryPrefix(id)))
}
