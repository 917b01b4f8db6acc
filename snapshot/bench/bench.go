package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// bench is one run of this program.
type bench struct {
	settings
	log   io.Writer
	tools []*tool // Holdfast, then the peers

	dir    string // of data sets and restores
	stores string // of repositories

	results  []setResult
	restores int      // compared, and found equal
	checks   []string // of Holdfast's repositories, by restic
}

// setResult is what was measured with one data set.
type setResult struct {
	name   string
	extent extent
	// costs are by step and tool, one of each round.
	costs map[string]map[string][]cost
	// sizes are of the repositories after the first backup.
	sizes map[string]int64
	// derivations are the costs of opening a repository, all that there were.
	derivations map[string][]string
}

func newBench(ctx context.Context, s settings, log io.Writer) (*bench, error) {
	own, err := holdfastTool(s.profiles)
	if err != nil {
		return nil, err
	}
	b := &bench{settings: s, log: log, tools: []*tool{own}}
	for _, peer := range s.peers {
		t, err := detect(ctx, peer, s.kopiaCompression)
		if err != nil {
			return nil, err
		}
		if slices.ContainsFunc(b.tools, func(other *tool) bool { return other.name == t.name }) {
			return nil, fmt.Errorf("--peer: %s is given twice", t.name)
		}
		b.tools = append(b.tools, t)
	}
	if len(b.sources) == 0 {
		if b.sources, err = defaultSources(ctx); err != nil {
			return nil, err
		}
	}
	if b.repositories == "" {
		b.repositories = b.work
		if isMemory("/dev/shm") {
			b.repositories = "/dev/shm"
		}
	}
	for _, dir := range []string{s.data, s.profiles} {
		if dir != "" {
			if err := os.MkdirAll(dir, 0o755); err != nil {
				return nil, err
			}
		}
	}
	if err := b.checkSpace(); err != nil {
		return nil, err
	}
	if b.dir, err = os.MkdirTemp(b.work, "holdfast-bench-"); err != nil {
		return nil, err
	}
	if b.stores, err = os.MkdirTemp(b.repositories, "holdfast-bench-"); err != nil {
		return nil, errors.Join(err, b.close())
	}
	return b, nil
}

func (b *bench) close() error {
	var failures []error
	for _, dir := range []string{b.dir, b.stores} {
		if dir != "" {
			failures = append(failures, os.RemoveAll(dir))
		}
	}
	return errors.Join(failures...)
}

func isMemory(dir string) bool {
	var fs unix.Statfs_t
	return unix.Statfs(dir, &fs) == nil && fs.Type == unix.TMPFS_MAGIC
}

// checkSpace refuses to begin what will not fit: the data sets and one restore on the one side, on the other a
// repository of each program.
func (b *bench) checkSpace() error {
	var all, largest int64
	for _, name := range b.sets {
		size := int64(map[string]float64{sourceSet: sourceBytes, tinySet: tinyFiles * 4096, largeSet: 2 * largeBytes}[name] * b.scale)
		all, largest = all+size, max(largest, size)
	}
	needs := map[string]int64{}
	data := b.work
	if b.data != "" {
		data = b.data
	}
	needs[data] += all
	needs[b.work] += largest
	needs[b.repositories] += int64(len(b.tools)) * largest
	for dir, need := range needs {
		var fs unix.Statfs_t
		if err := unix.Statfs(dir, &fs); err != nil {
			return fmt.Errorf("the directory %s: %w", dir, err)
		}
		if free := int64(fs.Bavail) * fs.Bsize; free < need+need/10 {
			return fmt.Errorf("%s has %d MB free and up to %d MB are needed: name another directory, or a smaller --scale",
				dir, free/1e6, (need+need/10)/1e6)
		}
	}
	return nil
}

func (b *bench) say(format string, values ...any) {
	fmt.Fprintf(b.log, time.Now().Format(time.TimeOnly)+" "+format+"\n", values...)
}

// source is where a data set is, made if it is not there yet.
func (b *bench) source(ctx context.Context, name string) (string, error) {
	parent := b.dir
	if b.data != "" {
		parent = b.data
	}
	dir := filepath.Join(parent, fmt.Sprintf("%s-%g", name, b.scale))
	if _, err := os.Stat(dir); err == nil {
		return dir, nil
	}
	b.say("making the data set %s", name)
	unfinished := dir + ".unfinished"
	if err := os.RemoveAll(unfinished); err != nil {
		return "", err
	}
	if err := makeSet(ctx, name, unfinished, b.scale, b.sources); err != nil {
		return "", errors.Join(err, os.RemoveAll(unfinished))
	}
	return dir, os.Rename(unfinished, dir)
}

func (b *bench) measureSet(ctx context.Context, name string) error {
	source, err := b.source(ctx, name)
	if err != nil {
		return err
	}
	size, err := measure(ctx, source)
	if err != nil {
		return fmt.Errorf("reading the data set %s: %w", name, err)
	}
	result := setResult{name: name, extent: size, costs: map[string]map[string][]cost{}, sizes: map[string]int64{}, derivations: map[string][]string{}}
	for number := range b.rounds {
		r := &round{b: b, result: &result, source: source, number: number, places: map[*tool]place{}}
		if err := r.run(ctx); err != nil {
			return fmt.Errorf("data set %s, round %d: %w", name, number+1, err)
		}
	}
	b.results = append(b.results, result)
	if b.data == "" {
		return os.RemoveAll(source)
	}
	return nil
}

func (b *bench) add(result *setResult, step, name string, spent cost) {
	if result.costs[step] == nil {
		result.costs[step] = map[string][]cost{}
	}
	result.costs[step][name] = append(result.costs[step][name], spent)
	b.say("%-8s %-10s %-24s %7.2f s  cpu %7.2f s  peak %4d MB", result.name, step, name,
		spent.wall.Seconds(), spent.cpu.Seconds(), spent.peak/1e6)
}
