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

// deadly is a provider that ends its process by SIGKILL at one write.
type deadly struct {
	storage.Provider
	writes atomic.Int64
	at     int64  // the number of the write; 0 never
	moment string // one of momentsOfDeath
}

// momentsOfDeath are when a write ends the process: what else is on its way then is as far as it happens to be.
var momentsOfDeath = []string{"before", "during", "after"}

func (d *deadly) Put(ctx context.Context, key string, data []byte, options storage.PutOptions) (storage.Object, error) {
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
	mortal := &deadly{Provider: provider, at: at, moment: os.Getenv("SNAPSHOT_TEST_KILL_MOMENT")}
	r := newTestRepository(t, storage.PolicyAll, mortal)
	result, err := r.Backup(t.Context(), source, BackupOptions{Kind: Final, Hostname: "node"})
	require.NoError(t, err)
	fmt.Printf("done %s %d\n", result.Snapshot, mortal.writes.Load())
}

// killedBackup runs a backup in a child process that is killed at a write, unless it makes fewer or at is 0. It returns
// the snapshot that was made, if any, and how many writes that took.
func killedBackup(t *testing.T, repository, source string, at int, moment string) (snapshot string, writes int) {
	t.Helper()
	command := exec.Command(os.Args[0], "-test.run=^TestBackupChild$", "-test.v")
	command.Env = append(os.Environ(), "SNAPSHOT_TEST_REPOSITORY="+repository, "SNAPSHOT_TEST_SOURCE="+source,
		fmt.Sprint("SNAPSHOT_TEST_KILL_AT=", at), "SNAPSHOT_TEST_KILL_MOMENT="+moment)
	var out bytes.Buffer
	command.Stdout, command.Stderr = &out, &out
	err := command.Run()
	for line := range strings.Lines(out.String()) {
		if n, _ := fmt.Sscanf(line, "done %s %d", &snapshot, &writes); n == 2 {
			return snapshot, writes
		}
	}
	require.ErrorContains(t, err, "killed", out.String())
	return "", 0
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

// TestKilledBackupsResume kills a backup with SIGKILL at random writes, again and again, until one gets through. Whatever had been stored is used: no blob is ever stored a second time, so that only packs on their way are sent
// again; and the snapshot is whole, byte for byte (A2, A3).
func TestKilledBackupsResume(t *testing.T) {
	rounds := 10
	if os.Getenv("HOLDFAST_CAMPAIGN") != "" {
		rounds = 30
	}
	const seed = 20260125
	random := rand.New(rand.NewSource(seed))
	source := filepath.Join(t.TempDir(), "source")
	files := map[string][]byte{"large": randomBytes(1, 14<<20)}
	for i := range 300 {
		files[fmt.Sprintf("d%d/e%d/f%d", i%7, i%3, i)] = randomBytes(int64(100+i), random.Intn(60_000))
	}
	for i := range 8 {
		files[fmt.Sprintf("medium/%d", i)] = randomBytes(int64(10+i), 700_000+random.Intn(1_500_000))
	}
	writeFiles(t, source, files)
	clean, _ := directoryRepository(t)
	made, writes := killedBackup(t, clean, source, 0, "")
	require.NotEmpty(t, made)
	cleanBytes := int64(0)
	for _, size := range storedPacks(t, clean) {
		cleanBytes += size
	}

	kills, resumed := 0, 0
	for kills < rounds {
		repository, provider := directoryRepository(t)
		snapshot, before := "", map[string]int64{}
		unanswered := 0 // kills that came after the snapshot was stored, and before that was said
		for first := kills; snapshot == ""; {
			if kills == first+rounds {
				snapshot, _ = killedBackup(t, repository, source, 0, "")
				require.NotEmpty(t, snapshot)
				break
			}
			// Of a backup that resumes, which writes less, a later write may be none: then it gets through.
			snapshot, _ = killedBackup(t, repository, source, 1+random.Intn(writes), momentsOfDeath[random.Intn(len(momentsOfDeath))])
			packs := storedPacks(t, repository)
			for name, size := range before {
				require.Equal(t, size, packs[name], "a stored pack is never touched again")
			}
			if len(before) > 0 {
				resumed++
			}
			before = packs
			if snapshot == "" {
				kills++
				unanswered = len(allKeysBelow(t, provider, snapshotPrefix))
			}
		}
		r := newTestRepository(t, storage.PolicyAll, provider)
		require.Zero(t, storedTwice(t, r, provider), "stored again; seed %d", seed)
		total := int64(0)
		for _, size := range storedPacks(t, repository) {
			total += size
		}
		require.LessOrEqual(t, total, cleanBytes+cleanBytes/50, "seed %d", seed)
		require.LessOrEqual(t, len(leftUnfinished(t, repository)), (kills+1)*(packUploads+2), "files on their way at the kills")
		requireWhole(t, r, snapshot)
		for path, content := range files {
			require.True(t, bytes.Equal(content, dumped(t, r, snapshot, path)), "%s differs; seed %d", path, seed)
		}
		infos, err := r.Snapshots(t.Context())
		require.NoError(t, err)
		require.Len(t, infos, unanswered+1)
		if restic, err := exec.LookPath("restic"); err == nil {
			stock(t, restic, repository, "", "unlock", "--remove-all")
			require.Contains(t, stock(t, restic, repository, "", "check", "--read-data"), "no errors were found")
		}
	}
	t.Logf("%d kills, %d resumed with packs there, a clean run makes %d writes", kills, resumed, writes)
	require.Positive(t, resumed, "no kill came after a pack was stored: the test shows nothing")
}

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
