package storage

import (
	"maps"
	"sync"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
)

var (
	descOperations = prometheus.NewDesc("holdfast_store_operations_total",
		"Calls on an object store, by outcome: ok, refused (not found, forbidden, full …), failed (transient), left (who asked did not wait).",
		[]string{"store", "operation", "outcome"}, nil)
	descBytes = prometheus.NewDesc("holdfast_store_bytes_total",
		"Bytes of objects stored in and read from an object store.", []string{"store", "direction"}, nil)
	descFallbacks = prometheus.NewDesc("holdfast_store_fallbacks_total",
		"Reads that went on to another store.", []string{"store"}, nil)
	descBehind = prometheus.NewDesc("holdfast_store_behind_total",
		"Operations that the policy's other stores completed and that this one owes something of.", []string{"store"}, nil)
	descAway = prometheus.NewDesc("holdfast_store_away",
		"1 while an object store does not answer, and is asked only by operations that need it.", []string{"store"}, nil)
)

// traffic counts what goes through a provider.
type traffic struct {
	written, read     atomic.Int64 // bytes
	fallbacks, behind atomic.Int64

	mu    sync.Mutex
	calls map[call]int64
}

type call struct{ operation, outcome string }

func newTraffic() *traffic { return &traffic{calls: map[call]int64{}} }

// trafficOf is the count of a provider, or of the one underneath; nil when there is none.
func trafficOf(p Provider) *traffic {
	if t, ok := p.(interface{ trafficOf() *traffic }); ok {
		return t.trafficOf()
	}
	return nil
}

func (t *traffic) count(operation string, err error, left bool) {
	outcome := "ok"
	switch {
	case err == nil:
	case left:
		outcome = "left"
	case Retryable(err):
		outcome = "failed"
	default:
		outcome = "refused"
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.calls[call{operation, outcome}]++
}

// Metrics makes a Prometheus collector of what went through providers that Open or WithCircuit made, and whether they
// answer. Others are passed over.
func Metrics(providers ...Provider) prometheus.Collector { return collector(providers) }

type collector []Provider

// Describe implements prometheus.Collector.
func (c collector) Describe(descs chan<- *prometheus.Desc) {
	for _, desc := range []*prometheus.Desc{descOperations, descBytes, descFallbacks, descBehind, descAway} {
		descs <- desc
	}
}

// Collect implements prometheus.Collector.
func (c collector) Collect(metrics chan<- prometheus.Metric) {
	for _, p := range c {
		t := trafficOf(p)
		if t == nil {
			continue
		}
		counter := func(desc *prometheus.Desc, value int64, labels ...string) {
			metrics <- prometheus.MustNewConstMetric(desc, prometheus.CounterValue, float64(value), append([]string{p.URL()}, labels...)...)
		}
		t.mu.Lock()
		calls := maps.Clone(t.calls)
		t.mu.Unlock()
		for call, count := range calls {
			counter(descOperations, count, call.operation, call.outcome)
		}
		counter(descBytes, t.written.Load(), "written")
		counter(descBytes, t.read.Load(), "read")
		counter(descFallbacks, t.fallbacks.Load())
		counter(descBehind, t.behind.Load())
		away := 0.0
		if Away(p) != nil {
			away = 1
		}
		metrics <- prometheus.MustNewConstMetric(descAway, prometheus.GaugeValue, away, p.URL())
	}
}
