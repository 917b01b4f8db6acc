package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"go.temporal.io/api/serviceerror"

	"holdfast/dataport"
	"holdfast/workspace"
)

func stopping(step workspace.Step) workspace.State {
	return workspace.State{Name: "web", Phase: workspace.Stopping, Since: testNow, Instance: &workspace.Instance{Token: 1, Node: "n1"},
		Operation: &workspace.Operation{ID: "op", Kind: workspace.OperationStop, Step: step}}
}

func stopped(change func(*workspace.State, *workspace.Operation)) workspace.State {
	operation := workspace.Operation{ID: "op", Kind: workspace.OperationStop, Snapshot: snapshotA,
		Backup: &workspace.Backup{Snapshot: snapshotA, Files: 10024, Bytes: 512 << 20, BytesUploaded: 34 << 20}}
	state := workspace.State{Name: "web", Phase: workspace.Stopped, Head: &workspace.Commit{Token: 1, Sequence: 1, Snapshot: snapshotA, Kind: "final", Time: testNow}}
	if change != nil {
		change(&state, &operation)
	}
	state.Recent = []workspace.Operation{operation}
	return state
}

func outage(attempt int32, next time.Duration) []workspace.PendingActivity {
	return []workspace.PendingActivity{{Name: workspace.ActivityBackup, State: workspace.ActivityScheduled, Attempt: attempt, NextAttempt: testNow.Add(next),
		LastFailure: "put pack: lookup storage.test: no such host", Checkpoint: &workspace.BackupCheckpoint{Files: 5, TotalFiles: 10, Bytes: 1 << 20, TotalBytes: 2 << 20}}}
}

func TestFollowUntilDone(t *testing.T) {
	p := newTestProgram(t, &fakeControl{looks: []look{
		{state: workspace.State{Name: "web", Waiting: []workspace.Operation{{ID: "op", Kind: workspace.OperationStop}}}},
		{state: stopping(workspace.StepHalt)}, {state: stopping(workspace.StepBackup)}, {state: stopped(nil)},
	}})
	if code := p.run("stop", "web"); code != exitDone {
		t.Fatalf("exit code %d: %s", code, p.errs.String())
	}
	wantIn(t, "stdout", p.out.String(), "web is stopped: snapshot aaaaaaaa is verified and committed, 10,024 files, 512MiB; 34MiB sent anew, in")
	if request, ok := p.control.updates[0].(workspace.StopRequest); !ok || request.Subject != "ada" || p.control.update != workspace.UpdateStop {
		t.Errorf("asked for %s %+v", p.control.update, p.control.updates)
	}
	if !p.control.closed {
		t.Error("the connection was left open")
	}
}

// TestFollowSaysOutageOnce proves that waiting for storage is said in words, with the last error and what is safe, and
// that an outage of an hour is not a line for every attempt.
func TestFollowSaysOutageOnce(t *testing.T) {
	looks := []look{{state: stopping(workspace.StepBackup)}}
	for attempt := int32(2); attempt < 1800; attempt++ {
		looks = append(looks, look{state: stopping(workspace.StepBackup), pending: outage(attempt, 30*time.Second)})
	}
	p := newTestProgram(t, &fakeControl{looks: append(looks, look{state: stopped(nil)})})
	if code := p.run("stop", "web"); code != exitDone {
		t.Fatalf("exit code %d: %s", code, p.errs.String())
	}
	took := p.now().Sub(testNow)
	if took < 50*time.Minute {
		t.Fatalf("the test is too short to mean anything: %v", took)
	}
	wantIn(t, "stderr", p.errs.String(), "waiting for storage", "the DNS servers do not answer", "last error: put pack: lookup storage.test: no such host",
		"safe: The newest content is on node n1", "5 of 10 files")
	if n := strings.Count(p.errs.String(), "waiting for storage"); n > 25 {
		t.Errorf("%d lines in %v:\n%s", n, took, p.errs.String())
	}
	if n := strings.Count(p.errs.String(), "last error"); n != 1 {
		t.Errorf("the error was told %d times", n)
	}
}

