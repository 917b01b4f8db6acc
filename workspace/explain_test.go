package workspace

import (
	"strings"
	"testing"
	"time"
)

var explainNow = time.Date(2026, 1, 25, 12, 0, 0, 0, time.UTC)

const snapshotA = "aaaaaaaa00000000000000000000000000000000000000000000000000000000"

func explainHead() *Commit {
	return &Commit{Token: 1, Sequence: 1, Snapshot: snapshotA, Kind: "final", Time: explainNow.Add(-3 * time.Hour), Files: 10, Bytes: 2048}
}

// TestExplain proves D7: for every phase, what is done, the attempt, the last error, the next retry, what is safe and
// what the person can do.
func TestExplain(t *testing.T) {
	instance := &Instance{Token: 2, Node: "n1"}
	operation := func(kind OperationKind, step Step) *Operation { return &Operation{ID: "op", Kind: kind, Step: step} }
	cases := []struct {
		name    string
		state   State
		pending []PendingActivity
		doing   []string
		undoing []string // must not be in doing
		reason  string   // what Block.Message became; "" not looked at
		safe    []string
		unsafe  []string // must not be claimed
		can     []string
		cannot  []string
	}{
		{name: "pending", state: State{Phase: Pending},
			doing: []string{"never been started"}, safe: []string{"no content yet"}, can: []string{"holdfast start w"}, cannot: []string{"download"}},
		{name: "first start before content", state: State{Phase: Starting, Incomplete: true, Instance: instance, Operation: operation(OperationStart, StepImage)},
			doing: []string{"start: preparing the image"}, safe: []string{"nothing to lose"}, unsafe: []string{"node n1"}, can: []string{"holdfast stop w"}, cannot: []string{"download", "logs"}},
		{name: "a first start that failed", state: State{Phase: Pending, Incomplete: true, Source: Source{Kind: SourceGit}, Recent: []Operation{{Kind: OperationStart, Failed: true}}},
			doing: []string{"has never run"}, can: []string{"holdfast start w", "holdfast delete w"}, cannot: []string{"download"}},
		{name: "an upload that never came", state: State{Phase: Pending, Incomplete: true, Source: Source{Kind: SourceUpload}, Recent: []Operation{{Kind: OperationStart, Failed: true}}},
			can: []string{"holdfast start w --from-dir DIR", "holdfast delete w"}},
		{name: "starting the instance", state: State{Phase: Starting, Instance: instance, Operation: operation(OperationStart, StepRun)},
			can: []string{"holdfast logs w -f", "holdfast stop w"}},
		{name: "restart before content: the base is the newest", state: State{Phase: Starting, Head: explainHead(), Instance: instance, Operation: operation(OperationStart, StepContent)},
			doing: []string{"preparing the content"}, safe: []string{"aaaaaaaa (final)", "3 h ago", "every store"}, unsafe: []string{"node n1"}, can: []string{"download"}},
		{name: "restart after content", state: State{Phase: Starting, Head: explainHead(), Instance: instance, Operation: operation(OperationStart, StepRun)},
			safe: []string{"node n1 (instance 2)", "aaaaaaaa"}},
		{name: "adopting start", state: State{Phase: Starting, Instance: &Instance{Token: 3, Node: "n1", Adopted: 2}, Operation: operation(OperationStart, StepPlace)},
			safe: []string{"node n1 (instance 3)"}},
		{name: "running without a snapshot says so", state: State{Phase: Running, Instance: instance},
			doing: []string{"it is running"}, safe: []string{"node n1", "no snapshot has been committed"}, unsafe: []string{"every store"},
			can: []string{"holdfast stop w", "holdfast backup w", "holdfast shell w", "holdfast download w"}},
		{name: "running with a live snapshot that a store lacks", state: State{Phase: Running, Instance: instance, Head: explainHead(),
			Recent: []Operation{{Kind: OperationBackup, Snapshot: snapshotA, Owed: []string{"gs://b"}}}},
			safe: []string{"owed to gs://b"}, unsafe: []string{"every store"}},
		{name: "released since", state: State{Phase: Stopped, Head: explainHead(),
			Recent: []Operation{{Kind: OperationStop, Snapshot: snapshotA, Owed: []string{"gs://b"}}, {Kind: OperationRelease}}},
			doing: []string{"stopped and backed up"}, safe: []string{"every store"}, unsafe: []string{"owed"}},
		{name: "stopped by taking a stop back that then could not start", state: State{Phase: Stopped, Kept: &Kept{Node: "n1", Token: 1, Held: true, Why: "it is not backed up"}},
			doing: []string{"n1 stays there", "nobody is backing it up"}, unsafe: []string{"every store"},
			can: []string{"holdfast start w", "holdfast stop w", "holdfast download w"}, cannot: []string{"holdfast delete"}},
		{name: "stopping, DNS away", state: State{Phase: Stopping, Instance: instance, Operation: operation(OperationStop, StepBackup)},
			pending: []PendingActivity{{Name: ActivityBackup, State: ActivityScheduled, Attempt: 4, NextAttempt: explainNow.Add(35 * time.Second),
				LastFailure: `put: dial: lookup storage.googleapis.com: no such host`,
				Checkpoint:  &BackupCheckpoint{Files: 5, TotalFiles: 10, Bytes: 1 << 20, TotalBytes: 2 << 20, BytesUploaded: 512 << 10, Note: "last good answers"}}},
			doing:  []string{"stop: backing up", "waiting for storage; attempt 4 begins in 35 s"},
			safe:   []string{"node n1", "no snapshot has been committed"},
			can:    []string{"holdfast start w", "holdfast download w", "holdfast doctor", "holdfast unstick w"},
			unsafe: []string{"every store"}},
		{name: "stopping, first attempt", state: State{Phase: Stopping, Instance: instance, Operation: operation(OperationStop, StepHalt)},
			pending: []PendingActivity{{Name: ActivityStopInstance, State: ActivityStarted, Attempt: 1}},
			doing:   []string{"stop: stopping the instance"}, can: []string{"holdfast start w"}, cannot: []string{"unstick", "doctor"}},
		{name: "stopped and owed", state: State{Phase: Stopped, Head: explainHead(), Kept: &Kept{Node: "n1", Token: 2, Snapshot: snapshotA, Owed: []string{"gs://b"}, Why: "one store is behind."}},
			doing: []string{"stays on node n1"}, safe: []string{"kept on node n1 (instance 2): one store is behind; it is in snapshot aaaaaaaa too", "owed to gs://b"}, unsafe: []string{"every store"},
			can: []string{"holdfast start w", "download", "snapshots", "delete"}},
		{name: "blocked by omissions", state: State{Phase: Blocked, Kept: &Kept{Node: "n1", Token: 2, Snapshot: snapshotA}, Block: &Block{Message: "2 files could not be read", Omitted: 2}},
			doing: []string{"waits for a person", "2 files could not be read."}, safe: []string{"kept on node n1"},
			can: []string{"holdfast stop w --accept-omissions " + snapshotA, "unstick", "download"}},
		{name: "blocked by a full store", state: State{Phase: Blocked, Instance: instance, Block: &Block{Type: ErrorStoreFull, Message: "no room."}},
			can: []string{"holdfast doctor", "holdfast stop w", "unstick"}, safe: []string{"node n1"}},
		{name: "blocked by a chain of causes", state: State{Phase: Blocked, Reason: "opening: gs://b: no room", Instance: instance, Block: &Block{Type: ErrorStoreFull, Message: "opening: gs://b: no room"}},
			doing: []string{"waits for a person."}, undoing: []string{"no room"}, reason: "opening: " + typedFailures[ErrorStoreFull].Words},
		{name: "blocked by a chain of no known type", state: State{Phase: Blocked, Reason: "odd: very", Instance: instance, Block: &Block{Message: "odd: very"}},
			doing: []string{"waits for a person."}, undoing: []string{"it failed"}},
		{name: "blocked by a missing snapshot", state: State{Phase: Blocked, Head: explainHead(), Block: &Block{Type: ErrorSnapshotMissing, Message: "gone"}},
			can: []string{"snapshots w", "restore w --snapshot"}},
		{name: "blocked start", state: State{Phase: Blocked, Head: explainHead(), Block: &Block{Type: ErrorImageNotFound, Message: "x"}},
			can: []string{"holdfast start w", "unstick"}, cannot: []string{"holdfast stop"}},
		{name: "deleted", state: State{Phase: Deleted, Head: explainHead()}, doing: []string{"deleted"}, can: []string{"--from-snapshot w"}, cannot: []string{"holdfast stop"}},
		{name: "a base as head, and content left behind", state: State{Phase: Running, Instance: instance, Head: &Commit{Token: 2, Snapshot: snapshotA},
			Left: []Kept{{Node: "n0", Token: 1, Why: "gone on without it"}}},
			safe: []string{"Snapshot aaaaaaaa is committed; on every", "stays on node n0 (instance 1)"}, unsafe: []string{"0 files", "()"}},
		{name: "excludes", state: State{Phase: Running, Instance: instance, Head: &Commit{Token: 2, Snapshot: snapshotA, Excluded: &Excluded{Count: 3}}},
			safe: []string{"3 paths are excluded from it by .holdfastignore"}},
		{name: "rules that could not be followed", state: State{Phase: Running, Instance: instance, Head: &Commit{Token: 2, Snapshot: snapshotA, Excluded: &Excluded{Problems: []string{"x"}}}},
			unsafe: []string{"excluded"}},
		{name: "waiting behind another", state: State{Phase: Starting, Instance: instance, Operation: operation(OperationStart, StepRun), Waiting: []Operation{{Kind: OperationStop}}},
			doing: []string{"then: stop"}},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			c.state.Name = "w"
			e := Explain(c.state, c.pending, explainNow)
			safe := strings.Join(e.Safe, "\n")
			var commands []string
			for _, action := range e.Can {
				commands = append(commands, action.Command)
				if action.Does == "" {
					t.Errorf("%s is not explained", action.Command)
				}
			}
			can := strings.Join(commands, "\n")
			expect(t, "doing", e.Doing, c.doing, c.undoing)
			if c.reason != "" && (e.Reason != c.reason || e.Failure == nil || e.Failure.Error != c.state.Block.Message || e.Failure.Waits) {
				t.Errorf("reason %q, failure %+v", e.Reason, e.Failure)
			}
			expect(t, "safe", safe, c.safe, c.unsafe)
			expect(t, "can", can, c.can, c.cannot)
		})
	}
}

