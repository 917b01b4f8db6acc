package snapshot

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"holdfast/storage"
	"holdfast/storage/faulty"
	"holdfast/storage/storagetest"
)

// meteredGets is a provider that counts the bytes that were asked for and the reads, by key.
type meteredGets struct {
	storage.Provider
	mutex sync.Mutex
	bytes map[string]int64
	reads map[string]int
}

func (m *meteredGets) Get(ctx context.Context, key string, offset, length int64) (io.ReadCloser, error) {
	m.mutex.Lock()
	if m.bytes == nil {
		m.bytes, m.reads = map[string]int64{}, map[string]int{}
	}
	m.bytes[key] += length
	m.reads[key]++
	m.mutex.Unlock()
	return m.Provider.Get(ctx, key, offset, length)
}

// content is how many bytes of packs with files' content were asked for since the last call.
func (m *meteredGets) content(r *Repository) (total int64) {
	m.mutex.Lock()
	defer m.mutex.Unlock()
	r.eachBlob(func(b packedBlob) bool {
		if b.location.kind == dataBlob {
			total += m.bytes[packKey(b.location.pack)]
			delete(m.bytes, packKey(b.location.pack))
		}
		return true
	})
	return total
}

// missing says, independently of the restorer, how many stored and plain bytes of files' content are not yet at their
// place below dir; a blob that several files want counts once in stored.
func missing(t *testing.T, r *Repository, snapshot, dir string) (stored, plain int64) {
	t.Helper()
	found, err := r.resolveSnapshot(t.Context(), snapshot)
	must(t, err)
	wanted, linked := map[blobID]bool{}, map[inodeKey]bool{}
	must(t, newPackReader(r).walk(t.Context(), *found.Tree, "", func(path string, n *node) (bool, error) {
		if n.Type != "file" {
			return true, nil
		}
		if key := (inodeKey{n.DeviceID, n.Inode}); n.Links > 1 {
			if linked[key] {
				return true, nil
			}
			linked[key] = true
		}
		content, _ := os.ReadFile(filepath.Join(dir, path)) // none of a file that is not there
		offset := int64(0)
		for _, id := range n.Content {
			at := r.blobLocations(id, dataBlob)[0]
			end := offset + at.plainSize()
			if end > int64(len(content)) || checkHash(id, content[offset:end]) != nil {
				plain += at.plainSize()
				if !wanted[id] {
					wanted[id] = true
					stored += int64(at.length)
				}
			}
			offset = end
		}
		return true, nil
	}))
	return stored, plain
}

// unfinished is the one directory that attempts to restore to target have left.
func unfinished(t *testing.T, target string) string {
	t.Helper()
	if _, err := os.Lstat(target); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("the target is there already: %v", err)
	}
	left, err := Unfinished(target)
	must(t, err)
	if len(left) != 1 {
		t.Fatalf("left: %v", left)
	}
	return left[0]
}

var errCut = errors.New("cut by the test")

// cutRestore restores everything and is cut just before the rename. It returns the directory that it leaves.
func cutRestore(t *testing.T, r *Repository, snapshot, target string) string {
	t.Helper()
	ctx, cancel := context.WithCancelCause(t.Context())
	_, err := r.Restore(ctx, snapshot, target, RestoreOptions{Prepare: func(string) error { cancel(errCut); return nil }})
	if !errors.Is(err, errCut) {
		t.Fatalf("not cut: %v", err)
	}
	return unfinished(t, target)
}

// resumeSource makes a directory with files of several large blobs, small ones, names of one file in two directories,
// a sparse file, links and closed directories. Blobs are larger than the gap that is read rather than left out.
func resumeSource(t *testing.T) string {
	t.Helper()
	source := filepath.Join(t.TempDir(), "source")
	files := map[string][]byte{"large": randomBytes(1, 9<<20), "dir/linked": randomBytes(2, 700_000)}
	random := rand.New(rand.NewSource(3))
	for i := range 12 {
		files[fmt.Sprintf("d%d/e%d/medium%d", i%3, i%2, i)] = randomBytes(int64(10+i), 300_000+random.Intn(300_000))
	}
	for i := range 40 {
		files[fmt.Sprintf("small/%d/f%d", i%4, i)] = randomBytes(int64(100+i), 1+random.Intn(3000))
	}
	writeFiles(t, source, files)
	buildFidelityTree(t, filepath.Join(source, "everything"))
	must(t, os.Link(source+"/dir/linked", source+"/a second name"))
	must(t, os.Link(source+"/dir/linked", source+"/small/0/a third name"))
	return source
}

