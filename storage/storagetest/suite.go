// Package storagetest has the conformance suite that every storage.Provider passes, and a provider in memory for unit
// tests.
package storagetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"holdfast/storage"
)

// Option changes what Run does.
type Option func(*suite)

// WithMissing also runs the tests of a provider whose bucket or directory does not exist; open makes one.
func WithMissing(open func(t *testing.T) storage.Provider) Option {
	return func(s *suite) { s.missing = open }
}

// WithoutKeys leaves out odd keys that the server behind the provider (not the provider itself) cannot hold.
func WithoutKeys(keys ...string) Option {
	return func(s *suite) { s.without = keys }
}

type suite struct {
	open    func(t *testing.T) storage.Provider
	missing func(t *testing.T) storage.Provider
	without []string
}

// Run runs the suite. Every test calls open once for a provider that is empty; Run closes it.
func Run(t *testing.T, open func(t *testing.T) storage.Provider, options ...Option) {
	s := &suite{open: open}
	for _, option := range options {
		option(s)
	}
	for _, test := range []struct {
		name string
		run  func(t *testing.T, ctx context.Context, p storage.Provider)
	}{
		{"PutGetStatDelete", testPutGetStatDelete},
		{"Empty", testEmpty},
		{"Large", testLarge},
		{"Range", testRange},
		{"NotFound", testNotFound},
		{"OddKeys", s.testOddKeys},
		{"InvalidKeys", testInvalidKeys},
		{"ListOrder", testListOrder},
		{"ListPages", testListPages},
		{"ListStops", testListStops},
		{"CreateOnly", testCreateOnly},
		{"CreateOnlyRace", testCreateOnlyRace},
		{"CreateOnlyRaceOfEquals", testCreateOnlyRaceOfEquals},
		{"OverwriteIsAtomic", testOverwriteIsAtomic},
		{"Cancelled", testCancelled},
		{"CancelledWhileReading", testCancelledWhileReading},
		{"Concurrent", testConcurrent},
		{"URL", testURL},
	} {
		t.Run(test.name, func(t *testing.T) {
			p := s.open(t)
			t.Cleanup(func() { require.NoError(t, p.Close()) })
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
			defer cancel()
			test.run(t, ctx, p)
		})
	}
	if s.missing != nil {
		t.Run("Missing", func(t *testing.T) {
			p := s.missing(t)
			t.Cleanup(func() { require.NoError(t, p.Close()) })
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			testMissing(t, ctx, p)
		})
	}
}

// content is n bytes that do not compress and depend on seed.
func content(seed uint64, n int) []byte {
	data := make([]byte, n)
	source := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8), byte(seed >> 16), 7})
	_, _ = source.Read(data) // never fails
	return data
}

func put(t *testing.T, ctx context.Context, p storage.Provider, key string, data []byte) {
	t.Helper()
	object, err := p.Put(ctx, key, data, storage.PutOptions{})
	require.NoError(t, err, "put %q", key)
	requireObject(t, object, key, data)
	require.True(t, object.HasCRC32C, "Put returns the checksum that it verified")
}

func requireObject(t *testing.T, object storage.Object, key string, data []byte) {
	t.Helper()
	require.Equal(t, key, object.Key)
	require.EqualValues(t, len(data), object.Size, "size of %q", key)
	if object.HasCRC32C {
		require.Equal(t, storage.Checksum(data), object.CRC32C, "checksum of %q", key)
	}
}

func requireContent(t *testing.T, ctx context.Context, p storage.Provider, key string, data []byte) {
	t.Helper()
	got, err := storage.ReadAll(ctx, p, key, 0, -1)
	require.NoError(t, err, "get %q", key)
	require.True(t, bytes.Equal(data, got), "content of %q differs: %d bytes, want %d", key, len(got), len(data))
}

func keysOf(t *testing.T, ctx context.Context, p storage.Provider, prefix string) []string {
	t.Helper()
	keys := []string{}
	require.NoError(t, p.List(ctx, prefix, func(o storage.Object) error { keys = append(keys, o.Key); return nil }))
	return keys
}

