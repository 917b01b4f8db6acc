package workspace

import (
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestParseStopAfter(t *testing.T) {
	for text, want := range map[string]int64{"off": 0, "0": 0, "1m": 60, "2h": 7200, "72h": 259200, "2160h": 7776000, "1h30m": 5400} {
		got, err := ParseStopAfter("--idle-stop", text)
		require.NoError(t, err, text)
		require.Equal(t, want, got, text)
		require.NoError(t, StopPolicy{IdleSeconds: got, LifetimeSeconds: got}.Validate())
	}
	for text, want := range map[string]string{
		"":        `--idle-stop "": want a time such as 2h or 72h, or off`,
		"2":       `--idle-stop "2": want a time such as 2h or 72h, or off`,
		"2d":      `--idle-stop "2d": want a time such as 2h or 72h, or off`,
		"59s":     "--idle-stop 59s: want 1m to 2160h (90 days), or off",
		"-2h":     "--idle-stop -2h0m0s: want 1m to 2160h (90 days), or off",
		"2161h":   "--idle-stop 2161h0m0s: want 1m to 2160h (90 days), or off",
		"61500ms": "--idle-stop 1m1.5s: want whole seconds",
	} {
		_, err := ParseStopAfter("--idle-stop", text)
		require.EqualError(t, err, want)
	}
	require.ErrorContains(t, StopPolicy{IdleSeconds: -1}.Validate(), "idle stop")
	require.ErrorContains(t, StopPolicy{LifetimeSeconds: 59}.Validate(), "lifetime")
	require.ErrorContains(t, Spec{Stop: StopPolicy{LifetimeSeconds: 1 << 40}}.Validate(), "lifetime")
}

var stopEpoch = time.Unix(1_700_000_000, 0).UTC()

// What holds of every plan, whatever is known and whenever it is made.
func TestPlanStopProperties(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	within := func(most time.Duration) time.Duration {
		return time.Duration(random.Int64N(int64(most/time.Second)+1)) * time.Second
	}
	length := func() int64 {
		if random.IntN(3) == 0 {
			return 0
		}
		return 60 + random.Int64N([]int64{60, 7200, 90 * 86400}[random.IntN(3)])
	}
	reasons := map[StopReason]int{}
	for range 200_000 {
		policy := StopPolicy{IdleSeconds: length(), LifetimeSeconds: length()}
		now := stopEpoch.Add(within(200 * time.Hour))
		watch := Watch{Since: stopEpoch}
		watch.Used = stopEpoch.Add(within(now.Sub(stopEpoch)))
		if random.IntN(3) == 0 {
			watch.Keep = &Keep{Until: now.Add(within(100*time.Hour) - 50*time.Hour)}
		}
		if random.IntN(3) == 0 {
			watch.NotBefore = now.Add(within(4*time.Hour) - 2*time.Hour)
		}
		if random.IntN(3) == 0 {
			watch.NotAsked = now.Add(within(10*time.Minute) - 5*time.Minute)
		}
		plan := PlanStop(now, watch, policy)
		warned := random.IntN(2) == 0
		if warned && plan.Reason != "" {
			watch.Warned, watch.WarnedOf = now.Add(-within(20*time.Minute)), plan.Reason
			plan = PlanStop(now, watch, policy)
		}
		reasons[plan.Reason]++

		if !policy.Any() {
			require.Zero(t, plan, "nothing stops what has no policy")
			continue
		}
		var length time.Duration
		switch plan.Reason {
		case StopIdle:
			length = policy.Idle()
			require.False(t, plan.Stop.Before(watch.Used.Add(length)), "used within the policy's time")
		case StopLifetime:
			length = policy.Lifetime()
			require.False(t, plan.Stop.Before(watch.Since.Add(length)), "before its lifetime is over")
		}
		require.Positive(t, length)
		lead := min(length/10, 10*time.Minute)
		require.Positive(t, lead)
		require.GreaterOrEqual(t, plan.Stop.Sub(plan.Warn), lead, "a warning comes first")
		if watch.WarnedOf == "" {
			require.False(t, plan.Warn.Before(now), "a warning that was not given is not in the past")
		} else {
			require.Equal(t, watch.Warned, plan.Warn)
		}
		if watch.Keep != nil {
			require.False(t, plan.Stop.Before(watch.Keep.Until), "a person's word")
		}
		require.False(t, plan.Stop.Before(watch.NotBefore))

		// It comes when it is due: at the later of what may put it off, and not after that.
		latest := later(later(plan.Warn.Add(lead), watch.NotBefore), watch.NotAsked)
		if watch.Keep != nil {
			latest = later(latest, watch.Keep.Until)
		}
		if policy.LifetimeSeconds > 0 {
			require.False(t, plan.Stop.After(later(latest, watch.Since.Add(policy.Lifetime()))))
		}
		if policy.IdleSeconds > 0 {
			require.False(t, plan.Stop.After(later(latest, watch.Used.Add(policy.Idle())).Add(StopLead)), "what is warned of first comes first")
		}
		// More use never brings it nearer.
		more := watch
		more.Used = watch.Used.Add(within(now.Sub(watch.Used)))
		if next := PlanStop(now, more, policy); next.Reason == plan.Reason {
			require.False(t, next.Stop.Before(plan.Stop))
		}
	}
	require.Greater(t, reasons[StopIdle], 10_000)
	require.Greater(t, reasons[StopLifetime], 10_000)
	require.Greater(t, reasons[""], 10_000)
}

func TestPlanStopTable(t *testing.T) {
	at := func(d time.Duration) time.Time { return stopEpoch.Add(d) }
	two := StopPolicy{IdleSeconds: 7200}
	for name, test := range map[string]struct {
		now    time.Duration
		watch  Watch
		policy StopPolicy
		want   StopPlan
	}{
		"idle":                 {0, Watch{Used: at(0)}, two, StopPlan{StopIdle, at(110 * time.Minute), at(2 * time.Hour)}},
		"a tenth":              {0, Watch{Used: at(0)}, StopPolicy{IdleSeconds: 60}, StopPlan{StopIdle, at(54 * time.Second), at(time.Minute)}},
		"used since":           {time.Hour, Watch{Used: at(time.Hour)}, two, StopPlan{StopIdle, at(170 * time.Minute), at(3 * time.Hour)}},
		"not warned in time":   {9 * time.Hour, Watch{Used: at(0)}, two, StopPlan{StopIdle, at(9 * time.Hour), at(9*time.Hour + 10*time.Minute)}},
		"warned late":          {9 * time.Hour, Watch{Used: at(0), Warned: at(8*time.Hour + 55*time.Minute), WarnedOf: StopIdle}, two, StopPlan{StopIdle, at(8*time.Hour + 55*time.Minute), at(9*time.Hour + 5*time.Minute)}},
		"kept":                 {time.Hour, Watch{Used: at(0), Keep: &Keep{Until: at(5 * time.Hour)}}, two, StopPlan{StopIdle, at(290 * time.Minute), at(5 * time.Hour)}},
		"kept for less":        {time.Hour, Watch{Used: at(0), Keep: &Keep{Until: at(90 * time.Minute)}}, two, StopPlan{StopIdle, at(110 * time.Minute), at(2 * time.Hour)}},
		"lifetime first":       {0, Watch{Since: at(0), Used: at(0)}, StopPolicy{IdleSeconds: 7200, LifetimeSeconds: 3600}, StopPlan{StopLifetime, at(54 * time.Minute), at(time.Hour)}},
		"lifetime, other word": {0, Watch{Since: at(0), Used: at(0), Warned: at(time.Minute), WarnedOf: StopIdle}, StopPolicy{LifetimeSeconds: 3600}, StopPlan{StopLifetime, at(54 * time.Minute), at(time.Hour)}},
	} {
		require.Equal(t, test.want, PlanStop(at(test.now), test.watch, test.policy), name)
	}
}

// What a person reads, and when there is nothing to be read.
func TestStopAhead(t *testing.T) {
	now := stopEpoch.Add(115 * time.Minute)
	state := State{Name: "atlas", Phase: Running, Instance: &Instance{Token: 3, Node: "node-1"}, Spec: Spec{Stop: StopPolicy{IdleSeconds: 7200}},
		Watch: &Watch{Token: 3, Since: stopEpoch, Used: stopEpoch, Use: "a shell ended"}}
	ahead := StopAheadOf(state, stopEpoch.Add(time.Hour))
	require.Equal(t, "when it is not used for 2h", ahead.Policy)
	require.Equal(t, "not before 2023-11-15 00:13:20 UTC, and only if it is not used until then", ahead.Words(now))
	require.Equal(t, "115 min ago, as far as is known: a shell ended", ahead.Seen(now))
	require.Empty(t, ahead.Kept(now))

	state.Watch.Warned, state.Watch.WarnedOf = stopEpoch.Add(110*time.Minute), StopIdle
	require.Contains(t, StopAheadOf(state, now).Words(now), "it is stopped in 5 min, at 2023-11-15 00:13:20 UTC, through a backup, because it is not used")
	e := Explain(state, nil, now)
	require.Equal(t, StopAheadOf(state, now), e.StopAhead)
	require.Equal(t, "holdfast keep atlas --for 4h", e.Can[0].Command)

	state.Watch.WarnedOf, state.Watch.Warned = "", time.Time{}
	state.Watch.Keep = &Keep{Until: now.Add(4 * time.Hour), At: now.Add(-5 * time.Minute), By: "ada"}
	require.Equal(t, "ada said 5 min ago that it is not stopped by itself before 2023-11-15 04:08:20 UTC", StopAheadOf(state, now).Kept(now))
	require.Empty(t, StopAheadOf(state, now.Add(5*time.Hour)).Kept(now), "it is over")

	for name, change := range map[string]func(*State){
		"not running":      func(s *State) { s.Phase = Stopping },
		"no instance":      func(s *State) { s.Instance = nil },
		"another instance": func(s *State) { s.Watch.Token = 2 },
		"no watch":         func(s *State) { s.Watch = nil },
		"no policy":        func(s *State) { s.Spec.Stop = StopPolicy{} },
	} {
		other := state
		watch := *state.Watch
		other.Watch = &watch
		change(&other)
		require.Nil(t, StopAheadOf(other, now), name)
		for _, action := range Explain(other, nil, now).Can {
			require.False(t, strings.HasPrefix(action.Command, "holdfast keep"), name)
		}
	}
	require.Equal(t, "when it is not used for 2h, and 72h after its start", StopPolicy{IdleSeconds: 7200, LifetimeSeconds: 259200}.Words())
	require.Equal(t, "72h after its start", StopPolicy{LifetimeSeconds: 259200}.Words())
	require.Empty(t, StopPolicy{}.Words())
}

// A node that does not say whether it is used has no idle stop planned, but the end of a lifetime stands.
func TestPlanStopWithASilentNode(t *testing.T) {
	watch := Watch{Since: stopEpoch, Used: stopEpoch, Failures: 2, Failure: "no answer", NotAsked: stopEpoch.Add(3 * time.Hour)}
	now := stopEpoch.Add(170 * time.Minute)
	require.Zero(t, PlanStop(now, watch, StopPolicy{IdleSeconds: 7200}))
	require.Equal(t, StopPlan{StopLifetime, stopEpoch.Add(170 * time.Minute), stopEpoch.Add(3 * time.Hour)},
		PlanStop(now, watch, StopPolicy{IdleSeconds: 7200, LifetimeSeconds: 3 * 3600}))
	state := State{Phase: Running, Instance: &Instance{}, Spec: Spec{Stop: StopPolicy{IdleSeconds: 7200}}, Watch: &watch}
	ahead := StopAheadOf(state, now)
	require.Equal(t, "not while its node does not say whether it is used", ahead.Words(now))
	require.Equal(t, "no answer", ahead.Unknown)
	require.False(t, ahead.Warned)
}
