package devstack

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"
)

// errRunning is the answer to starting a child that runs.
var errRunning = errors.New("it is running already")

// Child is one program that runs as a child process, and can be started again after it ended. It never outlives this
// process, however this process ends (Linux), and it is in a process group of its own, so that Ctrl-C in the terminal
// reaches only the parent, which then stops its children in order.
//
// What the child itself starts is not touched: the workspaces of the process engine must survive their agent's death.
// Only handles of processes that this Child started are ever signalled, never a number and never a name.
//
// Set the fields before the first Start; the methods are safe for concurrent use.
type Child struct {
	Name string   // for messages and the prefix of its log lines
	Path string   // the program
	Args []string // without the program's name
	Env  []string // as in exec.Cmd: nil is this process's own
	Dir  string   // working directory; default: this process's

	// Log takes what the child prints, each line in one Write with "name | " before it, until the process ends. It must
	// be safe for concurrent use if it is shared (an *os.File is). Default: nowhere.
	Log io.Writer
	// Grace is how long Stop waits after SIGTERM before it kills. Default 10 s.
	Grace time.Duration
	// TailLines is how many of the last lines an ExitError shows. Default 30.
	TailLines int
	// OnParentDeath is the signal that the kernel sends to the child when this process dies. Default SIGKILL: a child
	// that ignored anything softer would hold its port and its files for ever.
	OnParentDeath syscall.Signal

	mu  sync.Mutex
	run *childRun
}

// childRun is one life of a Child.
type childRun struct {
	cmd     *exec.Cmd
	lines   *lineWriter
	began   time.Time
	done    chan struct{}
	err     error // set before done is closed
	ordered bool  // we asked it to end; guarded by Child.mu
}

// ExitError says how a child ended, with the last lines that it printed.
type ExitError struct {
	Name string
	Err  error    // as from exec.Cmd.Wait; nil when it ended with status 0
	Tail []string // the last lines of its output, oldest first
}

// Error implements error.
func (e *ExitError) Error() string {
	how := "exit status 0"
	if e.Err != nil {
		how = e.Err.Error()
	}
	if len(e.Tail) == 0 {
		return fmt.Sprintf("%s ended (%s) and printed nothing", e.Name, how)
	}
	return fmt.Sprintf("%s ended (%s); its last lines:\n  %s", e.Name, how, strings.Join(e.Tail, "\n  "))
}

// Unwrap gives the cause.
func (e *ExitError) Unwrap() error { return e.Err }

// Start starts the process. It fails when it is running already.
func (c *Child) Start() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.run != nil && !c.run.ended() {
		return fmt.Errorf("starting %s: %w", c.Name, errRunning)
	}
	onDeath := c.OnParentDeath
	if onDeath == 0 {
		onDeath = syscall.SIGKILL
	}
	run := &childRun{
		cmd:   exec.Command(c.Path, c.Args...),
		lines: newLineWriter(c.Log, c.Name, c.TailLines),
		began: time.Now(),
		done:  make(chan struct{}),
	}
	run.cmd.Env, run.cmd.Dir = c.Env, c.Dir
	run.cmd.Stdout, run.cmd.Stderr = run.lines, run.lines // one pipe, so that the order of lines is kept
	run.cmd.SysProcAttr = childAttributes(onDeath)
	// A workspace that the agent started may hold the pipe open after the agent is dead: do not wait for that.
	run.cmd.WaitDelay = 2 * time.Second

	started := make(chan error, 1)
	go run.live(c.Name, started)
	if err := <-started; err != nil {
		return fmt.Errorf("starting %s: %w", c.Name, err)
	}
	c.run = run
	return nil
}

// live starts the process and waits for its end.
func (r *childRun) live(name string, started chan<- error) {
	// The kernel sends the parent-death signal when the *thread* that started the child ends, and Go ends threads as it
	// likes: this goroutine keeps its thread for as long as the child lives.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	err := r.cmd.Start()
	started <- err
	if err != nil {
		return
	}
	err = r.cmd.Wait()
	if errors.Is(err, exec.ErrWaitDelay) {
		err = nil // it ended with status 0; somebody else holds its output
	}
	r.lines.flush()
	r.err = &ExitError{Name: name, Err: err, Tail: r.lines.lastLines()}
	close(r.done)
}

func (r *childRun) ended() bool {
	select {
	case <-r.done:
		return true
	default:
		return false
	}
}

func (c *Child) current() *childRun {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.run
}

// closed is for the Done of a child that was never started.
func closed() <-chan struct{} {
	done := make(chan struct{})
	close(done)
	return done
}

