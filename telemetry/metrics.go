// Package telemetry makes visible what Holdfast's processes do.
package telemetry

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// NewRegistry makes a process's registry of metrics, with those of the process itself and of the Go runtime in it.
func NewRegistry() *prometheus.Registry {
	registry := prometheus.NewRegistry()
	registry.MustRegister(
		collectors.NewGoCollector(), collectors.NewBuildInfoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
	)
	return registry
}

// Server serves metrics in Prometheus's format at /metrics.
type Server struct {
	address string
	server  *http.Server
	done    chan struct{}
}

// Serve serves what the registry gathers at /metrics of address (host:port; port 0 is a free one) until Close. Nobody is
// asked who they are: what is told are numbers, addresses of stores and DNS servers, and names of nodes and queues.
func Serve(address string, registry prometheus.Gatherer, logger *slog.Logger) (*Server, error) {
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return nil, fmt.Errorf("serving metrics on %s: %w; give another address, or none", address, err)
	}
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{
		// One collector that fails does not hide the others' numbers.
		ErrorHandling: promhttp.ContinueOnError, ErrorLog: slog.NewLogLogger(logger.Handler(), slog.LevelWarn),
	}))
	s := &Server{
		address: listener.Addr().String(), done: make(chan struct{}),
		server: &http.Server{
			Handler: mux, ReadTimeout: 10 * time.Second, WriteTimeout: time.Minute, IdleTimeout: 5 * time.Minute, MaxHeaderBytes: 16 << 10,
			ErrorLog: slog.NewLogLogger(logger.Handler(), slog.LevelDebug),
		},
	}
	go func() {
		defer close(s.done)
		if err := s.server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			logger.Error("metrics are no longer served", "address", s.address, "error", err)
		}
	}()
	logger.Info("metrics are served", "url", "http://"+s.address+"/metrics")
	return s, nil
}

// Address is where it listens, host:port.
func (s *Server) Address() string { return s.address }

// Close ends it. A scrape that is under way gets a second.
func (s *Server) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	err := s.server.Shutdown(ctx)
	if errors.Is(err, context.DeadlineExceeded) {
		err = s.server.Close()
	}
	<-s.done
	return err
}
