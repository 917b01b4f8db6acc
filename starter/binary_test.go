package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"holdfast/engine/process"
	"holdfast/keys"
	"holdfast/snapshot"
)

// TestMain is also the supervisor of the process engine, and cleans up what buildBinary made.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == superviseRole {
		os.Exit(process.Supervise(os.Args[2:]))
	}
	code := m.Run()
	if err := goleak.Find(); code == 0 && err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	if built.dir != "" {
		os.RemoveAll(built.dir)
	}
	os.Exit(code)
}

var built struct {
	once sync.Once
	dir  string
	err  error
}

// binary is the built command, once for all tests.
func binary(t *testing.T) string {
	t.Helper()
	built.once.Do(func() {
		if built.dir, built.err = os.MkdirTemp("", "holdfast-command-"); built.err != nil {
			return
		}
		output, err := exec.Command("go", "build", "-o", filepath.Join(built.dir, "holdfast"), ".").CombinedOutput()
		if err != nil {
			built.err = errors.New(string(output))
		}
	})
	if built.err != nil {
		t.Fatal(built.err)
	}
	return filepath.Join(built.dir, "holdfast")
}

type ran struct {
	code   int
	stdout string
	stderr string
}

// command runs the binary in an environment of its own. One that does not end by itself has no exit code.
func command(t *testing.T, environment []string, args ...string) ran {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, binary(t), args...)
	home := t.TempDir()
	cmd.Dir = home
	cmd.Env = append([]string{"HOME=" + home, "PATH=" + os.Getenv("PATH")}, environment...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return ran{code: cmd.ProcessState.ExitCode(), stdout: stdout.String(), stderr: stderr.String()}
}

func TestBinaryExitCodes(t *testing.T) {
	codec := filepath.Join(t.TempDir(), "codec.key")
	if _, err := keys.LoadOrCreateCodecKey(codec); err != nil {
		t.Fatal(err)
	}
	nobody := []string{"TEMPORAL_ADDRESS=127.0.0.1:1", "HOLDFAST_CODEC_KEY=" + codec}
	cases := []struct {
		name        string
		environment []string
		args        []string
		code        int
		says        []string
	}{
		{"help", nil, nil, exitDone, nil},
		{"version", nil, []string{"version"}, exitDone, nil},
		{"version as a flag", nil, []string{"--version"}, exitDone, nil},
		{"nothing configured", nil, []string{"list"}, exitUsage, []string{"TEMPORAL_ADDRESS is not set", "holdfast dev"}},
		{"no codec key", nobody[:1], []string{"list"}, exitUsage, []string{"HOLDFAST_CODEC_KEY"}},
		{"a codec key that is not one", []string{nobody[0], "HOLDFAST_CODEC_KEY=/dev/null"}, []string{"list"}, exitFailed, []string{"codec"}},
		{"Temporal unreachable", nobody, []string{"why", "web"}, exitFailed, []string{"cannot be reached", "127.0.0.1:1", "safe:", "mend:", "holdfast doctor"}},
		{"a name that is none", nobody, []string{"stop", "Web"}, exitUsage, []string{"want 1 to 63 characters"}},
		{"an unknown command", nil, []string{"halt"}, exitUsage, []string{"no command"}},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			got := command(t, c.environment, c.args...)
			if got.code != c.code {
				t.Errorf("exit code %d, want %d: %s", got.code, c.code, got.stderr)
			}
			wantIn(t, "stderr", got.stderr, c.says...)
		})
	}
}

// TestBinaryDoctor proves that faults are named with their mends and make the exit code 1.
func TestBinaryDoctor(t *testing.T) {
	store := filepath.Join(t.TempDir(), "store")
	if err := os.Mkdir(store, 0o700); err != nil {
		t.Fatal(err)
	}
	master := filepath.Join(t.TempDir(), "master.key")
	if _, err := keys.CreateLocalKey(master); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(master, 0o644); err != nil {
		t.Fatal(err)
	}
	got := command(t, nil, "--store", "file://"+store, "--store", "file:///absent/store", "--master-key", master, "doctor", "-o", "json", "--engine", "process")
	if got.code != exitFailed {
		t.Errorf("exit code %d: %s", got.code, got.stderr)
	}
	var findings []finding
	if err := json.Unmarshal([]byte(got.stdout), &findings); err != nil {
		t.Fatalf("%v in %s", err, got.stdout)
	}
	verdicts := map[string]verdict{}
	for _, found := range findings {
		if found.Verdict == verdictFail {
			if found.Mend == "" {
				t.Errorf("%s has no mend", found.Check)
			}
			verdicts[found.Check] = verdictFail
		} else if verdicts[found.Check] == "" {
			verdicts[found.Check] = found.Verdict
		}
	}
	for check, want := range map[string]verdict{"temporal": verdictFail, "store file://" + store: verdictOK, "store file:///absent/store": verdictFail, "master key": verdictFail, "dns": verdictSkipped, "engine": verdictOK} {
		if verdicts[check] != want && !(check == "engine" && verdicts[check] == verdictWarn) {
			t.Errorf("%s: %q, want %q in %s", check, verdicts[check], want, got.stdout)
		}
	}
	left, err := filepath.Glob(filepath.Join(store, "doctor", "*"))
	if err != nil || len(left) > 0 {
		t.Errorf("doctor left %v, %v", left, err)
	}
}

