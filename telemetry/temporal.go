package telemetry

import (
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.temporal.io/sdk/client"
)

// Temporal takes the metrics of Temporal's SDK and gives them to Prometheus, with the names that Temporal's own
// dashboards use: counters end in _total, timers are histograms in _seconds. It is a client.MetricsHandler and a
// prometheus.Collector.
//
// The SDK uses one name with different sets of labels, which a CounterVec refuses and an unchecked collector may export.
type Temporal struct {
	tags   map[string]string
	series *series
}

// series are all that were ever used, of all handlers made from one.
type series struct {
	mu  sync.Mutex
	all map[string]prometheus.Metric
}

// latencies are the upper bounds of the timers' buckets, in seconds: from a poll's answer to a backup's hours.
var latencies = []float64{0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800, 7200}

// NewTemporal makes a handler for client.Options.MetricsHandler.
func NewTemporal() *Temporal { return &Temporal{series: &series{all: map[string]prometheus.Metric{}}} }

// WithTags implements client.MetricsHandler.
func (t *Temporal) WithTags(tags map[string]string) client.MetricsHandler {
	all := maps.Clone(t.tags)
	if all == nil {
		all = map[string]string{}
	}
	maps.Copy(all, tags)
	return &Temporal{tags: all, series: t.series}
}

// Counter implements client.MetricsHandler.
func (t *Temporal) Counter(name string) client.MetricsCounter {
	c := find(t, name+"_total", func(name string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help, ConstLabels: t.tags})
	})
	return counterFunc(func(n int64) { c.Add(float64(n)) })
}

// Gauge implements client.MetricsHandler.
func (t *Temporal) Gauge(name string) client.MetricsGauge {
	g := find(t, name, func(name string) prometheus.Gauge {
		return prometheus.NewGauge(prometheus.GaugeOpts{Name: name, Help: help, ConstLabels: t.tags})
	})
	return gaugeFunc(g.Set)
}

// Timer implements client.MetricsHandler.
func (t *Temporal) Timer(name string) client.MetricsTimer {
	h := find(t, name+"_seconds", func(name string) prometheus.Histogram {
		return prometheus.NewHistogram(prometheus.HistogramOpts{Name: name, Help: help, ConstLabels: t.tags, Buckets: latencies})
	})
	return timerFunc(func(d time.Duration) { h.Observe(d.Seconds()) })
}

const help = "See Temporal's reference of SDK metrics."

type (
	counterFunc func(int64)
	gaugeFunc   func(float64)
	timerFunc   func(time.Duration)
)

func (f counterFunc) Inc(n int64)          { f(n) }
func (f gaugeFunc) Update(v float64)       { f(v) }
func (f timerFunc) Record(d time.Duration) { f(d) }

// find gives the metric of a name and the handler's tags, and makes it at its first use.
func find[M prometheus.Metric](t *Temporal, name string, create func(name string) M) M {
	var id strings.Builder
	id.WriteString(name)
	for _, tag := range slices.Sorted(maps.Keys(t.tags)) {
		id.WriteString("\x00" + tag + "\x00" + t.tags[tag])
	}
	t.series.mu.Lock()
	defer t.series.mu.Unlock()
	if known, ok := t.series.all[id.String()].(M); ok {
		return known
	}
	made := create(name)
	t.series.all[id.String()] = made
	return made
}

// Describe implements prometheus.Collector: what there will be is not known before.
func (t *Temporal) Describe(chan<- *prometheus.Desc) {}

// Collect implements prometheus.Collector.
func (t *Temporal) Collect(metrics chan<- prometheus.Metric) {
	t.series.mu.Lock()
	all := slices.Collect(maps.Values(t.series.all))
	t.series.mu.Unlock()
	for _, metric := range all {
		metrics <- metric
	}
}
