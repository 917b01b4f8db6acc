package snapshot

import (
	"bytes"
	"encoding/binary"

	"golang.org/x/sys/unix"
)

// A record of the state file is what a backup knew of one directory when it left it:
//
//	path, flags
//	[stat record, attributes]      of the directory itself
//	[tree id]
//	number of entries, and for each, in ascending order of names:
//	  name, flags with the kind
//	  [stat record] [attributes] [a link's text | number of blobs, their ids]
//
// Lengths and numbers are unsigned varints. Nothing in it is believed for longer than a look takes: each entry's record is
// compared with what lstat says now, and each blob it names must be in the repository.

const (
	dirKnown    = 1 << 0 // the stat record and attributes of the directory itself
	dirTree     = 1 << 1 // the tree
	dirTooLarge = 1 << 2 // nothing is kept of it: the parent snapshot is asked

	entryKindBits   = 0x0f   // st_mode's kind, shifted
	entryKnown      = 1 << 4 // a stat record, and what a file or link holds
	entryAttributes = 1 << 5 // the extended attributes
)

// storedStatSize is the length of a stat record in a state file.
const storedStatSize = 72

// stored is the stat record in a state file. Devices are numbered anew when a volume is mounted again, so that a device
// counts only where nodes have it, in files with several names; what a directory has for its size and links means nothing.
func (s *statRecord) stored() (out [storedStatSize]byte) {
	le := binary.LittleEndian
	le.PutUint32(out[0:], s.mode)
	le.PutUint32(out[4:], s.uid)
	le.PutUint32(out[8:], s.gid)
	le.PutUint64(out[16:], uint64(s.mtime.Sec))
	le.PutUint32(out[24:], uint32(s.mtime.Nsec))
	le.PutUint64(out[28:], uint64(s.ctime.Sec))
	le.PutUint32(out[36:], uint32(s.ctime.Nsec))
	le.PutUint64(out[40:], s.inode)
	if kind := s.kind(); kind != unix.S_IFDIR {
		le.PutUint32(out[12:], uint32(s.links))
		le.PutUint64(out[48:], uint64(s.size))
		if s.links > 1 {
			le.PutUint64(out[56:], s.device)
		}
		if kind == unix.S_IFBLK || kind == unix.S_IFCHR {
			le.PutUint64(out[64:], s.rdev)
		}
	}
	return out
}

// knownDir is one directory's record. Its parts are slices of the file's bytes.
type knownDir struct {
	index      int    // of the directory in its state file
	length     int    // of the record
	stat       []byte // nil when the directory itself is not known
	attributes []byte
	tree       []byte // nil when there is none
	tooLarge   bool
	entries    recordReader
}

// knownEntry is one entry in a directory's record.
type knownEntry struct {
	raw        []byte // all of it
	name       []byte
	flags      byte
	stat       []byte // nil when nothing is known but that it was there
	attributes []byte
	text       []byte // of a symbolic link
	content    []byte // of a file: the ids of its blobs
}

// kind is that of st_mode.
func (k *knownEntry) kind() uint32 { return uint32(k.flags&entryKindBits) << 12 }

// recordReader reads a record. After the first thing that cannot be, bad is set and all else is empty.
type recordReader struct {
	rest []byte
	bad  bool
}

func (r *recordReader) number() uint64 {
	n, size := binary.Uvarint(r.rest)
	if size <= 0 {
		r.rest, r.bad = nil, true
		return 0
	}
	r.rest = r.rest[size:]
	return n
}

func (r *recordReader) take(n uint64) []byte {
	if n > uint64(len(r.rest)) {
		r.rest, r.bad = nil, true
		return nil
	}
	part := r.rest[:n:n]
	r.rest = r.rest[n:]
	return part
}

func (r *recordReader) text() []byte { return r.take(r.number()) }

func (r *recordReader) byte() byte {
	if b := r.take(1); b != nil {
		return b[0]
	}
	return 0
}

// attributes skips a list of attributes and returns its bytes.
func (r *recordReader) attributes() []byte {
	start := r.rest
	for n := r.number(); n > 0 && !r.bad; n-- {
		r.text()
		r.text()
	}
	return start[:len(start)-len(r.rest)]
}

func (r *recordReader) entry() (k knownEntry) {
	start := r.rest
	k.name, k.flags = r.text(), r.byte()
	if k.flags&entryKnown != 0 {
		k.stat = r.take(storedStatSize)
	}
	if k.flags&entryAttributes != 0 {
		k.attributes = r.attributes()
	}
	if k.flags&entryKnown != 0 {
		switch k.kind() {
		case unix.S_IFLNK:
			k.text = r.text()
		case unix.S_IFREG:
			n := r.number()
			if n > uint64(len(r.rest))/uint64(len(blobID{})) {
				r.rest, r.bad = nil, true
			}
			k.content = r.take(n * uint64(len(blobID{})))
		}
	}
	k.raw = start[:len(start)-len(r.rest)]
	return k
}

