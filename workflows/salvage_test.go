package workflows_test

import (
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	enumspb "go.temporal.io/api/enums/v1"
	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/workflow"

	"holdfast/workspace"
)

// saves are the recovered snapshots that were made, by what they hold.
func (w *world) saves() map[string]int {
	held := map[string]int{}
	for snapshot, kind := range w.kinds {
		if kind == "recovered" {
			held[w.versions[snapshot]]++
		}
	}
	return held
}

// writing is a workspace whose node is lost and returns, when the workspace has gone on elsewhere, with what was written after
// its snapshot.
func writing(t *testing.T) *world {
	w := running(t, time.Minute)
	w.setting(time.Hour+time.Second, func() { w.content["node-1/1"] += " and more" })
	w.comesBack(2*time.Hour, nodeOne)
	return w
}

// until makes an activity fail for a while, from an attempt on.
func (w *world) until(end time.Duration, name string, from int, err error) {
	began := w.environment.Now()
	w.fail = func(activity string, attempt int) error {
		if activity == name && attempt >= from && w.environment.Now().Before(began.Add(end)) {
			return err
		}
		return nil
	}
}

func (w *world) requireGone(state *workspace.State) {
	w.t.Helper()
	require.Empty(w.t, state.Left)
	require.NotContains(w.t, w.content, "node-1/1")
	require.False(w.t, w.runs["node-1/1"])
	require.NotContains(w.t, w.placed, workspace.Placed{Node: nodeOne, Token: 1})
	require.NotContains(w.t, state.Placed, workspace.Placed{Node: nodeOne, Token: 1})
}

// A12, A19: what the replaced instance still had when its node returns is stopped there, saved as a snapshot that is never the
// head, and then removed from the node.
func TestReplacedInstanceIsSaved(t *testing.T) {
	w := writing(t)
	after := w.look(2*time.Hour + time.Minute)
	w.run(3 * time.Hour)
	w.requireRunsWith(after, nodeTwo, "first++")
	w.requireGone(after)
	require.Equal(t, map[string]int{"first+ and more": 1}, w.saves())
	require.Len(t, after.Salvaged, 1)
	saved := after.Salvaged[0]
	require.Equal(t, "first+ and more", w.versions[saved.Snapshot])
	require.Equal(t, nodeOne, saved.Node)
	require.Equal(t, uint64(1), saved.Token)
	require.Equal(t, int64(1), saved.Files)
	require.WithinDuration(t, after.Created.Add(2*time.Hour), saved.Removed, time.Minute)
	require.NotEqual(t, saved.Snapshot, after.Head.Snapshot)
	for _, commit := range w.commits {
		require.NotEqual(t, saved.Snapshot, commit.Snapshot, "no commit names it")
	}
	last := after.Recent[len(after.Recent)-1]
	require.Equal(t, workspace.OperationSalvage, last.Kind)
	require.False(t, last.Failed, last.Error)
	require.Equal(t, saved.Snapshot, last.Snapshot)
}

// A workflow that began before saved content was removed goes on as it began: its content stays.
func TestSalvageOfAnOlderWorkflow(t *testing.T) {
	w := writing(t)
	w.environment.OnGetVersion("remove-recovered-content", workflow.DefaultVersion, workflow.Version(1)).Return(workflow.DefaultVersion)
	w.comesBack(2*time.Hour+10*time.Minute, nodeOne)
	after := w.look(2*time.Hour + 20*time.Minute)
	w.run(3 * time.Hour)
	w.requireRunsWith(after, nodeTwo, "first++")
	require.Len(t, after.Left, 1)
	require.Equal(t, "first+ and more", w.content["node-1/1"])
	require.Equal(t, map[string]int{"first+ and more": 1}, w.saves())
	require.Contains(t, after.Left[0].Why, "recovered snapshot "+after.Left[0].Snapshot)
	require.Zero(t, w.attempts[workspace.ActivityRemoveInstance])
}

