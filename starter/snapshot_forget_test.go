package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"holdfast/catalog"
	"holdfast/snapshot"
	"holdfast/storage"
	"holdfast/workspace"
)

func TestDeploymentStore(t *testing.T) {
	for repo, want := range map[string][2]string{
		"gs://bucket/workspaces/w1":                      {"gs://bucket", "w1"},
		"gs://bucket/a/b/workspaces/w1/":                 {"gs://bucket/a/b", "w1"},
		"s3://bucket/a/workspaces/w1?region=x":           {"s3://bucket/a?region=x", "w1"},
		"file:///srv/store/workspaces/w1":                {"file:///srv/store", "w1"},
		"file:///srv/repository":                         {},
		"file:///srv/workspaces/":                        {},
		"gs://workspaces/w1":                             {},
		"file:///srv/store/workspaces/w1/something/else": {},
	} {
		store, id, ok := deploymentStore(repo)
		if store != want[0] || id != want[1] && ok || ok != (want[0] != "") {
			t.Errorf("%s: %q %q %v", repo, store, id, ok)
		}
	}
}

// repositoryOf makes a repository with as many snapshots of one directory; the oldest id comes first.
func repositoryOf(t *testing.T, repo string, snapshots int) (ids []string, with func(args ...string) []string) {
	t.Helper()
	dir := t.TempDir()
	password, source := filepath.Join(dir, "password"), filepath.Join(dir, "source")
	if err := os.WriteFile(password, []byte("secret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(source, 0o755); err != nil {
		t.Fatal(err)
	}
	with = func(args ...string) []string {
		return append(args, "--repo", "file://"+repo, "--password-file", password)
	}
	for i := range snapshots {
		if err := os.WriteFile(filepath.Join(source, "file"), fmt.Appendf(nil, "content %d", i), 0o644); err != nil {
			t.Fatal(err)
		}
		var result snapshot.BackupResult
		got := command(t, nil, with("snapshot", "backup", source, "-o", "json")...)
		if err := json.Unmarshal([]byte(got.stdout), &result); err != nil || got.code != exitDone {
			t.Fatalf("backup: exit code %d: %v %s", got.code, err, got.stderr)
		}
		ids = append(ids, result.Snapshot)
	}
	return ids, with
}

// TestBinaryForgetsAndPrunes goes through forget, prune and rebuild-index as a person does.
func TestBinaryForgetsAndPrunes(t *testing.T) {
	repo := filepath.Join(t.TempDir(), "repo")
	ids, with := repositoryOf(t, repo, 4)
	for name, c := range map[string]struct {
		args []string
		code int
		says string
	}{
		"no policy":              {with("snapshot", "forget"), exitUsage, "--keep-daily"},
		"the newest":             {with("snapshot", "forget", ids[3]), exitRefused, "newest"},
		"no time span":           {with("snapshot", "forget", "--keep-within", "2 weeks"), exitUsage, "--keep-within"},
		"a policy and a name":    {with("snapshot", "forget", "--keep-last", "1", ids[0]), exitUsage, "policy"},
		"an unknown group":       {with("snapshot", "forget", "--keep-last", "1", "--group-by", "size"), exitUsage, "size"},
		"an unknown snapshot":    {with("snapshot", "forget", "0000"), exitNotFound, "no such snapshot"},
		"no share":               {with("snapshot", "prune", "--max-unused", "lots"), exitUsage, "--max-unused"},
		"no size":                {with("snapshot", "prune", "--max-repack-size", "0"), exitUsage, "--max-repack-size"},
		"an argument to prune":   {with("snapshot", "prune", "now"), exitUsage, "too many"},
		"an argument to rebuild": {with("snapshot", "rebuild-index", "now"), exitUsage, "too many"},
	} {
		got := command(t, nil, c.args...)
		if got.code != c.code {
			t.Errorf("%s: exit code %d, want %d: %s", name, got.code, c.code, got.stderr)
		}
		wantIn(t, name, got.stderr, c.says)
	}
	got := command(t, nil, with("snapshot", "forget", "--keep-last", "2", "--dry-run")...)
	wantIn(t, "dry run", got.stdout, "2 snapshots would be removed, 2 stay", ids[0][:8], "remove", "last")
	got = command(t, nil, with("snapshot", "forget", "--keep-last", "2", "-o", "json")...)
	var forgotten snapshot.ForgetReport
	if err := json.Unmarshal([]byte(got.stdout), &forgotten); err != nil || forgotten.Removed != 2 || len(forgotten.Groups) != 1 {
		t.Fatalf("forget: exit code %d, %v: %s %s", got.code, err, got.stdout, got.stderr)
	}
	got = command(t, nil, with("snapshot", "forget", ids[2])...)
	wantIn(t, "forget one", got.stdout, "1 of 1 snapshots removed")

	got = command(t, nil, with("snapshot", "prune")...)
	wantIn(t, "prune", got.stdout, "nothing to do", "too young")
	got = command(t, nil, with("snapshot", "prune", "--grace", "0s", "--max-unused", "0", "--max-repack-size", "1G", "--dry-run")...)
	wantIn(t, "prune, dry run", got.stdout, "1 snapshots need", "written anew")
	got = command(t, nil, with("snapshot", "prune", "--grace", "0s", "-o", "json")...)
	var pruned snapshot.PruneReport
	if err := json.Unmarshal([]byte(got.stdout), &pruned); err != nil || pruned.PacksRemoved == 0 || got.code != exitDone {
		t.Fatalf("prune: exit code %d, %v: %s %s", got.code, err, got.stdout, got.stderr)
	}
	got = command(t, nil, with("snapshot", "check", "--read-data")...)
	wantIn(t, "check", got.stdout, "1 snapshot,", "no errors")
	got = command(t, nil, with("snapshot", "dump", "latest", "file")...)
	if got.stdout != "content 3" {
		t.Errorf("dump: %q %s", got.stdout, got.stderr)
	}

	got = command(t, nil, with("snapshot", "rebuild-index")...)
	wantIn(t, "rebuild-index", got.stdout, "the index was right")
	indexes, err := filepath.Glob(filepath.Join(repo, "index", "*"))
	if err != nil || len(indexes) == 0 {
		t.Fatal(indexes, err)
	}
	for _, index := range indexes {
		if err := os.Remove(index); err != nil {
			t.Fatal(err)
		}
	}
	got = command(t, nil, with("snapshot", "prune")...)
	if got.code != exitFailed {
		t.Errorf("prune without an index: exit code %d", got.code)
	}
	wantIn(t, "prune without an index", got.stderr, "nothing was changed")
	got = command(t, nil, with("snapshot", "rebuild-index")...)
	wantIn(t, "rebuild-index", got.stdout, "was in no index", "written anew")
	got = command(t, nil, with("snapshot", "dump", "latest", "file")...)
	if got.stdout != "content 3" {
		t.Errorf("dump: %q %s", got.stdout, got.stderr)
	}
}

// TestForgetKeepsWhatTheCatalogNames: a workspace's head may be an older snapshot, or one that the repository alone does
// not tell from others (invariant 3).
func TestForgetKeepsWhatTheCatalogNames(t *testing.T) {
	store := t.TempDir()
	const id = "0123456789abcdef0123456789abcdef"
	repo := filepath.Join(store, "workspaces", id)
	if err := os.Mkdir(filepath.Dir(repo), 0o755); err != nil {
		t.Fatal(err)
	}
	ids, with := repositoryOf(t, repo, 5)
	provider, err := storage.OpenDirectory(store, storage.DirectoryOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer provider.Close()
	deployed := catalog.New([]storage.Provider{provider}, storage.PolicyAll)
	// ids[0] was committed; then a person went back to ids[1], which no commit names.
	for _, record := range []workspace.InstanceRecord{{WorkspaceID: id, Name: "w", Token: 1, Time: time.Now()}, {WorkspaceID: id, Name: "w", Token: 2, Base: ids[1], Time: time.Now()}} {
		if err := deployed.RecordInstance(t.Context(), record); err != nil {
			t.Fatal(err)
		}
		if record.Token == 1 {
			if err := deployed.Commit(t.Context(), workspace.Commit{WorkspaceID: id, Token: 1, Sequence: 1, Snapshot: ids[0]}, nil); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, named := range ids[:2] {
		if got := command(t, nil, with("snapshot", "forget", named)...); got.code != exitRefused {
			t.Errorf("exit code %d: %s", got.code, got.stderr)
		}
	}
	got := command(t, nil, with("snapshot", "forget", "--keep-last", "1", "-o", "json")...)
	var report snapshot.ForgetReport
	if err := json.Unmarshal([]byte(got.stdout), &report); err != nil || report.Removed != 2 {
		t.Fatalf("exit code %d: %s %s", got.code, got.stdout, got.stderr)
	}
	got = command(t, nil, with("snapshot", "list", "-o", "json")...)
	var infos []snapshot.Info
	if err := json.Unmarshal([]byte(got.stdout), &infos); err != nil {
		t.Fatal(err, got.stderr)
	}
	var left []string
	for _, info := range infos {
		left = append(left, info.ID)
	}
	if want := []string{ids[0], ids[1], ids[4]}; !slices.Equal(left, want) {
		t.Errorf("there are %v, want %v", left, want)
	}

	// What the catalog names cannot be read: nothing is forgotten.
	records, err := filepath.Glob(filepath.Join(store, "catalog", "workspaces", id, "commits", "*", "*"))
	if err != nil || len(records) != 1 {
		t.Fatal(records, err)
	}
	_ = os.Chmod(records[0], 0o600)
	if err := os.WriteFile(records[0], []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	got = command(t, nil, with("snapshot", "forget", "--keep-last", "1", "--group-by", "")...)
	if got.code != exitFailed {
		t.Errorf("a damaged catalog: exit code %d: %s %s", got.code, got.stdout, got.stderr)
	}
	wantIn(t, "a damaged catalog", got.stderr, id, "nothing was changed")
}
