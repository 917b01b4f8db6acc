package workspace

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// The defaults and bounds of a drain.
const (
	// DrainParallel is how many workspaces are moved at once: enough that one large one holds up nobody, few enough that the
	// other nodes go on serving who works on them.
	DrainParallel     = 4
	MaxDrainParallel  = 64
	DrainDeadline     = time.Hour
	MaxDrainItems     = 50 // MaxDrainItems bounds each list of a drain that has more than names.
	drainAgainFirst   = 15 * time.Second
	drainAgainSlowest = 5 * time.Minute
)

// DrainRequest is how a node is to be drained.
type DrainRequest struct {
	// Parallel is how many workspaces are moved at once; 0 is DrainParallel.
	Parallel int `json:"parallel,omitempty"`
	// Deadline is after how long the drain says that it is late; 0 is never. Nothing is dropped then.
	Deadline time.Duration `json:"deadline,omitempty"`
	// Stop has what still runs there after the deadline stopped with a backup instead of moved.
	Stop bool `json:"stop,omitempty"`
}

// Validate checks a drain's settings.
func (r DrainRequest) Validate() error {
	switch {
	case r.Parallel < 0 || r.Parallel > MaxDrainParallel:
		return invalid("parallel", "%d: want 1 to %d", r.Parallel, MaxDrainParallel)
	case r.Deadline < 0:
		return invalid("deadline", "%s: want a time, or 0 for none", r.Deadline)
	case r.Stop && r.Deadline == 0:
		return invalid("deadline", "0: what is to be stopped at the deadline needs one")
	}
	return nil
}

// DrainPlan is a drain as it was ordered.
type DrainPlan struct {
	ID       string    `json:"id"`
	By       string    `json:"by"`
	Began    time.Time `json:"began"`
	Parallel int       `json:"parallel"`
	Deadline time.Time `json:"deadline,omitzero"`
	Stop     bool      `json:"stop,omitempty"`
}

// Late says whether the deadline has passed.
func (p DrainPlan) Late(now time.Time) bool { return !p.Deadline.IsZero() && !now.Before(p.Deadline) }

// OperationID names an operation that the drain asks a workspace for; each has another suffix.
func (p DrainPlan) OperationID(suffix string) string { return "drain-" + p.ID + "-" + suffix }

// asked says whether the drain asked for an operation, or it follows from one that it asked for.
func (p DrainPlan) asked(operation Operation) bool {
	return strings.HasPrefix(strings.TrimPrefix(operation.ID, "start-"), p.OperationID(""))
}

// OfDrain says whether some drain asked for the operation.
func (o Operation) OfDrain() bool { return strings.HasPrefix(o.ID, "drain-") }

// DrainEnd is how a drain ended.
type DrainEnd string

// The ends of a drain. One that is not ended goes on also when the node is empty: what turns up there late is moved too.
const (
	DrainCancelled DrainEnd = "cancelled" // a person ended it
	DrainNodeLost  DrainEnd = "node lost" // what was still there recovers
)

// NodeDrain is a drain and how far it is.
type NodeDrain struct {
	DrainPlan
	// Round is raised for each look; what an earlier one still does is over.
	Round uint64 `json:"round"`
	// Looked is when the newest look ended; Unheard why it may not have seen everything.
	Looked  time.Time `json:"looked,omitzero"`
	Unheard string    `json:"unheard,omitempty"`
	// On are the workspaces that still have something there, by name.
	On []string `json:"on,omitempty"`
	// Moving are those of them that are being moved or stopped by the drain, Waiting the others, with why, those in trouble
	// first. Left is what stays there and keeps nobody from taking the node away. Each has at most MaxDrainItems.
	Moving  []DrainItem `json:"moving,omitempty"`
	Waiting []DrainItem `json:"waiting,omitempty"`
	Left    []DrainItem `json:"left,omitempty"`
	// LeftCount is how many there are of Left.
	LeftCount int `json:"left_count,omitempty"`
	// Moved counts the workspaces that run elsewhere now, Stopped those that left and did not run anywhere when that was seen;
	// Departed are the newest of them.
	Moved    int              `json:"moved"`
	Stopped  int              `json:"stopped"`
	Departed []DrainDeparture `json:"departed,omitempty"`
	// Drained is since when nothing is there that anybody needs.
	Drained time.Time `json:"drained,omitzero"`
	// Overdue is when the deadline passed with something still there.
	Overdue time.Time `json:"overdue,omitzero"`

	Ended time.Time `json:"ended,omitzero"`
	End   DrainEnd  `json:"end,omitempty"`
	Why   string    `json:"why,omitempty"` // of the end, in words
}

// Active says whether the drain goes on.
func (d *NodeDrain) Active() bool { return d != nil && d.Ended.IsZero() }

