package storage

import (
	"context"
	"fmt"
	"hash/crc32"
	"io"
	"strings"
	"unicode/utf8"
)

// MaxKeyLength is the longest key in bytes, prefix included, that GCS and S3 accept.
const MaxKeyLength = 1024

// TempDirectory is the first segment under which the directory provider keeps unfinished writes. No key may start
// with it, on any provider, so that what one provider can hold the others can hold too.
const TempDirectory = ".holdfast-tmp"

// ValidateKey says whether key can be stored on every provider: valid UTF-8 of at most MaxKeyLength bytes, without
// control characters, whose segments between slashes are neither empty nor "." nor "..", and whose first one is not
// TempDirectory. Object stores would take more, but a directory would read "a//b" and "a/../b" as something else.
// The error wraps ErrInvalid.
func ValidateKey(key string) error {
	if key == "" {
		return fmt.Errorf("empty key: %w", ErrInvalid)
	}
	if err := validateText(key); err != nil {
		return err
	}
	for i, segment := range strings.Split(key, "/") {
		switch {
		case segment == "" || segment == "." || segment == "..":
			return fmt.Errorf("key %q has a segment %q: %w", key, segment, ErrInvalid)
		case i == 0 && segment == TempDirectory:
			return fmt.Errorf("key %q is in the directory kept for unfinished writes: %w", key, ErrInvalid)
		}
	}
	return nil
}

// ValidatePrefix says whether prefix can be given to List: empty, or the beginning of a valid key (which may end with
// a slash or in the middle of a segment). The error wraps ErrInvalid.
func ValidatePrefix(prefix string) error {
	if prefix == "" {
		return nil
	}
	if err := validateText(prefix); err != nil {
		return err
	}
	segments := strings.Split(prefix, "/")
	for _, segment := range segments[:len(segments)-1] {
		if segment == "" || segment == "." || segment == ".." {
			return fmt.Errorf("prefix %q has a segment %q: %w", prefix, segment, ErrInvalid)
		}
	}
	return nil
}

func validateText(text string) error {
	if len(text) > MaxKeyLength {
		return fmt.Errorf("key of %d bytes, %d at most: %w", len(text), MaxKeyLength, ErrInvalid)
	}
	if !utf8.ValidString(text) {
		return fmt.Errorf("key %q is not UTF-8: %w", text, ErrInvalid)
	}
	// Control characters cannot be written in the XML of a listing.
	if i := strings.IndexFunc(text, func(r rune) bool { return r < 0x20 || r == 0x7f || r == 0xfffe || r == 0xffff }); i >= 0 {
		return fmt.Errorf("key %q has a control character at byte %d: %w", text, i, ErrInvalid)
	}
	return nil
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Checksum is the CRC32C (Castagnoli) of data, as the object stores compute it.
func Checksum(data []byte) uint32 { return crc32.Checksum(data, castagnoli) }

// compareWhole is the size up to which an object that is already there is compared byte by byte. Above it (packs) the
// provider's size and CRC32C decide: reading 16 MiB back after every lost answer costs more than it proves, since the
// names of packs are their hashes anyway.
const compareWhole = 1 << 20

// SameContent reports whether the object that p has under key is data. A create-only write that finds an object there
// decides with it whether its own answer was lost (invariant 8) or somebody else was first.
func SameContent(ctx context.Context, p Provider, key string, data []byte) (bool, error) {
	object, err := p.Stat(ctx, key)
	if err != nil {
		return false, fmt.Errorf("looking at the object that is there: %w", err)
	}
	if object.Size != int64(len(data)) || (object.HasCRC32C && object.CRC32C != Checksum(data)) {
		return false, nil
	}
	if object.HasCRC32C && len(data) > compareWhole {
		return true, nil
	}
	stored, err := ReadAll(ctx, p, key, 0, -1)
	if err != nil {
		return false, fmt.Errorf("reading the object that is there: %w", err)
	}
	return string(stored) == string(data), nil
}

// ReadAll gets length bytes from offset (a length below 0: to the end). It returns exactly what was asked for or an
// error; a body that ends early is io.ErrUnexpectedEOF. It does not verify the content.
func ReadAll(ctx context.Context, p Provider, key string, offset, length int64) ([]byte, error) {
	body, err := p.Get(ctx, key, offset, length)
	if err != nil {
		return nil, err
	}
	defer func() { _ = body.Close() }() // only read, to the end or not used
	if length < 0 {
		data, err := io.ReadAll(body)
		if err != nil {
			return nil, err
		}
		return data, nil
	}
	data := make([]byte, length)
	if n, err := io.ReadFull(body, data); err != nil {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return nil, fmt.Errorf("reading %s: %d of %d bytes: %w", key, n, length, err)
	}
	// A provider that sends more than it was asked for has not understood the range; nothing it sent can be believed.
	var extra [1]byte
	switch n, err := body.Read(extra[:]); {
	case n > 0:
		return nil, fmt.Errorf("reading %s: more than the %d bytes asked for: %w", key, length, ErrIntegrity)
	case err != nil && err != io.EOF:
		return nil, fmt.Errorf("reading the end of %s: %w", key, err)
	}
	return data, nil
}
