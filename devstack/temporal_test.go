package devstack_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"holdfast/devstack"
)

// fakeTemporal is a program that looks like a usable `temporal`.
const fakeTemporal = `#!/bin/sh
case "$1" in
--version) echo "temporal version 9.9.9 (Server 1.2.3, UI 4.5.6)" ;;
*) echo "--db-filename --sqlite-pragma --search-attribute --dynamic-config-value --ui-ip --headless --namespace" ;;
esac
`

func script(t *testing.T, dir, name, text string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	require.NoError(t, os.MkdirAll(dir, 0o700))
	require.NoError(t, os.WriteFile(path, []byte(text), 0o700))
	return path
}

// roundTrip stands in for the network.
type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

func setNetwork(t *testing.T, f roundTrip) {
	t.Helper()
	before := http.DefaultTransport
	http.DefaultTransport = f
	t.Cleanup(func() { http.DefaultTransport = before })
}

// findIn is FindTemporal with nothing of this machine: what it said is returned too.
func findIn(t *testing.T, options devstack.FindOptions, path string) (found, said string, err error) {
	t.Helper()
	t.Setenv("PATH", path+":/bin:/usr/bin")
	t.Setenv("TMPDIR", t.TempDir())
	var mu sync.Mutex
	options.Progress = func(line string) {
		mu.Lock()
		defer mu.Unlock()
		said += line + "\n"
	}
	if options.CacheDir == "" {
		options.CacheDir = t.TempDir()
	}
	found, err = devstack.FindTemporal(t.Context(), options)
	return found, said, err
}

func offline(*http.Request) (*http.Response, error) { return nil, errors.New("no network here") }

func TestFindTemporalOnThePath(t *testing.T) {
	setNetwork(t, offline)
	dir := t.TempDir()
	want := script(t, dir, "temporal", fakeTemporal)
	found, said, err := findIn(t, devstack.FindOptions{}, dir)
	require.NoError(t, err)
	require.Equal(t, want, found)
	require.Empty(t, said)
}

// One on the PATH that cannot run the server is told and left alone; a program without source says what to install.
func TestFindTemporalNowhere(t *testing.T) {
	setNetwork(t, offline)
	dir := t.TempDir()
	script(t, dir, "temporal", "#!/bin/sh\necho an old one\n")
	_, said, err := findIn(t, devstack.FindOptions{Source: filepath.Join(t.TempDir(), "none")}, dir)
	require.ErrorIs(t, err, devstack.ErrNoTemporal)
	require.ErrorContains(t, err, "install")
	require.ErrorContains(t, err, "TEMPORAL_ADDRESS")
	require.Contains(t, said, "does not know --db-filename")
	require.Contains(t, said, "no network here")
}

func TestFindTemporalDownloads(t *testing.T) {
	var archive bytes.Buffer
	zipped := gzip.NewWriter(&archive)
	tarred := tar.NewWriter(zipped)
	require.NoError(t, tarred.WriteHeader(&tar.Header{Name: "temporal", Mode: 0o755, Size: int64(len(fakeTemporal))}))
	_, err := tarred.Write([]byte(fakeTemporal))
	require.NoError(t, errors.Join(err, tarred.Close(), zipped.Close()))
	var mu sync.Mutex
	downloads := 0
	setNetwork(t, func(r *http.Request) (*http.Response, error) {
		answer := func(body []byte) (*http.Response, error) {
			return &http.Response{StatusCode: 200, Body: io.NopCloser(bytes.NewReader(body)), Request: r}, nil
		}
		switch {
		case r.Method == http.MethodHead:
			return answer(nil)
		case strings.HasPrefix(r.URL.Path, "/cli/"):
			return answer([]byte(`{"archiveUrl": "https://temporal.download/a.tar.gz", "fileToExtract": "temporal"}`))
		case r.URL.Path == "/a.tar.gz":
			mu.Lock()
			defer mu.Unlock()
			downloads++
			return answer(archive.Bytes())
		}
		return nil, fmt.Errorf("asked for %s", r.URL)
	})
	options := devstack.FindOptions{CacheDir: t.TempDir(), Source: filepath.Join(t.TempDir(), "none")}
	found, said, err := findIn(t, options, "/nowhere")
	require.NoError(t, err)
	require.Equal(t, options.CacheDir, filepath.Dir(found))
	require.Contains(t, said, "downloading")

	again, said, err := findIn(t, options, "/nowhere")
	require.NoError(t, err)
	require.Equal(t, found, again)
	require.Empty(t, said)
	require.Equal(t, 1, downloads)

	// In the directory that everybody can write to, where the SDK keeps it by default, one is run only if nobody else can
	// have put it there.
	setNetwork(t, offline)
	options.CacheDir = t.TempDir()
	temp := t.TempDir()
	in := func(mode os.FileMode) (string, error) {
		path := script(t, temp, filepath.Base(found), fakeTemporal)
		require.NoError(t, os.Chmod(path, mode))
		t.Setenv("TMPDIR", temp)
		return devstack.FindTemporal(t.Context(), options)
	}
	t.Setenv("PATH", "/bin:/usr/bin")
	shared, err := in(0o700)
	require.NoError(t, err)
	require.Equal(t, temp, filepath.Dir(shared))
	_, err = in(0o777)
	require.ErrorIs(t, err, devstack.ErrNoTemporal)
}