// TestRestoreChild is the process that TestKilledRestoresResume kills, or rather that kills itself at a given moment.
func TestRestoreChild(t *testing.T) {
	repository, target := os.Getenv("SNAPSHOT_TEST_REPOSITORY"), os.Getenv("SNAPSHOT_TEST_TARGET")
	if repository == "" {
		t.Skip("only as a child of TestKilledRestoresResume")
	}
	moments, err := strconv.Atoi(os.Getenv("SNAPSHOT_TEST_MOMENTS"))
	must(t, err)
	var mutex sync.Mutex
	passed := 0
	moment := func() {
		mutex.Lock()
		defer mutex.Unlock()
		if passed++; passed == moments {
			_ = unix.Kill(os.Getpid(), unix.SIGKILL)
			select {}
		}
	}
	hook := &getHook{Provider: openDirectory(t, repository)}
	r := newTestRepository(t, storage.PolicyAll, hook)
	passed = 0
	hook.set(moment)
	_, err = r.Restore(t.Context(), "latest", target, RestoreOptions{
		wrote: func(string) { moment() }, Prepare: func(string) error { moment(); return nil },
	})
	must(t, err)
	fmt.Printf("\npassed %d\n", passed)
}

// restoreInChild restores in a child that dies by SIGKILL at the given moment, and reports whether it came to its end,
// after how many moments.
func restoreInChild(t *testing.T, repository, target string, moment int) (passed int, done bool) {
	t.Helper()
	command := exec.Command("/proc/self/exe", "-test.run=^TestRestoreChild$", "-test.v")
	command.Env = append(os.Environ(), "SNAPSHOT_TEST_REPOSITORY="+repository, "SNAPSHOT_TEST_TARGET="+target,
		"SNAPSHOT_TEST_MOMENTS="+strconv.Itoa(moment))
	out, err := command.CombinedOutput()
	for line := range strings.Lines(string(out)) {
		if _, err := fmt.Sscanf(line, "passed %d", &passed); err == nil {
			return passed, true
		}
	}
	if err == nil || !strings.Contains(err.Error(), "killed") {
		t.Fatalf("%v\n%s", err, out)
	}
	return moment, false
}

// A restore that dies by kill -9 at any moment, again and again, goes on where it was: the tree is the same in the end,
// byte for byte and in its metadata, and no more is fetched than was missing (DESIGN 8). invariant 5
func TestKilledRestoresResume(t *testing.T) {
	t.Parallel()
	rounds := 6
	if os.Getenv("HOLDFAST_CAMPAIGN") != "" {
		rounds = 60
	}
	const seed = 20260125
	random := rand.New(rand.NewSource(seed))
	source := resumeSource(t)
	repository, provider := directoryRepository(t)
	metered := &meteredGets{Provider: provider}
	r := newTestRepository(t, storage.PolicyAll, metered)
	made, err := r.Backup(t.Context(), source, BackupOptions{Hostname: "node"})
	must(t, err)
	clean := filepath.Join(t.TempDir(), "clean")
	whole, done := restoreInChild(t, repository, clean, 0)
	if !done || whole < 60 {
		t.Fatalf("a clean restore: %d moments, done %v", whole, done)
	}
	compareTrees(t, source, clean)

	kills, partial := 0, 0
	for round := range rounds {
		target := filepath.Join(t.TempDir(), "target")
		stored, before := missing(t, r, made.Snapshot, target)
		for ended := false; !ended; {
			moment := 1 + random.Intn(whole)
			if round == 0 && kills == 0 {
				moment = whole * 3 / 4 // after some writes and before others, whatever the seed
			}
			if _, ended = restoreInChild(t, repository, target, moment); ended {
				break
			}
			kills++
			var plain int64
			left, err := Unfinished(target)
			must(t, err)
			if len(left) == 0 {
				continue
			}
			if stored, plain = missing(t, r, made.Snapshot, left[0]); plain > before {
				t.Errorf("more is missing than before: %d, %d bytes; seed %d", plain, before, seed)
			}
			before = plain
			if round == 0 || kills%2 == 0 {
				break
			}
		}
		if left, err := Unfinished(target); err != nil || len(left) == 0 {
			must(t, err)
			compareTrees(t, source, target)
			continue
		}
		if before > 0 && before < made.Bytes {
			partial++
		}
		metered.content(r)
		report, err := r.Restore(t.Context(), made.Snapshot, target, RestoreOptions{})
		must(t, err)
		if want := report.Bytes - before; report.Reused != want {
			t.Errorf("%d bytes were reused, %d were there; seed %d", report.Reused, want, seed)
		}
		// What lies between two wanted blobs is read too when it is little, which weighs most when little is missing.
		if got := metered.content(r); got > stored+stored/2+maxGap || stored == 0 && got > 0 {
			t.Errorf("%d bytes were fetched, %d were missing; seed %d", got, stored, seed)
		}
		compareTrees(t, source, target)
		requireOnly(t, target)
	}
	t.Logf("%d moments, %d kills, %d rounds with a part restored", whole, kills, partial)
	if partial == 0 {
		t.Error("no kill came in the middle: the test shows nothing")
	}
}

// requireOnly fails unless the target is the only thing in its directory.
func requireOnly(t *testing.T, target string) {
	t.Helper()
	entries, err := os.ReadDir(filepath.Dir(target))
	must(t, err)
	if len(entries) != 1 || entries[0].Name() != filepath.Base(target) {
		t.Errorf("beside %s: %v", filepath.Base(target), entries)
	}
}

