package devstack

import (
	"bytes"
	"io"
	"sync"
)

const (
	maxLine     = 64 << 10 // a longer line is cut into several
	maxTailLine = 500      // bytes of a line that an error message shows
	defaultTail = 30
)

// lineWriter passes complete lines on, each with the name of who printed it, and keeps the last few.
type lineWriter struct {
	mu      sync.Mutex
	out     io.Writer // may be nil
	prefix  []byte
	partial []byte
	tail    []string // a ring
	next    int
	limit   int
}

func newLineWriter(out io.Writer, name string, tail int) *lineWriter {
	if tail <= 0 {
		tail = defaultTail
	}
	return &lineWriter{out: out, prefix: []byte(name + " | "), limit: tail}
}

// Write implements io.Writer. It never fails: a full disk under the log must not end the child that prints to it.
func (w *lineWriter) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	n := len(p)
	for len(p) > 0 {
		end := bytes.IndexByte(p, '\n')
		if end < 0 {
			w.partial = append(w.partial, p...)
			p = nil
		} else {
			w.partial = append(w.partial, p[:end]...)
			p = p[end+1:]
		}
		if end >= 0 || len(w.partial) >= maxLine {
			w.emit()
		}
	}
	return n, nil
}

// note adds a line of our own.
func (w *lineWriter) note(line string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.emitPartial()
	w.partial = append(w.partial, line...)
	w.emit()
}

// flush passes on a last line that has no end.
func (w *lineWriter) flush() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.emitPartial()
}

func (w *lineWriter) emitPartial() {
	if len(w.partial) > 0 {
		w.emit()
	}
}

func (w *lineWriter) emit() {
	line := bytes.TrimRight(w.partial, "\r")
	kept := string(line)
	if len(kept) > maxTailLine {
		kept = kept[:maxTailLine] + "…"
	}
	if len(w.tail) < w.limit {
		w.tail = append(w.tail, kept)
	} else {
		w.tail[w.next] = kept
		w.next = (w.next + 1) % w.limit
	}
	if w.out != nil {
		whole := make([]byte, 0, len(w.prefix)+len(line)+1)
		whole = append(append(append(whole, w.prefix...), line...), '\n')
		_, _ = w.out.Write(whole)
	}
	w.partial = w.partial[:0]
}

// lastLines returns the kept lines, oldest first.
func (w *lineWriter) lastLines() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return append(append([]string(nil), w.tail[w.next:]...), w.tail[:w.next]...)
}
