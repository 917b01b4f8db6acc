package storage

import (
	"context"
	"io"
	"net/url"
	"strings"
)

// Sub is the part of a provider below a prefix, as a provider of its own: keys are relative to the prefix. Closing it
// leaves the underlying provider open, since others use it too.
func Sub(p Provider, prefix string) Provider {
	return &sub{provider: p, prefix: strings.Trim(prefix, "/") + "/"}
}

type sub struct {
	provider Provider
	prefix   string
}

func (s *sub) circuitOf() *circuit { return circuitOf(s.provider) }
func (s *sub) trafficOf() *traffic { return trafficOf(s.provider) }

// URL is the underlying provider's with the prefix at the end of its path, before any ?endpoint=.
func (s *sub) URL() string {
	address, query, hasQuery := strings.Cut(s.provider.URL(), "?")
	address = strings.TrimSuffix(address, "/") + (&url.URL{Path: "/" + strings.TrimSuffix(s.prefix, "/")}).EscapedPath()
	if hasQuery {
		address += "?" + query
	}
	return address
}

func (s *sub) Put(ctx context.Context, key string, data []byte, options PutOptions) (Object, error) {
	if err := ValidateKey(key); err != nil {
		return Object{}, err
	}
	object, err := s.provider.Put(ctx, s.prefix+key, data, options)
	return s.relative(object), err
}

func (s *sub) Get(ctx context.Context, key string, offset, length int64) (io.ReadCloser, error) {
	if err := ValidateKey(key); err != nil {
		return nil, err
	}
	return s.provider.Get(ctx, s.prefix+key, offset, length)
}

func (s *sub) Stat(ctx context.Context, key string) (Object, error) {
	if err := ValidateKey(key); err != nil {
		return Object{}, err
	}
	object, err := s.provider.Stat(ctx, s.prefix+key)
	return s.relative(object), err
}

func (s *sub) List(ctx context.Context, prefix string, each func(Object) error) error {
	if err := ValidatePrefix(prefix); err != nil {
		return err
	}
	return s.provider.List(ctx, s.prefix+prefix, func(object Object) error { return each(s.relative(object)) })
}

func (s *sub) Delete(ctx context.Context, key string) error {
	if err := ValidateKey(key); err != nil {
		return err
	}
	return s.provider.Delete(ctx, s.prefix+key)
}

func (s *sub) Close() error { return nil }

func (s *sub) relative(object Object) Object {
	object.Key = strings.TrimPrefix(object.Key, s.prefix)
	return object
}
