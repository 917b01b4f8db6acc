package snapshot

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"holdfast/storage"
	"holdfast/storage/storagetest"
)

// TestSaverForgetsWhatIsIndexed: what a backup remembers of the blobs that it took does not grow with their number, and each is taken
// once nevertheless.
func TestSaverForgetsWhatIsIndexed(t *testing.T) {
	r := newTestRepository(t, storage.PolicyAll, storagetest.NewMemory())
	p := newPacker(t.Context(), r)
	s := newSaver(r, p, nil)
	content := func(i int) []byte { return fmt.Append(nil, "content ", i) }
	for range 2 {
		for i := range 1000 {
			id, err := s.save(t.Context(), dataBlob, content(i))
			require.NoError(t, err)
			require.True(t, s.has(id, dataBlob))
		}
	}
	require.Len(t, s.seen, 1000, "they are in no index yet")
	require.NoError(t, p.finish(t.Context()))
	require.Empty(t, s.seen)
	for i := range 1000 {
		_, err := s.save(t.Context(), dataBlob, content(i))
		require.NoError(t, err)
	}
	require.Empty(t, s.seen)
	require.EqualValues(t, 1000, s.addedBlobs[dataBlob].Load())
}
