package workflows_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.temporal.io/sdk/converter"
	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/workflow"

	"holdfast/workspace"
)

// guests are pretended workspaces on a node that is drained: each round moves one of them.
type guests struct {
	*agents
	on       []string
	stuck    []string // that are never moved
	sent     []string // in order
	cordoned []string // who had cordoned the node when one was sent
}

func newGuests(t *testing.T, on ...string) *guests {
	g := &guests{agents: newAgents(t), on: on}
	g.round = g.move
	g.register(time.Second, registration("one"))
	return g
}

func (g *guests) move(_ context.Context, input workspace.DrainInput) (workspace.DrainResult, error) {
	g.mutex.Lock()
	defer g.mutex.Unlock()
	result := workspace.DrainResult{}
	for i, name := range g.on {
		if input.Round == 1 || slices.Contains(g.stuck, name) {
			continue
		}
		g.sent = append(g.sent, name)
		g.on = slices.Delete(slices.Clone(g.on), i, i+1)
		break
	}
	// As the real one: who has left since the look that was noted last, also when a round between that nobody heard the end of
	// has moved them.
	for _, name := range input.On {
		if !slices.Contains(g.on, name) {
			result.Departed = append(result.Departed, workspace.DrainDeparture{Name: name, To: "node-2"})
		}
	}
	result.On = g.on
	for _, name := range g.on {
		result.Waiting = append(result.Waiting, workspace.DrainItem{Name: name, Why: "no room"})
	}
	return result, nil
}

func (g *guests) drain(at time.Duration, request workspace.DrainRequest) *error {
	return g.give(at, workspace.NodeOrder{Kind: workspace.OrderDrain, Subject: "ada", Drain: &request})
}

func (g *guests) rounds() int {
	g.mutex.Lock()
	defer g.mutex.Unlock()
	return len(g.drains)
}

// A drain cordons the node before anything is looked at, and goes on until two looks have found it empty.
func TestDrain(t *testing.T) {
	g := newGuests(t, "a", "b", "c")
	moves := g.round
	g.round = func(ctx context.Context, input workspace.DrainInput) (workspace.DrainResult, error) {
		g.cordoned = append(g.cordoned, g.state().Cordoned)
		return moves(ctx, input)
	}
	ordered := g.drain(10*time.Second, workspace.DrainRequest{})
	last := g.look(time.Minute)
	g.run(time.Hour)
	require.NoError(t, *ordered)
	require.Equal(t, []string{"a", "b", "c"}, g.sent)
	for _, by := range g.cordoned {
		require.Equal(t, "ada", by)
	}
	drain := last.Drain
	require.NotZero(t, drain.Drained)
	require.True(t, drain.Active(), "what turns up late is moved too")
	require.Equal(t, 3, drain.Moved)
	require.Equal(t, workspace.DrainParallel, g.drains[0].Plan.Parallel)
	require.Equal(t, uint64(1), g.drains[0].Round)
	require.Equal(t, []string{"a", "b"}, []string{drain.Departed[0].Name, drain.Departed[1].Name})
	require.Less(t, g.rounds(), 16, "an empty node is looked at rarely")
}

// One look that finds nothing may have been between a choice and its record; what turns up after the node was empty is moved too.
func TestDrainFindsWhoCameLate(t *testing.T) {
	g := newGuests(t)
	once := make(map[uint64]bool)
	moves := g.round
	g.round = func(ctx context.Context, input workspace.DrainInput) (workspace.DrainResult, error) {
		result, err := moves(ctx, input)
		if input.Round == 1 || input.Round == 6 {
			once[input.Round] = true
			g.on = []string{fmt.Sprintf("late-%d", input.Round)}
		}
		return result, err
	}
	g.drain(10*time.Second, workspace.DrainRequest{})
	first := g.look(10500 * time.Millisecond)
	last := g.look(2 * time.Hour)
	g.run(3 * time.Hour)
	require.Len(t, once, 2)
	require.Zero(t, first.Drain.Drained, "one look is not enough")
	require.NotZero(t, last.Drain.Drained)
	require.Equal(t, []string{"late-1", "late-6"}, g.sent)
}

