package resync

import (
	"context"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

var berlin = func() *time.Location {
	l, err := time.LoadLocation("Europe/Berlin")
	if err != nil {
		panic(err)
	}
	return l
}()

func at(t *testing.T, s string) time.Time {
	t.Helper()
	v, err := time.ParseInLocation("Mon 2006-01-02 15:04", s, berlin)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func window(t *testing.T, s string) Window {
	t.Helper()
	w, err := ParseWindow(s)
	if err != nil {
		t.Fatal(err)
	}
	return w
}

func TestWindows(t *testing.T) {
	for _, c := range []struct{ window, at, next string }{
		{"02:00-04:00", "Wed 2026-03-11 01:00", "Wed 2026-03-11 02:00"},
		{"02:00-04:00", "Wed 2026-03-11 02:00", "Wed 2026-03-11 02:00"},
		{"02:00-04:00", "Wed 2026-03-11 03:59", "Wed 2026-03-11 03:59"},
		{"02:00-04:00", "Wed 2026-03-11 04:00", "Thu 2026-03-12 02:00"},
		{"20:00-06:00", "Wed 2026-03-11 03:00", "Wed 2026-03-11 03:00"},
		{"20:00-06:00", "Wed 2026-03-11 06:00", "Wed 2026-03-11 20:00"},
		{"Mon-Fri 20:00-06:00", "Sat 2026-03-14 03:00", "Sat 2026-03-14 03:00"}, // opened on Friday
		{"Mon-Fri 20:00-06:00", "Sat 2026-03-14 07:00", "Mon 2026-03-16 20:00"},
		{"Mon-Fri 20:00-06:00", "Mon 2026-03-16 03:00", "Mon 2026-03-16 20:00"}, // Sunday's did not open
		{"Fri-Mon", "Tue 2026-03-10 00:00", "Fri 2026-03-13 00:00"},
		{"Fri-Mon", "Mon 2026-03-09 23:59", "Mon 2026-03-09 23:59"},
		{"Sat,Sun", "Sun 2026-03-08 12:00", "Sun 2026-03-08 12:00"},
		{"saturday 10:00-10:00", "Sun 2026-03-08 09:00", "Sun 2026-03-08 09:00"}, // a whole day
		{"saturday 10:00-10:00", "Sun 2026-03-08 10:00", "Sat 2026-03-14 10:00"},
		// The clock goes from 02:00 to 03:00: what opens in the hour that is
		// not there opens when it would have been.
		{"02:30-04:00", "Sun 2026-03-29 01:00", "Sun 2026-03-29 03:30"},
		{"20:00-06:00", "Sun 2026-03-29 05:59", "Sun 2026-03-29 05:59"},
		{"20:00-06:00", "Sun 2026-10-25 05:59", "Sun 2026-10-25 05:59"},
		{"20:00-06:00", "Sun 2026-10-25 06:00", "Sun 2026-10-25 20:00"},
	} {
		if got := window(t, c.window).next(at(t, c.at)); !got.Equal(at(t, c.next)) {
			t.Errorf("%s from %s: %s, want %s", c.window, c.at, got.Format("Mon 2006-01-02 15:04"), c.next)
		}
	}
	for _, bad := range []string{"", "20:00", "25:00-26:00", "Mon-Fry 20:00-21:00", "20:00-21:00 Mon", "Mon 20:00-21:00 x", "Mon Tue", "20:00-", "-"} {
		if w, err := ParseWindow(bad); err == nil || !strings.Contains(err.Error(), "write it as") {
			t.Errorf("%q is %+v, %v", bad, w, err)
		}
	}
}

func FuzzParseWindow(f *testing.F) {
	for _, s := range []string{"Mon-Fri 20:00-06:00", "Sat,Sun", "02:00-04:30", "Sun-Sat", "00:00-00:00", "mon,tue-wed 1:00-2:00"} {
		f.Add(s, int64(1_774_000_000))
	}
	f.Fuzz(func(t *testing.T, s string, sec int64) {
		w, err := ParseWindow(s)
		if err != nil {
			return
		}
		now := time.Unix(sec%4_000_000_000, 0).In(berlin)
		next := w.next(now)
		if next.Before(now) || next.After(now.AddDate(0, 0, 9)) {
			t.Errorf("%q: the next after %s is %s", s, now, next)
		}
		if again := w.next(next); !again.Equal(next) {
			t.Errorf("%q: %s is not in the window itself, but %s", s, next, again)
		}
	})
}

func TestNext(t *testing.T) {
	now := at(t, "Wed 2026-03-11 12:00")
	s := Schedule{Every: 15 * time.Minute, Jitter: time.Minute}
	for _, c := range []struct {
		name         string
		begun, ended time.Duration // from now
		failures     int
		want         time.Duration
	}{
		{"on time", -5 * time.Minute, -4 * time.Minute, 0, 10*time.Minute + 30*time.Second},
		{"missed for days", -72 * time.Hour, -72 * time.Hour, 0, 30 * time.Second},
		{"failed once", -time.Minute, -10 * time.Second, 1, 20 * time.Second},
		{"failed twice", -time.Minute, 0, 2, time.Minute},
		{"failed often", -time.Minute, 0, 40, 15 * time.Minute},
		{"failed long ago", -time.Hour, -time.Hour, 3, 0},
		{"the clock was put back by a year", 8760 * time.Hour, 8760 * time.Hour, 0, 15*time.Minute + 30*time.Second},
		{"likewise, failed", 8760 * time.Hour, 8760 * time.Hour, 2, 15 * time.Minute},
	} {
		got := s.Next(now.Add(c.begun), now.Add(c.ended), c.failures, 0.5, now).Sub(now)
		if got != c.want {
			t.Errorf("%s: in %v, want %v", c.name, got, c.want)
		}
	}
	if got := s.Next(time.Time{}, time.Time{}, 0, 1, now); !got.Equal(now) {
		t.Errorf("the first round: %v", got)
	}
	s.Windows = []Window{window(t, "20:00-06:00"), window(t, "13:00-13:30")}
	if got := s.Next(now.Add(-time.Hour), now.Add(-time.Hour), 0, 0, now); !got.Equal(at(t, "Wed 2026-03-11 13:00")) {
		t.Errorf("outside its windows: %v", got)
	}
}

func TestRoll(t *testing.T) {
	const v = "head@5"
	for _, c := range []struct {
		name    string
		nodes   []Follower
		atOnce  int
		order   string
		behind  string
		stopped string
	}{
		{"all run it", []Follower{{Node: "a", Runs: v, Up: true}, {Node: "b", Runs: v}}, 1, "", "", ""},
		{"one at a time", []Follower{{Node: "a", Runs: "head@4", Up: true}, {Node: "b", Runs: "head@4", Up: true}}, 1, "a", "a b", ""},
		{"one is busy", []Follower{{Node: "a", Runs: "head@4", Up: true, Pending: v}, {Node: "b", Runs: "head@4", Up: true}}, 1, "", "a b", ""},
		{"two at once", []Follower{{Node: "a", Runs: "head@4", Up: true, Pending: v}, {Node: "b", Runs: "head@4", Up: true}, {Node: "c", Up: true}}, 2, "b", "a b c", ""},
		{"as many as there are", []Follower{{Node: "a", Up: true}, {Node: "b", Up: true}}, 0, "a b", "a b", ""},
		{"down", []Follower{{Node: "a", Runs: "head@4"}, {Node: "b", Runs: "head@4", Up: true}}, 1, "b", "a b", ""},
		{"down in the middle of it", []Follower{{Node: "a", Runs: "head@4", Pending: v}, {Node: "b", Runs: "head@4", Up: true}}, 1, "b", "a b", ""},
		{"held", []Follower{{Node: "a", Runs: "head@2", Up: true, Held: true}}, 1, "", "", ""},
		{"held and failed", []Follower{{Node: "a", Failed: v, Up: true, Held: true}, {Node: "b", Up: true}}, 1, "b", "b", ""},
		{"one has failed", []Follower{{Node: "a", Runs: "head@4", Up: true, Failed: v}, {Node: "b", Runs: "head@4", Up: true}}, 1, "", "a b", "a"},
		{"one has failed, and is tried again", []Follower{{Node: "a", Runs: "head@4", Up: true, Failed: v, Retry: true}, {Node: "b", Runs: "head@4", Up: true}}, 1, "a", "a b", "a"},
		{"one that failed is down", []Follower{{Node: "a", Runs: "head@4", Failed: v, Retry: true}, {Node: "b", Runs: "head@4", Up: true}}, 1, "", "a b", "a"},
		{"failed before", []Follower{{Node: "a", Runs: "head@3", Up: true, Failed: "head@4"}}, 1, "a", "a", ""},
		{"still to begin with the one before", []Follower{{Node: "a", Runs: "head@3", Up: true, Pending: "head@4"}}, 1, "a", "a", ""},
		{"still on its way to the one before", []Follower{{Node: "a", Runs: "head@3", Up: true, Pending: "head@4", Begun: true}, {Node: "b", Runs: "head@3", Up: true}}, 1, "", "a b", ""},
	} {
		r := Roll(v, c.nodes, c.atOnce)
		if strings.Join(r.Order, " ") != c.order || strings.Join(r.Behind, " ") != c.behind || r.Stopped != c.stopped {
			t.Errorf("%s: %+v", c.name, r)
		}
	}
}

// rounds is a loop whose rounds take a while, with what it did. It runs in a
// bubble of testing/synctest, where time is not real: to sleep is to move the
// clock on once all goroutines wait, so nothing is raced and nothing takes long.
type rounds struct {
	last  Last
	fail  bool
	takes time.Duration
	log   []string
	start time.Time
}

func (r *rounds) round(ctx context.Context, wanted bool) {
	text := time.Since(r.start).String()
	if wanted {
		text += " wanted"
	}
	r.log = append(r.log, text)
	r.last.Begun = time.Now()
	time.Sleep(r.takes)
	r.last.Ended = time.Now()
	if r.last.Failures++; !r.fail {
		r.last.Failures = 0
	}
}

func TestLoop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &rounds{takes: 2 * time.Second, start: time.Now()}
		l := NewLoop(Schedule{Every: 10 * time.Minute}, r.round, func() Last { return r.last })
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { l.Run(ctx); close(done) }()
		time.Sleep(25*time.Minute + time.Second)
		synctest.Wait()
		l.Want() // as soon as possible
		time.Sleep(time.Second)
		l.Want() // while one is under way: once more, but not twice
		l.Want()
		time.Sleep(time.Minute)
		synctest.Wait()
		r.last.Paused = true
		l.Changed()
		time.Sleep(time.Hour)
		l.Want() // though it is paused
		time.Sleep(time.Minute)
		synctest.Wait()
		r.last.Paused, r.fail = false, true
		l.Changed()
		time.Sleep(9*time.Minute + 30*time.Second)
		cancel()
		<-done
		want := []string{
			"0s", "10m0s", "20m0s", "25m1s wanted", "25m3s wanted", "1h26m2s wanted",
			"1h36m2s",
		}
		if !slices.Equal(r.log, want) {
			t.Errorf("rounds at %q, want %q", r.log, want)
		}
	})
}

// A round that fails is tried again, later each time; rounds outlast a clock
// that nobody set.
func TestLoopRetries(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &rounds{fail: true, start: time.Now()}
		l := NewLoop(Schedule{Every: 10 * time.Minute, Jitter: time.Minute}, r.round, func() Last { return r.last })
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { l.Run(ctx); close(done) }()
		time.Sleep(30 * time.Minute)
		cancel()
		<-done
		want := []string{"0s", "30s", "1m30s", "3m30s", "7m30s", "15m30s", "25m30s"}
		if !slices.Equal(r.log, want) {
			t.Errorf("rounds at %q, want %q", r.log, want)
		}
	})
}
