package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestBinaryRepairs: an empty directory becomes a copy that is enough by itself, a damaged one is mended where a listing
// shows the damage, and what is not one repository is refused.
func TestBinaryRepairs(t *testing.T) {
	root := t.TempDir()
	first, second := filepath.Join(root, "first"), filepath.Join(root, "second")
	ids, with := repositoryOf(t, first, 2)
	repair := func(more ...string) []string { return with(append([]string{"snapshot", "repair"}, more...)...) }

	if got := command(t, nil, repair()...); got.code != exitUsage || !strings.Contains(got.stderr, "one store") {
		t.Fatalf("one store: exit code %d: %s", got.code, got.stderr)
	}
	got := command(t, nil, repair("--repo", "file://"+second)...)
	if got.code != exitDone || !strings.Contains(got.stdout, "all 2 stores hold the same") || !strings.Contains(got.stdout, "copied to it") {
		t.Fatalf("exit code %d: %s%s", got.code, got.stdout, got.stderr)
	}
	if err := os.Rename(first, first+".away"); err != nil {
		t.Fatal(err)
	}
	alone := func(args ...string) []string {
		all := with(args...)
		for i := range all {
			all[i] = strings.Replace(all[i], "file://"+first, "file://"+second, 1)
		}
		return all
	}
	target := filepath.Join(root, "restored")
	if got := command(t, nil, alone("snapshot", "restore", ids[1], "--target", target)...); got.code != exitDone {
		t.Fatalf("the copy alone: exit code %d: %s", got.code, got.stderr)
	}
	if content, err := os.ReadFile(filepath.Join(target, "file")); err != nil || string(content) != "content 1" {
		t.Fatalf("restored %q, %v", content, err)
	}

	if err := os.Rename(first+".away", first); err != nil {
		t.Fatal(err)
	}
	packs, err := filepath.Glob(filepath.Join(second, "data", "*", "*"))
	if err != nil || len(packs) == 0 {
		t.Fatalf("packs: %v, %v", packs, err)
	}
	if err := os.Chmod(packs[0], 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(packs[0], 10); err != nil {
		t.Fatal(err)
	}
	got = command(t, nil, repair("--repo", "file://"+second, "-o", "json")...)
	if got.code != exitDone || !strings.Contains(got.stdout, `"replaced": 1`) {
		t.Fatalf("exit code %d: %s%s", got.code, got.stdout, got.stderr)
	}
	if got := command(t, nil, alone("snapshot", "check", "--read-data")...); got.code != exitDone {
		t.Fatalf("after the repair: exit code %d: %s%s", got.code, got.stdout, got.stderr)
	}

	other := filepath.Join(root, "other")
	repositoryOf(t, other, 1)
	if got := command(t, nil, repair("--repo", "file://"+other)...); got.code != exitRefused || !strings.Contains(got.stderr, "different repositories") {
		t.Fatalf("two repositories: exit code %d: %s%s", got.code, got.stdout, got.stderr)
	}
}