func expect(t *testing.T, what, text string, wanted, unwanted []string) {
	t.Helper()
	for _, part := range wanted {
		if !strings.Contains(text, part) {
			t.Errorf("%s: %q is missing in:\n%s", what, part, text)
		}
	}
	for _, part := range unwanted {
		if strings.Contains(text, part) {
			t.Errorf("%s: %q must not be in:\n%s", what, part, text)
		}
	}
}

// TestExplainEveryStep proves that no step of any operation is left without words, also with unknown errors.
func TestExplainEveryStep(t *testing.T) {
	steps := []Step{StepReadHead, StepPlace, StepRecord, StepImage, StepContent, StepUpload, StepRun, StepHalt, StepBackup,
		StepVerify, StepCommit, StepRepair, StepRemove, StepDelete, ""}
	for _, phase := range []Phase{Pending, Starting, Running, Stopping, Stopped, Blocked, Deleted} {
		for _, step := range steps {
			e := Explain(State{Name: "w", Phase: phase, Operation: &Operation{Kind: OperationStop, Step: step}},
				[]PendingActivity{{Name: "Unknown", Attempt: 2, LastFailure: "odd"}}, explainNow)
			if e.Doing == "" || e.Failure == nil || e.Failure.Words == "" || len(e.Safe) == 0 {
				t.Errorf("%s %s: %+v", phase, step, e)
			}
			if phase != Deleted && !strings.Contains(e.Doing, string(step)) {
				t.Errorf("%s %s: the step is not named: %s", phase, step, e.Doing)
			}
		}
	}
}

