package snapshot

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"holdfast/storage"
	"holdfast/storage/storagetest"
)

// meddling is something that happens to a file while it is being read.
type meddling struct {
	do   func(path string) error
	want string // the type that its entry may have then, "" when there is none
	root bool   // it takes root to do it
}

// meddlings are all that the file can meet.
var meddlings = map[string]meddling{
	"grows": {do: func(path string) error {
		f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		_, err = f.Write(bytes.Repeat([]byte{'b'}, 300_000))
		return firstOf(err, f.Close())
	}, want: "file"},
	"shrinks":      {do: func(path string) error { return os.Truncate(path, 1000) }, want: "file"},
	"becomes void": {do: func(path string) error { return os.Truncate(path, 0) }, want: "file"},
	"is written over in place": {do: func(path string) error {
		stat, err := os.Stat(path)
		if err != nil {
			return err
		}
		f, err := os.OpenFile(path, os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		_, err = f.Write(bytes.Repeat([]byte{'b'}, int(stat.Size())))
		return firstOf(err, f.Close(), os.Chtimes(path, stat.ModTime(), stat.ModTime())) // as a program that hides it
	}, want: "file"},
	"vanishes": {do: os.Remove},
	"is replaced by another file": {do: func(path string) error {
		return firstOf(os.WriteFile(path+".new", bytes.Repeat([]byte{'b'}, 5000), 0o600), os.Rename(path+".new", path))
	}, want: "file"},
	"is replaced by a directory": {do: func(path string) error { return firstOf(os.Remove(path), os.Mkdir(path, 0o700)) }, want: "dir"},
	"is replaced by a FIFO":      {do: func(path string) error { return firstOf(os.Remove(path), unix.Mkfifo(path, 0o600)) }, want: "fifo"},
	"is replaced by a link to what is not ours": {do: func(path string) error {
		return firstOf(os.Remove(path), os.Symlink("/etc/passwd", path))
	}, want: "symlink"},
	"is replaced by a device": {do: func(path string) error {
		return firstOf(os.Remove(path), unix.Mknod(path, unix.S_IFCHR|0o600, int(unix.Mkdev(1, 5))))
	}, want: "chardev", root: true},
	"goes and is there again": {do: func(path string) error {
		return firstOf(os.Rename(path, path+".away"), os.Rename(path+".away", path))
	}, want: "file"},
}

func firstOf(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// TestFilesMeddledWithWhileRead: whatever happens to a file after the directory was listed, after it was read, or in the
// middle of that, once or each time, a backup ends; nothing else than a regular file is ever read; what the snapshot shows
// without an omission is what the file was at one moment; and a final snapshot whose digest is that of the directory holds
// exactly what is there (A14, invariant 1).
func TestFilesMeddledWithWhileRead(t *testing.T) {
	for name, what := range meddlings {
		for _, moment := range []string{"listed", "read", "read each time", "in the middle"} {
			for _, kind := range []Kind{Live, Final} {
				t.Run(fmt.Sprintf("%s/%s/%s", name, moment, kind), func(t *testing.T) {
					if what.root {
						requireRoot(t)
					}
					t.Parallel()
					meddleWhileRead(t, what, moment, kind)
				})
			}
		}
	}
}

func meddleWhileRead(t *testing.T, what meddling, moment string, kind Kind) {
	dir := filepath.Join(t.TempDir(), "source")
	path := filepath.Join(dir, "f")
	size := 20_000
	if moment == "in the middle" {
		size = 44 << 20 // more than fits into memory: the rest is read after the first pack was sent
	}
	content := fileOf(size)
	writeFiles(t, dir, map[string][]byte{"f": content, "other": []byte("still")})
	versions := [][]byte{content} // that the file has had, as a whole
	var mu sync.Mutex
	happened := 0
	meddle := func() {
		mu.Lock()
		defer mu.Unlock()
		if _, err := os.Lstat(path); err != nil && happened > 0 {
			return // it is gone, what more
		}
		if stat, err := os.Lstat(path); err == nil && !stat.Mode().IsRegular() {
			return
		}
		assert.NoError(t, what.do(path))
		happened++
		if what.want == "file" {
			now, err := os.ReadFile(path)
			assert.NoError(t, err)
			versions = append(versions, now)
		}
	}
	hook := &firstPack{Provider: storagetest.NewMemory()}
	r := newTestRepository(t, storage.PolicyAll, hook)
	switch moment {
	case "listed":
		r.moments.listed = func(string) { meddle() }
	case "read":
		r.moments.read = func(path string, attempt int) {
			if path == "f" && happened == 0 {
				meddle()
			}
		}
	case "read each time":
		r.moments.read = func(path string, attempt int) {
			if path == "f" {
				meddle()
			}
		}
	default:
		hook.before = meddle
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	result, err := r.Backup(ctx, dir, BackupOptions{Kind: kind})
	require.NoError(t, err)
	require.Positive(t, happened)

	omitted := slices.ContainsFunc(result.Omissions, func(o Omission) bool { return o.Path == "f" })
	got := entryType(t, r, result.Snapshot, "f")
	now, statErr := os.Lstat(path)
	switch {
	case omitted:
	case got == "file":
		stored := dumped(t, r, result.Snapshot, "f")
		require.True(t, slices.ContainsFunc(versions, func(v []byte) bool { return bytes.Equal(v, stored) }),
			"%d bytes that the file never had as a whole", len(stored))
	case got == "":
		require.ErrorIs(t, statErr, os.ErrNotExist)
		require.Equal(t, Live, kind, "of a directory that nothing writes to, nothing vanishes")
	default:
		require.Equal(t, what.want, got)
	}
	if moment != "read each time" && !omitted { // it was left alone then, and read again
		switch got {
		case "":
			require.ErrorIs(t, statErr, os.ErrNotExist)
		case "file":
			require.NoError(t, statErr)
			require.True(t, now.Mode().IsRegular(), "it is no file any more")
			last, err := os.ReadFile(path)
			require.NoError(t, err)
			require.True(t, bytes.Equal(last, dumped(t, r, result.Snapshot, "f")), "what is there was never read")
		default:
			require.NoError(t, statErr)
			require.Equal(t, what.want, got)
		}
	}
	require.Equal(t, "still", string(dumped(t, r, result.Snapshot, "other")))
	digest, err := StatDigest(t.Context(), dir, nil)
	require.NoError(t, err)
	if digest == result.StatDigest && !omitted && got == "file" {
		last, err := os.ReadFile(path)
		require.NoError(t, err)
		require.NoError(t, statErr)
		require.True(t, now.Mode().IsRegular())
		require.True(t, bytes.Equal(last, dumped(t, r, result.Snapshot, "f")), "the digest says that this is what is there")
	}
}

// fileOf is content of which no part occurs twice.
func fileOf(size int) []byte { return randomBytes(int64(size), size) }

// firstPack is a provider that does something before the first pack is stored.
type firstPack struct {
	storage.Provider
	once   sync.Once
	before func()
}

func (p *firstPack) Put(ctx context.Context, key string, data []byte, options storage.PutOptions) (storage.Object, error) {
	if isPack(key) && p.before != nil {
		p.once.Do(p.before)
	}
	return p.Provider.Put(ctx, key, data, options)
}