// parseRecord reads the record of the directory at path, which begins at the start of data. False when it is another's, or
// none.
func parseRecord(data []byte, path string) (knownDir, bool) {
	r := recordReader{rest: data}
	var d knownDir
	if string(r.text()) != path || r.bad {
		return d, false
	}
	flags := r.byte()
	d.tooLarge = flags&dirTooLarge != 0
	if flags&dirKnown != 0 {
		d.stat, d.attributes = r.take(storedStatSize), r.attributes()
	}
	if flags&dirTree != 0 {
		d.tree = r.take(uint64(len(blobID{})))
	}
	count := r.number()
	d.entries.rest = r.rest
	var previous []byte
	for i := range count {
		entry := r.entry()
		if r.bad || (i > 0 && bytes.Compare(previous, entry.name) >= 0) {
			return knownDir{}, false
		}
		previous = entry.name
	}
	d.entries.rest = d.entries.rest[:len(d.entries.rest)-len(r.rest)]
	d.length = len(data) - len(r.rest)
	return d, !r.bad
}

// recordLength is the length of the record at the start of data; false when there is none.
func recordLength(data []byte) (int, bool) {
	r := recordReader{rest: data}
	d, ok := parseRecord(data, string(r.text()))
	return d.length, ok
}

// next is the next entry of a record that parseRecord has accepted.
func (r *recordReader) next() (knownEntry, bool) {
	if len(r.rest) == 0 {
		return knownEntry{}, false
	}
	return r.entry(), true
}

// decodeAttributes reads what attributes skipped.
func decodeAttributes(encoded []byte) []extendedAttribute {
	r := recordReader{rest: encoded}
	n := r.number()
	if n == 0 {
		return nil
	}
	var attributes []extendedAttribute
	for ; n > 0 && !r.bad; n-- {
		name := string(r.text())
		attributes = append(attributes, extendedAttribute{Name: name, Value: append([]byte{}, r.text()...)})
	}
	return attributes
}

func appendRecordText[T string | []byte](dst []byte, text T) []byte {
	return append(binary.AppendUvarint(dst, uint64(len(text))), text...)
}

func appendRecordAttributes(dst []byte, attributes []extendedAttribute) []byte {
	dst = binary.AppendUvarint(dst, uint64(len(attributes)))
	for _, a := range attributes {
		dst = appendRecordText(appendRecordText(dst, a.Name), a.Value)
	}
	return dst
}

// appendRecordHead begins a record; the number of entries, and the entries, follow. Without self nothing is said of the
// directory itself, and without tree nothing of its tree.
func appendRecordHead(dst []byte, path string, self *statRecord, attributes []extendedAttribute, tree *blobID) []byte {
	dst = appendRecordText(dst, path)
	at := len(dst)
	dst = append(dst, 0)
	if self != nil {
		dst[at] |= dirKnown
		stat := self.stored()
		dst = appendRecordAttributes(append(dst, stat[:]...), attributes)
	}
	if tree != nil {
		dst[at] |= dirTree
		dst = append(dst, tree[:]...)
	}
	return dst
}

// appendTooLarge is the record of a directory of which nothing is kept.
func appendTooLarge(dst []byte, path string) []byte {
	return append(appendRecordText(dst, path), dirTooLarge, 0)
}

// appendEntryName says only that an entry is there, and of which kind.
func appendEntryName(dst []byte, name string, kind uint32) []byte {
	return append(appendRecordText(dst, name), byte(kind>>12))
}

// appendFileContent says what a file holds while its record is stat, and nothing of its attributes.
func appendFileContent(dst []byte, name string, stat *statRecord, content []blobID) []byte {
	dst = append(appendRecordText(dst, name), byte(stat.kind()>>12)|entryKnown)
	stored := stat.stored()
	return appendIDs(append(dst, stored[:]...), content)
}

// appendEntry says everything of an entry that is no directory: n is what a backup has made of it.
func appendEntry(dst []byte, stat *statRecord, n *node) []byte {
	dst = append(appendRecordText(dst, n.Name), byte(stat.kind()>>12)|entryKnown|entryAttributes)
	stored := stat.stored()
	dst = appendRecordAttributes(append(dst, stored[:]...), n.ExtendedAttributes)
	switch stat.kind() {
	case unix.S_IFLNK:
		dst = appendRecordText(dst, n.LinkTarget)
	case unix.S_IFREG:
		dst = appendIDs(dst, n.Content)
	}
	return dst
}

func appendIDs(dst []byte, ids []blobID) []byte {
	dst = binary.AppendUvarint(dst, uint64(len(ids)))
	for i := range ids {
		dst = append(dst, ids[i][:]...)
	}
	return dst
}

// idsOf are the ids that lie one after another in content.
func idsOf(content []byte) []blobID {
	ids := make([]blobID, len(content)/len(blobID{}))
	for i := range ids {
		copy(ids[i][:], content[i*len(blobID{}):])
	}
	return ids
}
