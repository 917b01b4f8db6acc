package storage_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"holdfast/storage"
	"holdfast/storage/gcsemulator"
	"holdfast/storage/resolver"
	"holdfast/storage/resolver/dnsserver"
	"holdfast/storage/storagetest"
)

// gsFixture is an emulator with a provider on it.
type gsFixture struct {
	emulator *gcsemulator.Emulator
	server   *gcsemulator.Server
	provider storage.Provider
}

func startEmulator(t *testing.T) (*gcsemulator.Emulator, *gcsemulator.Server) {
	t.Helper()
	e, err := gcsemulator.New(gcsemulator.Options{Dir: t.TempDir(), NoSync: true, Buckets: []string{"bucket"}})
	require.NoError(t, err)
	server, err := e.Serve("127.0.0.1:0", nil)
	require.NoError(t, err)
	t.Cleanup(func() {
		e.SetHooks(gcsemulator.Hooks{})
		require.NoError(t, server.Close())
		require.NoError(t, e.Close())
	})
	return e, server
}

func startGS(t *testing.T, change func(*storage.GSConfig)) *gsFixture {
	t.Helper()
	f := &gsFixture{}
	f.emulator, f.server = startEmulator(t)
	config := storage.GSConfig{
		Endpoint: f.server.URL(), ChunkSize: 4 << 20, RetryFor: 20 * time.Second, Stall: 30 * time.Second, Logger: slog.New(slog.DiscardHandler),
	}
	if change != nil {
		change(&config)
	}
	var err error
	f.provider, err = storage.NewGS(t.Context(), "bucket", "some/prefix", config)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, f.provider.Close()) })
	return f
}

func gsContent(seed byte, size int) []byte {
	data := make([]byte, size)
	_, _ = rand.NewChaCha8([32]byte{seed}).Read(data)
	return data
}

func (f *gsFixture) requireStored(t *testing.T, key string, data []byte) {
	t.Helper()
	f.emulator.SetHooks(gcsemulator.Hooks{})
	got, err := storage.ReadAll(t.Context(), f.provider, key, 0, -1)
	require.NoError(t, err)
	require.True(t, bytes.Equal(data, got), "%s: %d bytes stored, %d sent", key, len(got), len(data))
}

func TestGSConformance(t *testing.T) {
	_, server := startEmulator(t)
	number := 0
	open := func(bucket string) func(*testing.T) storage.Provider {
		return func(t *testing.T) storage.Provider {
			number++
			p, err := storage.NewGS(t.Context(), bucket, fmt.Sprintf("run/%d", number), storage.GSConfig{Endpoint: server.URL(), Logger: slog.New(slog.DiscardHandler)})
			require.NoError(t, err)
			return p
		}
	}
	storagetest.Run(t, open("bucket"), storagetest.WithMissing(open("no-such-bucket")))
}

// TestGSLostAnswers: the answer to any one request of an upload is lost after it took effect; the object is what was
// sent, and Put says so. (An emulator that appends retried chunks stored 20 MiB here and reported success.)
func TestGSLostAnswers(t *testing.T) {
	f := startGS(t, nil)
	for _, test := range []struct {
		kind string
		size int
	}{
		{gcsemulator.OpUploadStart, 16 << 20},
		{gcsemulator.OpUploadChunk, 16 << 20},
		{gcsemulator.OpUploadChunk, 16<<20 - 5},
		{gcsemulator.OpInsert, 100},
		{gcsemulator.OpInsert, 3 << 20}, // too large for alreadyThere to compare whole
		{gcsemulator.OpGet, 100},
	} {
		for _, createOnly := range []bool{true, false} {
			for lose := int64(1); lose <= 5; lose++ {
				data, key := gsContent(byte(lose), test.size), fmt.Sprintf("%s/%d/%v/%d", test.kind, test.size, createOnly, lose)
				var seen atomic.Int64
				f.emulator.SetHooks(gcsemulator.Hooks{After: func(_ *http.Request, op gcsemulator.Operation, _ int) bool {
					return op.Kind != test.kind || seen.Add(1) != lose
				}})
				object, err := f.provider.Put(t.Context(), key, data, storage.PutOptions{CreateOnly: createOnly})
				require.NoError(t, err, key)
				require.Equal(t, storage.Checksum(data), object.CRC32C)
				require.EqualValues(t, len(data), object.Size)
				f.requireStored(t, key, data)
				counted := f.emulator.Stats().PerObject["bucket/some/prefix/"+key]
				require.EqualValues(t, 1, counted.Stored, key)
				require.LessOrEqual(t, counted.Received, int64(len(data)+4<<20), "%s: more than one chunk was sent again", key)
				if seen.Load() < lose {
					break // there are no more such requests to lose
				}
			}
		}
	}
}

