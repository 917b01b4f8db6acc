package snapshot

import (
	"encoding/binary"
	"fmt"
	"math"
	"slices"
	"strconv"
)

// indexFile is the JSON of a file of index/. A pack is listed completely or not at all.
type indexFile struct {
	Packs []indexPack `json:"packs"`
}

type indexPack struct {
	ID    blobID      `json:"id"`
	Blobs []indexBlob `json:"blobs"`
	// CRC32C is the Castagnoli checksum of the whole pack, so that a listing of a provider that reports one proves more
	// than sizes. restic ignores the field, and drops it when it rewrites the index.
	CRC32C *uint32 `json:"holdfast_crc32c,omitempty"`
}

type indexBlob struct {
	ID     blobID   `json:"id"`
	Type   blobType `json:"type"`
	Offset uint32   `json:"offset"`
	Length uint32   `json:"length"`
	Plain  uint32   `json:"uncompressed_length,omitempty"`
}

func (b indexBlob) location(pack blobID) blobLocation {
	return blobLocation{pack: pack, kind: b.Type, offset: b.Offset, length: b.Length, plain: b.Plain}
}

// decodeIndex reads and checks an index file's JSON.
func decodeIndex(plain []byte) (indexFile, error) { return decodeIndexWithin(indexCost(), plain) }

func decodeIndexWithin(cost jsonCost, plain []byte) (indexFile, error) {
	if err := cost.check(plain); err != nil {
		return indexFile{}, err
	}
	file, ok := indexOf(plain)
	if !ok {
		file = indexFile{}
		if err := decodeJSON(plain, cost, &file); err != nil {
			return file, err
		}
	}
	for _, pack := range file.Packs {
		for _, blob := range pack.Blobs {
			if err := blob.location(pack.ID).validate(); err != nil {
				return file, fmt.Errorf("an index, at blob %s of pack %s: %w", blob.ID.short(), pack.ID, err)
			}
		}
	}
	return file, nil
}

// appendJSON appends what encoding/json would, without what that keeps in memory meanwhile: an index file has up to ten
// megabytes.
func (f indexFile) appendJSON(out []byte) []byte {
	size := 32
	for _, pack := range f.Packs {
		size += 160 + 170*len(pack.Blobs)
	}
	out = slices.Grow(out, size)
	out = append(out, `{"packs":[`...)
	for i, pack := range f.Packs {
		if i > 0 {
			out = append(out, ',')
		}
		out = append(out, `{"id":`...)
		out = appendID(out, pack.ID)
		out = append(out, `,"blobs":[`...)
		for j, blob := range pack.Blobs {
			if j > 0 {
				out = append(out, ',')
			}
			out = append(out, `{"id":`...)
			out = appendID(out, blob.ID)
			out = append(out, `,"type":`...)
			out = appendString(out, blob.Type.String())
			out = append(out, `,"offset":`...)
			out = strconv.AppendUint(out, uint64(blob.Offset), 10)
			out = append(out, `,"length":`...)
			out = strconv.AppendUint(out, uint64(blob.Length), 10)
			out = append(appendCount(out, `,"uncompressed_length":`, uint64(blob.Plain)), '}')
		}
		out = append(out, ']')
		if pack.CRC32C != nil {
			out = append(out, `,"holdfast_crc32c":`...)
			out = strconv.AppendUint(out, uint64(*pack.CRC32C), 10)
		}
		out = append(out, '}')
	}
	return append(out, "]}"...)
}

func newIndexPack(id blobID, blobs []packedBlob, crc *uint32) indexPack {
	pack := indexPack{ID: id, Blobs: make([]indexBlob, len(blobs)), CRC32C: crc}
	for i, b := range blobs {
		l := b.location
		pack.Blobs[i] = indexBlob{ID: b.id, Type: l.kind, Offset: l.offset, Length: l.length, Plain: l.plain}
	}
	return pack
}

// packInfo is what the index knows of one pack.
type packInfo struct {
	id   blobID
	size int64 // of the whole file, computed from the blobs
	// crc is the checksum of the whole file, when known.
	crc    uint32
	hasCRC bool
	blobs  int
	// files are the index files in the store that name it. Packs without any are of this process: their index file is
	// still to come, or the backup failed before.
	files []blobID
}

func (p *packInfo) indexed() bool { return len(p.files) > 0 }

// memoryIndex is where every blob is, in about 75 bytes per blob. It is not safe for concurrent changes.
type memoryIndex struct {
	packs   []packInfo
	byPack  map[blobID]uint32
	entries indexEntries
	// first finds the newest entry whose id begins with these 8 bytes; entry.next chains the others. The map hashes
	// its keys with a random seed, so that chosen ids cannot make it slow.
	first map[uint64]uint32
	// memory is what it may take, in bytes.
	memory int64
}

// indexEntryMemory is what a blob takes at most in a memoryIndex: its entry, and its part of a map that has just grown.
const indexEntryMemory = 112

// indexEntry is one blob in one pack. noEntry ends a chain.
type indexEntry struct {
	id     blobID
	pack   uint32
	offset uint32
	length uint32
	plain  uint32
	next   uint32
	kind   blobType
}

