//go:build !libzstd || !cgo

package snapshot

import (
	"fmt"

	"github.com/klauspost/compress/zstd"
)

// compressor makes zstd frames, at restic's default level. It is safe for concurrent use.
type compressor struct{ encoder *zstd.Encoder }

func newCompressor(concurrency int) (*compressor, error) {
	encoder, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedDefault), zstd.WithEncoderConcurrency(concurrency),
		zstd.WithWindowSize(zstdWindow), zstd.WithEncoderCRC(false), zstd.WithLowerEncoderMem(true))
	if err != nil {
		return nil, fmt.Errorf("setting up zstd: %w", err)
	}
	return &compressor{encoder}, nil
}

func (c *compressor) close() { _ = c.encoder.Close() }

// compress appends the compressed form of plain to dst.
func (c *compressor) compress(dst, plain []byte) []byte { return c.encoder.EncodeAll(plain, dst) }
