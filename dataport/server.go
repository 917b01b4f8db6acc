package dataport

import (
	"context"
	"crypto/ed25519"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"
)

// ServerOptions configures a Server. Node, VerifyKey and Host must be given.
type ServerOptions struct {
	// Listen is the TCP address to listen on; default "127.0.0.1:0".
	Listen string
	// Advertise is the host or host:port that clients are told to dial; default: what it listens on. It must be given
	// when Listen is a wildcard address. Without a port the listener's is added.
	Advertise string
	// Node is this node's name; tokens for another one are refused.
	Node string
	// Dir is where the certificate is kept (dataport.pem, mode 0600), so that its fingerprint outlives a restart of the
	// agent; default "": a new one is made for every Server.
	Dir string
	// VerifyKey returns the control side's key; false while the node has not been told it yet (clients are then told to
	// try again).
	VerifyKey func() (ed25519.PublicKey, bool)
	Host      Host
	Logger    *slog.Logger // default: slog.Default()

	MaxStreams int              // streams at once; default 128
	Grace      time.Duration    // how long Serve lets streams finish when its context ends; default 5 s
	Now        func() time.Time // the clock that tokens are checked against; default time.Now

	timing timing // for tests
}

// timing is what both sides wait for.
type timing struct {
	open  time.Duration // for the connection, the handshake, the header and the request
	ping  time.Duration // between signs of life; a peer that is silent for four of them is gone
	stall time.Duration // how long a reader may leave bytes lying: long, since people pause their pagers
}

func (t timing) applyDefaults() timing {
	if t.open <= 0 {
		t.open = 20 * time.Second
	}
	if t.ping <= 0 {
		t.ping = 15 * time.Second
	}
	if t.stall <= 0 {
		t.stall = 15 * time.Minute
	}
	return t
}

func (t timing) silence() time.Duration { return 4 * t.ping }

