// Package engine runs workspaces: containers under Docker (engine/docker), or supervised process groups on a machine
// without it (engine/process). Both pass the conformance suite in engine/enginetest.
package engine

import (
	"context"
	"errors"
	"io"
	"time"
)

// Labels that every instance carries, so that an agent finds what is its own after a restart.
const (
	LabelWorkspace = "holdfast.workspace" // the immutable workspace id
	LabelToken     = "holdfast.token"     // the instance's fencing token, decimal
	LabelNode      = "holdfast.node"      // the node's name
)

// LabelExclusive, with the value Exclusive, is carried by an instance that must be paused when its node has had no lease for a
// while, whatever that node still reaches and whatever becomes of its agent (docs/decisions/0018-guard-process.md).
const (
	LabelExclusive = "holdfast.exclusive"
	Exclusive      = "yes"
)

// WhereItStands is the grace with which Stop ends an instance that must not do another thing, not even at its end: what it works on
// may be another's by now.
const WhereItStands time.Duration = -1

// Info says what an engine is, for doctor and for node registration.
type Info struct {
	Kind    string // "docker" or "process"
	Version string
	Root    string   // where the engine keeps its own data, "" when it has none
	Details string   // what else an operator asks first, such as its API version and storage; "" when there is nothing
	Notes   []string // what a person should know: limits that are not enforced, isolation that is not there
}

// Image is a prepared image.
type Image struct {
	Reference string // what Create is given
	ID        string // content identity where the engine has one
	Made      bool   // it was made from this machine's own programs because none was given and none could be pulled
	Cached    bool   // the registry could not be asked; the copy that was here is used
}

// Spec describes an instance to be created.
type Spec struct {
	Name        string // unique on the engine: holdfast-<workspace id>-<token>
	Image       string // Image.Reference
	Command     []string
	Environment map[string]string // values are secret: never in logs or errors
	Labels      map[string]string
	// ContentDir is the absolute host directory that the instance sees as /workspace. It exists.
	ContentDir string
	// MemoryBytes, CPUs and PIDs are limits; 0 is the engine's default (no memory or CPU limit, 4096 pids).
	MemoryBytes int64
	CPUs        float64
	PIDs        int64
	Hostname    string
}

// Status is the state of an instance.
type Status string

// The states of an instance.
const (
	StatusCreated Status = "created"
	StatusRunning Status = "running"
	StatusPaused  Status = "paused"
	StatusExited  Status = "exited"
)

// Instance is what Inspect and List report.
type Instance struct {
	ID         string
	Name       string
	Image      string
	Status     Status
	ExitCode   int // meaningful when exited
	OOMKilled  bool
	StartedAt  time.Time
	FinishedAt time.Time
	Labels     map[string]string
}

// Size is a terminal's size in characters.
type Size struct{ Columns, Rows uint16 }

// ExecSpec is a command to run inside a running instance, in /workspace.
type ExecSpec struct {
	Command     []string
	Environment map[string]string
	TTY         bool // stdout and stderr arrive together on Stdout
	Stdin       io.Reader
	Stdout      io.Writer
	Stderr      io.Writer
	Resize      <-chan Size // may be nil
}

// Usage is what an instance uses now.
type Usage struct {
	CPUSeconds  float64
	MemoryBytes int64
	PIDs        int64
}

// Work is what the processes of an instance have done since it was started.
type Work struct {
	// CPUSeconds is the time that they had of one processor.
	CPUSeconds float64
	// IOBytes is what they read and wrote, as far as the engine counts it: everything that they pass through files, pipes
	// and terminals (process), or block devices and the network without the loopback (docker).
	IOBytes int64
}

// LogOptions selects output of an instance's main process.
type LogOptions struct {
	Follow bool
	Tail   int // lines from the end; 0 is all
}

// Engine runs instances. All methods are safe for concurrent use, honour their context, and can be repeated: what was
// done already is recognised and is a success.
type Engine interface {
	// Info asks the engine who it is; an error means that it cannot be reached.
	Info(ctx context.Context) (Info, error)

	// PrepareImage makes the image available. An empty reference means the default: the registry's default image
	// when it can be had, else one made from this machine's programs (Image.Made). Failures wrap ErrImageNotFound,
	// ErrImageDenied, ErrRegistryName (DNS) or ErrRegistryTimeout; with any of the last two a local copy is used.
	PrepareImage(ctx context.Context, reference string, progress func(message string)) (Image, error)

	// Create makes the instance, not started, and returns its id. When one with that name and the same labels exists
	// it is returned instead; with other labels the error wraps ErrConflict.
	Create(ctx context.Context, spec Spec) (string, error)

	// Start starts a created or exited instance and returns when its main process runs. A paused one is ErrPaused and stays
	// paused: whoever paused it had a reason, and whoever starts it has to decide whether that still holds.
	Start(ctx context.Context, id string) error

	// Ready returns nil once the instance takes commands and sees its content at /workspace. It asks by itself (not the
	// engine's health check), until the context ends. An instance that exited is ErrNotRunning with its last output.
	Ready(ctx context.Context, id string) error

	// Stop sends SIGTERM, waits for grace, then SIGKILL, and returns when nothing of the instance runs any more. A paused
	// instance is stopped too, and so is one that is paused while it is being stopped.
	//
	// With WhereItStands as its grace nothing is sent but SIGKILL, and what is paused does not run on to hear it.
	Stop(ctx context.Context, id string, grace time.Duration) error

	// Pause keeps every process of the instance from running until Unpause or Stop, also when the agent, or this very call,
	// ends before. One that does not run is ErrNotRunning.
	Pause(ctx context.Context, id string) error

	// Unpause lets a paused instance run on. One that does not run is ErrNotRunning.
	Unpause(ctx context.Context, id string) error

	// Inspect describes one instance; ErrNotFound when there is none.
	Inspect(ctx context.Context, id string) (Instance, error)

	// List returns the instances that carry all the given labels (an empty value matches any value).
	List(ctx context.Context, labels map[string]string) ([]Instance, error)

	// Exec runs a command inside the instance and returns its exit code. When the context ends, the command is killed. In a
	// paused instance it is ErrPaused at once.
	Exec(ctx context.Context, id string, spec ExecSpec) (int, error)

	// Logs writes the main process's output to w.
	Logs(ctx context.Context, id string, options LogOptions, w io.Writer) error

	Stats(ctx context.Context, id string) (Usage, error)

	// Work counts what the instance's processes have done, so that two counts tell whether it is used. What the engine
	// itself does for the instance (its init, its logs, an Inspect) is at most noise in it: below a thousandth of a
	// processor. Processes that have ended are counted as far as the kernel counts them, so a count below an earlier one
	// means that something ended or was started again. One that does not run is ErrNotRunning; a paused one is counted.
	Work(ctx context.Context, id string) (Work, error)

	// Remove removes a stopped instance; one that is not there is no error. It never touches ContentDir.
	Remove(ctx context.Context, id string) error

	Close() error
}

// The kinds of failure that callers tell apart.
var (
	ErrNotFound        = errors.New("no such instance")
	ErrConflict        = errors.New("another instance has this name")
	ErrNotRunning      = errors.New("the instance is not running")
	ErrPaused          = errors.New("the instance is paused")
	ErrImageNotFound   = errors.New("image not found")
	ErrImageDenied     = errors.New("the registry denied access to the image")
	ErrRegistryName    = errors.New("the registry's name could not be resolved")
	ErrRegistryTimeout = errors.New("the registry did not answer in time")
	ErrUnavailable     = errors.New("the container engine cannot be reached")
	ErrInvalid         = errors.New("invalid instance description")
)
