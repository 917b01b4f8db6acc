// Package storage keeps immutable objects in object stores: Google Cloud Storage (gs://), S3 (s3://) and directories
// (file://), and several of them as one (Mirror).
//
// A Provider is believed when it says that it stored an object only after the checksum that the provider computed of
// what it stored equals the one computed here before sending. Everything else (retries over hours, which provider must
// have what) belongs to Mirror and to the callers.
package storage

import (
	"context"
	"errors"
	"io"
	"time"
)

// Object describes one stored object.
type Object struct {
	Key  string // slash-separated, relative to the provider's root, never starting with a slash
	Size int64  // bytes
	// CRC32C is the Castagnoli checksum of the whole content as the provider reports it. It is meaningful only when
	// HasCRC32C is set: S3 listings and directories do not carry one.
	CRC32C    uint32
	HasCRC32C bool
	Modified  time.Time // the provider's clock; never used to order anything
}

// PutOptions says how an object is written.
type PutOptions struct {
	// CreateOnly makes Put fail with ErrExists when another object with that key is already there, decided atomically by
	// the provider. An object that is there and equal to data is a success: it is what a write whose answer was lost
	// leaves behind (invariant 8), in this process or in one that died. Without CreateOnly an existing object is replaced.
	CreateOnly bool
}

// Provider is one object store below one root (bucket and prefix, or directory).
//
// All methods are safe for concurrent use and honour their context in every wait. Errors wrap one of the sentinel
// errors below where one fits; what fits none is transient.
type Provider interface {
	// URL is the provider's address as the user would write it. It never contains credentials.
	URL() string

	// Put stores data under key, whole or not at all: no reader ever sees a part of it. It returns nil only when the
	// provider's own checksum of the stored object equals that of data (a directory is read again after fsync). It
	// may try a few times within seconds; a lost answer to a create-only write that did succeed is recognised by
	// comparing the object that is there, and is a success when it is equal.
	// The caller never changes data afterwards, not even after an error: a write that was cut off may still be reading it.
	Put(ctx context.Context, key string, data []byte, options PutOptions) (Object, error)

	// Get opens length bytes from offset; a length below 0 means to the end. The content is not verified (callers know
	// the hash of what they stored); a body that ends early is an error of Read, never a short success.
	Get(ctx context.Context, key string, offset, length int64) (io.ReadCloser, error)

	// Stat describes one object.
	Stat(ctx context.Context, key string) (Object, error)

	// List calls each for every object whose key starts with prefix, in ascending order of keys. It stops at the first
	// error of each and returns it. A listing that could not be read to its end is an error, never a short success.
	// The prefix of an empty store lists nothing and is no error; a missing bucket or directory is ErrBucketNotFound.
	List(ctx context.Context, prefix string, each func(Object) error) error

	// Delete removes an object. Removing what is not there is no error.
	Delete(ctx context.Context, key string) error

	// Close releases connections. The provider is not used afterwards.
	Close() error
}

// The kinds of failure that callers tell apart. Everything else is transient and worth another try.
var (
	ErrNotFound       = errors.New("object not found")                        // permanent for that key
	ErrExists         = errors.New("object already exists")                   // create-only write lost
	ErrBucketNotFound = errors.New("bucket or directory does not exist")      // permanent until a person makes it
	ErrPermission     = errors.New("permission denied by the object store")   // permanent until a person mends it
	ErrNoSpace        = errors.New("no space left in the object store")       // permanent until a person makes room
	ErrIntegrity      = errors.New("stored bytes differ from the bytes sent") // retried: a wire or disk error
	ErrInvalid        = errors.New("invalid storage address or key")          // permanent, the caller's mistake
)

// Retryable reports whether trying the same call again later can succeed without a person doing something. Errors
// that are unknown count as retryable: giving up on a backup costs more than another attempt.
func Retryable(err error) bool {
	switch {
	case err == nil:
		return false
	case errors.Is(err, ErrNotFound), errors.Is(err, ErrExists), errors.Is(err, ErrBucketNotFound),
		errors.Is(err, ErrPermission), errors.Is(err, ErrNoSpace), errors.Is(err, ErrInvalid):
		return false
	default:
		return true
	}
}
