package devstack

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"sync"
	"time"
)

// Temporal is the official dev server, running as a child process.
type Temporal struct {
	options TemporalOptions
	version string
	db      database
	child   *Child
	port    int
	uiPort  int
	settled bool // it has been usable with these ports, and is found there
	dir     string
	ownDir  bool

	turn sync.Mutex // one Stop, Kill, Restart or Close at a time
}

// StartTemporal runs the dev server with the settings measured for Holdfast and waits until its namespace and search
// attributes can be used. A *PortError says that a port that was asked for is taken.
func StartTemporal(ctx context.Context, options TemporalOptions) (*Temporal, error) {
	options, err := options.withDefaults()
	if err != nil {
		return nil, fmt.Errorf("starting Temporal: %w", err)
	}
	version, err := temporalVersion(ctx, options.Binary)
	if err != nil {
		return nil, fmt.Errorf("starting Temporal: %w", err)
	}
	t := &Temporal{options: options, version: version, dir: options.Dir}
	if t.dir == "" {
		if t.dir, err = os.MkdirTemp("", "holdfast-temporal-"); err != nil {
			return nil, fmt.Errorf("starting Temporal: %w", err)
		}
		t.ownDir = true
	}
	if t.db, err = openDatabase(t.dir, version, options.Progress); err != nil {
		return nil, errors.Join(fmt.Errorf("starting Temporal: %w", err), t.removeOwnDir())
	}
	t.child = &Child{Name: "temporal", Path: options.Binary, Env: options.environment(), Log: options.Log, Grace: options.Grace}
	if err := t.start(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("starting Temporal: %w", err), t.removeOwnDir())
	}
	return t, nil
}

// start runs the server until it is usable. The server picks ports for its inner services by itself, by trying and
// letting go, so that another program can take one in between: then it ends at once, and is tried again.
func (t *Temporal) start(ctx context.Context) error {
	const tries = 4
	for try := 1; ; try++ {
		if err := t.choosePorts(); err != nil {
			return err
		}
		err := t.startOnce(ctx)
		if err == nil {
			return nil
		}
		var ended *ExitError
		if !errors.As(err, &ended) || try == tries || ctx.Err() != nil {
			return err
		}
	}
}

// choosePorts settles the ports: those that were asked for, those of the last run, or free ones.
func (t *Temporal) choosePorts() error {
	choose := func(purpose string, asked int, port *int) error {
		if asked != 0 {
			*port = asked
		}
		if asked != 0 || t.settled {
			return checkPort(purpose, t.options.Host, *port)
		}
		free, err := freePort(t.options.Host)
		*port = free
		return err
	}
	if err := choose("the Temporal server", t.options.Port, &t.port); err != nil {
		return err
	}
	if t.options.Headless {
		return nil
	}
	return choose("Temporal's Web UI", t.options.UIPort, &t.uiPort)
}

func (t *Temporal) startOnce(ctx context.Context) error {
	t.child.mu.Lock()
	t.child.Args = t.options.arguments(t.db.file, t.port, t.uiPort)
	t.child.mu.Unlock()
	if err := t.child.Start(); err != nil {
		return err
	}
	ready, cancel := context.WithTimeout(ctx, t.options.ReadyTimeout)
	defer cancel()
	go func() { // a server that has died will not become ready
		select {
		case <-t.child.Done():
			cancel()
		case <-ready.Done():
		}
	}()
	err := t.awaitUsable(ready)
	if err == nil {
		err = t.db.markUsable(t.version)
	}
	if err == nil {
		t.settled = true
		if t.options.started != nil {
			t.options.started(t, t.child.current())
		}
		return nil
	}
	if ended := t.child.Err(); ended != nil {
		return ended
	}
	if killErr := t.child.Kill(); killErr != nil {
		err = errors.Join(err, killErr)
	}
	if ctx.Err() == nil && ready.Err() != nil {
		return fmt.Errorf("it was not usable within %s (%w); %w", t.options.ReadyTimeout, err, t.child.Exit())
	}
	return err
}

// Address is the server's host:port.
func (t *Temporal) Address() string {
	return net.JoinHostPort(t.options.Host, strconv.Itoa(t.port))
}

// Namespace is the one that the server was started with.
func (t *Temporal) Namespace() string { return t.options.Namespace }

// Version is the server's version, such as 1.29.1.
func (t *Temporal) Version() string { return t.version }

// UIURL is the Web UI's address; empty when there is none.
func (t *Temporal) UIURL() string {
	if t.options.Headless {
		return ""
	}
	return "http://" + net.JoinHostPort(t.options.Host, strconv.Itoa(t.uiPort))
}

// DatabaseFile is the path of the SQLite file.
func (t *Temporal) DatabaseFile() string { return t.db.file }

// PID is the server's process number, to be shown; 0 when it does not run.
func (t *Temporal) PID() int { return t.child.PID() }

// Done is closed when the present run of the server has ended, for whatever reason. Err then says why.
func (t *Temporal) Done() <-chan struct{} { return t.child.Done() }

// Err is nil while the server runs and when it was ended on purpose, else an *ExitError with its last lines.
func (t *Temporal) Err() error { return t.child.Err() }

// Stop ends the server: SIGTERM, and after the grace SIGKILL. The database stays.
func (t *Temporal) Stop(ctx context.Context) error {
	t.turn.Lock()
	defer t.turn.Unlock()
	return t.child.Stop(ctx)
}

// Kill ends the server with SIGKILL. The database stays, and loses nothing that the server had answered for.
func (t *Temporal) Kill() error {
	t.turn.Lock()
	defer t.turn.Unlock()
	return t.child.Kill()
}

// Restart starts the server again with the same database, address and Web UI, and waits until it is usable; it stops it
// first when it runs.
func (t *Temporal) Restart(ctx context.Context) error {
	t.turn.Lock()
	defer t.turn.Unlock()
	if err := t.child.Stop(ctx); err != nil {
		return fmt.Errorf("restarting Temporal: %w", err)
	}
	if err := t.start(ctx); err != nil {
		return fmt.Errorf("restarting Temporal: %w", err)
	}
	return nil
}

// Pause freezes the server (SIGSTOP): connections stay open and nothing answers.
func (t *Temporal) Pause() error { return t.child.Pause() }

// Resume lets a paused server go on (SIGCONT).
func (t *Temporal) Resume() error { return t.child.Resume() }

// Close ends the server and removes its database if that is in a temporary directory that StartTemporal made; such a
// server is killed, since nothing of it is kept.
func (t *Temporal) Close(ctx context.Context) error {
	t.turn.Lock()
	defer t.turn.Unlock()
	if t.ownDir {
		return errors.Join(t.child.Kill(), t.removeOwnDir())
	}
	return t.child.Stop(ctx)
}

func (t *Temporal) removeOwnDir() error {
	if !t.ownDir {
		return nil
	}
	if err := os.RemoveAll(t.dir); err != nil {
		return fmt.Errorf("removing Temporal's temporary directory: %w", err)
	}
	return nil
}

// readyPoll is how often a server that comes up is asked again.
const readyPoll = 25 * time.Millisecond
