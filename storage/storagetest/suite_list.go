package storagetest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"holdfast/storage"
)

func testListOrder(t *testing.T, ctx context.Context, p storage.Provider) {
	// "!" and "-" come before "/", "0" after it: a walk that goes by names of directories gets this wrong.
	keys := []string{"a!x", "a-x", "a.x", "a/!", "a/b/c", "a/b-", "a/b.", "a/b0", "a/z", "a0", "ab", "b/a", "b0", "é", "z"}
	for i, key := range keys {
		put(t, ctx, p, key, content(uint64(i), i))
	}
	for _, prefix := range []string{"", "a", "a/", "a/b", "a/b/", "a/b/c", "a0", "b", "b/", "c", "zz", "a/b/c/d"} {
		want := []string{}
		for _, key := range slices.Sorted(slices.Values(keys)) {
			if len(key) >= len(prefix) && key[:len(prefix)] == prefix {
				want = append(want, key)
			}
		}
		require.Equal(t, want, keysOf(t, ctx, p, prefix), "prefix %q", prefix)
	}
	require.NoError(t, p.List(ctx, "", func(o storage.Object) error {
		i := slices.Index(keys, o.Key)
		requireObject(t, o, o.Key, content(uint64(i), i))
		return nil
	}))
}

func testListPages(t *testing.T, ctx context.Context, p storage.Provider) {
	const n = 1100 // GCS and S3 give at most 1,000 a page
	key := func(i int) string { return fmt.Sprintf("pages/%02x/%04d", i%7, i) }
	require.NoError(t, each(n, 16, func(i int) error {
		_, err := p.Put(ctx, key(i), []byte{byte(i)}, storage.PutOptions{CreateOnly: true})
		return err
	}))
	put(t, ctx, p, "other", []byte("x"))
	want := make([]string, n)
	for i := range n {
		want[i] = key(i)
	}
	slices.Sort(want)
	require.Equal(t, want, keysOf(t, ctx, p, "pages/"))
	require.Len(t, keysOf(t, ctx, p, ""), n+1)
	require.Len(t, keysOf(t, ctx, p, "pages/03/"), 157)

	// Cancelled in the middle: an error, never a short success.
	stopped, cancel := context.WithCancel(ctx)
	defer cancel()
	seen := 0
	err := p.List(stopped, "", func(storage.Object) error {
		if seen++; seen == 10 {
			cancel()
		}
		return nil
	})
	require.ErrorIs(t, err, context.Canceled)
	require.Less(t, seen, n+1)
}

func testListStops(t *testing.T, ctx context.Context, p storage.Provider) {
	for i := range 5 {
		put(t, ctx, p, fmt.Sprintf("k%d", i), nil)
	}
	stop := errors.New("enough")
	seen := 0
	err := p.List(ctx, "", func(storage.Object) error {
		if seen++; seen == 3 {
			return stop
		}
		return nil
	})
	require.ErrorIs(t, err, stop)
	require.Equal(t, 3, seen)
}