const noEntry = math.MaxUint32

// indexEntries is a list of entries in pieces, so that a longer one is not copied, and in memory twice, when it grows.
type indexEntries struct {
	pieces [][]indexEntry // all full but the last
}

// entryPiece is how many entries a piece has: 229 kB.
const entryPiece = 4096

func (l *indexEntries) len() int {
	last := len(l.pieces) - 1
	if last < 0 {
		return 0
	}
	return last*entryPiece + len(l.pieces[last])
}

func (l *indexEntries) at(i int) *indexEntry { return &l.pieces[i/entryPiece][i%entryPiece] }

func (l *indexEntries) append(e indexEntry) {
	last := len(l.pieces) - 1
	if last < 0 || len(l.pieces[last]) == entryPiece {
		l.pieces = append(l.pieces, nil)
		last++
	}
	if last == 0 { // a small repository's index is small
		l.pieces[0] = append(l.pieces[0], e)
		return
	}
	if l.pieces[last] == nil {
		l.pieces[last] = make([]indexEntry, 0, entryPiece)
	}
	l.pieces[last] = append(l.pieces[last], e)
}

func newMemoryIndex(memory int64) *memoryIndex {
	return &memoryIndex{byPack: map[blobID]uint32{}, first: map[uint64]uint32{}, memory: memory}
}

func (x *memoryIndex) len() int { return x.entries.len() }

// add takes in one pack of an index file. A pack that is known already gains only blobs that it lacked: stock restic
// may have written the same pack to two indexes. file is the index file in the store that names it, or zero.
func (x *memoryIndex) add(pack indexPack, file blobID) error {
	switch blobs := x.entries.len() + len(pack.Blobs); {
	case blobs > maxIndexEntries:
		return fmt.Errorf("the index has more than %d blobs: %w", maxIndexEntries, ErrLimitExceeded)
	case int64(blobs) > x.memory/indexEntryMemory:
		return fmt.Errorf("the index has more than %d blobs, and would take more than the %d MiB that it may have here "+
			"(Options.IndexMemory, by default a quarter of this machine's memory): use a machine with more memory, or forget and prune snapshots on one: %w",
			x.memory/indexEntryMemory, x.memory>>20, ErrLittleMemory)
	}
	number, known := x.byPack[pack.ID]
	if !known {
		number = uint32(len(x.packs))
		x.packs = append(x.packs, packInfo{id: pack.ID, size: packFrameSize})
		x.byPack[pack.ID] = number
	}
	info := &x.packs[number]
	info.name(file)
	if pack.CRC32C != nil {
		info.crc, info.hasCRC = *pack.CRC32C, true
	}
	for _, blob := range pack.Blobs {
		location := blob.location(pack.ID)
		if known && x.holds(number, blob.ID, location) {
			continue
		}
		prefix := binary.LittleEndian.Uint64(blob.ID[:8])
		next, ok := x.first[prefix]
		if !ok {
			next = noEntry
		}
		x.first[prefix] = uint32(x.entries.len())
		x.entries.append(indexEntry{
			id: blob.ID, pack: number, kind: blob.Type, offset: blob.Offset, length: blob.Length, plain: blob.Plain, next: next,
		})
		info.size += int64(location.length) + location.headerSize()
		info.blobs++
	}
	return nil
}

// name notes an index file that names the pack.
func (p *packInfo) name(file blobID) {
	if !file.isZero() && !slices.Contains(p.files, file) {
		p.files = append(p.files, file)
	}
}

func (x *memoryIndex) holds(pack uint32, id blobID, at blobLocation) bool {
	for e := range x.chain(blobKey{id, at.kind}) {
		if e.pack == pack && e.offset == at.offset {
			return true
		}
	}
	return false
}

// chain yields the entries of one blob, newest first.
func (x *memoryIndex) chain(key blobKey) func(func(*indexEntry) bool) {
	return func(yield func(*indexEntry) bool) {
		at, ok := x.first[binary.LittleEndian.Uint64(key.id[:8])]
		if !ok {
			return
		}
		for at != noEntry {
			e := x.entries.at(int(at))
			if e.id == key.id && e.kind == key.kind && !yield(e) {
				return
			}
			at = e.next
		}
	}
}

func (x *memoryIndex) location(e *indexEntry) blobLocation {
	return blobLocation{pack: x.packs[e.pack].id, kind: e.kind, offset: e.offset, length: e.length, plain: e.plain}
}

// locations are all places of a blob; none when it is unknown.
func (x *memoryIndex) locations(key blobKey) []blobLocation {
	var found []blobLocation
	for e := range x.chain(key) {
		found = append(found, x.location(e))
	}
	return found
}

// each calls visit for every blob in every pack until it returns false.
func (x *memoryIndex) each(visit func(packedBlob) bool) {
	for i := range x.entries.len() {
		e := x.entries.at(i)
		if !visit(packedBlob{id: e.id, location: x.location(e)}) {
			return
		}
	}
}

// pack describes one pack.
func (x *memoryIndex) pack(id blobID) (packInfo, bool) {
	number, ok := x.byPack[id]
	if !ok {
		return packInfo{}, false
	}
	return x.packs[number], true
}
