package main

import (
	"os"
	"path/filepath"
	"testing"
)

// TestSnapshotStateFile: a backup remembers in the cache directory what the directory was, or where it is told to, or not
// at all; never in the directory itself.
func TestSnapshotStateFile(t *testing.T) {
	home, repo := t.TempDir(), t.TempDir()
	t.Setenv("HOME", home)
	t.Setenv("XDG_CACHE_HOME", filepath.Join(home, "cache"))
	remembered := func() int {
		found, err := filepath.Glob(filepath.Join(home, "cache", "holdfast", "state", "*"))
		if err != nil {
			t.Fatal(err)
		}
		return len(found)
	}
	ids, with := repositoryOf(t, filepath.Join(repo, "r"), 2)
	if remembered() != 1 || len(ids) != 2 {
		t.Fatalf("two backups of one directory left %d state files", remembered())
	}
	source := t.TempDir()
	run := func(code int, args ...string) {
		t.Helper()
		if got := command(t, nil, with(append([]string{"snapshot", "backup"}, args...)...)...); got.code != code {
			t.Fatalf("%v: exit code %d, not %d: %s", args, got.code, code, got.stderr)
		}
	}
	run(exitDone, source, "--no-state-file")
	chosen := filepath.Join(t.TempDir(), "chosen")
	run(exitDone, source, "--state-file", chosen)
	if remembered() != 1 {
		t.Fatal("a backup that was told not to has remembered something")
	}
	if info, err := os.Stat(chosen); err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("the chosen file: %v %v", info, err)
	}
	run(exitDone, source, "--host", "other")
	run(exitDone, source)
	if remembered() != 3 {
		t.Fatalf("another directory, and another host, left %d state files", remembered())
	}
	run(exitUsage, source, "--state-file", filepath.Join(source, "state"))
	run(exitUsage, source, "--state-file", filepath.Join(source, "missing", "state"))
	run(exitUsage, source, "--state-file", chosen, "--no-state-file")
	run(exitDone, home) // the cache directory is in it
	if remembered() != 3 {
		t.Fatal("a state file in the directory itself")
	}
}