// TestGSStumbles: what passes within seconds does not fail a Put.
func TestGSStumbles(t *testing.T) {
	fail := func(status int) func(http.ResponseWriter) bool {
		return func(w http.ResponseWriter) bool { w.WriteHeader(status); return true }
	}
	cut := func(http.ResponseWriter) bool { panic(http.ErrAbortHandler) }
	for what, stumble := range map[string]func(http.ResponseWriter) bool{
		"503": fail(503), "429": fail(429), "500": fail(500), "408": fail(408), "cut": cut,
	} {
		f := startGS(t, nil)
		for _, kind := range []string{gcsemulator.OpInsert, gcsemulator.OpUploadStart, gcsemulator.OpUploadChunk} {
			size := 9 << 20
			if kind == gcsemulator.OpInsert {
				size = 1000
			}
			data, key := gsContent(1, size), kind
			var seen atomic.Int64
			f.emulator.SetHooks(gcsemulator.Hooks{Before: func(w http.ResponseWriter, _ *http.Request, op gcsemulator.Operation) bool {
				if n := seen.Add(1); op.Kind != kind || n%3 == 0 {
					return false
				}
				return stumble(w)
			}})
			_, err := f.provider.Put(t.Context(), key, data, storage.PutOptions{CreateOnly: true})
			require.NoError(t, err, "%s of %s", what, kind)
			f.requireStored(t, key, data)
		}
	}
}

// TestGSLostSession: a session that the service has forgotten is begun anew, and is not taken for a missing bucket.
func TestGSLostSession(t *testing.T) {
	for _, status := range []int{404, 410} {
		f := startGS(t, nil)
		var seen atomic.Int64
		f.emulator.SetHooks(gcsemulator.Hooks{Before: func(w http.ResponseWriter, _ *http.Request, op gcsemulator.Operation) bool {
			if op.Kind != gcsemulator.OpUploadChunk || seen.Add(1) != 2 {
				return false
			}
			w.WriteHeader(status)
			return true
		}})
		data := gsContent(1, 10<<20)
		_, err := f.provider.Put(t.Context(), "x", data, storage.PutOptions{CreateOnly: true})
		require.NoError(t, err)
		f.requireStored(t, "x", data)
	}
}

// TestGSGivesUpSoon: what does not pass is reported within seconds, as something to try again later (A2 waits above).
func TestGSGivesUpSoon(t *testing.T) {
	hang := func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }
	unavailable := func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(503) }
	for what, misbehave := range map[string]func(http.ResponseWriter, *http.Request){"hangs": hang, "is unavailable": unavailable} {
		for _, kind := range []string{gcsemulator.OpInsert, gcsemulator.OpUploadStart, gcsemulator.OpUploadChunk, gcsemulator.OpGet, gcsemulator.OpMedia, gcsemulator.OpList, gcsemulator.OpDelete} {
			t.Run(kind+" "+what, func(t *testing.T) {
				t.Parallel()
				f := startGS(t, func(c *storage.GSConfig) {
					c.RetryFor = 300 * time.Millisecond
					if what == "hangs" {
						c.Stall = 700 * time.Millisecond
					}
				})
				// By another client: that one gives up soon on a busy machine, too.
				patient, err := storage.NewGS(t.Context(), "bucket", "some/prefix", storage.GSConfig{Endpoint: f.server.URL(), Logger: slog.New(slog.DiscardHandler)})
				require.NoError(t, err)
				_, err = patient.Put(t.Context(), "there", []byte("x"), storage.PutOptions{})
				require.NoError(t, err)
				require.NoError(t, patient.Close())
				f.emulator.SetHooks(gcsemulator.Hooks{Before: func(w http.ResponseWriter, r *http.Request, op gcsemulator.Operation) bool {
					if op.Kind != kind {
						return false
					}
					misbehave(w, r)
					return true
				}})
				start := time.Now()
				switch kind {
				case gcsemulator.OpGet:
					_, err = f.provider.Stat(t.Context(), "there")
				case gcsemulator.OpMedia:
					_, err = storage.ReadAll(t.Context(), f.provider, "there", 0, -1)
				case gcsemulator.OpList:
					err = f.provider.List(t.Context(), "", func(storage.Object) error { return nil })
				case gcsemulator.OpDelete:
					err = f.provider.Delete(t.Context(), "there")
				case gcsemulator.OpInsert:
					_, err = f.provider.Put(t.Context(), "new", []byte("x"), storage.PutOptions{CreateOnly: true})
				default:
					_, err = f.provider.Put(t.Context(), "new", gsContent(1, 9<<20), storage.PutOptions{CreateOnly: true})
				}
				require.Error(t, err)
				require.True(t, storage.Retryable(err), "%v", err)
				if what == "hangs" {
					require.GreaterOrEqual(t, time.Since(start), 600*time.Millisecond, "failed for another reason: %v", err)
				} else {
					require.ErrorContains(t, err, "503")
				}
				require.NotContains(t, strings.ReplaceAll(err.Error(), "upload_id=...", ""), "upload_id", "the address of an upload is a secret")
				require.Less(t, time.Since(start), time.Minute)
			})
		}
	}
}

