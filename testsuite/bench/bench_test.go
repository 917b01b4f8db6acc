package main

import (
	"bytes"
	"io"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"holdfast/devstack/devtest"
	"holdfast/engine/detect"
)

func TestMedian(t *testing.T) {
	require.Zero(t, median(nil))
	require.Equal(t, 2*time.Second, median([]time.Duration{3 * time.Second, time.Second, 2 * time.Second}))
	require.Equal(t, 2500*time.Millisecond, median([]time.Duration{3 * time.Second, time.Second, 2 * time.Second, time.Minute}))
	require.Equal(t, "1.00 | **2.00** | 3.00", spread([]time.Duration{3 * time.Second, time.Second, 2 * time.Second}))
}

func TestBadFlags(t *testing.T) {
	for _, arguments := range [][]string{
		{"--measure", "everything"}, {"--workspaces", "0"}, {"--workspaces", "501"}, {"--rounds", "0"}, {"--starts", "0"}, {"--faults", "0"},
		{"--snapshot-every", "1s"}, {"--freeze-for", "0s"}, {"--drain-parallel", "0"}, {"--crowd-workspaces", "19"}, {"loss"},
	} {
		_, err := parse(arguments, io.Discard)
		require.Error(t, err, arguments)
	}
	s, err := parse(nil, io.Discard)
	require.NoError(t, err)
	require.Len(t, s.measure, len(measures))
}

// TestSmallRun measures a little for real, so that the program is known to work, and to clean up after itself.
func TestSmallRun(t *testing.T) {
	devtest.Binary(t)
	t.Setenv("TMPDIR", t.TempDir())
	var out, progress bytes.Buffer
	err := run(t.Context(), []string{"--measure", "start,drain", "--workspaces", "2", "--rounds", "1", "--starts", "1"}, &out, &progress)
	require.NoError(t, err, "%s", progress.String())
	require.Contains(t, out.String(), "| one, at any moment | 1 |")
	require.Contains(t, out.String(), "| 2 at once on two nodes, until the last runs | 1 |")
	require.Contains(t, out.String(), "| from the order until the last runs elsewhere | 1 |")
	require.NotContains(t, out.String(), "| 0.00 |")
}

// TestSmallPartition cuts a node off for real: what was replaced is seen to be paused, and soon.
func TestSmallPartition(t *testing.T) {
	t.Parallel()
	devtest.Binary(t)
	var out, progress bytes.Buffer
	err := run(t.Context(), []string{"--measure", "partition", "--workspaces", "2", "--rounds", "1"}, &out, &progress)
	require.NoError(t, err, "%s", progress.String())
	require.Contains(t, out.String(), "| two instances of a workspace at work | 2 |")
	require.Regexp(t, `at work twice at any time: [0-2] of 2`, out.String())
}

func TestSmallDockerStart(t *testing.T) {
	t.Parallel()
	devtest.Binary(t)
	opened, err := detect.Open(t.Context(), detect.Docker, detect.Options{})
	if err != nil {
		devtest.Missing(t, "docker", err)
	}
	require.NoError(t, opened.Close())
	var out, progress bytes.Buffer
	err = run(t.Context(), []string{"--measure", "start-docker", "--workspaces", "2", "--rounds", "1", "--starts", "1"}, &out, &progress)
	require.NoError(t, err, "%s", progress.String())
	require.Contains(t, out.String(), "with the docker engine")
	require.Contains(t, out.String(), "| StartInstance | 1 |")
	require.Contains(t, out.String(), "| 2 at once by the engine alone | 1 |")
}
