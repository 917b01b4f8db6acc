package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"holdfast/devstack"
	"holdfast/engine"
	"holdfast/engine/detect"
	"holdfast/engine/process"
	"holdfast/snapshot"
	"holdfast/workspace"
)

// demo replays what goes wrong in real life on this machine: the January 25th outage (backups that DNS cuts off, a store
// that moves, an agent that dies), or the loss of a node.
type demo struct {
	p       *program
	out     *narrator
	stack   *devstack.Stack
	control control
	engine  string
	plan    scenario
	content string // the directory whose content the workspaces begin with
	keep    bool
	dir     string
	spaces  []*demoSpace
	began   time.Time
	// noted and notedAt are the last note's subject and when it was told.
	noted   string
	notedAt time.Time
}

// scenario is what a demo plays.
type scenario struct {
	nodes  []string
	policy string // as storage.ParsePolicy reads it
	means  string // what the policy promises
	spaces []*demoSpace
	acts   func(*demo) []act
}

// act is a part of a scenario.
type act struct {
	title string
	play  func(context.Context) error
}

// scenarios are those of `demo --scenario`.
func scenarios() map[string]scenario {
	return map[string]scenario{
		"outage": {
			nodes: []string{"node-1", "node-2"}, policy: "all", acts: (*demo).outageActs,
			means: "a stop is acknowledged when both stores hold the snapshot whole",
			spaces: []*demoSpace{
				{name: "atlas", newBytes: 300 << 20}, {name: "borealis", newBytes: 96 << 20}, {name: "cygnus", newBytes: 96 << 20},
			},
		},
		"node-loss": {
			nodes: []string{"node-1", "node-2", "node-3"}, policy: "any", acts: (*demo).lossActs,
			means: "a snapshot counts when one store holds it whole, and the other is brought up to date",
			spaces: []*demoSpace{
				{name: "atlas", on: "node-1", newBytes: 48 << 20}, {name: "borealis", on: "node-1", newBytes: 16 << 20}, {name: "cygnus", on: "node-2", newBytes: 16 << 20},
			},
		},
	}
}

// demoSpace is one of the demo's workspaces.
type demoSpace struct {
	name     string
	on       string // the node that it begins on; empty: any
	newBytes int64  // new data written into it
	lost     lossOutcome

	id      string
	node    string
	token   uint64
	before  manifest
	stop    string // the stop's operation
	stopped time.Time
	took    time.Duration

	receivedAtCut int64 // by the emulator, for this workspace's repository, when DNS was cut
	received      int64 // when all was done
	stored        int64 // bytes of the objects that are there in the end
	problems      []string
}

func (s *demoSpace) problem(format string, args ...any) {
	s.problems = append(s.problems, fmt.Sprintf(format, args...))
}

// againBytes is how much was received beyond what is stored: uploads that were cut and sent again.
func (s *demoSpace) againBytes() int64 { return max(s.received-s.stored, 0) }

// mostInFlight is what a backup may send again: it was cut twice, by the move of the storage and by the death of the
// agent. The last part is for small objects that come and go, such as locks.
const mostInFlight = 2*snapshot.MaxInFlight + 1<<20

func (p *program) demoCommand() *cli.Command {
	return &cli.Command{
		Name:  "demo",
		Usage: "replay the January 25th outage, or the loss of a node, on this machine, with real parts",
		Description: "Starts everything on this machine, with three workspaces of real content. The scenario outage stops them while\n" +
			"DNS, the object store's address and an agent fail in the middle of their backups; node-loss takes the power from a\n" +
			"node, gives it back, stops Temporal for a while and drains another node. Ends with status 0 only if nothing was lost.",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "content", Usage: "begin the workspaces with the files of `DIR` (default: the source tree of the installed Go)"},
			&cli.StringFlag{Name: "engine", Usage: "container `ENGINE`: docker or process (default: docker when its engine answers)"},
			&cli.BoolFlag{Name: "keep", Usage: "leave everything running at the end, until Ctrl-C"},
			&cli.StringFlag{Name: "scenario", Value: "outage", Usage: "what to replay: outage, or node-loss"},
		},
		Action: p.demo,
	}
}