func TestGSContext(t *testing.T) {
	f := startGS(t, nil)
	f.emulator.SetHooks(gcsemulator.Hooks{Before: func(_ http.ResponseWriter, r *http.Request, _ gcsemulator.Operation) bool {
		<-r.Context().Done()
		return true
	}})
	for _, size := range []int{10, 9 << 20} {
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		start := time.Now()
		_, err := f.provider.Put(ctx, "x", gsContent(1, size), storage.PutOptions{CreateOnly: true})
		cancel()
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.Less(t, time.Since(start), 25*time.Second) // the connection would be given up after 30 s
	}
}

// TestGSErrors: answers of the service become the sentinel errors.
func TestGSErrors(t *testing.T) {
	for _, test := range []struct {
		status int
		body   string
		want   error
	}{
		{401, `{"error":{"code":401,"message":"Invalid Credentials"}}`, storage.ErrPermission},
		{403, `{"error":{"code":403,"message":"does not have storage.objects.create access"}}`, storage.ErrPermission},
		{403, `{"error":{"code":403,"errors":[{"reason":"quotaExceeded"}]}}`, storage.ErrNoSpace},
		{403, `{"error":{"code":403,"errors":[{"reason":"rateLimitExceeded"}]}}`, nil},
		{507, `{}`, storage.ErrNoSpace},
		{404, `{"error":{"code":404,"message":"The specified bucket does not exist."}}`, storage.ErrBucketNotFound},
		{503, `not json`, nil},
		{400, `{"error":{"code":400,"message":"Provided CRC32C \"x\" doesn't match calculated CRC32C \"y\"."}}`, storage.ErrIntegrity},
	} {
		f := startGS(t, func(c *storage.GSConfig) { c.RetryFor = 50 * time.Millisecond })
		f.emulator.SetHooks(gcsemulator.Hooks{Before: func(w http.ResponseWriter, _ *http.Request, _ gcsemulator.Operation) bool {
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(test.status)
			_, _ = io.WriteString(w, test.body)
			return true
		}})
		_, err := f.provider.Put(t.Context(), "x", []byte("x"), storage.PutOptions{CreateOnly: true})
		require.Error(t, err)
		if test.want != nil {
			require.ErrorIs(t, err, test.want, "%d %s", test.status, test.body)
		} else {
			require.True(t, storage.Retryable(err), "%v", err)
		}
	}
	_, err := storage.NewGS(t.Context(), "Not A Bucket", "", storage.GSConfig{Endpoint: "http://127.0.0.1:1"})
	require.ErrorIs(t, err, storage.ErrInvalid)
	_, err = storage.NewGS(t.Context(), "bucket", "a/../b", storage.GSConfig{Endpoint: "http://127.0.0.1:1"})
	require.ErrorIs(t, err, storage.ErrInvalid)
}

// roundTripper changes answers on their way.
type roundTripper struct {
	base   http.RoundTripper
	change func(*http.Response)
}

func (r *roundTripper) RoundTrip(q *http.Request) (*http.Response, error) {
	response, err := r.base.RoundTrip(q)
	if err == nil {
		r.change(response)
	}
	return response, err
}

