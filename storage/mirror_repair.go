package storage

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"path"
	"slices"
	"sync"

	"github.com/hashicorp/go-multierror"
	"golang.org/x/sync/errgroup"
)

// RepairOptions says how Repair works.
type RepairOptions struct {
	// Order gives the class of a key; lower ones are copied first, and a provider that misses one of a class gets none
	// of the higher ones. A repository's packs come before its indexes and those before its snapshots, so that no
	// provider ever shows a snapshot whose content it lacks. Nil: one class.
	Order func(key string) int
	// Verify says which keys end with the SHA-256 of their content in hexadecimal digits (restic's packs, indexes,
	// snapshots). Only of these can a damaged copy be told from a good one, so only these are ever replaced. Nil: none.
	Verify func(key string) bool
	// Check accepts the content of a key that Verify names, in place of the comparison with its name. Nil: that one.
	Check func(key string, data []byte) error
	// ReadAll reads every copy of what can be verified, and so finds those that are damaged although the listings agree.
	ReadAll bool
	// OnlyReplace copies nothing to where it is missing.
	OnlyReplace bool
	// Only says which keys to work on; the others are left alone as if they were not there. Nil: all below the prefix.
	Only func(key string) bool
	// Parallel is how many objects are copied at once; each is in memory whole. Default 4.
	Parallel int
	// Progress is called after each object, one call at a time.
	Progress func(RepairProgress)
}

// RepairProgress is how far a repair has come.
type RepairProgress struct {
	Done, Total int   // objects that some provider lacks
	Bytes       int64 // copied
}

// RepairReport is what a repair did, also when it ends with an error.
type RepairReport struct {
	Objects  int              `json:"objects"`  // distinct objects seen on any provider
	Copied   map[string]int   `json:"copied"`   // objects written, by the address of the provider that lacked them
	Bytes    map[string]int64 `json:"bytes"`    // the same in bytes
	Replaced int              `json:"replaced"` // of those, copies that were damaged
	// Conflicts are keys of which providers hold different content and nothing says which is right. They are left alone.
	Conflicts []string `json:"conflicts,omitempty"`
	// Lost are verifiable keys of which no provider has a good copy.
	Lost []string `json:"lost,omitempty"`
	// Held are keys that were not copied to some provider because one of a lower class was missing there.
	Held []string `json:"held,omitempty"`
}

// Complete reports whether a repair without error left all providers alike.
func (r RepairReport) Complete() bool {
	return len(r.Conflicts) == 0 && len(r.Lost) == 0 && len(r.Held) == 0
}

// Repair copies objects below prefix that some provider has to those that lack them or hold them with another size or
// checksum, or, with ReadAll, with other bytes. A damaged copy stays until the provider has stored the good one in its place:
// a write is whole or not at all. It is meant for immutable objects: what can be verified is compared with its name, on the way out of the
// source; what cannot be is copied only where all that have it agree and others have nothing, and create-only.
//
// The report says what was done also when there is an error. An error names what could not be listed, read or written;
// running Repair again continues where it ended.
func (m *Mirror) Repair(ctx context.Context, prefix string, options RepairOptions) (RepairReport, error) {
	listings, failed := m.listAll(ctx, prefix, len(m.providers)) // also those that are away: they are what it is for
	r := &repair{
		m: m, options: options, incomplete: map[string]bool{},
		report: RepairReport{Copied: map[string]int{}, Bytes: map[string]int64{}},
	}
	for _, p := range m.providers {
		if err, ok := failed[p.URL()]; ok {
			r.fail(fmt.Errorf("listing %s: %w", p.URL(), err))
		}
	}
	if err := ctx.Err(); err != nil {
		return r.report, err
	}
	if len(listings) > 1 {
		r.plan(listings)
		r.run(ctx)
	}
	slices.Sort(r.report.Conflicts)
	slices.Sort(r.report.Lost)
	slices.Sort(r.report.Held)
	if err := ctx.Err(); err != nil {
		return r.report, err
	}
	return r.report, r.problems.ErrorOrNil()
}

