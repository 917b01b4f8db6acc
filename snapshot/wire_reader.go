package snapshot

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"math"
	"os"
	"time"
)

// Indexes and trees are JSON that programs write, so that nearly all of them have the same form: the fields in the order
// of restic's structures, no blanks, no escapes. That form is read here, in a tenth of encoding/json's time. Whatever is
// another form, or wrong in any way, is left to encoding/json: what is read here is what that would have read.
// FuzzIndex and FuzzTree compare the two.

// wireReader reads the usual form. After the first thing that is not of it, odd is set and all else is empty.
type wireReader struct {
	rest []byte
	odd  bool
}

func (r *wireReader) give() { r.rest, r.odd = nil, true }

// must reads what has to be there.
func (r *wireReader) must(text string) {
	if !r.has(text) {
		r.give()
	}
}

// has reads what may be there, and reports whether it was.
func (r *wireReader) has(text string) bool {
	if len(r.rest) < len(text) || string(r.rest[:len(text)]) != text {
		return false
	}
	r.rest = r.rest[len(text):]
	return true
}

// ended reports whether everything was read.
func (r *wireReader) ended() bool { return !r.odd && (len(r.rest) == 0 || string(r.rest) == "\n") }

// number reads a whole number up to most.
func (r *wireReader) number(most uint64) uint64 {
	n, i := uint64(0), 0
	for ; i < len(r.rest) && r.rest[i] >= '0' && r.rest[i] <= '9'; i++ {
		digit := uint64(r.rest[i] - '0')
		if n > (most-digit)/10 {
			r.give()
			return 0
		}
		n = 10*n + digit
	}
	if i == 0 || (i > 1 && r.rest[0] == '0') {
		r.give()
		return 0
	}
	r.rest = r.rest[i:]
	return n
}

// text reads the rest of a string whose quote was read: printable ASCII without escapes.
func (r *wireReader) text() []byte {
	end := bytes.IndexByte(r.rest, '"')
	if end < 0 {
		r.give()
		return nil
	}
	text := r.rest[:end]
	if !unescaped(text) {
		r.give()
		return nil
	}
	r.rest = r.rest[end+1:]
	return text
}

// unescaped reports whether neither JSON nor Go's quoting would have written anything else for a text.
func unescaped[T string | []byte](text T) bool {
	for i := range len(text) {
		if c := text[i]; c < ' ' || c > '~' || c == '"' || c == '\\' {
			return false
		}
	}
	return true
}

const idDigits = 2 * len(blobID{})

// id reads the rest of an id whose quote was read.
func (r *wireReader) id() (id blobID) {
	if len(r.rest) <= idDigits || r.rest[idDigits] != '"' {
		r.give()
		return id
	}
	digits := r.rest[:idDigits]
	if _, err := hex.Decode(id[:], digits); err != nil || bytes.ContainsAny(digits, "ABCDEF") {
		r.give()
		return blobID{}
	}
	r.rest = r.rest[idDigits+1:]
	return id
}

// ids reads a list of ids whose bracket was read.
func (r *wireReader) ids() []blobID {
	const each = idDigits + 3 // quotes and a comma
	end := bytes.IndexByte(r.rest, ']')
	if end < 0 || (end > 0 && (end+1)%each != 0) {
		r.give()
		return nil
	}
	ids := make([]blobID, (end+1)/each)
	for i := range ids {
		if i > 0 {
			r.must(`,`)
		}
		r.must(`"`)
		ids[i] = r.id()
	}
	r.must(`]`)
	return ids
}

// leastIndexBlob is the length of the shortest blob in an index: its id, its type, and two numbers of a digit.
const leastIndexBlob = len(`{"id":"","type":"data","offset":0,"length":0},`) + idDigits

// indexOf reads an index of the usual form; false for any other.
func indexOf(plain []byte) (file indexFile, ok bool) {
	r := wireReader{rest: plain}
	var blobs []indexBlob // of all packs
	file.Packs = []indexPack{}
	r.must(`{"packs":[`)
	for !r.odd && !r.has(`]`) {
		if len(file.Packs) > 0 {
			r.must(`,`)
		}
		var pack indexPack
		r.must(`{"id":"`)
		pack.ID = r.id()
		r.must(`,"blobs":[`)
		first := len(blobs)
		for !r.odd && !r.has(`]`) {
			if len(blobs) > first {
				r.must(`,`)
			}
			blob := r.indexBlob()
			if blobs == nil && !r.odd {
				blobs = make([]indexBlob, 0, len(plain)/leastIndexBlob+1)
			}
			blobs = append(blobs, blob)
		}
		if pack.Blobs = blobs[first:len(blobs):len(blobs)]; pack.Blobs == nil {
			pack.Blobs = []indexBlob{}
		}
		if r.has(`,"holdfast_crc32c":`) {
			crc := uint32(r.number(math.MaxUint32))
			pack.CRC32C = &crc
		}
		r.must(`}`)
		file.Packs = append(file.Packs, pack)
	}
	r.must(`}`)
	return file, r.ended()
}

