package workspace

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"strings"
	"time"
)

// SnapshotPolicy says how often a running workspace is snapshotted (A7). The zero value is the default.
type SnapshotPolicy struct {
	// EverySeconds is the interval: MinSnapshotEvery to MaxSnapshotEvery; 0 means DefaultSnapshotEvery.
	EverySeconds int64 `json:"every_seconds,omitempty"`
	// Off is set when a person said that there are to be none.
	Off bool `json:"off,omitempty"`
}

// The interval's default and limits. Below the least one, a workspace's history would grow faster than anybody gains
// by it; above the longest, the bound means nothing.
const (
	DefaultSnapshotEvery = 5 * time.Minute
	MinSnapshotEvery     = 10 * time.Second
	MaxSnapshotEvery     = 24 * time.Hour
)

// ParseSnapshotEvery reads what a person writes: a duration such as 5m, or the word off (also 0).
func ParseSnapshotEvery(text string) (SnapshotPolicy, error) {
	if text == "off" || text == "0" {
		return SnapshotPolicy{Off: true}, nil
	}
	every, err := time.ParseDuration(text)
	if err != nil {
		return SnapshotPolicy{}, invalid("snapshot interval", "%q: want a time such as 5m or 1h30m, or off", text)
	}
	if every%time.Second != 0 {
		return SnapshotPolicy{}, invalid("snapshot interval", "%s: want whole seconds", every)
	}
	policy := SnapshotPolicy{EverySeconds: int64(every / time.Second)}
	if every <= 0 {
		policy.EverySeconds = -1 // not the default that 0 stands for
	}
	return policy, policy.Validate()
}

// Validate names what is wrong with the interval.
func (p SnapshotPolicy) Validate() error {
	every := time.Duration(p.EverySeconds) * time.Second
	switch {
	case p.EverySeconds == 0:
		return nil
	case p.Off:
		return invalid("snapshot interval", "both off and %s", every)
	case p.EverySeconds < int64(MinSnapshotEvery/time.Second) || p.EverySeconds > int64(MaxSnapshotEvery/time.Second):
		return invalid("snapshot interval", "%s: want 10s to 24h, or off", every)
	}
	return nil
}

// Every is the interval, 0 when there are to be no snapshots.
func (p SnapshotPolicy) Every() time.Duration {
	switch {
	case p.Off:
		return 0
	case p.EverySeconds == 0:
		return DefaultSnapshotEvery
	default:
		return time.Duration(p.EverySeconds) * time.Second
	}
}

// NextSnapshot is the first moment after the given one at which a workspace's snapshot is due. A workspace's moments lie
// one interval apart, at a place within it that depends on its name alone: workspaces that began at the same moment (a
// node's, after a failover) do not all snapshot at the same moment, and what was missed is not made up for.
func NextSnapshot(name string, every time.Duration, after time.Time) time.Time {
	sum := sha256.Sum256([]byte(name))
	place := time.Duration(binary.BigEndian.Uint64(sum[:8]) % uint64(every))
	since := after.Sub(time.Unix(0, 0).Add(place)) % every
	if since < 0 {
		since += every
	}
	return after.Add(every - since)
}

// Protection is how far the stores are behind a running instance (A7): kept by its workflow.
type Protection struct {
	Token uint64 `json:"token"` // the instance that it is of
	// Snapshot is the newest version that is verified and committed; empty while there is none.
	Snapshot string `json:"snapshot,omitempty"`
	// Time is the moment whose content is in Snapshot: when reading it began, or a later look that found nothing changed.
	// Zero when it is not known.
	Time time.Time `json:"time,omitzero"`
	// Unchanged is set when Time is that of such a look.
	Unchanged bool `json:"unchanged,omitempty"`
	// StatDigest is of the content in Snapshot; empty when an equal one would not prove that it is the same.
	StatDigest string   `json:"stat_digest,omitempty"`
	Owed       []string `json:"owed,omitempty"` // stores that do not hold Snapshot whole yet
	// TookMillis is how long the last snapshot took, from its begin to its commit.
	TookMillis int64 `json:"took_millis,omitempty"`

	Due time.Time `json:"due,omitzero"` // the next one
	// Failures counts the timed snapshots in a row that were not made; LastFailure is the last of them.
	Failures    int              `json:"failures,omitempty"`
	LastFailure *SnapshotFailure `json:"last_failure,omitempty"`
}

// SnapshotFailure is a timed snapshot that was not made.
type SnapshotFailure struct {
	Time  time.Time `json:"time"`
	Step  Step      `json:"step,omitempty"`
	Type  string    `json:"type,omitempty"` // an ErrorType or a Timeout…
	Error string    `json:"error"`
}

// RecoveryPoint states what the loss of its node can cost a running workspace (A7).
type RecoveryPoint struct {
	// Snapshot and Time: the stores hold the content of Time, whole and verified, in Snapshot. Both are empty when they
	// hold none.
	Snapshot string    `json:"snapshot,omitempty"`
	Time     time.Time `json:"time,omitzero"`
	// AgeSeconds is how long ago Time is: what the loss of the node would cost now. -1 when it is not known.
	AgeSeconds int64 `json:"age_seconds"`
	// Unchanged: a look at Time found that nothing had changed since Snapshot was made.
	Unchanged bool `json:"unchanged,omitempty"`
	// IntervalSeconds is the policy's, 0 when snapshots are off.
	IntervalSeconds int64 `json:"interval_seconds"`
	// BoundSeconds is the promised most that a lost node costs: the interval and how long the last snapshot took. 0 when
	// nothing is promised, because snapshots are off.
	BoundSeconds int64 `json:"bound_seconds"`
	// Exceeded: the age is above the bound, so the promise is broken now. LastFailure says why.
	Exceeded bool      `json:"exceeded,omitempty"`
	Due      time.Time `json:"due,omitzero"` // the next snapshot
	Running  bool      `json:"running,omitempty"`
	// Volume is the shared volume that the content is on: the loss of the node costs nothing, and that of the volume what is said here.
	Volume string `json:"volume,omitempty"`

	Failures    int              `json:"failures,omitempty"` // in a row
	LastFailure *SnapshotFailure `json:"last_failure,omitempty"`
}

