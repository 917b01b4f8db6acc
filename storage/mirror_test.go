package storage_test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"holdfast/storage"
	"holdfast/storage/faulty"
	"holdfast/storage/storagetest"
)

// copies is n faulty providers in memory and a mirror of them with short times.
type copies struct {
	*storage.Mirror
	memory []*storagetest.Memory
	faulty []*faulty.Provider
}

func newCopies(t *testing.T, n int, options storage.MirrorOptions) *copies {
	t.Helper()
	c := &copies{}
	var providers []storage.Provider
	for range n {
		memory := storagetest.NewMemory()
		c.memory = append(c.memory, memory)
		c.faulty = append(c.faulty, faulty.New(memory))
		providers = append(providers, c.faulty[len(c.faulty)-1])
	}
	if options.RetryFor == 0 {
		options.RetryFor = -1
	}
	if options.LagTimeout == 0 {
		options.LagTimeout = 50 * time.Millisecond
	}
	mirror, err := storage.NewMirror(providers, options)
	require.NoError(t, err)
	c.Mirror = mirror
	t.Cleanup(func() { require.NoError(t, mirror.Close()) })
	return c
}

func (c *copies) url(i int) string { return c.memory[i].URL() }

func (c *copies) holders(key string) int {
	n := 0
	for _, memory := range c.memory {
		for _, k := range memory.Keys() {
			if k == key {
				n++
			}
		}
	}
	return n
}

func (c *copies) seed(t *testing.T, key string, data []byte, where ...int) {
	t.Helper()
	for _, i := range where {
		_, err := c.memory[i].Put(t.Context(), key, data, storage.PutOptions{})
		require.NoError(t, err)
	}
}

var allPolicies = []storage.Policy{storage.PolicyAll, storage.PolicyAny, {Required: 2}}

// What Put says is true: nil only when as many as the policy requires hold the object, under every fault on every
// subset of three providers (A8, invariant 10).
func TestMirrorPutNeverSaysMoreThanIsTrue(t *testing.T) {
	for _, policy := range allPolicies {
		for _, kind := range []faulty.Kind{faulty.Error, faulty.Hang, faulty.Reset, faulty.LostAnswer} {
			for mask := range 8 {
				t.Run(fmt.Sprintf("%s/%d/%03b", policy, kind, mask), func(t *testing.T) {
					t.Parallel()
					// Nobody is cut off for being slow: on a busy machine that would be one that is well.
					options := storage.MirrorOptions{Policy: policy, LagTimeout: time.Hour}
					if kind == faulty.Hang {
						options.StallTimeout = 500 * time.Millisecond
					}
					c := newCopies(t, 3, options)
					bad := 0
					for i := range 3 {
						if mask&(1<<i) != 0 {
							bad++
							c.faulty[i].Inject(faulty.Rule{Op: faulty.Put, Kind: kind})
						}
					}
					err := c.Put(t.Context(), "data/x", []byte("content"), storage.PutOptions{CreateOnly: true})
					required := policy.Count(3)
					if 3-bad >= required {
						require.NoError(t, err)
						require.GreaterOrEqual(t, c.holders("data/x"), required)
						require.Len(t, c.Behind(), bad)
						for _, url := range c.Behind() {
							require.Error(t, c.BehindError(url))
						}
					} else {
						require.Error(t, err)
						require.True(t, storage.Retryable(err))
						require.Empty(t, c.Behind())
						for i := range 3 {
							if mask&(1<<i) != 0 {
								require.ErrorContains(t, err, c.url(i), "each provider's cause is named")
							}
						}
					}
				})
			}
		}
	}
}

func TestMirrorOneSlowProvider(t *testing.T) {
	before := goleak.IgnoreCurrent()
	t.Cleanup(func() { goleak.VerifyNone(t, before) }) // runs after the mirror's Close
	c := newCopies(t, 2, storage.MirrorOptions{Policy: storage.PolicyAny, LagTimeout: 30 * time.Millisecond})
	c.faulty[1].Inject(faulty.Rule{Op: faulty.Put, Kind: faulty.Hang})
	require.NoError(t, c.Put(t.Context(), "a", []byte("a"), storage.PutOptions{}))
	require.Equal(t, []string{c.url(1)}, c.Behind())
	c.faulty[1].Clear()
	require.NoError(t, c.Put(t.Context(), "b", []byte("b"), storage.PutOptions{}))
	require.Equal(t, 1, c.faulty[1].Calls(faulty.Put), "a provider that is behind gets no more writes")
	require.NoError(t, c.Wait(t.Context()))

	// It is not counted again either: it holds b no more than a.
	c.faulty[0].Inject(faulty.Rule{Op: faulty.Put, Err: syscall.ECONNREFUSED})
	err := c.Put(t.Context(), "c", []byte("c"), storage.PutOptions{})
	require.ErrorIs(t, err, syscall.ECONNREFUSED)
	require.True(t, storage.Retryable(err))
}

