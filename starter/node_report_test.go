package main

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"holdfast/workspace"
)

// TestNodeReport has every workspace that the loss of node-1 touched, and none of the others.
func TestNodeReport(t *testing.T) {
	lost := testNow.Add(-time.Minute)
	node := lostNode()
	node.LostAt = lost
	head := &workspace.Commit{Token: 1, Sequence: 1, Snapshot: "bbbb", Time: lost.Add(-90 * time.Second)}
	var lines []listedWorkspace
	for _, state := range []workspace.State{
		{Name: "atlas", Phase: workspace.Running, Owner: "ada", Instance: &workspace.Instance{Token: 2, Node: "node-2"}, Left: []workspace.Kept{{Node: "node-1", Token: 1}},
			Recovery: &workspace.Recovery{From: "node-1", To: "node-2", Snapshot: "aaaa", LostAt: lost, LostWork: 19 * time.Second}},
		{Name: "borealis", Phase: workspace.Running, Instance: &workspace.Instance{Token: 2, Node: "node-3"},
			Salvaged: []workspace.Salvaged{{Node: "node-1", Token: 1, Snapshot: "cccccccccccccccc", Saved: testNow}},
			Recovery: &workspace.Recovery{From: "node-1", To: "node-3", Snapshot: "bbbb", LostAt: lost}},
		{Name: "cygnus", Phase: workspace.Recovering, Reason: "node node-1 is lost; it is waited for", Head: head, Instance: &workspace.Instance{Token: 1, Node: "node-1"},
			Loss: &workspace.Loss{Node: "node-1", At: lost}},
		{Name: "draco", Phase: workspace.Running, Instance: &workspace.Instance{Token: 1, Node: "node-2"}},
		{Name: "eridanus", Phase: workspace.Recovering, Reason: "there is no snapshot", Instance: &workspace.Instance{Token: 1, Node: "node-1"}, Loss: &workspace.Loss{Node: "node-1", At: lost}},
		{Name: "gemini", Phase: workspace.Stopped, Left: []workspace.Kept{{Node: "node-1", Token: 1}}},
	} {
		lines = append(lines, listWorkspace(state, testNow))
	}
	lines = append(lines, listedWorkspace{Name: "fornax", Stale: true})
	control := &fakeControl{nodeStates: []workspace.NodeState{node}, workspaces: lines}
	r := runWith(t, control, "node", "report", "node-1")
	text := strings.Join(strings.Fields(r.stdout), " ")
	for _, part := range []string{
		"Node node-1 is lost since 2026-01-25 11:59:00 UTC (60 s ago).",
		"atlas Running node-2 at most 19 s - ada", "borealis Running node-3 nothing cccccccc -", "cygnus Recovering node-1 would lose 90 s - -", "eridanus Recovering node-1 waits for it - -",
		"cygnus: node node-1 is lost; it is waited for", "eridanus: there is no snapshot", "fornax did not answer: it may be touched, too",
		"gemini Stopped - not known any more - -",
		"5 workspaces: 3 went on without it, 1 of them lost nothing, 1 of them stopped or started again since; none is known to have lost more than the last 19 s of work; 2 did not yet.",
		"Saved is all that the node still had when it was back",
		"What only the node has of 2 workspaces is offered as a snapshot once it is back",
	} {
		wantIn(t, "the report", text, part)
	}
	if strings.Contains(text, "draco") || r.code != 0 {
		t.Errorf("code %d:\n%s", r.code, r.stdout)
	}
	for _, line := range strings.Split(r.stdout, "\n") {
		if len(line) > 80 {
			t.Errorf("wider than 80 columns: %q", line)
		}
	}

	r = runWith(t, control, "node", "report", "node-1", "-o", "json")
	var report lossReport
	if err := json.Unmarshal([]byte(r.stdout), &report); err != nil || len(report.Affected) != 5 || len(report.Silent) != 1 || report.Affected[3].LostWorkSeconds != nil ||
		*report.Affected[1].LostWorkSeconds != 0 || *report.Affected[0].LostWorkSeconds != 19 || report.Affected[2].Settled {
		t.Errorf("%v: %s", err, r.stdout)
	}

	node.ReturnedAt = testNow
	control = &fakeControl{nodeStates: []workspace.NodeState{node, {Info: workspace.NodeInfo{Name: "node-2"}, Phase: workspace.NodeReady}}}
	wantIn(t, "a node that is back", runWith(t, control, "node", "report", "node-1").stdout, "and is back since 2026-01-25 12:00:00 UTC", "No workspace is known to be touched by that")
	wantIn(t, "another node", runWith(t, control, "node", "report", "node-2").stdout, "Node node-2 was never lost.")
	if r := runWith(t, control, "node", "report", "node-9"); r.code != exitNotFound {
		t.Errorf("%+v", r)
	}
}