// At the deadline nothing is dropped: it is said who is still there and why, and the drain goes on.
func TestDrainDeadline(t *testing.T) {
	g := newGuests(t, "a", "b")
	g.stuck = []string{"b"}
	g.drain(10*time.Second, workspace.DrainRequest{Deadline: 10 * time.Minute})
	before := g.look(9 * time.Minute)
	after := g.look(11 * time.Minute)
	g.environment.RegisterDelayedCallback(func() { g.mutex.Lock(); g.stuck = nil; g.mutex.Unlock() }, time.Hour)
	last := g.look(2 * time.Hour)
	g.run(3 * time.Hour)
	require.Zero(t, before.Drain.Overdue)
	require.WithinDuration(t, g.begin.Add(10*time.Minute+10*time.Second), after.Drain.Overdue, 2*time.Second)
	require.True(t, after.Drain.Active())
	require.Equal(t, []workspace.DrainItem{{Name: "b", Why: "no room"}}, after.Drain.Waiting)
	require.Equal(t, "ada", after.Cordoned)
	require.NotZero(t, last.Drain.Drained)
	require.Equal(t, []string{"a", "b"}, g.sent)
	require.Less(t, g.rounds(), 60, "what does not change is looked at less and less often")
}

// A drain is cancelled by either order, at every point: in a round and between two. Nothing is asked for afterwards, and
// what was ordered says whether the node stays cordoned.
func TestDrainCancelledAtEveryPoint(t *testing.T) {
	for _, kind := range []workspace.NodeOrderKind{workspace.OrderUndrain, workspace.OrderUncordon} {
		for at := 10100 * time.Millisecond; at < 16*time.Second; at += 250 * time.Millisecond {
			t.Run(fmt.Sprint(kind, at), func(t *testing.T) {
				g := newGuests(t, "a", "b", "c", "d", "e")
				g.drain(10*time.Second, workspace.DrainRequest{})
				cancelled := g.order(at, kind, "bob")
				rounds := 0
				g.environment.RegisterDelayedCallback(func() { rounds = g.rounds() }, at+10*time.Millisecond)
				soon := g.look(at + 10*time.Millisecond)
				last := g.look(time.Hour)
				g.run(2 * time.Hour)
				require.NoError(t, *cancelled)
				require.Equal(t, workspace.DrainCancelled, soon.Drain.End)
				require.Contains(t, soon.Drain.Why, "bob")
				require.Equal(t, rounds, g.rounds(), "it went on looking after it was cancelled")
				require.Equal(t, kind == workspace.OrderUndrain, last.Cordoned != "")
				require.False(t, last.Drain.Active())
			})
		}
	}
}

// Cancelled in the middle of a round, it is over, and another drain begins afresh (TestDrainGivenUpInARound: the round is not
// waited for).
func TestDrainCancelledInARound(t *testing.T) {
	g := newGuests(t, "a", "b")
	var ended []error
	moves := g.round
	g.round = func(ctx context.Context, input workspace.DrainInput) (workspace.DrainResult, error) {
		if input.Round == 2 && input.Plan.By == "ada" && len(ended) == 0 {
			ended = append(ended, nil)
			g.order(0, workspace.OrderUndrain, "bob")
		}
		return moves(ctx, input)
	}
	g.drain(10*time.Second, workspace.DrainRequest{})
	g.drain(time.Minute, workspace.DrainRequest{Parallel: 2})
	last := g.look(time.Hour)
	g.run(2 * time.Hour)
	require.Len(t, ended, 1)
	ids := map[string]int{}
	for _, input := range g.drains {
		ids[input.Plan.ID]++
	}
	require.Len(t, ids, 2)
	require.NotZero(t, last.Drain.Drained)
	require.Equal(t, 2, last.Drain.Parallel)
}

// Ordered again while it goes on, it has the new settings, at once, and is still the same drain.
func TestDrainOrderedAgain(t *testing.T) {
	g := newGuests(t, "a")
	g.stuck = g.on
	g.drain(10*time.Second, workspace.DrainRequest{Deadline: time.Minute})
	overdue := g.look(10 * time.Minute)
	g.drain(20*time.Minute, workspace.DrainRequest{Deadline: time.Hour, Parallel: 9, Stop: true})
	again := g.look(20*time.Minute + time.Second)
	g.run(2 * time.Hour)
	require.NotZero(t, overdue.Drain.Overdue)
	require.Zero(t, again.Drain.Overdue)
	require.Equal(t, overdue.Drain.ID, again.Drain.ID)
	newest := g.drains[again.Drain.Round-1]
	require.Equal(t, 9, newest.Plan.Parallel)
	require.True(t, newest.Plan.Stop)
}

