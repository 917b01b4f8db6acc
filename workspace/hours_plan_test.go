package workspace

import (
	"math/rand/v2"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

const office = "Mon-Fri 08:00-20:00 Europe/Berlin"

// What holds of every plan of a workspace with hours, whatever is known and whenever it is made.
func TestPlanStopOfHoursProperties(t *testing.T) {
	random := rand.New(rand.NewPCG(3, 4))
	within := func(most time.Duration) time.Duration {
		return time.Duration(random.Int64N(int64(most/time.Second)+1)) * time.Second
	}
	planned := 0
	for range 20_000 {
		policy := StopPolicy{Hours: office}
		now := stopEpoch.Add(within(300 * time.Hour))
		watch := Watch{Since: stopEpoch, Used: stopEpoch.Add(within(now.Sub(stopEpoch)))}
		if random.IntN(3) == 0 {
			watch.Keep = &Keep{Until: now.Add(within(100*time.Hour) - 50*time.Hour)}
		}
		if random.IntN(3) == 0 {
			watch.NotAsked = now.Add(within(10*time.Minute) - 5*time.Minute)
		}
		if random.IntN(2) == 0 {
			watch.Warned, watch.WarnedOf = now.Add(-within(20*time.Minute)), StopHours
		}
		require.False(t, watch.KnowsOutside(now, policy))
		require.Zero(t, PlanStop(now, watch, policy), "nothing is planned before it is worked out")
		from := watch.HoursFrom(now)
		outside := OutsideOf(office, from)
		watch.Outside = &outside
		if !watch.KnowsOutside(now, policy) {
			require.False(t, now.Before(outside.Ends), "what is worked out is gone by")
			continue
		}
		plan := PlanStop(now, watch, policy)
		planned++
		require.Equal(t, StopHours, plan.Reason)
		require.False(t, plan.Stop.Before(outside.Begins) || !plan.Stop.Before(outside.Ends), "it is stopped outside of its hours only")
		require.GreaterOrEqual(t, plan.Stop.Sub(plan.Warn), HoursQuiet, "a warning comes first")
		require.GreaterOrEqual(t, plan.Stop.Sub(watch.Used), HoursQuiet, "used a moment ago")
		if watch.Keep != nil {
			require.False(t, plan.Stop.Before(watch.Keep.Until), "a person's word")
		}
		require.False(t, plan.Stop.After(later(outside.Begins, from)), "it comes when it is due")
		if watch.WarnedOf == "" {
			require.False(t, plan.Warn.Before(now))
		}
	}
	require.Greater(t, planned, 10_000)
}

func TestPlanStopOfHours(t *testing.T) {
	// Monday.
	at := func(hour, minute int) time.Time { return time.Date(2026, 11, 30, hour, minute, 0, 0, time.UTC) }
	policy := StopPolicy{Hours: office}
	night := &Outside{Hours: office, From: at(8, 15), Begins: at(19, 0), Ends: at(24+7, 0)}
	for name, test := range map[string]struct {
		now    time.Time
		watch  Watch
		policy StopPolicy
		want   StopPlan
	}{
		"ahead":                {at(10, 0), Watch{Used: at(9, 0)}, policy, StopPlan{StopHours, at(18, 45), at(19, 0)}},
		"warned of":            {at(18, 50), Watch{Used: at(18, 49), Warned: at(18, 45), WarnedOf: StopHours}, policy, StopPlan{StopHours, at(18, 45), at(19, 4)}},
		"used all the time":    {at(22, 0), Watch{Used: at(22, 0), Warned: at(18, 45), WarnedOf: StopHours}, policy, StopPlan{StopHours, at(18, 45), at(22, 15)}},
		"warned of late":       {at(21, 0), Watch{Used: at(9, 0)}, policy, StopPlan{StopHours, at(21, 0), at(21, 15)}},
		"used until they open": {at(24+6, 50), Watch{Used: at(24+6, 50), Warned: at(18, 45), WarnedOf: StopHours}, policy, StopPlan{}},
		"kept":                 {at(18, 0), Watch{Used: at(17, 0), Keep: &Keep{Until: at(22, 0)}}, policy, StopPlan{StopHours, at(21, 45), at(22, 0)}},
		"kept until they open": {at(18, 0), Watch{Used: at(17, 0), Keep: &Keep{Until: at(24+9, 0)}}, policy, StopPlan{}},
		"a silent node":        {at(18, 0), Watch{Used: at(17, 0), Failures: 1}, policy, StopPlan{}},
		"other hours":          {at(18, 0), Watch{Used: at(17, 0)}, StopPolicy{Hours: "Mon 08:00-20:00 UTC"}, StopPlan{}},
		"no hours":             {at(18, 0), Watch{Used: at(17, 0)}, StopPolicy{}, StopPlan{}},
		"a lifetime first":     {at(10, 0), Watch{Since: at(9, 0), Used: at(9, 0)}, StopPolicy{Hours: office, LifetimeSeconds: 3600 * 2}, StopPlan{StopLifetime, at(10, 50), at(11, 0)}},
		"hours first":          {at(10, 0), Watch{Since: at(9, 0), Used: at(18, 0)}, StopPolicy{Hours: office, LifetimeSeconds: 3600 * 20, IdleSeconds: 7200}, StopPlan{StopHours, at(18, 45), at(19, 0)}},
	} {
		test.watch.Outside = night
		require.Equal(t, test.want, PlanStop(test.now, test.watch, test.policy), name)
	}
}

// What a person reads of hours.
func TestStopAheadOfHours(t *testing.T) {
	now := time.Date(2026, 11, 30, 18, 50, 0, 0, time.UTC)
	state := State{Name: "atlas", Phase: Running, Instance: &Instance{Token: 3}, Spec: Spec{Stop: StopPolicy{Hours: office}}, Watch: &Watch{Token: 3, Used: now.Add(-time.Hour)}}
	told := StopAheadOf(state, now)
	require.Equal(t, "outside of its hours (Mon-Fri 08:00-20:00 Europe/Berlin), when it is not used for 15m", told.Policy)
	require.Equal(t, "not until it is worked out when it is outside of its hours", told.Words(now))
	outside := OutsideOf(office, now.Add(HoursQuiet))
	state.Watch.Outside = &outside
	require.Equal(t, "at 2026-11-30 19:05:00 UTC, outside of its hours, unless it is used then", StopAheadOf(state, now).Words(now))
	require.Equal(t, &outside, StopAheadOf(state, now).Outside)
	state.Watch.Warned, state.Watch.WarnedOf = now, StopHours
	require.Equal(t, "it is stopped in 15 min, at 2026-11-30 19:05:00 UTC, through a backup, because it is outside of its hours, unless it is used; "+
		"doing something in it, or a shell that stays open, puts it off", StopAheadOf(state, now).Words(now))
	require.Equal(t, "atlas: stopped in 15 min (hours); `holdfast keep atlas --for 4h` puts it off", StopAheadOf(state, now).Short("atlas", now))
	require.Equal(t, "it was outside of its hours (Mon-Fri 08:00-20:00 Europe/Berlin) and not used for 15m", state.Spec.Stop.Cause(StopHours))
	require.Empty(t, StopAheadOf(state, now).Problem())
	outside = Outside{Hours: office, From: now, Ends: now.Add(time.Hour), Problem: "no data"}
	told = StopAheadOf(state, now)
	require.False(t, told.Warned)
	require.Equal(t, "it is not known when it is outside of its hours, so it is not stopped for that; that is tried again at 2026-11-30 19:50:00 UTC: no data", told.Problem())
}
