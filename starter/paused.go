package main

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sync/errgroup"

	"holdfast/workspace"
)

// What nodes run and have paused is known from the beats of their leases. A node that is cut off says nothing, so that this is for
// display only, and a node that cannot be asked keeps nobody from the rest.

// nodeLoad is how much is on a node, as its newest beat says.
type nodeLoad struct {
	// Instances run or are paused there; nil when the node has no lease, or has not looked yet.
	Instances *int `json:"instances,omitempty"`
	// PausedCount is how many of them are paused.
	PausedCount int `json:"paused_count,omitempty"`
}

func loadOf(beat *workspace.LeaseBeat) (load nodeLoad) {
	if beat != nil {
		if load.Instances = beat.Instances; beat.Pauses != nil {
			load.PausedCount = beat.Pauses.Count
		}
	}
	return load
}

// words is empty when nothing is known.
func (l nodeLoad) words() string {
	switch {
	case l.Instances == nil:
		return ""
	case l.PausedCount > 0:
		return fmt.Sprintf("%d (%d paused)", *l.Instances, l.PausedCount)
	default:
		return strconv.Itoa(*l.Instances)
	}
}

// Beat is what a node's agent last said with its lease; nil for a node without one.
func (t *temporalControl) Beat(ctx context.Context, node string) (*workspace.LeaseBeat, error) {
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
			return &beat, nil
		}
	}
	return nil, nil
}

// pausedOn asks several nodes at once, and gives what each has paused.
func pausedOn(ctx context.Context, control control, nodes map[string]bool) map[string]workspace.Paused {
	var mutex sync.Mutex
	all := map[string]workspace.Paused{}
	var group errgroup.Group
	group.SetLimit(listParallel)
	for node := range nodes {
		group.Go(func() error {
			beat, err := control.Beat(ctx, node)
			if err != nil || beat == nil || beat.Pauses == nil {
				return nil //nolint:nilerr // for display only
			}
			mutex.Lock()
			defer mutex.Unlock()
			all[node] = *beat.Pauses
			return nil
		})
	}
	_ = group.Wait()
	return all
}

// pausedThere is what a node has paused of an instance. When it has paused more than its beats have room for, that is said of an instance
// that they do not name.
func pausedThere(known map[string]workspace.Paused, node, instance string) (found workspace.PausedInstance, ok bool, maybe string) {
	there := known[node]
	if found, ok = there.Of(instance); !ok && there.Unnamed() > 0 {
		maybe = fmt.Sprintf("node %s has paused %d instances and cannot name %d of them; a command in it says whether it is one, and why", node, there.Count, there.Unnamed())
	}
	return found, ok, maybe
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
		found, ok, maybe := pausedThere(known, state.Instance.Node, workspace.InstanceName(state.ID, state.Instance.Token))
		if ok {
			found.Name = state.Name
			paused = append(paused, found)
			state.Reason = pausedWords(state.Instance.Node, found)
		} else if maybe != "" {
			state.Reason = strings.TrimPrefix(state.Reason+"; "+maybe, "; ")
		}
	}
	for i := range state.Left {
		if found, ok, _ := pausedThere(known, state.Left[i].Node, workspace.InstanceName(state.ID, state.Left[i].Token)); ok {
			found.Name = state.Name
			paused = append(paused, found)
			state.Left[i].Why += "; it is paused there: " + found.Why
		}
	}
	return paused
}

func pausedWords(node string, instance workspace.PausedInstance) string {
	return fmt.Sprintf("paused by node %s: %s", node, instance.Why)
}

// pausedNames finds the workspaces of what a node has paused; unnamed is how many it does not find.
func pausedNames(ctx context.Context, control control, beat *workspace.LeaseBeat) (paused []workspace.PausedInstance, unnamed int, err error) {
	if beat == nil || beat.Pauses == nil {
		return nil, 0, nil
	}
	lines, err := control.Workspaces(ctx)
	if err != nil {
		return nil, 0, err
	}
	for _, line := range lines {
		instances := []string{line.Instance}
		for _, left := range line.State.Left {
			instances = append(instances, workspace.InstanceName(line.State.ID, left.Token))
		}
		for _, instance := range instances {
			if found, ok := beat.Pauses.Of(instance); ok {
				found.Name = line.Name
				paused = append(paused, found)
			}
		}
	}
	return paused, max(beat.Pauses.Count-len(paused), 0), nil
}

// renderPaused lists what a node has paused.
func renderPaused(w io.Writer, paused []workspace.PausedInstance, unnamed int) {
	for _, instance := range paused {
		writeField(w, "paused", fmt.Sprintf("instance %d of %s: %s", instance.Token, instance.Name, instance.Why))
	}
	if unnamed > 0 {
		writeField(w, "paused", fmt.Sprintf("%d more, which no workspace that could be asked names as its own, or of which there are too many for a beat to name", unnamed))
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
		if found, ok, maybe := pausedThere(known, line.Node, line.Instance); ok {
			lines[i].Paused = pausedWords(line.Node, found)
		} else if line.Instance != "" {
			lines[i].Paused = maybe
		}
	}
}
