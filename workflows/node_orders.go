package workflows

import (
	"errors"
	"fmt"

	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/workflow"

	"holdfast/workspace"
)

// handleOrders registers what a person can say of a node. Like every update they record and return at once.
func (n *lessor) handleOrders(ctx workflow.Context) error {
	return workflow.SetUpdateHandlerWithOptions(ctx, workspace.UpdateOrder,
		func(ctx workflow.Context, order workspace.NodeOrder) (workspace.NodeState, error) {
			by := order.Subject
			n.orders++
			switch order.Kind {
			case workspace.OrderDead:
				n.lose(ctx)
				n.state.Loss.Dead = by
				n.state.Reason = by + " said that it is dead"
			case workspace.OrderProceed:
				n.state.Loss.Proceed = by
			case workspace.OrderCordon:
				n.state.Cordoned = by
			case workspace.OrderUncordon:
				n.state.Cordoned = ""
				n.endDrain(ctx, workspace.DrainCancelled, by+" uncordoned the node")
			case workspace.OrderDrain:
				n.beginDrain(ctx, by, order.Drain)
			case workspace.OrderUndrain:
				n.endDrain(ctx, workspace.DrainCancelled, by+" ended it; the node stays cordoned")
			}
			return n.state, nil
		},
		workflow.UpdateHandlerOptions{
			Description: "a person says something of the node: dead, proceed, cordon, uncordon, drain, undrain",
			Validator:   n.validateOrder,
		})
}

func (n *lessor) validateOrder(order workspace.NodeOrder) error {
	refuse := func(format string, args ...any) error {
		return temporal.NewNonRetryableApplicationError("node "+n.state.Info.Name+": "+fmt.Sprintf(format, args...), string(workspace.ErrorRefused), nil)
	}
	if order.Subject == "" {
		return badInput(errors.New("an order for a node needs who gives it"))
	}
	switch order.Kind {
	case workspace.OrderDead:
		if n.state.Phase != workspace.NodeLost {
			return refuse("it is %s: it holds its lease, or is just being offered it; switch it off and wait until it is Lost, then say that it is dead", n.state.Phase)
		}
	case workspace.OrderProceed:
		if n.state.Loss == nil {
			return refuse("it is %s and not lost: there is nothing to proceed with", n.state.Phase)
		}
	case workspace.OrderCordon, workspace.OrderUncordon:
	case workspace.OrderDrain:
		if order.Drain != nil {
			if err := order.Drain.Validate(); err != nil {
				return badInput(err)
			}
		}
		if n.state.Loss != nil {
			return refuse("it is lost: there is nothing to move from it; what was there recovers by itself, and `holdfast node cordon %s` keeps it empty when it returns", n.state.Info.Name)
		}
	case workspace.OrderUndrain:
		if !n.state.Drain.Active() {
			return refuse("it is not being drained")
		}
	default:
		return badInput(fmt.Errorf("order %q: want dead, proceed, cordon, uncordon, drain or undrain", order.Kind))
	}
	return nil
}
