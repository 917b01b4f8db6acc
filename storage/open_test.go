package storage_test

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"holdfast/storage"
	"holdfast/storage/storagetest"
)

func TestOpenAddresses(t *testing.T) {
	s3Credentials(t, "planted-key", "planted-secret")
	t.Setenv("STORAGE_EMULATOR_HOST", "")
	dir := t.TempDir()
	for _, test := range []struct{ address, url string }{
		{"file://" + dir, "file://" + dir},
		{"file://" + dir + "/", "file://" + dir},
		{"file://localhost" + dir, "file://" + dir},
		{"file:" + dir, "file://" + dir},
		{"file://" + dir + "/with%20space%3F", "file://" + dir + "/with%20space%3F"},
		{"s3://bucket", "s3://bucket"},
		{"s3://bucket/a/b/", "s3://bucket/a/b"},
		{"s3://bucket/a%20b?region=eu-west-1", "s3://bucket/a%20b?region=eu-west-1"},
		{"s3://bucket/p?endpoint=http://127.0.0.1:7070", "s3://bucket/p?endpoint=http%3A%2F%2F127.0.0.1%3A7070"},
		{"gs://bucket/p?endpoint=http://127.0.0.1:4443", "gs://bucket/p?endpoint=http%3A%2F%2F127.0.0.1%3A4443"},
	} {
		p, err := storage.Open(t.Context(), test.address, storage.OpenOptions{})
		require.NoError(t, err, test.address)
		require.Equal(t, test.url, p.URL())
		require.NoError(t, p.Close())
		// An address opens what it is the address of.
		again, err := storage.Open(t.Context(), p.URL(), storage.OpenOptions{})
		require.NoError(t, err, p.URL())
		require.Equal(t, p.URL(), again.URL())
		require.NoError(t, again.Close())
		below, err := storage.Open(t.Context(), storage.Sub(p, "more/below it").URL(), storage.OpenOptions{})
		require.NoError(t, err)
		require.Equal(t, storage.Sub(p, "more/below it").URL(), below.URL())
		require.NoError(t, below.Close())
	}
	// An endpoint from the options is no part of the name.
	p, err := storage.Open(t.Context(), "gs://bucket/p", storage.OpenOptions{GCSEndpoint: "http://127.0.0.1:1"})
	require.NoError(t, err)
	require.Equal(t, "gs://bucket/p", p.URL())
	require.NoError(t, p.Close())
}

func TestOpenRefuses(t *testing.T) {
	s3Credentials(t, "planted-key", "planted-secret")
	for _, address := range []string{
		"", "/srv/backups", "relative", "ftp://host/x", "gs:bucket:/path", "s3:bucket", "file://srv/x", "file:", "file:///x?create=1", "file:///x#y",
		"gs://", "s3:///x", "s3://bucket:80/x", "gs://Bucket_UP/x", "s3://b", "s3://bucket/a//b", "s3://bucket/a/../b",
		"s3://bucket/x?endpoint=", "s3://bucket/x?endpoint=127.0.0.1:80", "s3://bucket/x?endpont=http://h", "gs://bucket/x?region=r",
		"s3://bucket/x?region=a&region=b", "gs://bucket/x?endpoint=ftp://h", "s3://bucket/x?endpoint=http://h/?q=1", "s3://bucket/x#", "s3://bucket/%zz",
	} {
		p, err := storage.Open(t.Context(), address, storage.OpenOptions{})
		require.ErrorIs(t, err, storage.ErrInvalid, "%q", address)
		require.Nil(t, p, "%q", address)
		require.False(t, storage.Retryable(err))
	}
	for _, address := range []string{
		"s3://user:hunter2@bucket/x", "s3://hunter2@bucket/x", "gs://u:hunter2@bucket", "file://u:hunter2@localhost/x",
		"s3://user:hunter2@bucket:x/%zz", "s3://bucket/x?endpoint=http://u:hunter2@host", "s3://u:hunter2@bucket:port/x",
	} {
		_, err := storage.Open(t.Context(), address, storage.OpenOptions{})
		require.ErrorIs(t, err, storage.ErrInvalid, "%q", address)
		require.NotContains(t, err.Error(), "hunter2")
	}
}

func TestOpenDirectories(t *testing.T) {
	deep := filepath.Join(t.TempDir(), "a", "b")
	p, err := storage.Open(t.Context(), "file://"+deep, storage.OpenOptions{})
	require.NoError(t, err)
	require.ErrorIs(t, p.List(t.Context(), "", nil), storage.ErrBucketNotFound)
	require.NoDirExists(t, deep)
	_, err = storage.Open(t.Context(), "file://"+deep, storage.OpenOptions{Create: true})
	require.NoError(t, err)
	require.DirExists(t, deep)
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = storage.Open(ended, "file://"+deep, storage.OpenOptions{})
	require.ErrorIs(t, err, context.Canceled)
	require.NoError(t, os.WriteFile(deep+"/file", nil, 0o600))
	_, err = storage.Open(t.Context(), "file://"+deep+"/file", storage.OpenOptions{})
	require.ErrorIs(t, err, storage.ErrInvalid)
}

func FuzzOpen(f *testing.F) {
	for _, seed := range []string{"gs://b/p", "s3://b?endpoint=http://h:1", "file:///x", "s3://u:p@b", "a:b"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, address string) {
		p, err := storage.Open(t.Context(), address, storage.OpenOptions{GCSEndpoint: "http://127.0.0.1:1", S3Region: "r"})
		if err == nil {
			_ = p.URL()
			_ = p.Close()
		}
	})
}

func FuzzValidateKey(f *testing.F) {
	for _, seed := range append(storagetest.OddKeys(), storagetest.InvalidKeys()...) {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, key string) {
		if storage.ValidateKey(key) != nil {
			return
		}
		// What is valid stays below the root and is its own cleaned path: two keys are never one file.
		path := filepath.Join("/root", key)
		if path != "/root/"+key {
			t.Fatalf("%q is the file %q", key, path)
		}
		for i := range key + "x" {
			if err := storage.ValidatePrefix(key[:i]); err != nil {
				t.Fatalf("the beginning %q of the key %q is no prefix: %v", key[:i], key, err)
			}
		}
	})
}
