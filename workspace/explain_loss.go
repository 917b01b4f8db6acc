package workspace

import (
	"fmt"
	"time"
)

// What a person is told while a node is lost, and after it was gone on without.

// doingAfterLoss says what is being done about a loss while no operation is under way; empty when there is none.
func doingAfterLoss(state State, now time.Time) string {
	loss := state.Loss
	if look := state.Looked(); look != nil && loss == nil && state.Phase == Recovering {
		text := sentence("It does not run: node " + look.Node + " was started again, and its instance has ended")
		if look.Why != "" {
			text += " " + sentence("Starting it again there failed: "+look.Why)
		}
		if look.Next.After(now) {
			text += fmt.Sprintf(" It is tried again in %s.", duration(look.Next.Sub(now)))
		}
		return text
	}
	if loss == nil || state.Phase != Recovering {
		return ""
	}
	text := fmt.Sprintf("Nothing runs that can be reached: %s since %s. ", loss.What(), loss.At.UTC().Format("15:04:05 UTC"))
	if loss.Waiting != "" {
		text += sentence("It waits: " + loss.Waiting)
	}
	if loss.NextLook.After(now) {
		text += fmt.Sprintf(" It is looked at again in %s.", duration(loss.NextLook.Sub(now)))
	}
	return text
}

// lossNote is said beside an operation that waits for a lost node.
func lossNote(state State) string {
	if state.Loss == nil || state.Loss.Replaced {
		return ""
	}
	if state.OnVolume() {
		return fmt.Sprintf(" Node %s is lost since %s: it goes on when the node returns, or on another that has the volume, once nothing can be at work on the files any more.", state.Loss.Node, state.Loss.At.UTC().Format("15:04:05 UTC"))
	}
	return fmt.Sprintf(" Node %s is lost since %s: it goes on when the node returns.", state.Loss.Node, state.Loss.At.UTC().Format("15:04:05 UTC"))
}

// lookNote is said beside what is done while it is not known whether the instance runs.
func lookNote(state State) string {
	look := state.Looked()
	if look == nil || state.Phase != Running || state.Operation != nil && state.Operation.Kind == OperationFind {
		return ""
	}
	text := fmt.Sprintf(" The agent of node %s was started again: whether the instance still runs is not known yet", look.Node)
	if look.Why != "" {
		text += ", because looking for it failed: " + look.Why
	}
	return sentence(text)
}

// safeAfterLoss says what a loss costs, or cost.
func safeAfterLoss(state State) []string {
	var lines []string
	if loss := state.Loss; loss != nil && !loss.Replaced && state.OnVolume() && !loss.Gone {
		lines = append(lines, fmt.Sprintf("Node %s is lost, and the files are not: they are on a shared volume, and another node goes on with them as they are.", loss.Node))
	} else if loss != nil && !loss.Replaced {
		text := fmt.Sprintf("Node %s is lost: what only it has comes back with its disk.", loss.Node)
		if state.Head != nil {
			text += fmt.Sprintf(" Going on without it would lose at most the last %s of work before %s.", WorkSpan(LostWork(state, loss.At)), loss.At.UTC().Format("15:04:05 UTC"))
		}
		if !loss.Gone && state.Instance != nil {
			text += fmt.Sprintf(" If it is only cut off, the instance may go on there: node %s pauses it once it sees that another has taken its place, or when it has reached nothing for a while.", loss.Node)
		}
		lines = append(lines, text)
	}
	if recovery := state.Recovery; recovery != nil {
		lines = append(lines, sentence("After "+recovery.Words()))
	}
	return lines
}

// recoveringActions are what a person can do while a lost node is waited for.
func recoveringActions(state State, command func(verb, more string) string, add func(command, does string)) {
	loss := state.Loss
	if loss == nil {
		add("holdfast node list", "shows which nodes answer")
		add(command("stop", ""), "backs up what is on the node, instead of starting it again")
		return
	}
	if !loss.Replaced && state.OnVolume() {
		add("holdfast node dead "+loss.Node, "is your word that its machine is off, or cut off from the volume: another node goes on with the same files at once")
	}
	if !loss.Replaced && state.Head != nil {
		add(command("start", "--accept-version "+state.Head.Snapshot), "goes on elsewhere now, without what only node "+loss.Node+" has")
	}
	add("holdfast node list", "shows which nodes answer")
	add(command("stop", ""), "leaves it stopped instead of starting it elsewhere")
}
