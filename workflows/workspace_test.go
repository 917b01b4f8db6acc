package workflows_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"holdfast/workspace"
)

func TestStartStopStart(t *testing.T) {
	w := newWorld(t)
	require.NotNil(t, w.ask(0, workspace.UpdateStart, start()))
	running := w.look(time.Minute)
	stopped := w.ask(2*time.Minute, workspace.UpdateStop, workspace.StopRequest{})
	after := w.look(3 * time.Minute)
	again := w.ask(4*time.Minute, workspace.UpdateStart, workspace.StartRequest{NotNode: nodeOne})
	elsewhere := w.look(5 * time.Minute)
	w.run(6 * time.Minute)

	require.NoError(t, *stopped)
	require.NoError(t, *again)
	require.Equal(t, workspace.Running, running.Phase)
	require.Equal(t, nodeOne, running.Instance.Node)
	require.Equal(t, workspace.Stopped, after.Phase, "%+v", after)
	require.Nil(t, after.Kept)
	require.Nil(t, after.Instance)
	require.Equal(t, uint64(1), after.Head.Token)
	require.Equal(t, workspace.Running, elsewhere.Phase, "%+v", elsewhere)
	require.Equal(t, nodeTwo, elsewhere.Instance.Node)
	require.Equal(t, uint64(2), elsewhere.Instance.Token)
	require.Equal(t, after.Head.Snapshot, elsewhere.Instance.Base)
	require.Equal(t, "first++", w.content["node-2/2"])
}

// A1, A2: the backup goes on while the cause is one that passes, and nothing is removed meanwhile. (The test environment
// ends any retry after ten attempts; that the real policy has no end is in policies_test.go.)
func TestBackupWaitsForStorage(t *testing.T) {
	w := newWorld(t)
	w.ask(0, workspace.UpdateStart, start())
	w.fail = func(activity string, attempt int) error {
		if activity == workspace.ActivityBackup && attempt < 9 {
			return errors.New("dial tcp: lookup storage.googleapis.com: i/o timeout")
		}
		return nil
	}
	w.ask(time.Minute, workspace.UpdateStop, workspace.StopRequest{})
	waiting := w.look(90 * time.Second)
	after := w.look(2 * time.Hour)
	w.run(3 * time.Hour)
	require.Equal(t, workspace.Stopping, waiting.Phase, "%+v", waiting.Block)
	require.Equal(t, workspace.StepBackup, waiting.Operation.Step)
	require.Equal(t, workspace.Stopped, after.Phase)
	require.Equal(t, 9, w.attempts[workspace.ActivityBackup])
}

// A start interrupts a stop whose backup waits for storage, and goes on with the content that is there.
func TestStartWhileStopWaits(t *testing.T) {
	w := newWorld(t)
	w.ask(0, workspace.UpdateStart, start())
	w.fail = func(activity string, _ int) error {
		if activity == workspace.ActivityBackup {
			return errors.New("no route to the store")
		}
		return nil
	}
	w.ask(time.Minute, workspace.UpdateStop, workspace.StopRequest{})
	again := w.ask(2*time.Minute, workspace.UpdateStart, workspace.StartRequest{})
	running := w.look(3 * time.Minute)
	w.run(4 * time.Minute)
	require.NoError(t, *again)
	require.Equal(t, workspace.Running, running.Phase, "%+v", running)
	require.Equal(t, uint64(2), running.Instance.Token)
	require.Equal(t, uint64(1), running.Instance.Adopted)
	require.Equal(t, map[string]string{"node-1/2": "first++"}, w.content)
	require.Zero(t, w.attempts[workspace.ActivityRemoveInstance])
}

