package workspace

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

var lossTime = time.Date(2026, 1, 25, 12, 0, 0, 0, time.UTC)

func nodeNamed(name string, phase NodePhase) NodeState {
	return NodeState{Info: NodeInfo{Name: name, Incarnation: "i"}, Phase: phase, Since: lossTime.Add(-time.Hour)}
}

// lostAt is a node that was lost so long after the loss that is asked about.
func lostAt(name string, after time.Duration) NodeState {
	node := nodeNamed(name, NodeLost)
	node.Since = lossTime.Add(after)
	node.Loss, node.LostAt = &NodeLoss{At: node.Since}, node.Since
	return node
}

func backAt(name string, lost, back time.Duration) NodeState {
	node := nodeNamed(name, NodeReady)
	node.LostAt, node.ReturnedAt, node.Since = lossTime.Add(lost), lossTime.Add(back), lossTime.Add(back)
	return node
}

func ready(names ...string) []NodeState {
	var nodes []NodeState
	for _, name := range names {
		nodes = append(nodes, nodeNamed(name, NodeReady))
	}
	return nodes
}

func TestDecideBrake(t *testing.T) {
	lost := lostAt("a", 0)
	away := lostAt("a", 0)
	away.AwayAt = lossTime.Add(-15 * time.Second)
	otherAway := nodeNamed("b", NodeReady)
	otherAway.AwayAt = lossTime
	dead := lostAt("a", 0)
	dead.Loss.Dead, dead.AwayAt = "ada", lossTime
	proceed := lostAt("a", 0)
	proceed.Loss.Proceed = "ada"
	suspect := nodeNamed("b", NodeSuspect)
	suspect.Since = lossTime.Add(2 * time.Second)
	never := NodeState{Info: NodeInfo{Name: "z"}, Phase: NodeLost}

	for name, test := range map[string]struct {
		lost  NodeState
		all   []NodeState
		after time.Duration
		held  bool
		until time.Duration // 0: until a person or a node
	}{
		"one of two":                                  {lost: lost, all: append(ready("b"), lost)},
		"one of three":                                {lost: lost, all: append(ready("b", "c"), lost)},
		"the only one":                                {lost: lost, all: []NodeState{lost}},
		"the only one that was there":                 {lost: lost, all: []NodeState{lost, lostAt("b", -time.Hour), never}},
		"both of two":                                 {lost: lost, all: []NodeState{lost, lostAt("b", 3*time.Second)}, held: true},
		"both of two, long after":                     {lost: lost, all: []NodeState{lost, lostAt("b", 3*time.Second)}, after: time.Hour, held: true},
		"both of two, and one is back":                {lost: lost, all: []NodeState{lost, backAt("b", 3*time.Second, time.Hour)}, after: time.Hour + time.Second, held: true, until: time.Hour + time.Minute},
		"both of two, and one is back for a minute":   {lost: lost, all: []NodeState{lost, backAt("b", 3*time.Second, time.Hour)}, after: time.Hour + time.Minute},
		"of two, the other was lost long before":      {lost: lost, all: []NodeState{lost, backAt("b", -time.Hour, -30*time.Minute)}},
		"of two, the other is suspect":                {lost: lost, all: []NodeState{lost, suspect}, held: true},
		"both of two, one that never was registered":  {lost: lost, all: []NodeState{lost, lostAt("b", time.Second), never}, held: true},
		"two of three":                                {lost: lost, all: append(ready("c"), lost, lostAt("b", time.Second))},
		"three of ten is not more than 30 %":          {lost: lost, all: append(ready("d", "e", "f", "g", "h", "i", "j"), lost, lostAt("b", 0), lostAt("c", 0))},
		"three of nine":                               {lost: lost, all: append(ready("d", "e", "f", "g", "h", "i"), lost, lostAt("b", 0), lostAt("c", 30*time.Second)), after: time.Minute, held: true, until: 90 * time.Second},
		"three of nine, a minute after the last":      {lost: lost, all: append(ready("d", "e", "f", "g", "h", "i"), lost, lostAt("b", 0), lostAt("c", 30*time.Second)), after: 90 * time.Second},
		"three of nine, over more than a minute":      {lost: lost, all: append(ready("d", "e", "f", "g", "h", "i"), lost, lostAt("b", -61*time.Second), lostAt("c", 61*time.Second)), after: time.Second},
		"the control plane was away":                  {lost: away, all: append(ready("b", "c"), away), held: true, until: 45 * time.Second},
		"the control plane was away for another node": {lost: lost, all: []NodeState{lost, otherAway}, held: true, until: time.Minute},
		"the control plane was away a minute ago":     {lost: away, all: append(ready("b", "c"), away), after: 45 * time.Second},
		"a person says that it is dead":               {lost: dead, all: []NodeState{dead, lostAt("b", 0), lostAt("c", 0)}},
		"a person says proceed":                       {lost: proceed, all: []NodeState{proceed, lostAt("b", 0), lostAt("c", 0)}},
		"not lost":                                    {lost: nodeNamed("a", NodeReady), all: append(ready("a"), lostAt("b", 0), lostAt("c", 0))},
	} {
		t.Run(name, func(t *testing.T) {
			brake := DecideBrake(test.lost, test.all, lossTime.Add(test.after))
			require.Equal(t, test.held, brake.Held, "%+v", brake)
			if !test.held {
				return
			}
			require.NotEmpty(t, brake.Why)
			if test.until == 0 {
				require.Zero(t, brake.Until)
				return
			}
			require.Equal(t, lossTime.Add(test.until), brake.Until)
		})
	}
}
