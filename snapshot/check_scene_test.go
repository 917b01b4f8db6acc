package snapshot

import (
	"crypto/sha256"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"holdfast/storage"
	"holdfast/storage/storagetest"
)

// damagedScene is a repository with two snapshots that share nothing, each with an index of its own. Of the first, the file
// "a", the directory "dir" and the rest lie in packs of their own.
type damagedScene struct {
	memories []*storagetest.Memory
	first    string            // the snapshot that needs what is damaged
	second   string            // the other one
	keys     map[string]string // of the objects of the first, by what they are
}

// noise is content that does not compress, so that a pack is nearly all blob.
func noise(seed string, size int) string {
	var out []byte
	for sum := sha256.Sum256([]byte(seed)); len(out) < size; sum = sha256.Sum256(sum[:]) {
		out = append(out, sum[:]...)
	}
	return string(out[:size])
}

func newDamagedScene(t *testing.T) *damagedScene {
	t.Helper()
	s := &damagedScene{memories: []*storagetest.Memory{storagetest.NewMemory(), storagetest.NewMemory()}}
	c := newCrafter(t, newTestRepository(t, storage.PolicyAll, s.memories[0], s.memories[1]))
	a := c.fileNode("a", noise("a", 2000))
	dataPack := c.endPack(dataBlob)
	var inner []node // so many that the tree is most of its pack
	for i := range 10 {
		inner = append(inner, c.fileNode(fmt.Sprintf("in %d", i), noise(fmt.Sprint("in", i), 100)))
	}
	dir := c.tree(inner...)
	treePack := c.endPack(treeBlob)
	root := c.tree(a, c.fileNode("b", "content of b"), dirNode("dir", dir))
	s.first = c.snapshot(root)
	s.keys = map[string]string{"config": configKey, "data pack": packKey(dataPack), "tree pack": packKey(treePack), "snapshot": snapshotPrefix + s.first}
	for _, key := range s.memories[0].Keys() {
		if strings.HasPrefix(key, keyPrefix) {
			s.keys["key"] = key
		}
		if strings.HasPrefix(key, indexPrefix) {
			s.keys["index"] = key
		}
	}
	s.second = c.snapshot(c.tree(c.fileNode("other", noise("other", 2000))))
	require.Len(t, s.keys, 6)
	return s
}

func (s *damagedScene) damage(t *testing.T, key string, memory *storagetest.Memory, damage string) {
	t.Helper()
	switch damage {
	case "missing":
		must(t, memory.Delete(t.Context(), key))
	case "truncated":
		memory.Corrupt(key, func(data []byte) []byte { return data[:len(data)/2] })
	case "flipped":
		memory.Corrupt(key, func(data []byte) []byte { return flip(data, len(data)/4) })
	case "empty":
		memory.Corrupt(key, func([]byte) []byte { return nil })
	}
}

func openMirror(t *testing.T, providers ...storage.Provider) (*Repository, error) {
	t.Helper()
	return Open(t.Context(), newTestMirror(t, storage.PolicyAll, providers...), testPassword, testOptions())
}

// needed are the paths that a damage names, by snapshot.
func needed(d Damage) map[string][]string {
	paths := map[string][]string{}
	for _, need := range d.NeededBy {
		for _, path := range need.Paths {
			text := path.Path
			if path.Lost {
				text += " lost"
			}
			paths[need.Snapshot] = append(paths[need.Snapshot], text)
		}
	}
	return paths
}

func verdictOf(t *testing.T, report *CheckReport, snapshot string) Verdict {
	t.Helper()
	at := slices.IndexFunc(report.Verdicts, func(v Verdict) bool { return v.Snapshot == snapshot })
	require.GreaterOrEqual(t, at, 0, "no verdict on %s: %+v", snapshot, report.Verdicts)
	return report.Verdicts[at]
}