// DrainItem is one workspace on a node that is drained.
type DrainItem struct {
	Name string `json:"name"`
	Why  string `json:"why"`
	// Mend is what a person can do, empty when it goes on by itself.
	Mend string `json:"mend,omitempty"`
	// Again is when it is tried again.
	Again time.Time `json:"again,omitzero"`
	// Only is set for content that stays and is in no store as far as is known.
	Only bool `json:"only,omitempty"`
}

// DrainDeparture is a workspace that has nothing on the node any more.
type DrainDeparture struct {
	Name string    `json:"name"`
	To   string    `json:"to,omitempty"` // empty: it does not run
	At   time.Time `json:"at"`
}

// DrainInput asks for one look at a node that is drained, with the moves that follow from it.
type DrainInput struct {
	Node  string    `json:"node"`
	Plan  DrainPlan `json:"plan"`
	Round uint64    `json:"round"`
	On    []string  `json:"on,omitempty"` // as the last look saw it
	// Report is how long the round goes on at least while something is being moved, before it tells what has changed. 0 is a
	// few seconds.
	Report time.Duration `json:"report,omitempty"`
}

// DrainResult is what a look saw in its end; the lists are as in NodeDrain.
type DrainResult struct {
	On        []string         `json:"on,omitempty"`
	Moving    []DrainItem      `json:"moving,omitempty"`
	Waiting   []DrainItem      `json:"waiting,omitempty"`
	Left      []DrainItem      `json:"left,omitempty"`
	LeftCount int              `json:"left_count,omitempty"`
	Departed  []DrainDeparture `json:"departed,omitempty"`
	Unheard   string           `json:"unheard,omitempty"`
}

// DrainVerdict is what a drain does about a workspace.
type DrainVerdict string

// The verdicts.
const (
	DrainGone  DrainVerdict = "gone"  // it has nothing there any more
	DrainMove  DrainVerdict = "move"  // it is asked to move now
	DrainStop  DrainVerdict = "stop"  // it is asked to stop now
	DrainUnder DrainVerdict = "under" // what the drain asked for is under way
	DrainWait  DrainVerdict = "wait"  // something else comes first
	DrainLeft  DrainVerdict = "left"  // what it has there stays, and nobody needs it to run
)

// DrainStep is a verdict with its reason.
type DrainStep struct {
	Verdict DrainVerdict
	DrainItem
	To string // where it runs, for DrainGone
}

// DecideDrain says what a drain does about a workspace. placed says whether the catalog still places something of it there.
//
// It goes by nothing that a drain remembers: what was tried, and when it is tried again, is read from what the workspace
// says of itself, so that a worker that dies in the middle forgets nothing.
func DecideDrain(state State, node string, placed bool, plan DrainPlan, now time.Time) DrainStep {
	step := func(verdict DrainVerdict, why, mend string) DrainStep {
		return DrainStep{Verdict: verdict, DrainItem: DrainItem{Name: state.Name, Why: why, Mend: mend}}
	}
	for _, operation := range underWay(state) {
		if plan.asked(operation) {
			words := "it is to be moved"
			if operation.Step != "" {
				words = string(operation.Step)
			}
			return step(DrainUnder, words, "")
		}
	}
	busy, isBusy := state.BusyWith()
	switch {
	case state.Instance != nil && state.Instance.Node == node:
		return decideDrainOfInstance(state, plan, now, step)
	case state.Kept != nil && state.Kept.Node == node:
		mend := "`holdfast why " + state.Name + "` says what keeps it there"
		if !state.Kept.Held {
			mend = "" // it is released by itself
		}
		if state.Block != nil {
			mend = state.Block.Mend
		}
		return step(DrainWait, "its newest content is kept there: "+state.Kept.Why, mend)
	}
	for _, left := range state.Left {
		if left.Node == node && left.Handed {
			return step(DrainWait, fmt.Sprintf("what is left there of instance %d, whose files another node has, is being stopped", left.Token), "")
		}
		if left.Node == node && left.Unsaved() {
			if left.Back {
				return step(DrainWait, fmt.Sprintf("what instance %d still had there is being saved", left.Token), "")
			}
			return step(DrainWait, fmt.Sprintf("instance %d there is not saved: %s", left.Token, left.Why), "start the node's agent again: it is saved then")
		}
	}
	switch {
	case placed && isBusy:
		return step(DrainWait, fmt.Sprintf("its %s goes first (%s)", busy.Kind, busy.Step), "")
	case placed:
		return decideDrainOfRemains(state, node, step)
	case state.Instance != nil && !isBusy:
		gone := step(DrainGone, "", "")
		gone.To = state.Instance.Node
		return gone
	default:
		return step(DrainGone, "", "")
	}
}

