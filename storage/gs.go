package storage

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"regexp"
	"strings"
	"time"

	"cloud.google.com/go/auth/credentials"
	"cloud.google.com/go/auth/httptransport"
	gcs "cloud.google.com/go/storage"
	"google.golang.org/api/option"
)

// gsConfig is what the Google Cloud Storage provider can be told. The zero value speaks to the real service.
type gsConfig struct {
	// Endpoint is the base address of an emulator, such as "http://127.0.0.1:4443". Nothing authenticates there and no
	// proxy is used. Empty: STORAGE_EMULATOR_HOST, else the real service.
	Endpoint string
	// DialContext connects; nil is the system's way.
	DialContext func(ctx context.Context, network, address string) (net.Conn, error)
	Logger      *slog.Logger
	// CAFile is a PEM file of certificate authorities that are trusted beside the system's.
	CAFile string

	// ChunkSize is the largest piece that one request sends and that is sent again when its answer is lost; a multiple
	// of 256 KiB. Default 8 MiB. One Put needs at most that much memory beside its data.
	ChunkSize int
	// RetryFor is how long a request that fails is tried again, from its first failure. Default 5 s: waiting longer is
	// for those above, who can say why.
	RetryFor time.Duration
	// RetryAfterAtMost bounds what the service may ask for with Retry-After. Default 3 s.
	RetryAfterAtMost time.Duration
	// Stall is how long a connection may carry no byte in either direction before it is given up. Default 60 s: a slow
	// line can take half a minute to send what the kernel has already taken.
	Stall time.Duration
	// Wrap, for tests, puts something around the HTTP transport.
	Wrap func(http.RoundTripper) http.RoundTripper

	circuit *circuit // is told how requests end; nil: nobody
}

func (c *gsConfig) applyDefaults() {
	if c.Endpoint == "" {
		c.Endpoint = os.Getenv("STORAGE_EMULATOR_HOST")
	}
	if c.Endpoint != "" && !strings.Contains(c.Endpoint, "://") {
		c.Endpoint = "http://" + c.Endpoint
	}
	if c.DialContext == nil {
		c.DialContext = (&net.Dialer{Timeout: 10 * time.Second}).DialContext
	}
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	if c.ChunkSize <= 0 {
		c.ChunkSize = 8 << 20
	}
	c.ChunkSize = (c.ChunkSize + gsChunkUnit - 1) / gsChunkUnit * gsChunkUnit
	if c.RetryFor <= 0 {
		c.RetryFor = 5 * time.Second
	}
	if c.RetryAfterAtMost <= 0 {
		c.RetryAfterAtMost = 3 * time.Second
	}
	if c.Stall <= 0 {
		c.Stall = 60 * time.Second
	}
}

// gsChunkUnit is what the sizes of all chunks but the last must be multiples of.
// https://cloud.google.com/storage/docs/performing-resumable-uploads#chunked-upload
const gsChunkUnit = 256 << 10

// gsUploads is how many uploads of one provider run at once; more wait. It bounds the memory for chunks.
const gsUploads = 16

// gsProvider is a bucket of Google Cloud Storage, or a part of it below a prefix.
type gsProvider struct {
	config  gsConfig
	client  *gcs.Client
	base    *http.Transport
	bucket  string
	prefix  string // empty, or ending in a slash
	uploads chan struct{}
}

var gsBucketName = regexp.MustCompile(`^[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]$`)

// openGS opens a bucket, or the part of it below prefix, for Open.
func openGS(ctx context.Context, bucket, prefix string, o OpenOptions, c *circuit) (Provider, error) {
	g, err := newGS(ctx, bucket, prefix, gsConfig{Endpoint: o.GCSEndpoint, DialContext: o.DialContext, Logger: o.Logger, CAFile: o.CAFile, circuit: c})
	if err != nil {
		return nil, err // not g: a nil *gsProvider in an interface is not nil
	}
	return g, nil
}

