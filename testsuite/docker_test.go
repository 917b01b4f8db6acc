package testsuite_test

import (
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"holdfast/engine/detect"
	"holdfast/testsuite/stack"
)

// TestDockerFromStartToStart is the main job with real containers (A1, A13): content of several owners, environment, an
// agent that dies while the container runs, a stop that removes it, a start elsewhere.
func TestDockerFromStartToStart(t *testing.T) {
	t.Parallel()
	s := stack.New(t, "all", detect.Docker)
	stack.Must(t, s, 0, nil, "start", "boxed", "--from-dir", fidelityTree(t), "--env", "GREETING=from outside")
	state := stack.Show(t, s, "boxed")
	t.Cleanup(func() { stack.RemoveContainers(t, state.ID) })
	containers, err := detect.Open(t.Context(), detect.Docker, detect.Options{Logger: slog.New(slog.DiscardHandler)})
	require.NoError(t, err)
	defer containers.Close()
	require.Len(t, stack.ContainersOf(t.Context(), t, containers, state.ID), 1)

	r := stack.Must(t, s, 0, nil, "exec", "boxed", "--", "sh", "-c",
		`echo "$GREETING"; echo made > made; ./bin/run.sh; [ "$(id -u)" != 0 ] || chown 1234:4321 made; chmod 604 made`)
	require.Equal(t, "from outside\nhello\n", r.Stdout)
	node, content := stack.ContentDir(t, s, "boxed")
	require.FileExists(t, filepath.Join(content, "made"))

	// The container outlives its agent, and is found again.
	agent := s.Node(node)
	require.NoError(t, agent.Kill())
	require.Len(t, stack.ContainersOf(t.Context(), t, containers, state.ID), 1)
	require.NoError(t, agent.Start(t.Context()))
	stack.WaitFor(t, "the agent answers again", stack.Patience, func() bool { return stack.CLI(t, s, "exec", "boxed", "--", "true").Code == 0 })

	before := stack.Manifest(t, content)
	stack.Must(t, s, 0, []string{"is stopped", "verified and committed"}, "stop", "boxed")
	require.NoDirExists(t, filepath.Dir(content))
	require.Empty(t, stack.ContainersOf(t.Context(), t, containers, state.ID), "its container is removed")

	stack.Must(t, s, 0, []string{"restored from snapshot"}, "start", "boxed", "--not-node", node)
	_, restored := stack.ContentDir(t, s, "boxed")
	stack.RequireSame(t, before, restored)
	stack.Must(t, s, 0, []string{"made"}, "exec", "boxed", "--", "cat", "made")
	stack.Must(t, s, 0, nil, "stop", "boxed")
	require.Empty(t, stack.ContainersOf(t.Context(), t, containers, state.ID))
	entries, err := os.ReadDir(filepath.Join(s.NodeDir(s.File().Nodes[0]), "workspaces"))
	require.NoError(t, err)
	require.Empty(t, entries)
}
