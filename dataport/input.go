package dataport

import (
	"encoding/binary"
	"fmt"
	"io"
	"sync"
)

// inputWindow is how much input may be under way to a host that does not read it. It bounds the memory of a stream, and
// the speed of an upload to one window per round trip.
const inputWindow = 1 << 20

// input is what a host reads a stream's input from. The loop that reads the connection fills it and never waits, since
// the peer sends only what it has credit for.
type input struct {
	grant func(bytes uint32) error // sends credit

	mu       sync.Mutex
	ready    *sync.Cond
	buffer   []byte
	allowed  int   // credit that the peer has left
	consumed int   // read by the host and not yet given back as credit
	err      error // why there is no more: io.EOF when the peer ended it
	sawEnd   bool  // the host has been told io.EOF
	total    int64
}

func newInput(conn *frameConn) *input {
	in := &input{grant: func(n uint32) error {
		return conn.write(frameCredit, binary.BigEndian.AppendUint32(nil, n))
	}}
	in.ready = sync.NewCond(&in.mu)
	return in
}

// open gives the peer its first credit.
func (in *input) open() error {
	in.mu.Lock()
	in.allowed = inputWindow
	in.mu.Unlock()
	return in.grant(inputWindow)
}

// push takes bytes from the peer.
func (in *input) push(p []byte) error {
	in.mu.Lock()
	defer in.mu.Unlock()
	if len(p) > in.allowed {
		return fmt.Errorf("%w: %d bytes of input with credit for %d", errProtocol, len(p), in.allowed)
	}
	in.allowed -= len(p)
	if in.err == io.EOF {
		return fmt.Errorf("%w: input after its end", errProtocol)
	}
	if in.err == nil {
		in.buffer = append(in.buffer, p...)
		in.ready.Signal()
	}
	return nil
}

// end says that no more comes: io.EOF, or why it was cut. The first reason stays.
func (in *input) end(err error) {
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.err == nil {
		in.err = err
		in.ready.Broadcast()
	}
}

// cut ends the input with an error even when the peer had ended it already, so that a host that still reads is stopped.
func (in *input) cut(err error) {
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.err == nil || in.err == io.EOF {
		in.err, in.buffer = err, nil
		in.ready.Broadcast()
	}
}

// Read implements io.Reader. It never says io.EOF for an input that was cut.
func (in *input) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	in.mu.Lock()
	for len(in.buffer) == 0 && in.err == nil {
		in.ready.Wait()
	}
	if in.err != nil && in.err != io.EOF {
		in.mu.Unlock()
		return 0, in.err
	}
	if len(in.buffer) == 0 {
		in.sawEnd = true
		in.mu.Unlock()
		return 0, io.EOF
	}
	n := copy(p, in.buffer)
	in.buffer = in.buffer[n:]
	if len(in.buffer) == 0 {
		in.buffer = nil
	}
	in.total += int64(n)
	in.consumed += n
	give := 0
	// In quarters, so that a host that reads byte by byte does not send a credit frame for each.
	if in.consumed >= inputWindow/4 {
		give, in.consumed = in.consumed, 0
		in.allowed += give
	}
	in.mu.Unlock()
	if give > 0 {
		// A failure here is seen by whoever reads the connection, which then cuts this input.
		_ = in.grant(uint32(give))
	}
	return n, nil
}

// complete says whether the host has read all of it, up to the end that the peer set.
func (in *input) complete() bool {
	in.mu.Lock()
	defer in.mu.Unlock()
	return in.sawEnd
}

func (in *input) bytes() int64 {
	in.mu.Lock()
	defer in.mu.Unlock()
	return in.total
}
