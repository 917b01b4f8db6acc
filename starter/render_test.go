package main

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	"github.com/jedib0t/go-pretty/v6/text"

	"holdfast/devstack"
	"holdfast/keys"
	"holdfast/workspace"
)

var update = flag.Bool("update", false, "write the golden files anew")

// golden compares with testdata/<name>.txt and proves that no line is wider than a terminal.
func golden(t *testing.T, name, got string) {
	t.Helper()
	for line := range strings.Lines(got) {
		if n := utf8.RuneCountInString(strings.TrimRight(line, "\n")); n > columns && !strings.Contains(line, snapshotB) { // a command with a whole id is not broken
			t.Errorf("%s: a line has %d columns: %s", name, n, line)
		}
	}
	path := filepath.Join("testdata", name+".txt")
	if *update {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s (go test ./starter -update writes it anew):\n%s", name, diff)
	}
}

func someWorkspaces() []listedWorkspace {
	return []listedWorkspace{
		{Name: "api", Owner: "ada", Phase: "Running", Since: testNow.Add(-3 * time.Hour), Node: "node-1", LastSnapshot: testNow.Add(-25 * time.Minute),
			RecoveryPoint: &workspace.RecoveryPoint{Snapshot: snapshotA, Time: testNow.Add(-2 * time.Minute), AgeSeconds: 120, Unchanged: true, IntervalSeconds: 300, BoundSeconds: 312}},
		{Name: "late", Owner: "ada", Phase: "Running", Since: testNow.Add(-3 * time.Hour), Node: "node-2",
			RecoveryPoint: &workspace.RecoveryPoint{AgeSeconds: 10800, IntervalSeconds: 300, BoundSeconds: 300, Exceeded: true}},
		{Name: "off", Owner: "ada", Phase: "Running", Since: testNow.Add(-3 * time.Hour), Node: "node-2", LastSnapshot: testNow.Add(-5 * time.Hour),
			RecoveryPoint: &workspace.RecoveryPoint{Snapshot: snapshotB, Time: testNow.Add(-3 * time.Hour), AgeSeconds: 10800}},
		{Name: strings.Repeat("long-name-", 6) + "end", Owner: "somebody-with-a-long-name", Phase: "Stopping", Since: testNow.Add(-40 * time.Second), Node: "a-node-with-a-long-name-too"},
		{Name: "web", Owner: "bob", Phase: "Stopped", Since: testNow.Add(-72 * time.Hour), LastSnapshot: testNow.Add(-73 * time.Hour), Stale: true},
	}
}

func someState() workspace.State {
	return workspace.State{
		Name: "web", ID: "abcdefghijklmnopqrstuvwxyz", Owner: "ada", Created: testNow.Add(-48 * time.Hour), Phase: workspace.Blocked, Since: testNow.Add(-time.Hour),
		Reason: "the last stop left something out", Spec: workspace.Spec{Volume: workspace.Volume{Kind: workspace.VolumeLocal, SizeBytes: 10 << 30}, Environment: []string{"A", "B"}},
		Source: workspace.Source{Kind: workspace.SourceGit, Describe: "https://host/x.git"},
		Head:   &workspace.Commit{Snapshot: snapshotA, Kind: "live", Token: 2, Sequence: 3, Time: testNow.Add(-90 * time.Minute), Files: 10024, Bytes: 512 << 20},
		Kept:   &workspace.Kept{Node: "node-1", Token: 2, Snapshot: snapshotB, Why: "the snapshot has omissions", Owed: []string{"gs://holdfast"}},
		Block: &workspace.Block{Type: workspace.ErrorOmissions, Message: "2 things could not be read", Omitted: 2, Mend: "make them readable and stop again, or accept the list",
			Omissions: []workspace.Omission{{Path: "secrets/key.pem", Kind: "unreadable", Reason: "permission denied"}, {Path: "db/wal", Kind: "changed while read", Reason: "3 times"}}},
		Recent: []workspace.Operation{
			{Kind: workspace.OperationStart, Began: testNow.Add(-26 * time.Hour), Ended: testNow.Add(-26*time.Hour + 4*time.Second)},
			{Kind: workspace.OperationStop, Began: testNow.Add(-2 * time.Hour), Ended: testNow.Add(-time.Hour), Failed: true, Error: "2 things could not be read"},
		},
	}
}