// repair is one run.
type repair struct {
	m       *Mirror
	options RepairOptions
	tasks   []repairTask

	mu         sync.Mutex
	report     RepairReport
	done       int
	bytes      int64
	problems   *multierror.Error
	incomplete map[string]bool // providers that miss something of the classes so far
}

// repairTask is one object that not all providers hold alike.
type repairTask struct {
	key      string
	class    int
	verify   bool
	sources  []Provider // those that have it, in the mirror's order
	missing  []Provider
	disagree bool // the sources differ in size or checksum
	readAll  bool // only the bytes of all sources say which are good
}

func (r *repair) fail(err error) { r.problems = multierror.Append(r.problems, err) }

// plan finds what is to be done. A provider that could not be listed is no source and no target.
func (r *repair) plan(listings map[string][]Object) {
	held := map[string]map[string]Object{} // key, address
	for url, objects := range listings {
		for _, object := range objects {
			if r.options.Only != nil && !r.options.Only(object.Key) {
				continue
			}
			if held[object.Key] == nil {
				held[object.Key] = make(map[string]Object, len(listings))
			}
			held[object.Key][url] = object
		}
	}
	r.report.Objects = len(held)
	for _, key := range slices.Sorted(maps.Keys(held)) {
		task := repairTask{key: key, verify: r.options.Verify != nil && r.options.Verify(key)}
		if r.options.Order != nil {
			task.class = r.options.Order(key)
		}
		var first *Object
		var sum *uint32
		for _, p := range r.m.providers {
			if _, listed := listings[p.URL()]; !listed {
				continue
			}
			object, has := held[key][p.URL()]
			if !has {
				if !r.options.OnlyReplace {
					task.missing = append(task.missing, p)
				}
				continue
			}
			task.sources = append(task.sources, p)
			if first == nil {
				first = &object
			}
			if object.Size != first.Size || (object.HasCRC32C && sum != nil && *sum != object.CRC32C) {
				task.disagree = true
			}
			if object.HasCRC32C {
				sum = &object.CRC32C
			}
		}
		task.readAll = task.verify && (task.disagree || r.options.ReadAll)
		if len(task.missing) > 0 || task.disagree || task.readAll {
			r.tasks = append(r.tasks, task)
		}
	}
	slices.SortStableFunc(r.tasks, func(a, b repairTask) int { return cmp.Compare(a.class, b.class) })
}

// run works through the tasks, class by class.
func (r *repair) run(ctx context.Context) {
	parallel := r.options.Parallel
	if parallel <= 0 {
		parallel = 4
	}
	for start := 0; start < len(r.tasks) && ctx.Err() == nil; {
		end := start
		for end < len(r.tasks) && r.tasks[end].class == r.tasks[start].class {
			end++
		}
		barred := maps.Clone(r.incomplete) // by lower classes only
		var group errgroup.Group
		group.SetLimit(parallel)
		for _, task := range r.tasks[start:end] {
			group.Go(func() error {
				if ctx.Err() == nil {
					r.one(ctx, task, barred)
				}
				return nil
			})
		}
		_ = group.Wait() // failures are gathered in the report
		start = end
	}
}

