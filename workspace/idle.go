package workspace

import (
	"fmt"
	"strings"
	"time"
)

// StopPolicy says when a running workspace is stopped by itself, always through a backup. The zero value is never.
type StopPolicy struct {
	// IdleSeconds is how long it may go without being used: MinStop to MaxStop; 0 means for ever.
	IdleSeconds int64 `json:"idle_seconds,omitempty"`
	// LifetimeSeconds is how long it may run, used or not, from its start by a person: MinStop to MaxStop; 0 means for ever.
	LifetimeSeconds int64 `json:"lifetime_seconds,omitempty"`
	// Hours are when it is meant to run, as ParseHours gives them; outside of them it is stopped once it has not been used for
	// HoursQuiet. Empty means at any time.
	Hours string `json:"hours,omitempty"`
}

// The limits of a StopPolicy. Nodes look once a minute, so that nothing shorter can be told; above the longest, a date is
// meant and not a policy.
const (
	MinStop = time.Minute
	MaxStop = 90 * 24 * time.Hour
)

// The limits of a Keep. Who wants more says off at the next start.
const (
	MinKeep = time.Minute
	MaxKeep = 30 * 24 * time.Hour
)

// StopLead is how long before a stop by itself its warning comes at the latest: a tenth of the policy, at most this.
const StopLead = 10 * time.Minute

// StopAgain is how long nothing is stopped by itself after such a stop was given up, by a hook for example: what keeps it
// from being stopped would else be asked every few minutes.
const StopAgain = time.Hour

// ParseStopAfter reads what a person writes: a duration such as 2h or 72h, or the word off (also 0). The field is the flag or
// setting that errors name; the answer is in seconds, 0 for off.
func ParseStopAfter(field, text string) (int64, error) {
	if text == "off" || text == "0" {
		return 0, nil
	}
	after, err := time.ParseDuration(text)
	if err != nil {
		return 0, invalid(field, "%q: want a time such as 2h or 72h, or off", text)
	}
	if after%time.Second != 0 {
		return 0, invalid(field, "%s: want whole seconds", after)
	}
	if after < MinStop || after > MaxStop {
		return 0, invalid(field, "%s: want 1m to 2160h (90 days), or off", after)
	}
	return int64(after / time.Second), nil
}

// Validate names what is wrong with the policy.
func (p StopPolicy) Validate() error {
	for _, one := range []struct {
		field   string
		seconds int64
	}{{"idle stop", p.IdleSeconds}, {"lifetime", p.LifetimeSeconds}} {
		if one.seconds == 0 {
			continue
		}
		if one.seconds < int64(MinStop/time.Second) || one.seconds > int64(MaxStop/time.Second) {
			return invalid(one.field, "%d s: want 0 (off), or 60 to %d", one.seconds, int64(MaxStop/time.Second))
		}
	}
	if p.Hours != "" {
		_, err := readHours("hours", p.Hours)
		return err
	}
	return nil
}

// Any says whether the policy ever stops anything.
func (p StopPolicy) Any() bool { return p.IdleSeconds > 0 || p.LifetimeSeconds > 0 || p.Hours != "" }

// ByUse says whether anything depends on how it is used.
func (p StopPolicy) ByUse() bool { return p.IdleSeconds > 0 || p.Hours != "" }

// Idle and Lifetime are its two parts; 0 means for ever.
func (p StopPolicy) Idle() time.Duration { return time.Duration(p.IdleSeconds) * time.Second }

// Lifetime is how long it may run; 0 means for ever.
func (p StopPolicy) Lifetime() time.Duration { return time.Duration(p.LifetimeSeconds) * time.Second }

// Words says the policy; empty when it never stops anything.
func (p StopPolicy) Words() string {
	var parts []string
	if p.IdleSeconds > 0 {
		parts = append(parts, "when it is not used for "+exact(p.IdleSeconds))
	}
	if p.LifetimeSeconds > 0 {
		parts = append(parts, exact(p.LifetimeSeconds)+" after its start")
	}
	if p.Hours != "" {
		parts = append(parts, "outside of its hours ("+p.Hours+"), when it is not used for "+exact(int64(HoursQuiet/time.Second)))
	}
	return strings.Join(parts, ", and ")
}

// StopReason is why a workspace is stopped by itself.
type StopReason string

// The reasons.
const (
	StopIdle     StopReason = "idle"
	StopLifetime StopReason = "lifetime"
	StopHours    StopReason = "hours"
)

// Cause says why it is stopped by itself, in words.
func (p StopPolicy) Cause(reason StopReason) string {
	switch reason {
	case StopLifetime:
		return "its lifetime of " + exact(p.LifetimeSeconds) + " was over"
	case StopHours:
		return "it was outside of its hours (" + p.Hours + ") and not used for " + exact(int64(HoursQuiet/time.Second))
	default:
		return "it was not used for " + exact(p.IdleSeconds)
	}
}