// running is snapshotted by a timer, which has not been able to for a while.
func runningState() workspace.State {
	state := someState()
	state.Phase, state.Reason, state.Since = workspace.Running, "on node node-1", testNow.Add(-3*time.Hour)
	state.Kept, state.Block, state.Recent = nil, nil, nil
	state.Instance = &workspace.Instance{Token: 2, Node: "node-1", Began: testNow.Add(-3 * time.Hour), Container: "c0ffee"}
	state.Head.Time = testNow.Add(-70 * time.Minute)
	state.Spec.Hooks = []workspace.Hook{{When: workspace.HookPreStop, Command: "./save.sh"}, {When: workspace.HookPreSnapshot, Command: "psql -c CHECKPOINT", TimeoutSeconds: 60, OnError: workspace.HookFail}}
	state.Hooks = []workspace.HookResult{{When: workspace.HookPreSnapshot, Time: testNow.Add(-3 * time.Minute), Outcome: workspace.HookFailed, ExitCode: 2, TookMillis: 1234}}
	state.Protection = &workspace.Protection{
		Token: 2, Snapshot: snapshotA, Time: testNow.Add(-20 * time.Minute), Unchanged: true, TookMillis: 11_400, Due: testNow.Add(93 * time.Second),
		Failures: 3, LastFailure: &workspace.SnapshotFailure{Time: testNow.Add(-3 * time.Minute), Step: workspace.StepBackup,
			Error: `backing up: opening the repository: Get "http://storage.holdfast.test:4443/config": lookup storage.holdfast.test: all 3 servers failed: no answer`},
	}
	return state
}

// watchedState is stopped by itself when it is not used for 2 hours; its person has put that off.
func watchedState() workspace.State {
	state := runningState()
	state.Protection.Failures, state.Protection.LastFailure, state.Spec.Hooks, state.Hooks = 0, nil, nil, nil
	state.Spec.Stop = workspace.StopPolicy{IdleSeconds: 7200, LifetimeSeconds: 72 * 3600}
	state.Watch = &workspace.Watch{Token: 2, Since: testNow.Add(-3 * time.Hour), Used: testNow.Add(-116 * time.Minute), Use: "its processes took 97 % of a processor",
		Keep: &workspace.Keep{By: "ada", At: testNow.Add(-time.Minute), Until: testNow.Add(4 * time.Hour)}}
	return state
}

// warnedState is stopped in four minutes.
func warnedState() workspace.State {
	state := watchedState()
	state.Watch.Keep, state.Watch.Warned, state.Watch.WarnedOf = nil, testNow.Add(-6*time.Minute), workspace.StopIdle
	state.Recent = []workspace.Operation{{Kind: workspace.OperationStop, Began: testNow.Add(-4 * time.Hour), Ended: testNow.Add(-4*time.Hour + time.Second), Cause: "it was not used for 2h"}}
	return state
}

// afterHours runs on outside of its hours because it is used.
func afterHours() workspace.State {
	state := watchedState()
	state.Spec.Stop = workspace.StopPolicy{Hours: "Mon-Fri 08:00-20:00 Europe/Berlin"}
	state.Watch.Keep, state.Watch.Used = nil, testNow.Add(-5*time.Minute)
	state.Watch.Warned, state.Watch.WarnedOf = testNow.Add(-time.Hour), workspace.StopHours
	state.Watch.Outside = &workspace.Outside{Hours: state.Spec.Stop.Hours, From: testNow.Add(-2 * time.Hour), Begins: testNow.Add(-45 * time.Minute), Ends: testNow.Add(11 * time.Hour)}
	return state
}

