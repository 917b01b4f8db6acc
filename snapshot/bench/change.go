package main

import (
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
)

// change is what was done to one file: a byte in its middle was turned over, and a line appended.
type change struct {
	path string
	size int64 // before
}

const appended = "\nchanged\n"

// changeFiles changes one file in a hundred, at least one. What it did before an error is returned with the error.
func changeFiles(dir string, seed uint64) ([]change, error) {
	random := rand.New(rand.NewPCG(seed, 1))
	var changes []change
	var passed []string // for a set of too few files
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		if len(passed) < 100 {
			passed = append(passed, path)
		}
		if random.IntN(100) != 0 {
			return nil
		}
		changed, err := changeFile(path)
		if err == nil {
			changes = append(changes, changed)
		}
		return err
	})
	if err == nil && len(changes) == 0 && len(passed) > 0 {
		var changed change
		if changed, err = changeFile(passed[random.IntN(len(passed))]); err == nil {
			changes = append(changes, changed)
		}
	}
	if err != nil {
		return changes, fmt.Errorf("changing files: %w", err)
	}
	return changes, nil
}

func changeFile(path string) (change, error) {
	file, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return change{}, err
	}
	defer file.Close()
	stat, err := file.Stat()
	if err != nil {
		return change{}, err
	}
	done := change{path: path, size: stat.Size()}
	if err := turnByte(file, done.size); err != nil {
		return change{}, err
	}
	_, err = file.WriteAt([]byte(appended), done.size)
	return done, err
}

func turnByte(file *os.File, size int64) error {
	if size == 0 {
		return nil
	}
	var b [1]byte
	if _, err := file.ReadAt(b[:], size/2); err != nil {
		return err
	}
	b[0] ^= 0xff
	_, err := file.WriteAt(b[:], size/2)
	return err
}

// undo gives changed files their content back, so that every round begins with the same.
func undo(changes []change) error {
	var failures []error
	for _, done := range changes {
		failures = append(failures, done.undo())
	}
	return errors.Join(failures...)
}

func (c change) undo() error {
	file, err := os.OpenFile(c.path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	return errors.Join(file.Truncate(c.size), turnByte(file, c.size), file.Close())
}
