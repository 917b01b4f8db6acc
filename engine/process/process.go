// Package process is the engine for a machine without Docker: an instance is a group of this machine's own processes that
// a supervisor of their own holds, so that they outlive the agent and can be ended completely.
//
// There are three processes to an instance. The supervisor (our own program, executed again) is in the machine's
// namespaces: it pumps the output, records the start and the exit, and kills what is left. The init is the first process
// inside: it starts the main process and the execs, and reaps. As root it is pid 1 of new PID, mount, IPC and UTS
// namespaces in which the content is at /workspace; without root a user namespace gives the same where the kernel
// allows it; else the processes run beside all others, with the content's own path in HOLDFAST_WORKSPACE.
//
// This engine separates workspaces from each other's mistakes, not from malice: the processes run as the agent's user
// and see the machine's files. It is for a developer's machine, for demonstrations and for tests.
//
// An agent that is a systemd service needs KillMode=process, or systemd ends the workspaces together with the agent.
package process

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"

	"holdfast/engine"
)

// Options of New. Only Root has no default.
type Options struct {
	// Root is the directory, made with mode 0700, that holds the instances' descriptions and output.
	Root string
	// Supervisor is the argument prefix with which this program runs Supervise; the default is this program with
	// "engine-supervise".
	Supervisor []string
	// Logger gets what is no error of a call; the default is slog.Default().
	Logger *slog.Logger
	// LogBytes bounds the output kept of each instance; the default is 16 MiB, the least 64 KiB.
	LogBytes int64
	// CgroupParent is a writable cgroup v2 directory (as systemd's Delegate=yes gives) to make the instances' cgroups in;
	// the default is the agent's own cgroup.
	CgroupParent string
	// Hide lists directories that instances in namespaces see empty; Root is always one.
	Hide []string
	// NoNamespaces and NoCgroups forgo what the machine could do, for one where it does it wrong.
	NoNamespaces, NoCgroups bool
}

func (o *Options) applyDefaults() error {
	if o.Root == "" {
		return fmt.Errorf("%w: the process engine needs a root directory", engine.ErrInvalid)
	}
	root, err := filepath.Abs(o.Root)
	if err != nil {
		return fmt.Errorf("resolving the engine's root: %w", err)
	}
	o.Root = root
	if len(o.Supervisor) == 0 {
		own, err := os.Executable()
		if err != nil {
			return fmt.Errorf("finding the own program: %w", err)
		}
		o.Supervisor = []string{own, "engine-supervise"}
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	if o.LogBytes <= 0 {
		o.LogBytes = 16 << 20
	}
	o.LogBytes = max(o.LogBytes, 64<<10)
	return nil
}

// Engine runs instances as processes of this machine. Make one with New.
type Engine struct {
	options Options
}

var _ engine.Engine = (*Engine)(nil)

// New makes the engine and its root directory. Instances that an earlier engine with this root made are found again.
func New(options Options) (*Engine, error) {
	if err := options.applyDefaults(); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(options.Root, 0o700); err != nil {
		return nil, fmt.Errorf("making the engine's root: %w", err)
	}
	if err := unix.Access(options.Root, unix.W_OK|unix.X_OK); err != nil {
		return nil, fmt.Errorf("the engine's root %s cannot be written: %w", options.Root, err)
	}
	// Links resolved, because the instances' private root hides this directory by its real path.
	root, err := filepath.EvalSymlinks(options.Root)
	if err != nil {
		return nil, fmt.Errorf("resolving the engine's root: %w", err)
	}
	options.Root = root
	if err := removeRemains(root); err != nil {
		options.Logger.Warn("what is left of removed instances stays", "error", err)
	}
	return &Engine{options: options}, nil
}

// Info says what this machine can do for instances.
func (e *Engine) Info(ctx context.Context) (engine.Info, error) {
	if err := ctx.Err(); err != nil {
		return engine.Info{}, err
	}
	if _, err := os.Stat(e.options.Root); err != nil {
		return engine.Info{}, fmt.Errorf("%w: %w", engine.ErrUnavailable, err)
	}
	info := engine.Info{Kind: "process", Version: runtime.Version(), Root: e.options.Root}
	info.Notes = append(info.Notes, "processes run as this machine's user and see its files: no isolation against malice")
	switch {
	case e.options.NoNamespaces:
		info.Notes = append(info.Notes, "namespaces are switched off: the content is at its own path, in "+engine.WorkspaceVariable)
	case os.Geteuid() != 0:
		info.Notes = append(info.Notes, "the agent is not root: /workspace is there only if the kernel lets users make namespaces, else the path is in "+engine.WorkspaceVariable)
	}
	set, notes := cgroupSet(nil), []string{"limits on memory, CPU and processes are not enforced: cgroups are switched off"}
	if !e.options.NoCgroups {
		id, err := randomID()
		if err != nil {
			return engine.Info{}, err
		}
		set, notes = makeCgroups("holdfast-probe-"+id, e.options.CgroupParent, limits{memory: 1 << 30, cpus: 1, pids: engine.DefaultPIDs})
		set.remove()
	}
	info.Notes = append(info.Notes, notes...)
	if len(set) == 0 {
		info.Notes = append(info.Notes, "no cgroups: pausing uses SIGSTOP, ending uses process ancestry")
	}
	return info, nil
}

// hostImage is the one image of this engine: the machine itself.
const hostImage = "host"

// PrepareImage knows only this machine.
func (e *Engine) PrepareImage(ctx context.Context, reference string, progress func(string)) (engine.Image, error) {
	if err := ctx.Err(); err != nil {
		return engine.Image{}, err
	}
	switch reference {
	case "", hostImage:
		return engine.Image{Reference: hostImage, ID: hostImage, Made: true}, nil
	}
	return engine.Image{}, fmt.Errorf("%w: %q: the process engine runs this machine's own programs; use --engine docker for images", engine.ErrImageNotFound, reference)
}

// Close waits for nothing and ends nothing: instances go on.
func (e *Engine) Close() error { return nil }

// List reads all instances.
func (e *Engine) List(ctx context.Context, labels map[string]string) ([]engine.Instance, error) {
	entries, err := os.ReadDir(e.options.Root)
	if err != nil {
		return nil, fmt.Errorf("listing instances: %w", err)
	}
	var list []engine.Instance
	var failed error
	for _, entry := range entries {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if !entry.IsDir() || strings.HasPrefix(entry.Name(), ".") {
			continue
		}
		found, err := loadDir(filepath.Join(e.options.Root, entry.Name()))
		if errors.Is(err, engine.ErrNotFound) {
			continue // being removed
		}
		if err != nil {
			// One damaged description must not hide the others, nor be silent.
			failed = errors.Join(failed, err)
			continue
		}
		if engine.MatchLabels(found.record.Spec.Labels, labels) {
			list = append(list, found.describe())
		}
	}
	return list, failed
}

// Inspect describes one instance.
func (e *Engine) Inspect(ctx context.Context, id string) (engine.Instance, error) {
	if err := ctx.Err(); err != nil {
		return engine.Instance{}, err
	}
	found, err := e.load(id)
	if err != nil {
		return engine.Instance{}, err
	}
	return found.describe(), nil
}
