package docker

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/api/types"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/pkg/stdcopy"

	"holdfast/engine"
	"holdfast/engine/tail"
)

// execMarker is an environment variable by which the processes of one exec are found when they must be killed.
const execMarker = "HOLDFAST_EXEC"

// outputLimits bound what is read after a command's end. The engine closes the output itself within about two seconds, also
// when what was left running keeps it open, so these are for an engine that is starved, or does not do so. It holds about
// a megabyte, and sockets and pipes less than the rest of the default of Bytes.
var outputLimits = tail.Limits{Silence: 10 * time.Second, Total: 20 * time.Second}

// consumerGrace is how long after its context's end an exec waits for a consumer that is taking output.
const consumerGrace = time.Second

// killScript kills the processes that carry the mark $1 and all below them, again until none is left. The engine's API has
// no way to end an exec, and its pids are those of the engine's machine. It needs tr, grep and a /proc.
const killScript = `mark="HOLDFAST_EXEC=$1" round=0 all=" "
while [ $round -lt 50 ]; do
  found=""
  for dir in /proc/[0-9]*; do
    pid=${dir#/proc/}
    [ "$pid" = 1 ] || [ "$pid" = $$ ] && continue
    read -r line 2>/dev/null <"$dir/stat" || continue
    rest=${line##*) }; set -- $rest
    [ "$1" = Z ] || [ "$1" = X ] && continue
    case "$all" in
      *" $pid "*) found="$found $pid" ;;
      *" $2 "*) all="$all$pid "; found="$found $pid" ;;
      *) if tr '\000' '\n' 2>/dev/null <"$dir/environ" | grep -qxF "$mark" 2>/dev/null; then all="$all$pid "; found="$found $pid"; fi ;;
    esac
  done
  [ -z "$found" ] && exit 0
  kill -KILL $found 2>/dev/null
  round=$((round + 1))
  [ $round -gt 5 ] && sleep 1
done
exit 1`

// Exec runs a command. When stdin is given, its reader may stay in use until its next Read returns: it cannot be
// interrupted; the same holds for the writers' Write when the context ends. A program that is not there gives 127 or 126,
// with the engine's reason on Stdout.
//
// All that the engine passes on of what the command wrote is passed on here, however slow the writers are. What the
// command left running does not keep the exec open: its later output is dropped without an error. Where the engine has not
// closed the output when the limits of that are reached, the log says so.
func (e *Engine) Exec(ctx context.Context, id string, spec engine.ExecSpec) (int, error) {
	if len(spec.Command) == 0 || spec.Command[0] == "" {
		return -1, fmt.Errorf("%w: an exec needs a command", engine.ErrInvalid)
	}
	if err := engine.ValidateEnvironment(spec.Environment); err != nil {
		return -1, err
	}
	found, err := e.inspect(ctx, id)
	if err != nil {
		return -1, err
	}
	if stands(found) {
		return -1, fmt.Errorf("%w: %s", engine.ErrPaused, id)
	}
	if !found.State.Running {
		return -1, fmt.Errorf("%w: %s is %s", engine.ErrNotRunning, id, statusOf(found.State))
	}
	mark := make([]byte, 12)
	if _, err := rand.Read(mark); err != nil {
		return -1, fmt.Errorf("making an id: %w", err)
	}
	running := &execution{engine: e, container: found.ID, mark: hex.EncodeToString(mark), spec: spec}
	code, err := running.run(ctx)
	return code, hidden(err, spec.Environment)
}

// execution is one exec.
type execution struct {
	engine    *Engine
	container string
	id        string
	mark      string
	spec      engine.ExecSpec

	ran    bool // the engine said so
	output *tail.Reader
	copied chan struct{} // closed when the consumer has the output
	failed error         // of the copying, once copied is closed
}

func (x *execution) run(ctx context.Context) (int, error) {
	environment := map[string]string{}
	if x.spec.TTY {
		environment["TERM"] = "xterm-256color"
	}
	for name, value := range x.spec.Environment {
		environment[name] = value
	}
	environment[execMarker] = x.mark
	made, err := x.engine.client.ContainerExecCreate(ctx, x.container, container.ExecOptions{
		Tty: x.spec.TTY, AttachStdin: x.spec.Stdin != nil, AttachStdout: true, AttachStderr: true,
		Env: engine.EnvironmentList(environment), WorkingDir: workspacePath, Cmd: x.spec.Command,
	})
	if err != nil {
		if errdefs.IsConflict(err) {
			return -1, fmt.Errorf("%w: %w", engine.ErrNotRunning, err)
		}
		return -1, mapError("making an exec", err)
	}
	x.id = made.ID
	attached, err := x.engine.client.ContainerExecAttach(ctx, x.id, container.ExecAttachOptions{Tty: x.spec.TTY})
	if err != nil {
		if failed := (*net.OpError)(nil); ctx.Err() != nil && errors.As(err, &failed) && failed.Op == "dial" {
			return -1, fmt.Errorf("the command was not started: %w", context.Cause(ctx))
		}
		if ctx.Err() != nil { // the engine may have had the request
			return -1, x.killAfter(ctx)
		}
		if code, ok := x.codeOfFailedStart(ctx, err); ok {
			return code, nil
		}
		return -1, mapError("starting an exec", err)
	}
	defer attached.Close()
	return x.follow(ctx, attached)
}

