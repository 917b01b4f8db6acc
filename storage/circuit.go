package storage

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"
)

// ErrAway says that a provider was not asked, or no longer waited for, because it has not answered lately. It is transient.
var ErrAway = errors.New("the object store does not answer at the moment")

// CircuitOptions says when a provider counts as away, and how it is found to be back.
type CircuitOptions struct {
	// After is how long nothing but failures, at least three, must have come from a provider. Default 1 s.
	After time.Duration
	// Patience is how much longer than the others a provider may be silent while nobody needs it. It doubles, up to
	// StallTimeout's default, each time that a provider which was left for its silence answers the very next probe.
	// Default 2 s.
	Patience time.Duration
	// ProbeAfter is the first pause before a provider that is away is asked whether it is back; each further one is twice
	// as long, up to ProbeAtMost. Defaults 1 s and 20 s.
	ProbeAfter, ProbeAtMost time.Duration
	// ProbeWithin is how long a probe may take. Default 10 s: with ProbeAtMost it is the longest that a provider which is
	// back is not used.
	ProbeWithin time.Duration
	// Logger is told when a provider goes and comes. Default: nothing is logged.
	Logger *slog.Logger
}

func (o *CircuitOptions) applyDefaults() {
	if o.After <= 0 {
		o.After = time.Second
	}
	if o.Patience <= 0 {
		o.Patience = 2 * time.Second
	}
	if o.ProbeAfter <= 0 {
		o.ProbeAfter = time.Second
	}
	if o.ProbeAtMost <= 0 {
		o.ProbeAtMost = 20 * time.Second
	}
	if o.ProbeWithin <= 0 {
		o.ProbeWithin = 10 * time.Second
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
}

const (
	// circuitFailures is how many failures in a row it takes: one answer that was lost is no outage.
	circuitFailures = 3
	// circuitPatience bounds CircuitOptions.Patience; it is what a call is given anyway.
	circuitPatience = 30 * time.Second
)

// circuit remembers whether a provider answers. It decides nothing: who asks several providers asks the others first
// (Away, Ask, Mirror), and who needs this one asks it as if there were no circuit.
//
// It is open while the provider is away. Any answer closes it, "not found" and "forbidden" included: what matters is
// that asking costs no wait. While it is open one probe at a time asks, however many operations there are.
type circuit struct {
	url     string
	options CircuitOptions
	probe   func(context.Context) error
	life    context.Context
	end     context.CancelFunc
	probes  sync.WaitGroup

	mu       sync.Mutex
	failures int           // in a row
	since    time.Time     // when the first of them began
	answered time.Time     // the last answer
	opened   time.Time     // zero while it is closed
	closed   chan struct{} // closed when the circuit is, to end its probes
	why      error         // the last failure
	silent   bool          // it was opened for silence alone, and no probe has failed yet
	patience time.Duration
	evidence chan struct{} // closed when the circuit opens, and at every failure while it is open
}

func newCircuit(url string, options CircuitOptions) *circuit {
	options.applyDefaults()
	life, end := context.WithCancel(context.Background())
	return &circuit{url: url, options: options, life: life, end: end, patience: options.Patience, evidence: make(chan struct{})}
}

// circuited is implemented by providers that have a circuit, or whose underlying provider has.
type circuited interface{ circuitOf() *circuit }

// circuitOf is the provider's circuit; nil when it has none.
func circuitOf(p Provider) *circuit {
	if c, ok := p.(circuited); ok {
		return c.circuitOf()
	}
	return nil
}

// Away says why a provider is not to be waited for at the moment: an error that wraps ErrAway and the last failure. It is
// nil for a provider that answers, or of which nothing is remembered (see WithCircuit).
func Away(p Provider) error {
	if c := circuitOf(p); c != nil {
		return c.away()
	}
	return nil
}

func (c *circuit) away() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.opened.IsZero() {
		return nil
	}
	return fmt.Errorf("%w (since %s UTC): %w", ErrAway, c.opened.UTC().Format(time.TimeOnly), plainCause(c.why))
}

// plainCause keeps a provider's timeout from being taken for the end of the caller's own context.
func plainCause(err error) error {
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return errors.New(err.Error())
	}
	return err
}

// isAnswer reports whether the provider itself has answered, be it with a refusal.
func isAnswer(err error) bool {
	return err == nil || !Retryable(err) || errors.Is(err, ErrIntegrity)
}

