package testsuite_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math/rand"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"holdfast/snapshot"
	"holdfast/storage/gcsemulator"
	"holdfast/workspace"
)

// randomTree makes files that neither compress nor repeat, the same ones for the same seed.
func randomTree(t *testing.T, seed int64, files int, size int) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "tree")
	random := rand.New(rand.NewSource(seed))
	content := make([]byte, size)
	for i := range files {
		random.Read(content)
		path := filepath.Join(dir, fmt.Sprintf("part-%d", i%7), fmt.Sprintf("file-%d", i))
		require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
		require.NoError(t, os.WriteFile(path, content, 0o644))
	}
	return dir
}

// seedOf is HOLDFAST_SEED, or one of this moment; it is printed, so that a failure can be had again.
func seedOf(t *testing.T) int64 {
	seed := time.Now().UnixNano()
	if text := os.Getenv("HOLDFAST_SEED"); text != "" {
		var err error
		seed, err = strconv.ParseInt(text, 10, 64)
		require.NoError(t, err)
	}
	t.Logf("HOLDFAST_SEED=%d", seed)
	return seed
}

// detached begins an operation and returns its id.
func detached(t *testing.T, s *stack, args ...string) string {
	t.Helper()
	var accepted workspace.Accepted
	r := must(t, s, 0, nil, append(args, "--detach", "-o", "json")...)
	require.NoError(t, json.Unmarshal([]byte(r.stdout), &accepted), r.stdout)
	require.NotEmpty(t, accepted.OperationID)
	return accepted.OperationID
}

// ended is the operation, once it has.
func ended(state workspace.State, operation string) (workspace.Operation, bool) {
	for _, one := range state.Recent {
		if one.ID == operation {
			return one, true
		}
	}
	return workspace.Operation{}, false
}

