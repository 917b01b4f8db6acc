package snapshot

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"holdfast/storage"
	"holdfast/storage/faulty"
	"holdfast/storage/storagetest"
)

// The incident of seed 004 as a matrix (A9): every kind of object, failing in every way, at the first provider, the
// second, or both. With one good copy left the restore succeeds, byte for byte; with none it fails, says so by kind, and
// there is no target. A failed download is never a success.
func TestRestoreFallsBackObjectByObject(t *testing.T) {
	t.Parallel()
	source := []*storagetest.Memory{storagetest.NewMemory(), storagetest.NewMemory()}
	c := newCrafter(t, newTestRepository(t, storage.PolicyAll, source[0], source[1]))
	id := c.snapshot(c.someTree())
	kinds := craftedKinds(t, c, source[0])
	reference := filepath.Join(t.TempDir(), "reference")
	_, err := c.repository.Restore(t.Context(), id, reference, RestoreOptions{})
	must(t, err)
	want := treeRecords(t, reference)
	delete(want, ".") // a crafted snapshot says nothing about it

	for kind, key := range kinds {
		for _, way := range faultWays {
			for _, where := range faultPlaces {
				if way.rule.Kind == faulty.NotStored {
					continue // no reading: TestRestoreOfWhatWasNeverStored
				}
				t.Run(kind+"/"+way.name+"/"+where, func(t *testing.T) {
					t.Parallel()
					providers := []*faulty.Provider{faulty.New(source[0]), faulty.New(source[1])}
					rule := way.rule
					rule.Op = faulty.Get
					rule.Match = func(asked string) bool { return asked == key }
					for i, p := range providers {
						if faultyAt(where, i) {
							p.Inject(rule)
						}
					}
					mirror := limitedMirror(t, storage.PolicyAll, way.limit(), providers[0], providers[1])
					target := filepath.Join(t.TempDir(), "target")
					report, err := openAndRestore(t.Context(), mirror, id, target)
					if where == "both" {
						if err == nil {
							t.Fatal("restored although no provider has it whole")
						}
						if !slices.ContainsFunc(way.causes, func(cause error) bool { return errors.Is(err, cause) }) {
							t.Errorf("got %v, want one of %v", err, way.causes)
						}
						// Said by name: the object, and each provider with what it did.
						for _, name := range []string{key[strings.LastIndexByte(key, '/')+1:], providers[0].URL(), providers[1].URL()} {
							if kind != "index" && !strings.Contains(err.Error(), name) {
								t.Errorf("%s is not named: %v", name, err)
							}
						}
						// What may yet be had stays for another attempt; what is damaged everywhere leaves nothing.
						if _, err := os.Lstat(target); !errors.Is(err, os.ErrNotExist) {
							t.Errorf("the target is there: %v", err)
						}
						if errors.Is(err, ErrDamaged) || errors.Is(err, storage.ErrNotFound) {
							requireNothing(t, target)
						}
						providers[0].Clear()
						providers[1].Clear()
						again, err := storage.NewMirror([]storage.Provider{providers[0], providers[1]}, storage.MirrorOptions{RetryFor: -1})
						must(t, err)
						defer again.Close()
						_, err = openAndRestore(t.Context(), again, id, target)
						must(t, err)
						got := treeRecords(t, target)
						delete(got, ".")
						compareRecords(t, want, got)
						requireOnly(t, target)
						return
					}
					must(t, err)
					got := treeRecords(t, target)
					delete(got, ".")
					compareRecords(t, want, got)
					fell := mirror.Fallbacks()[providers[0].URL()]
					if (where == "primary") != (fell > 0) {
						t.Errorf("%d fallbacks", fell)
					}
					during := report.Fallbacks[providers[0].URL()]
					if inRestore := kind == "snapshot" || strings.HasSuffix(kind, "pack"); inRestore && during != fell {
						t.Errorf("the report says %d fallbacks, the mirror %d", during, fell)
					}
				})
			}
		}
	}
}

func openAndRestore(ctx context.Context, mirror *storage.Mirror, id, target string) (*RestoreReport, error) {
	r, err := Open(ctx, mirror, testPassword, testOptions())
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return r.Restore(ctx, id, target, RestoreOptions{})
}

// A provider that said it had stored an object and never did, and that does not list it either.
func TestRestoreOfWhatWasNeverStored(t *testing.T) {
	source := []*storagetest.Memory{storagetest.NewMemory(), storagetest.NewMemory()}
	c := newCrafter(t, newTestRepository(t, storage.PolicyAll, source[0], source[1]))
	id := c.snapshot(c.someTree())
	kinds := craftedKinds(t, c, source[0])
	reference := filepath.Join(t.TempDir(), "reference")
	_, err := c.repository.Restore(t.Context(), id, reference, RestoreOptions{})
	must(t, err)
	want := treeRecords(t, reference)
	delete(want, ".")
	whole := &earlierBackup{memories: source}
	nowhere := map[string]error{
		"config": ErrDamaged, "key": ErrDamaged, "index": ErrDamaged, "snapshot": ErrNoSnapshot,
		"tree pack": storage.ErrNotFound, "data pack": storage.ErrNotFound,
	}
	for kind, key := range kinds {
		for _, where := range faultPlaces {
			t.Run(kind+"/"+where, func(t *testing.T) {
				t.Parallel()
				memories := whole.clone(t)
				for i, memory := range memories {
					if faultyAt(where, i) {
						must(t, memory.Delete(t.Context(), key))
					}
				}
				mirror := newTestMirror(t, storage.PolicyAll, memories[0], memories[1])
				target := filepath.Join(t.TempDir(), "target")
				_, err := openAndRestore(t.Context(), mirror, id, target)
				if where == "both" {
					if !errors.Is(err, nowhere[kind]) {
						t.Errorf("got %v, want %v", err, nowhere[kind])
					}
					requireNothing(t, target)
					return
				}
				must(t, err)
				got := treeRecords(t, target)
				delete(got, ".")
				compareRecords(t, want, got)
				if fell := mirror.Fallbacks()[memories[0].URL()]; (where == "primary") != (fell > 0) {
					t.Errorf("%d fallbacks", fell)
				}
			})
		}
	}
}

