package storage

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Put writes a file beside the objects, makes it durable, reads it again and only then gives it its name.
func (d *directory) Put(ctx context.Context, key string, data []byte, options PutOptions) (Object, error) {
	if err := ValidateKey(key); err != nil {
		return Object{}, err
	}
	w := &fileWrite{d: d, ctx: ctx, key: key, source: data, size: len(data), sum: Checksum(data), createOnly: options.CreateOnly}
	object, err := inTime(ctx, w.run, nil)
	if ctx.Err() != nil && err != nil {
		// The write may hang in a system call and come back much later, when data belongs to the caller again.
		w.abandon()
	}
	if err != nil {
		if !errors.Is(err, ErrBucketNotFound) {
			err = fileError(err)
		}
		return Object{}, fmt.Errorf("storing %s: %w", key, err)
	}
	return object, nil
}

// fileWrite is one Put.
type fileWrite struct {
	d          *directory
	ctx        context.Context
	key        string
	size       int
	sum        uint32
	createOnly bool

	mu      sync.Mutex
	source  []byte // the caller's; taken away when the caller leaves
	written int    // bytes of source that writeTemp has taken
	gone    bool
}

func (w *fileWrite) abandon() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.source, w.gone = nil, true
}

func (w *fileWrite) run() (_ Object, err error) {
	if err := w.d.prepare(); err != nil {
		return Object{}, err
	}
	path := w.d.path(w.key)
	if w.createOnly {
		// Most create-only writes that lose are writes of packs made twice: look before writing 16 MiB.
		if object, err := w.accept(path); !errors.Is(err, fs.ErrNotExist) {
			return object, err
		}
	}
	temp, err := w.writeTemp()
	if err != nil {
		return Object{}, err
	}
	defer func() {
		if temp == "" {
			return
		}
		if removeErr := os.Remove(temp); removeErr != nil && !errors.Is(removeErr, fs.ErrNotExist) && err == nil {
			w.d.logger.Warn("could not remove an unfinished write; it is swept in a day", "file", temp, "error", removeErr)
		}
	}()
	if err := w.d.makeDurably(filepath.Dir(path)); err != nil {
		return Object{}, err
	}
	if err := w.ctx.Err(); err != nil {
		return Object{}, err // nobody waits for it: leave no object that nobody knows of
	}
	if w.createOnly {
		err := createName(temp, path)
		if errors.Is(err, fs.ErrExist) {
			return w.accept(path)
		}
		if err != nil {
			return Object{}, err
		}
	} else {
		if err := os.Rename(temp, path); err != nil {
			return Object{}, err
		}
		temp = ""
	}
	if err := syncDirectory(filepath.Dir(path)); err != nil {
		return Object{}, err
	}
	return w.object(time.Now()), nil
}

func (w *fileWrite) object(modified time.Time) Object {
	return Object{Key: w.key, Size: int64(w.size), CRC32C: w.sum, HasCRC32C: true, Modified: modified}
}

// writeTemp writes the content to a file of its own, makes it durable and compares what the disk gives back.
func (w *fileWrite) writeTemp() (_ string, err error) {
	path := filepath.Join(w.d.root, TempDirectory, strings.ToLower(rand.Text()))
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return "", err
	}
	defer func() {
		if closeErr := file.Close(); err == nil {
			err = closeErr
		}
		if err != nil {
			_ = os.Remove(path) // best effort; the sweep is the second one
		}
	}()
	for buffer := make([]byte, min(w.size, patientBuffer)); ; {
		n, err := w.next(buffer)
		if err != nil {
			return "", err
		}
		if n == 0 {
			break
		}
		if _, err := file.Write(buffer[:n]); err != nil {
			return "", err
		}
	}
	if err := file.Sync(); err != nil {
		return "", err
	}
	if w.d.damage != nil {
		w.d.damage(file)
	}
	size, sum, err := readBack(w.ctx, file)
	if err != nil {
		return "", fmt.Errorf("reading back: %w", err)
	}
	if size != int64(w.size) || sum != w.sum {
		return "", fmt.Errorf("read back %d bytes with CRC32C %08x, wrote %d with %08x: %w", size, sum, w.size, w.sum, ErrIntegrity)
	}
	return path, nil
}

// next copies the next part of the content into buffer, unless the caller has left.
func (w *fileWrite) next(buffer []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.ctx.Err(); err != nil {
		return 0, err
	}
	if w.gone {
		return 0, context.Canceled
	}
	n := copy(buffer, w.source[w.written:])
	w.written += n
	return n, nil
}

// accept looks at the file that already has the name. An equal one is our own, its answer was lost (invariant 8); it is
// made durable first, since whoever wrote it may have died before that. fs.ErrNotExist means that there is none.
func (w *fileWrite) accept(path string) (_ Object, err error) {
	file, err := os.Open(path)
	if err != nil {
		return Object{}, err
	}
	defer func() { _ = file.Close() }() // only read
	info, err := file.Stat()
	if err != nil {
		return Object{}, err
	}
	if !info.Mode().IsRegular() {
		return Object{}, fmt.Errorf("%s is a directory or a special file: %w", path, ErrInvalid)
	}
	if info.Size() != int64(w.size) {
		return Object{}, ErrExists
	}
	if err := file.Sync(); err != nil {
		return Object{}, err
	}
	if err := w.compare(file); err != nil {
		return Object{}, err
	}
	if err := syncDirectory(filepath.Dir(path)); err != nil {
		return Object{}, err
	}
	return w.object(info.ModTime()), nil
}

