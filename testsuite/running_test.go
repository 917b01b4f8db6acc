package testsuite_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"holdfast/testsuite/stack"
	"holdfast/workspace"
)

// shown is what `show -o json` says of a running workspace.
type shown struct {
	workspace.State
	RecoveryPoint *workspace.RecoveryPoint `json:"recovery_point"`
}

func showPoint(t *testing.T, s *stack.Stack, name string) shown {
	t.Helper()
	var state shown
	r := stack.Must(t, s, 0, nil, "show", name, "-o", "json")
	require.NoError(t, json.Unmarshal([]byte(r.Stdout), &state), r.Stdout)
	return state
}

// TestSnapshotsWhileRunning is A7: what a lost node can cost is bounded and told, an outage of the stores is told and
// disturbs nobody, and what is fetched from the stores after the node's death is the work of at most an interval ago.
func TestSnapshotsWhileRunning(t *testing.T) {
	t.Parallel()
	s := stack.New(t, "any", "process")
	stack.Must(t, s, 0, nil, "start", "web", "--snapshot-every", "10s")
	stack.Must(t, s, 0, nil, "exec", "web", "--", "sh", "-c", "echo first > work.txt")
	holds := func(text string) func() bool {
		return func() bool {
			state := stack.Show(t, s, "web")
			archive := filepath.Join(t.TempDir(), "web.tar")
			if state.Head == nil || stack.CLI(t, s, "download", "web", "--snapshot", state.Head.Snapshot, "-o", archive).Code != 0 {
				return false
			}
			content, err := os.ReadFile(archive)
			require.NoError(t, err)
			return strings.Contains(string(content), text)
		}
	}
	stack.WaitFor(t, "a timed snapshot of the first work", stack.Patience, holds("first"))
	state := showPoint(t, s, "web")
	require.Equal(t, "live", state.Head.Kind)
	require.Equal(t, int64(10), state.RecoveryPoint.IntervalSeconds)
	require.GreaterOrEqual(t, state.RecoveryPoint.BoundSeconds, int64(10))

	// Nothing changes: nothing is stored, and it is fresh all the same.
	var first shown
	stack.WaitFor(t, "a look that finds nothing changed", stack.Patience, func() bool {
		first = showPoint(t, s, "web")
		return first.RecoveryPoint.Unchanged
	})
	stored := len(stack.Objects(t, s.Store(t, 1), workspace.RepositoryPrefix(first.ID)+"/snapshots/"))
	stack.WaitFor(t, "two more", stack.Patience, func() bool {
		return showPoint(t, s, "web").RecoveryPoint.Time.Sub(first.RecoveryPoint.Time) > 15*time.Second
	})
	require.Len(t, stack.Objects(t, s.Store(t, 1), workspace.RepositoryPrefix(first.ID)+"/snapshots/"), stored)
	stack.Must(t, s, 0, []string{"RPO", "web"}, "list")

	// Every store is away: it is told, and the person works on.
	store := filepath.Join(s.Dir, "store")
	require.NoError(t, s.Storage().Kill())
	require.NoError(t, os.Rename(store, store+".away"))
	stack.Must(t, s, 0, nil, "exec", "web", "--", "sh", "-c", "echo second >> work.txt")
	stack.WaitFor(t, "a snapshot that could not be made", stack.Patience, func() bool { return showPoint(t, s, "web").RecoveryPoint.Failures > 0 })
	away := showPoint(t, s, "web")
	require.Equal(t, workspace.Running, away.Phase)
	stack.Must(t, s, 0, []string{"last snapshot: it failed", "connection refused", "next snapshot:"}, "why", "web")
	require.NoError(t, os.Rename(store+".away", store))
	require.NoError(t, s.Storage().Start(t.Context()))
	stack.WaitFor(t, "the stores hold the second work", stack.Patience, holds("second"))
	require.Zero(t, showPoint(t, s, "web").RecoveryPoint.Failures)

	// A stop does not wait for the timer, and its snapshot is a final one.
	stack.Must(t, s, 0, nil, "exec", "web", "--", "sh", "-c", "echo third >> work.txt")
	stack.Must(t, s, 0, []string{"is stopped"}, "stop", "web")
	require.Equal(t, "final", stack.Show(t, s, "web").Head.Kind)
	require.True(t, holds("third")())
	require.Nil(t, showPoint(t, s, "web").RecoveryPoint)
}