// Saving it never holds up anything else: a command cuts it, and it goes on afterwards.
func TestCommandCutsASalvage(t *testing.T) {
	w := running(t, time.Minute)
	w.fail = func(activity string, attempt int) error {
		if activity == workspace.ActivityBackup && attempt == 2 {
			return temporal.NewApplicationErrorWithOptions("the store is slow", "", temporal.ApplicationErrorOptions{NextRetryDelay: 2 * time.Minute})
		}
		return nil
	}
	w.comesBack(2*time.Hour, nodeOne)
	stop := w.ask(2*time.Hour+time.Minute, workspace.UpdateStop, workspace.StopRequest{})
	after := w.look(2*time.Hour + 10*time.Minute)
	w.run(3 * time.Hour)
	require.NoError(t, *stop)
	require.Equal(t, workspace.Stopped, after.Phase)
	w.requireGone(after)
	require.Len(t, after.Salvaged, 1)
	kinds := map[workspace.OperationKind]int{}
	for _, operation := range after.Recent {
		kinds[operation.Kind]++
	}
	require.Equal(t, 2, kinds[workspace.OperationSalvage], "%+v", after.Recent)
}

// invariant 2: while a store does not hold it whole, the content stays; it is brought up to date, looked at, and then goes.
func TestRecoveredContentWaitsForEveryStore(t *testing.T) {
	w := writing(t)
	w.setting(2*time.Hour-time.Minute, func() { w.owed = []string{"file:///b"} })
	w.until(3*time.Hour, workspace.ActivityRepair, 1, errors.New("connection refused"))
	waiting := w.look(2*time.Hour + 50*time.Minute)
	after := w.look(4 * time.Hour)
	w.run(5 * time.Hour)
	require.Len(t, waiting.Left, 1)
	require.Equal(t, "first+ and more", w.versions[waiting.Left[0].Snapshot])
	require.Equal(t, []string{"file:///b"}, waiting.Left[0].Owed)
	require.Contains(t, waiting.Left[0].Why, "until every store holds it")
	require.True(t, waiting.Left[0].Next.After(waiting.Left[0].Saved))
	w.requireRunsWith(after, nodeTwo, "first++")
	w.requireGone(after)
	require.Equal(t, map[string]int{"first+ and more": 1}, w.saves(), "it is not saved again for that")
	require.Less(t, w.attempts[workspace.ActivityRepair], 100, "it is asked for less and less often")
}

// invariant 1: the node finds that the stores do not hold it whole, or that it has changed: it is saved again, and goes then.
func TestRecoveredContentIsSavedAgain(t *testing.T) {
	for _, kind := range []workspace.ErrorType{workspace.ErrorNotStored, workspace.ErrorContentChanged} {
		w := writing(t)
		w.fail = func(activity string, attempt int) error {
			if activity == workspace.ActivityRemoveInstance && attempt == 1 {
				if kind == workspace.ErrorContentChanged {
					w.content["node-1/1"] += "!"
				}
				return permanent(kind, "the content stays")
			}
			return nil
		}
		between := w.look(2*time.Hour + 30*time.Second)
		after := w.look(2*time.Hour + 10*time.Minute)
		w.run(3 * time.Hour)
		require.Len(t, between.Left, 1)
		require.True(t, between.Left[0].Again)
		require.Contains(t, between.Left[0].Why, "it is saved again: the content stays")
		w.requireRunsWith(after, nodeTwo, "first++")
		w.requireGone(after)
		want := map[string]int{"first+ and more": 2} // the pretended node makes another each time; a real one finds it again
		if kind == workspace.ErrorContentChanged {
			want = map[string]int{"first+ and more": 1, "first+ and more!": 1}
		}
		require.Equal(t, want, w.saves())
		require.Len(t, after.Salvaged, 1)
	}
}

