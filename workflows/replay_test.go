package workflows_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	sdklog "go.temporal.io/sdk/log"
	"go.temporal.io/sdk/worker"

	"holdfast/workflows"
)

// Golden histories: what workflows of older versions have done must be done again by this one, or every workspace that
// lives through an upgrade stops being decided upon.
//
// To record: go test ./workflows -run TestRecord -record
//
// That writes testdata/histories/v0 anew, so it is for a first version, or for a scenario that is new. A version that
// changed its commands behind workflow.GetVersion records into a directory of its own (-record-version v1) and keeps
// the older ones, which must go on replaying for as long as a workflow of that age may live. testdata/histories/bad
// holds what must not replay: it shows that the replay looks.

const histories = "testdata/histories"

func replayer(t *testing.T) worker.WorkflowReplayer {
	t.Helper()
	r := worker.NewWorkflowReplayer()
	workflows.Register(r)
	return r
}

// quiet keeps the replay of what must fail from looking like a failure.
var quiet = sdklog.NewStructuredLogger(discard())

func TestReplay(t *testing.T) {
	files, err := filepath.Glob(filepath.Join(histories, "v*", "*.json"))
	require.NoError(t, err)
	names := map[string]bool{}
	for _, file := range files {
		name := strings.TrimSuffix(filepath.Base(file), ".json")
		names[name] = true
		t.Run(filepath.Base(filepath.Dir(file))+"/"+name, func(t *testing.T) {
			require.NoError(t, replayer(t).ReplayWorkflowHistoryFromJSONFile(quiet, file))
			info, err := os.Stat(file)
			require.NoError(t, err)
			require.Less(t, info.Size(), int64(200<<10))
		})
	}
	for _, scenario := range scenarios {
		require.True(t, names[scenario.name], "no history of %s: record it", scenario.name)
	}
}

// A replay that accepts anything would prove nothing.
func TestBadHistoriesDoNotReplay(t *testing.T) {
	files, err := filepath.Glob(filepath.Join(histories, "bad", "*.json"))
	require.NoError(t, err)
	require.GreaterOrEqual(t, len(files), len(spoilers))
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".json"), func(t *testing.T) {
			err := replayer(t).ReplayWorkflowHistoryFromJSONFile(quiet, file)
			require.ErrorContains(t, err, "TMPRL1100") // nondeterminism, not a file that cannot be read
		})
	}
}

// What is recorded names no machine: the files are public.
func TestHistoriesNameNoMachine(t *testing.T) {
	files, err := filepath.Glob(filepath.Join(histories, "*", "*.json"))
	require.NoError(t, err)
	require.NotEmpty(t, files)
	for _, file := range files {
		content, err := os.ReadFile(file)
		require.NoError(t, err)
		for _, word := range []string{"/home/", "/root/", "/tmp/", "goroutine ", ".go:"} {
			require.NotContains(t, string(content), word, file)
		}
		require.Contains(t, string(content), recorder, file)
	}
}