func TestFollowOutcomes(t *testing.T) {
	cases := []struct {
		name  string
		state workspace.State
		code  int
		says  []string
	}{
		{"owed", stopped(func(s *workspace.State, o *workspace.Operation) {
			o.Owed = []string{"gs://b"}
			s.Kept = &workspace.Kept{Node: "n1", Token: 1, Snapshot: snapshotA, Owed: o.Owed, Why: "a store is behind"}
		}), exitOwed, []string{"still owed: gs://b", "safe: it is acknowledged", "the content stays on node n1 too"}},
		{"a start that a stop gave up", stopped(func(s *workspace.State, o *workspace.Operation) {
			o.Snapshot, o.Backup = "", nil
			s.Phase, s.Head = workspace.Pending, nil
		}), exitDone, []string{"the start of web was given up; there is nothing to back up, and it is Pending"}},
		{"a start of what is backed up that a stop gave up", stopped(func(s *workspace.State, o *workspace.Operation) {
			o.Snapshot, o.Backup = "", nil
		}), exitDone, []string{"web is Stopped; what it had is in snapshot " + workspace.Short(snapshotA)}},
		{"refused", stopped(func(_ *workspace.State, o *workspace.Operation) {
			o.Failed, o.Refused, o.Error = true, true, "workspace web goes back in time"
		}), exitRefused, []string{"goes back in time", "nothing was changed"}},
		{"failed", stopped(func(_ *workspace.State, o *workspace.Operation) {
			o.Failed, o.ErrorType, o.Error = true, workspace.ErrorImageNotFound, "no image"
		}), exitFailed, []string{"stop of web: no image", "name another with --image", "safe: Snapshot aaaaaaaa"}},
		{"not found", stopped(func(_ *workspace.State, o *workspace.Operation) {
			o.Failed, o.ErrorType, o.Error = true, workspace.ErrorNotFound, "no origin"
		}), exitNotFound, []string{"no origin"}},
		{"omissions keep the content", stopped(func(s *workspace.State, o *workspace.Operation) {
			o.Failed, o.Refused, o.ErrorType, o.Error = true, true, workspace.ErrorOmissions, "2 files of web could not be read"
			s.Phase = workspace.Blocked
			s.Kept = &workspace.Kept{Node: "n1", Token: 1, Snapshot: snapshotA, Why: "omissions"}
			s.Block = &workspace.Block{Message: o.Error, Omitted: 2, Omissions: []workspace.Omission{{Path: "a/b", Kind: "unreadable", Reason: "permission denied"}}, Mend: "accept them"}
		}), exitOwed, []string{"a/b (unreadable: permission denied)", "and 1 more", "kept on node n1", "mend: accept them"}},
		{"a live snapshot lacks something", stopped(func(s *workspace.State, o *workspace.Operation) {
			o.Kind = workspace.OperationBackup
			o.Backup.Omitted = 1
			s.Head.Omitted, s.Head.Omissions = 1, []workspace.Omission{{Path: "db", Kind: "changed while read", Reason: "x"}}
		}), exitOwed, []string{"1 things are not in the snapshot", "db (changed while read: x)"}},
		{"excludes at a stop", stopped(func(s *workspace.State, o *workspace.Operation) {
			o.Backup.Excluded = 12
			s.Head.Excluded = &workspace.Excluded{
				Count: 12, Paths: []workspace.Exclusion{{Path: "build/", Pattern: "/build/", File: ".holdfastignore"}}, Problems: []string{"lib/.holdfastignore leaves nothing out: line 3"},
			}
		}), exitDone, []string{"web is stopped", "excluded by .holdfastignore, so not in the snapshot, and gone when the content", "leaves its node: 12 paths\n  build/ (.holdfastignore: /build/)\n  and 11 more", "note: lib/.holdfastignore leaves nothing out: line 3"}},
		{"excludes of a backup", stopped(func(s *workspace.State, o *workspace.Operation) {
			o.Kind, o.Backup.Excluded = workspace.OperationBackup, 1
			s.Head.Excluded = &workspace.Excluded{Count: 1, Paths: []workspace.Exclusion{{Path: "x", Pattern: "y", File: "z"}}}
		}), exitDone, []string{"excluded by .holdfastignore, so not in the snapshot: 1 path\n  x (z: y)\n"}},
		{"excludes of an older backup", stopped(func(s *workspace.State, o *workspace.Operation) {
			o.Kind, o.Backup.Excluded = workspace.OperationBackup, 1
			s.Head = &workspace.Commit{Snapshot: snapshotB, Excluded: &workspace.Excluded{Count: 1, Paths: []workspace.Exclusion{{Path: "wrong"}}, Problems: []string{"wrong"}}}
		}), exitDone, []string{"so not in the snapshot: 1 path\n"}},
		{"excludes at a restore", stopped(func(s *workspace.State, o *workspace.Operation) {
			o.Kind, o.Backup = workspace.OperationStart, nil
			o.Restored = &workspace.Restore{Snapshot: snapshotA, Excluded: 2}
			s.Phase, s.Instance = workspace.Running, &workspace.Instance{Token: 2, Node: "n2"}
			s.Head.Excluded = &workspace.Excluded{Count: 2, Paths: []workspace.Exclusion{{Path: "a"}, {Path: "b"}}}
		}), exitDone, []string{"excluded by .holdfastignore when this snapshot was made: 2 paths\n  a (", "\n  b ("}},
		{"a move", stopped(func(s *workspace.State, o *workspace.Operation) {
			o.Kind, o.Halted, o.Ended = workspace.OperationMove, testNow, testNow.Add(2300*time.Millisecond)
			s.Phase, s.Instance = workspace.Running, &workspace.Instance{Token: 2, Node: "n2"}
		}), exitDone, []string{"web runs on node n2 now (instance 2); nobody could work in it for 2.3s: snapshot aaaaaaaa is verified"}},
		{"a keep", stopped(func(s *workspace.State, o *workspace.Operation) {
			*s, *o = watchedState(), workspace.Operation{ID: "op", Kind: workspace.OperationKeep, Began: testNow, Ended: testNow}
		}), exitDone, []string{"web is not stopped by itself before 2026-01-25 16:00:00 UTC"}},
		{"a keep that is taken back", stopped(func(s *workspace.State, o *workspace.Operation) {
			*s, *o = watchedState(), workspace.Operation{ID: "op", Kind: workspace.OperationKeep, Began: testNow, Ended: testNow}
			s.Watch.Keep = nil
		}), exitDone, []string{"web may be stopped by itself again: not before 2026-01-25 12:10:00 UTC"}},
		{"a move that was not begun", stopped(func(s *workspace.State, o *workspace.Operation) {
			o.Kind, o.Failed, o.Refused, o.ErrorType, o.Backup = workspace.OperationMove, true, true, workspace.ErrorNoNode, nil
			o.Error = "workspace web was not moved and runs on: there is no node that takes it: no node is left"
			s.Phase, s.Instance = workspace.Running, &workspace.Instance{Token: 1, Node: "n1"}
		}), exitRefused, []string{"web was not moved and runs on", "nothing was changed"}},
		{"a move that came back", stopped(func(s *workspace.State, o *workspace.Operation) {
			o.Kind, o.Failed, o.ErrorType, o.Backup = workspace.OperationMove, true, workspace.ErrorOmissions, nil
			o.Error = "workspace web was not moved; it runs on node n1 again, with all that it had: 2 things; `holdfast stop web` names them"
			s.Phase, s.Instance = workspace.Running, &workspace.Instance{Token: 2, Node: "n1", Adopted: 1}
		}), exitFailed, []string{"it runs on node n1 again", "safe: The newest content is on node n1"}},
		{"metadata", stopped(func(s *workspace.State, o *workspace.Operation) {
			o.Kind, o.Backup = workspace.OperationStart, nil
			o.Restored = &workspace.Restore{Snapshot: snapshotA, Warnings: []string{"owner of x"}, Fallbacks: map[string]int64{"gs://b": 3}}
			s.Phase, s.Instance = workspace.Running, &workspace.Instance{Token: 2, Node: "n2", Notes: []string{"the image was made here"}}
		}), exitOwed, []string{"running on node n2", "restored from snapshot aaaaaaaa", "owner of x", "3 objects were missing or damaged on gs://b", "the image was made here"}},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			p := newTestProgram(t, &fakeControl{looks: []look{{state: c.state}}})
			code := p.run("stop", "web")
			if code != c.code {
				t.Errorf("exit code %d, want %d", code, c.code)
			}
			wantIn(t, "output", p.out.String()+p.errs.String(), c.says...)
		})
	}
}

