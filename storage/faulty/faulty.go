// Package faulty wraps a storage.Provider and fails as it is told to, for tests of everything that stores: errors, hangs,
// truncated reads, wrong bytes, lies. What it does depends only on the rules and on the order of calls, never on
// chance.
package faulty

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"syscall"
	"time"

	"holdfast/storage"
)

// Op is a method of storage.Provider.
type Op string

// The operations. Any in a rule matches each of them.
const (
	Any    Op = ""
	Put    Op = "put"
	Get    Op = "get"
	Stat   Op = "stat"
	List   Op = "list" // the key that a rule matches is the prefix
	Delete Op = "delete"
)

// Kind is what goes wrong.
type Kind int

const (
	// Error fails before anything is done, with the rule's Err (ErrInjected when nil).
	Error Kind = iota
	// Hang does nothing until the context ends, then returns its error.
	Hang
	// Truncate ends early without saying so: a Get gives half of the bytes and io.EOF, a List half of the objects, a Put
	// stores half and reports success.
	Truncate
	// WrongBytes changes one bit in the middle of what is read or stored, and reports success.
	WrongBytes
	// WrongLength gives one byte too many: a Get's body, the size that Stat and List report, what a Put stores.
	WrongLength
	// NotStored reports success of a Put or Delete that has done nothing.
	NotStored
	// LostAnswer does it, and then returns the rule's Err.
	LostAnswer
	// Reset fails half-way with ECONNRESET: a Get after half of the bytes, a List after half of the objects, anything
	// else before it is done.
	Reset
	// Late does it once the rule's Until is closed, whatever has become of the caller by then: what was on its way when its
	// sender was cut off, or stood still. Meanwhile the call waits.
	Late
	// Slow does it, after the rule's Delay; a Get's body then comes in pieces of slowPiece bytes, each after another Delay.
	Slow

	kinds // how many there are
)

// Kinds are all that there are, so that a test can say of each what it does.
func Kinds() []Kind {
	all := make([]Kind, kinds)
	for i := range all {
		all[i] = Kind(i)
	}
	return all
}

// ErrInjected is the error of a rule that names none. It is transient.
var ErrInjected = errors.New("injected fault")

// Rule is one scripted fault. The first rule in the order of Inject that matches a call and is not used up decides it.
type Rule struct {
	Op    Op
	Match func(key string) bool // nil matches every key
	Kind  Kind
	Times int   // how many matching calls fail, 0 means all
	Skip  int   // how many matching calls go well before that
	Err   error // for Error and LostAnswer
	// Until lets a Late call go on, and Began, when it is set, is called as it begins to wait.
	Until <-chan struct{}
	Began func()
	// Delay is how long a matching call takes before any of that: a store that throttles lets wait, and then refuses.
	Delay time.Duration
}

// Provider is a provider with faults.
type Provider struct {
	inner storage.Provider

	mu    sync.Mutex
	rules []*active
	calls map[Op]int
	fired int
}

type active struct {
	Rule
	matched int
}

// New wraps p. Without rules it behaves as p does.
func New(p storage.Provider) *Provider { return &Provider{inner: p, calls: map[Op]int{}} }

// Inject adds a rule.
func (f *Provider) Inject(rule Rule) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.rules = append(f.rules, &active{Rule: rule})
}

// Clear removes all rules. The counts stay.
func (f *Provider) Clear() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.rules = nil
}

// Calls is the number of calls of an operation so far, those that failed included; Any counts all.
func (f *Provider) Calls(op Op) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	if op != Any {
		return f.calls[op]
	}
	sum := 0
	for _, n := range f.calls {
		sum += n
	}
	return sum
}

// Fired is the number of calls that a rule has spoilt.
func (f *Provider) Fired() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.fired
}

// fault counts a call and says what goes wrong with it.
func (f *Provider) fault(op Op, key string) *Rule {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls[op]++
	for _, rule := range f.rules {
		if (rule.Op != Any && rule.Op != op) || (rule.Match != nil && !rule.Match(key)) {
			continue
		}
		rule.matched++
		if rule.matched <= rule.Skip || (rule.Times > 0 && rule.matched > rule.Skip+rule.Times) {
			continue
		}
		f.fired++
		found := rule.Rule
		return &found
	}
	return nil
}

// slowPiece is how much a slow body gives at once.
const slowPiece = 4 << 10

