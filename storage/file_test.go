package storage_test

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"holdfast/storage"
	"holdfast/storage/storagetest"
)

func openDirectory(t *testing.T, path string) storage.Provider {
	t.Helper()
	p, err := storage.OpenDirectory(path, storage.DirectoryOptions{})
	require.NoError(t, err)
	return p
}

func TestDirectorySuite(t *testing.T) {
	storagetest.Run(t,
		func(t *testing.T) storage.Provider { return openDirectory(t, t.TempDir()) },
		storagetest.WithMissing(func(t *testing.T) storage.Provider {
			return openDirectory(t, filepath.Join(t.TempDir(), "no", "such"))
		}))
}

func TestDirectoryRoot(t *testing.T) {
	ctx := t.Context()
	parent := t.TempDir()
	root := filepath.Join(parent, "repository")
	p := openDirectory(t, root)

	// A missing root is no empty store, and looking at it makes nothing.
	require.ErrorIs(t, p.List(ctx, "", nil), storage.ErrBucketNotFound)
	_, err := p.Stat(ctx, "config")
	require.ErrorIs(t, err, storage.ErrBucketNotFound)
	require.NoDirExists(t, root)

	_, err = p.Put(ctx, "data/00/x", []byte("x"), storage.PutOptions{CreateOnly: true})
	require.NoError(t, err)
	for path, mode := range map[string]os.FileMode{"": 0o700, "data": 0o700, "data/00": 0o700, "data/00/x": 0o600} {
		info, err := os.Stat(filepath.Join(root, path))
		require.NoError(t, err)
		require.Equal(t, mode, info.Mode().Perm(), path)
	}

	// What was there once and is gone is a disk that is not mounted: it is never made again on what lies below.
	require.NoError(t, os.Rename(root, root+"-unmounted"))
	_, err = p.Put(ctx, "data/00/x", []byte("x"), storage.PutOptions{})
	require.ErrorIs(t, err, storage.ErrBucketNotFound)
	require.NoDirExists(t, root)

	deep := filepath.Join(parent, "a", "b", "c")
	p, err = storage.OpenDirectory(deep, storage.DirectoryOptions{Create: true})
	require.NoError(t, err)
	require.DirExists(t, deep)
	require.NoError(t, p.List(ctx, "", nil))

	file := filepath.Join(parent, "file")
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	_, err = storage.OpenDirectory(file, storage.DirectoryOptions{})
	require.ErrorIs(t, err, storage.ErrInvalid)
}

func TestDirectoryKeyBelowAnObject(t *testing.T) {
	ctx := t.Context()
	p := openDirectory(t, t.TempDir())
	_, err := p.Put(ctx, "a", []byte("x"), storage.PutOptions{})
	require.NoError(t, err)
	for _, options := range []storage.PutOptions{{}, {CreateOnly: true}} {
		_, err = p.Put(ctx, "a/b", []byte("x"), options)
		require.ErrorIs(t, err, storage.ErrInvalid)
		_, err = p.Put(ctx, "d/e", []byte("x"), options)
		require.NoError(t, err)
		_, err = p.Put(ctx, "d", []byte("x"), options)
		require.ErrorIs(t, err, storage.ErrInvalid)
	}
	_, err = p.Put(ctx, strings.Repeat("n", 300), nil, storage.PutOptions{})
	require.ErrorIs(t, err, storage.ErrInvalid)
}

// Unfinished writes are no objects; those of dead processes are removed after a day.
func TestDirectoryUnfinishedWrites(t *testing.T) {
	ctx := t.Context()
	root := t.TempDir()
	temp := filepath.Join(root, storage.TempDirectory)
	require.NoError(t, os.Mkdir(temp, 0o700))
	old, young := filepath.Join(temp, "old"), filepath.Join(temp, "young")
	for path, age := range map[string]time.Duration{old: 25 * time.Hour, young: 23 * time.Hour} {
		require.NoError(t, os.WriteFile(path, []byte("half"), 0o600))
		require.NoError(t, os.Chtimes(path, time.Now().Add(-age), time.Now().Add(-age)))
	}
	p := openDirectory(t, root)
	_, err := p.Put(ctx, "x", []byte("x"), storage.PutOptions{})
	require.NoError(t, err)
	require.NoFileExists(t, old)
	require.FileExists(t, young)
	keys := 0
	require.NoError(t, p.List(ctx, "", func(storage.Object) error { keys++; return nil }))
	require.Equal(t, 1, keys)
}

