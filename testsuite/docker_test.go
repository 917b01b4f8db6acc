package testsuite_test

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"holdfast/engine"
	"holdfast/engine/detect"
	"holdfast/workspace"
)

// removeContainers removes the containers of one workspace, and none without its id.
func removeContainers(t *testing.T, id string) {
	if workspace.ValidateID(id) != nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	containers, err := detect.Open(ctx, detect.Docker, detect.Options{Logger: slog.New(slog.DiscardHandler)})
	require.NoError(t, err)
	defer containers.Close()
	for _, container := range containersOf(ctx, t, containers, id) {
		require.NoError(t, containers.Stop(ctx, container.ID, time.Second))
		require.NoError(t, containers.Remove(ctx, container.ID))
	}
}

func containersOf(ctx context.Context, t *testing.T, containers engine.Engine, id string) []engine.Instance {
	t.Helper()
	found, err := containers.List(ctx, map[string]string{engine.LabelWorkspace: id})
	require.NoError(t, err)
	return found
}

// TestDockerFromStartToStart is the main job with real containers (A1, A13): content of several owners, environment, an
// agent that dies while the container runs, a stop that removes it, a start elsewhere.
func TestDockerFromStartToStart(t *testing.T) {
	t.Parallel()
	s := newStack(t, "all", detect.Docker)
	must(t, s, 0, nil, "start", "boxed", "--from-dir", fidelityTree(t), "--env", "GREETING=from outside")
	state := show(t, s, "boxed")
	t.Cleanup(func() { removeContainers(t, state.ID) })
	containers, err := detect.Open(t.Context(), detect.Docker, detect.Options{Logger: slog.New(slog.DiscardHandler)})
	require.NoError(t, err)
	defer containers.Close()
	require.Len(t, containersOf(t.Context(), t, containers, state.ID), 1)

	r := must(t, s, 0, nil, "exec", "boxed", "--", "sh", "-c",
		`echo "$GREETING"; echo made > made; ./bin/run.sh; [ "$(id -u)" != 0 ] || chown 1234:4321 made; chmod 604 made`)
	require.Equal(t, "from outside\nhello\n", r.stdout)
	node, content := contentDir(t, s, "boxed")
	require.FileExists(t, filepath.Join(content, "made"))

	// The container outlives its agent, and is found again.
	agent := s.Node(node)
	require.NoError(t, agent.Kill())
	require.Len(t, containersOf(t.Context(), t, containers, state.ID), 1)
	require.NoError(t, agent.Start(t.Context()))
	waitFor(t, "the agent answers again", patience, func() bool { return cli(t, s, "exec", "boxed", "--", "true").code == 0 })

	before := manifest(t, content)
	must(t, s, 0, []string{"is stopped", "verified and committed"}, "stop", "boxed")
	require.NoDirExists(t, filepath.Dir(content))
	require.Empty(t, containersOf(t.Context(), t, containers, state.ID), "its container is removed")

	must(t, s, 0, []string{"restored from snapshot"}, "start", "boxed", "--not-node", node)
	_, restored := contentDir(t, s, "boxed")
	requireSame(t, before, restored)
	must(t, s, 0, []string{"made"}, "exec", "boxed", "--", "cat", "made")
	must(t, s, 0, nil, "stop", "boxed")
	require.Empty(t, containersOf(t.Context(), t, containers, state.ID))
	entries, err := os.ReadDir(filepath.Join(s.NodeDir(s.File().Nodes[0]), "workspaces"))
	require.NoError(t, err)
	require.Empty(t, entries)
}
