package pretend

import (
	"context"
	"fmt"
	"io"
	"maps"
	"os/exec"
	"time"

	"holdfast/engine"
)

// Engine is one agent's access to the machine.
func (m *Machine) Engine() engine.Engine { return access{m} }

type access struct{ machine *Machine }

// Info implements engine.Engine.
func (a access) Info(ctx context.Context) (engine.Info, error) {
	return engine.Info{Kind: Kind, Version: "1", Notes: []string{"nothing of an instance runs"}}, ctx.Err()
}

// PrepareImage implements engine.Engine: every image is there.
func (a access) PrepareImage(ctx context.Context, reference string, _ func(string)) (engine.Image, error) {
	if reference == "" {
		reference = "pretended"
	}
	return engine.Image{Reference: reference, ID: reference}, ctx.Err()
}

// Create implements engine.Engine.
func (a access) Create(ctx context.Context, spec engine.Spec) (string, error) {
	if err := ctx.Err(); err != nil {
		return "", err
	}
	if err := spec.Validate(); err != nil {
		return "", err
	}
	m := a.machine
	m.mutex.Lock()
	defer m.mutex.Unlock()
	if there := m.instances[spec.Name]; there != nil {
		if !engine.SameLabels(there.Labels, spec.Labels) {
			return "", fmt.Errorf("%w: %s", engine.ErrConflict, spec.Name)
		}
		return there.ID, nil
	}
	spec.Labels = maps.Clone(spec.Labels)
	m.instances[spec.Name] = &instance{spec: spec, Instance: engine.Instance{
		ID: spec.Name, Name: spec.Name, Image: spec.Image, Status: engine.StatusCreated, Labels: spec.Labels,
	}}
	return spec.Name, nil
}

// with does something with an instance that is there.
func (a access) with(ctx context.Context, id string, do func(*instance) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	a.machine.mutex.Lock()
	defer a.machine.mutex.Unlock()
	found := a.machine.instances[id]
	if found == nil {
		return fmt.Errorf("%w: %q", engine.ErrNotFound, id)
	}
	return do(found)
}

// up is nil for an instance that runs, also a paused one.
func (i *instance) up() error {
	if i.Status != engine.StatusRunning && i.Status != engine.StatusPaused {
		return fmt.Errorf("%w: %s is %s", engine.ErrNotRunning, i.Name, i.Status)
	}
	return nil
}

// Start implements engine.Engine. A command that there is not ends at once, as under an init.
func (a access) Start(ctx context.Context, id string) error {
	return a.with(ctx, id, func(i *instance) error {
		switch i.Status {
		case engine.StatusRunning:
			return nil
		case engine.StatusPaused:
			return fmt.Errorf("%w: %s", engine.ErrPaused, i.Name)
		}
		if err := a.machine.note(Started, i.Name); err != nil {
			return err
		}
		i.Status, i.ExitCode, i.StartedAt = engine.StatusRunning, 0, time.Now()
		if len(i.spec.Command) > 0 {
			if _, err := exec.LookPath(i.spec.Command[0]); err != nil {
				return a.end(i, 127)
			}
		}
		return nil
	})
}

func (a access) end(i *instance, code int) error {
	if err := a.machine.note(Stopped, i.Name); err != nil {
		return err
	}
	i.Status, i.ExitCode, i.FinishedAt = engine.StatusExited, code, time.Now()
	return nil
}

// Ready implements engine.Engine.
func (a access) Ready(ctx context.Context, id string) error {
	return a.with(ctx, id, (*instance).up)
}

// Stop implements engine.Engine. Nothing takes its grace.
func (a access) Stop(ctx context.Context, id string, _ time.Duration) error {
	return a.with(ctx, id, func(i *instance) error {
		if i.up() != nil {
			return nil
		}
		return a.end(i, 0)
	})
}

// Pause implements engine.Engine.
func (a access) Pause(ctx context.Context, id string) error {
	return a.turn(ctx, id, engine.StatusPaused, Paused)
}

// Unpause implements engine.Engine.
func (a access) Unpause(ctx context.Context, id string) error {
	return a.turn(ctx, id, engine.StatusRunning, Continued)
}

func (a access) turn(ctx context.Context, id string, to engine.Status, what What) error {
	return a.with(ctx, id, func(i *instance) error {
		if err := i.up(); err != nil || i.Status == to {
			return err
		}
		if err := a.machine.note(what, i.Name); err != nil {
			return err
		}
		i.Status = to
		return nil
	})
}

// Inspect implements engine.Engine.
func (a access) Inspect(ctx context.Context, id string) (found engine.Instance, err error) {
	err = a.with(ctx, id, func(i *instance) error {
		found = i.seen()
		return nil
	})
	return found, err
}

// seen is a copy for others.
func (i *instance) seen() engine.Instance {
	seen := i.Instance
	seen.Labels = maps.Clone(seen.Labels)
	return seen
}

// List implements engine.Engine.
func (a access) List(ctx context.Context, labels map[string]string) ([]engine.Instance, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	a.machine.mutex.Lock()
	defer a.machine.mutex.Unlock()
	var found []engine.Instance
	for _, i := range a.machine.instances {
		if engine.MatchLabels(i.Labels, labels) {
			found = append(found, i.seen())
		}
	}
	return found, nil
}

// Exec implements engine.Engine: what would run a command is refused (ErrNothingRuns).
func (a access) Exec(ctx context.Context, id string, _ engine.ExecSpec) (int, error) {
	return 0, a.with(ctx, id, func(i *instance) error {
		if err := i.up(); err != nil {
			return err
		}
		if i.Status == engine.StatusPaused {
			return fmt.Errorf("%w: %s", engine.ErrPaused, i.Name)
		}
		return ErrNothingRuns
	})
}

// Logs implements engine.Engine: nothing was written.
func (a access) Logs(ctx context.Context, id string, _ engine.LogOptions, _ io.Writer) error {
	return a.with(ctx, id, func(*instance) error { return nil })
}

// Stats implements engine.Engine: nothing is used.
func (a access) Stats(ctx context.Context, id string) (engine.Usage, error) {
	return engine.Usage{}, a.with(ctx, id, (*instance).up)
}

// Work implements engine.Engine: nothing is done.
func (a access) Work(ctx context.Context, id string) (engine.Work, error) {
	return engine.Work{}, a.with(ctx, id, (*instance).up)
}

// Remove implements engine.Engine.
func (a access) Remove(ctx context.Context, id string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	m := a.machine
	m.mutex.Lock()
	defer m.mutex.Unlock()
	there := m.instances[id]
	if there == nil {
		return nil
	}
	if there.up() == nil {
		return fmt.Errorf("removing %s: it runs", there.Name)
	}
	if err := m.note(Removed, there.Name); err != nil {
		return err
	}
	delete(m.instances, id)
	return nil
}

// Close implements engine.Engine. The machine goes on.
func (a access) Close() error { return nil }
