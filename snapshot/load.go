package snapshot

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/klauspost/compress/zstd"

	"holdfast/storage"
)

// unpackedLoaders is how many index or snapshot files are read at once.
const unpackedLoaders = 4

func encodeJSON(value any) ([]byte, error) {
	if index, ok := value.(indexFile); ok {
		return index.appendJSON(nil), nil
	}
	encoded, err := json.Marshal(value)
	if err != nil {
		return nil, fmt.Errorf("encoding %T: %w", value, err)
	}
	return encoded, nil
}

// loadFile reads and opens a file of index/, snapshots/ or locks/ that a listing named.
func (r *Repository) loadFile(ctx context.Context, l listing, key string) (plain []byte, stored storedFile, err error) {
	id, err := parseID(key[strings.LastIndexByte(key, '/')+1:])
	if err != nil {
		return nil, stored, fmt.Errorf("the file %q: %w", key, err)
	}
	data, err := loadWhole(ctx, r.store, l, key, maxUnpackedSize, func(sealed []byte) error {
		if err := checkHash(id, sealed); err != nil {
			return err
		}
		plain, err = r.openFile(r.codec.bounded, sealed)
		return err
	})
	if err != nil {
		return nil, stored, err
	}
	return plain, r.rememberFile(key, id, data), nil
}

// openFile is what a file's stored bytes say, decompressed by a decoder that knows how much that may be.
func (r *Repository) openFile(decoder *zstd.Decoder, sealed []byte) ([]byte, error) {
	framed, err := r.box.open(nil, sealed)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	return unpackFrame(decoder, framed)
}

func (r *Repository) rememberFile(key string, id blobID, data []byte) storedFile {
	r.remember(key, data)
	return storedFile{size: int64(len(data)), crc: storage.Checksum(data), hash: id}
}

// permanent reports whether an error says that stored bytes are wrong or absent, rather than that they could not be
// had now.
func permanent(err error) bool {
	return errors.Is(err, ErrDamaged) || errors.Is(err, ErrLimitExceeded) || errors.Is(err, storage.ErrNotFound)
}

func (r *Repository) indexDamage() map[blobID]error {
	r.mu.RLock()
	defer r.mu.RUnlock()
	damage := make(map[blobID]error, len(r.indexDamaged))
	for id, err := range r.indexDamaged {
		damage[id] = err
	}
	return damage
}

func (r *Repository) indexedPacks() []packInfo {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return slices.Clone(r.index.packs)
}

func (r *Repository) eachBlob(visit func(packedBlob) bool) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	r.index.each(visit)
}

func (r *Repository) blobLocations(id blobID, kind blobType) []blobLocation {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.index.locations(blobKey{id, kind})
}

// findBlob is blobLocations, after another look at the index when the blob is not known.
func (r *Repository) findBlob(ctx context.Context, id blobID, kind blobType) ([]blobLocation, error) {
	asked := time.Now()
	locations := r.blobLocations(id, kind)
	if len(locations) > 0 {
		return locations, nil
	}
	r.refresh.Lock()
	// One look serves all that were waiting for it, and a broken repository does not cause one per blob. But a snapshot that
	// was listed after the index may need what the index did not name then.
	if asked.Sub(r.refreshed) > 5*time.Second || r.snapshotsListed().After(r.refreshed) {
		if err := r.refreshIndexLocked(ctx); err != nil {
			r.refresh.Unlock()
			return nil, err
		}
	}
	r.refresh.Unlock()
	if locations = r.blobLocations(id, kind); len(locations) > 0 {
		return locations, nil
	}
	r.mu.RLock()
	defer r.mu.RUnlock()
	if r.unlisted != nil {
		return nil, fmt.Errorf("no index that could be read names the %s blob %s: %w", kind, id, r.unlisted)
	}
	return nil, fmt.Errorf("no index names the %s blob %s (%d index files are damaged): %w", kind, id, len(r.indexDamaged), ErrDamaged)
}

