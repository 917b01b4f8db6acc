package crowd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"go.temporal.io/sdk/client"
	"golang.org/x/sync/errgroup"

	"holdfast/devstack"
	"holdfast/keys"
	"holdfast/testsuite/crowd/pretend"
	"holdfast/testsuite/link"
	"holdfast/testsuite/requests"
	"holdfast/workspace"
)

// Options say what a crowd is made of.
type Options struct {
	// Dir holds everything; it exists.
	Dir string
	// Temporal is the dev server's program.
	Temporal string
	// Hosts are processes with so many agents each: what is lost at once.
	Hosts, NodesEach int
	// Patience bounds every wait. Default 10 minutes.
	Patience time.Duration
	// Say, when set, is told what is being done.
	Say func(format string, args ...any)
}

// Crowd is a running one.
type Crowd struct {
	options  Options
	temporal *devstack.Temporal
	log      *limitLog
	client   client.Client
	control  *devstack.Child
	hosts    []*host
	logs     []*os.File
}

// host is a process with some agents.
type host struct {
	child *devstack.Child
	nodes []node
	links []*link.Link
}

// Start brings a crowd up and returns when every node has its lease. Whatever fails, nothing of it is left running.
func Start(ctx context.Context, options Options) (*Crowd, error) {
	if options.Patience <= 0 {
		options.Patience = 10 * time.Minute
	}
	if options.Say == nil {
		options.Say = func(string, ...any) {}
	}
	if options.Hosts < 1 || options.NodesEach < 1 {
		return nil, fmt.Errorf("a crowd of %d hosts with %d nodes each: want at least one", options.Hosts, options.NodesEach)
	}
	c := &Crowd{options: options, log: &limitLog{}}
	if err := c.start(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("starting a crowd: %w", err), c.End(context.WithoutCancel(ctx)))
	}
	return c, nil
}

func (c *Crowd) start(ctx context.Context) (err error) {
	dir := c.options.Dir
	c.temporal, err = devstack.StartTemporal(ctx, devstack.TemporalOptions{
		Binary: c.options.Temporal, Dir: filepath.Join(dir, "temporal"), Headless: true, Fast: true, Log: c.log,
	})
	if err != nil {
		return err
	}
	base := role{Namespace: c.temporal.Namespace(), CodecKey: filepath.Join(dir, "codec.key"), Store: (&url.URL{Scheme: "file", Path: filepath.Join(dir, "store")}).String()}
	if err := os.MkdirAll(filepath.Join(dir, "store"), 0o700); err != nil {
		return fmt.Errorf("making the store: %w", err)
	}
	master := filepath.Join(dir, "master.key")
	if _, err := keys.CreateLocalKey(master); err != nil {
		return err
	}
	masterURL, err := keys.LocalKeyURL(master)
	if err != nil {
		return err
	}
	if err := c.connect(ctx, base.CodecKey); err != nil {
		return err
	}
	worker := base
	worker.Control = &control{Temporal: c.temporal.Address(), MasterKey: masterURL}
	if c.control, err = c.child("control", worker); err != nil {
		return err
	}
	if err := c.control.Start(); err != nil {
		return err
	}
	for i := range c.options.Hosts {
		h := &host{}
		c.hosts = append(c.hosts, h)
		for j := range c.options.NodesEach {
			l, err := link.New(c.temporal.Address())
			if err != nil {
				return err
			}
			name := fmt.Sprintf("node-%02d", i*c.options.NodesEach+j+1)
			h.links = append(h.links, l)
			h.nodes = append(h.nodes, node{Name: name, Dir: c.NodeDir(name), Temporal: l.Address()})
		}
		machine := base
		machine.Nodes = h.nodes
		if h.child, err = c.child(fmt.Sprintf("host-%d", i+1), machine); err != nil {
			return err
		}
		if err := h.child.Start(); err != nil {
			return err
		}
	}
	return c.untilReady(ctx, c.Nodes())
}

// child is this very program in a role.
func (c *Crowd) child(name string, r role) (*devstack.Child, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("finding this program: %w", err)
	}
	text, err := json.Marshal(r)
	if err != nil {
		return nil, fmt.Errorf("writing the role of %s: %w", name, err)
	}
	log, err := os.OpenFile(filepath.Join(c.options.Dir, name+".log"), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return nil, fmt.Errorf("opening the log of %s: %w", name, err)
	}
	c.logs = append(c.logs, log)
	// Nothing of a person's configuration leads it to another Temporal.
	env := slices.DeleteFunc(os.Environ(), func(setting string) bool {
		return strings.HasPrefix(setting, "TEMPORAL_") || strings.HasPrefix(setting, "HOLDFAST_")
	})
	return &devstack.Child{Name: name, Path: self, Args: []string{Role, string(text)}, Env: env, Dir: c.options.Dir, Log: log, Grace: 2 * stopGrace}, nil
}

func (c *Crowd) connect(ctx context.Context, codecKey string) error {
	key, err := keys.LoadOrCreateCodecKey(codecKey)
	if err != nil {
		return err
	}
	codec, err := keys.NewCodec(key)
	if err != nil {
		return fmt.Errorf("making the payload codec: %w", err)
	}
	converter := keys.DataConverter(codec)
	if c.client, err = client.DialContext(ctx, client.Options{
		HostPort: c.temporal.Address(), Namespace: c.temporal.Namespace(), DataConverter: converter, FailureConverter: keys.FailureConverter(converter),
		Logger: quiet{},
	}); err != nil {
		return fmt.Errorf("connecting to Temporal: %w", err)
	}
	return nil
}