// newGS makes the provider. It asks the network nothing, except for credentials on a machine of Google's.
func newGS(ctx context.Context, bucket, prefix string, config gsConfig) (*gsProvider, error) {
	config.applyDefaults()
	prefix = strings.Trim(prefix, "/")
	g := &gsProvider{config: config, bucket: bucket, uploads: make(chan struct{}, gsUploads)}
	if !gsBucketName.MatchString(bucket) {
		return nil, fmt.Errorf("bucket name %q: %w", bucket, ErrInvalid)
	}
	if prefix != "" {
		if err := ValidateKey(prefix); err != nil {
			return nil, fmt.Errorf("prefix of gs://%s: %w", bucket, err)
		}
		g.prefix = prefix + "/"
	}
	g.base = gsTransport(config)
	var err error
	if g.base.TLSClientConfig, err = trusting(config.CAFile, nil); err != nil {
		return nil, fmt.Errorf("opening gs://%s: %w", bucket, err)
	}
	if g.client, err = g.connect(ctx); err != nil {
		return nil, fmt.Errorf("opening gs://%s: %w", bucket, err)
	}
	return g, nil
}

// connect makes Google's client on our transport.
func (g *gsProvider) connect(ctx context.Context) (*gcs.Client, error) {
	var base http.RoundTripper = g.base
	if g.config.Wrap != nil {
		base = g.config.Wrap(base)
	}
	base = &gsDownloads{&gsBodies{base}}
	watched := &watchedTransport{base: base, circuit: g.config.circuit, retryAfterAtMost: g.config.RetryAfterAtMost}
	if g.config.Endpoint != "" {
		endpoint, err := url.Parse(g.config.Endpoint)
		if err != nil || endpoint.Host == "" {
			return nil, fmt.Errorf("endpoint %q: %w", g.config.Endpoint, ErrInvalid)
		}
		endpoint.Path = "/storage/v1/"
		return gcs.NewClient(ctx, option.WithEndpoint(endpoint.String()), option.WithoutAuthentication(),
			option.WithHTTPClient(&http.Client{Transport: watched}), gcs.WithJSONReads())
	}
	// Tokens are fetched through the same resolver as everything else; a service account's key signs its own, which
	// needs no network at all and so works through an outage.
	creds, err := credentials.DetectDefault(&credentials.DetectOptions{
		Scopes: []string{gcs.ScopeReadWrite}, Client: &http.Client{Transport: base, Timeout: 30 * time.Second}, UseSelfSignedJWT: true,
	})
	if err != nil {
		return nil, fmt.Errorf("no Google credentials found (set GOOGLE_APPLICATION_CREDENTIALS, or run gcloud auth application-default login): %w: %w", ErrPermission, err)
	}
	client, err := httptransport.NewClient(&httptransport.Options{Credentials: creds, BaseRoundTripper: watched})
	if err != nil {
		return nil, err
	}
	return gcs.NewClient(ctx, option.WithHTTPClient(client), option.WithAuthCredentials(creds), gcs.WithJSONReads())
}

// URL implements Provider.
func (g *gsProvider) URL() string {
	return strings.TrimSuffix("gs://"+g.bucket+"/"+g.prefix, "/")
}

// Close implements Provider.
func (g *gsProvider) Close() error {
	err := g.client.Close()
	g.base.CloseIdleConnections()
	if err != nil {
		return fmt.Errorf("closing %s: %w", g.URL(), err)
	}
	return nil
}

// name is the object's name in the bucket.
func (g *gsProvider) name(key string) (string, error) {
	if err := ValidateKey(key); err != nil {
		return "", err
	}
	if name := g.prefix + key; len(name) <= MaxKeyLength {
		return name, nil
	}
	return "", fmt.Errorf("key of %d bytes below %s, %d at most in all: %w", len(key), g.URL(), MaxKeyLength, ErrInvalid)
}

// handle is an object with the retries of one call.
func (g *gsProvider) handle(name string, b *gsBudget) *gcs.ObjectHandle {
	return g.client.Bucket(g.bucket).Object(name).Retryer(b.options()...)
}
