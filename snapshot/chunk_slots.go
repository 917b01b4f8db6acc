package snapshot

import (
	"context"
	"fmt"
	"io"

	chunkers "github.com/PlakarKorp/go-cdc-chunkers"
	_ "github.com/PlakarKorp/go-cdc-chunkers/chunkers/jc" // registers chunkerAlgorithm
)

// chunkSlots bounds how much of large files is in memory at once, in all goroutines together, and recycles the buffers:
// one window that files are cut in, and as many chunks as slots. While one goroutine cuts, all others compress, which
// takes twenty times as long.
type chunkSlots struct {
	slots   chan []byte            // buffers that are free, and nil for those that were not needed yet
	chunker chan *chunkers.Chunker // nil until it is needed
}

// chunkWindow is the size of the window. The chunker looks for a cut in maxChunkSize bytes and moves what it has of them
// to the front when it comes to the end; in a window that is not much larger it does that for almost every chunk.
const chunkWindow = 2 * maxChunkSize

func newChunkSlots(n int) *chunkSlots {
	s := &chunkSlots{
		slots: make(chan []byte, n), chunker: make(chan *chunkers.Chunker, 1),
	}
	for range n {
		s.slots <- nil
	}
	s.chunker <- nil
	return s
}

// take waits for room, and copies a chunk.
func (s *chunkSlots) take(ctx context.Context, chunk []byte) ([]byte, error) {
	select {
	case buffer := <-s.slots:
		if cap(buffer) < len(chunk) {
			buffer = make([]byte, 0, recycledSize(len(chunk)))
		}
		return append(buffer[:0], chunk...), nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// giveBack takes a buffer as take returned it.
func (s *chunkSlots) giveBack(buffer []byte) { s.slots <- buffer }

// takeChunker waits for the chunker, which cuts file from then on until it is returned.
func (s *chunkSlots) takeChunker(ctx context.Context, file io.Reader, key []byte) (*chunkers.Chunker, error) {
	var chunker *chunkers.Chunker
	select {
	case chunker = <-s.chunker:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	if chunker != nil {
		chunker.Reset(file)
		return chunker, nil
	}
	chunker, err := chunkers.NewChunkerBuffer(chunkerAlgorithm, file, &chunkers.ChunkerOpts{
		MinSize: minChunkSize, NormalSize: averageChunkSize, MaxSize: maxChunkSize, Key: key,
	}, make([]byte, chunkWindow))
	if err != nil {
		s.chunker <- nil
		return nil, &storeError{fmt.Errorf("setting up the chunker: %w", err)}
	}
	return chunker, nil
}

func (s *chunkSlots) returnChunker(chunker *chunkers.Chunker) { s.chunker <- chunker }
