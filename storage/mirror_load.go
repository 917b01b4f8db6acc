package storage

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"
)

// Load reads length bytes (below 0: to the end) from offset, from the first provider that gives exactly those and whose
// answer check accepts; nil accepts everything. A provider that has no such object, cannot be reached, stalls, or gives
// fewer, more or other bytes, is passed over for the next, and counted. When none is left, those whose fault was
// transient are asked again for up to RetryFor.
//
// While another provider can be asked, one with a circuit is not waited for as long as StallTimeout: its circuit says how
// long it may be silent. When the others do not have it either, it is asked once more, with all the time there is.
//
// The error is a *MirrorError: ErrNotFound only when all providers said so, ErrIntegrity when some copy was damaged
// (requirement A9). It never returns bytes together with an error, nor bytes that check refused.
func (m *Mirror) Load(ctx context.Context, key string, offset, length int64, check func([]byte) error) ([]byte, error) {
	if err := ValidateKey(key); err != nil {
		return nil, err
	}
	if offset < 0 || length > m.options.MaxObject {
		return nil, fmt.Errorf("reading %s: %d bytes from %d: %w", key, length, offset, ErrInvalid)
	}
	order := m.order(key)
	causes := map[string]error{}
	damaged := map[string]error{}
	bad := map[string]int{}
	var data []byte
	round, found := 0, false
	err := m.retry(ctx, func() error {
		round++
		asked := 0
		ask := order
		for i := 0; i < len(ask); i++ {
			p := ask[i]
			// A copy that was damaged twice was not damaged on the way.
			if err := causes[p.URL()]; (err != nil && !Retryable(err)) || bad[p.URL()] >= 2 {
				continue
			}
			asked++
			began := time.Now()
			others := i < len(order)-1
			got, err := m.loadNow(ctx, p, others, others && round == 1, key, offset, length, check)
			if err == nil {
				data, found = got, true
				m.answered(p)
				return nil
			}
			if ctx.Err() != nil {
				return ctx.Err()
			}
			causes[p.URL()] = err
			if errors.Is(err, ErrIntegrity) {
				damaged[p.URL()] = err
				bad[p.URL()]++
			} else if Retryable(err) && time.Since(began) >= min(slowFailure, m.options.StallTimeout) {
				m.passOver(p, err)
			}
			if round == 1 && others {
				m.fellBack(p, key, err)
				if errors.Is(err, errHurried) {
					ask = append(slices.Clone(ask), p)
				}
			}
		}
		if asked == 0 {
			return nil // nobody is left to ask
		}
		return m.failure(ctx, "reading", key, causes)
	})
	if err == nil && found {
		return data, nil
	}
	for url, err := range damaged { // a later failure to reach it does not make a damaged copy a good one
		if !errors.Is(causes[url], ErrIntegrity) {
			causes[url] = fmt.Errorf("%w; then: %v", err, causes[url])
		}
	}
	return nil, m.failure(ctx, "reading", key, causes)
}

// slowFailure is how long a provider may take to fail a read before the next reads spare themselves that wait.
const slowFailure = 2 * time.Second

// order gives the providers as a read asks them: the mirror's order, but last those that are behind (they often lack
// what is asked for) and those that are away or have just cost a read a long wait for nothing. A restore of a thousand packs must
// not wait a thousand times for a provider that hangs. A provider passed over counts as a fallback.
func (m *Mirror) order(key string) []Provider {
	rank := map[string]int{}
	hung := map[string]error{}
	m.mu.Lock()
	for url := range m.behind {
		rank[url] = 1
	}
	for url, h := range m.hung {
		if time.Now().Before(h.until) {
			rank[url], hung[url] = 2, h.err
		}
	}
	m.mu.Unlock()
	for _, p := range m.providers {
		if err := Away(p); err != nil {
			rank[p.URL()], hung[p.URL()] = 2, err
		}
	}
	order := slices.Clone(m.providers)
	slices.SortStableFunc(order, func(a, b Provider) int { return cmp.Compare(rank[a.URL()], rank[b.URL()]) })
	for i, p := range m.providers {
		if err := hung[p.URL()]; err != nil && order[i].URL() != p.URL() {
			m.fellBack(p, key, fmt.Errorf("not asked again so soon: %w", err))
		}
	}
	return order
}

// hang is a slow failure of a provider.
type hang struct {
	until time.Time
	times int // without an answer between them
	err   error
}

// passOver lets the next reads do without the provider for a while, twice as long each time up to eight StallTimeouts: two
// providers that hang would otherwise take turns, each forgotten by the time that the other has been waited for.
func (m *Mirror) passOver(p Provider, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	times := m.hung[p.URL()].times
	m.hung[p.URL()] = hang{until: time.Now().Add(m.options.StallTimeout << min(times, 3)), times: times + 1, err: err}
}

func (m *Mirror) answered(p Provider) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.hung, p.URL())
}

