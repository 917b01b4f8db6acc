package snapshot

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"strings"

	"holdfast/storage"
)

// store is a storage.Mirror as this package uses it: with errors that tell bytes that are wrong everywhere from bytes
// that cannot be had now.
type store struct{ mirror *storage.Mirror }

// put stores data on the providers; nil means that as many as the policy requires hold it. With createOnly an object
// that is there already with other content is storage.ErrExists. data may still be read after the call while some
// provider is behind.
func (s store) put(ctx context.Context, key string, data []byte, createOnly bool) error {
	return s.mirror.Put(ctx, key, data, storage.PutOptions{CreateOnly: createOnly})
}

// load reads length bytes from offset, from the first provider whose answer check accepts. When every provider gave an
// answer and all were wrong, the error is ErrDamaged (storage.ErrNotFound when none has the object); while one could
// not be reached it is neither, whatever the others gave.
func (s store) load(ctx context.Context, key string, offset, length int64, check func([]byte) error) ([]byte, error) {
	data, err := s.mirror.Load(ctx, key, offset, length, check)
	var mirrorError *storage.MirrorError
	if err == nil || !errors.As(err, &mirrorError) || mirrorError.Ended != nil {
		return data, err
	}
	var unreachable, damaged []error
	for _, cause := range mirrorError.Causes {
		switch {
		case errors.Is(cause, storage.ErrIntegrity):
			damaged = append(damaged, cause)
		case !errors.Is(cause, storage.ErrNotFound):
			unreachable = append(unreachable, cause)
		}
	}
	switch {
	case len(unreachable) > 0:
		// What passes by itself on one provider outweighs what another needs a person for.
		if passing := slices.DeleteFunc(slices.Clone(unreachable), func(err error) bool { return !storage.Retryable(err) }); len(passing) > 0 {
			unreachable = passing
		}
		return nil, &unreachableError{all: err, causes: unreachable}
	case len(damaged) > 0:
		return nil, fmt.Errorf("%w: %w", ErrDamaged, err)
	default:
		return nil, err
	}
}

// unreachableError says of all providers what went wrong, but is only what those that could not be reached said; of
// these, what passes by itself when there is such.
type unreachableError struct {
	all    error
	causes []error
}

func (e *unreachableError) Error() string   { return e.all.Error() }
func (e *unreachableError) Unwrap() []error { return e.causes }

func (s store) listAll(ctx context.Context, prefix string) (map[string][]storage.Object, map[string]error) {
	return s.mirror.ListAll(ctx, prefix)
}

func (s store) remove(ctx context.Context, key string) error { return s.mirror.Delete(ctx, key) }

// of is a store of some of the providers, as patient as the whole; without tries in place when once is set. The caller
// closes its mirror.
func (s store) of(providers []storage.Provider, policy storage.Policy, once bool) (store, error) {
	options := s.mirror.Options()
	options.Policy = policy
	if once {
		options.RetryFor = -1
	}
	mirror, err := storage.NewMirror(providers, options)
	return store{mirror}, err
}

// alone are the providers, each by itself, by URL, until end is called.
func (s store) alone(once bool) (each map[string]store, end func(), err error) {
	each = map[string]store{}
	end = func() {
		for _, one := range each {
			_ = one.mirror.Close() // its writes have ended, and said how
		}
	}
	for _, p := range s.providers() {
		one, err := s.of([]storage.Provider{p}, storage.PolicyAll, once)
		if err != nil {
			end()
			return nil, nil, err
		}
		each[p.URL()] = one
	}
	return each, end, nil
}

func (s store) providers() []storage.Provider { return s.mirror.Providers() }
func (s store) policy() storage.Policy        { return s.mirror.Policy() }

// behind are the addresses of the providers that missed a write.
func (s store) behind() []string { return s.mirror.Behind() }

// fallbacks counts, by provider, the objects that had to be read elsewhere.
func (s store) fallbacks() map[string]int64 { return s.mirror.Fallbacks() }

