package snapshot

import (
	"errors"
	"fmt"
	"io"
	"strconv"

	"golang.org/x/sys/unix"
)

var (
	// errChangedKind says that an entry is not the regular file any more that it was when it was listed.
	errChangedKind = errors.New("it became another kind of file")
	// errReplaced says that another file has the name by now.
	errReplaced = errors.New("it was replaced by another file while it was read")
)

// openDescriptors opens the directory through which openRegular opens what it has a handle of.
func openDescriptors() (int, error) {
	fd, err := openRetry(unix.AT_FDCWD, "/proc/self/fd", unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		// No omission of one file, whatever the error: nothing can be read.
		return -1, fmt.Errorf("opening /proc/self/fd (%w), which is needed to read files: %w", err, unix.ENOMEM)
	}
	return fd, nil
}

// openRegular opens a regular file of a directory for reading, and nothing else: a name that has become a device or a
// FIFO since it was listed is never opened, because opening a device can do things, and opening a FIFO lets a writer
// begin. The entry is first taken hold of without opening it (O_PATH), looked at, and then opened through that handle.
// Opening by name with O_NONBLOCK would take half the time, and leave a moment in which both can happen.
func openRegular(descriptors, dir int, name string) (fd int, stat statRecord, err error) {
	handle, err := openRetry(dir, name, unix.O_PATH|unix.O_NOFOLLOW, 0)
	if err != nil {
		return -1, stat, err
	}
	defer unix.Close(handle)
	var raw unix.Stat_t
	if err := fstat(handle, &raw); err != nil {
		return -1, stat, err
	}
	stat = recordOf(&raw)
	if stat.kind() != unix.S_IFREG {
		return -1, stat, errChangedKind
	}
	const flags = unix.O_RDONLY | unix.O_NONBLOCK | unix.O_NOCTTY
	number := strconv.Itoa(handle)
	fd, err = openRetry(descriptors, number, flags|unix.O_NOATIME, 0)
	if errors.Is(err, unix.EPERM) { // only the owner and root may leave the access time alone
		fd, err = openRetry(descriptors, number, flags, 0)
	}
	if errors.Is(err, unix.ENOENT) {
		// The handle is there, so it is /proc that is not: then nothing can be read, which is no omission.
		return -1, stat, fmt.Errorf("opening a file through /proc/self/fd, which is needed: %w", unix.ENOMEM)
	}
	return fd, stat, err
}

// fileReader reads the bytes of a file from offset to size, or to where the file ends by now.
type fileReader struct {
	fd           int
	offset, size int64
}

func (f *fileReader) Read(p []byte) (int, error) {
	if f.offset >= f.size {
		return 0, io.EOF
	}
	n, err := preadFull(f.fd, p[:min(int64(len(p)), f.size-f.offset)], f.offset)
	f.offset += int64(n)
	if errors.Is(err, io.ErrUnexpectedEOF) {
		err = io.EOF
	}
	return n, err
}

// hole is a part of a file that reads as zeros because nothing was ever written there.
type hole struct{ from, to int64 }

// holesOf finds the holes of at least least bytes in the first size bytes of a file. A file system that cannot tell
// has none.
func holesOf(fd int, size, least int64) []hole {
	var holes []hole
	for at := int64(0); at < size; {
		from, err := unix.Seek(fd, at, unix.SEEK_HOLE)
		if err != nil || from >= size {
			return holes
		}
		to, err := unix.Seek(fd, from, unix.SEEK_DATA)
		switch {
		case errors.Is(err, unix.ENXIO): // no data from here to the end
			to = size
		case err != nil:
			return holes
		}
		to = min(to, size)
		if to-from >= least {
			holes = append(holes, hole{from, to})
		}
		if to <= at && to <= from {
			return holes // a file system that makes no progress
		}
		at = to
	}
	return holes
}
