package gcsemulator

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Server serves an Emulator on one address. One Emulator can have several, also one after the other: that is how the
// storage moves to another address in the demonstration.
type Server struct {
	http     *http.Server
	listener net.Listener
	scheme   string
	running  sync.WaitGroup

	mu    sync.Mutex
	conns map[net.Conn]context.CancelFunc
}

// Serve listens on address ("127.0.0.1:0" picks a free port) and serves until Close. With a TLS configuration it
// speaks HTTPS.
func (e *Emulator) Serve(address string, config *tls.Config) (*Server, error) {
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return nil, fmt.Errorf("gcs emulator: listening on %s: %w", address, err)
	}
	s := &Server{listener: listener, scheme: "http", conns: map[net.Conn]context.CancelFunc{}}
	s.http = &http.Server{Handler: e, ReadHeaderTimeout: 30 * time.Second, ConnState: s.track}
	s.http.ConnContext = s.connContext
	serving := listener
	if config != nil {
		s.scheme = "https"
		serving = tls.NewListener(listener, config)
	}
	s.running.Go(func() {
		if err := s.http.Serve(serving); !errors.Is(err, http.ErrServerClosed) {
			e.options.Logger.Error("gcs emulator ended", "address", address, "error", err)
		}
	})
	return s, nil
}

// connContext gives the requests of a connection a context that ends when we close it: net/http itself notices a closed
// connection only while it reads from it, and a hook may hang instead.
func (s *Server) connContext(ctx context.Context, conn net.Conn) context.Context {
	ctx, cancel := context.WithCancel(ctx)
	if wrapped, ok := conn.(*tls.Conn); ok {
		conn = wrapped.NetConn()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.conns[conn] = cancel
	return ctx
}

func (s *Server) track(conn net.Conn, state http.ConnState) {
	if state != http.StateClosed && state != http.StateHijacked {
		return
	}
	if wrapped, ok := conn.(*tls.Conn); ok {
		conn = wrapped.NetConn()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if cancel := s.conns[conn]; cancel != nil {
		cancel()
		delete(s.conns, conn)
	}
}

// Addr is the host:port that the server listens on.
func (s *Server) Addr() string { return s.listener.Addr().String() }

// URL is the base address, such as "http://127.0.0.1:4443". It is what OpenOptions.GCSEndpoint takes.
func (s *Server) URL() string { return s.scheme + "://" + s.Addr() }

// CloseConnections cuts all connections, in the middle of requests too, and goes on listening. It says how many there
// were.
func (s *Server) CloseConnections() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	for conn, cancel := range s.conns {
		_ = conn.Close()
		cancel()
	}
	return len(s.conns)
}

// Close stops listening and cuts all connections. The Emulator stays open; requests that were cut may still run for a
// moment, and Emulator.Close waits for them.
func (s *Server) Close() error {
	s.CloseConnections()
	err := s.http.Close()
	s.CloseConnections()
	s.running.Wait()
	return err
}

// control serves what is not of the real service: GET /_stats (?prefix=bucket/name-prefix, ?objects=0 without the
// list), POST /_throttle?bytes_per_second=N, POST /_hold?text=TEXT&pass=N (see Hold).
func (q *request) control(name string) (func() *apiError, *apiError) {
	switch {
	case name == "_stats" && q.Method == http.MethodGet:
		return func() *apiError {
			stats := q.e.Stats()
			if q.query.Get("objects") == "0" {
				stats.PerObject = nil
			}
			for key := range stats.PerObject {
				if !strings.HasPrefix(key, q.query.Get("prefix")) {
					delete(stats.PerObject, key)
				}
			}
			q.answer(http.StatusOK, nil, stats)
			return nil
		}, nil
	case name == "_throttle" && q.Method == http.MethodPost:
		n, err := strconv.ParseInt(q.query.Get("bytes_per_second"), 10, 64)
		if err != nil || n < 0 {
			return nil, badRequest("bytes_per_second must be a number from 0")
		}
		return func() *apiError {
			q.e.SetBytesPerSecond(n)
			q.answer(http.StatusOK, nil, map[string]int64{"bytes_per_second": n})
			return nil
		}, nil
	case name == "_hold" && q.Method == http.MethodPost:
		pass := int64(0)
		if text := q.query.Get("pass"); text != "" {
			var err error
			if pass, err = strconv.ParseInt(text, 10, 64); err != nil || pass < 0 {
				return nil, badRequest("pass must be a number from 0")
			}
		}
		return func() *apiError {
			q.e.Hold(q.query.Get("text"), pass)
			q.answer(http.StatusOK, nil, map[string]string{"text": q.query.Get("text")})
			return nil
		}, nil
	}
	return nil, notFound("no such resource: %s", q.URL.Path)
}