func pause(ctx context.Context, delay time.Duration) error {
	if delay <= 0 {
		return nil
	}
	timer := time.NewTimer(delay)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// early is what a fault does to a call before anything is done; nil means that the call is made.
func (r *Rule) early(ctx context.Context, op Op, key string) error {
	if r == nil {
		return nil
	}
	if err := pause(ctx, r.Delay); err != nil {
		return fmt.Errorf("%s %s: %w", op, key, err)
	}
	switch r.Kind {
	case Error:
		return fmt.Errorf("%s %s: %w", op, key, r.err())
	case Late:
		if r.Began != nil {
			r.Began()
		}
		<-r.Until
	case Hang:
		<-ctx.Done()
		return fmt.Errorf("%s %s: %w", op, key, ctx.Err())
	case Reset:
		if op != Get && op != List {
			return fmt.Errorf("%s %s: %w", op, key, syscall.ECONNRESET)
		}
	}
	return nil
}

// late is what a fault does to the answer of a call that went well.
func (r *Rule) late(op Op, key string) error {
	if r != nil && r.Kind == LostAnswer {
		return fmt.Errorf("%s %s: the answer was lost: %w", op, key, r.err())
	}
	return nil
}

func (r *Rule) err() error {
	if r.Err != nil {
		return r.Err
	}
	return ErrInjected
}

func (r *Rule) is(kind Kind) bool { return r != nil && r.Kind == kind }

// URL is the wrapped provider's.
func (f *Provider) URL() string { return f.inner.URL() }

// Put stores, or does what the rules say.
func (f *Provider) Put(ctx context.Context, key string, data []byte, options storage.PutOptions) (storage.Object, error) {
	rule := f.fault(Put, key)
	if err := rule.early(ctx, Put, key); err != nil {
		return storage.Object{}, err
	}
	if rule.is(Late) {
		ctx = context.WithoutCancel(ctx)
	}
	if rule.is(NotStored) {
		return told(key, data), nil
	}
	stored, lied := rule.spoil(data)
	object, err := f.inner.Put(ctx, key, stored, options)
	if err != nil {
		return object, err
	}
	if lied {
		return told(key, data), nil
	}
	return object, rule.late(Put, key)
}

// told is what a provider that lies says of an object.
func told(key string, data []byte) storage.Object {
	return storage.Object{Key: key, Size: int64(len(data)), CRC32C: storage.Checksum(data), HasCRC32C: true}
}

// spoil gives what a fault makes of content; false when it leaves it alone.
func (r *Rule) spoil(data []byte) ([]byte, bool) {
	switch {
	case r.is(Truncate):
		return data[:len(data)/2], true
	case r.is(WrongLength):
		return append(append([]byte{}, data...), 'x'), true
	case r.is(WrongBytes):
		spoilt := append([]byte{}, data...)
		if len(spoilt) == 0 {
			return []byte{'x'}, true
		}
		spoilt[len(spoilt)/2] ^= 0x10
		return spoilt, true
	}
	return data, false
}

// Stat describes an object, or does what the rules say.
func (f *Provider) Stat(ctx context.Context, key string) (storage.Object, error) {
	rule := f.fault(Stat, key)
	if err := rule.early(ctx, Stat, key); err != nil {
		return storage.Object{}, err
	}
	object, err := f.inner.Stat(ctx, key)
	if err != nil {
		return object, err
	}
	return rule.describe(object), rule.late(Stat, key)
}

func (r *Rule) describe(object storage.Object) storage.Object {
	switch {
	case r.is(WrongLength):
		object.Size++
	case r.is(Truncate):
		object.Size /= 2
	case r.is(WrongBytes):
		object.CRC32C ^= 1
	}
	return object
}

// List lists, or does what the rules say.
func (f *Provider) List(ctx context.Context, prefix string, each func(storage.Object) error) error {
	rule := f.fault(List, prefix)
	if err := rule.early(ctx, List, prefix); err != nil {
		return err
	}
	if !rule.is(Truncate) && !rule.is(Reset) {
		err := f.inner.List(ctx, prefix, func(object storage.Object) error { return each(rule.describe(object)) })
		if err != nil {
			return err
		}
		return rule.late(List, prefix)
	}
	var objects []storage.Object
	if err := f.inner.List(ctx, prefix, func(object storage.Object) error { objects = append(objects, object); return nil }); err != nil {
		return err
	}
	for _, object := range objects[:len(objects)/2] {
		if err := each(object); err != nil {
			return err
		}
	}
	if rule.is(Reset) {
		return fmt.Errorf("list %s: %w", prefix, syscall.ECONNRESET)
	}
	return nil
}

// Delete deletes, or does what the rules say.
func (f *Provider) Delete(ctx context.Context, key string) error {
	rule := f.fault(Delete, key)
	if err := rule.early(ctx, Delete, key); err != nil {
		return err
	}
	if rule.is(NotStored) {
		return nil
	}
	if err := f.inner.Delete(ctx, key); err != nil {
		return err
	}
	return rule.late(Delete, key)
}

// Close closes the wrapped provider.
func (f *Provider) Close() error { return f.inner.Close() }

// Get opens an object, or does what the rules say.
func (f *Provider) Get(ctx context.Context, key string, offset, length int64) (io.ReadCloser, error) {
	rule := f.fault(Get, key)
	if err := rule.early(ctx, Get, key); err != nil {
		return nil, err
	}
	body, err := f.inner.Get(ctx, key, offset, length)
	if err != nil || rule == nil {
		return body, err
	}
	data, err := io.ReadAll(body)
	if err := errors.Join(err, body.Close()); err != nil {
		return nil, err
	}
	if rule.is(Reset) {
		return &spoiltBody{ctx: ctx, data: data[:len(data)/2], end: fmt.Errorf("get %s: %w", key, syscall.ECONNRESET)}, nil
	}
	if err := rule.late(Get, key); err != nil {
		return nil, err
	}
	spoilt, _ := rule.spoil(data)
	body = &spoiltBody{ctx: ctx, data: spoilt, end: io.EOF}
	if rule.is(Slow) {
		body.(*spoiltBody).delay = rule.Delay
	}
	return body, nil
}

type spoiltBody struct {
	ctx   context.Context
	data  []byte
	end   error
	delay time.Duration // before each piece
}

func (b *spoiltBody) Read(p []byte) (int, error) {
	if err := b.ctx.Err(); err != nil {
		return 0, err
	}
	if len(b.data) == 0 {
		return 0, b.end
	}
	if b.delay > 0 {
		if err := pause(b.ctx, b.delay); err != nil {
			return 0, err
		}
		p = p[:min(len(p), slowPiece)]
	}
	n := copy(p, b.data)
	b.data = b.data[n:]
	return n, nil
}

func (b *spoiltBody) Close() error { return nil }
