package storage

import "context"

// GSConfig and NewGS open the provider to tests of the package storage_test, which the conformance suite needs.
type GSConfig = gsConfig

func NewGS(ctx context.Context, bucket, prefix string, config GSConfig) (Provider, error) {
	return newGS(ctx, bucket, prefix, config)
}
