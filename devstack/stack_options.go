package devstack

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"go.temporal.io/sdk/client"

	"holdfast/storage"
	"holdfast/workspace"
)

// Command is how a child of the stack is started.
type Command struct {
	Path string   // the program; default: StackOptions.Binary
	Args []string // without the program's name
	Env  []string // added to the stack's own
	// Ready returns nil once the child does its work; it is asked again and again until then. Default: the emulator
	// answers; the control worker polls its queue; a new incarnation of the node holds its lease.
	Ready func(context.Context) error
}

// Roles says how the program is told to take a role. Whatever a role needs beyond its arguments it reads from the stack's
// description (LoadStack), which is complete when it is started, except for ControlRecipient.
type Roles struct {
	// Storage serves the GCS emulator (storage/gcsemulator) from dir on the address listen, with the given bucket. It is
	// started before the description is written, and needs nothing but its arguments.
	Storage func(file StackFile, dir, listen, bucket string) Command
	// Control is a control worker.
	Control func(file StackFile) Command
	// Node is the agent of a node, which keeps everything in dir.
	Node func(file StackFile, node, dir string) Command
}

// StorageOptions says where the stack's own object stores are.
type StorageOptions struct {
	// Host is the name under which the GCS emulator is known to the DNS servers. Default storage.holdfast.test.
	Host string
	// Address is the loopback address on which it listens at first. Default 127.0.0.2.
	Address string
	// Port is the emulator's; 0 picks a free one, which is kept when the storage moves.
	Port int
	// Bucket is made when it is absent. Default holdfast.
	Bucket string
	// NoDirectory leaves out the second store, a directory.
	NoDirectory bool
	// DirectoryURL is the second store in place of the stack's own directory.
	DirectoryURL string
	// DNSServers is how many DNS servers know Host. Default 3.
	DNSServers int
	// TTL is how long their answers may be kept. Default 1 s.
	TTL time.Duration
}

// StackOptions configures StartStack.
type StackOptions struct {
	// Binary is the holdfast program whose roles run as children. Default: this very program.
	Binary string
	// Roles are its command lines. Required; those of the holdfast program are ProductRoles.
	Roles Roles
	// NoMetrics chooses no addresses for the roles' metrics. A port that is free now can be somebody else's by the time that a
	// role is started again, which matters where many stacks run at once.
	NoMetrics bool
	// DataDir holds everything; it is made with mode 0700. Default: DefaultDir().
	DataDir string
	// Nodes are the names of the nodes. Default node-1 and node-2.
	Nodes []string
	// NoNodes leaves all nodes out: they are elsewhere.
	NoNodes bool
	// Engine is docker or process; empty lets the agents choose.
	Engine string
	// Policy is as storage.ParsePolicy reads it. Default any.
	Policy string
	// Storage is about the stack's own stores.
	Storage StorageOptions

	// External is a Temporal server to be used as it is (`dev` with TEMPORAL_ADDRESS set): HostPort, Namespace and
	// credentials. Its data converter is replaced. Nil runs a server of the stack's own, and then nothing in this process's environment
	// or the person's Temporal configuration leads the children to another.
	External *client.Options
	// Temporal is about the stack's own server; Dir, CodecEndpoint, Log and Progress are set by the stack, and Binary by
	// FindTemporal when it is empty. UIPort is where people open the Web UI: the stack answers there, the server behind it.
	Temporal TemporalOptions

	// Progress is told what happens, in order, from one goroutine at a time; it must not call the Stack. Default: nobody.
	Progress func(Event)
	// ReadyTimeout bounds the wait for each child. Default 60 s.
	ReadyTimeout time.Duration
	// StopGrace is how long a worker may take to stop before it is killed. Default 20 s.
	StopGrace time.Duration
	// NoRestart leaves a child that died by itself dead. By default it is started again, after 1 s, 2 s … 30 s.
	NoRestart bool
}

func (o StackOptions) withDefaults() (StackOptions, error) {
	if o.Roles.Storage == nil || o.Roles.Control == nil || o.Roles.Node == nil {
		return o, errors.New("the command lines of the roles were not given")
	}
	if err := o.Temporal.checkPorts(); err != nil {
		return o, err
	}
	if o.Binary == "" {
		path, err := os.Executable()
		if err != nil {
			return o, fmt.Errorf("finding this program: %w", err)
		}
		o.Binary = path
	}
	if o.DataDir == "" {
		dir, err := DefaultDir()
		if err != nil {
			return o, err
		}
		o.DataDir = dir
	}
	dir, err := filepath.Abs(o.DataDir)
	if err != nil {
		return o, fmt.Errorf("finding the data directory: %w", err)
	}
	o.DataDir = dir
	switch {
	case o.NoNodes && len(o.Nodes) > 0:
		return o, errors.New("nodes were named, and none is to be started")
	case len(o.Nodes) == 0 && !o.NoNodes:
		o.Nodes = []string{"node-1", "node-2"}
	}
	for i, node := range o.Nodes {
		if err := workspace.ValidateName("node", node); err != nil {
			return o, err
		}
		if slices.Contains([]string{"temporal", "dns", "storage", "codec", "control", "keys"}, node) {
			return o, fmt.Errorf("node %s: another part of the stack has that name", node)
		}
		if slices.Contains(o.Nodes[:i], node) {
			return o, fmt.Errorf("node %s is named twice", node)
		}
	}
	if o.Policy == "" {
		o.Policy = storage.PolicyAny.String()
	}
	if _, err := storage.ParsePolicy(o.Policy); err != nil {
		return o, err
	}
	o.Storage = o.Storage.withDefaults()
	if o.Progress == nil {
		o.Progress = func(Event) {}
	}
	if o.ReadyTimeout <= 0 {
		o.ReadyTimeout = 60 * time.Second
	}
	if o.StopGrace <= 0 {
		o.StopGrace = 20 * time.Second
	}
	return o, nil
}

func (o StorageOptions) withDefaults() StorageOptions {
	if o.Host == "" {
		o.Host = "storage.holdfast.test"
	}
	if o.Address == "" {
		o.Address = "127.0.0.2"
	}
	if o.Bucket == "" {
		o.Bucket = "holdfast"
	}
	if o.DNSServers <= 0 {
		o.DNSServers = 3
	}
	if o.TTL <= 0 {
		o.TTL = time.Second
	}
	return o
}

// EventKind says what an Event is about.
type EventKind string

// The kinds of event.
const (
	EventStarting EventKind = "starting" // a component is being started
	EventReady    EventKind = "ready"    // it does its work
	EventNote     EventKind = "note"     // something that a person should know
	EventDied     EventKind = "died"     // it ended though nobody asked it to; Err says how
	EventStopping EventKind = "stopping"
	EventStopped  EventKind = "stopped"
)

// Event is one step in the life of a stack.
type Event struct {
	Time      time.Time
	Kind      EventKind
	Component string // "temporal", "storage", "dns", "codec", "control", a node's name, "keys"; empty is the stack
	Text      string // a whole sentence, or empty
	Err       error
}
