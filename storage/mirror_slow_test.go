package storage_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"holdfast/storage"
	"holdfast/storage/storagetest"
)

// paced is a store in memory that takes its time for every write, and then may fail it.
type paced struct {
	*storagetest.Memory
	takes time.Duration
	fails error
	puts  int
}

func (p *paced) Put(ctx context.Context, key string, data []byte, options storage.PutOptions) (storage.Object, error) {
	p.puts++
	select {
	case <-time.After(p.takes):
	case <-ctx.Done():
		return storage.Object{}, ctx.Err()
	}
	if p.fails != nil {
		return storage.Object{}, p.fails
	}
	return p.Memory.Put(ctx, key, data, options)
}

// TestTroubledStoreDelaysNothing: with the policy any, a second store that is slow, throttles, is read-only or full costs
// a run of writes no more than is said: LagTimeout once for one that does not answer in time, twice the time at most for
// one that is a little too slow at everything, nothing for one that refuses. It is then behind, and is not written to any
// more; what it holds is never counted again. The clock is the test's own, so the times are exact.
func TestTroubledStoreDelaysNothing(t *testing.T) {
	const each, objects = time.Second, 60
	for _, test := range []struct {
		name    string
		second  paced
		atMost  time.Duration // for all objects
		behind  bool
		written int // to the second store, at most
	}{
		{"as fast", paced{takes: each}, objects * each, false, objects},
		{"a little slower", paced{takes: each + each/2}, objects * each * 3 / 2, false, objects},
		{"much slower, and never as slow as LagTimeout", paced{takes: 5 * each}, 2*objects*each + 10*time.Second, true, objects / 2},
		{"slower than LagTimeout", paced{takes: 20 * each}, objects*each + 5*time.Second, true, 1},
		{"silent", paced{takes: time.Hour}, objects*each + 5*time.Second, true, 1},
		{"read-only", paced{fails: fmt.Errorf("403: %w", storage.ErrPermission)}, objects * each, true, 1},
		{"full", paced{fails: fmt.Errorf("507: %w", storage.ErrNoSpace)}, objects * each, true, 1},
		{"throttling", paced{fails: errors.New("429 Too Many Requests")}, objects*each + 5*time.Second, true, 20},
		{"throttling slowly", paced{takes: 3 * each, fails: errors.New("503 Slow Down")}, objects*each + 5*time.Second, true, 20},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				first, second := &paced{Memory: storagetest.NewMemory(), takes: each}, test.second
				second.Memory = storagetest.NewMemory()
				mirror, err := storage.NewMirror([]storage.Provider{first, &second}, storage.MirrorOptions{Policy: storage.PolicyAny})
				require.NoError(t, err)
				began := time.Now()
				for i := range objects {
					require.NoError(t, mirror.Put(t.Context(), fmt.Sprintf("object-%d", i), []byte("content"), storage.PutOptions{}))
				}
				took := time.Since(began)
				require.LessOrEqual(t, took, test.atMost)
				require.Equal(t, test.behind, len(mirror.Behind()) > 0)
				require.Len(t, first.Keys(), objects)
				require.LessOrEqual(t, second.puts, test.written)
				if !test.behind {
					require.Len(t, second.Keys(), objects, "both have all")
				}
				require.NoError(t, mirror.Close())
			})
		})
	}
}

// TestSlowStoreThatIsNeeded: with the policy all the same store is waited for, and nothing is owed.
func TestSlowStoreThatIsNeeded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		first, second := &paced{Memory: storagetest.NewMemory()}, &paced{Memory: storagetest.NewMemory(), takes: 20 * time.Second}
		mirror, err := storage.NewMirror([]storage.Provider{first, second}, storage.MirrorOptions{Policy: storage.PolicyAll})
		require.NoError(t, err)
		for i := range 10 {
			require.NoError(t, mirror.Put(t.Context(), fmt.Sprintf("object-%d", i), []byte("content"), storage.PutOptions{}))
		}
		require.Empty(t, mirror.Behind())
		require.Len(t, second.Keys(), 10)
		require.NoError(t, mirror.Close())
	})
}
