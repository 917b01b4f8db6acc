package storage

import (
	"context"
	"io"
	"os"
	"sync"
)

// inTime runs a system call that may hang (a network file system whose server is gone) and gives up waiting when ctx
// ends. The call cannot be taken back: it goes on in its goroutine, and late is given what it returns in the end.
func inTime[T any](ctx context.Context, call func() (T, error), late func(T)) (T, error) {
	if err := ctx.Err(); err != nil {
		var none T
		return none, err
	}
	return await(ctx, call, late)
}

// await is inTime for a call that must be made even when ctx has ended already.
func await[T any](ctx context.Context, call func() (T, error), late func(T)) (T, error) {
	type result struct {
		value T
		err   error
	}
	done := make(chan result, 1)
	go func() {
		value, err := call()
		done <- result{value, err}
	}()
	select {
	case r := <-done:
		return r.value, r.err
	case <-ctx.Done():
		if late != nil {
			go func() {
				if r := <-done; r.err == nil {
					late(r.value)
				}
			}()
		}
		var none T
		return none, ctx.Err()
	}
}

func closeLate(file *os.File) { _ = file.Close() } // opened for reading by somebody who has left

// patientFile reads a file through a buffer of its own, so that a read that hangs can be left behind without it later
// writing into memory that the caller uses for something else.
type patientFile struct {
	ctx    context.Context
	file   *os.File
	left   int64  // bytes to be read from the file
	ready  []byte // bytes read and not yet handed out
	buffer []byte

	mu      sync.Mutex
	reading bool // a read has the file; it closes it when closed was set meanwhile
	closed  bool
}

const patientBuffer = 256 << 10

func (p *patientFile) Read(into []byte) (int, error) {
	if len(into) == 0 {
		return 0, nil
	}
	if len(p.ready) == 0 && p.left > 0 {
		if err := p.fill(); err != nil {
			return 0, err
		}
	}
	if len(p.ready) == 0 {
		return 0, io.EOF
	}
	n := copy(into, p.ready)
	p.ready = p.ready[n:]
	return n, nil
}

func (p *patientFile) fill() error {
	if p.buffer == nil {
		p.buffer = make([]byte, min(p.left, patientBuffer))
	}
	buffer := p.buffer[:min(p.left, int64(len(p.buffer)))]
	p.mu.Lock()
	if p.closed || p.reading {
		p.mu.Unlock()
		return os.ErrClosed
	}
	p.reading = true
	p.mu.Unlock()
	n, err := await(p.ctx, func() (int, error) {
		n, err := p.file.Read(buffer)
		p.mu.Lock()
		defer p.mu.Unlock()
		p.reading = false
		if p.closed {
			closeLate(p.file)
		}
		return n, err
	}, nil)
	if err != nil {
		return err
	}
	p.left -= int64(n)
	p.ready = buffer[:n]
	return nil
}

// Close closes the file, at once or when the read that was left behind comes back.
func (p *patientFile) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil
	}
	p.closed = true
	if p.reading {
		return nil
	}
	return p.file.Close()
}
