package snapshot

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"holdfast/storage"
)

// KeepPolicy says which snapshots of a group stay. Each field is a wish of its own, and a snapshot stays that any of them
// wants. The zero value wants none.
//
// The meaning is restic's (`restic forget --keep-…`, version 0.19): of each hour, day, week (ISO 8601), month or year the
// newest snapshot counts, by the time that the snapshot itself says, in the zone that it says it in; and as long as a number
// is not used up, the oldest snapshot of the group stays too.
type KeepPolicy struct {
	Last    int // the newest n snapshots; below 0 all
	Hourly  int // the newest of each of the last n hours that have one; below 0 of all
	Daily   int
	Weekly  int
	Monthly int
	Yearly  int
	// Within keeps what is at most this old, compared with the newest snapshot of the group that is not in the future.
	// The others keep of these the newest of each hour, day, week, month or year.
	Within        Age
	WithinHourly  Age
	WithinDaily   Age
	WithinWeekly  Age
	WithinMonthly Age
	WithinYearly  Age
	// Tags keeps snapshots that have all tags of at least one of these lists.
	Tags [][]string
}

// wantsNothing reports whether the policy would keep no snapshot at all.
func (p *KeepPolicy) wantsNothing() bool {
	for _, c := range p.counted() {
		if c.left != 0 {
			return false
		}
	}
	for _, w := range p.within() {
		if w.age != (Age{}) {
			return false
		}
	}
	return p.Within == (Age{}) && len(p.Tags) == 0
}

// Age is a span of calendar time, as in "1y5m7d2h".
type Age struct{ Years, Months, Days, Hours int }

// ParseAge reads numbers, each followed by y, m (months), d or h. An empty text, and one without a number, is
// storage.ErrInvalid.
func ParseAge(text string) (Age, error) {
	var age Age
	for rest := text; rest != "" || text == ""; {
		digits := strings.IndexFunc(rest, func(c rune) bool { return c < '0' || c > '9' })
		if digits <= 0 {
			return Age{}, fmt.Errorf(`%q is no time span like "1y5m7d2h": %w`, text, storage.ErrInvalid)
		}
		n, err := strconv.Atoi(rest[:digits])
		if err != nil || n > 1_000_000 {
			return Age{}, fmt.Errorf("the time span %q is too long: %w", text, storage.ErrInvalid)
		}
		unit, ok := map[byte]*int{'y': &age.Years, 'm': &age.Months, 'd': &age.Days, 'h': &age.Hours}[rest[digits]]
		if !ok {
			return Age{}, fmt.Errorf(`%q is no time span: its units are y, m, d and h: %w`, text, storage.ErrInvalid)
		}
		*unit = n
		rest = rest[digits+1:]
	}
	return age, nil
}

// String writes the age as ParseAge reads it.
func (a Age) String() string {
	var text strings.Builder
	for _, part := range []struct {
		n    int
		unit byte
	}{{a.Years, 'y'}, {a.Months, 'm'}, {a.Days, 'd'}, {a.Hours, 'h'}} {
		if part.n != 0 {
			text.WriteString(strconv.Itoa(part.n))
			text.WriteByte(part.unit)
		}
	}
	return text.String()
}

func (a Age) before(t time.Time) time.Time {
	return t.AddDate(-a.Years, -a.Months, -a.Days).Add(-time.Duration(a.Hours) * time.Hour)
}

// period names the hour, day, week, month or year that a time is in.
type period struct {
	name string
	of   func(t time.Time) int
}

var (
	perHour = period{"hourly", func(t time.Time) int {
		return ((t.Year()*12+int(t.Month()))*31+t.Day())*24 + t.Hour()
	}}
	perDay  = period{"daily", func(t time.Time) int { return t.Year()*1000 + t.YearDay() }}
	perWeek = period{"weekly", func(t time.Time) int {
		year, week := t.ISOWeek()
		return year*100 + week
	}}
	perMonth = period{"monthly", func(t time.Time) int { return t.Year()*12 + int(t.Month()) }}
	perYear  = period{"yearly", func(t time.Time) int { return t.Year() }}
)

// quota is a wish for a number of snapshots, with what it has seen so far.
type quota struct {
	period
	left int
	age  Age
	last int
	seen bool
}

func (p *KeepPolicy) counted() []quota {
	return []quota{
		{period: period{name: "last"}, left: p.Last}, {period: perHour, left: p.Hourly}, {period: perDay, left: p.Daily},
		{period: perWeek, left: p.Weekly}, {period: perMonth, left: p.Monthly}, {period: perYear, left: p.Yearly},
	}
}

func (p *KeepPolicy) within() []quota {
	return []quota{
		{period: perHour, age: p.WithinHourly}, {period: perDay, age: p.WithinDaily}, {period: perWeek, age: p.WithinWeekly},
		{period: perMonth, age: p.WithinMonthly}, {period: perYear, age: p.WithinYearly},
	}
}

// takes reports whether a snapshot is the first that is seen of its period, or the oldest of all.
func (q *quota) takes(t time.Time, oldest bool) (bool, string) {
	if q.of == nil {
		return true, q.name
	}
	value := q.of(t)
	again := q.seen && value == q.last
	q.seen, q.last = true, value
	if again && oldest {
		return true, "oldest " + q.name
	}
	return !again, q.name
}

// apply gives, for each snapshot of a group, why it stays; nothing for one that may go. The snapshots are ordered from
// the newest to the oldest.
func (p *KeepPolicy) apply(group []storedSnapshot, now time.Time) [][]string {
	reasons := make([][]string, len(group))
	var newest time.Time
	for i := range group {
		if t := group[i].Time; t.After(newest) && t.Before(now) {
			newest = t
		}
	}
	counted, within := p.counted(), p.within()
	for i := range group {
		s, oldest := &group[i], i == len(group)-1
		keep := func(format string, arguments ...any) {
			reasons[i] = append(reasons[i], fmt.Sprintf(format, arguments...))
		}
		for _, tags := range p.Tags {
			if s.hasTags(tags) {
				keep("has the tags %s", strings.Join(tags, ","))
			}
		}
		if p.Within != (Age{}) && s.Time.After(p.Within.before(newest)) {
			keep("within %s", p.Within)
		}
		for j := range counted {
			q := &counted[j]
			if q.left == 0 {
				continue
			}
			if takes, name := q.takes(s.Time, oldest); takes {
				if q.left > 0 { // below 0 it is never used up
					q.left--
				}
				keep("%s", name)
			}
		}
		for j := range within {
			q := &within[j]
			if q.age == (Age{}) || !s.Time.After(q.age.before(newest)) {
				continue
			}
			if takes, name := q.takes(s.Time, oldest); takes {
				keep("%s within %s", name, q.age)
			}
		}
	}
	return reasons
}

// hasTags reports whether a snapshot has all of these tags.
func (s *storedSnapshot) hasTags(tags []string) bool {
	return len(tags) > 0 && !slices.ContainsFunc(tags, func(tag string) bool { return !slices.Contains(s.Tags, tag) })
}