// A14: what could not be read keeps the content. It is looked at again when the agent is started again.
func TestRecoveredContentWithOmissions(t *testing.T) {
	w := writing(t)
	w.setting(2*time.Hour-time.Minute, func() { w.omitted = 3 })
	waiting := w.look(3 * time.Hour)
	w.setting(3*time.Hour, func() { w.omitted = 0 })
	still := w.look(4 * time.Hour)
	w.comesBack(5*time.Hour, nodeOne)
	after := w.look(6 * time.Hour)
	w.run(7 * time.Hour)
	for _, state := range []*workspace.State{waiting, still} {
		require.Len(t, state.Left, 1)
		require.Equal(t, int64(3), state.Left[0].Omitted)
		require.NotEmpty(t, state.Left[0].Snapshot, "it is offered all the same")
		require.Contains(t, state.Left[0].Why, "3 things could not be read as they were")
		require.Empty(t, state.Salvaged)
	}
	require.Equal(t, 1, w.attempts[workspace.ActivityRemoveInstance])
	w.requireRunsWith(after, nodeTwo, "first++")
	w.requireGone(after)
}

// The node has the last word on what a snapshot lacks.
func TestNodeRefusesRecoveredContentWithOmissions(t *testing.T) {
	w := writing(t)
	w.fail = func(activity string, attempt int) error {
		if activity == workspace.ActivityRemoveInstance && attempt == 1 {
			return permanent(workspace.ErrorOmissions, "the content stays: snapshot x does not hold 2 things as they were")
		}
		return nil
	}
	waiting := w.look(4 * time.Hour)
	w.comesBack(5*time.Hour, nodeOne)
	after := w.look(6 * time.Hour)
	w.run(7 * time.Hour)
	require.Len(t, waiting.Left, 1)
	require.Contains(t, waiting.Left[0].Why, "does not hold 2 things")
	require.Equal(t, 2, w.attempts[workspace.ActivityRemoveInstance])
	w.requireGone(after)
}

// invariant 3: while no other instance was recorded it is the newest one, whatever it was given up for. What it had is saved, and
// goes once another has taken its place.
func TestInstanceThatWasNotReplacedStays(t *testing.T) {
	w := running(t, time.Minute)
	w.until(3*time.Hour, workspace.ActivityRecordInstance, 2, errors.New("no store answers"))
	stop := w.ask(time.Hour+90*time.Second, workspace.UpdateStop, workspace.StopRequest{})
	w.comesBack(2*time.Hour, nodeOne)
	waiting := w.look(3 * time.Hour)
	start := w.ask(4*time.Hour, workspace.UpdateStart, workspace.StartRequest{})
	after := w.look(5 * time.Hour)
	w.run(6 * time.Hour)
	require.NoError(t, *stop)
	require.NoError(t, *start)
	require.Equal(t, workspace.Stopped, waiting.Phase)
	require.Len(t, waiting.Left, 1)
	require.NotEmpty(t, waiting.Left[0].Snapshot)
	require.Empty(t, waiting.Salvaged)
	require.Equal(t, workspace.Running, after.Phase)
	require.Empty(t, after.Left)
	require.Len(t, after.Salvaged, 1)
}

// The placement is released in the end, also when a store was away for it, and nothing else is done again for that.
func TestPlacementOfRecoveredContentIsReleased(t *testing.T) {
	w := writing(t)
	w.until(3*time.Hour, workspace.ActivityReleasePlacement, 1, errors.New("no store answers"))
	waiting := w.look(2*time.Hour + 50*time.Minute)
	after := w.look(4 * time.Hour)
	w.run(5 * time.Hour)
	require.Len(t, waiting.Left, 1)
	require.True(t, waiting.Left[0].Removed)
	require.Equal(t, 1, w.attempts[workspace.ActivityRemoveInstance])
	w.requireRunsWith(after, nodeTwo, "first++")
	w.requireGone(after)
}

