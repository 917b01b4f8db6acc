package dataport

import (
	"bufio"
	"context"
	"crypto/subtle"
	"crypto/tls"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"

	"holdfast/engine"
)

// exchange is what a client sends and receives on one stream.
type exchange struct {
	hasInput bool
	input    io.Reader // nil: the input ends at once
	resize   <-chan engine.Size
	stdout   io.Writer
	stderr   io.Writer
	begin    func(DownloadInfo) error
	notice   func(text string)
}

// call opens a stream, sends the request and exchanges frames until the stream ends.
func (c *Client) call(ctx context.Context, verb Verb, request streamRequest, ex exchange) (result, error) {
	frames, err := c.open(ctx, verb)
	if err != nil {
		return result{}, endedBy(ctx, err)
	}
	// Closing is what ends reads and writes that wait, and what tells the server to kill the command.
	unhook := context.AfterFunc(ctx, func() { closeNow(frames) })
	r := &running{frames: frames, exchange: ex, credit: make(chan uint32, 1), done: make(chan struct{})}
	var background sync.WaitGroup
	var end result
	if err = frames.writeJSON(frameRequest, request); err == nil { // first of all: a terminal's size may wait to be sent
		background.Go(func() { frames.ping(c.options.timing.ping, r.done) })
		background.Go(r.sendSizes)
		if ex.hasInput {
			go r.sendInput() // not waited for: its reader may never return
		}
		end, err = r.receive()
	}
	close(r.done)
	unhook()
	closeNow(frames)
	background.Wait()
	if failed := r.inputError(); err != nil && failed != nil {
		err = failed // the connection was cut because of it
	}
	if err != nil {
		return result{}, endedBy(ctx, err)
	}
	return end, nil
}

// closeNow closes without waiting for a writer that is stuck on a peer that takes nothing.
func closeNow(frames *frameConn) {
	if c, ok := frames.conn.(*tls.Conn); ok {
		c.NetConn().Close()
	}
	frames.conn.Close()
}

// endedBy prefers the reason why the context ended.
func endedBy(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// open connects, checks who answers, shows the token and upgrades.
func (c *Client) open(ctx context.Context, verb Verb) (*frameConn, error) {
	ctx, cancel := context.WithTimeout(ctx, c.options.timing.open)
	defer cancel()
	raw, err := c.options.DialContext(ctx, "tcp", c.options.Address)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnreachable, err)
	}
	conn := tls.Client(raw, &tls.Config{
		MinVersion: tls.VersionTLS13,
		NextProtos: []string{"http/1.1"},
		// There is no authority and no name to check: the certificate itself is pinned, and the handshake proves that the
		// peer holds its key.
		InsecureSkipVerify: true,
		VerifyConnection: func(state tls.ConnectionState) error {
			if len(state.PeerCertificates) == 0 {
				return ErrWrongFingerprint
			}
			got := fingerprintOf(state.PeerCertificates[0].Raw)
			if subtle.ConstantTimeCompare([]byte(got), []byte(c.options.Fingerprint)) != 1 {
				return fmt.Errorf("%w: %s has %s, announced was %s", ErrWrongFingerprint, c.options.Address, got, c.options.Fingerprint)
			}
			return nil
		},
	})
	if err := conn.HandshakeContext(ctx); err != nil {
		raw.Close()
		if errors.Is(err, ErrWrongFingerprint) {
			return nil, err
		}
		return nil, fmt.Errorf("%w: %w", ErrUnreachable, err)
	}
	unhook := context.AfterFunc(ctx, func() { raw.Close() })
	reader, err := c.upgrade(conn, verb)
	if !unhook() && err == nil {
		err = fmt.Errorf("%w: %w", ErrUnreachable, context.Cause(ctx))
	}
	if err != nil {
		raw.Close()
		return nil, err
	}
	return &frameConn{conn: conn, r: reader, silence: c.options.timing.silence(), stall: c.options.timing.stall}, nil
}

