package snapshot

import (
	"bytes"
	"errors"
	"fmt"
	"io"

	"golang.org/x/sys/unix"
)

// holeSize is the length and alignment of zero runs that are left out of a file, so that the file system keeps them as
// holes. The snapshot format does not say where holes were: zeros that were written become holes too.
const holeSize = 4096

// writeSparse writes data at offset into a file that reads as zeros there, leaving out aligned runs of zeros.
func writeSparse(fd int, data []byte, offset int64) error {
	var zero [holeSize]byte
	begin := 0 // of the bytes not yet written or left out
	for at := 0; at < len(data); {
		end := min(len(data), at+holeSize-int((offset+int64(at))%holeSize))
		if end-at == holeSize && bytes.Equal(data[at:end], zero[:]) {
			if err := pwriteFull(fd, data[begin:at], offset+int64(begin)); err != nil {
				return err
			}
			begin = end
		}
		at = end
	}
	return pwriteFull(fd, data[begin:], offset+int64(begin))
}

func pwriteFull(fd int, data []byte, offset int64) error {
	for len(data) > 0 {
		n, err := unix.Pwrite(fd, data, offset)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return err
		case n == 0:
			return io.ErrShortWrite
		default:
			data, offset = data[n:], offset+int64(n)
		}
	}
	return nil
}

// preadFull reads len(buffer) bytes and returns how many it got; fewer come with an error, io.ErrUnexpectedEOF at the
// file's end.
func preadFull(fd int, buffer []byte, offset int64) (got int, err error) {
	for got < len(buffer) {
		n, err := unix.Pread(fd, buffer[got:], offset+int64(got))
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return got, err
		case n == 0:
			return got, io.ErrUnexpectedEOF
		default:
			got += n
		}
	}
	return got, nil
}

func ftruncate(fd int, size int64) error {
	return ignoringEINTR(func() error { return unix.Ftruncate(fd, size) })
}

// fileWriter writes a file that was just created from its beginning to its end, with holes.
type fileWriter struct {
	fd     int
	path   string
	offset int64
}

func (w *fileWriter) Write(data []byte) (int, error) {
	if err := writeSparse(w.fd, data, w.offset); err != nil {
		return 0, localError("writing", w.path, err)
	}
	w.offset += int64(len(data))
	return len(data), nil
}

// finish gives the file its logical size, which a hole at its end needs, and closes it.
func (w *fileWriter) finish() error {
	err := ftruncate(w.fd, w.offset)
	if err != nil {
		err = localError("setting the size of", w.path, err)
	}
	if closeErr := unix.Close(w.fd); closeErr != nil && err == nil { // where network file systems say that the disk is full
		err = localError("closing", w.path, closeErr)
	}
	if err != nil {
		return fmt.Errorf("finishing a file: %w", err)
	}
	return nil
}
