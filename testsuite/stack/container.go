package stack

import (
	"context"
	"log/slog"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"holdfast/engine"
	"holdfast/engine/detect"
	"holdfast/workspace"
)

// RemoveContainers removes the containers of one workspace, and none without its id.
func RemoveContainers(t *testing.T, id string) {
	if workspace.ValidateID(id) != nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), Patience)
	defer cancel()
	containers, err := detect.Open(ctx, detect.Docker, detect.Options{Logger: slog.New(slog.DiscardHandler)})
	require.NoError(t, err)
	defer containers.Close()
	for _, container := range ContainersOf(ctx, t, containers, id) {
		require.NoError(t, containers.Stop(ctx, container.ID, time.Second))
		require.NoError(t, containers.Remove(ctx, container.ID))
	}
}

// ContainersOf lists the containers of one workspace.
func ContainersOf(ctx context.Context, t *testing.T, containers engine.Engine, id string) []engine.Instance {
	t.Helper()
	found, err := containers.List(ctx, map[string]string{engine.LabelWorkspace: id})
	require.NoError(t, err)
	return found
}
