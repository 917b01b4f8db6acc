package snapshot

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"strings"
	"testing"

	"holdfast/storage"
	"holdfast/storage/faulty"
	"holdfast/storage/storagetest"
)

// craftedKinds are the objects of one crafted repository by what they are.
func craftedKinds(t *testing.T, c *crafter, memory *storagetest.Memory) map[string]string {
	t.Helper()
	kinds := map[string]string{"config": configKey}
	for _, key := range memory.Keys() {
		for name, prefix := range map[string]string{"key": keyPrefix, "index": indexPrefix, "snapshot": snapshotPrefix} {
			if strings.HasPrefix(key, prefix) {
				kinds[name] = key
			}
		}
	}
	c.repository.eachBlob(func(b packedBlob) bool {
		kinds[b.location.kind.String()+" pack"] = packKey(b.location.pack)
		return true
	})
	if len(kinds) != 6 {
		t.Fatalf("kinds: %v", kinds)
	}
	return kinds
}

var damages = map[string]func(data []byte) []byte{
	"missing":     nil,
	"empty":       func([]byte) []byte { return nil },
	"truncated":   func(data []byte) []byte { return data[:len(data)-1] },
	"half":        func(data []byte) []byte { return data[:len(data)/2] },
	"longer":      func(data []byte) []byte { return append(bytes.Clone(data), 0) },
	"first byte":  func(data []byte) []byte { return flip(data, 0) },
	"middle byte": func(data []byte) []byte { return flip(data, len(data)/2) },
	"last byte":   func(data []byte) []byte { return flip(data, len(data)-1) },
	"zeros":       func(data []byte) []byte { return make([]byte, len(data)) },
}

func flip(data []byte, at int) []byte {
	data = bytes.Clone(data)
	data[at] ^= 0x40
	return data
}

// Every object damaged in every way, on one of two providers and on both: the check names it. A check of a repository
// that was opened before, and of one opened after the damage.
func TestCheckNamesEveryDamage(t *testing.T) {
	crafted := storagetest.NewMemory()
	c := newCrafter(t, newTestRepository(t, storage.PolicyAll, crafted))
	c.snapshot(c.someTree())
	kinds := craftedKinds(t, c, crafted)
	for _, kind := range []string{"config", "key", "index", "snapshot", "tree pack", "data pack"} {
		for damage, change := range damages {
			for _, both := range []bool{false, true} {
				name := kind + " " + damage
				if both {
					name += " on both"
				}
				t.Run(name, func(t *testing.T) {
					memories := []*storagetest.Memory{storagetest.NewMemory(), storagetest.NewMemory()}
					for _, memory := range memories {
						copyTo(t, memory, crafted)
					}
					before := newTestRepository(t, storage.PolicyAll, memories[0], memories[1])
					requireClean(t, before)
					key := kinds[kind]
					for i, memory := range memories {
						if i == 0 && !both {
							continue
						}
						if change == nil {
							must(t, memory.Delete(t.Context(), key))
						} else {
							memory.Corrupt(key, change)
						}
					}
					if kind == "snapshot" && change == nil && both {
						return // nothing knows of a snapshot that is nowhere
					}
					want := strings.TrimPrefix(key[strings.LastIndexByte(key, '/')+1:], "keys/")
					if kind == "index" && change == nil && both {
						want = "no index names" // what it named, nobody knows any more
					}
					requireError(t, before, want, !both, memories[1].URL())
					opened, err := Open(t.Context(), newTestMirror(t, storage.PolicyAll, memories[0], memories[1]), testPassword, testOptions())
					if err != nil {
						if !both || (kind != "config" && kind != "key") {
							t.Errorf("opening: %v", err)
						}
						return
					}
					defer opened.Close()
					requireError(t, opened, want, !both, memories[1].URL())
				})
			}
		}
	}
}

func requireClean(t *testing.T, r *Repository) {
	t.Helper()
	report, err := r.Check(t.Context(), CheckOptions{ReadData: true})
	must(t, err)
	if len(report.Errors)+len(report.Hints) > 0 || report.Bytes == 0 || report.Snapshots != 1 {
		t.Fatalf("an undamaged repository: %+v", report)
	}
}

// requireError wants an error that names the object, and the provider when only that one is damaged.
func requireError(t *testing.T, r *Repository, want string, named bool, provider string) {
	t.Helper()
	report, err := r.Check(t.Context(), CheckOptions{ReadData: true})
	must(t, err)
	found := slices.ContainsFunc(report.Errors, func(line string) bool {
		return strings.Contains(line, want) && (!named || strings.Contains(line, provider))
	})
	if !found {
		t.Errorf("no error names %s: %+v", want, report)
	}
}

