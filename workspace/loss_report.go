package workspace

import "time"

// Affected is what the loss of a node means, or meant, to one workspace.
type Affected struct {
	Name  string `json:"name"`
	Owner string `json:"owner,omitempty"`
	State Phase  `json:"state"`
	// Node is where it runs now, or where its content is; empty while that is being chosen, and when it is in the stores alone.
	Node   string    `json:"node,omitempty"`
	LostAt time.Time `json:"lost_at"` // when the loss was decided
	// Settled is set once it was gone on with, so that LostWorkSeconds is what that cost. Before that it is what going on without the
	// node would cost.
	Settled bool `json:"settled"`
	// LostWorkSeconds bounds the work that is lost: 0 is nothing. It is nil when there is no snapshot to go on from: everything
	// waits for the node.
	LostWorkSeconds *float64 `json:"lost_work_seconds,omitempty"`
	// Recovered is the snapshot of what the node still had when it was back; empty before that, and when that was in the snapshots already.
	Recovered string `json:"recovered,omitempty"`
	// Saving is set while the node has content that was gone on without, which is offered as a recovered snapshot when the node is back.
	Saving bool   `json:"saving,omitempty"`
	What   string `json:"what"` // what is being done, or was
}

// AffectedBy says what a workspace has to do with the loss of a node; nil when it has nothing to do with it, because it was not
// there, or because the node came back in time and it stayed. Of an earlier loss it knows until it is stopped or started again.
func AffectedBy(state State, node string) *Affected {
	affected := Affected{Name: state.Name, Owner: state.Owner, State: state.Phase}
	for _, left := range state.Left {
		affected.Saving = affected.Saving || left.Node == node
	}
	switch {
	case state.Instance != nil:
		affected.Node = state.Instance.Node
	case state.Kept != nil:
		affected.Node = state.Kept.Node
	}
	switch loss, recovery := state.Loss, state.Recovery; {
	case loss != nil && loss.Node == node:
		affected.LostAt, affected.What = loss.At, loss.What()
		if state.Reason != "" {
			affected.What = state.Reason
		}
		if state.OnVolume() && !loss.Gone {
			affected.LostWorkSeconds = new(float64)
		} else if state.Head != nil {
			work := LostWork(state, loss.At).Seconds()
			affected.LostWorkSeconds = &work
		}
	case recovery != nil && recovery.From == node:
		affected.Settled, affected.LostAt, affected.What = true, recovery.LostAt, recovery.Words()
		work := recovery.LostWork.Seconds()
		affected.LostWorkSeconds = &work
		for _, salvaged := range state.Salvaged {
			if salvaged.Node == node && salvaged.Saved.After(recovery.LostAt) {
				affected.Recovered = salvaged.Snapshot
			}
		}
	default:
		return nil
	}
	return &affected
}
