package snapshot

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// scanHandler is told what a scan finds. Its methods are called from several goroutines at once, but for one directory
// in the order enter, entry…, leave. An error ends the scan; what concerns only one entry is not returned but noted.
type scanHandler interface {
	// enter is called with the open directory, before it is listed.
	enter(ctx context.Context, d *scanDir, fd int) error
	// listed is called when d.entries are known and nothing of them was handled.
	listed(ctx context.Context, d *scanDir) error
	// entry is called for everything but directories. It may correct e.stat, or set e.gone when there is nothing.
	entry(ctx context.Context, worker int, d *scanDir, fd int, e *scanEntry) error
	// leave is called when everything below d is done.
	leave(ctx context.Context, d *scanDir) error
	// omit notes something that could not be read.
	omit(path string, kind OmissionKind, reason string)
	// vanished notes an entry that was listed and is not there any more.
	vanished(path string)
	// excluded notes an entry that a rule leaves out; of a directory nothing below is looked at. It is called between
	// enter and listed.
	excluded(path string, dir bool, pattern *ignorePattern, from *ignoreRules)
	// voidRules notes an ignore file that leaves nothing out because of err.
	voidRules(path string, err error)
}

// scanDir is a directory within a scan.
type scanDir struct {
	parent  *scanDir
	slot    int    // of this directory in parent.entries
	path    string // relative to the root, "" for the root
	depth   int
	stat    statRecord // as it was before the directory was listed
	entries []scanEntry
	// unreadable: entries are not all there are.
	unreadable bool
	digest     [sha256.Size]byte // set when the scan has left the directory

	rules    *ignoreRules // for the entries; nil when there are none
	ruleStat *statRecord  // of the directory's own ignore file, as it was when the rules were read

	pending atomic.Int64 // subdirectories and batches that are not done
	fd      int          // open until the last batch is done
	batches atomic.Int64

	// what a backup keeps with it
	node     node
	recalled recalledDir
	lookUp   sync.Mutex // for what the parent snapshot has
	lookedUp bool
	previous []node // this directory's nodes in the parent snapshot
}

// scanEntry is one entry of a directory.
type scanEntry struct {
	name   string
	dir    bool
	stat   statRecord
	digest [sha256.Size]byte // of a directory
	gone   bool
	node   *node // of a backup; nil for what is left out
	// there, recalled and doubtful are a backup's, with its state file: see backup_state.go.
	there, recalled, doubtful bool
	// replaced is how often a backup found another file under the name than the one that it was reading.
	replaced uint8
}

func (d *scanDir) join(name string) string {
	if d.path == "" {
		return name
	}
	return d.path + "/" + name
}

// scan walks a directory tree with several goroutines. The unit of work is a directory, or a batch of the entries of a
// large one; the newest unit is taken first, which keeps few directories unfinished. Directories are opened by their
// path below root, never following a link.
type scan struct {
	root          int
	componentWise bool
	workers       int
	handler       scanHandler
	excludes      *ignoreRules // of the call
	listers       []nameLister // by worker

	mu      sync.Mutex
	wake    *sync.Cond
	stack   []scanUnit
	running int // units taken and not done
	stopped bool
}

// scanUnit is a directory to list, or the entries [from, to) of one that has been.
type scanUnit struct {
	dir      *scanDir
	from, to int // to is 0 for a directory
}

// scanBatch is how many entries of a directory one goroutine takes at once.
const scanBatch = 256

// openRoot opens the directory that a scan begins in. Its path may lead through links.
func openRoot(path string) (int, error) {
	fd, err := openRetry(unix.AT_FDCWD, path, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return -1, fmt.Errorf("opening %s: %w: %w", quotePath(path), ErrSourceMissing, err)
	}
	return fd, nil
}

// run scans everything below root, an open directory, and returns the root directory with its digest.
func (s *scan) run(ctx context.Context) (*scanDir, error) {
	s.componentWise = !hasOpenat2(s.root)
	s.wake = sync.NewCond(&s.mu)
	s.listers = make([]nameLister, s.workers)
	root := &scanDir{}
	s.stack = []scanUnit{{dir: root}}
	group, groupContext := errgroup.WithContext(ctx)
	stop := context.AfterFunc(groupContext, func() {
		s.mu.Lock()
		s.stopped = true
		s.mu.Unlock()
		s.wake.Broadcast()
	})
	defer stop()
	for worker := range s.workers {
		group.Go(func() error {
			for {
				unit, ok := s.take()
				if !ok {
					return context.Cause(groupContext)
				}
				if err := s.takeUnit(groupContext, worker, unit); err != nil {
					return err
				}
			}
		})
	}
	err := group.Wait()
	s.closeLeftOver()
	if err != nil {
		return nil, err
	}
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	if root.pending.Load() != 0 {
		return nil, errors.New("the scan ended before everything was seen") // a defect, which must not look like success
	}
	return root, nil
}

