package resync

import (
	"time"
)

// Schedule says when rounds begin.
type Schedule struct {
	Every   time.Duration // from the beginning of one to that of the next
	Jitter  time.Duration // at most so much later, so that many heads do not begin together
	Windows []Window      // when they may begin; none: at any time
}

// firstRetry is how long the first attempt after a failed round waits. Each
// further one waits twice as long, up to Schedule.Every.
const firstRetry = 30 * time.Second

// Next is when the round after the last one begins, the zero time when there
// was none; failures counts those that have failed since the last good one.
// share, from 0 to 1, says how much of the jitter is added. Rounds that were
// missed are caught up by one, at once.
func (s Schedule) Next(begun, ended time.Time, failures int, share float64, now time.Time) time.Time {
	at := now
	switch {
	case begun.IsZero():
	case failures > 0:
		wait := s.Every
		if n := failures - 1; n < 16 {
			wait = min(wait, firstRetry<<n)
		}
		at = ended.Add(wait)
	default:
		at = begun.Add(s.Every)
	}
	// A clock that was put back must not stop the rounds for as long.
	if latest := now.Add(s.Every); at.After(latest) {
		at = latest
	}
	if at.Before(now) {
		at = now
	}
	if !begun.IsZero() && failures == 0 {
		at = at.Add(time.Duration(share * float64(s.Jitter)))
	}
	return s.allowed(at)
}

// allowed is the first instant, not before t, at which a round may begin.
func (s Schedule) allowed(t time.Time) time.Time {
	var first time.Time
	for _, w := range s.Windows {
		if at := w.next(t); first.IsZero() || at.Before(first) {
			first = at
		}
	}
	if first.IsZero() {
		return t
	}
	return first
}
