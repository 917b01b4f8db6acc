package snapshot

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// TestListedNames: a directory of any size is listed as os does it, and again through a descriptor that has
// been read.
func TestListedNames(t *testing.T) {
	for _, count := range []int{0, 1, 3000} { // the last takes several calls
		dir := t.TempDir()
		for i := range count {
			path := filepath.Join(dir, fmt.Sprintf("%s-%d", strings.Repeat("é\xff", i%60), i))
			switch i % 4 {
			case 0:
				require.NoError(t, os.Mkdir(path, 0o700))
			case 1:
				require.NoError(t, os.Symlink(".", path))
			case 2:
				require.NoError(t, unix.Mkfifo(path, 0o600))
			default:
				require.NoError(t, os.WriteFile(path, nil, 0o600))
			}
		}
		entries, err := os.ReadDir(dir)
		require.NoError(t, err)
		var want []string
		for _, e := range entries {
			want = append(want, e.Name())
		}
		fd, err := openRoot(dir)
		require.NoError(t, err)
		defer unix.Close(fd)
		var lister nameLister
		for range 2 { // with the buffers of before
			_, err = unix.Seek(fd, 0, unix.SEEK_SET)
			require.NoError(t, err)
			got, err := lister.list(fd)
			require.NoError(t, err)
			slices.Sort(got)
			require.Equal(t, want, append([]string(nil), got...))
		}
		names, err := readNames(fd)
		require.NoError(t, err)
		require.Len(t, names, count)
	}
}

// TestListedNamesOfNoSense: a kernel's answer that cannot be is refused, not read beyond.
func TestListedNamesOfNoSense(t *testing.T) {
	record := func(size uint16, name string) []byte {
		b := make([]byte, direntName, 64)
		b[0], b[direntLength], b[direntLength+1] = 1, byte(size), byte(size>>8)
		return append(append(b, name...), 0)
	}
	var lister nameLister
	require.NoError(t, lister.parse(record(24, "name")))
	for _, records := range [][]byte{record(0, "name"), record(19, "name"), record(25, "name"), record(24, "name")[:19], {1}, append(record(24, "name"), 1)} {
		require.ErrorIs(t, lister.parse(records), errDirents)
	}
}
