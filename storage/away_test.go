package storage_test

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"holdfast/storage"
)

// deadStores are the ways in which a bucket's server can be away; each counts the connections that were tried.
var deadStores = map[string]func(t *testing.T, tried *atomic.Int64) func(context.Context, string, string) (net.Conn, error){
	"refused": func(_ *testing.T, tried *atomic.Int64) func(context.Context, string, string) (net.Conn, error) {
		return func(ctx context.Context, network, _ string) (net.Conn, error) {
			tried.Add(1)
			return (&net.Dialer{}).DialContext(ctx, network, "127.0.0.1:1")
		}
	},
	"no such name": func(_ *testing.T, tried *atomic.Int64) func(context.Context, string, string) (net.Conn, error) {
		return func(context.Context, string, string) (net.Conn, error) {
			tried.Add(1)
			return nil, &net.OpError{Op: "dial", Net: "tcp", Err: &net.DNSError{Err: "server misbehaving", Name: "store.example", IsTemporary: true}}
		}
	},
	"silent": func(t *testing.T, tried *atomic.Int64) func(context.Context, string, string) (net.Conn, error) {
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(t, err)
		t.Cleanup(func() { _ = listener.Close() }) // the kernel takes connections, and nobody answers
		return func(ctx context.Context, network, _ string) (net.Conn, error) {
			tried.Add(1)
			return (&net.Dialer{}).DialContext(ctx, network, listener.Addr().String())
		}
	},
	"cut": func(t *testing.T, tried *atomic.Int64) func(context.Context, string, string) (net.Conn, error) {
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(t, err)
		t.Cleanup(func() { _ = listener.Close() })
		go func() {
			for {
				conn, err := listener.Accept()
				if err != nil {
					return
				}
				_ = conn.Close()
			}
		}()
		return func(ctx context.Context, network, _ string) (net.Conn, error) {
			tried.Add(1)
			return (&net.Dialer{}).DialContext(ctx, network, listener.Addr().String())
		}
	},
}

// A2: a store that is away is found out once; after that, operations that the other store is enough for do not try it at
// all, however many they are. Only probes do.
func TestDeadStoreIsNotTriedAgain(t *testing.T) {
	s3Credentials(t, "key", "secret")
	for _, scheme := range []string{"gs", "s3"} {
		for name, dead := range deadStores {
			t.Run(scheme+"/"+name, func(t *testing.T) {
				t.Parallel()
				var tried atomic.Int64
				away, err := storage.Open(t.Context(), scheme+"://bucket/prefix?endpoint=http://store.example:9000",
					storage.OpenOptions{DialContext: dead(t, &tried), Logger: slog.New(slog.DiscardHandler)})
				require.NoError(t, err)
				t.Cleanup(func() { require.NoError(t, away.Close()) })
				there, err := storage.Open(t.Context(), "file://"+t.TempDir(), storage.OpenOptions{Logger: slog.New(slog.DiscardHandler)})
				require.NoError(t, err)
				t.Cleanup(func() { require.NoError(t, there.Close()) })
				operations := func(first, last int) {
					for i := first; i <= last; i++ {
						mirror, err := storage.NewMirror([]storage.Provider{storage.Sub(away, "w"), storage.Sub(there, "w")}, storage.MirrorOptions{Policy: storage.PolicyAny})
						require.NoError(t, err)
						listings, failed := mirror.ListAll(t.Context(), "")
						require.Len(t, listings, 1)
						require.Len(t, failed, 1)
						key := fmt.Sprint("x", i)
						require.NoError(t, mirror.Put(t.Context(), key, []byte("x"), storage.PutOptions{CreateOnly: true}))
						require.Equal(t, []string{storage.Sub(away, "w").URL()}, mirror.Behind())
						_, err = mirror.Load(t.Context(), key, 0, -1, nil)
						require.NoError(t, err)
						require.NoError(t, mirror.Close())
					}
				}
				if name != "silent" { // a write need not wait until the client has given up
					mirror, err := storage.NewMirror([]storage.Provider{away, there}, storage.MirrorOptions{Policy: storage.PolicyAny, LagTimeout: never, RetryFor: never})
					require.NoError(t, err)
					done := make(chan error, 1)
					go func() { done <- mirror.Put(t.Context(), "first", []byte("x"), storage.PutOptions{}) }()
					select {
					case err := <-done:
						require.NoError(t, err)
					case <-time.After(time.Minute):
						t.Fatal("the write still waits for the store that is away")
					}
					require.NoError(t, mirror.Close())
				}
				operations(0, 0)
				require.ErrorIs(t, storage.Away(away), storage.ErrAway)
				found := tried.Load()
				require.Positive(t, found)
				operations(1, 100)
				// A probe is a try or two, after 1, 2, 4, 8, 16 and then every 20 seconds; an operation without memory is several.
				require.Less(t, tried.Load()-found, int64(50))
				require.ErrorIs(t, storage.Away(away), storage.ErrAway)
			})
		}
	}
}