// compare reads the file that is there against the content, byte by byte.
func (w *fileWrite) compare(file *os.File) error {
	dropCache(file)
	buffer := make([]byte, min(w.size, patientBuffer))
	for offset := 0; offset < w.size; {
		part := buffer[:min(len(buffer), w.size-offset)]
		if _, err := io.ReadFull(file, part); err != nil {
			return fmt.Errorf("reading the object that is there: %w", err)
		}
		w.mu.Lock()
		gone := w.gone || w.ctx.Err() != nil
		same := !gone && string(part) == string(w.source[offset:offset+len(part)])
		w.mu.Unlock()
		if gone {
			return context.Canceled
		}
		if !same {
			return ErrExists
		}
		offset += len(part)
	}
	return nil
}

// readBack computes the size and CRC32C of what the disk has, past the page cache where the system allows that.
func readBack(ctx context.Context, file *os.File) (size int64, sum uint32, err error) {
	dropCache(file)
	if _, err := file.Seek(0, io.SeekStart); err != nil {
		return 0, 0, err
	}
	buffer := make([]byte, patientBuffer)
	for {
		if err := ctx.Err(); err != nil {
			return 0, 0, err
		}
		n, err := file.Read(buffer)
		size += int64(n)
		sum = crc32.Update(sum, castagnoli, buffer[:n])
		if err == io.EOF {
			return size, sum, nil
		}
		if err != nil {
			return 0, 0, err
		}
	}
}

// createName gives temp its name unless that is taken (fs.ErrExist). link is atomic everywhere, NFS included; file
// systems without hard links (FAT, some FUSE) have the rename that does not replace.
func createName(temp, path string) error {
	err := os.Link(temp, path)
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOSYS) {
		return renameNew(temp, path)
	}
	return err
}

// prepare makes the root, when that is allowed, and the directory for unfinished writes.
func (d *directory) prepare() error {
	temp := filepath.Join(d.root, TempDirectory)
	err := os.Mkdir(temp, 0o700)
	if errors.Is(err, fs.ErrNotExist) {
		if d.seen.Load() {
			return fmt.Errorf("%s was there and is gone: %w", d.root, ErrBucketNotFound)
		}
		switch err := os.Mkdir(d.root, 0o700); {
		case errors.Is(err, fs.ErrNotExist):
			return fmt.Errorf("neither %s nor the directory above it is there: %w", d.root, ErrBucketNotFound)
		case err != nil && !errors.Is(err, fs.ErrExist):
			return err
		}
		if err := syncDirectory(filepath.Dir(d.root)); err != nil {
			return err
		}
		err = os.Mkdir(temp, 0o700)
	}
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	d.seen.Store(true)
	d.sweep.Do(func() { d.sweepStale(temp) })
	return nil
}

// sweepStale removes what dead processes left behind. Failing at it costs room, not data: it is only said.
func (d *directory) sweepStale(temp string) {
	entries, err := os.ReadDir(temp)
	if err != nil {
		d.logger.Warn("could not look for unfinished writes", "directory", temp, "error", err)
		return
	}
	for _, entry := range entries {
		info, err := entry.Info()
		if err != nil || !info.Mode().IsRegular() || time.Since(info.ModTime()) < staleAfter {
			continue
		}
		if err := os.Remove(filepath.Join(temp, entry.Name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
			d.logger.Warn("could not remove an unfinished write", "file", entry.Name(), "error", err)
		}
	}
}

// makeDurably makes a directory below the root, with those above it, and lets each entry reach the disk. What this
// provider has made durable once is not synced again.
func (d *directory) makeDurably(path string) error {
	if path == d.root {
		return nil // prepare made it
	}
	if _, ok := d.durable.Load(path); ok {
		if _, err := os.Lstat(path); err == nil {
			return nil
		}
		d.durable.Delete(path)
	}
	if err := d.makeDurably(filepath.Dir(path)); err != nil {
		return err
	}
	if err := makeDirectory(path); err != nil {
		return err
	}
	d.durable.Store(path, struct{}{})
	return nil
}

// makeDirectory makes one directory, or finds it there, and lets its entry reach the disk either way: whoever made it
// may have died before that.
func makeDirectory(path string) error {
	err := os.Mkdir(path, 0o700)
	if errors.Is(err, fs.ErrExist) {
		info, err := os.Stat(path)
		if err != nil {
			return err
		}
		if !info.IsDir() {
			return fmt.Errorf("%s is not a directory: %w", path, ErrInvalid)
		}
	} else if err != nil {
		return err
	}
	return syncDirectory(filepath.Dir(path))
}

// makeAll makes path and the directories above it.
func makeAll(path string) error {
	if info, err := os.Stat(path); err == nil && info.IsDir() {
		return nil
	}
	if parent := filepath.Dir(path); parent != path {
		if err := makeAll(parent); err != nil {
			return err
		}
	}
	return makeDirectory(path)
}

func syncDirectory(path string) error {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	err = file.Sync()
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOTSUP) {
		err = nil // a file system that cannot sync directories orders them itself
	}
	return errors.Join(err, file.Close())
}