// TestFollowAStartOutOfABlock proves that a start of a blocked workspace is not taken for the block: the state stays
// Blocked until the start has looked at the stores.
func TestFollowAStartOutOfABlock(t *testing.T) {
	blocked := someState()
	blocked.Operation = &workspace.Operation{ID: "op", Kind: workspace.OperationStart, Step: workspace.StepReadHead}
	running := stopped(func(s *workspace.State, o *workspace.Operation) {
		o.Kind, o.Backup = workspace.OperationStart, nil
		s.Phase, s.Instance = workspace.Running, &workspace.Instance{Token: 2, Node: "n2", Adopted: 1}
	})
	p := newTestProgram(t, &fakeControl{looks: []look{{state: blocked}, {state: blocked}, {state: running}}})
	if code := p.run("start", "web"); code != exitDone {
		t.Errorf("exit code %d: %s", code, p.errs.String())
	}
	wantIn(t, "stdout", p.out.String(), "running on node n2", "going on with the content that was on the node")
}

// TestFollowOutlivesTemporal proves that a control plane that goes away while one follows is waited for.
func TestFollowOutlivesTemporal(t *testing.T) {
	away := look{err: unreachable(serviceerror.NewUnavailable("connection refused"))}
	p := newTestProgram(t, &fakeControl{looks: []look{{state: stopping(workspace.StepBackup)}, away, away, away, away, away, {state: stopped(nil)}}})
	if code := p.run("stop", "web"); code != exitDone {
		t.Fatalf("exit code %d: %s", code, p.errs.String())
	}
	wantIn(t, "stderr", p.errs.String(), "cannot be reached", "goes on without us")
}