func testPutGetStatDelete(t *testing.T, ctx context.Context, p storage.Provider) {
	data := content(1, 100_000)
	put(t, ctx, p, "data/one", data)
	requireContent(t, ctx, p, "data/one", data)
	object, err := p.Stat(ctx, "data/one")
	require.NoError(t, err)
	requireObject(t, object, "data/one", data)
	require.WithinDuration(t, time.Now(), object.Modified, time.Hour)

	shorter := content(2, 70_000)
	put(t, ctx, p, "data/one", shorter) // without CreateOnly an object is replaced
	requireContent(t, ctx, p, "data/one", shorter)

	require.NoError(t, p.Delete(ctx, "data/one"))
	_, err = p.Stat(ctx, "data/one")
	require.ErrorIs(t, err, storage.ErrNotFound)
	require.NoError(t, p.Delete(ctx, "data/one"), "removing what is not there is no error")
	require.Empty(t, keysOf(t, ctx, p, ""))
}

func testEmpty(t *testing.T, ctx context.Context, p storage.Provider) {
	require.Empty(t, keysOf(t, ctx, p, ""), "an empty store lists nothing")
	require.Empty(t, keysOf(t, ctx, p, "no/such/prefix"))
	for _, options := range []storage.PutOptions{{}, {CreateOnly: true}} {
		key := fmt.Sprintf("empty-%v", options.CreateOnly)
		object, err := p.Put(ctx, key, nil, options)
		require.NoError(t, err)
		requireObject(t, object, key, nil)
		requireContent(t, ctx, p, key, []byte{})
		object, err = p.Stat(ctx, key)
		require.NoError(t, err)
		requireObject(t, object, key, nil)
	}
	require.Equal(t, []string{"empty-false", "empty-true"}, keysOf(t, ctx, p, ""))
}

func testLarge(t *testing.T, ctx context.Context, p storage.Provider) {
	data := content(3, 16<<20)
	put(t, ctx, p, "data/large", data)
	requireContent(t, ctx, p, "data/large", data)
	part, err := storage.ReadAll(ctx, p, "data/large", 9<<20, 4<<20)
	require.NoError(t, err)
	require.True(t, bytes.Equal(data[9<<20:13<<20], part))
	// A second create-only write of the same content is what a lost answer looks like.
	_, err = p.Put(ctx, "data/large", data, storage.PutOptions{CreateOnly: true})
	require.NoError(t, err)
	data[12<<20] ^= 1
	_, err = p.Put(ctx, "data/large", data, storage.PutOptions{CreateOnly: true})
	require.ErrorIs(t, err, storage.ErrExists)
}

func testRange(t *testing.T, ctx context.Context, p storage.Provider) {
	data := content(4, 1000)
	put(t, ctx, p, "r", data)
	for _, r := range [][2]int64{{0, 1000}, {0, 1}, {999, 1}, {10, 500}, {500, -1}, {0, -1}, {999, -1}} {
		got, err := storage.ReadAll(ctx, p, "r", r[0], r[1])
		require.NoError(t, err, "%v", r)
		end := r[0] + r[1]
		if r[1] < 0 {
			end = 1000
		}
		require.True(t, bytes.Equal(data[r[0]:end], got), "%v", r)
	}
	// A range beyond the end is never a short success, and the object is not reported as absent.
	for _, r := range [][2]int64{{0, 1001}, {999, 2}, {1000, 1}, {5000, 10}, {5000, -1}} {
		_, err := storage.ReadAll(ctx, p, "r", r[0], r[1])
		require.Error(t, err, "%v", r)
		require.NotErrorIs(t, err, storage.ErrNotFound, "%v", r)
	}
	_, err := p.Get(ctx, "r", -1, 10)
	require.ErrorIs(t, err, storage.ErrInvalid)
}

func testNotFound(t *testing.T, ctx context.Context, p storage.Provider) {
	put(t, ctx, p, "there/x", []byte("x"))
	for _, key := range []string{"absent", "there/absent", "there", "absent/deep/er"} {
		_, err := p.Stat(ctx, key)
		require.ErrorIs(t, err, storage.ErrNotFound, "stat %q", key)
		require.False(t, storage.Retryable(err))
		_, err = storage.ReadAll(ctx, p, key, 0, -1)
		require.ErrorIs(t, err, storage.ErrNotFound, "get %q", key)
		_, err = storage.ReadAll(ctx, p, key, 3, 4)
		require.ErrorIs(t, err, storage.ErrNotFound, "get range of %q", key)
		require.NoError(t, p.Delete(ctx, key), "delete %q", key)
	}
	requireContent(t, ctx, p, "there/x", []byte("x"))
}