// invariant 2: acknowledged by one store; the content stays until all hold the snapshot.
func TestContentStaysWhileAStoreIsOwed(t *testing.T) {
	w := newWorld(t)
	w.owed = []string{"file:///b"}
	w.fail = func(activity string, attempt int) error {
		if activity == workspace.ActivityRepair && attempt < 9 {
			return errors.New("the second store is away")
		}
		return nil
	}
	w.ask(0, workspace.UpdateStart, start())
	w.ask(time.Minute, workspace.UpdateStop, workspace.StopRequest{})
	owed := w.look(90 * time.Second)
	after := w.look(time.Hour)
	w.run(2 * time.Hour)
	require.Equal(t, workspace.Stopped, owed.Phase)
	require.NotNil(t, owed.Kept)
	require.Equal(t, []string{"file:///b"}, owed.Recent[1].Owed)
	require.Equal(t, workspace.Stopped, after.Phase)
	require.Nil(t, after.Kept, "%+v", after.Kept)
	require.Empty(t, w.content)
}

// invariant 1: omissions keep the content until a person accepts the list of that very snapshot.
func TestOmissionsBlock(t *testing.T) {
	w := newWorld(t)
	w.omitted = 2
	w.ask(0, workspace.UpdateStart, start())
	w.ask(time.Minute, workspace.UpdateStop, workspace.StopRequest{})
	blocked := w.look(2 * time.Minute)
	w.ask(3*time.Minute, workspace.UpdateStop, workspace.StopRequest{AcceptOmissions: "0000000000000000000000000000000000000000000000000000000000000009"})
	still := w.look(4 * time.Minute)
	w.ask(5*time.Minute, workspace.UpdateStop, workspace.StopRequest{AcceptOmissions: "0000000000000000000000000000000000000000000000000000000000000001"})
	after := w.look(6 * time.Minute)
	w.run(7 * time.Minute)
	require.Equal(t, workspace.Blocked, blocked.Phase)
	require.Equal(t, workspace.ErrorOmissions, blocked.Block.Type)
	require.Equal(t, workspace.Blocked, still.Phase)
	require.Equal(t, 1, w.attempts[workspace.ActivityRemoveInstance])
	require.Equal(t, workspace.Stopped, after.Phase, "%+v", after)
	require.Nil(t, after.Kept)
}

// A10, invariant 4: a start that would, or might, go back in time is refused until the person names the version.
func TestOlderVersionIsRefused(t *testing.T) {
	w := newWorld(t)
	w.ask(0, workspace.UpdateStart, start())
	w.ask(time.Minute, workspace.UpdateStop, workspace.StopRequest{})
	w.environment.RegisterDelayedCallback(func() {
		heads := w.readHead("gs://a", "file:///b")
		heads.Providers[1] = workspace.ProviderHead{Provider: "file:///b", Error: "input/output error"}
		w.heads = &heads
	}, 2*time.Minute)
	w.ask(3*time.Minute, workspace.UpdateStart, workspace.StartRequest{})
	refused := w.look(4 * time.Minute)
	w.ask(5*time.Minute, workspace.UpdateStart, workspace.StartRequest{AcceptVersion: "0000000000000000000000000000000000000000000000000000000000000001"})
	running := w.look(6 * time.Minute)
	w.run(7 * time.Minute)
	require.Equal(t, workspace.Stopped, refused.Phase)
	last := refused.Recent[len(refused.Recent)-1]
	require.True(t, last.Refused)
	require.Equal(t, workspace.ErrorOlderVersion, last.ErrorType)
	require.Contains(t, last.Error, "--accept-version 0000")
	require.Equal(t, workspace.Running, running.Phase, "%+v", running.Recent)
}

func TestNodeFullTriesTheNext(t *testing.T) {
	w := newWorld(t)
	w.fail = func(activity string, attempt int) error {
		if activity == workspace.ActivityPrepareContent && attempt == 1 {
			return permanent(workspace.ErrorNodeFull, "full")
		}
		return nil
	}
	w.ask(0, workspace.UpdateStart, start())
	running := w.look(time.Minute)
	w.run(2 * time.Minute)
	require.Equal(t, workspace.Running, running.Phase)
	require.Equal(t, nodeTwo, running.Instance.Node)
	require.Equal(t, uint64(2), running.Instance.Token)
}