func (r *wireReader) indexBlob() (b indexBlob) {
	r.must(`{"id":"`)
	b.ID = r.id()
	r.must(`,"type":"`)
	if r.has(`tree"`) {
		b.Type = treeBlob
	} else {
		r.must(`data"`)
	}
	r.must(`,"offset":`)
	b.Offset = uint32(r.number(math.MaxUint32))
	r.must(`,"length":`)
	b.Length = uint32(r.number(math.MaxUint32))
	if r.has(`,"uncompressed_length":`) {
		b.Plain = uint32(r.number(math.MaxUint32))
	}
	r.must(`}`)
	return b
}

// usualNode is about the length of a node, and firstNodes how many there is room for at first: content may be long.
const (
	usualNode  = 350
	firstNodes = 1024
)

// treeOf reads the nodes of a tree of the usual form as they are on the wire; false for any other.
func treeOf(plain []byte) (nodes []node, ok bool) {
	r := wireReader{rest: plain}
	nodes = make([]node, 0, min(len(plain)/usualNode+1, firstNodes))
	var last node
	r.must(`{"nodes":[`)
	for !r.odd && !r.has(`]`) {
		if len(nodes) > 0 {
			r.must(`,`)
		}
		last = r.node(&last)
		nodes = append(nodes, last)
	}
	r.must(`}`)
	return nodes, r.ended()
}

// node reads a node. What it shares with the one before it takes from that.
func (r *wireReader) node(before *node) (n node) {
	r.must(`{"name":"`)
	n.Name = string(r.text())
	r.must(`,"type":"`)
	n.Type = same(r.text(), "file", "dir", before.Type)
	if r.has(`,"mode":`) {
		n.Mode = os.FileMode(r.number(math.MaxUint32))
	}
	r.must(`,"mtime":"`)
	modified := r.text()
	n.ModTime = r.time(modified)
	r.must(`,"atime":"`)
	if accessed := r.text(); bytes.Equal(accessed, modified) {
		n.AccessTime = n.ModTime
	} else {
		n.AccessTime = r.time(accessed)
	}
	r.must(`,"ctime":"`)
	n.ChangeTime = r.time(r.text())
	r.must(`,"uid":`)
	n.UID = uint32(r.number(math.MaxUint32))
	r.must(`,"gid":`)
	n.GID = uint32(r.number(math.MaxUint32))
	if r.has(`,"user":"`) {
		n.User = same(r.text(), before.User)
	}
	if r.has(`,"group":"`) {
		n.Group = same(r.text(), before.Group)
	}
	for _, field := range []struct {
		name string
		to   *uint64
	}{{`,"inode":`, &n.Inode}, {`,"device_id":`, &n.DeviceID}, {`,"size":`, &n.Size}, {`,"links":`, &n.Links}} {
		if r.has(field.name) {
			*field.to = r.number(math.MaxUint64)
		}
	}
	if r.has(`,"linktarget":"`) {
		n.LinkTarget = string(r.text())
	}
	if r.has(`,"extended_attributes":[`) {
		n.ExtendedAttributes = r.attributes()
	}
	if r.has(`,"device":`) {
		n.Device = r.number(math.MaxUint64)
	}
	if r.has(`,"content":[`) {
		n.Content = r.ids()
	} else {
		r.must(`,"content":null`)
	}
	if r.has(`,"subtree":"`) {
		id := r.id()
		n.Subtree = &id
	}
	r.must(`}`)
	return n
}

// same is text as a string, one that is there already if it is equal to it.
func same(text []byte, known ...string) string {
	for _, k := range known {
		if string(text) == k {
			return k
		}
	}
	return string(text)
}

func (r *wireReader) time(text []byte) (t time.Time) {
	if r.odd || t.UnmarshalText(text) != nil { // which encoding/json calls too
		r.give()
		return time.Time{}
	}
	return t
}

// attributes reads the extended attributes whose bracket was read.
func (r *wireReader) attributes() []extendedAttribute {
	attributes := []extendedAttribute{}
	for !r.odd && !r.has(`]`) {
		if len(attributes) > 0 {
			r.must(`,`)
		}
		var a extendedAttribute
		r.must(`{"name":"`)
		a.Name = string(r.text())
		r.must(`,"value":"`)
		var err error
		if a.Value, err = base64.StdEncoding.AppendDecode([]byte{}, r.text()); err != nil {
			r.give()
		}
		r.must(`}`)
		attributes = append(attributes, a)
	}
	return attributes
}
