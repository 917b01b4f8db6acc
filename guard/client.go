package guard

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"holdfast/engine"
)

const (
	// pingEvery is how often the guard is asked whether it is there, and freshFor how long its last answer says so.
	pingEvery = time.Second
	freshFor  = 3 * time.Second
	// answerWithin bounds a question to a guard that runs; its answers wait for no engine.
	answerWithin = 2 * time.Second
	// startWithin is how long a guard that was started has to answer, another's leaving included.
	startWithin = 15 * time.Second
	// reconcileEvery is how often what the engine has is compared with what is held.
	reconcileEvery = 30 * time.Second
	// againAfter is between two attempts to have a guard.
	againAfter = time.Second
	maxLog     = 1 << 20
)

// Client is the agent's side: it has a guard run, tells it of every acknowledged beat, and of what is exclusive. The methods of
// a nil *Client say that there is no guard. Its fields are set once, before Run.
type Client struct {
	// Dir is the guard's directory, Command the program with its arguments that is one, with --replace as the last.
	Dir     string
	Command []string
	// Version is this program's; a guard of another is replaced.
	Version    string
	PauseAfter time.Duration
	// Engine and Node say which instances are this node's.
	Engine engine.Engine
	Node   string
	Logger *slog.Logger

	asking sync.Mutex // held for one question
	mutex  sync.Mutex
	link   *link
	heard  Moment // when a question was asked that was answered
	ready  bool   // it holds everything that is exclusive
	kind   string // the engine's
	beat   Moment
	fresh  chan struct{} // there is a newer beat
	failed bool          // that the guard cannot pause was said
}

// Guarded says whether the guard was there a moment ago, and holds everything that is exclusive; pauseAfter is what it counts with
// from the next beat on.
func (c *Client) Guarded() (guarded bool, pauseAfter time.Duration) {
	if c == nil {
		return false, 0
	}
	c.mutex.Lock()
	defer c.mutex.Unlock()
	return c.link != nil && c.ready && Now().Since(c.heard) <= freshFor, c.PauseAfter
}

// Beat tells of a beat of the lease that was sent at a moment and acknowledged. It waits for nothing.
func (c *Client) Beat(sent Moment) {
	if c == nil {
		return
	}
	c.mutex.Lock()
	defer c.mutex.Unlock()
	c.beat = sent
	c.signal()
}

// signal wakes Run. The mutex is held.
func (c *Client) signal() {
	if c.fresh == nil {
		c.fresh = make(chan struct{}, 1)
	}
	select {
	case c.fresh <- struct{}{}:
	default:
	}
}

// Hold has the guard hold an instance, from before it is started. Nil is the guard's own word that it does, and has it on the disk.
func (c *Client) Hold(ctx context.Context, id string) error {
	guarded, _ := c.Guarded()
	if !guarded || id == "" {
		return errors.New("the node's guard process is not there")
	}
	c.mutex.Lock()
	instance := Instance{Kind: c.kind, ID: id}
	c.mutex.Unlock()
	_, err := c.ask(ctx, request{Op: opHold, Instance: instance})
	return err
}

// ask asks the guard that is there. One that does not answer is given up.
func (c *Client) ask(ctx context.Context, r request) (answer, error) {
	c.asking.Lock()
	defer c.asking.Unlock()
	c.mutex.Lock()
	l := c.link
	c.mutex.Unlock()
	if l == nil {
		return answer{}, errors.New("the node's guard process is not there")
	}
	asked := Now()
	a, err := l.ask(ctx, answerWithin, r)
	c.mutex.Lock()
	defer c.mutex.Unlock()
	if err != nil {
		if c.link == l {
			c.link = nil
		}
		l.close()
		return answer{}, err
	}
	c.heard = asked
	if a.Failing != c.failed {
		c.failed = a.Failing
		if a.Failing {
			c.Logger.Error("the node's guard cannot pause an exclusive instance; see its log", "log", filepath.Join(c.Dir, logFile))
		} else {
			c.Logger.Info("the node's guard pauses what it has to")
		}
	}
	return a, a.err()
}

