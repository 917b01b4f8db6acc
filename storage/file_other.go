//go:build !linux

package storage

import (
	"errors"
	"os"
)

func dropCache(*os.File) {}

// renameNew has no atomic form that every other system knows; those without hard links cannot create exclusively.
func renameNew(string, string) error {
	return errors.New("the file system has no hard links, which create-only writes need here")
}