// Foreign entries in the directory are neither objects nor a reason to fail.
func TestDirectoryForeignEntries(t *testing.T) {
	ctx := t.Context()
	root, other := t.TempDir(), t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(root, "not\xffutf8"), nil, 0o600))
	require.NoError(t, os.Mkdir(filepath.Join(root, "lost+found"), 0))
	require.NoError(t, os.Symlink("nowhere", filepath.Join(root, "dangling")))
	require.NoError(t, os.Symlink(other, filepath.Join(root, "data")))
	p := openDirectory(t, root)
	_, err := p.Put(ctx, "data/x", []byte("x"), storage.PutOptions{CreateOnly: true})
	require.NoError(t, err)
	require.FileExists(t, filepath.Join(other, "x"), "an operator's link to another disk is followed")
	var keys []string
	require.NoError(t, p.List(ctx, "", func(o storage.Object) error { keys = append(keys, o.Key); return nil }))
	require.Equal(t, []string{"data/x"}, keys)

	require.NoError(t, os.Symlink(".", filepath.Join(root, "circle")))
	require.ErrorIs(t, p.List(ctx, "", func(storage.Object) error { return nil }), storage.ErrInvalid)
}

// A full disk and a disk that is read-only, on a small tmpfs of our own.
func TestDirectoryFullAndReadOnly(t *testing.T) {
	if os.Geteuid() != 0 {
		storagetest.Missing(t, "root", "mounting a small tmpfs needs root")
	}
	ctx := t.Context()
	root := t.TempDir()
	if out, err := exec.Command("mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", root).CombinedOutput(); err != nil {
		storagetest.Missing(t, "root", "cannot mount a tmpfs: "+string(out))
	}
	t.Cleanup(func() { require.NoError(t, exec.Command("umount", root).Run()) })
	p := openDirectory(t, root)
	_, err := p.Put(ctx, "small", make([]byte, 10_000), storage.PutOptions{})
	require.NoError(t, err)
	_, err = p.Put(ctx, "big", make([]byte, 1<<20), storage.PutOptions{})
	require.ErrorIs(t, err, storage.ErrNoSpace)
	_, err = p.Put(ctx, "after", make([]byte, 10_000), storage.PutOptions{})
	require.NoError(t, err, "the failed write left its bytes behind")
	require.NoError(t, exec.Command("mount", "-o", "remount,ro", root).Run())
	_, err = p.Put(ctx, "ro", nil, storage.PutOptions{})
	require.ErrorIs(t, err, storage.ErrPermission)
	require.ErrorIs(t, p.Delete(ctx, "small"), storage.ErrPermission)
	_, err = p.Stat(ctx, "small")
	require.NoError(t, err)
}

// A13: the directory is what restic's own local backend opens, with our hidden directory in it.
func TestDirectoryIsWhatResticOpens(t *testing.T) {
	restic, err := exec.LookPath("restic")
	if err != nil {
		storagetest.Missing(t, "restic", "restic is not installed")
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	root, source := t.TempDir(), t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(source, "file"), []byte("content"), 0o600))
	run := func(args ...string) {
		t.Helper()
		command := exec.CommandContext(ctx, restic, append([]string{"-r", root, "--no-cache"}, args...)...)
		command.Env = append(os.Environ(), "RESTIC_PASSWORD=test")
		out, err := command.CombinedOutput()
		require.NoError(t, err, string(out))
	}
	run("init")
	p := openDirectory(t, root)
	// Every object goes once through our Put, as a mirror's repair would do it.
	run("backup", source)
	var keys []string
	require.NoError(t, p.List(ctx, "", func(o storage.Object) error { keys = append(keys, o.Key); return nil }))
	require.Contains(t, keys, "config")
	for _, key := range keys {
		data, err := storage.ReadAll(ctx, p, key, 0, -1)
		require.NoError(t, err)
		require.NoError(t, p.Delete(ctx, key))
		_, err = p.Put(ctx, key, data, storage.PutOptions{CreateOnly: true})
		require.NoError(t, err)
	}
	run("check", "--read-data")
	run("backup", source)
	run("prune")
}
