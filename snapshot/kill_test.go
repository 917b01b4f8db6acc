package snapshot

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"math/rand"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"holdfast/storage"
)

// deadly is a provider that ends its process by SIGKILL at one write, and keeps a record of the packs that it was given.
type deadly struct {
	storage.Provider
	record *os.File
	writes atomic.Int64
	at     int64  // the number of the write; 0 never
	moment string // one of momentsOfDeath
}

// momentsOfDeath are when a write ends the process: what else is on its way then is as far as it happens to be.
var momentsOfDeath = []string{"before", "during", "after"}

func (d *deadly) Put(ctx context.Context, key string, data []byte, options storage.PutOptions) (storage.Object, error) {
	if isPack(key) {
		if _, err := fmt.Fprintln(d.record, len(data)); err != nil {
			return storage.Object{}, err
		}
	}
	if d.writes.Add(1) != d.at {
		return d.Provider.Put(ctx, key, data, options)
	}
	switch d.moment {
	case "during":
		go func() { _, _ = d.Provider.Put(ctx, key, data, options) }()
		runtime.Gosched()
	case "after":
		if _, err := d.Provider.Put(ctx, key, data, options); err != nil {
			return storage.Object{}, err
		}
	}
	_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
	select {}
}

// TestBackupChild is the process that TestKilledBackupsResume kills.
func TestBackupChild(t *testing.T) {
	repository, source := os.Getenv("SNAPSHOT_TEST_REPOSITORY"), os.Getenv("SNAPSHOT_TEST_SOURCE")
	if repository == "" {
		t.Skip("only as a child of TestKilledBackupsResume")
	}
	provider, err := storage.OpenDirectory(repository, storage.DirectoryOptions{})
	require.NoError(t, err)
	at, err := strconv.ParseInt(os.Getenv("SNAPSHOT_TEST_KILL_AT"), 10, 64)
	require.NoError(t, err)
	record, err := os.OpenFile(os.Getenv("SNAPSHOT_TEST_RECORD"), os.O_APPEND|os.O_WRONLY|os.O_CREATE, 0o600)
	require.NoError(t, err)
	mortal := &deadly{Provider: provider, record: record, at: at, moment: os.Getenv("SNAPSHOT_TEST_KILL_MOMENT")}
	r := newTestRepository(t, storage.PolicyAll, mortal)
	options := killedBackupOptions()
	options.StateFile = os.Getenv("SNAPSHOT_TEST_STATE")
	result, err := r.Backup(t.Context(), source, options)
	require.NoError(t, err)
	fmt.Printf("done %s %d\n", result.Snapshot, mortal.writes.Load())
}

// killedBackupOptions name the workspace, wherever its directory lies.
func killedBackupOptions() BackupOptions {
	return BackupOptions{Kind: Final, Hostname: "workspace", Paths: []string{"/workspace"}}
}

// killedRun is what became of a backup in a child process.
type killedRun struct {
	snapshot string // "" when it was killed
	writes   int    // known when it was not
	sent     int64  // bytes of packs that were given to the provider
}

// killedBackup runs a backup in a child process that is killed at a write, unless it makes fewer or at is 0.
func killedBackup(t *testing.T, repository, source, state string, at int, moment string) (run killedRun) {
	t.Helper()
	record := filepath.Join(t.TempDir(), "record")
	command := exec.Command(os.Args[0], "-test.run=^TestBackupChild$", "-test.v")
	command.Env = append(os.Environ(), "SNAPSHOT_TEST_REPOSITORY="+repository, "SNAPSHOT_TEST_SOURCE="+source,
		fmt.Sprint("SNAPSHOT_TEST_KILL_AT=", at), "SNAPSHOT_TEST_KILL_MOMENT="+moment, "SNAPSHOT_TEST_RECORD="+record, "SNAPSHOT_TEST_STATE="+state)
	var out bytes.Buffer
	command.Stdout, command.Stderr = &out, &out
	err := command.Run()
	packs, readErr := os.ReadFile(record)
	require.NoError(t, readErr, out.String())
	for line := range strings.Lines(string(packs)) {
		size, err := strconv.ParseInt(strings.TrimSpace(line), 10, 64)
		require.NoError(t, err)
		run.sent += size
	}
	for line := range strings.Lines(out.String()) {
		if n, _ := fmt.Sscanf(line, "done %s %d", &run.snapshot, &run.writes); n == 2 {
			return run
		}
	}
	require.ErrorContains(t, err, "killed", out.String())
	return run
}

