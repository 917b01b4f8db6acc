package activities

import (
	"context"
	"errors"

	"github.com/prometheus/client_golang/prometheus"

	"holdfast/engine"
)

// Why an instance is paused, for the log and for metrics.
const (
	causeReplaced = "replaced" // a newer one is recorded
	causeAlone    = "alone"    // nothing was reached
)

// errNotAlone: the lease came back before an instance was paused for want of one.
var errNotAlone = errors.New("the node has its lease again")

// pause has the engine pause an instance, unless it is paused or the engine is at it.
func (g *Guard) pause(ctx context.Context, instance *guarded, cause string) {
	g.change(ctx, instance, true, cause)
}

// resume has the engine let an instance go on.
func (g *Guard) resume(ctx context.Context, instance *guarded) { g.change(ctx, instance, false, "") }

// change makes one change of an instance at a time, and waits for nothing: one that the engine hangs on keeps no other from
// being paused. What fails is tried again in the next look.
func (g *Guard) change(ctx context.Context, instance *guarded, paused bool, cause string) {
	g.mutex.Lock()
	defer g.mutex.Unlock()
	if instance.busy || instance.paused == paused {
		return
	}
	instance.busy = true
	g.calls.Go(func() {
		ctx, cancel := context.WithTimeout(ctx, engineWithin)
		defer cancel()
		err := g.ask(ctx, instance.id, paused, cause)
		g.mutex.Lock()
		defer g.mutex.Unlock()
		instance.busy = false
		if err == nil {
			g.is(instance, paused)
		}
		g.told(instance, paused, cause, err)
	})
}

// ask asks the engine, after the last look at the lease.
func (g *Guard) ask(ctx context.Context, id string, paused bool, cause string) error {
	err := g.Lease.Check()
	switch {
	case !paused && err != nil:
		return err // invariant 7: nothing is let go on without a lease
	case !paused:
		return g.Engine.Unpause(ctx, id)
	case cause == causeAlone && err == nil:
		return errNotAlone
	default:
		return g.Engine.Pause(ctx, id)
	}
}

// told logs and counts what came of a change. The mutex is held.
func (g *Guard) told(instance *guarded, paused bool, cause string, err error) {
	log := g.Logger.With("instance", instance.name, "workspace", instance.title)
	switch {
	case errors.Is(err, engine.ErrNotRunning), errors.Is(err, engine.ErrNotFound), errors.Is(err, ErrNoLease), errors.Is(err, errNotAlone):
	case err != nil && paused:
		g.Metrics.failed()
		log.Error("pausing an instance failed; it is tried again", "cause", cause, "error", err)
	case err != nil:
		g.Metrics.failed()
		log.Error("resuming an instance failed; it is tried again", "error", err)
	case paused:
		g.Metrics.paused(cause)
		log.Warn("instance paused", "cause", cause, "newest", instance.replaced)
	default:
		log.Info("instance resumed: no other has taken its place")
	}
}

// GuardMetrics counts what a Guard does. It is a Prometheus collector; nil counts nothing.
type GuardMetrics struct {
	now      prometheus.Gauge
	pauses   *prometheus.CounterVec // by cause
	failures prometheus.Counter
}

// NewGuardMetrics makes one with all counts at zero.
func NewGuardMetrics() *GuardMetrics {
	m := &GuardMetrics{
		now: prometheus.NewGauge(prometheus.GaugeOpts{Name: "holdfast_guard_paused", Help: "Instances on this node that are paused."}),
		pauses: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "holdfast_guard_pauses_total", Help: "Instances that were paused, by cause: replaced (another has taken its place), alone (the node reached nothing).",
		}, []string{"cause"}),
		failures: prometheus.NewCounter(prometheus.CounterOpts{Name: "holdfast_guard_failures_total", Help: "Pauses and resumptions that the engine failed."}),
	}
	for _, cause := range []string{causeReplaced, causeAlone} {
		m.pauses.WithLabelValues(cause)
	}
	return m
}

// Describe implements prometheus.Collector.
func (m *GuardMetrics) Describe(descriptions chan<- *prometheus.Desc) {
	prometheus.DescribeByCollect(m, descriptions)
}

// Collect implements prometheus.Collector.
func (m *GuardMetrics) Collect(metrics chan<- prometheus.Metric) {
	m.now.Collect(metrics)
	m.pauses.Collect(metrics)
	m.failures.Collect(metrics)
}

func (m *GuardMetrics) paused(cause string) {
	if m != nil {
		m.pauses.WithLabelValues(cause).Inc()
	}
}

func (m *GuardMetrics) failed() {
	if m != nil {
		m.failures.Inc()
	}
}

func (m *GuardMetrics) show(paused int) {
	if m != nil {
		m.now.Set(float64(paused))
	}
}
