package activities

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"

	"holdfast/storage"
	"holdfast/workspace"
)

// A drain that is past its deadline is seen as long as it is, with how many are left; neither one that is in time nor one that is
// done is, and nothing stays of a node that is gone.
func TestLateDrainsAreSeen(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	drain := func(deadline time.Time, on ...string) *workspace.NodeDrain {
		return &workspace.NodeDrain{DrainPlan: workspace.DrainPlan{ID: "x", By: "ada", Deadline: deadline}, On: on}
	}
	node := func(name string, drain *workspace.NodeDrain) workspace.NodeState {
		return workspace.NodeState{Info: workspace.NodeInfo{Name: name}, Phase: workspace.NodeReady, Drain: drain}
	}
	ended, done := drain(now, "a"), drain(now)
	ended.Ended, done.Drained = now, now
	m := NewFleetMetrics()
	m.show([]workspace.NodeState{
		node("late", drain(now, "a", "b")), node("in-time", drain(now.Add(time.Second), "a")), node("none", nil), node("ended", ended),
		node("done", done), node("no-deadline", drain(time.Time{}, "a")), node("unheard", drain(now.Add(-time.Hour))),
	}, now)
	for name, want := range map[string][2]float64{
		"late": {1, 2}, "in-time": {0, 1}, "none": {0, 0}, "ended": {0, 0}, "done": {0, 0}, "no-deadline": {0, 1}, "unheard": {1, 0},
	} {
		require.Equal(t, want[0], testutil.ToFloat64(m.late.WithLabelValues(name)), name)
		require.Equal(t, want[1], testutil.ToFloat64(m.there.WithLabelValues(name)), name)
	}
	require.Equal(t, 7.0, testutil.ToFloat64(m.nodes.WithLabelValues("Ready")))
	require.Zero(t, testutil.ToFloat64(m.nodes.WithLabelValues("Lost")))

	m.show([]workspace.NodeState{{Info: workspace.NodeInfo{Name: "none"}, Phase: workspace.NodeLost}}, now)
	require.Equal(t, 1, testutil.CollectAndCount(m, "holdfast_drain_late"))
	require.Zero(t, testutil.ToFloat64(m.nodes.WithLabelValues("Ready")))
	require.Equal(t, 1.0, testutil.ToFloat64(m.nodes.WithLabelValues("Lost")))
}

// What could not be seen is said, and takes nothing away that was.
func TestFleetThatCannotBeSeen(t *testing.T) {
	r := newRig(t, storage.PolicyAny)
	f := r.fleet(map[string]workspace.NodePhase{"node-1": workspace.NodeReady, "node-2": workspace.NodeReady})
	m := NewFleetMetrics()
	look := func() {
		r.control.fleet.taken = time.Time{}
		r.control.watchFleetOnce(t.Context(), m)
	}
	look()
	require.Zero(t, testutil.ToFloat64(m.failed))
	require.Equal(t, 2, testutil.CollectAndCount(m, "holdfast_drain_late"))
	f.states[workspace.NodeWorkflowID("node-2")] = errors.New("no worker answers")
	look()
	require.Equal(t, 1.0, testutil.ToFloat64(m.failed))
	f.listed = errors.New("visibility is away")
	look()
	require.Equal(t, 1.0, testutil.ToFloat64(m.failed))
	require.Equal(t, 1, testutil.CollectAndCount(m, "holdfast_drain_late"), "as it was seen last")
	require.True(t, strings.Contains(r.logs.String(), "visibility is away"))
}