// TestHooks is A17 with a real engine: hooks run where the person works, what they write is in the snapshot, one that
// hangs holds nothing up beyond its timeout, one that is to end a stop does, and what they print is for the person alone.
func TestHooks(t *testing.T) {
	t.Parallel()
	for _, engine := range []string{"process", "docker"} {
		t.Run(engine, func(t *testing.T) {
			t.Parallel()
			s := stack.New(t, "any", engine)
			stack.Must(t, s, 0, nil, "start", "web", "--stop-grace", "2s",
				"--hook", "pre-snapshot,timeout=20s:echo flushed > flushed; echo $((6*7))-printed",
				"--hook", "post-snapshot,timeout=1s:echo thawing; sleep 600",
				"--hook", "pre-stop,timeout=20s,on-error=fail:echo saving; test -e allowed && echo saved > saved")
			backup := stack.Must(t, s, 0, []string{"is backed up"}, "backup", "web")
			require.Less(t, backup.Took, stack.Patience)
			state := stack.Show(t, s, "web")
			require.Equal(t, int64(1), state.Head.Files)
			require.Len(t, state.Hooks, 2)
			require.Equal(t, workspace.HookDone, state.Hooks[0].Outcome)
			require.Equal(t, workspace.HookTimedOut, state.Hooks[1].Outcome, "%+v", state.Hooks)
			stack.Must(t, s, 0, []string{"did not end in time", "logs web --hooks"}, "why", "web")
			log := stack.Must(t, s, 0, nil, "logs", "web", "--hooks").Stdout
			require.Contains(t, log, "42-printed")
			require.Contains(t, log, "thawing")

			// It runs on, until the person mends the hook; nothing was touched.
			stack.Must(t, s, 4, []string{"runs on", "pre-stop hook ended with status 1", "--skip-hooks"}, "stop", "web")
			require.Equal(t, workspace.Running, stack.Show(t, s, "web").Phase)

			// A program that ignores SIGTERM is killed after its grace, and what it wrote until then is backed up.
			stack.Must(t, s, 0, nil, "exec", "web", "--", "sh", "-c", "touch allowed; (trap '' TERM HUP; while :; do date +%s%N > beat; sleep 0.05; done) </dev/null >/dev/null 2>&1 &")
			_, content := stack.ContentDir(t, s, "web")
			stack.WaitFor(t, "the program works", stack.Patience, func() bool { _, err := os.Stat(filepath.Join(content, "beat")); return err == nil })
			stack.Must(t, s, 0, []string{"is stopped"}, "stop", "web")
			stopped := stack.Show(t, s, "web")
			require.Equal(t, workspace.Stopped, stopped.Phase)
			require.Nil(t, stopped.Kept)
			require.Equal(t, "final", stopped.Head.Kind)
			require.Equal(t, int64(4), stopped.Head.Files, "flushed, allowed, saved by the hook, and what the program wrote last")
			require.Equal(t, workspace.HookDone, stopped.Hooks[2].Outcome)

			// A stop without the hook.
			stack.Must(t, s, 0, nil, "start", "web")
			stack.Must(t, s, 0, nil, "exec", "web", "--", "rm", "allowed")
			stack.Must(t, s, 0, []string{"is stopped"}, "stop", "web", "--skip-hooks")

			// A15: what a hook prints is in no state, and so in no history, and in no log.
			require.NotContains(t, stack.Must(t, s, 0, nil, "show", "web", "-o", "json").Stdout, "42-printed")
			for _, node := range s.Nodes() {
				log, err := os.ReadFile(node.LogFile())
				require.NoError(t, err)
				require.NotContains(t, string(log), "42-printed")
			}
		})
	}
}
