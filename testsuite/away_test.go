package testsuite_test

import (
	"errors"
	"io/fs"
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

	"holdfast/workspace"
)

// storedNames lists what the directory store holds that has all these words in its path.
func (s *stack) storedNames(t *testing.T, words ...string) []string {
	t.Helper()
	root := filepath.Join(s.dir, "store")
	var found []string
	require.NoError(t, filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) && path != root {
			return nil // it went meanwhile
		}
		if err != nil || entry.IsDir() {
			return err
		}
		name, err := filepath.Rel(root, path)
		for _, word := range words {
			if !strings.Contains(name, word) {
				return err
			}
		}
		found = append(found, name)
		return err
	}))
	return found
}

// TestStoreAway proves A2 and invariant 2: with policy any a stop is acknowledged when one store holds everything, and
// says what is owed; the content stays on its node until the other store has it too, and then goes by itself.
func TestStoreAway(t *testing.T) {
	t.Parallel()
	s := newStack(t, "any", "process")
	must(t, s, 0, nil, "start", "web", "--from-dir", randomTree(t, 3, 6, 1<<20))
	node, content := contentDir(t, s, "web")
	before := manifest(t, content)

	require.NoError(t, s.Storage().Kill())
	must(t, s, 6, []string{"is stopped", "still owed: gs://holdfast", "the content stays on node " + node}, "stop", "web")
	state := show(t, s, "web")
	require.Equal(t, workspace.Stopped, state.Phase)
	require.NotNil(t, state.Kept)
	require.Equal(t, []string{"gs://holdfast"}, state.Kept.Owed)
	requireSame(t, before, content)                        // invariant 2
	must(t, s, 0, []string{"gs://holdfast"}, "why", "web") // what is owed is said until it is there
	require.NotEmpty(t, s.storedNames(t, "catalog/nodes/"+node, state.ID), "the content's node has to be on record")
	resticCheck(t, s, state)

	require.NoError(t, s.Storage().Start(t.Context()))
	waitState(t, s, "web", "the content is released by itself", patience, func(state workspace.State) bool {
		return state.Kept == nil && state.Operation == nil
	})
	require.NoDirExists(t, filepath.Dir(content))
	require.Empty(t, s.storedNames(t, "catalog/nodes/"+node, state.ID))
	require.NotContains(t, cli(t, s, "why", "web").stdout, "owed")

	// What the late store got is whole: it alone is enough.
	require.NoError(t, os.Rename(s.repository(state.ID), s.repository(state.ID)+".away"))
	must(t, s, 0, nil, "start", "web", "--not-node", node)
	_, restored := contentDir(t, s, "web")
	requireSame(t, before, restored)
}

// TestChangedContentIsBackedUpAgain proves invariant 1: content that was changed after its backup is not removed, whatever
// the stores hold, until a backup of exactly that content is. That one is made by itself, and is the newest version; the
// one before still has what it was.
func TestChangedContentIsBackedUpAgain(t *testing.T) {
	t.Parallel()
	s := newStack(t, "any", "process")
	must(t, s, 0, nil, "start", "web", "--from-dir", randomTree(t, 4, 4, 1<<20))
	node, content := contentDir(t, s, "web")
	require.NoError(t, s.Storage().Kill())
	must(t, s, 6, nil, "stop", "web")
	first := show(t, s, "web").Head.Snapshot
	old := manifest(t, content)

	changed := filepath.Join(content, "part-0", "file-0")
	require.NoError(t, os.WriteFile(changed, []byte("written after the backup"), 0o644))
	before := manifest(t, content)
	require.NoError(t, s.Storage().Start(t.Context()))
	state := waitState(t, s, "web", "the content is backed up again and released", patience, func(state workspace.State) bool {
		return state.Kept == nil && state.Operation == nil
	})
	require.Equal(t, workspace.Stopped, state.Phase)
	require.NotEqual(t, first, state.Head.Snapshot)
	require.NoDirExists(t, filepath.Dir(content))
	must(t, s, 0, nil, "start", "web", "--not-node", node)
	_, restored := contentDir(t, s, "web")
	requireSame(t, before, restored)

	must(t, s, 0, nil, "stop", "web")
	must(t, s, 0, nil, "restore", "web", "--snapshot", first)
	_, restored = contentDir(t, s, "web")
	requireSame(t, old, restored)
}

// TestOlderVersionIsRefused proves A16 and invariant 4: while a store cannot be asked, it may hold a newer version; a
// start says so, names the version it would use, and uses it only when it is told to.
func TestOlderVersionIsRefused(t *testing.T) {
	t.Parallel()
	s := newStack(t, "any", "process")
	must(t, s, 0, nil, "start", "web", "--from-dir", randomTree(t, 5, 4, 1<<20))
	node, content := contentDir(t, s, "web")
	before := manifest(t, content)
	must(t, s, 0, nil, "stop", "web")
	head := show(t, s, "web").Head
	require.NotNil(t, head)

	require.NoError(t, s.Storage().Kill())
	must(t, s, 4, []string{"gs://holdfast cannot be listed", "--accept-version " + head.Snapshot, "nothing was started"}, "start", "web")
	state := show(t, s, "web")
	require.Equal(t, workspace.Stopped, state.Phase)
	require.Nil(t, state.Instance)
	require.Empty(t, s.instances(t))
	must(t, s, 4, nil, "start", "web", "--accept-version", strings.Repeat("0123456789abcdef", 4))

	must(t, s, 0, []string{"restored from snapshot"}, "start", "web", "--not-node", node, "--accept-version", head.Snapshot)
	_, restored := contentDir(t, s, "web")
	requireSame(t, before, restored)
}

