package snapshot

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
)

// blobID names content: the SHA-256 of a blob's plaintext, or of a file's stored bytes.
type blobID [sha256.Size]byte

func (id blobID) String() string { return hex.EncodeToString(id[:]) }

// short is what messages for people show.
func (id blobID) short() string { return hex.EncodeToString(id[:4]) }

func (id blobID) isZero() bool { return id == blobID{} }

// compare orders ids by their bytes.
func (id blobID) compare(other blobID) int { return bytes.Compare(id[:], other[:]) }

// MarshalText writes 64 lower-case hexadecimal digits.
func (id blobID) MarshalText() ([]byte, error) {
	return hex.AppendEncode(make([]byte, 0, 2*len(id)), id[:]), nil
}

// UnmarshalText reads exactly 64 hexadecimal digits.
func (id *blobID) UnmarshalText(text []byte) error {
	parsed, err := parseID(string(text))
	if err != nil {
		return err
	}
	*id = parsed
	return nil
}

// parseID reads 64 hexadecimal digits in lower case, as file names have them.
func parseID(text string) (blobID, error) {
	var id blobID
	if len(text) != hex.EncodedLen(len(id)) {
		return blobID{}, fmt.Errorf("an id has %d digits instead of 64: %w", len(text), ErrDamaged)
	}
	for _, c := range []byte(text) {
		if (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return blobID{}, fmt.Errorf("an id has a character that is no lower-case hexadecimal digit: %w", ErrDamaged)
		}
	}
	if _, err := hex.Decode(id[:], []byte(text)); err != nil {
		return blobID{}, fmt.Errorf("decoding an id: %w: %w", ErrDamaged, err)
	}
	return id, nil
}

// blobType says what a blob holds.
type blobType uint8

const (
	dataBlob blobType = iota
	treeBlob
)

func (t blobType) String() string {
	if t == treeBlob {
		return "tree"
	}
	return "data"
}

// MarshalText writes "data" or "tree".
func (t blobType) MarshalText() ([]byte, error) { return []byte(t.String()), nil }

// UnmarshalText reads "data" or "tree".
func (t *blobType) UnmarshalText(text []byte) error {
	switch string(text) {
	case "data":
		*t = dataBlob
	case "tree":
		*t = treeBlob
	default:
		return fmt.Errorf("blob type %q: %w", text, ErrDamaged)
	}
	return nil
}

// sizeLimit is the most plaintext that a blob of this type may have.
func (t blobType) sizeLimit() int64 {
	if t == treeBlob {
		return maxTreeSize
	}
	return maxBlobSize
}

// blobKey names one blob: the same bytes may exist both as data and as a tree.
type blobKey struct {
	id   blobID
	kind blobType
}

// blobLocation is where a blob is stored: length bytes at offset of a pack, as an envelope.
type blobLocation struct {
	pack   blobID
	kind   blobType
	offset uint32
	length uint32
	// plain is the size of the plaintext of a compressed blob; 0 for one that is not compressed.
	plain uint32
}

// plainSize is the number of bytes that the blob has when it is opened.
func (l blobLocation) plainSize() int64 {
	if l.plain != 0 {
		return int64(l.plain)
	}
	return int64(l.length) - envelopeOverhead
}

// headerSize is what the blob adds to its pack's header.
func (l blobLocation) headerSize() int64 {
	if l.plain != 0 {
		return compressedEntrySize
	}
	return plainEntrySize
}

// validate checks sizes that were read from a header or an index.
func (l blobLocation) validate() error {
	switch {
	case l.length < envelopeOverhead:
		return fmt.Errorf("a blob of %d bytes is shorter than its frame: %w", l.length, ErrDamaged)
	case int64(l.offset)+int64(l.length) > maxPackSize:
		return fmt.Errorf("a blob ends beyond the largest possible pack: %w", ErrDamaged)
	case l.plainSize() > l.kind.sizeLimit():
		return fmt.Errorf("a %s blob has %d bytes, more than %d: %w", l.kind, l.plainSize(), l.kind.sizeLimit(), ErrLimitExceeded)
	case int64(l.length) > l.kind.sizeLimit()+maxKeyFileSize:
		return fmt.Errorf("a %s blob has %d stored bytes: %w", l.kind, l.length, ErrLimitExceeded)
	}
	return nil
}
