package snapshot

import (
	"context"
	"crypto/sha256"
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
	// packBuffers is how many packs are in memory at once, filled or on their way.
	packBuffers = openDataPacks + packUploads
	// firstPackBuffer is what a pack's buffer begins with, so that a small backup needs little memory.
	firstPackBuffer = 1 << 20
)

// DefaultPackSize is the default of Options.PackSize, in bytes.
const DefaultPackSize = 8 << 20

// MaxInFlight is how many bytes of packs a backup has on their way to one provider at any moment, at most, with packs of
// DefaultPackSize: what a kill, or the loss of every connection, can make be sent again. Not counted are the small
// objects besides packs, and the tree of a directory so large that it makes a pack of its own (tens of thousands of
// entries).
const MaxInFlight = packUploads * DefaultPackSize

// packer fills packs in memory and uploads them, and writes index files as it goes. Its memory is bounded by the
// number of its packs: who adds a blob waits while all are full or on their way.
type packer struct {
	r *Repository
	// upload is the context of uploads: that of the whole backup, so that one failure lets the others finish.
	upload context.Context

	places chan struct{} // one per pack in memory
	slots  chan struct{} // one per pack on its way

	mu   sync.Mutex
	open [2][]*packBuilder // by type; nil where none is being filled

	freeMu sync.Mutex
	free   [][]byte // buffers of packs that were sent, the last one to be used next

	// indexed, unless nil, is told the blobs of each pack that was sent and is in the repository's index.
	indexed func([]packedBlob)

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
	p.places = make(chan struct{}, packBuffers)
	p.slots = make(chan struct{}, packUploads)
	return p
}

// newBuilder begins a pack. While as many are in memory as may be it waits for an upload to end, or with wait false
// returns nil.
func (p *packer) newBuilder(ctx context.Context, kind blobType, wait bool) (*packBuilder, error) {
	select {
	case p.places <- struct{}{}:
		return newPackBuilder(kind, p.buffer()), nil
	default:
	}
	if !wait {
		return nil, nil
	}
	select {
	case p.places <- struct{}{}:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	// The wait may have been for an upload that failed.
	if err := p.failure(); err != nil {
		p.release(nil)
		return nil, err
	}
	return newPackBuilder(kind, p.buffer()), nil
}

func (p *packer) buffer() []byte {
	p.freeMu.Lock()
	defer p.freeMu.Unlock()
	last := len(p.free) - 1
	if last < 0 {
		return make([]byte, 0, firstPackBuffer)
	}
	b := p.free[last]
	p.free = p.free[:last]
	return b
}

// release makes place for another pack, and keeps the buffer to be filled again, unless it had to grow for a huge
// directory, or a write of it to a slow provider, which was cut off, may not have ended.
func (p *packer) release(b []byte) {
	if cap(b) > 0 && cap(b) <= p.r.options.PackSize && p.failure() == nil && len(p.r.store.behind()) == 0 {
		p.freeMu.Lock()
		p.free = append(p.free, b[:0])
		p.freeMu.Unlock()
	}
	<-p.places
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
	builder, err := p.builder(ctx, kind, len(sealed), plain)
	if err != nil {
		return err
	}
	builder.reserve(len(sealed), p.r.options.PackSize)
	builder.add(id, sealed, plain)
	return nil
}

// builder is the pack that a blob goes to. A pack that has no room for it is sent off.
func (p *packer) builder(ctx context.Context, kind blobType, length int, plain uint32) (*packBuilder, error) {
	open := p.open[kind]
	slot := 0
	if len(open) > 1 {
		slot = rand.IntN(len(open))
	}
	room := func(b *packBuilder) bool {
		return b.sizeWith(length, plain) <= p.r.options.PackSize && b.fits(length)
	}
	if open[slot] != nil && !room(open[slot]) {
		p.send(open[slot])
		open[slot] = nil
	}
	if open[slot] != nil {
		return open[slot], nil
	}
	builder, err := p.newBuilder(ctx, kind, false)
	if builder == nil && err == nil {
		// No place: rather than wait for an upload, fill another one that is open.
		for _, other := range open {
			if other != nil && room(other) {
				return other, nil
			}
		}
		builder, err = p.newBuilder(ctx, kind, true)
	}
	if err == nil {
		open[slot] = builder
	}
	return builder, err
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
	if err := p.stored(p.upload, newIndexPack(id, blobs, &crc)); err != nil {
		return err
	}
	if p.indexed != nil {
		p.indexed(blobs)
	}
	return nil
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
	data, err := r.newSealer().file(plain)
	if err != nil {
		return blobID{}, storedFile{}, fmt.Errorf("verifying a file of %s before it is stored: %w", prefix, err)
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
