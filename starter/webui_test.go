package main

import (
	"context"
	"io"
	"net"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"holdfast/keys"
)

// TestWebUI serves a deployment's Web UI as an operator would: keys and token made by the command, then one login.
func TestWebUI(t *testing.T) {
	dir := t.TempDir()
	codecKey, token := filepath.Join(dir, "codec.key"), filepath.Join(dir, "token")
	p := newTestProgram(t, &fakeControl{})
	require.Equal(t, exitDone, p.run("key", "create-codec", codecKey), p.errs.String())
	before, err := os.ReadFile(codecKey)
	require.NoError(t, err)
	require.Equal(t, exitRefused, p.run("key", "create-codec", codecKey))
	after, err := os.ReadFile(codecKey)
	require.NoError(t, err)
	require.Equal(t, before, after, "a key is never replaced")
	require.Equal(t, exitDone, p.run("key", "create-master", filepath.Join(dir, "master.key")), p.errs.String())
	url, err := keys.LocalKeyURL(filepath.Join(dir, "master.key"))
	require.NoError(t, err)
	master, err := keys.OpenMaster(t.Context(), url)
	require.NoError(t, err)
	require.NoError(t, master.Close())

	behind := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "the UI") }))
	defer behind.Close()
	require.Equal(t, exitUsage, p.run("--codec-key", codecKey, "web-ui", "--behind", "not an address", "--token-file", token))
	require.Equal(t, exitUsage, p.run("web-ui", "--behind", behind.URL, "--token-file", token), "without the codec's key")
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer taken.Close()
	require.Equal(t, exitFailed, p.run("--codec-key", codecKey, "web-ui", "--behind", behind.URL, "--token-file", token, "--listen", taken.Addr().String()))
	require.Contains(t, p.errs.String(), "--listen")

	ctx, stop := context.WithCancel(t.Context())
	reader, writer := io.Pipe()
	p.stderr = writer
	ended := make(chan error, 1)
	go func() {
		ended <- p.app().RunContext(ctx, []string{"holdfast", "--codec-key", codecKey, "web-ui", "--behind", behind.URL, "--token-file", token, "--listen", "127.0.0.1:0"})
	}()
	said := make([]byte, 300)
	n, err := reader.Read(said)
	require.NoError(t, err)
	origin := strings.TrimSuffix(strings.Fields(string(said[:n]))[1], ";")
	secret, err := keys.LoadOrCreateCodecToken(token)
	require.NoError(t, err)
	require.NotContains(t, string(said[:n]), secret)

	jar, err := cookiejar.New(nil)
	require.NoError(t, err)
	browser := &http.Client{Jar: jar, Timeout: time.Minute}
	decode := func() int {
		request, err := http.NewRequestWithContext(ctx, http.MethodPost, origin+"/codec/decode", strings.NewReader(`{"payloads":[]}`))
		require.NoError(t, err)
		request.Header.Set("Origin", origin)
		response, err := browser.Do(request)
		require.NoError(t, err)
		require.NoError(t, response.Body.Close())
		return response.StatusCode
	}
	require.Equal(t, http.StatusUnauthorized, decode())
	response, err := browser.Get(origin + "/codec/login?token=" + secret)
	require.NoError(t, err)
	page, err := io.ReadAll(response.Body)
	require.NoError(t, err)
	require.NoError(t, response.Body.Close())
	require.Equal(t, "the UI", string(page), "the login leads to the Web UI")
	require.Equal(t, http.StatusOK, decode())
	browser.CloseIdleConnections()
	stop()
	require.NoError(t, <-ended)
}