func (o ServerOptions) applyDefaults() ServerOptions {
	if o.Listen == "" {
		o.Listen = "127.0.0.1:0"
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	if o.MaxStreams <= 0 {
		o.MaxStreams = 128
	}
	if o.Grace <= 0 {
		o.Grace = 5 * time.Second
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	o.timing = o.timing.applyDefaults()
	return o
}

// spareConnections are accepted beyond the streams: those that are still being opened, or refused.
const spareConnections = 64

// abandonTimeout is how long Shutdown waits for hosts whose context it has ended.
const abandonTimeout = 10 * time.Second

// Server is a node's data port.
type Server struct {
	options     ServerOptions
	address     string
	fingerprint string
	listener    net.Listener
	http        *http.Server
	slots       chan struct{}
	used        nonces

	base context.Context // of all streams
	cut  context.CancelCauseFunc

	mu       sync.Mutex
	closing  bool
	streams  sync.WaitGroup
	shutdown sync.Once
	down     chan struct{}
	downErr  error
}

// New makes the certificate, or reads it, and listens; the address is known from then on. Serve must follow, or Shutdown.
func New(options ServerOptions) (*Server, error) {
	options = options.applyDefaults()
	if options.Node == "" || options.VerifyKey == nil || options.Host == nil {
		return nil, errors.New("making the data port: a node name, a verification key and a host must be given")
	}
	certificate, err := loadOrMakeCertificate(options.Dir, options.Node, options.Logger)
	if err != nil {
		return nil, fmt.Errorf("making the data port's certificate: %w", err)
	}
	config := net.ListenConfig{KeepAliveConfig: keepAlive()}
	listener, err := config.Listen(context.Background(), "tcp", options.Listen)
	if err != nil {
		return nil, fmt.Errorf("listening for the data port: %w", err)
	}
	address, err := advertised(options.Advertise, listener.Addr())
	if err != nil {
		return nil, errors.Join(fmt.Errorf("naming the data port's address: %w", err), listener.Close())
	}
	s := &Server{
		options:     options,
		address:     address,
		fingerprint: fingerprintOf(certificate.Certificate[0]),
		slots:       make(chan struct{}, options.MaxStreams),
		down:        make(chan struct{}),
	}
	s.base, s.cut = context.WithCancelCause(context.Background())
	s.listener = limitConnections(listener, options.MaxStreams+spareConnections)
	s.http = &http.Server{
		Handler: http.HandlerFunc(s.serve),
		TLSConfig: &tls.Config{
			Certificates: []tls.Certificate{certificate},
			MinVersion:   tls.VersionTLS13,
			NextProtos:   []string{"http/1.1"},
		},
		TLSNextProto:      map[string]func(*http.Server, *tls.Conn, http.Handler){}, // no HTTP/2: it cannot be upgraded
		ReadHeaderTimeout: options.timing.open,                                      // the TLS handshake too
		IdleTimeout:       options.timing.open,
		MaxHeaderBytes:    2 * maxTokenBytes,
		ErrorLog:          slog.NewLogLogger(options.Logger.Handler(), slog.LevelDebug),
	}
	return s, nil
}

// keepAlive notices a machine that has vanished within half a minute, on an idle connection.
func keepAlive() net.KeepAliveConfig {
	return net.KeepAliveConfig{Enable: true, Idle: 10 * time.Second, Interval: 5 * time.Second, Count: 4}
}

func advertised(advertise string, listening net.Addr) (string, error) {
	host, port, err := net.SplitHostPort(listening.String())
	if err != nil {
		return "", err
	}
	if advertise == "" {
		if ip := net.ParseIP(host); ip != nil && ip.IsUnspecified() {
			return "", fmt.Errorf("it listens on every address (%s): say which one clients are to dial", listening)
		}
		return listening.String(), nil
	}
	if _, _, err := net.SplitHostPort(advertise); err == nil {
		return advertise, nil
	}
	return net.JoinHostPort(advertise, port), nil
}

// Address is the host:port that clients dial.
func (s *Server) Address() string { return s.address }

// Fingerprint is the lower-case hex SHA-256 of the certificate (DER).
func (s *Server) Fingerprint() string { return s.fingerprint }

// Serve answers until the context ends (it then shuts down by itself, within Grace) or Shutdown is called; nil then.
func (s *Server) Serve(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() {
		grace, cancel := context.WithTimeout(context.Background(), s.options.Grace)
		defer cancel()
		_ = s.Shutdown(grace)
	})
	defer stop()
	err := s.http.ServeTLS(s.listener, "", "")
	if s.isClosing() {
		<-s.down
		return nil
	}
	closed, cancel := context.WithCancelCause(context.Background())
	cancel(errors.New("the listener failed"))
	return fmt.Errorf("serving the data port: %w", errors.Join(err, s.Shutdown(closed)))
}

// Shutdown stops listening, refuses new streams, waits for those under way until ctx ends, then cuts them and waits for
// their hosts to return. The error is ctx's when any had to be cut. Later calls wait for the first.
func (s *Server) Shutdown(ctx context.Context) error {
	s.shutdown.Do(func() {
		s.mu.Lock()
		s.closing = true
		s.mu.Unlock()
		go func() {
			defer close(s.down)
			s.downErr = s.stop(ctx)
		}()
	})
	<-s.down
	return s.downErr
}

func (s *Server) stop(ctx context.Context) error {
	s.listener.Close()
	defer s.cut(ErrShuttingDown)
	defer s.http.Close() // connections without a stream

	idle := make(chan struct{})
	go func() {
		s.streams.Wait()
		close(idle)
	}()
	select {
	case <-idle:
		return nil
	case <-ctx.Done():
	}
	s.cut(ErrShuttingDown)
	err := fmt.Errorf("shutting the data port down: streams had to be cut: %w", context.Cause(ctx))
	timer := time.NewTimer(abandonTimeout)
	defer timer.Stop()
	select {
	case <-idle:
		return err
	case <-timer.C:
		return fmt.Errorf("%w; some did not end within %s of that", err, abandonTimeout)
	}
}

func (s *Server) isClosing() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.closing
}

// begin counts a stream in, unless the server is full or shutting down.
func (s *Server) begin() (done func(), err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closing {
		return nil, ErrShuttingDown
	}
	select {
	case s.slots <- struct{}{}:
	default:
		return nil, ErrBusy
	}
	s.streams.Add(1)
	return func() {
		<-s.slots
		s.streams.Done()
	}, nil
}