func TestFollowEnds(t *testing.T) {
	t.Run("ctrl-c leaves the operation", func(t *testing.T) {
		p := newTestProgram(t, &fakeControl{looks: []look{{state: stopping(workspace.StepBackup)}}})
		ctx, cancel := context.WithCancelCause(t.Context())
		p.waited = func() { cancel(errInterrupted) }
		if code := p.runContext(ctx, "stop", "web"); code != exitTimedOut {
			t.Errorf("exit code %d", code)
		}
		wantIn(t, "stderr", p.errs.String(), "goes on", "nothing was interrupted", "holdfast why web")
	})
	t.Run("a timeout is its own exit code", func(t *testing.T) {
		p := newTestProgram(t, &fakeControl{looks: []look{{state: stopping(workspace.StepBackup)}}})
		p.program.wait = sleep
		if code := p.run("stop", "web", "--timeout", "20ms"); code != exitTimedOut {
			t.Errorf("exit code %d", code)
		}
		wantIn(t, "stderr", p.errs.String(), "the time to wait is over", "goes on")
	})
	t.Run("detached", func(t *testing.T) {
		p := newTestProgram(t, &fakeControl{})
		if code := p.run("stop", "web", "--detach"); code != exitDone || p.control.index != 0 {
			t.Errorf("exit code %d, %d looks", code, p.control.index)
		}
		wantIn(t, "stdout", p.out.String(), "accepted as operation op", "holdfast why web")
	})
	t.Run("a workspace that is gone", func(t *testing.T) {
		p := newTestProgram(t, &fakeControl{})
		if code := p.run("stop", "web"); code != exitNotFound {
			t.Errorf("exit code %d", code)
		}
	})
	t.Run("an operation that nobody knows", func(t *testing.T) {
		p := newTestProgram(t, &fakeControl{looks: []look{{state: workspace.State{Name: "web", Phase: workspace.Running}}}})
		if code := p.run("stop", "web"); code != exitFailed {
			t.Errorf("exit code %d", code)
		}
		wantIn(t, "stderr", p.errs.String(), "no longer knows", "holdfast show web")
	})
	t.Run("refused before it began", func(t *testing.T) {
		p := newTestProgram(t, &fakeControl{accepted: fail(exitRefused, "it is not running")})
		if code := p.run("stop", "web"); code != exitRefused {
			t.Errorf("exit code %d", code)
		}
	})
}

