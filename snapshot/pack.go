package snapshot

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"hash"
	"slices"
)

// A pack is blob1 ‖ … ‖ blobN ‖ sealed header ‖ length of the sealed header (4 bytes, little-endian). The header has an
// entry per blob, in the order of the blobs: type(1) length(4) [plain length(4)] id(32).
const (
	plainEntrySize      = 1 + 4 + 32
	compressedEntrySize = 1 + 4 + 4 + 32
	packTrailerSize     = 4
	// packFrameSize is what a pack has besides its blobs and header entries.
	packFrameSize = envelopeOverhead + packTrailerSize
)

// The types of header entries.
const (
	entryData byte = iota
	entryTree
	entryCompressedData
	entryCompressedTree
)

// packedBlob is one entry of a pack's header or of an index.
type packedBlob struct {
	id       blobID
	location blobLocation
}

// packSizeOf is the size of the file that holds exactly these blobs, contiguously, as every valid pack does.
func packSizeOf(blobs []packedBlob) int64 {
	size := int64(packFrameSize)
	for _, b := range blobs {
		size += int64(b.location.length) + b.location.headerSize()
	}
	return size
}

// appendHeader appends the plaintext of the header for these blobs.
func appendHeader(dst []byte, blobs []packedBlob) []byte {
	for _, b := range blobs {
		kind := entryData
		switch {
		case b.location.kind == treeBlob && b.location.plain != 0:
			kind = entryCompressedTree
		case b.location.kind == treeBlob:
			kind = entryTree
		case b.location.plain != 0:
			kind = entryCompressedData
		}
		dst = append(dst, kind)
		dst = binary.LittleEndian.AppendUint32(dst, b.location.length)
		if b.location.plain != 0 {
			dst = binary.LittleEndian.AppendUint32(dst, b.location.plain)
		}
		dst = append(dst, b.id[:]...)
	}
	return dst
}

// parseHeader reads the plaintext of a header. The blobs lie one after another from offset 0; the location's pack is
// filled in.
func parseHeader(pack blobID, plain []byte) ([]packedBlob, error) {
	var blobs []packedBlob
	var offset uint64
	for len(plain) > 0 {
		location := blobLocation{pack: pack}
		size := plainEntrySize
		switch plain[0] {
		case entryData:
		case entryTree:
			location.kind = treeBlob
		case entryCompressedData:
			size = compressedEntrySize
		case entryCompressedTree:
			location.kind, size = treeBlob, compressedEntrySize
		default:
			return nil, fmt.Errorf("the header of pack %s has an entry of unknown type %d: %w", pack, plain[0], ErrDamaged)
		}
		if len(plain) < size {
			return nil, fmt.Errorf("the header of pack %s ends within an entry: %w", pack, ErrDamaged)
		}
		location.length = binary.LittleEndian.Uint32(plain[1:])
		if size == compressedEntrySize {
			location.plain = binary.LittleEndian.Uint32(plain[5:])
			if location.plain == 0 {
				return nil, fmt.Errorf("the header of pack %s has a compressed blob without content: %w", pack, ErrDamaged)
			}
		}
		if offset > maxPackSize {
			return nil, fmt.Errorf("the header of pack %s names more than a pack can hold: %w", pack, ErrDamaged)
		}
		location.offset = uint32(offset)
		offset += uint64(location.length)
		if err := location.validate(); err != nil {
			return nil, fmt.Errorf("the header of pack %s: %w", pack, err)
		}
		entry := packedBlob{location: location}
		copy(entry.id[:], plain[size-len(entry.id):size])
		blobs = append(blobs, entry)
		plain = plain[size:]
	}
	if len(blobs) == 0 {
		return nil, fmt.Errorf("the header of pack %s is empty: %w", pack, ErrDamaged)
	}
	return blobs, nil
}

// sealedHeaderSize reads a pack's last four bytes: the length of its sealed header.
func sealedHeaderSize(pack blobID, packSize int64, trailer []byte) (int64, error) {
	if len(trailer) != packTrailerSize {
		return 0, fmt.Errorf("pack %s has no trailer: %w", pack, ErrDamaged)
	}
	size := int64(binary.LittleEndian.Uint32(trailer))
	switch {
	case size < envelopeOverhead+plainEntrySize:
		return 0, fmt.Errorf("pack %s says that its header has %d bytes: %w", pack, size, ErrDamaged)
	case size > maxHeaderSize:
		return 0, fmt.Errorf("pack %s says that its header has %d bytes: %w", pack, size, ErrLimitExceeded)
	case size+packTrailerSize > packSize:
		return 0, fmt.Errorf("pack %s says that its header has %d bytes, more than the pack: %w", pack, size, ErrDamaged)
	}
	return size, nil
}

// packBuilder collects sealed blobs of one type in memory and hashes them as they come.
type packBuilder struct {
	kind   blobType
	buffer []byte
	hash   hash.Hash
	blobs  []packedBlob
	header int // size of the header's plaintext so far
}

func newPackBuilder(kind blobType, buffer []byte) *packBuilder {
	return &packBuilder{kind: kind, buffer: buffer[:0], hash: sha256.New()}
}

// fits reports whether a blob of this sealed length can be added without breaking a limit of the format.
func (b *packBuilder) fits(length int) bool {
	return b.header+compressedEntrySize+envelopeOverhead <= maxHeaderSize && int64(len(b.buffer)+length) < maxPackSize/2
}

// sizeWith is the size of the pack when a blob is added and nothing more.
func (b *packBuilder) sizeWith(length int, plain uint32) int {
	entry := blobLocation{plain: plain}
	return len(b.buffer) + length + b.header + int(entry.headerSize()) + packFrameSize
}

// reserve makes room for a blob; what does not fit into the first buffer gets one for a full pack, because memory that
// buffers of several sizes leave behind fits nothing else.
func (b *packBuilder) reserve(length, full int) {
	need := len(b.buffer) + length
	if need <= cap(b.buffer) {
		return
	}
	larger := make([]byte, len(b.buffer), max(need, full))
	copy(larger, b.buffer)
	b.buffer = larger
}

// add appends a sealed blob; plain is 0 for one that is not compressed.
func (b *packBuilder) add(id blobID, sealed []byte, plain uint32) {
	location := blobLocation{kind: b.kind, offset: uint32(len(b.buffer)), length: uint32(len(sealed)), plain: plain}
	b.buffer = append(b.buffer, sealed...)
	b.hash.Write(sealed)
	b.blobs = append(b.blobs, packedBlob{id: id, location: location})
	b.header += int(location.headerSize())
}

// finish appends the header and returns the pack's name, bytes and blobs.
func (b *packBuilder) finish(box *envelope) (id blobID, data []byte, blobs []packedBlob) {
	start := len(b.buffer)
	b.buffer = slices.Grow(b.buffer, b.header+packFrameSize)
	b.buffer = box.seal(b.buffer, appendHeader(make([]byte, 0, b.header), b.blobs))
	b.buffer = binary.LittleEndian.AppendUint32(b.buffer, uint32(len(b.buffer)-start))
	b.hash.Write(b.buffer[start:])
	b.hash.Sum(id[:0])
	for i := range b.blobs {
		b.blobs[i].location.pack = id
	}
	return id, b.buffer, b.blobs
}
