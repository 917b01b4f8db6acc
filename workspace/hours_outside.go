package workspace

import (
	"fmt"
	"slices"
	"time"
)

// Outside is a stretch of time outside of a workspace's hours: the first that is not over before From. Whoever makes it asks
// for the rules of a time zone, which change with the data that a machine has; so a workflow has it recorded, and goes by what
// was recorded.
type Outside struct {
	Hours string    `json:"hours"` // of which hours
	From  time.Time `json:"from"`
	// Begins is From when that is outside already.
	Begins time.Time `json:"begins,omitzero"`
	Ends   time.Time `json:"ends"`
	// Problem is set when it could not be worked out, and is to be asked for again from Ends on.
	Problem string `json:"problem,omitempty"`
}

// outsideAgain is when it is asked for again after a Problem: another worker may know the time zone.
const outsideAgain = time.Hour

// outsideDays is how many days are looked at. Every week has a minute outside, though a clock that is put forward can skip it.
const outsideDays = 16

// OutsideOf finds the first stretch outside of the hours that ends after from. It reads the machine's data of time zones.
//
// Hours are by the clock on the wall. Where that is put forward, what would begin or end in the hour that there is not does
// so when the clock is put; where it is put back, what begins in the hour that there is twice begins in the first, and what
// ends in it ends in the second.
func OutsideOf(hours string, from time.Time) Outside {
	failed := func(err error) Outside {
		return Outside{Hours: hours, From: from, Ends: from.Add(outsideAgain), Problem: err.Error()}
	}
	read, err := readHours("hours", hours)
	if err != nil {
		return failed(err)
	}
	zone, err := read.location()
	if err != nil {
		return failed(fmt.Errorf("find the time zone of the hours: %w", err))
	}
	outside := Outside{Hours: hours, From: from, Begins: from}
	local := from.In(zone)
	year, month, date := local.Date()
	var inside []stretch
	for offset := -3; offset < outsideDays; offset++ {
		// The days of a calendar, one after the other, whatever the clocks do on them.
		at := time.Date(year, month, date+offset, 0, 0, 0, 0, time.UTC)
		for _, r := range read.Ranges {
			if !r.on(at.Weekday()) {
				continue
			}
			begins, _ := wallClock(at.Add(time.Duration(r.From)*time.Minute), zone)
			_, ends := wallClock(at.Add(time.Duration(r.From+r.length())*time.Minute), zone)
			if begins.Before(ends) {
				inside = append(inside, stretch{begins, ends})
			}
		}
	}
	slices.SortFunc(inside, func(a, b stretch) int { return a.begins.Compare(b.begins) })
	for _, one := range inside {
		switch {
		case !one.ends.After(outside.Begins): // before it
		case one.begins.After(outside.Begins):
			outside.Ends = one.begins
			return outside
		default:
			outside.Begins = one.ends
		}
	}
	return failed(fmt.Errorf("no time outside of %s within %d days", hours, outsideDays))
}

// stretch is a time between two moments.
type stretch struct{ begins, ends time.Time }

// wallClock gives the first and the last moment at which the clocks of a zone show what wall shows in UTC. They are the same
// but for an hour that there is twice; for one that there is not, both are when the clocks are put forward.
func wallClock(wall time.Time, zone *time.Location) (first, last time.Time) {
	shown := func(offset int) (time.Time, bool) {
		at := wall.Add(-time.Duration(offset) * time.Second)
		_, there := at.In(zone).Zone()
		return at, there == offset
	}
	near := time.Date(wall.Year(), wall.Month(), wall.Day(), wall.Hour(), wall.Minute(), 0, 0, zone)
	_, offset := near.Zone()
	offsets := []int{offset}
	begins, ends := near.ZoneBounds()
	if !begins.IsZero() {
		_, before := begins.Add(-time.Second).Zone()
		offsets = append(offsets, before)
	}
	if !ends.IsZero() {
		_, after := ends.Zone()
		offsets = append(offsets, after)
	}
	for _, offset := range offsets {
		at, there := shown(offset)
		switch {
		case !there:
		case first.IsZero():
			first, last = at, at
		case at.Before(first):
			first = at
		case at.After(last):
			last = at
		}
	}
	if !first.IsZero() {
		return first, last
	}
	// The clock never shows it: by the offset from before it is after the change, and by the one from after it is before.
	if !begins.IsZero() && !wall.Add(-time.Duration(offset)*time.Second).Before(begins) {
		return ends, ends
	}
	return begins, begins
}
