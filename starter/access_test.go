package main

import (
	"archive/tar"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"holdfast/dataport"
	"holdfast/snapshot"
	"holdfast/workspace"
)

func grants(nodes ...string) workspace.AccessResult {
	var result workspace.AccessResult
	for _, node := range nodes {
		result.Grants = append(result.Grants, workspace.Grant{Node: node})
	}
	return result
}

func TestDownload(t *testing.T) {
	cases := []struct {
		name    string
		first   *fakeDataPort
		second  *fakeDataPort
		code    int
		content string // of the file; "-" when there must be none
		says    []string
	}{
		{"live", &fakeDataPort{info: dataport.DownloadInfo{Source: dataport.SourceLive, Time: testNow}, content: "tar"}, nil, exitDone, "tar",
			[]string{"the files on node n1 as they are now"}},
		{"the age of a snapshot is said", &fakeDataPort{info: dataport.DownloadInfo{Source: dataport.SourceSnapshot, Snapshot: snapshotA, Time: testNow.Add(-3 * 3600e9), Note: "newer content is elsewhere"}, content: "tar"},
			nil, exitDone, "tar", []string{"snapshot aaaaaaaa of 2026-01-25 09:00:00 UTC (3 h ago)", "newer content is elsewhere"}},
		{"the next way when the first does not answer", &fakeDataPort{err: dataport.ErrUnavailable}, &fakeDataPort{info: dataport.DownloadInfo{Source: dataport.SourceNode}, content: "tar"},
			exitDone, "tar", []string{"trying node n2", "stayed on node n2"}},
		{"cut: nothing is left, and the next way is not glued on", &fakeDataPort{info: dataport.DownloadInfo{Source: dataport.SourceLive}, content: "half", cut: dataport.ErrCut},
			&fakeDataPort{content: "other"}, exitFailed, "-", []string{"was cut after 4B", "nothing was left at"}},
		{"not here", &fakeDataPort{err: dataport.ErrNotHere}, nil, exitNotFound, "-", nil},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			p := newTestProgram(t, &fakeControl{grants: grants("n1")})
			p.ports["n1"] = c.first
			if c.second != nil {
				p.control.grants = grants("n1", "n2")
				p.ports["n2"] = c.second
			}
			dir := t.TempDir()
			target := filepath.Join(dir, "web.tar")
			if code := p.run("download", "web", "-o", target, "--path", "/a/../b/"); code != c.code {
				t.Errorf("exit code %d, want %d: %s", code, c.code, p.errs.String())
			}
			wantIn(t, "stderr", p.errs.String(), c.says...)
			got, err := os.ReadFile(target)
			if c.content == "-" {
				if entries, _ := os.ReadDir(dir); len(entries) > 0 {
					t.Errorf("something was left: %v", entries)
				}
			} else if err != nil || string(got) != c.content {
				t.Errorf("got %q, %v", got, err)
			}
			if asked := p.control.access[0]; asked.Path != "b" || asked.Verb != workspace.VerbDownload || asked.Subject != "ada" {
				t.Errorf("asked for %+v", asked)
			}
		})
	}
	t.Run("a cut never replaces a file that was whole", func(t *testing.T) {
		p := newTestProgram(t, &fakeControl{grants: grants("n1")})
		p.ports["n1"] = &fakeDataPort{content: "half", cut: dataport.ErrCut}
		target := filepath.Join(t.TempDir(), "web.tar")
		_ = os.WriteFile(target, []byte("whole"), 0o600)
		if code := p.run("download", "web", "-o", target); code != exitFailed {
			t.Errorf("exit code %d", code)
		}
		if got, _ := os.ReadFile(target); string(got) != "whole" {
			t.Errorf("the file holds %q", got)
		}
	})
	t.Run("to standard output", func(t *testing.T) {
		p := newTestProgram(t, &fakeControl{grants: grants("n1")})
		p.ports["n1"] = &fakeDataPort{content: "half", cut: dataport.ErrCut}
		if code := p.run("download", "web"); code != exitFailed {
			t.Errorf("exit code %d", code)
		}
		wantIn(t, "stderr", p.errs.String(), "not a whole tar")
	})
	t.Run("not onto a terminal", func(t *testing.T) {
		p := newTestProgram(t, &fakeControl{grants: grants("n1")})
		p.stdoutTerminal = true
		if code := p.run("download", "web"); code != exitUsage || len(p.control.access) > 0 {
			t.Errorf("exit code %d, asked %v", code, p.control.access)
		}
	})
	t.Run("no way", func(t *testing.T) {
		p := newTestProgram(t, &fakeControl{grants: workspace.AccessResult{Notes: []string{"newer content is on node n9, which does not answer"}}})
		if code := p.run("download", "web"); code != exitFailed {
			t.Errorf("exit code %d", code)
		}
		wantIn(t, "stderr", p.errs.String(), "note: newer content is on node n9", "no way to reach it now", "holdfast why web")
	})
}

