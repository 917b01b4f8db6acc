package workspace

import (
	"fmt"
	"time"
)

// Brake says whether the workspaces of lost nodes are held where they are (DESIGN section 7).
type Brake struct {
	Held bool `json:"held"`
	// Until is when it lets go by itself; zero while it waits for a node to return or for a person's word.
	Until time.Time `json:"until,omitzero"`
	Why   string    `json:"why,omitempty"`
}

const (
	// brakeWindow: losses within it belong together.
	brakeWindow = time.Minute
	// brakeHold is for how long leases have to have been offered again.
	brakeHold = time.Minute
	// stormNodes and stormPercent: at least so many nodes, and more than that part of the fleet, is no coincidence.
	stormNodes   = 3
	stormPercent = 30
)

// LateBy is how late a lease's time-out may come; beyond it the control plane itself was away, and the silence of
// its nodes says nothing about them.
const LateBy = 3 * time.Second

// DecideBrake says whether the workspaces of a lost node have to wait, from what is known of all nodes, the lost one
// among them. Until there are clusters of nodes, the fleet is the one cluster.
//
// It holds them in three cases. The control plane was away: every node looked dead. A storm, at least 3 nodes and more
// than 30 % within a minute. All nodes within a minute, when there is more than one: of two nodes the loss of one is a
// loss, the loss of both is an outage of what they share. Each ends when leases have been offered again for a minute,
// counted from the last loss or the first return of the outage, because nodes come back one after the other. While all
// are gone there is nowhere to move to, and it waits for a node or a person.
func DecideBrake(lost NodeState, all []NodeState, now time.Time) Brake {
	loss := lost.Loss
	if loss == nil || loss.Dead != "" || loss.Proceed != "" {
		return Brake{}
	}
	for _, node := range all {
		if until := node.AwayAt.Add(brakeHold); !node.AwayAt.IsZero() && now.Before(until) {
			return Brake{Held: true, Until: until, Why: "the control plane was away, which looks like the loss of every node"}
		}
	}
	var gone, known, back int
	latest := loss.At
	for _, node := range all {
		when, still := goneAt(node)
		if node.Info.Incarnation == "" || still && when.Before(loss.At.Add(-brakeWindow)) {
			continue // it never was one, or was gone long before: it was no part of what this happened to
		}
		known++
		if when.IsZero() || when.Sub(loss.At).Abs() > brakeWindow {
			continue
		}
		gone++
		if when.After(latest) {
			latest = when
		}
		if !still {
			back++
			if node.ReturnedAt.After(latest) {
				latest = node.ReturnedAt
			}
		}
	}
	everything := gone >= 2 && gone == known
	storm := gone >= stormNodes && gone*100 > known*stormPercent
	switch {
	case !everything && !storm:
		return Brake{}
	case everything && back == 0:
		return Brake{Held: true, Why: fmt.Sprintf("all %d nodes were lost within a minute: it is what they share that failed", gone)}
	}
	until := latest.Add(brakeHold)
	if !now.Before(until) {
		return Brake{}
	}
	return Brake{Held: true, Until: until, Why: fmt.Sprintf("%d of %d nodes were lost within a minute: it may be what they share that failed", gone, known)}
}

// goneAt is when a node was last lost, and whether it still is. One whose lease has timed out and was offered again
// counts: it may be the second of many.
func goneAt(node NodeState) (when time.Time, still bool) {
	switch {
	case node.Loss != nil:
		return node.Loss.At, true
	case node.Phase == NodeSuspect:
		return node.Since, true
	default:
		return node.LostAt, false
	}
}
