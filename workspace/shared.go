package workspace

import (
	"fmt"
	"time"
)

// A workspace on a shared volume is exclusive: another node goes on with its very content, so that nothing may run on it any
// more where it ran (docs/decisions/0019-shared-volumes.md).

// NodeVolume is the shared volume that a node reaches.
type NodeVolume struct {
	// ID is the volume's; empty while it is not usable there, for the reason in Problem.
	ID      string `json:"id,omitempty"`
	Dir     string `json:"dir"` // where the node has it
	Problem string `json:"problem,omitempty"`
}

// HasVolume says whether the node reaches this shared volume; an empty id is any.
func (i NodeInfo) HasVolume(id string) bool {
	return i.Volume != nil && i.Volume.ID != "" && (id == "" || i.Volume.ID == id)
}

// OnVolume says whether the content survives its node.
func (s *State) OnVolume() bool {
	return s.Instance != nil && s.Instance.Volume != "" || s.Instance == nil && s.Kept != nil && s.Kept.Volume != ""
}

// Fence says whether nothing of what ran on a node can be at work any more.
type Fence struct {
	Fenced bool
	// Answers is set when the node is there: it is asked to stop what runs.
	Answers bool
	Until   time.Time // when to look again at the latest
	Why     string    // in words: what is waited for, and what a person can do
}

// FenceOf decides it: a person has said that the node is dead, or its guard process has paused everything by now. That so
// much time has passed is not enough: a node that is cut off works on.
//
// Another machine that has come to have the node's name, and has another key than the given one, says nothing about it.
func FenceOf(look LookAtNodeResult, node, key string, now time.Time) Fence {
	state := look.Node
	fenced, guarded := state.FencedAt()
	switch {
	case key != "" && state.Info.Recipient != "" && state.Info.Recipient != key && (state.Loss == nil || state.Loss.Dead == ""):
		return Fence{Until: now.Add(lookAgain), Why: fmt.Sprintf("nobody knows whether its instance still runs on the machine that was node %s: another one, at %s, has that name now; once you have made sure that the first is off, stop the agent of the other and say `holdfast node dead %s`", node, state.Info.Address, node)}
	case state.Phase == NodeReady:
		return Fence{Answers: true, Until: now.Add(lookAgain), Why: "node " + node + " is asked to stop what runs there"}
	case state.Loss != nil && state.Loss.Dead != "":
		return Fence{Fenced: true, Why: state.Loss.Dead + " said that node " + node + " is dead"}
	case !look.Known || state.Loss == nil:
		return Fence{Until: now.Add(lookAgain), Why: "node " + node + " is asked whether it is there"}
	case !guarded:
		return Fence{Until: now.Add(lookAgain), Why: fmt.Sprintf("nobody knows whether its instance still runs on node %s, which had no guard process when it was last heard of, and two at work on the same files would damage them; it goes on when the node returns, or once you have made sure that its machine is off and say `holdfast node dead %s`", node, node)}
	case now.Before(fenced):
		return Fence{Until: fenced, Why: fmt.Sprintf("at %s the guard process of node %s has surely paused its instance, if it still runs there; `holdfast node dead %s` says that its machine is off", fenced.UTC().Format("15:04:05 UTC"), node, node)}
	default:
		return Fence{Fenced: true, Why: "the guard process of node " + node + " has paused what ran there"}
	}
}

// HolderKey is the public key of the node which has the newest content.
func (s *State) HolderKey() string {
	switch {
	case s.Instance != nil:
		return s.Instance.Key
	case s.Kept != nil:
		return s.Kept.Key
	default:
		return ""
	}
}

// decideShared is DecideRecovery of a workspace whose content survives its node: there is nothing to wait for but that nothing
// works on it any more, and nothing that would be lost.
func decideShared(state State, look LookAtNodeResult, now time.Time) RecoveryDecision {
	loss := state.Loss
	fence := FenceOf(look, loss.Node, state.HolderKey(), now)
	switch {
	case fence.Answers && !loss.Replaced:
		return RecoveryDecision{Action: RecoveryStay, Why: "node " + loss.Node + " has returned"}
	case look.Node.Loss != nil && look.Node.Loss.Dead != "":
		return RecoveryDecision{Action: RecoveryMove, Why: fence.Why}
	case look.Brake.Held:
		return wait(loss, look.Brake.Until, now, "held: "+look.Brake.Why)
	case fence.Fenced || loss.Replaced:
		return RecoveryDecision{Action: RecoveryMove, Why: fence.Why}
	default:
		return wait(loss, fence.Until, now, fence.Why)
	}
}
