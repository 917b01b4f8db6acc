package dataport

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func givePattern(size int64) func(context.Context, Claims, DownloadRequest, BeginDownload) error {
	return func(_ context.Context, _ Claims, _ DownloadRequest, begin BeginDownload) error {
		w, err := begin(DownloadInfo{Source: SourceSnapshot, Time: time.Unix(1e9, 0).UTC(), Snapshot: "abc", Note: "two days old"})
		if err != nil {
			return err
		}
		_, err = io.Copy(w, &pattern{size: size})
		return err
	}
}

func TestDownload(t *testing.T) {
	h := start(t, &fakeHost{download: givePattern(9<<20 + 17)}, nil)
	var info DownloadInfo
	check := &patternCheck{}
	require.NoError(t, h.client(VerbDownload).Download(context.Background(), DownloadRequest{}, func(i DownloadInfo) (io.Writer, error) {
		info = i
		return check, nil
	}))
	require.EqualValues(t, 9<<20+17, check.at)
	require.Equal(t, DownloadInfo{Source: SourceSnapshot, Time: time.Unix(1e9, 0).UTC(), Snapshot: "abc", Note: "two days old"}, info)
}

// A download that is cut anywhere is an error (ErrCut once the stream was open), never a short success.
func TestDownloadCutAnywhere(t *testing.T) {
	const size = 300_000
	h := start(t, &fakeHost{download: givePattern(size)}, nil)
	seed := uint64(time.Now().UnixNano())
	random := rand.New(rand.NewPCG(seed, 1))
	t.Logf("seed %d", seed)
	cuts := []int64{0, 1, 5, 100}
	for range 60 {
		cuts = append(cuts, random.Int64N(size))
	}
	opened := 0
	for _, cut := range cuts {
		h.dial = cutting(cut, -1)
		check, began := &patternCheck{}, false
		err := h.client(VerbDownload).Download(context.Background(), DownloadRequest{}, func(DownloadInfo) (io.Writer, error) {
			began = true
			return check, nil
		})
		require.Error(t, err, "cut after %d bytes, %d arrived", cut, check.at)
		require.Less(t, check.at, int64(size))
		if began {
			opened++
			require.ErrorIs(t, err, ErrCut, "cut after %d bytes", cut)
		}
	}
	require.Greater(t, opened, 40, "most cuts are in the middle of the content")
}

func TestDownloadThatFails(t *testing.T) {
	for name, test := range map[string]struct {
		host func(context.Context, Claims, DownloadRequest, BeginDownload) error
		want error
	}{
		"in the middle": {func(_ context.Context, _ Claims, _ DownloadRequest, begin BeginDownload) error {
			w, err := begin(DownloadInfo{})
			if err == nil {
				w.Write(make([]byte, 100_000))
			}
			return fmt.Errorf("reading on: %w", ErrUnavailable)
		}, ErrUnavailable},
		"before it began": {func(context.Context, Claims, DownloadRequest, BeginDownload) error { return ErrNotHere }, ErrNotHere},
		"without a begin": {func(context.Context, Claims, DownloadRequest, BeginDownload) error { return nil }, ErrInternal},
		"with two beginning": {func(_ context.Context, _ Claims, _ DownloadRequest, begin BeginDownload) error {
			_, err := begin(DownloadInfo{})
			if err == nil {
				_, err = begin(DownloadInfo{})
			}
			return err
		}, ErrInternal},
		"by a panic": {func(context.Context, Claims, DownloadRequest, BeginDownload) error { panic("oh") }, ErrInternal},
	} {
		t.Run(name, func(t *testing.T) {
			h := start(t, &fakeHost{download: test.host}, nil)
			require.ErrorIs(t, try(h.client(VerbDownload), VerbDownload), test.want)
		})
	}
}