func TestMirrorAFewTriesInPlace(t *testing.T) {
	c := newCopies(t, 2, storage.MirrorOptions{RetryFor: 3 * time.Second, LagTimeout: 5 * time.Second})
	c.faulty[0].Inject(faulty.Rule{Op: faulty.Put, Times: 2})
	c.faulty[1].Inject(faulty.Rule{Op: faulty.Put, Kind: faulty.LostAnswer, Times: 1})
	require.NoError(t, c.Put(t.Context(), "x", []byte("x"), storage.PutOptions{CreateOnly: true}))
	require.Equal(t, 3, c.faulty[0].Calls(faulty.Put))
	require.Equal(t, 2, c.holders("x"))
	require.Empty(t, c.Behind())

	// What cannot be mended by trying is not tried again, and the wait ends with the context.
	c.faulty[0].Inject(faulty.Rule{Op: faulty.Put, Err: storage.ErrPermission})
	before := c.faulty[0].Calls(faulty.Put)
	err := c.Put(t.Context(), "y", nil, storage.PutOptions{})
	require.ErrorIs(t, err, storage.ErrPermission)
	require.False(t, storage.Retryable(err), "the only cause is permanent")
	require.Equal(t, before+1, c.faulty[0].Calls(faulty.Put))

	c = newCopies(t, 2, storage.MirrorOptions{RetryFor: 24 * time.Hour, LagTimeout: 24 * time.Hour})
	c.faulty[0].Inject(faulty.Rule{Op: faulty.Put})
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	require.ErrorIs(t, c.Put(ctx, "z", nil, storage.PutOptions{}), context.DeadlineExceeded)
}

func TestMirrorPermanentOnlyWhenAllAre(t *testing.T) {
	for _, test := range []struct {
		a, b      error
		retryable bool
		is, isNot error
	}{
		{storage.ErrPermission, storage.ErrNoSpace, false, storage.ErrPermission, storage.ErrNotFound},
		{storage.ErrPermission, syscall.ECONNRESET, true, syscall.ECONNRESET, storage.ErrPermission},
		{storage.ErrBucketNotFound, storage.ErrIntegrity, true, storage.ErrIntegrity, storage.ErrBucketNotFound},
	} {
		c := newCopies(t, 2, storage.MirrorOptions{Policy: storage.PolicyAny})
		c.faulty[0].Inject(faulty.Rule{Err: test.a})
		c.faulty[1].Inject(faulty.Rule{Err: test.b})
		_, loadErr := c.Load(t.Context(), "x", 0, -1, nil)
		for _, err := range []error{c.Put(t.Context(), "x", nil, storage.PutOptions{}), loadErr, c.Delete(t.Context(), "x")} {
			require.Equal(t, test.retryable, storage.Retryable(err), "%v", err)
			require.ErrorIs(t, err, test.is)
			require.NotErrorIs(t, err, test.isNot)
			require.ErrorContains(t, err, test.a.Error())
			require.ErrorContains(t, err, test.b.Error())
			var mirrorErr *storage.MirrorError
			require.ErrorAs(t, err, &mirrorErr)
			require.Len(t, mirrorErr.Causes, 2)
		}
	}
}

