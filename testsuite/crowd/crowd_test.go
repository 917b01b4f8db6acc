package crowd_test

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"holdfast/devstack/devtest"
	"holdfast/testsuite/crowd"
)

// TestMain is also every child of a crowd.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == crowd.Role {
		os.Exit(crowd.RunRole(os.Args[2:]))
	}
	os.Exit(m.Run())
}

// campaign says whether the tests run at their full size (HOLDFAST_CAMPAIGN=1).
func campaign() bool { return os.Getenv("HOLDFAST_CAMPAIGN") != "" }

// besideOthers lets a test run beside others at the small size. At the full one each has the machine.
func besideOthers(t *testing.T) {
	if !campaign() {
		t.Parallel()
	}
}

// patience is how long anything may take: only what hangs takes so long.
const patience = 10 * time.Minute

func start(t *testing.T, hosts, nodesEach int) *crowd.Crowd {
	t.Helper()
	dir := t.TempDir()
	c, err := crowd.Start(t.Context(), crowd.Options{
		Dir: dir, Temporal: devtest.Binary(t), Hosts: hosts, NodesEach: nodesEach, Patience: patience, Say: func(format string, args ...any) {
			t.Logf(time.Now().Format("15:04:05 ")+format, args...)
		},
	})
	require.NoError(t, err)
	t.Cleanup(func() {
		if t.Failed() {
			logs, _ := filepath.Glob(filepath.Join(dir, "*.log"))
			for _, log := range logs {
				text, _ := os.ReadFile(log)
				t.Logf("%s:\n%s", filepath.Base(log), text[max(len(text)-4000, 0):])
			}
		}
		require.NoError(t, c.End(context.Background()))
	})
	return c
}

// limits are far below what Temporal warns of, and two to five times what is seen: a history that grows with what waits is above
// them before it is in anybody's way. What the processes take grows with how many workspaces there are, by so much for each.
func limits(workspaces int) crowd.Limits {
	return crowd.Limits{
		Events: 1000, Bytes: 500 << 10, Updates: 50, InFlight: 2, Activities: 5,
		ControlMemory: 256<<20 + int64(workspaces)*256<<10, TemporalMemory: 512<<20 + int64(workspaces)*1<<20,
	}
}

// TestManyNodesLost loses many nodes at once, at a small size so many that the brake holds their workspaces until a person says that
// the loss is one, at the full size a quarter: all that ran there goes on elsewhere, nothing else is touched, what returns is cleaned
// up, and nothing comes near a limit of Temporal.
func TestManyNodesLost(t *testing.T) {
	besideOthers(t)
	hosts, nodesEach, workspaces := 2, 3, 60
	if campaign() {
		hosts, nodesEach, workspaces = 4, 5, 1000
	}
	c := start(t, hosts, nodesEach)
	f, err := c.Fill(t.Context(), workspaces)
	require.NoError(t, err)
	loss, err := c.Lose(t.Context(), f, 0)
	require.NoError(t, err)
	t.Logf("%+v", loss)
	require.NoError(t, loss.Usage.Within(limits(workspaces)))
}

// TestSilenceMovesNothing: whether Temporal stands still or every connection to it is silent, longer than any lease lives, says nothing
// about the nodes.
func TestSilenceMovesNothing(t *testing.T) {
	besideOthers(t)
	hosts, nodesEach, workspaces, d := 2, 3, 30, 20*time.Second
	if campaign() {
		hosts, nodesEach, workspaces, d = 4, 5, 1000, time.Minute
	}
	c := start(t, hosts, nodesEach)
	f, err := c.Fill(t.Context(), workspaces)
	require.NoError(t, err)
	for _, silence := range []struct {
		name string
		make func(context.Context, *crowd.Filled, time.Duration) (crowd.Silence, error)
	}{{"Temporal stands still", c.Freeze}, {"every connection is silent", c.CutAll}} {
		result, err := silence.make(t.Context(), f, d)
		require.NoError(t, err, silence.name)
		t.Logf("%s: %+v", silence.name, result)
		require.NoError(t, c.Works(t.Context(), f, 10), silence.name)
	}
}

// TestHalfSilentMovesNothing: half of the nodes are silent at once, for longer than their workspaces wait for them, and the others would
// take those: the brake holds them.
func TestHalfSilentMovesNothing(t *testing.T) {
	t.Parallel()
	c := start(t, 2, 3)
	f, err := c.Fill(t.Context(), 18)
	require.NoError(t, err)
	result, err := c.CutSome(t.Context(), f, 45*time.Second, 0)
	require.NoError(t, err)
	require.Equal(t, 3, result.Lost, "without a loss this says nothing")
	require.NoError(t, c.Works(t.Context(), f, 6))
}
