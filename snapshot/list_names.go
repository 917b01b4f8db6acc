package snapshot

import (
	"bytes"
	"encoding/binary"
	"errors"

	"golang.org/x/sys/unix"
)

// direntBuffer is how many bytes of a directory are read at once: a few hundred entries.
const direntBuffer = 32 << 10

// A record of getdents64: inode (8), position (8), length of the record (2), kind (1), name and zeros.
const (
	direntLength = 16
	direntName   = 19
)

// nameLister lists directories and keeps its buffers from one to the next, so only one goroutine may use it.
type nameLister struct {
	records, names []byte
	ends           []int // of each name in names
}

// list lists an open directory from where its descriptor stands, which is the beginning if nobody has listed it through
// that descriptor, in the order of the file system. With an error the names are those before it.
func (l *nameLister) list(fd int) ([]string, error) {
	if l.records == nil {
		l.records = make([]byte, direntBuffer)
	}
	l.names, l.ends = l.names[:0], l.ends[:0]
	var failure error
	for {
		var n int
		failure = ignoringEINTR(func() (err error) {
			n, err = unix.Getdents(fd, l.records)
			return err
		})
		if failure != nil || n == 0 {
			break
		}
		if failure = l.parse(l.records[:n]); failure != nil {
			break
		}
	}
	// One piece of memory for all names: few of a directory outlive the others.
	all := string(l.names)
	names := make([]string, len(l.ends))
	start := 0
	for i, end := range l.ends {
		names[i], start = all[start:end], end
	}
	return names, failure
}

var errDirents = errors.New("the kernel's list of a directory makes no sense")

func (l *nameLister) parse(records []byte) error {
	for len(records) > 0 {
		if len(records) <= direntName {
			return errDirents
		}
		size := int(binary.NativeEndian.Uint16(records[direntLength:]))
		if size <= direntName || size > len(records) {
			return errDirents
		}
		record := records[:size]
		records = records[size:]
		name := record[direntName:]
		if end := bytes.IndexByte(name, 0); end >= 0 {
			name = name[:end]
		}
		if binary.NativeEndian.Uint64(record) == 0 || string(name) == "." || string(name) == ".." {
			continue // without an inode there is no entry
		}
		l.names = append(l.names, name...)
		l.ends = append(l.ends, len(l.names))
	}
	return nil
}

// readNames lists an open directory, in the order of the file system, wherever its descriptor stands.
func readNames(dir int) ([]string, error) {
	fd, err := openRetry(dir, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	var lister nameLister
	return lister.list(fd)
}