func (p *program) demo(c *cli.Context) error {
	if _, err := arguments(c); err != nil {
		return err
	}
	plan, known := scenarios()[c.String("scenario")]
	if !known {
		return usage("--scenario %q: want outage or node-loss", c.String("scenario"))
	}
	switch c.String("engine") {
	case "", "docker", "process":
	default:
		return usage("--engine %q: want docker or process", c.String("engine"))
	}
	content, err := demoContent(c.String("content"))
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "holdfast-demo-")
	if err != nil {
		return fail(exitFailed, "making a directory for the demo: %w", err)
	}
	d := &demo{
		p: p, engine: c.String("engine"), content: content, keep: c.Bool("keep"), dir: dir, began: time.Now(), plan: plan, spaces: plan.spaces,
	}
	d.out = newNarrator(p.stdout, d.began)
	err = d.run(c.Context)
	if err != nil && c.Context.Err() == nil {
		d.showLogs()
	}
	if d.keep && d.stack != nil && c.Context.Err() == nil {
		d.out.say("The stack keeps running. Use it from another terminal with")
		d.out.command("holdfast --state-dir %s list", d.dir)
		d.out.say("and end it with Ctrl-C.")
		<-c.Context.Done()
	}
	// Cleaning up must also work after Ctrl-C.
	cleanup, cancel := context.WithTimeout(context.WithoutCancel(c.Context), 2*time.Minute)
	defer cancel()
	if cleaned := d.cleanUp(cleanup); cleaned != nil {
		err = errors.Join(err, cleaned)
	}
	return err
}

// run plays the scenario.
func (d *demo) run(ctx context.Context) error {
	for _, act := range d.plan.acts(d) {
		d.out.act(act.title)
		if err := act.play(ctx); err != nil {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			return fail(exitFailed, "%s: %w", strings.ToLower(act.title), err)
		}
	}
	return nil
}

func (d *demo) outageActs() []act {
	return []act{
		{"Bring up the stack", d.bringUp},
		{"Start three workspaces and work in them", d.work},
		{"Stop them, and lose DNS in the middle of the uploads", d.outage},
		{"DNS comes back", d.recovery},
		{"Start them on the other node and compare every file", d.startElsewhere},
		{"What happened", d.summary},
	}
}

func (d *demo) bringUp(ctx context.Context) error {
	agents := map[int]string{2: "two", 3: "three"}[len(d.plan.nodes)]
	d.out.say("Everything runs on this machine, below %s: Temporal with its Web UI, an emulator of Google Cloud Storage and a directory as the two stores, three DNS servers that alone know the storage's name, a control worker and %s agents, each a process of its own.", d.dir, agents)
	stack, err := devstack.StartStack(ctx, devstack.StackOptions{
		Roles: devstack.ProductRoles(), DataDir: d.dir, Engine: d.engine, Policy: d.plan.policy, Nodes: d.plan.nodes,
		Temporal: devstack.TemporalOptions{},
		Progress: d.event,
	})
	if err != nil {
		return err
	}
	d.stack = stack
	options := stack.ClientOptions()
	d.control = &temporalControl{client: stack.Client(), data: options.DataConverter, failures: options.FailureConverter}
	d.out.say("The stack is up. Temporal's Web UI, payloads decoded: %s", stack.File().LoginURL())
	d.out.say("Policy %q: %s.", d.plan.policy, d.plan.means)
	return nil
}

