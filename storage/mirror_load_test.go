package storage_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"holdfast/storage"
	"holdfast/storage/faulty"
	"holdfast/storage/storagetest"
)

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
	synctest.Test(t, testMirrorLoadPassesOverWhoHangs)
}

func testMirrorLoadPassesOverWhoHangs(t *testing.T) {
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

func TestMirrorSlowIsNotStalled(t *testing.T) { synctest.Test(t, testMirrorSlowIsNotStalled) }

func testMirrorSlowIsNotStalled(t *testing.T) {
	mirror, err := storage.NewMirror([]storage.Provider{slowProvider{storagetest.NewMemory()}}, storage.MirrorOptions{StallTimeout: time.Second})
	require.NoError(t, err)
	got, err := mirror.Load(t.Context(), "x", 0, int64(len(slowContent)), nil) // takes longer than that in all
	require.NoError(t, err)
	require.Equal(t, slowContent, string(got))
	require.NoError(t, mirror.Close())
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
