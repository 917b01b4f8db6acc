package workflows

import (
	"time"

	enumspb "go.temporal.io/api/enums/v1"
	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/workflow"

	"holdfast/workspace"
)

// What follows from the end of a lease: whether the node or the control plane was away, when a loss is decided, and who
// is told.

// timedOut notes when a node whose lease ended was last heard of, and whether the time-out came so late that it says
// nothing about the node: a control plane that stood still finds every lease overdue when it goes on.
func (n *lessor) timedOut(ctx workflow.Context, timeout *temporal.TimeoutError) {
	n.state.Heard = workflow.Now(ctx)
	if timeout == nil || timeout.TimeoutType() != enumspb.TIMEOUT_TYPE_HEARTBEAT {
		n.guarded(workflow.Now(ctx), false, 0) // what its last beats said is not known
		return
	}
	if !timeout.HasLastHeartbeatDetails() { // it took it and never beat: what was said before is still the last word
		n.state.Guard.Beaten = workflow.Now(ctx)
		return
	}
	var beat workspace.LeaseBeat
	if timeout.LastHeartbeatDetails(&beat) != nil || beat.Sent.IsZero() {
		n.guarded(workflow.Now(ctx), false, 0)
		return
	}
	n.state.Heard = beat.Sent
	// By this side's clock: the server gives up so long after it had the last beat.
	n.guarded(workflow.Now(ctx).Add(-leaseHeartbeat), beat.Guarded, beat.PauseAfter)
	n.late(ctx, beat.Sent.Add(leaseHeartbeat))
}

// guarded notes what a beat said of the guard, which was sent before or at a moment.
func (n *lessor) guarded(beaten time.Time, guarded bool, pauseAfter time.Duration) {
	n.state.Guard = workspace.NodeGuard{Guarded: guarded, PauseAfter: pauseAfter, Beaten: beaten}
}

// late notes that the control plane was away when something comes later than it was due.
func (n *lessor) late(ctx workflow.Context, due time.Time) {
	if now := workflow.Now(ctx); now.Sub(due) > workspace.LateBy {
		n.state.AwayAt = now
	}
}

// awaitRegistration waits for the agent. One that was stopped has a while to be started again; then its node is lost.
func (n *lessor) awaitRegistration(ctx workflow.Context) error {
	here := func() bool { return n.registered }
	if due := n.state.LossDue; !due.IsZero() {
		in, err := workflow.AwaitWithTimeout(ctx, max(due.Sub(workflow.Now(ctx)), 0), here)
		if err != nil {
			return err
		}
		n.state.LossDue = time.Time{}
		if in {
			return nil
		}
		n.late(ctx, due)
		n.lose(ctx)
	}
	return workflow.Await(ctx, here)
}

// lose decides the loss: from here on the node's workspaces may move.
func (n *lessor) lose(ctx workflow.Context) {
	if n.state.Loss != nil {
		return
	}
	now := workflow.Now(ctx)
	n.state.Loss = &workspace.NodeLoss{At: now, Heard: n.state.Heard, Epoch: n.state.Epoch}
	n.state.LostAt = now
	n.endDrain(ctx, workspace.DrainNodeLost, "the node was lost; what was still there recovers by itself, as far as it is backed up")
}

// returned ends a loss: the node has its lease again.
func (n *lessor) returned(ctx workflow.Context) {
	n.state.LossDue = time.Time{}
	if n.state.Loss != nil {
		n.state.Loss = nil
		n.state.ReturnedAt = workflow.Now(ctx)
	}
}

// news is what the node's workspaces should know now; nothing while that is not clear.
func (n *lessor) news() (news workspace.NodeNews, owed bool) {
	news = workspace.NodeNews{Node: n.state.Info.Name, Epoch: n.state.Epoch}
	if n.looks {
		news.Incarnation = n.leased
	}
	told := n.state.Announced
	switch {
	case n.state.Loss != nil:
		news.Epoch, news.Lost, news.At, news.Heard, news.Incarnation = n.state.Loss.Epoch, true, n.state.Loss.At, n.state.Loss.Heard, ""
		news.Word = n.state.Loss.Dead + n.state.Loss.Proceed
		return news, !told.Lost || told.Epoch != news.Epoch || told.Word != news.Word
	case n.state.Phase == workspace.NodeReady && (told.Lost || news.Incarnation != "" && told.Incarnation != news.Incarnation):
		// Also when the node was never lost: a machine that is switched off and on in 20 seconds has ended what ran there.
		return news, true
	default:
		return news, false
	}
}

// announce tells the node's workspaces, beside everything else, whenever there is news. News that is out of date
// before all are told is not told to the end: each of them asks for itself what is true.
func (n *lessor) announce(ctx workflow.Context) {
	workflow.Go(ctx, func(ctx workflow.Context) {
		for {
			var news workspace.NodeNews
			if err := workflow.Await(ctx, func() bool {
				current, owed := n.news()
				news = current
				return owed
			}); err != nil {
				return
			}
			n.tell(ctx, news)
			if ctx.Err() != nil {
				return
			}
		}
	})
}

func (n *lessor) tell(ctx workflow.Context, news workspace.NodeNews) {
	telling, cancel := workflow.WithCancel(ctx)
	defer cancel()
	summary := "tell its workspaces that its agent has the lease"
	if news.Lost {
		// Some may have been told to the end of an activity that was cut: the return is owed to all of them.
		n.state.Announced = workspace.NodeNews{Node: news.Node, Lost: true}
		summary = "tell its workspaces that it is lost"
	}
	future := workflow.ExecuteActivity(announcing(telling, summary), workspace.ActivityAnnounceNode, news)
	if err := workflow.Await(ctx, func() bool {
		current, _ := n.news()
		return future.IsReady() || current.Lost != news.Lost || !news.Lost && current.Incarnation != news.Incarnation
	}); err != nil || !future.IsReady() {
		return
	}
	var result workspace.AnnounceResult
	if err := future.Get(ctx, &result); err != nil {
		if ctx.Err() == nil {
			workflow.GetLogger(ctx).Error("telling the node's workspaces", "lost", news.Lost, "error", err)
			// Nothing of it is permanent: it is told again after a while.
			_ = workflow.Sleep(ctx, slowest/10)
		}
		return
	}
	n.state.Announced = news
}