// decideDrainOfInstance is DecideDrain of what runs there.
func decideDrainOfInstance(state State, plan DrainPlan, now time.Time, step func(DrainVerdict, string, string) DrainStep) DrainStep {
	busy, isBusy := state.BusyWith()
	switch {
	case isBusy:
		return step(DrainWait, fmt.Sprintf("its %s goes first (%s)", busy.Kind, busy.Step), "")
	case state.Loss != nil || state.Look != nil:
		return step(DrainWait, "whether it still runs there is being found out", "")
	case state.Phase != Running:
		why, mend := "it is "+string(state.Phase), "`holdfast why "+state.Name+"` says what it waits for"
		if state.Block != nil {
			why, mend = why+": "+state.Block.Message, state.Block.Mend
		}
		return step(DrainWait, why, mend)
	}
	if by, is := startedSince(state, plan); is {
		return step(DrainWait, fmt.Sprintf("a person's %s brought it there after the drain had begun (at %s); it is left to them", by.Kind, by.Began.UTC().Format("15:04:05 MST")),
			"`holdfast move "+state.Name+"` moves it")
	}
	verdict, why := DrainMove, "it is to be moved"
	if plan.Stop && plan.Late(now) {
		verdict, why = DrainStop, "it is to be stopped"
	}
	for _, tried := range slices.Backward(state.Recent) {
		if !plan.asked(tried) {
			continue
		}
		if !tried.Failed {
			break
		}
		if verdict == DrainStop && tried.Kind == OperationMove {
			break // what is asked for now is something else
		}
		// Longer and longer, without counting: half as long as it has been tried for.
		again := tried.Ended.Add(min(max(tried.Ended.Sub(plan.Began)/2, drainAgainFirst), drainAgainSlowest))
		waits := step(DrainWait, tried.Error, drainMend(state.Name, tried.ErrorType))
		if now.Before(again) {
			waits.Again = again
		} else {
			waits.Verdict = verdict
		}
		return waits
	}
	return step(verdict, why, "")
}

// decideDrainOfRemains is DecideDrain of what a workspace has there without needing it.
func decideDrainOfRemains(state State, node string, step func(DrainVerdict, string, string) DrainStep) DrainStep {
	for _, left := range state.Left {
		if left.Node != node {
			continue
		}
		remains := step(DrainLeft, left.Why, "")
		remains.Only = left.Snapshot == ""
		return remains
	}
	if slices.ContainsFunc(state.Placed, func(p Placed) bool { return p.Node == node }) {
		return step(DrainWait, "it has nothing there that it knows of, but is still placed there", "`holdfast why "+state.Name+"`")
	}
	why := "the catalog places it there, and it knows nothing of that"
	if state.Phase == Deleted {
		why = "it was deleted, and something of it is still placed there"
	}
	remains := step(DrainLeft, why, "")
	remains.Only = true
	return remains
}

// startedSince is the person's command that brought an instance to its node after the drain had begun. A person may do
// that by naming the node; the drain does not undo it.
func startedSince(state State, plan DrainPlan) (Operation, bool) {
	began := state.Instance.Began
	if !began.After(plan.Began) {
		return Operation{}, false
	}
	for _, operation := range state.Recent {
		switch operation.Kind {
		case OperationStart, OperationRestore, OperationMove:
		default:
			continue
		}
		if operation.Began.After(began) || operation.Ended.Before(began) {
			continue
		}
		return operation, operation.Began.After(plan.Began) && !operation.OfDrain() && !strings.HasPrefix(operation.ID, "start-drain-")
	}
	return Operation{}, false
}

// drainMend is what a person can do about a workspace that was not moved.
func drainMend(name string, kind ErrorType) string {
	switch kind {
	case ErrorNoNode, ErrorNodeFull, ErrorNodeReplaced, ErrorNodeUnguarded, ErrorVolumeMissing, ErrorDiskFull:
		return "make room: `holdfast node list` shows the nodes, `holdfast node uncordon NODE` gives one back, `holdfast worker --node NAME` on a machine makes another"
	case ErrorNotStored, ErrorStoreDenied, ErrorStoreFull, ErrorStoreMissing:
		return "bring the stores back: `holdfast doctor` names what is wrong with them"
	case ErrorOmissions:
		return "`holdfast stop " + name + "` names what cannot be read; with --accept-omissions it is stopped without that"
	case ErrorHookFailed:
		return "`holdfast stop " + name + " --skip-hooks` stops it without its hook"
	default:
		return "`holdfast why " + name + "`"
	}
}

// underWay are the operation under way and those that wait for it.
func underWay(state State) []Operation {
	operations := state.Waiting
	if state.Operation != nil {
		operations = append([]Operation{*state.Operation}, operations...)
	}
	return operations
}

// BusyWith is what the workspace does, or will do next, that a drain waits for: everything but what it does by itself
// beside a running instance.
func (s State) BusyWith() (Operation, bool) {
	for _, operation := range underWay(s) {
		if operation.Kind != OperationSnapshot && operation.Kind != OperationRetain && operation.Kind != OperationSalvage {
			return operation, true
		}
	}
	return Operation{}, false
}
