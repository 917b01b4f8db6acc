package workflows_test

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.temporal.io/sdk/workflow"

	"holdfast/workspace"
)

// givenUp is a workspace whose newest work is on node-1 alone, unsaved, and which a person starts from its last snapshot on node-2 at
// an hour.
func givenUp(t *testing.T) *world {
	w := newWorld(t)
	w.clock = func() time.Time { return w.environment.Now() }
	w.ask(0, workspace.UpdateStart, start())
	w.ask(time.Minute, workspace.UpdateBackup, workspace.BackupRequest{})
	w.work(2 * time.Minute)
	w.setting(3*time.Minute, func() {
		w.fail = func(activity string, _ int) error {
			if activity == workspace.ActivityBackup {
				return errors.New("no route to the store")
			}
			return nil
		}
	})
	w.ask(4*time.Minute, workspace.UpdateStop, workspace.StopRequest{})
	w.ask(10*time.Minute, workspace.UpdateUnstick, workspace.UnstickRequest{})
	w.setting(20*time.Minute, func() { w.fail = nil })
	w.ask(time.Hour, workspace.UpdateStart, workspace.StartRequest{NotNode: nodeOne, AcceptVersion: fmt.Sprintf("%064d", 1)})
	return w
}

// A16, A19: what a person goes on without is saved as a recovered snapshot, which no commit names, and then removed from its node.
func TestWhatAPersonGoesOnWithoutIsSaved(t *testing.T) {
	w := givenUp(t)
	before, after := w.look(59*time.Minute), w.look(time.Hour+2*time.Minute)
	w.run(2 * time.Hour)
	require.Equal(t, "node-1", before.Kept.Node)
	require.Empty(t, before.Kept.Snapshot)
	w.requireRunsWith(after, nodeTwo, "first++")
	w.requireGone(after)
	require.Equal(t, map[string]int{"first+.": 1}, w.saves())
	require.Len(t, after.Salvaged, 1)
	saved := after.Salvaged[0]
	require.Equal(t, "a start with --accept-version went on without it", saved.Chosen)
	require.Equal(t, "first+.", w.versions[saved.Snapshot])
	require.Contains(t, saved.Kept(), "What instance 1 still had on node node-1 (a start with --accept-version went on without it) is in the recovered snapshot "+saved.Snapshot[:8])
	require.Equal(t, saved.Snapshot, after.RecoveredSnapshot(), "it is offered")
	for _, commit := range w.commits {
		require.NotEqual(t, saved.Snapshot, commit.Snapshot)
	}
}

// invariant 1: it stays on its node while a store does not hold it, or something of it could not be read, and that is said.
func TestWhatIsGivenUpStaysUntilItIsSaved(t *testing.T) {
	t.Run("a store is late", func(t *testing.T) {
		w := givenUp(t)
		w.setting(time.Hour-time.Minute, func() {
			w.owed = []string{"file:///b"}
			w.fail = func(activity string, _ int) error {
				if activity == workspace.ActivityRepair {
					return errors.New("connection refused")
				}
				return nil
			}
		})
		w.setting(90*time.Minute, func() { w.fail = nil })
		waiting, after := w.look(85*time.Minute), w.look(2*time.Hour)
		w.run(3 * time.Hour)
		require.Len(t, waiting.Left, 1)
		require.Contains(t, waiting.Left[0].Why, "a start with --accept-version went on without it; this was saved as the recovered snapshot ")
		require.Contains(t, waiting.Left[0].Why, "it stays until every store holds it: connection refused")
		w.requireGone(after)
	})
	t.Run("it cannot be saved", func(t *testing.T) {
		w := givenUp(t)
		w.setting(time.Hour-time.Minute, func() { w.omitted = 3 })
		last := w.look(2 * time.Hour)
		w.run(3 * time.Hour)
		require.Len(t, last.Left, 1)
		require.Contains(t, last.Left[0].Why, "3 things could not be read as they were")
		require.Equal(t, "first+.", w.content["node-1/1"])
		require.Equal(t, map[string]int{"first+.": 1}, w.saves(), "it is offered all the same")
	})
	t.Run("its node is lost meanwhile", func(t *testing.T) {
		w := givenUp(t)
		w.setting(time.Hour-time.Minute, func() {
			w.failOn = func(node, activity string) error {
				if node == nodeOne && activity == workspace.ActivityStopInstance {
					return errors.New("the node does not answer")
				}
				return nil
			}
		})
		w.lose(time.Hour+time.Minute, nodeOne)
		waiting := w.look(90 * time.Minute)
		w.setting(100*time.Minute, func() { w.failOn = nil })
		w.comesBack(100*time.Minute, nodeOne)
		after := w.look(110 * time.Minute)
		w.run(2 * time.Hour)
		require.Len(t, waiting.Left, 1)
		require.False(t, waiting.Left[0].Back)
		require.Contains(t, waiting.Left[0].Stays(waiting.Since), "When the node returns, or its agent is started again, it is saved as a recovered snapshot")
		w.requireGone(after)
		require.Len(t, after.Salvaged, 1)
	})
}

// A restore of an older snapshot while a store does not hold the newest one: what is on the node is saved whole on all of them.
func TestWhatARestoreGoesOnWithoutIsSaved(t *testing.T) {
	w := newWorld(t)
	w.clock = func() time.Time { return w.environment.Now() }
	w.ask(0, workspace.UpdateStart, start())
	w.ask(time.Minute, workspace.UpdateBackup, workspace.BackupRequest{})
	w.work(2 * time.Minute)
	w.setting(3*time.Minute, func() { w.owed = []string{"file:///b"} })
	w.until(2*time.Hour, workspace.ActivityRepair, 1, errors.New("connection refused"))
	w.ask(4*time.Minute, workspace.UpdateStop, workspace.StopRequest{})
	w.ask(time.Hour, workspace.UpdateRestore, workspace.RestoreRequest{Snapshot: fmt.Sprintf("%064d", 1), Node: nodeTwo})
	stopped, waiting, after := w.look(59*time.Minute), w.look(90*time.Minute), w.look(3*time.Hour)
	w.run(4 * time.Hour)
	require.NotEmpty(t, stopped.Kept.Snapshot)
	require.Len(t, waiting.Left, 1)
	require.NotEqual(t, stopped.Kept.Snapshot, waiting.Left[0].Snapshot, "a recovered one")
	w.requireRunsWith(after, nodeTwo, "first++")
	w.requireGone(after)
	require.Equal(t, "an older snapshot was restored while a store did not yet hold it", after.Salvaged[0].Chosen)
}

// A workflow that began before goes on as it began: what is given up stays.
func TestGivingUpInAnOlderWorkflow(t *testing.T) {
	w := givenUp(t)
	w.environment.OnGetVersion("save-what-is-given-up", workflow.DefaultVersion, workflow.Version(1)).Return(workflow.DefaultVersion)
	after := w.look(90 * time.Minute)
	w.run(2 * time.Hour)
	require.Len(t, after.Left, 1)
	require.False(t, after.Left[0].Replaced)
	require.Equal(t, "first+.", w.content["node-1/1"])
	require.Empty(t, w.saves())
}
