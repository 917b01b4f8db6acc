package testsuite_test

import (
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"holdfast/testsuite/stack"
	"holdfast/workspace"
)

// TestStoreAway proves A2 and invariant 2: with policy any a stop is acknowledged when one store holds everything, and
// says what is owed; the content stays on its node until the other store has it too, and then goes by itself.
func TestStoreAway(t *testing.T) {
	t.Parallel()
	s := stack.New(t, "any", "process")
	stack.Must(t, s, 0, nil, "start", "web", "--from-dir", stack.RandomTree(t, 3, 6, 1<<20))
	node, content := stack.ContentDir(t, s, "web")
	before := stack.Manifest(t, content)

	require.NoError(t, s.Storage().Kill())
	stack.Must(t, s, 6, []string{"is stopped", "still owed: gs://holdfast", "the content stays on node " + node}, "stop", "web")
	state := stack.Show(t, s, "web")
	require.Equal(t, workspace.Stopped, state.Phase)
	require.NotNil(t, state.Kept)
	require.Equal(t, []string{"gs://holdfast"}, state.Kept.Owed)
	stack.RequireSame(t, before, content)                        // invariant 2
	stack.Must(t, s, 0, []string{"gs://holdfast"}, "why", "web") // what is owed is said until it is there
	require.NotEmpty(t, s.StoredNames(t, "catalog/nodes/"+node, state.ID), "the content's node has to be on record")
	resticCheck(t, s, state)

	require.NoError(t, s.Storage().Start(t.Context()))
	stack.WaitState(t, s, "web", "the content is released by itself", stack.Patience, func(state workspace.State) bool {
		return state.Kept == nil && state.Operation == nil
	})
	require.NoDirExists(t, filepath.Dir(content))
	require.Empty(t, s.StoredNames(t, "catalog/nodes/"+node, state.ID))
	require.NotContains(t, stack.CLI(t, s, "why", "web").Stdout, "owed")

	// What the late store got is whole: it alone is enough.
	require.NoError(t, os.Rename(s.Repository(state.ID), s.Repository(state.ID)+".away"))
	stack.Must(t, s, 0, nil, "start", "web", "--not-node", node)
	_, restored := stack.ContentDir(t, s, "web")
	stack.RequireSame(t, before, restored)
}

// TestChangedContentIsBackedUpAgain proves invariant 1: content that was changed after its backup is not removed, whatever
// the stores hold, until a backup of exactly that content is. That one is made by itself, and is the newest version; the
// one before still has what it was.
func TestChangedContentIsBackedUpAgain(t *testing.T) {
	t.Parallel()
	s := stack.New(t, "any", "process")
	stack.Must(t, s, 0, nil, "start", "web", "--from-dir", stack.RandomTree(t, 4, 4, 1<<20))
	node, content := stack.ContentDir(t, s, "web")
	require.NoError(t, s.Storage().Kill())
	stack.Must(t, s, 6, nil, "stop", "web")
	first := stack.Show(t, s, "web").Head.Snapshot
	old := stack.Manifest(t, content)

	changed := filepath.Join(content, "part-0", "file-0")
	require.NoError(t, os.WriteFile(changed, []byte("written after the backup"), 0o644))
	before := stack.Manifest(t, content)
	require.NoError(t, s.Storage().Start(t.Context()))
	state := stack.WaitState(t, s, "web", "the content is backed up again and released", stack.Patience, func(state workspace.State) bool {
		return state.Kept == nil && state.Operation == nil
	})
	require.Equal(t, workspace.Stopped, state.Phase)
	require.NotEqual(t, first, state.Head.Snapshot)
	require.NoDirExists(t, filepath.Dir(content))
	stack.Must(t, s, 0, nil, "start", "web", "--not-node", node)
	_, restored := stack.ContentDir(t, s, "web")
	stack.RequireSame(t, before, restored)

	stack.Must(t, s, 0, nil, "stop", "web")
	stack.Must(t, s, 0, nil, "restore", "web", "--snapshot", first)
	_, restored = stack.ContentDir(t, s, "web")
	stack.RequireSame(t, old, restored)
}

