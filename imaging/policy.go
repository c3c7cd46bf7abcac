package imaging

import (
	"fmt"
	"time"
)

// Policy says which versions of an image are kept: those that any of its rules
// keeps. Last keeps so many of the latest. Each of the others keeps the latest
// version of so many hours, days, ISO weeks or months that have versions, by
// the clock and in the time zone of whoever asks.
type Policy struct {
	Last, Hourly, Daily, Weekly, Monthly int
}

// IsZero tells whether the policy has no rule: then it says nothing.
func (p Policy) IsZero() bool { return p == Policy{} }

// Kept is a version that stays, and why.
type Kept struct {
	Version
	Why []string `json:"why"`
}

// Apply sorts the versions of one image, given by number, into those that stay
// and those that may go. The latest stays always, and so does one with a tag.
func (p Policy) Apply(versions []Version) (keep []Kept, remove []Version) {
	rules := []struct {
		left int
		why  string
		of   func(Version) string // versions for which it is equal are of one period
		seen map[string]bool
	}{
		{p.Last, "last", func(v Version) string { return fmt.Sprint(v.Number) }, map[string]bool{}},
		{p.Hourly, "hourly", func(v Version) string { return v.Time.Local().Format("2006-01-02T15 -0700") }, map[string]bool{}},
		{p.Daily, "daily", func(v Version) string { return v.Time.Local().Format(time.DateOnly) }, map[string]bool{}},
		{p.Weekly, "weekly", func(v Version) string { y, w := v.Time.Local().ISOWeek(); return fmt.Sprint(y, w) }, map[string]bool{}},
		{p.Monthly, "monthly", func(v Version) string { return v.Time.Local().Format("2006-01") }, map[string]bool{}},
	}
	// By number and not by time: a clock may have been wrong.
	for i := len(versions) - 1; i >= 0; i-- {
		v := versions[i]
		var why []string
		if i == len(versions)-1 {
			why = append(why, latest)
		}
		if len(v.Tags) > 0 {
			why = append(why, "tag "+v.Tags[0])
		}
		for j := range rules {
			r := &rules[j]
			if period := r.of(v); r.left > 0 && !r.seen[period] {
				r.seen[period] = true
				r.left--
				why = append(why, r.why)
			}
		}
		if len(why) > 0 {
			keep = append(keep, Kept{v, why})
		} else {
			remove = append(remove, v)
		}
	}
	return keep, remove
}