// The disk of a node is replaced while a start is under way there: what was sealed for the key that went with it is of no use, and
// the next attempt seals anew. With no other node the workspace is where it was, and a person's next start is for the new key.
func TestNodeReplacedTriesTheNext(t *testing.T) {
	for _, only := range []string{"", nodeOne} {
		w := newWorld(t)
		w.fail = func(activity string, attempt int) error {
			if activity == workspace.ActivityPrepareContent && attempt == 1 {
				return permanent(workspace.ErrorNodeReplaced, "sealed to another identity")
			}
			return nil
		}
		request := start()
		request.Node = only
		w.ask(0, workspace.UpdateStart, request)
		after := w.look(time.Minute)
		w.ask(2*time.Minute, workspace.UpdateStart, workspace.StartRequest{})
		again := w.look(3 * time.Minute)
		w.run(4 * time.Minute)
		if only == "" {
			require.Equal(t, workspace.Running, after.Phase)
			require.Equal(t, nodeTwo, after.Instance.Node)
			continue
		}
		require.Equal(t, workspace.Pending, after.Phase, "%s", after.Reason)
		require.Contains(t, after.Reason, "sealed to another identity")
		require.Equal(t, workspace.Running, again.Phase, "%s", again.Reason)
	}
}

// A11: unstick seals the attempt, keeps the content and allows a start.
func TestUnstick(t *testing.T) {
	w := newWorld(t)
	w.fail = func(activity string, attempt int) error {
		if activity == workspace.ActivityBackup {
			return errors.New("stuck")
		}
		return nil
	}
	w.ask(0, workspace.UpdateStart, start())
	w.ask(time.Minute, workspace.UpdateStop, workspace.StopRequest{})
	w.ask(2*time.Minute, workspace.UpdateUnstick, workspace.UnstickRequest{})
	unstuck := w.look(3 * time.Minute)
	w.ask(4*time.Minute, workspace.UpdateStart, workspace.StartRequest{})
	running := w.look(5 * time.Minute)
	w.run(6 * time.Minute)
	require.Equal(t, workspace.Stopped, unstuck.Phase, "%+v", unstuck)
	require.Equal(t, uint64(2), unstuck.Token)
	require.Equal(t, nodeOne, unstuck.Kept.Node)
	require.Equal(t, workspace.Running, running.Phase, "%+v", running.Recent)
	require.Equal(t, uint64(3), running.Instance.Token)
	require.Equal(t, "first++", w.content["node-1/3"])
}

// A11: what an unstick kept can be stopped, too: it gets a token of its own again, since the sealed one may commit nothing.
func TestStopAfterUnstick(t *testing.T) {
	w := newWorld(t)
	w.fail = func(activity string, attempt int) error {
		if activity == workspace.ActivityBackup && len(w.records) < 3 {
			return errors.New("stuck")
		}
		return nil
	}
	w.ask(0, workspace.UpdateStart, start())
	w.ask(time.Minute, workspace.UpdateStop, workspace.StopRequest{})
	w.ask(2*time.Minute, workspace.UpdateUnstick, workspace.UnstickRequest{})
	w.ask(3*time.Minute, workspace.UpdateStop, workspace.StopRequest{})
	stopped := w.look(5 * time.Minute)
	w.run(6 * time.Minute)
	require.Equal(t, workspace.Stopped, stopped.Phase, "%+v", stopped.Recent)
	require.Nil(t, stopped.Kept)
	require.Empty(t, w.content)
	require.Equal(t, uint64(3), stopped.Head.Token)
	require.Equal(t, uint64(1), w.records[3].Adopted)
}

