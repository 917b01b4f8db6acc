package storage

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v5"
)

// MirrorOptions says how a Mirror writes and reads.
type MirrorOptions struct {
	// Policy says how many providers must hold an object before Put returns nil.
	Policy Policy
	// LagTimeout is what a provider may take longer than those that met the policy, before its write is cut off and it
	// is behind. Default 5 s.
	LagTimeout time.Duration
	// LagShare is the part of the time since the first write that writers may have spent, beyond one LagTimeout, waiting
	// for nothing but providers that the policy does not need; then those are behind. A provider that is a little too slow
	// at every object would otherwise make a backup take many times as long. Range above 0 to below 1, default 0.5: with
	// it an operation takes at most twice as long, and two LagTimeouts, as without the slow provider.
	LagShare float64
	// RetryFor is how long a call is tried again in place while the cause is transient. Default 5 s; below 0 not at
	// all. Longer waits belong to the callers.
	RetryFor time.Duration
	// StallTimeout is how long a provider may give no sign of life: no byte of a read, no object of a listing, no
	// answer to anything else. A write may take a second more for every 64 KiB. Default 30 s.
	StallTimeout time.Duration
	// MaxObject is the size in bytes that Load takes in at most. Default 1 GiB.
	MaxObject int64
	// OnFallback is called whenever a read goes on to the next provider, with the one that failed and why. It may be
	// called from several goroutines.
	OnFallback func(url, key string, err error)
}

func (o *MirrorOptions) applyDefaults() {
	if o.LagTimeout <= 0 {
		o.LagTimeout = 5 * time.Second
	}
	if o.LagShare <= 0 || o.LagShare >= 1 {
		o.LagShare = 0.5
	}
	if o.RetryFor == 0 {
		o.RetryFor = 5 * time.Second
	}
	if o.StallTimeout <= 0 {
		o.StallTimeout = 30 * time.Second
	}
	if o.MaxObject <= 0 {
		o.MaxObject = 1 << 30
	}
}

// ErrStalled says that a provider gave no sign of life for StallTimeout. It is transient.
var ErrStalled = errors.New("the object store does not answer")

// slowest is the rate in bytes per second below which a write counts as stalled.
const slowest = 64 << 10

// Mirror is several providers as one. It is cheap to make: one operation (a backup, a restore) makes its own, so that
// what it learns about its providers ends with it. It is safe for concurrent use.
//
// The providers belong to the caller, who closes them after Wait or Close.
type Mirror struct {
	providers []Provider
	options   MirrorOptions
	life      context.Context // ends with Close
	end       context.CancelFunc
	writes    sync.WaitGroup

	mu        sync.Mutex
	behind    map[string]error // by URL, why
	fallbacks map[string]int64
	hung      map[string]hang // by URL, see order
	lag       lag
}

// NewMirror makes one of at least one provider, the first being the one that is read first. Two providers with one
// address are refused: they would count as two copies.
func NewMirror(providers []Provider, options MirrorOptions) (*Mirror, error) {
	options.applyDefaults()
	if len(providers) == 0 {
		return nil, fmt.Errorf("a mirror of no providers: %w", ErrInvalid)
	}
	seen := map[string]bool{}
	for _, p := range providers {
		if seen[p.URL()] {
			return nil, fmt.Errorf("a mirror with %s twice: %w", p.URL(), ErrInvalid)
		}
		seen[p.URL()] = true
	}
	life, end := context.WithCancel(context.Background())
	return &Mirror{
		providers: slices.Clone(providers), options: options, life: life, end: end,
		behind: map[string]error{}, fallbacks: map[string]int64{}, hung: map[string]hang{},
	}, nil
}

// Providers are the mirror's, in the order in which they are read.
func (m *Mirror) Providers() []Provider { return slices.Clone(m.providers) }

// Options are the mirror's with the defaults applied, to make another one of its providers that is as patient.
func (m *Mirror) Options() MirrorOptions { return m.options }

// Policy is the mirror's.
func (m *Mirror) Policy() Policy { return m.options.Policy }

// Behind lists the addresses of the providers that missed a write which the policy's number of others have, in order.
// They are not written to any more, and never counted again: an object that they have is of no use without the one
// that they lack. Repair brings them up to date.
func (m *Mirror) Behind() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Sorted(maps.Keys(m.behind))
}

// BehindError says why the provider with that address is behind; nil when it is not.
func (m *Mirror) BehindError(url string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.behind[url]
}

// Fallbacks counts, by address, how often a read went on to the next provider.
func (m *Mirror) Fallbacks() map[string]int64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return maps.Clone(m.fallbacks)
}

// Wait returns when no write is under way any more, those that were cut off included, or when ctx ends.
func (m *Mirror) Wait(ctx context.Context) error {
	_, err := inTime(ctx, func() (struct{}, error) { m.writes.Wait(); return struct{}{}, nil }, nil)
	return err
}

