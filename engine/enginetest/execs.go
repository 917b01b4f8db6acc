package enginetest

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"holdfast/engine"
)

func execute(t *testing.T, b *bench) {
	ctx := b.context()
	spec := b.spec()
	spec.Environment = map[string]string{"FROM_SPEC": "one", "CHANGED": "two"}
	id := b.start(spec)
	// Often, because an engine may describe a command that has not begun like one that ended with 0.
	for _, code := range []int{0, 1, 3, 42, 255, 5, 6, 7, 8, 9, 10, 11, 12} {
		got, err := b.engine.Exec(ctx, id, engine.ExecSpec{Command: []string{"/bin/sh", "-c", fmt.Sprintf("exit %d", code)}})
		require.NoError(t, err)
		require.Equal(t, code, got)
	}
	got, err := b.engine.Exec(ctx, id, engine.ExecSpec{Command: []string{"/bin/sh", "-c", "kill -9 $$"}})
	require.NoError(t, err)
	require.Equal(t, 137, got)
	// A shell cannot trap a signal that was ignored when it began: Ctrl-C would do nothing.
	for _, signal := range []string{"INT", "QUIT", "HUP"} {
		got, err = b.engine.Exec(ctx, id, engine.ExecSpec{Command: []string{"/bin/sh", "-c", "trap 'exit 42' " + signal + "; kill -" + signal + " $$; exit 1"}})
		require.NoError(t, err)
		require.Equal(t, 42, got, signal)
	}
	var text lineWriter
	got, err = b.engine.Exec(ctx, id, engine.ExecSpec{Command: []string{"no-such-program-" + random()}, Stdout: &text, Stderr: &text})
	require.NoError(t, err)
	require.Contains(t, []int{126, 127}, got)
	_, err = b.engine.Exec(ctx, id, engine.ExecSpec{})
	require.ErrorIs(t, err, engine.ErrInvalid)

	var out bytes.Buffer
	got, err = b.engine.Exec(ctx, id, engine.ExecSpec{
		Command:     []string{"/bin/sh", "-c", `echo "$FROM_SPEC $CHANGED $FROM_EXEC"; pwd; echo "$HOLDFAST_WORKSPACE"`},
		Environment: map[string]string{"CHANGED": "three", "FROM_EXEC": "a b"}, Stdout: &out,
	})
	require.NoError(t, err)
	require.Zero(t, got)
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	require.Len(t, lines, 3)
	require.Equal(t, "one three a b", lines[0])
	require.Equal(t, lines[2], lines[1], "a command runs in the workspace")
	if b.factory.Private {
		require.Equal(t, "/workspace", lines[1])
	} else {
		require.Equal(t, spec.ContentDir, lines[1])
	}
}

func executeStreams(t *testing.T, b *bench) {
	ctx := b.context()
	id := b.start(b.spec())
	var out, failed bytes.Buffer
	code, err := b.engine.Exec(ctx, id, engine.ExecSpec{
		Command: []string{"/bin/sh", "-c", "echo to-out; echo to-err >&2; cat; exit 5"},
		Stdin:   strings.NewReader("from-in\n"), Stdout: &out, Stderr: &failed,
	})
	require.NoError(t, err)
	require.Equal(t, 5, code)
	require.Equal(t, "to-out\nfrom-in\n", out.String())
	require.Equal(t, "to-err\n", failed.String())

	// One writer for both gets both, in order.
	var both bytes.Buffer
	_, err = b.engine.Exec(ctx, id, engine.ExecSpec{Command: []string{"/bin/sh", "-c", "for i in 1 2 3 4 5 6 7 8; do echo o$i; echo e$i >&2; done"}, Stdout: &both, Stderr: &both})
	require.NoError(t, err)
	for i := 1; i <= 8; i++ {
		require.Contains(t, both.String(), fmt.Sprintf("o%d\n", i))
		require.Contains(t, both.String(), fmt.Sprintf("e%d\n", i))
	}

	// A command without stdin sees its end at once and does not hang.
	code, err = b.engine.Exec(ctx, id, engine.ExecSpec{Command: []string{"cat"}})
	require.NoError(t, err)
	require.Zero(t, code)

	// Everything arrives, in both directions.
	big := strings.Repeat("0123456789abcde\n", 1<<16)
	out.Reset()
	code, err = b.engine.Exec(ctx, id, engine.ExecSpec{Command: []string{"cat"}, Stdin: strings.NewReader(big), Stdout: &out})
	require.NoError(t, err)
	require.Zero(t, code)
	require.True(t, big == out.String(), "%d bytes of %d came back", out.Len(), len(big))

	// A command that ends without reading its input ends the exec.
	reader, writer := io.Pipe()
	defer writer.Close()
	code, err = b.engine.Exec(ctx, id, engine.ExecSpec{Command: []string{"/bin/sh", "-c", "exit 4"}, Stdin: reader})
	require.NoError(t, err)
	require.Equal(t, 4, code)

	// What a command leaves running does not hold the exec open until it ends, or the context does.
	code, err = b.engine.Exec(ctx, id, engine.ExecSpec{Command: []string{"/bin/sh", "-c", "sleep 86400 & echo left"}, Stdout: &out})
	require.NoError(t, err)
	require.Zero(t, code)
}

