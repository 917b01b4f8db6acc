package pretend_test

import (
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"holdfast/engine"
	"holdfast/engine/enginetest"
	"holdfast/testsuite/crowd/pretend"
)

// TestConformance: what there is to an engine without processes is as it is with any other.
func TestConformance(t *testing.T) {
	machine, err := pretend.New("")
	require.NoError(t, err)
	enginetest.Run(t, enginetest.Factory{
		Open:     func(*testing.T) engine.Engine { return machine.Engine() },
		Pretends: pretend.Kind,
	})
}

// TestJournal: it says what runs, what is paused and what was started how often, over losses of power; what is so already is not
// written down.
func TestJournal(t *testing.T) {
	path := filepath.Join(t.TempDir(), "journal")
	empty, err := pretend.ReadJournal(path)
	require.NoError(t, err)
	require.Empty(t, empty.Running())
	machine, err := pretend.New(path)
	require.NoError(t, err)
	e := machine.Engine()
	ctx := t.Context()
	for _, name := range []string{"one", "two", "three"} {
		_, err := e.Create(ctx, engine.Spec{Name: name, ContentDir: t.TempDir()})
		require.NoError(t, err)
		for range 2 {
			require.NoError(t, e.Start(ctx, name))
		}
	}
	for range 2 {
		require.NoError(t, e.Pause(ctx, "two"))
		require.NoError(t, e.Stop(ctx, "three", 0))
	}
	journal, err := pretend.ReadJournal(path)
	require.NoError(t, err)
	require.Equal(t, map[string]bool{"one": false, "two": true}, journal.Running())
	require.NoError(t, e.Unpause(ctx, "two"))
	require.NoError(t, e.Start(ctx, "three"))
	journal, err = pretend.ReadJournal(path)
	require.NoError(t, err)
	require.Equal(t, map[string]bool{"one": false, "two": false, "three": false}, journal.Running())
	require.Equal(t, map[string]int{"one": 1, "two": 1, "three": 2}, journal.Count(pretend.Started))
	require.Equal(t, map[string]int{"two": 1}, journal.Count(pretend.Paused))

	require.NoError(t, machine.Close())
	again, err := pretend.New(path)
	require.NoError(t, err)
	journal, err = pretend.ReadJournal(path)
	require.NoError(t, err)
	require.Empty(t, journal.Running())
	require.NoError(t, again.Close())
}
