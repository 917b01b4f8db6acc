// Package crowd runs many nodes on one machine: real agents with real content, of which only the instances are pretended (package
// pretend), some in one process, each behind a connection of its own that can be cut; with a real Temporal, a control worker and a
// store in a directory. Its scenes lose many of them at once, or keep all of them from hearing anything, and look at what becomes of a
// thousand workspaces and of Temporal's limits meanwhile.
package crowd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"go.temporal.io/sdk/client"
	"golang.org/x/sync/errgroup"

	"holdfast/testsuite/crowd/pretend"
	"holdfast/worker"
)

// Role is the first argument of a program that is a child of a crowd: it hands the others to RunRole and ends with what that returns.
const Role = "crowd-role"

// role is what a child is told, as JSON.
type role struct {
	Namespace string   `json:"namespace"`
	CodecKey  string   `json:"codec_key"`
	Store     string   `json:"store"`
	Control   *control `json:"control,omitempty"`
	Nodes     []node   `json:"nodes,omitempty"`
}

type control struct {
	Temporal  string `json:"temporal"`
	MasterKey string `json:"master_key"`
}

// node is an agent of a machine that has several.
type node struct {
	Name     string `json:"name"`
	Dir      string `json:"dir"`
	Temporal string `json:"temporal"` // its own way there
}

// stopGrace is short: what a test stops has nothing under way that it waits for.
const stopGrace = 5 * time.Second

// RunRole is the main function of a crowd's child. It returns the exit code.
func RunRole(arguments []string) int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	if err := runRole(ctx, arguments); err != nil {
		fmt.Fprintln(os.Stderr, "crowd:", err)
		return 1
	}
	return 0
}

func runRole(ctx context.Context, arguments []string) error {
	if len(arguments) != 1 {
		return fmt.Errorf("want one argument, the role, and not %d", len(arguments))
	}
	var r role
	if err := json.Unmarshal([]byte(arguments[0]), &r); err != nil {
		return fmt.Errorf("reading the role: %w", err)
	}
	if r.Control != nil {
		return worker.RunControl(ctx, worker.ControlConfig{Config: r.config(r.Control.Temporal), MasterKey: r.Control.MasterKey})
	}
	group, ctx := errgroup.WithContext(ctx)
	for _, n := range r.Nodes {
		group.Go(func() error { return r.runNode(ctx, n) })
	}
	return group.Wait()
}

func (r role) config(temporal string) worker.Config {
	return worker.Config{
		Temporal: client.Options{HostPort: temporal, Namespace: r.Namespace}, CodecKey: r.CodecKey, Stores: []string{r.Store}, StopGrace: stopGrace,
		Logger: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn})),
	}
}

// runNode runs one agent on a machine of its own, which is switched on with it.
func (r role) runNode(ctx context.Context, n node) (err error) {
	if err := os.MkdirAll(n.Dir, 0o700); err != nil {
		return fmt.Errorf("making the directory of node %s: %w", n.Name, err)
	}
	machine, err := pretend.New(journalOf(n.Dir))
	if err != nil {
		return fmt.Errorf("node %s: %w", n.Name, err)
	}
	defer func() { err = errors.Join(err, machine.Close()) }()
	return worker.RunNode(ctx, worker.NodeConfig{
		Config: r.config(n.Temporal), Name: n.Name, DataDir: n.Dir, Engine: machine.Engine(), Listen: "127.0.0.1:0", Version: "crowd", Reserve: 1,
	})
}

func journalOf(dir string) string { return filepath.Join(dir, "machine.journal") }