// Keep is a person's word that a workspace is not to be stopped by itself before a moment.
type Keep struct {
	Until time.Time `json:"until"`
	At    time.Time `json:"at"` // when it was said
	By    string    `json:"by"`
}

// Watch is what is known of how a running workspace is used, kept by its workflow while it has a StopPolicy.
type Watch struct {
	Token uint64 `json:"token"` // the instance that Used is of
	// Since is when it was started by a person: another node, or another instance after the loss of one, goes on with it.
	Since time.Time `json:"since"`
	// Used is when it was last known to be used, and Use what that was, in words.
	Used time.Time `json:"used"`
	Use  string    `json:"use,omitempty"`
	// Warned is when its person was warned of a stop for WarnedOf; zero while none is near.
	Warned   time.Time  `json:"warned,omitzero"`
	WarnedOf StopReason `json:"warned_of,omitempty"`
	Keep     *Keep      `json:"keep,omitempty"`
	// NotBefore is set when a stop by itself was given up.
	NotBefore time.Time `json:"not_before,omitzero"`
	// Outside is when it is next outside of its hours; nil until that was worked out.
	Outside *Outside `json:"outside,omitempty"`

	Asked time.Time `json:"asked,omitzero"` // when the node last answered
	// NotAsked is set while its node is not asked again before a moment, so that histories stay small.
	NotAsked time.Time `json:"not_asked,omitzero"`
	// Failures counts the questions in a row that the node did not answer, and Failure is the last error.
	Failures int    `json:"failures,omitempty"`
	Failure  string `json:"failure,omitempty"`
}

// StopPlan is when a workspace is stopped by itself. Its zero value is never.
type StopPlan struct {
	Reason StopReason `json:"reason,omitempty"`
	Warn   time.Time  `json:"warn,omitzero"` // when it is warned of, or was
	Stop   time.Time  `json:"stop,omitzero"`
}

// PlanStop says when a workspace is warned of and stopped, as far as is known now. A warning comes its lead (StopLead)
// before the stop; one that comes late has the stop come late too. Nothing comes before what a person put it off to, and
// nothing is planned with what a node that does not answer does not say. What is to be warned of first is what is planned.
func PlanStop(now time.Time, watch Watch, policy StopPolicy) StopPlan {
	var plan StopPlan
	var lead time.Duration
	consider := func(reason StopReason, at time.Time, before time.Duration) {
		if plan.Reason == "" || at.Add(-before).Before(plan.Stop.Add(-lead)) {
			plan.Reason, plan.Stop, lead = reason, at, before
		}
	}
	if length := policy.Lifetime(); length > 0 {
		consider(StopLifetime, watch.Since.Add(length), min(length/10, StopLead))
	}
	if length := policy.Idle(); length > 0 && watch.Failures == 0 {
		// What is not asked before a moment cannot be known to be idle before it.
		consider(StopIdle, later(watch.Used.Add(length), watch.NotAsked), min(length/10, StopLead))
	}
	if outside := watch.Outside; policy.Hours != "" && watch.Failures == 0 && outside != nil && outside.Problem == "" && watch.KnowsOutside(now, policy) {
		consider(StopHours, later(outside.Begins, watch.HoursFrom(now)), HoursQuiet)
	}
	if plan.Reason == "" {
		return StopPlan{}
	}
	if watch.Keep != nil {
		plan.Stop = later(plan.Stop, watch.Keep.Until)
	}
	plan.Stop = later(plan.Stop, watch.NotBefore)
	plan.Warn = plan.Stop.Add(-lead)
	switch {
	case watch.WarnedOf == plan.Reason:
		plan.Warn = watch.Warned
	case plan.Warn.Before(now):
		plan.Warn = now
	}
	plan.Stop = later(plan.Stop, plan.Warn.Add(lead))
	return plan
}

// HoursFrom is the earliest moment at which it may be stopped for being outside of its hours, if that is outside: it has to be
// warned of, not used for HoursQuiet, and not put off.
func (w *Watch) HoursFrom(now time.Time) time.Time {
	from := later(later(w.Used.Add(HoursQuiet), w.NotAsked), w.NotBefore)
	if w.Keep != nil {
		from = later(from, w.Keep.Until)
	}
	if w.WarnedOf == StopHours {
		return later(from, w.Warned.Add(HoursQuiet))
	}
	return later(from, now.Add(HoursQuiet))
}

// KnowsOutside says whether Outside is what is to be gone by now.
func (w *Watch) KnowsOutside(now time.Time, policy StopPolicy) bool {
	from := w.HoursFrom(now)
	return w.Outside != nil && w.Outside.Hours == policy.Hours && now.Before(w.Outside.Ends) && !from.Before(w.Outside.From) && from.Before(w.Outside.Ends)
}