func (m *Mirror) fellBack(p Provider, key string, err error) {
	m.mu.Lock()
	m.fallbacks[p.URL()]++
	m.mu.Unlock()
	if t := trafficOf(p); t != nil {
		t.fallbacks.Add(1)
	}
	if m.options.OnFallback != nil {
		m.options.OnFallback(p.URL(), key, err)
	}
}

// errHurried says that a provider was left early because another one could be asked. It never leaves this file alone.
var errHurried = errors.New("left for another store")

// loadNow is loadOne, which is left as soon as the provider is found to be away when another one can still be asked; in a
// hurry also when it is silent for longer than its circuit has patience, or slower than slowest.
func (m *Mirror) loadNow(ctx context.Context, p Provider, others, hurry bool, key string, offset, length int64, check func([]byte) error) ([]byte, error) {
	c := circuitOf(p)
	if c == nil || !others || c.away() != nil {
		return m.loadOne(ctx, p, m.options.StallTimeout, key, offset, length, check)
	}
	ctx, cancel := c.awaited(ctx)
	defer cancel()
	patience := m.options.StallTimeout
	if hurry {
		patience = min(patience, c.patient())
		if length >= 0 {
			var end context.CancelFunc
			ctx, end = context.WithTimeoutCause(ctx, m.options.StallTimeout+time.Duration(length)*time.Second/slowest, errHurried)
			defer end()
		}
	}
	data, err := m.loadOne(ctx, p, patience, key, offset, length, check)
	switch cause := context.Cause(ctx); {
	case err == nil:
		return data, nil
	case cause == ErrAway: // the cause itself, which no caller sets
		if away := c.away(); away != nil {
			return nil, away
		}
		return nil, fmt.Errorf("%w: %v", ErrAway, err)
	case cause == errHurried:
		return nil, fmt.Errorf("%w: %w: slower than %d bytes a second: %v", ErrStalled, errHurried, slowest, err)
	case hurry && errors.Is(err, ErrStalled):
		return nil, fmt.Errorf("%w: %w", errHurried, err)
	}
	return data, err
}

// loadOne reads from one provider and believes nothing.
func (m *Mirror) loadOne(ctx context.Context, p Provider, patience time.Duration, key string, offset, length int64, check func([]byte) error) ([]byte, error) {
	var data []byte
	err := alive(ctx, patience, func(ctx context.Context, beat func()) error {
		body, err := p.Get(ctx, key, offset, length)
		if err != nil {
			return err
		}
		beat()
		defer func() { _ = body.Close() }() // the bytes were counted and are checked
		data, err = take(body, length, m.options.MaxObject, beat)
		return err
	})
	if errors.Is(err, io.ErrUnexpectedEOF) && length >= 0 {
		// Cut off on the way, or is the stored object itself too short?
		object, statErr := m.statOne(ctx, p, patience, key)
		if statErr == nil && object.Size < offset+length {
			return nil, fmt.Errorf("the stored object has %d bytes, %d to %d were wanted: %w: %w",
				object.Size, offset, offset+length, ErrIntegrity, err)
		}
	}
	if err != nil {
		return nil, err
	}
	switch {
	case check != nil:
		if err := check(data); err != nil {
			return nil, fmt.Errorf("%w: %w", ErrIntegrity, err)
		}
	case length < 0:
		// Nobody else can tell a body that ended early from a whole one.
		object, err := m.statOne(ctx, p, patience, key)
		if err != nil {
			return nil, err
		}
		if object.Size != int64(len(data)) || (object.HasCRC32C && object.CRC32C != Checksum(data)) {
			return nil, fmt.Errorf("read %d bytes that are not the stored object of %d: %w", len(data), object.Size, ErrIntegrity)
		}
	}
	return data, nil
}

func (m *Mirror) statOne(ctx context.Context, p Provider, patience time.Duration, key string) (object Object, err error) {
	err = alive(ctx, patience, func(ctx context.Context, _ func()) error {
		object, err = p.Stat(ctx, key)
		return err
	})
	return object, err
}

// take reads a body of exactly length bytes, or of at most limit when length is below 0.
func take(body io.Reader, length, limit int64, beat func()) ([]byte, error) {
	size := length
	if length < 0 {
		size = 64 << 10
	}
	data := make([]byte, 0, size)
	for {
		if len(data) == cap(data) {
			if length >= 0 {
				break
			}
			data = slices.Grow(data, len(data))
		}
		n, err := body.Read(data[len(data):cap(data)])
		data = data[:len(data)+n]
		beat()
		switch {
		case int64(len(data)) > limit:
			return nil, fmt.Errorf("more than %d bytes: %w", limit, ErrIntegrity)
		case err == io.EOF && (length < 0 || int64(len(data)) == length):
			return data, nil
		case err == io.EOF:
			return nil, fmt.Errorf("%d of %d bytes: %w", len(data), length, io.ErrUnexpectedEOF)
		case err != nil:
			return nil, err
		}
	}
	var extra [1]byte
	switch n, err := io.ReadFull(body, extra[:]); {
	case n > 0:
		return nil, fmt.Errorf("more than the %d bytes asked for: %w", length, ErrIntegrity)
	case err != io.EOF:
		return nil, err
	}
	return data, nil
}
