package snapshot

import (
	"context"
	"crypto/sha256"
	"fmt"
	"slices"
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
	seen map[blobKey]struct{} // taken by this run, and in no pack yet that the repository's index has

	// sealers that nobody uses at the moment: for chunks of large files, and for all that is smaller, so that not
	// all of them get to have large buffers.
	large, small chan *sealer

	zeroOnce sync.Once
	zeroID   blobID
	zeroErr  error

	addedBlobs [2]atomic.Int64 // by type
	addedBytes [2]atomic.Int64
}

func newSaver(r *Repository, p *packer, lost map[blobID]struct{}) *saver {
	s := &saver{
		r: r, packer: p, lost: lost, seen: map[blobKey]struct{}{},
		large: make(chan *sealer, r.options.Concurrency), small: make(chan *sealer, r.options.Concurrency),
	}
	p.indexed = s.indexed
	return s
}

// has reports whether a blob is in the repository, in a pack that some provider has.
func (s *saver) has(id blobID, kind blobType) bool {
	key := blobKey{id, kind}
	s.mu.Lock()
	_, ok := s.seen[key]
	s.mu.Unlock()
	return ok || s.stored(key)
}

// holds is has for all data blobs whose ids lie one after another in ids.
func (s *saver) holds(ids []byte) bool {
	var missing []blobKey
	s.r.mu.RLock()
	for ; len(ids) >= len(blobID{}); ids = ids[len(blobID{}):] {
		if key := (blobKey{blobID(ids[:len(blobID{})]), dataBlob}); !s.storedLocked(key) {
			missing = append(missing, key)
		}
	}
	s.r.mu.RUnlock() // claim locks in the other order
	return !slices.ContainsFunc(missing, func(key blobKey) bool { return !s.has(key.id, key.kind) })
}

func (s *saver) stored(key blobKey) bool {
	s.r.mu.RLock()
	defer s.r.mu.RUnlock()
	return s.storedLocked(key)
}

func (s *saver) storedLocked(key blobKey) bool {
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
	if s.stored(key) {
		return false
	}
	s.seen[key] = struct{}{}
	return true
}

// indexed forgets the blobs of a pack that is in the repository's index by now: a million of them take 50 MB.
func (s *saver) indexed(blobs []packedBlob) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, b := range blobs {
		delete(s.seen, b.key())
	}
}

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
	free := s.small
	if len(plain) > smallMessage {
		free = s.large
	}
	var worker *sealer
	select {
	case worker = <-free:
	default:
		worker = s.r.newSealer()
	}
	defer func() {
		if cap(worker.sealed) > keptBuffer {
			worker.sealed = nil
		}
		select {
		case free <- worker:
		default:
		}
	}()
	sealed, plainSize, err := worker.blob(plain)
	if err != nil {
		return fmt.Errorf("verifying the %s blob %s before it is stored: %w", kind, id, err)
	}
	s.addedBlobs[kind].Add(1)
	s.addedBytes[kind].Add(int64(len(plain)))
	return s.packer.add(ctx, kind, id, sealed, plainSize)
}
