package snapshot

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"holdfast/storage"
)

// TestPruneAndStockRestic: what Prune leaves, stock restic checks, restores, prunes and writes on; and the other way round.
func TestPruneAndStockRestic(t *testing.T) { eachRestic(t, testPruneAndStockRestic) }

func testPruneAndStockRestic(t *testing.T, version resticVersion) {
	restic := version.path
	repository, provider := directoryRepository(t)
	s := makeScene(t, 20)
	copyTo(t, provider, s.memory)
	// What a restic that was killed may leave.
	for _, prefix := range []string{lockPrefix, indexPrefix, packPrefix + "00/"} {
		overwrite(t, provider, prefix+blobID{}.String()+"-tmp-1", []byte("half"))
	}
	r := newTestRepository(t, storage.PolicyAll, provider)
	sound := func() {
		t.Helper()
		requireNoResticErrors(t, restic, repository)
		requireContent(t, s.kept, provider)
		requireSound(t, provider)
	}
	prune := func() *PruneReport {
		t.Helper()
		report, err := r.Prune(t.Context(), thorough())
		require.NoError(t, err)
		sound()
		return report
	}
	require.Positive(t, prune().PacksRepacked)
	for id := range s.kept {
		target := filepath.Join(t.TempDir(), "restored")
		stock(t, restic, repository, "", "restore", id, "--target", target)
		ours := filepath.Join(t.TempDir(), "ours")
		_, err := r.Restore(t.Context(), id, ours, RestoreOptions{})
		require.NoError(t, err)
		require.NoError(t, os.Chmod(target, 0o755))
		require.NoError(t, os.Chmod(ours, 0o755))
		require.NoError(t, os.Chtimes(target, time.Time{}, time.Unix(1, 0)))
		require.NoError(t, os.Chtimes(ours, time.Time{}, time.Unix(1, 0)))
		compareTrees(t, ours, target)
	}

	// Both write, forget and prune, in turns.
	source := filepath.Join(t.TempDir(), "source")
	for round := range 3 {
		writeFiles(t, source, map[string][]byte{"same": randomBytes(1, 700_000), fmt.Sprintf("f%d", round): randomBytes(int64(round), 90_000), "changes": randomBytes(int64(100+round), 60_000)})
		stock(t, restic, repository, source, "backup", ".", "--host", "h", "--tag", fmt.Sprint(round))
		result, err := r.Backup(t.Context(), source, BackupOptions{Hostname: "ours", Paths: []string{"/w"}, Kind: Final})
		require.NoError(t, err)
		requireWhole(t, r, result.Snapshot)
		_, err = r.Forget(t.Context(), ForgetOptions{Keep: KeepPolicy{Last: 1}})
		require.NoError(t, err)
		stock(t, restic, repository, "", "forget", "--keep-last", "1")
		s.kept = contentOf(t, provider)
		if round == 1 {
			stock(t, restic, repository, "", "prune", "--max-unused", "0")
			sound()
			continue
		}
		report := prune()
		require.Positive(t, report.PacksRemoved+report.PacksRepacked)
		_, err = r.RebuildIndex(t.Context(), RebuildIndexOptions{})
		require.NoError(t, err)
		sound()
	}
	rebuild := []string{"repair", "index"}
	if version.old {
		rebuild = []string{"rebuild-index"}
	}
	stock(t, restic, repository, "", rebuild...)
	sound()
	require.Contains(t, allKeys(t, provider), indexPrefix+blobID{}.String()+"-tmp-1", "nobody's files are left alone")
	stock(t, restic, repository, "", "prune", "--max-unused", "0")
	sound()
	require.Zero(t, prune().UnusedBytes)
}

// TestPruneWaitsForStockRestic: while a backup of stock restic runs, nothing is forgotten, pruned or rebuilt; and stock
// restic does nothing while a prune of ours deletes.
func TestPruneWaitsForStockRestic(t *testing.T) { eachRestic(t, testPruneWaitsForStockRestic) }

func testPruneWaitsForStockRestic(t *testing.T, version resticVersion) {
	restic := version.path
	repository, provider := directoryRepository(t)
	s := makeScene(t, 21)
	copyTo(t, provider, s.memory)
	calls := &everyCall{Provider: provider}
	r := newTestRepository(t, storage.PolicyAll, calls)

	command := exec.Command(restic, "--no-cache", "-r", repository, "backup", "--stdin")
	command.Env = append(os.Environ(), "RESTIC_PASSWORD="+string(testPassword))
	input, err := command.StdinPipe()
	require.NoError(t, err)
	require.NoError(t, command.Start())
	require.Eventually(t, func() bool { return slices.ContainsFunc(locksOn(t, provider), isLock) }, 30*time.Second, 10*time.Millisecond)
	before := allKeys(t, provider)
	_, pruneErr := r.Prune(t.Context(), thorough())
	_, forgetErr := r.Forget(t.Context(), ForgetOptions{Keep: KeepPolicy{Last: 1}})
	_, rebuildErr := r.RebuildIndex(t.Context(), RebuildIndexOptions{})
	after := allKeys(t, provider)
	_, err = io.WriteString(input, "what restic backs up")
	require.NoError(t, errors.Join(err, input.Close(), command.Wait()))
	require.ErrorIs(t, pruneErr, ErrLocked)
	require.ErrorIs(t, forgetErr, ErrLocked)
	require.ErrorIs(t, rebuildErr, ErrLocked)
	require.Equal(t, before, after)

	s.kept = contentOf(t, provider)
	looked := 0
	calls.calls, calls.made = 0, nil
	_, err = r.Prune(t.Context(), PruneOptions{DryRun: true})
	require.NoError(t, err)
	calls.at = calls.calls + 20 // well within what comes now
	calls.before = func() {
		for _, arguments := range [][]string{{"prune"}, {"backup", "."}, {"forget", "--keep-last", "1"}, {"check"}} {
			command := exec.Command(restic, append([]string{"--no-cache", "-r", repository}, arguments...)...)
			command.Dir = t.TempDir()
			command.Env = append(os.Environ(), "RESTIC_PASSWORD="+string(testPassword))
			out, err := command.CombinedOutput()
			require.Error(t, err, arguments)
			require.Contains(t, string(out), "already locked", arguments)
			looked++
		}
	}
	_, err = r.Prune(t.Context(), thorough())
	require.NoError(t, err)
	require.Equal(t, 4, looked)
	requireContent(t, s.kept, provider)
	requireNoResticErrors(t, restic, repository)
	require.Empty(t, locksOn(t, provider))
	require.False(t, strings.HasPrefix(calls.made[len(calls.made)-1], "put"))
}
