package main

import (
	"context"
	"strings"
	"testing"
	"time"

	"go.temporal.io/sdk/temporal"

	"holdfast/workspace"
)

func drainedNode(change func(*workspace.NodeDrain)) workspace.NodeState {
	drain := &workspace.NodeDrain{
		DrainPlan: workspace.DrainPlan{ID: "d", By: "ada", Began: testNow.Add(-time.Minute), Parallel: 4, Deadline: testNow.Add(time.Hour)},
		Looked:    testNow, Moved: 3, On: []string{"atlas", "web"},
		Moving:  []workspace.DrainItem{{Name: "atlas", Why: "backing up"}},
		Waiting: []workspace.DrainItem{{Name: "web", Why: "there is no node that takes it", Mend: "make room", Again: testNow.Add(time.Minute)}},
	}
	if change != nil {
		change(drain)
	}
	return workspace.NodeState{Info: workspace.NodeInfo{Name: "node-1"}, Phase: workspace.NodeReady, Cordoned: "ada", Drain: drain}
}

// A drain is followed until the node is drained; how it came out decides the exit code.
func TestDrainIsFollowed(t *testing.T) {
	for name, test := range map[string]struct {
		change func(*workspace.NodeDrain)
		code   int
		says   []string
	}{
		"drained": {func(d *workspace.NodeDrain) { d.On, d.Moved, d.Drained = nil, 5, testNow }, exitDone,
			[]string{"node node-1 is drained: 5 moved", "It stays cordoned", "holdfast node uncordon node-1"}},
		"something is left": {func(d *workspace.NodeDrain) {
			d.On, d.Drained, d.LeftCount = nil, testNow, 2
			d.Left = []workspace.DrainItem{{Name: "old", Why: "it was deleted", Only: true}}
		}, exitOwed, []string{"old: it was deleted (nowhere else, as far as is known)", "and 1 more", "copy it first"}},
		"ended by another": {func(d *workspace.NodeDrain) { d.Ended, d.Why = testNow, "bob uncordoned the node" }, exitFailed,
			[]string{"ended before it was done: bob uncordoned the node", "2 were still there", "nothing was dropped"}},
		"lost": {func(d *workspace.NodeDrain) {
			d.Ended, d.End, d.Why = testNow, workspace.DrainNodeLost, "the node was lost"
		}, exitFailed,
			[]string{"ended before it was done: the node was lost"}},
	} {
		t.Run(name, func(t *testing.T) {
			control := &fakeControl{nodeStates: []workspace.NodeState{drainedNode(nil)}}
			p := newTestProgram(t, control)
			waits := 0
			p.waited = func() {
				if waits++; waits == 3 {
					control.nodeStates[0] = drainedNode(test.change)
				}
			}
			code := p.run("node", "drain", "node-1")
			if code != test.code {
				t.Errorf("exit code %d: %s%s", code, p.out.String(), p.errs.String())
			}
			wantIn(t, name, p.out.String()+p.errs.String(), append(test.says, "node-1 is being drained by ada: 3 moved, 1 being moved, 2 still there",
				"web: there is no node that takes it; tried again at 12:01:00 UTC; mend: make room")...)
		})
	}
}

