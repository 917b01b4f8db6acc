package snapshot

import (
	"bytes"
	"context"
	"errors"
	"io"
	"testing"
	"testing/iotest"

	"github.com/PlakarKorp/go-cdc-chunkers"
	"github.com/stretchr/testify/require"
)

// cutAll are copies of the chunks of content.
func cutAll(t *testing.T, slots *chunkSlots, content io.Reader) [][]byte {
	t.Helper()
	var chunks [][]byte
	require.NoError(t, slots.cut(t.Context(), content, func(chunk []byte, done func()) {
		chunks = append(chunks, bytes.Clone(chunk))
		done()
	}))
	return chunks
}

// TestCutsStay: files are cut where they were always cut, which is where the chunker's package cuts a stream: otherwise what a
// repository has of a large file would be stored again.
func TestCutsStay(t *testing.T) {
	key := randomBytes(9, 32)
	slots, err := newChunkSlots(2, key)
	require.NoError(t, err)
	text := bytes.Join(sourceText(t), nil)
	for _, content := range [][]byte{
		randomBytes(1, 24<<20), bytes.Repeat(text, 2), make([]byte, 2*maxChunkSize), make([]byte, 2*maxChunkSize+1), randomBytes(2, minChunkSize+1),
		{1}, {},
	} {
		chunker, err := chunkers.NewChunker("jc-v1.0.0", bytes.NewReader(content), &chunkers.ChunkerOpts{
			MinSize: minChunkSize, NormalSize: averageChunkSize, MaxSize: maxChunkSize, Key: key,
		})
		require.NoError(t, err)
		var want []int
		for err == nil {
			var chunk []byte
			if chunk, err = chunker.Next(); len(chunk) > 0 {
				want = append(want, len(chunk))
			}
		}
		require.ErrorIs(t, err, io.EOF)
		for _, reader := range []io.Reader{bytes.NewReader(content), iotest.HalfReader(bytes.NewReader(content))} {
			var got []int
			chunks := cutAll(t, slots, reader)
			for _, chunk := range chunks {
				got = append(got, len(chunk))
			}
			require.Equal(t, want, got)
			require.True(t, bytes.Equal(content, bytes.Join(chunks, nil)))
		}
	}
	other, err := newChunkSlots(2, randomBytes(8, 32))
	require.NoError(t, err)
	require.NotEqual(t, len(cutAll(t, slots, bytes.NewReader(randomBytes(1, 4<<20)))[0]), len(cutAll(t, other, bytes.NewReader(randomBytes(1, 4<<20)))[0]),
		"cuts go by the key")
}

// TestChunksAreNotCopied: a chunk lies in the buffer that it was read into; one buffer more than there are chunks on their way is all
// that is ever there, and all are free again whatever happened.
func TestChunksAreNotCopied(t *testing.T) {
	slots, err := newChunkSlots(2, randomBytes(9, 32))
	require.NoError(t, err)
	content := randomBytes(3, 24<<20)
	buffers := map[*byte]struct{}{}
	var pending []func()
	require.NoError(t, slots.cut(t.Context(), bytes.NewReader(content), func(chunk []byte, done func()) {
		buffers[&chunk[0]] = struct{}{}
		if pending = append(pending, done); len(pending) == 2 {
			pending[0]()
			pending = pending[1:]
		}
	}))
	for _, done := range pending {
		done()
	}
	require.Len(t, buffers, 3)
	broken := errors.New("a broken disk")
	require.ErrorIs(t, slots.cut(t.Context(), io.MultiReader(bytes.NewReader(content), iotest.ErrReader(broken)), func(_ []byte, done func()) { done() }), broken)
	require.Len(t, slots.free, 3)
	ended, cancel := context.WithCancelCause(t.Context())
	var waiting []func()
	require.ErrorIs(t, slots.cut(ended, bytes.NewReader(content), func(_ []byte, done func()) {
		waiting = append(waiting, done)
		if len(waiting) == 2 {
			cancel(broken) // nobody gives a buffer back
		}
	}), broken)
	for _, done := range waiting {
		done()
	}
	require.Len(t, slots.free, 3)
	require.Len(t, slots.cutting, 1)
}
