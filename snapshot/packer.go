package snapshot

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"

	"holdfast/storage"
)

const (
	// openDataPacks is how many packs of data are filled at once. Each blob goes to a random one, so that the order and
	// sizes of blobs in a pack do not show the sizes of the chunks of one file.
	openDataPacks = 2
	// packUploads is how many packs are on their way at once, copies of older ones included: what an interruption can
	// cost. See MaxInFlight.
	packUploads = 2
	// indexBlobs is how many blobs an index file names at most, give or take a pack; restic has the same number.
	indexBlobs = 50_000
	// packSlack is room for a pack's header, and for a blob that goes a little beyond the pack's size.
	packSlack = 1 << 20
)

// DefaultPackSize is the default of Options.PackSize, in bytes.
const DefaultPackSize = 16 << 20

// MaxInFlight is how many bytes of packs a backup has on their way to one provider at any moment, at most, with packs of
// DefaultPackSize: what a kill, or the loss of every connection, can make be sent again. Not counted are the small
// objects besides packs, and the tree of a directory so large that it makes a pack of its own (tens of thousands of
// entries).
const MaxInFlight = packUploads * DefaultPackSize

// packer fills packs in memory and uploads them, and writes index files as it goes. Its memory is bounded by the
// number of its buffers: who adds a blob waits while all are full or on their way.
type packer struct {
	r *Repository
	// upload is the context of uploads: that of the whole backup, so that one failure lets the others finish.
	upload context.Context

	buffers chan []byte
	slots   chan struct{} // one per pack on its way

	mu   sync.Mutex
	open [2][]*packBuilder // by type; nil where none is being filled

	uploads sync.WaitGroup
	failed  atomic.Pointer[error]

	indexMu      sync.Mutex
	pending      []indexPack // stored, and in no index file yet
	pendingBlobs int

	packsUploaded atomic.Int64
	bytesUploaded atomic.Int64
}

func newPacker(ctx context.Context, r *Repository) *packer {
	p := &packer{r: r, upload: ctx}
	p.open[dataBlob] = make([]*packBuilder, openDataPacks)
	p.open[treeBlob] = make([]*packBuilder, 1)
	count := openDataPacks + 1 + packUploads
	p.buffers = make(chan []byte, count)
	for range count {
		p.buffers <- nil // allocated when first used
	}
	p.slots = make(chan struct{}, packUploads)
	return p
}

