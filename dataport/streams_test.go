package dataport

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"holdfast/engine"
)

func TestExecCarriesStreamsAndExitCode(t *testing.T) {
	host := &fakeHost{exec: func(_ context.Context, c Claims, r ExecRequest, s Streams) (int, error) {
		if c.WorkspaceID != "ws-1" || c.Token != 7 {
			return 0, fmt.Errorf("claims %+v", c)
		}
		in, err := io.ReadAll(s.Stdin)
		if err != nil {
			return 0, err
		}
		fmt.Fprintf(s.Stdout, "%s got %s", strings.Join(r.Command, " "), in)
		fmt.Fprintf(s.Stderr, "V=%s", r.Environment["V"])
		return len(in), nil
	}}
	h := start(t, host, nil)
	for _, input := range []string{"", "abc", strings.Repeat("x", 137)} {
		var stdout, stderr bytes.Buffer
		code, err := h.client(VerbExec).Exec(context.Background(),
			ExecRequest{Command: []string{"a", "b c"}, Environment: map[string]string{"V": "value"}},
			Streams{Stdin: strings.NewReader(input), Stdout: &stdout, Stderr: &stderr})
		require.NoError(t, err)
		require.Equal(t, len(input), code)
		require.Equal(t, "a b c got "+input, stdout.String())
		require.Equal(t, "V=value", stderr.String())
	}
	// Without any stream.
	code, err := h.client(VerbExec).Exec(context.Background(), ExecRequest{Command: []string{"a"}}, Streams{})
	require.NoError(t, err)
	require.Zero(t, code)
}

// A terminal's size that waits to be sent does not overtake the request.
func TestTheRequestComesFirst(t *testing.T) {
	host := &fakeHost{exec: func(_ context.Context, _ Claims, _ ExecRequest, s Streams) (int, error) {
		return int((<-s.Resize).Columns), nil
	}}
	h := start(t, host, nil)
	for range 40 { // each was a toss-up
		sizes := make(chan engine.Size, 1)
		sizes <- engine.Size{Columns: 91, Rows: 37}
		code, err := h.client(VerbShell).Shell(context.Background(), ExecRequest{TTY: true}, Streams{Resize: sizes})
		require.NoError(t, err)
		require.Equal(t, 91, code)
	}
}

// A command that ends without reading its input must not hold the client, whose input never ends.
func TestExecEndsBeforeItsInput(t *testing.T) {
	host := &fakeHost{exec: func(context.Context, Claims, ExecRequest, Streams) (int, error) { return 3, nil }}
	h := start(t, host, nil)
	r, w := io.Pipe()
	defer w.Close()
	code, err := h.client(VerbExec).Exec(context.Background(), ExecRequest{Command: []string{"a"}}, Streams{Stdin: r})
	require.NoError(t, err)
	require.Equal(t, 3, code)
}

func TestExecRefusesBadRequests(t *testing.T) {
	host := okHost()
	h := start(t, host, nil)
	for name, request := range map[string]ExecRequest{
		"no command": {},
		"zero byte":  {Command: []string{"a\x00b"}},
		"bad name":   {Command: []string{"a"}, Environment: map[string]string{"A=B": "x"}},
		"bad value":  {Command: []string{"a"}, Environment: map[string]string{"A": "x\x00y"}},
		"too large":  {Command: []string{strings.Repeat("a", maxRequest)}},
	} {
		_, err := h.client(VerbExec).Exec(context.Background(), request, Streams{})
		require.ErrorIs(t, err, ErrInvalid, name)
	}
	require.Zero(t, host.calls.Load())
	_, err := h.client(VerbShell).Shell(context.Background(), ExecRequest{}, Streams{})
	require.NoError(t, err, "an empty command is the shell")
}

func TestErrorsKeepTheirMeaning(t *testing.T) {
	var give error
	host := &fakeHost{exec: func(context.Context, Claims, ExecRequest, Streams) (int, error) { return 0, give }}
	h := start(t, host, nil)
	for _, test := range []struct{ give, want error }{
		{fmt.Errorf("looking: %w", ErrNotHere), ErrNotHere},
		{ErrConflict, ErrConflict},
		{ErrNotRunning, ErrNotRunning},
		{ErrPaused, ErrPaused},
		{ErrUnavailable, ErrUnavailable},
		{ErrInvalid, ErrInvalid},
		{ErrForbidden, ErrForbidden},
		{engine.ErrNotFound, ErrNotHere},
		{engine.ErrNotRunning, ErrNotRunning},
		{engine.ErrPaused, ErrPaused},
		{engine.ErrUnavailable, ErrUnavailable},
		{context.DeadlineExceeded, ErrUnavailable},
		{errors.New("disk on fire"), ErrInternal},
	} {
		give = test.give
		_, err := h.client(VerbExec).Exec(context.Background(), ExecRequest{Command: []string{"a"}}, Streams{})
		require.ErrorIs(t, err, test.want)
		require.ErrorContains(t, err, test.give.Error(), "the words arrive too")
	}
	require.ErrorIs(t, &RemoteError{Code: "from a newer server"}, ErrInternal)
}