// takeUnit counts the unit as done also when a handler ends the goroutine, as a failed assertion of a test does.
func (s *scan) takeUnit(ctx context.Context, worker int, unit scanUnit) error {
	defer s.done()
	return s.unit(ctx, worker, unit)
}

func (s *scan) take() (scanUnit, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		if s.stopped || (len(s.stack) == 0 && s.running == 0) {
			return scanUnit{}, false
		}
		if n := len(s.stack); n > 0 {
			unit := s.stack[n-1]
			s.stack[n-1] = scanUnit{}
			s.stack = s.stack[:n-1]
			s.running++
			return unit, true
		}
		s.wake.Wait()
	}
}

func (s *scan) done() {
	s.mu.Lock()
	s.running--
	idle := s.running == 0 && len(s.stack) == 0
	s.mu.Unlock()
	if idle {
		s.wake.Broadcast()
	}
}

func (s *scan) push(units []scanUnit) {
	if len(units) == 0 {
		return
	}
	s.mu.Lock()
	s.stack = append(s.stack, units...)
	s.mu.Unlock()
	s.wake.Broadcast()
}

// closeLeftOver closes the directories whose batches were never taken.
func (s *scan) closeLeftOver() {
	for _, unit := range s.stack {
		if unit.to > 0 && unit.dir.batches.Add(-1) == 0 {
			unix.Close(unit.dir.fd)
		}
	}
	s.stack = nil
}

func (s *scan) unit(ctx context.Context, worker int, unit scanUnit) error {
	if unit.to == 0 {
		return s.directory(ctx, worker, unit.dir)
	}
	d := unit.dir
	err := s.entries(ctx, worker, d, unit.from, unit.to)
	if d.batches.Add(-1) == 0 {
		unix.Close(d.fd)
	}
	if err != nil {
		return err
	}
	return s.finished(ctx, d)
}

// directory lists one directory and handles its entries, or leaves them to whoever is free.
func (s *scan) directory(ctx context.Context, worker int, d *scanDir) error {
	fd, err := openBeneath(s.root, d.path, s.componentWise)
	if err != nil {
		return s.unopened(ctx, d, err)
	}
	keep := false
	defer func() {
		if !keep {
			unix.Close(fd)
		}
	}()
	d.fd = fd
	if err := s.list(ctx, worker, d, fd); err != nil {
		return err
	}
	var units []scanUnit
	for slot := range d.entries {
		e := &d.entries[slot]
		if !e.dir {
			continue
		}
		if d.depth+1 > maxDepth {
			s.handler.omit(d.join(e.name), OmissionUnreadable, fmt.Sprintf("directories nest deeper than %d", maxDepth))
			e.gone = true
			continue
		}
		child := &scanDir{parent: d, slot: slot, path: d.join(e.name), depth: d.depth + 1, stat: e.stat}
		units = append(units, scanUnit{dir: child})
	}
	slices.Reverse(units) // the stack hands out the last one first: names in ascending order
	if len(d.entries)-len(units) <= scanBatch {
		// One more, for this goroutine itself, so that no child that ends meanwhile finishes the directory.
		d.pending.Store(int64(len(units)) + 1)
		s.push(units)
		if err := s.entries(ctx, worker, d, 0, len(d.entries)); err != nil {
			return err
		}
		return s.finished(ctx, d)
	}
	batches := 0
	for from := 0; from < len(d.entries); from += scanBatch {
		units = append(units, scanUnit{dir: d, from: from, to: min(from+scanBatch, len(d.entries))})
		batches++
	}
	d.pending.Store(int64(len(units)))
	d.batches.Store(int64(batches))
	keep = true
	s.push(units)
	return nil
}

