package snapshot

import (
	"encoding/binary"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/stretchr/testify/require"

	"holdfast/storage"
	"holdfast/storage/storagetest"
)

func TestAvailableMemory(t *testing.T) {
	const gib = 1 << 30
	root := t.TempDir()
	proc, cgroups := filepath.Join(root, "proc"), filepath.Join(root, "cgroup")
	write := func(path, content string) {
		require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
		require.NoError(t, os.WriteFile(path, []byte(content), 0o600))
	}
	require.Positive(t, availableMemory(proc, cgroups), "nothing can be read")
	write(proc+"/meminfo", "MemFree:  1 kB\nMemTotal:       8388608 kB\nSwapTotal: 0 kB\n")
	require.EqualValues(t, 8*gib, availableMemory(proc, cgroups))
	write(proc+"/self/cgroup", "0::/system.slice/agent.service\n")
	write(cgroups+"/system.slice/agent.service/memory.max", "max\n")
	require.EqualValues(t, 8*gib, availableMemory(proc, cgroups))
	write(cgroups+"/system.slice/memory.max", "4294967296\n") // of the group above
	require.EqualValues(t, 4*gib, availableMemory(proc, cgroups))
	write(cgroups+"/system.slice/agent.service/memory.max", "2147483648\n")
	require.EqualValues(t, 2*gib, availableMemory(proc, cgroups))
	write(proc+"/self/cgroup", "9:name=systemd:/\n4:memory:/pod\n2:cpu:/small\n0::/\n") // version 1
	write(cgroups+"/memory/pod/memory.limit_in_bytes", "1073741824\n")
	write(cgroups+"/memory/small/memory.limit_in_bytes", "1\n")
	require.EqualValues(t, gib, availableMemory(proc, cgroups))
	write(proc+"/self/cgroup", "nonsense\n::\n")
	require.EqualValues(t, 8*gib, availableMemory(proc, cgroups))
}

// TestIndexTakesWhatItIsGiven: an index as large as its memory allows does not take more, its growing included, and one blob more
// is refused with what helps.
func TestIndexTakesWhatItIsGiven(t *testing.T) {
	const memory = 48 << 20
	x := newMemoryIndex(memory)
	pack := func(n uint64, blobs int) indexPack {
		p := indexPack{ID: blobID{}, Blobs: make([]indexBlob, blobs)}
		binary.BigEndian.PutUint64(p.ID[:], n+1)
		for i := range p.Blobs {
			binary.LittleEndian.PutUint64(p.Blobs[i].ID[:], (n<<20+uint64(i)+1)*0x9e3779b97f4a7c15)
			p.Blobs[i].Type, p.Blobs[i].Length, p.Blobs[i].Offset = dataBlob, 100, uint32(100*i)
		}
		return p
	}
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	held := func() int64 {
		runtime.GC()
		runtime.ReadMemStats(&after)
		return int64(after.HeapAlloc) - int64(before.HeapAlloc)
	}
	n := uint64(0)
	for ; ; n++ {
		if n%8 == 0 && n > 0 { // however full its map is
			require.Less(t, held(), int64(x.len())*indexEntryMemory+1<<20, "with %d blobs", x.len())
		}
		if err := x.add(pack(n, 1000), blobID{1}); err != nil {
			require.ErrorIs(t, err, ErrLittleMemory)
			require.ErrorContains(t, err, "48 MiB")
			require.ErrorContains(t, err, "IndexMemory")
			break
		}
	}
	require.Equal(t, memory/indexEntryMemory/1000*1000, x.len())
	require.Less(t, held(), int64(memory))
	require.Greater(t, held(), int64(memory/2), "the bound is not far off")
	room := 0
	for _, piece := range x.entries.pieces {
		room += cap(piece)
	}
	require.LessOrEqual(t, room, x.len()+2*entryPiece, "nothing is set aside for more, and nothing copied")
	runtime.KeepAlive(x)
}

// A repository with more in its index than there is memory for is refused when it is opened, and is opened where there is more.
func TestIndexMemory(t *testing.T) {
	memory := storagetest.NewMemory()
	r := newTestRepository(t, storage.PolicyAll, memory)
	_, err := r.Backup(t.Context(), smallSource(t), BackupOptions{})
	require.NoError(t, err)
	require.GreaterOrEqual(t, r.options.IndexMemory, int64(leastIndexMemory))
	small := testOptions()
	small.IndexMemory = 2 * indexEntryMemory
	_, err = Open(t.Context(), newTestMirror(t, storage.PolicyAll, memory), testPassword, small)
	require.ErrorIs(t, err, ErrLittleMemory)
	require.ErrorContains(t, err, "use a machine with more memory")
	small.IndexMemory = int64(r.index.len()) * indexEntryMemory
	again, err := Open(t.Context(), newTestMirror(t, storage.PolicyAll, memory), testPassword, small)
	require.NoError(t, err)
	require.NoError(t, again.Close())
}
