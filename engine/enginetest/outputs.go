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

// executeSlowConsumer has a consumer that stands still when the command has ended: it gets all the same what was written.
func executeSlowConsumer(t *testing.T, b *bench) {
	const size = 1 << 20
	id := b.start(b.spec())
	for _, test := range []struct {
		name   string
		tty    bool
		stderr bool
	}{{name: "stdout"}, {name: "stderr", stderr: true}, {name: "terminal", tty: true}} {
		t.Run(test.name, func(t *testing.T) {
			mark := "779" + fmt.Sprint(time.Now().UnixNano())
			slow := newSlowWriter()
			script := "head -c 1048576 /dev/zero | tr '\\000' x; : " + mark
			spec := engine.ExecSpec{TTY: test.tty, Stdout: slow}
			if test.stderr {
				script, spec.Stdout, spec.Stderr = "{ "+script+"; } >&2", nil, slow
			}
			spec.Command = []string{"/bin/sh", "-c", script + "; exit 6"}
			returned := make(chan error, 1)
			var code int
			go func() {
				var err error
				code, err = b.engine.Exec(b.context(), id, spec)
				returned <- err
			}()
			b.eventually("it runs", func() bool { return slow.waiting() })
			// A command can only end when what it writes has a place: it is let write until then, and not a piece further.
			b.eventually("the command's end", func() bool {
				if processesWith(mark) == 0 {
					return true
				}
				slow.takeOne()
				return false
			})
			time.AfterFunc(longerThanGraces, slow.takeAll)
			require.NoError(t, <-returned)
			require.Equal(t, 6, code)
			require.Equal(t, size, slow.count('x'), "what the command wrote")
			require.Less(t, slow.before, size, "the consumer was slower than the command: else this proves nothing")
		})
	}
}

// executeLeavesWriters leaves processes behind that keep the output open, silent or writing: the exec ends, with what the
// command itself wrote.
func executeLeavesWriters(t *testing.T, b *bench) {
	id := b.start(b.spec())
	for name, left := range map[string]string{
		"silent":   "sleep 86400 &",
		"writing":  "while :; do echo more; done &",
		"dripping": "while :; do echo more; sleep 0.1; done &",
	} {
		for _, tty := range []bool{false, true} {
			var out lineWriter
			began := time.Now()
			code, err := b.engine.Exec(b.context(), id, engine.ExecSpec{TTY: tty, Stdout: &out,
				Command: []string{"/bin/sh", "-c", "trap '' HUP; " + left + " echo left; exit 3"}})
			require.NoError(t, err, name)
			require.Equal(t, 3, code, name)
			require.Contains(t, out.String(), "left", name)
			t.Logf("%s, terminal %v: %v", name, tty, time.Since(began))
		}
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
