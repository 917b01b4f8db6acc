package workflows_test

import (
	"context"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.temporal.io/sdk/activity"

	"holdfast/workspace"
)

// What only reads and stores is given up without a wait: a person's start is done while the node has not even heard that
// the backup, the look or the repair before it is not wanted any more. This needs a real server: the test environment
// ends at once whatever is cancelled.
func TestAStartDoesNotWaitForWhatItGivesUp(t *testing.T) {
	c := dial(t)
	for _, name := range []string{workspace.ActivityBackup, workspace.ActivityVerify, workspace.ActivityRepair} {
		t.Run(name, func(t *testing.T) {
			s := newScene(t, c, t.Name(), atlas)
			s.owed = []string{"file:///b"}
			begun, over := make(chan struct{}, 1), make(chan struct{})
			defer close(over) // before the workers are stopped, which wait for it
			s.deaf = func(ctx context.Context, activityName string) {
				if activityName != name {
					return
				}
				select {
				case begun <- struct{}{}:
				default:
				}
				hearNothing(ctx, c, over)
			}
			s.start()
			require.NoError(t, s.ask(workspace.UpdateStop, workspace.StopRequest{Subject: "ada"}))
			<-begun
			state := s.request(workspace.UpdateStart, workspace.StartRequest{Subject: "ada"}, workspace.Running)
			require.Equal(t, uint64(1), state.Instance.Adopted)
		})
	}
}

// hearNothing has an activity live on, and not hear that it is given up, until it is over.
func hearNothing(ctx context.Context, c server, over <-chan struct{}) {
	alive := time.NewTicker(100 * time.Millisecond)
	defer alive.Stop()
	for {
		select {
		case <-alive.C:
			// Not activity.RecordHeartbeat, which falls silent once it has heard that this was given up.
			_ = c.RecordActivityHeartbeat(context.WithoutCancel(ctx), activity.GetInfo(ctx).TaskToken)
		case <-over:
			return
		}
	}
}

// So is forgetting old snapshots, and removing what nothing needs: a stop is not held up by a node that has not heard of it yet.
// What it then does there waits for the lock on the node (TestEveryOperationWaitsForTheOneBefore).
func TestAStopDoesNotWaitForARetention(t *testing.T) {
	c := dial(t)
	for _, name := range []string{workspace.ActivityForget, workspace.ActivityPrune} {
		t.Run(name, func(t *testing.T) {
			s := newScene(t, c, t.Name(), atlas)
			s.retainsNext()
			s.input.State.Retaining.Made = workspace.RetainEvery // it is due as soon as there is a version
			begun, over := make(chan struct{}), make(chan struct{})
			defer close(over) // before the workers are stopped, which wait for it
			s.deaf = func(ctx context.Context, activityName string) {
				if activityName == name {
					begun <- struct{}{}
					hearNothing(ctx, c, over)
				}
			}
			s.startWith(startEvery(24 * time.Hour)) // the next snapshot ends it, too
			require.NoError(t, s.ask(workspace.UpdateBackup, workspace.BackupRequest{Subject: "ada"}))
			<-begun
			s.request(workspace.UpdateStop, workspace.StopRequest{Subject: "ada"}, workspace.Stopped)
		})
	}
}

// invariant 6: what was begun on a node and is given up has ended there before it is undone. This needs a real server, too.
func TestWhatWasBegunEndsBeforeItIsUndone(t *testing.T) {
	c := dial(t)
	s := newScene(t, c, t.Name(), atlas)
	begun, heard, over := make(chan struct{}), make(chan struct{}), make(chan struct{})
	s.deaf = func(ctx context.Context, name string) {
		if name != workspace.ActivityPrepareContent {
			return
		}
		close(begun)
		for beats := time.NewTicker(100 * time.Millisecond); ; {
			<-beats.C
			if err := c.RecordActivityHeartbeat(context.WithoutCancel(ctx), activity.GetInfo(ctx).TaskToken); err != nil {
				close(heard) // the workflow has given it up
				<-over
				return
			}
		}
	}
	s.beginWith(start())
	<-begun
	require.NoError(t, s.ask(workspace.UpdateStop, workspace.StopRequest{Subject: "ada"}))
	<-heard
	for _, event := range s.history().Events {
		scheduled := event.GetActivityTaskScheduledEventAttributes()
		require.False(t, scheduled != nil && scheduled.ActivityType.Name == workspace.ActivityDiscardInstance, "it is undone while it goes on")
	}
	close(over)
	s.until("undone", func(state workspace.State) bool { return state.Phase == workspace.Pending && state.Operation == nil })
	require.Equal(t, 1, s.called(workspace.ActivityDiscardInstance))
}