func TestExplainFailureClasses(t *testing.T) {
	cases := []struct {
		activity, kind, message string
		class                   FailureClass
		waits                   bool
	}{
		{ActivityBackup, "wrapError", "dial tcp: lookup storage.googleapis.com on 8.8.8.8:53: no such host", FailureNames, true},
		{ActivityBackup, "", "resolve storage.test: all 3 servers failed", FailureNames, true},
		{ActivityBackup, "", "dial tcp 127.0.0.1:9: connect: connection refused", FailureStorage, true},
		{ActivityRecordInstance, "", "googleapi: Error 503", FailureStorage, true},
		{ActivityPrepareImage, "", "lookup registry-1.docker.io: i/o timeout", FailureNames, true},
		{ActivityPrepareContent, "", "cloning https://host/x.git: the git client failed", FailureSource, true},
		{ActivityPrepareImage, "", "toomanyrequests", FailureRegistry, true},
		{ActivityBackup, TimeoutHeartbeat, "activity Heartbeat timeout", FailureNode, true},
		{ActivityReadHead, TimeoutStartToClose, "", FailureNode, true},
		{ActivityBackup, TimeoutScheduleToStart, "", FailureNode, true},
		{ActivityPrepareContent, "", "write /x: no space left on device", FailureDisk, true},
		{ActivityStartInstance, "", "docker daemon: connection refused", FailureInstance, true},
		{ActivityStopInstance, "", "odd", FailureNode, true},
		{"Unknown", "", "odd", FailureOther, true},
	}
	for kind := range typedFailures {
		cases = append(cases, struct {
			activity, kind, message string
			class                   FailureClass
			waits                   bool
		}{ActivityBackup, string(kind), "lookup x: no such host", typedFailures[kind].Class, false})
	}
	for _, c := range cases {
		failure := ExplainFailure(c.activity, c.kind, c.message)
		if failure.Class != c.class || failure.Waits != c.waits || failure.Words == "" || failure.Error != c.message {
			t.Errorf("%s %s %q: got %+v, want class %s, waits %v", c.activity, c.kind, c.message, failure, c.class, c.waits)
		}
	}
}

