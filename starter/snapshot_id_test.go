package main

import (
	"testing"

	"holdfast/workspace"
)

// TestShortIDs proves that the first digits of a snapshot's id are enough wherever one is named, that what they leave open
// is refused before anything is asked of the workspace, and that a whole id needs no store.
func TestShortIDs(t *testing.T) {
	stopped := look{state: workspace.State{Name: "web", Phase: workspace.Stopped, Recent: []workspace.Operation{{ID: "op", Kind: workspace.OperationRestore}}}}
	both := workspace.SnapshotsResult{Snapshots: []workspace.SnapshotLine{{Snapshot: snapshotA}, {Snapshot: snapshotB}, {Snapshot: "bbbbbbbb3" + snapshotB[9:]}}}
	for _, test := range []struct {
		args      []string
		snapshots workspace.SnapshotsResult
		code      int
		says      string
		asked     func(*fakeControl) string
		want      string
	}{
		{args: []string{"restore", "web", "--snapshot", snapshotA[:8]}, snapshots: both, want: snapshotA,
			asked: func(f *fakeControl) string { return f.updates[0].(workspace.RestoreRequest).Snapshot }},
		{args: []string{"restore", "web", "--snapshot", snapshotA}, want: snapshotA,
			asked: func(f *fakeControl) string { return f.updates[0].(workspace.RestoreRequest).Snapshot }},
		{args: []string{"stop", "web", "--accept-omissions", snapshotA[:4]}, snapshots: both, want: snapshotA,
			asked: func(f *fakeControl) string { return f.updates[0].(workspace.StopRequest).AcceptOmissions }},
		{args: []string{"start", "web", "--accept-version", snapshotA[:8]}, snapshots: both, want: snapshotA,
			asked: func(f *fakeControl) string { return f.starts[0].AcceptVersion }},
		{args: []string{"restore", "web", "--snapshot", snapshotB[:8]}, snapshots: both, code: exitUsage, says: "begins the ids of 2 snapshots"},
		{args: []string{"restore", "web", "--snapshot", "cccc"}, snapshots: both, code: exitNotFound, says: "no snapshot that begins with"},
		{args: []string{"restore", "web", "--snapshot", "cccc"}, snapshots: workspace.SnapshotsResult{Notes: []string{"gs://a cannot be asked"}},
			code: exitFailed, says: "gs://a cannot be asked"},
		{args: []string{"restore", "web", "--snapshot", "abc"}, code: exitUsage, says: "four at least"},
		{args: []string{"restore", "web", "--snapshot", "LATEST"}, code: exitUsage, says: "four at least"},
		{args: []string{"download", "web", "-o", t.TempDir() + "/a.tar", "--snapshot", "cccc"}, snapshots: both, code: exitNotFound, says: "no snapshot"},
		{args: []string{"start", "new", "--from-snapshot", "web@cccc"}, snapshots: both, code: exitNotFound, says: "web has no snapshot"},
	} {
		fake := &fakeControl{looks: []look{stopped}, snapshots: test.snapshots}
		p := newTestProgram(t, fake)
		code := p.run(test.args...)
		if test.asked == nil {
			if code != test.code {
				t.Errorf("%v: exit code %d, want %d: %s", test.args, code, test.code, p.errs.String())
			}
			wantIn(t, test.args[0], p.errs.String(), test.says)
			if len(fake.updates)+len(fake.starts) > 0 {
				t.Errorf("%v: something was asked of the workspace", test.args)
			}
			continue
		}
		if len(fake.updates)+len(fake.starts) == 0 {
			t.Errorf("%v: nothing was asked: %s", test.args, p.errs.String())
			continue
		}
		if got := test.asked(fake); got != test.want {
			t.Errorf("%v: asked for %q, want %q", test.args, got, test.want)
		}
	}
}

// TestListsAreHonest proves that nothing found is told from nothing there, and from nobody asked.
func TestListsAreHonest(t *testing.T) {
	for _, test := range []struct {
		args []string
		fake *fakeControl
		code int
		says []string
	}{
		{[]string{"list"}, &fakeControl{}, exitDone, []string{"There are no workspaces"}},
		{[]string{"list", "--state", "blocked"}, &fakeControl{workspaces: []listedWorkspace{{Name: "web", Phase: "Running"}}}, exitDone, []string{"None of the 1"}},
		{[]string{"list", "--state", "Nope"}, &fakeControl{}, exitUsage, []string{"Pending, Starting, Running"}},
		{[]string{"snapshots", "web"}, &fakeControl{}, exitDone, []string{"There are no snapshots of web yet"}},
		{[]string{"snapshots", "web"}, &fakeControl{snapshots: workspace.SnapshotsResult{Notes: []string{"gs://a cannot be asked"}}}, exitFailed,
			[]string{"gs://a cannot be asked", "cannot be said now", "holdfast doctor"}},
		{[]string{"nosuch"}, &fakeControl{}, exitUsage, []string{`there is no command "nosuch"`, "`holdfast --help` lists the commands"}},
		{[]string{"stopp", "web"}, &fakeControl{}, exitUsage, []string{`mend: Did you mean "stop"?`}},
	} {
		p := newTestProgram(t, test.fake)
		if code := p.run(test.args...); code != test.code {
			t.Errorf("%v: exit code %d, want %d", test.args, code, test.code)
		}
		wantIn(t, test.args[0], p.out.String()+p.errs.String(), test.says...)
	}
}