// A commit that has begun is waited for and may succeed although the move was given up for the loss of its node: the
// workspace has not been stopped then, and recovers as one that runs. This needs a real server, too.
func TestMoveGivenUpWhileItsBackupIsCommitted(t *testing.T) {
	c := dial(t)
	s := newScene(t, c, t.Name(), atlas)
	begun := make(chan struct{})
	s.deaf = func(ctx context.Context, name string) {
		if name != workspace.ActivityCommit {
			return
		}
		close(begun)
		for beats := time.NewTicker(100 * time.Millisecond); ; {
			<-beats.C
			if err := c.RecordActivityHeartbeat(context.WithoutCancel(ctx), activity.GetInfo(ctx).TaskToken); err != nil {
				return // the workflow has given the move up
			}
		}
	}
	now := time.Now()
	s.after = func(name string, _ int) error {
		if name == workspace.ActivityCommit {
			s.nodes[nodeOne] = workspace.NodeState{Info: workspace.NodeInfo{Name: nodeOne}, Phase: workspace.NodeLost, Epoch: 1,
				Loss: &workspace.NodeLoss{At: now.Add(-time.Hour), Heard: now.Add(-time.Hour), Epoch: 1}}
		}
		return nil
	}
	s.start()
	require.NoError(t, s.ask(workspace.UpdateMove, workspace.MoveRequest{Subject: "ada"}))
	<-begun
	s.signal(workspace.SignalNodeNews, workspace.NodeNews{Node: nodeOne, Epoch: 1, Lost: true, At: now, Heard: now})
	state := s.until("running elsewhere", func(state workspace.State) bool {
		return state.Phase == workspace.Running && state.Operation == nil && state.Instance.Node == nodeTwo
	})
	require.Equal(t, workspace.ErrorNodeLost, recent(t, &state, workspace.OperationMove).ErrorType)
	require.Zero(t, s.called(workspace.ActivityStopInstance))
}

// A round of a drain that is ended is given up at once, and what it says afterwards is not taken for anything. This needs a real
// server, too.
func TestDrainGivenUpInARound(t *testing.T) {
	c := dial(t)
	s := newScene(t, c, t.Name(), "node/"+nodeOne)
	begun, heard := make(chan struct{}), make(chan struct{})
	s.deaf = func(ctx context.Context, _ string) {
		close(begun)
		for beats := time.NewTicker(100 * time.Millisecond); ; {
			<-beats.C
			if err := c.RecordActivityHeartbeat(context.WithoutCancel(ctx), activity.GetInfo(ctx).TaskToken); err != nil {
				close(heard)
				return
			}
		}
	}
	s.drainable()
	s.order(workspace.OrderDrain)
	<-begun
	s.order(workspace.OrderUndrain)
	select {
	case <-heard:
	case <-time.After(30 * time.Second):
		require.FailNow(t, "the round goes on")
	}
	require.Eventually(t, func() bool { return s.called("moved") == 1 }, 30*time.Second, 20*time.Millisecond)
	s.order(workspace.OrderCordon) // whatever the workflow heard of the round comes before it
	s.drainIs(func(d *workspace.NodeDrain) bool {
		require.Zero(t, d.Moved)
		return d.End == workspace.DrainCancelled && slices.Equal(d.On, []string{"atlas"})
	})
}