// A reader that fails (a full disk) stops the download, with its own error.
func TestDownloadToAFailingWriter(t *testing.T) {
	h := start(t, &fakeHost{download: givePattern(1 << 40)}, nil)
	full := errors.New("no space left on device")
	err := h.client(VerbDownload).Download(context.Background(), DownloadRequest{}, func(DownloadInfo) (io.Writer, error) {
		return writerFunc(func([]byte) (int, error) { return 0, full }), nil
	})
	require.ErrorIs(t, err, full)
	refused := errors.New("too old for me")
	err = h.client(VerbDownload).Download(context.Background(), DownloadRequest{}, func(DownloadInfo) (io.Writer, error) { return nil, refused })
	require.ErrorIs(t, err, refused)
}

// placingHost puts an upload in place only as the contract says: after io.EOF.
type placingHost struct {
	mu     sync.Mutex
	placed []int64
	failed []error
}

func (p *placingHost) upload(_ context.Context, _ Claims, r io.Reader) (UploadResult, error) {
	check := &patternCheck{}
	_, err := io.Copy(check, r)
	p.mu.Lock()
	defer p.mu.Unlock()
	if err != nil {
		p.failed = append(p.failed, err)
		return UploadResult{}, err
	}
	p.placed = append(p.placed, check.at)
	return UploadResult{Files: 1, Bytes: check.at}, nil
}

func TestUpload(t *testing.T) {
	host := &placingHost{}
	h := start(t, &fakeHost{upload: host.upload}, nil)
	for _, size := range []int64{0, 1, maxData, inputWindow, 9<<20 + 17} {
		result, err := h.client(VerbUpload).Upload(context.Background(), &pattern{size: size})
		require.NoError(t, err)
		require.Equal(t, UploadResult{Files: 1, Bytes: size}, result)
	}
	require.Empty(t, host.failed)
}

// An upload that is cut anywhere is refused whole: the host never sees its end.
func TestUploadCutAnywhere(t *testing.T) {
	const size = 300_000
	host := &placingHost{}
	fake := &fakeHost{upload: host.upload}
	h := start(t, fake, nil)
	seed := uint64(time.Now().UnixNano())
	random := rand.New(rand.NewPCG(seed, 2))
	t.Logf("seed %d", seed)
	for range 60 {
		h.dial = cutting(-1, random.Int64N(size))
		_, err := h.client(VerbUpload).Upload(context.Background(), &pattern{size: size})
		require.Error(t, err)
	}
	// The host's side begins and ends a moment after the client's.
	require.Eventually(t, func() bool {
		host.mu.Lock()
		defer host.mu.Unlock()
		return len(host.failed)+len(host.placed) > 40 && int64(len(host.failed)+len(host.placed)) == fake.calls.Load()
	}, waitLimit, 5*time.Millisecond, "most cuts are in the middle of the content")
	host.mu.Lock()
	defer host.mu.Unlock()
	require.Empty(t, host.placed)
	for _, err := range host.failed {
		require.ErrorIs(t, err, ErrCut)
	}
}

func TestUploadFromAFailingReader(t *testing.T) {
	for name, cause := range map[string]error{
		"any":                errors.New("the disk is gone"),
		"a wrapped end":      fmt.Errorf("the archive broke: %w", io.EOF),
		"an unexpected end":  io.ErrUnexpectedEOF,
		"its closed by hand": io.ErrClosedPipe,
	} {
		t.Run(name, func(t *testing.T) {
			failed := make(chan error, 1)
			host := &fakeHost{upload: func(_ context.Context, _ Claims, r io.Reader) (UploadResult, error) {
				_, err := io.Copy(io.Discard, r)
				failed <- err
				return UploadResult{}, err
			}}
			h := start(t, host, nil)
			_, err := h.client(VerbUpload).Upload(context.Background(), io.MultiReader(&pattern{size: 100_000}, failingReader{cause}))
			require.ErrorIs(t, err, cause)
			require.ErrorIs(t, <-failed, ErrCut)
		})
	}
}

