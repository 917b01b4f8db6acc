package snapshot

import (
	"crypto/sha256"
	"errors"
	"hash"
	"sync"

	"golang.org/x/sys/unix"
)

// partHasher hashes parts of files that an earlier attempt left. It is used by one goroutine at a time.
type partHasher struct {
	buffer []byte
	hash   hash.Hash
	zeros  map[uint32]blobID // hashes of runs of zeros, by length
}

func newHasherPool() *sync.Pool {
	return &sync.Pool{New: func() any {
		return &partHasher{buffer: make([]byte, 256<<10), hash: sha256.New(), zeros: map[uint32]blobID{}}
	}}
}

// hashAt is the hash of a part of a file; a hole is not read.
func (h *partHasher) hashAt(fd int, offset, length int64, stat *unix.Stat_t) (blobID, error) {
	if stat.Blocks*512 < stat.Size && isHole(fd, offset, length) {
		return h.zeroHash(uint32(length)), nil
	}
	return h.hashPart(fd, offset, length)
}

// isHole reports whether no data is stored for a part of a file, which then reads as zeros.
func isHole(fd int, offset, length int64) bool {
	data, err := unix.Seek(fd, offset, unix.SEEK_DATA)
	if errors.Is(err, unix.ENXIO) { // none until the end
		return true
	}
	return err == nil && data >= offset+length
}

func (h *partHasher) hashPart(fd int, offset, length int64) (id blobID, err error) {
	h.hash.Reset()
	for length > 0 {
		piece := h.buffer[:min(int64(len(h.buffer)), length)]
		if _, err := preadFull(fd, piece, offset); err != nil {
			return id, err
		}
		h.hash.Write(piece)
		offset += int64(len(piece))
		length -= int64(len(piece))
	}
	h.hash.Sum(id[:0])
	return id, nil
}

func (h *partHasher) zeroHash(length uint32) blobID {
	id, known := h.zeros[length]
	if known {
		return id
	}
	h.hash.Reset()
	clear(h.buffer)
	for left := int(length); left > 0; left -= min(left, len(h.buffer)) {
		h.hash.Write(h.buffer[:min(left, len(h.buffer))])
	}
	h.hash.Sum(id[:0])
	if len(h.zeros) < 1000 {
		h.zeros[length] = id
	}
	return id
}
