package main

import (
	"context"
	"fmt"
	"io"
	"slices"
	"sync"

	"golang.org/x/sync/errgroup"

	"holdfast/workspace"
)

// What nodes have paused is known from the beats of their leases. A node that is cut off says nothing, so that this is for
// display only, and a node that cannot be asked keeps nobody from the rest.

// Paused is what a node has paused, as its newest beat says; nothing for a node without a lease.
func (t *temporalControl) Paused(ctx context.Context, node string) ([]workspace.PausedInstance, error) {
	ctx, cancel := context.WithTimeout(ctx, answerWithin)
	defer cancel()
	description, err := t.client.DescribeWorkflowExecution(ctx, workspace.NodeWorkflowID(node), "")
	if err != nil {
		return nil, explainNode(node, err)
	}
	for _, activity := range description.GetPendingActivities() {
		var beat workspace.LeaseBeat
		details := activity.GetHeartbeatDetails()
		if activity.GetActivityType().GetName() == workspace.ActivityHoldLease && len(details.GetPayloads()) > 0 && t.data.FromPayloads(details, &beat) == nil {
			return beat.Paused, nil
		}
	}
	return nil, nil
}

// pausedOn asks several nodes at once, and gives what they have paused by workspace.InstanceName.
func pausedOn(ctx context.Context, control control, nodes map[string]bool) map[string]workspace.PausedInstance {
	var mutex sync.Mutex
	all := map[string]workspace.PausedInstance{}
	var group errgroup.Group
	group.SetLimit(listParallel)
	for node := range nodes {
		group.Go(func() error {
			paused, err := control.Paused(ctx, node)
			if err != nil {
				return nil //nolint:nilerr // for display only
			}
			mutex.Lock()
			defer mutex.Unlock()
			for _, instance := range paused {
				all[workspace.InstanceName(instance.WorkspaceID, instance.Token)] = instance
			}
			return nil
		})
	}
	_ = group.Wait()
	return all
}

// tellPaused adds to a state's words what its nodes have paused of it, and returns that.
func tellPaused(ctx context.Context, control control, state *workspace.State) []workspace.PausedInstance {
	nodes := map[string]bool{}
	if state.Instance != nil {
		nodes[state.Instance.Node] = true
	}
	for _, left := range state.Left {
		nodes[left.Node] = true
	}
	known := pausedOn(ctx, control, nodes)
	state.Left = slices.Clone(state.Left)
	var paused []workspace.PausedInstance
	if state.Instance != nil {
		if found, ok := known[workspace.InstanceName(state.ID, state.Instance.Token)]; ok {
			paused = append(paused, found)
			state.Reason = pausedWords(state.Instance.Node, found)
		}
	}
	for i := range state.Left {
		if found, ok := known[workspace.InstanceName(state.ID, state.Left[i].Token)]; ok {
			paused = append(paused, found)
			state.Left[i].Why += "; it is paused there: " + found.Why
		}
	}
	return paused
}

func pausedWords(node string, instance workspace.PausedInstance) string {
	return fmt.Sprintf("paused by node %s: %s", node, instance.Why)
}

// renderPaused lists what a node has paused.
func renderPaused(w io.Writer, paused []workspace.PausedInstance) {
	for _, instance := range paused {
		name := instance.Name
		if name == "" {
			name = instance.WorkspaceID
		}
		writeField(w, "paused", fmt.Sprintf("instance %d of %s: %s", instance.Token, name, instance.Why))
	}
}

// tellListPaused notes in a list's lines what their nodes have paused.
func tellListPaused(ctx context.Context, control control, lines []listedWorkspace) {
	nodes := map[string]bool{}
	for _, line := range lines {
		if line.Instance != "" {
			nodes[line.Node] = true
		}
	}
	known := pausedOn(ctx, control, nodes)
	for i, line := range lines {
		if found, ok := known[line.Instance]; ok {
			lines[i].Paused = pausedWords(line.Node, found)
		}
	}
}
