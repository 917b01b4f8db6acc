package devstack

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// Component is a role of the stack that runs as a child process. When it dies by itself it is started again; when it was
// killed or stopped through its methods it stays away until Start.
type Component struct {
	stack   *Stack
	name    string
	log     string
	child   *Child
	command func() Command
	// watchFor returns the condition that says that the start that is about to happen was successful.
	watchFor func(context.Context) (func(context.Context) error, error)

	turn sync.Mutex // one start at a time

	mu     sync.Mutex
	wanted bool
}

// newComponent makes a component whose output goes to a log file of its own.
func (s *Stack) newComponent(name string, command func() Command, watchFor func(context.Context) (func(context.Context) error, error)) (*Component, error) {
	path, log, err := s.openLog(name)
	if err != nil {
		return nil, err
	}
	return &Component{
		stack: s, name: name, log: path, command: command, watchFor: watchFor,
		child: &Child{Name: name, Dir: s.options.DataDir, Log: log, Grace: s.options.StopGrace},
	}, nil
}

// openLog opens a component's log for appending; one that has grown large is put aside, so that two are kept at most.
func (s *Stack) openLog(name string) (string, *os.File, error) {
	const large = 16 << 20
	path := filepath.Join(s.LogDir(), name+".log")
	if info, err := os.Stat(path); err == nil && info.Size() > large {
		if err := os.Rename(path, path+".old"); err != nil {
			return "", nil, fmt.Errorf("putting the log of %s aside: %w", name, err)
		}
	}
	log, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return "", nil, fmt.Errorf("opening the log of %s: %w", name, err)
	}
	s.logs = append(s.logs, log)
	return path, log, nil
}

// Name is the component's name: "storage", "control" or that of its node.
func (c *Component) Name() string { return c.name }

// LogFile is the path of what it prints.
func (c *Component) LogFile() string { return c.log }

// PID is the process's number, to be shown; 0 when it does not run.
func (c *Component) PID() int { return c.child.PID() }

// Running reports whether the process lives.
func (c *Component) Running() bool { return c.child.Running() }

// Kill ends the process with SIGKILL and waits until it is gone. It stays away until Start.
func (c *Component) Kill() error {
	c.want(false)
	return c.child.Kill()
}

// Stop ends the process in good order and waits until it is gone. It stays away until Start.
func (c *Component) Stop(ctx context.Context) error {
	c.want(false)
	return c.child.Stop(ctx)
}

// Start starts the process and waits until it does its work. It is no error when it runs already.
func (c *Component) Start(ctx context.Context) error {
	c.turn.Lock()
	defer c.turn.Unlock()
	c.want(true)
	if c.child.Running() {
		return nil
	}
	return c.start(ctx)
}

// Restart stops the process when it runs, starts it, and waits until it does its work.
func (c *Component) Restart(ctx context.Context) error {
	if err := c.Stop(ctx); err != nil {
		return err
	}
	return c.Start(ctx)
}

// Pause freezes the process (SIGSTOP) without ending it.
func (c *Component) Pause() error { return c.child.Pause() }

// Resume lets a paused process go on.
func (c *Component) Resume() error { return c.child.Resume() }

func (c *Component) want(wanted bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.wanted = wanted
}

func (c *Component) isWanted() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.wanted
}

// start is called with the turn.
func (c *Component) start(ctx context.Context) error {
	s := c.stack
	if err := s.unlessStopping(); err != nil {
		return fmt.Errorf("starting %s: %w", c.name, err)
	}
	s.say(EventStarting, c.name, "")
	ctx, cancel := context.WithTimeout(ctx, s.options.ReadyTimeout)
	defer cancel()
	command := c.command()
	ready := command.Ready
	if ready == nil {
		var err error
		if ready, err = c.watchFor(ctx); err != nil {
			return fmt.Errorf("starting %s: %w", c.name, err)
		}
	}
	program := command.Path
	if program == "" {
		program = s.options.Binary
	}
	c.child.mu.Lock()
	c.child.Path, c.child.Args, c.child.Env = program, command.Args, append(s.childEnvironment(), command.Env...)
	c.child.mu.Unlock()
	if err := c.child.Start(); err != nil {
		return err
	}
	if !c.isWanted() || s.unlessStopping() != nil { // it was killed before it was there
		return errors.Join(fmt.Errorf("starting %s: it was stopped in the meantime", c.name), c.child.Kill())
	}
	run := c.child.current()
	ctx, cancelReady := context.WithCancel(ctx)
	defer cancelReady()
	go func() { // one that has died will not become ready
		select {
		case <-run.done:
			cancelReady()
		case <-ctx.Done():
		}
	}()
	if err := until(ctx, readyPoll, ready); err != nil {
		if run.ended() {
			return fmt.Errorf("starting %s: %w", c.name, run.err)
		}
		killErr := c.child.Kill()
		return errors.Join(fmt.Errorf("starting %s: it was not ready within %s: %w; %w", c.name, s.options.ReadyTimeout, err, run.err), killErr)
	}
	s.say(EventReady, c.name, "")
	s.watching.Go(func() { c.watch(run) })
	return nil
}

// watch waits for the end of one run, and starts the component again when nobody wanted that end.
func (c *Component) watch(run *childRun) {
	s := c.stack
	<-run.done // Stop ends every run
	if s.unlessStopping() != nil || c.child.wasOrdered(run) {
		return
	}
	s.tell(Event{Kind: EventDied, Component: c.name, Err: run.err})
	s.again(func(ctx context.Context) (bool, error) {
		c.turn.Lock()
		defer c.turn.Unlock()
		if !c.isWanted() || c.child.Running() {
			return true, nil
		}
		err := c.start(ctx)
		return err == nil || !c.isWanted(), err
	}, c.name)
}

// again repeats an attempt with growing pauses until it is done or the stack stops.
func (s *Stack) again(attempt func(context.Context) (done bool, err error), name string) {
	if s.options.NoRestart {
		return
	}
	for pause := time.Second; ; pause = min(2*pause, 30*time.Second) {
		timer := time.NewTimer(pause)
		select {
		case <-s.life.Done():
			timer.Stop()
			return
		case <-timer.C:
		}
		done, err := attempt(s.life)
		if done || s.life.Err() != nil {
			return
		}
		s.tell(Event{Kind: EventNote, Component: name, Text: name + " could not be started again; it is tried later", Err: err})
	}
}

// wasOrdered reports whether a run was ended on purpose.
func (c *Child) wasOrdered(run *childRun) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return run.ordered
}
