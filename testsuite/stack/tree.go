package stack

import (
	"fmt"
	"math/rand"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"holdfast/devstack/devtest"
)

// Manifest takes a copy of a whole tree, of everything that a file can have, for a later comparison.
func Manifest(t *testing.T, dir string) string {
	t.Helper()
	if _, err := exec.LookPath("rsync"); err != nil {
		devtest.Missing(t, "rsync", err)
	}
	copied := filepath.Join(t.TempDir(), "manifest")
	output, err := exec.Command("rsync", "-aHAXS", dir+"/", copied+"/").CombinedOutput()
	require.NoError(t, err, string(output))
	// The copy itself has to be what it was taken of, or nothing that is compared with it means anything.
	RequireSame(t, dir, copied)
	return copied
}

// Differences are those between two trees as rsync itemizes them: content by checksum, modes, owners, times, links,
// ACLs and extended attributes.
func Differences(t *testing.T, want, got string) string {
	t.Helper()
	if _, err := exec.LookPath("rsync"); err != nil {
		devtest.Missing(t, "rsync", err)
	}
	output, err := exec.Command("rsync", "-aHAXn", "--checksum", "--itemize-changes", "--delete", want+"/", got+"/").CombinedOutput()
	require.NoError(t, err, string(output))
	return string(output)
}

// RequireSame wants two trees to be the same in everything that Differences sees.
func RequireSame(t *testing.T, want, got string) {
	t.Helper()
	require.Empty(t, Differences(t, want, got), "the trees differ")
}

// RandomTree makes files that neither compress nor repeat, the same ones for the same seed.
func RandomTree(t *testing.T, seed int64, files int, size int) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "tree")
	random := rand.New(rand.NewSource(seed))
	content := make([]byte, size)
	for i := range files {
		random.Read(content)
		path := filepath.Join(dir, fmt.Sprintf("part-%d", i%7), fmt.Sprintf("file-%d", i))
		require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
		require.NoError(t, os.WriteFile(path, content, 0o644))
	}
	return dir
}

// Seed is HOLDFAST_SEED, or one of this moment; it is printed, so that a failure can be had again.
func Seed(t *testing.T) int64 {
	seed := time.Now().UnixNano()
	if text := os.Getenv("HOLDFAST_SEED"); text != "" {
		var err error
		seed, err = strconv.ParseInt(text, 10, 64)
		require.NoError(t, err)
	}
	t.Logf("HOLDFAST_SEED=%d", seed)
	return seed
}
