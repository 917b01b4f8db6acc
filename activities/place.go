package activities

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"holdfast/fleet"
	"holdfast/workspace"
)

// loadsFor is how old the count of what a node holds may be. It only says which is chosen of several that can be.
const loadsFor = 10 * time.Second

// Place chooses a node by fleet.Choose. Visibility only names candidates; whether the chosen one is ready is asked of its workflow.
func (c *Control) Place(ctx context.Context, input workspace.PlaceInput) (workspace.PlaceResult, error) {
	result, err := c.place(ctx, input)
	return result, classify(err)
}

// place costs one question to a workflow, however many nodes there are: what is known of all of them may be a moment old,
// and is made sure of for the one that is chosen.
func (c *Control) place(ctx context.Context, input workspace.PlaceInput) (workspace.PlaceResult, error) {
	began := time.Now()
	if input.Only != "" {
		p := c.placing(input, fleetState{})
		if p.ask(ctx, input.Only); p.takes(input.Only) {
			return p.result(input.Only)
		}
		_, p.passed = fleet.Choose(slices.Collect(maps.Values(p.nodes)), p.want) // what it holds is no reason to refuse it
		return p.result("")
	}
	for _, since := range []time.Time{began.Add(-fleetFor), began} {
		all, err := c.fleet.look(ctx, c, since)
		if err != nil {
			return workspace.PlaceResult{}, err
		}
		p := c.placing(input, all)
		// A node that has become ready since a look of before would do.
		if name := p.choose(ctx); name != "" || all.taken.After(began) {
			return p.result(name)
		}
	}
	return workspace.PlaceResult{}, fmt.Errorf("choosing a node for workspace %s: the nodes were not looked at", input.Name)
}

// placing is the choice of a node for one workspace.
type placing struct {
	control *Control
	input   workspace.PlaceInput
	want    fleet.Want
	nodes   map[string]fleet.Node
	infos   map[string]workspace.NodeInfo
	passed  []string // why a node was not chosen
	unheard []error  // of nodes that could not be asked
}

func (c *Control) placing(input workspace.PlaceInput, all fleetState) *placing {
	p := &placing{
		control: c, input: input, want: fleet.Want{Only: input.Only, Avoid: input.Exclude, Prefer: input.Prefer},
		nodes: map[string]fleet.Node{}, infos: map[string]workspace.NodeInfo{}, unheard: slices.Clone(all.unheard),
	}
	for _, state := range all.states {
		p.learn(state.Info.Name, state)
	}
	return p
}

func (p *placing) learn(name string, state workspace.NodeState) {
	p.infos[name] = state.Info
	p.nodes[name] = fleet.Node{
		Name: name, Registered: true, Ready: state.Phase == workspace.NodeReady, Cordoned: state.Cordoned,
		State: fmt.Sprintf("%s (%s)", state.Phase, state.Reason), Unfit: unfit(p.input, state.Info),
	}
}

// choose takes one of those that can take the workspace now; empty when none can.
func (p *placing) choose(ctx context.Context) (name string) {
	for {
		name, p.passed = p.control.loads.take(ctx, p.control, slices.Collect(maps.Values(p.nodes)), p.want)
		if name == "" {
			return ""
		}
		if p.ask(ctx, name); p.takes(name) {
			return name
		}
		p.control.loads.giveBack(name) // and it is not chosen again, by what is known of it now
	}
}

// ask asks a node's workflow how it is at this moment.
func (p *placing) ask(ctx context.Context, name string) {
	state, err := p.control.node(ctx, name)
	switch {
	case errors.Is(err, errNoNode):
		p.nodes[name] = fleet.Node{Name: name}
	case err != nil:
		// One node that cannot be asked about keeps nobody from the others.
		p.unheard = append(p.unheard, err)
		delete(p.nodes, name)
	default:
		p.learn(name, state)
	}
}

// takes says whether a node can have the workspace, as far as is known.
func (p *placing) takes(name string) bool {
	node, known := p.nodes[name]
	if !known {
		return false
	}
	chosen, _ := fleet.Choose([]fleet.Node{node}, p.want)
	return chosen != ""
}

func (p *placing) result(name string) (workspace.PlaceResult, error) {
	switch {
	case name != "":
		result := workspace.PlaceResult{Node: name, Recipient: p.infos[name].Recipient}
		if p.input.Shared {
			result.Volume = p.infos[name].Volume.ID
		}
		return result, nil
	case len(p.unheard) > 0:
		return workspace.PlaceResult{}, fmt.Errorf("choosing a node for workspace %s: %w", p.input.Name, errors.Join(p.unheard...)) // passes
	default:
		return workspace.PlaceResult{}, permanent(workspace.ErrorNoNode, fmt.Errorf("no node can take workspace %s: %v; `holdfast node list` shows them", p.input.Name, p.passed))
	}
}

// unfit says why a node cannot have a workspace on a shared volume; empty when it can. One without a guard process would run
// on, cut off, while another node works on the same files.
func unfit(input workspace.PlaceInput, info workspace.NodeInfo) string {
	switch {
	case !input.Shared:
		return ""
	case info.Volume == nil:
		return "has no shared volume (its agent was started without --shared-volumes)"
	case info.Volume.ID == "":
		return "cannot use its shared volume: " + info.Volume.Problem
	case !info.HasVolume(input.Volume):
		return fmt.Sprintf("has shared volume %s, and the content is on %s", info.Volume.ID, input.Volume)
	case !info.Guarded:
		return "has no guard process, without which nothing on a shared volume may run"
	default:
		return ""
	}
}

// nodeLoads is how much each node holds, as the catalog says, with what was placed there since it was asked: fifty starts at
// once go to different nodes, although none of them is recorded yet.
type nodeLoads struct {
	mutex sync.Mutex
	taken time.Time
	held  map[string]int
}

// take chooses a node, and counts one more for it.
func (l *nodeLoads) take(ctx context.Context, c *Control, nodes []fleet.Node, want fleet.Want) (name string, passed []string) {
	l.mutex.Lock()
	defer l.mutex.Unlock()
	if time.Since(l.taken) >= loadsFor {
		l.taken, l.held = time.Now(), map[string]int{}
	}
	var unknown []string
	for _, node := range nodes {
		if _, known := l.held[node.Name]; !known && node.Ready && !slices.Contains(want.Avoid, node.Name) {
			unknown = append(unknown, node.Name)
		}
	}
	counts := make([]int, len(unknown))
	var group errgroup.Group
	group.SetLimit(2 * tellParallel)
	for i, name := range unknown {
		group.Go(func() error {
			placements, err := c.Catalog.Placements(ctx, name)
			if err != nil {
				c.Logger.Warn("counting what a node holds", "node", name, "error", err)
			}
			counts[i] = len(placements)
			return nil
		})
	}
	_ = group.Wait() // one that cannot be counted to the end counts as what was seen
	for i, name := range unknown {
		l.held[name] = counts[i]
	}
	for i := range nodes {
		nodes[i].Holds = l.held[nodes[i].Name]
	}
	if name, passed = fleet.Choose(nodes, want); name != "" {
		l.held[name]++
	}
	return name, passed
}

// giveBack takes back what take has counted.
func (l *nodeLoads) giveBack(name string) {
	l.mutex.Lock()
	defer l.mutex.Unlock()
	if l.held[name] > 0 { // it may have been counted anew meanwhile
		l.held[name]--
	}
}