// buffer takes a free buffer; it waits for an upload to end.
func (p *packer) buffer(ctx context.Context) ([]byte, error) {
	select {
	case b := <-p.buffers:
		if b == nil {
			b = make([]byte, 0, p.r.options.PackSize+packSlack)
		}
		return b[:0], nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// release gives a buffer back to be filled again, unless it had to grow for a huge directory, or a write of it to a
// slow provider, which was cut off, may not have ended.
func (p *packer) release(b []byte) {
	if cap(b) > 2*(p.r.options.PackSize+packSlack) || p.failure() != nil || len(p.r.store.behind()) > 0 {
		b = nil
	}
	p.buffers <- b
}

// failure is the first error of an upload.
func (p *packer) failure() error {
	if err := p.failed.Load(); err != nil {
		return *err
	}
	return nil
}

// add puts a sealed blob into a pack, and sends the pack off when it is full.
func (p *packer) add(ctx context.Context, kind blobType, id blobID, sealed []byte, plain uint32) error {
	if err := p.failure(); err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	slot := 0
	if n := len(p.open[kind]); n > 1 {
		slot = rand.IntN(n)
	}
	builder := p.open[kind][slot]
	if builder != nil && (builder.sizeWith(len(sealed), plain) > p.r.options.PackSize || !builder.fits(len(sealed))) {
		p.open[kind][slot] = nil
		p.send(builder)
		builder = nil
	}
	if builder == nil {
		buffer, err := p.buffer(ctx)
		if err != nil {
			return err
		}
		// The wait may have been for an upload that failed.
		if err := p.failure(); err != nil {
			p.release(buffer)
			return err
		}
		builder = newPackBuilder(kind, buffer)
		p.open[kind][slot] = builder
	}
	builder.add(id, sealed, plain)
	return nil
}

// send uploads a pack in the background.
func (p *packer) send(builder *packBuilder) {
	p.uploads.Go(func() {
		id, data, blobs := builder.finish(p.r.box)
		defer p.release(data)
		p.slots <- struct{}{}
		defer func() { <-p.slots }()
		if err := p.store(id, data, blobs); err != nil {
			err = fmt.Errorf("storing pack %s: %w", id, err)
			p.failed.CompareAndSwap(nil, &err)
		}
	})
}

func (p *packer) store(id blobID, data []byte, blobs []packedBlob) error {
	if err := p.upload.Err(); err != nil {
		return context.Cause(p.upload)
	}
	if err := p.r.store.put(p.upload, packKey(id), data, true); err != nil {
		return err
	}
	p.packsUploaded.Add(1)
	p.bytesUploaded.Add(int64(len(data)))
	crc := storage.Checksum(data)
	return p.stored(p.upload, newIndexPack(id, blobs, &crc))
}

// stored takes in a pack that providers hold, and writes an index file when enough have come together.
func (p *packer) stored(ctx context.Context, pack indexPack) error {
	p.r.mu.Lock()
	err := p.r.index.add(pack, blobID{})
	p.r.mu.Unlock()
	if err != nil {
		return err
	}
	p.indexMu.Lock()
	p.pending = append(p.pending, pack)
	p.pendingBlobs += len(pack.Blobs)
	var file indexFile
	if len(p.pending) >= p.r.options.IndexEvery || p.pendingBlobs >= indexBlobs {
		file.Packs, p.pending, p.pendingBlobs = p.pending, nil, 0
	}
	p.indexMu.Unlock()
	return p.writeIndex(ctx, file)
}

func (p *packer) writeIndex(ctx context.Context, file indexFile) error {
	if len(file.Packs) == 0 {
		return nil
	}
	id, stored, err := p.r.storeFile(ctx, indexPrefix, file)
	if err != nil {
		return fmt.Errorf("storing an index: %w", err)
	}
	p.bytesUploaded.Add(stored.size)
	p.r.mu.Lock()
	p.r.indexFiles[id] = stored
	for _, pack := range file.Packs {
		if number, ok := p.r.index.byPack[pack.ID]; ok {
			p.r.index.packs[number].name(id)
		}
	}
	p.r.mu.Unlock()
	return nil
}

// finish sends what is left, waits for all uploads, and writes the last index file.
func (p *packer) finish(ctx context.Context) error {
	p.mu.Lock()
	for kind := range p.open {
		var last *packBuilder
		for slot, builder := range p.open[kind] {
			p.open[kind][slot] = nil
			switch {
			case builder == nil:
			case last != nil && p.merge(last, builder):
				p.release(builder.buffer)
			default:
				if last != nil {
					p.send(last)
				}
				last = builder
			}
		}
		if last != nil {
			p.send(last)
		}
	}
	p.mu.Unlock()
	p.uploads.Wait()
	if err := p.failure(); err != nil {
		return err
	}
	p.indexMu.Lock()
	file := indexFile{Packs: p.pending}
	p.pending, p.pendingBlobs = nil, 0
	p.indexMu.Unlock()
	return p.writeIndex(ctx, file)
}

// merge puts the blobs of one half-filled pack into another, so that a small backup makes one pack and not several.
func (p *packer) merge(into, from *packBuilder) bool {
	size := len(into.buffer) + len(from.buffer) + into.header + from.header
	if size > p.r.options.PackSize-packFrameSize {
		return false
	}
	for _, b := range from.blobs {
		l := b.location
		into.add(b.id, from.buffer[l.offset:l.offset+l.length], l.plain)
	}
	return true
}

// abandon waits for the uploads that are on their way after something else failed. What they store is found by the next
// backup.
func (p *packer) abandon() { p.uploads.Wait() }

// storeFile encodes, compresses, seals and stores a file of index/, snapshots/ or locks/. When storing it failed, some
// provider may have it nevertheless, under the id that is returned.
func (r *Repository) storeFile(ctx context.Context, prefix string, value any) (blobID, storedFile, error) {
	return r.storeFileIn(ctx, r.store, prefix, value)
}

func (r *Repository) storeFileIn(ctx context.Context, s store, prefix string, value any) (blobID, storedFile, error) {
	plain, err := encodeJSON(value)
	if err != nil {
		return blobID{}, storedFile{}, err
	}
	if len(plain) > maxUnpackedSize {
		return blobID{}, storedFile{}, fmt.Errorf("%d bytes of JSON: %w", len(plain), ErrLimitExceeded)
	}
	data := r.box.seal(nil, r.codec.packFile(plain))
	opened, err := r.box.open(nil, data)
	if err == nil {
		opened, err = r.codec.unpackFile(opened)
	}
	if err != nil || string(opened) != string(plain) {
		return blobID{}, storedFile{}, errors.Join(fmt.Errorf("it opens to something else: %w", ErrDamaged), err)
	}
	id := blobID(sha256.Sum256(data))
	key := prefix + id.String()
	if err := s.put(ctx, key, data, true); err != nil {
		return id, storedFile{}, err
	}
	if prefix != lockPrefix {
		r.remember(key, data)
	}
	return id, storedFile{size: int64(len(data)), crc: storage.Checksum(data), hash: id}, nil
}
