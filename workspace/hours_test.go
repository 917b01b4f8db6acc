package workspace

import (
	"errors"
	"math/rand/v2"
	"strings"
	"testing"
	"time"
	_ "time/tzdata" // as in the program

	"github.com/stretchr/testify/require"
)

func TestParseHours(t *testing.T) {
	for text, want := range map[string]string{
		"off": "", "0": "",
		"Mon-Fri 08:00-20:00 Europe/Berlin":                             "Mon-Fri 08:00-20:00 Europe/Berlin",
		"  mon-FRI   08:00-20:00 ,Sat 10:00-14:00   America/New_York  ": "Mon-Fri 08:00-20:00, Sat 10:00-14:00 America/New_York",
		"Sat-Mon 22:00-06:00 UTC":                                       "Sat-Mon 22:00-06:00 UTC",
		"Sun 20:00-00:00 UTC":                                           "Sun 20:00-24:00 UTC",
		"Wed-Wed 00:00-24:00 Etc/GMT+5":                                 "Wed 00:00-24:00 Etc/GMT+5",
		"Mon-Sun 00:00-23:59 UTC":                                       "Mon-Sun 00:00-23:59 UTC",
	} {
		got, err := ParseHours("--hours", text)
		require.NoError(t, err, text)
		require.Equal(t, want, got)
		again, err := ParseHours("--hours", orElse(got, "off"))
		require.NoError(t, err)
		require.Equal(t, got, again)
		require.NoError(t, StopPolicy{Hours: got}.Validate())
		require.Equal(t, got != "", StopPolicy{Hours: got}.Any())
	}
	for text, want := range map[string]string{
		"":                                             "it must end with a time zone",
		"Mon-Fri":                                      "it must end with a time zone",
		"Mon-Fri 08:00-20:00":                          "it must end with a time zone",
		"Mon-Fri 08:00-20:00 Local":                    "it must end with a time zone",
		"Mon-Fri 08:00-20:00 ../etc":                   "it must end with a time zone",
		"Mon-Fri 08:00-20:00 Europe/Atlan":             `time zone "Europe/Atlan" is not known`,
		"08:00-20:00 UTC":                              "a range is days and times",
		"Mon 08:00-20:00, UTC":                         "a range is days and times",
		"Mon,Tue 08:00-20:00 UTC":                      "a range is days and times",
		"Mo 08:00-20:00 UTC":                           "want days of Mon",
		"Mon-Fri-Sat 08:00-20:00 UTC":                  "want days of Mon",
		"Mon 8:00-20:00 UTC":                           "want times from 00:00 to 24:00",
		"Mon 08:00 UTC":                                "want times from 00:00 to 24:00",
		"Mon 08:00-24:01 UTC":                          "want times from 00:00 to 24:00",
		"Mon 24:00-08:00 UTC":                          "want times from 00:00 to 24:00",
		"Mon 08:60-09:00 UTC":                          "want times from 00:00 to 24:00",
		"Mon 08:00-08:00 UTC":                          "it ends when it begins",
		"Mon 00:00-00:00 UTC":                          "it ends when it begins",
		"Mon-Sun 00:00-24:00 UTC":                      "that is the whole week",
		"Mon-Sun 08:00-20:00, Mon-Sun 20:00-08:00 UTC": "that is the whole week",
		strings.Repeat("Mon 08:00-20:00,", 28) + "Mon 08:00-20:00 UTC":  "29 ranges: want at most 28",
		strings.Repeat("Mon 08:00-20:00,", 100) + "Mon 08:00-20:00 UTC": "characters: want at most 1000",
	} {
		_, err := ParseHours("--hours", text)
		require.ErrorContains(t, err, "--hours")
		require.ErrorContains(t, err, want, text)
	}
	require.ErrorContains(t, Spec{Stop: StopPolicy{Hours: "Mon-Fri"}}.Validate(), "hours")
	require.NoError(t, StopPolicy{Hours: "Mon 08:00-20:00 Europe/Atlan"}.Validate(), "what one machine does not know, another may")
}

