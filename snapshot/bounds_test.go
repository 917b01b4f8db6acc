package snapshot

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"holdfast/storage"
	"holdfast/storage/storagetest"
)

// What an operation takes of a machine does not depend on how slow its store is, nor on how much there is to do: here at the
// moments when everything that can pile up has. Those are found by what the goroutines wait for, not by waiting.

// usage is what this process holds: live bytes of the heap, goroutines, descriptors.
type usage struct {
	heap        int64
	goroutines  int
	descriptors int
}

func measure(t testing.TB) usage {
	t.Helper()
	runtime.GC()
	var memory runtime.MemStats
	runtime.ReadMemStats(&memory)
	open, err := os.ReadDir("/proc/self/fd")
	require.NoError(t, err)
	return usage{int64(memory.HeapAlloc), runtime.NumGoroutine(), len(open)}
}

// requireWithin compares with what was held before.
func (u usage) requireWithin(t testing.TB, before, more usage) {
	t.Helper()
	require.LessOrEqual(t, u.heap-before.heap, more.heap, "bytes")
	require.LessOrEqual(t, u.goroutines-before.goroutines, more.goroutines, "goroutines")
	require.LessOrEqual(t, u.descriptors-before.descriptors, more.descriptors, "descriptors")
}

// somebodyIn reports whether some goroutine stands in all of these functions.
func somebodyIn(functions ...string) bool {
	buffer := make([]byte, 4<<20)
	for _, stack := range strings.Split(string(buffer[:runtime.Stack(buffer, true)]), "\n\n") {
		found := true
		for _, function := range functions {
			found = found && regexp.MustCompile(regexp.QuoteMeta(function)+`\(`).MatchString(stack)
		}
		if found {
			return true
		}
	}
	return false
}

func waitFor(t testing.TB, what string, condition func() bool) {
	t.Helper()
	require.Eventually(t, condition, time.Minute, time.Millisecond, what)
}

// gated is a store that lets nobody put or get a pack while it is shut.
type gated struct {
	storage.Provider
	gate    atomic.Pointer[chan struct{}]
	waiting atomic.Int64
	got     func() // called with each pack that was given
}

func (g *gated) shut() (open func()) {
	gate := make(chan struct{})
	g.gate.Store(&gate)
	return sync.OnceFunc(func() { g.gate.Store(nil); close(gate) })
}

func (g *gated) wait(ctx context.Context, key string) error {
	gate := g.gate.Load()
	if gate == nil || !strings.HasPrefix(key, packPrefix) {
		return nil
	}
	g.waiting.Add(1)
	defer g.waiting.Add(-1)
	select {
	case <-*gate:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (g *gated) Put(ctx context.Context, key string, data []byte, options storage.PutOptions) (storage.Object, error) {
	if err := g.wait(ctx, key); err != nil {
		return storage.Object{}, err
	}
	return g.Provider.Put(ctx, key, data, options)
}

func (g *gated) Get(ctx context.Context, key string, offset, length int64) (io.ReadCloser, error) {
	if err := g.wait(ctx, key); err != nil {
		return nil, err
	}
	if g.got != nil && strings.HasPrefix(key, packPrefix) {
		g.got()
	}
	return g.Provider.Get(ctx, key, offset, length)
}

const boundsLarge = 96 << 20

// boundsSource is a large file that cannot be compressed, and many tiny ones.
func boundsSource(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	files := map[string][]byte{"large": randomBytes(1, boundsLarge)}
	for i := range 3000 {
		files[fmt.Sprintf("tiny/%d/%d", i%30, i)] = []byte(fmt.Sprint("tiny ", i))
	}
	writeFiles(t, dir, files)
	return dir
}

// TestBounds goes through a backup whose store takes nothing, a check and a restore whose store gives nothing, and the same when
// it does. It is not parallel: what others hold would count.
func TestBounds(t *testing.T) {
	source := boundsSource(t)
	store := &gated{Provider: storagetest.NewMemory()}
	mirror, err := storage.NewMirror([]storage.Provider{store}, storage.MirrorOptions{StallTimeout: time.Hour})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, mirror.Close()) })
	r, err := OpenOrCreate(t.Context(), mirror, testPassword, testOptions())
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, r.Close()) })
	idle := measure(t)

	t.Run("backup", func(t *testing.T) {
		open := store.shut()
		defer open()
		done := make(chan error, 1)
		go func() {
			_, err := r.Backup(t.Context(), source, BackupOptions{})
			done <- err
		}()
		waitFor(t, "packs are full, and nobody takes them", func() bool {
			return store.waiting.Load() == packUploads && somebodyIn("snapshot.(*packer).newBuilder")
		})
		held := measure(t)
		held.requireWithin(t, idle, usage{heap: 46 << 20, goroutines: 20, descriptors: 12})
		require.EqualValues(t, packUploads, store.waiting.Load())
		open()
		require.NoError(t, <-done)
	})
	stored := measure(t) // the store is in memory
	t.Run("check", func(t *testing.T) {
		open := store.shut()
		defer open()
		done := make(chan error, 1)
		var report *CheckReport
		go func() {
			var err error
			report, err = r.Check(t.Context(), CheckOptions{ReadData: true})
			done <- err
		}()
		atOnce := int64(r.options.Concurrency + 1)
		waitFor(t, "as many packs are read as may be", func() bool {
			return store.waiting.Load() >= atOnce && somebodyIn("errgroup.(*Group).Go", "snapshot.(*checker).each")
		})
		held := measure(t)
		held.requireWithin(t, stored, usage{heap: 4 << 20, goroutines: 12, descriptors: 4})
		require.Equal(t, atOnce, store.waiting.Load())
		worst := worstOf(t, store)
		open()
		require.NoError(t, <-done)
		require.Empty(t, report.Errors)
		got := worst()
		got.requireWithin(t, stored, usage{heap: 20 << 20, goroutines: 12, descriptors: 4})
	})
	t.Run("restore", func(t *testing.T) {
		open := store.shut()
		defer open()
		done := make(chan error, 1)
		var full sync.Once
		var piled usage
		target := filepath.Join(t.TempDir(), "target")
		go func() {
			_, err := r.Restore(t.Context(), "latest", target, RestoreOptions{wrote: func(string) {
				full.Do(func() { // nobody writes on while this lasts
					waitFor(t, "what was read waits to be written", func() bool {
						return somebodyIn("semaphore.(*Weighted).Acquire", "snapshot.(*restorer).readBatches")
					})
					piled = measure(t)
				})
			}})
			done <- err
		}()
		waitFor(t, "a tree's pack is asked for", func() bool { return store.waiting.Load() > 0 })
		held := measure(t)
		held.requireWithin(t, stored, usage{heap: 4 << 20, goroutines: 16, descriptors: 10})
		open()
		require.NoError(t, <-done)
		piled.requireWithin(t, stored, usage{heap: windowBytes + 8<<20, goroutines: 16, descriptors: 12})
	})
	stored.goroutines, stored.descriptors = idle.goroutines, idle.descriptors
	measure(t).requireWithin(t, stored, usage{heap: 2 << 20})
}

