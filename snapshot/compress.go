package snapshot

import (
	"errors"
	"fmt"

	"github.com/klauspost/compress/zstd"
)

// codec compresses and decompresses. It is safe for concurrent use; close releases its goroutines.
type codec struct {
	*compressor
	// exact decompresses into a buffer of known size and never beyond it.
	exact *zstd.Decoder
	// bounded decompresses files whose plain size is not recorded, up to maxUnpackedSize.
	bounded *zstd.Decoder
	// ordinary is bounded up to ordinaryIndex.
	ordinary *zstd.Decoder
}

// zstdWindow is what restic uses too: a larger one gains little on chunks of a megabyte, and costs memory per compressor.
const zstdWindow = 512 << 10

func newCodec(concurrency int) (*codec, error) {
	compressor, err := newCompressor(concurrency)
	if err != nil {
		return nil, err
	}
	exact, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(concurrency), zstd.WithDecoderLowmem(true),
		zstd.WithDecoderMaxMemory(maxTreeSize), zstd.WithDecodeAllCapLimit(true))
	if err != nil {
		return nil, fmt.Errorf("setting up zstd: %w", err)
	}
	bounded, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true),
		zstd.WithDecoderMaxMemory(maxUnpackedSize))
	if err != nil {
		exact.Close()
		return nil, fmt.Errorf("setting up zstd: %w", err)
	}
	ordinary, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true),
		zstd.WithDecoderMaxMemory(uint64(ordinaryIndex.plain)))
	if err != nil {
		exact.Close()
		bounded.Close()
		return nil, fmt.Errorf("setting up zstd: %w", err)
	}
	return &codec{compressor: compressor, exact: exact, bounded: bounded, ordinary: ordinary}, nil
}

func (c *codec) close() {
	c.compressor.close()
	c.exact.Close()
	c.bounded.Close()
	c.ordinary.Close()
}

// decompress appends exactly size bytes to dst, or fails.
func (c *codec) decompress(dst, packed []byte, size int) ([]byte, error) {
	start := len(dst)
	dst = grow(dst, size)
	// The decoder goes up to the capacity that it is given and no further, so it writes where dst has room.
	out, err := c.exact.DecodeAll(packed, dst[:start:start+size])
	if err != nil {
		return nil, fmt.Errorf("decompressing: %w: %w", ErrDamaged, err)
	}
	if len(out)-start != size {
		return nil, fmt.Errorf("decompressing gave %d bytes instead of %d: %w", len(out)-start, size, ErrDamaged)
	}
	if size > 0 && &out[start] != &dst[start] {
		copy(dst[start:], out[start:])
	}
	return dst, nil
}

// The first byte of the plaintext of a file of snapshots/, index/ or locks/ is the version of its framing, or the first
// character of the JSON itself in repositories that were once of version 1.
const compressedFraming = 2

func (c *codec) unpackFile(framed []byte) ([]byte, error) { return unpackFrame(c.bounded, framed) }

func unpackFrame(decoder *zstd.Decoder, framed []byte) ([]byte, error) {
	if len(framed) == 0 {
		return nil, fmt.Errorf("a file is empty: %w", ErrDamaged)
	}
	switch framed[0] {
	case '{', '[':
		return framed, nil
	case compressedFraming:
		plain, err := decoder.DecodeAll(framed[1:], nil)
		if errors.Is(err, zstd.ErrDecoderSizeExceeded) || errors.Is(err, zstd.ErrWindowSizeExceeded) {
			return nil, fmt.Errorf("decompressing a file: %w: %w", ErrLimitExceeded, err)
		}
		if err != nil {
			return nil, fmt.Errorf("decompressing a file: %w: %w", ErrDamaged, err)
		}
		return plain, nil
	default:
		return nil, fmt.Errorf("a file has the unknown framing %d: %w", framed[0], ErrDamaged)
	}
}
