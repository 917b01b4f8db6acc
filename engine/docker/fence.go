package docker

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"syscall"
	"time"

	"github.com/docker/docker/api/types/container"

	"holdfast/engine"
	"holdfast/engine/freezer"
)

// What a container's cgroup says counts, whoever wrote it: a guard that cannot reach the engine freezes it through the kernel,
// and the engine, which was not asked, calls it running (docs/decisions/0018-guard-process.md).

// Freeze stops everything in the container through the kernel alone, without the engine. The id is the full one.
func (e *Engine) Freeze(ctx context.Context, id string) error {
	found, err := freezer.View{}.Find(id)
	if err != nil {
		return err
	}
	group, ok := found[id]
	if !ok {
		return fmt.Errorf("%w: no process of %s is seen", engine.ErrNotRunning, id)
	}
	return group.Freeze(ctx)
}

// States looks at containers, by their full ids, in the kernel alone. What runs on another machine is not seen.
func (e *Engine) States(ids []string) (map[string]freezer.State, error) {
	return freezer.View{}.States(ids...)
}

// frozen finds the cgroup of a container that the engine calls running and that stands still all the same.
func frozen(found container.InspectResponse) (freezer.Group, bool) {
	if !found.State.Running || found.State.Paused || found.State.Pid <= 1 {
		return freezer.Group{}, false
	}
	group, ok, err := freezer.View{}.Of(found.State.Pid, found.ID)
	if err != nil || !ok {
		return freezer.Group{}, false
	}
	stands, err := group.Frozen()
	return group, err == nil && stands
}

// stands says whether the container is paused, by the engine or behind its back.
func stands(found container.InspectResponse) bool {
	if found.State.Paused {
		return true
	}
	_, is := frozen(found)
	return is
}

// thaw lets a container go on that was frozen behind the engine's back; others are left as they are.
func thaw(found container.InspectResponse) error {
	group, is := frozen(found)
	if !is {
		return nil
	}
	return ended(group.Thaw())
}

// freezeWithin bounds how long what runs in a container may take to stand still.
const freezeWithin = 2 * time.Second

// killWhereItStands kills everything in the container while it stands still. The engine kills the init alone, and what runs beside it
// would go on until the kernel has ended that. A container whose processes this one does not see is left to the engine.
func (e *Engine) killWhereItStands(ctx context.Context, found container.InspectResponse) error {
	if found.State.Pid <= 1 {
		return nil
	}
	group, ok, err := freezer.View{}.Of(found.State.Pid, found.ID)
	if err != nil || !ok {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, freezeWithin)
	defer cancel()
	err = group.Freeze(ctx)
	if errors.Is(err, fs.ErrPermission) {
		// The freezer is root's. Whoever may use the engine asks that, and kills what runs as its own user, as its instances do.
		err = e.Pause(ctx, found.ID)
	}
	if errors.Is(err, engine.ErrNotRunning) {
		return nil
	}
	if err != nil {
		return ended(err)
	}
	return ended(group.Kill())
}

// ended takes a container that has ended meanwhile for killed.
func ended(err error) error {
	if errors.Is(err, syscall.ENOENT) || errors.Is(err, syscall.ENODEV) {
		return nil
	}
	return err
}
