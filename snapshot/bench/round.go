package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
)

// The steps, in the order of a round.
const (
	firstStep     = "first"
	unchangedStep = "unchanged"
	changedStep   = "changed"
	restoreStep   = "restore"
	checkStep     = "check"
)

var stepNames = []string{firstStep, unchangedStep, changedStep, restoreStep, checkStep}

// round measures each step once with each tool, one tool after the other within each step, in new repositories.
type round struct {
	b      *bench
	result *setResult
	source string
	number int
	places map[*tool]place
	stay   *residentEngine
}

func (r *round) run(ctx context.Context) (err error) {
	defer func() { err = errors.Join(err, r.close()) }()
	if err := r.create(ctx); err != nil {
		return err
	}
	if err := r.each(ctx, firstStep, r.backUp); err != nil {
		return err
	}
	for t, p := range r.places {
		if r.result.sizes[t.name], err = sizeOf(p.repository); err != nil {
			return err
		}
		cost, err := derivation(p.repository)
		if err != nil {
			return err
		}
		if all := r.result.derivations[t.name]; cost != "" && !slices.Contains(all, cost) {
			r.result.derivations[t.name] = append(all, cost)
		}
	}
	for _, step := range []struct {
		name string
		do   func(context.Context) error
	}{
		{unchangedStep, r.unchanged},
		{changedStep, r.changed},
		{restoreStep, func(ctx context.Context) error { return r.each(ctx, restoreStep, r.restore) }},
		{checkStep, func(ctx context.Context) error { return r.each(ctx, checkStep, r.check) }},
	} {
		if slices.Contains(r.b.steps, step.name) {
			if err := step.do(ctx); err != nil {
				return err
			}
		}
	}
	if r.number == r.b.rounds-1 {
		return r.checkWithRestic(ctx)
	}
	return nil
}

// create makes a repository for each tool.
func (r *round) create(ctx context.Context) error {
	for i, t := range r.b.tools {
		p := place{
			source: r.source, repository: filepath.Join(r.b.stores, fmt.Sprintf("%d-repository", i)),
			state: filepath.Join(r.b.stores, fmt.Sprintf("%d-state", i)), target: filepath.Join(r.b.dir, "restored"),
		}
		r.places[t] = p
		if err := os.Mkdir(p.state, 0o755); err != nil {
			return err
		}
		for _, c := range t.create(p) {
			if _, _, err := c.run(ctx, r.b.timeout); err != nil {
				return err
			}
		}
	}
	return nil
}

func (r *round) close() error {
	var failures []error
	if r.stay != nil {
		failures = append(failures, r.stay.end())
	}
	for _, p := range r.places {
		failures = append(failures, os.RemoveAll(p.repository), os.RemoveAll(p.state))
	}
	return errors.Join(failures...)
}

// each measures one step with every tool.
func (r *round) each(ctx context.Context, step string, do func(context.Context, *tool, place) (cost, error)) error {
	for _, t := range r.b.tools {
		spent, err := do(ctx, t, r.places[t])
		if err != nil {
			return fmt.Errorf("%s, %s: %w", t.name, step, err)
		}
		r.b.add(r.result, step, t.name, spent)
	}
	return nil
}

func (r *round) backUp(ctx context.Context, t *tool, p place) (cost, error) {
	spent, _, err := t.backup(p).run(ctx, r.b.timeout)
	return spent, err
}

func (r *round) check(ctx context.Context, t *tool, p place) (cost, error) {
	spent, _, err := t.check(p).run(ctx, r.b.timeout)
	return spent, err
}

// restore measures a restore and compares it.
func (r *round) restore(ctx context.Context, t *tool, p place) (cost, error) {
	spent, _, err := t.restore(p).run(ctx, r.b.timeout)
	if err != nil {
		return spent, err
	}
	if err := compareTrees(ctx, p.source, p.target); err != nil {
		return spent, fmt.Errorf("what was restored is not what was backed up: %w", err)
	}
	r.b.restores++
	return spent, os.RemoveAll(p.target)
}

func (r *round) unchanged(ctx context.Context) error {
	if err := r.each(ctx, unchangedStep, r.backUp); err != nil {
		return err
	}
	if err := r.keepResident(ctx); err != nil {
		return err
	}
	return r.resident(unchangedStep)
}

// keepResident starts the engine that stays, and has it make a backup, as one that has been running for a while.
func (r *round) keepResident(ctx context.Context) (err error) {
	if r.stay == nil {
		if r.stay, err = startResident(ctx, r.b.tools[0].resident(r.places[r.b.tools[0]])); err != nil {
			return err
		}
	}
	_, err = r.stay.backup(r.b.timeout)
	return err
}

func (r *round) resident(step string) error {
	spent, err := r.stay.backup(r.b.timeout)
	if err == nil {
		r.b.add(r.result, step, residentName, spent)
	}
	return err
}

// changed measures backups after one file in a hundred changed, and changes the files back. The resident engine has a
// change of its own, because it shares its repository with Holdfast's command.
func (r *round) changed(ctx context.Context) error {
	err := r.withChange(uint64(2*r.number), func() error { return r.each(ctx, changedStep, r.backUp) })
	if err != nil {
		return err
	}
	if err := r.keepResident(ctx); err != nil {
		return err
	}
	if err := r.withChange(uint64(2*r.number+1), func() error { return r.resident(changedStep) }); err != nil {
		return err
	}
	for _, t := range r.b.tools { // what is restored is compared with the source as it is now
		if _, err := r.backUp(ctx, t, r.places[t]); err != nil {
			return fmt.Errorf("%s: %w", t.name, err)
		}
	}
	return nil
}

func (r *round) withChange(seed uint64, do func() error) error {
	changes, err := changeFiles(r.source, seed)
	if err == nil {
		err = do()
	}
	return errors.Join(err, undo(changes))
}

// checkWithRestic has every restic that was given read all of Holdfast's repository.
func (r *round) checkWithRestic(ctx context.Context) error {
	for _, t := range r.b.tools[1:] {
		if !t.checks {
			continue
		}
		p := place{repository: r.places[r.b.tools[0]].repository, state: filepath.Join(r.places[t].state, "other")}
		if _, _, err := t.check(p).run(ctx, r.b.timeout); err != nil {
			return fmt.Errorf("%s checking Holdfast's repository: %w", t.name, err)
		}
		if !slices.Contains(r.b.checks, t.name) {
			r.b.checks = append(r.b.checks, t.name)
		}
	}
	return nil
}

// sizeOf is the number of bytes of all files below a directory.
func sizeOf(dir string) (int64, error) {
	var size int64
	err := filepath.WalkDir(dir, func(_ string, entry os.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		info, err := entry.Info()
		if err == nil {
			size += info.Size()
		}
		return err
	})
	return size, err
}
