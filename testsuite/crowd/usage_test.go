package crowd_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"holdfast/testsuite/crowd"
)

// TestLimits: each one that is exceeded is named, with what exceeded it; what is at its limit is within it.
func TestLimits(t *testing.T) {
	limits := crowd.Limits{Events: 10, Bytes: 10, Updates: 10, InFlight: 10, Activities: 10, ControlMemory: 10, TemporalMemory: 10}
	full := func() crowd.Usage {
		most := crowd.Most{Value: 10, Where: "workspace/w"}
		return crowd.Usage{Looks: 1, Events: most, Bytes: most, Updates: most, InFlight: most, Activities: most, ControlMemory: 10, TemporalMemory: 10}
	}
	require.NoError(t, full().Within(limits))
	for says, exceed := range map[string]func(*crowd.Usage){
		"workspace/w: 11 events of a history":    func(u *crowd.Usage) { u.Events.Value++ },
		"workspace/w: 11 bytes of a history":     func(u *crowd.Usage) { u.Bytes.Value++ },
		"workspace/w: 11 updates of a run":       func(u *crowd.Usage) { u.Updates.Value++ },
		"workspace/w: 11 updates in flight":      func(u *crowd.Usage) { u.InFlight.Value++ },
		"workspace/w: 11 pending activities":     func(u *crowd.Usage) { u.Activities.Value++ },
		"the control worker: 11 bytes of memory": func(u *crowd.Usage) { u.ControlMemory++ },
		"Temporal: 11 bytes of memory":           func(u *crowd.Usage) { u.TemporalMemory++ },
		"the number of pending activities":       func(u *crowd.Usage) { u.Refused = []string{"the number of pending activities"} },
		"nothing was looked at":                  func(u *crowd.Usage) { u.Looks = 0 },
	} {
		u := full()
		exceed(&u)
		require.ErrorContains(t, u.Within(limits), says)
		require.NotContains(t, u.Within(limits).Error(), "\n", "only that one")
	}
}
