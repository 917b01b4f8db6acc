package snapshot

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"holdfast/storage"
)

// benchmarkTree makes a tree of 10,000 files of up to 4 KiB in 1,000 directories, in three levels.
func benchmarkTree(b *testing.B) string {
	b.Helper()
	root := filepath.Join(b.TempDir(), "source")
	random := rand.New(rand.NewPCG(1, 2))
	words := []byte("the quick brown fox jumps over the lazy dog and looks back ")
	for i := range 1000 {
		dir := filepath.Join(root, fmt.Sprintf("part-%d", i/100), fmt.Sprintf("package-%02d", i/10%10), fmt.Sprintf("internal-%d", i%10))
		require.NoError(b, os.MkdirAll(dir, 0o755))
		for j := range 10 {
			content := make([]byte, 0, 4<<10)
			for size := random.IntN(4 << 10); len(content) < size; {
				from := random.IntN(len(words))
				content = append(content, words[from:from+random.IntN(len(words)-from)]...)
			}
			require.NoError(b, os.WriteFile(filepath.Join(dir, fmt.Sprintf("file_%d_of_ten.go", j)), content, 0o644))
		}
	}
	return root
}

// BenchmarkBackupUnchanged: a backup with a state file of a tree in which nothing changed, in an open repository.
func BenchmarkBackupUnchanged(b *testing.B) {
	source, state := benchmarkTree(b), filepath.Join(b.TempDir(), "state")
	_, provider := directoryRepository(b)
	r := newTestRepository(b, storage.PolicyAll, provider)
	for range 2 {
		_, err := r.Backup(b.Context(), source, BackupOptions{StateFile: state})
		require.NoError(b, err)
	}
	b.ReportAllocs()
	for b.Loop() {
		_, err := r.Backup(b.Context(), source, BackupOptions{StateFile: state})
		require.NoError(b, err)
	}
}

// BenchmarkBackupChanged: the same when one file in a hundred changed.
func BenchmarkBackupChanged(b *testing.B) {
	source, state := benchmarkTree(b), filepath.Join(b.TempDir(), "state")
	_, provider := directoryRepository(b)
	r := newTestRepository(b, storage.PolicyAll, provider)
	_, err := r.Backup(b.Context(), source, BackupOptions{StateFile: state})
	require.NoError(b, err)
	files, err := filepath.Glob(filepath.Join(source, "*", "*", "*", "*"))
	require.NoError(b, err)
	b.ReportAllocs()
	round := 0
	for b.Loop() {
		b.StopTimer()
		round++
		for i := round; i < len(files); i += 100 {
			require.NoError(b, os.WriteFile(files[i], fmt.Appendf(nil, "version %d of file %d", round, i), 0o644))
		}
		b.StartTimer()
		_, err := r.Backup(b.Context(), source, BackupOptions{StateFile: state})
		require.NoError(b, err)
	}
}

// BenchmarkListNames: the directory of the benchmark's other steps, by one call and by os.File.
func BenchmarkListNames(b *testing.B) {
	dir := b.TempDir()
	for i := range 20 {
		require.NoError(b, os.WriteFile(filepath.Join(dir, fmt.Sprintf("file_%d_of_twenty.go", i)), nil, 0o644))
	}
	var lister nameLister
	b.ReportAllocs()
	for b.Loop() {
		fd, err := openRoot(dir)
		require.NoError(b, err)
		names, err := lister.list(fd)
		require.NoError(b, err)
		require.Len(b, names, 20)
		require.NoError(b, os.NewFile(uintptr(fd), dir).Close())
	}
}
