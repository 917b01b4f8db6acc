package snapshot

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"math/rand"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"holdfast/storage"
	"holdfast/storage/storagetest"
)

// contents are what dumps of snapshots hash to: content and metadata of everything in them.
type contents map[string][32]byte

// contentOf reads every snapshot through another repository object, as another process would. A snapshot that cannot be
// read whole is left out.
func contentOf(t testing.TB, providers ...storage.Provider) contents {
	t.Helper()
	r := newTestRepository(t, storage.PolicyAny, providers...)
	found := contents{}
	snapshots, _, err := r.snapshots(t.Context())
	require.NoError(t, err)
	for _, s := range snapshots {
		out := sha256.New()
		if err := r.Dump(t.Context(), s.id.String(), "/", out, DumpOptions{}); err == nil {
			found[s.id.String()] = [32]byte(out.Sum(nil))
		}
	}
	return found
}

// requireContent: all these snapshots, and no others, are there, and what they were.
func requireContent(t testing.TB, want contents, providers ...storage.Provider) {
	t.Helper()
	require.Equal(t, want, contentOf(t, providers...))
}

// requireSound: nothing is wrong with any provider's copy of anything.
func requireSound(t testing.TB, providers ...storage.Provider) {
	t.Helper()
	r := newTestRepository(t, storage.PolicyAll, providers...)
	report, err := r.Check(t.Context(), CheckOptions{ReadData: true})
	require.NoError(t, err)
	require.Empty(t, report.Errors)
}

// copyTo copies all objects.
func copyTo(t testing.TB, to, from storage.Provider) {
	t.Helper()
	for _, key := range allKeys(t, from) {
		overwrite(t, to, key, read(t, from, key))
	}
}

// scene is a repository as years make it: packs that nothing needs, that are partly needed, and that hold only small
// things; packs of backups that were cut off, with and without an index; and blobs that lie in two packs.
type scene struct {
	memory *storagetest.Memory
	kept   contents
	// forgotten is a directory with content that no snapshot has any more, but packs still hold.
	forgotten string
	// unindexed are the keys of packs that no index names.
	unindexed []string
}

// makeScene makes one; everything follows from the seed.
func makeScene(t testing.TB, seed int64) *scene {
	t.Helper()
	s := &scene{memory: storagetest.NewMemory(), forgotten: filepath.Join(t.TempDir(), "forgotten")}
	dir := filepath.Join(t.TempDir(), "w")
	r := newTestRepository(t, storage.PolicyAll, s.memory)
	random := rand.New(rand.NewSource(seed))
	backup := func(r *Repository, dir string) string {
		result, err := r.Backup(t.Context(), dir, BackupOptions{Hostname: "h", Paths: []string{"/w"}})
		require.NoError(t, err)
		return result.Snapshot
	}
	forget := func(id string) { require.NoError(t, s.memory.Delete(t.Context(), snapshotPrefix+id)) }

	for i := range 6 {
		writeFiles(t, dir, map[string][]byte{
			fmt.Sprintf("a/%d", i):   randomBytes(random.Int63(), 10_000+random.Intn(10_000)),
			fmt.Sprintf("b/%d", i):   bytes.Repeat([]byte{byte(i), 'x'}, 5_000),
			fmt.Sprintf("gone%d", i): randomBytes(random.Int63(), 8_000+random.Intn(22_000)),
		})
		id := backup(r, dir)
		require.NoError(t, os.Remove(filepath.Join(dir, fmt.Sprintf("gone%d", i))))
		if i%3 != 0 {
			forget(id)
		}
	}
	// Only this one has what is in its pack.
	writeFiles(t, s.forgotten, map[string][]byte{"f": randomBytes(random.Int63(), 40_000), "g": randomBytes(random.Int63(), 12_000)})
	forget(backup(r, s.forgotten))
	// Two that stored the same at the same time.
	twins := []*Repository{newTestRepository(t, storage.PolicyAll, s.memory), newTestRepository(t, storage.PolicyAll, s.memory)}
	writeFiles(t, dir, map[string][]byte{"twice": randomBytes(random.Int63(), 30_000)})
	storeTwice(t, twins[0], twins[1], dir)
	// Packs that nobody names.
	c := newCrafter(t, r)
	for i := range 2 {
		c.blob(dataBlob, randomBytes(random.Int63(), 3_000+i))
		s.unindexed = append(s.unindexed, packKey(c.endPack(dataBlob)))
	}
	s.kept = contentOf(t, s.memory)
	require.Len(t, s.kept, 4)
	return s
}

// storeTwice has two writers back up the same content at once, neither knowing of the other; so each stores it.
func storeTwice(t testing.TB, first, second *Repository, dir string) {
	t.Helper()
	done := make(chan error, 1)
	first.moments.listed = func(path string) {
		if path != "" {
			return
		}
		_, err := second.Backup(t.Context(), dir, BackupOptions{Hostname: "h", Paths: []string{"/w"}})
		done <- err
	}
	_, err := first.Backup(t.Context(), dir, BackupOptions{Hostname: "h", Paths: []string{"/w"}})
	require.NoError(t, err)
	require.NoError(t, <-done)
	first.moments.listed = nil
}

// clone gives a copy of the scene's store.
func (s *scene) clone(t testing.TB) *storagetest.Memory {
	t.Helper()
	m := storagetest.NewMemory()
	copyTo(t, m, s.memory)
	return m
}

// thorough are options that leave nothing behind.
func thorough() PruneOptions {
	limit, _ := ParseMaxUnused("0")
	return PruneOptions{Grace: -1, MaxUnused: limit}
}

// everyCall counts all calls of a provider and does something before one of them.
type everyCall struct {
	storage.Provider

	mu     sync.Mutex
	calls  int
	at     int // the number of the call, from 1
	before func()
	made   []string
}

func (p *everyCall) call(what string) {
	p.mu.Lock()
	p.calls++
	p.made = append(p.made, what)
	hit := p.calls == p.at
	p.mu.Unlock()
	if hit {
		p.before()
	}
}

func (p *everyCall) Put(ctx context.Context, key string, data []byte, options storage.PutOptions) (storage.Object, error) {
	p.call("put " + key)
	return p.Provider.Put(ctx, key, data, options)
}

func (p *everyCall) List(ctx context.Context, prefix string, each func(storage.Object) error) error {
	p.call("list " + prefix)
	return p.Provider.List(ctx, prefix, each)
}

func (p *everyCall) Delete(ctx context.Context, key string) error {
	p.call("delete " + key)
	return p.Provider.Delete(ctx, key)
}

// removeLocks is what `restic unlock --remove-all`, or half an hour, does.
func removeLocks(t testing.TB, providers ...storage.Provider) {
	t.Helper()
	for _, p := range providers {
		for _, key := range locksOn(t, p) {
			require.NoError(t, p.Delete(t.Context(), key))
		}
	}
}

// keysWithoutLocks lists a provider.
func keysWithoutLocks(t testing.TB, p storage.Provider) []string {
	t.Helper()
	return slices.DeleteFunc(allKeys(t, p), func(key string) bool { return strings.HasPrefix(key, lockPrefix) })
}