// Close cuts off the writes that are under way and waits for them. It does not close the providers.
func (m *Mirror) Close() error {
	m.end()
	m.writes.Wait()
	return nil
}

func (m *Mirror) markBehind(p Provider, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, ok := m.behind[p.URL()]; !ok {
		m.behind[p.URL()] = err
		if t := trafficOf(p); t != nil {
			t.behind.Add(1)
		}
	}
}

// retry makes a call until it succeeds, fails for good, or RetryFor is over. The error is the call's last one.
func (m *Mirror) retry(ctx context.Context, call func() error) error {
	pause := backoff.NewExponentialBackOff()
	pause.InitialInterval, pause.MaxInterval, pause.Multiplier = 200*time.Millisecond, 2*time.Second, 2
	options := []backoff.RetryOption{backoff.WithBackOff(pause), backoff.WithMaxElapsedTime(m.options.RetryFor)}
	if m.options.RetryFor < 0 {
		options = []backoff.RetryOption{backoff.WithMaxTries(1)}
	}
	var last error
	_, err := backoff.Retry(ctx, func() (struct{}, error) {
		last = call()
		if last != nil && !Retryable(last) {
			return struct{}{}, backoff.Permanent(last)
		}
		return struct{}{}, last
	}, options...)
	if err == nil {
		return nil
	}
	if ctx.Err() != nil && !errors.Is(last, ctx.Err()) {
		return fmt.Errorf("%w; before that: %w", ctx.Err(), last)
	}
	return last
}

// alive runs a call on p that must give a sign of life, by calling beat, at least every patience.
func alive(ctx context.Context, patience time.Duration, call func(ctx context.Context, beat func()) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	timer := time.AfterFunc(patience, func() { cancel(ErrStalled) })
	defer timer.Stop()
	err := call(ctx, func() { timer.Reset(patience) })
	if err != nil && errors.Is(context.Cause(ctx), ErrStalled) {
		// The cause is given as text: that the context ended is our doing, and no caller's wish.
		return fmt.Errorf("%w: nothing for %s: %v", ErrStalled, patience, err)
	}
	return err
}

// onAll makes a call on every provider at once, as Ask does: when as many as are enough have succeeded, those that are
// away are not waited for. Each address is in exactly one of the maps.
func onAll[T any](ctx context.Context, m *Mirror, enough int, call func(ctx context.Context, p Provider, beat func()) (T, error)) (map[string]T, map[string]error) {
	values, failed := map[string]T{}, map[string]error{}
	for _, answer := range Ask(ctx, Question{Providers: m.providers, Enough: enough}, func(ctx context.Context, p Provider, beat func()) (value T, err error) {
		err = m.retry(ctx, func() error {
			return alive(ctx, m.options.StallTimeout, func(ctx context.Context, alsoBeat func()) error {
				value, err = call(ctx, p, func() { beat(); alsoBeat() })
				return err
			})
		})
		return value, err
	}, nil) {
		if answer.Err == nil {
			values[answer.Provider.URL()] = answer.Value
		} else {
			failed[answer.Provider.URL()] = answer.Err
		}
	}
	return values, failed
}

// required is how many providers the policy requires.
func (m *Mirror) required() int { return m.options.Policy.Count(len(m.providers)) }

// StatAll asks every provider for one object; see ListAll. Each address is in exactly one of the maps.
func (m *Mirror) StatAll(ctx context.Context, key string) (map[string]Object, map[string]error) {
	return onAll(ctx, m, m.required(), func(ctx context.Context, p Provider, _ func()) (Object, error) { return p.Stat(ctx, key) })
}

// ListAll lists every provider to its end. Each address is in exactly one of the maps: a listing that failed is never a
// short one. When the policy's number of providers have been listed, one that is away has failed, with ErrAway.
func (m *Mirror) ListAll(ctx context.Context, prefix string) (map[string][]Object, map[string]error) {
	return m.listAll(ctx, prefix, m.required())
}

func (m *Mirror) listAll(ctx context.Context, prefix string, enough int) (map[string][]Object, map[string]error) {
	return onAll(ctx, m, enough, func(ctx context.Context, p Provider, beat func()) ([]Object, error) {
		objects := []Object{}
		err := p.List(ctx, prefix, func(object Object) error {
			beat()
			objects = append(objects, object)
			return nil
		})
		return objects, err
	})
}

// Delete removes an object from every provider, those that are behind included. The error is a *MirrorError, also when
// the policy's number of providers have removed it and another is away.
func (m *Mirror) Delete(ctx context.Context, key string) error {
	_, failed := onAll(ctx, m, m.required(), func(ctx context.Context, p Provider, _ func()) (struct{}, error) {
		return struct{}{}, p.Delete(ctx, key)
	})
	if len(failed) == 0 {
		return nil
	}
	return m.failure(ctx, "deleting", key, failed)
}
