package storage

import (
	"context"
	"log/slog"
	"net"
)

// OpenOptions is what Open needs beside the address. The zero value opens real stores with the system's resolver.
type OpenOptions struct {
	// DialContext makes the connections, and so resolves the names: resolver.Resolver's. Nil: the system's.
	DialContext func(ctx context.Context, network, address string) (net.Conn, error)

	// GCSEndpoint is the address of a server that speaks Google Cloud Storage's JSON API in place of Google's own, such
	// as http://127.0.0.1:4443; no credentials are used with it. The address's ?endpoint= wins over it.
	GCSEndpoint string

	// S3Endpoint is the address of an S3-compatible server, such as http://127.0.0.1:7070; buckets are then part of the
	// path. The address's ?endpoint= wins over it. S3Region is the bucket's region; the address's ?region= wins over
	// it. Credentials, and what is empty here, come from the AWS environment variables and profiles.
	S3Endpoint string
	S3Region   string

	// CAFile is a PEM file of certificate authorities that are trusted beside the system's, for https:// endpoints of a
	// private deployment. For s3:// those of AWS_CA_BUNDLE take the place of the system's.
	CAFile string

	// Create makes the directory of a file:// address and those above it. Buckets are never made.
	Create bool

	// Logger is slog.Default when nil.
	Logger *slog.Logger
}
