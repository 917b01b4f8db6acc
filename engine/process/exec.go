package process

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/creack/pty"
	"golang.org/x/sys/unix"

	"holdfast/engine"
	"holdfast/engine/tail"
)

// consumerGrace is how long after its context's end an exec waits for a consumer that is taking output.
const consumerGrace = time.Second

// The exit codes that shells use for what could not be executed.
const (
	codeNotExecutable = 126
	codeNoProgram     = 127
)

// dial connects to the init of a running instance.
func (i *instance) dial(ctx context.Context) (*net.UnixConn, error) {
	dir, err := os.Open(i.dir)
	if err != nil {
		return nil, fmt.Errorf("opening the instance's directory: %w", err)
	}
	defer dir.Close()
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "unix", socketPath(dir))
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %w", engine.ErrNotRunning, filepath.Base(i.dir), err)
	}
	return conn.(*net.UnixConn), nil
}

// Exec runs a command. When stdin is given, its reader may stay in use until its next Read returns: it cannot be
// interrupted; the same holds for the writers' Write when the context ends. A program that is not there gives 127, one that
// cannot be executed 126, with the reason on Stderr.
//
// All that the command wrote before it ended is passed on, however slow the writers are. What it left running keeps the
// exec open no longer than tail.Limits says: its later output is dropped without an error.
func (e *Engine) Exec(ctx context.Context, id string, spec engine.ExecSpec) (int, error) {
	if len(spec.Command) == 0 || spec.Command[0] == "" {
		return -1, fmt.Errorf("%w: an exec needs a command", engine.ErrInvalid)
	}
	if err := engine.ValidateEnvironment(spec.Environment); err != nil {
		return -1, err
	}
	found, err := e.load(id)
	if err != nil {
		return -1, err
	}
	if found.status == engine.StatusPaused {
		return -1, fmt.Errorf("%w: %s", engine.ErrPaused, found.record.Spec.Name)
	}
	if found.status != engine.StatusRunning {
		return -1, fmt.Errorf("%w: %s is %s", engine.ErrNotRunning, found.record.Spec.Name, found.status)
	}
	conn, err := found.dial(ctx)
	if err != nil {
		return -1, err
	}
	defer conn.Close()
	streams, err := openStreams(spec)
	if err != nil {
		return -1, err
	}
	defer streams.close()
	mark, err := randomID()
	if err != nil {
		return -1, err
	}
	request := controlRequest{Version: controlVersion, ID: mark, Command: spec.Command, Environment: spec.Environment, TTY: spec.TTY}
	if spec.TTY && request.Environment["TERM"] == "" {
		request.Environment = map[string]string{"TERM": "xterm-256color"}
		for name, value := range spec.Environment {
			request.Environment[name] = value
		}
	}
	// When the context ends, the half-closed connection tells the init to kill the command, and its answer that it has.
	stop := context.AfterFunc(ctx, func() {
		_ = conn.CloseWrite()
		_ = conn.SetReadDeadline(time.Now().Add(10 * time.Second))
	})
	defer stop()
	err = sendRequest(conn, request, streams.theirs)
	streams.closeTheirs()
	if err != nil {
		return -1, errors.Join(err, ctx.Err())
	}
	return e.follow(ctx, conn, spec, streams)
}

// follow waits for the command's end while its streams are copied.
func (e *Engine) follow(ctx context.Context, conn *net.UnixConn, spec engine.ExecSpec, streams *streams) (int, error) {
	decoder := json.NewDecoder(conn)
	var answer controlAnswer
	if err := decoder.Decode(&answer); err != nil {
		return -1, e.lost(ctx, err)
	}
	if answer.Error != "" {
		if ctx.Err() != nil {
			return -1, fmt.Errorf("executing: %w", ctx.Err())
		}
		to := spec.Stderr
		if spec.TTY || to == nil {
			to = spec.Stdout
		}
		if to != nil {
			fmt.Fprintf(to, "holdfast: %s\n", answer.Error)
		}
		if answer.NotFound {
			return codeNoProgram, nil
		}
		return codeNotExecutable, nil
	}
	streams.copy(spec)
	answer = controlAnswer{}
	if err := decoder.Decode(&answer); err != nil {
		return -1, e.lost(ctx, err)
	}
	streams.drain(ctx)
	if ctx.Err() != nil {
		return answer.Code, fmt.Errorf("the command was killed: %w", context.Cause(ctx))
	}
	if err := streams.failure(); err != nil {
		return answer.Code, err
	}
	return answer.Code, nil
}

// lost explains a connection that ended: the instance was stopped, or the context ended.
func (e *Engine) lost(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return fmt.Errorf("executing: %w", context.Cause(ctx))
	}
	return fmt.Errorf("%w: it ended during the command: %w", engine.ErrNotRunning, err)
}

// streams are the descriptors of one exec: theirs go to the command, ours stay.
type streams struct {
	theirs []*os.File
	input  *os.File // we write
	output *os.File // we read
	errors *os.File
	master *os.File // TTY: both
	tails  []*tail.Reader

	done    chan struct{} // closed by drain or close
	once    sync.Once
	copying sync.WaitGroup
	mu      sync.Mutex
	failed  error
}

