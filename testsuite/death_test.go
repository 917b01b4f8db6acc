package testsuite_test

import (
	"context"
	"errors"
	"io/fs"
	"math/rand"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"holdfast/snapshot"
	"holdfast/storage/gcsemulator"
	"holdfast/testsuite/stack"
	"holdfast/workspace"
)

// sentBeyond is how many bytes the object store has received beyond what it holds, once nothing is on its way any more.
func sentBeyond(t *testing.T, s *stack.Stack) int64 {
	t.Helper()
	var stats gcsemulator.Stats
	stack.WaitFor(t, "what was on its way has arrived", stack.Patience, func() bool {
		stats = s.Stats(t, "holdfast/")
		return stats.Uploading == 0
	})
	return stats.Received - stats.ObjectBytes
}

// TestKilledAgentResumes proves A3 for an agent that is killed again and again in the middle of a backup: nobody does
// anything, the stop completes, nothing is lost, and only what was on its way at a kill is ever sent again.
func TestKilledAgentResumes(t *testing.T) {
	t.Parallel()
	// An agent's death is noticed half a minute after its last heartbeat, so that each kill takes that long.
	kills, files := 3, 24
	if stack.Campaign() {
		kills, files = 30, 192
	}
	const fileSize = 4 << 20
	random := rand.New(rand.NewSource(stack.Seed(t)))
	s := stack.New(t, "all", "process")
	tree := stack.RandomTree(t, 1, files, fileSize)
	stack.Must(t, s, 0, nil, "start", "web", "--from-dir", tree)
	node, content := stack.ContentDir(t, s, "web")
	before := stack.Manifest(t, content)
	base := s.Stats(t, "holdfast/").Received
	const small = 1 << 20 // of objects that come and go, such as the repository's lock

	// So slow that every kill is in the middle of it, wherever that is, also by who takes a second or two to kill.
	total := int64(files) * fileSize
	s.Throttle(t, 6<<20)
	// Content goes when all is done. It is looked at here, not asked for: a command takes as long as much of the upload.
	gone := func() bool {
		_, err := os.Stat(content)
		return errors.Is(err, fs.ErrNotExist)
	}
	operation := stack.Detached(t, s, "stop", "web")
	began := time.Now()
	agent := s.Node(node)
	done, beyond := 0, sentBeyond(t, s)
	for range kills {
		// The next one is after a random amount of progress: at a pack's beginning, its end, or after several.
		goal := s.Stats(t, "holdfast/").Received + 12<<20 + random.Int63n(16<<20)
		stack.WaitFor(t, "the upload goes on, or ends", stack.Patience, func() bool {
			return s.Stats(t, "holdfast/").Received >= goal || gone()
		})
		require.NoError(t, agent.Kill())
		removed := gone() // before the state is asked for
		if state := stack.Show(t, s, "web"); removed || state.Phase == workspace.Stopped {
			// invariants 1 and 2: the stop was acknowledged before anything was removed, however late the kill came.
			require.Equal(t, workspace.Stopped, state.Phase, "content must not go before its stop is acknowledged")
			require.NoError(t, agent.Start(t.Context()))
			break
		}
		done++
		cut := sentBeyond(t, s)
		t.Logf("kill %d after %s: %d MiB received, %d KiB cut by this kill", done, time.Since(began).Round(time.Millisecond), (s.Stats(t, "holdfast/").Received-base)>>20, (cut-beyond)>>10)
		require.LessOrEqual(t, cut-beyond, int64(snapshot.MaxInFlight+small), "more was lost by one kill than was on its way, or what was stored was sent again")
		beyond = cut
		require.NoError(t, agent.Start(t.Context()))
		received := s.Stats(t, "holdfast/").Received
		stack.WaitFor(t, "the backup goes on by itself", stack.Patience, func() bool {
			return s.Stats(t, "holdfast/").Received > received+small || gone()
		})
	}
	require.GreaterOrEqual(t, done, max(2, kills/2), "the stop was over before enough kills")
	s.Throttle(t, 0)
	state := stack.WaitState(t, s, "web", "the stop completes by itself", stack.Patience, func(state workspace.State) bool {
		_, over := stack.Ended(state, operation)
		return over
	})
	over, _ := stack.Ended(state, operation)
	require.False(t, over.Failed, over.Error)
	require.Equal(t, workspace.Stopped, state.Phase)
	t.Logf("stopped after %s and %d kills", time.Since(began).Round(time.Millisecond), done)

	stats := s.Stats(t, "holdfast/")
	again := stats.Received - stats.ObjectBytes
	t.Logf("received %d, stored %d, again %d, of which the kills cut %d", stats.Received, stats.ObjectBytes, again, beyond)
	require.LessOrEqual(t, again, beyond+small, "something was sent again that was stored before a kill")
	require.LessOrEqual(t, stats.ObjectBytes, total+total/50+4<<20, "content was stored twice")

	stack.Must(t, s, 0, nil, "start", "web", "--not-node", node)
	_, restored := stack.ContentDir(t, s, "web")
	stack.RequireSame(t, before, restored)
}

// TestControlAndTemporalDie proves A3 for the control side: with no control worker and no Temporal the upload goes on,
// and when they are back the stop completes.
func TestControlAndTemporalDie(t *testing.T) {
	t.Parallel()
	s := stack.New(t, "all", "process")
	stack.Must(t, s, 0, nil, "start", "web", "--from-dir", stack.RandomTree(t, 2, 24, 4<<20))
	node, content := stack.ContentDir(t, s, "web")
	before := stack.Manifest(t, content)
	base := s.Stats(t, "holdfast/").Received
	s.Throttle(t, 6<<20)
	operation := stack.Detached(t, s, "stop", "web")
	stack.WaitFor(t, "the upload has begun", stack.Patience, func() bool { return s.Stats(t, "holdfast/").Received > base+4<<20 })

	require.NoError(t, s.Control().Kill())
	require.NoError(t, s.Temporal().Kill())
	dead := s.Stats(t, "holdfast/").Received
	stack.WaitFor(t, "the upload goes on without Temporal", stack.Patience, func() bool { return s.Stats(t, "holdfast/").Received > dead+32<<20 })
	require.DirExists(t, content) // invariant 7: without a live lease nothing is removed
	r := stack.CLI(t, s, "why", "web")
	require.NotZero(t, r.Code)
	require.Contains(t, strings.Join(strings.Fields(r.Stderr), " "), "Temporal server cannot be reached")

	ctx, cancel := context.WithTimeout(t.Context(), stack.Patience)
	defer cancel()
	require.NoError(t, s.Temporal().Restart(ctx))
	require.NoError(t, s.Control().Start(ctx))
	s.Throttle(t, 0)
	state := stack.WaitState(t, s, "web", "the stop completes by itself", stack.Patience, func(state workspace.State) bool {
		_, over := stack.Ended(state, operation)
		return over && state.Kept == nil
	})
	require.Equal(t, workspace.Stopped, state.Phase)
	require.NoDirExists(t, content)
	stats := s.Stats(t, "holdfast/")
	t.Logf("received %d, stored %d", stats.Received, stats.ObjectBytes)
	require.LessOrEqual(t, stats.Received-stats.ObjectBytes, int64(snapshot.MaxInFlight+1<<20), "an outage of Temporal must not make what is stored be sent again")
	stack.Must(t, s, 0, nil, "start", "web", "--not-node", node)
	_, restored := stack.ContentDir(t, s, "web")
	stack.RequireSame(t, before, restored)
}
