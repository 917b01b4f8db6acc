package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/urfave/cli/v2"

	"holdfast/keys"
	"holdfast/workspace"
)

func TestStartRequests(t *testing.T) {
	dir := t.TempDir()
	envFile := filepath.Join(dir, "env")
	if err := os.WriteFile(envFile, []byte("# comment\n\nA=1\nB = spaced\nTAKEN\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	_ = os.WriteFile(envFile, []byte("# comment\n\nA=1\n  C=x=y,z\nTAKEN\n"), 0o600)
	t.Setenv("TAKEN", "from here")
	control, err := keys.NewControl()
	if err != nil {
		t.Fatal(err)
	}
	local := workspace.Volume{Kind: workspace.VolumeLocal}
	existing := workspace.State{Name: "web", Phase: workspace.Stopped, Spec: workspace.Spec{Image: "old", Volume: workspace.Volume{Kind: workspace.VolumeLocal, SizeBytes: 7}, Environment: []string{"A"}}}
	failedFirst := workspace.State{Name: "web", Phase: workspace.Pending, Incomplete: true, Source: workspace.Source{Kind: workspace.SourceGit, Describe: "https://x/y"}}
	watched := workspace.State{Spec: workspace.Spec{Image: "old", Volume: local, Stop: workspace.StopPolicy{IdleSeconds: 7200, LifetimeSeconds: 3600}}}
	houred := workspace.State{Spec: workspace.Spec{Image: "old", Volume: local, Stop: workspace.StopPolicy{IdleSeconds: 7200, Hours: "Mon 08:00-20:00 UTC"}}}
	hooked := workspace.State{Name: "web", Phase: workspace.Stopped, Spec: workspace.Spec{Image: "old", Volume: local, Snapshots: workspace.SnapshotPolicy{Off: true},
		Hooks: []workspace.Hook{{When: workspace.HookPreStop, Command: "./save.sh"}}}}
	cases := []struct {
		name    string
		args    string
		state   *workspace.State
		want    workspace.StartRequest
		secrets workspace.Secrets
	}{
		{"a new one", "", nil, workspace.StartRequest{Spec: &workspace.Spec{Volume: local}}, workspace.Secrets{}},
		{"described", "--image debian:12 --volume-size 10GB --node n1", nil,
			workspace.StartRequest{Spec: &workspace.Spec{Image: "debian:12", Volume: workspace.Volume{Kind: workspace.VolumeLocal, SizeBytes: 10_000_000_000}}, Node: "n1"}, workspace.Secrets{}},
		{"environment", "--env-file " + envFile + " --env A=2", nil,
			workspace.StartRequest{Spec: &workspace.Spec{Volume: local, Environment: []string{"A", "C", "TAKEN"}}},
			workspace.Secrets{Environment: map[string]string{"A": "2", "C": "x=y,z", "TAKEN": "from here"}}},
		{"git with a token", "--from-git https://me:secret@host/x.git?token=t", nil,
			workspace.StartRequest{Spec: &workspace.Spec{Volume: local}, Source: workspace.Source{Kind: workspace.SourceGit, Describe: "https://host/x.git"}},
			workspace.Secrets{GitURL: "https://me:secret@host/x.git?token=t"}},
		{"git over ssh", "--from-git git@host:x/y.git", nil,
			workspace.StartRequest{Spec: &workspace.Spec{Volume: local}, Source: workspace.Source{Kind: workspace.SourceGit, Describe: "git@host:x/y.git"}},
			workspace.Secrets{GitURL: "git@host:x/y.git"}},
		{"from a snapshot", "--from-snapshot api@" + snapshotA, nil,
			workspace.StartRequest{Spec: &workspace.Spec{Volume: local}, Source: workspace.Source{Kind: workspace.SourceSnapshot, Workspace: "api", Snapshot: snapshotA, Describe: "api@aaaaaaaa"}}, workspace.Secrets{}},
		{"from a head", "--from-snapshot api", nil,
			workspace.StartRequest{Spec: &workspace.Spec{Volume: local}, Source: workspace.Source{Kind: workspace.SourceSnapshot, Workspace: "api", Describe: "api"}}, workspace.Secrets{}},
		{"again keeps everything", "--not-node n1 --accept-version " + snapshotA, &existing, workspace.StartRequest{NotNode: "n1", AcceptVersion: snapshotA}, workspace.Secrets{}},
		{"again with another image", "--image new", &existing,
			workspace.StartRequest{Spec: &workspace.Spec{Image: "new", Volume: existing.Spec.Volume, Environment: []string{"A"}}}, workspace.Secrets{}},
		{"an interval", "--snapshot-every 90s", nil,
			workspace.StartRequest{Spec: &workspace.Spec{Volume: local, Snapshots: workspace.SnapshotPolicy{EverySeconds: 90}}}, workspace.Secrets{}},
		{"no snapshots", "--snapshot-every off", nil,
			workspace.StartRequest{Spec: &workspace.Spec{Volume: local, Snapshots: workspace.SnapshotPolicy{Off: true}}}, workspace.Secrets{}},
		{"again with another interval", "--snapshot-every 1h", &existing,
			workspace.StartRequest{Spec: &workspace.Spec{Image: "old", Volume: existing.Spec.Volume, Environment: []string{"A"}, Snapshots: workspace.SnapshotPolicy{EverySeconds: 3600}}}, workspace.Secrets{}},
		{"a retention", "--retention last=3,daily=7", nil,
			workspace.StartRequest{Spec: &workspace.Spec{Volume: local, Retention: workspace.Retention{Last: 3, Daily: 7}}}, workspace.Secrets{}},
		{"again with no retention", "--retention none", &existing,
			workspace.StartRequest{Spec: &workspace.Spec{Image: "old", Volume: existing.Spec.Volume, Environment: []string{"A"}, Retention: workspace.Retention{Off: true}}}, workspace.Secrets{}},
		{"a grace", "--stop-grace 90s", nil, workspace.StartRequest{Spec: &workspace.Spec{Volume: local, StopGraceSeconds: 90}}, workspace.Secrets{}},
		{"stops by itself", "--idle-stop 2h --lifetime 72h", nil,
			workspace.StartRequest{Spec: &workspace.Spec{Volume: local, Stop: workspace.StopPolicy{IdleSeconds: 7200, LifetimeSeconds: 259200}}}, workspace.Secrets{}},
		{"again, but for the lifetime", "--lifetime off", &watched,
			workspace.StartRequest{Spec: &workspace.Spec{Image: "old", Volume: local, Stop: workspace.StopPolicy{IdleSeconds: 7200}}}, workspace.Secrets{}},
		{"again, but for the hours", "--hours off", &houred,
			workspace.StartRequest{Spec: &workspace.Spec{Image: "old", Volume: local, Stop: workspace.StopPolicy{IdleSeconds: 7200}}}, workspace.Secrets{}},
		{"hooks", "--hook pre-stop:./save.sh --hook pre-snapshot,timeout=1m,on-error=fail:sync", nil,
			workspace.StartRequest{Spec: &workspace.Spec{Volume: local, Hooks: []workspace.Hook{
				{When: workspace.HookPreStop, Command: "./save.sh"}, {When: workspace.HookPreSnapshot, Command: "sync", TimeoutSeconds: 60, OnError: workspace.HookFail}}}}, workspace.Secrets{}},
		{"again without hooks", "--hook none", &hooked,
			workspace.StartRequest{Spec: &workspace.Spec{Image: "old", Volume: local, Snapshots: workspace.SnapshotPolicy{Off: true}}}, workspace.Secrets{}},
		{"a first start that failed, again", "", &failedFirst, workspace.StartRequest{Source: failedFirst.Source}, workspace.Secrets{}},
		{"a deleted name", "", &workspace.State{Phase: workspace.Deleted}, workspace.StartRequest{Spec: &workspace.Spec{Volume: local}}, workspace.Secrets{}},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			fake := &fakeControl{}
			if c.state != nil {
				fake.looks = []look{{state: *c.state}}
			}
			p := newTestProgram(t, fake)
			args := append([]string{"--control-recipient", control.Recipient(), "start", "web", "--detach"}, strings.Fields(c.args)...)
			if code := p.run(args...); code != exitDone {
				t.Fatalf("exit code %d: %s", code, p.errs.String())
			}
			got := fake.starts[0]
			var secrets workspace.Secrets
			if len(got.Secrets) > 0 {
				plain, err := control.Open(got.Secrets, keys.PurposeWorkspaceSecrets)
				if err != nil {
					t.Fatal(err)
				}
				if err := json.Unmarshal(plain, &secrets); err != nil {
					t.Fatal(err)
				}
				got.Secrets = nil
			}
			c.want.Subject = "ada"
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Error(diff)
			}
			if diff := cmp.Diff(c.secrets, secrets); diff != "" {
				t.Error(diff)
			}
			if text, _ := json.Marshal(got); strings.Contains(string(text), "secret") || strings.Contains(string(text), "from here") {
				t.Errorf("a secret is in the request in the clear: %s", text)
			}
		})
	}
}

