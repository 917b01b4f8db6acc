package storage

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/hashicorp/go-multierror"
)

// MirrorError says what went wrong on each provider.
//
// errors.Is and Retryable see of the causes only what is true of the whole: one provider's ErrPermission does not make
// a write permanent whose other provider was merely slow, and one provider's ErrNotFound does not mean that the object
// is nowhere. So a cause that cannot be mended by trying again shows only when all are such, and ErrNotFound only when
// all providers said it.
type MirrorError struct {
	Doing  string           // "storing", "reading", …
	Key    string           // the object, or the prefix
	Causes map[string]error // by the provider's address; the whole of it, for reports
	// Ended is the error of the caller's context when that has ended; what the providers said is then of no weight.
	Ended error
}

func (m *Mirror) failure(ctx context.Context, doing, key string, causes map[string]error) *MirrorError {
	return &MirrorError{Doing: doing, Key: key, Causes: maps.Clone(causes), Ended: ctx.Err()}
}

// Error lists every provider with its cause.
func (e *MirrorError) Error() string {
	all := &multierror.Error{ErrorFormat: func(list []error) string {
		lines := make([]string, len(list))
		for i, err := range list {
			lines[i] = err.Error()
		}
		return strings.Join(lines, "; ")
	}}
	if e.Ended != nil {
		all = multierror.Append(all, e.Ended)
	}
	for _, url := range slices.Sorted(maps.Keys(e.Causes)) {
		all = multierror.Append(all, fmt.Errorf("%s: %w", url, e.Causes[url]))
	}
	return fmt.Sprintf("%s %s: %s", e.Doing, e.Key, all)
}

// Unwrap gives the causes that are true of the whole.
func (e *MirrorError) Unwrap() []error {
	if e.Ended != nil {
		return []error{e.Ended}
	}
	var transient, permanent, absent []error
	for _, url := range slices.Sorted(maps.Keys(e.Causes)) {
		switch err := e.Causes[url]; {
		case Retryable(err):
			transient = append(transient, err)
		case errors.Is(err, ErrNotFound):
			absent = append(absent, err)
		default:
			permanent = append(permanent, err)
		}
	}
	switch {
	case len(transient) > 0:
		return transient
	case len(permanent) > 0:
		return permanent
	default:
		return absent
	}
}
