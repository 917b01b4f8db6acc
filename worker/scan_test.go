package worker

import (
	"bytes"
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"holdfast/activities"
	"holdfast/engine"
)

// described is an engine that only says what it is.
type described struct{ engine.Engine }

func (described) Info(context.Context) (engine.Info, error) { return engine.Info{Kind: "process"}, nil }

// invariant 1: an agent that starts on a disk with content that nobody knows names it and leaves it as it is; so it does
// with content whose identity says that it is another's.
func TestScanKeepsWhatNobodyKnows(t *testing.T) {
	root := t.TempDir()
	volumes, err := activities.OpenVolumes(root)
	require.NoError(t, err)
	const id, other = "abcdefghijklmnopqrstuvwxyz", "zyxwvutsrqponmlkjihgfedcba"
	files := map[string]string{
		"backup of my own/notes.txt":      "a person's own",
		id + ".7/content/notes.txt":       "without an identity",
		id + ".8/content/notes.txt":       "of another instance",
		id + ".8/identity.json":           `{"workspace_id":"` + other + `","token":8,"state":"started"}`,
		id + ".9/content/notes.txt":       "known",
		id + ".9/identity.json":           `{"workspace_id":"` + id + `","name":"atlas","token":9,"state":"started"}`,
		id + ".10/content/not-whole.txt":  "half a restore",
		id + ".10/identity.json":          `{"workspace_id":"` + id + `","name":"atlas","token":10,"state":"preparing"}`,
		id + ".11/content/unreadable.txt": "its identity is damaged",
		id + ".11/identity.json":          `{"worksp`,
	}
	for name, content := range files {
		path := filepath.Join(root, "workspaces", name)
		require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o700))
		require.NoError(t, os.WriteFile(path, []byte(content), 0o600))
	}
	var logs bytes.Buffer
	a := &agent{volumes: volumes, config: NodeConfig{Config: Config{Logger: slog.New(slog.NewTextHandler(&logs, nil))}, Engine: described{}}}
	for range 2 { // every start of the agent
		a.scan(t.Context())
		for name, content := range files {
			data, err := os.ReadFile(filepath.Join(root, "workspaces", name))
			require.NoError(t, err)
			require.Equal(t, content, string(data))
		}
	}
	for _, name := range []string{`"backup of my own"`, id + ".7", id + ".8", id + ".11"} {
		require.Contains(t, logs.String(), `it is kept" directory=`+name)
	}
	for _, name := range []string{id + ".9: workspace atlas, started", id + ".10: workspace atlas, preparing"} {
		require.Contains(t, logs.String(), name)
	}
}
