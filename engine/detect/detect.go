// Package detect opens the engine that a node is told to use, or the best one that this machine has.
package detect

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"holdfast/engine"
	"holdfast/engine/docker"
	"holdfast/engine/process"
)

// The kinds that Open knows.
const (
	Auto    = "auto"    // Docker when its engine answers, else processes
	Docker  = "docker"  // Docker or an error
	Process = "process" // processes of this machine
)

// Options of Open.
type Options struct {
	Docker  docker.Options
	Process process.Options
	// Timeout bounds how long Docker may take to answer; the default is 3 s when there is another engine to fall back to,
	// and 30 s when Docker was asked for by name: a busy machine's is slow, and there is nothing else.
	Timeout time.Duration
	// Logger gets which engine was taken and why; the default is slog.Default(). It is also the engines', where they have none.
	Logger *slog.Logger
}

func (o *Options) applyDefaults(kind string) {
	if o.Timeout <= 0 {
		o.Timeout = 3 * time.Second
		if kind == Docker {
			o.Timeout = 30 * time.Second
		}
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	if o.Docker.Logger == nil {
		o.Docker.Logger = o.Logger
	}
	if o.Process.Logger == nil {
		o.Process.Logger = o.Logger
	}
}

// Open opens an engine; an empty kind is Auto. With Docker asked for by name, an engine that does not answer is an error
// that wraps engine.ErrUnavailable: nobody who asked for containers gets plain processes.
func Open(ctx context.Context, kind string, options Options) (engine.Engine, error) {
	options.applyDefaults(kind)
	switch kind {
	case Process:
		return openProcess(options)
	case Docker:
		return openDocker(ctx, options)
	case Auto, "":
		found, err := openDocker(ctx, options)
		if err == nil {
			return found, nil
		}
		if ctx.Err() != nil {
			return nil, err
		}
		options.Logger.InfoContext(ctx, "no docker engine answers; workspaces run as processes of this machine", "reason", err.Error())
		return openProcess(options)
	}
	return nil, fmt.Errorf("%w: the engine %q is not known: use auto, docker or process", engine.ErrInvalid, kind)
}

// openProcess keeps a nil *process.Engine from becoming a non-nil interface.
func openProcess(options Options) (engine.Engine, error) {
	found, err := process.New(options.Process)
	if err != nil {
		return nil, err
	}
	return found, nil
}

func openDocker(ctx context.Context, options Options) (engine.Engine, error) {
	found, err := docker.New(options.Docker)
	if err != nil {
		return nil, err
	}
	asking, cancel := context.WithTimeout(ctx, options.Timeout)
	defer cancel()
	if _, err := found.Info(asking); err != nil {
		closeErr := found.Close()
		if asking.Err() != nil && ctx.Err() == nil {
			err = fmt.Errorf("%w: no answer for %s", engine.ErrUnavailable, options.Timeout)
		}
		return nil, errors.Join(fmt.Errorf("the docker engine: %w", err), closeErr)
	}
	return found, nil
}
