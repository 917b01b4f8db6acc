package storage

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// DirectoryOptions says how a directory is opened as a provider.
type DirectoryOptions struct {
	// Create makes the directory, and the directories above it, when it is opened.
	Create bool
	Logger *slog.Logger // slog.Default when nil
}

// staleAfter is the age at which an unfinished write is taken for the leftover of a dead process. No write of one
// object takes a day, and a disk that fills with leftovers is noticed later than that.
const staleAfter = 24 * time.Hour

// directory is the file:// provider. Every object is one file whose path below root is its key, so that the directory
// is also what restic's own local backend opens.
//
// Without Create a missing root is made by the first Put, and only when its parent exists: a typing error deep in a
// path, or a disk that is not mounted, must not become a backup on the wrong disk. For the same reason a root that this
// provider has seen once is never made again. Everything else on a missing root is ErrBucketNotFound, since an empty
// listing would say that a store holds nothing when nobody has looked.
//
// Directories are left behind when their last object is deleted: restic keeps its own too.
type directory struct {
	root   string // absolute, clean
	logger *slog.Logger

	seen    atomic.Bool // root was there once
	sweep   sync.Once
	durable sync.Map // directories (string) whose entry in their parent is known to be on the disk

	// damage is called between the write and the reading back of every object; only tests set it, to be a bad disk.
	damage func(*os.File)
}

// OpenDirectory gives the provider for the directory at path, which is made absolute.
func OpenDirectory(path string, options DirectoryOptions) (Provider, error) {
	return openDirectory(path, options)
}

func openDirectory(path string, options DirectoryOptions) (*directory, error) {
	if path == "" || strings.ContainsRune(path, 0) {
		return nil, fmt.Errorf("directory %q: %w", path, ErrInvalid)
	}
	root, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("directory %q: %w", path, err)
	}
	d := &directory{root: root, logger: options.Logger}
	if d.logger == nil {
		d.logger = slog.Default()
	}
	if options.Create {
		if err := makeAll(root); err != nil {
			return nil, fmt.Errorf("making directory %s: %w", root, fileError(err))
		}
	}
	switch info, err := os.Stat(root); {
	case err == nil && !info.IsDir():
		return nil, fmt.Errorf("%s is not a directory: %w", root, ErrInvalid)
	case err == nil:
		d.seen.Store(true)
	}
	return d, nil
}

// URL is file:// and the absolute path.
func (d *directory) URL() string { return (&url.URL{Scheme: "file", Path: d.root}).String() }

// Close does nothing: no descriptor outlives a call.
func (d *directory) Close() error { return nil }

func (d *directory) path(key string) string { return filepath.Join(d.root, filepath.FromSlash(key)) }

// Stat describes one object. A directory has no checksum to report.
func (d *directory) Stat(ctx context.Context, key string) (Object, error) {
	if err := ValidateKey(key); err != nil {
		return Object{}, err
	}
	info, err := inTime(ctx, func() (fs.FileInfo, error) { return os.Stat(d.path(key)) }, nil)
	if err == nil && !info.Mode().IsRegular() {
		err = fs.ErrNotExist
	}
	if err != nil {
		return Object{}, d.explain(ctx, "looking at", key, err)
	}
	return Object{Key: key, Size: info.Size(), Modified: info.ModTime()}, nil
}

// Get opens a part of an object.
func (d *directory) Get(ctx context.Context, key string, offset, length int64) (io.ReadCloser, error) {
	if err := ValidateKey(key); err != nil {
		return nil, err
	}
	if offset < 0 {
		return nil, fmt.Errorf("reading %s from %d: %w", key, offset, ErrInvalid)
	}
	var size int64
	file, err := inTime(ctx, func() (*os.File, error) {
		file, err := os.Open(d.path(key))
		if err != nil {
			return nil, err
		}
		info, err := file.Stat()
		if err == nil && !info.Mode().IsRegular() {
			err = fs.ErrNotExist
		}
		if err == nil {
			size = info.Size()
			_, err = file.Seek(offset, io.SeekStart)
		}
		if err != nil {
			return nil, errors.Join(err, file.Close())
		}
		return file, nil
	}, closeLate)
	if err != nil {
		return nil, d.explain(ctx, "reading", key, err)
	}
	if length < 0 && offset <= size {
		length = size - offset
	}
	if length < 0 || offset+length > size {
		_ = file.Close() // opened for reading, nothing to lose
		return nil, fmt.Errorf("reading %s: %d bytes from %d of %d: %w", key, length, offset, size, io.ErrUnexpectedEOF)
	}
	source := &patientFile{ctx: ctx, file: file, left: length}
	return &body{ctx: ctx, source: source, want: length, key: key, explain: fileError}, nil
}

// Delete removes an object's file, and not a directory of that name.
func (d *directory) Delete(ctx context.Context, key string) error {
	if err := ValidateKey(key); err != nil {
		return err
	}
	path := d.path(key)
	_, err := inTime(ctx, func() (struct{}, error) {
		err := unix.Unlink(path)
		if errors.Is(err, unix.EISDIR) || errors.Is(err, unix.ENOTDIR) {
			return struct{}{}, nil // no object of that name
		}
		if err == nil {
			err = syncDirectory(filepath.Dir(path))
		}
		return struct{}{}, err
	}, nil)
	if err == nil {
		return nil
	}
	if err := d.explain(ctx, "deleting", key, err); !errors.Is(err, ErrNotFound) {
		return err
	}
	return nil
}

// explain says what a failure on key means; a file that is absent because the whole root is absent is a missing bucket.
func (d *directory) explain(ctx context.Context, doing, key string, err error) error {
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		_, rootErr := inTime(ctx, func() (fs.FileInfo, error) { return os.Stat(d.root) }, nil)
		switch {
		case errors.Is(rootErr, fs.ErrNotExist):
			err = fmt.Errorf("%s: %w", d.root, ErrBucketNotFound)
		case rootErr != nil:
			err = fileError(rootErr)
		default:
			err = ErrNotFound
		}
	} else {
		err = fileError(err)
	}
	return fmt.Errorf("%s %s: %w", doing, key, err)
}

// fileError adds the sentinel error that fits to an error of the operating system.
func fileError(err error) error {
	var errno syscall.Errno
	if !errors.As(err, &errno) {
		return err
	}
	switch errno {
	case unix.ENOSPC, unix.EDQUOT:
		return fmt.Errorf("%w: %w", ErrNoSpace, err)
	case unix.EACCES, unix.EPERM, unix.EROFS:
		return fmt.Errorf("%w: %w", ErrPermission, err)
	case unix.ENAMETOOLONG, unix.ENOTDIR, unix.EISDIR, unix.EEXIST, unix.ELOOP:
		return fmt.Errorf("%w: %w", ErrInvalid, err)
	default:
		return err
	}
}
