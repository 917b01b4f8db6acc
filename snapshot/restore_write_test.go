package snapshot

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"holdfast/storage"
	"holdfast/storage/storagetest"
)

// A blob that is authentic and not what its id says, which only a defect or somebody with the key can make, is never
// written as if it were.
func TestRestoreRefusesAnotherBlobsContent(t *testing.T) {
	c := newCrafter(t, memoryRepository(t))
	n := c.fileNode("file", "what was backed up")
	other := []byte("what was NOT backed")
	c.packs[dataBlob].add(sha256.Sum256([]byte("something")), c.repository.box.seal(nil, other), 0)
	wrong := node{Name: "wrong", Type: "file", Mode: 0o600, Size: uint64(len(other)), Content: []blobID{sha256.Sum256([]byte("something"))}}
	id := c.snapshot(c.tree(n, wrong))
	target := filepath.Join(t.TempDir(), "target")
	if _, err := c.repository.Restore(t.Context(), id, target, RestoreOptions{}); !errors.Is(err, ErrDamaged) {
		t.Errorf("got %v, want ErrDamaged", err)
	}
	requireNothing(t, target)
}

// A file has its length also when it ends in a hole, begins with one, or is one.
func TestRestoreHolesAtTheEdges(t *testing.T) {
	c := newCrafter(t, memoryRepository(t))
	zeros := make([]byte, 64<<10)
	contents := map[string][]byte{
		"begins": append(bytes.Clone(zeros), 'x'), "ends": append(bytes.Repeat([]byte{'x'}, 4096), zeros...), "is": zeros,
		"ends unaligned": append([]byte("x"), zeros...), "ends in a zero": {'x', 0},
	}
	var nodes []node
	for _, name := range []string{"begins", "ends", "ends in a zero", "ends unaligned", "is"} {
		nodes = append(nodes, c.fileNode(name, string(contents[name])))
	}
	id := c.snapshot(c.tree(nodes...))
	target := filepath.Join(t.TempDir(), "target")
	_, err := c.repository.Restore(t.Context(), id, target, RestoreOptions{})
	must(t, err)
	for name, want := range contents {
		got, err := os.ReadFile(filepath.Join(target, name))
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: %d bytes of %d, or others; %v", name, len(got), len(want), err)
		}
		var stat unix.Stat_t
		must(t, unix.Stat(filepath.Join(target, name), &stat))
		if len(want) > 4096 && stat.Blocks*512 > 8192 {
			t.Errorf("%s: %d bytes allocated: the hole is gone", name, stat.Blocks*512)
		}
	}
}

// Each needed part of a pack is read once, however the files are spread over packs; and when one provider's copy is
// damaged, the other's is read by the part too, not blob by blob.
func TestRestoreReadsEachPartOnce(t *testing.T) {
	providers := []*meteredGets{{Provider: storagetest.NewMemory()}, {Provider: storagetest.NewMemory()}}
	c := newCrafter(t, newTestRepository(t, storage.PolicyAll, providers[0], providers[1]))
	// Six packs at once, in turns, as by many backups: every directory has files in each.
	builders := make([]*packBuilder, 6)
	var dirs []node
	for d := range 20 {
		var files []node
		for f := range 30 {
			c.packs[dataBlob] = builders[f%6]
			files = append(files, c.fileNode(fmt.Sprintf("f%02d", f), fmt.Sprintf("%d %d %s", d, f, randomBytes(int64(100*d+f), 900))))
			builders[f%6] = c.packs[dataBlob]
		}
		dirs = append(dirs, dirNode(fmt.Sprintf("d%02d", d), c.tree(files...)))
	}
	root := c.tree(dirs...)
	stored := int64(0)
	packs := map[string]bool{}
	for _, builder := range builders {
		c.packs[dataBlob] = builder
		packs[packKey(c.endPack(dataBlob))] = true
	}
	id := c.snapshot(root)
	c.repository.eachBlob(func(b packedBlob) bool {
		if b.location.kind == dataBlob {
			stored += int64(b.location.length)
		}
		return true
	})
	calls := func(p *meteredGets) (n int) {
		for key := range packs {
			n += p.reads[key]
		}
		return n
	}
	for _, damaged := range []bool{false, true} {
		for _, p := range providers {
			p.bytes, p.reads = nil, nil
		}
		if damaged {
			for key := range packs {
				providers[0].Provider.(*storagetest.Memory).Corrupt(key, func(data []byte) []byte { return flip(data, 40) })
			}
		}
		target := filepath.Join(t.TempDir(), "target")
		_, err := c.repository.Restore(t.Context(), id, target, RestoreOptions{})
		must(t, err)
		first, second := calls(providers[0]), calls(providers[1])
		// A damaged copy is asked for no more often than a good one.
		if first != 6 || damaged != (second == 6) || !damaged && second != 0 {
			t.Errorf("damaged %v: %d and %d reads of 6 packs", damaged, first, second)
		}
		if got := providers[0].content(c.repository); got != stored {
			t.Errorf("%d bytes were read, %d are stored", got, stored)
		}
	}
}