// codeOfFailedStart turns the engine's refusal to start a program into the code that a shell would give. Newer engines
// answer so, older ones write it to the output and set the code themselves.
func (x *execution) codeOfFailedStart(ctx context.Context, cause error) (int, bool) {
	if ctx.Err() != nil {
		return 0, false
	}
	state, err := x.engine.client.ContainerExecInspect(ctx, x.id)
	if err != nil || state.Running || (state.ExitCode != 126 && state.ExitCode != 127) {
		return 0, false
	}
	to := x.spec.Stderr
	if x.spec.TTY || to == nil {
		to = x.spec.Stdout
	}
	if to != nil {
		fmt.Fprintf(to, "holdfast: %s\n", engine.Redact(cause.Error(), x.spec.Environment))
	}
	return state.ExitCode, true
}

func (x *execution) follow(ctx context.Context, attached types.HijackedResponse) (int, error) {
	x.output = tail.NewReader(attached.Reader, outputLimits, attached.Close)
	x.copied = make(chan struct{})
	go func() {
		defer close(x.copied)
		x.failed = x.copyOutput()
	}()
	defer x.output.Cut()
	if x.spec.Stdin != nil {
		go func() {
			// A command that does not read its input is no failure.
			_, _ = io.Copy(attached.Conn, x.spec.Stdin)
			if !x.spec.TTY { // a terminal's input does not end, its user types ^D
				_ = attached.CloseWrite()
			}
		}()
	}
	ended := make(chan struct{})
	defer close(ended)
	if x.spec.Resize != nil && x.spec.TTY {
		go x.resize(ctx, ended)
	}
	state, err := x.wait(ctx)
	if ctx.Err() != nil {
		err = x.killAfter(ctx)
		// What the killed command wrote last is most likely just being passed on.
		select {
		case <-x.copied:
		case <-time.After(consumerGrace):
		}
		return -1, err
	}
	if err != nil {
		return -1, err
	}
	return state.ExitCode, nil
}

// startLimit is how long an exec may take from the request to its first process.
const startLimit = 10 * time.Second

// beginLimit is how long the kill of an exec waits for its first process: until then there is nothing to kill, and what the
// engine has accepted it will start, however slow it is.
const beginLimit = time.Minute

// begun says whether the exec ever ran: the engine answers an attach before it starts the process, and describes an exec
// that is about to start like one that ended with 0. One that could not be started has a code and no pid.
func begun(state container.ExecInspect) bool {
	return state.Running || state.Pid != 0 || state.ExitCode != 0
}

// wait waits until the command ended and its output was passed on. The end of its output is a hint only: it can close it
// early or leave it open.
func (x *execution) wait(ctx context.Context) (container.ExecInspect, error) {
	output := x.copied
	var silent time.Time // when the output ended
	for interval := 20 * time.Millisecond; ; interval = min(interval*3/2, time.Second) {
		state, err := x.engine.client.ContainerExecInspect(ctx, x.id)
		if err != nil {
			if errdefs.IsNotFound(err) {
				return state, fmt.Errorf("%w: it ended during the command", engine.ErrNotRunning)
			}
			return state, mapError("asking for the exec", err)
		}
		x.ran = x.ran || state.Running
		if begun(state) && !state.Running || output == nil && !state.Running && time.Since(silent) > startLimit {
			return state, x.drain(ctx, state)
		}
		if x.output.Waiting() {
			// The engine keeps for two seconds what it could not pass on when the command ended: it must be known by then.
			interval = min(interval, 100*time.Millisecond)
		}
		timer := time.NewTimer(interval)
		select {
		case <-output:
			output, silent = nil, time.Now()
			interval = time.Millisecond // it most likely ended
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return state, ctx.Err()
		}
		timer.Stop()
	}
}

// drain waits until the consumer has the rest of the output, after the command ended.
func (x *execution) drain(ctx context.Context, state container.ExecInspect) error {
	x.output.Ended()
	select {
	case <-x.copied:
	case <-ctx.Done():
		return ctx.Err()
	}
	if x.output.WasCut() {
		x.engine.options.Logger.WarnContext(ctx, "the engine had not closed a command's output long after its end: what came later is dropped", "container", x.container)
	}
	return x.checkContainer(ctx, state, x.failed)
}