// Two instances of one workspace that were replaced on the same node, of which one cannot be saved: the other goes, with its own
// placement alone. By the placements the node's next return is told.
func TestReleasedPlacementsAreItsOwn(t *testing.T) {
	w := running(t, time.Minute)
	w.failOn = func(node, activity string) error {
		if node == nodeOne && activity == workspace.ActivityBackup && !w.runs["node-1/3"] && len(w.records) == 2 {
			return permanent(workspace.ErrorContentForeign, "the directory belongs to another workspace or instance")
		}
		return nil
	}
	w.comesBack(2*time.Hour, nodeOne)
	w.ask(3*time.Hour, workspace.UpdateBackup, workspace.BackupRequest{})
	w.lose(3*time.Hour+time.Minute, nodeTwo)
	w.ask(5*time.Hour, workspace.UpdateBackup, workspace.BackupRequest{})
	w.comesBack(4*time.Hour, nodeTwo)
	w.lose(5*time.Hour+time.Minute, nodeOne)
	w.setting(6*time.Hour, func() {
		first := true // only the first is asked for again, and fails again
		w.failOn = func(node, activity string) error {
			if node == nodeOne && activity == workspace.ActivityStopInstance && first {
				first = false
				return permanent(workspace.ErrorContentForeign, "the directory belongs to another workspace or instance")
			}
			return nil
		}
	})
	w.comesBack(7*time.Hour, nodeOne)
	after := w.look(8 * time.Hour)
	w.run(9 * time.Hour)
	require.Len(t, after.Left, 1, "%+v", after.Left)
	require.Equal(t, uint64(1), after.Left[0].Token)
	require.Contains(t, w.placed, workspace.Placed{Node: nodeOne, Token: 1})
	require.NotContains(t, w.placed, workspace.Placed{Node: nodeOne, Token: 3})
	require.Contains(t, w.content, "node-1/1")
	require.NotContains(t, w.content, "node-1/3")
}

// A node that is busy with what others had there keeps nobody waiting: the workspace does something else, and asks again.
func TestSalvageWaitsForItsTurn(t *testing.T) {
	w := writing(t)
	turns := 0
	w.failOn = func(node, activity string) error {
		if node == nodeOne && activity == workspace.ActivityStopInstance && w.nodes[nodeOne].Epoch > 1 && turns < 5 {
			turns++
			return temporal.NewTimeoutError(enumspb.TIMEOUT_TYPE_SCHEDULE_TO_START, nil)
		}
		return nil
	}
	after := w.look(2*time.Hour + 10*time.Minute)
	w.run(3 * time.Hour)
	require.Equal(t, 5, turns)
	w.requireRunsWith(after, nodeTwo, "first++")
	w.requireGone(after)
	salvages := 0
	for _, operation := range after.Recent {
		if operation.Kind == workspace.OperationSalvage {
			salvages++
			require.False(t, operation.Failed)
		}
	}
	require.Equal(t, 1, salvages, "what only waited is not told")
}

// invariant 2: that a store was brought up to date is not believed: while the look after it finds something owed, nothing goes.
func TestRecoveredContentStaysWhenTheRepairWasNotEnough(t *testing.T) {
	w := writing(t)
	w.setting(2*time.Hour-time.Minute, func() { w.owed = []string{"file:///b"} })
	w.after = func(activity string, attempt int) error {
		if activity == workspace.ActivityRepair && attempt == 1 {
			w.owed = []string{"file:///b"}
		}
		return nil
	}
	after := w.look(3 * time.Hour)
	w.run(4 * time.Hour)
	w.requireGone(after)
	require.Equal(t, 2, w.attempts[workspace.ActivityRepair])
	last := func(name string) int {
		for i := len(w.calls) - 1; i >= 0; i-- {
			if w.calls[i] == name {
				return i
			}
		}
		return -1
	}
	require.Equal(t, 1, w.attempts[workspace.ActivityRemoveInstance])
	require.Greater(t, last(workspace.ActivityRemoveInstance), last(workspace.ActivityRepair))
}
