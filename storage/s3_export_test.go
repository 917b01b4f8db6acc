package storage

import "context"

// S3Config is the provider's configuration, for tests.
type S3Config = s3Config

// NewS3 makes an S3 provider with a configuration that Open does not offer.
func NewS3(ctx context.Context, bucket, prefix string, config S3Config) (Provider, error) {
	p, err := newS3(ctx, bucket, prefix, config)
	if err != nil {
		return nil, err
	}
	return p, nil
}