// beyond is how many bytes the object store has received beyond what it holds, once nothing is on its way any more.
func (s *stack) beyond(t *testing.T) int64 {
	t.Helper()
	var stats gcsemulator.Stats
	waitFor(t, "what was on its way has arrived", patience, func() bool {
		stats = s.stats(t, "holdfast/")
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
	if campaign() {
		kills, files = 30, 192
	}
	const fileSize = 4 << 20
	random := rand.New(rand.NewSource(seedOf(t)))
	s := newStack(t, "all", "process")
	tree := randomTree(t, 1, files, fileSize)
	must(t, s, 0, nil, "start", "web", "--from-dir", tree)
	node, content := contentDir(t, s, "web")
	before := manifest(t, content)
	base := s.stats(t, "holdfast/").Received
	const small = 1 << 20 // of objects that come and go, such as the repository's lock

	// So slow that every kill is in the middle of it, wherever that is, also by who takes a second or two to kill.
	total := int64(files) * fileSize
	s.throttle(t, 6<<20)
	// Content goes when all is done. It is looked at here, not asked for: a command takes as long as much of the upload.
	gone := func() bool {
		_, err := os.Stat(content)
		return errors.Is(err, fs.ErrNotExist)
	}
	operation := detached(t, s, "stop", "web")
	began := time.Now()
	agent := s.Node(node)
	done, beyond := 0, s.beyond(t)
	for range kills {
		// The next one is after a random amount of progress: at a pack's beginning, its end, or after several.
		goal := s.stats(t, "holdfast/").Received + 12<<20 + random.Int63n(16<<20)
		waitFor(t, "the upload goes on, or ends", patience, func() bool {
			return s.stats(t, "holdfast/").Received >= goal || gone()
		})
		require.NoError(t, agent.Kill())
		removed := gone() // before the state is asked for
		if state := show(t, s, "web"); removed || state.Phase == workspace.Stopped {
			// invariants 1 and 2: the stop was acknowledged before anything was removed, however late the kill came.
			require.Equal(t, workspace.Stopped, state.Phase, "content must not go before its stop is acknowledged")
			require.NoError(t, agent.Start(t.Context()))
			break
		}
		done++
		cut := s.beyond(t)
		t.Logf("kill %d after %s: %d MiB received, %d KiB cut by this kill", done, time.Since(began).Round(time.Millisecond), (s.stats(t, "holdfast/").Received-base)>>20, (cut-beyond)>>10)
		require.LessOrEqual(t, cut-beyond, int64(snapshot.MaxInFlight+small), "more was lost by one kill than was on its way, or what was stored was sent again")
		beyond = cut
		require.NoError(t, agent.Start(t.Context()))
		received := s.stats(t, "holdfast/").Received
		waitFor(t, "the backup goes on by itself", patience, func() bool {
			return s.stats(t, "holdfast/").Received > received+small || gone()
		})
	}
	require.GreaterOrEqual(t, done, max(2, kills/2), "the stop was over before enough kills")
	s.throttle(t, 0)
	state := waitState(t, s, "web", "the stop completes by itself", patience, func(state workspace.State) bool {
		_, over := ended(state, operation)
		return over
	})
	over, _ := ended(state, operation)
	require.False(t, over.Failed, over.Error)
	require.Equal(t, workspace.Stopped, state.Phase)
	t.Logf("stopped after %s and %d kills", time.Since(began).Round(time.Millisecond), done)

	stats := s.stats(t, "holdfast/")
	again := stats.Received - stats.ObjectBytes
	t.Logf("received %d, stored %d, again %d, of which the kills cut %d", stats.Received, stats.ObjectBytes, again, beyond)
	require.LessOrEqual(t, again, beyond+small, "something was sent again that was stored before a kill")
	require.LessOrEqual(t, stats.ObjectBytes, total+total/50+4<<20, "content was stored twice")

	must(t, s, 0, nil, "start", "web", "--not-node", node)
	_, restored := contentDir(t, s, "web")
	requireSame(t, before, restored)
}

// TestControlAndTemporalDie proves A3 for the control side: with no control worker and no Temporal the upload goes on,
// and when they are back the stop completes.
func TestControlAndTemporalDie(t *testing.T) {
	t.Parallel()
	s := newStack(t, "all", "process")
	must(t, s, 0, nil, "start", "web", "--from-dir", randomTree(t, 2, 24, 4<<20))
	node, content := contentDir(t, s, "web")
	before := manifest(t, content)
	base := s.stats(t, "holdfast/").Received
	s.throttle(t, 6<<20)
	operation := detached(t, s, "stop", "web")
	waitFor(t, "the upload has begun", patience, func() bool { return s.stats(t, "holdfast/").Received > base+4<<20 })

	require.NoError(t, s.Control().Kill())
	require.NoError(t, s.Temporal().Kill())
	dead := s.stats(t, "holdfast/").Received
	waitFor(t, "the upload goes on without Temporal", patience, func() bool { return s.stats(t, "holdfast/").Received > dead+32<<20 })
	require.DirExists(t, content) // invariant 7: without a live lease nothing is removed
	r := cli(t, s, "why", "web")
	require.NotZero(t, r.code)
	require.Contains(t, strings.Join(strings.Fields(r.stderr), " "), "Temporal server cannot be reached")

	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	require.NoError(t, s.Temporal().Restart(ctx))
	require.NoError(t, s.Control().Start(ctx))
	s.throttle(t, 0)
	state := waitState(t, s, "web", "the stop completes by itself", patience, func(state workspace.State) bool {
		_, over := ended(state, operation)
		return over && state.Kept == nil
	})
	require.Equal(t, workspace.Stopped, state.Phase)
	require.NoDirExists(t, content)
	stats := s.stats(t, "holdfast/")
	t.Logf("received %d, stored %d", stats.Received, stats.ObjectBytes)
	require.LessOrEqual(t, stats.Received-stats.ObjectBytes, int64(snapshot.MaxInFlight+1<<20), "an outage of Temporal must not make what is stored be sent again")
	must(t, s, 0, nil, "start", "web", "--not-node", node)
	_, restored := contentDir(t, s, "web")
	requireSame(t, before, restored)
}