// A12: a name that another writer has on any provider is a conflict, whatever the policy.
func TestMirrorConflict(t *testing.T) {
	for _, policy := range allPolicies {
		for i := range 3 {
			c := newCopies(t, 3, storage.MirrorOptions{Policy: policy, LagTimeout: 10 * time.Second})
			c.seed(t, "record", []byte("theirs"), i)
			err := c.Put(t.Context(), "record", []byte("ours"), storage.PutOptions{CreateOnly: true})
			require.ErrorIs(t, err, storage.ErrExists)
			require.False(t, storage.Retryable(err))
		}
	}
	// Equal objects are a lost answer, invariant 8.
	c := newCopies(t, 3, storage.MirrorOptions{})
	c.seed(t, "record", []byte("ours"), 0, 2)
	require.NoError(t, c.Put(t.Context(), "record", []byte("ours"), storage.PutOptions{CreateOnly: true}))
	require.Equal(t, 3, c.holders("record"))
}

func TestMirrorPutEndsWithItsContext(t *testing.T) {
	before := goleak.IgnoreCurrent()
	t.Cleanup(func() { goleak.VerifyNone(t, before) })
	c := newCopies(t, 2, storage.MirrorOptions{LagTimeout: time.Hour, StallTimeout: time.Hour})
	c.faulty[0].Inject(faulty.Rule{Kind: faulty.Hang})
	for _, hangsUp := range []bool{true, false} {
		ctx, cancel := context.WithCancel(t.Context())
		mirror := c.Mirror
		if !hangsUp { // the same by closing
			ctx = t.Context()
			var err error
			mirror, err = storage.NewMirror(c.Providers(), storage.MirrorOptions{LagTimeout: time.Hour, RetryFor: -1})
			require.NoError(t, err)
		}
		before := c.faulty[0].Calls(faulty.Put)
		done := make(chan error, 1)
		go func() { done <- mirror.Put(ctx, "x", nil, storage.PutOptions{}) }()
		require.Eventually(t, func() bool { return c.faulty[0].Calls(faulty.Put) > before }, 30*time.Second, time.Millisecond)
		if hangsUp {
			cancel()
		} else {
			require.NoError(t, mirror.Close())
		}
		require.ErrorIs(t, <-done, context.Canceled)
		cancel()
	}
}

func TestMirrorListStatDelete(t *testing.T) {
	ctx := t.Context()
	c := newCopies(t, 3, storage.MirrorOptions{StallTimeout: time.Second})
	c.seed(t, "a/1", []byte("1"), 0, 1)
	c.seed(t, "a/2", []byte("2"), 1, 2)
	listings, failed := c.ListAll(ctx, "a/")
	require.Empty(t, failed)
	require.Len(t, listings[c.url(0)], 1)
	require.Len(t, listings[c.url(1)], 2)
	// A listing that breaks off, or hangs, is not a short one.
	c.faulty[1].Inject(faulty.Rule{Op: faulty.List, Kind: faulty.Reset})
	c.faulty[2].Inject(faulty.Rule{Op: faulty.List, Kind: faulty.Hang})
	listings, failed = c.ListAll(ctx, "a/")
	require.Len(t, listings, 1)
	require.Len(t, failed, 2)
	require.ErrorIs(t, failed[c.url(1)], syscall.ECONNRESET)
	require.ErrorIs(t, failed[c.url(2)], storage.ErrStalled)

	objects, failed := c.StatAll(ctx, "a/1")
	require.Len(t, objects, 2)
	require.ErrorIs(t, failed[c.url(2)], storage.ErrNotFound)

	c.faulty[0].Inject(faulty.Rule{Op: faulty.Delete, Times: 1})
	require.Error(t, c.Delete(ctx, "a/1"))
	require.NoError(t, c.Delete(ctx, "a/1"))
	require.Zero(t, c.holders("a/1"))
}

func TestNewMirror(t *testing.T) {
	_, err := storage.NewMirror(nil, storage.MirrorOptions{})
	require.ErrorIs(t, err, storage.ErrInvalid)
	memory := storagetest.NewMemory()
	_, err = storage.NewMirror([]storage.Provider{memory, faulty.New(memory)}, storage.MirrorOptions{})
	require.ErrorIs(t, err, storage.ErrInvalid, "one store twice would count as two copies")
	require.Equal(t, 3, storage.Policy{Required: -1}.Count(3))
	require.Equal(t, 3, storage.Policy{Required: 4}.Count(3))
}

func hashKey(prefix string, data []byte) string {
	hash := sha256.Sum256(data)
	return prefix + hex.EncodeToString(hash[:])
}

