// Command bench measures what Holdfast does when nodes die, on one machine and with real parts: Temporal, two stores, a
// control worker, and agents with the process engine (or, for start-docker, the machine's Docker), all children of it.
//
//	go run ./testsuite/bench
//	go run ./testsuite/bench --measure loss --rounds 1 --snapshot-every 1m
//
// It prints medians as Markdown, each part when it is done. What the numbers mean, and what they are compared with, is in
// docs/performance.md.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"holdfast/devstack"
	"holdfast/testsuite/crowd"
	"holdfast/workspace"
)

func main() {
	if len(os.Args) > 1 && os.Args[1] == crowd.Role {
		os.Exit(crowd.RunRole(os.Args[2:])) // it is a child of itself
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout, os.Stderr); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			os.Exit(2)
		}
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// measures are what can be measured, in the order in which it is.
var measures = []struct {
	name string
	run  func(*bench, context.Context) error
}{
	{"start", (*bench).start},
	{"start-docker", (*bench).startDocker},
	{"detect", (*bench).detect},
	{"partition", (*bench).partition},
	{"loss", (*bench).loss},
	{"freeze", (*bench).freeze},
	{"drain", (*bench).drain},
	{"crowd", (*bench).crowd},
}

// settings are what the command line says.
type settings struct {
	measure    []string
	workspaces int
	rounds     int
	starts     int
	faults     int
	every      time.Duration
	freezeFor  time.Duration
	parallel   int
	crowded    int
}

func parse(arguments []string, out io.Writer) (settings, error) {
	var s settings
	var all []string
	for _, m := range measures {
		all = append(all, m.name)
	}
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	flags.SetOutput(out)
	flags.Usage = func() {
		fmt.Fprint(out, "usage: bench [flags]\n\nMeasures starts, losses of nodes, a frozen Temporal, drains and the loss of many nodes at once, and prints Markdown.\n\n")
		flags.PrintDefaults()
	}
	measure := flags.String("measure", strings.Join(all, ","), "what to measure; start-docker needs a Docker engine")
	flags.IntVar(&s.workspaces, "workspaces", 50, "how many are started at once, lost with their node, drained: 1 to 500")
	flags.IntVar(&s.rounds, "rounds", 3, "how often a loss and a drain of so many are measured")
	flags.IntVar(&s.starts, "starts", 20, "how often the start of a single workspace is measured")
	flags.IntVar(&s.faults, "faults", 10, "how often each kind of fault of a node is made, with one workspace on it")
	flags.DurationVar(&s.every, "snapshot-every", workspace.DefaultSnapshotEvery, "the workspaces' interval of snapshots; each is lost at its own age of the newest")
	flags.DurationVar(&s.freezeFor, "freeze-for", time.Minute, "how long Temporal is frozen")
	flags.IntVar(&s.parallel, "drain-parallel", workspace.DrainParallel, fmt.Sprintf("how many a drain moves at once: 1 to %d", workspace.MaxDrainParallel))
	flags.IntVar(&s.crowded, "crowd-workspaces", 1000, "how many run on 20 nodes with pretended instances, of which a quarter is lost: 20 to 5000")
	if err := flags.Parse(arguments); err != nil {
		return s, err
	}
	s.measure = strings.Split(*measure, ",")
	for _, name := range s.measure {
		if !slices.Contains(all, name) {
			return s, fmt.Errorf("--measure %q: want some of %s, with commas", name, strings.Join(all, ", "))
		}
	}
	switch {
	case flags.NArg() > 0:
		return s, fmt.Errorf("%q is not expected: all is said by flags", flags.Arg(0))
	case s.workspaces < 1 || s.workspaces > 500:
		return s, fmt.Errorf("--workspaces %d: want 1 to 500", s.workspaces)
	case s.rounds < 1 || s.starts < 1 || s.faults < 1:
		return s, errors.New("--rounds, --starts and --faults: want at least 1")
	case s.every < workspace.MinSnapshotEvery || s.every > workspace.MaxSnapshotEvery:
		return s, fmt.Errorf("--snapshot-every %s: want %s to %s", s.every, workspace.MinSnapshotEvery, workspace.MaxSnapshotEvery)
	case s.parallel < 1 || s.parallel > workspace.MaxDrainParallel:
		return s, fmt.Errorf("--drain-parallel %d: want 1 to %d", s.parallel, workspace.MaxDrainParallel)
	case s.crowded < 20 || s.crowded > 5000:
		return s, fmt.Errorf("--crowd-workspaces %d: want 20 to 5000", s.crowded)
	case s.freezeFor <= 0:
		return s, fmt.Errorf("--freeze-for %s: want a time above 0", s.freezeFor)
	}
	return s, nil
}

// bench is one run.
type bench struct {
	settings
	dir      string // removed at the end
	binary   string
	temporal string
	out      io.Writer // the report
	progress io.Writer
	stacks   int
}

func run(ctx context.Context, arguments []string, out, progress io.Writer) (err error) {
	s, err := parse(arguments, progress)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "holdfast-bench-")
	if err != nil {
		return fmt.Errorf("making a directory: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	b := &bench{settings: s, dir: dir, binary: filepath.Join(dir, "holdfast"), out: out, progress: progress}
	b.say("building the product")
	if output, err := exec.CommandContext(ctx, "go", "build", "-o", b.binary, "holdfast/starter").CombinedOutput(); err != nil {
		return fmt.Errorf("building the product: %w: %s", err, output)
	}
	if b.temporal, err = devstack.FindTemporal(ctx, devstack.FindOptions{Progress: func(line string) { b.say("%s", line) }}); err != nil {
		return err
	}
	for _, m := range measures {
		if !slices.Contains(s.measure, m.name) {
			continue
		}
		if err := m.run(b, ctx); err != nil {
			return fmt.Errorf("measuring %s: %w", m.name, err)
		}
	}
	return nil
}

func (b *bench) say(format string, args ...any) {
	fmt.Fprintf(b.progress, "bench: %s\n", fmt.Sprintf(format, args...))
}

func (b *bench) report(format string, args ...any) {
	fmt.Fprintf(b.out, format+"\n", args...)
}
