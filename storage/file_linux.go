package storage

import (
	"os"

	"golang.org/x/sys/unix"
)

// dropCache lets the next read come from the disk and not from the memory that was just written. It is advice: a
// file system that ignores it gives back what it will give to everybody else.
func dropCache(file *os.File) { _ = unix.Fadvise(int(file.Fd()), 0, 0, unix.FADV_DONTNEED) }

func renameNew(from, to string) error {
	if err := unix.Renameat2(unix.AT_FDCWD, from, unix.AT_FDCWD, to, unix.RENAME_NOREPLACE); err != nil {
		return &os.LinkError{Op: "rename", Old: from, New: to, Err: err}
	}
	return nil
}
