package testsuite_test

import (
	"os"
	"path/filepath"
	"strconv"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"

	"holdfast/devstack"
	"holdfast/testsuite/stack"
	"holdfast/workspace"
)

// TestDoubleWriteRollOut proves A8: at 0 % snapshots are written to the first store alone, a stop is done with that, and
// show says so; at 100 % the next start restores what was written once, and the stop after it leaves both stores whole,
// so that the second one alone is enough for all of it.
func TestDoubleWriteRollOut(t *testing.T) {
	t.Parallel()
	var percent atomic.Int64
	s := stack.New(t, "any", "process", func(o *devstack.StackOptions) {
		o.Roles.Control = func(devstack.StackFile) devstack.Command {
			return devstack.Command{Args: []string{"worker", "--control", "--double-write", strconv.FormatInt(percent.Load(), 10)}}
		}
	})
	stack.Must(t, s, 0, nil, "start", "web", "--from-dir", stack.RandomTree(t, 3, 6, 1<<20))
	node, content := stack.ContentDir(t, s, "web")
	before := stack.Manifest(t, content)
	stack.Must(t, s, 0, []string{"is stopped"}, "stop", "web")
	state := stack.Show(t, s, "web")
	require.Nil(t, state.Kept, "nothing is owed to a store that is not its own")
	require.Equal(t, []string{"gs://holdfast"}, state.Stores)
	stack.Must(t, s, 0, []string{"gs://holdfast only"}, "show", "web")
	require.NoDirExists(t, filepath.Dir(content))
	require.Empty(t, s.StoredNames(t, state.ID, "/data/"), "the second store has none of its packs")
	require.NotEmpty(t, s.StoredNames(t, state.ID, "/commits/"), "the catalog is on both")
	first := state.Head.Snapshot

	percent.Store(100)
	require.NoError(t, s.Control().Stop(t.Context()))
	require.NoError(t, s.Control().Start(t.Context()))
	stack.Must(t, s, 0, nil, "start", "web", "--not-node", node)
	_, content = stack.ContentDir(t, s, "web")
	stack.RequireSame(t, before, content)
	require.NoError(t, os.WriteFile(filepath.Join(content, "new"), []byte("written after the roll-out"), 0o644))
	after := stack.Manifest(t, content)
	stack.CLI(t, s, "stop", "web") // 0, or 6 while the second store is brought up to date
	state = stack.WaitState(t, s, "web", "the content is released by itself", stack.Patience, func(state workspace.State) bool {
		return state.Phase == workspace.Stopped && state.Kept == nil && state.Operation == nil
	})
	require.Empty(t, state.Stores)
	resticCheck(t, s, state) // of the second store, by itself

	require.NoError(t, s.Storage().Kill())
	stack.Must(t, s, 0, nil, "start", "web", "--accept-version", state.Head.Snapshot)
	_, content = stack.ContentDir(t, s, "web")
	stack.RequireSame(t, after, content)
	require.NotEmpty(t, s.StoredNames(t, state.ID, "/snapshots/"+first), "what was written once is there, too")
}