// A node that is only away is waited for; one that is lost ends the drain, and what is there recovers. It stays cordoned.
func TestDrainOfANodeThatGoesAway(t *testing.T) {
	for _, lost := range []bool{false, true} {
		g := newGuests(t, "a")
		g.stuck = g.on
		g.script = []ending{beatsLost(time.Minute), {after: forever}}
		if lost {
			g.script[1] = notTaken()
		} else {
			g.script[1] = ending{after: 10 * time.Second, err: temporal.NewHeartbeatTimeoutError(workspace.LeaseBeat{Epoch: 2})}
		}
		g.drain(10*time.Second, workspace.DrainRequest{})
		later := g.look(2 * time.Minute)
		again := g.drain(3*time.Minute, workspace.DrainRequest{})
		g.run(10 * time.Minute)
		require.Equal(t, "ada", later.Cordoned)
		if !lost {
			require.True(t, later.Drain.Active())
			require.NoError(t, *again)
			continue
		}
		require.Equal(t, workspace.DrainNodeLost, later.Drain.End)
		require.Equal(t, []string{"a"}, later.Drain.On, "who was still there is not forgotten")
		require.ErrorContains(t, *again, "it is lost")
	}
}

// Whatever a round fails with, it is made again, nothing is taken for empty, and the node's lease is not touched.
func TestDrainFailingWithEveryError(t *testing.T) {
	for kind, fault := range everyError() {
		t.Run(kind, func(t *testing.T) {
			g := newGuests(t, "a")
			moves, fails := g.round, 3
			g.round = func(ctx context.Context, input workspace.DrainInput) (workspace.DrainResult, error) {
				if fails > 0 {
					fails--
					return workspace.DrainResult{}, fault
				}
				return moves(ctx, input)
			}
			g.drain(10*time.Second, workspace.DrainRequest{})
			failing := g.look(10500 * time.Millisecond)
			last := g.look(2 * time.Hour)
			g.run(3 * time.Hour)
			require.Zero(t, failing.Drain.Drained)
			if kind != "transient" && kind != "dead node" { // those are tried again in the round
				require.NotEmpty(t, failing.Drain.Unheard, "a look that failed is not said")
			}
			require.NotZero(t, last.Drain.Drained)
			require.Empty(t, last.Drain.Unheard)
			require.Equal(t, []string{"a"}, g.sent)
			require.Equal(t, workspace.NodeReady, last.Phase)
			require.Equal(t, uint64(1), last.Epoch)
		})
	}
}

// A look that could not see everything is never one of the two that find the node empty.
func TestDrainThatCannotSeeEverything(t *testing.T) {
	g := newGuests(t)
	unheard := "a store is away"
	g.round = func(context.Context, workspace.DrainInput) (workspace.DrainResult, error) {
		return workspace.DrainResult{Unheard: unheard}, nil
	}
	g.drain(10*time.Second, workspace.DrainRequest{})
	blind := g.look(time.Hour)
	g.environment.RegisterDelayedCallback(func() { unheard = "" }, time.Hour)
	last := g.look(2 * time.Hour)
	g.run(3 * time.Hour)
	require.Zero(t, blind.Drain.Drained)
	require.Equal(t, "a store is away", blind.Drain.Unheard)
	require.NotZero(t, last.Drain.Drained)
}

// Continue-as-new in the middle of a drain carries it on: what was counted stays counted, who was moved is not moved again,
// and a round that the run before had begun is over.
func TestDrainOverContinueAsNew(t *testing.T) {
	g := newGuests(t, "a", "b", "c")
	g.stuck = []string{"b", "c"}
	g.script = []ending{{after: time.Minute}} // the lease ends, and is renewed
	g.environment.SetContinueAsNewSuggested(true)
	g.drain(10*time.Second, workspace.DrainRequest{Deadline: time.Hour})
	g.environment.ExecuteWorkflow(workspace.NodeWorkflow, workspace.NodeInput{Node: "node-1"})
	var next *workflow.ContinueAsNewError
	require.ErrorAs(t, g.environment.GetWorkflowError(), &next)
	var input workspace.NodeInput
	require.NoError(t, converter.GetDefaultDataConverter().FromPayloads(next.Input, &input))
	require.Equal(t, []string{"b", "c"}, input.State.Drain.On)

	h := &guests{agents: newAgents(t), on: []string{"b", "c"}}
	h.round = h.move
	last := h.look(time.Minute)
	h.environment.RegisterDelayedCallback(h.environment.CancelWorkflow, 10*time.Minute)
	h.environment.ExecuteWorkflow(workspace.NodeWorkflow, input)
	require.Equal(t, []string{"b", "c"}, h.sent)
	require.Equal(t, 3, last.Drain.Moved)
	require.NotZero(t, last.Drain.Drained)
	require.Equal(t, "ada", last.Cordoned)
	require.Greater(t, h.drains[0].Round, g.drains[len(g.drains)-1].Round)
	require.Equal(t, g.drains[0].Plan.ID, h.drains[0].Plan.ID)
	require.True(t, g.drains[0].Plan.Deadline.Equal(h.drains[0].Plan.Deadline))
	require.Equal(t, 2*time.Minute, g.drains[len(g.drains)-1].Report, "a long history grows as fast as before")
	require.Zero(t, h.drains[0].Report)
}