// quiet has this side's client say nothing: what it has to say it returns.
type quiet struct{}

func (quiet) Debug(string, ...any) {}
func (quiet) Info(string, ...any)  {}
func (quiet) Warn(string, ...any)  {}
func (quiet) Error(string, ...any) {}

// End stops everything. What it has written stays in its directory.
func (c *Crowd) End(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, c.options.Patience)
	defer cancel()
	var errs []error
	c.mend() // so that the agents can give their leases back
	var stopping sync.WaitGroup
	ended := make([]error, len(c.hosts))
	for i, h := range c.hosts {
		if h.child != nil && h.child.Running() {
			stopping.Go(func() { ended[i] = h.child.Stop(ctx) })
		}
	}
	stopping.Wait()
	errs = append(errs, ended...)
	for _, h := range c.hosts {
		for _, l := range h.links {
			errs = append(errs, l.Close())
		}
	}
	if c.control != nil && c.control.Running() {
		errs = append(errs, c.control.Stop(ctx))
	}
	if c.client != nil {
		c.client.Close()
	}
	if c.temporal != nil {
		errs = append(errs, c.temporal.Close(ctx))
	}
	for _, log := range c.logs {
		errs = append(errs, log.Close())
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("ending a crowd: %w", err)
	}
	return nil
}

// Nodes are the names of all nodes, in their order; those of a host when hosts are given.
func (c *Crowd) Nodes(hosts ...int) (names []string) {
	for i, h := range c.hosts {
		if len(hosts) > 0 && !slices.Contains(hosts, i) {
			continue
		}
		for _, n := range h.nodes {
			names = append(names, n.Name)
		}
	}
	return names
}

// NodeDir is where a node keeps everything.
func (c *Crowd) NodeDir(name string) string { return filepath.Join(c.options.Dir, "nodes", name) }

// cut has nothing go through the connections of some hosts' agents to Temporal, in either direction, until mend; of all when none is
// named.
func (c *Crowd) cut(hosts ...int) {
	for i, h := range c.hosts {
		if len(hosts) == 0 || slices.Contains(hosts, i) {
			for _, l := range h.links {
				l.Cut()
			}
		}
	}
}

// mend lets everything through again.
func (c *Crowd) mend() {
	for _, h := range c.hosts {
		for _, l := range h.links {
			l.Mend()
		}
	}
}

// journals are what has happened on each node.
func (c *Crowd) journals() (map[string]pretend.Journal, error) {
	journals := map[string]pretend.Journal{}
	for _, name := range c.Nodes() {
		journal, err := pretend.ReadJournal(journalOf(c.NodeDir(name)))
		if err != nil {
			return nil, err
		}
		journals[name] = journal
	}
	return journals, nil
}

// nodeStates asks nodes how they are.
func (c *Crowd) nodeStates(ctx context.Context, names []string) ([]workspace.NodeState, error) {
	states := make([]workspace.NodeState, len(names))
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(atOnce)
	for i, name := range names {
		group.Go(func() (err error) {
			states[i], err = requests.Query[workspace.NodeState](ctx, c.client, workspace.NodeWorkflowID(name))
			return err
		})
	}
	return states, group.Wait()
}

// untilNodes waits until each of the nodes is as it should be.
func (c *Crowd) untilNodes(ctx context.Context, names []string, what string, done func(workspace.NodeState) bool) ([]workspace.NodeState, error) {
	ctx, cancel := context.WithTimeout(ctx, c.options.Patience)
	defer cancel()
	for {
		states, err := c.nodeStates(ctx, names)
		if err == nil && !slices.ContainsFunc(states, func(state workspace.NodeState) bool { return !done(state) }) {
			return states, nil
		}
		if err == nil {
			for _, state := range states {
				if !done(state) {
					err = errors.Join(err, fmt.Errorf("%s is %s (%s)", state.Info.Name, state.Phase, state.Reason))
				}
			}
		}
		for _, h := range c.hosts {
			if dead := h.child.Err(); dead != nil {
				return nil, dead
			}
		}
		if dead := c.control.Err(); dead != nil {
			return nil, dead
		}
		select {
		case <-ctx.Done():
			return nil, errors.Join(fmt.Errorf("waiting until %s: %w", what, context.Cause(ctx)), err)
		case <-time.After(lookEvery):
		}
	}
}

func (c *Crowd) untilReady(ctx context.Context, names []string) error {
	_, err := c.untilNodes(ctx, names, "the nodes have their leases", func(state workspace.NodeState) bool {
		return state.Phase == workspace.NodeReady && state.Loss == nil
	})
	return err
}

func (c *Crowd) until(ctx context.Context, names []string, what string, done func(workspace.State) bool) (map[string]workspace.State, error) {
	ctx, cancel := context.WithTimeout(ctx, c.options.Patience)
	defer cancel()
	return requests.Until(ctx, c.client, names, what, done)
}

const (
	// lookEvery is between two looks at what is waited for.
	lookEvery = 300 * time.Millisecond
	// atOnce is how many requests are made at once.
	atOnce = 16
)
