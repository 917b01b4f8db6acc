package snapshot

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"holdfast/storage"
	"holdfast/storage/storagetest"
)

// What our own backup stored comes back in everything: by Restore, and by Dump as a tar stream.
func TestBackupRestoreDumpFidelity(t *testing.T) {
	if base := os.Getenv("SNAPSHOT_TEST_OWN"); base != "" {
		ownFidelity(t, base)
		return
	}
	t.Run("self", func(t *testing.T) { ownFidelity(t, t.TempDir()) })
	t.Run("ordinary user", func(t *testing.T) { asNobody(t, "TestBackupRestoreDumpFidelity", "SNAPSHOT_TEST_OWN="+worldDir(t)) })
}

func ownFidelity(t *testing.T, base string) {
	source := filepath.Join(base, "source")
	buildFidelityTree(t, source)
	openClosed(t, source)
	r := memoryRepository(t)
	result, err := r.Backup(t.Context(), source, BackupOptions{Kind: Final})
	must(t, err)
	if len(result.Omissions) > 0 {
		t.Errorf("omissions: %v", result.Omissions)
	}
	target := filepath.Join(base, "target")
	report, err := r.Restore(t.Context(), result.Snapshot, target, RestoreOptions{})
	must(t, err)
	if len(report.Warnings) > 0 {
		t.Errorf("warnings: %v", report.Warnings)
	}
	compareTrees(t, source, target)
	requireHoles(t, target+"/sparse")

	var archive bytes.Buffer
	must(t, r.Dump(t.Context(), "latest", "/", &archive, DumpOptions{}))
	unpacked := filepath.Join(base, "unpacked")
	_, err = UntarDirectory(t.Context(), &archive, unpacked, UntarOptions{Privileged: true})
	must(t, err)
	compareTrees(t, source, unpacked)
	requireClean(t, r)
}

func TestDumpAndList(t *testing.T) {
	memory := storagetest.NewMemory()
	c := newCrafter(t, newTestRepository(t, storage.PolicyAll, memory))
	id := c.snapshot(c.someTree())
	r := c.repository

	var out bytes.Buffer
	must(t, r.Dump(t.Context(), "latest", "dir/inner", &out, DumpOptions{}))
	if out.String() != "the inner file" {
		t.Errorf("dumped %q", out.String())
	}
	out.Reset()
	must(t, r.Dump(t.Context(), id[:8], "/dir/inner", &out, DumpOptions{Archive: "tar"}))
	header, err := tar.NewReader(&out).Next()
	if err != nil || header.Name != "inner" || header.Size != 14 {
		t.Errorf("%+v, %v", header, err)
	}
	for path, want := range map[string]error{"dir/link": ErrNoPath, "no": ErrNoPath, "small/no": ErrNoPath, "dir/link/x": ErrNoPath, "..": ErrNoPath} {
		if err := r.Dump(t.Context(), id, path, io.Discard, DumpOptions{}); !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", path, err, want)
		}
	}
	if err := r.Dump(t.Context(), id, "", io.Discard, DumpOptions{Archive: "zip"}); !errors.Is(err, storage.ErrInvalid) {
		t.Errorf("zip: %v", err)
	}
	full := errors.New("the reader went away")
	if err := r.Dump(t.Context(), id, "big", writerFunc(func([]byte) (int, error) { return 0, full }), DumpOptions{}); !errors.Is(err, full) {
		t.Errorf("a writer that fails: %v", err)
	}

	list := func(path string, recursive bool) (paths []string) {
		must(t, r.List(t.Context(), id, path, recursive, func(e Entry) error {
			paths = append(paths, e.Type+" "+e.Path)
			if e.Path == "big" && (e.Size < 1_000_000 || e.Mode != 0o600) {
				t.Errorf("%+v", e)
			}
			return nil
		}))
		return paths
	}
	for _, test := range []struct {
		path      string
		recursive bool
		want      string
	}{
		{"", false, "file big, dir dir, file empty, file small"},
		{"/", true, "file big, dir dir, file dir/inner, symlink dir/link, file empty, file small"},
		{"dir", false, "file dir/inner, symlink dir/link"},
		{"small", false, "file small"},
	} {
		if got := strings.Join(list(test.path, test.recursive), ", "); got != test.want {
			t.Errorf("%q: %s", test.path, got)
		}
	}
	stop := errors.New("enough")
	if err := r.List(t.Context(), id, "", true, func(Entry) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("each failed: %v", err)
	}
	if err := r.List(t.Context(), id, "no", false, nil); !errors.Is(err, ErrNoPath) {
		t.Errorf("no such path: %v", err)
	}
}

// A stream that could not be finished is never mistaken for a whole one, wherever the damage is.
func TestDumpOfDamage(t *testing.T) {
	memory := storagetest.NewMemory()
	c := newCrafter(t, newTestRepository(t, storage.PolicyAll, memory))
	id := c.snapshot(c.someTree())
	packs := slices.DeleteFunc(memory.Keys(), func(key string) bool { return !strings.HasPrefix(key, packPrefix) })
	for _, key := range packs {
		var kept []byte
		memory.Corrupt(key, func(data []byte) []byte { kept = data; return flip(data, 40) })
		var out bytes.Buffer
		if err := c.repository.Dump(t.Context(), id, "/", &out, DumpOptions{}); !errors.Is(err, ErrDamaged) {
			t.Errorf("%s: %v", key, err)
		}
		if _, err := UntarDirectory(t.Context(), &out, t.TempDir()+"/target", UntarOptions{}); !errors.Is(err, ErrDamaged) {
			t.Errorf("%s: the cut stream was unpacked: %v", key, err)
		}
		memory.Corrupt(key, func([]byte) []byte { return kept })
	}
}
