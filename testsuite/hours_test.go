package testsuite_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"holdfast/testsuite/stack"
	"holdfast/workspace"
)

// TestWorkingHours is a workspace that is started outside of its hours, by the clocks of another place, on the real stack: it is
// warned of at once, says so, and runs on as long as a person says.
func TestWorkingHours(t *testing.T) {
	t.Parallel()
	s := stack.New(t, "any", "process")
	hours := time.Now().UTC().Add(72 * time.Hour).Weekday().String()[:3] + " 08:00-20:00 Pacific/Auckland"
	stack.Must(t, s, 2, []string{"time zone", "is not known"}, "start", "web", "--hours", "Mon-Fri 08:00-20:00 Europe/Atlan")
	stack.Must(t, s, 0, nil, "start", "web", "--hours", hours, "--snapshot-every", "off")
	stack.WaitFor(t, "the warning", stack.Patience, func() bool {
		ahead := stopAhead(t, s, "web")
		return ahead != nil && ahead.Warned
	})
	ahead := stopAhead(t, s, "web")
	require.Equal(t, workspace.StopHours, ahead.Reason)
	require.Equal(t, hours, ahead.Outside.Hours)
	stack.Must(t, s, 0, []string{"outside of its hours", "holdfast keep web --for 4h"}, "why", "web")
	stack.Must(t, s, 0, []string{"(hours); `holdfast keep web --for 4h` puts it off"}, "list")
	stack.Must(t, s, 0, []string{"web is not stopped by itself before"}, "keep", "web", "--for", "1h")
	stack.WaitFor(t, "what is ahead is worked out again", stack.Patience, func() bool {
		ahead := stopAhead(t, s, "web")
		return ahead.Reason == workspace.StopHours && !ahead.Warned && !ahead.Stop.Before(ahead.Keep.Until)
	})
	stack.Must(t, s, 0, nil, "stop", "web")
	stack.Must(t, s, 0, nil, "start", "web", "--hours", "off")
	require.Nil(t, stopAhead(t, s, "web"))
}