// TestBadInput proves that each mistake has its exit code, names its mend or what is wrong, never shows a secret, and
// that nothing is asked of anybody.
func TestBadInput(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	_ = os.WriteFile(file, []byte("1BAD=topsecret\n"), 0o600)
	running := workspace.State{Name: "web", Phase: workspace.Stopped}
	failedUpload := workspace.State{Name: "web", Phase: workspace.Pending, Incomplete: true, Source: workspace.Source{Kind: workspace.SourceUpload, Describe: "/d"}}
	cases := []struct {
		args  string
		state *workspace.State
		code  int
		says  string
	}{
		{"start", nil, exitUsage, "NAME is missing"},
		{"start a b", nil, exitUsage, "one argument too many"},
		{"start Web", nil, exitUsage, "want 1 to 63 characters"},
		{"start web --nonsense", nil, exitUsage, "nonsense"},
		{"start web --image", nil, exitUsage, "image"},
		{"start web --image x --from-dir " + dir + "/absent", nil, exitUsage, "no such file"},
		{"start web --from-dir " + file, nil, exitUsage, "not a directory"},
		{"start web --from-dir " + dir + " --detach", nil, exitUsage, "exclude each other"},
		{"start web --from-dir " + dir + " --from-git https://x/y", nil, exitUsage, "exclude each other"},
		{"start web --from-git nonsense:topsecret@", nil, exitUsage, "--control-recipient"},
		{"start web --from-git ftp://u:topsecret@x/y", nil, exitUsage, "want https"},
		{"start web --from-git :topsecret", nil, exitUsage, "want a URL"},
		{"start web --from-snapshot API", nil, exitUsage, "source workspace"},
		{"start web --from-snapshot api@12", nil, exitUsage, "four at least"},
		{"start web --env 1A=topsecret", nil, exitUsage, "environment name"},
		{"start web --env ABSENT_HERE", nil, exitUsage, "is not set here"},
		{"start web --env-file " + file, nil, exitUsage, "line 1"},
		{"start web --env-file " + dir + "/absent", nil, exitUsage, "no such file"},
		{"start web --volume-size big", nil, exitUsage, "want a size"},
		{"start web --snapshot-every often", nil, exitUsage, "want a time such as 5m"},
		{"start web --snapshot-every 0s", nil, exitUsage, "want 10s to 24h, or off"},
		{"start web --snapshot-every 48h", nil, exitUsage, "want 10s to 24h, or off"},
		{"start web --idle-stop soon", nil, exitUsage, "--idle-stop \"soon\": want a time such as 2h or 72h, or off"},
		{"start web --hours always", nil, exitUsage, "--hours \"always\": it must end with a time zone"},
		{"start web --idle-stop 59s", nil, exitUsage, "--idle-stop 59s: want 1m to 2160h"},
		{"start web --lifetime 100d", nil, exitUsage, "--lifetime \"100d\": want a time"},
		{"keep web", nil, exitUsage, "--for is missing"},
		{"keep web --for ever", nil, exitUsage, "--for \"ever\": want a time such as 4h, or off"},
		{"keep web --for 721h", nil, exitUsage, "want whole seconds, 1m to 720h"},
		{"keep web --for -4h", nil, exitUsage, "want whole seconds, 1m to 720h"},
		{"start web --retention daily=7", nil, exitUsage, "want last=1 at least"},
		{"start web --retention often", nil, exitUsage, "--retention: retention \"often\": want for example last=12"},
		{"start web --hook pre-stop", nil, exitUsage, "want WHEN"},
		{"start web --hook pre-stop:a --hook pre-stop:b", nil, exitUsage, "given twice"},
		{"start web --hook pre-stop,timeout=1h:a", nil, exitUsage, "1s to 5m"},
		{"start web --stop-grace 2h", nil, exitUsage, "1s to 1h"},
		{"logs web --hooks --follow", nil, exitUsage, "--hooks excludes"},
		{"start web --node N", nil, exitUsage, "--node"},
		{"start web --node n --not-node n", nil, exitUsage, "both name"},
		{"start web --accept-version 12", nil, exitUsage, "four at least"},
		{"start web --env A=topsecret", nil, exitUsage, "the control side's public key is not known"},
		{"start web -o xml", nil, exitUsage, "want text or json"},
		{"start web --volume-size 1GB", &running, exitRefused, "for new workspaces"},
		{"start web", &failedUpload, exitRefused, "--from-dir"},
		{"stop web --accept-omissions x", nil, exitUsage, "four at least"},
		{"stop", nil, exitUsage, "NAME is missing"},
		{"restore web", nil, exitUsage, "--snapshot is missing"},
		{"restore web --snapshot x", nil, exitUsage, "four at least"},
		{"move web --node N", nil, exitUsage, "--node"},
		{"delete web --discard-data other", nil, exitUsage, "want the workspace's own name"},
		{"show web", nil, exitNotFound, "holdfast list"},
		{"why web", nil, exitNotFound, "holdfast list"},
		{"exec web", nil, exitUsage, "a workspace and a command"},
		{"logs web --tail -1", nil, exitUsage, "--tail"},
		{"download web --path ../x", nil, exitUsage, "inside the workspace"},
		{"download web --snapshot x", nil, exitUsage, "four at least"},
		{"download web -o " + dir, nil, exitUsage, "is a directory"},
		{"download web -o " + dir + "/absent/x", nil, exitUsage, "no such directory"},
		{"nonsense", nil, exitUsage, `there is no command "nonsense"`},
		{"--version list", nil, exitUsage, "--version stands alone"},
		{"stat web", nil, exitUsage, "start"},
		{"node nonsense", nil, exitUsage, `there is no command "nonsense"`},
		{"list extra", nil, exitUsage, "one argument too many"},
		{"completion tcsh", nil, exitUsage, "bash, zsh or fish"},
		{"worker", nil, exitUsage, "exactly one"},
		{"worker --control --node n", nil, exitUsage, "exactly one"},
		{"worker --node N_", nil, exitUsage, "--node"},
		{"worker --control", nil, exitUsage, "no store is known"},
		{"worker --control --double-write 101", nil, exitUsage, "0 to 100"},
		{"worker --control --metrics-address 9464", nil, exitUsage, "want HOST:PORT"},
		{"worker --control --log-level loud", nil, exitUsage, "--log-level"},
		{"--config " + dir + "/absent.yaml list", nil, exitUsage, "absent.yaml"},
		{"snapshot backup " + dir, nil, exitUsage, "--repo is missing"},
		{"snapshot backup --repo " + dir + " " + dir, nil, exitUsage, "file://" + dir},
		{"snapshot backup --repo file://" + dir + "/r " + dir, nil, exitUsage, "--password-file is missing"},
		{"snapshot backup --repo file://" + dir + "/r --password-file " + dir + "/absent " + dir, nil, exitUsage, "no such file"},
		{"snapshot backup --repo s3://key:topsecret@b/x --password-file " + file + " " + dir, nil, exitUsage, "credentials"},
		{"snapshot restore --repo file://" + dir + "/r --password-file " + file + " latest", nil, exitUsage, "--target is missing"},
		{"snapshot check --repo file://" + dir + "/absent --password-file " + file, nil, exitNotFound, ""},
		{"key show web", nil, exitUsage, "no store is known"},
	}
	for _, c := range cases {
		t.Run(c.args, func(t *testing.T) {
			fake := &fakeControl{}
			if c.state != nil {
				fake.looks = []look{{state: *c.state}}
			}
			p := newTestProgram(t, fake)
			if code := p.run(strings.Fields(c.args)...); code != c.code {
				t.Errorf("exit code %d, want %d: %s", code, c.code, p.errs.String())
			}
			wantIn(t, "stderr", p.errs.String(), c.says)
			if strings.Contains(p.errs.String(), "topsecret") {
				t.Errorf("a secret is shown: %s", p.errs.String())
			}
			if len(fake.starts)+len(fake.updates)+len(fake.access) > 0 {
				t.Error("something was asked for")
			}
		})
	}
}

