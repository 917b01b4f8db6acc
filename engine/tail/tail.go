// Package tail reads a command's output to its end, when the command itself has ended and what it left running may keep
// the output open.
package tail

import (
	"bytes"
	"io"
	"sync"
	"time"
)

// Limits bound what is read once the command has ended. All of them concern the command's side alone: the time that
// the consumer takes counts nowhere.
type Limits struct {
	// Silence is the longest wait for more; the default is one second.
	Silence time.Duration
	// Total bounds the waits together, for a process that was left behind and goes on writing; the default is three seconds.
	Total time.Duration
	// Bytes bounds what still arrives. It must be more than what can be on its way when the command ends: then all that
	// the command wrote is there. The default is 16 MiB, which is also the most memory that a Reader takes.
	Bytes int
}

func (l *Limits) applyDefaults() {
	if l.Silence <= 0 {
		l.Silence = time.Second
	}
	if l.Total <= 0 {
		l.Total = 3 * time.Second
	}
	if l.Bytes <= 0 {
		l.Bytes = 16 << 20
	}
}

// readAhead is how many bytes are kept for a consumer that is slower than the command, while that runs. More makes
// the command wait, as a pipe does.
const readAhead = 64 << 10

// steps are the parts of a Silence. They are counted, not measured: a time in which this process had no processor counts
// as one step, and the reads that it held up come before the next.
const steps = 20

// Reader reads a command's output ahead of its consumer, who uses Read. Make one with NewReader.
type Reader struct {
	source    io.Reader
	interrupt func()
	limits    Limits
	stopped   chan struct{} // closed with the first err

	mu       sync.Mutex
	changed  *sync.Cond
	buffer   bytes.Buffer
	ended    bool // the command did
	arrivals int  // reads that gave something
	late     int  // bytes that arrived since the end
	err      error
	cut      bool // a limit or Cut ended it, not the source
}

// NewReader begins to read. The interrupt must end a Read of the source that waits; it is called when a limit or Cut ends the
// reading. The Reader is done with the source when that has ended or was interrupted.
func NewReader(source io.Reader, limits Limits, interrupt func()) *Reader {
	limits.applyDefaults()
	r := &Reader{source: source, interrupt: interrupt, limits: limits, stopped: make(chan struct{})}
	r.changed = sync.NewCond(&r.mu)
	go r.fill()
	return r
}

// Read gives what arrived. After the source's end, or where a limit cut it, the error is the source's or io.EOF.
func (r *Reader) Read(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for r.buffer.Len() == 0 && r.err == nil {
		r.changed.Wait()
	}
	if r.buffer.Len() == 0 {
		return 0, r.err
	}
	n, _ := r.buffer.Read(p)
	r.changed.Broadcast()
	return n, nil
}

// Ended says that the command has ended: from now on the limits hold, and no consumer holds up the reading.
func (r *Reader) Ended() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.ended {
		return
	}
	r.ended = true
	r.changed.Broadcast()
	go r.watch()
}

// Cut ends the reading at once and forgets what the consumer has not had.
func (r *Reader) Cut() {
	r.stop(io.EOF, true)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.err = io.EOF
	r.buffer = bytes.Buffer{}
}

// WasCut says whether a limit or Cut ended the reading before the source's own end.
func (r *Reader) WasCut() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.cut
}

// Waiting says whether the reading waits for the consumer.
func (r *Reader) Waiting() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.err == nil && r.full()
}

func (r *Reader) full() bool { return !r.ended && r.buffer.Len() >= readAhead }

func (r *Reader) fill() {
	chunk := make([]byte, 32<<10)
	for {
		n, err := r.source.Read(chunk)
		if n > 0 && !r.take(chunk[:n]) {
			return
		}
		if err != nil {
			r.stop(err, false)
			return
		}
	}
}

// take keeps what arrived, and says whether to read on, once there is room.
func (r *Reader) take(data []byte) bool {
	r.mu.Lock()
	if r.err != nil {
		r.mu.Unlock()
		return false
	}
	r.buffer.Write(data)
	r.arrivals++
	if r.ended {
		r.late += len(data)
	}
	r.changed.Broadcast()
	for r.full() && r.err == nil {
		r.changed.Wait()
	}
	over := r.late >= r.limits.Bytes
	r.mu.Unlock()
	if over {
		r.stop(io.EOF, true)
	}
	return !over
}

// stop ends the reading; what is kept may still be read. Only the first call counts.
func (r *Reader) stop(err error, cut bool) {
	r.mu.Lock()
	first := r.err == nil
	if first {
		r.err, r.cut = err, cut
		close(r.stopped)
		r.changed.Broadcast()
	}
	r.mu.Unlock()
	if first && cut {
		r.interrupt()
	}
}

// watch ends the reading when the command's side has been silent, or has gone on, for too long.
func (r *Reader) watch() {
	step := r.limits.Silence / steps
	timer := time.NewTimer(step)
	defer timer.Stop()
	seen, silent := -1, 0
	for total := time.Duration(0); silent < steps && total < r.limits.Total; total += step {
		select {
		case <-timer.C:
			timer.Reset(step)
		case <-r.stopped:
			return
		}
		r.mu.Lock()
		silent++
		if r.arrivals != seen {
			seen, silent = r.arrivals, 0
		}
		r.mu.Unlock()
	}
	r.stop(io.EOF, true)
}
