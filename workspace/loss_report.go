package workspace

import "time"

// Affected is what the loss of a node means, or meant, to one workspace.
type Affected struct {
	Name  string `json:"name"`
	Owner string `json:"owner,omitempty"`
	State Phase  `json:"state"`
	// Node is where it runs now, or where its content is; empty while that is being chosen, and when it is in the stores alone.
	Node   string    `json:"node,omitempty"`
	LostAt time.Time `json:"lost_at,omitzero"` // when the loss was decided; zero when it is not known any more
	// Settled is set once nothing waits for the node any more, so that LostWorkSeconds is what that cost. Before that it is what going on
	// without the node would cost, or does once that was begun.
	Settled bool `json:"settled"`
	// LostWorkSeconds bounds the work that is lost: 0 is nothing. It is nil when there is no snapshot to go on from, so that everything
	// waits for the node; and of what is Settled when it was stopped or started again since, so that it is not known any more.
	LostWorkSeconds *float64 `json:"lost_work_seconds,omitempty"`
	// Recovered is the snapshot of what the node still had when it was back; empty before that, and when that was in the snapshots already.
	Recovered string `json:"recovered,omitempty"`
	// Saving is set while the node has content that was gone on without, which is offered as a recovered snapshot when the node is back.
	Saving bool   `json:"saving,omitempty"`
	What   string `json:"what"` // what is being done, or was
}

// AffectedBy says what a workspace has to do with the loss of a node; nil when it has nothing to do with it, because it was not
// there, or because the node came back in time and it stayed. What a loss cost it knows until it is stopped or started again, and that the
// node still has something of it until that is saved.
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
		if loss.Replaced && recovery != nil && recovery.From == node {
			// What is there now is another instance, or none: what it costs was worked out before.
			work := recovery.LostWork.Seconds()
			affected.LostWorkSeconds = &work
		} else if state.OnVolume() && !loss.Gone {
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
	case affected.Saving:
		affected.Settled, affected.What = true, "it went on without what node "+node+" has, and was stopped or started again since"
	default:
		return nil
	}
	return &affected
}