func TestDrainOrders(t *testing.T) {
	for line, want := range map[string]workspace.NodeOrder{
		"node drain node-1 --detach": {Kind: workspace.OrderDrain, Subject: "ada", Drain: &workspace.DrainRequest{Parallel: 4, Deadline: time.Hour}},
		"node drain node-1 -d --parallel 9 --deadline 5m --stop-at-deadline": {Kind: workspace.OrderDrain, Subject: "ada",
			Drain: &workspace.DrainRequest{Parallel: 9, Deadline: 5 * time.Minute, Stop: true}},
		"node drain node-1 -d --deadline 0": {Kind: workspace.OrderDrain, Subject: "ada", Drain: &workspace.DrainRequest{Parallel: 4}},
		"node drain --disable node-1":       {Kind: workspace.OrderUndrain, Subject: "ada"},
	} {
		control := &fakeControl{nodeStates: []workspace.NodeState{drainedNode(nil)}}
		r := runWith(t, control, strings.Fields(line)...)
		if r.code != exitDone || !strings.Contains(r.stdout, "node-1") {
			t.Errorf("%s: %+v", line, r)
			continue
		}
		got := control.updates[0].(workspace.NodeOrder)
		if got.Kind != want.Kind || got.Subject != want.Subject || (got.Drain == nil) != (want.Drain == nil) || got.Drain != nil && *got.Drain != *want.Drain {
			t.Errorf("%s: asked for %+v", line, got)
		}
	}
	for _, line := range []string{"node drain", "node drain node-1 --parallel 0", "node drain node-1 --parallel 65", "node drain node-1 --deadline -1s",
		"node drain node-1 --deadline 0 --stop-at-deadline", "node drain node-1 --disable --parallel 2"} {
		control := &fakeControl{nodeStates: []workspace.NodeState{drainedNode(nil)}}
		if r := runWith(t, control, strings.Fields(line)...); r.code != exitUsage || len(control.updates) > 0 {
			t.Errorf("%s: %+v", line, r)
		}
	}
	refused := &fakeControl{nodeStates: []workspace.NodeState{drainedNode(nil)},
		accepted: temporal.NewNonRetryableApplicationError("node node-1: it is lost", string(workspace.ErrorRefused), nil)}
	if r := runWith(t, refused, "node", "drain", "node-1"); r.code != exitRefused {
		t.Errorf("refused: %+v", r)
	}
}

// Ctrl-C ends the following and nothing else, and says so; so does the time to wait.
func TestDrainGoesOnWithoutUs(t *testing.T) {
	control := &fakeControl{nodeStates: []workspace.NodeState{drainedNode(nil)}}
	p := newTestProgram(t, control)
	ctx, cancel := context.WithCancelCause(context.Background())
	p.waited = func() { cancel(errInterrupted) }
	code := p.runContext(ctx, "node", "drain", "node-1")
	if code != exitTimedOut || len(control.updates) != 1 {
		t.Errorf("exit code %d, asked for %v", code, control.updates)
	}
	wantIn(t, "Ctrl-C", p.errs.String(), "the drain of node node-1 goes on", "nothing was interrupted or undone", "holdfast node drain --disable node-1")
}

func TestDrainIsShown(t *testing.T) {
	control := &fakeControl{nodeStates: []workspace.NodeState{drainedNode(func(d *workspace.NodeDrain) { d.Unheard = "a store is away" })}}
	r := runWith(t, control, "node", "show", "node-1")
	wantIn(t, "show", r.stdout, "being drained by ada: 3 moved, 1 being moved, 2 still there", "4 at once, deadline 2026-01-25 13:00:00 UTC", "atlas: backing up",
		"web: there is no node that takes it; tried again at 12:01:00 UTC; mend: make room", "not everything could be seen: a store is away")
	control.nodeStates[0] = drainedNode(func(d *workspace.NodeDrain) {
		d.Ended, d.Why = testNow.Add(-time.Minute), "bob ended it; the node stays cordoned"
	})
	wantIn(t, "ended", runWith(t, control, "node", "show", "node-1").stdout, "its drain ended: bob ended it", "ended 60 s ago")

	control = &fakeControl{nodeStates: []workspace.NodeState{drainedNode(nil)}, looks: []look{{state: workspace.State{
		Name: "web", Phase: workspace.Running, Since: testNow, Instance: &workspace.Instance{Node: "node-1", Token: 1},
	}}}}
	wantIn(t, "why", runWith(t, control, "why", "web").stdout, "its node is being drained by ada: there is no node that takes it", "mend: make room")
	if reason := nodeReason(drainedNode(nil), testNow); !strings.Contains(reason, "cordoned by ada; being drained by ada: 3 moved") {
		t.Error(reason)
	}
}
