package storage

import (
	"context"
	"errors"
	"io"
	"time"
)

// WithCircuit gives a provider a memory of whether it answers, which all that use the returned provider share, also
// through Sub: a Mirror and a catalog whose policy can be met without it neither ask it first nor wait for it while it is
// away. Open gives every provider one. Closing the returned provider ends the probes and closes p.
func WithCircuit(p Provider, options CircuitOptions) Provider {
	c := newCircuit(p.URL(), options)
	return watch(p, c, true)
}

// watch makes the provider that has circuit c. With calls the circuit learns from the outcome of whole calls; without,
// somebody below tells it of each request.
func watch(p Provider, c *circuit, calls bool) *watched {
	c.url = p.URL()
	c.probe = func(ctx context.Context) error {
		// Any object will do. That it is not there is an answer, and needs no right that a backup does not need anyway.
		_, err := p.Stat(ctx, probeKey)
		return err
	}
	return &watched{provider: p, circuit: c, calls: calls, traffic: newTraffic()}
}

// probeKey is an object that nobody stores.
const probeKey = "catalog/is-anybody-there"

// watched is a provider with a circuit, and with counts of what went through it.
type watched struct {
	provider Provider
	circuit  *circuit
	calls    bool
	traffic  *traffic
}

func (w *watched) circuitOf() *circuit { return w.circuit }
func (w *watched) trafficOf() *traffic { return w.traffic }

// ended takes in how a call ended.
func (w *watched) ended(ctx context.Context, operation string, began time.Time, err error) {
	if w.calls {
		w.circuit.noted(ctx, began, err)
	}
	w.traffic.count(operation, err, ctx.Err() != nil)
}

func (w *watched) URL() string { return w.provider.URL() }

func (w *watched) Put(ctx context.Context, key string, data []byte, options PutOptions) (Object, error) {
	began := time.Now()
	object, err := w.provider.Put(ctx, key, data, options)
	w.ended(ctx, "put", began, err)
	if err == nil {
		w.traffic.written.Add(int64(len(data)))
	}
	return object, err
}

func (w *watched) Get(ctx context.Context, key string, offset, length int64) (io.ReadCloser, error) {
	began := time.Now()
	body, err := w.provider.Get(ctx, key, offset, length)
	w.ended(ctx, "get", began, err)
	if err != nil {
		return nil, err
	}
	return &countedBody{ReadCloser: body, traffic: w.traffic}, nil
}

func (w *watched) Stat(ctx context.Context, key string) (Object, error) {
	began := time.Now()
	object, err := w.provider.Stat(ctx, key)
	w.ended(ctx, "stat", began, err)
	return object, err
}

func (w *watched) List(ctx context.Context, prefix string, each func(Object) error) error {
	began := time.Now()
	var refused error // what the caller says of an object is no news of the provider
	err := w.provider.List(ctx, prefix, func(object Object) error {
		refused = each(object)
		return refused
	})
	if refused != nil && errors.Is(err, refused) {
		w.ended(ctx, "list", began, nil)
		return err
	}
	w.ended(ctx, "list", began, err)
	return err
}

func (w *watched) Delete(ctx context.Context, key string) error {
	began := time.Now()
	err := w.provider.Delete(ctx, key)
	w.ended(ctx, "delete", began, err)
	return err
}

func (w *watched) Close() error {
	w.circuit.close()
	return w.provider.Close()
}

// countedBody counts the bytes that are read.
type countedBody struct {
	io.ReadCloser
	traffic *traffic
}

func (b *countedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	b.traffic.read.Add(int64(n))
	return n, err
}
