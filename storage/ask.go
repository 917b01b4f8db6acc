package storage

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"
)

// Question says how several providers are asked at once.
type Question struct {
	Providers []Provider
	// Enough is how many successes the caller's policy requires. Once there are so many, the others are waited for no
	// longer than it takes to see that they are away (see Ask).
	Enough int
	// Within bounds one provider's answer. 0: only the context does.
	Within time.Duration
	// Everybody asks also those that are away, although the others may be enough, and gives them a moment. It is for
	// questions that are few and whose answers matter: one that is just back is heard.
	Everybody bool
}

// Answer is what one provider said.
type Answer[T any] struct {
	Provider Provider
	Value    T
	Err      error // wraps ErrAway when it was not asked, or was left
}

// moment is how long a provider that is away may take longer than the others to show that it is back.
const moment = 250 * time.Millisecond

// Ask asks all providers at once, with answers in their order. It returns when all have answered; as soon as settled
// accepts a value (nil accepts none); or when Enough have succeeded and none of the others can be hoped for: they are
// away, or have been silent for much longer than those that answered. Providers without a circuit (see WithCircuit) are
// always waited for.
//
// A provider that is away is not asked while the others may be enough. When they turn out not to be, it is asked, and
// waited for as any other. Calls of providers that are left have their context cancelled; they may still return later.
// ask calls beat at every sign of life.
func Ask[T any](ctx context.Context, q Question, ask func(ctx context.Context, p Provider, beat func()) (T, error), settled func(T) bool) []Answer[T] {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // also ends the watching of circuits
	s := &survey[T]{
		q: q, ask: ask, began: time.Now(),
		asked: make([]*asked, len(q.Providers)), answers: make([]Answer[T], len(q.Providers)),
		results: make(chan result[T], len(q.Providers)), evidence: make(chan *asked),
	}
	present := 0
	for i, p := range q.Providers {
		s.answers[i] = Answer[T]{Provider: p, Err: Away(p)}
		if s.answers[i].Err == nil {
			present++
		}
	}
	for i := range q.Providers {
		if away := s.answers[i].Err != nil; !away || q.Everybody { // insist asks the others when they are needed
			s.start(ctx, i, away && present >= q.Enough)
		}
	}
	for {
		if s.have+s.hoped() < q.Enough {
			s.insist(ctx)
		}
		wake := s.leave()
		if s.waiting() == 0 {
			return s.answers
		}
		alarm := time.NewTimer(wake)
		select {
		case r := <-s.results:
			a := s.asked[r.i]
			if a.done {
				break // it was left
			}
			a.done = true
			s.answers[r.i].Value, s.answers[r.i].Err = r.value, r.err
			if r.err != nil {
				break
			}
			if s.have++; s.have == q.Enough {
				s.enough = time.Now()
			}
			if settled != nil && settled(r.value) {
				s.dismiss(errSettled)
				return s.answers
			}
		case a := <-s.evidence:
			a.away = true
		case <-alarm.C:
		case <-ctx.Done():
			s.dismiss(ctx.Err())
			return s.answers
		}
		alarm.Stop()
	}
}

var errSettled = errors.New("not waited for: another store had the answer")

// survey is one run of Ask.
type survey[T any] struct {
	q        Question
	ask      func(ctx context.Context, p Provider, beat func()) (T, error)
	began    time.Time
	enough   time.Time // when as many as are enough had succeeded
	asked    []*asked
	answers  []Answer[T]
	have     int // successes
	results  chan result[T]
	evidence chan *asked
}

type result[T any] struct {
	i     int
	value T
	err   error
}

// asked is one provider that was asked.
type asked struct {
	began time.Time
	alive atomic.Int64 // the last sign of life, in nanoseconds since began
	brief bool         // it was away, and the others may be enough
	away  bool         // that was seen while it was asked
	done  bool         // it has answered, or was left
	end   context.CancelFunc
}

// start asks one provider.
func (s *survey[T]) start(all context.Context, i int, brief bool) {
	a := &asked{began: time.Now(), brief: brief}
	s.asked[i] = a
	p := s.q.Providers[i]
	c := circuitOf(p)
	ctx, end := context.WithCancel(all)
	if s.q.Within > 0 {
		ctx, end = context.WithTimeout(all, s.q.Within)
	}
	a.end = end
	if c != nil {
		evidence := c.next() // from now on
		go func() {
			for {
				select {
				case <-evidence:
				case <-ctx.Done():
					return
				}
				evidence = c.next()
				select {
				case s.evidence <- a:
				case <-ctx.Done():
					return
				}
			}
		}()
	}
	go func() {
		defer a.end()
		value, err := s.ask(ctx, p, func() { a.alive.Store(int64(time.Since(a.began))) })
		if err != nil && c != nil && all.Err() == nil && errors.Is(ctx.Err(), context.DeadlineExceeded) {
			c.left(a.began.Add(time.Duration(a.alive.Load())), err)
		}
		s.results <- result[T]{i, value, err}
	}()
}

// hoped is how many of those that have not answered may still be enough: those that were there when they were asked.
func (s *survey[T]) hoped() (n int) {
	for _, a := range s.asked {
		if a != nil && !a.done && !a.brief {
			n++
		}
	}
	return n
}

func (s *survey[T]) waiting() (n int) {
	for _, a := range s.asked {
		if a != nil && !a.done {
			n++
		}
	}
	return n
}

// insist asks, and waits for, those that are away.
func (s *survey[T]) insist(ctx context.Context) {
	for i, a := range s.asked {
		if a == nil {
			s.start(ctx, i, false)
		} else {
			a.brief = false
		}
	}
}

// leave gives up those that nobody needs and that cannot be hoped for, and says when to look again.
func (s *survey[T]) leave() (wake time.Duration) {
	wake = time.Hour
	if s.enough.IsZero() {
		return wake
	}
	took := s.enough.Sub(s.began)
	for i, a := range s.asked {
		c := circuitOf(s.q.Providers[i])
		if a == nil || a.done || c == nil {
			continue
		}
		patience, since := max(c.patient(), 10*took), a.began.Add(time.Duration(a.alive.Load()))
		if a.brief {
			patience, since = max(moment, took), s.enough
		}
		err := c.away()
		if err == nil || a.brief && !a.away {
			if left := time.Until(since.Add(patience)); left > 0 {
				wake = min(wake, left)
				continue
			}
			err = fmt.Errorf("%w: silent for %s while others answered", ErrAway, patience.Round(time.Millisecond))
			if !a.brief {
				c.left(since, err)
			}
		}
		s.answers[i].Err = err
		a.done = true
		a.end()
	}
	return wake
}

// dismiss stops waiting for all.
func (s *survey[T]) dismiss(err error) {
	for i, a := range s.asked {
		if a != nil && !a.done {
			s.answers[i].Err = err
			a.done = true
		}
	}
}