// OddKeys are keys that are valid and that something between us and the store may get wrong.
func OddKeys() []string {
	return []string{
		"with space", " leading and trailing ", "plus+plus", "percent%20literal", "100%", "%2e%2e/x", "%2F",
		"ünïcode/日本語/🗄", "a/b/c/d/e/f/g", "question?mark", "hash#tag", "amp&ersand=1", "semi;colon", "comma,x",
		`quote'"`, "tilde~", "star*", `back\slash`, "colon:x", "trailing.", ".hidden", "..twodots", "dots..", "...",
		"<xml>&amp;", "[brackets]{braces}", "at@x", "dollar$x", "pipe|caret^`", "-dash", "CaseA", "casea",
		"segment-" + strings.Repeat("n", 200),
	}
}

func (s *suite) testOddKeys(t *testing.T, ctx context.Context, p storage.Provider) {
	keys := slices.DeleteFunc(OddKeys(), func(key string) bool { return slices.Contains(s.without, key) })
	for i, key := range keys {
		put(t, ctx, p, key, content(uint64(i), 10+i))
	}
	for i, key := range keys {
		requireContent(t, ctx, p, key, content(uint64(i), 10+i))
		object, err := p.Stat(ctx, key)
		require.NoError(t, err, "stat %q", key)
		requireObject(t, object, key, content(uint64(i), 10+i))
		require.Equal(t, []string{key}, keysOf(t, ctx, p, key), "list %q", key)
	}
	sorted := slices.Sorted(slices.Values(keys))
	require.Equal(t, sorted, keysOf(t, ctx, p, ""))
	for _, key := range keys {
		require.NoError(t, p.Delete(ctx, key), "delete %q", key)
	}
	require.Empty(t, keysOf(t, ctx, p, ""))
}

// InvalidKeys are keys that every provider refuses with ErrInvalid.
func InvalidKeys() []string {
	return []string{
		"", "/", "/leading", "trailing/", "a//b", "..", "../x", "a/../b", "a/..", ".", "./a", "a/./b",
		"nul\x00byte", "new\nline", "\x7f", "not\xffutf8", storage.TempDirectory + "/x", strings.Repeat("k/", 600) + "k",
	}
}

func testInvalidKeys(t *testing.T, ctx context.Context, p storage.Provider) {
	for _, key := range InvalidKeys() {
		_, err := p.Put(ctx, key, []byte("x"), storage.PutOptions{})
		require.ErrorIs(t, err, storage.ErrInvalid, "put %q", key)
		require.False(t, storage.Retryable(err))
		_, err = p.Put(ctx, key, []byte("x"), storage.PutOptions{CreateOnly: true})
		require.ErrorIs(t, err, storage.ErrInvalid, "create %q", key)
		_, err = p.Get(ctx, key, 0, -1)
		require.ErrorIs(t, err, storage.ErrInvalid, "get %q", key)
		_, err = p.Stat(ctx, key)
		require.ErrorIs(t, err, storage.ErrInvalid, "stat %q", key)
		require.ErrorIs(t, p.Delete(ctx, key), storage.ErrInvalid, "delete %q", key)
	}
	for _, prefix := range []string{"/", "/x", "../", "a/../", "a//b", "nul\x00"} {
		err := p.List(ctx, prefix, func(storage.Object) error { return nil })
		require.ErrorIs(t, err, storage.ErrInvalid, "list %q", prefix)
	}
	require.Empty(t, keysOf(t, ctx, p, ""))
}

func testMissing(t *testing.T, ctx context.Context, p storage.Provider) {
	_, err := p.Put(ctx, "a/b", []byte("x"), storage.PutOptions{})
	require.ErrorIs(t, err, storage.ErrBucketNotFound, "put")
	require.False(t, storage.Retryable(err))
	_, err = p.Put(ctx, "a/b", []byte("x"), storage.PutOptions{CreateOnly: true})
	require.ErrorIs(t, err, storage.ErrBucketNotFound, "create")
	_, err = storage.ReadAll(ctx, p, "a/b", 0, -1)
	require.ErrorIs(t, err, storage.ErrBucketNotFound, "get")
	err = p.List(ctx, "", func(storage.Object) error { return errors.New("an object in a missing bucket") })
	require.ErrorIs(t, err, storage.ErrBucketNotFound, "list")
}

// each runs do n times with at most limit at once.
func each(n, limit int, do func(i int) error) error {
	var group errgroup.Group
	group.SetLimit(limit)
	for i := range n {
		group.Go(func() error { return do(i) })
	}
	return group.Wait()
}