// Done is closed when the present run of the process has ended; it is closed already when it never ran.
func (c *Child) Done() <-chan struct{} {
	if run := c.current(); run != nil {
		return run.done
	}
	return closed()
}

// Running reports whether the process lives (a stopped one, SIGSTOP, does).
func (c *Child) Running() bool {
	run := c.current()
	return run != nil && !run.ended()
}

// PID is the process's number, to be shown; 0 when it does not run.
func (c *Child) PID() int {
	if run := c.current(); run != nil && !run.ended() {
		return run.cmd.Process.Pid
	}
	return 0
}

// Started is when the present or last run began; zero when it never ran.
func (c *Child) Started() time.Time {
	if run := c.current(); run != nil {
		return run.began
	}
	return time.Time{}
}

// Err says how the last run ended: an *ExitError, also for status 0. It is nil while the process runs, when it never ran,
// and when Stop, Kill or Restart ended it.
func (c *Child) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.run == nil || !c.run.ended() || c.run.ordered {
		return nil
	}
	return c.run.err
}

// Exit is like Err, but also tells how a run ended that was ended on purpose.
func (c *Child) Exit() error {
	run := c.current()
	if run == nil || !run.ended() {
		return nil
	}
	return run.err
}

// Wait waits until the process has ended and returns Err; or the context's error when that ends first.
func (c *Child) Wait(ctx context.Context) error {
	select {
	case <-c.Done():
		return c.Err()
	case <-ctx.Done():
		return fmt.Errorf("waiting for %s: %w", c.Name, ctx.Err())
	}
}

// Signal sends a signal to the process. It fails with os.ErrProcessDone when it does not run.
func (c *Child) Signal(signal os.Signal) error {
	run := c.current()
	if run == nil || run.ended() {
		return fmt.Errorf("signalling %s: %w", c.Name, os.ErrProcessDone)
	}
	if err := run.cmd.Process.Signal(signal); err != nil {
		return fmt.Errorf("signalling %s: %w", c.Name, err)
	}
	return nil
}

// order marks the present run as ended on purpose and returns it; nil when nothing runs.
func (c *Child) order() *childRun {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.run == nil || c.run.ended() {
		return nil
	}
	c.run.ordered = true
	return c.run
}

// Kill ends the process with SIGKILL, as a crash or the kernel's out-of-memory killer would, and waits until it is
// gone. It is no error when it does not run.
func (c *Child) Kill() error {
	run := c.order()
	if run == nil {
		return nil
	}
	return c.kill(run)
}

func (c *Child) kill(run *childRun) error {
	if err := run.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("killing %s: %w", c.Name, err)
	}
	<-run.done
	return nil
}

// Stop asks the process to end (SIGTERM) and waits; after Grace, or when the context ends first, it kills it. It returns
// once the process is gone; it is no error when it does not run.
func (c *Child) Stop(ctx context.Context) error {
	run := c.order()
	if run == nil {
		return nil
	}
	grace := c.Grace
	if grace <= 0 {
		grace = 10 * time.Second
	}
	process := run.cmd.Process
	if err := process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return errors.Join(fmt.Errorf("stopping %s: %w", c.Name, err), c.kill(run))
	}
	// One that was paused does not see the SIGTERM before it goes on.
	if err := process.Signal(syscall.SIGCONT); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return errors.Join(fmt.Errorf("stopping %s: %w", c.Name, err), c.kill(run))
	}
	timer := time.NewTimer(grace)
	defer timer.Stop()
	select {
	case <-run.done:
		return nil
	case <-timer.C:
		run.lines.note(fmt.Sprintf("it did not stop within %s: killed", grace))
	case <-ctx.Done():
		run.lines.note("it was given no more time to stop: killed")
	}
	return c.kill(run)
}

// Restart stops the process when it runs, and starts it.
func (c *Child) Restart(ctx context.Context) error {
	if err := c.Stop(ctx); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("starting %s again: %w", c.Name, err)
	}
	return c.Start()
}

// Pause stops the process from running (SIGSTOP) without ending it: what a frozen machine looks like from outside. It
// returns when all of it stands still (Linux).
func (c *Child) Pause() error {
	if err := c.Signal(syscall.SIGSTOP); err != nil {
		return err
	}
	run := c.current()
	for !run.ended() && !standsStill(run.cmd.Process.Pid) {
		time.Sleep(time.Millisecond)
	}
	return nil
}

// Resume lets a paused process go on (SIGCONT).
func (c *Child) Resume() error { return c.Signal(syscall.SIGCONT) }
