// Package worker wires the two roles of Holdfast together: the control worker, which has the workflows and the control
// side's activities, and the agent of a node. It registers, tunes, runs and stops them in order.
package worker

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/prometheus/client_golang/prometheus"
	"go.temporal.io/sdk/client"
	temporallog "go.temporal.io/sdk/log"
	"google.golang.org/grpc"
	grpcbackoff "google.golang.org/grpc/backoff"

	"holdfast/catalog"
	"holdfast/keys"
	"holdfast/snapshot"
	"holdfast/storage"
	"holdfast/storage/resolver"
	"holdfast/telemetry"
)

// Config is what both roles need.
type Config struct {
	// Temporal says where the server is: HostPort, Namespace, credentials. The data and failure converters are replaced
	// by encrypting ones.
	Temporal client.Options
	// CodecKey is the path of the payload codec's key. It is made when it is absent.
	CodecKey string
	// Stores are the URLs of the policy's providers, in the order in which they are read. At least one.
	Stores []string
	// Policy is as storage.ParsePolicy reads it. Default "any".
	Policy string
	// GCSEndpoint is where gs:// is, if not at Google.
	GCSEndpoint string
	// CAFile is a PEM file of certificate authorities that are trusted of stores beside the system's.
	CAFile string
	// DNS are the servers that names are asked of, host:port. Default: the system's, 8.8.8.8 and 1.1.1.1.
	DNS []string
	// PrivateZones are never asked of public servers.
	PrivateZones []string
	// StopGrace is how long what is under way may take to reach a safe point when the worker stops. Default 15 s.
	StopGrace time.Duration
	// MetricsAddress is where metrics are served in Prometheus's format, host:port, under /metrics. Empty: nowhere.
	MetricsAddress string
	// Logger gets everything. Default: slog.Default().
	Logger *slog.Logger

	// scraped, when set, is given the address that metrics are served on: tests look at them.
	scraped func(address string)
}

func (c Config) applyDefaults() (Config, error) {
	if len(c.Stores) == 0 {
		return c, errors.New("stores: none is configured; give at least one such as gs://bucket or file:///directory")
	}
	if c.Policy == "" {
		c.Policy = "any"
	}
	if c.CodecKey == "" {
		return c, errors.New("codec key: no path is configured; payloads are never written in the clear")
	}
	if c.StopGrace <= 0 {
		c.StopGrace = 15 * time.Second
	}
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	return c, nil
}

// deployment is what both roles open.
type deployment struct {
	config   Config
	resolver *resolver.Resolver
	stale    *staleNames
	catalog  *catalog.Catalog
	metrics  *prometheus.Registry
	temporal *telemetry.Temporal
	closers  []func() error
	// snapshots is how repositories are opened.
	snapshots snapshot.Options
}

func open(ctx context.Context, config Config) (*deployment, error) {
	policy, err := storage.ParsePolicy(config.Policy)
	if err != nil {
		return nil, err
	}
	d := &deployment{
		config: config, stale: &staleNames{}, metrics: telemetry.NewRegistry(), temporal: telemetry.NewTemporal(),
		snapshots: snapshot.Options{Logger: config.Logger, Metrics: snapshot.NewMetrics()},
	}
	d.metrics.MustRegister(d.temporal, d.snapshots.Metrics)
	d.resolver = resolver.New(resolver.Options{
		Servers: config.DNS, Private: config.PrivateZones, Logger: config.Logger, OnStale: d.stale.used, Metrics: d.metrics,
	})
	d.closers = append(d.closers, d.resolver.Close)
	var providers []storage.Provider
	for _, url := range config.Stores {
		provider, err := storage.Open(ctx, url, storage.OpenOptions{
			DialContext: d.resolver.DialContext, GCSEndpoint: config.GCSEndpoint, CAFile: config.CAFile, Logger: config.Logger,
		})
		if err != nil {
			return nil, errors.Join(fmt.Errorf("opening store %s: %w", url, err), d.close())
		}
		d.closers = append(d.closers, provider.Close)
		providers = append(providers, provider)
	}
	if required := policy.Required; required > len(providers) {
		return nil, errors.Join(fmt.Errorf("policy %q wants %d stores and %d are configured: add stores or choose another policy", config.Policy, required, len(providers)), d.close())
	}
	d.catalog = catalog.New(providers, policy)
	d.metrics.MustRegister(storage.Metrics(providers...))
	if config.MetricsAddress != "" {
		server, err := telemetry.Serve(config.MetricsAddress, d.metrics, config.Logger)
		if err != nil {
			return nil, errors.Join(err, d.close())
		}
		d.closers = append(d.closers, server.Close)
		if config.scraped != nil {
			config.scraped(server.Address())
		}
	}
	return d, nil
}