func TestSettingsAreStrict(t *testing.T) {
	p := newTestProgram(t, &fakeControl{})
	path := filepath.Join(t.TempDir(), "holdfast.yaml")
	_ = os.WriteFile(path, []byte("state_dri: /x\n"), 0o600)
	if code := p.run("--config", path, "list"); code != exitUsage {
		t.Errorf("a misspelled setting passed with exit code %d", code)
	}
	wantIn(t, "stderr", p.errs.String(), "state_dri")
	_ = os.WriteFile(path, []byte("# nothing\n"), 0o600)
	if code := p.run("--config", path, "list"); code != exitDone {
		t.Errorf("an empty file: %s", p.errs.String())
	}
}

// A deployment's own interval is for new workspaces; what a person says, or what there is, stays.
func TestSnapshotEverySetting(t *testing.T) {
	t.Setenv("HOLDFAST_SNAPSHOT_EVERY", "30m")
	for _, c := range []struct {
		args  string
		state *workspace.State
		want  *workspace.SnapshotPolicy
	}{
		{"start web --detach", nil, &workspace.SnapshotPolicy{EverySeconds: 1800}},
		{"start web --detach --snapshot-every off", nil, &workspace.SnapshotPolicy{Off: true}},
		{"start web --detach", &workspace.State{Name: "web", Phase: workspace.Stopped}, nil},
	} {
		fake := &fakeControl{}
		if c.state != nil {
			fake.looks = []look{{state: *c.state}}
		}
		p := newTestProgram(t, fake)
		if code := p.run(strings.Fields(c.args)...); code != exitDone {
			t.Fatalf("exit code %d: %s", code, p.errs.String())
		}
		var got *workspace.SnapshotPolicy
		if spec := fake.starts[0].Spec; spec != nil {
			got = &spec.Snapshots
		}
		if diff := cmp.Diff(c.want, got); diff != "" {
			t.Errorf("%s: %s", c.args, diff)
		}
	}
	t.Setenv("HOLDFAST_SNAPSHOT_EVERY", "seldom")
	p := newTestProgram(t, &fakeControl{})
	if code := p.run("start", "web", "--detach"); code != exitUsage {
		t.Errorf("exit code %d: %s", code, p.errs.String())
	}
	wantIn(t, "stderr", p.errs.String(), "snapshot_every")
}

