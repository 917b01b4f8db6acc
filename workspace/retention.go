package workspace

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Retention says which of the snapshots that a timer made are kept. The zero value is the default. What a person asked
// for, a final snapshot, and one that no commit names are kept whatever it says.
type Retention struct {
	// Last is how many of the newest are kept, 1 to MaxRetained; 0 together with Hourly and Daily means the default.
	Last int `json:"last,omitempty"`
	// Hourly and Daily: the newest of so many hours and days (UTC) that have any, 0 to MaxRetained.
	Hourly int `json:"hourly,omitempty"`
	Daily  int `json:"daily,omitempty"`
	// Off is set when a person said that none is ever to be forgotten.
	Off bool `json:"off,omitempty"`
}

// DefaultRetention is what the zero value stands for: at the default interval an hour of every snapshot, a day of hours,
// two weeks of days.
func DefaultRetention() Retention { return Retention{Last: 12, Hourly: 24, Daily: 14} }

// MaxRetained bounds each number of a retention: what is kept is looked at once for every run.
const MaxRetained = 1000

// RetainEvery is after how many timed snapshots those that are not kept are forgotten; PruneEvery is how often at most what
// they alone held is removed from the stores.
const (
	RetainEvery = 12
	PruneEvery  = 24 * time.Hour
)

// ParseRetention reads what a person writes: last=12,hourly=24,daily=14, where what is not named keeps none, or the word
// none, with which nothing is ever forgotten.
func ParseRetention(text string) (Retention, error) {
	if text == "none" {
		return Retention{Off: true}, nil
	}
	var r Retention
	numbers := map[string]*int{"last": &r.Last, "hourly": &r.Hourly, "daily": &r.Daily}
	for _, part := range strings.Split(text, ",") {
		name, digits, _ := strings.Cut(strings.TrimSpace(part), "=")
		number := numbers[name]
		value, err := strconv.Atoi(digits)
		if number == nil || err != nil {
			return Retention{}, invalid("retention", "%q: want for example last=12,hourly=24,daily=14, each once, or none", text)
		}
		delete(numbers, name)
		*number = value
	}
	if r.Last == 0 {
		return Retention{}, invalid("retention", "%q: want last=1 at least, so that the newest snapshot is always kept", text)
	}
	return r, r.Validate()
}

// Validate names what is wrong with the retention.
func (r Retention) Validate() error {
	if r == (Retention{}) || r == (Retention{Off: true}) {
		return nil
	}
	switch {
	case r.Off:
		return invalid("retention", "both none and %s", r.numbers())
	case r.Last < 1 || r.Last > MaxRetained:
		return invalid("retention", "last=%d: want 1 to %d", r.Last, MaxRetained)
	case r.Hourly < 0 || r.Hourly > MaxRetained:
		return invalid("retention", "hourly=%d: want 0 to %d", r.Hourly, MaxRetained)
	case r.Daily < 0 || r.Daily > MaxRetained:
		return invalid("retention", "daily=%d: want 0 to %d", r.Daily, MaxRetained)
	}
	return nil
}

// orDefault is the retention that the zero value stands for.
func (r Retention) orDefault() Retention {
	if r == (Retention{}) {
		return DefaultRetention()
	}
	return r
}

// String is how ParseRetention reads it.
func (r Retention) String() string {
	if r.Off {
		return "none"
	}
	return r.orDefault().numbers()
}

func (r Retention) numbers() string {
	return fmt.Sprintf("last=%d,hourly=%d,daily=%d", r.Last, r.Hourly, r.Daily)
}

