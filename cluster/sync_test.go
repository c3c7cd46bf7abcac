package cluster

import (
	"strings"
	"testing"
	"time"
)

// Rounds are kept with what people need to know: the last, the last good one,
// how many have failed since; events only of what is news.
func TestSync(t *testing.T) {
	c := fresh(t)
	if v := c.Sync("head"); v.Image != "head" || v.Last != nil || len(c.Syncs()) > 0 {
		t.Fatalf("%+v", v)
	}
	begun := time.Date(2026, 11, 28, 3, 0, 0, 0, time.UTC)
	round := func(minute int, r Round) EndRound {
		r.Begun = begun.Add(time.Duration(minute) * time.Minute)
		r.Ended = r.Begun.Add(5 * time.Second)
		return EndRound{Image: "head", Round: r}
	}
	commit(t, c, round(0, Round{Version: "head@1", Sent: 7, Unstable: 1, Restless: "\"srv/log\"\n"}), round(15, Round{Version: "head@1", Unchanged: true}))
	if v := c.Sync("head"); v.Failures != 0 || !v.Last.Unchanged || v.Good.Begun != v.Last.Begun || v.Good.Version != "head@1" {
		t.Errorf("%+v %+v", v, v.Last)
	}
	if v := c.Sync("head"); v.Full != begun.Add(5*time.Second) {
		t.Errorf("read anew at %v", v.Full)
	}
	commit(t, c, round(20, Round{Version: "head@1", Unchanged: true, Full: true}))
	if v := c.Sync("head"); v.Full != begun.Add(20*time.Minute+5*time.Second) {
		t.Errorf("read anew at %v", v.Full)
	}
	commit(t, c, round(30, Round{Failed: "no route to host"}), round(31, Round{Failed: "no route to host"}), round(33, Round{Failed: "permission denied"}))
	if v := c.Sync("head"); v.Failures != 3 || v.Last.Failed != "permission denied" || v.Good.Begun != begun.Add(20*time.Minute) {
		t.Errorf("%+v", v)
	}
	commit(t, c, round(40, Round{Version: "head@2"}), PauseSync{Image: "head", Paused: true})
	v := c.Sync("head")
	if v.Failures != 0 || v.Good.Version != "head@2" || v.Paused.IsZero() {
		t.Errorf("%+v", v)
	}
	v.Good.Version = "altered by a reader"
	if c.Sync("head").Good.Version != "head@2" {
		t.Error("a reader can alter the state")
	}
	commit(t, c, PauseSync{Image: "head"})
	var said []string
	for _, e := range c.Events(0, Filter{}) {
		said = append(said, e.Kind+": "+e.Text)
	}
	want := strings.Join([]string{
		"sync: head@1 is what its source is now; \"srv/log\"  never held still, and may be a mixture of what it was",
		"sync-failed: head was not captured: no route to host",
		"sync-failed: head was not captured: permission denied",
		"sync: head is captured again, after 3 rounds that failed",
		"sync: head@2 is what its source is now",
		"sync: the sync of head is paused",
		"sync: the sync of head goes on",
	}, "\n")
	if got := strings.Join(said, "\n"); got != want {
		t.Errorf("events:\n%s\nwant:\n%s", got, want)
	}
}

// A node that somebody put on a version of its choice stays there.
func TestHold(t *testing.T) {
	c := updatable(t)
	held := order("U1")
	held.Hold = true
	commit(t, c, held)
	if !node(t, c, "n").Held {
		t.Error("it is not held")
	}
	commit(t, c, HoldNode{Node: "n"})
	if node(t, c, "n").Held {
		t.Error("it is held still")
	}
	commit(t, c, HoldNode{Node: "n", Held: true}, order("U2"))
	if node(t, c, "n").Held {
		t.Error("an order to follow holds it")
	}
}
