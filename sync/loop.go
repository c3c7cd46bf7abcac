package resync

import (
	"context"
	"math/rand/v2"
	"time"
)

// Last is what a Loop must know of the rounds before.
type Last struct {
	Begun, Ended time.Time // of the last round; zero: there was none
	Failures     int       // since the last good one
	Paused       bool
}

// Loop runs rounds by a schedule, and on demand, never two at once.
type Loop struct {
	Schedule Schedule
	// Round carries out one round and keeps what came of it, so that Last
	// tells of it afterwards. Wanted tells that somebody asked for it.
	Round func(ctx context.Context, wanted bool)
	// Last tells of the rounds up to now. It is asked again before each wait.
	Last func() Last

	wanted  chan struct{}
	changed chan struct{}
}

// NewLoop makes a loop that Run starts.
func NewLoop(s Schedule, round func(context.Context, bool), last func() Last) *Loop {
	return &Loop{Schedule: s, Round: round, Last: last, wanted: make(chan struct{}, 1), changed: make(chan struct{}, 1)}
}

// Want asks for a round as soon as none is under way, whatever the schedule
// says, and though the loop is paused. One that has not begun yet will do.
func (l *Loop) Want() { poke(l.wanted) }

// Changed says that Last may tell something else now.
func (l *Loop) Changed() { poke(l.changed) }

func poke(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}

// Run runs rounds until ctx ends. A round under way then is given a ctx that
// has ended, and Run waits for it.
func (l *Loop) Run(ctx context.Context) {
	share := rand.Float64()
	for ctx.Err() == nil {
		last := l.Last()
		var due <-chan time.Time
		var timer *time.Timer
		if !last.Paused {
			now := time.Now()
			at := l.Schedule.Next(last.Begun, last.Ended, last.Failures, share, now)
			// Wall clocks jump; a look now and then finds that out.
			timer = time.NewTimer(min(at.Sub(now), time.Minute))
			due = timer.C
		}
		begin, wanted := false, false
		select {
		case <-ctx.Done():
		case <-l.changed:
		case <-l.wanted:
			begin, wanted = true, true
		case <-due:
			now := time.Now()
			begin = !l.Schedule.Next(last.Begun, last.Ended, last.Failures, share, now).After(now)
		}
		if timer != nil {
			timer.Stop()
		}
		if begin && ctx.Err() == nil {
			l.Round(ctx, wanted)
			share = rand.Float64()
		}
	}
}
