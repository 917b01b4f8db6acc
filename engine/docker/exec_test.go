package docker

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"holdfast/engine"
)

// slowEngine passes everything on to the real engine but the start of one exec: that it accepts, and passes on when it is told to.
type slowEngine struct {
	real     func(ctx context.Context) (net.Conn, error)
	armed    atomic.Bool   // the next start is the one
	accepted chan string   // gets its exec's id
	release  chan struct{} // closed to let it go on
	proxy    *httputil.ReverseProxy
}

func (s *slowEngine) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	path := strings.Split(r.URL.Path, "/") // "", version, "exec", id, "start"
	if len(path) != 5 || path[4] != "start" || path[2] != "exec" || !s.armed.CompareAndSwap(true, false) {
		s.proxy.ServeHTTP(w, r)
		return
	}
	client, buffered, err := w.(http.Hijacker).Hijack()
	if err != nil {
		panic(err)
	}
	defer client.Close()
	body := make([]byte, r.ContentLength)
	if _, err := io.ReadFull(buffered, body); err != nil {
		return
	}
	io.WriteString(client, "HTTP/1.1 101 UPGRADED\r\nContent-Type: application/vnd.docker.raw-stream\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n")
	s.accepted <- path[3]
	<-s.release
	server, err := s.real(context.Background())
	if err != nil {
		return
	}
	defer server.Close()
	fmt.Fprintf(server, "POST %s HTTP/1.1\r\nHost: docker\r\nContent-Type: application/json\r\nConnection: Upgrade\r\nUpgrade: tcp\r\nContent-Length: %d\r\n\r\n%s", r.URL.Path, len(body), body)
	_, _ = io.Copy(io.Discard, server) // until the command's end
}

// TestKillWaitsForTheBegin ends the context of a command that a slow engine has accepted and starts later.
func TestKillWaitsForTheBegin(t *testing.T) {
	repository, made := madeImage(t)
	straight := open(t, Options{HostImage: repository, DefaultImage: "-"})
	id, err := straight.Create(t.Context(), engine.Spec{Name: "holdfast-test-" + randomName(t), Image: made.Reference, ContentDir: t.TempDir()})
	require.NoError(t, err)
	t.Cleanup(func() {
		require.NoError(t, straight.Stop(context.Background(), id, 0))
		require.NoError(t, straight.Remove(context.Background(), id))
	})
	require.NoError(t, straight.Start(t.Context(), id))
	require.NoError(t, straight.Ready(t.Context(), id))

	dial := straight.client.Dialer()
	slow := &slowEngine{real: dial, accepted: make(chan string, 1), release: make(chan struct{})}
	slow.proxy = httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: "docker"})
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return dial(ctx) }}
	defer transport.CloseIdleConnections()
	slow.proxy.Transport = transport
	socket := filepath.Join(t.TempDir(), "s")
	listener, err := net.Listen("unix", socket)
	require.NoError(t, err)
	server := httptest.NewUnstartedServer(slow)
	server.Listener.Close()
	server.Listener = listener
	server.Start()
	defer server.Close()

	e := open(t, Options{Host: "unix://" + socket, HostImage: repository, DefaultImage: "-"})
	slow.armed.Store(true)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	returned := make(chan error, 1)
	go func() {
		_, err := e.Exec(ctx, id, engine.ExecSpec{Command: []string{"sleep", "86400"}})
		returned <- err
	}()
	execID := <-slow.accepted
	cancel()
	early := false
	select {
	case err = <-returned: // before there was anything to kill
		early = true
	case <-time.After(8 * time.Second):
	}
	close(slow.release)
	if !early {
		err = <-returned
	}
	require.ErrorIs(t, err, context.Canceled)
	require.NotContains(t, err.Error(), "may still run")
	require.Eventually(t, func() bool {
		state, err := straight.client.ContainerExecInspect(t.Context(), execID)
		return err == nil && begun(state)
	}, time.Minute, 20*time.Millisecond, "it begins")
	state, err := straight.client.ContainerExecInspect(t.Context(), execID)
	require.NoError(t, err)
	require.False(t, state.Running, "the command runs on after the exec has returned")
}