func TestOutsideOf(t *testing.T) {
	for name, test := range map[string]struct{ hours, from, begins, ends string }{
		"before the hours end":     {"Mon-Fri 08:00-20:00 Europe/Berlin", "2026-11-30T10:00:00Z", "2026-11-30T19:00:00Z", "2026-12-01T07:00:00Z"},
		"when they end":            {"Mon-Fri 08:00-20:00 Europe/Berlin", "2026-11-30T19:00:00Z", "2026-11-30T19:00:00Z", "2026-12-01T07:00:00Z"},
		"at night":                 {"Mon-Fri 08:00-20:00 Europe/Berlin", "2026-11-30T23:10:00Z", "2026-11-30T23:10:00Z", "2026-12-01T07:00:00Z"},
		"when they begin":          {"Mon-Fri 08:00-20:00 Europe/Berlin", "2026-12-01T07:00:00Z", "2026-12-01T19:00:00Z", "2026-12-02T07:00:00Z"},
		"over a weekend":           {"Mon-Fri 08:00-20:00 Europe/Berlin", "2026-11-27T12:00:00Z", "2026-11-27T19:00:00Z", "2026-11-30T07:00:00Z"},
		"once a week":              {"Wed 12:00-12:01 UTC", "2026-11-25T12:00:30Z", "2026-11-25T12:01:00Z", "2026-12-02T12:00:00Z"},
		"over midnight":            {"Fri 22:00-06:00 UTC", "2026-11-28T03:00:00Z", "2026-11-28T06:00:00Z", "2026-12-04T22:00:00Z"},
		"over the week's end":      {"Sat-Mon 09:00-17:00 UTC", "2026-11-28T16:00:00Z", "2026-11-28T17:00:00Z", "2026-11-29T09:00:00Z"},
		"ranges that touch":        {"Mon 08:00-12:00, Mon 12:00-14:00 UTC", "2026-11-30T09:00:00Z", "2026-11-30T14:00:00Z", "2026-12-07T08:00:00Z"},
		"ranges that overlap":      {"Mon 11:00-14:00, Mon 08:00-18:00 UTC", "2026-11-30T09:00:00Z", "2026-11-30T18:00:00Z", "2026-12-07T08:00:00Z"},
		"days that touch":          {"Mon-Tue 00:00-24:00 UTC", "2026-11-30T09:00:00Z", "2026-12-02T00:00:00Z", "2026-12-07T00:00:00Z"},
		"one minute outside":       {"Mon-Sun 00:00-23:59 UTC", "2026-11-30T09:00:00Z", "2026-11-30T23:59:00Z", "2026-12-01T00:00:00Z"},
		"summer and winter":        {"Mon-Fri 08:00-20:00 America/New_York", "2026-10-30T12:00:00Z", "2026-10-31T00:00:00Z", "2026-11-02T13:00:00Z"},
		"ends in the gap":          {"Sat 20:00-02:30 Europe/Berlin", "2026-03-28T22:00:00Z", "2026-03-29T01:00:00Z", "2026-04-04T18:00:00Z"},
		"begins in the gap":        {"Sun 02:30-12:00 Europe/Berlin", "2026-03-29T00:30:00Z", "2026-03-29T00:30:00Z", "2026-03-29T01:00:00Z"},
		"is in the gap":            {"Sun 02:10-02:50 Europe/Berlin", "2026-03-29T00:30:00Z", "2026-03-29T00:30:00Z", "2026-04-05T00:10:00Z"},
		"ends in the hour twice":   {"Sat 20:00-02:30 Europe/Berlin", "2026-10-24T22:00:00Z", "2026-10-25T01:30:00Z", "2026-10-31T19:00:00Z"},
		"begins in the hour twice": {"Sun 02:30-12:00 Europe/Berlin", "2026-10-25T00:00:00Z", "2026-10-25T00:00:00Z", "2026-10-25T00:30:00Z"},
		"is in the hour twice":     {"Sun 02:10-02:50 Europe/Berlin", "2026-10-25T00:20:00Z", "2026-10-25T01:50:00Z", "2026-11-01T01:10:00Z"},
		"half an hour":             {"Sun 01:45-12:00 Australia/Lord_Howe", "2026-04-04T13:00:00Z", "2026-04-04T13:00:00Z", "2026-04-04T14:45:00Z"},
		"a day that never was":     {"Fri 08:00-20:00 Pacific/Apia", "2011-12-30T05:00:00Z", "2011-12-30T05:00:00Z", "2012-01-05T18:00:00Z"},
	} {
		t.Run(name, func(t *testing.T) {
			at := func(text string) time.Time {
				at, err := time.Parse(time.RFC3339, text)
				require.NoError(t, err)
				return at
			}
			got := OutsideOf(test.hours, at(test.from))
			require.Empty(t, got.Problem)
			require.Equal(t, test.begins, got.Begins.UTC().Format(time.RFC3339))
			require.Equal(t, test.ends, got.Ends.UTC().Format(time.RFC3339))
			require.True(t, got.From.Equal(at(test.from)))
		})
	}
	unknown := OutsideOf("Mon 08:00-20:00 Europe/Atlan", stopEpoch)
	require.Contains(t, unknown.Problem, "find the time zone of the hours")
	require.Equal(t, stopEpoch.Add(time.Hour), unknown.Ends)
}