// Several processes and packages that want the program at once build it once (here: with something that stands in for
// Go and counts).
func TestFindTemporalBuildsOnce(t *testing.T) {
	tools, source, cache := t.TempDir(), t.TempDir(), t.TempDir()
	script(t, tools, "go", `#!/bin/sh
[ "$1" = build ] || exit 0
echo built >> "$COUNT"
while [ "$1" != -o ]; do shift; done
for i in $(seq 600); do [ -e "$COUNT.waiting" ] && break; sleep 0.1; done
cp "$FAKE" "$2"
`)
	counter := filepath.Join(tools, "count")
	t.Setenv("COUNT", counter)
	t.Setenv("FAKE", script(t, tools, "fake", fakeTemporal))
	pin, err := os.ReadFile(filepath.FromSlash("../tools/temporal/go.mod"))
	require.NoError(t, err)
	mod := filepath.Join(source, "go.mod")
	require.NoError(t, os.WriteFile(mod, pin, 0o600)) // so that it also is the version that devstack expects
	t.Setenv("PATH", tools+":/bin:/usr/bin")
	t.Setenv("TMPDIR", t.TempDir())

	var all sync.WaitGroup
	var mu sync.Mutex
	said, found := "", map[string]bool{}
	for range 4 {
		all.Go(func() {
			path, err := devstack.FindTemporal(t.Context(), devstack.FindOptions{
				CacheDir: cache, Source: source, NoDownload: true,
				Progress: func(line string) {
					mu.Lock()
					defer mu.Unlock()
					said += line + "\n"
					if strings.Contains(line, "another process that builds") { // the build may end
						if err := os.WriteFile(counter+".waiting", nil, 0o600); err != nil {
							t.Error(err)
						}
					}
				},
			})
			mu.Lock()
			defer mu.Unlock()
			found[path] = err == nil
		})
	}
	all.Wait()
	require.Len(t, found, 1)
	for path, ok := range found {
		require.True(t, ok)
		require.Equal(t, cache, filepath.Dir(filepath.Dir(path)))
	}
	count, err := os.ReadFile(counter)
	require.NoError(t, err)
	require.Equal(t, "built\n", string(count))
	require.Contains(t, said, "another process that builds", "nobody waits in silence")

	// One that cannot be built says what the compiler said; a checkout that pins another version is not built blindly.
	script(t, tools, "go", "#!/bin/sh\necho undefined: something >&2\nexit 1\n")
	options := devstack.FindOptions{CacheDir: t.TempDir(), Source: source, NoDownload: true}
	_, err = devstack.FindTemporal(t.Context(), options)
	require.ErrorContains(t, err, "undefined: something")
	other := strings.ReplaceAll(string(pin), "github.com/temporalio/cli v1.5.1", "github.com/temporalio/cli v1.5.2")
	require.NotEqual(t, string(pin), other)
	require.NoError(t, os.WriteFile(mod, []byte(other), 0o600))
	_, err = devstack.FindTemporal(t.Context(), options)
	require.ErrorContains(t, err, "v1.5.2")
}