func (c *Client) upgrade(conn *tls.Conn, verb Verb) (*bufio.Reader, error) {
	request, err := http.NewRequest(http.MethodGet, "https://"+c.options.Address+pathPrefix+string(verb), nil)
	if err != nil {
		return nil, fmt.Errorf("%w: the data port's address cannot be used in a URL", ErrInvalid)
	}
	request.Header.Set("Connection", "Upgrade")
	request.Header.Set("Upgrade", upgradeProtocol)
	request.Header.Set("Authorization", "Bearer "+c.options.Token)
	if err := request.Write(conn); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnreachable, err)
	}
	// The bound is for the header; what follows the upgrade is read from the same reader, without it.
	limited := &io.LimitedReader{R: conn, N: 64 << 10}
	reader := bufio.NewReaderSize(limited, maxData+frameHeader)
	response, err := http.ReadResponse(reader, request)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnreachable, err)
	}
	if response.StatusCode == http.StatusSwitchingProtocols {
		limited.N = 1<<63 - 1
		return reader, nil
	}
	defer response.Body.Close()
	refusal := &RemoteError{}
	if err := json.NewDecoder(io.LimitReader(response.Body, maxData)).Decode(refusal); err != nil || refusal.Code == "" {
		return nil, fmt.Errorf("%w: it answered %q", ErrUnreachable, printable(response.Status))
	}
	refusal.Message = printable(refusal.Message)
	return nil, refusal
}

// running is a stream under way on the client's side.
type running struct {
	exchange
	frames *frameConn
	credit chan uint32 // at most one grant waits: more are added up
	done   chan struct{}

	mu     sync.Mutex
	failed error // why the input could not be read
}

func (r *running) inputError() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.failed
}

// receive takes frames until the last one.
func (r *running) receive() (result, error) {
	for {
		kind, payload, err := r.frames.read()
		if err != nil {
			return result{}, fmt.Errorf("%w: %w", ErrCut, err)
		}
		switch kind {
		case framePing:
		case frameStdout:
			err = writeTo(r.stdout, payload)
		case frameStderr:
			err = writeTo(r.stderr, payload)
		case frameNotice:
			if r.notice == nil {
				return result{}, fmt.Errorf("%w: a notice that was not asked for", errProtocol)
			}
			r.notice(printable(string(payload)))
		case frameCredit:
			err = r.grant(payload)
		case frameBegin:
			var info DownloadInfo
			if json.Unmarshal(payload, &info) != nil || r.begin == nil {
				return result{}, fmt.Errorf("%w: it began what was not asked for", errProtocol)
			}
			err = r.begin(info)
		case frameResult:
			var end result
			if json.Unmarshal(payload, &end) != nil {
				return result{}, fmt.Errorf("%w: a result that is none", errProtocol)
			}
			return end, nil
		case frameError:
			refusal := &RemoteError{}
			if json.Unmarshal(payload, refusal) != nil {
				return result{}, fmt.Errorf("%w: an error that is none", errProtocol)
			}
			refusal.Message = printable(refusal.Message)
			return result{}, refusal
		default:
			err = fmt.Errorf("%w: a %q frame from the server", errProtocol, string(kind))
		}
		if err != nil {
			return result{}, err
		}
	}
}

func writeTo(w io.Writer, p []byte) error {
	if w == nil {
		return fmt.Errorf("%w: output that was not asked for", errProtocol)
	}
	if _, err := w.Write(p); err != nil {
		return fmt.Errorf("writing what the node sent: %w", err)
	}
	return nil
}

func (r *running) grant(payload []byte) error {
	if len(payload) != 4 || !r.hasInput {
		return fmt.Errorf("%w: a credit that is none", errProtocol)
	}
	n := binary.BigEndian.Uint32(payload)
	for {
		select {
		case waiting := <-r.credit:
			n += waiting
		default:
		}
		select {
		case r.credit <- n:
			return nil
		default: // cannot happen while only this goroutine sends, but must not block the reader
		}
	}
}

// sendInput sends the input as credit allows, and its end. When the input fails, the stream is cut: the server must
// never take half for all.
func (r *running) sendInput() {
	buffer := make([]byte, maxData)
	credit := 0
	for r.input != nil {
		for credit == 0 {
			select {
			case n := <-r.credit:
				credit += int(n)
			case <-r.done:
				return
			}
		}
		n, err := r.input.Read(buffer[:min(len(buffer), credit)])
		select {
		case <-r.done:
			return
		default:
		}
		if n > 0 {
			credit -= n
			if r.frames.write(frameInput, buffer[:n]) != nil {
				return // the loop that reads notices the same
			}
		}
		if err == io.EOF { // itself, not wrapped: a wrapped one is a failure that must not pass for the end
			break
		}
		if err != nil {
			r.mu.Lock()
			r.failed = fmt.Errorf("reading the input: %w", err)
			r.mu.Unlock()
			closeNow(r.frames)
			return
		}
	}
	_ = r.frames.write(frameEnd, nil)
}

// sendSizes passes on the terminal's size as it changes.
func (r *running) sendSizes() {
	for {
		select {
		case <-r.done:
			return
		case size, ok := <-r.resize: // nil: never
			if !ok {
				return
			}
			if r.frames.writeJSON(frameResize, size) != nil {
				return
			}
		}
	}
}