func later(a, b time.Time) time.Time {
	if a.Before(b) {
		return b
	}
	return a
}

// StopAhead is a stop by itself as `why`, `show` and `list` tell it.
type StopAhead struct {
	Policy string `json:"policy"` // in words
	StopPlan
	// Warned: it is near, and nothing that was seen keeps it from coming.
	Warned bool      `json:"warned,omitempty"`
	Used   time.Time `json:"used"` // when it was last known to be used
	Use    string    `json:"use,omitempty"`
	Keep   *Keep     `json:"keep,omitempty"` // while it holds
	// Unknown is set while its node does not say whether it is used; it is not stopped then.
	Unknown string `json:"unknown,omitempty"`
	// Outside is when it is next outside of its hours, if it has any.
	Outside *Outside `json:"outside,omitempty"`
}

// StopAheadOf is what is ahead of a workspace now; nil when nothing stops it by itself.
func StopAheadOf(state State, now time.Time) *StopAhead {
	watch := state.Watched()
	if watch == nil {
		return nil
	}
	ahead := &StopAhead{
		Policy: state.Spec.Stop.Words(), StopPlan: PlanStop(now, *watch, state.Spec.Stop),
		Used: watch.Used, Use: watch.Use,
	}
	ahead.Warned = watch.WarnedOf != "" && watch.WarnedOf == ahead.Reason
	if watch.Keep != nil && watch.Keep.Until.After(now) {
		ahead.Keep = watch.Keep
	}
	if watch.Failures > 0 {
		ahead.Unknown = watch.Failure
	}
	if watch.KnowsOutside(now, state.Spec.Stop) {
		ahead.Outside = watch.Outside
	}
	return ahead
}

// Watched is the watch over a workspace that runs and may be stopped by itself; nil for any other.
func (s *State) Watched() *Watch {
	if s.Watch == nil || s.Instance == nil || s.Phase != Running || !s.Spec.Stop.Any() || s.Watch.Token != s.Instance.Token {
		return nil
	}
	return s.Watch
}

// Words says what is ahead, and what puts it off.
func (a *StopAhead) Words(now time.Time) string {
	why := map[StopReason]string{
		StopLifetime: "its lifetime is over then", StopIdle: "it is not used: nobody is connected and nothing works in it",
		StopHours: "it is outside of its hours, unless it is used",
	}[a.Reason]
	at := instant(a.Stop)
	switch {
	case a.Reason == "" && a.Unknown != "":
		return "not while its node does not say whether it is used"
	case a.Reason == "":
		return "not until it is worked out when it is outside of its hours"
	case a.Warned:
		text := fmt.Sprintf("it is stopped in %s, at %s, through a backup, because %s", duration(max(a.Stop.Sub(now), 0)), at, why)
		if a.Reason != StopLifetime {
			text += "; doing something in it, or a shell that stays open, puts it off"
		}
		return text
	case a.Reason == StopIdle:
		return "not before " + at + ", and only if it is not used until then"
	case a.Reason == StopHours:
		return "at " + at + ", outside of its hours, unless it is used then"
	default:
		return "at " + at + ", used or not"
	}
}

// Problem says what keeps hours from being worked out; empty when nothing does.
func (a *StopAhead) Problem() string {
	if a.Outside == nil || a.Outside.Problem == "" {
		return ""
	}
	return "it is not known when it is outside of its hours, so it is not stopped for that; that is tried again at " + instant(a.Outside.Ends) + ": " + a.Outside.Problem
}

func instant(at time.Time) string { return at.UTC().Format("2006-01-02 15:04:05 UTC") }

// Short says in one line of a list what is ahead, and the way out.
func (a *StopAhead) Short(name string, now time.Time) string {
	return fmt.Sprintf("%s: stopped in %s (%s); `holdfast keep %s --for 4h` puts it off", name, duration(max(a.Stop.Sub(now), 0)), a.Reason, name)
}

// Seen says when it was last known to be used.
func (a *StopAhead) Seen(now time.Time) string {
	text := fmt.Sprintf("%s ago, as far as is known", duration(now.Sub(a.Used)))
	if a.Use != "" {
		text += ": " + a.Use
	}
	return text
}

// Kept says who put it off; empty when nobody did.
func (a *StopAhead) Kept(now time.Time) string {
	if a.Keep == nil {
		return ""
	}
	return a.Keep.Words(now)
}

// Words says who keeps it, until when, and since when.
func (k *Keep) Words(now time.Time) string {
	return fmt.Sprintf("%s said %s ago that it is not stopped by itself before %s", k.By, duration(now.Sub(k.At)), instant(k.Until))
}