func waitingForUpload(token uint64) workspace.State {
	return workspace.State{Name: "web", Phase: workspace.Starting, Incomplete: true, Instance: &workspace.Instance{Token: token, Node: "n1"},
		Operation: &workspace.Operation{ID: "op", Kind: workspace.OperationStart, Step: workspace.StepUpload}}
}

// TestFollowUploads proves that a promised directory is sent once per instance, again when it was cut, and that the
// operation's failure never hides why the sending failed.
func TestFollowUploads(t *testing.T) {
	ran := stopped(func(s *workspace.State, o *workspace.Operation) {
		o.Kind, o.Backup = workspace.OperationStart, nil
		s.Phase, s.Instance = workspace.Running, &workspace.Instance{Token: 2, Node: "n2"}
	})
	failed := stopped(func(_ *workspace.State, o *workspace.Operation) {
		o.Kind, o.Failed, o.ErrorType, o.Error = workspace.OperationStart, true, workspace.ErrorUploadMissing, "nobody sent it"
	})
	cases := []struct {
		name  string
		state func(sent int) workspace.State
		send  func(attempt int) error
		sends int
		err   string
	}{
		{"once", func(sent int) workspace.State {
			if sent == 0 {
				return waitingForUpload(1)
			}
			return ran
		}, nil, 1, ""},
		{"again on the next node", func(sent int) workspace.State {
			if sent == 2 {
				return ran
			}
			return waitingForUpload(uint64(sent + 1))
		}, nil, 2, ""},
		{"again when cut", func(sent int) workspace.State {
			if sent == 2 {
				return ran
			}
			return waitingForUpload(1)
		}, func(attempt int) error {
			if attempt == 1 {
				return fmt.Errorf("node n1: %w", dataport.ErrCut)
			}
			return nil
		}, 2, ""},
		{"again for as long as the node does not wait for it yet", func(sent int) workspace.State {
			if sent == 2*uploadAttempts {
				return ran
			}
			return waitingForUpload(1)
		}, func(attempt int) error {
			if attempt < 2*uploadAttempts {
				return fmt.Errorf("node n1: no start of this workspace waits for content: %w", dataport.ErrConflict)
			}
			return nil
		}, 2 * uploadAttempts, ""},
		{"given up when it is cut for ever", func(int) workspace.State { return waitingForUpload(1) }, func(int) error { return dataport.ErrCut }, uploadAttempts, "cut"},
		{"what is wrong with the directory ends it", func(int) workspace.State { return waitingForUpload(1) }, func(int) error {
			return fail(exitFailed, "reading the directory")
		}, 1, "reading the directory"},
		{"its error is the one that is told", func(sent int) workspace.State {
			if sent == 0 {
				return waitingForUpload(1)
			}
			return failed
		}, func(int) error { return errors.New("sending broke") }, 1, "sending broke"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			var mu sync.Mutex
			sends := 0
			f := &follower{show: &lines{w: &bytes.Buffer{}, now: time.Now}, now: time.Now, wait: func(ctx context.Context, _ time.Duration) error { return sleep(ctx, time.Millisecond) }}
			f.control = &stateControl{state: func() workspace.State {
				mu.Lock()
				defer mu.Unlock()
				return c.state(sends)
			}}
			f.upload = func(context.Context) error {
				mu.Lock()
				defer mu.Unlock()
				sends++
				if c.send != nil {
					return c.send(sends)
				}
				return nil
			}
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			_, _, err := f.follow(ctx, "web", "op")
			if c.err == "" && err != nil || c.err != "" && (err == nil || !strings.Contains(err.Error(), c.err)) {
				t.Errorf("got %v, want %q", err, c.err)
			}
			if sends != c.sends {
				t.Errorf("sent %d times, want %d", sends, c.sends)
			}
		})
	}
}

// stateControl answers with a state that depends on what happened.
type stateControl struct {
	fakeControl
	state func() workspace.State
}

func (s *stateControl) State(context.Context, string) (workspace.State, error) { return s.state(), nil }