// A failed restore of an older snapshot does not make it the head.
func TestFailedRestoreDoesNotGoBack(t *testing.T) {
	w := newWorld(t)
	w.ask(0, workspace.UpdateStart, start())
	w.ask(time.Minute, workspace.UpdateStop, workspace.StopRequest{})
	missing := "00000000000000000000000000000000000000000000000000000000000000ff"
	w.ask(2*time.Minute, workspace.UpdateRestore, workspace.RestoreRequest{Snapshot: missing})
	blocked := w.look(3 * time.Minute)
	w.ask(4*time.Minute, workspace.UpdateStart, workspace.StartRequest{})
	running := w.look(5 * time.Minute)
	w.run(6 * time.Minute)
	require.Equal(t, workspace.Blocked, blocked.Phase)
	require.Equal(t, workspace.Running, running.Phase, "%+v", running.Recent)
	require.Equal(t, "first++", w.content["node-1/4"], "%v", w.content)
}

// A workspace that never had content has none after a restore that failed: it can be started as before.
func TestFailedRestoreMakesNoHead(t *testing.T) {
	w := newWorld(t)
	w.fail = func(activity string, attempt int) error {
		if activity == workspace.ActivityPrepareImage && attempt == 1 {
			return permanent(workspace.ErrorImageNotFound, "no such image")
		}
		return nil
	}
	w.ask(0, workspace.UpdateStart, start())
	w.ask(time.Minute, workspace.UpdateRestore, workspace.RestoreRequest{Snapshot: strings.Repeat("f", 64)})
	failed := w.look(2 * time.Minute)
	w.ask(3*time.Minute, workspace.UpdateStart, workspace.StartRequest{})
	running := w.look(4 * time.Minute)
	w.run(5 * time.Minute)
	require.Nil(t, failed.Head)
	require.Equal(t, workspace.ErrorSnapshotMissing, recent(t, failed, workspace.OperationRestore).ErrorType, "%+v", failed.Recent)
	require.Equal(t, workspace.Running, running.Phase, "%+v", running.Recent)
	require.Nil(t, running.Head)
	require.Equal(t, "first+", w.content[place(workspace.Target{Node: running.Instance.Node, Token: running.Instance.Token})], "%v", w.content)
}

func TestDelete(t *testing.T) {
	w := newWorld(t)
	w.ask(0, workspace.UpdateStart, start())
	early := w.ask(time.Minute, workspace.UpdateDelete, workspace.DeleteRequest{})
	w.ask(2*time.Minute, workspace.UpdateStop, workspace.StopRequest{})
	w.ask(3*time.Minute, workspace.UpdateDelete, workspace.DeleteRequest{})
	w.run(time.Hour)
	require.ErrorContains(t, *early, "stop it first")
	require.NoError(t, w.environment.GetWorkflowError())
	require.Equal(t, 1, w.attempts[workspace.ActivityRecordDeleted])
}

// A start that cannot end by itself (a git server that does not answer) is given up by a stop.
func TestStopGivesUpAStart(t *testing.T) {
	w := newWorld(t)
	w.fail = func(activity string, _ int) error {
		if activity == workspace.ActivityPrepareContent {
			return errors.New("the git server does not answer")
		}
		return nil
	}
	w.ask(0, workspace.UpdateStart, start())
	stop := w.ask(30*time.Second, workspace.UpdateStop, workspace.StopRequest{})
	after := w.look(5 * time.Minute)
	w.run(6 * time.Minute)
	require.NoError(t, *stop)
	require.Equal(t, workspace.Pending, after.Phase, "%+v", after)
	require.Nil(t, after.Instance)
	require.Len(t, after.Recent, 2)
	require.Equal(t, workspace.ErrorInterrupted, after.Recent[0].ErrorType)
	require.False(t, after.Recent[1].Failed, "%+v", after.Recent[1])
	require.Empty(t, w.content)
}

