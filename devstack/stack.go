package devstack

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"go.temporal.io/sdk/client"

	"holdfast/guard"
	"holdfast/storage/resolver/dnsserver"
)

// Stack is everything on one machine: Temporal, the object stores with DNS servers of their own, a control worker and
// agents, each a child process; only the DNS servers and the front of the Web UI are in this process.
type Stack struct {
	options StackOptions
	lock    *os.File
	logs    []*os.File

	temporal *Temporal // nil when the server is not ours
	target   client.Options
	client   client.Client
	dns      []*dnsserver.Server
	webUI    *http.Server
	storage  *Component
	control  *Component
	nodes    []*Component

	life     context.Context // ends when the stack stops
	end      context.CancelFunc
	watching sync.WaitGroup
	stop     sync.Once
	stopErr  error

	mu      sync.Mutex // guards what follows
	file    StackFile
	address string // where the emulator listens

	telling sync.Mutex
}

// controlName is the control worker's, where nodes have theirs.
const controlName = "control"

// ErrInUse means that another stack runs on the directory.
var ErrInUse = errors.New("another stack runs on this directory")

// errStopping is the answer to what comes too late.
var errStopping = errors.New("the stack is stopping")

// StartStack brings everything up and returns when all of it does its work. Whatever fails, nothing of it is left
// running; what is in the data directory stays. One stack at a time can run on a directory (ErrInUse).
func StartStack(ctx context.Context, options StackOptions) (*Stack, error) {
	options, err := options.withDefaults()
	if err != nil {
		return nil, fmt.Errorf("starting the stack: %w", err)
	}
	s := &Stack{options: options, address: options.Storage.Address}
	s.life, s.end = context.WithCancel(context.Background())
	for _, step := range []func(context.Context) error{
		s.openDirectory, s.openKeys, s.startTemporal, s.startStorage, s.chooseMetrics, s.writeFile, s.startControl, s.startNodes,
	} {
		err := ctx.Err()
		if err == nil {
			err = step(ctx)
		}
		if err != nil {
			// The context may be the reason, and what was started has to end all the same.
			return nil, errors.Join(fmt.Errorf("starting the stack: %w", err), s.Stop(context.WithoutCancel(ctx)))
		}
	}
	s.say(EventReady, "", "")
	return s, nil
}

// openDirectory makes the directories and takes the lock.
func (s *Stack) openDirectory(ctx context.Context) error {
	dir := s.options.DataDir
	for _, path := range []string{dir, s.LogDir(), filepath.Join(dir, "keys"), filepath.Join(dir, "nodes")} {
		if err := os.MkdirAll(path, 0o700); err != nil {
			return fmt.Errorf("making the data directory: %w", err)
		}
	}
	// One that was there before may be open to others, and keys are about to lie in it.
	if info, err := os.Stat(dir); err != nil {
		return fmt.Errorf("looking at the data directory: %w", err)
	} else if info.Mode().Perm()&0o077 != 0 {
		if err := os.Chmod(dir, 0o700); err != nil {
			return fmt.Errorf("closing the data directory to others: %w", err)
		}
	}
	// LoadStack holds the lock for an instant when it looks whether a stack lives.
	briefly, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	var lock *os.File
	err := until(briefly, 20*time.Millisecond, func(context.Context) (err error) {
		lock, err = tryLock(filepath.Join(dir, stackLockName))
		return err
	})
	if errors.Is(err, errLocked) {
		who := ""
		if file, err := readStackFile(filepath.Join(dir, stackFileName)); err == nil {
			who = fmt.Sprintf(" (process %d, since %s)", file.PID, file.Started.Local().Format(time.DateTime))
		}
		return fmt.Errorf("%w: %s%s; use that one, stop it first, or choose another directory", ErrInUse, dir, who)
	}
	if err != nil {
		return err
	}
	s.lock = lock
	s.file = StackFile{
		Version: stackFileVersion, PID: os.Getpid(), Started: time.Now().UTC(), DataDir: dir,
		Policy: s.options.Policy, Engine: s.options.Engine, Nodes: slices.Clone(s.options.Nodes),
	}
	// The children's settings are the description of the stack and nothing else, whatever the person's are.
	const none = "# The stack's children read stack.json.\n{}\n"
	if err := os.WriteFile(s.childSettings(), []byte(none), 0o600); err != nil {
		return fmt.Errorf("writing the children's settings: %w", err)
	}
	return nil
}

// chooseMetrics finds a port for each role's metrics, which it keeps when it is started again.
func (s *Stack) chooseMetrics(context.Context) error {
	if s.options.NoMetrics {
		return nil
	}
	const host = "127.0.0.1"
	s.mu.Lock()
	defer s.mu.Unlock()
	s.file.Metrics = map[string]string{}
	taken := map[int]bool{}
	for _, role := range append([]string{controlName}, s.options.Nodes...) {
		port, err := freePort(host)
		for err == nil && taken[port] { // nobody listens on those before yet
			port, err = freePort(host)
		}
		if err != nil {
			return fmt.Errorf("choosing an address for the metrics of %s: %w", role, err)
		}
		taken[port] = true
		s.file.Metrics[role] = net.JoinHostPort(host, strconv.Itoa(port))
	}
	return nil
}

func (s *Stack) writeFile(context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.file.write()
}

func (s *Stack) startControl(ctx context.Context) (err error) {
	s.control, err = s.newComponent(controlName, func() Command { return s.options.Roles.Control(s.File()) }, s.controlPolls)
	if err != nil {
		return err
	}
	return s.control.Start(ctx)
}

