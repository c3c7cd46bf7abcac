package dhcpd

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
)

// A client whose address is being asked about holds up nobody else.
func TestNobodyWaitsForAnother(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &stage{t: t, book: newBook(), leases: newMemory(), log: &logBook{}, tape: newTape(), config: lanConfig(77)}
		s.book.set(MAC{}, Policy{Pool: true})
		s.book.set(mac(t, blank), Policy{Addr: netip.MustParseAddr("10.77.0.11")})
		s.start()
		start := time.Now()
		s.tape.in <- arrived{message4(t, mac(t, other), dhcpv4.MessageTypeDiscover), true}
		s.tape.in <- arrived{message4(t, mac(t, blank), dhcpv4.MessageTypeDiscover), true}
		synctest.Wait()
		if out, _ := s.tape.take(); len(out) != 1 || out[0].to.MAC != mac(t, blank) {
			t.Errorf("answered at once: %v", out)
		}
		time.Sleep(s.config.ProbeTime + time.Second)
		if out, _ := s.tape.take(); len(out) != 1 || out[0].to.MAC != mac(t, other) {
			t.Errorf("answered after %v: %v", time.Since(start), out)
		}
		s.stop()
	})
}

// A server that is stopped finishes what it has begun.
func TestStopFinishes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		leases := batched{newMemory(), time.Second}
		book := newBook()
		book.set(MAC{}, Policy{Addr: netip.MustParseAddr("10.77.0.11")})
		tape := newTape()
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() {
			ended <- (&Server{Config: lanConfig(77), Handler: book, Leases: leases}).Serve(ctx, tape)
		}()
		tape.in <- arrived{message4(t, mac(t, blank), dhcpv4.MessageTypeRequest,
			dhcpv4.WithOption(dhcpv4.OptRequestedIPAddress([]byte{10, 77, 0, 11}))), true}
		synctest.Wait()
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Serve: %v", err)
		}
		if out, _ := tape.take(); len(out) != 1 || len(leases.leases) != 1 || !tape.closed {
			t.Errorf("%d answers, leases %v, closed %v", len(out), leases.leases, tape.closed)
		}
	})
}

// noLeases cannot be read.
type noLeases struct{ *memory }

func (noLeases) All(context.Context) ([]Lease, error) { return nil, errBroken }

func TestServeRefuses(t *testing.T) {
	tape := newTape()
	if err := (&Server{Handler: newBook(), Leases: newMemory()}).Serve(t.Context(), tape); err == nil || !strings.Contains(err.Error(), "eth1") {
		t.Errorf("without a configuration: %v", err)
	}
	if !tape.closed {
		t.Error("the connection is left open")
	}
	if err := (&Server{Config: lanConfig(77), Handler: newBook(), Leases: noLeases{newMemory()}}).Serve(t.Context(), newTape()); !errors.Is(err, errBroken) {
		t.Errorf("without leases: %v", err)
	}
}

func TestLines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLines()
		var order []int
		hold := make(chan struct{})
		a, b := MAC{2, 1}, MAC{2, 2}
		if !l.add(a, func() { <-hold }) {
			t.Fatal("an empty line has no room")
		}
		for i := range maxWaiting {
			if !l.add(a, func() { order = append(order, i) }) {
				t.Errorf("no room for packet %d", i)
			}
		}
		if l.add(a, func() { t.Error("served, though there was no room") }) {
			t.Error("a client may queue without end")
		}
		served := false
		l.add(b, func() { served = true })
		synctest.Wait()
		if !served || len(order) != 0 {
			t.Errorf("another client was served: %v, this one: %v", served, order)
		}
		close(hold)
		l.wait()
		if !slices.Equal(order, []int{0, 1, 2, 3}) || len(l.waiting) != 0 {
			t.Errorf("served in the order %v; left %v", order, l.waiting)
		}
	})
}

func TestCommitter(t *testing.T) {
	m := newMemory()
	c := newCommitter(m)
	one, two := netip.MustParseAddr("10.77.0.1"), netip.MustParseAddr("10.77.0.2")
	first := c.queue([]Change{{Lease: Lease{Addr: one}}, {Lease: Lease{Addr: two}}})
	second := c.queue([]Change{{Lease: Lease{Addr: one}, Gone: true}})
	if err := errors.Join(<-first, <-second, <-c.queue(nil)); err != nil {
		t.Error(err)
	}
	m.mu.Lock()
	m.broken = true
	m.mu.Unlock()
	if err := <-c.queue([]Change{{Lease: Lease{Addr: one}}}); !errors.Is(err, errBroken) {
		t.Errorf("a full disk: %v", err)
	}
	last := c.queue([]Change{{Lease: Lease{Addr: two}, Gone: true}})
	c.close() // waits for what is queued
	if err := <-last; !errors.Is(err, errBroken) {
		t.Errorf("a full disk: %v", err)
	}
	if all, _ := m.All(t.Context()); len(all) != 1 || all[0].Addr != two {
		t.Errorf("%v", all)
	}
}

// A thousand lines of one kind are not written; how many were left out is.
func TestLimitedLog(t *testing.T) {
	l := newLimited(nil)
	key := limitedKey{text: "x"}
	now := time.Unix(1e9, 0)
	written := 0
	for range 1000 {
		if _, ok := l.pass(limitedKey{level: -4, text: "x"}, now); ok {
			written++
		}
	}
	if written != logBurst {
		t.Errorf("%d lines", written)
	}
	if _, ok := l.pass(key, now); !ok {
		t.Error("a line of another level was left out")
	}
	left, ok := l.pass(limitedKey{level: -4, text: "x"}, now.Add(logEvery))
	if !ok || left != 1000-logBurst {
		t.Errorf("%d left out, %v", left, ok)
	}
}
