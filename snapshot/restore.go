package snapshot

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
)

// Restore puts a snapshot ("latest", an id or a prefix of one), or the part of it that options.Path names, in place at
// target: the directory's content directly in it; of a single file, the file in it under its own name. The target must
// not exist, not even as an empty directory (ErrTargetExists); its parent must.
//
// Everything is written into a hidden directory beside the target, verified file by file against the hashes in the
// snapshot, synced to the disk, and renamed into place (invariant 5). Until then there is no target. What an attempt
// leaves that was killed or cancelled, or failed in a way that another attempt may not (a provider away), stays in the
// hidden directory; the next Restore to the same target, of whatever snapshot, goes on from there and fetches only what is
// not there with the right hash. Who gives up removes what Unfinished lists. After any other error nothing is left.
// Nothing in the snapshot can write outside of the directory.
//
// What this user may not set (other owners, devices) is in the report's warnings. Errors: ErrNoSnapshot, ErrNoPath,
// ErrTargetExists, ErrDamaged (every provider was asked), ErrUnsafePath, ErrLimitExceeded, ErrLocalSpace, and storage's.
func (r *Repository) Restore(ctx context.Context, snapshot, target string, options RestoreOptions) (report *RestoreReport, err error) {
	ended := r.options.Metrics.began("restore")
	defer func() { ended(err) }()
	if report, err = r.restore(ctx, snapshot, target, options, defaultMaxEntries); err == nil {
		r.options.Metrics.restored(report)
	}
	return report, err
}

func (r *Repository) restore(ctx context.Context, snapshot, target string, options RestoreOptions, maxEntries int64) (_ *RestoreReport, err error) {
	began := time.Now()
	fallbacks := r.fallbacks()
	// Refused before anything is read.
	t, err := newTarget(target, true)
	if err != nil {
		return nil, fmt.Errorf("restoring: %w", err)
	}
	defer func() { err = t.finish(err) }()
	stored, err := r.resolveSnapshot(ctx, snapshot)
	if err != nil {
		t.keep = goesOn(ctx, err)
		return nil, fmt.Errorf("restoring: %w", err)
	}
	s := newRestorer(r, t, options, maxEntries)
	defer s.abandonState()
	if err := s.run(ctx, stored, options.Path); err != nil {
		t.keep = goesOn(ctx, err)
		return nil, fmt.Errorf("restoring snapshot %s: %w", stored.id.short(), withCause(ctx, err))
	}
	if err := t.commit(ctx, options.Prepare, s.plan.rootMeta); err != nil {
		t.keep = ctx.Err() != nil
		return nil, fmt.Errorf("restoring snapshot %s: %w", stored.id.short(), err)
	}
	s.writeState()
	s.meter.done()
	report := &RestoreReport{
		Snapshot: stored.id.String(), Files: s.plan.files, Dirs: int64(len(s.plan.dirs) - 1), Bytes: s.plan.bytes, Reused: s.reused,
		Seconds: time.Since(began).Seconds(), Warnings: t.warnings.all(), Fallbacks: r.fallbacksSince(fallbacks),
	}
	if stored.Holdfast != nil {
		report.Omissions, report.Excluded = stored.Holdfast.Omissions, stored.Holdfast.Excluded
	}
	return report, nil
}

// restorer is the state of one Restore.
type restorer struct {
	repository *Repository
	target     *target
	meter      *meter
	workers    int
	reader     *packReader
	hashers    *sync.Pool
	plan       *plan
	maxEntries int64

	mutex  sync.Mutex
	have   map[int32][]bool // of files that an earlier attempt left: which of their blobs are in place
	reused int64            // bytes of these

	state   *stateWriter // nil when no state file is wanted
	witness *witness     // as state
	tree    blobID       // of the top directory

	// beforeFinish and wrote are where tests spoil or cut what is written.
	beforeFinish func()
	wrote        func(path string)
}

func newRestorer(r *Repository, t *target, options RestoreOptions, maxEntries int64) *restorer {
	s := &restorer{
		repository: r, target: t, meter: newMeter(options.Progress), workers: r.options.Concurrency,
		reader: newPackReader(r), hashers: newHasherPool(), plan: &plan{}, maxEntries: maxEntries, have: map[int32][]bool{},
		wrote: options.wrote,
	}
	if options.StateFile != "" {
		s.state = r.newStateWriter(options.StateFile, nil)
	}
	return s
}

func (s *restorer) run(ctx context.Context, stored *storedSnapshot, path string) error {
	if err := s.planSnapshot(ctx, stored, path); err != nil {
		return err
	}
	if s.state != nil {
		s.witness = newWitness(s.plan)
	}
	s.meter.total(s.plan.files, s.plan.bytes)
	if s.target.resumed {
		if err := s.takeOver(ctx); err != nil {
			return fmt.Errorf("looking at what an earlier attempt left: %w", err)
		}
	}
	l, err := s.layOut()
	if err != nil {
		return err
	}
	if err := s.create(ctx, l); err != nil {
		return err
	}
	if err := s.writeData(ctx, l); err != nil {
		return err
	}
	if err := s.createLinks(ctx); err != nil {
		return err
	}
	if s.beforeFinish != nil {
		s.beforeFinish()
	}
	if err := s.eachDir(ctx, 0, int32(len(s.plan.dirs)), nil, s.finishIn); err != nil {
		return err
	}
	if err := s.finishDirs(ctx); err != nil {
		return err
	}
	return s.noteState(ctx)
}

// planSnapshot reads all trees that are needed before anything is created.
func (s *restorer) planSnapshot(ctx context.Context, stored *storedSnapshot, path string) error {
	defer func() { s.reader = nil }() // its packs are of no more use
	p := &planner{
		repository: s.repository, reader: s.reader, warnings: &s.target.warnings, plan: s.plan,
		maxEntries: s.maxEntries, links: map[inodeKey]int32{},
	}
	found, err := s.reader.find(ctx, stored, path)
	if err != nil {
		return err
	}
	if found.isDir() {
		if found.node != nil {
			m := metadataOf(found.node)
			s.plan.rootMeta = &m
		}
		s.tree = found.tree
		if found.path == "" {
			p.expect(stored.Summary)
		}
		return p.planTrees(ctx, found.tree)
	}
	s.plan.dirs, s.plan.levels = []plannedDir{{}}, []int32{0}
	_, err = p.addDir(0, []node{*found.node})
	return err
}

// withCause adds why the context ended to an error that came of that.
func withCause(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil && !errors.Is(err, cause) {
		return fmt.Errorf("%w: %w", cause, err)
	}
	return err
}
