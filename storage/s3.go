package storage

import (
	"context"
	"crypto/x509"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"regexp"
	"strings"
	"sync/atomic"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	awsconfig "github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/service/s3"
)

// s3Config is what the S3 provider can be told. The zero value speaks to AWS with the environment's credentials.
type s3Config struct {
	Endpoint    string // an S3-compatible server; buckets are then part of the path
	Region      string // empty: the environment's, the profile's, else us-east-1
	DialContext func(ctx context.Context, network, address string) (net.Conn, error)
	Logger      *slog.Logger
	// CAFile is a PEM file of certificate authorities that are trusted beside the system's, or those of AWS_CA_BUNDLE.
	CAFile string

	// RetryFor is how long a request that fails is tried again. Default 5 s; longer waits belong to the callers.
	RetryFor time.Duration
	// RetryAfterAtMost bounds what a server may ask for with Retry-After. Default 3 s.
	RetryAfterAtMost time.Duration
	// Stall is how long a connection may carry no byte before it is given up. Default 60 s.
	Stall time.Duration
	// Wrap, for tests, puts something around the HTTP transport.
	Wrap func(http.RoundTripper) http.RoundTripper

	circuit *circuit // is told how requests end; nil: nobody
}

func (c *s3Config) applyDefaults() {
	if c.DialContext == nil {
		c.DialContext = (&net.Dialer{Timeout: 10 * time.Second}).DialContext
	}
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
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

// s3Provider is an S3 bucket, or the part of it below a prefix.
type s3Provider struct {
	config s3Config
	client *s3.Client
	base   *http.Transport
	bucket string
	prefix string // empty, or ending with a slash
	seen   atomic.Bool
}

// https://docs.aws.amazon.com/AmazonS3/latest/userguide/bucketnamingrules.html
var s3BucketName = regexp.MustCompile(`^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$`)

// newS3 makes the provider. It reads the AWS environment and profile, and asks the network nothing.
func newS3(ctx context.Context, bucket, prefix string, config s3Config) (*s3Provider, error) {
	config.applyDefaults()
	if !s3BucketName.MatchString(bucket) {
		return nil, fmt.Errorf("bucket name %q: %w", bucket, ErrInvalid)
	}
	p := &s3Provider{config: config, bucket: bucket}
	if prefix = strings.Trim(prefix, "/"); prefix != "" {
		if err := ValidateKey(prefix); err != nil {
			return nil, fmt.Errorf("prefix of s3://%s: %w", bucket, err)
		}
		p.prefix = prefix + "/"
	}
	if config.Endpoint != "" {
		if endpoint, err := url.Parse(config.Endpoint); err != nil || endpoint.Host == "" || endpoint.User != nil {
			return nil, fmt.Errorf("the S3 endpoint must be like http://host:port: %w", ErrInvalid)
		}
	}
	p.base = gsTransport(gsConfig{Endpoint: config.Endpoint, DialContext: config.DialContext, Stall: config.Stall})
	p.base.ExpectContinueTimeout = time.Second // large objects are not sent to a server that will refuse them
	loaded, err := awsconfig.LoadDefaultConfig(ctx,
		// Credentials are fetched through the same resolver. It must be the SDK's own client: the configuration adds the
		// certificates of AWS_CA_BUNDLE to it.
		awsconfig.WithHTTPClient(awshttp.NewBuildableClient().WithTransportOptions(func(t *http.Transport) {
			t.DialContext = p.base.DialContext
		})),
		// Retries are ours: they know create-only writes, Retry-After and how long a caller wants to wait.
		awsconfig.WithRetryer(func() aws.Retryer { return aws.NopRetryer{} }))
	if err != nil {
		return nil, fmt.Errorf("reading the AWS configuration: %w", err)
	}
	var bundle *x509.CertPool
	if client, ok := loaded.HTTPClient.(*awshttp.BuildableClient); ok {
		if configured := client.GetTransport().TLSClientConfig; configured != nil {
			bundle = configured.RootCAs
		}
	}
	if p.base.TLSClientConfig, err = trusting(config.CAFile, bundle); err != nil {
		return nil, fmt.Errorf("opening s3://%s: %w", bucket, err)
	}
	var transport http.RoundTripper = p.base
	if config.Wrap != nil {
		transport = config.Wrap(transport)
	}
	if config.Region != "" {
		loaded.Region = config.Region
	}
	if loaded.Region == "" {
		loaded.Region = "us-east-1"
	}
	transport = &watchedTransport{base: transport, circuit: config.circuit} // Retry-After is again's
	p.client = s3.NewFromConfig(loaded, func(o *s3.Options) {
		o.HTTPClient = &http.Client{Transport: transport, CheckRedirect: noRedirect}
		if config.Endpoint != "" {
			o.BaseEndpoint = aws.String(config.Endpoint)
		}
		// Buckets as host names work only where the server's DNS has them.
		o.UsePathStyle = config.Endpoint != "" || os.Getenv("AWS_ENDPOINT_URL_S3") != "" || os.Getenv("AWS_ENDPOINT_URL") != ""
		o.DisableLogOutputChecksumValidationSkipped = true
	})
	return p, nil
}

// noRedirect leaves redirects to the caller: a signature is valid for one host only.
func noRedirect(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }

// URL is s3://bucket/prefix.
func (p *s3Provider) URL() string {
	return (&url.URL{Scheme: "s3", Host: p.bucket, Path: strings.TrimSuffix("/"+p.prefix, "/")}).String()
}

// Close closes the connections that are not in use.
func (p *s3Provider) Close() error {
	p.base.CloseIdleConnections()
	return nil
}

// name is the object's key in the bucket.
func (p *s3Provider) name(key string) (*string, error) {
	if err := ValidateKey(key); err != nil {
		return nil, err
	}
	name := p.prefix + key
	if len(name) > MaxKeyLength {
		return nil, fmt.Errorf("key of %d bytes with its prefix, %d at most: %w", len(name), MaxKeyLength, ErrInvalid)
	}
	return &name, nil
}