// The names of a repository's objects.
const (
	configKey      = "config"
	keyPrefix      = "keys/"
	snapshotPrefix = "snapshots/"
	indexPrefix    = "index/"
	packPrefix     = "data/"
	lockPrefix     = "locks/"
)

func packKey(id blobID) string {
	text := id.String()
	return packPrefix + text[:2] + "/" + text
}

// parsePackKey is the inverse of packKey; false for a file that is no pack.
func parsePackKey(key string) (blobID, bool) {
	rest, ok := strings.CutPrefix(key, packPrefix)
	if !ok {
		return blobID{}, false
	}
	name := rest
	if directory, base, found := strings.Cut(rest, "/"); found {
		name = base
		if len(name) < 2 || directory != name[:2] {
			return blobID{}, false
		}
	}
	id, err := parseID(name)
	return id, err == nil
}

// listing is what providers hold below one prefix: for every key the sizes that they report.
type listing struct {
	prefix  string
	objects map[string][]heldObject
	// failed are the providers that could not be listed, by URL.
	failed map[string]error
	// listed are the URLs of the others, in the mirror's order.
	listed []string
}

// heldObject is one provider's copy of an object.
type heldObject struct {
	provider string
	storage.Object
}

// list lists a prefix everywhere. It is an error only when no provider could be listed.
func list(ctx context.Context, s store, prefix string) (listing, error) {
	found, failed := s.listAll(ctx, prefix)
	l := listing{prefix: prefix, objects: map[string][]heldObject{}, failed: failed}
	for _, provider := range s.providers() {
		objects, ok := found[provider.URL()]
		if _, bad := failed[provider.URL()]; !ok || bad {
			continue
		}
		l.listed = append(l.listed, provider.URL())
		for _, object := range objects {
			l.objects[object.Key] = append(l.objects[object.Key], heldObject{provider.URL(), object})
		}
	}
	if len(l.listed) == 0 {
		return l, l.failure()
	}
	return l, ctx.Err()
}

// failure is what kept providers from being listed, as one error that is permanent only when no cause of it passes by
// itself; nil when all were listed.
func (l listing) failure() error {
	if len(l.failed) == 0 {
		return nil
	}
	return &storage.MirrorError{Doing: "listing", Key: cmp.Or(l.prefix, "the repository"), Causes: l.failed}
}

// sizes are the different sizes reported for a key, the largest first, without those beyond limit. A copy that was cut
// short is the smaller one.
func (l listing) sizes(key string, limit int64) []int64 {
	var sizes []int64
	for _, held := range l.objects[key] {
		if held.Size <= limit {
			sizes = append(sizes, held.Size)
		}
	}
	slices.SortFunc(sizes, func(a, b int64) int { return int(min(max(b-a, -1), 1)) })
	return slices.Compact(sizes)
}

// loadWhole reads an object of at most limit bytes, of which a listing told the sizes, with provider fallback.
func loadWhole(ctx context.Context, s store, l listing, key string, limit int64, check func([]byte) error) ([]byte, error) {
	sizes := l.sizes(key, limit)
	if len(sizes) == 0 {
		if len(l.objects[key]) > 0 {
			return nil, fmt.Errorf("reading %s: it has more than %d bytes: %w", key, limit, ErrLimitExceeded)
		}
		return nil, fmt.Errorf("reading %s: %w", key, storage.ErrNotFound)
	}
	var failure error
	for _, size := range sizes {
		data, err := s.load(ctx, key, 0, size, check)
		if err == nil {
			return data, nil
		}
		if failure == nil {
			failure = err
		}
		if ctx.Err() != nil {
			break
		}
	}
	return nil, fmt.Errorf("reading %s: %w", key, failure)
}

// checkHash accepts bytes whose SHA-256 is id.
func checkHash(id blobID, data []byte) error {
	if got := blobID(sha256.Sum256(data)); got != id {
		return fmt.Errorf("the bytes have the hash %s: %w", got.short(), ErrDamaged)
	}
	return nil
}