type failingReader struct{ err error }

func (f failingReader) Read([]byte) (int, error) { return 0, f.err }

// The host's reason arrives although the client is in the middle of sending: no reset takes it back.
func TestUploadRefusedInTheMiddle(t *testing.T) {
	host := &fakeHost{upload: func(_ context.Context, _ Claims, r io.Reader) (UploadResult, error) {
		io.CopyN(io.Discard, r, 200_000)
		return UploadResult{}, fmt.Errorf("the disk is full: %w", ErrUnavailable)
	}}
	h := start(t, host, nil)
	for range 30 {
		_, err := h.client(VerbUpload).Upload(context.Background(), &pattern{size: 1 << 40})
		require.ErrorIs(t, err, ErrUnavailable)
		require.ErrorContains(t, err, "the disk is full")
	}
}

func TestUploadAcceptedTooEarlyIsAnError(t *testing.T) {
	host := &fakeHost{upload: func(_ context.Context, _ Claims, r io.Reader) (UploadResult, error) {
		io.CopyN(io.Discard, r, 1000)
		return UploadResult{Files: 1}, nil
	}}
	h := start(t, host, nil)
	_, err := h.client(VerbUpload).Upload(context.Background(), &pattern{size: 1000})
	require.ErrorIs(t, err, ErrInternal)
}

// A reader that stops reading stops the host, and memory stays bounded, in both directions.
func TestBackPressure(t *testing.T) {
	const size, bound = 256 << 20, 48 << 20 // the bound leaves room for the kernel's buffers
	t.Run("download", func(t *testing.T) {
		var given atomic.Int64
		host := &fakeHost{download: func(_ context.Context, _ Claims, _ DownloadRequest, begin BeginDownload) error {
			w, err := begin(DownloadInfo{})
			if err != nil {
				return err
			}
			_, err = io.Copy(writerFunc(func(p []byte) (int, error) {
				n, err := w.Write(p)
				given.Add(int64(n))
				return n, err
			}), &pattern{size: size})
			return err
		}}
		h := start(t, host, nil)
		check := &patternCheck{}
		paused := false
		require.NoError(t, h.client(VerbDownload).Download(context.Background(), DownloadRequest{}, func(DownloadInfo) (io.Writer, error) {
			return writerFunc(func(p []byte) (int, error) {
				if !paused {
					paused = true
					waitStill(t, &given)
					require.Less(t, given.Load(), int64(bound))
				}
				return check.Write(p)
			}), nil
		}))
		require.EqualValues(t, size, check.at)
	})
	t.Run("upload", func(t *testing.T) {
		var given atomic.Int64
		check := &patternCheck{}
		host := &fakeHost{upload: func(_ context.Context, _ Claims, r io.Reader) (UploadResult, error) {
			waitStill(t, &given)
			if n := given.Load(); n > bound {
				return UploadResult{}, fmt.Errorf("%d bytes were sent to a host that reads none", n)
			}
			n, err := io.Copy(check, r)
			return UploadResult{Bytes: n}, err
		}}
		h := start(t, host, nil)
		_, err := h.client(VerbUpload).Upload(context.Background(), io.TeeReader(&pattern{size: size}, writerFunc(func(p []byte) (int, error) {
			given.Add(int64(len(p)))
			return len(p), nil
		})))
		require.NoError(t, err)
		require.EqualValues(t, size, check.at)
	})
}

// waitStill waits until a counter has moved and then stays where it is.
func waitStill(t *testing.T, counter *atomic.Int64) {
	last, since := int64(-1), time.Now()
	for begun := time.Now(); time.Since(begun) < waitLimit; time.Sleep(5 * time.Millisecond) {
		if now := counter.Load(); now != last {
			last, since = now, time.Now()
		} else if last > 0 && time.Since(since) > 200*time.Millisecond {
			return
		}
	}
	t.Error("the counter never came to rest")
}