// storedPacks are the packs of a repository in a directory, with their sizes.
func storedPacks(t *testing.T, repository string) map[string]int64 {
	t.Helper()
	packs := map[string]int64{}
	require.NoError(t, filepath.WalkDir(filepath.Join(repository, "data"), func(path string, entry fs.DirEntry, err error) error {
		if os.IsNotExist(err) {
			return nil
		}
		if err == nil && entry.Type().IsRegular() {
			info, err := entry.Info()
			if err != nil {
				return err
			}
			packs[filepath.Base(path)] = info.Size()
		}
		return err
	}))
	return packs
}

// killedSource is a directory as it is now, and as it was at the backup before.
func killedSource(t *testing.T, random *rand.Rand) (dir string, now, before map[string][]byte) {
	t.Helper()
	dir = filepath.Join(t.TempDir(), "source")
	now, before = map[string][]byte{"large": randomBytes(1, 14<<20)}, map[string][]byte{}
	for i := range 200 {
		now[fmt.Sprintf("d%d/e%d/f%d", i%7, i%3, i)] = randomBytes(int64(100+i), random.Intn(60_000))
	}
	for i := range 6 {
		now[fmt.Sprintf("medium/%d", i)] = randomBytes(int64(10+i), 700_000+random.Intn(1_500_000))
	}
	for name, content := range now {
		switch n := len(content); {
		case name == "large": // it has grown
			before[name] = content[:n/4]
		case n%3 == 0:
			before[name] = content
		case n%3 == 1:
			before[name] = randomBytes(int64(n), n/2)
		}
	}
	writeFiles(t, dir, now)
	return dir, now, before
}

