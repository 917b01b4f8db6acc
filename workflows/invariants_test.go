package workflows_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"holdfast/workspace"
)

// What no other test would notice if it were left out; docs/invariants.md says which line each of them is for.

// invariant 1: data is dropped only by the workspace's own name.
func TestDiscardingWantsTheName(t *testing.T) {
	w := newWorld(t)
	w.ask(0, workspace.UpdateStart, start())
	w.ask(time.Minute, workspace.UpdateStop, workspace.StopRequest{})
	other := w.ask(2*time.Minute, workspace.UpdateDelete, workspace.DeleteRequest{DiscardData: "another"})
	after := w.look(3 * time.Minute)
	w.run(time.Hour)
	require.ErrorContains(t, *other, `wants the workspace's own name, got "another"`)
	require.Equal(t, workspace.Stopped, after.Phase)
	require.NotContains(t, w.calls, workspace.ActivityRecordDeleted)
}

// invariant 1: a deletion that was accepted when nothing was kept finds, when its turn comes, content that a start has left on a
// node, and lets it be.
func TestDeletionFindsContentThatWasNotThere(t *testing.T) {
	w := newWorld(t)
	w.ask(0, workspace.UpdateStart, start())
	w.ask(time.Minute, workspace.UpdateStop, workspace.StopRequest{})
	w.after = func(activity string, attempt int) error {
		if activity == workspace.ActivityStartInstance && attempt == 2 {
			return permanent(workspace.ErrorStartFailed, "it ended at once")
		}
		return nil
	}
	w.ask(2*time.Minute, workspace.UpdateStart, workspace.StartRequest{})
	deletion := w.ask(2*time.Minute, workspace.UpdateDelete, workspace.DeleteRequest{}) // the start has only begun
	after := w.look(10 * time.Minute)
	w.run(time.Hour)
	require.NoError(t, *deletion, "it has to be accepted, or this shows nothing")
	require.True(t, recent(t, after, workspace.OperationDelete).Refused, "%+v", after.Recent)
	require.NotContains(t, w.calls, workspace.ActivityRecordDeleted)
	require.Equal(t, w.newestContent, w.versions[after.Head.Snapshot], "it is backed up after that")
}

// invariant 3: tokens go on above all that the catalog has, whatever the workflow remembers.
func TestTokensGoOnAboveTheCatalog(t *testing.T) {
	w := newWorld(t)
	w.ask(0, workspace.UpdateStart, start())
	w.ask(time.Minute, workspace.UpdateStop, workspace.StopRequest{})
	w.environment.RegisterDelayedCallback(func() {
		heads := w.readHead("gs://a", "file:///b")
		heads.Providers[1].Token = 7
		w.heads = &heads
	}, 2*time.Minute)
	w.ask(3*time.Minute, workspace.UpdateStart, workspace.StartRequest{})
	after := w.look(4 * time.Minute)
	w.run(time.Hour)
	require.Equal(t, workspace.Running, after.Phase, "%+v", after.Recent)
	require.Equal(t, uint64(8), after.Instance.Token)
}

// invariant 4: while the newest content is on a node, a start elsewhere is refused and names the version that it would take.
func TestStartElsewhereIsRefusedWhileContentIsKept(t *testing.T) {
	for name, request := range map[string]workspace.StartRequest{
		"on another node": {Node: nodeTwo}, "not on its node": {NotNode: nodeOne},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.ask(0, workspace.UpdateStart, start())
			w.ask(30*time.Second, workspace.UpdateBackup, workspace.BackupRequest{})
			w.work(45 * time.Second)
			w.environment.RegisterDelayedCallback(func() {
				w.inject(workspace.ActivityBackup, permanent(workspace.ErrorStoreDenied, "403"), false, 1)
			}, 50*time.Second)
			w.ask(time.Minute, workspace.UpdateStop, workspace.StopRequest{})
			w.ask(2*time.Minute, workspace.UpdateStart, request)
			after := w.look(3 * time.Minute)
			w.run(time.Hour)
			refused := recent(t, after, workspace.OperationStart)
			require.Equal(t, workspace.ErrorOlderVersion, refused.ErrorType, "%+v", after.Recent)
			require.Contains(t, refused.Error, "--accept-version "+after.Head.Snapshot)
			require.NotNil(t, after.Kept)
			require.Equal(t, uint64(1), after.Token)
		})
	}
}

// A10, invariant 5: a workspace that has had content never starts empty, also when neither it nor a store knows a version.
func TestExpectedContentIsNeverEmpty(t *testing.T) {
	w := newWorld(t)
	w.heads = &workspace.ReadHeadResult{Providers: []workspace.ProviderHead{{Provider: "gs://a"}, {Provider: "file:///b"}}}
	w.ask(0, workspace.UpdateStart, workspace.StartRequest{})
	after := w.look(time.Minute)
	w.environment.RegisterDelayedCallback(w.environment.CancelWorkflow, time.Hour)
	w.environment.ExecuteWorkflow(workspace.WorkspaceWorkflow, workspace.Input{Name: "atlas", State: &workspace.State{
		Name: "atlas", ID: workspace.NewID(), Token: 3, Phase: workspace.Stopped,
	}})
	w.end()
	require.Equal(t, workspace.ErrorSnapshotMissing, recent(t, after, workspace.OperationStart).ErrorType)
	require.NotContains(t, w.calls, workspace.ActivityRecordInstance)
}

// invariant 2: content that a late store lacked is removed only after a look that finds it there, not because a repair was made.
func TestReleaseLooksBeforeItRemoves(t *testing.T) {
	w := newWorld(t)
	w.owed = []string{"file:///b"}
	w.after = func(activity string, attempt int) error {
		switch {
		case activity == workspace.ActivityRepair && attempt < 4:
			w.owed = []string{"file:///b"} // it is away again
		case activity == workspace.ActivityRemoveInstance && w.attempts[workspace.ActivityRepair] < 4:
			w.violated = append(w.violated, "removal asked for while a store is owed")
		}
		return nil
	}
	w.ask(0, workspace.UpdateStart, start())
	w.ask(time.Minute, workspace.UpdateStop, workspace.StopRequest{})
	after := w.look(3 * time.Hour)
	w.run(4 * time.Hour)
	require.Equal(t, workspace.Stopped, after.Phase)
	require.Nil(t, after.Kept)
	require.Equal(t, 1, w.attempts[workspace.ActivityRemoveInstance])
}
