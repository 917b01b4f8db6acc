package storage

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"net/url"
	"slices"
	"strings"
)

// Open opens the store at an address:
//
//	gs://bucket/prefix    Google Cloud Storage; ?endpoint=http://host:port for another server that speaks its JSON API
//	s3://bucket/prefix    S3; ?endpoint=http://host:port for another server that speaks S3, ?region= for the bucket's
//	file:///directory     a directory, given from the root of the file system
//
// What is not a letter or digit may be percent-encoded, and "?", "#" and "%" in a prefix or directory must be. A value
// of the query must be encoded too where it has "&", "+" or "%". An address never has credentials: those come from the
// environment, and an address with a user or password is refused, since it would end up in logs and listings.
//
// Nothing is asked of the network, so that a store which cannot be reached at the moment can be opened. The provider's
// URL is the address in its shortest form, with the query that it was given; an endpoint that comes from the options is
// not part of it, so that a store keeps its name when its server moves. The provider has a circuit (see WithCircuit).
func Open(ctx context.Context, address string, options OpenOptions) (Provider, error) {
	parsed, err := parseAddress(address)
	if err != nil {
		return nil, err
	}
	logger := options.Logger
	if logger == nil {
		logger = slog.Default()
	}
	c := newCircuit(address, CircuitOptions{Logger: logger})
	var p Provider
	switch parsed.Scheme {
	case "file":
		p, err = openFile(ctx, parsed, options)
	case "gs", "s3":
		p, err = openBucket(ctx, parsed, options, c)
	default:
		return nil, fmt.Errorf(`store address with the scheme %q: want gs://bucket/prefix, s3://bucket/prefix or file:///directory: %w`, parsed.Scheme, ErrInvalid)
	}
	if err != nil {
		return nil, err
	}
	return watch(p, c, parsed.Scheme == "file"), nil
}

// parseAddress never repeats the address in an error before it is sure that there is no password in it.
func parseAddress(address string) (*url.URL, error) {
	parsed, err := url.Parse(address)
	switch {
	case err != nil && strings.Contains(address, "@"):
		return nil, fmt.Errorf("the store address cannot be parsed: %w", ErrInvalid)
	case err != nil:
		return nil, fmt.Errorf("the store address cannot be parsed: %w: %w", ErrInvalid, err)
	case parsed.User != nil:
		return nil, fmt.Errorf("store address for %q with a user or password: leave them out, credentials come from the environment: %w", parsed.Host, ErrInvalid)
	case parsed.Scheme == "" && strings.HasPrefix(address, "/"):
		return nil, fmt.Errorf("store address %q: for a directory write file://%s: %w", address, address, ErrInvalid)
	case parsed.Scheme == "" || parsed.Opaque != "":
		return nil, fmt.Errorf("store address %q: want gs://bucket/prefix, s3://bucket/prefix or file:///directory: %w", address, ErrInvalid)
	case parsed.Fragment != "" || strings.HasSuffix(address, "#"):
		return nil, fmt.Errorf(`store address %q: write a "#" as %%23: %w`, address, ErrInvalid)
	}
	return parsed, nil
}

func openFile(ctx context.Context, address *url.URL, options OpenOptions) (Provider, error) {
	switch {
	case address.Host != "" && address.Host != "localhost":
		return nil, fmt.Errorf("store address %q: a directory is written with three slashes, file:///%s%s: %w", address, address.Host, address.Path, ErrInvalid)
	case address.RawQuery != "" || address.ForceQuery:
		return nil, fmt.Errorf(`store address %q: a directory has no settings; write a "?" as %%3F: %w`, address, ErrInvalid)
	case !strings.HasPrefix(address.Path, "/"):
		return nil, fmt.Errorf("store address %q: no directory: %w", address, ErrInvalid)
	}
	// A disk that hangs must not hold up who only wanted to open it.
	d, err := inTime(ctx, func() (*directory, error) {
		return openDirectory(address.Path, DirectoryOptions{Create: options.Create, Logger: options.Logger})
	}, nil)
	if err != nil {
		return nil, err
	}
	return d, nil
}

func openBucket(ctx context.Context, address *url.URL, options OpenOptions, c *circuit) (Provider, error) {
	if address.Host == "" || address.Port() != "" {
		return nil, fmt.Errorf("store address %q: want %s://bucket/prefix: %w", address, address.Scheme, ErrInvalid)
	}
	allowed := map[string]*string{"endpoint": &options.GCSEndpoint}
	if address.Scheme == "s3" {
		allowed = map[string]*string{"endpoint": &options.S3Endpoint, "region": &options.S3Region}
	}
	query, err := url.ParseQuery(address.RawQuery)
	if err != nil {
		return nil, fmt.Errorf("store address for %q: the query cannot be parsed: %w: %w", address.Host, ErrInvalid, err)
	}
	for name, values := range query {
		into, ok := allowed[name]
		if !ok || len(values) != 1 || values[0] == "" {
			return nil, fmt.Errorf("store address for %q: setting %q: a %s:// address takes, once each, %s: %w",
				address.Host, name, address.Scheme, strings.Join(slices.Sorted(maps.Keys(allowed)), ", "), ErrInvalid)
		}
		*into = values[0]
	}
	if err := checkEndpoint(*allowed["endpoint"]); err != nil {
		return nil, fmt.Errorf("store address for %q: %w", address.Host, err)
	}
	var provider Provider
	if address.Scheme == "gs" {
		provider, err = openGS(ctx, address.Host, address.Path, options, c)
	} else {
		provider, err = openS3(ctx, address.Host, address.Path, options, c)
	}
	if err != nil {
		return nil, err
	}
	canonical := url.URL{Scheme: address.Scheme, Host: address.Host, Path: strings.TrimRight(address.Path, "/"), RawQuery: query.Encode()}
	if provider.URL() == canonical.String() {
		return provider, nil
	}
	return &addressed{Provider: provider, url: canonical.String()}, nil
}

func openS3(ctx context.Context, bucket, prefix string, o OpenOptions, c *circuit) (Provider, error) {
	p, err := newS3(ctx, bucket, prefix, s3Config{Endpoint: o.S3Endpoint, Region: o.S3Region, DialContext: o.DialContext, Logger: o.Logger, CAFile: o.CAFile, circuit: c})
	if err != nil {
		return nil, err
	}
	return p, nil
}

func checkEndpoint(endpoint string) error {
	if endpoint == "" {
		return nil
	}
	parsed, err := url.Parse(endpoint)
	switch {
	case err != nil || parsed.Host == "" || (parsed.Scheme != "http" && parsed.Scheme != "https"):
		return fmt.Errorf("the endpoint must be like http://host:port: %w", ErrInvalid)
	case parsed.User != nil || parsed.RawQuery != "" || parsed.Fragment != "":
		return fmt.Errorf("the endpoint must be like http://host:port, without user, query or fragment: %w", ErrInvalid)
	}
	return nil
}

// addressed is a provider whose address says more than its place.
type addressed struct {
	Provider
	url string
}

func (a *addressed) URL() string { return a.url }