// TestOlderVersionIsRefused proves A16 and invariant 4: while a store cannot be asked, it may hold a newer version; a
// start says so, names the version it would use, and uses it only when it is told to.
func TestOlderVersionIsRefused(t *testing.T) {
	t.Parallel()
	s := stack.New(t, "any", "process")
	stack.Must(t, s, 0, nil, "start", "web", "--from-dir", stack.RandomTree(t, 5, 4, 1<<20))
	node, content := stack.ContentDir(t, s, "web")
	before := stack.Manifest(t, content)
	stack.Must(t, s, 0, nil, "stop", "web")
	head := stack.Show(t, s, "web").Head
	require.NotNil(t, head)

	require.NoError(t, s.Storage().Kill())
	stack.Must(t, s, 4, []string{"gs://holdfast cannot be listed", "--accept-version " + head.Snapshot, "nothing was started"}, "start", "web")
	state := stack.Show(t, s, "web")
	require.Equal(t, workspace.Stopped, state.Phase)
	require.Nil(t, state.Instance)
	require.Empty(t, instances(t, s))
	stack.Must(t, s, 4, nil, "start", "web", "--accept-version", strings.Repeat("0123456789abcdef", 4))

	stack.Must(t, s, 0, []string{"restored from snapshot"}, "start", "web", "--not-node", node, "--accept-version", head.Snapshot)
	_, restored := stack.ContentDir(t, s, "web")
	stack.RequireSame(t, before, restored)
}

// instances lists every instance's directory on every node, with what is on its way to the trash.
func instances(t *testing.T, s *stack.Stack) []string {
	t.Helper()
	var found []string
	for _, node := range s.Nodes() {
		for _, kind := range []string{"workspaces", "trash"} {
			entries, err := os.ReadDir(filepath.Join(s.NodeDir(node.Name()), kind))
			require.NoError(t, err)
			for _, entry := range entries {
				found = append(found, filepath.Join(node.Name(), kind, entry.Name()))
			}
		}
	}
	return found
}

// TestDownloadInEveryState proves A6: what is newest can be fetched whatever happens to the workspace, also while no
// object store answers, and the download says what it gives. In the end a stop that is stuck is unstuck (A11): its
// content is kept, can be fetched, and is backed up by the next stop.
func TestDownloadInEveryState(t *testing.T) {
	t.Parallel()
	s := stack.New(t, "all", "process")
	stack.Must(t, s, 0, nil, "start", "web", "--from-dir", stack.RandomTree(t, 6, 6, 1<<20))
	_, content := stack.ContentDir(t, s, "web")
	before := stack.Manifest(t, content)
	fetch := func(state string, says ...string) {
		t.Helper()
		dir := t.TempDir()
		file, target := filepath.Join(dir, "content.tar"), filepath.Join(dir, "content")
		stack.Must(t, s, 0, says, "download", "web", "-o", file)
		require.NoError(t, os.Mkdir(target, 0o755))
		output, err := exec.Command("tar", "-xpf", file, "-C", target, "--numeric-owner").CombinedOutput()
		require.NoError(t, err, string(output))
		// The target's own directory is not in every stream.
		info, err := os.Stat(before)
		require.NoError(t, err)
		require.NoError(t, os.Chmod(target, info.Mode()))
		require.NoError(t, os.Chtimes(target, info.ModTime(), info.ModTime()))
		require.Empty(t, stack.Differences(t, before, target), state)
	}
	fetch("running")

	require.NoError(t, s.Storage().Kill())
	operation := stack.Detached(t, s, "stop", "web")
	state := stack.WaitState(t, s, "web", "the stop backs up", stack.Patience, func(state workspace.State) bool {
		return state.Operation != nil && state.Operation.Step == workspace.StepBackup
	})
	require.Equal(t, workspace.Stopping, state.Phase)
	fetch("stopping, with a store away")

	stack.Must(t, s, 4, nil, "delete", "web")
	require.NoError(t, s.Storage().Start(t.Context()))
	stack.WaitState(t, s, "web", "the stop completes", stack.Patience, func(state workspace.State) bool {
		_, over := stack.Ended(state, operation)
		return over && state.Phase == workspace.Stopped && state.Kept == nil && state.Operation == nil
	})
	require.Empty(t, instances(t, s))
	fetch("stopped, from the stores")

	stack.Must(t, s, 0, nil, "start", "web")
	_, content = stack.ContentDir(t, s, "web")
	require.NoError(t, os.WriteFile(filepath.Join(content, "new"), []byte("only on the node"), 0o644))
	before = stack.Manifest(t, content)
	require.NoError(t, s.Storage().Kill())
	stack.Detached(t, s, "stop", "web")
	stack.WaitState(t, s, "web", "the stop backs up", stack.Patience, func(state workspace.State) bool {
		return state.Operation != nil && state.Operation.Step == workspace.StepBackup
	})
	// The seal is recorded on every store of the policy, so that unstick waits for the store, too.
	unstick := stack.Detached(t, s, "unstick", "web")
	fetch("being unstuck, with a store away")
	require.NoError(t, s.Storage().Start(t.Context()))
	state = stack.WaitState(t, s, "web", "it is unstuck", stack.Patience, func(state workspace.State) bool {
		_, over := stack.Ended(state, unstick)
		return over
	})
	require.NotNil(t, state.Kept)
	stack.RequireSame(t, before, content)
	fetch("kept")
	stack.Must(t, s, 4, []string{"newest content is only on node"}, "delete", "web")
	stack.Must(t, s, 0, []string{"is stopped"}, "stop", "web")
	fetch("stopped again")
}

