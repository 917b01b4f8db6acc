package main

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"go.temporal.io/sdk/temporal"

	"holdfast/workspace"
)

type ranCommand struct {
	code           int
	stdout, stderr string
}

func runWith(t *testing.T, control *fakeControl, args ...string) ranCommand {
	t.Helper()
	p := newTestProgram(t, control)
	code := p.run(args...)
	return ranCommand{code, p.out.String(), p.errs.String()}
}

func lostNode() workspace.NodeState {
	return workspace.NodeState{
		Info:  workspace.NodeInfo{Name: "node-1", Engine: "docker", Address: "10.0.0.1:7000", Version: "1"},
		Phase: workspace.NodeLost, Reason: "it does not take its lease", Since: testNow.Add(-time.Minute), Epoch: 4, Cordoned: "ada",
		Loss: &workspace.NodeLoss{At: testNow.Add(-time.Minute), Heard: testNow.Add(-85 * time.Second), Proceed: "bob"},
	}
}

func TestNodeShow(t *testing.T) {
	control := &fakeControl{nodeStates: []workspace.NodeState{lostNode()}}
	r := runWith(t, control, "node", "show", "node-1")
	for _, word := range []string{"Lost for 60 s", "it does not take its lease", "last heard of at 2026-01-25 11:58:35 UTC", "by ada", "bob said so", "epoch 4"} {
		if !strings.Contains(strings.Join(strings.Fields(r.stdout), " "), word) {
			t.Errorf("%q is missing in\n%s", word, r.stdout)
		}
	}
	r = runWith(t, control, "node", "show", "node-1", "-o", "json")
	var state workspace.NodeState
	if err := json.Unmarshal([]byte(r.stdout), &state); err != nil || state.Loss == nil || state.Epoch != 4 {
		t.Errorf("%v: %s", err, r.stdout)
	}
}

func TestNodeOrders(t *testing.T) {
	for _, kind := range []workspace.NodeOrderKind{workspace.OrderDead, workspace.OrderProceed, workspace.OrderCordon, workspace.OrderUncordon} {
		control := &fakeControl{nodeStates: []workspace.NodeState{lostNode()}}
		if r := runWith(t, control, "node", string(kind), "node-1"); r.code != 0 || !strings.Contains(r.stdout, "node-1") {
			t.Errorf("%s: %+v", kind, r)
		}
		order, ok := control.updates[0].(workspace.NodeOrder)
		if !ok || order.Kind != kind || order.Subject == "" {
			t.Errorf("%s: asked for %+v", kind, control.updates)
		}
	}
	refused := &fakeControl{nodeStates: []workspace.NodeState{lostNode()},
		accepted: temporal.NewNonRetryableApplicationError("node node-1: it is Ready", string(workspace.ErrorRefused), nil)}
	if r := runWith(t, refused, "node", "dead", "node-1"); r.code != exitRefused || !strings.Contains(r.stderr, "holdfast node show node-1") {
		t.Errorf("refused: %+v", r)
	}
	for code, args := range map[int][]string{exitNotFound: {"node", "dead", "node-9"}, exitUsage: {"node", "dead", "Not a name"}} {
		if r := runWith(t, refused, args...); r.code != code {
			t.Errorf("%v: %+v", args, r)
		}
	}
}