func executeTerminal(t *testing.T, b *bench) {
	ctx := b.context()
	id := b.start(b.spec())
	reader, writer := io.Pipe()
	defer writer.Close()
	var out lineWriter
	sizes := make(chan engine.Size, 1)
	ended := make(chan error, 1)
	var code int
	go func() {
		var err error
		code, err = b.engine.Exec(ctx, id, engine.ExecSpec{
			Command: []string{"/bin/sh"}, TTY: true, Stdin: reader, Stdout: &out, Resize: sizes,
			Environment: map[string]string{"PS1": "ready> "},
		})
		ended <- err
	}()
	b.eventually("a prompt", func() bool { return strings.Contains(out.String(), "ready> ") })
	_, err := io.WriteString(writer, "test -t 0 && test -t 1 && test -t 2 && echo all-\"\"terminals\n")
	require.NoError(t, err)
	b.eventually("a terminal", func() bool { return strings.Contains(out.String(), "all-terminals") })
	sizes <- engine.Size{Columns: 91, Rows: 37}
	b.eventually("the size", func() bool {
		_, err := io.WriteString(writer, "stty size\n")
		require.NoError(t, err)
		return strings.Contains(out.String(), "37 91")
	})
	_, err = io.WriteString(writer, "exit 9\n")
	require.NoError(t, err)
	select {
	case err := <-ended:
		require.NoError(t, err)
		require.Equal(t, 9, code)
	case <-ctx.Done():
		t.Fatal("the shell does not end")
	}
}

// executeKilled ends the context of commands that do not want to end, with all that they started.
func executeKilled(t *testing.T, b *bench) {
	id := b.start(b.spec())
	// A context that ends while the command is being started: it must not start after all, or be killed.
	for wait := range 8 {
		mark := "778" + fmt.Sprint(time.Now().UnixNano())
		ctx, cancel := context.WithTimeout(b.context(), time.Duration(wait*10)*time.Millisecond)
		_, err := b.engine.Exec(ctx, id, engine.ExecSpec{Command: []string{"sleep", mark}})
		cancel()
		require.ErrorIs(t, err, context.DeadlineExceeded)
		b.eventually("nothing of the command is left", func() bool { return processesWith(mark) == 0 })
	}
	for _, tty := range []bool{false, true} {
		mark := "777" + fmt.Sprint(time.Now().UnixNano())
		ctx, cancel := context.WithCancel(b.context())
		var out lineWriter
		ended := make(chan error, 1)
		go func() {
			// The second sleep has a session of its own where setsid is there, and no parent.
			_, err := b.engine.Exec(ctx, id, engine.ExecSpec{TTY: tty, Stdout: &out, Command: []string{"/bin/sh", "-c",
				"trap '' TERM HUP INT; (setsid sleep " + mark + " &) ; sleep " + mark + " & echo begun; while :; do sleep " + mark + "; done"}})
			ended <- err
		}()
		b.eventually("it runs", func() bool { return strings.Contains(out.String(), "begun") && processesWith(mark) >= 3 })
		cancel()
		select {
		case err := <-ended:
			require.ErrorIs(t, err, context.Canceled)
		case <-time.After(2 * time.Minute):
			t.Fatal("the exec does not end with its context")
		}
		b.eventually("nothing of the command is left", func() bool { return processesWith(mark) == 0 })
	}
	require.Equal(t, engine.StatusRunning, b.status(id), "the instance itself goes on")
	b.run(id, "exit 0")
}

func logs(t *testing.T, b *bench) {
	ctx := b.context()
	id := b.create(b.spec("/bin/sh", "-c", "for i in 1 2 3 4 5; do echo out-$i; echo err-$i >&2; done; read line < go.pipe; echo the end"))
	found, err := b.engine.Inspect(ctx, id)
	require.NoError(t, err)
	require.Equal(t, engine.StatusCreated, found.Status)
	var none bytes.Buffer
	require.NoError(t, b.engine.Logs(ctx, id, engine.LogOptions{}, &none))
	require.Empty(t, none.String())
	require.NoError(t, b.engine.Start(ctx, id))
	b.eventually("the output", func() bool {
		var out bytes.Buffer
		if b.engine.Logs(ctx, id, engine.LogOptions{}, &out) != nil {
			return false
		}
		return strings.Contains(out.String(), "out-5") && strings.Contains(out.String(), "err-5")
	})
	b.eventually("it exited", func() bool { return b.status(id) == engine.StatusExited })
	var tail bytes.Buffer
	require.NoError(t, b.engine.Logs(ctx, id, engine.LogOptions{Tail: 1}, &tail))
	require.Equal(t, 1, strings.Count(tail.String(), "\n"), "%q", tail.String())

	// Following gives what comes later, and ends with the instance.
	waiting := b.spec("/bin/sh", "-c", "echo first; while [ ! -e go ]; do sleep 0.05; done; echo second")
	second := b.start(waiting)
	var out lineWriter
	ended := make(chan error, 1)
	go func() { ended <- b.engine.Logs(ctx, second, engine.LogOptions{Follow: true}, &out) }()
	b.eventually("the first line", func() bool { return out.String() == "first\n" })
	// From outside: an exec would end together with the instance that it lets end.
	require.NoError(t, os.WriteFile(filepath.Join(waiting.ContentDir, "go"), nil, 0o644))
	require.NoError(t, <-ended)
	require.Equal(t, "first\nsecond\n", out.String())

	third := b.start(b.spec())
	following, cancel := context.WithCancel(ctx)
	go func() { ended <- b.engine.Logs(following, third, engine.LogOptions{Follow: true}, io.Discard) }()
	cancel()
	require.ErrorIs(t, <-ended, context.Canceled)
}
