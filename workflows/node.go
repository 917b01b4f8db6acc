package workflows

import (
	"errors"
	"fmt"

	enumspb "go.temporal.io/api/enums/v1"
	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/workflow"

	"holdfast/workspace"
)

// Node grants a node's lease, one at a time, each with a higher epoch (DESIGN section 7).
func Node(ctx workflow.Context, input workspace.NodeInput) error {
	n := &lessor{state: workspace.NodeState{Info: workspace.NodeInfo{Name: input.Node}, Phase: workspace.NodeLost, Since: workflow.Now(ctx)}}
	if input.State != nil {
		n.state = *input.State
	}
	if err := n.setup(ctx); err != nil {
		return err
	}
	return n.run(ctx)
}

type lessor struct {
	state workspace.NodeState
	// registered is set by a registration and cleared when a lease is offered to it.
	registered bool
	// ignored counts the offers in a row that a node did not take although it announced itself.
	ignored int
	// looks says whether the node's workspaces are told of every new start of its agent.
	looks bool
	// heard says whether an offer to a suspect is taken by the agent's own signal, and not by whatever the server calls its start.
	heard bool
	// orders counts what people have said of it.
	orders int
	// leased is the start of the agent that took the newest lease; an announcement alone is none.
	leased string
}

func (n *lessor) setup(ctx workflow.Context) error {
	if err := workflow.SetQueryHandlerWithOptions(ctx, workspace.QueryState, func() (workspace.NodeState, error) {
		return n.state, nil
	}, workflow.QueryHandlerOptions{Description: "what is known about the node"}); err != nil {
		return err
	}
	if err := n.handleOrders(ctx); err != nil {
		return err
	}
	return workflow.SetUpdateHandlerWithOptions(ctx, workspace.UpdateRegister,
		func(ctx workflow.Context, request workspace.RegisterRequest) (workspace.NodeState, error) {
			n.state.Info = request.Info
			n.registered = true
			return n.state, nil
		},
		workflow.UpdateHandlerOptions{
			Description: "an agent announces itself",
			Validator: func(request workspace.RegisterRequest) error {
				if err := workspace.ValidateName("node", request.Info.Name); err != nil {
					return badInput(err)
				}
				if request.Info.Name != n.state.Info.Name {
					return badInput(fmt.Errorf("node %s cannot register as %s", request.Info.Name, n.state.Info.Name))
				}
				if request.Info.Incarnation == "" || request.Info.Recipient == "" {
					return badInput(errors.New("a registration needs an incarnation and a recipient"))
				}
				// A refusal leaves nothing in the history, however often it is asked for.
				if err := workspace.Admit(n.state, request.Info); err != nil {
					return temporal.NewNonRetryableApplicationError(err.Error(), string(workspace.ErrorNameTaken), nil)
				}
				return nil
			},
		})
}

func (n *lessor) run(ctx workflow.Context) error {
	taken := workflow.GetSignalChannelWithOptions(ctx, workspace.SignalLeaseTaken, workflow.SignalChannelOptions{Description: "the agent took the lease it was offered"})
	workflow.Go(ctx, func(ctx workflow.Context) {
		for {
			var signal workspace.LeaseTaken
			taken.Receive(ctx, &signal)
			if ctx.Err() != nil {
				return
			}
			// One that was sent in the last moment of a lease can be seen only after its end: a node that gave its lease
			// back must not look ready.
			offered := n.state.Phase == workspace.NodeOffered || n.state.Phase == workspace.NodeSuspect
			if offered && signal.Epoch == n.state.Epoch && signal.Incarnation == n.state.Info.Incarnation {
				n.ignored, n.leased = 0, signal.Incarnation
				n.returned(ctx)
				n.enter(ctx, workspace.NodeReady, "")
			}
		}
	})
	n.looks = workflow.GetVersion(ctx, "every-incarnation-is-told", workflow.DefaultVersion, 1) >= 1
	n.heard = workflow.GetVersion(ctx, "an-offer-is-taken-by-a-signal", workflow.DefaultVersion, 1) >= 1
	n.announce(ctx)
	n.drains(ctx)
	var public workspace.ControlInfo
	if err := workflow.ExecuteActivity(control(ctx, "what the control side makes public"), workspace.ActivityDescribeControl).Get(ctx, &public); err != nil {
		return err
	}
	offer := n.state.Phase != workspace.NodeLost
	for {
		if !offer {
			if err := n.awaitRegistration(ctx); err != nil {
				return err
			}
		}
		incarnation := n.state.Info.Incarnation
		outcome, err := n.lease(ctx, public.VerifyKey)
		if err != nil {
			return err
		}
		offer = false
		switch outcome {
		case leaseRenew:
			offer = true
		case leaseReleased:
			if n.state.Info.Incarnation == incarnation {
				n.registered = false // it announced itself again before it had the lease; now it is stopping
			}
			n.enter(ctx, workspace.NodeLost, "its agent was stopped")
			n.state.LossDue = workflow.Now(ctx).Add(stoppedGrace)
		case leaseTimedOut:
			// Losing a lease is suspicion, not death: it is offered again before anything follows from it.
			n.enter(ctx, workspace.NodeSuspect, "its lease timed out")
			offer = true
		case leaseNotTaken:
			if n.registered && n.ignored == 0 {
				// It is there, and too busy: it is offered once more before it counts as lost.
				n.ignored++
				offer = true
				break
			}
			n.ignored = 0
			n.enter(ctx, workspace.NodeLost, "it does not take its lease")
			n.lose(ctx)
		case leaseSuperseded:
			offer = true
		}
		if workflow.GetInfo(ctx).GetContinueAsNewSuggested() {
			if err := workflow.Await(ctx, func() bool { return workflow.AllHandlersFinished(ctx) }); err != nil {
				return err
			}
			if n.registered {
				n.state.Phase = workspace.NodeOffered // so that the next run offers at once
			}
			return workflow.NewContinueAsNewError(ctx, workspace.NodeWorkflow, workspace.NodeInput{Node: n.state.Info.Name, State: &n.state})
		}
	}
}

