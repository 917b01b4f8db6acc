package snapshot

import (
	"sync/atomic"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/require"

	"holdfast/storage"
	"holdfast/storage/storagetest"
)

// TestPacksInMemory: while no upload ends, as many packs as may be in memory are filled and no more, whichever of the
// open ones a blob would have gone to; and then everything goes on.
func TestPacksInMemory(t *testing.T) {
	require.LessOrEqual(t, packBuffers*DefaultPackSize, 32<<20, "what docs/performance.md says")
	const (
		packSize = 4 << 20
		perPack  = 3 // blobs of a megabyte and a little
	)
	for name, trees := range map[string]int{"data alone": 0, "with a pack of trees": 1} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				gate := &packGate{Provider: storagetest.NewMemory()}
				gate.close()
				options := testOptions()
				options.PackSize = packSize
				r, err := Create(t.Context(), newTestMirror(t, storage.PolicyAll, gate), testPassword, options)
				require.NoError(t, err)
				defer r.Close()
				p := newPacker(t.Context(), r)
				blob := make([]byte, 1<<20+1000)
				for i := range trees {
					require.NoError(t, p.add(t.Context(), treeBlob, blobID{0xff, byte(i)}, blob, 0))
				}
				const blobs = 100
				var added atomic.Int64
				ended := make(chan error, 1)
				go func() {
					for i := range blobs {
						if err := p.add(t.Context(), dataBlob, blobID{byte(i)}, blob, 0); err != nil {
							ended <- err
							return
						}
						added.Add(1)
					}
					ended <- p.finish(t.Context())
				}()
				synctest.Wait()
				require.Equal(t, int64((packBuffers-trees)*perPack), added.Load())
				gate.open()
				require.NoError(t, <-ended)
				require.Equal(t, blobs+trees, r.index.len())
				require.LessOrEqual(t, len(p.free), packBuffers)
			})
		})
	}
}
