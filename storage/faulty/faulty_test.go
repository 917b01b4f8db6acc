package faulty_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"holdfast/storage"
	"holdfast/storage/faulty"
	"holdfast/storage/storagetest"
)

func TestWithoutRules(t *testing.T) {
	storagetest.Run(t, func(*testing.T) storage.Provider { return faulty.New(storagetest.NewMemory()) })
}

func TestWhichCallsFail(t *testing.T) {
	ctx := t.Context()
	f := faulty.New(storagetest.NewMemory())
	own := errors.New("own")
	f.Inject(faulty.Rule{Op: faulty.Put, Match: func(key string) bool { return strings.HasPrefix(key, "data/") }, Skip: 1, Times: 2, Err: own})
	var failed []int
	for i := range 5 {
		_, err := f.Put(ctx, "index/x", nil, storage.PutOptions{})
		require.NoError(t, err)
		if _, err := f.Put(ctx, fmt.Sprintf("data/%d", i), nil, storage.PutOptions{}); err != nil {
			require.ErrorIs(t, err, own)
			failed = append(failed, i)
		}
	}
	require.Equal(t, []int{1, 2}, failed)
	require.Equal(t, 10, f.Calls(faulty.Put))
	require.Equal(t, 2, f.Fired())
	f.Inject(faulty.Rule{})
	_, err := f.Stat(ctx, "data/0")
	require.ErrorIs(t, err, faulty.ErrInjected)
	require.True(t, storage.Retryable(err))
	f.Clear()
	_, err = f.Stat(ctx, "data/0")
	require.NoError(t, err)
	require.Equal(t, 12, f.Calls(faulty.Any))
}

func TestKinds(t *testing.T) {
	ctx := t.Context()
	data := []byte("0123456789")
	fresh := func(rule faulty.Rule) (*faulty.Provider, *storagetest.Memory) {
		memory := storagetest.NewMemory()
		for _, key := range []string{"a", "b", "c", "d"} {
			_, err := memory.Put(ctx, key, data, storage.PutOptions{})
			require.NoError(t, err)
		}
		f := faulty.New(memory)
		f.Inject(rule)
		return f, memory
	}
	stored := func(m *storagetest.Memory, key string) string {
		got, err := storage.ReadAll(ctx, m, key, 0, -1)
		if err != nil {
			require.ErrorIs(t, err, storage.ErrNotFound)
			return "absent"
		}
		return string(got)
	}

	for kind, want := range map[faulty.Kind]string{
		faulty.Truncate: "01234", faulty.WrongBytes: "01234%6789", faulty.WrongLength: "0123456789x", faulty.NotStored: "absent",
		faulty.LostAnswer: "0123456789", faulty.Reset: "absent", faulty.Error: "absent",
	} {
		f, memory := fresh(faulty.Rule{Op: faulty.Put, Kind: kind})
		object, err := f.Put(ctx, "new", data, storage.PutOptions{})
		require.Equal(t, want, stored(memory, "new"), kind)
		switch kind {
		case faulty.LostAnswer, faulty.Error:
			require.ErrorIs(t, err, faulty.ErrInjected)
		case faulty.Reset:
			require.ErrorIs(t, err, syscall.ECONNRESET)
		default: // a lie
			require.NoError(t, err)
			require.EqualValues(t, 10, object.Size)
			require.Equal(t, storage.Checksum(data), object.CRC32C)
		}
	}
	for kind, want := range map[faulty.Kind]string{
		faulty.Truncate: "01234", faulty.WrongBytes: "01234%6789", faulty.WrongLength: "0123456789x", faulty.Reset: "01234",
	} {
		f, _ := fresh(faulty.Rule{Op: faulty.Get, Kind: kind})
		body, err := f.Get(ctx, "a", 0, -1)
		require.NoError(t, err)
		var got bytes.Buffer
		_, err = io.Copy(&got, body)
		require.NoError(t, body.Close())
		require.Equal(t, want, got.String())
		require.Equal(t, kind == faulty.Reset, errors.Is(err, syscall.ECONNRESET), "%v", err)
	}
	for kind, want := range map[faulty.Kind]int{faulty.Truncate: 2, faulty.Reset: 2, faulty.LostAnswer: 4, faulty.Error: 0} {
		f, _ := fresh(faulty.Rule{Op: faulty.List, Kind: kind})
		n := 0
		err := f.List(ctx, "", func(storage.Object) error { n++; return nil })
		require.Equal(t, want, n)
		require.Equal(t, kind != faulty.Truncate, err != nil)
	}
	f, memory := fresh(faulty.Rule{Op: faulty.Delete, Kind: faulty.NotStored, Times: 1})
	require.NoError(t, f.Delete(ctx, "a"))
	require.Len(t, memory.Keys(), 4)
	f.Clear()
	f.Inject(faulty.Rule{Op: faulty.Delete, Kind: faulty.LostAnswer})
	require.Error(t, f.Delete(ctx, "a"))
	require.Len(t, memory.Keys(), 3)
}

// Times are exact, a slow body comes piece by piece, and every kind is among Kinds.
func TestSlow(t *testing.T) {
	require.Contains(t, faulty.Kinds(), faulty.Slow)
	synctest.Test(t, func(t *testing.T) {
		data := make([]byte, 10<<10)
		f := faulty.New(storagetest.NewMemory())
		f.Inject(faulty.Rule{Kind: faulty.Slow, Delay: time.Minute, Times: 2})
		f.Inject(faulty.Rule{Kind: faulty.Error, Delay: time.Second})
		took := func(call func() error) time.Duration {
			began := time.Now()
			require.NoError(t, call())
			return time.Since(began)
		}
		require.Equal(t, time.Minute, took(func() error { _, err := f.Put(t.Context(), "x", data, storage.PutOptions{}); return err }))
		require.Equal(t, 4*time.Minute, took(func() error {
			got, err := storage.ReadAll(t.Context(), f, "x", 0, int64(len(data)))
			require.Equal(t, data, got)
			return err
		}), "until it opens, and for three pieces")
		require.Equal(t, time.Second, took(func() error {
			_, err := f.Stat(t.Context(), "x")
			require.ErrorIs(t, err, faulty.ErrInjected)
			return nil
		}))
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		require.ErrorIs(t, f.Delete(ctx, "x"), context.DeadlineExceeded)
	})
}

func TestHangEndsWithTheContext(t *testing.T) {
	f := faulty.New(storagetest.NewMemory())
	f.Inject(faulty.Rule{Kind: faulty.Hang})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() {
		_, err := f.Put(ctx, "x", nil, storage.PutOptions{})
		done <- err
	}()
	select {
	case err := <-done:
		t.Fatalf("it did not hang: %v", err)
	default:
	}
	cancel()
	require.ErrorIs(t, <-done, context.Canceled)
}
