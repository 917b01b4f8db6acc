package storage_test

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"holdfast/storage"
	"holdfast/storage/storagetest"
	"holdfast/testsuite/link"
)

// Both cloud providers over TLS, through a network that is slow, resets connections, and falls silent.

// eachCloud runs a test with the two providers, each behind a link of its own: open gives a provider on a store through the link, fresh the address of an
// empty store.
func eachCloud(t *testing.T, test func(t *testing.T, l *link.Link, open func(t *testing.T, store string) storage.Provider, fresh func(t *testing.T) string)) {
	caFile, gs, s3 := tlsStores(t)
	options := storage.OpenOptions{CAFile: caFile, Logger: slog.New(slog.DiscardHandler)}
	for name, address := range map[string]func(*testing.T) string{"gs": gs, "s3": s3} {
		t.Run(name, func(t *testing.T) {
			parsed, err := url.Parse(address(t))
			require.NoError(t, err)
			endpoint, err := url.Parse(parsed.Query().Get("endpoint"))
			require.NoError(t, err)
			l, err := link.New(endpoint.Host)
			require.NoError(t, err)
			t.Cleanup(func() { require.NoError(t, l.Close()) })
			fresh := func(t *testing.T) string {
				store, _, _ := strings.Cut(address(t), "?")
				return store + "?endpoint=https://" + l.Address()
			}
			test(t, l, func(t *testing.T, store string) storage.Provider {
				p, err := storage.Open(t.Context(), store, options)
				require.NoError(t, err)
				return p
			}, fresh)
		})
	}
}

// TestTLSSuiteOnASlowLink: all that a store does, with every piece a moment late, so that nothing comes as it was written.
func TestTLSSuiteOnASlowLink(t *testing.T) {
	eachCloud(t, func(t *testing.T, l *link.Link, open func(*testing.T, string) storage.Provider, fresh func(*testing.T) string) {
		l.Delay(200 * time.Microsecond)
		storagetest.Run(t, func(t *testing.T) storage.Provider { return open(t, fresh(t)) })
		require.Positive(t, l.Connections())
	})
}

// TestTLSConnectionsAreReset: wherever the first two connections break off (in the handshake, in a request, in an answer), what was
// stored is what was sent, what is read is what was stored, and both come about by themselves.
func TestTLSConnectionsAreReset(t *testing.T) {
	eachCloud(t, func(t *testing.T, l *link.Link, open func(*testing.T, string) storage.Provider, fresh func(*testing.T) string) {
		store := fresh(t)
		for _, after := range []int64{0, 300, 1500, 1 << 20, 8 << 20} {
			size := 9 << 20 // more than goes through
			if after == 300 {
				size = 100
			}
			data, key := gsContent(byte(after), size), fmt.Sprint(after)
			through := func(what string, do func(m *storage.Mirror)) {
				l.Disturb(func(connection int) link.Trouble { return link.Trouble{Reset: connection < 2, After: after} })
				p := open(t, store)
				m, err := storage.NewMirror([]storage.Provider{p}, storage.MirrorOptions{RetryFor: time.Minute})
				require.NoError(t, err)
				do(m)
				require.Greater(t, l.Connections(), 1, "%s after %d bytes: nothing was reset", what, after)
				require.NoError(t, m.Close())
				require.NoError(t, p.Close())
			}
			through("put", func(m *storage.Mirror) {
				require.NoError(t, m.Put(t.Context(), key, data, storage.PutOptions{CreateOnly: true}), key)
			})
			through("read", func(m *storage.Mirror) {
				got, err := m.Load(t.Context(), key, 0, -1, nil)
				require.NoError(t, err, key)
				require.True(t, bytes.Equal(data, got), key)
			})
			if after > 1500 {
				continue // a listing is shorter
			}
			through("list", func(m *storage.Mirror) {
				found, failed := m.ListAll(t.Context(), key)
				require.Empty(t, failed)
				require.Len(t, found, 1)
				for _, objects := range found {
					require.Equal(t, int64(len(data)), objects[0].Size)
				}
			})
		}
	})
}

// TestTLSLinkFallsSilent: a store that says nothing any more holds up nobody who does not want to wait, and goes on by itself.
func TestTLSLinkFallsSilent(t *testing.T) {
	eachCloud(t, func(t *testing.T, l *link.Link, open func(*testing.T, string) storage.Provider, fresh func(*testing.T) string) {
		p := open(t, fresh(t))
		t.Cleanup(func() { require.NoError(t, p.Close()) })
		data := gsContent(1, 3<<20)
		_, err := p.Put(t.Context(), "before", data, storage.PutOptions{})
		require.NoError(t, err)
		l.Cut()
		for what, do := range map[string]func(ctx context.Context) error{
			"put": func(ctx context.Context) error {
				_, err := p.Put(ctx, "meanwhile", data, storage.PutOptions{CreateOnly: true})
				return err
			},
			"read": func(ctx context.Context) error {
				_, err := storage.ReadAll(ctx, p, "before", 0, -1)
				return err
			},
			"list": func(ctx context.Context) error { return p.List(ctx, "", func(storage.Object) error { return nil }) },
		} {
			ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
			err := do(ctx)
			cancel()
			require.ErrorIs(t, err, context.DeadlineExceeded, what)
		}
		done := make(chan error, 1)
		go func() {
			_, err := p.Put(t.Context(), "later", data, storage.PutOptions{CreateOnly: true})
			done <- err
		}()
		l.Mend()
		require.NoError(t, <-done)
		for _, key := range []string{"before", "later"} {
			got, err := storage.ReadAll(t.Context(), p, key, 0, -1)
			require.NoError(t, err)
			require.True(t, bytes.Equal(data, got), key)
		}
	})
}
