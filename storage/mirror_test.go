package storage_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
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

// sum checks content as a reader who knows the hash does.
func sum(data []byte) func([]byte) error {
	want := sha256.Sum256(data)
	return func(got []byte) error {
		if sha256.Sum256(got) != want {
			return errors.New("wrong hash")
		}
		return nil
	}
}

// A9, seed 004: whatever goes wrong with one provider, object by object, the other is read, and it is counted. What
// comes back is what was stored, or it is an error.
func TestMirrorLoadFallsBack(t *testing.T) {
	data := bytes.Repeat([]byte("0123456789"), 1000)
	for name, rule := range map[string]faulty.Rule{
		"error":      {Kind: faulty.Error},
		"absent":     {Err: storage.ErrNotFound},
		"forbidden":  {Err: storage.ErrPermission},
		"hang":       {Kind: faulty.Hang},
		"truncated":  {Kind: faulty.Truncate},
		"bytes":      {Kind: faulty.WrongBytes},
		"length":     {Kind: faulty.WrongLength},
		"reset":      {Kind: faulty.Reset},
		"lostAnswer": {Kind: faulty.LostAnswer},
	} {
		rule.Op = faulty.Get
		for _, r := range [][2]int64{{0, -1}, {0, 10_000}, {5000, 100}, {9000, -1}} {
			t.Run(fmt.Sprintf("%s/%d", name, r), func(t *testing.T) {
				t.Parallel()
				var told []string
				options := storage.MirrorOptions{OnFallback: func(url, key string, err error) { told = append(told, url+" "+key) }}
				if name == "hang" {
					options.StallTimeout = 500 * time.Millisecond // enough for the other one, on a busy machine too
				}
				c := newCopies(t, 2, options)
				c.seed(t, "x", data, 0, 1)
				want := data[r[0]:]
				if r[1] >= 0 {
					want = want[:r[1]]
				}
				check := sum(want)
				got, err := c.Load(t.Context(), "x", r[0], r[1], check)
				require.NoError(t, err)
				require.Equal(t, want, got)
				require.Empty(t, c.Fallbacks())

				c.faulty[0].Inject(rule)
				got, err = c.Load(t.Context(), "x", r[0], r[1], check)
				require.NoError(t, err)
				require.Equal(t, want, got)
				require.Equal(t, map[string]int64{c.url(0): 1}, c.Fallbacks())
				require.Equal(t, []string{c.url(0) + " x"}, told)

				c.faulty[1].Inject(rule) // nothing is left
				got, err = c.Load(t.Context(), "x", r[0], r[1], check)
				require.Error(t, err)
				require.Nil(t, got, "bytes together with an error")
				require.Equal(t, name == "absent", errors.Is(err, storage.ErrNotFound), "%v", err)
				if name == "bytes" || name == "length" {
					require.ErrorIs(t, err, storage.ErrIntegrity)
				}
			})
		}
	}
}

// Without a check a whole object is still compared with what the provider itself says of it.
func TestMirrorLoadWithoutCheck(t *testing.T) {
	for _, kind := range []faulty.Kind{faulty.Truncate, faulty.WrongBytes, faulty.WrongLength} {
		c := newCopies(t, 2, storage.MirrorOptions{})
		c.seed(t, "x", []byte("content"), 0, 1)
		c.faulty[0].Inject(faulty.Rule{Op: faulty.Get, Kind: kind})
		got, err := c.Load(t.Context(), "x", 0, -1, nil)
		require.NoError(t, err)
		require.Equal(t, "content", string(got))
		c.faulty[1].Inject(faulty.Rule{Op: faulty.Get, Kind: kind})
		_, err = c.Load(t.Context(), "x", 0, -1, nil)
		require.ErrorIs(t, err, storage.ErrIntegrity)
	}
}

func TestMirrorLoadSaysWhatIsTrue(t *testing.T) {
	ctx := t.Context()
	data := []byte("0123456789")
	// Absent here and unreachable there is not "not found".
	c := newCopies(t, 2, storage.MirrorOptions{})
	c.faulty[1].Inject(faulty.Rule{Op: faulty.Get})
	_, err := c.Load(ctx, "x", 0, -1, sum(data))
	require.NotErrorIs(t, err, storage.ErrNotFound)
	require.True(t, storage.Retryable(err))
	// Absent here and forbidden there neither, but a person must act.
	c.faulty[1].Clear()
	c.faulty[1].Inject(faulty.Rule{Op: faulty.Get, Err: storage.ErrPermission})
	_, err = c.Load(ctx, "x", 0, -1, sum(data))
	require.NotErrorIs(t, err, storage.ErrNotFound)
	require.ErrorIs(t, err, storage.ErrPermission)
	require.False(t, storage.Retryable(err))
	// Absent here and damaged there is damaged.
	c.faulty[1].Clear()
	c.seed(t, "x", data, 1)
	c.memory[1].Corrupt("x", func(b []byte) []byte { b[3] ^= 1; return b })
	_, err = c.Load(ctx, "x", 0, -1, sum(data))
	require.NotErrorIs(t, err, storage.ErrNotFound)
	require.ErrorIs(t, err, storage.ErrIntegrity)
	// A stored object that is shorter than the range is damaged, not just a broken connection.
	c.memory[1].Corrupt("x", func(b []byte) []byte { return b[:5] })
	_, err = c.Load(ctx, "x", 2, 8, sum(data[2:]))
	require.ErrorIs(t, err, storage.ErrIntegrity)
	// All say so.
	_, err = c.Load(ctx, "y", 0, -1, nil)
	require.ErrorIs(t, err, storage.ErrNotFound)
	require.False(t, storage.Retryable(err))
	// The caller's own end is no verdict.
	ended, cancel := context.WithCancel(ctx)
	cancel()
	_, err = c.Load(ended, "y", 0, -1, nil)
	require.ErrorIs(t, err, context.Canceled)
	require.NotErrorIs(t, err, storage.ErrNotFound)
}

