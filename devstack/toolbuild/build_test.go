package toolbuild

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"
)

// lines is a Progress that several builds may write to.
type lines struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *lines) count(what string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count(l.text.String(), what)
}

// hello is a nested module whose program comes from a module beside it.
func hello(t *testing.T, source string) Options {
	t.Helper()
	root := t.TempDir()
	for path, text := range map[string]string{
		"hello/go.mod":          "module example.org/hello\n\ngo 1.26.0\n",
		"hello/cmd/hi/main.go":  source,
		"tools/hi/go.mod":       "module holdfast/tools/hi\n\ngo 1.26.0\n\nrequire (\n\texample.org/hello v1.2.3 // indirect\n)\n\nreplace example.org/hello => ../../hello\n",
		"tools/hi/somebody.txt": "",
	} {
		path = filepath.Join(root, path)
		require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
		require.NoError(t, os.WriteFile(path, []byte(text), 0o644))
	}
	return Options{
		Name: "hi", Package: "example.org/hello/cmd/hi", Dir: filepath.Join(root, "tools", "hi"),
		CacheDir: filepath.Join(t.TempDir(), "cache"),
	}
}

func TestBuildOnce(t *testing.T) {
	options := hello(t, "package main\n\nfunc main() { print(\"hello\") }\n")
	progress := &lines{}
	options.Progress = progress
	var group errgroup.Group
	for range 4 {
		group.Go(func() error {
			path, err := Build(t.Context(), options)
			if err != nil {
				return err
			}
			out, err := exec.Command(path).CombinedOutput()
			if err == nil && string(out) != "hello" {
				t.Errorf("it says %q", out)
			}
			return err
		})
	}
	require.NoError(t, group.Wait())
	require.Equal(t, 1, progress.count("from source"), "built more than once: %s", &progress.text)
	entries, err := os.ReadDir(filepath.Join(options.CacheDir, "v1.2.3"))
	require.NoError(t, err)
	require.Len(t, entries, 2, "the program and its lock")

	// Built before: the source is not needed any more, when the version is known.
	options.Dir, options.Version = filepath.Join(t.TempDir(), "gone"), "v1.2.3"
	_, err = Build(t.Context(), options)
	require.NoError(t, err)
	options.Version = ""
	_, err = Build(t.Context(), options)
	require.ErrorIs(t, err, ErrNoSource)
	require.ErrorContains(t, err, "install hi")
}

func TestBuildFails(t *testing.T) {
	options := hello(t, "package main\n\nfunc main() { nonsense() }\n")
	_, err := Build(t.Context(), options)
	require.ErrorContains(t, err, "undefined: nonsense", "the compiler's words are in the error")
	entries, err := os.ReadDir(filepath.Join(options.CacheDir, "v1.2.3"))
	require.NoError(t, err)
	require.Len(t, entries, 1, "only the lock is left")

	options.Version = "v9.9.9"
	_, err = Build(t.Context(), options)
	require.ErrorContains(t, err, "pins v1.2.3")
	_, err = Build(t.Context(), Options{Name: "nosuch", Package: "example.org/nosuch", CacheDir: t.TempDir()})
	require.ErrorIs(t, err, ErrNoSource)
	_, err = Build(t.Context(), Options{Name: "../x", Package: "example.org/nosuch"})
	require.Error(t, err)
}

func TestBuildWaitsAndGivesUp(t *testing.T) {
	options := hello(t, "package main\n\nfunc main() {}\n")
	require.NoError(t, options.applyDefaults())
	options.Version = "v1.2.3"
	require.NoError(t, os.MkdirAll(filepath.Dir(options.path()), 0o755))
	unlock, err := options.lock(t.Context(), options.path()+".lock")
	require.NoError(t, err)
	progress := &lines{}
	options.Progress = progress
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		_, err := Build(ctx, options)
		done <- err
	}()
	require.Eventually(t, func() bool { return progress.count("waiting for another process") == 1 }, time.Minute, time.Millisecond)
	cancel()
	require.ErrorIs(t, <-done, context.Canceled)
	unlock()
}

func TestPinnedVersion(t *testing.T) {
	const text = "module m\n\nrequire example.org/a v1.0.0\n\nrequire (\n\texample.org/a/b v2.0.0 // indirect\n\texample.org/ab v3.0.0\n)\n"
	for pkg, want := range map[string]string{
		"example.org/a": "v1.0.0", "example.org/a/cmd": "v1.0.0", "example.org/a/b/cmd": "v2.0.0", "example.org/abc": "", "other": "",
	} {
		require.Equal(t, want, pinnedVersion(text, pkg), pkg)
	}
}

// The nested modules of this checkout are found and pin what they are there for.
func TestOurTools(t *testing.T) {
	for name, pkg := range map[string]string{
		"versitygw": "github.com/versity/versitygw/cmd/versitygw",
		"temporal":  "github.com/temporalio/cli/cmd/temporal",
	} {
		options := Options{Name: name, Package: pkg, CacheDir: t.TempDir()}
		require.NoError(t, options.findSource())
		require.Regexp(t, `^v\d+\.\d+\.\d+`, options.Version)
		require.FileExists(t, filepath.Join(options.Dir, "go.sum"))
	}
}