// Content that was adopted has been placed on its node once for each of its tokens: all of that is released with it.
func TestEveryPlacementIsReleased(t *testing.T) {
	w := newWorld(t)
	w.fail = func(activity string, _ int) error {
		if activity == workspace.ActivityBackup && len(w.records) < 4 {
			return errors.New("no route to the store")
		}
		return nil
	}
	w.ask(0, workspace.UpdateStart, start())
	w.ask(time.Minute, workspace.UpdateStop, workspace.StopRequest{})
	w.ask(90*time.Second, workspace.UpdateStart, workspace.StartRequest{}) // adopts
	w.ask(2*time.Minute, workspace.UpdateStop, workspace.StopRequest{})
	w.ask(150*time.Second, workspace.UpdateUnstick, workspace.UnstickRequest{}) // seals
	w.ask(3*time.Minute, workspace.UpdateStop, workspace.StopRequest{})         // takes it over
	stopped := w.look(5 * time.Minute)
	w.run(6 * time.Minute)
	require.Equal(t, workspace.Stopped, stopped.Phase, "%+v", stopped.Recent)
	require.Nil(t, stopped.Kept)
	require.Empty(t, stopped.Placed)
	require.Empty(t, w.placed)
}

// A2: a start that took a stop's backup over and then failed does not leave content that nobody backs up.
func TestFailedStartGoesOnWithTheBackup(t *testing.T) {
	w := newWorld(t)
	away := true
	w.fail = func(activity string, _ int) error {
		if away && (activity == workspace.ActivityBackup || activity == workspace.ActivityRecordInstance && len(w.records) > 0) {
			return errors.New("no route to the stores")
		}
		return nil
	}
	w.ask(0, workspace.UpdateStart, start())
	w.ask(time.Minute, workspace.UpdateStop, workspace.StopRequest{})
	w.ask(90*time.Second, workspace.UpdateStart, workspace.StartRequest{})
	w.environment.RegisterDelayedCallback(func() { away = false }, 6*time.Minute)
	after := w.look(20 * time.Minute)
	w.run(30 * time.Minute)
	require.Equal(t, workspace.Stopped, after.Phase, "%+v", after.Recent)
	require.Nil(t, after.Kept)
	require.True(t, after.Recent[2].Failed, "the start")
	require.Equal(t, "first+", w.versions[after.Head.Snapshot])
	require.Empty(t, w.content)
}

// invariant 1: content that changed between its backup and its removal is backed up again and only then removed, also by
// the release that a late store has put off; content that never rests waits for a person.
func TestChangedContentIsBackedUpAgain(t *testing.T) {
	for name, test := range map[string]struct {
		owed    []string
		changes int // removals that find a change
		phase   workspace.Phase
		backups int
	}{
		"once, at the stop":    {changes: 1, phase: workspace.Stopped, backups: 2},
		"once, at the release": {owed: []string{"file:///b"}, changes: 1, phase: workspace.Stopped, backups: 2},
		"always":               {changes: 1000, phase: workspace.Blocked, backups: 4},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.owed = test.owed
			w.fail = func(activity string, attempt int) error {
				if activity == workspace.ActivityRemoveInstance && attempt <= test.changes {
					w.content["node-1/1"] += "!"
					w.newestContent = w.content["node-1/1"]
					return permanent(workspace.ErrorContentChanged, "it was changed")
				}
				return nil
			}
			w.ask(0, workspace.UpdateStart, start())
			w.ask(time.Minute, workspace.UpdateStop, workspace.StopRequest{})
			after := w.look(time.Hour)
			w.run(2 * time.Hour)
			require.Equal(t, test.phase, after.Phase, "%+v", after)
			require.Equal(t, test.backups, w.attempts[workspace.ActivityBackup])
			require.Len(t, w.commits, test.backups)
			if test.phase == workspace.Stopped {
				require.Empty(t, w.content)
				require.Equal(t, w.newestContent, w.versions[after.Head.Snapshot])
				return
			}
			require.Equal(t, workspace.ErrorContentChanged, after.Block.Type)
			require.Equal(t, w.newestContent, w.content["node-1/1"])
			require.Empty(t, after.Kept.Snapshot, "its snapshot is not of what is there")
		})
	}
}