func (s *Stack) startNodes(ctx context.Context) error {
	for _, name := range s.options.Nodes {
		if err := os.MkdirAll(s.NodeDir(name), 0o700); err != nil {
			return fmt.Errorf("making the directory of node %s: %w", name, err)
		}
		node, err := s.newComponent(name,
			func() Command { return s.options.Roles.Node(s.File(), name, s.NodeDir(name)) },
			func(ctx context.Context) (func(context.Context) error, error) { return s.nodeHoldsLease(ctx, name) })
		if err != nil {
			return err
		}
		s.nodes = append(s.nodes, node)
	}
	return s.together(s.nodes, func(node *Component) error { return node.Start(ctx) })
}

// together does the same with several components at once and gathers what went wrong.
func (s *Stack) together(components []*Component, do func(*Component) error) error {
	errs := make([]error, len(components))
	var all sync.WaitGroup
	for i, component := range components {
		all.Go(func() { errs[i] = do(component) })
	}
	all.Wait()
	return errors.Join(errs...)
}

// Stop ends everything in order: agents, control worker, stores, Temporal. When the context ends, what is left is
// killed. All data stays. Only the first call does something; the others return what it returned.
func (s *Stack) Stop(ctx context.Context) error {
	s.stop.Do(func() { s.stopErr = s.stopAll(ctx) })
	return s.stopErr
}

func (s *Stack) stopAll(ctx context.Context) error {
	s.say(EventStopping, "", "")
	s.end() // nothing is started again from here on
	var errs []error
	note := func(err error) {
		if err != nil {
			errs = append(errs, err)
		}
	}
	halt := func(c *Component) error {
		if c == nil || !c.Running() {
			return nil
		}
		s.say(EventStopping, c.name, "")
		defer s.say(EventStopped, c.name, "")
		return c.Stop(ctx)
	}
	note(s.together(s.nodes, halt))
	for _, node := range s.nodes {
		// One whose agent was killed for good is still there. What it still holds it guards on.
		if err := guard.End(ctx, filepath.Join(s.NodeDir(node.name), "guard")); !errors.Is(err, guard.ErrHolds) {
			note(err)
		}
	}
	note(halt(s.control))
	note(halt(s.storage))
	if s.client != nil {
		s.client.Close()
	}
	if s.temporal != nil {
		s.say(EventStopping, "temporal", "")
		note(s.temporal.Stop(ctx))
		s.say(EventStopped, "temporal", "")
	}
	if s.webUI != nil {
		note(s.webUI.Close())
	}
	s.watching.Wait()
	for _, server := range s.dns {
		note(server.Close())
	}
	for _, log := range s.logs {
		note(log.Close())
	}
	if s.lock != nil {
		if err := os.Remove(filepath.Join(s.options.DataDir, stackFileName)); err != nil && !os.IsNotExist(err) {
			note(fmt.Errorf("removing the stack's description: %w", err))
		}
		note(s.lock.Close())
	}
	s.say(EventStopped, "", "")
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("stopping the stack: %w", err)
	}
	return nil
}

func (s *Stack) unlessStopping() error {
	if s.life.Err() != nil {
		return errStopping
	}
	return nil
}

// File is the description of the stack, as its children and the command read it.
func (s *Stack) File() StackFile {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.file
}

// SetControlRecipient adds the control side's public key to the description, once it is known.
func (s *Stack) SetControlRecipient(recipient string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.file.ControlRecipient = recipient
	return s.file.write()
}

// Temporal is the stack's own server; nil when it uses one that ran already.
func (s *Stack) Temporal() *Temporal { return s.temporal }

// ClientOptions are what a client of the stack's Temporal needs, payload codec included.
func (s *Stack) ClientOptions() client.Options { return s.target }

// Client is a client of the stack's Temporal that is open until Stop.
func (s *Stack) Client() client.Client { return s.client }

// Control is the control worker.
func (s *Stack) Control() *Component { return s.control }

// Node is a node's agent; nil when there is none of that name.
func (s *Stack) Node(name string) *Component {
	for _, node := range s.nodes {
		if node.name == name {
			return node
		}
	}
	return nil
}

// Nodes are the agents, in the order of the options.
func (s *Stack) Nodes() []*Component { return slices.Clone(s.nodes) }

// NodeDir is where a node keeps everything.
func (s *Stack) NodeDir(name string) string { return filepath.Join(s.options.DataDir, "nodes", name) }

// LogDir holds what the children print, one file each.
func (s *Stack) LogDir() string { return filepath.Join(s.options.DataDir, "logs") }

func (s *Stack) childSettings() string { return filepath.Join(s.options.DataDir, "holdfast.yaml") }

// childEnvironment is this process's, without what would lead a child away from this stack: an operator's
// HOLDFAST_STORE or TEMPORAL_ADDRESS must never make a demonstration touch a real deployment.
func (s *Stack) childEnvironment() []string {
	var env []string
	for _, setting := range os.Environ() {
		switch {
		case strings.HasPrefix(setting, "HOLDFAST_"):
		case strings.HasPrefix(setting, "TEMPORAL_") && s.options.External == nil:
		default:
			env = append(env, setting)
		}
	}
	env = append(env, "HOLDFAST_STATE_DIR="+s.options.DataDir, "HOLDFAST_CONFIG="+s.childSettings())
	if s.options.External == nil {
		file := s.File()
		env = append(env,
			"TEMPORAL_ADDRESS="+file.TemporalAddress, "TEMPORAL_NAMESPACE="+file.Namespace,
			"TEMPORAL_CONFIG_FILE="+filepath.Join(s.options.DataDir, "no-temporal-profiles")) // there is none
	}
	return env
}

func (s *Stack) say(kind EventKind, component, text string) {
	s.tell(Event{Kind: kind, Component: component, Text: text})
}

func (s *Stack) tell(event Event) {
	s.telling.Lock()
	defer s.telling.Unlock()
	event.Time = time.Now()
	s.options.Progress(event)
}
