package storage

import (
	"context"
	"fmt"
	"io"
)

// body is what Get returns: it gives exactly want bytes (any number when want is below 0) and then io.EOF, or an error.
// It checks the context before every read, so that bytes already in a buffer do not outlive a cancellation.
type body struct {
	ctx    context.Context
	source io.ReadCloser
	want   int64 // bytes still to come, below 0 when unknown
	key    string
	// explain turns a transport's error into one of the sentinel errors; nil leaves it as it is.
	explain func(error) error
}

func (b *body) Read(p []byte) (int, error) {
	if err := b.ctx.Err(); err != nil {
		return 0, fmt.Errorf("reading %s: %w", b.key, err)
	}
	n, err := b.source.Read(p)
	if b.want >= 0 {
		if int64(n) > b.want {
			return 0, fmt.Errorf("reading %s: more bytes than asked for: %w", b.key, ErrIntegrity)
		}
		b.want -= int64(n)
	}
	switch {
	case err == io.EOF && b.want > 0:
		return n, fmt.Errorf("reading %s: ended %d bytes early: %w", b.key, b.want, io.ErrUnexpectedEOF)
	case err != nil && err != io.EOF:
		if b.explain != nil {
			err = b.explain(err)
		}
		return n, fmt.Errorf("reading %s: %w", b.key, err)
	}
	return n, err
}

func (b *body) Close() error { return b.source.Close() }