type leaseOutcome int

const (
	leaseRenew leaseOutcome = iota
	leaseReleased
	leaseTimedOut
	leaseNotTaken
	leaseSuperseded
)

// lease offers the lease and waits until it ends. A registration by a new incarnation ends the one before.
func (n *lessor) lease(ctx workflow.Context, verifyKey []byte) (leaseOutcome, error) {
	n.state.Epoch++
	if n.registered {
		n.state.Guard.Guarded, n.state.Guard.PauseAfter = n.state.Info.Guarded, n.state.Info.PauseAfter
	}
	n.registered = false
	incarnation := n.state.Info.Incarnation
	offered := workflow.Now(ctx)
	if n.state.Phase != workspace.NodeSuspect {
		n.enter(ctx, workspace.NodeOffered, "")
	}
	leaseCtx, cancel := workflow.WithCancel(ctx)
	defer cancel()
	future := workflow.ExecuteActivity(workflow.WithActivityOptions(leaseCtx, workflow.ActivityOptions{
		TaskQueue:              workspace.LeaseQueue(n.state.Info.Name),
		ScheduleToStartTimeout: leaseOffer,
		StartToCloseTimeout:    leaseLength,
		HeartbeatTimeout:       leaseHeartbeat,
		// A retry would hand the lease out again without a new epoch.
		RetryPolicy: &temporal.RetryPolicy{MaximumAttempts: 1},
		Summary:     fmt.Sprintf("lease %d", n.state.Epoch),
	}), workspace.ActivityHoldLease, workspace.LeaseInput{
		Node: n.state.Info.Name, Epoch: n.state.Epoch, Incarnation: incarnation, Timeout: leaseHeartbeat, VerifyKey: verifyKey,
	})
	over := func() bool { return future.IsReady() || n.registered && n.state.Info.Incarnation != incarnation }
	if n.heard && n.state.Phase == workspace.NodeSuspect {
		// The server gives a task to a poll of an agent that is frozen or cut off as it does to any other: that starts the
		// activity, and only its heartbeat's time-out would say, 10 s later, that nobody was there.
		in, err := workflow.AwaitWithTimeout(ctx, leaseOffer, func() bool { return over() || n.state.Phase != workspace.NodeSuspect })
		if err != nil {
			return 0, err
		}
		if !in {
			cancel() // whoever takes it yet holds nothing
			n.state.Guard.Beaten = workflow.Now(ctx)
			n.late(ctx, offered.Add(leaseOffer))
			return leaseNotTaken, nil
		}
	}
	if err := workflow.Await(ctx, over); err != nil {
		return 0, err
	}
	if !future.IsReady() {
		cancel() // the agent was started again: its old self holds nothing any more
		n.state.Guard.Beaten = workflow.Now(ctx)
		return leaseSuperseded, nil
	}
	var result workspace.LeaseResult
	err := future.Get(ctx, &result)
	var timeout *temporal.TimeoutError
	switch {
	case err == nil && result.Released:
		n.state.Heard = workflow.Now(ctx)
		n.guarded(workflow.Now(ctx), result.Guarded, result.PauseAfter)
		return leaseReleased, nil
	case err == nil:
		n.guarded(workflow.Now(ctx), result.Guarded, result.PauseAfter)
		return leaseRenew, nil
	case errors.As(err, &timeout) && timeout.TimeoutType() == enumspb.TIMEOUT_TYPE_SCHEDULE_TO_START:
		n.late(ctx, offered.Add(leaseOffer))
		return leaseNotTaken, nil
	case ctx.Err() != nil:
		return 0, ctx.Err()
	default:
		n.timedOut(ctx, timeout)
		return leaseTimedOut, nil
	}
}

func (n *lessor) enter(ctx workflow.Context, phase workspace.NodePhase, reason string) {
	if n.state.Phase == phase {
		return
	}
	n.state.Phase, n.state.Reason, n.state.Since = phase, reason, workflow.Now(ctx)
	_ = workflow.UpsertTypedSearchAttributes(ctx, attributeKind.ValueSet("node"), attributeState.ValueSet(string(phase)))
	n.describeNow(ctx)
}

// describeNow writes the details that Temporal's Web UI shows; they cost no history event.
func (n *lessor) describeNow(ctx workflow.Context) {
	text := fmt.Sprintf("### node %s: %s\n- %s\n- %s engine, data port %s\n", n.state.Info.Name, n.state.Phase, n.state.Reason, n.state.Info.Engine, n.state.Info.Address)
	if n.state.Drain != nil {
		text += "- " + n.state.Drain.Words(workflow.Now(ctx)) + "\n"
	}
	workflow.SetCurrentDetails(ctx, text)
}