// What the clock on a wall shows, minute by minute, says the same as what is worked out, in zones with every kind of change.
func TestWallClock(t *testing.T) {
	random := rand.New(rand.NewPCG(7, 9))
	gaps, twice := 0, 0
	for _, name := range []string{"Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Pacific/Apia", "Africa/Casablanca", "Pacific/Chatham", "Asia/Kathmandu", "Europe/Dublin"} {
		zone, err := time.LoadLocation(name)
		require.NoError(t, err)
		for range 60 {
			// Near a change of the clocks, if there is one.
			at := time.Date(2010, 1, 1, 0, 0, 0, 0, time.UTC).Add(time.Duration(random.IntN(6000*24)) * time.Hour).In(zone)
			if _, ends := at.ZoneBounds(); !ends.IsZero() && random.IntN(4) > 0 {
				at = ends.Add(time.Duration(random.IntN(240)-120) * time.Minute).In(zone)
			}
			year, month, date := at.Date()
			wall := time.Date(year, month, date, at.Hour(), random.IntN(60), 0, 0, time.UTC)
			if random.IntN(3) == 0 {
				wall = wall.Add(-time.Hour) // an hour that there may not be
			}
			var first, last, changed time.Time
			shown := func(at time.Time) time.Time {
				at = at.In(zone)
				year, month, date := at.Date()
				return time.Date(year, month, date, at.Hour(), at.Minute(), 0, 0, time.UTC)
			}
			for minute := -30 * 60; minute < 30*60; minute++ {
				at := wall.Add(time.Duration(minute) * time.Minute)
				switch now := shown(at); {
				case now.Equal(wall) && first.IsZero():
					first, last = at, at
				case now.Equal(wall):
					last = at
				case now.After(wall) && shown(at.Add(-time.Minute)).Before(wall):
					changed = at
				}
			}
			if first.IsZero() {
				first, last = changed, changed
				gaps++
			} else if !first.Equal(last) {
				twice++
			}
			gotFirst, gotLast := wallClock(wall, zone)
			require.True(t, first.Equal(gotFirst) && last.Equal(gotLast), "%s in %s: %s and %s, want %s and %s", wall, name, gotFirst.UTC(), gotLast.UTC(), first, last)
		}
	}
	require.Greater(t, gaps, 10)
	require.Greater(t, twice, 10)
}

// FuzzParseHours: what is accepted is kept as it is read, and has a time outside that is worked out from any moment on.
func FuzzParseHours(f *testing.F) {
	for _, text := range []string{
		"off", "Mon-Fri 08:00-20:00 Europe/Berlin", "Sat-Mon 22:00-06:00, Wed 00:00-24:00 Pacific/Apia", "Mon-Sun 00:00-23:59 UTC",
		"Mon-Sun 00:00-24:00 UTC", "Sun 20:00-00:00 UTC", "Mon 8:00-9:00 UTC", "Mon 08:00-09:00 Local", ", UTC", " ", "Mon\u00a008:00-09:00 UTC",
	} {
		f.Add(text, int64(1_774_742_400))
	}
	f.Fuzz(func(t *testing.T, text string, from int64) {
		kept, err := ParseHours("--hours", text)
		if err != nil {
			var invalid *InvalidError
			if !errors.As(err, &invalid) || invalid.Field != "--hours" {
				t.Fatalf("%q: %v names no field", text, err)
			}
			return
		}
		if kept == "" {
			if text != "off" && text != "0" {
				t.Fatalf("%q switches hours off", text)
			}
			return
		}
		if again, err := ParseHours("--hours", kept); err != nil || again != kept {
			t.Fatalf("%q is kept as %q, which is read as %q (%v)", text, kept, again, err)
		}
		at := time.Unix(from%4_000_000_000, 0)
		outside := OutsideOf(kept, at)
		if outside.Problem != "" || outside.Begins.Before(at) || !outside.Begins.Before(outside.Ends) || outside.Ends.Sub(at) > 16*24*time.Hour {
			t.Fatalf("%q from %s: %+v", kept, at, outside)
		}
		if next := OutsideOf(kept, outside.Ends); next.Problem != "" || !next.Begins.After(outside.Ends) {
			t.Fatalf("%q: %s is inside, and %+v comes next", kept, outside.Ends, next)
		}
	})
}
