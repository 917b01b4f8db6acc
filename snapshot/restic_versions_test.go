package snapshot

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"holdfast/devstack/stockrestic"
)

// resticVersion is one restic that a test is run with.
type resticVersion struct {
	name, path string
	// old: before 0.16, which lost some of what a directory has, and counted otherwise when it forgot.
	old bool
}

// eachRestic runs a test with the restic that the machine has, and with the newest release, which tools/restic pins, side by
// side, and beside other tests: restic's commands wait more than they work. Each is skipped, or fails, by itself where it cannot be had.
func eachRestic(t *testing.T, test func(t *testing.T, restic resticVersion)) {
	t.Helper()
	t.Parallel()
	t.Run("installed", func(t *testing.T) {
		t.Parallel()
		test(t, describeRestic(t, requireCommand(t, "restic")))
	})
	t.Run("pinned", func(t *testing.T) {
		t.Parallel()
		path, err := pinnedRestic(t)
		requireTool(t, "pinned-restic", err == nil)
		restic := describeRestic(t, path)
		require.False(t, restic.old, restic.name)
		test(t, restic)
	})
}

func describeRestic(t *testing.T, path string) resticVersion {
	t.Helper()
	out, err := exec.Command(path, "version").Output()
	require.NoError(t, err)
	v := resticVersion{name: string(out), path: path}
	var minor int
	if _, err := fmt.Sscanf(v.name, "restic 0.%d.", &minor); err == nil {
		v.old = minor < 16
	}
	return v
}

var pinned struct {
	sync.Mutex
	path string
	err  error
}

// pinnedRestic is the program that tools/restic pins. It is built once for a machine, and looked for once for a process.
func pinnedRestic(t *testing.T) (string, error) {
	pinned.Lock()
	defer pinned.Unlock()
	if pinned.path == "" && pinned.err == nil {
		pinned.path, pinned.err = stockrestic.Build(t.Context(), os.Stderr)
		if pinned.err != nil {
			t.Log(pinned.err)
		}
	}
	return pinned.path, pinned.err
}

// everyRestic is every restic that can be had here, for what is said by the way: none where none is.
func everyRestic(t *testing.T) (paths []string) {
	t.Helper()
	if path, err := exec.LookPath("restic"); err == nil {
		paths = append(paths, path)
	}
	if path, err := pinnedRestic(t); err == nil {
		paths = append(paths, path)
	}
	return paths
}

// copyProgram copies a program to where an ordinary user can run it.
func copyProgram(t *testing.T, from, to string) {
	t.Helper()
	program, err := os.Open(from)
	require.NoError(t, err)
	defer func() { must(t, program.Close()) }()
	file, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o755)
	require.NoError(t, err)
	_, err = io.Copy(file, program)
	require.NoError(t, err)
	require.NoError(t, file.Close())
}

// requireNoResticErrors has a restic read everything in a repository.
func requireNoResticErrors(t testing.TB, restic, repository string) {
	t.Helper()
	out := stock(t, restic, repository, "", "check", "--read-data")
	require.Contains(t, out, "no errors were found")
	// What is no error to restic, and yet not as it should be: mixed packs, packs in two indexes, files without a use.
	for line := range strings.Lines(out) {
		require.NotContains(t, strings.ToLower(line), "warning", out)
	}
}
