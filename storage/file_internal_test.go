package storage

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// A disk that keeps other bytes than it was given is found out before the object has its name.
func TestDirectoryReadsBack(t *testing.T) {
	data := bytes.Repeat([]byte("0123456789"), 100_000)
	for name, damage := range map[string]func(*os.File){
		"one bit": func(f *os.File) { _, _ = f.WriteAt([]byte{'x'}, 500_000) },
		"short":   func(f *os.File) { _ = f.Truncate(999_999) },
		"long":    func(f *os.File) { _, _ = f.WriteAt([]byte{'x'}, 1_000_000) },
		"nothing": func(f *os.File) { _ = f.Truncate(0) },
	} {
		for _, options := range []PutOptions{{}, {CreateOnly: true}} {
			t.Run(name, func(t *testing.T) {
				d, err := openDirectory(t.TempDir(), DirectoryOptions{})
				require.NoError(t, err)
				d.damage = damage
				_, err = d.Put(t.Context(), "data/x", data, options)
				require.ErrorIs(t, err, ErrIntegrity)
				require.True(t, Retryable(err))
				_, err = d.Stat(t.Context(), "data/x")
				require.ErrorIs(t, err, ErrNotFound, "damaged bytes were given the object's name")
				left, err := os.ReadDir(d.root + "/" + TempDirectory)
				require.NoError(t, err)
				require.Empty(t, left)
			})
		}
	}
}

// A disk that hangs does not hold up who waits with a context, and a write left behind publishes nothing and does not
// touch the caller's memory (the race detector would say so).
func TestDirectoryHangs(t *testing.T) {
	d, err := openDirectory(t.TempDir(), DirectoryOptions{})
	require.NoError(t, err)
	hung, release, came := make(chan struct{}), make(chan struct{}), make(chan struct{})
	d.damage = func(*os.File) { close(hung); <-release; close(came) }
	ctx, cancel := context.WithCancel(t.Context())
	go func() { <-hung; cancel() }()
	data := make([]byte, 1<<20)
	_, err = d.Put(ctx, "x", data, PutOptions{})
	require.ErrorIs(t, err, context.Canceled)
	clear(data)
	close(release)
	<-came
	require.Eventually(t, func() bool {
		left, err := os.ReadDir(d.root + "/" + TempDirectory)
		return err == nil && len(left) == 0
	}, 10*time.Second, time.Millisecond)
	_, err = d.Stat(t.Context(), "x")
	require.ErrorIs(t, err, ErrNotFound)
}

func TestFileErrors(t *testing.T) {
	for errno, want := range map[error]error{
		unix.ENOSPC: ErrNoSpace, unix.EDQUOT: ErrNoSpace, unix.EACCES: ErrPermission, unix.EROFS: ErrPermission,
		unix.EPERM: ErrPermission, unix.ENAMETOOLONG: ErrInvalid, unix.EIO: unix.EIO, unix.ESTALE: unix.ESTALE,
	} {
		err := fileError(&fs.PathError{Op: "write", Path: "/x", Err: errno})
		require.ErrorIs(t, err, want)
		require.ErrorIs(t, err, errno, "the cause is kept")
		require.Equal(t, errors.Is(want, unix.EIO) || errors.Is(want, unix.ESTALE), Retryable(err))
	}
}

// Both ways of taking a name refuse one that is taken, and leave what is there.
func TestCreateName(t *testing.T) {
	for name, create := range map[string]func(string, string) error{"link": createName, "rename": renameNew} {
		t.Run(name, func(t *testing.T) {
			t.Chdir(t.TempDir())
			require.NoError(t, os.WriteFile("one", []byte("one"), 0o600))
			require.NoError(t, os.WriteFile("two", []byte("two"), 0o600))
			require.NoError(t, create("one", "name"))
			require.ErrorIs(t, create("two", "name"), fs.ErrExist)
			data, err := os.ReadFile("name")
			require.NoError(t, err)
			require.Equal(t, "one", string(data))
		})
	}
}
