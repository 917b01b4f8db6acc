package snapshot

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/stretchr/testify/require"
)

// sourceText is real text, as blobs of every size that a backup makes of it.
func sourceText(t *testing.T) [][]byte {
	t.Helper()
	files, err := filepath.Glob("*.go")
	require.NoError(t, err)
	require.Greater(t, len(files), 50)
	var blobs [][]byte
	var all []byte
	for _, file := range files {
		text, err := os.ReadFile(file)
		require.NoError(t, err)
		blobs, all = append(blobs, text), append(all, text...)
	}
	for size := 16; size < len(all); size *= 4 {
		blobs = append(blobs, all[:size])
	}
	return append(blobs, all)
}

// TestFrames: whichever encoder made them, frames say how much they hold, which readers set aside, and need no more
// memory than that or 8 MiB, which every decoder gives; and they have no checksum, which the blob's own hash makes useless.
func TestFrames(t *testing.T) {
	c, err := newCodec(2)
	require.NoError(t, err)
	defer c.close()
	blobs := append(sourceText(t), []byte{1}, make([]byte, maxChunkSize), randomBytes(1, maxChunkSize), randomBytes(2, 1000))
	for _, plain := range blobs {
		prefix := []byte("prefix")
		frame := c.compress(bytes.Clone(prefix), plain)
		require.True(t, bytes.HasPrefix(frame, prefix))
		frame = frame[len(prefix):]
		var header zstd.Header
		require.NoError(t, header.Decode(frame))
		if len(plain) >= 256 || header.HasFCS { // the format's shortest size for the field without a single segment
			require.True(t, header.HasFCS)
			require.Equal(t, uint64(len(plain)), header.FrameContentSize)
		}
		require.LessOrEqual(t, header.WindowSize, uint64(8<<20))
		require.False(t, header.HasCheckSum)
		got, err := c.decompress(nil, frame, len(plain))
		require.NoError(t, err)
		require.True(t, bytes.Equal(plain, got))
	}
}

// TestCompression: a repository is no larger than restic's, whose encoder and level these are.
func TestCompression(t *testing.T) {
	c, err := newCodec(1)
	require.NoError(t, err)
	defer c.close()
	restic, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedDefault), zstd.WithEncoderCRC(false), zstd.WithWindowSize(512<<10))
	require.NoError(t, err)
	defer restic.Close()
	var ours, theirs int
	for _, plain := range sourceText(t) {
		ours += len(c.compress(nil, plain))
		theirs += len(restic.EncodeAll(plain, nil))
	}
	require.LessOrEqual(t, ours, theirs)
}