// event tells what the stack does. A build reports itself every few seconds; that is told less often.
func (d *demo) event(event devstack.Event) {
	subject, _, _ := strings.Cut(event.Text, ":")
	if event.Kind == devstack.EventNote && subject == d.noted && time.Since(d.notedAt) < 20*time.Second {
		return
	}
	d.noted, d.notedAt = subject, time.Now()
	if event.Component == "keys" {
		return // the demo's keys go with it
	}
	switch event.Kind {
	case devstack.EventReady, devstack.EventNote, devstack.EventDied:
		if event.Text != "" {
			d.out.detail("%s", event.Text)
		} else if event.Component != "" {
			d.out.detail("%s: %s", event.Component, event.Kind)
		}
		if event.Err != nil {
			d.out.detail("%v", event.Err)
		}
	}
}

// cleanUp removes the demo's instances, stops the stack and removes its directory. It touches only what carries the ids
// of the demo's own workspaces.
func (d *demo) cleanUp(ctx context.Context) error {
	var all error
	if d.stack != nil {
		d.out.detail("cleaning up")
		all = errors.Join(all, d.stack.Stop(ctx))
		for _, node := range d.stack.Nodes() {
			all = errors.Join(all, d.removeInstances(ctx, node.Name()))
		}
	}
	if err := removeDemoDir(d.dir); err != nil {
		all = errors.Join(all, fmt.Errorf("removing %s: %w", d.dir, err))
	}
	if all != nil {
		return fail(exitFailed, "cleaning up: %w", all)
	}
	return nil
}

func (d *demo) removeInstances(ctx context.Context, node string) error {
	containers, err := d.openEngine(ctx, node)
	if err != nil {
		return err
	}
	defer containers.Close()
	for _, space := range d.spaces {
		if workspace.ValidateID(space.id) != nil {
			continue
		}
		instances, err := containers.List(ctx, map[string]string{engine.LabelWorkspace: space.id})
		if err != nil {
			return fmt.Errorf("listing the instances of %s: %w", space.name, err)
		}
		for _, instance := range instances {
			if err := errors.Join(containers.Stop(ctx, instance.ID, time.Second), containers.Remove(ctx, instance.ID)); err != nil {
				return fmt.Errorf("removing instance %s: %w", instance.Name, err)
			}
		}
	}
	return nil
}

func (d *demo) openEngine(ctx context.Context, node string) (engine.Engine, error) {
	containers, err := detect.Open(ctx, d.engine, detect.Options{
		Process: process.Options{Root: filepath.Join(d.stack.NodeDir(node), "engine")}, Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		return nil, fmt.Errorf("opening the engine of %s: %w", node, err)
	}
	return containers, nil
}

// removeDemoDir removes the demo's directory whatever modes the content has.
func removeDemoDir(dir string) error {
	if err := os.RemoveAll(dir); err == nil {
		return nil
	}
	_ = filepath.WalkDir(dir, func(path string, entry os.DirEntry, _ error) error {
		if entry != nil && entry.IsDir() {
			_ = os.Chmod(path, 0o700)
		}
		return nil
	})
	return os.RemoveAll(dir)
}

// showLogs says where to look when the demo failed, with the end of each log.
func (d *demo) showLogs() {
	if d.stack == nil {
		return
	}
	for _, component := range append(d.stack.Nodes(), d.stack.Control(), d.stack.Storage()) {
		data, err := os.ReadFile(component.LogFile())
		if err != nil {
			continue
		}
		lines := strings.Split(strings.TrimRight(string(data), "\n"), "\n")
		d.out.say("the last lines of %s:", component.Name())
		for _, line := range lines[max(len(lines)-12, 0):] {
			fmt.Fprintln(d.p.stderr, "    "+line)
		}
	}
}

// post asks the emulator for something that no real store offers.
func (d *demo) throttle(ctx context.Context, bytesPerSecond int64) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, fmt.Sprintf("%s/_throttle?bytes_per_second=%d", d.stack.StorageURL(), bytesPerSecond), nil)
	if err != nil {
		return err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return fmt.Errorf("setting the storage's speed: %w", err)
	}
	return response.Body.Close()
}