func TestResize(t *testing.T) {
	sizes := make(chan engine.Size, 10)
	host := &fakeHost{exec: func(_ context.Context, _ Claims, r ExecRequest, s Streams) (int, error) {
		sizes <- r.Size
		for size := range s.Resize {
			sizes <- size
			if size.Rows == 99 {
				return 0, nil
			}
		}
		return 1, nil
	}}
	h := start(t, host, nil)
	resize := make(chan engine.Size)
	result := make(chan error, 1)
	client := h.client(VerbShell)
	go func() {
		code, err := client.Shell(context.Background(), ExecRequest{TTY: true, Size: engine.Size{Columns: 80, Rows: 24}}, Streams{Resize: resize})
		if err == nil && code != 0 {
			err = fmt.Errorf("exit code %d", code)
		}
		result <- err
	}()
	require.Equal(t, engine.Size{Columns: 80, Rows: 24}, <-sizes)
	for _, size := range []engine.Size{{Columns: 100, Rows: 30}, {Columns: 132, Rows: 99}} {
		resize <- size
		require.Equal(t, size, <-sizes)
	}
	require.NoError(t, <-result)
}

// A host that never looks at sizes must not stop the stream from being read; the newest size is the one that stays.
func TestManyResizesDoNotBlock(t *testing.T) {
	last := make(chan engine.Size, 1)
	host := &fakeHost{exec: func(_ context.Context, _ Claims, _ ExecRequest, s Streams) (int, error) {
		_, err := io.ReadAll(s.Stdin) // its end comes after all the sizes
		last <- <-s.Resize
		return 0, err
	}}
	h := start(t, host, nil)
	resize := make(chan engine.Size)
	stdin, end := io.Pipe()
	go func() {
		for i := range 500 {
			resize <- engine.Size{Columns: 1, Rows: uint16(i)}
		}
		end.Close()
	}()
	_, err := h.client(VerbShell).Shell(context.Background(), ExecRequest{TTY: true}, Streams{Stdin: stdin, Resize: resize})
	require.NoError(t, err)
	require.GreaterOrEqual(t, (<-last).Rows, uint16(498), "the last one may still be under way when the input ends")
}

