package snapshot

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// TestOldStateFilesAreRemoved: those that nobody has used since, and nothing that is somebody else's.
func TestOldStateFilesAreRemoved(t *testing.T) {
	dir, source := t.TempDir(), t.TempDir()
	writeFiles(t, source, map[string][]byte{"file": []byte("content")})
	r := memoryRepository(t)
	state := func(first byte) string { return filepath.Join(dir, StateFileName([16]byte{first})) }
	for i := byte(1); i <= 4; i++ {
		_, err := r.Backup(t.Context(), source, BackupOptions{StateFile: state(i)})
		require.NoError(t, err)
	}
	content, err := os.ReadFile(state(1))
	require.NoError(t, err)
	write := func(name string, content []byte) string {
		path := filepath.Join(dir, name)
		require.NoError(t, os.WriteFile(path, content, 0o600))
		return path
	}
	foreign := []string{
		write("notes", content), write(strings.ToUpper(filepath.Base(state(0xab))), content), write(filepath.Base(state(5))+".txt", content),
		write(filepath.Base(state(6)), []byte("something else")), write(filepath.Base(state(7)), nil),
		filepath.Join(dir, filepath.Base(state(8))), filepath.Join(dir, filepath.Base(state(9))),
	}
	require.NoError(t, os.Mkdir(foreign[5], 0o700))
	elsewhere := filepath.Join(t.TempDir(), "elsewhere")
	require.NoError(t, os.WriteFile(elsewhere, content, 0o600))
	require.NoError(t, os.Symlink(elsewhere, foreign[6]))
	killed := write(filepath.Base(state(10))+stateTemporary, make([]byte, 1000)) // cut before its first bytes were written
	writing := write(filepath.Base(state(11))+stateTemporary, make([]byte, 1000))
	lock, err := os.Open(writing)
	require.NoError(t, err)
	defer lock.Close()
	require.NoError(t, flock(int(lock.Fd()), unix.LOCK_EX))

	now := time.Now()
	old := now.Add(-91 * 24 * time.Hour)
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	for _, entry := range entries {
		if entry.Type().IsRegular() {
			require.NoError(t, os.Chtimes(filepath.Join(dir, entry.Name()), old, old))
		}
	}
	require.NoError(t, os.Chtimes(elsewhere, old, old))
	require.NoError(t, os.Chtimes(foreign[5], old, old))
	young := now.Add(-89 * 24 * time.Hour)
	require.NoError(t, os.Chtimes(state(3), young, young))
	// Nothing has changed, so that it is not written again: that it was used counts.
	_, err = r.Backup(t.Context(), source, BackupOptions{StateFile: state(4)})
	require.NoError(t, err)
	kept, err := os.ReadFile(state(4))
	require.NoError(t, err)

	removed, err := RemoveStateFiles(dir, now.Add(-90*24*time.Hour))
	require.NoError(t, err)
	require.Equal(t, 3, removed)
	for _, gone := range []string{state(1), state(2), killed} {
		require.NoFileExists(t, gone)
	}
	for _, path := range append(foreign, state(3), state(4), writing, elsewhere) {
		_, err := os.Lstat(path)
		require.NoError(t, err)
	}
	again, err := os.ReadFile(state(4))
	require.NoError(t, err)
	require.Equal(t, kept, again)
	removed, err = RemoveStateFiles(filepath.Join(dir, "absent"), now)
	require.NoError(t, err)
	require.Zero(t, removed)
}
