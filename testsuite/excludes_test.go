package testsuite_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"holdfast/testsuite/stack"
	"holdfast/workspace"
)

// TestExcludes is what .holdfastignore does from one end to the other: what it names goes with the content at a stop, and
// nothing else does; it is told before, at the stop, and whenever the snapshot is used; and rules with a mistake in them
// leave nothing out.
func TestExcludes(t *testing.T) {
	t.Parallel()
	s := stack.New(t, "all", "process")
	tree := filepath.Join(t.TempDir(), "tree")
	for name, content := range map[string]string{
		".holdfastignore": "# a build makes them again\n/build/\n*.o\n!keep.o\n", "main.c": "int main;", "main.o": "o", "keep.o": "k",
		"build/deep/out": "out", "lib/lib.o": "o", "lib/build/source": "kept: the rule is for the top",
	} {
		require.NoError(t, os.MkdirAll(filepath.Dir(filepath.Join(tree, name)), 0o755))
		require.NoError(t, os.WriteFile(filepath.Join(tree, name), []byte(content), 0o644))
	}
	stack.Must(t, s, 0, nil, "start", "web", "--from-dir", tree)
	node, content := stack.ContentDir(t, s, "web")
	stack.RequireSame(t, tree, content) // what a person sends is not thinned out
	named := []string{"build/ (.holdfastignore: /build/)", "lib/lib.o (.holdfastignore: *.o)", "main.o (.holdfastignore: *.o)"}

	// Told before anything is lost.
	stack.Must(t, s, 0, append(named, "excluded by .holdfastignore, so not in the snapshot: 3 paths"), "backup", "web")
	require.FileExists(t, filepath.Join(content, "build/deep/out"))
	stack.Must(t, s, 0, append(named, "excluded by .holdfastignore: 3 paths"), "show", "web")
	stack.Must(t, s, 0, []string{"3 paths are excluded from it by .holdfastignore"}, "why", "web")

	// Told at the stop, which is done: nothing is owed, the content goes.
	before := stack.Manifest(t, content)
	stack.Must(t, s, 0, append(named, "web is stopped", "so not in the snapshot, and gone when the content leaves its node: 3 paths"), "stop", "web")
	require.NoDirExists(t, filepath.Dir(content))
	var listed workspace.SnapshotsResult
	require.NoError(t, json.Unmarshal([]byte(stack.Must(t, s, 0, nil, "snapshots", "web", "-o", "json").Stdout), &listed))
	require.Len(t, listed.Snapshots, 2)
	for _, line := range listed.Snapshots {
		require.EqualValues(t, 3, line.Excluded, "%+v", line)
	}
	stack.Must(t, s, 0, []string{"EXCL"}, "snapshots", "web")

	// Told when it is restored, and exactly that is missing.
	stack.Must(t, s, 0, append(named, "restored from snapshot", "excluded by .holdfastignore when this snapshot was made: 3 paths"), "start", "web", "--not-node", node)
	_, restored := stack.ContentDir(t, s, "web")
	var missing []string
	for line := range strings.Lines(stack.Differences(t, restored, before)) { // what would go if before were made like it
		missing = append(missing, strings.TrimSpace(line))
	}
	require.ElementsMatch(t, []string{
		"*deleting   build/deep/out", "*deleting   build/deep/", "*deleting   build/", "*deleting   lib/lib.o", "*deleting   main.o",
	}, missing)

	// Changed rules with a mistake in them leave nothing out, and it is said.
	stack.Must(t, s, 0, nil, "exec", "web", "--", "sh", "-c", "mkdir build; echo again > build/out; echo '*.[o' >> .holdfastignore")
	before = stack.Manifest(t, restored)
	stopped := stack.Must(t, s, 0, []string{"web is stopped", ".holdfastignore leaves nothing out: line 5", "is not a pattern"}, "stop", "web")
	require.NotContains(t, stopped.Stdout, "so not in the snapshot")
	stack.Must(t, s, 0, nil, "start", "web")
	_, restored = stack.ContentDir(t, s, "web")
	stack.RequireSame(t, before, restored)
}
