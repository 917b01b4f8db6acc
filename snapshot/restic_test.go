package snapshot

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"holdfast/storage"
)

// directoryRepository is a repository in a directory, as stock restic opens it too.
func directoryRepository(t testing.TB) (string, storage.Provider) {
	t.Helper()
	dir := t.TempDir()
	provider, err := storage.OpenDirectory(dir, storage.DirectoryOptions{})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, provider.Close()) })
	return dir, provider
}

// stock runs restic on a repository and returns what it printed.
func stock(t testing.TB, restic, repository, dir string, arguments ...string) string {
	t.Helper()
	command := exec.Command(restic, append([]string{"--no-cache", "-r", repository}, arguments...)...)
	command.Dir = dir
	command.Env = append(os.Environ(), "RESTIC_PASSWORD="+string(testPassword), "RESTIC_FROM_PASSWORD="+string(testPassword))
	var out bytes.Buffer
	command.Stdout, command.Stderr = &out, &out
	err := command.Run()
	require.NoError(t, err, "restic %s:\n%s", strings.Join(arguments, " "), out.String())
	return out.String()
}

// rsyncDifferences compares two trees with rsync: contents, modes, owners, times, links, hard links, attributes, ACLs.
func rsyncDifferences(t testing.TB, rsync, want, got string) []string {
	t.Helper()
	out, err := exec.Command(rsync, "-aHAXn", "--delete", "--checksum", "--itemize-changes", want+"/", got+"/").CombinedOutput()
	require.NoError(t, err, string(out))
	return strings.Split(strings.TrimSpace(string(out)), "\n")
}

// stockRestore restores a snapshot with restic and gives the target what restic does not: what the directory itself was.
func stockRestore(t testing.TB, restic, repository, snapshot, source string) string {
	t.Helper()
	target := filepath.Join(t.TempDir(), "restored")
	stock(t, restic, repository, "", "restore", snapshot, "--target", target)
	stat, err := os.Stat(source)
	require.NoError(t, err)
	require.NoError(t, os.Chmod(target, stat.Mode()))
	require.NoError(t, os.Chtimes(target, stat.ModTime(), stat.ModTime()))
	return target
}

// TestStockResticReadsAndWrites: what Backup wrote, stock restic checks, restores and writes on, and the other way round
// (A13).
func TestStockResticReadsAndWrites(t *testing.T) { eachRestic(t, testStockResticReadsAndWrites) }

func testStockResticReadsAndWrites(t *testing.T, version resticVersion) {
	restic, rsync := version.path, requireCommand(t, "rsync")
	requireRoot(t)
	repository, provider := directoryRepository(t)
	source := filepath.Join(t.TempDir(), "source")
	buildFidelityTree(t, source)
	if version.old { // it follows a link when it sets attributes of it
		_ = unix.Lremovexattr(filepath.Join(source, "link"), "trusted.on_a_link")
	}
	r := newTestRepository(t, storage.PolicyAll, provider)
	first, err := r.Backup(t.Context(), source, BackupOptions{Kind: Final, Tags: []string{"one"}})
	require.NoError(t, err)
	require.Empty(t, first.Omissions)
	requireNoResticErrors(t, restic, repository)
	require.Contains(t, stock(t, restic, repository, "", "snapshots", "--tag", "holdfast:final"), first.Snapshot[:8])

	// This restic may be too old for some things (links that are not UTF-8, attributes of links): what it loses of its
	// own backups of the same directory is all that it may lose of ours.
	own := filepath.Join(t.TempDir(), "own")
	stock(t, restic, own, "", "init")
	stock(t, restic, own, source, "backup", ".")
	excused := rsyncDifferences(t, rsync, source, stockRestore(t, restic, own, "latest", source))
	require.Less(t, len(excused), 6)
	require.Subset(t, excused, rsyncDifferences(t, rsync, source, stockRestore(t, restic, repository, first.Snapshot, source)))

	// restic writes on.
	require.NoError(t, os.WriteFile(filepath.Join(source, "dir", "by restic"), bytes.Repeat([]byte("restic "), 300_000), 0o644))
	stock(t, restic, repository, source, "backup", ".")
	require.NoError(t, os.WriteFile(filepath.Join(source, "dir", "by us"), bytes.Repeat([]byte("holdfast "), 300_000), 0o644))
	second, err := r.Backup(t.Context(), source, BackupOptions{Kind: Final})
	require.NoError(t, err)
	requireNoResticErrors(t, restic, repository)
	infos, err := r.Snapshots(t.Context())
	require.NoError(t, err)
	require.Len(t, infos, 3)
	stored, err := r.VerifyStored(t.Context(), second.Snapshot)
	require.NoError(t, err)
	for url, err := range stored {
		require.NoError(t, err, url)
	}
	require.Less(t, second.BytesAdded, int64(3_000_000), "what restic stored is not stored again")
}

