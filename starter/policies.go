package main

import (
	"time"

	"github.com/urfave/cli/v2"

	"holdfast/workspace"
)

// Flags of `holdfast start` that say how a workspace is looked after.
const (
	flagSnapshotEvery = "snapshot-every"
	flagRetention     = "retention"
	flagHook          = "hook"
	flagStopGrace     = "stop-grace"
	flagIdleStop      = "idle-stop"
	flagLifetime      = "lifetime"
	flagHours         = "hours"
)

// readPolicies reads how the workspace is to be looked after. Settings hold the deployment's defaults, which are for new
// ones; what flags say is for one that is stopped, too.
func (plan *startPlan) readPolicies(c *cli.Context, s settings) error {
	if s.SnapshotEvery != "" && !c.IsSet(flagSnapshotEvery) {
		policy, err := workspace.ParseSnapshotEvery(s.SnapshotEvery)
		if err != nil {
			return usage("snapshot_every: %w", err)
		}
		plan.spec.Snapshots = policy
	}
	if c.IsSet(flagSnapshotEvery) {
		policy, err := workspace.ParseSnapshotEvery(c.String(flagSnapshotEvery))
		if err != nil {
			return usage("--%s: %w", flagSnapshotEvery, err)
		}
		plan.set(func(spec *workspace.Spec) { spec.Snapshots = policy })
	}
	if c.IsSet(flagRetention) {
		retention, err := workspace.ParseRetention(c.String(flagRetention))
		if err != nil {
			return usage("--%s: %w", flagRetention, err)
		}
		plan.set(func(spec *workspace.Spec) { spec.Retention = retention })
	}
	if c.IsSet(flagHook) {
		hooks, err := readHooks(c.StringSlice(flagHook))
		if err != nil {
			return err
		}
		plan.set(func(spec *workspace.Spec) { spec.Hooks = hooks })
	}
	if c.IsSet(flagStopGrace) {
		grace := c.Duration(flagStopGrace)
		if grace < time.Second || grace > time.Hour || grace%time.Second != 0 {
			return usage("--%s %s: want whole seconds, 1s to 1h", flagStopGrace, grace)
		}
		plan.set(func(spec *workspace.Spec) { spec.StopGraceSeconds = int(grace / time.Second) })
	}
	for flag, put := range map[string]func(*workspace.StopPolicy, int64){
		flagIdleStop: func(p *workspace.StopPolicy, seconds int64) { p.IdleSeconds = seconds },
		flagLifetime: func(p *workspace.StopPolicy, seconds int64) { p.LifetimeSeconds = seconds },
	} {
		if !c.IsSet(flag) {
			continue
		}
		seconds, err := workspace.ParseStopAfter("--"+flag, c.String(flag))
		if err != nil {
			return usage("%w", err)
		}
		plan.set(func(spec *workspace.Spec) { put(&spec.Stop, seconds) })
	}
	if c.IsSet(flagHours) {
		hours, err := workspace.ParseHours("--"+flagHours, c.String(flagHours))
		if err != nil {
			return usage("%w", err)
		}
		plan.set(func(spec *workspace.Spec) { spec.Stop.Hours = hours })
	}
	return nil
}

// set changes the plan's specification, and that of a workspace that is there already.
func (plan *startPlan) set(change func(*workspace.Spec)) {
	change(&plan.spec)
	plan.policies = append(plan.policies, change)
}

func readHooks(texts []string) ([]workspace.Hook, error) {
	if len(texts) == 1 && texts[0] == "none" {
		return nil, nil
	}
	var hooks []workspace.Hook
	for _, text := range texts {
		hook, err := workspace.ParseHook(text)
		if err != nil {
			return nil, usage("--%s: %w", flagHook, err)
		}
		hooks = append(hooks, hook)
	}
	return hooks, nil
}
