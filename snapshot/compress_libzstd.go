//go:build libzstd && cgo

package snapshot

import (
	"slices"

	"github.com/DataDog/zstd"
)

// compressor makes zstd frames with the reference implementation. It is safe for concurrent use.
type compressor struct {
	free chan zstd.Ctx // contexts that nobody uses at the moment; nil for those that were not needed yet
}

func newCompressor(concurrency int) (*compressor, error) {
	c := &compressor{free: make(chan zstd.Ctx, concurrency)}
	for range concurrency {
		c.free <- nil
	}
	return c, nil
}

// close does nothing: a context is freed when it is collected.
func (c *compressor) close() {}

// compress appends the compressed form of plain to dst.
func (c *compressor) compress(dst, plain []byte) []byte {
	context := <-c.free
	if context == nil {
		context = zstd.NewCtx()
	}
	defer func() { c.free <- context }()
	dst = slices.Grow(dst, zstd.CompressBound(len(plain)))
	packed, err := context.CompressLevel(dst[len(dst):cap(dst)], plain, levelFor(len(plain)))
	if err != nil {
		// It has room for the worst case, so that this is memory that could not be had; Go ends a program for that too.
		panic("compressing: " + err.Error())
	}
	return dst[:len(dst)+len(packed)]
}

// levelFor is the fastest level at which the reference implementation makes content of this size as small as restic's
// default does (which is another implementation, whose levels have the same numbers and other results).
func levelFor(size int) int {
	if size <= 4<<10 {
		return 2
	}
	return 3
}
