package snapshot

import (
	"context"
	"fmt"
	"io"

	"github.com/PlakarKorp/go-cdc-chunkers"
	"github.com/PlakarKorp/go-cdc-chunkers/chunkers/jc"
)

// chunkSlots bounds how much of large files is in memory at once, in all goroutines together, and recycles the buffers: one that
// is read into and cut, and as many as there are goroutines to store chunks. A chunk stays in the buffer that it was read into
// until it is stored. While one goroutine cuts, all others compress, which takes twenty times as long.
type chunkSlots struct {
	free    chan []byte   // buffers that are free, and nil for those that were not needed yet
	cutting chan *cutting // one: who has it cuts
}

// cutting finds where chunks end.
type cutting struct {
	options *chunkers.ChunkerOpts
	cuts    *jc.JC
}

// newChunkSlots is for chunks of which storing of them are stored at once.
func newChunkSlots(storing int, key []byte) (*chunkSlots, error) {
	// What the package calls "jc-v1.0.0" must find its cuts again after an insertion, and use its key. "jc-v1.1.0" does not find
	// them at these sizes: its masks are made for chunks of 8 KiB, so that it cuts almost at fixed distances, and 5 KB inserted
	// into 128 MB cost 31 to 47 MB of new chunks (measured; this one: 2 to 3 MB). "ultracdc" ignores its key.
	c := &cutting{cuts: &jc.JC{}, options: &chunkers.ChunkerOpts{
		MinSize: minChunkSize, NormalSize: averageChunkSize, MaxSize: maxChunkSize, Key: key,
	}}
	if err := c.cuts.Validate(c.options); err != nil {
		return nil, fmt.Errorf("setting up the chunker: %w", err)
	}
	if err := c.cuts.Setup(c.options); err != nil {
		return nil, fmt.Errorf("setting up the chunker: %w", err)
	}
	s := &chunkSlots{free: make(chan []byte, storing+1), cutting: make(chan *cutting, 1)}
	for range storing + 1 {
		s.free <- nil
	}
	s.cutting <- c
	return s, nil
}

// take waits for a buffer of maxChunkSize.
func (s *chunkSlots) take(ctx context.Context) ([]byte, error) {
	select {
	case buffer := <-s.free:
		if buffer == nil {
			buffer = make([]byte, maxChunkSize)
		}
		return buffer, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// giveBack takes a buffer as take returned it.
func (s *chunkSlots) giveBack(buffer []byte) { s.free <- buffer }

// cut reads content to its end and calls chunk with each piece of it, in order. Whoever gets a chunk calls done when it is not needed any
// more, from any goroutine; chunk may not wait for another chunk to be done.
func (s *chunkSlots) cut(ctx context.Context, content io.Reader, chunk func(chunk []byte, done func())) error {
	var c *cutting
	select {
	case c = <-s.cutting:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	defer func() { s.cutting <- c }()
	buffer, err := s.take(ctx)
	if err != nil {
		return err
	}
	for have, ended := 0, false; ; {
		if !ended {
			n, err := io.ReadFull(content, buffer[have:])
			have += n
			if ended = err == io.EOF || err == io.ErrUnexpectedEOF; err != nil && !ended {
				s.giveBack(buffer)
				return err
			}
		}
		if have == 0 {
			s.giveBack(buffer)
			return nil
		}
		end := c.cuts.Algorithm(c.options, buffer[:have], have)
		// What is behind the chunk begins the next one.
		var next []byte
		if end < have || !ended {
			if next, err = s.take(ctx); err != nil {
				s.giveBack(buffer)
				return err
			}
			copy(next, buffer[end:have])
		}
		filled := buffer
		chunk(filled[:end], func() { s.giveBack(filled) })
		if next == nil {
			return nil
		}
		buffer, have = next, have-end
	}
}
