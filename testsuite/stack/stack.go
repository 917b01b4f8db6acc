// Package stack is the whole product as its tests run it: a stack of its processes on this machine, its command, and what can be seen of
// both from outside. The packages of tests share it, so that none of them takes too long by itself.
package stack

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"holdfast/devstack"
	"holdfast/devstack/devtest"
	"holdfast/engine/process"
	"holdfast/guard"
	"holdfast/worker"
)

// Patience is how long something may take that has to happen by itself. A machine that is several times slower than usual
// needs less; who waits so long waits in vain.
const Patience = 5 * time.Minute

// Campaign says whether the long forms of the tests run (HOLDFAST_CAMPAIGN=1).
func Campaign() bool { return os.Getenv("HOLDFAST_CAMPAIGN") != "" }

// Stack is the whole product on this machine, in a temporary directory.
type Stack struct {
	*devstack.Stack
	Dir string // where it keeps everything
	// RunWith runs the command; nil is as any program. A stack whose nodes are elsewhere has it run where they are reached.
	RunWith func(*exec.Cmd) error
	// Dirs are the directories of nodes that are not the stack's own.
	Dirs map[string]string
}

// NodeDir is where a node keeps everything.
func (s *Stack) NodeDir(name string) string {
	if dir, other := s.Dirs[name]; other {
		return dir
	}
	return s.Stack.NodeDir(name)
}

// bringUp keeps stacks that start at the same time, of any package's tests, from finding the same free ports.
func bringUp(ctx context.Context, options devstack.StackOptions) (*devstack.Stack, error) {
	lock, err := os.OpenFile(filepath.Join(os.TempDir(), fmt.Sprintf("holdfast-testsuite-%d.lock", os.Getuid())), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	defer lock.Close()
	for {
		if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err == nil {
			return devstack.StartStack(ctx, options)
		} else if !errors.Is(err, unix.EINTR) {
			return nil, fmt.Errorf("waiting for another stack to come up: %w", err)
		}
	}
}

// New brings up two nodes, a control worker, two stores and Temporal, all children of the built command. When the
// test ends everything is stopped, with the instances that are still there.
func New(t *testing.T, policy, engine string, adjust ...func(*devstack.StackOptions)) *Stack {
	t.Helper()
	if engine == "docker" && exec.Command("docker", "version").Run() != nil {
		devtest.Missing(t, "docker", errors.New("the engine does not answer"))
	}
	takePlace(t)
	options := devstack.StackOptions{
		Binary: Binary(t), DataDir: filepath.Join(t.TempDir(), "state"), Policy: policy, Engine: engine,
		Roles: devstack.ProductRoles(), NoMetrics: true,
		Temporal:  devstack.TemporalOptions{Binary: devtest.Binary(t), Headless: true, Fast: true},
		NoRestart: true, // what a test kills stays away until the test starts it
	}
	for _, change := range adjust {
		change(&options)
	}
	began := time.Now()
	ctx, cancel := context.WithTimeout(context.Background(), Patience)
	defer cancel()
	running, err := bringUp(ctx, options)
	if err != nil {
		logs, _ := filepath.Glob(filepath.Join(options.DataDir, "logs", "*.log"))
		for _, log := range logs {
			t.Logf("%s:\n%s", filepath.Base(log), Tail(log, 40))
		}
		t.Fatalf("starting the stack: %v", err)
	}
	s := &Stack{Stack: running, Dir: options.DataDir}
	t.Cleanup(func() { s.end(t) })
	file := running.File()
	recipient, err := worker.ControlRecipient(ctx, worker.Config{Stores: file.Stores, Policy: file.Policy, GCSEndpoint: file.GCSEndpoint, DNS: file.DNS})
	require.NoError(t, err)
	require.NoError(t, running.SetControlRecipient(recipient))
	t.Logf("the stack is up after %s", time.Since(began).Round(time.Millisecond))
	return s
}

// end stops everything. The engine's root is the test's own directory, so that every instance in it is the test's.
func (s *Stack) end(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), Patience)
	defer cancel()
	if t.Failed() {
		logs, _ := filepath.Glob(filepath.Join(s.LogDir(), "*.log"))
		for _, log := range logs {
			if name := filepath.Base(log); name != "temporal.log" && name != "storage.log" {
				t.Logf("%s:\n%s", name, Tail(log, 30))
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
		EndInstances(t, s.NodeDir(node.Name()))
	}
}

// EndInstances stops and removes all that the process engine runs in a node's directory.
func EndInstances(t *testing.T, dir string) {
	ctx, cancel := context.WithTimeout(context.Background(), Patience)
	defer cancel()
	containers, err := process.New(process.Options{Root: filepath.Join(dir, "engine"), Supervisor: []string{Binary(t), "engine-supervise"}, Logger: slog.New(slog.DiscardHandler)})
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

// Tail is the end of a file.
func Tail(path string, lines int) string {
	content, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	all := strings.Split(strings.TrimSpace(string(content)), "\n")
	return strings.Join(all[max(len(all)-lines, 0):], "\n")
}
