package storage

import (
	"context"
	"errors"
	"time"
)

// Put writes an object to all providers that are not behind, at once. When as many as the policy requires hold it, or
// when so many have failed that they cannot any more, the others get LagTimeout more (a writer who did not wait would
// pile up unsent packs in memory) and are cut off. One that is away (see WithCircuit) is not asked while the others may
// be enough, and not waited for when they are; when they are not, it is asked and waited for as any other.
//
// It returns nil only when as many as the policy requires hold the object; those that do not are behind from then on.
// Fewer than required: a *MirrorError, which is Retryable unless all causes are permanent, and nobody is marked behind. A create-only write that
// meets another object under that key on any provider is a conflict: a *MirrorError that wraps ErrExists, whatever the
// other providers said, since two writers believe that the name is theirs.
//
// data is never changed after the call, not even when it failed: a write that was cut off may still be reading it.
func (m *Mirror) Put(ctx context.Context, key string, data []byte, options PutOptions) error {
	if err := ValidateKey(key); err != nil {
		return err
	}
	if err := m.life.Err(); err != nil {
		return errors.New("the mirror is closed")
	}
	began := time.Now()
	m.lagging(func(l *lag) { l.writes++ })
	late := false // it waits only for providers that the policy does not need
	defer m.lagging(func(l *lag) {
		l.writes--
		if late {
			l.late--
		}
	})
	writing, cut := context.WithCancel(ctx)
	defer context.AfterFunc(m.life, cut)()
	defer cut()

	type answer struct {
		provider Provider
		err      error
	}
	causes := map[string]error{}
	waiting := map[string]Provider{}
	spared := []Provider{}                         // away, and not asked
	answers := make(chan answer, len(m.providers)) // room for all: nobody who is cut off is left sending
	gone := make(chan struct{}, 1)                 // one of those that are awaited may be away
	write := func(p Provider) {
		waiting[p.URL()] = p
		c := circuitOf(p)
		var sign <-chan struct{}
		if c != nil {
			sign = c.next() // from before the first request
		}
		m.writes.Add(1)
		go func() {
			defer m.writes.Done()
			answers <- answer{p, m.putOne(writing, p, key, data, options)}
		}()
		if c != nil {
			go c.tell(writing, sign, gone)
		}
	}
	required, have := m.required(), 0
	for _, p := range m.providers {
		if err := m.BehindError(p.URL()); err != nil {
			causes[p.URL()] = err
		} else if err := Away(p); err != nil {
			causes[p.URL()] = err
			spared = append(spared, p)
		} else {
			write(p)
		}
	}
	var overdue <-chan time.Time
	for {
		if have+len(waiting) < required && len(spared) > 0 {
			for _, p := range spared {
				write(p)
			}
			spared = nil
		}
		if have >= required {
			for url, p := range waiting {
				if err := Away(p); err != nil {
					causes[url] = err
					delete(waiting, url)
				}
			}
		}
		if len(waiting) == 0 {
			break
		}
		if decided := have >= required || have+len(waiting) < required; decided && overdue == nil {
			late = true
			m.lagging(func(l *lag) { l.late++ })
			timer := time.NewTimer(m.patience(have >= required))
			defer timer.Stop()
			overdue = timer.C
		}
		select {
		case a := <-answers:
			if waiting[a.provider.URL()] == nil {
				break // it was left
			}
			delete(waiting, a.provider.URL())
			switch {
			case a.err == nil:
				have++
				delete(causes, a.provider.URL())
			case options.CreateOnly && errors.Is(a.err, ErrExists):
				return &MirrorError{Doing: "storing", Key: key, Causes: map[string]error{a.provider.URL(): a.err}}
			default:
				causes[a.provider.URL()] = a.err
			}
		case <-gone:
		case <-overdue:
			tooLate := errors.New("its writes took too much longer than the others' and one was cut off")
			for _, p := range waiting {
				if c := circuitOf(p); c != nil && have >= required && len(data) <= slowest {
					c.left(began, tooLate)
				}
			}
			m.leaveBehind(waiting, causes, tooLate)
			clear(waiting)
		case <-ctx.Done():
			m.leaveBehind(waiting, causes, ctx.Err())
			clear(waiting)
		}
	}
	if have < required {
		return m.failure(ctx, "storing", key, causes)
	}
	for _, p := range m.providers {
		if err := causes[p.URL()]; err != nil {
			m.markBehind(p, err)
		}
	}
	return nil
}

func (m *Mirror) leaveBehind(waiting map[string]Provider, causes map[string]error, why error) {
	for url := range waiting {
		causes[url] = why
	}
}

func (m *Mirror) putOne(ctx context.Context, p Provider, key string, data []byte, options PutOptions) error {
	patience := m.options.StallTimeout + time.Duration(len(data))*time.Second/slowest
	return m.retry(ctx, func() error {
		return alive(ctx, patience, func(ctx context.Context, _ func()) error {
			_, err := p.Put(ctx, key, data, options)
			return err
		})
	})
}