func TestExec(t *testing.T) {
	p := newTestProgram(t, &fakeControl{grants: grants("n1")})
	port := &fakeDataPort{exit: 7, content: "out\n"}
	p.ports["n1"] = port
	if code := p.run("exec", "web", "--env", "A=b,c", "--", "ls", "-la", "--tty"); code != 7 {
		t.Errorf("exit code %d: %s", code, p.errs.String())
	}
	if p.out.String() != "out\n" || p.errs.String() != "" {
		t.Errorf("stdout %q, stderr %q", p.out.String(), p.errs.String())
	}
	request := port.requests[0]
	if strings.Join(request.Command, " ") != "ls -la --tty" || request.TTY || request.Environment["A"] != "b,c" {
		t.Errorf("ran %v %v %v", request.Command, request.TTY, request.Environment)
	}
	port.err = dataport.ErrNotRunning
	if code := p.run("exec", "web", "ls"); code != exitRefused {
		t.Errorf("not running: exit code %d", code)
	}
	wantIn(t, "stderr", p.errs.String(), "the instance is not running", "holdfast start web")
}

// TestExecIsNotRunTwice proves that a command whose stream was cut is not begun again through the next grant.
func TestExecIsNotRunTwice(t *testing.T) {
	p := newTestProgram(t, &fakeControl{grants: grants("n1", "n2")})
	p.ports["n1"], p.ports["n2"] = &fakeDataPort{err: dataport.ErrCut}, &fakeDataPort{}
	if code := p.run("exec", "web", "rm", "x"); code != exitFailed {
		t.Errorf("exit code %d", code)
	}
	if n := len(p.ports["n2"].requests); n != 0 {
		t.Errorf("it was run %d more times", n)
	}
}

func TestLogs(t *testing.T) {
	p := newTestProgram(t, &fakeControl{grants: grants("n1")})
	p.ports["n1"] = &fakeDataPort{content: "line\n"}
	if code := p.run("logs", "web", "-f", "--tail", "3"); code != exitDone || p.out.String() != "line\n" {
		t.Errorf("exit code %d, %q", code, p.out.String())
	}
}

func TestHookLogs(t *testing.T) {
	p := newTestProgram(t, &fakeControl{grants: grants("n1")})
	p.ports["n1"] = &fakeDataPort{content: "line\n"}
	if code := p.run("logs", "web", "--hooks"); code != exitDone || p.out.String() != "--- the hook\n" {
		t.Errorf("exit code %d, %q", code, p.out.String())
	}
}

func TestUpload(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "a"), []byte("content"), 0o640); err != nil {
		t.Fatal(err)
	}
	p := newTestProgram(t, &fakeControl{grants: grants("n1")})
	port := &fakeDataPort{}
	p.ports["n1"] = port
	u := &upload{program: p.program, control: p.control, name: "web", subject: "ada", dir: dir}
	if err := u.send(t.Context()); err != nil {
		t.Fatal(err)
	}
	if p.control.access[0].Verb != workspace.VerbUpload {
		t.Errorf("asked for %v", p.control.access[0].Verb)
	}
	archive := tar.NewReader(strings.NewReader(port.uploads[0]))
	found := false
	for {
		header, err := archive.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		found = found || strings.TrimPrefix(header.Name, "./") == "a" && header.Mode == 0o640
	}
	if !found {
		t.Error("the file was not sent")
	}

	// A directory that cannot be read is cut, so that the node puts nothing in place, and it is not tried again.
	u.dir = filepath.Join(dir, "absent")
	err := u.send(t.Context())
	if err == nil || uploadAgain(err) || len(port.uploads) != 1 {
		t.Errorf("got %v after %d uploads", err, len(port.uploads))
	}
	// So is one of which a file cannot be read: a workspace must not begin with less than the person believes. What the
	// format cannot hold is named instead.
	lacking := func(kind snapshot.OmissionKind) func(context.Context, string, io.Writer) ([]snapshot.Omission, error) {
		return func(_ context.Context, _ string, w io.Writer) ([]snapshot.Omission, error) {
			_, err := io.WriteString(w, "tar")
			return []snapshot.Omission{{Path: "a", Kind: kind, Reason: "permission denied"}}, err
		}
	}
	u.dir, u.tar = dir, lacking(snapshot.OmissionUnreadable)
	if err := u.send(t.Context()); !errors.Is(err, errUnreadable) || uploadAgain(err) || len(port.uploads) != 1 || len(u.omissions()) != 0 {
		t.Errorf("got %v after %d uploads", err, len(port.uploads))
	}
	u.tar = lacking(snapshot.OmissionUnsupported)
	if err := u.send(t.Context()); err != nil || len(u.omissions()) != 1 {
		t.Errorf("got %v, %v", err, u.omissions())
	}
	if ended := describeOutcome(workspace.Operation{Kind: workspace.OperationStart}, workspace.State{Name: "web"}, u.omissions(), 0); asFailure(ended.err).code != exitOwed {
		t.Errorf("what was not sent is not told: %v", ended.err)
	}
	u.tar = nil
	// A node that breaks off is worth another try.
	port.uploadOK = func(int) error { return dataport.ErrBusy }
	u.dir = dir
	if err := u.send(t.Context()); !uploadAgain(err) {
		t.Errorf("got %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := u.send(ctx); err == nil {
		t.Error("a cancelled upload succeeded")
	}
}