func TestListsInVariables(t *testing.T) {
	p := newTestProgram(t, &fakeControl{})
	t.Setenv("HOLDFAST_STORE", "gs://a, file:///b")
	t.Setenv("HOLDFAST_DNS", "127.0.0.1:1,127.0.0.1:2")
	app := p.app()
	app.Commands = append(app.Commands, &cli.Command{Name: "probe", Action: func(c *cli.Context) error {
		s, err := loadSettings(c)
		if len(s.Stores) != 2 || s.Stores[1] != "file:///b" || len(s.DNS) != 2 || s.Owner != "ada" {
			t.Errorf("got %+v", s)
		}
		return err
	}})
	if err := app.Run([]string{"holdfast", "probe"}); err != nil {
		t.Fatal(err)
	}
}

// FuzzVolumeSize: a size that is accepted is at least a byte, and what is refused names the flag and says what is wanted.
func FuzzVolumeSize(f *testing.F) {
	for _, text := range []string{"10GB", "1.5 gb", "0", "-1GB", "1e3", "9999999PB", "NaN", "inf", "1GiB", "0.1B", "٣GB", ""} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		bytes, err := parseVolumeSize(text)
		switch {
		case err == nil && bytes < 1:
			t.Fatalf("%q is %d bytes", text, bytes)
		case err != nil && (bytes != 0 || asFailure(err).code != exitUsage || !strings.Contains(err.Error(), "--volume-size") || !strings.Contains(err.Error(), "10GB")):
			t.Fatalf("%q: %v", text, err)
		}
	})
}
