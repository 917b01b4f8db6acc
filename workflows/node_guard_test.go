package workflows_test

import (
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.temporal.io/sdk/temporal"

	"holdfast/workspace"
)

func guarded(request workspace.RegisterRequest, pauseAfter time.Duration) workspace.RegisterRequest {
	request.Info.Guarded, request.Info.PauseAfter = true, pauseAfter
	return request
}

// The node's workflow keeps the last word on the node's guard, and counts from no clock but its own.
func TestNodeKeepsWhatItsGuardIs(t *testing.T) {
	beat := workspace.LeaseBeat{Epoch: 1, Guarded: true, PauseAfter: 3 * time.Minute}
	a := newAgents(t)
	// The node's clock is an hour late: its word for when the beat was sent is not believed.
	beat.Sent = a.begin.Add(-time.Hour)
	a.script = []ending{{after: time.Minute, err: temporal.NewHeartbeatTimeoutError(beat)}, notTaken()}
	a.register(time.Second, guarded(registration("one"), 2*time.Minute))
	ready := a.look(30 * time.Second)
	suspect := a.look(time.Minute + 4*time.Second)
	lost := a.look(time.Minute + 7*time.Second)
	a.run(time.Hour)

	require.Equal(t, workspace.NodeGuard{Guarded: true, PauseAfter: 2 * time.Minute}, ready.Guard, "its registration")
	_, fenced := suspect.FencedAt()
	require.False(t, fenced)
	require.Equal(t, 3*time.Minute, lost.Guard.PauseAfter, "the beat is newer than the registration")
	at, fenced := lost.FencedAt()
	require.True(t, fenced)
	// Its agent can have beaten until the second offer was taken back.
	require.WithinDuration(t, a.begin.Add(61*time.Second+5*time.Second+3*time.Minute+workspace.FenceMargin), at, time.Second)
	require.WithinDuration(t, a.begin.Add(61*time.Second-10*time.Second), suspect.Guard.Beaten, time.Second)
}

// Whatever ends a lease, no guard is believed in that the last word did not name, and no beat is taken for older than it can be.
func TestNodeGuardAtEveryEnd(t *testing.T) {
	beats := func(beat workspace.LeaseBeat) error { return temporal.NewHeartbeatTimeoutError(beat) }
	cases := map[string]struct {
		end    ending
		want   bool
		beaten time.Duration // after the end
	}{
		"released by a guarded node": {ending{result: workspace.LeaseResult{Released: true, Guarded: true, PauseAfter: time.Minute}}, true, 0},
		"released by another":        {ending{result: workspace.LeaseResult{Released: true}}, false, 0},
		"renewed by a guarded node":  {ending{result: workspace.LeaseResult{Guarded: true, PauseAfter: time.Minute}}, true, 0},
		"renewed by another":         {ending{result: workspace.LeaseResult{}}, false, 0},
		"the guard was away":         {ending{err: beats(workspace.LeaseBeat{Epoch: 1, Sent: time.Unix(1, 0)})}, false, -10 * time.Second},
		"an older agent's beat":      {ending{err: beats(workspace.LeaseBeat{})}, false, 0},
		"it never beat":              {ending{err: temporal.NewHeartbeatTimeoutError()}, true, 0},
		"it failed":                  {ending{err: errors.New("unforeseen")}, false, 0},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			c.end.after = time.Minute
			a := newAgents(t, c.end, ending{after: 5 * time.Second, silent: true, err: notTaken().err})
			a.register(time.Second, guarded(registration("one"), time.Minute))
			after := a.look(time.Minute + 3*time.Second)
			a.run(time.Hour)
			require.Equal(t, c.want, after.Guard.Guarded)
			require.WithinDuration(t, a.begin.Add(61*time.Second+c.beaten), after.Guard.Beaten, time.Second)
		})
	}
}

// Another start of the agent ends the lease of the one before, whose last beat may have been just then.
func TestNodeGuardOfAnotherStart(t *testing.T) {
	a := newAgents(t, ending{after: forever, err: notTaken().err}, notTaken())
	a.register(time.Second, guarded(registration("one"), time.Minute))
	a.register(time.Minute, registration("two"))
	lost := a.look(2 * time.Minute)
	a.run(time.Hour)
	require.False(t, lost.Guard.Guarded, "the newest start says that it has none")
	require.WithinDuration(t, a.begin.Add(time.Minute), lost.Guard.Beaten, time.Second)
}