func TestMirrorLoadTriesAgain(t *testing.T) {
	c := newCopies(t, 2, storage.MirrorOptions{RetryFor: 3 * time.Second})
	c.seed(t, "x", []byte("content"), 1)
	c.faulty[1].Inject(faulty.Rule{Op: faulty.Get, Kind: faulty.Reset, Times: 1})
	c.faulty[1].Inject(faulty.Rule{Op: faulty.Get, Kind: faulty.WrongBytes, Times: 1})
	got, err := c.Load(t.Context(), "x", 0, -1, sum([]byte("content")))
	require.NoError(t, err)
	require.Equal(t, "content", string(got))
	require.Equal(t, 1, c.faulty[0].Calls(faulty.Get), "who said not found is not asked again")
	// Damaged twice is damaged: not asked for seconds.
	c.memory[1].Corrupt("x", func(b []byte) []byte { b[3] ^= 1; return b })
	before := c.faulty[1].Calls(faulty.Get)
	_, err = c.Load(t.Context(), "x", 0, -1, sum([]byte("content")))
	require.ErrorIs(t, err, storage.ErrIntegrity)
	require.Equal(t, before+2, c.faulty[1].Calls(faulty.Get))
}

// A provider that hangs is not waited for at every object of a restore.
func TestMirrorLoadPassesOverWhoHangs(t *testing.T) {
	c := newCopies(t, 2, storage.MirrorOptions{StallTimeout: time.Second})
	c.faulty[0].Inject(faulty.Rule{Op: faulty.Get, Kind: faulty.Hang})
	for i := range 20 {
		key := fmt.Sprint(i)
		c.seed(t, key, []byte(key), 0, 1)
	}
	for i := range 20 {
		_, err := c.Load(t.Context(), fmt.Sprint(i), 0, -1, sum([]byte(fmt.Sprint(i))))
		require.NoError(t, err)
	}
	require.Less(t, c.faulty[0].Calls(faulty.Get), 10, "it is asked again once in a while")
	require.EqualValues(t, 20, c.Fallbacks()[c.url(0)])
	// It comes back by itself, and is asked when the other has nothing.
	c.faulty[0].Clear()
	c.seed(t, "only", []byte("here"), 0)
	_, err := c.Load(t.Context(), "only", 0, -1, nil)
	require.NoError(t, err)
	require.Eventually(t, func() bool {
		before := c.faulty[0].Calls(faulty.Get)
		_, err := c.Load(t.Context(), "1", 0, -1, nil)
		return err == nil && c.faulty[0].Calls(faulty.Get) > before
	}, 30*time.Second, 20*time.Millisecond)
}

// slowBody gives a byte now and then: slow, but alive.
type slowProvider struct{ storage.Provider }

func (p slowProvider) Get(context.Context, string, int64, int64) (io.ReadCloser, error) {
	return io.NopCloser(slowReader{strings.NewReader(slowContent)}), nil
}

// slowContent takes 1.6 s.
var slowContent = strings.Repeat("0123456789", 4)

type slowReader struct{ *strings.Reader }

func (r slowReader) Read(p []byte) (int, error) {
	time.Sleep(40 * time.Millisecond) // the slowness under test
	return r.Reader.Read(p[:1])
}

func TestMirrorSlowIsNotStalled(t *testing.T) {
	mirror, err := storage.NewMirror([]storage.Provider{slowProvider{storagetest.NewMemory()}}, storage.MirrorOptions{StallTimeout: time.Second})
	require.NoError(t, err)
	got, err := mirror.Load(t.Context(), "x", 0, int64(len(slowContent)), nil) // takes longer than that in all
	require.NoError(t, err)
	require.Equal(t, slowContent, string(got))
}

func TestMirrorLimitsWhatItTakesIn(t *testing.T) {
	c := newCopies(t, 1, storage.MirrorOptions{MaxObject: 1000})
	c.seed(t, "x", make([]byte, 1001), 0)
	_, err := c.Load(t.Context(), "x", 0, -1, nil)
	require.ErrorIs(t, err, storage.ErrIntegrity)
	_, err = c.Load(t.Context(), "x", 0, 1001, nil)
	require.ErrorIs(t, err, storage.ErrInvalid)
	_, err = c.Load(t.Context(), "x", 1, 1000, nil)
	require.NoError(t, err)
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