// Run has a guard run until the context ends. A guard that is there then stays, unless it holds nothing.
func (c *Client) Run(ctx context.Context) {
	c.mutex.Lock()
	c.signal()
	fresh := c.fresh
	c.mutex.Unlock()
	said := ""
	for ctx.Err() == nil {
		err := c.attend(ctx, fresh)
		if ctx.Err() != nil {
			break
		}
		if err.Error() != said {
			said = err.Error()
			c.Logger.Error("the node's guard process is not there; what is exclusive is not started, and what runs is not guarded", "error", err)
		}
		c.unlink()
		wait(ctx, againAfter)
	}
	// In order: nothing is left to guard when nothing is exclusive.
	if _, err := c.ask(context.WithoutCancel(ctx), request{Op: opStop}); err != nil && !errors.Is(err, ErrHolds) {
		c.Logger.Warn("telling the node's guard that the agent stops", "error", err)
	}
	c.unlink()
}

func (c *Client) unlink() {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	c.ready = false
	if c.link != nil {
		c.link.close()
		c.link = nil
	}
}

// attend has a guard, tells it all, and goes on with it until it is gone.
func (c *Client) attend(ctx context.Context, fresh <-chan struct{}) error {
	if err := c.connect(ctx); err != nil {
		return err
	}
	if err := c.tell(ctx); err != nil {
		return err
	}
	reconciled := Moment{}
	var last error
	ticker := time.NewTicker(pingEvery)
	defer ticker.Stop()
	for {
		if Now().Since(reconciled) >= reconcileEvery || last != nil {
			if last = c.reconcile(ctx); last == nil {
				reconciled = Now()
				if !c.ready {
					c.Logger.Info("the node's guard process is there", "pause_after", c.PauseAfter)
				}
				c.mutex.Lock()
				c.ready = true
				c.mutex.Unlock()
			} else if ctx.Err() == nil {
				c.Logger.Warn("comparing what is exclusive with what the guard holds", "error", last)
			}
		}
		var err error
		select {
		case <-fresh:
			err = c.tell(ctx)
		case <-ticker.C:
			_, err = c.ask(ctx, request{Op: opPing})
		case <-ctx.Done():
			return ctx.Err()
		}
		if err != nil {
			return err
		}
	}
}

// tell tells of the newest beat, if there was any.
func (c *Client) tell(ctx context.Context) error {
	c.mutex.Lock()
	beat := c.beat
	c.mutex.Unlock()
	if beat == (Moment{}) {
		return nil
	}
	_, err := c.ask(ctx, request{Op: opBeat, Beat: beat, PauseAfter: c.PauseAfter})
	return err
}

// connect finds the guard, or starts one when there is none, or one of another version.
func (c *Client) connect(ctx context.Context) error {
	if c.greet(ctx) == nil {
		return nil
	}
	exited, err := c.start()
	if err != nil {
		return err
	}
	began := time.Now()
	for {
		wait(ctx, 50*time.Millisecond)
		err := c.greet(ctx)
		if err == nil {
			return nil
		}
		select {
		case how := <-exited:
			return fmt.Errorf("the guard ended early (%v); see %s", how, filepath.Join(c.Dir, logFile))
		case <-ctx.Done():
			return ctx.Err()
		default:
		}
		if time.Since(began) > startWithin {
			return fmt.Errorf("the guard that was started does not answer: %w", err)
		}
	}
}