// instances lists every instance's directory on every node, with what is on its way to the trash.
func (s *stack) instances(t *testing.T) []string {
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
	s := newStack(t, "all", "process")
	must(t, s, 0, nil, "start", "web", "--from-dir", randomTree(t, 6, 6, 1<<20))
	_, content := contentDir(t, s, "web")
	before := manifest(t, content)
	fetch := func(state string, says ...string) {
		t.Helper()
		dir := t.TempDir()
		file, target := filepath.Join(dir, "content.tar"), filepath.Join(dir, "content")
		must(t, s, 0, says, "download", "web", "-o", file)
		require.NoError(t, os.Mkdir(target, 0o755))
		output, err := exec.Command("tar", "-xpf", file, "-C", target, "--numeric-owner").CombinedOutput()
		require.NoError(t, err, string(output))
		// The target's own directory is not in every stream.
		info, err := os.Stat(before)
		require.NoError(t, err)
		require.NoError(t, os.Chmod(target, info.Mode()))
		require.NoError(t, os.Chtimes(target, info.ModTime(), info.ModTime()))
		require.Empty(t, differences(t, before, target), state)
	}
	fetch("running")

	require.NoError(t, s.Storage().Kill())
	operation := detached(t, s, "stop", "web")
	state := waitState(t, s, "web", "the stop backs up", patience, func(state workspace.State) bool {
		return state.Operation != nil && state.Operation.Step == workspace.StepBackup
	})
	require.Equal(t, workspace.Stopping, state.Phase)
	fetch("stopping, with a store away")

	must(t, s, 4, nil, "delete", "web")
	require.NoError(t, s.Storage().Start(t.Context()))
	waitState(t, s, "web", "the stop completes", patience, func(state workspace.State) bool {
		_, over := ended(state, operation)
		return over && state.Phase == workspace.Stopped && state.Kept == nil && state.Operation == nil
	})
	require.Empty(t, s.instances(t))
	fetch("stopped, from the stores")

	must(t, s, 0, nil, "start", "web")
	_, content = contentDir(t, s, "web")
	require.NoError(t, os.WriteFile(filepath.Join(content, "new"), []byte("only on the node"), 0o644))
	before = manifest(t, content)
	require.NoError(t, s.Storage().Kill())
	detached(t, s, "stop", "web")
	waitState(t, s, "web", "the stop backs up", patience, func(state workspace.State) bool {
		return state.Operation != nil && state.Operation.Step == workspace.StepBackup
	})
	// The seal is recorded on every store of the policy, so that unstick waits for the store, too.
	unstick := detached(t, s, "unstick", "web")
	fetch("being unstuck, with a store away")
	require.NoError(t, s.Storage().Start(t.Context()))
	state = waitState(t, s, "web", "it is unstuck", patience, func(state workspace.State) bool {
		_, over := ended(state, unstick)
		return over
	})
	require.NotNil(t, state.Kept)
	requireSame(t, before, content)
	fetch("kept")
	must(t, s, 4, []string{"newest content is only on node"}, "delete", "web")
	must(t, s, 0, []string{"is stopped"}, "stop", "web")
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
			s := newStack(t, "any", "process")
			must(t, s, 0, nil, "start", "web", "--from-dir", randomTree(t, 3, 6, 1<<20))
			usual := must(t, s, 0, nil, "stop", "web").took
			usual += must(t, s, 0, nil, "start", "web").took
			usual += must(t, s, 0, nil, "key", "show", "web").took

			require.NoError(t, s.Storage().Kill())
			tried := deadServer(t, strings.TrimPrefix(s.StorageURL(), "http://"), silent)
			took := must(t, s, 6, []string{"is stopped", "still owed: gs://holdfast"}, "stop", "web").took
			t.Logf("a stop: %s, connections: %d", took.Round(time.Millisecond), tried.Load())
			require.Less(t, tried.Load(), int64(60))
			state := show(t, s, "web")
			require.Equal(t, []string{"gs://holdfast"}, state.Kept.Owed)
			start := must(t, s, 0, nil, "start", "web")
			t.Logf("a start: %s, connections: %d", start.took.Round(time.Millisecond), tried.Load())
			key := must(t, s, 0, nil, "key", "show", "web")
			t.Logf("the key: %s, connections: %d; usually all three take %s", key.took.Round(time.Millisecond), tried.Load(), usual.Round(time.Millisecond))
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
	waitFor(t, "the store's address is free", 30*time.Second, func() (free bool) {
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
