package process

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"holdfast/engine"
	"holdfast/engine/freezer"
)

// What is here needs no lock: an agent that was frozen in the middle of an operation holds the instance's for ever. With the
// kernel's freezer it needs no disk either.

// cgroupOf is the name of an instance's cgroups.
func cgroupOf(id string) string { return "holdfast-" + id }

// Freeze stops everything of the instance through the kernel alone: its cgroup, else each of its processes.
func (e *Engine) Freeze(ctx context.Context, id string) error {
	found, err := freezer.View{}.Find(cgroupOf(id))
	if err != nil {
		return err
	}
	group, ok := found[cgroupOf(id)]
	if ok {
		if err := group.Freeze(ctx); err != nil {
			return err
		}
		return e.markPaused(id)
	}
	i, left, err := e.uncaged(id)
	if err != nil {
		return err
	}
	if len(left) == 0 {
		return fmt.Errorf("%w: no process of %s is seen", engine.ErrNotRunning, id)
	}
	// First the mark, as in Pause: what stands and is not marked would never be let go on.
	if err := e.markPaused(id); err != nil {
		return err
	}
	return i.stopAll(ctx)
}

func (e *Engine) markPaused(id string) error {
	dir, err := e.dirOf(id)
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, pausedFile), nil, 0o600); err != nil {
		return fmt.Errorf("recording the pause: %w", err)
	}
	return nil
}

// States looks at instances in the kernel alone.
func (e *Engine) States(ids []string) (map[string]freezer.State, error) {
	var names []string
	for _, id := range ids {
		names = append(names, cgroupOf(id))
	}
	found, err := freezer.View{}.States(names...)
	if err != nil {
		return nil, err
	}
	states := map[string]freezer.State{}
	for _, id := range ids {
		state, caged := found[cgroupOf(id)]
		if !caged {
			if state, err = e.signalled(id); err != nil {
				return nil, err
			}
		}
		if state != freezer.Absent {
			states[id] = state
		}
	}
	return states, nil
}

// signalled is the state of an instance without cgroups.
func (e *Engine) signalled(id string) (freezer.State, error) {
	_, left, err := e.uncaged(id)
	if err != nil || len(left) == 0 {
		return freezer.Absent, err
	}
	for _, current := range left {
		if current.state != 'T' && current.state != 't' && current.state != 'D' {
			return freezer.Runs, nil
		}
	}
	return freezer.Stands, nil
}

// uncaged finds the processes of an instance without cgroups. One that is not there has none.
func (e *Engine) uncaged(id string) (*instance, map[int]stat, error) {
	i, err := e.load(id)
	if errors.Is(err, engine.ErrNotFound) {
		return nil, nil, nil
	}
	if err != nil {
		return nil, nil, err
	}
	if i.record.ID != id {
		return nil, nil, fmt.Errorf("%w: %q is no instance's whole id", engine.ErrInvalid, id)
	}
	left, err := i.members()
	return i, left, err
}

// stands says whether the cgroups of a run are frozen, also when nobody wrote down that they are.
func (s cgroupSet) stands() bool {
	if dir := s[unified]; dir != "" {
		if n, ok := s.field(unified, "cgroup.events", "frozen"); ok && n == 1 {
			return true
		}
	}
	if dir := s["freezer"]; dir != "" {
		data, err := os.ReadFile(filepath.Join(dir, "freezer.state"))
		return err == nil && string(data) == "FROZEN\n"
	}
	return false
}