func TestMirrorRepair(t *testing.T) {
	ctx := t.Context()
	c := newCopies(t, 3, storage.MirrorOptions{})
	order := func(key string) int {
		return map[string]int{"config": 0, "data": 1, "index": 2, "snapshots": 3}[strings.SplitN(key, "/", 2)[0]]
	}
	var progress atomic.Int64
	options := storage.RepairOptions{
		Order:    order,
		Verify:   func(key string) bool { return key != "config" },
		Progress: func(p storage.RepairProgress) { progress.Store(int64(p.Done*1000 + p.Total)) },
	}
	pack, other, index, snap := []byte("a pack"), []byte("another pack"), []byte("index"), []byte("snapshot")
	packKey, otherKey, indexKey, snapKey := hashKey("data/", pack), hashKey("data/", other), hashKey("index/", index), hashKey("snapshots/", snap)
	c.seed(t, "config", []byte("config"), 0, 2)
	c.seed(t, packKey, pack, 0)
	c.seed(t, otherKey, other, 0, 1, 2)
	c.memory[0].Corrupt(otherKey, func(b []byte) []byte { b[0] ^= 1; return b }) // the first provider's is the bad one
	c.seed(t, indexKey, index, 0, 1)
	c.seed(t, snapKey, snap, 1)

	// A pack that cannot be written holds back what names it, for that provider only.
	c.faulty[2].Inject(faulty.Rule{Op: faulty.Put, Match: func(key string) bool { return key == packKey }})
	report, err := c.Repair(ctx, "", options)
	require.ErrorContains(t, err, packKey)
	require.ElementsMatch(t, []string{indexKey, snapKey}, report.Held)
	require.NotContains(t, c.memory[2].Keys(), indexKey)
	require.NotContains(t, c.memory[2].Keys(), snapKey)
	require.Contains(t, c.memory[0].Keys(), snapKey)
	require.Equal(t, 1, report.Replaced)
	require.False(t, report.Complete())

	c.faulty[2].Clear()
	report, err = c.Repair(ctx, "", options)
	require.NoError(t, err)
	require.True(t, report.Complete())
	require.Equal(t, 3, report.Copied[c.url(2)])
	require.EqualValues(t, 3003, progress.Load())
	for _, memory := range c.memory {
		require.Len(t, memory.Keys(), 5)
		for key, want := range map[string][]byte{"config": []byte("config"), packKey: pack, otherKey: other, indexKey: index, snapKey: snap} {
			got, err := storage.ReadAll(ctx, memory, key, 0, -1)
			require.NoError(t, err)
			require.Equal(t, want, got)
		}
	}
	report, err = c.Repair(ctx, "", options)
	require.NoError(t, err)
	require.Empty(t, report.Copied)
}

// Repair spreads no damage, decides no conflict, and invents nothing.
func TestMirrorRepairLeavesAlone(t *testing.T) {
	ctx := t.Context()
	c := newCopies(t, 3, storage.MirrorOptions{})
	verify := storage.RepairOptions{Verify: func(key string) bool { return strings.HasPrefix(key, "data/") }}
	lost := hashKey("data/", []byte("lost"))
	c.seed(t, lost, []byte("LOST"), 0)
	c.seed(t, "config", []byte("one"), 0)
	c.seed(t, "config", []byte("two"), 1)
	report, err := c.Repair(ctx, "", verify)
	require.NoError(t, err)
	require.False(t, report.Complete())
	require.Equal(t, []string{lost}, report.Lost)
	require.Equal(t, []string{"config"}, report.Conflicts)
	require.Empty(t, report.Copied)
	require.Empty(t, c.memory[2].Keys())

	// A provider that cannot be listed is not taken for empty.
	c = newCopies(t, 2, storage.MirrorOptions{})
	c.seed(t, "config", []byte("one"), 0)
	c.faulty[1].Inject(faulty.Rule{Op: faulty.List})
	_, err = c.Repair(ctx, "", verify)
	require.ErrorIs(t, err, faulty.ErrInjected)
	require.Empty(t, c.memory[1].Keys())

	// A source that reads differently from what it says is not copied.
	c.faulty[1].Clear()
	c.faulty[0].Inject(faulty.Rule{Op: faulty.Get, Kind: faulty.Truncate})
	_, err = c.Repair(ctx, "", verify)
	require.ErrorIs(t, err, storage.ErrIntegrity)
	require.Empty(t, c.memory[1].Keys())
}