// The same incident for listings, which say what there is to read. One provider that cannot be listed, or leaves out the
// half of it, costs nothing; when both cannot be, that is said, and never that there is nothing.
func TestRestoreWhenListingFails(t *testing.T) {
	t.Parallel()
	source := []*storagetest.Memory{storagetest.NewMemory(), storagetest.NewMemory()}
	c := newCrafter(t, newTestRepository(t, storage.PolicyAll, source[0], source[1]))
	id := c.snapshot(c.someTree())
	whole := &earlierBackup{memories: source}
	for _, prefix := range []string{configKey, keyPrefix, indexPrefix, snapshotPrefix} {
		for _, way := range faultWays {
			for _, where := range faultPlaces {
				switch way.rule.Kind {
				case faulty.NotStored, faulty.WrongBytes:
					continue // no listing has them
				}
				t.Run(prefix+"/"+way.name+"/"+where, func(t *testing.T) {
					t.Parallel()
					rule := way.rule
					rule.Op = faulty.List
					rule.Match = func(asked string) bool { return strings.HasPrefix(asked, prefix) }
					if errors.Is(rule.Err, storage.ErrNotFound) {
						rule.Err = storage.ErrBucketNotFound
					}
					memories := whole.clone(t)
					providers := []*faulty.Provider{faulty.New(memories[0]), faulty.New(memories[1])}
					for i, p := range providers {
						if faultyAt(where, i) {
							p.Inject(rule)
						}
					}
					target := filepath.Join(t.TempDir(), "target")
					_, err := openAndRestore(t.Context(), limitedMirror(t, storage.PolicyAll, way.limit(), providers[0], providers[1]), id, target)
					if where != "both" {
						must(t, err)
						return
					}
					if err == nil {
						t.Fatal("restored from what nobody could list")
					}
					if lies := []faulty.Kind{faulty.Truncate, faulty.WrongLength}; slices.Contains(lies, way.rule.Kind) {
						return // both say, and nobody can know better, that something else is there
					}
					for _, wrong := range []error{ErrNoRepository, ErrNoSnapshot, ErrDamaged, ErrWrongPassword, storage.ErrNotFound} {
						if errors.Is(err, wrong) {
							t.Errorf("%v, although nobody could say that", err)
						}
					}
					for _, p := range providers {
						if !strings.Contains(err.Error(), p.URL()) {
							t.Errorf("%s is not named: %v", p.URL(), err)
						}
					}
				})
			}
		}
	}
}

// Providers damaged in different places have one good repository between them.
func TestRestoreFromTwoHalves(t *testing.T) {
	memories := []*storagetest.Memory{storagetest.NewMemory(), storagetest.NewMemory()}
	c := newCrafter(t, newTestRepository(t, storage.PolicyAll, memories[0], memories[1]))
	id := c.snapshot(c.tree(dirNode("all", c.someTree())))
	reference := filepath.Join(t.TempDir(), "reference")
	_, err := c.repository.Restore(t.Context(), id, reference, RestoreOptions{})
	must(t, err)
	// In each data pack of several blobs: the first blob damaged here, the last there.
	spoilt := 0
	for pack, blobs := range (&checker{repository: c.repository}).indexedBlobs() {
		if len(blobs) < 2 {
			continue
		}
		spoilt++
		last := blobs[len(blobs)-1].location
		memories[0].Corrupt(packKey(pack), func(data []byte) []byte { return flip(data, 40) })
		memories[1].Corrupt(packKey(pack), func(data []byte) []byte { return flip(data, int(last.offset)+40) })
	}
	if spoilt < 4 {
		t.Fatalf("only %d packs damaged", spoilt)
	}
	target := filepath.Join(t.TempDir(), "target")
	report, err := c.repository.Restore(t.Context(), id, target, RestoreOptions{})
	must(t, err)
	compareTrees(t, filepath.Join(reference, "all"), filepath.Join(target, "all"))
	if len(report.Fallbacks) == 0 {
		t.Errorf("report: %+v", report)
	}
}

// One provider alone, its pack damaged: a second pack with the same blob saves it.
func TestRestoreFromAnotherPack(t *testing.T) {
	memory := storagetest.NewMemory()
	c := newCrafter(t, newTestRepository(t, storage.PolicyAll, memory))
	n := c.fileNode("file", "content that is stored twice")
	first := c.endPack(dataBlob)
	delete(c.known, blobKey{n.Content[0], dataBlob})
	c.blob(dataBlob, []byte("content that is stored twice"))
	second := c.endPack(dataBlob)
	id := c.snapshot(c.tree(n))
	for _, pack := range []blobID{first, second} {
		var kept []byte
		memory.Corrupt(packKey(pack), func(data []byte) []byte { kept = data; return flip(data, 20) })
		target := filepath.Join(t.TempDir(), "target")
		_, err := c.repository.Restore(t.Context(), id, target, RestoreOptions{})
		must(t, err)
		memory.Corrupt(packKey(pack), func([]byte) []byte { return kept })
	}
}