// What a server asks for with Retry-After is waited for, as long as it is bearable; Google's client does not know it.
func TestGSRetryAfter(t *testing.T) {
	for _, status := range []int{http.StatusTooManyRequests, http.StatusServiceUnavailable} {
		for _, after := range []string{"1", "3600", "date"} {
			t.Run(fmt.Sprint(status, after), func(t *testing.T) {
				t.Parallel()
				var mu sync.Mutex
				var times []time.Time
				server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					mu.Lock()
					times = append(times, time.Now())
					first := len(times) == 1
					mu.Unlock()
					if !first {
						w.Header().Set("Content-Type", "application/json")
						_, _ = io.WriteString(w, `{"name":"x","size":"1","crc32c":"AAAAAA=="}`)
						return
					}
					now := time.Now().Add(-time.Hour) // clocks differ
					w.Header().Set("Date", now.UTC().Format(http.TimeFormat))
					w.Header().Set("Retry-After", after)
					if after == "date" {
						w.Header().Set("Retry-After", now.Add(time.Minute).UTC().Format(http.TimeFormat))
					}
					w.WriteHeader(status)
				}))
				t.Cleanup(server.Close)
				p, err := storage.NewGS(t.Context(), "bucket", "", storage.GSConfig{Endpoint: server.URL, RetryAfterAtMost: 1200 * time.Millisecond})
				require.NoError(t, err)
				t.Cleanup(func() { require.NoError(t, p.Close()) })
				_, err = p.Stat(t.Context(), "x")
				require.NoError(t, err)
				require.Len(t, times, 2)
				require.GreaterOrEqual(t, times[1].Sub(times[0]), 990*time.Millisecond)

				// Not longer than the caller waits.
				mu.Lock()
				times = nil
				mu.Unlock()
				ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
				defer cancel()
				_, err = p.Stat(ctx, "x")
				require.ErrorIs(t, err, context.DeadlineExceeded)
			})
		}
	}
}

func TestMetrics(t *testing.T) {
	a, b := newGuarded(t, storage.CircuitOptions{}), newGuarded(t, storage.CircuitOptions{})
	mirror := mirrorOf(t, storage.MirrorOptions{Policy: storage.PolicyAny}, a, b)
	require.NoError(t, mirror.Put(t.Context(), "x", []byte("12345"), storage.PutOptions{}))
	_, err := mirror.Load(t.Context(), "x", 0, 5, nil)
	require.NoError(t, err)
	a.fail(t)
	_, err = mirror.Load(t.Context(), "x", 0, 5, nil)
	require.NoError(t, err)
	require.NoError(t, mirror.Put(t.Context(), "y", []byte("123"), storage.PutOptions{}))
	_, err = b.Stat(t.Context(), "absent")
	require.ErrorIs(t, err, storage.ErrNotFound)

	registry := prometheus.NewPedanticRegistry()
	require.NoError(t, registry.Register(storage.Metrics(a.Provider, b.Provider, a.memory)))
	families, err := registry.Gather()
	require.NoError(t, err)
	got := map[string]float64{}
	for _, family := range families {
		for _, metric := range family.GetMetric() {
			name := family.GetName()
			for _, label := range metric.GetLabel() {
				switch value := label.GetValue(); value {
				case a.URL():
					name += " a"
				case b.URL():
					name += " b"
				default:
					name += " " + value
				}
			}
			got[name] = metric.GetCounter().GetValue() + metric.GetGauge().GetValue()
		}
	}
	// Labels come in the order of their names: operation or direction, outcome, store.
	require.Equal(t, map[string]float64{
		"holdfast_store_operations_total put ok a":       1,
		"holdfast_store_operations_total put ok b":       2,
		"holdfast_store_operations_total get ok a":       1,
		"holdfast_store_operations_total get ok b":       1,
		"holdfast_store_operations_total stat failed a":  3,
		"holdfast_store_operations_total stat refused b": 1,
		"holdfast_store_bytes_total written a":           5,
		"holdfast_store_bytes_total written b":           8,
		"holdfast_store_bytes_total read a":              5,
		"holdfast_store_bytes_total read b":              5,
		"holdfast_store_fallbacks_total a":               1,
		"holdfast_store_fallbacks_total b":               0,
		"holdfast_store_behind_total a":                  1,
		"holdfast_store_behind_total b":                  0,
		"holdfast_store_away a":                          1,
		"holdfast_store_away b":                          0,
	}, got)
}