func (d *deployment) close() error {
	var all error
	for i := len(d.closers) - 1; i >= 0; i-- {
		all = errors.Join(all, d.closers[i]())
	}
	return all
}

// connect dials Temporal through the resolver and waits until it answers: a worker that is started before its server, or
// while DNS is away, begins when it can.
func (d *deployment) connect(ctx context.Context, identity string) (client.Client, error) {
	key, err := keys.LoadOrCreateCodecKey(d.config.CodecKey)
	if err != nil {
		return nil, err
	}
	options := d.config.Temporal
	options.Identity = identity
	options.Logger = temporallog.NewStructuredLogger(d.config.Logger)
	options.MetricsHandler = d.temporal
	codec, err := keys.NewCodec(key)
	if err != nil {
		return nil, fmt.Errorf("making the payload codec: %w", err)
	}
	options.DataConverter = keys.DataConverter(codec)
	options.FailureConverter = keys.FailureConverter(options.DataConverter)
	options = DialThrough(options, d.resolver.DialContext)
	waiting := false
	return backoff.Retry(ctx, func() (client.Client, error) {
		connected, err := client.DialContext(ctx, options)
		if err != nil && !waiting {
			waiting = true
			d.config.Logger.Warn("waiting for Temporal", "address", d.config.Temporal.HostPort, "error", err)
		}
		return connected, err
	}, backoff.WithBackOff(&backoff.ExponentialBackOff{InitialInterval: 200 * time.Millisecond, Multiplier: 1.5, MaxInterval: 3 * time.Second}),
		backoff.WithMaxElapsedTime(0))
}

// DialThrough makes a Temporal client dial through a resolver's DialContext, so that Temporal is found by several DNS
// servers as the stores are (A4), and notice a cut connection soon.
func DialThrough(options client.Options, dial func(ctx context.Context, network, address string) (net.Conn, error)) client.Options {
	// A cut connection is noticed in 15 s, not 45, and tried again within a second, not two minutes
	// (research: recovery after 90 s without a network takes 4.7 s with these, 15 s with the defaults).
	options.ConnectionOptions.KeepAliveTime = 10 * time.Second
	options.ConnectionOptions.KeepAliveTimeout = 5 * time.Second
	options.ConnectionOptions.DialOptions = append(options.ConnectionOptions.DialOptions,
		grpc.WithConnectParams(grpc.ConnectParams{
			MinConnectTimeout: 2 * time.Second,
			Backoff:           grpcbackoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: time.Second},
		}),
		grpc.WithContextDialer(func(ctx context.Context, address string) (net.Conn, error) { return dial(ctx, "tcp", address) }))
	if !strings.Contains(options.HostPort, "://") {
		if tlsOptions := options.ConnectionOptions.TLS; tlsOptions != nil && tlsOptions.ServerName == "" {
			options.ConnectionOptions.TLS = withServerName(tlsOptions, options.HostPort)
		}
		options.HostPort = "passthrough:///" + options.HostPort // the dialer resolves the name, not gRPC
	}
	return options
}

func withServerName(options *tls.Config, hostPort string) *tls.Config {
	options = options.Clone()
	options.ServerName = hostPort
	if i := strings.LastIndexByte(hostPort, ':'); i >= 0 {
		options.ServerName = hostPort[:i]
	}
	return options
}
