package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

// compareTrees fails when two directories differ in a name, kind, permission, link, file time, or byte.
func compareTrees(ctx context.Context, want, got string) error {
	c := comparison{one: make([]byte, 64<<10), other: make([]byte, 64<<10)}
	entries := 0
	err := filepath.WalkDir(want, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		entries++
		relative, err := filepath.Rel(want, path)
		if err != nil || relative == "." { // what the directory itself is, restic does not restore
			return err
		}
		if err := c.compare(path, filepath.Join(got, relative)); err != nil {
			return fmt.Errorf("%s: %w", relative, err)
		}
		return nil
	})
	if err != nil {
		return err
	}
	err = filepath.WalkDir(got, func(path string, _ fs.DirEntry, err error) error {
		if entries--; err == nil && entries < 0 {
			return fmt.Errorf("there are more entries than there should be, %s or another", filepath.Base(path))
		}
		return err
	})
	return err
}

type comparison struct{ one, other []byte }

func (c *comparison) compare(want, got string) error {
	one, err := os.Lstat(want)
	if err != nil {
		return err
	}
	other, err := os.Lstat(got)
	switch {
	case err != nil:
		return err
	case one.Mode() != other.Mode():
		return fmt.Errorf("it has the mode %s instead of %s", other.Mode(), one.Mode())
	case one.IsDir():
		return nil
	case one.Mode().Type() == fs.ModeSymlink:
		return compareLinks(want, got)
	case one.Size() != other.Size():
		return fmt.Errorf("it has %d bytes instead of %d", other.Size(), one.Size())
	case !one.ModTime().Equal(other.ModTime()):
		return fmt.Errorf("it has the time %s instead of %s", other.ModTime(), one.ModTime())
	case !one.Mode().IsRegular():
		return nil
	}
	return c.compareContent(want, got)
}

func compareLinks(want, got string) error {
	one, err := os.Readlink(want)
	if err != nil {
		return err
	}
	other, err := os.Readlink(got)
	if err == nil && one != other {
		err = fmt.Errorf("it leads to %q instead of %q", other, one)
	}
	return err
}

func (c *comparison) compareContent(want, got string) error {
	one, err := os.Open(want)
	if err != nil {
		return err
	}
	defer one.Close()
	other, err := os.Open(got)
	if err != nil {
		return err
	}
	defer other.Close()
	for {
		n, err := io.ReadFull(one, c.one)
		m, otherErr := io.ReadFull(other, c.other)
		if err := errors.Join(ignoreEnd(err), ignoreEnd(otherErr)); err != nil {
			return err
		}
		if !bytes.Equal(c.one[:n], c.other[:m]) {
			return errors.New("its bytes are others")
		}
		if err != nil {
			return nil
		}
	}
}
