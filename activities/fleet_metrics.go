package activities

import (
	"context"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"holdfast/workspace"
)

// fleetEvery is how often a control worker that is scraped looks at all nodes: an alert may be so much late, and a look costs a
// question to each node's workflow.
const fleetEvery = 30 * time.Second

// FleetMetrics show what no agent can: how the nodes are, as their workflows say. It is a Prometheus collector. Each control
// worker shows the same.
type FleetMetrics struct {
	nodes  *prometheus.GaugeVec // by phase
	late   *prometheus.GaugeVec // by node
	there  *prometheus.GaugeVec // by node
	failed prometheus.Gauge
}

// NewFleetMetrics makes one that shows nothing yet.
func NewFleetMetrics() *FleetMetrics {
	m := &FleetMetrics{
		nodes:  prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "holdfast_nodes", Help: "Nodes, by phase."}, []string{"phase"}),
		late:   prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "holdfast_drain_late", Help: "1 while a node's drain is past its deadline and the node is not drained."}, []string{"node"}),
		there:  prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "holdfast_drain_workspaces", Help: "Workspaces that are still on a node which is being drained."}, []string{"node"}),
		failed: prometheus.NewGauge(prometheus.GaugeOpts{Name: "holdfast_fleet_look_failed", Help: "1 while not all nodes could be looked at: the other numbers of nodes are older, or lack some."}),
	}
	for _, phase := range []workspace.NodePhase{workspace.NodeOffered, workspace.NodeReady, workspace.NodeSuspect, workspace.NodeLost} {
		m.nodes.WithLabelValues(string(phase))
	}
	return m
}

// Describe implements prometheus.Collector.
func (m *FleetMetrics) Describe(descriptions chan<- *prometheus.Desc) {
	prometheus.DescribeByCollect(m, descriptions)
}

// Collect implements prometheus.Collector.
func (m *FleetMetrics) Collect(metrics chan<- prometheus.Metric) {
	m.nodes.Collect(metrics)
	m.late.Collect(metrics)
	m.there.Collect(metrics)
	m.failed.Collect(metrics)
}

// show takes over what was seen. A node that is gone, and one that is not drained any more, is shown no longer as late.
func (m *FleetMetrics) show(states []workspace.NodeState, now time.Time) {
	phases := map[workspace.NodePhase]int{}
	m.late.Reset()
	m.there.Reset()
	for i := range states {
		state := &states[i]
		phases[state.Phase]++
		late, there := 0.0, 0.0
		if drain := state.Drain; drain.Active() {
			there = float64(len(drain.On))
			if drain.Drained.IsZero() && drain.Late(now) {
				late = 1
			}
		}
		m.late.WithLabelValues(state.Info.Name).Set(late)
		m.there.WithLabelValues(state.Info.Name).Set(there)
	}
	for _, phase := range []workspace.NodePhase{workspace.NodeOffered, workspace.NodeReady, workspace.NodeSuspect, workspace.NodeLost} {
		m.nodes.WithLabelValues(string(phase)).Set(float64(phases[phase]))
	}
}

// WatchFleet looks at all nodes now and then, for the metrics, until the context ends.
func (c *Control) WatchFleet(ctx context.Context, m *FleetMetrics) {
	ticker := time.NewTicker(fleetEvery)
	defer ticker.Stop()
	for {
		c.watchFleetOnce(ctx, m)
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return
		}
	}
}

func (c *Control) watchFleetOnce(ctx context.Context, m *FleetMetrics) {
	all, err := c.fleet.look(ctx, c, time.Now().Add(-fleetFor))
	switch {
	case ctx.Err() != nil:
		return
	case err != nil:
		c.Logger.Warn("looking at all nodes, for the metrics", "error", err)
	default:
		m.show(all.states, time.Now())
	}
	if err != nil || len(all.unheard) > 0 {
		m.failed.Set(1)
	} else {
		m.failed.Set(0)
	}
}