// A lost connection is no reason to begin anew either; and when it comes back, a restore of everything fetches what the
// cut ones did not.
func TestRestoreResumesAfterALostConnection(t *testing.T) {
	source := resumeSource(t)
	memory := storagetest.NewMemory()
	metered := &meteredGets{Provider: memory}
	cable := faulty.New(metered)
	r := newTestRepository(t, storage.PolicyAll, cable)
	made, err := r.Backup(t.Context(), source, BackupOptions{})
	must(t, err)
	metered.content(r)
	target := filepath.Join(t.TempDir(), "target")
	// The connection is lost for good after the first data pack was read.
	var mutex sync.Mutex
	reads := 0
	kinds := map[string]blobType{}
	r.eachBlob(func(b packedBlob) bool { kinds[packKey(b.location.pack)] = b.location.kind; return true })
	cable.Inject(faulty.Rule{Op: faulty.Get, Kind: faulty.Error, Match: func(key string) bool {
		mutex.Lock()
		defer mutex.Unlock()
		if kind, pack := kinds[key]; !pack || kind != dataBlob {
			return false
		}
		reads++
		return reads > 2
	}})
	_, err = r.Restore(t.Context(), made.Snapshot, target, RestoreOptions{})
	if !errors.Is(err, faulty.ErrInjected) || !strings.Contains(err.Error(), "goes on from there") {
		t.Fatalf("cut off: %v", err)
	}
	stored, plain := missing(t, r, made.Snapshot, unfinished(t, target))
	if plain == 0 || plain >= made.Bytes {
		t.Fatalf("%d of %d bytes are missing: the test shows nothing", plain, made.Bytes)
	}
	cable.Clear()
	metered.content(r)
	report, err := r.Restore(t.Context(), made.Snapshot, target, RestoreOptions{})
	must(t, err)
	if got := metered.content(r); got > stored+stored/4 {
		t.Errorf("%d bytes were fetched, %d were missing", got, stored)
	}
	if report.Reused != report.Bytes-plain {
		t.Errorf("reused %d of %d, %d were missing", report.Reused, report.Bytes, plain)
	}
	compareTrees(t, source, target)
	requireOnly(t, target)
}

// Another snapshot into the same unfinished directory is that snapshot, and uses what the two have in common.
func TestRestoreResumesWithAnotherSnapshot(t *testing.T) {
	source := resumeSource(t)
	metered := &meteredGets{Provider: storagetest.NewMemory()}
	r := newTestRepository(t, storage.PolicyAll, metered)
	first, err := r.Backup(t.Context(), source, BackupOptions{})
	must(t, err)
	must(t, os.WriteFile(source+"/small/1/f1", []byte("changed"), 0o600))
	must(t, os.RemoveAll(source+"/d0"))
	must(t, os.Remove(source+"/a second name"))
	must(t, os.Mkdir(source+"/a second name", 0o750))
	must(t, os.WriteFile(source+"/a second name/new", randomBytes(77, 400_000), 0o640))
	second, err := r.Backup(t.Context(), source, BackupOptions{})
	must(t, err)
	target := filepath.Join(t.TempDir(), "target")
	stored, _ := missing(t, r, second.Snapshot, cutRestore(t, r, first.Snapshot, target))
	metered.content(r)
	_, err = r.Restore(t.Context(), second.Snapshot, target, RestoreOptions{})
	must(t, err)
	if got := metered.content(r); got == 0 || got > stored+stored/4 {
		t.Errorf("%d bytes were fetched, %d were missing", got, stored)
	}
	compareTrees(t, source, target)
	requireOnly(t, target)
}

// Closed directories and unreadable files of its own are no obstacle to an ordinary user's second attempt.
func TestRestoreResumesAsOrdinaryUser(t *testing.T) {
	base := os.Getenv("SNAPSHOT_TEST_RESUME")
	if base == "" {
		asNobody(t, "TestRestoreResumesAsOrdinaryUser", "SNAPSHOT_TEST_RESUME="+worldDir(t))
		return
	}
	source := filepath.Join(base, "source")
	buildFidelityTree(t, source)
	openClosed(t, source)
	r := memoryRepository(t)
	made, err := r.Backup(t.Context(), source, BackupOptions{})
	must(t, err)
	target := filepath.Join(base, "restored", "target")
	must(t, os.Mkdir(filepath.Dir(target), 0o755))
	left := cutRestore(t, r, made.Snapshot, target)
	for _, name := range []string{"closed", "unreadable"} {
		must(t, os.Chmod(filepath.Join(left, name), 0))
	}
	report, err := r.Restore(t.Context(), made.Snapshot, target, RestoreOptions{})
	must(t, err)
	if report.Reused != report.Bytes {
		t.Errorf("%d of %d bytes were reused", report.Reused, report.Bytes)
	}
	compareTrees(t, source, target)
	requireOnly(t, target)
}
