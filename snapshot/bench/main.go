// Command bench compares Holdfast's snapshot engine with restic and kopia on the machine that it runs on:
//
//	go run ./snapshot/bench --peer /usr/bin/restic --peer /usr/local/bin/kopia
//
// It makes its data sets from the Go sources that are on every machine that builds Holdfast, runs each program as a
// child process in rotation, compares every restored file with its source, and prints medians as Markdown. What the
// numbers mean is in docs/performance.md.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	"holdfast/snapshot"
)

func main() {
	if len(os.Args) > 1 && os.Args[1] == engineArgument {
		os.Exit(engineMain(os.Args[2:], snapshot.KDFParameters{}))
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

// settings are what the command line says.
type settings struct {
	peers  []string
	sets   []string
	steps  []string
	rounds int
	scale  float64
	// work is for the data sets and restores, repositories for the stores; data keeps the data sets for another run.
	work, repositories, data string
	sources                  []string
	timeout                  time.Duration
	profiles                 string
	kopiaCompression         string
}

const usage = `usage: bench [flags]

Compares backups, restores and checks of Holdfast with restic and kopia, and prints Markdown.

`

func parse(arguments []string, out io.Writer) (settings, error) {
	var s settings
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	flags.SetOutput(out)
	flags.Usage = func() {
		fmt.Fprint(out, usage)
		flags.PrintDefaults()
	}
	list := func(to *[]string) func(string) error {
		return func(value string) error {
			*to = append(*to, value)
			return nil
		}
	}
	flags.Func("peer", "a restic or kopia `binary` to compare with; may be given several times", list(&s.peers))
	sets := flags.String("sets", strings.Join(setNames, ","), "data sets to measure")
	steps := flags.String("steps", strings.Join(stepNames, ","), "what to measure; first is always done, because the others need it")
	flags.IntVar(&s.rounds, "rounds", 5, "how often each thing is measured")
	flags.Float64Var(&s.scale, "scale", 1, "size of the data sets: 1 is 70,000 files and 2 GB of sources, 100,000 tiny files, 2 GiB of large files")
	flags.StringVar(&s.work, "work", os.TempDir(), "`directory` for data sets and restores, on the kind of disk that matters")
	flags.StringVar(&s.repositories, "repositories", "", "`directory` for the repositories; best a tmpfs, so that no disk is measured (default /dev/shm where that is one, else --work)")
	flags.StringVar(&s.data, "data", "", "`directory` that keeps the data sets for the next run (default: made anew and removed)")
	flags.Func("source", "`directory` to take the sources from; may be given several times (default: the Go distribution and the module cache)", list(&s.sources))
	flags.DurationVar(&s.timeout, "timeout", 20*time.Minute, "the longest that one command may take")
	flags.StringVar(&s.profiles, "profiles", "", "`directory` to write CPU and heap profiles of Holdfast's commands to; profiling costs a few per cent")
	flags.StringVar(&s.kopiaCompression, "kopia-compression", "zstd-fastest", "compression of kopia's repositories; its own default is none")
	if err := flags.Parse(arguments); err != nil {
		return s, err
	}
	s.sets, s.steps = strings.Split(*sets, ","), strings.Split(*steps, ",")
	return s, s.validate(flags.Args())
}

func (s *settings) validate(rest []string) error {
	if len(rest) > 0 {
		return fmt.Errorf("%q: only flags are expected; a binary to compare with is given by --peer", rest[0])
	}
	for _, name := range s.sets {
		if !slices.Contains(setNames, name) {
			return fmt.Errorf("--sets: there is no data set %q; there are %s", name, strings.Join(setNames, ", "))
		}
	}
	for _, name := range s.steps {
		if !slices.Contains(stepNames, name) {
			return fmt.Errorf("--steps: there is no step %q; there are %s", name, strings.Join(stepNames, ", "))
		}
	}
	switch {
	case s.rounds < 1:
		return fmt.Errorf("--rounds %d: at least 1", s.rounds)
	case s.scale <= 0 || s.scale > 10:
		return fmt.Errorf("--scale %g: more than 0 and at most 10", s.scale)
	case s.timeout <= 0:
		return fmt.Errorf("--timeout %s: more than 0", s.timeout)
	}
	for _, dir := range slices.Concat([]string{s.work}, s.sources) {
		if stat, err := os.Stat(dir); err != nil {
			return fmt.Errorf("the directory %s: %w", dir, err)
		} else if !stat.IsDir() {
			return fmt.Errorf("%s is not a directory", dir)
		}
	}
	return nil
}

// run is the program; what it made is gone when it returns, whatever happened.
func run(ctx context.Context, arguments []string, out, log io.Writer) (err error) {
	s, err := parse(arguments, log)
	if err != nil {
		return err
	}
	b, err := newBench(ctx, s, log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.close()) }()
	for _, name := range s.sets {
		if err := b.measureSet(ctx, name); err != nil {
			if ctx.Err() != nil {
				return errors.New("interrupted")
			}
			return err
		}
	}
	return b.report(out)
}
