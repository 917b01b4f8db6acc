package storage_test

import (
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"holdfast/storage"
	"holdfast/storage/gcsemulator"
	"holdfast/storage/storagetest"
)

// tlsStores are the addresses of an emulator and of the S3 gateway, each behind TLS with a certificate of caFile.
func tlsStores(t *testing.T) (caFile string, gs func(t *testing.T) string, s3 func(t *testing.T) string) {
	t.Helper()
	caFile, certificate := authority(t)
	gsAddress, s3Address := tlsEmulator(t, certificate), withTLS(t, s3Server(t), certificate)
	var prefixes atomic.Int64
	return caFile, func(*testing.T) string {
			return fmt.Sprintf("gs://bucket/prefix-%d?endpoint=https://%s", prefixes.Add(1), gsAddress)
		}, func(t *testing.T) string {
			return fmt.Sprintf("s3://%s?endpoint=https://%s", bucket(t), s3Address)
		}
}

// tlsEmulator gives the address of an emulator that speaks TLS by itself: the addresses of its upload sessions say https.
func tlsEmulator(t *testing.T, certificate tls.Certificate) string {
	t.Helper()
	emulator, err := gcsemulator.New(gcsemulator.Options{Dir: t.TempDir(), NoSync: true, Buckets: []string{"bucket"}})
	require.NoError(t, err)
	server, err := emulator.Serve("127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{certificate}, MinVersion: tls.VersionTLS12})
	require.NoError(t, err)
	t.Cleanup(func() {
		require.NoError(t, server.Close())
		require.NoError(t, emulator.Close())
	})
	return server.Addr()
}

// TestTLSSuite: both cloud providers do over TLS, opened by their addresses, all that they do without.
func TestTLSSuite(t *testing.T) {
	caFile, gs, s3 := tlsStores(t)
	options := storage.OpenOptions{CAFile: caFile, Logger: slog.New(slog.DiscardHandler)}
	for name, address := range map[string]func(*testing.T) string{"gs": gs, "s3": s3} {
		t.Run(name, func(t *testing.T) {
			storagetest.Run(t, func(t *testing.T) storage.Provider {
				p, err := storage.Open(t.Context(), address(t), options)
				require.NoError(t, err)
				t.Cleanup(func() { require.NoError(t, p.Close()) })
				return p
			})
		})
	}
}

// TestTLSIsVerified: a server whose certificate is of another authority is sent nothing, and the error says why.
func TestTLSIsVerified(t *testing.T) {
	_, gs, s3 := tlsStores(t)
	other, _ := authority(t)
	for _, address := range []string{gs(t), s3(t)} {
		for _, caFile := range []string{"", other} {
			p, err := storage.Open(t.Context(), address, storage.OpenOptions{CAFile: caFile, Logger: slog.New(slog.DiscardHandler)})
			require.NoError(t, err)
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			_, err = p.Put(ctx, "key", []byte("content"), storage.PutOptions{})
			cancel()
			require.ErrorContains(t, err, "certificate")
			require.NoError(t, p.Close())
		}
	}
}

func TestCAFile(t *testing.T) {
	empty := filepath.Join(t.TempDir(), "empty.pem")
	require.NoError(t, os.WriteFile(empty, []byte("nothing\n"), 0o600))
	s3Credentials(t, "key", "secret")
	for _, address := range []string{"gs://bucket?endpoint=https://127.0.0.1:1", "s3://bucket?endpoint=https://127.0.0.1:1"} {
		for file, says := range map[string]string{empty: "no certificate", empty + ".absent": "no such file"} {
			_, err := storage.Open(t.Context(), address, storage.OpenOptions{CAFile: file})
			require.ErrorIs(t, err, storage.ErrInvalid)
			require.ErrorContains(t, err, says)
			require.False(t, strings.Contains(err.Error(), "BEGIN"))
		}
	}
}