// Damage that no hash of a file shows: what was written wrong in the first place.
func TestCheckNamesWhatWasWrittenWrong(t *testing.T) {
	for name, craft := range map[string]func(c *crafter) (tree blobID, want string){
		"a blob that no index names": func(c *crafter) (blobID, string) {
			n := c.fileNode("file", "x")
			n.Content[0][5] ^= 1
			return c.tree(n), n.Content[0].String()
		},
		"a tree that no index names": func(c *crafter) (blobID, string) {
			missing := blobID{9, 9}
			return c.tree(dirNode("dir", missing)), missing.String()
		},
		"a blob of another hash": func(c *crafter) (blobID, string) {
			n := c.fileNode("file", "x")
			pack := c.packs[dataBlob]
			pack.blobs[0].id[3] ^= 1
			n.Content[0] = pack.blobs[0].id
			return c.tree(n), pack.blobs[0].id.String()
		},
		"a blob that cannot be decompressed": func(c *crafter) (blobID, string) {
			n := c.fileNode("file", strings.Repeat("x", 10_000))
			c.packs[dataBlob].blobs[0].location.plain--
			return c.tree(n), n.Content[0].String()
		},
		"an index that differs from the pack's header": func(c *crafter) (blobID, string) {
			n := c.fileNode("file", "x")
			pack := c.endPack(dataBlob)
			c.index.Packs[0].Blobs[0].Plain = 1
			return c.tree(n), pack.String()
		},
		"an index with a gap": func(c *crafter) (blobID, string) {
			n := c.fileNode("file", "x")
			pack := c.endPack(dataBlob)
			c.index.Packs[0].Blobs[0].Offset = 7
			return c.tree(n), pack.String()
		},
		"an index of a pack that is not there": func(c *crafter) (blobID, string) {
			pack := indexPack{ID: blobID{7, 7}, Blobs: []indexBlob{{ID: blobID{8, 8}, Type: dataBlob, Length: 100}}}
			c.index.Packs = append(c.index.Packs, pack)
			return c.tree(), pack.ID.String()
		},
		"an unsafe name":      func(c *crafter) (blobID, string) { id := c.tree(linkNode("..", "x")); return id, id.String() },
		"a tree that is none": func(c *crafter) (blobID, string) { id := c.blob(treeBlob, []byte("{}")); return id, id.String() },
		"a deep tree": func(c *crafter) (blobID, string) {
			id := c.tree()
			for range maxDepth + 2 {
				id = c.tree(dirNode("d", id))
			}
			return id, "nested deeper"
		},
	} {
		t.Run(name, func(t *testing.T) {
			memory := storagetest.NewMemory()
			c := newCrafter(t, newTestRepository(t, storage.PolicyAll, memory))
			tree, want := craft(c)
			c.snapshot(tree)
			requireError(t, c.repository, want, false, "")
		})
	}
}

func TestCheckHints(t *testing.T) {
	memory := storagetest.NewMemory()
	c := newCrafter(t, newTestRepository(t, storage.PolicyAll, memory))
	c.snapshot(c.someTree())
	c.blob(dataBlob, []byte("left by an interrupted backup"))
	orphan := c.endPack(dataBlob)
	c.put("data/README", []byte("by a person"))
	report, err := c.repository.Check(t.Context(), CheckOptions{ReadData: true})
	must(t, err)
	if len(report.Errors) > 0 || len(report.Hints) != 2 || !strings.Contains(report.Hints[1], orphan.String()) {
		t.Errorf("%+v", report)
	}
}

func TestCheckThatCannotBeDone(t *testing.T) {
	faulted := faulty.New(storagetest.NewMemory())
	second := faulty.New(storagetest.NewMemory())
	c := newCrafter(t, newTestRepository(t, storage.PolicyAll, faulted, second))
	c.snapshot(c.someTree())
	faulted.Inject(faulty.Rule{Op: faulty.List})
	report, err := c.repository.Check(t.Context(), CheckOptions{})
	must(t, err)
	if len(report.Errors) != 1 || !strings.Contains(report.Errors[0], faulted.URL()) {
		t.Errorf("one provider that cannot be listed: %+v", report)
	}
	second.Inject(faulty.Rule{Op: faulty.List})
	if _, err := c.repository.Check(t.Context(), CheckOptions{}); !errors.Is(err, faulty.ErrInjected) {
		t.Errorf("no provider can be listed: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := c.repository.Check(ctx, CheckOptions{}); !errors.Is(err, context.Canceled) {
		t.Errorf("an ended context: %v", err)
	}
}