// TestGSDoesNotBelieve: an answer of success with another checksum or size is no success, and what was stored does not
// stay in the way of the next attempt.
func TestGSDoesNotBelieve(t *testing.T) {
	for _, change := range [][2]string{{`"crc32c":"`, `"crc32c":"AAAAAA==","ignored":"`}, {`"size":"`, `"size":"9`}} {
		var lying atomic.Bool
		f := startGS(t, func(c *storage.GSConfig) {
			c.Wrap = func(base http.RoundTripper) http.RoundTripper {
				return &roundTripper{base, func(response *http.Response) {
					if response.Request.Method != http.MethodPost || !lying.Load() {
						return
					}
					text, _ := io.ReadAll(response.Body)
					_ = response.Body.Close()
					text = []byte(strings.Replace(string(text), change[0], change[1], 1))
					response.Body, response.ContentLength = io.NopCloser(bytes.NewReader(text)), int64(len(text))
				}}
			}
		})
		for _, size := range []int{10, 9 << 20} {
			key, data := fmt.Sprint(size), gsContent(2, size)
			lying.Store(true)
			_, err := f.provider.Put(t.Context(), key, data, storage.PutOptions{CreateOnly: true})
			require.ErrorIs(t, err, storage.ErrIntegrity)
			_, err = f.provider.Stat(t.Context(), key)
			require.ErrorIs(t, err, storage.ErrNotFound)
			lying.Store(false)
			_, err = f.provider.Put(t.Context(), key, data, storage.PutOptions{CreateOnly: true})
			require.NoError(t, err)
		}
	}
}

type cutBody struct {
	io.ReadCloser
	left int
	err  error
}

func (c *cutBody) Read(p []byte) (int, error) {
	if c.left <= 0 {
		return 0, c.err
	}
	n, err := c.ReadCloser.Read(p[:min(len(p), c.left)])
	c.left -= n
	return n, err
}

// TestGSCutDownloads: a body that ends early is continued, or is an error; it is never a short success.
func TestGSCutDownloads(t *testing.T) {
	for _, how := range []error{io.EOF, io.ErrUnexpectedEOF, &net.OpError{Op: "read", Err: errors.New("connection reset by peer")}} {
		var cuts, after atomic.Int64
		f := startGS(t, func(c *storage.GSConfig) {
			c.RetryFor = 200 * time.Millisecond
			c.Wrap = func(base http.RoundTripper) http.RoundTripper {
				return &roundTripper{base, func(response *http.Response) {
					if response.Request.URL.Query().Get("alt") == "media" && cuts.Add(-1) >= 0 {
						response.Body = &cutBody{response.Body, int(after.Load()), how}
					}
				}}
			}
		})
		data := gsContent(3, 100_000)
		_, err := f.provider.Put(t.Context(), "x", data, storage.PutOptions{})
		require.NoError(t, err)
		for _, r := range [][2]int64{{0, -1}, {0, 100_000}, {5000, 50_000}, {5000, -1}} {
			for _, n := range []int64{1, 1 << 30} { // cut once, and for ever
				for _, at := range []int64{0, 30_000} {
					cuts.Store(n)
					after.Store(at)
					got, err := storage.ReadAll(t.Context(), f.provider, "x", r[0], r[1])
					end := r[0] + r[1]
					if r[1] < 0 {
						end = int64(len(data))
					}
					if n == 1 && how != io.EOF { // a clean end looks like the end; it must only not be believed
						require.NoError(t, err, "one cut passes")
					}
					if err == nil {
						require.True(t, bytes.Equal(data[r[0]:end], got), "%v cut %d times at %d with %v: short or wrong", r, n, at, how)
						continue
					}
					require.True(t, storage.Retryable(err), "%v", err)
				}
			}
		}
	}
}

