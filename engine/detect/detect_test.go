package detect_test

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"holdfast/engine"
	"holdfast/engine/detect"
	"holdfast/engine/docker"
	"holdfast/engine/process"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// silentSocket accepts connections and never answers.
func silentSocket(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "hf")
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(dir)) })
	path := filepath.Join(dir, "s")
	listener, err := net.Listen("unix", path)
	require.NoError(t, err)
	t.Cleanup(func() { listener.Close() })
	return "unix://" + path
}

func TestAutoWithoutDocker(t *testing.T) {
	for name, host := range map[string]string{"absent": "unix:///nonexistent/docker.sock", "silent": silentSocket(t)} {
		options := detect.Options{Docker: docker.Options{Host: host}, Process: process.Options{Root: t.TempDir()}, Timeout: 200 * time.Millisecond}
		// A silent one would be waited for until the context ends, which is an error.
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		found, err := detect.Open(ctx, detect.Auto, options)
		cancel()
		require.NoError(t, err, name)
		info, err := found.Info(t.Context())
		require.NoError(t, err)
		require.Equal(t, "process", info.Kind)
		require.NoError(t, found.Close())

		_, err = detect.Open(t.Context(), detect.Docker, options)
		require.ErrorIs(t, err, engine.ErrUnavailable, "who asks for docker gets docker: %s", name)
	}
}

func TestUnknownAndUnusable(t *testing.T) {
	_, err := detect.Open(t.Context(), "podman", detect.Options{})
	require.ErrorIs(t, err, engine.ErrInvalid)
	found, err := detect.Open(t.Context(), detect.Process, detect.Options{})
	require.ErrorIs(t, err, engine.ErrInvalid, "no root")
	require.Nil(t, found)
}

func TestAutoWithDocker(t *testing.T) {
	options := detect.Options{Process: process.Options{Root: t.TempDir()}, Timeout: time.Minute}
	found, err := detect.Open(t.Context(), detect.Docker, options)
	if err != nil {
		if slices.Contains(strings.Split(os.Getenv("HOLDFAST_REQUIRE"), ","), "docker") {
			t.Fatal("docker is required and not here: ", err)
		}
		t.Skip("needs docker: ", err)
	}
	require.NoError(t, found.Close())
	found, err = detect.Open(t.Context(), "", options)
	require.NoError(t, err)
	info, err := found.Info(t.Context())
	require.NoError(t, err)
	require.Equal(t, "docker", info.Kind)
	require.NoError(t, found.Close())
}
