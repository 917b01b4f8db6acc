package workspace

import (
	"fmt"
	"time"
)

// What a person is told while a node is lost, and after it was gone on without.

// doingAfterLoss says what is being done about a loss while no operation is under way; empty when there is none.
func doingAfterLoss(state State, now time.Time) string {
	loss := state.Loss
	if loss == nil || state.Phase != Recovering {
		return ""
	}
	text := fmt.Sprintf("Nothing runs that can be reached: node %s is lost since %s. ", loss.Node, loss.At.UTC().Format("15:04:05 UTC"))
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
	return fmt.Sprintf(" Node %s is lost since %s: it goes on when the node returns.", state.Loss.Node, state.Loss.At.UTC().Format("15:04:05 UTC"))
}

// safeAfterLoss says what a loss costs, or cost.
func safeAfterLoss(state State) []string {
	var lines []string
	if loss := state.Loss; loss != nil && !loss.Replaced {
		text := fmt.Sprintf("Node %s is lost: what only it has comes back with its disk.", loss.Node)
		if state.Head != nil {
			text += fmt.Sprintf(" Going on without it would lose at most the last %s of work before %s.", workSpan(LostWork(state, loss.At)), loss.At.UTC().Format("15:04:05 UTC"))
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
		return
	}
	if !loss.Replaced && state.Head != nil {
		add(command("start", "--accept-version "+state.Head.Snapshot), "goes on elsewhere now, without what only node "+loss.Node+" has")
	}
	add("holdfast node list", "shows which nodes answer")
	add(command("stop", ""), "leaves it stopped instead of starting it elsewhere")
}