func openStreams(spec engine.ExecSpec) (*streams, error) {
	s := &streams{done: make(chan struct{})}
	if spec.TTY {
		master, slave, err := pty.Open()
		if err != nil {
			return nil, fmt.Errorf("opening a terminal: %w", err)
		}
		s.theirs = []*os.File{slave, slave, slave}
		if s.master, err = interruptible(master); err != nil {
			s.close()
			return nil, err
		}
		return s, nil
	}
	var err error
	open := func(ours **os.File, write bool) *os.File {
		read, written, pipeErr := os.Pipe()
		if pipeErr != nil {
			err = errors.Join(err, fmt.Errorf("making a pipe: %w", pipeErr))
			return nil
		}
		if write {
			*ours = written
			return read
		}
		*ours = read
		return written
	}
	null := func(flag int) *os.File {
		file, openErr := os.OpenFile(os.DevNull, flag, 0)
		if openErr != nil {
			err = errors.Join(err, openErr)
		}
		return file
	}
	s.theirs = make([]*os.File, 3)
	if spec.Stdin != nil {
		s.theirs[0] = open(&s.input, true)
	} else {
		s.theirs[0] = null(os.O_RDONLY)
	}
	if spec.Stdout != nil {
		s.theirs[1] = open(&s.output, false)
	} else {
		s.theirs[1] = null(os.O_WRONLY)
	}
	switch {
	case spec.Stderr != nil && sameWriter(spec.Stdout, spec.Stderr):
		// One pipe: two would be two writers at once to something that expects one, and mix up the order.
		s.theirs[2] = s.theirs[1]
	case spec.Stderr != nil:
		s.theirs[2] = open(&s.errors, false)
	default:
		s.theirs[2] = null(os.O_WRONLY)
	}
	if err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

// interruptible takes the place of a terminal's master, whose reads would go on after its close: pty.Open makes it blocking.
func interruptible(master *os.File) (*os.File, error) {
	defer master.Close()
	fd, err := unix.FcntlInt(master.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("opening a terminal: %w", err)
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("opening a terminal: %w", err)
	}
	return os.NewFile(uintptr(fd), master.Name()), nil
}

// setSize is pty.Setsize for an interruptible terminal, which stays so.
func setSize(master *os.File, size engine.Size) error {
	raw, err := master.SyscallConn()
	if err != nil {
		return fmt.Errorf("using a terminal: %w", err)
	}
	controlErr := raw.Control(func(fd uintptr) {
		err = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Col: size.Columns, Row: size.Rows})
	})
	return errors.Join(controlErr, err)
}

// sameWriter compares two writers, which may be of a type that cannot be compared.
func sameWriter(a, b io.Writer) (same bool) {
	defer func() {
		if recover() != nil {
			same = false
		}
	}()
	return a == b
}

func (s *streams) closeTheirs() {
	for _, file := range s.theirs {
		if file != nil {
			file.Close() // one file may be there several times: a second close is an error without meaning
		}
	}
	s.theirs = nil
}

// copy moves data until the command's side is closed.
func (s *streams) copy(spec engine.ExecSpec) {
	out := func(from *os.File, to io.Writer) {
		// Closing its file ends a read that waits. The limits are the default ones: no pipe holds that much.
		reader := tail.NewReader(from, tail.Limits{}, func() { from.Close() })
		s.tails = append(s.tails, reader)
		s.copying.Add(1)
		go func() {
			defer s.copying.Done()
			if to == nil {
				to = io.Discard
			}
			_, err := io.Copy(to, reader)
			// A terminal whose last user is gone reads as EIO; a closed one was closed by close.
			if err != nil && !errors.Is(err, unix.EIO) && !errors.Is(err, os.ErrClosed) {
				s.mu.Lock()
				s.failed = errors.Join(s.failed, fmt.Errorf("passing on the command's output: %w", err))
				s.mu.Unlock()
				_, _ = io.Copy(io.Discard, reader) // the command goes on
			}
		}()
	}
	if s.master != nil {
		out(s.master, spec.Stdout)
		if spec.Stdin != nil {
			go func() { _, _ = io.Copy(s.master, spec.Stdin) }()
		}
		if spec.Resize != nil {
			s.copying.Add(1)
			go s.resize(spec.Resize)
		}
		return
	}
	if s.output != nil {
		out(s.output, spec.Stdout)
	}
	if s.errors != nil {
		out(s.errors, spec.Stderr)
	}
	if s.input != nil {
		go func() {
			// A command that does not read its input is no failure.
			_, _ = io.Copy(s.input, spec.Stdin)
			s.input.Close()
		}()
	}
}

func (s *streams) resize(sizes <-chan engine.Size) {
	defer s.copying.Done()
	for {
		select {
		case size, ok := <-sizes:
			if !ok {
				return
			}
			// A terminal that is just being closed cannot be resized, and need not be.
			_ = setSize(s.master, size)
		case <-s.done:
			return
		}
	}
}

// drain waits until the consumer has the rest of the output, after the command ended. When the context ends it gives up.
func (s *streams) drain(ctx context.Context) {
	s.once.Do(func() { close(s.done) })
	for _, reader := range s.tails {
		reader.Ended()
	}
	copied := make(chan struct{})
	go func() {
		s.copying.Wait()
		close(copied)
	}()
	select {
	case <-copied:
		return
	case <-ctx.Done():
	}
	// What the killed command wrote last is most likely just being passed on.
	select {
	case <-copied:
	case <-time.After(consumerGrace):
		s.cut()
	}
}

// cut ends the copying at once; a Write that is under way ends when it ends.
func (s *streams) cut() {
	for _, reader := range s.tails {
		reader.Cut()
	}
}

func (s *streams) failure() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.failed
}

func (s *streams) closeOurs() {
	for _, file := range []*os.File{s.input, s.output, s.errors, s.master} {
		if file != nil {
			file.Close()
		}
	}
}

func (s *streams) close() {
	s.once.Do(func() { close(s.done) })
	s.cut()
	s.closeTheirs()
	s.closeOurs()
}