// TestGSListingFailsWhole: when a later page cannot be read, the listing fails.
func TestGSListingFailsWhole(t *testing.T) {
	e, err := gcsemulator.New(gcsemulator.Options{Dir: t.TempDir(), NoSync: true, Buckets: []string{"bucket"}, PageSize: 3})
	require.NoError(t, err)
	defer e.Close()
	server, err := e.Serve("127.0.0.1:0", nil)
	require.NoError(t, err)
	defer server.Close()
	p, err := storage.NewGS(t.Context(), "bucket", "", storage.GSConfig{Endpoint: server.URL(), RetryFor: 200 * time.Millisecond, Logger: slog.New(slog.DiscardHandler)})
	require.NoError(t, err)
	defer p.Close()
	for i := range 10 {
		_, err := p.Put(t.Context(), fmt.Sprint(i), nil, storage.PutOptions{})
		require.NoError(t, err)
	}
	var pages atomic.Int64
	var failures int64
	e.SetHooks(gcsemulator.Hooks{Before: func(w http.ResponseWriter, _ *http.Request, op gcsemulator.Operation) bool {
		if op.Kind == gcsemulator.OpList && pages.Add(1) > 1 && pages.Load() < 2+failures {
			w.WriteHeader(503)
			return true
		}
		return false
	}})
	count := func() (n int, err error) {
		pages.Store(0)
		err = p.List(t.Context(), "", func(storage.Object) error { n++; return nil })
		return n, err
	}
	n, err := count()
	require.NoError(t, err)
	require.Equal(t, 10, n)
	failures = 1
	n, err = count()
	require.NoError(t, err, "one failure passes")
	require.Equal(t, 10, n)
	failures = 1 << 40
	_, err = count()
	require.Error(t, err)
	require.True(t, storage.Retryable(err))
}

// TestGSThroughResolver proves A4 end to end: an upload through the resolver with two of three servers silent, with all
// silent (last good answer), and, once the storage has moved as well, an error that says that names cannot be resolved.
func TestGSThroughResolver(t *testing.T) {
	e, server := startEmulator(t)
	_, port, err := net.SplitHostPort(server.Addr())
	require.NoError(t, err)
	const host = "storage.holdfast.test"
	var servers []*dnsserver.Server
	var addresses []string
	for range 3 {
		s, err := dnsserver.New("127.0.0.1:0", map[string]netip.Addr{host: netip.MustParseAddr("127.0.0.1")})
		require.NoError(t, err)
		t.Cleanup(func() { _ = s.Close() })
		servers, addresses = append(servers, s), append(addresses, s.Addr())
	}
	mode := func(m ...dnsserver.Mode) {
		for i, s := range servers {
			s.SetMode(m[min(i, len(m)-1)])
		}
	}
	newProvider := func() (storage.Provider, *resolver.Resolver) {
		r := resolver.New(resolver.Options{
			Servers: addresses, PerTry: 500 * time.Millisecond, MaxTTL: time.Nanosecond, MinTTL: time.Nanosecond,
			StaleHold: 50 * time.Millisecond, Logger: slog.New(slog.DiscardHandler),
		})
		p, err := storage.NewGS(t.Context(), "bucket", "", storage.GSConfig{
			Endpoint: "http://" + net.JoinHostPort(host, port), DialContext: r.DialContext, RetryFor: 300 * time.Millisecond, Logger: slog.New(slog.DiscardHandler),
		})
		require.NoError(t, err)
		t.Cleanup(func() { _ = p.Close(); _ = r.Close() })
		return p, r
	}
	put := func(p storage.Provider, key string) error {
		_, err := p.Put(t.Context(), key, []byte(key), storage.PutOptions{CreateOnly: true})
		return err
	}
	mode(dnsserver.Drop, dnsserver.Drop, dnsserver.Answer)
	p, r := newProvider()
	start := time.Now()
	require.NoError(t, put(p, "two-silent"))
	require.Less(t, time.Since(start), 10*time.Second)

	mode(dnsserver.Drop)
	server.CloseConnections()
	require.NoError(t, put(p, "all-silent"))
	require.NotZero(t, r.Stats().Stale)

	cold, _ := newProvider() // a process that has just started knows no last good answer
	err = put(cold, "cold")
	var dnsErr *net.DNSError
	require.ErrorAs(t, err, &dnsErr)
	require.True(t, storage.Retryable(err))

	moved, err := e.Serve("127.0.0.9:"+port, nil) // the storage moves: last good answers lead nowhere
	require.NoError(t, err)
	defer moved.Close()
	require.NoError(t, server.Close())
	require.Error(t, put(p, "moved"))
	for _, s := range servers {
		s.Set(host, netip.MustParseAddr("127.0.0.9"))
	}
	mode(dnsserver.Answer)
	require.Eventually(t, func() bool { return put(p, "moved") == nil && put(cold, "cold") == nil }, 20*time.Second, 50*time.Millisecond)
}
