package snapshot

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// TestStatDigest: it is the backup's as long as nothing changed, and another after any change, also one that puts
// everything back that can be put back (invariant 1).
func TestStatDigest(t *testing.T) {
	r := wholeMemoryRepository(t)
	for name, change := range map[string]func(t *testing.T, dir string) error{
		"nothing": nil,
		"only read": func(t *testing.T, dir string) error {
			_, err := os.ReadFile(filepath.Join(dir, "d/f"))
			return err
		},
		"content, with size and times put back": func(t *testing.T, dir string) error {
			path := filepath.Join(dir, "d/f")
			stat, err := os.Stat(path)
			require.NoError(t, err)
			file, err := os.OpenFile(path, os.O_WRONLY, 0)
			require.NoError(t, err)
			_, err = file.WriteAt([]byte("F"), 0)
			require.NoError(t, err)
			require.NoError(t, file.Close())
			return os.Chtimes(path, stat.ModTime(), stat.ModTime())
		},
		"mode":          func(t *testing.T, dir string) error { return os.Chmod(filepath.Join(dir, "d/f"), 0o600) },
		"the same mode": func(t *testing.T, dir string) error { return os.Chmod(filepath.Join(dir, "d/f"), 0o644) },
		"owner": func(t *testing.T, dir string) error {
			return os.Chown(filepath.Join(dir, "d/f"), os.Getuid(), os.Getgid())
		},
		"mtime": func(t *testing.T, dir string) error {
			return os.Chtimes(filepath.Join(dir, "d/f"), time.Time{}, time.Unix(1, 0))
		},
		"a new file":      func(t *testing.T, dir string) error { return os.WriteFile(filepath.Join(dir, "d/e/n"), nil, 0o600) },
		"a new directory": func(t *testing.T, dir string) error { return os.Mkdir(filepath.Join(dir, "d/n"), 0o700) },
		"a file less":     func(t *testing.T, dir string) error { return os.Remove(filepath.Join(dir, "d/f")) },
		"a link": func(t *testing.T, dir string) error {
			return os.Link(filepath.Join(dir, "d/f"), filepath.Join(dir, "d/again"))
		},
		"a rename": func(t *testing.T, dir string) error {
			return os.Rename(filepath.Join(dir, "d/f"), filepath.Join(dir, "d/g"))
		},
		"a rename there and back": func(t *testing.T, dir string) error {
			require.NoError(t, os.Rename(filepath.Join(dir, "d/f"), filepath.Join(dir, "d/g")))
			return os.Rename(filepath.Join(dir, "d/g"), filepath.Join(dir, "d/f"))
		},
		"a link's target": func(t *testing.T, dir string) error {
			require.NoError(t, os.Remove(filepath.Join(dir, "l")))
			return os.Symlink("e", filepath.Join(dir, "l"))
		},
		"an attribute": func(t *testing.T, dir string) error {
			err := unix.Setxattr(filepath.Join(dir, "d/f"), "user.x", []byte("y"), 0)
			if err == unix.ENOTSUP {
				t.Skip("no attributes here")
			}
			return err
		},
		"the root's mode": func(t *testing.T, dir string) error { return os.Chmod(dir, 0o711) },
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			writeFiles(t, dir, map[string][]byte{"d/f": []byte("f"), "d/e/g": []byte("g")})
			require.NoError(t, os.Symlink("d", filepath.Join(dir, "l")))
			require.NoError(t, unix.Mkfifo(filepath.Join(dir, "p"), 0o600))
			result, err := r.Backup(t.Context(), dir, BackupOptions{Kind: Final})
			require.NoError(t, err)
			if change != nil {
				require.NoError(t, change(t, dir))
			}
			digest, err := StatDigest(t.Context(), dir, nil)
			require.NoError(t, err)
			require.Equal(t, change == nil || name == "only read", digest == result.StatDigest)
		})
	}
}

// TestStatDigestOfManyEntries: the same whatever goroutine takes which part of a large directory.
func TestStatDigestOfManyEntries(t *testing.T) {
	dir := t.TempDir()
	files := map[string][]byte{}
	for i := range 3*scanBatch + 5 {
		files[filepath.Join("many", string(rune('a'+i%26)), "f"+string(rune(0x4e00+i)))] = nil
		files["flat/"+string(rune(0x4e00+i))] = []byte{byte(i)}
	}
	writeFiles(t, dir, files)
	first, err := StatDigest(t.Context(), dir, nil)
	require.NoError(t, err)
	for range 5 {
		again, err := StatDigest(t.Context(), dir, nil)
		require.NoError(t, err)
		require.Equal(t, first, again)
	}
	r := wholeMemoryRepository(t)
	result, err := r.Backup(t.Context(), dir, BackupOptions{})
	require.NoError(t, err)
	require.Equal(t, first, result.StatDigest)
	require.Equal(t, int64(len(files)), result.Files)
	require.Equal(t, int64(1+2+26), result.Dirs)
}
