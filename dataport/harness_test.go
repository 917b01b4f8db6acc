package dataport

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"io"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"holdfast/engine"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const waitLimit = time.Minute

// fakeHost does what its functions say; one that is nil must not be called.
type fakeHost struct {
	exec     func(context.Context, Claims, ExecRequest, Streams) (int, error)
	logs     func(context.Context, Claims, engine.LogOptions, io.Writer) error
	download func(context.Context, Claims, DownloadRequest, BeginDownload) error
	upload   func(context.Context, Claims, io.Reader) (UploadResult, error)
	calls    atomic.Int64
}

func (h *fakeHost) Exec(ctx context.Context, c Claims, r ExecRequest, s Streams) (int, error) {
	h.calls.Add(1)
	return h.exec(ctx, c, r, s)
}

func (h *fakeHost) HookLog(_ context.Context, c Claims, w io.Writer) error {
	_, err := io.WriteString(w, "hooks of "+c.Name)
	return err
}

func (h *fakeHost) Logs(ctx context.Context, c Claims, o engine.LogOptions, w io.Writer) error {
	h.calls.Add(1)
	return h.logs(ctx, c, o, w)
}

func (h *fakeHost) Download(ctx context.Context, c Claims, r DownloadRequest, begin BeginDownload) error {
	h.calls.Add(1)
	return h.download(ctx, c, r, begin)
}

func (h *fakeHost) Upload(ctx context.Context, c Claims, r io.Reader) (UploadResult, error) {
	h.calls.Add(1)
	return h.upload(ctx, c, r)
}

// safeBuffer can be written by the server's goroutines while the test reads it.
type safeBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *safeBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *safeBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

type harness struct {
	t      *testing.T
	server *Server
	key    ed25519.PrivateKey
	log    *safeBuffer
	dial   func(ctx context.Context, network, address string) (net.Conn, error) // nil: as the client does
	timing timing                                                               // of the clients
	served chan error
}

// start runs a server with this host until the test ends; adjust may change its options.
func start(t *testing.T, host Host, adjust func(*ServerOptions)) *harness {
	t.Helper()
	pub, key, err := ed25519.GenerateKey(rand.Reader)
	require.NoError(t, err)
	h := &harness{t: t, key: key, log: &safeBuffer{}, served: make(chan error, 1)}
	options := ServerOptions{
		Node:      "node-a",
		VerifyKey: func() (ed25519.PublicKey, bool) { return pub, true },
		Host:      host,
		Logger:    slog.New(slog.NewTextHandler(h.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
	}
	if adjust != nil {
		adjust(&options)
	}
	h.server, err = New(options)
	require.NoError(t, err)
	go func() { h.served <- h.server.Serve(context.Background()) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), waitLimit)
		defer cancel()
		h.server.Shutdown(ctx)
		select {
		case err := <-h.served:
			if err != nil {
				t.Errorf("serve: %v", err)
			}
		case <-time.After(waitLimit):
			t.Error("serve did not return")
		}
	})
	return h
}

func (h *harness) claims(verb Verb) Claims {
	return Claims{WorkspaceID: "ws-1", Name: "alice/api", Token: 7, Node: "node-a", Verb: verb,
		Subject: "alice", Expires: time.Now().Add(time.Hour)}
}

func (h *harness) sign(claims Claims) string {
	h.t.Helper()
	text, err := Sign(h.key, claims)
	require.NoError(h.t, err)
	return text
}

func (h *harness) clientWith(token string) *Client {
	h.t.Helper()
	client, err := NewClient(ClientOptions{Address: h.server.Address(), Fingerprint: h.server.Fingerprint(), Token: token,
		DialContext: h.dial, timing: h.timing})
	require.NoError(h.t, err)
	return client
}

func (h *harness) client(verb Verb) *Client { return h.clientWith(h.sign(h.claims(verb))) }

func soon(t *testing.T, ch <-chan struct{}, what string) {
	t.Helper()
	select {
	case <-ch:
	case <-time.After(waitLimit):
		t.Fatal("waited in vain: " + what)
	}
}

// cutConn ends a connection, in both directions, after so many bytes were read or written; a negative number is never.
type cutConn struct {
	net.Conn
	reads, writes atomic.Int64
}

func cutting(reads, writes int64) func(context.Context, string, string) (net.Conn, error) {
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := (&net.Dialer{}).DialContext(ctx, network, address)
		if err != nil {
			return nil, err
		}
		c := &cutConn{Conn: conn}
		c.reads.Store(reads)
		c.writes.Store(writes)
		return c, nil
	}
}

func (c *cutConn) Read(p []byte) (int, error) {
	left := c.reads.Load()
	if left == 0 {
		c.Conn.Close()
		return 0, io.EOF
	}
	if left > 0 && int64(len(p)) > left {
		p = p[:left]
	}
	n, err := c.Conn.Read(p)
	if left > 0 {
		c.reads.Add(int64(-n))
	}
	return n, err
}

func (c *cutConn) Write(p []byte) (int, error) {
	left := c.writes.Load()
	if left < 0 {
		return c.Conn.Write(p)
	}
	if int64(len(p)) <= left {
		c.writes.Add(int64(-len(p)))
		return c.Conn.Write(p)
	}
	n, _ := c.Conn.Write(p[:left])
	c.writes.Store(0)
	c.Conn.Close()
	return n, io.ErrClosedPipe
}

// pattern is a stream of bytes in which no piece can be lost or moved unnoticed.
type pattern struct{ at, size int64 }

func (p *pattern) Read(b []byte) (int, error) {
	if p.at >= p.size {
		return 0, io.EOF
	}
	n := int(min(int64(len(b)), p.size-p.at))
	for i := range n {
		b[i] = patternByte(p.at + int64(i))
	}
	p.at += int64(n)
	return n, nil
}

func patternByte(at int64) byte { return byte(at*31 + at>>8*17 + at>>16) }

// patternCheck takes what pattern gave and notices any difference.
type patternCheck struct{ at int64 }

func (p *patternCheck) Write(b []byte) (int, error) {
	for i, v := range b {
		if v != patternByte(p.at+int64(i)) {
			return i, io.ErrNoProgress
		}
	}
	p.at += int64(len(b))
	return len(b), nil
}
