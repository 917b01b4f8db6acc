package workspace

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Hours are when a workspace is meant to run: ranges of the days of a week, by the clocks of one place. They are written
// as "Mon-Fri 08:00-20:00, Sat 10:00-14:00 Europe/Berlin".
type Hours struct {
	Ranges []HoursRange // at least one, at most MaxHoursRanges
	Zone   string       // an IANA name
}

// HoursRange is one range on each of its days. One that does not end after it begins ends on the next day.
type HoursRange struct {
	First, Last time.Weekday // First to Last, over the end of the week when Last comes before First
	From, To    int          // minutes since midnight: 0 to 1439, and 1 to 1440
}

// The limits of Hours.
const (
	MaxHoursRanges = 28
	maxHoursText   = 1000
)

// HoursQuiet is how long a workspace must not have been used before it is stopped outside of its hours, and how long before
// that its warning comes at the latest.
const HoursQuiet = 15 * time.Minute

const (
	day  = 24 * 60 // minutes
	week = 7 * day
)

var weekdays = [...]string{"Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat"}

// ParseHours reads what a person writes, and gives it back as it is kept; empty for the word off. The field is the flag or
// setting that errors name.
func ParseHours(field, text string) (string, error) {
	if text == "off" || text == "0" {
		return "", nil
	}
	hours, err := readHours(field, text)
	if err != nil {
		return "", err
	}
	if _, err := hours.location(); err != nil {
		return "", invalid(field, "time zone %q is not known: want a name such as Europe/Berlin, or UTC", hours.Zone)
	}
	return hours.String(), nil
}

// readHours does not look whether there is such a time zone: what another machine knows, or another version of the data, must
// not decide about what is kept.
func readHours(field, text string) (Hours, error) {
	const want = `want such as "Mon-Fri 08:00-20:00, Sat 10:00-14:00 Europe/Berlin", or off`
	if len(text) > maxHoursText {
		return Hours{}, invalid(field, "%d characters: want at most %d", len(text), maxHoursText)
	}
	ranges, zone, found := cutLast(strings.TrimSpace(text), " ")
	if !found || !zoneName(zone) {
		return Hours{}, invalid(field, "%q: it must end with a time zone; %s", text, want)
	}
	hours := Hours{Zone: zone}
	for _, one := range strings.Split(ranges, ",") {
		words := strings.Fields(one)
		if len(words) != 2 {
			return Hours{}, invalid(field, "%q: a range is days and times; %s", strings.TrimSpace(one), want)
		}
		first, last, err := readDays(words[0])
		if err != nil {
			return Hours{}, invalid(field, "%q: %v; %s", words[0], err, want)
		}
		from, to, err := readSpan(words[1])
		if err != nil {
			return Hours{}, invalid(field, "%q: %v; %s", words[1], err, want)
		}
		hours.Ranges = append(hours.Ranges, HoursRange{First: first, Last: last, From: from, To: to})
	}
	if len(hours.Ranges) > MaxHoursRanges {
		return Hours{}, invalid(field, "%d ranges: want at most %d", len(hours.Ranges), MaxHoursRanges)
	}
	if hours.always() {
		return Hours{}, invalid(field, "%q: that is the whole week, so it would never be stopped; want off", text)
	}
	return hours, nil
}

func cutLast(text, separator string) (before, after string, found bool) {
	i := strings.LastIndex(text, separator)
	if i < 0 {
		return "", text, false
	}
	return text[:i], text[i+len(separator):], true
}

// zoneName says whether text can be a time zone's name: Local is that of whichever machine is asked.
func zoneName(text string) bool {
	if text == "" || text == "Local" || len(text) > 64 || text[0] < 'A' || text[0] > 'Z' {
		return false
	}
	for _, r := range text {
		switch {
		case r >= 'A' && r <= 'Z', r >= 'a' && r <= 'z', r >= '0' && r <= '9', strings.ContainsRune("/_+-", r):
		default:
			return false
		}
	}
	return true
}

func readDays(text string) (first, last time.Weekday, err error) {
	one, other, ranged := strings.Cut(text, "-")
	if !ranged {
		other = one
	}
	for i, part := range []string{one, other} {
		known := false
		for number, name := range weekdays {
			if strings.EqualFold(part, name) {
				known = true
				if i == 0 {
					first = time.Weekday(number)
				} else {
					last = time.Weekday(number)
				}
			}
		}
		if !known {
			return 0, 0, errors.New("want days of Mon, Tue, Wed, Thu, Fri, Sat, Sun")
		}
	}
	return first, last, nil
}

func readSpan(text string) (from, to int, err error) {
	one, other, ranged := strings.Cut(text, "-")
	from, fromOK := readClock(one)
	to, toOK := readClock(other)
	switch {
	case !ranged || !fromOK || !toOK || from == day:
		return 0, 0, errors.New("want times from 00:00 to 24:00")
	case from == to:
		return 0, 0, errors.New("it ends when it begins; 00:00-24:00 is a whole day")
	case to == 0:
		to = day // until midnight, which is the end of the day that it began on
	}
	return from, to, nil
}

// readClock reads minutes since midnight.
func readClock(text string) (int, bool) {
	if len(text) != 5 || text[2] != ':' {
		return 0, false
	}
	hour, err := strconv.ParseUint(text[:2], 10, 8)
	if err != nil {
		return 0, false
	}
	minute, err := strconv.ParseUint(text[3:], 10, 8)
	if err != nil || minute > 59 || hour > 24 || hour == 24 && minute > 0 {
		return 0, false
	}
	return int(hour*60 + minute), true
}

// String is how hours are kept.
func (h Hours) String() string {
	var text strings.Builder
	for i, r := range h.Ranges {
		if i > 0 {
			text.WriteString(", ")
		}
		text.WriteString(weekdays[r.First])
		if r.Last != r.First {
			text.WriteString("-" + weekdays[r.Last])
		}
		fmt.Fprintf(&text, " %02d:%02d-%02d:%02d", r.From/60, r.From%60, r.To/60, r.To%60)
	}
	return text.String() + " " + h.Zone
}

// on says whether the range begins on such a day.
func (r HoursRange) on(weekday time.Weekday) bool {
	if r.First <= r.Last {
		return r.First <= weekday && weekday <= r.Last
	}
	return weekday >= r.First || weekday <= r.Last
}

// length is how many minutes the range has by the clock.
func (r HoursRange) length() int {
	if r.To > r.From {
		return r.To - r.From
	}
	return day - r.From + r.To
}

// always says whether no minute of an ordinary week is outside.
func (h Hours) always() bool {
	var inside [week]bool
	for _, r := range h.Ranges {
		for weekday := range time.Weekday(7) {
			if !r.on(weekday) {
				continue
			}
			for minute := range r.length() {
				inside[(int(weekday)*day+r.From+minute)%week] = true
			}
		}
	}
	for _, is := range inside {
		if !is {
			return false
		}
	}
	return true
}

func (h Hours) location() (*time.Location, error) { return time.LoadLocation(h.Zone) }