// TestPacksOnTheirWay: at the end of a backup everything that is in memory could be sent at once, and is sent two at a time: what
// is on its way is what a kill makes be sent again (MaxInFlight).
func TestPacksOnTheirWay(t *testing.T) {
	source := t.TempDir()
	writeFiles(t, source, map[string][]byte{"large": randomBytes(1, 12<<20)}) // two or three packs of data, one of trees
	store := &gated{Provider: storagetest.NewMemory()}
	mirror, err := storage.NewMirror([]storage.Provider{store}, storage.MirrorOptions{StallTimeout: time.Hour})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, mirror.Close()) })
	options := testOptions()
	options.PackSize = DefaultPackSize
	r, err := OpenOrCreate(t.Context(), mirror, testPassword, options)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, r.Close()) })
	open := store.shut()
	defer open()
	done := make(chan error, 1)
	go func() {
		_, err := r.Backup(t.Context(), source, BackupOptions{})
		done <- err
	}()
	waitFor(t, "all is sent that there is", func() bool { return somebodyIn("snapshot.(*packer).finish", "sync.(*WaitGroup).Wait") })
	var sending int
	waitFor(t, "each pack is at the store, or waits for its turn", func() bool {
		waitingFor := standing("(*packer).send.func", "[chan send")
		sending = standing("(*packer).send.func", "")
		return waitingFor+int(store.waiting.Load()) == sending
	})
	require.Greater(t, sending, packUploads)
	require.EqualValues(t, packUploads, store.waiting.Load())
	open()
	require.NoError(t, <-done)
}

// standing counts the goroutines that have a function on their stack, and are in a state.
func standing(function, state string) (n int) {
	buffer := make([]byte, 4<<20)
	for _, stack := range strings.Split(string(buffer[:runtime.Stack(buffer, true)]), "\n\n") {
		header, frames, _ := strings.Cut(stack, "\n")
		if strings.Contains(frames, function) && strings.Contains(header, state) {
			n++
		}
	}
	return n
}

// worstOf measures at each pack that is given, until the function that it returns is called.
func worstOf(t *testing.T, store *gated) func() usage {
	var mu sync.Mutex
	var worst usage
	store.got = func() {
		mu.Lock()
		defer mu.Unlock()
		now := measure(t)
		worst = usage{max(worst.heap, now.heap), max(worst.goroutines, now.goroutines), max(worst.descriptors, now.descriptors)}
	}
	return func() usage {
		mu.Lock()
		defer mu.Unlock()
		store.got = nil
		return worst
	}
}
