package devstack_test

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"
	"time"

	"go.temporal.io/sdk/client"
	"go.temporal.io/sdk/converter"
	"go.temporal.io/sdk/worker"
	"go.temporal.io/sdk/workflow"
	"golang.org/x/sys/unix"

	"holdfast/devstack"
	"holdfast/keys"
	"holdfast/storage/gcsemulator"
	"holdfast/workspace"
)

// TestMain makes this test binary the program that the tests start as a child: a real process with a part to play.
func TestMain(m *testing.M) {
	play, found := parts[os.Getenv("DEVSTACK_TEST_PART")]
	if !found {
		os.Exit(m.Run())
	}
	if err := play(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "failed:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

var parts = map[string]func(args []string) error{
	"hold":     hold,
	"stubborn": stubborn,
	"crash":    crash,
	"parent":   parent,
	"dev":      dev,
	"storage":  playStorage,
	"control":  playControl,
	"node":     playNode,
}

func part(name string) []string { return append(os.Environ(), "DEVSTACK_TEST_PART="+name) }

// hold takes the lock on a file, says so, and keeps it until SIGTERM; SIGHUP makes it say that it lives.
func hold(args []string) error {
	file, err := os.OpenFile(args[0], os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	if err := unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return err
	}
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGHUP)
	fmt.Println("holding")
	time.AfterFunc(15*time.Minute, func() { os.Exit(1) }) // whatever becomes of the test
	for s := range signals {
		if s == syscall.SIGTERM {
			break
		}
		fmt.Println("alive")
	}
	fmt.Println("released")
	runtime.KeepAlive(file)
	return nil
}

// stubborn does not end on SIGTERM.
func stubborn([]string) error {
	signal.Ignore(syscall.SIGTERM)
	fmt.Println("holding")
	select {}
}

func crash([]string) error {
	fmt.Println("all is well")
	return fmt.Errorf("the cause")
}

// parent starts a holder through Child and waits to be killed.
func parent(args []string) error {
	child := &devstack.Child{Name: "holder", Path: os.Args[0], Args: args, Env: part("hold"), Log: os.Stdout}
	if err := child.Start(); err != nil {
		return err
	}
	return child.Wait(context.Background())
}

// dev runs a whole stack and waits to be killed.
func dev(args []string) error {
	options := stackOptions(args[0])
	options.Binary = os.Args[0]
	stack, err := devstack.StartStack(context.Background(), options)
	if err != nil {
		return err
	}
	fmt.Println("up")
	<-stack.Temporal().Done()
	return nil
}

// stackOptions are a stack whose roles this test binary plays.
func stackOptions(dir string) devstack.StackOptions {
	command := func(name string, args ...string) devstack.Command {
		return devstack.Command{Args: args, Env: []string{"DEVSTACK_TEST_PART=" + name}}
	}
	return devstack.StackOptions{
		DataDir:  dir,
		Temporal: devstack.TemporalOptions{Fast: true},
		Roles: devstack.Roles{
			Storage: func(_ devstack.StackFile, dir, listen, bucket string) devstack.Command {
				return command("storage", dir, listen, bucket)
			},
			Control: func(devstack.StackFile) devstack.Command { return command("control") },
			Node: func(_ devstack.StackFile, node, dir string) devstack.Command {
				return command("node", node, dir)
			},
		},
	}
}

func playStorage(args []string) error {
	emulator, err := gcsemulator.New(gcsemulator.Options{Dir: args[0], Buckets: []string{args[2]}, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		return err
	}
	server, err := emulator.Serve(args[1], nil)
	if err != nil {
		return err
	}
	waitForEnd()
	return server.Close()
}

func waitForEnd() {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGTERM)
	<-signals
}

// dial connects as the real roles do: from the stack's description in the directory that the environment names.
func dial() (client.Client, error) {
	file, err := devstack.LoadStack(os.Getenv("HOLDFAST_STATE_DIR"))
	if err != nil {
		return nil, err
	}
	if store := os.Getenv("HOLDFAST_STORE"); store != "" {
		return nil, fmt.Errorf("HOLDFAST_STORE is %q", store)
	}
	if address := os.Getenv("TEMPORAL_ADDRESS"); address != file.TemporalAddress {
		return nil, fmt.Errorf("TEMPORAL_ADDRESS is %q", address)
	}
	key, err := keys.LoadCodecKey(file.CodecKey)
	if err != nil {
		return nil, err
	}
	codec, err := keys.NewCodec(key)
	if err != nil {
		return nil, err
	}
	var data converter.DataConverter = keys.DataConverter(codec)
	return client.Dial(client.Options{HostPort: file.TemporalAddress, Namespace: file.Namespace, DataConverter: data})
}

// nodeWorkflow stands in for the node's workflow: it tells what was announced last.
func nodeWorkflow(ctx workflow.Context) error {
	var state workspace.NodeState
	if err := workflow.SetQueryHandler(ctx, workspace.QueryState, func() (workspace.NodeState, error) { return state, nil }); err != nil {
		return err
	}
	for {
		workflow.GetSignalChannel(ctx, "announce").Receive(ctx, &state)
	}
}

func playControl([]string) error {
	c, err := dial()
	if err != nil {
		return err
	}
	defer c.Close()
	w := worker.New(c, workspace.ControlQueue, worker.Options{})
	w.RegisterWorkflowWithOptions(nodeWorkflow, workflow.RegisterOptions{Name: workspace.NodeWorkflow})
	if err := w.Start(); err != nil {
		return err
	}
	waitForEnd()
	w.Stop()
	return nil
}

func playNode(args []string) error {
	c, err := dial()
	if err != nil {
		return err
	}
	defer c.Close()
	if err := os.WriteFile(filepath.Join(args[1], "was-here"), nil, 0o600); err != nil {
		return err
	}
	state := workspace.NodeState{
		Info:  workspace.NodeInfo{Name: args[0], Incarnation: fmt.Sprint(time.Now().UnixNano())},
		Phase: workspace.NodeReady,
	}
	_, err = c.SignalWithStartWorkflow(context.Background(), workspace.NodeWorkflowID(args[0]), "announce", state,
		client.StartWorkflowOptions{TaskQueue: workspace.ControlQueue}, workspace.NodeWorkflow)
	if err != nil {
		return err
	}
	waitForEnd()
	return nil
}
