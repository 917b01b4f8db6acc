package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"
	"time"

	"holdfast/snapshot"
)

// TestSnapshotStateFile: a backup remembers in the cache directory what the directory was, or where it is told to, or not
// at all; never in the directory itself. A restore remembers for the backups of what it restored.
func TestSnapshotStateFile(t *testing.T) {
	home, source := t.TempDir(), t.TempDir()
	t.Setenv("HOME", home)
	t.Setenv("XDG_CACHE_HOME", filepath.Join(home, "cache"))
	repository, password := filepath.Join(t.TempDir(), "r"), filepath.Join(t.TempDir(), "password")
	for path, content := range map[string]string{password: "secret", filepath.Join(source, "file"): "content"} {
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	run := func(code int, args ...string) (result snapshot.BackupResult) {
		t.Helper()
		p := newTestProgram(t, &fakeControl{})
		args = append(append([]string{"snapshot"}, args...), "--repo", "file://"+repository, "--password-file", password, "-o", "json")
		if got := p.run(args...); got != code {
			t.Fatalf("%v: exit code %d, not %d: %s", args, got, code, p.errs.String())
		}
		if code == exitDone {
			if err := json.Unmarshal(p.out.Bytes(), &result); err != nil {
				t.Fatal(err)
			}
		}
		return result
	}
	remembered := func(want int) {
		t.Helper()
		found, err := filepath.Glob(filepath.Join(home, "cache", "holdfast", "state", "*"))
		if err != nil || len(found) != want {
			t.Fatalf("%d state files, not %d: %v %v", len(found), want, found, err)
		}
	}
	chosen := filepath.Join(t.TempDir(), "chosen")
	first := run(exitDone, "backup", source, "--state-file", chosen)
	if info, err := os.Stat(chosen); err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("the chosen file: %v %v", info, err)
	}
	run(exitDone, "backup", source, "--no-state-file")
	remembered(0)
	if again := run(exitDone, "backup", source); again.Tree != first.Tree {
		t.Fatal("the snapshot depends on the state file")
	}
	remembered(1)
	restored := filepath.Join(t.TempDir(), "restored")
	run(exitDone, "restore", "latest", "--target", restored)
	remembered(2)
	run(exitDone, "backup", restored) // with what the restore has left
	remembered(2)
	run(exitDone, "backup", home) // the cache directory is in it
	remembered(2)
	// What nobody has used for long goes, whichever repository it is of.
	found, err := filepath.Glob(filepath.Join(home, "cache", "holdfast", "state", "*"))
	if err != nil {
		t.Fatal(err)
	}
	long := newTestProgram(t, &fakeControl{}).now().Add(-365 * 24 * time.Hour)
	for _, path := range found {
		if err := os.Chtimes(path, long, long); err != nil {
			t.Fatal(err)
		}
	}
	run(exitDone, "backup", source)
	remembered(1)
	run(exitUsage, "backup", source, "--state-file", filepath.Join(source, "state"))
	run(exitUsage, "backup", source, "--state-file", filepath.Join(source, "missing", "state"))
	run(exitUsage, "backup", source, "--state-file", chosen, "--no-state-file")
}