// RecoveryPointOf is the recovery point of a workspace now; nil when nothing of it runs.
func RecoveryPointOf(state State, now time.Time) *RecoveryPoint {
	instance := state.Instance
	if instance == nil || state.Phase != Running {
		return nil
	}
	every := state.Spec.Snapshots.Every()
	point := &RecoveryPoint{AgeSeconds: -1, IntervalSeconds: int64(every / time.Second), Volume: instance.Volume}
	known := state.Protection
	if known == nil || known.Token != instance.Token {
		known = &Protection{}
	}
	since := known.Time
	if known.Snapshot != "" {
		point.Snapshot, point.Time, point.Unchanged = known.Snapshot, known.Time, known.Unchanged
	} else {
		since = instance.Began // nothing is stored: all of its work so far
	}
	if !since.IsZero() {
		point.AgeSeconds = int64(max(now.Sub(since), 0) / time.Second)
	}
	if every > 0 {
		bound := snapshotBound(every, time.Duration(known.TookMillis)*time.Millisecond)
		point.BoundSeconds = int64((bound + time.Second - 1) / time.Second)
		point.Exceeded = point.AgeSeconds > point.BoundSeconds
		point.Due = known.Due
	}
	point.Running = state.Operation != nil && state.Operation.Kind == OperationSnapshot
	point.Failures, point.LastFailure = known.Failures, known.LastFailure
	return point
}

// snapshotBound is the most that can be lost: what is written right after a snapshot began is in the next one, which
// begins at the first due moment after the end of this one, and counts once it is committed.
func snapshotBound(every, took time.Duration) time.Duration {
	return (took/every+1)*every + took
}

// Promised is the bound as a table shows it.
func (p *RecoveryPoint) Promised() string {
	if p.BoundSeconds == 0 {
		return "off"
	}
	return exact(p.BoundSeconds)
}

// Bound says the promise in words.
func (p *RecoveryPoint) Bound() string {
	if p.BoundSeconds == 0 {
		return "none: snapshots while it runs are off"
	}
	if p.Volume != "" {
		return fmt.Sprintf("a lost node costs nothing, the loss of its shared volume at most %s of work (a snapshot every %s)", exact(p.BoundSeconds), exact(p.IntervalSeconds))
	}
	return fmt.Sprintf("a lost node costs at most %s of work (a snapshot every %s)", exact(p.BoundSeconds), exact(p.IntervalSeconds))
}

// Held says in words what the stores hold.
func (p *RecoveryPoint) Held() string {
	ago := func() string { return duration(time.Duration(p.AgeSeconds)*time.Second) + " ago" }
	var text string
	switch {
	case p.Snapshot == "":
		return "the stores hold nothing of it yet"
	case p.AgeSeconds < 0:
		text = fmt.Sprintf("the stores hold snapshot %s, which is older than what is on the node", Short(p.Snapshot))
	case p.Unchanged:
		text = fmt.Sprintf("the stores hold its content of %s: nothing had changed since snapshot %s", ago(), Short(p.Snapshot))
	default:
		text = fmt.Sprintf("the stores hold its content of %s, in snapshot %s", ago(), Short(p.Snapshot))
	}
	if p.Exceeded {
		text += fmt.Sprintf("; that is older than the promised %s", exact(p.BoundSeconds))
	}
	return text
}

// Next says in words when the next snapshot is due; empty when none is.
func (p *RecoveryPoint) Next(now time.Time) string {
	switch {
	case p.Running:
		return "one is being made now"
	case p.Due.IsZero():
		return ""
	case !p.Due.After(now):
		return "due now"
	default:
		return fmt.Sprintf("in %s, at %s", duration(p.Due.Sub(now)), p.Due.UTC().Format("15:04:05 UTC"))
	}
}

// Failed says in words why the last timed snapshot was not made; empty when it was. The error itself is in LastFailure.
func (p *RecoveryPoint) Failed(now time.Time) string {
	if p.LastFailure == nil || p.Failures == 0 {
		return ""
	}
	failure := ExplainFailure(stepActivity[p.LastFailure.Step], p.LastFailure.Type, p.LastFailure.Error)
	times := "once"
	if p.Failures > 1 {
		times = fmt.Sprintf("%d times in a row", p.Failures)
	}
	return fmt.Sprintf("it failed %s, the last time %s ago while %s: %s", times, duration(now.Sub(p.LastFailure.Time)), p.LastFailure.Step, failure.Words)
}

// stepActivity is what the steps of a snapshot, and of forgetting older ones, run.
var stepActivity = map[Step]string{
	StepBackup: ActivityBackup, StepVerify: ActivityVerify, StepCommit: ActivityCommit, StepPrune: ActivityPrune, StepForget: ActivityForget,
}

// exact is a length of time to the second, such as 5m or 1h0m12s.
func exact(seconds int64) string {
	text := (time.Duration(seconds) * time.Second).String()
	if strings.HasSuffix(text, "m0s") {
		text = strings.TrimSuffix(text, "0s")
	}
	if strings.HasSuffix(text, "h0m") {
		text = strings.TrimSuffix(text, "0m")
	}
	return text
}