func TestRendering(t *testing.T) {
	var out bytes.Buffer
	rendered := func(do func()) string { out.Reset(); do(); return out.String() }
	golden(t, "list", rendered(func() { renderWorkspaces(&out, someWorkspaces(), testNow, false) }))
	golden(t, "list-empty", rendered(func() { renderWorkspaces(&out, nil, testNow, false) }))
	golden(t, "show", rendered(func() { renderState(&out, someState(), testNow, false) }))
	golden(t, "show-excluded", rendered(func() {
		state := someState()
		state.Head.Excluded = &workspace.Excluded{
			Count: 2, Paths: []workspace.Exclusion{{Path: "build/", Pattern: "build/", File: ".holdfastignore"}, {Path: "lib/a.o", Pattern: "*.o", File: "lib/.holdfastignore"}},
			Problems: []string{"doc/.holdfastignore leaves nothing out: it is not a regular file"},
		}
		renderState(&out, state, testNow, false)
	}))
	instances := 12
	golden(t, "nodes", rendered(func() {
		renderNodes(&out, []listedNode{
			{Name: "node-1", Phase: "Ready", Since: testNow.Add(-time.Hour), Engine: "docker", Address: "127.0.0.1:40001", nodeLoad: nodeLoad{Instances: &instances, PausedCount: 3}},
			{Name: "node-2", Phase: "Suspect", Since: testNow.Add(-12 * time.Second), Engine: "process", Address: "127.0.0.1:40002", Reason: "the lease timed out and has been offered again"},
			{Name: "node-3", Stale: true},
		}, testNow)
	}))
	golden(t, "snapshots-excluded", rendered(func() {
		renderSnapshots(&out, []workspace.SnapshotLine{
			{Snapshot: snapshotB, Time: testNow.Add(-50 * time.Hour), Kind: "live", Token: 1, Sequence: 1, Files: 900, Bytes: 3 << 20, Excluded: 1200, Providers: []string{"gs://b", "file:///s"}},
			{Snapshot: snapshotA, Time: testNow.Add(-90 * time.Minute), Kind: "final", Token: 2, Sequence: 1, Files: 1_234_567, Bytes: 512 << 30, Head: true, Providers: []string{"gs://b"}},
		}, testNow)
	}))
	golden(t, "snapshots", rendered(func() {
		renderSnapshots(&out, []workspace.SnapshotLine{
			{Snapshot: snapshotB, Time: testNow.Add(-50 * time.Hour), Kind: "live", Token: 1, Sequence: 1, Files: 900, Bytes: 3 << 20, Omitted: 2, Providers: []string{"gs://b", "file:///s"}},
			{Snapshot: snapshotA, Time: testNow.Add(-90 * time.Minute), Kind: "final", Token: 2, Sequence: 1, Files: 1_234_567, Bytes: 512 << 30, Head: true, Providers: []string{"gs://b"}},
			{Snapshot: snapshotB, Time: testNow.Add(-90 * time.Second), Kind: "recovered", Files: 1, Bytes: 1},
		}, testNow)
	}))
	pending := []workspace.PendingActivity{{Name: workspace.ActivityBackup, State: workspace.ActivityScheduled, Attempt: 4, NextAttempt: testNow.Add(35 * time.Second),
		LastFailure: `backing up: storing pack 4f2a: Put "http://storage.holdfast.test:4443/upload": lookup storage.holdfast.test: all 3 servers failed: no answer`,
		Checkpoint:  &workspace.BackupCheckpoint{Files: 5120, TotalFiles: 10024, Bytes: 100 << 20, TotalBytes: 512 << 20, BytesUploaded: 34 << 20, Note: "no DNS server answers"}}}
	golden(t, "why", rendered(func() {
		renderExplanation(&out, workspace.Explain(stopping(workspace.StepBackup), pending, testNow), testNow, false)
	}))
	golden(t, "why-blocked", rendered(func() { renderExplanation(&out, workspace.Explain(someState(), nil, testNow), testNow, false) }))
	golden(t, "show-running", rendered(func() { renderState(&out, runningState(), testNow, false) }))
	golden(t, "show-retention", rendered(func() {
		state := runningState()
		state.Spec.Retention = workspace.Retention{Last: 6, Daily: 7}
		state.Retaining = &workspace.Retaining{Made: 3, Time: testNow.Add(-61 * time.Minute), Forgotten: 11, Kept: 12, Pruned: testNow.Add(-9 * time.Hour), PrunedBytes: 35 << 20}
		renderRetention(&out, state, testNow)
		state.Retaining.Failures, state.Retaining.LastFailure = 2, &workspace.SnapshotFailure{Time: testNow.Add(-time.Minute), Step: workspace.StepForget,
			Error: "nothing is removed: reading catalog/workspaces/x/: gs://b: dial tcp: i/o timeout"}
		renderRetention(&out, state, testNow)
		state.Spec.Retention, state.Retaining = workspace.Retention{}, nil
		renderRetention(&out, state, testNow)
		state.Spec.Retention = workspace.Retention{Off: true}
		renderRetention(&out, state, testNow)
		state.Spec.Retention, state.Spec.Snapshots.Off = workspace.Retention{}, true
		renderRetention(&out, state, testNow)
	}))
	golden(t, "why-running", rendered(func() { renderExplanation(&out, workspace.Explain(runningState(), nil, testNow), testNow, false) }))
	golden(t, "show-warned", rendered(func() { renderState(&out, warnedState(), testNow, false) }))
	golden(t, "why-warned", rendered(func() { renderExplanation(&out, workspace.Explain(warnedState(), nil, testNow), testNow, false) }))
	golden(t, "list-warned", rendered(func() {
		renderWorkspaces(&out, []listedWorkspace{listWorkspace(warnedState(), testNow), listWorkspace(watchedState(), testNow)}, testNow, false)
	}))
	golden(t, "why-kept", rendered(func() { renderExplanation(&out, workspace.Explain(watchedState(), nil, testNow), testNow, false) }))
	golden(t, "why-silent", rendered(func() {
		state := watchedState()
		state.Watch.Keep, state.Watch.Failures, state.Watch.Failure = nil, 3, "looking for the instance: the container engine cannot be reached"
		state.Spec.Stop.LifetimeSeconds = 0
		renderExplanation(&out, workspace.Explain(state, nil, testNow), testNow, false)
	}))
	golden(t, "show-hours", rendered(func() { renderState(&out, afterHours(), testNow, false) }))
	golden(t, "why-hours", rendered(func() {
		state := afterHours()
		state.Watch.WarnedOf, state.Watch.Warned = "", time.Time{}
		state.Watch.Outside = &workspace.Outside{Hours: state.Spec.Stop.Hours, From: testNow.Add(-time.Minute), Ends: testNow.Add(59 * time.Minute), Problem: "find the time zone of the hours: unknown time zone Europe/Berlin"}
		renderExplanation(&out, workspace.Explain(state, nil, testNow), testNow, false)
	}))
	golden(t, "list-hours", rendered(func() {
		renderWorkspaces(&out, []listedWorkspace{listWorkspace(afterHours(), testNow)}, testNow, false)
	}))
	golden(t, "doctor", rendered(func() {
		renderFindings(&out, []finding{
			{Check: "temporal", Verdict: verdictOK, Detail: "version 1.32.1 answers at 127.0.0.1:7233"},
			{Check: "dns 127.0.0.1:5301", Verdict: verdictWarn, Detail: "lookup storage.holdfast.test: no answer", Mend: "mend this server or name others with --dns; backups go on while another answers, or with last good answers"},
			{Check: "store file:///srv/store", Verdict: verdictFail, Detail: "writing: permission denied", Mend: "check the credentials of this user and what they may do there"},
		})
	}))
	golden(t, "dev", rendered(func() {
		master, _ := keys.LocalKeyURL("/var/lib/holdfast/keys/master.key")
		describeStack(&out, devstack.StackFile{DataDir: "/var/lib/holdfast", TemporalAddress: "127.0.0.1:7233", Namespace: "holdfast", UIURL: "http://127.0.0.1:8233",
			CodecEndpoint: "http://127.0.0.1:8233/codec", CodecToken: "token", MasterKey: master, Stores: []string{"gs://holdfast", "file:///var/lib/holdfast/store"}, Policy: "any",
			Nodes: []string{"node-1", "node-2"}})
	}))
	golden(t, "errors", rendered(func() {
		exitCode(explainRemote("web", workspace.ErrNotFound), &out)
		exitCode(unreachable(os.ErrDeadlineExceeded), &out)
		exitCode(failedOperation(workspace.Operation{Kind: workspace.OperationStop, Ended: testNow, Failed: true, Error: "2 things of web could not be read", ErrorType: workspace.ErrorOmissions}, someState()), &out)
	}))
}

