package resync

import (
	"fmt"
	"strings"
	"time"
)

// Window is a part of each week in which rounds may begin, in local time.
type Window struct {
	days     [7]bool // on which it opens, by time.Weekday
	from, to int     // minutes of the day; to is of the next day when it is not after from
}

// ParseWindow reads a window: days, times, or both, as in "Mon-Fri 20:00-06:00",
// "Sat,Sun" or "02:00-04:30". A window that goes past midnight belongs to the
// day that it opens on.
func ParseWindow(s string) (Window, error) {
	wrong := func(format string, args ...any) (Window, error) {
		return Window{}, fmt.Errorf("%q is no window: %s; write it as Mon-Fri 20:00-06:00, Sat,Sun or 02:00-04:30", s, fmt.Sprintf(format, args...))
	}
	fields := strings.Fields(s)
	if len(fields) == 0 || len(fields) > 2 {
		return wrong("it has %d parts", len(fields))
	}
	w := Window{days: [7]bool{true, true, true, true, true, true, true}}
	times := fields[len(fields)-1]
	if !strings.Contains(times, ":") {
		times = ""
		if len(fields) > 1 {
			return wrong("%q has no times", fields[1])
		}
	}
	if times == "" || len(fields) == 2 {
		var err error
		if w.days, err = parseDays(fields[0]); err != nil {
			return wrong("%s", err)
		}
	}
	if times == "" {
		return w, nil
	}
	from, to, ok := strings.Cut(times, "-")
	if !ok {
		return wrong("%q does not say until when", times)
	}
	var err error
	if w.from, err = parseMinute(from); err != nil {
		return wrong("%s", err)
	}
	if w.to, err = parseMinute(to); err != nil {
		return wrong("%s", err)
	}
	return w, nil
}

func parseDays(s string) (days [7]bool, err error) {
	for part := range strings.SplitSeq(s, ",") {
		first, last, span := strings.Cut(part, "-")
		a, err := parseDay(first)
		if err != nil {
			return days, err
		}
		b := a
		if span {
			if b, err = parseDay(last); err != nil {
				return days, err
			}
		}
		for d := a; ; d = (d + 1) % 7 {
			days[d] = true
			if d == b {
				break
			}
		}
	}
	return days, nil
}

func parseDay(s string) (time.Weekday, error) {
	for d := time.Sunday; d <= time.Saturday; d++ {
		if strings.EqualFold(s, d.String()[:3]) || strings.EqualFold(s, d.String()) {
			return d, nil
		}
	}
	return 0, fmt.Errorf("%q is no day", s)
}

func parseMinute(s string) (int, error) {
	t, err := time.Parse("15:04", s)
	if err != nil {
		return 0, fmt.Errorf("%q is no time of day", s)
	}
	return t.Hour()*60 + t.Minute(), nil
}

// opened is when the window opens and closes that opens on the day of t, if
// any does.
func (w Window) opened(t time.Time) (from, to time.Time, ok bool) {
	y, m, d := t.Date()
	next := 0
	if w.to <= w.from {
		next = 1
	}
	from = time.Date(y, m, d, 0, w.from, 0, 0, t.Location())
	to = time.Date(y, m, d+next, 0, w.to, 0, 0, t.Location())
	return from, to, w.days[t.Weekday()]
}

// next is the first instant, not before t, that is in the window.
func (w Window) next(t time.Time) time.Time {
	y, m, d := t.Date()
	for day := -1; day <= 7; day++ {
		from, to, ok := w.opened(time.Date(y, m, d+day, 12, 0, 0, 0, t.Location()))
		switch {
		case !ok || !t.Before(to):
		case t.Before(from):
			return from
		default:
			return t
		}
	}
	return t // a window opens every week
}