// TestTreesHaveResticsBytes: every tree that stock restic stored is encoded again to the same bytes, so that equal
// directories are stored once whoever stored them; and its config, keys and index can be read (A13).
func TestTreesHaveResticsBytes(t *testing.T) { eachRestic(t, testTreesHaveResticsBytes) }

func testTreesHaveResticsBytes(t *testing.T, version resticVersion) {
	restic := version.path
	repository, provider := directoryRepository(t)
	source := filepath.Join(t.TempDir(), "source")
	buildFidelityTree(t, source)
	openClosed(t, source)
	if version.old { // it loses what is not UTF-8 in a link's target, so its bytes cannot come back
		require.NoError(t, os.Remove(filepath.Join(source, "dangling")))
	}
	stock(t, restic, repository, "", "init")
	stock(t, restic, repository, source, "backup", ".", "--tag", "foreign")
	_, err := Create(t.Context(), newTestMirror(t, storage.PolicyAll, provider), testPassword, testOptions())
	require.ErrorIs(t, err, storage.ErrExists)
	r := newTestRepository(t, storage.PolicyAll, provider)
	trees := 0
	var blobs []packedBlob
	r.eachBlob(func(b packedBlob) bool { blobs = append(blobs, b); return true })
	for _, b := range blobs {
		plain, err := r.loadBlob(t.Context(), b.id, b.location.kind)
		require.NoError(t, err)
		if b.location.kind != treeBlob {
			continue
		}
		nodes, err := decodeTree(plain)
		require.NoError(t, err)
		encoded, err := encodeTree(nodes)
		require.NoError(t, err)
		require.Equal(t, string(plain), string(encoded))
		trees++
	}
	require.Greater(t, trees, 3)
	for _, pack := range r.indexedPacks() {
		header, err := r.loadPackHeader(t.Context(), pack.id, pack.size)
		require.NoError(t, err)
		require.Len(t, header, pack.blobs)
	}
	infos, err := r.Snapshots(t.Context())
	require.NoError(t, err)
	require.Len(t, infos, 1)
	require.Equal(t, []string{"foreign"}, infos[0].Tags)
	require.Empty(t, infos[0].Kind)
	requireWhole(t, r, infos[0].ID)
}

// TestStockPruneRefusesDuringABackup: packs that no snapshot names yet are not deleted under a running backup.
func TestStockPruneRefusesDuringABackup(t *testing.T) {
	eachRestic(t, testStockPruneRefusesDuringABackup)
}

func testStockPruneRefusesDuringABackup(t *testing.T, version resticVersion) {
	restic := version.path
	repository, provider := directoryRepository(t)
	r := newTestRepository(t, storage.PolicyAll, provider)
	prune := func() (string, error) {
		command := exec.Command(restic, "--no-cache", "-r", repository, "prune")
		command.Env = append(os.Environ(), "RESTIC_PASSWORD="+string(testPassword))
		out, err := command.CombinedOutput()
		return string(out), err
	}
	dir := t.TempDir()
	writeFiles(t, dir, map[string][]byte{"f": []byte("f")})
	r.moments.listed = func(string) {
		out, err := prune()
		assert.Error(t, err)
		assert.Contains(t, out, "already locked")
	}
	result, err := r.Backup(t.Context(), dir, BackupOptions{})
	require.NoError(t, err)
	out, err := prune()
	require.NoError(t, err, out)
	requireWhole(t, r, result.Snapshot)

	// After a prune that rewrote packs and indexes the same process goes on with what there is now.
	for i := range 3 {
		writeFiles(t, dir, map[string][]byte{"f": randomBytes(int64(i), 200_000)})
		r.moments.listed = nil
		_, err = r.Backup(t.Context(), dir, BackupOptions{Kind: Final})
		require.NoError(t, err)
	}
	stock(t, restic, repository, "", "forget", "--keep-last", "1", "--group-by", "", "--prune", "--max-unused", "0")
	result, err = r.Backup(t.Context(), dir, BackupOptions{Kind: Final})
	require.NoError(t, err)
	requireWhole(t, r, result.Snapshot)
	requireNoResticErrors(t, restic, repository)
}