// noted takes in how something that was asked at began has ended.
func (c *circuit) noted(ctx context.Context, began time.Time, err error) {
	switch {
	case isAnswer(err):
		c.answer()
	case errors.Is(context.Cause(ctx), ErrStalled):
		c.left(began, err) // nothing came for longer than anybody waits
	case ctx.Err() != nil:
		// Who asked has left; that says nothing.
	default:
		c.failure(began, err)
	}
}

// answer closes the circuit.
func (c *circuit) answer() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.answered = time.Now()
	c.failures, c.since = 0, time.Time{}
	if c.opened.IsZero() {
		return
	}
	if c.silent { // leaving it was a mistake
		c.patience = min(2*c.patience, circuitPatience)
	}
	c.options.Logger.Info("a store answers again", "store", c.url, "after", time.Since(c.opened).Round(time.Millisecond))
	close(c.closed)
	c.opened, c.why, c.silent = time.Time{}, nil, false
}

// failure opens the circuit when there were enough in a row, for long enough.
func (c *circuit) failure(began time.Time, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.failures++
	if c.since.IsZero() {
		c.since = began
		if began.Before(c.answered) {
			c.since = c.answered
		}
	}
	if !c.opened.IsZero() {
		c.why, c.silent = err, false
		c.signal()
		return
	}
	if c.failures >= circuitFailures && time.Since(c.since) >= c.options.After {
		c.open(err)
	}
}

// left opens the circuit because nothing came in answer to a small question since began, while others answered.
func (c *circuit) left(began time.Time, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.opened.IsZero() && c.answered.Before(began) {
		c.silent = true
		c.open(err)
	}
}

// open is called with the lock held.
func (c *circuit) open(err error) {
	if c.life.Err() != nil {
		return
	}
	c.opened, c.why, c.closed = time.Now(), err, make(chan struct{})
	c.options.Logger.Warn("a store does not answer; what can be done without it is", "store", c.url, "error", err)
	c.signal()
	closed := c.closed
	c.probes.Go(func() { c.watch(closed) })
}

// signal is called with the lock held.
func (c *circuit) signal() {
	close(c.evidence)
	c.evidence = make(chan struct{})
}

// next is closed at the next sign that the provider is away.
func (c *circuit) next() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.evidence
}

// tell sends to gone at each sign that the provider is away, beginning with the closing of sign, until ctx ends. Signs
// that nobody has taken yet are one.
func (c *circuit) tell(ctx context.Context, sign <-chan struct{}, gone chan<- struct{}) {
	for {
		select {
		case <-sign:
		case <-ctx.Done():
			return
		}
		sign = c.next()
		select {
		case gone <- struct{}{}:
		default:
		}
	}
}

// awaited is a context for asking the provider something that others can be asked, too: it ends, with ErrAway as its
// cause, when the provider is found to be away meanwhile.
func (c *circuit) awaited(ctx context.Context) (context.Context, context.CancelFunc) {
	sign := c.next()
	ctx, cancel := context.WithCancelCause(ctx)
	go func() {
		select {
		case <-sign:
			cancel(ErrAway)
		case <-ctx.Done():
		}
	}()
	return ctx, func() { cancel(nil) }
}

// patient is how long the provider may be silent when nobody needs it.
func (c *circuit) patient() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.patience
}

// watch asks now and then whether the provider is back.
func (c *circuit) watch(closed <-chan struct{}) {
	for pause := c.options.ProbeAfter; ; pause = min(2*pause, c.options.ProbeAtMost) {
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-closed: // an operation that needed it had an answer
			timer.Stop()
			return
		case <-c.life.Done():
			timer.Stop()
			return
		}
		ctx, cancel := context.WithTimeout(c.life, c.options.ProbeWithin)
		ctx, end := c.awaited(ctx) // one request will do: the client below would repeat it for seconds
		err := c.probe(ctx)
		end()
		cancel()
		switch {
		case c.life.Err() != nil:
			return
		case isAnswer(err):
			c.answer()
			return
		}
		c.mu.Lock()
		if c.closed == closed && !c.opened.IsZero() {
			if !errors.Is(err, context.Canceled) { // else the request's own failure has been noted
				c.why = err
			}
			c.silent, c.patience = false, c.options.Patience
			c.signal()
		}
		c.mu.Unlock()
	}
}

// close ends the probes.
func (c *circuit) close() {
	c.mu.Lock()
	c.end() // under the lock, so that no circuit opens after it
	c.mu.Unlock()
	c.probes.Wait()
}
