package enginetest

import (
	"bytes"
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"holdfast/engine"
)

// longerThanGraces is several times what an engine waits for output after a command's end.
const longerThanGraces = 6 * time.Second

// executeSlowConsumer has consumers that stand still when their command has ended: they get all the same what was written.
func executeSlowConsumer(t *testing.T, b *bench) {
	const size = 1 << 20
	id := b.start(b.spec())
	type run struct {
		name     string
		consumer *slowWriter
		mark     string
		code     int
		returned chan error
	}
	var runs []*run
	for _, test := range []struct {
		name   string
		tty    bool
		stderr bool
	}{{name: "stdout"}, {name: "stderr", stderr: true}, {name: "terminal", tty: true}} {
		r := &run{name: test.name, consumer: newSlowWriter(), mark: "779" + random(), returned: make(chan error, 1)}
		script := "head -c 1048576 /dev/zero | tr '\\000' x; : " + r.mark
		spec := engine.ExecSpec{TTY: test.tty, Stdout: r.consumer}
		if test.stderr {
			script, spec.Stdout, spec.Stderr = "{ "+script+"; } >&2", nil, r.consumer
		}
		spec.Command = []string{"/bin/sh", "-c", script + "; exit 6"}
		go func() {
			var err error
			r.code, err = b.engine.Exec(b.context(), id, spec)
			r.returned <- err
		}()
		runs = append(runs, r)
	}
	for _, r := range runs {
		b.eventually(r.name+" runs", r.consumer.waiting)
		// A command can only end when what it writes has a place: it is let write until then, and not a piece further.
		b.eventually("the end of the command of "+r.name, func() bool {
			if processesWith(r.mark) == 0 {
				return true
			}
			r.consumer.takeOne()
			return false
		})
	}
	time.Sleep(longerThanGraces) // nothing can be waited for: it must not happen that an exec ends without its output
	for _, r := range runs {
		r.consumer.takeAll()
		require.NoError(t, <-r.returned, r.name)
		require.Equal(t, 6, r.code, r.name)
		require.Equal(t, size, r.consumer.count('x'), "what the command of %s wrote", r.name)
		require.Less(t, r.consumer.before, size, "the consumer of %s was slower than the command: else this proves nothing", r.name)
	}
}

// executeLeavesWriters leaves processes behind that keep the output open, silent or writing: the exec ends, with what the
// command itself wrote.
func executeLeavesWriters(t *testing.T, b *bench) {
	id := b.start(b.spec())
	type run struct {
		name string
		out  lineWriter
		took time.Duration
		code int
		err  error
	}
	var runs []*run
	var running sync.WaitGroup
	for name, left := range map[string]string{ // each ends by itself when nobody reads any more
		"silent":   "sleep 86400 &",
		"writing":  "while echo more; do :; done &",
		"dripping": "while echo more; do sleep 0.1; done &",
	} {
		for _, tty := range []bool{false, true} {
			r := &run{name: fmt.Sprintf("%s, terminal %v", name, tty)}
			runs = append(runs, r)
			running.Go(func() {
				began := time.Now()
				r.code, r.err = b.engine.Exec(b.context(), id, engine.ExecSpec{TTY: tty, Stdout: &r.out,
					Command: []string{"/bin/sh", "-c", "trap '' HUP; " + left + " echo left; exit 3"}})
				r.took = time.Since(began)
			})
		}
	}
	running.Wait()
	for _, r := range runs {
		require.NoError(t, r.err, r.name)
		require.Equal(t, 3, r.code, r.name)
		require.Contains(t, r.out.String(), "left", r.name)
		t.Logf("%s: %v", r.name, r.took)
	}

	// The end of the context ends it at once, also while a consumer takes nothing.
	ctx, cancel := context.WithCancel(b.context())
	defer cancel()
	slow := newSlowWriter()
	defer slow.takeAll()
	returned := make(chan error, 1)
	go func() {
		_, err := b.engine.Exec(ctx, id, engine.ExecSpec{Command: []string{"/bin/sh", "-c", "echo one; exec sleep 86400"}, Stdout: slow})
		returned <- err
	}()
	b.eventually("it writes", slow.waiting)
	cancel()
	select {
	case err := <-returned:
		require.ErrorIs(t, err, context.Canceled)
	case <-time.After(2 * time.Minute):
		t.Fatal("the exec does not end with its context")
	}
}

// slowWriter takes a piece when it is told to.
type slowWriter struct {
	mu      sync.Mutex
	changed *sync.Cond
	blocked bool
	allowed int // pieces
	open    bool
	buf     bytes.Buffer
	before  int // bytes taken before takeAll
}

func newSlowWriter() *slowWriter {
	w := &slowWriter{}
	w.changed = sync.NewCond(&w.mu)
	return w
}

func (w *slowWriter) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for !w.open && w.allowed == 0 {
		w.blocked = true
		w.changed.Wait()
	}
	w.blocked = false
	if !w.open {
		w.allowed--
		w.before += len(p)
	}
	return w.buf.Write(p)
}

// waiting says whether a Write is being held.
func (w *slowWriter) waiting() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.blocked
}

// takeOne lets the piece through that waits, if one does.
func (w *slowWriter) takeOne() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.blocked && w.allowed == 0 {
		w.allowed = 1
		w.changed.Broadcast()
	}
}

func (w *slowWriter) takeAll() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.open = true
	w.changed.Broadcast()
}

func (w *slowWriter) count(letter byte) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return bytes.Count(w.buf.Bytes(), []byte{letter})
}
