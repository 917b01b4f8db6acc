package dataport

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// frameType is the first byte of a frame; the package comment lists them.
type frameType byte

const (
	frameRequest frameType = 'q'
	frameInput   frameType = 'i'
	frameEnd     frameType = 'e'
	frameResize  frameType = 'w'
	framePing    frameType = 'p'
	frameBegin   frameType = 'b'
	frameStdout  frameType = 'o'
	frameStderr  frameType = '2'
	frameCredit  frameType = 'c'
	frameResult  frameType = 'r'
	frameError   frameType = 'x'
	frameNotice  frameType = 'n'
)

const (
	frameHeader = 5
	// maxData is the most that one data frame holds: a few TLS records, so that pings are never stuck behind more.
	maxData = 64 << 10
	// maxRequest is larger, since an environment can be.
	maxRequest = 1 << 20
)

func (t frameType) limit() int {
	switch t {
	case frameRequest:
		return maxRequest
	case frameEnd, framePing:
		return 0
	case frameCredit:
		return 4
	case frameResize:
		return 256
	case frameInput, frameStdout, frameStderr, frameBegin, frameResult, frameError, frameNotice:
		return maxData
	}
	return -1
}

// errProtocol means that the peer does not keep to the protocol.
var errProtocol = errors.New("the peer broke the protocol")

// readFrame reads one frame into buffer, growing it as needed; the payload is valid until the next call.
func readFrame(r io.Reader, buffer *[]byte) (frameType, []byte, error) {
	var header [frameHeader]byte
	if _, err := io.ReadFull(r, header[:]); err != nil {
		return 0, nil, err
	}
	kind, size := frameType(header[0]), binary.BigEndian.Uint32(header[1:])
	limit := kind.limit()
	if limit < 0 {
		return 0, nil, fmt.Errorf("%w: unknown frame type %#x", errProtocol, header[0])
	}
	// Checked before anything is allocated for it.
	if int64(size) > int64(limit) {
		return 0, nil, fmt.Errorf("%w: a %q frame of %d bytes, at most %d are allowed", errProtocol, string(kind), size, limit)
	}
	if cap(*buffer) < int(size) {
		*buffer = make([]byte, size)
	}
	payload := (*buffer)[:size]
	if _, err := io.ReadFull(r, payload); err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return 0, nil, err
	}
	return kind, payload, nil
}

// frameConn is a connection that carries frames. Reads come from one goroutine, writes from several.
type frameConn struct {
	conn    net.Conn
	r       *bufio.Reader
	buffer  []byte
	silence time.Duration // a peer that says nothing for so long is gone
	stall   time.Duration // a peer that takes nothing for so long is given up

	hurry atomic.Bool // set by interrupt: writes get only a moment

	mu     sync.Mutex
	out    []byte
	closed bool // no more frames but pings may follow
	err    error
}

// hurryTimeout is how long a write may take once the stream is being ended from this side.
const hurryTimeout = 2 * time.Second

func (c *frameConn) read() (frameType, []byte, error) {
	if err := c.conn.SetReadDeadline(time.Now().Add(c.silence)); err != nil {
		return 0, nil, err
	}
	return readFrame(c.r, &c.buffer)
}

// write sends one frame. After the first failure every write fails: a frame may have been cut in the middle.
func (c *frameConn) write(kind frameType, payload []byte) error {
	if len(payload) > kind.limit() {
		return fmt.Errorf("%w: a %q frame of %d bytes, at most %d are allowed", ErrInvalid, string(kind), len(payload), kind.limit())
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return c.err
	}
	if c.closed {
		return fmt.Errorf("%w: it has ended already", ErrCut)
	}
	c.closed = kind == frameResult || kind == frameError
	c.out = append(c.out[:0], byte(kind))
	c.out = binary.BigEndian.AppendUint32(c.out, uint32(len(payload)))
	c.out = append(c.out, payload...)
	// The order matters: interrupt sets the flag and then the deadline, so that one of the two shorter deadlines is the last.
	c.conn.SetWriteDeadline(time.Now().Add(c.stall))
	if c.hurry.Load() {
		c.conn.SetWriteDeadline(time.Now().Add(hurryTimeout))
	}
	if _, err := c.conn.Write(c.out); err != nil {
		c.err = fmt.Errorf("%w: %w", ErrCut, err)
	}
	return c.err
}

func (c *frameConn) writeJSON(kind frameType, value any) error {
	payload, err := json.Marshal(value)
	if err != nil {
		return err
	}
	return c.write(kind, payload)
}

// interrupt makes a write that waits for a slow peer end soon.
func (c *frameConn) interrupt() {
	c.hurry.Store(true)
	c.conn.SetWriteDeadline(time.Now().Add(hurryTimeout))
}

// ping sends a sign of life every so often until done.
func (c *frameConn) ping(every time.Duration, done <-chan struct{}) {
	ticker := time.NewTicker(every)
	defer ticker.Stop()
	for {
		select {
		case <-done:
			return
		case <-ticker.C:
			if c.write(framePing, nil) != nil {
				return // who reads notices the same
			}
		}
	}
}

// dataWriter sends what is written to it as data frames of one type.
type dataWriter struct {
	conn *frameConn
	kind frameType
	sent atomic.Int64
}

// Write implements io.Writer.
func (w *dataWriter) Write(p []byte) (int, error) {
	written := 0
	for len(p) > 0 {
		part := p[:min(len(p), maxData)]
		if err := w.conn.write(w.kind, part); err != nil {
			return written, err
		}
		written += len(part)
		w.sent.Add(int64(len(part)))
		p = p[len(part):]
	}
	return written, nil
}

// result is the payload of a result frame.
type result struct {
	ExitCode int   `json:"exit_code"`
	Files    int64 `json:"files"`
	Bytes    int64 `json:"bytes"` // that were sent (download, logs) or put in place (upload)
}
