package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// What is wrong with the demo's content is said of the demo's own flag, not of start's.
func TestDemoContentNamesItsFlag(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for path, says := range map[string]string{filepath.Join(dir, "absent"): "no such file", file: "is not a directory"} {
		_, err := demoContent(path)
		if err == nil {
			t.Fatalf("%s: taken for a directory", path)
		}
		if got := asFailure(err); got.code != exitUsage || !strings.HasPrefix(err.Error(), "--content: ") || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: exit code %d, %q: want %d and --content: ... %s", path, got.code, err, exitUsage, says)
		}
	}
}
