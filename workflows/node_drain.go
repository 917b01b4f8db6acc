package workflows

import (
	"time"

	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/workflow"

	"holdfast/workspace"
)

// A drain moves what is on a node elsewhere (docs/decisions/0015-drain.md). The node's workflow only says that it goes on,
// and keeps what was seen last: looking, and asking the workspaces to move, is done in rounds by an activity that remembers
// nothing, each with a number by which an older one knows that it is over.

const (
	// drainRound bounds one round, which ends by itself much earlier.
	drainRound = 10 * time.Minute
	// drainSettles is the shortest pause between two rounds, also before the second look that must find the node empty.
	drainSettles = time.Second
	// drainPause is the first pause after a round in which nothing changed. It doubles.
	drainPause = 5 * time.Second
	// drainSlowest is the longest: what a person who has mended something is willing to wait.
	drainSlowest = 5 * time.Minute
	// drainSparing is how long a round goes on at least once the history is long: it can continue as new only when the lease
	// ends (leaseLength), and a round is a dozen events and the names of all that is there. In leaseLength that makes 720
	// rounds, a sixth of the events that the server allows.
	drainSparing = 2 * time.Minute
)

// beginDrain cordons the node and begins a drain, or changes the settings of the one that goes on.
func (n *lessor) beginDrain(ctx workflow.Context, by string, request *workspace.DrainRequest) {
	if request == nil {
		request = &workspace.DrainRequest{}
	}
	now := workflow.Now(ctx)
	if n.state.Cordoned == "" {
		n.state.Cordoned = by // first: what is placed there while it is emptied would have to be moved again
	}
	drain := n.state.Drain
	if !drain.Active() {
		drain = &workspace.NodeDrain{DrainPlan: workspace.DrainPlan{ID: workflow.GetCurrentUpdateInfo(ctx).ID, By: by, Began: now}}
		n.state.Drain = drain
	}
	drain.Parallel, drain.Stop, drain.Deadline, drain.Overdue = request.Parallel, request.Stop, time.Time{}, time.Time{}
	if drain.Parallel == 0 {
		drain.Parallel = workspace.DrainParallel
	}
	if request.Deadline > 0 {
		drain.Deadline = now.Add(request.Deadline)
	}
	n.describeNow(ctx)
}

// endDrain ends a drain that goes on. What is being moved then is moved to its end.
func (n *lessor) endDrain(ctx workflow.Context, end workspace.DrainEnd, why string) {
	if drain := n.state.Drain; drain.Active() {
		drain.Ended, drain.End, drain.Why = workflow.Now(ctx), end, why
		n.describeNow(ctx)
	}
}

// drainable says whether a round can do anything: a node that is just away is waited for.
func (n *lessor) drainable() bool {
	return n.state.Drain.Active() && n.state.Phase == workspace.NodeReady
}

// drains drains the node, beside everything else, whenever that is ordered.
func (n *lessor) drains(ctx workflow.Context) {
	workflow.Go(ctx, func(ctx workflow.Context) {
		still := 0 // rounds in a row in which nothing changed
		for {
			if workflow.Await(ctx, n.drainable) != nil {
				return
			}
			orders := n.orders
			over := func() bool { return !n.drainable() || n.orders != orders }
			if n.drainOnce(ctx, over) {
				still = 0
			} else {
				still++
			}
			if ctx.Err() != nil {
				return
			}
			if over() {
				still = 0
				continue
			}
			n.overdue(ctx)
			if _, err := workflow.AwaitWithOptions(ctx, workflow.AwaitOptions{
				Timeout: n.nextRound(ctx, still), TimerOptions: workflow.TimerOptions{Summary: "the next look at what is still on the node"},
			}, over); err != nil {
				return
			}
			n.overdue(ctx)
		}
	})
}

