package snapshot

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"sync"
	"sync/atomic"
)

// saver stores blobs that the repository does not have: hash, look up, compress, seal, verify, hand to the packer.
type saver struct {
	r      *Repository
	packer *packer
	// lost are packs that the index names and no provider has whole: what they hold is stored again.
	lost map[blobID]struct{}

	mu   sync.Mutex
	seen map[blobKey]struct{} // found in the repository or taken by this run

	scratch sync.Pool // of *saverBuffers

	zeroOnce sync.Once
	zeroID   blobID
	zeroErr  error

	addedBlobs [2]atomic.Int64 // by type
	addedBytes [2]atomic.Int64
}

type saverBuffers struct{ packed, sealed, verified []byte }

func newSaver(r *Repository, p *packer, lost map[blobID]struct{}) *saver {
	return &saver{
		r: r, packer: p, lost: lost, seen: map[blobKey]struct{}{},
		scratch: sync.Pool{New: func() any { return &saverBuffers{} }},
	}
}

// has reports whether a blob is in the repository, in a pack that some provider has.
func (s *saver) has(id blobID, kind blobType) bool {
	key := blobKey{id, kind}
	s.mu.Lock()
	_, ok := s.seen[key]
	s.mu.Unlock()
	return ok || s.stored(key)
}

func (s *saver) stored(key blobKey) bool {
	s.r.mu.RLock()
	defer s.r.mu.RUnlock()
	for e := range s.r.index.chain(key) {
		if _, lost := s.lost[s.r.index.packs[e.pack].id]; !lost {
			return true
		}
	}
	return false
}

// claim reports whether the caller is to store the blob. A blob that was claimed is stored when the backup succeeds,
// because whatever fails to be stored fails the backup.
func (s *saver) claim(key blobKey) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.seen[key]; ok {
		return false
	}
	s.seen[key] = struct{}{}
	return !s.stored(key)
}

// compressionGain: what zstd does not make smaller by 1/64 is stored as it is, and costs nothing to read.
const compressionGain = 64

// save stores plain, unless the repository has it, and returns its name. It does not keep plain.
func (s *saver) save(ctx context.Context, kind blobType, plain []byte) (blobID, error) {
	id := blobID(sha256.Sum256(plain))
	return id, s.saveAs(ctx, id, kind, plain)
}

func (s *saver) saveAs(ctx context.Context, id blobID, kind blobType, plain []byte) error {
	if int64(len(plain)) > kind.sizeLimit() {
		return fmt.Errorf("storing a %s blob of %d bytes: %w", kind, len(plain), ErrLimitExceeded)
	}
	if !s.claim(blobKey{id, kind}) {
		return nil
	}
	buffers := s.scratch.Get().(*saverBuffers)
	defer func() {
		if cap(buffers.sealed) <= 2*maxChunkSize { // a huge directory's buffers are not kept
			s.scratch.Put(buffers)
		}
	}()
	buffers.packed = s.r.codec.compress(buffers.packed[:0], plain)
	content, plainSize := buffers.packed, uint32(len(plain))
	if len(plain)-len(content) < len(plain)/compressionGain || len(content) >= len(plain) {
		content, plainSize = plain, 0
	}
	buffers.sealed = s.r.box.seal(buffers.sealed[:0], content)
	if err := s.verify(buffers, plain, plainSize); err != nil {
		return fmt.Errorf("verifying the %s blob %s before it is stored: %w", kind, id, err)
	}
	s.addedBlobs[kind].Add(1)
	s.addedBytes[kind].Add(int64(len(plain)))
	return s.packer.add(ctx, kind, id, buffers.sealed, plainSize)
}

// verify opens what is about to be stored and compares it with what it was made of: a defect of memory or of a library
// is found while the content still exists.
func (s *saver) verify(buffers *saverBuffers, plain []byte, plainSize uint32) error {
	opened, err := s.r.box.open(buffers.packed[:0], buffers.sealed)
	if err != nil {
		return err
	}
	buffers.packed = opened
	if plainSize != 0 {
		if buffers.verified, err = s.r.codec.decompress(buffers.verified[:0], opened, len(plain)); err != nil {
			return err
		}
		opened = buffers.verified
	}
	if !bytes.Equal(opened, plain) {
		return fmt.Errorf("it opens to something else: %w", ErrDamaged)
	}
	return nil
}