// TestColours proves that they never change the layout, and are absent where they are not wanted.
func TestColours(t *testing.T) {
	var plain, coloured bytes.Buffer
	renderWorkspaces(&plain, someWorkspaces(), testNow, false)
	renderWorkspaces(&coloured, someWorkspaces(), testNow, true)
	if strings.Contains(plain.String(), "\x1b") || !strings.Contains(coloured.String(), "\x1b") {
		t.Error("colours are not where they belong")
	}
	if text.StripEscape(coloured.String()) != plain.String() {
		t.Error("colours change the layout")
	}
}

func TestJSON(t *testing.T) {
	control := &fakeControl{looks: []look{{state: someState()}}, workspaces: someWorkspaces(), nodes: []listedNode{{Name: "node-1", Phase: "Ready"}},
		snapshots: workspace.SnapshotsResult{WorkspaceID: "id"}}
	p := newTestProgram(t, control)
	decode := func(into any, args ...string) {
		t.Helper()
		p.out.Reset()
		if code := p.run(args...); code != exitDone {
			t.Fatalf("%v: exit code %d: %s", args, code, p.errs.String())
		}
		if err := json.Unmarshal(p.out.Bytes(), into); err != nil {
			t.Fatalf("%v: %v in %s", args, err, p.out.String())
		}
	}
	var listed []map[string]any
	decode(&listed, "list", "-o", "json")
	if len(listed) != 5 || listed[0]["name"] != "api" || listed[0]["phase"] != "Running" || listed[4]["stale"] != true {
		t.Errorf("list: %v", listed)
	}
	decode(&listed, "list", "-o", "json", "--owner", "nobody")
	if strings.TrimSpace(p.out.String()) != "[]" {
		t.Errorf("an empty list is %s", p.out.String())
	}
	decode(&listed, "list", "-o", "json", "--state", "stopped")
	if len(listed) != 1 || listed[0]["name"] != "web" {
		t.Errorf("filtered: %v", listed)
	}
	var shown workspace.State
	decode(&shown, "show", "web", "-o", "json")
	if diff := cmp.Diff(someState(), shown); diff != "" {
		t.Error(diff)
	}
	control.looks = []look{{state: runningState()}}
	var running struct {
		Phase         workspace.Phase          `json:"phase"`
		RecoveryPoint *workspace.RecoveryPoint `json:"recovery_point"`
	}
	decode(&running, "show", "web", "-o", "json")
	if running.Phase != workspace.Running || running.RecoveryPoint == nil || running.RecoveryPoint.AgeSeconds != 1200 || running.RecoveryPoint.BoundSeconds != 312 || !running.RecoveryPoint.Exceeded {
		t.Errorf("show: %+v, %+v", running, running.RecoveryPoint)
	}
	control.looks = []look{{state: someState()}}
	var why map[string]any
	decode(&why, "why", "web", "-o", "json")
	for _, field := range []string{"name", "phase", "doing", "safe", "can"} {
		if why[field] == nil {
			t.Errorf("why lacks %s: %v", field, why)
		}
	}
	var snapshots map[string]any
	decode(&snapshots, "snapshots", "web", "-o", "json")
	if list, ok := snapshots["snapshots"].([]any); !ok || len(list) != 0 {
		t.Errorf("snapshots: %v", snapshots)
	}
	decode(&listed, "node", "list", "-o", "json")
	if len(listed) != 1 || listed[0]["name"] != "node-1" {
		t.Errorf("nodes: %v", listed)
	}
}