// TestKilledBackupsResume kills a backup with SIGKILL at random writes, again and again, until one gets through: a first
// backup, and a later one; on the node where it began, and on another, which has the files as new inodes and no
// state file. What a kill costs is at most the packs that were on their way (MaxInFlight); whatever had been stored is used,
// so that no blob is ever stored a second time; and the snapshot is whole, byte for byte (A2, A3).
func TestKilledBackupsResume(t *testing.T) {
	t.Parallel()
	rounds := 10
	if os.Getenv("HOLDFAST_CAMPAIGN") != "" {
		rounds = 100
	}
	const seed = 20260125
	random := rand.New(rand.NewSource(seed))
	source, files, before := killedSource(t, random)
	moved := filepath.Join(t.TempDir(), "moved")
	copied, err := exec.Command("cp", "-a", source, moved).CombinedOutput()
	require.NoError(t, err, string(copied))

	// What each kind of backup begins with, and needs to store when nothing kills it.
	kinds := []struct {
		name, start string
		writes      int
		bytes       int64
		snapshots   int
	}{{name: "first"}, {name: "later", snapshots: 1}}
	for i := range kinds {
		k := &kinds[i]
		var provider storage.Provider
		k.start, provider = directoryRepository(t)
		if k.snapshots > 0 {
			dir := filepath.Join(t.TempDir(), "before")
			writeFiles(t, dir, before)
			_, err := newTestRepository(t, storage.PolicyAll, provider).Backup(t.Context(), dir, killedBackupOptions())
			require.NoError(t, err)
		}
		clean := copyOfRepository(t, k.start)
		k.bytes = -packBytes(t, clean)
		run := killedBackup(t, clean, source, "", 0, "")
		require.NotEmpty(t, run.snapshot)
		k.writes, k.bytes = run.writes, k.bytes+packBytes(t, clean)
		require.Equal(t, k.bytes, run.sent)
		require.Greater(t, k.bytes, int64(2*packUploads)*int64(testOptions().PackSize), "too little for the bound to show anything")
	}

	// A test's pack has no room for a chunk of the largest size with what goes around it, as one of DefaultPackSize has: such a
	// chunk alone makes a pack that is larger.
	largest := int64(max(testOptions().PackSize, maxChunkSize+envelopeOverhead+plainEntrySize+packFrameSize))
	kills, resumed, elsewhere := 0, 0, 0
	worst := int64(0)
	for chain := 0; kills < rounds; chain++ {
		k := kinds[chain%len(kinds)]
		repository := copyOfRepository(t, k.start)
		provider := openDirectory(t, repository)
		began := packBytes(t, repository)
		run := killedRun{}
		unanswered := 0 // kills that came after the snapshot was stored, and before that was said
		for first := kills; run.snapshot == ""; {
			dir, state := source, filepath.Join(repository, "..", "state")
			if random.Intn(2) == 0 {
				dir, state = moved, ""
			}
			there := storedPacks(t, repository)
			if kills == first+rounds {
				run = killedBackup(t, repository, dir, state, 0, "")
				require.NotEmpty(t, run.snapshot)
				break
			}
			// Of a backup that resumes, which writes less, a later write may be none: then it gets through.
			run = killedBackup(t, repository, dir, state, 1+random.Intn(k.writes), momentsOfDeath[random.Intn(len(momentsOfDeath))])
			packs := storedPacks(t, repository)
			for name, size := range there {
				require.Equal(t, size, packs[name], "a stored pack is never touched again")
			}
			lost := run.sent + sum(there) - sum(packs)
			require.LessOrEqual(t, lost, int64(packUploads)*largest, "bytes that a kill made be sent again; seed %d", seed)
			worst = max(worst, lost)
			if sum(there) > began {
				resumed++
				if dir == moved {
					elsewhere++
				}
			}
			if run.snapshot == "" {
				kills++
				unanswered = len(allKeysBelow(t, provider, snapshotPrefix)) - k.snapshots
			} else {
				require.Zero(t, lost)
			}
		}
		r := newTestRepository(t, storage.PolicyAll, provider)
		require.Zero(t, storedTwice(t, r, provider), "stored again; seed %d", seed)
		require.LessOrEqual(t, packBytes(t, repository)-began, k.bytes+k.bytes/50, "seed %d", seed)
		require.LessOrEqual(t, len(leftUnfinished(t, repository)), (kills+1)*(packUploads+2), "files on their way at the kills")
		requireWhole(t, r, run.snapshot)
		for path, content := range files {
			require.True(t, bytes.Equal(content, dumped(t, r, run.snapshot, path)), "%s differs; seed %d", path, seed)
		}
		infos, err := r.Snapshots(t.Context())
		require.NoError(t, err)
		require.Len(t, infos, k.snapshots+unanswered+1)
		if resticVersions := everyRestic(t); len(resticVersions) > 0 && chain < 2*len(kinds) {
			restic := resticVersions[chain%len(resticVersions)]
			stock(t, restic, repository, "", "unlock", "--remove-all")
			require.Contains(t, stock(t, restic, repository, "", "check", "--read-data"), "no errors were found")
		}
		require.NoError(t, os.RemoveAll(repository))
	}
	t.Logf("%d kills, %d resumed with packs there, %d of them elsewhere; the worst cost %d bytes", kills, resumed, elsewhere, worst)
	require.Positive(t, elsewhere, "no kill came after a pack was stored: the test shows nothing")
}

// copyOfRepository is one in a directory, like another.
func copyOfRepository(t *testing.T, repository string) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "repository")
	require.NoError(t, os.CopyFS(dir, os.DirFS(repository)))
	return dir
}

func sum(packs map[string]int64) (bytes int64) {
	for _, size := range packs {
		bytes += size
	}
	return bytes
}

func packBytes(t *testing.T, repository string) int64 { return sum(storedPacks(t, repository)) }

func allKeysBelow(t *testing.T, p storage.Provider, prefix string) []string {
	t.Helper()
	return slices.DeleteFunc(allKeys(t, p), func(key string) bool { return !strings.HasPrefix(key, prefix) })
}

// leftUnfinished are the files that the directory provider had not finished.
func leftUnfinished(t *testing.T, repository string) []string {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join(repository, storage.TempDirectory))
	if !os.IsNotExist(err) {
		require.NoError(t, err)
	}
	var names []string
	for _, entry := range entries {
		if !slices.Contains([]string{".", ".."}, entry.Name()) {
			names = append(names, entry.Name())
		}
	}
	return names
}
