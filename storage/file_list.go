package storage

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// List walks the directory in the order of keys. Files that are no objects (names that no key can have, sockets) are
// left out.
func (d *directory) List(ctx context.Context, prefix string, each func(Object) error) error {
	if err := ValidatePrefix(prefix); err != nil {
		return err
	}
	if err := d.walk(ctx, "", prefix, each); err != nil {
		return fmt.Errorf("listing %s: %w", d.root, err)
	}
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("listing %s: %w", d.root, err)
	}
	return nil
}

// walk lists the directory whose keys begin with base ("" or ending with a slash).
func (d *directory) walk(ctx context.Context, base, prefix string, each func(Object) error) error {
	entries, err := inTime(ctx, func() ([]listed, error) { return d.read(base) }, nil)
	switch {
	case errors.Is(err, fs.ErrNotExist) && base == "":
		return fmt.Errorf("%w", ErrBucketNotFound)
	case errors.Is(err, fs.ErrNotExist):
		return nil // removed meanwhile
	case err != nil:
		return fileError(err)
	}
	for _, entry := range entries {
		if err := ctx.Err(); err != nil {
			return err
		}
		key := base + entry.name
		switch {
		case entry.directory:
			if strings.HasPrefix(key, prefix) || strings.HasPrefix(prefix, key) {
				if len(key) > MaxKeyLength {
					return fmt.Errorf("directories are nested deeper than keys can be long, or in a circle, at %s: %w", base, ErrInvalid)
				}
				if err := d.walk(ctx, key, prefix, each); err != nil {
					return err
				}
			}
		case strings.HasPrefix(key, prefix) && ValidateKey(key) == nil:
			if err := each(Object{Key: key, Size: entry.info.Size(), Modified: entry.info.ModTime()}); err != nil {
				return err
			}
		}
	}
	return nil
}

type listed struct {
	name      string // a directory's ends with a slash, which gives the order of keys and not that of names
	directory bool
	info      fs.FileInfo
}

func (d *directory) read(base string) ([]listed, error) {
	path := filepath.Join(d.root, filepath.FromSlash(base))
	names, err := os.ReadDir(path)
	if err != nil {
		return nil, err
	}
	entries := make([]listed, 0, len(names))
	for _, name := range names {
		// lost+found belongs to the file system, and only root can read it.
		if base == "" && (name.Name() == TempDirectory || name.Name() == "lost+found") {
			continue
		}
		info, err := name.Info()
		if err == nil && info.Mode()&fs.ModeSymlink != 0 {
			info, err = os.Stat(filepath.Join(path, name.Name())) // an operator may keep data/ on another disk
		}
		switch {
		case errors.Is(err, fs.ErrNotExist):
			continue // removed meanwhile, or a link to nothing
		case err != nil:
			return nil, err
		case info.IsDir():
			entries = append(entries, listed{name: name.Name() + "/", directory: true})
		case info.Mode().IsRegular():
			entries = append(entries, listed{name: name.Name(), info: info})
		}
	}
	slices.SortFunc(entries, func(a, b listed) int { return strings.Compare(a.name, b.name) })
	return entries, nil
}