// unopened notes a directory that cannot be opened. It stays in the snapshot as an empty one unless it is gone.
func (s *scan) unopened(ctx context.Context, d *scanDir, err error) error {
	switch {
	case d.parent == nil:
		return fmt.Errorf("opening the directory: %w: %w", ErrSourceMissing, err)
	case exhausted(err):
		return err
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.ELOOP):
		d.parent.entries[d.slot].gone = true
		if errors.Is(err, unix.ENOENT) {
			s.handler.vanished(d.path)
		} else {
			s.handler.omit(d.path, OmissionChanged, "the directory became something else")
		}
		return s.finished(ctx, d.parent)
	}
	s.handler.omit(d.path, OmissionUnreadable, err.Error())
	d.unreadable = true
	d.pending.Store(1)
	return s.finished(ctx, d)
}

// list reads the names and stat records of a directory.
func (s *scan) list(ctx context.Context, worker int, d *scanDir, fd int) error {
	var stat unix.Stat_t
	if err := fstat(fd, &stat); err != nil {
		return fmt.Errorf("examining the directory %s: %w", quotePath(d.path), err)
	}
	if record := recordOf(&stat); record.unsettled(time.Now()) > 0 {
		if err := pause(ctx, record.unsettled(time.Now())); err != nil {
			return err
		}
		if err := fstat(fd, &stat); err != nil {
			return fmt.Errorf("examining the directory %s: %w", quotePath(d.path), err)
		}
	}
	d.stat = recordOf(&stat)
	if err := s.handler.enter(ctx, d, fd); err != nil {
		return err
	}
	names, err := s.listers[worker].list(fd)
	if err != nil {
		switch {
		case exhausted(err):
			return fmt.Errorf("listing %s: %w", quotePath(d.path), err)
		case d.parent == nil:
			return fmt.Errorf("listing the directory: %w: %w", ErrSourceMissing, err)
		case errors.Is(err, unix.ENOENT): // it was removed since it was opened
			d.parent.entries[d.slot].gone = true
			s.handler.vanished(d.path)
			return nil
		}
		s.handler.omit(d.path, OmissionUnreadable, "listing: "+err.Error())
		d.unreadable = true
	}
	slices.Sort(names)
	if err := s.findRules(ctx, d, fd, names); err != nil {
		return err
	}
	d.entries = make([]scanEntry, 0, len(names))
	for i, name := range names {
		if i%1024 == 0 && ctx.Err() != nil {
			return context.Cause(ctx)
		}
		switch err := fstatat(fd, name, &stat); {
		case err == nil:
			dir := stat.Mode&unix.S_IFMT == unix.S_IFDIR
			if pattern, from := s.leavesOut(d, name, dir); pattern != nil {
				s.handler.excluded(d.join(name), dir, pattern, from)
				continue
			}
			d.entries = append(d.entries, scanEntry{name: name, dir: dir, stat: recordOf(&stat)})
		case errors.Is(err, unix.ENOENT):
			s.handler.vanished(d.join(name))
		case exhausted(err):
			return fmt.Errorf("examining %s: %w", quotePath(d.join(name)), err)
		default:
			s.handler.omit(d.join(name), OmissionUnreadable, err.Error())
		}
	}
	return s.handler.listed(ctx, d)
}

func (s *scan) entries(ctx context.Context, worker int, d *scanDir, from, to int) error {
	for i := from; i < to; i++ {
		e := &d.entries[i]
		if e.dir {
			continue
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err := s.handler.entry(ctx, worker, d, d.fd, e); err != nil {
			return err
		}
	}
	return nil
}

// finished counts down one part of a directory, and when it was the last leaves it, and its parents as far as that was
// their last part.
func (s *scan) finished(ctx context.Context, d *scanDir) error {
	for d.pending.Add(-1) == 0 {
		if err := s.handler.leave(ctx, d); err != nil {
			return err
		}
		d.digest = d.computeDigest()
		d.previous, d.recalled.known = nil, nil
		if d.parent == nil {
			return nil
		}
		above := &d.parent.entries[d.slot]
		above.stat, above.digest = d.stat, d.digest
		d.entries = nil
		d = d.parent
	}
	return nil
}

// exhausted reports whether an error is about this process and not about the entry: no descriptors or memory left.
// Such an error ends a backup instead of becoming an omission.
func exhausted(err error) bool {
	return errors.Is(err, unix.EMFILE) || errors.Is(err, unix.ENFILE) || errors.Is(err, unix.ENOMEM)
}
