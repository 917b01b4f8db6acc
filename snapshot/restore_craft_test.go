package snapshot

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"holdfast/storage"
)

// crafter writes repositories by hand, well-formed down to the trees and as hostile as a test wants in them.
type crafter struct {
	t          testing.TB
	repository *Repository
	packs      map[blobType]*packBuilder
	known      map[blobKey]bool
	index      indexFile
	clock      time.Time // of the last snapshot
}

func newCrafter(t testing.TB, r *Repository) *crafter {
	return &crafter{t: t, repository: r, packs: map[blobType]*packBuilder{}, known: map[blobKey]bool{}, clock: time.Now()}
}

// blob adds a blob to the current pack of its type.
func (c *crafter) blob(kind blobType, plain []byte) blobID {
	c.t.Helper()
	id := blobID(sha256.Sum256(plain))
	if c.known[blobKey{id, kind}] {
		return id
	}
	c.known[blobKey{id, kind}] = true
	if c.packs[kind] == nil {
		c.packs[kind] = newPackBuilder(kind, nil)
	}
	packed := c.repository.codec.compress(nil, plain)
	if len(packed) < len(plain) {
		c.packs[kind].add(id, c.repository.box.seal(nil, packed), uint32(len(plain)))
	} else {
		c.packs[kind].add(id, c.repository.box.seal(nil, plain), 0)
	}
	return id
}

// endPack stores the current pack of a type.
func (c *crafter) endPack(kind blobType) blobID {
	c.t.Helper()
	if c.packs[kind] == nil {
		return blobID{}
	}
	id, data, blobs := c.packs[kind].finish(c.repository.box)
	delete(c.packs, kind)
	c.put(packKey(id), data)
	c.index.Packs = append(c.index.Packs, newIndexPack(id, blobs, nil))
	return id
}

func (c *crafter) put(key string, data []byte) {
	c.t.Helper()
	must(c.t, c.repository.store.put(c.t.Context(), key, data, true))
}

// file stores a value as a file of index/ or snapshots/.
func (c *crafter) file(prefix string, value any) blobID {
	c.t.Helper()
	plain, err := json.Marshal(value)
	must(c.t, err)
	data, err := c.repository.newSealer().file(plain)
	must(c.t, err)
	id := blobID(sha256.Sum256(data))
	c.put(prefix+id.String(), data)
	return id
}

// endIndex stores all open packs and the index.
func (c *crafter) endIndex() {
	c.t.Helper()
	c.endPack(dataBlob)
	c.endPack(treeBlob)
	c.file(indexPrefix, c.index)
	c.index = indexFile{}
}

// tree stores nodes in exactly the given order, without any check.
func (c *crafter) tree(nodes ...node) blobID {
	c.t.Helper()
	out := []byte(`{"nodes":[`)
	for i := range nodes {
		if i > 0 {
			out = append(out, ',')
		}
		encoded, err := appendNode(nil, &nodes[i])
		must(c.t, err)
		out = append(out, encoded...)
	}
	return c.blob(treeBlob, append(out, "]}\n"...))
}

// snapshot stores everything and a snapshot of a tree, newer than the last one.
func (c *crafter) snapshot(tree blobID) string {
	c.t.Helper()
	c.endIndex()
	c.clock = c.clock.Add(time.Microsecond)
	id := c.file(snapshotPrefix, snapshotFile{Time: c.clock, Tree: &tree, Paths: []string{"/crafted"}})
	must(c.t, c.repository.refreshIndex(c.t.Context()))
	return id.String()
}

func (c *crafter) fileNode(name, content string) node {
	n := node{Name: name, Type: "file", Mode: 0o644, Size: uint64(len(content)), Content: []blobID{}, ModTime: time.Unix(1e9, 5)}
	if content != "" {
		n.Content = append(n.Content, c.blob(dataBlob, []byte(content)))
	}
	return n
}

func dirNode(name string, tree blobID) node {
	return node{Name: name, Type: "dir", Mode: 0o755, Subtree: &tree, ModTime: time.Unix(1e9, 6)}
}

func linkNode(name, text string) node {
	return node{Name: name, Type: "symlink", Mode: 0o777, LinkTarget: text, ModTime: time.Unix(1e9, 7)}
}

// someTree is a little of everything: two directories, files in one and in several blobs and packs.
func (c *crafter) someTree() blobID {
	big := node{Name: "big", Type: "file", Mode: 0o600, ModTime: time.Unix(1e9, 0)}
	for i := range 20 {
		part := fmt.Appendf(nil, "part %d ", i)
		for len(part) < 50_000 {
			sum := sha256.Sum256(part[max(0, len(part)-32):])
			part = append(part, sum[:]...)
		}
		big.Content = append(big.Content, c.blob(dataBlob, part))
		big.Size += uint64(len(part))
		if i%5 == 4 {
			c.endPack(dataBlob)
		}
	}
	inner := c.tree(c.fileNode("inner", "the inner file"), linkNode("link", "inner"))
	c.endPack(treeBlob)
	return c.tree(big, dirNode("dir", inner), c.fileNode("empty", ""), c.fileNode("small", "a small file"))
}

// resticRepository makes a snapshot of source with stock restic and opens the repository.
func resticRepository(t *testing.T, restic, repository, source string) *Repository {
	t.Helper()
	for _, arguments := range [][]string{{"init", "--repository-version", "2"}, {"backup", "--quiet", source}} {
		command := exec.Command(restic, append([]string{"-r", repository, "--no-cache"}, arguments...)...)
		command.Env = []string{"RESTIC_PASSWORD=" + string(testPassword), "PATH=/usr/bin:/bin", "HOME=" + filepath.Dir(repository)}
		if out, err := command.CombinedOutput(); err != nil {
			t.Fatalf("restic %v: %v\n%s", arguments, err, out)
		}
	}
	r, err := Open(t.Context(), newTestMirror(t, storage.PolicyAll, openDirectory(t, repository)), testPassword, testOptions())
	must(t, err)
	t.Cleanup(func() { must(t, r.Close()) })
	return r
}