// TestBinarySnapshot runs the engine alone through a whole life.
func TestBinarySnapshot(t *testing.T) {
	dir := t.TempDir()
	source, repo, target := filepath.Join(dir, "source"), filepath.Join(dir, "repo"), filepath.Join(dir, "target")
	if err := os.MkdirAll(filepath.Join(source, "sub"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string]string{"a": "content of a", "sub/b": "content of b"} {
		if err := os.WriteFile(filepath.Join(source, name), []byte(content), 0o640); err != nil {
			t.Fatal(err)
		}
	}
	password, wrong := filepath.Join(dir, "password"), filepath.Join(dir, "wrong")
	for path, text := range map[string]string{password: "correct horse\n", wrong: "battery staple\n"} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	at := []string{"--repo", "file://" + repo, "--password-file", password}
	with := func(args ...string) []string { return append(args, at...) }

	got := command(t, nil, with("snapshot", "backup", source, "--tag", "mine", "-o", "json")...)
	if got.code != exitDone {
		t.Fatalf("backup: exit code %d: %s", got.code, got.stderr)
	}
	var result snapshot.BackupResult
	if err := json.Unmarshal([]byte(got.stdout), &result); err != nil || result.Files != 2 || len(result.Snapshot) != 64 {
		t.Fatalf("backup: %v, %s", err, got.stdout)
	}
	for _, field := range []string{"snapshot", "files", "dirs", "bytes", "bytes_added", "bytes_uploaded", "packs_uploaded", "duration_seconds"} {
		if !strings.Contains(got.stdout, `"`+field+`"`) {
			t.Errorf("backup -o json lacks %s: %s", field, got.stdout)
		}
	}
	if !strings.Contains(got.stdout, `"unreadable": 0`) {
		t.Errorf("backup -o json lacks unreadable: %s", got.stdout)
	}

	got = command(t, nil, with("snapshot", "backup", source, "--exclude", "/sub/", "--exclude", "[", "--host", "other")...)
	if got.code != exitUsage {
		t.Errorf("backup with a wrong pattern: exit code %d: %s", got.code, got.stderr)
	}
	wantIn(t, "a wrong pattern", got.stderr, "--exclude", `"[" is not a pattern`)
	excluding := filepath.Join(dir, "excluding")
	other := []string{"--repo", "file://" + excluding, "--password-file", password}
	got = command(t, nil, append([]string{"snapshot", "backup", source, "--exclude", "/sub/", "--exclude", "absent"}, other...)...)
	wantIn(t, "backup --exclude", got.stdout, "excluded: 1 path\n  sub/ (--exclude: /sub/)\n")
	got = command(t, nil, append([]string{"snapshot", "restore", "latest", "--target", filepath.Join(dir, "without")}, other...)...)
	wantIn(t, "restore of what was excluded", got.stdout, "excluded when this snapshot was made: 1 path\n  sub/ (--exclude: /sub/)\n")
	if _, err := os.Stat(filepath.Join(dir, "without", "sub")); !os.IsNotExist(err) || got.code != exitDone {
		t.Errorf("exit code %d, %v: %s", got.code, err, got.stderr)
	}

	got = command(t, nil, with("snapshot", "list", "-o", "json")...)
	var infos []snapshot.Info
	if err := json.Unmarshal([]byte(got.stdout), &infos); err != nil || len(infos) != 1 || infos[0].ID != result.Snapshot {
		t.Errorf("list: %v, %s %s", err, got.stdout, got.stderr)
	}
	got = command(t, nil, with("snapshot", "list")...)
	wantIn(t, "list", got.stdout, result.Snapshot[:8], "mine")
	got = command(t, nil, with("snapshot", "ls", "latest")...)
	wantIn(t, "ls", got.stdout, "sub/b", "-0640")
	got = command(t, nil, with("snapshot", "dump", "latest", "sub/b")...)
	if got.stdout != "content of b" || got.code != exitDone {
		t.Errorf("dump: exit code %d, %q %s", got.code, got.stdout, got.stderr)
	}
	got = command(t, nil, with("snapshot", "restore", "latest", "--target", target)...)
	if content, err := os.ReadFile(filepath.Join(target, "sub", "b")); got.code != exitDone || err != nil || string(content) != "content of b" {
		t.Errorf("restore: exit code %d, %v, %q: %s", got.code, err, content, got.stderr)
	}
	got = command(t, nil, with("snapshot", "check", "--read-data", "-o", "json")...)
	var checked snapshot.CheckReport
	if err := json.Unmarshal([]byte(got.stdout), &checked); err != nil || got.code != exitDone || checked.Snapshots != 1 {
		t.Errorf("check: exit code %d, %v, %s %s", got.code, err, got.stdout, got.stderr)
	}

	for _, c := range []struct {
		name string
		args []string
		code int
		says string
	}{
		{"restore over something", with("snapshot", "restore", "latest", "--target", target), exitRefused, "does not exist"},
		{"restore of nothing", with("snapshot", "restore", "0123", "--target", target+"2"), exitNotFound, "snapshot list"},
		{"a path that is not there", with("snapshot", "dump", "latest", "absent"), exitNotFound, "no such path"},
		{"a wrong password", []string{"snapshot", "list", "--repo", "file://" + repo, "--password-file", wrong}, exitFailed, "wrong password"},
		{"a wrong password for a backup", []string{"snapshot", "backup", source, "--repo", "file://" + repo, "--password-file", wrong}, exitFailed, "wrong password"},
		{"no repository", []string{"snapshot", "list", "--repo", "file://" + source, "--password-file", password}, exitNotFound, "no repository"},
		{"a disk that is not mounted", []string{"snapshot", "backup", source, "--repo", "file://" + dir + "/absent/repo", "--password-file", password}, exitNotFound, "make or mount"},
		{"nothing to back up", with("snapshot", "backup", filepath.Join(dir, "absent")), exitUsage, "no such file"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := command(t, nil, c.args...)
			if got.code != c.code {
				t.Errorf("exit code %d, want %d: %s", got.code, c.code, got.stderr)
			}
			wantIn(t, "stderr", got.stderr, c.says)
		})
	}
	if _, err := os.Stat(target + "2"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a failed restore left %v", err)
	}

	// What is damaged is found and is an error.
	packs, err := filepath.Glob(filepath.Join(repo, "data", "*", "*"))
	if err != nil || len(packs) == 0 {
		t.Fatalf("no packs: %v", err)
	}
	content, err := os.ReadFile(packs[0])
	if err != nil {
		t.Fatal(err)
	}
	content[10] ^= 1
	_ = os.Chmod(packs[0], 0o600)
	if err := os.WriteFile(packs[0], content, 0o600); err != nil {
		t.Fatal(err)
	}
	if got := command(t, nil, with("snapshot", "check", "--read-data")...); got.code != exitFailed {
		t.Errorf("a damaged pack: exit code %d: %s", got.code, got.stdout)
	}
}