func TestProgressLines(t *testing.T) {
	var out bytes.Buffer
	now := testNow
	l := &lines{w: &out, now: func() time.Time { return now }}
	l.Update(status{key: "a", text: "first"})
	l.Update(status{key: "b", text: "too soon"})
	now = now.Add(2 * time.Second)
	l.Update(status{key: "b", text: "second", detail: "more"})
	now = now.Add(2 * time.Second)
	l.Update(status{key: "b", text: "second, further"})
	now = now.Add(4 * time.Second)
	l.Update(status{key: "b", text: "second, further"})
	l.Update(status{key: "b", text: "second, further"})
	if want := "first\nsecond\n  more\nsecond, further\n"; out.String() != want {
		t.Errorf("got %q, want %q", out.String(), want)
	}
}

// TestProgressBars proves that bars draw on a terminal without ever ending a line by themselves, and clear themselves.
func TestProgressBars(t *testing.T) {
	var out bytes.Buffer
	b := newProgress(&out, true, time.Now)
	for i := range int64(5) {
		b.Update(status{key: "backing up", text: "web: backing up", done: i << 20, total: 4 << 20})
	}
	b.Update(status{key: "verify", text: "web: verifying " + strings.Repeat("long ", 40)})
	b.Close()
	b.Close()
	if !strings.Contains(out.String(), "\x1b[2K") {
		t.Error("lines are not erased")
	}
	if !strings.Contains(out.String(), "backing up") || strings.Contains(out.String(), "\n") {
		t.Errorf("drew %q", out.String())
	}
	for piece := range strings.SplitSeq(out.String(), "\r") {
		if n := utf8.RuneCountInString(text.StripEscape(piece)); n > columns {
			t.Errorf("%d columns: %q", n, piece)
		}
	}
}
