package workspace

import (
	"fmt"
	"time"
)

// Admit says whether a start of an agent may have a node now: nil, or why not, in words for whoever runs it. A node's name belongs
// to one data directory at a time: two agents that took each other's lease away would do one operation at a time each, together two
// (invariant 6), and what one has would look lost to the workspaces whenever the other is asked (invariant 5).
//
// Another start on the same directory is let in at once: the directory's lock says that the one before is dead. One with the node's key
// and another lock is the same machine after a restart, or a copy of it: it waits until the one before has missed its beats. One with
// another key is another machine, or one whose disk was wiped: it waits until the loss of the one before is decided.
func Admit(state NodeState, info NodeInfo) error {
	holder := state.Info
	if holder.Incarnation == "" || holder.Incarnation == info.Incarnation {
		return nil
	}
	known := holder.Recipient == info.Recipient
	if known && (holder.Lock == info.Lock || holder.Lock == "" || info.Lock == "") {
		return nil // an agent of before the lock was told is taken for the same
	}
	switch state.Phase {
	case NodeLost:
		if known || state.Loss != nil || state.LossDue.IsZero() {
			return nil
		}
		return fmt.Errorf("the agent at %s had this node and was stopped; until %s it may be started again there: this one has another data directory, and waits; "+
			"`holdfast node dead %s` says that the other does not come back", holder.Address, state.LossDue.UTC().Format(time.RFC3339), holder.Name)
	case NodeSuspect:
		if known {
			return nil
		}
		return fmt.Errorf("the agent at %s has this node and has missed its beats; this one has another data directory, and waits until the node is lost", holder.Address)
	default:
		return fmt.Errorf("the agent at %s has this node: two agents cannot have one name; give this one another with --node, or stop the other", holder.Address)
	}
}
