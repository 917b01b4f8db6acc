package workflows_test

import (
	"context"
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
				for alive := time.NewTicker(100 * time.Millisecond); ; {
					select {
					case <-alive.C:
						// Not activity.RecordHeartbeat, which falls silent once it has heard that this was given up.
						_ = c.RecordActivityHeartbeat(context.WithoutCancel(ctx), activity.GetInfo(ctx).TaskToken)
					case <-over:
						return
					}
				}
			}
			s.start()
			require.NoError(t, s.ask(workspace.UpdateStop, workspace.StopRequest{Subject: "ada"}))
			<-begun
			state := s.request(workspace.UpdateStart, workspace.StartRequest{Subject: "ada"}, workspace.Running)
			require.Equal(t, uint64(1), state.Instance.Adopted)
		})
	}
}