// loadBlob reads a blob, from the first provider and pack that has it undamaged.
func (r *Repository) loadBlob(ctx context.Context, id blobID, kind blobType) ([]byte, error) {
	locations, err := r.findBlob(ctx, id, kind)
	if err != nil {
		return nil, err
	}
	var failures []error
	for _, at := range locations {
		var plain []byte
		_, err := r.loadPackPart(ctx, at.pack, int64(at.offset), int64(at.length), func(sealed []byte) error {
			var err error
			plain, err = r.openBlob(nil, sealed, id, at)
			return err
		})
		if err == nil {
			return plain, nil
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		failures = append(failures, err)
	}
	return nil, fmt.Errorf("reading the %s blob %s: %w", kind, id, errors.Join(failures...))
}

// openBlob appends to dst the plaintext of a blob that lies sealed in a pack, after its hash was found right.
func (r *Repository) openBlob(dst, sealed []byte, id blobID, at blobLocation) ([]byte, error) {
	return r.openBlobThrough(new([]byte), dst, sealed, id, at)
}

// openBlobThrough is openBlob with a buffer for what is between sealed and plain, to be used again.
func (r *Repository) openBlobThrough(packed *[]byte, dst, sealed []byte, id blobID, at blobLocation) ([]byte, error) {
	if len(sealed) != int(at.length) {
		return nil, fmt.Errorf("blob %s has %d bytes instead of %d: %w", id.short(), len(sealed), at.length, ErrDamaged)
	}
	if err := at.validate(); err != nil {
		return nil, err
	}
	start := len(dst)
	var err error
	if at.plain == 0 {
		dst, err = r.box.open(dst, sealed)
	} else if *packed, err = r.box.open((*packed)[:0], sealed); err == nil {
		dst, err = r.codec.decompress(dst, *packed, int(at.plain))
	}
	if errors.Is(err, errUnauthentic) {
		err = fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	if err == nil {
		err = checkHash(id, dst[start:])
	}
	if err != nil {
		return nil, fmt.Errorf("blob %s of pack %s: %w", id.short(), at.pack, err)
	}
	return dst, nil
}

func (r *Repository) loadTree(ctx context.Context, id blobID) ([]node, error) {
	plain, err := r.loadBlob(ctx, id, treeBlob)
	if err != nil {
		return nil, err
	}
	nodes, err := decodeTree(plain)
	if err != nil {
		return nil, fmt.Errorf("tree %s: %w", id, err)
	}
	return nodes, nil
}

func (r *Repository) loadPackPart(ctx context.Context, pack blobID, offset, length int64, check func([]byte) error) ([]byte, error) {
	data, err := r.store.load(ctx, packKey(pack), offset, length, check)
	if err != nil {
		return nil, fmt.Errorf("reading pack %s: %w", pack, err)
	}
	return data, nil
}

func (r *Repository) loadPackWhole(ctx context.Context, pack blobID, size int64) ([]byte, error) {
	return r.loadPackPart(ctx, pack, 0, size, func(data []byte) error { return checkHash(pack, data) })
}

// headerGuess is how much of a pack's end is read at first: enough for 1,500 blobs.
const headerGuess = 64 << 10

// loadPackHeader reads the list of blobs that a pack of this size has at its end. It is authenticated, and describes
// the whole file: a pack that was cut short fails.
func (r *Repository) loadPackHeader(ctx context.Context, pack blobID, size int64) ([]packedBlob, error) {
	if size < packFrameSize+plainEntrySize || size > maxPackSize {
		return nil, fmt.Errorf("pack %s has %d bytes: %w", pack, size, ErrDamaged)
	}
	var blobs []packedBlob
	var need int64
	read := func(length int64) error {
		_, err := r.loadPackPart(ctx, pack, size-length, length, func(tail []byte) error {
			need, blobs = 0, nil
			if int64(len(tail)) != length {
				return fmt.Errorf("%d bytes instead of %d: %w", len(tail), length, ErrDamaged)
			}
			headerSize, err := sealedHeaderSize(pack, size, tail[length-packTrailerSize:])
			if err != nil {
				return err
			}
			if headerSize+packTrailerSize > length {
				need = headerSize + packTrailerSize
				return nil
			}
			blobs, err = r.openHeader(pack, size, tail[length-packTrailerSize-headerSize:length-packTrailerSize])
			return err
		})
		return err
	}
	if err := read(min(size, headerGuess)); err != nil {
		return nil, err
	}
	if need > 0 {
		if err := read(need); err != nil {
			return nil, err
		}
	}
	if blobs == nil {
		return nil, fmt.Errorf("pack %s: its copies disagree about the header's length: %w", pack, ErrDamaged)
	}
	return blobs, nil
}

func (r *Repository) openHeader(pack blobID, size int64, sealed []byte) ([]packedBlob, error) {
	plain, err := r.box.open(nil, sealed)
	if err != nil {
		return nil, fmt.Errorf("the header of pack %s: %w: %w", pack, ErrDamaged, err)
	}
	blobs, err := parseHeader(pack, plain)
	if err != nil {
		return nil, err
	}
	if want := packSizeOf(blobs); want != size {
		return nil, fmt.Errorf("pack %s has %d bytes, but by its header %d: %w", pack, size, want, ErrDamaged)
	}
	return blobs, nil
}