// When the client's context ends the command is killed, whatever it does with its input and output.
func TestCancelKills(t *testing.T) {
	for name, command := range map[string]func(ctx context.Context, s Streams){
		"idle":               func(ctx context.Context, s Streams) { <-ctx.Done() },
		"reading its input":  func(ctx context.Context, s Streams) { io.Copy(io.Discard, s.Stdin) },
		"ignoring its input": func(ctx context.Context, s Streams) { <-ctx.Done() },
		"writing for ever": func(ctx context.Context, s Streams) {
			for err := error(nil); err == nil; {
				_, err = s.Stdout.Write(make([]byte, 100_000))
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			running, cause := make(chan struct{}), make(chan error, 1)
			host := &fakeHost{exec: func(ctx context.Context, _ Claims, _ ExecRequest, s Streams) (int, error) {
				close(running)
				command(ctx, s)
				<-ctx.Done()
				cause <- context.Cause(ctx)
				return 0, ctx.Err()
			}}
			h := start(t, host, nil)
			ctx, cancel := context.WithCancelCause(context.Background())
			why := errors.New("the person pressed ctrl-c")
			go func() {
				<-running
				cancel(why)
			}()
			// Far more input than anybody reads, and a consumer that takes nothing once the stream has begun.
			_, err := h.client(VerbExec).Exec(ctx, ExecRequest{Command: []string{"a"}},
				Streams{Stdin: &pattern{size: 1 << 40}, Stdout: blockedUntil(ctx)})
			require.ErrorIs(t, err, why)
			select {
			case err := <-cause:
				require.ErrorIs(t, err, ErrCut)
			case <-time.After(waitLimit):
				t.Fatal("the command was not killed")
			}
		})
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

func blockedUntil(ctx context.Context) io.Writer {
	return writerFunc(func(p []byte) (int, error) {
		<-ctx.Done()
		return len(p), nil
	})
}

// deafConn swallows what is written, as a network does that has gone away.
type deafConn struct {
	net.Conn
	deaf *atomic.Bool
}

func (c deafConn) Write(p []byte) (int, error) {
	if c.deaf.Load() {
		return len(p), nil
	}
	return c.Conn.Write(p)
}

func TestVanishedClientIsNoticed(t *testing.T) {
	t.Parallel()
	const ping = time.Second // four of them without a word are the end: more than a busy machine keeps a client from pinging
	running, cause := make(chan struct{}), make(chan error, 1)
	host := &fakeHost{exec: func(ctx context.Context, _ Claims, _ ExecRequest, s Streams) (int, error) {
		close(running)
		<-ctx.Done()
		cause <- context.Cause(ctx)
		return 0, ctx.Err()
	}}
	h := start(t, host, func(o *ServerOptions) { o.timing.ping = ping })
	h.timing.ping = ping
	var deaf atomic.Bool
	h.dial = func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := (&net.Dialer{}).DialContext(ctx, network, address)
		return deafConn{conn, &deaf}, err
	}
	result := make(chan error, 1)
	client := h.client(VerbExec)
	go func() {
		_, err := client.Exec(context.Background(), ExecRequest{Command: []string{"a"}}, Streams{})
		result <- err
	}()
	soon(t, running, "the command to run")
	select { // while it pings, it is left alone, though nothing else is said
	case err := <-cause:
		t.Fatalf("a client that pings was cut: %v", err)
	case <-time.After(5 * ping):
	}
	deaf.Store(true)
	select {
	case err := <-cause:
		require.ErrorIs(t, err, ErrCut)
	case <-time.After(waitLimit):
		t.Fatal("the command of a client that vanished was not killed")
	}
	require.Error(t, <-result)
}

func TestSilentServerIsNoticed(t *testing.T) {
	host := &fakeHost{logs: func(ctx context.Context, _ Claims, _ engine.LogOptions, _ io.Writer) error {
		<-ctx.Done()
		return ctx.Err()
	}}
	h := start(t, host, func(o *ServerOptions) { o.timing.ping = time.Hour })
	h.timing.ping = 20 * time.Millisecond
	require.ErrorIs(t, h.client(VerbLogs).Logs(context.Background(), engine.LogOptions{Follow: true}, io.Discard), ErrCut)
}

func TestLogsArriveAsTheyAreWritten(t *testing.T) {
	lines := make(chan string)
	var options engine.LogOptions
	host := &fakeHost{logs: func(ctx context.Context, _ Claims, o engine.LogOptions, w io.Writer) error {
		options = o
		for line := range lines {
			if _, err := io.WriteString(w, line); err != nil {
				return err
			}
		}
		return nil
	}}
	h := start(t, host, nil)
	arrived := make(chan string)
	result := make(chan error, 1)
	client := h.client(VerbLogs)
	go func() {
		result <- client.Logs(context.Background(), engine.LogOptions{Follow: true, Tail: 5}, writerFunc(func(p []byte) (int, error) {
			arrived <- string(p)
			return len(p), nil
		}))
	}()
	for _, line := range []string{"one\n", "two\n"} {
		lines <- line
		require.Equal(t, line, <-arrived)
	}
	close(lines)
	require.NoError(t, <-result)
	require.Equal(t, engine.LogOptions{Follow: true, Tail: 5}, options)
}

// A client that sends more than it has credit for is cut, so that it cannot fill the agent's memory.
func TestInputBeyondCredit(t *testing.T) {
	cause := make(chan error, 1)
	host := &fakeHost{exec: func(ctx context.Context, _ Claims, _ ExecRequest, _ Streams) (int, error) {
		<-ctx.Done()
		cause <- context.Cause(ctx)
		return 0, ctx.Err()
	}}
	h := start(t, host, nil)
	frames, err := h.client(VerbExec).open(context.Background(), VerbExec)
	require.NoError(t, err)
	defer closeNow(frames)
	require.NoError(t, frames.writeJSON(frameRequest, streamRequest{Exec: &ExecRequest{Command: []string{"a"}}}))
	for range inputWindow/maxData + 1 {
		if frames.write(frameInput, make([]byte, maxData)) != nil {
			break
		}
	}
	select {
	case err := <-cause:
		require.ErrorIs(t, err, errProtocol)
	case <-time.After(waitLimit):
		t.Fatal("it was not cut")
	}
}

// What hooks printed comes through the verb of the logs.
func TestHookLog(t *testing.T) {
	h := start(t, &fakeHost{}, nil)
	var out bytes.Buffer
	require.NoError(t, h.client(VerbLogs).HookLog(context.Background(), &out))
	require.Equal(t, "hooks of "+h.claims(VerbLogs).Name, out.String())
	require.Error(t, h.client(VerbDownload).HookLog(context.Background(), &out))
}