// TestEveryErrorTypeIsExplained keeps the closed list of invariant 10 and its words together.
func TestEveryErrorTypeIsExplained(t *testing.T) {
	for _, kind := range []ErrorType{ErrorInvalid, ErrorNotFound, ErrorConflict, ErrorStaleToken, ErrorNodeFull, ErrorNodeReplaced, ErrorNodeUnguarded, ErrorVolumeMissing, ErrorNoNode,
		ErrorImageNotFound, ErrorImageDenied, ErrorStartFailed, ErrorStoreMissing, ErrorStoreDenied, ErrorStoreFull,
		ErrorWrongKey, ErrorDamaged, ErrorSnapshotMissing, ErrorContentMissing, ErrorContentForeign, ErrorContentChanged,
		ErrorDiskFull, ErrorUploadMissing, ErrorSource, ErrorRefused, ErrorNotStored, ErrorOmissions, ErrorInterrupted, ErrorOlderVersion} {
		if typedFailures[kind].Words == "" {
			t.Errorf("%s has no words", kind)
		}
	}
}

func TestCheckpointWords(t *testing.T) {
	pending := func(activity string, checkpoint BackupCheckpoint) string {
		return Explain(State{Name: "w", Phase: Starting}, []PendingActivity{{Name: activity, Attempt: 1, Checkpoint: &checkpoint}}, explainNow).Far
	}
	if got := pending(ActivityBackup, BackupCheckpoint{Files: 2, TotalFiles: 4, Bytes: 1024, BytesUploaded: 512}); got != "2 of 4 files, 1KiB read, 512B stored" {
		t.Errorf("a backup: %q", got)
	}
	if got := pending(ActivityPrepareContent, BackupCheckpoint{Files: 2, Bytes: 1024}); got != "2 files, 1KiB" {
		t.Errorf("a restore: %q", got)
	}
	if got := pending(ActivityPrepareContent, BackupCheckpoint{At: explainNow}); got != "" {
		t.Errorf("nothing begun: %q", got)
	}
}

func TestDurationWords(t *testing.T) {
	for d, want := range map[time.Duration]string{0: "1 s", -time.Hour: "1 s", 35 * time.Second: "35 s", 5 * time.Minute: "5 min",
		3 * time.Hour: "3 h", 72 * time.Hour: "3 days"} {
		if got := duration(d); got != want {
			t.Errorf("%v: got %q, want %q", d, got, want)
		}
	}
}
