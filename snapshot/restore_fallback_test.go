package snapshot

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"holdfast/storage"
	"holdfast/storage/faulty"
	"holdfast/storage/storagetest"
)

// The incident of seed 004 as a matrix (A9): every kind of object, failing in every way, at the first provider, the
// second, or both. With one good copy left the restore succeeds, byte for byte; with none it fails, says so by kind, and
// there is no target. A failed download is never a success.
func TestRestoreFallsBackObjectByObject(t *testing.T) {
	source := []*storagetest.Memory{storagetest.NewMemory(), storagetest.NewMemory()}
	c := newCrafter(t, newTestRepository(t, storage.PolicyAll, source[0], source[1]))
	id := c.snapshot(c.someTree())
	kinds := craftedKinds(t, c, source[0])
	reference := filepath.Join(t.TempDir(), "reference")
	_, err := c.repository.Restore(t.Context(), id, reference, RestoreOptions{})
	must(t, err)
	want := treeRecords(t, reference)
	delete(want, ".") // a crafted snapshot says nothing about it

	type way struct {
		rule faulty.Rule
		want []error // one of these when both fail
	}
	ways := map[string]way{
		"not found":    {faulty.Rule{Kind: faulty.Error, Err: storage.ErrNotFound}, []error{storage.ErrNotFound, ErrDamaged}},
		"truncated":    {faulty.Rule{Kind: faulty.Truncate}, []error{ErrDamaged, io.ErrUnexpectedEOF}},
		"wrong bytes":  {faulty.Rule{Kind: faulty.WrongBytes}, []error{ErrDamaged}},
		"wrong length": {faulty.Rule{Kind: faulty.WrongLength}, []error{ErrDamaged, io.ErrUnexpectedEOF}},
		"hang":         {faulty.Rule{Kind: faulty.Hang}, []error{storage.ErrStalled}},
		"error":        {faulty.Rule{Kind: faulty.Error}, []error{faulty.ErrInjected}},
		"reset":        {faulty.Rule{Kind: faulty.Reset}, nil},
	}
	for kind, key := range kinds {
		for name, way := range ways {
			for _, where := range []string{"primary", "secondary", "both"} {
				t.Run(kind+"/"+name+"/"+where, func(t *testing.T) {
					t.Parallel()
					providers := []*faulty.Provider{faulty.New(source[0]), faulty.New(source[1])}
					rule := way.rule
					rule.Op = faulty.Get
					rule.Match = func(asked string) bool { return asked == key }
					for i, p := range providers {
						if where == "both" || (where == "primary") == (i == 0) {
							p.Inject(rule)
						}
					}
					mirror, err := storage.NewMirror([]storage.Provider{providers[0], providers[1]},
						storage.MirrorOptions{RetryFor: -1, StallTimeout: 300 * time.Millisecond})
					must(t, err)
					defer mirror.Close()
					target := filepath.Join(t.TempDir(), "target")
					report, err := openAndRestore(t.Context(), mirror, id, target)
					if where == "both" {
						if err == nil {
							t.Fatal("restored although no provider has it whole")
						}
						known := way.want == nil
						for _, want := range way.want {
							known = known || errors.Is(err, want)
						}
						if !known {
							t.Errorf("got %v, want one of %v", err, way.want)
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