// checkContainer tells a command that was killed because the container ended from one that ended itself.
func (x *execution) checkContainer(ctx context.Context, state container.ExecInspect, failed error) error {
	if state.ExitCode == 137 || failed != nil {
		found, err := x.engine.inspect(ctx, x.container)
		if err == nil && !found.State.Running {
			return fmt.Errorf("%w: it ended during the command", engine.ErrNotRunning)
		}
	}
	return failed
}

// killAfter kills the command when the context is over: it must not go on, and ending it takes its own time.
func (x *execution) killAfter(ctx context.Context) error {
	killing, cancel := context.WithTimeout(context.WithoutCancel(ctx), beginLimit+30*time.Second)
	defer cancel()
	if err := x.kill(killing); err != nil {
		return fmt.Errorf("the command may still run: %w: %w", err, context.Cause(ctx))
	}
	return fmt.Errorf("the command was killed: %w", context.Cause(ctx))
}

func (x *execution) copyOutput() error {
	out, errs := x.spec.Stdout, x.spec.Stderr
	if out == nil {
		out = io.Discard
	}
	if errs == nil {
		errs = io.Discard
	}
	var err error
	if x.spec.TTY {
		_, err = io.Copy(out, x.output)
	} else {
		_, err = stdcopy.StdCopy(out, errs, x.output)
	}
	if err != nil && !errors.Is(err, io.EOF) {
		_, _ = io.Copy(io.Discard, x.output) // the command goes on
		return fmt.Errorf("passing on the command's output: %w", err)
	}
	return nil
}

func (x *execution) resize(ctx context.Context, ended <-chan struct{}) {
	for {
		select {
		case size, ok := <-x.spec.Resize:
			if !ok {
				return
			}
			// The command may just have ended; and a wrong size is no reason to end it.
			err := x.engine.client.ContainerExecResize(ctx, x.id, container.ResizeOptions{Height: uint(size.Rows), Width: uint(size.Columns)})
			if err != nil && ctx.Err() == nil {
				x.engine.options.Logger.DebugContext(ctx, "resizing a terminal", "error", err.Error())
			}
		case <-ctx.Done():
			return
		case <-ended:
			return
		}
	}
}

// awaitBegin waits until the exec has begun, for beginLimit at most. It is false when there is nothing to kill: the exec or
// its container is gone.
func (x *execution) awaitBegin(ctx context.Context) (bool, error) {
	deadline := time.Now().Add(beginLimit)
	for interval := 20 * time.Millisecond; ; interval = min(interval*3/2, time.Second) {
		state, err := x.engine.client.ContainerExecInspect(ctx, x.id)
		if errdefs.IsNotFound(err) {
			return false, nil
		}
		if err != nil {
			return false, mapError("asking for the exec", err)
		}
		found, err := x.engine.inspect(ctx, x.container)
		if errors.Is(err, engine.ErrNotFound) || (err == nil && !found.State.Running) {
			return false, nil
		}
		if err != nil {
			return false, err
		}
		// The engine says that an exec runs a while before it has a process.
		x.ran = x.ran || state.Running
		if state.Pid != 0 || state.ExitCode != 0 || x.ran && !state.Running {
			return true, nil
		}
		if time.Now().After(deadline) {
			return false, fmt.Errorf("it has not begun in %v", beginLimit)
		}
		if err := pause(ctx, interval); err != nil {
			return false, err
		}
	}
}

// kill ends the command with another exec, inside its own namespaces.
func (x *execution) kill(ctx context.Context) error {
	if begun, err := x.awaitBegin(ctx); err != nil || !begun {
		return err
	}
	for {
		var out bytes.Buffer
		killer := &execution{engine: x.engine, container: x.container, mark: "killer", spec: engine.ExecSpec{
			Command: []string{"/bin/sh", "-c", killScript, "holdfast", x.mark}, Stdout: &out, Stderr: &out,
		}}
		code, err := killer.run(ctx)
		if err != nil {
			if found, asked := x.engine.inspect(ctx, x.container); errors.Is(asked, engine.ErrNotFound) || asked == nil && !found.State.Running {
				return nil // it ended meanwhile, and the command with it
			}
			return fmt.Errorf("killing the command: %w", err)
		}
		if code != 0 {
			return fmt.Errorf("killing the command: code %d, %s", code, strings.TrimSpace(out.String()))
		}
		// A process that has only just begun may not have carried its mark yet: then once more.
		for range 20 {
			state, err := x.engine.client.ContainerExecInspect(ctx, x.id)
			if errdefs.IsNotFound(err) || err == nil && !state.Running {
				return nil
			}
			if err != nil {
				return mapError("asking for the exec", err)
			}
			if err := pause(ctx, 50*time.Millisecond); err != nil {
				return fmt.Errorf("waiting for the command's end: %w", err)
			}
		}
	}
}