// TestBinaryCompletion proves that the scripts work in the shells, not only that they are printed.
func TestBinaryCompletion(t *testing.T) {
	bash, err := exec.LookPath("bash")
	if err != nil {
		t.Skip("bash is not here")
	}
	complete := func(words ...string) []string {
		t.Helper()
		script := `source <(holdfast completion bash); COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _holdfast_complete; printf '%s\n' "${COMPREPLY[@]}"`
		cmd := exec.CommandContext(t.Context(), bash, append([]string{"-c", script, "bash"}, words...)...)
		cmd.Env = []string{"PATH=" + filepath.Dir(binary(t)) + ":" + os.Getenv("PATH"), "HOME=" + t.TempDir()}
		output, err := cmd.Output()
		if err != nil {
			t.Fatalf("%v: %v", words, err)
		}
		return strings.Fields(string(output))
	}
	for _, c := range []struct {
		words   []string
		want    string
		without string
	}{
		{[]string{"holdfast", "st"}, "start stop", "list"},
		{[]string{"holdfast", "snapshot", "re"}, "restore", "backup"},
		{[]string{"holdfast", "stop", "--det"}, "--detach", "--timeout"},
		{[]string{"holdfast", "stop", "web", "--det"}, "--detach", "--timeout"},
		{[]string{"holdfast", "completion", ""}, "bash zsh fish", ""},
		{[]string{"holdfast", "node", "l"}, "list", ""},
	} {
		got := " " + strings.Join(complete(c.words...), " ") + " "
		for _, want := range strings.Fields(c.want) {
			if !strings.Contains(got, " "+want+" ") {
				t.Errorf("%v: %s is missing in%s", c.words, want, got)
			}
		}
		if c.without != "" && strings.Contains(got, " "+c.without+" ") {
			t.Errorf("%v: %s does not fit in%s", c.words, c.without, got)
		}
	}
	for _, shell := range []string{"zsh", "fish"} {
		script := command(t, nil, "completion", shell)
		if script.code != exitDone || !strings.Contains(script.stdout, "holdfast") {
			t.Errorf("%s: exit code %d", shell, script.code)
		}
		path, err := exec.LookPath(shell)
		if err != nil {
			continue // only its syntax would be checked
		}
		cmd := exec.CommandContext(t.Context(), path, "-n")
		cmd.Stdin = strings.NewReader(script.stdout)
		if output, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%s -n: %v: %s", shell, err, output)
		}
	}
}

// TestCompletionOffersWorkspaces proves that names come from the deployment.
func TestCompletionOffersWorkspaces(t *testing.T) {
	p := newTestProgram(t, &fakeControl{workspaces: someWorkspaces()})
	if code := p.run("stop", completionFlag); code != exitDone {
		t.Errorf("exit code %d: %s", code, p.errs.String())
	}
	wantIn(t, "completions", p.out.String(), "api", "web")
}
