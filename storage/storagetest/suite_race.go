package storagetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"holdfast/storage"
)

func testCreateOnly(t *testing.T, ctx context.Context, p storage.Provider) {
	first, other := content(5, 2000), content(6, 2000)
	object, err := p.Put(ctx, "c/one", first, storage.PutOptions{CreateOnly: true})
	require.NoError(t, err)
	requireObject(t, object, "c/one", first)

	_, err = p.Put(ctx, "c/one", other, storage.PutOptions{CreateOnly: true})
	require.ErrorIs(t, err, storage.ErrExists)
	require.False(t, storage.Retryable(err))
	requireContent(t, ctx, p, "c/one", first)
	_, err = p.Put(ctx, "c/one", first[:1999], storage.PutOptions{CreateOnly: true})
	require.ErrorIs(t, err, storage.ErrExists, "a shorter one")

	// invariant 8: the answer to the first write was lost, the write is made again.
	object, err = p.Put(ctx, "c/one", first, storage.PutOptions{CreateOnly: true})
	require.NoError(t, err, "an equal object that is there already is a success")
	requireObject(t, object, "c/one", first)

	require.NoError(t, p.Delete(ctx, "c/one"))
	_, err = p.Put(ctx, "c/one", other, storage.PutOptions{CreateOnly: true})
	require.NoError(t, err)
	requireContent(t, ctx, p, "c/one", other)
}

func testCreateOnlyRace(t *testing.T, ctx context.Context, p storage.Provider) {
	const writers = 8
	for round := range 5 {
		key := fmt.Sprintf("race/%d", round)
		var winner atomic.Int64
		winner.Store(-1)
		start := make(chan struct{})
		var group errgroup.Group
		for i := range writers {
			group.Go(func() error {
				<-start
				_, err := p.Put(ctx, key, content(uint64(i), 5000), storage.PutOptions{CreateOnly: true})
				switch {
				case errors.Is(err, storage.ErrExists):
					return nil
				case err != nil:
					return err
				case !winner.CompareAndSwap(-1, int64(i)):
					return fmt.Errorf("writers %d and %d both won", winner.Load(), i)
				}
				return nil
			})
		}
		close(start)
		require.NoError(t, group.Wait())
		require.GreaterOrEqual(t, winner.Load(), int64(0), "nobody won")
		requireContent(t, ctx, p, key, content(uint64(winner.Load()), 5000))
	}
}

func testCreateOnlyRaceOfEquals(t *testing.T, ctx context.Context, p storage.Provider) {
	data := content(9, 5000)
	require.NoError(t, each(8, 8, func(int) error {
		_, err := p.Put(ctx, "equals", data, storage.PutOptions{CreateOnly: true})
		return err
	}))
	requireContent(t, ctx, p, "equals", data)
}

func testOverwriteIsAtomic(t *testing.T, ctx context.Context, p storage.Provider) {
	versions := [][]byte{bytes.Repeat([]byte("a"), 300_000), bytes.Repeat([]byte("b"), 200_001)}
	put(t, ctx, p, "head", versions[0])
	reading, stop := context.WithCancel(ctx)
	defer stop()
	var reads atomic.Int64
	var group errgroup.Group
	for range 3 {
		group.Go(func() error {
			for reading.Err() == nil {
				got, err := storage.ReadAll(ctx, p, "head", 0, -1)
				if err != nil {
					return fmt.Errorf("a reader beside a writer: %w", err)
				}
				if !bytes.Equal(got, versions[0]) && !bytes.Equal(got, versions[1]) {
					return fmt.Errorf("a reader saw %d bytes that nobody wrote", len(got))
				}
				reads.Add(1)
			}
			return nil
		})
	}
	for i := 0; i < 30 || (reads.Load() < 20 && ctx.Err() == nil && i < 1000); i++ {
		put(t, ctx, p, "head", versions[i%2])
	}
	stop()
	require.NoError(t, group.Wait())
	require.Positive(t, reads.Load())
}

func testCancelled(t *testing.T, ctx context.Context, p storage.Provider) {
	put(t, ctx, p, "there", []byte("x"))
	cancelled, cancel := context.WithCancel(ctx)
	cancel()
	for _, options := range []storage.PutOptions{{}, {CreateOnly: true}} {
		_, err := p.Put(cancelled, "never", []byte("x"), options)
		require.ErrorIs(t, err, context.Canceled, "put")
	}
	_, err := storage.ReadAll(cancelled, p, "there", 0, -1)
	require.ErrorIs(t, err, context.Canceled, "get")
	_, err = p.Stat(cancelled, "there")
	require.ErrorIs(t, err, context.Canceled, "stat")
	err = p.List(cancelled, "", func(storage.Object) error { return nil })
	require.ErrorIs(t, err, context.Canceled, "list")
	require.ErrorIs(t, p.Delete(cancelled, "there"), context.Canceled, "delete")
	require.Equal(t, []string{"there"}, keysOf(t, ctx, p, ""))
}

func testCancelledWhileReading(t *testing.T, ctx context.Context, p storage.Provider) {
	put(t, ctx, p, "big", content(8, 16<<20))
	reading, cancel := context.WithCancel(ctx)
	defer cancel()
	body, err := p.Get(reading, "big", 0, -1)
	require.NoError(t, err)
	_, err = io.ReadFull(body, make([]byte, 1000))
	require.NoError(t, err)
	cancel()
	_, err = io.Copy(io.Discard, body)
	require.ErrorIs(t, err, context.Canceled)
	_ = body.Close() // closing what was cut off may report the cut
}

func testConcurrent(t *testing.T, ctx context.Context, p storage.Provider) {
	require.NoError(t, each(8, 8, func(worker int) error {
		for i := range 10 {
			key := fmt.Sprintf("w%d/%d", worker%3, worker*100+i)
			data := content(uint64(worker*100+i), 1000*i)
			if _, err := p.Put(ctx, key, data, storage.PutOptions{CreateOnly: i%2 == 0}); err != nil {
				return err
			}
			got, err := storage.ReadAll(ctx, p, key, 0, -1)
			if err != nil {
				return err
			}
			if !bytes.Equal(got, data) {
				return fmt.Errorf("%s: read back something else", key)
			}
			if err := p.List(ctx, key, func(storage.Object) error { return nil }); err != nil {
				return err
			}
			if i%3 == 0 {
				if err := p.Delete(ctx, key); err != nil {
					return err
				}
			}
		}
		return nil
	}))
	require.Len(t, keysOf(t, ctx, p, ""), 8*6)
}

func testURL(t *testing.T, _ context.Context, p storage.Provider) {
	require.Contains(t, p.URL(), "://")
	require.NotContains(t, p.URL(), "@")
}