// greet connects to a guard of this version.
func (c *Client) greet(ctx context.Context) error {
	l, err := dial(c.Dir)
	if err != nil {
		return err
	}
	a, err := l.ask(ctx, answerWithin, request{Op: opHello, Version: c.Version, PauseAfter: c.PauseAfter})
	if err == nil {
		err = a.err()
	}
	if err == nil && (a.Version != c.Version || a.Protocol != protocol) {
		err = fmt.Errorf("the guard is of version %s", a.Version)
	}
	if err != nil {
		l.close()
		return err
	}
	c.mutex.Lock()
	defer c.mutex.Unlock()
	c.link, c.heard = l, Now()
	return nil
}

// start starts a guard in a session of its own, so that neither our end nor a terminal's Ctrl-C reaches it.
func (c *Client) start() (exited <-chan error, err error) {
	if len(c.Command) == 0 {
		return nil, errors.New("no program is named that is a guard")
	}
	if err := os.MkdirAll(c.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("making the guard's directory: %w", err)
	}
	name := filepath.Join(c.Dir, logFile)
	if info, err := os.Stat(name); err == nil && info.Size() > maxLog {
		if err := os.Rename(name, name+".1"); err != nil {
			return nil, fmt.Errorf("putting the guard's old log away: %w", err)
		}
	}
	log, err := os.OpenFile(name, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, fmt.Errorf("opening the guard's log: %w", err)
	}
	defer log.Close()
	command := exec.Command(c.Command[0], c.Command[1:]...)
	if own, err := os.Executable(); err == nil && own == c.Command[0] {
		command.Path = "/proc/self/exe" // also when the file was replaced or removed since
	}
	command.Dir, command.Env = "/", environment()
	command.Stdout, command.Stderr = log, log
	command.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := command.Start(); err != nil {
		return nil, fmt.Errorf("starting the guard: %w", err)
	}
	done := make(chan error, 1)
	go func() { done <- command.Wait() }() // only reaped: it says in its log how it ended
	return done, nil
}

// environment is what a guard gets of the agent's: how the engine is reached, and no credentials.
func environment() []string {
	list := []string{"PATH=" + os.Getenv("PATH"), "GOMAXPROCS=2", "GOGC=50"}
	for _, name := range []string{"HOME", "XDG_RUNTIME_DIR", "DOCKER_HOST", "DOCKER_TLS_VERIFY", "DOCKER_CERT_PATH", "DOCKER_API_VERSION"} {
		if value, ok := os.LookupEnv(name); ok {
			list = append(list, name+"="+value)
		}
	}
	return list
}

// reconcile has the guard hold every exclusive instance of the node that is there, and forget what is not.
func (c *Client) reconcile(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	info, err := c.Engine.Info(ctx)
	if err != nil {
		return fmt.Errorf("asking the engine: %w", err)
	}
	c.mutex.Lock()
	c.kind = info.Kind
	c.mutex.Unlock()
	// Before the engine is asked what there is: what is held and made meanwhile is not forgotten.
	a, err := c.ask(ctx, request{Op: opList})
	if err != nil {
		return err
	}
	if a.Record == nil {
		return errors.New("the guard does not say what it holds")
	}
	instances, err := c.Engine.List(ctx, map[string]string{engine.LabelNode: c.Node, engine.LabelExclusive: engine.Exclusive})
	if err != nil {
		return fmt.Errorf("asking the engine what is exclusive: %w", err)
	}
	there := map[Instance]bool{}
	for _, found := range instances {
		instance := Instance{Kind: info.Kind, ID: found.ID}
		there[instance] = true
		if _, err := c.ask(ctx, request{Op: opHold, Instance: instance}); err != nil {
			return err
		}
	}
	for _, instance := range a.Record.Instances {
		if there[instance] || instance.Kind != info.Kind {
			continue
		}
		// Its own word: an instance that is missing in a list may only be missing there.
		if _, err := c.Engine.Inspect(ctx, instance.ID); !errors.Is(err, engine.ErrNotFound) {
			continue
		}
		if _, err := c.ask(ctx, request{Op: opRelease, Instance: instance}); err != nil {
			return err
		}
	}
	return nil
}

func wait(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}
