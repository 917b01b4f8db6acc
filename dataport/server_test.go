package dataport

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"holdfast/engine"
)

func TestBusy(t *testing.T) {
	running, release := make(chan struct{}), make(chan struct{})
	host := okHost()
	host.logs = func(context.Context, Claims, engine.LogOptions, io.Writer) error {
		close(running)
		<-release
		return nil
	}
	h := start(t, host, func(o *ServerOptions) { o.MaxStreams = 1 })
	first := make(chan error, 1)
	client := h.client(VerbLogs)
	go func() { first <- try(client, VerbLogs) }()
	soon(t, running, "the first stream")
	upload := h.client(VerbUpload)
	require.ErrorIs(t, try(upload, VerbUpload), ErrBusy)
	close(release)
	require.NoError(t, <-first)
	// The slot comes back, and a token that was refused for want of room has not been used up.
	require.Eventually(t, func() bool { return try(upload, VerbUpload) == nil }, waitLimit, 5*time.Millisecond)
}

func TestConnectionsAreBounded(t *testing.T) {
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	listener := limitConnections(inner, 1)
	var accepted atomic.Int64
	ended := make(chan struct{})
	conns := make(chan net.Conn, 2)
	go func() {
		defer close(ended)
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			accepted.Add(1)
			conns <- conn
		}
	}()
	for range 2 {
		conn, err := net.Dial("tcp", inner.Addr().String())
		require.NoError(t, err)
		defer conn.Close()
	}
	first := <-conns
	select {
	case <-conns:
		t.Fatal("a second connection was accepted")
	case <-time.After(50 * time.Millisecond):
	}
	first.Close()
	first.Close() // gives its slot back once only
	(<-conns).Close()
	require.EqualValues(t, 2, accepted.Load())
	listener.Close()
	soon(t, ended, "accept to end")
}

func TestShutdownWaitsForStreams(t *testing.T) {
	running, release := make(chan struct{}), make(chan struct{})
	host := okHost()
	host.logs = func(ctx context.Context, _ Claims, _ engine.LogOptions, w io.Writer) error {
		close(running)
		select {
		case <-release:
		case <-ctx.Done():
			return ctx.Err()
		}
		_, err := io.WriteString(w, "to the end")
		return err
	}
	h := start(t, host, nil)
	var out bytes.Buffer
	first := make(chan error, 1)
	client := h.client(VerbLogs)
	go func() { first <- client.Logs(context.Background(), engine.LogOptions{}, &out) }()
	soon(t, running, "the stream")
	stopped := make(chan error, 1)
	go func() { stopped <- h.server.Shutdown(context.Background()) }()
	// For a moment it may still listen, and refuse.
	require.Eventually(t, func() bool { return errors.Is(try(h.client(VerbDownload), VerbDownload), ErrUnreachable) }, waitLimit, time.Millisecond)
	select {
	case <-stopped:
		t.Fatal("the server was down before its stream had ended")
	case <-time.After(50 * time.Millisecond):
	}
	close(release)
	require.NoError(t, <-first)
	require.NoError(t, <-stopped)
	require.Equal(t, "to the end", out.String())
}

// Streams that do not end are cut, with a reason, also when their host waits for a client that takes nothing.
func TestShutdownCutsInTheEnd(t *testing.T) {
	for name, adjust := range map[string]func(ctx context.Context, w io.Writer){
		"waiting": func(ctx context.Context, _ io.Writer) { <-ctx.Done() },
		"writing": func(ctx context.Context, w io.Writer) {
			for err := error(nil); err == nil; {
				_, err = w.Write(make([]byte, 1<<20))
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			running := make(chan struct{})
			host := okHost()
			host.logs = func(ctx context.Context, _ Claims, _ engine.LogOptions, w io.Writer) error {
				close(running)
				adjust(ctx, w)
				<-ctx.Done()
				return ctx.Err()
			}
			h := start(t, host, nil)
			release := make(chan struct{})
			first := make(chan error, 1)
			client := h.client(VerbLogs)
			go func() {
				first <- client.Logs(context.Background(), engine.LogOptions{}, writerFunc(func(p []byte) (int, error) {
					<-release
					return len(p), nil
				}))
			}()
			soon(t, running, "the stream")
			ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
			defer cancel()
			err := h.server.Shutdown(ctx)
			require.ErrorIs(t, err, context.DeadlineExceeded)
			require.NotContains(t, err.Error(), "did not end", "it did not have to give the host up")
			close(release)
			err = <-first
			require.Error(t, err)
			if name == "waiting" {
				require.ErrorIs(t, err, ErrShuttingDown)
			}
		})
	}
}

func TestServeEndsWithItsContext(t *testing.T) {
	pub, _, _ := ed25519.GenerateKey(nil)
	server, err := New(ServerOptions{Node: "n", Host: okHost(), VerifyKey: func() (ed25519.PublicKey, bool) { return pub, true }})
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- server.Serve(ctx) }()
	cancel()
	select {
	case err := <-served:
		require.NoError(t, err)
	case <-time.After(waitLimit):
		t.Fatal("serve did not end")
	}
	_, err = net.Dial("tcp", server.Address())
	require.Error(t, err, "nothing listens any more")
}

func TestShutdownWithoutServe(t *testing.T) {
	pub, _, _ := ed25519.GenerateKey(nil)
	server, err := New(ServerOptions{Node: "n", Host: okHost(), VerifyKey: func() (ed25519.PublicKey, bool) { return pub, true }})
	require.NoError(t, err)
	require.NoError(t, server.Shutdown(context.Background()))
	require.NoError(t, server.Serve(context.Background()))
}

func TestPortInUse(t *testing.T) {
	h := start(t, okHost(), nil)
	_, err := New(ServerOptions{Node: "n", Host: okHost(), VerifyKey: h.server.options.VerifyKey, Listen: h.server.Address()})
	require.ErrorContains(t, err, "address already in use")
}

func TestAdvertise(t *testing.T) {
	listening := &net.TCPAddr{IP: net.IPv4zero, Port: 700}
	for _, test := range []struct{ advertise, want string }{
		{"node-a.example", "node-a.example:700"}, {"10.0.0.1:800", "10.0.0.1:800"}, {"::1", "[::1]:700"},
	} {
		got, err := advertised(test.advertise, listening)
		require.NoError(t, err)
		require.Equal(t, test.want, got)
	}
	_, err := advertised("", listening)
	require.ErrorContains(t, err, "say which one")
	got, err := advertised("", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 700})
	require.NoError(t, err)
	require.Equal(t, "127.0.0.1:700", got)
}

func TestCertificateIsKept(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	fingerprint := func() string {
		h := start(t, okHost(), func(o *ServerOptions) { o.Dir = dir })
		require.NoError(t, try(h.client(VerbLogs), VerbLogs))
		return h.server.Fingerprint()
	}
	path := filepath.Join(dir, certificateFile)
	first := fingerprint()
	info, err := os.Stat(path)
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o600), info.Mode().Perm())
	require.Equal(t, first, fingerprint())

	// One that others could read, or that is damaged, is replaced.
	require.NoError(t, os.Chmod(path, 0o644))
	second := fingerprint()
	require.NotEqual(t, first, second)
	info, err = os.Stat(path)
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o600), info.Mode().Perm())
	require.NoError(t, os.WriteFile(path, []byte("-----BEGIN nonsense"), 0o600))
	require.NotEqual(t, second, fingerprint())

	require.NotEqual(t, start(t, okHost(), nil).server.Fingerprint(), start(t, okHost(), nil).server.Fingerprint(),
		"without a directory every server has its own")
}
