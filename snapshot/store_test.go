package snapshot

import (
	"os"
	"testing"

	"github.com/stretchr/testify/require"

	"holdfast/storage"
	"holdfast/storage/faulty"
	"holdfast/storage/storagetest"
)

// testPassword and the cheap KDF make opening a repository take milliseconds.
var testPassword = []byte("correct horse")

func testOptions() Options {
	return Options{KDF: KDFParameters{N: 16, R: 1, P: 1}, PackSize: 4 << 20, Concurrency: 2}
}

// newTestMirror makes a mirror that does not try again in place.
func newTestMirror(t testing.TB, policy storage.Policy, providers ...storage.Provider) *storage.Mirror {
	t.Helper()
	m, err := storage.NewMirror(providers, storage.MirrorOptions{Policy: policy, RetryFor: -1})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, m.Close()) })
	return m
}

// memories are providers in memory with faults on demand.
func memories(n int) (faults []*faulty.Provider, providers []storage.Provider) {
	for range n {
		p := faulty.New(storagetest.NewMemory())
		faults, providers = append(faults, p), append(providers, p)
	}
	return faults, providers
}

// newTestRepository opens or makes the repository of these providers; it is closed when the test ends.
func newTestRepository(t testing.TB, policy storage.Policy, providers ...storage.Provider) *Repository {
	t.Helper()
	r, err := OpenOrCreate(t.Context(), newTestMirror(t, policy, providers...), testPassword, testOptions())
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, r.Close()) })
	return r
}

func openDirectory(t testing.TB, path string) storage.Provider {
	t.Helper()
	must(t, os.MkdirAll(path, 0o755))
	provider, err := storage.OpenDirectory(path, storage.DirectoryOptions{})
	must(t, err)
	return provider
}

// memoryRepository is a new repository on one provider in memory.
func memoryRepository(t testing.TB) *Repository {
	return newTestRepository(t, storage.PolicyAll, storagetest.NewMemory())
}
