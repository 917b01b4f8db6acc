package snapshot

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"sync"

	"golang.org/x/sys/unix"
)

// verifyAndFinish reads every file back and compares it with the hashes in the snapshot (invariant 5: verified file by
// file), and sets its metadata. What was decrypted was verified in memory already; this proves that it is also what the
// file system gives back, at the right place of the right file and nothing else.
func (s *restorer) verifyAndFinish(number int32, dir *targetDir) error {
	v := s.verifiers.Get().(*verifier)
	defer s.verifiers.Put(v)
	for i := s.plan.dirs[number].first; i < s.plan.dirs[number].last; i++ {
		entry := &s.plan.entries[i]
		if entry.kind == kindDir || !entry.made {
			continue
		}
		path := dir.join(entry.name)
		var stat unix.Stat_t
		if err := fstatat(dir.fd, entry.name, &stat); err != nil {
			return localError("looking at the restored", path, err)
		}
		if stat.Mode&unix.S_IFMT != entry.kind.stMode() {
			return fmt.Errorf("%w: %q has become another kind of file", errNotAsWritten, path)
		}
		if entry.sameAs >= 0 { // the same inode, verified under its first name
			s.meter.add(1, 0, path)
			continue
		}
		if entry.kind == kindFile {
			if err := v.verify(dir, entry); err != nil {
				return err
			}
		}
		if err := setMetadata(dir.fd, entry.name, path, &entry.meta, &s.target.warnings); err != nil {
			return err
		}
		s.meter.add(1, 0, path)
	}
	return nil
}

// errNotAsWritten means that the local file system does not give back what was written to it.
var errNotAsWritten = errors.New("the restored file is not what was written")

// verifier compares files with the hashes of their blobs. It is used by one goroutine at a time.
type verifier struct {
	buffer []byte
	hash   hash.Hash
	zeros  map[uint32]blobID // hashes of runs of zeros, by length
}

func newVerifierPool() *sync.Pool {
	return &sync.Pool{New: func() any {
		return &verifier{buffer: make([]byte, 256<<10), hash: sha256.New(), zeros: map[uint32]blobID{}}
	}}
}

func (v *verifier) verify(dir *targetDir, entry *plannedEntry) error {
	path := dir.join(entry.name)
	fd, err := dir.openFile(entry.name, unix.O_RDONLY)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	var stat unix.Stat_t
	if err := fstat(fd, &stat); err != nil {
		return localError("looking at the restored", path, err)
	}
	if stat.Mode&unix.S_IFMT != unix.S_IFREG || stat.Size != entry.size {
		return fmt.Errorf("%w: %q has %d bytes instead of %d", errNotAsWritten, path, stat.Size, entry.size)
	}
	offset := int64(0)
	for i, id := range entry.content {
		size := int64(entry.sizes[i])
		got, err := v.hashAt(fd, offset, size, &stat)
		if err != nil {
			return localError("reading back", path, err)
		}
		if got != id {
			return fmt.Errorf("%w: %q differs within %d bytes at %d", errNotAsWritten, path, size, offset)
		}
		offset += size
	}
	return nil
}

// hashAt is the hash of a part of a file; a hole is not read.
func (v *verifier) hashAt(fd int, offset, length int64, stat *unix.Stat_t) (blobID, error) {
	if stat.Blocks*512 < stat.Size && isHole(fd, offset, length) {
		return v.zeroHash(uint32(length)), nil
	}
	return v.hashPart(fd, offset, length)
}

// isHole reports whether no data is stored for a part of a file, which then reads as zeros.
func isHole(fd int, offset, length int64) bool {
	data, err := unix.Seek(fd, offset, unix.SEEK_DATA)
	if errors.Is(err, unix.ENXIO) { // none until the end
		return true
	}
	return err == nil && data >= offset+length
}

func (v *verifier) hashPart(fd int, offset, length int64) (id blobID, err error) {
	v.hash.Reset()
	for length > 0 {
		piece := v.buffer[:min(int64(len(v.buffer)), length)]
		if _, err := preadFull(fd, piece, offset); err != nil {
			return id, err
		}
		v.hash.Write(piece)
		offset += int64(len(piece))
		length -= int64(len(piece))
	}
	v.hash.Sum(id[:0])
	return id, nil
}

func (v *verifier) zeroHash(length uint32) blobID {
	id, known := v.zeros[length]
	if known {
		return id
	}
	v.hash.Reset()
	clear(v.buffer)
	for left := int(length); left > 0; left -= min(left, len(v.buffer)) {
		v.hash.Write(v.buffer[:min(left, len(v.buffer))])
	}
	v.hash.Sum(id[:0])
	if len(v.zeros) < 1000 {
		v.zeros[length] = id
	}
	return id
}

// finishDirs sets the metadata of all directories but the top one, children before parents: a mode may close what is
// below.
func (s *restorer) finishDirs() error {
	for i := len(s.plan.entries) - 1; i >= 0; i-- {
		entry := &s.plan.entries[i]
		if entry.kind != kindDir {
			continue
		}
		if err := s.target.setDirMetadata(s.plan.path(int32(i)), &entry.meta); err != nil {
			return err
		}
	}
	return nil
}