// TestDeadStoreCostsLittle proves that with policy any a store that takes connections and cuts them, or never answers, is
// found out once in each process and not tried again at every step: the product was seen to try hundreds of times, for
// minutes, where a stop and a start take a second each.
func TestDeadStoreCostsLittle(t *testing.T) {
	t.Parallel()
	for _, silent := range []bool{false, true} {
		t.Run(map[bool]string{false: "cut", true: "silent"}[silent], func(t *testing.T) {
			t.Parallel()
			s := stack.New(t, "any", "process")
			stack.Must(t, s, 0, nil, "start", "web", "--from-dir", stack.RandomTree(t, 3, 6, 1<<20))
			usual := stack.Must(t, s, 0, nil, "stop", "web").Took
			usual += stack.Must(t, s, 0, nil, "start", "web").Took
			usual += stack.Must(t, s, 0, nil, "key", "show", "web").Took

			require.NoError(t, s.Storage().Kill())
			tried := deadServer(t, strings.TrimPrefix(s.StorageURL(), "http://"), silent)
			took := stack.Must(t, s, 6, []string{"is stopped", "still owed: gs://holdfast"}, "stop", "web").Took
			t.Logf("a stop: %s, connections: %d", took.Round(time.Millisecond), tried.Load())
			require.Less(t, tried.Load(), int64(60))
			state := stack.Show(t, s, "web")
			require.Equal(t, []string{"gs://holdfast"}, state.Kept.Owed)
			start := stack.Must(t, s, 0, nil, "start", "web")
			t.Logf("a start: %s, connections: %d", start.Took.Round(time.Millisecond), tried.Load())
			key := stack.Must(t, s, 0, nil, "key", "show", "web")
			t.Logf("the key: %s, connections: %d; usually all three take %s", key.Took.Round(time.Millisecond), tried.Load(), usual.Round(time.Millisecond))
			require.Positive(t, tried.Load())
			// Three processes find out, each by some twenty tries at most; then there are only probes and one try for each
			// question to the catalog. The release that the start interrupts needs the store, and tries until then.
			require.Less(t, tried.Load(), int64(150))
		})
	}
}

// deadServer takes the address of a store that was killed, and counts who comes.
func deadServer(t *testing.T, address string, silent bool) *atomic.Int64 {
	t.Helper()
	var listener net.Listener
	stack.WaitFor(t, "the store's address is free", 30*time.Second, func() (free bool) {
		var err error
		listener, err = net.Listen("tcp", address)
		return err == nil
	})
	var tried atomic.Int64
	var taken sync.WaitGroup
	done := make(chan struct{})
	taken.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			tried.Add(1)
			if !silent {
				_ = conn.Close()
				continue
			}
			taken.Go(func() { <-done; _ = conn.Close() })
		}
	})
	t.Cleanup(func() {
		_ = listener.Close()
		close(done)
		taken.Wait()
	})
	return &tried
}