// drainOnce has one round made and notes what it saw. It says whether anything was different from before.
func (n *lessor) drainOnce(ctx workflow.Context, over func() bool) (changed bool) {
	drain := n.state.Drain
	drain.Round++
	round, cancel := workflow.WithCancel(ctx)
	defer cancel()
	input := workspace.DrainInput{Node: n.state.Info.Name, Plan: drain.DrainPlan, Round: drain.Round, On: drain.On}
	if workflow.GetInfo(ctx).GetContinueAsNewSuggested() {
		input.Report = drainSparing
	}
	future := workflow.ExecuteActivity(draining(round, "move what is on the node elsewhere"), workspace.ActivityDrainNode, input)
	if err := workflow.Await(ctx, func() bool { return future.IsReady() || over() }); err != nil || !future.IsReady() {
		return false
	}
	var result workspace.DrainResult
	if err := future.Get(ctx, &result); err != nil {
		if temporal.IsCanceledError(err) {
			return false
		}
		_, words := describe(err)
		workflow.GetLogger(ctx).Error("looking at a node that is drained", "error", err)
		drain.Unheard = words // nothing of it is permanent: it is looked at again
		return false
	}
	changed = n.drained(ctx, result)
	n.describeNow(ctx)
	return changed
}

// drained takes over what a round saw.
func (n *lessor) drained(ctx workflow.Context, result workspace.DrainResult) (changed bool) {
	drain, now := n.state.Drain, workflow.Now(ctx)
	empty := len(result.On) == 0 && result.Unheard == ""
	// A single look may have been between a placement's choice and its record.
	twice := empty && len(drain.On) == 0 && drain.Unheard == "" && !drain.Looked.IsZero()
	changed = len(result.On) != len(drain.On) || len(result.Departed) > 0 || len(result.Moving) > 0 || empty && !twice
	drain.Looked, drain.Unheard = now, result.Unheard
	drain.On, drain.Moving, drain.Waiting, drain.Left, drain.LeftCount = result.On, result.Moving, result.Waiting, result.Left, result.LeftCount
	for _, departure := range result.Departed {
		if departure.To != "" {
			drain.Moved++
		} else {
			drain.Stopped++
		}
	}
	drain.Departed = append(append([]workspace.DrainDeparture(nil), drain.Departed...), result.Departed...)
	if extra := len(drain.Departed) - workspace.MaxDrainItems; extra > 0 {
		drain.Departed = drain.Departed[extra:]
	}
	switch {
	case !empty && len(drain.On) > 0:
		drain.Drained = time.Time{} // something came late
	case twice && drain.Drained.IsZero():
		drain.Drained = now
		changed = true
	}
	return changed
}

// overdue says that the deadline has passed. It is all that a deadline does by itself: what is still there stays until it
// has been moved, or stopped when that was asked for.
func (n *lessor) overdue(ctx workflow.Context) {
	drain := n.state.Drain
	if !drain.Active() || !drain.Overdue.IsZero() || !drain.Drained.IsZero() || !drain.Late(workflow.Now(ctx)) {
		return
	}
	drain.Overdue = workflow.Now(ctx)
	workflow.GetLogger(ctx).Error("a drain is later than its deadline; it goes on, and nothing is dropped", "still there", len(drain.On), "stop", drain.Stop)
	n.describeNow(ctx)
}

// nextRound is how long to wait for the next round: hardly at all while something is being moved, and longer and longer while
// nothing changes, but not longer than until something is due.
func (n *lessor) nextRound(ctx workflow.Context, still int) time.Duration {
	drain, now := n.state.Drain, workflow.Now(ctx)
	switch {
	case !drain.Drained.IsZero():
		return slowest
	case len(drain.Moving) > 0 || still == 0:
		return drainSettles
	}
	pause := min(drainPause<<min(still-1, 10), drainSlowest)
	due := func(at time.Time) {
		if !at.IsZero() && at.After(now) {
			pause = min(pause, at.Sub(now))
		}
	}
	due(drain.Deadline)
	for _, item := range drain.Waiting {
		due(item.Again)
	}
	return max(pause, drainSettles)
}

// draining is for a round. It beats, so that a control worker that dies is noticed, and another goes on.
func draining(ctx workflow.Context, summary string) workflow.Context {
	ctx = control(ctx, summary)
	ctx = workflow.WithStartToCloseTimeout(ctx, drainRound)
	return workflow.WithHeartbeatTimeout(ctx, nodeHeartbeat)
}