// The node's workflow can be cancelled in every wait of a drain, and ends with it.
func TestDrainWhenTheWorkflowIsCancelled(t *testing.T) {
	for at := 10050 * time.Millisecond; at < 40*time.Second; at += 1500 * time.Millisecond {
		g := newGuests(t, "a", "b")
		g.stuck = []string{"b"}
		g.drain(10*time.Second, workspace.DrainRequest{})
		g.run(at)
		require.True(t, temporal.IsCanceledError(g.environment.GetWorkflowError()))
		require.LessOrEqual(t, g.environment.Now().Sub(g.begin), at+5*time.Second)
	}
}

func TestDrainOrdersAreChecked(t *testing.T) {
	g := newGuests(t)
	bad := g.drain(5*time.Second, workspace.DrainRequest{Parallel: 1000})
	stop := g.drain(5*time.Second+1, workspace.DrainRequest{Stop: true})
	none := g.order(6*time.Second, workspace.OrderUndrain, "ada")
	state := g.look(7 * time.Second)
	g.run(time.Minute)
	require.ErrorContains(t, *bad, "parallel")
	require.ErrorContains(t, *stop, "deadline")
	require.ErrorContains(t, *none, "not being drained")
	require.Nil(t, state.Drain)
	require.Empty(t, state.Cordoned)
	require.Zero(t, g.rounds())
}

// What a drain asks of a workspace never cuts a person's command, is never done twice, and not where the workspace is no longer.
func TestWhatADrainAsksFor(t *testing.T) {
	move, stop := workspace.MoveRequest{Subject: "the drain", From: nodeOne}, workspace.StopRequest{Subject: "the drain", From: nodeOne}
	for name, request := range map[string]any{workspace.UpdateMove: move, workspace.UpdateStop: stop} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.ask(0, workspace.UpdateStart, start())
			w.work(30 * time.Minute)
			w.ask(time.Hour, workspace.UpdateMove, workspace.MoveRequest{Subject: "ada"})
			var during *error
			w.fail = func(activity string, _ int) error {
				if activity != workspace.ActivityBackup || during != nil {
					return nil
				}
				during = w.ask(0, name, request)
				return errors.New("not at the first try") // so that the move is under way when it is asked
			}
			after := w.ask(2*time.Hour, name, request)
			last := w.look(3 * time.Hour)
			w.run(4 * time.Hour)
			require.ErrorContains(t, *during, "its move goes first")
			require.ErrorContains(t, *after, "it is not running on node node-1")
			require.Equal(t, nodeTwo, last.Instance.Node)
			require.Equal(t, uint64(2), last.Instance.Token, "it was moved once")

			v := newWorld(t)
			v.ask(0, workspace.UpdateStart, start())
			v.work(30 * time.Minute)
			first := v.ask(time.Hour, name, request)
			var second *error
			v.fail = func(activity string, _ int) error {
				if activity != workspace.ActivityBackup || second != nil {
					return nil
				}
				second = v.ask(0, name, request)
				return errors.New("not at the first try")
			}
			v.run(3 * time.Hour)
			require.NoError(t, *first)
			require.Error(t, *second)
			require.True(t, v.fullCopy())
		})
	}
}

// A move away from a node on which nothing new is placed ends with the workspace running there when no other starts it.
func TestMoveComesBackToACordonedNode(t *testing.T) {
	w := newWorld(t)
	w.fail = func(activity string, attempt int) error {
		if activity == workspace.ActivityStartInstance && attempt == 2 {
			return permanent(workspace.ErrorStartFailed, "the image does not start there")
		}
		return nil
	}
	w.setting(30*time.Minute, func() {
		state := w.nodes[nodeOne]
		state.Cordoned = "ada"
		w.nodes[nodeOne] = state
	})
	w.moved(workspace.MoveRequest{From: nodeOne})
	last := w.look(2 * time.Hour)
	w.run(3 * time.Hour)
	require.Equal(t, workspace.Running, last.Phase, "%+v", last.Recent)
	require.Equal(t, nodeOne, last.Instance.Node)
	require.Contains(t, recent(t, last, workspace.OperationMove).Error, "the image does not start there")
	require.Equal(t, w.newestContent, w.content[place(workspace.Target{Node: nodeOne, Token: last.Instance.Token})])
}