// one brings one object to where it lacks.
func (r *repair) one(ctx context.Context, task repairTask, barred map[string]bool) {
	data, targets, problems, err := r.source(ctx, task)
	replaced := map[string]bool{}
	for _, p := range task.sources {
		replaced[p.URL()] = true
	}
	incomplete, copied, hold := []string{}, []string{}, false
	if err != nil {
		// A conflict or a loss is no reason to hold back the rest: no later run will find more.
		if errors.Is(err, errUnread) {
			for _, p := range targets {
				incomplete = append(incomplete, p.URL())
			}
		}
		targets = nil
	}
	for _, p := range targets {
		url := p.URL()
		if barred[url] {
			hold = true
			incomplete = append(incomplete, url)
			continue
		}
		// What is damaged must be replaced; what is missing is created, so that a writer at work is never overwritten.
		err := r.m.putOne(ctx, p, task.key, data, PutOptions{CreateOnly: !replaced[url]})
		if err != nil {
			incomplete = append(incomplete, url)
			problems = append(problems, fmt.Errorf("copying %s to %s: %w", task.key, url, err))
			continue
		}
		copied = append(copied, url)
	}

	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case errors.Is(err, errConflict):
		r.report.Conflicts = append(r.report.Conflicts, task.key)
	case errors.Is(err, errLost):
		r.report.Lost = append(r.report.Lost, task.key)
	case hold:
		r.report.Held = append(r.report.Held, task.key)
	}
	for _, err := range problems {
		r.fail(err)
	}
	for _, url := range incomplete {
		r.incomplete[url] = true
	}
	for _, url := range copied {
		r.report.Copied[url]++
		r.report.Bytes[url] += int64(len(data))
		r.bytes += int64(len(data))
		if replaced[url] {
			r.report.Replaced++
		}
	}
	r.done++
	if r.options.Progress != nil {
		r.options.Progress(RepairProgress{Done: r.done, Total: len(r.tasks), Bytes: r.bytes})
	}
}

var (
	errConflict = errors.New("the providers hold different content and nothing says which is right")
	errLost     = errors.New("no provider has a good copy")
	errUnread   = errors.New("no copy could be read")
)

// source gives the content of an object, the providers that need it, and what could not be read on the way. The error
// is one of the three above.
func (r *repair) source(ctx context.Context, task repairTask) (data []byte, targets []Provider, problems []error, err error) {
	targets = task.missing
	if !task.verify && task.disagree {
		return nil, targets, nil, errConflict
	}
	var check func([]byte) error
	if task.verify {
		check = func(data []byte) error { return r.options.check(task.key, data) }
	}
	found, damaged := false, 0
	for _, p := range task.sources {
		read, err := r.read(ctx, p, task.key, check)
		switch {
		case err == nil && found: // one in memory is enough
		case err == nil:
			data, found = read, true
		case task.verify && errors.Is(err, ErrIntegrity):
			targets = append(slices.Clone(targets), p)
			damaged++
		default: // a copy that cannot be reached is neither good nor damaged
			problems = append(problems, fmt.Errorf("reading %s from %s: %w", task.key, p.URL(), err))
		}
		if found && !task.readAll {
			break
		}
	}
	switch {
	case found:
		return data, targets, problems, nil
	case damaged == len(task.sources):
		return nil, targets, nil, errLost
	default:
		return nil, targets, problems, errUnread
	}
}

// read gets one whole object from one provider, trying again in place; a copy that is damaged twice is damaged.
func (r *repair) read(ctx context.Context, p Provider, key string, check func([]byte) error) (data []byte, err error) {
	var damaged error
	err = r.m.retry(ctx, func() error {
		data, err = r.m.loadOne(ctx, p, r.m.options.StallTimeout, key, 0, -1, check)
		if errors.Is(err, ErrIntegrity) && damaged != nil {
			return nil
		}
		damaged = nil
		if errors.Is(err, ErrIntegrity) {
			damaged = err
		}
		return err
	})
	if damaged != nil {
		return nil, damaged
	}
	return data, err
}

func (o *RepairOptions) check(key string, data []byte) error {
	if o.Check != nil {
		return o.Check(key, data)
	}
	return nameIsHash(key, data)
}

func nameIsHash(key string, data []byte) error {
	sum := sha256.Sum256(data)
	if got := hex.EncodeToString(sum[:]); got != path.Base(key) {
		return fmt.Errorf("SHA-256 of %s is %s", key, got)
	}
	return nil
}