// Forget says which snapshots are to be forgotten: ids of snapshots that a timer made, that the commits name, and that are
// stored. protected are those that stay whatever the retention says. Of every instance the newest of the commits whose snapshots
// are stored stays always: when it ended without a final snapshot nothing else has what it had last, and the one after it may
// have begun with something older. So does every snapshot that a commit of another kind names.
//
// The order is that of tokens and sequences. A commit's time only says into which hour and day it falls (invariant 3): with a
// clock that was wrong, more or fewer of the older ones are kept, and the newest all the same.
func (r Retention) Forget(commits []Commit, stored, protected map[string]bool) []string {
	if r.Off {
		return nil
	}
	r = r.orDefault()
	timed := make([]Commit, 0, len(commits))
	keep := map[string]bool{}
	newest := map[uint64]*Commit{} // by token
	for i := range commits {
		commit := &commits[i]
		if !stored[commit.Snapshot] {
			continue
		}
		if commit.Newer(newest[commit.Token]) {
			newest[commit.Token] = commit
		}
		if commit.Timed && commit.Kind == "live" {
			timed = append(timed, *commit)
		} else {
			keep[commit.Snapshot] = true
		}
	}
	for _, commit := range newest {
		keep[commit.Snapshot] = true
	}
	slices.SortFunc(timed, func(a, b Commit) int { // the newest first
		return cmp.Or(cmp.Compare(b.Token, a.Token), cmp.Compare(b.Sequence, a.Sequence))
	})
	for i := range timed[:min(r.Last, len(timed))] {
		keep[timed[i].Snapshot] = true
	}
	keepNewestOfEach(timed, time.Hour, r.Hourly, keep)
	keepNewestOfEach(timed, 24*time.Hour, r.Daily, keep)
	var forget []string
	for i := range timed {
		if id := timed[i].Snapshot; !keep[id] && !protected[id] {
			keep[id] = true // named once
			forget = append(forget, id)
		}
	}
	return forget
}

// keepNewestOfEach keeps the first of each span of time until there are enough spans.
func keepNewestOfEach(timed []Commit, span time.Duration, enough int, keep map[string]bool) {
	seen := map[int64]bool{}
	for i := range timed {
		of := timed[i].Time.Truncate(span).Unix()
		if seen[of] {
			continue
		}
		if len(seen) == enough {
			return
		}
		seen[of] = true
		keep[timed[i].Snapshot] = true
	}
}

// Retaining is what is known of the forgetting of a workspace's timed snapshots: kept by its workflow.
type Retaining struct {
	// Made counts the timed snapshots since the last run; RetainEvery makes one due.
	Made int `json:"made,omitempty"`
	// Time is when it was last done, Forgotten how many it forgot then, and Kept how many timed ones stayed.
	Time      time.Time `json:"time,omitzero"`
	Forgotten int       `json:"forgotten,omitempty"`
	Kept      int       `json:"kept,omitempty"`
	// PruneBegun is when what nothing needs was last begun to be removed, Pruned when that was done, and PrunedBytes how
	// much it was.
	PruneBegun  time.Time `json:"prune_begun,omitzero"`
	Pruned      time.Time `json:"pruned,omitzero"`
	PrunedBytes int64     `json:"pruned_bytes,omitempty"`
	// Failures counts the runs in a row that did not do all; LastFailure is the last of them.
	Failures    int              `json:"failures,omitempty"`
	LastFailure *SnapshotFailure `json:"last_failure,omitempty"`
}

// Done says in words what the last run did; empty while there was none.
func (r *Retaining) Done(now time.Time) string {
	if r == nil || r.Time.IsZero() {
		return ""
	}
	text := fmt.Sprintf("%d forgotten %s ago, %d kept", r.Forgotten, duration(now.Sub(r.Time)), r.Kept)
	if !r.Pruned.IsZero() {
		text += fmt.Sprintf("; %s that nothing needed were removed %s ago", size(r.PrunedBytes), duration(now.Sub(r.Pruned)))
	}
	return text
}

// Failed says in words why the last run did not do all; empty when it did. The error itself is in LastFailure.
func (r *Retaining) Failed(now time.Time) string {
	if r == nil || r.LastFailure == nil || r.Failures == 0 {
		return ""
	}
	words := ExplainFailure(stepActivity[r.LastFailure.Step], r.LastFailure.Type, r.LastFailure.Error).Words
	switch r.LastFailure.Type {
	case TimeoutScheduleToClose:
		words = "it was not done when the next snapshot was due, which comes first"
	case string(ErrorConflict):
		words = "the stores do not say the same, or not what the workspace knows"
	}
	times := "once"
	if r.Failures > 1 {
		times = fmt.Sprintf("%d times in a row", r.Failures)
	}
	return fmt.Sprintf("it failed %s, the last time %s ago while %s: %s; more is kept than asked for, and it is done again after more snapshots",
		times, duration(now.Sub(r.LastFailure.Time)), r.LastFailure.Step, words)
}
