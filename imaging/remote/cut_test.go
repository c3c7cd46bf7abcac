package remote

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A connection that is cut in the middle says so, leaves nothing, and the next
// capture sends only what is still missing.
func TestCutInTheMiddle(t *testing.T) {
	signer, key := newKey(t)
	h := startHead(t, headSpec{}, signer.PublicKey())
	h.fill(60, 1<<20)
	o := options(t, h, key)
	conn := dialHead(t, h.target("root"), o)
	src, err := Agent(t.Context(), conn, AgentOptions{Path: agentBinary})
	if err != nil {
		t.Fatal(err)
	}
	agents := h.agents()
	if len(agents) != 1 {
		t.Fatalf("agents: %v", agents)
	}
	sink := newTreeSink()
	blocks := 0
	sink.onBlock = func() {
		if blocks++; blocks == 5 {
			for _, pid := range h.sessions() {
				unix.Kill(pid, unix.SIGKILL)
			}
		}
	}
	err = src.Scan(t.Context(), mnt(), sink)
	var lost *LostError
	if !errors.As(err, &lost) || !strings.Contains(err.Error(), "while capturing") || !strings.Contains(lost.Hint(), "again") {
		t.Fatalf("%T %v", err, err)
	}
	if err := src.Close(); err != nil {
		t.Errorf("Close: %v", err)
	}
	h.waitGone(agents[0])
	h.mustBeClean()

	first := sink.sent
	sink.sent, sink.onBlock = 0, nil
	if err := scan(t, dialHead(t, h.target("root"), o), AgentOptions{}, sink); err != nil {
		t.Fatal(err)
	}
	if first < 16<<20 || sink.sent < 10<<20 || sink.sent > 60<<20-first+8<<20 {
		t.Errorf("the first run brought %d bytes, the second %d", first, sink.sent)
	}
	if len(sink.entries) != 64 {
		t.Errorf("%d entries", len(sink.entries))
	}
	h.mustBeClean()
}

func TestAgentIsKilled(t *testing.T) {
	signer, key := newKey(t)
	h := startHead(t, headSpec{}, signer.PublicKey())
	h.fill(60, 1<<20)
	conn := dialHead(t, h.target("root"), options(t, h, key))
	src, err := Agent(t.Context(), conn, AgentOptions{Path: agentBinary})
	if err != nil {
		t.Fatal(err)
	}
	sink := newTreeSink()
	sink.onBlock = func() {
		for _, pid := range h.agents() {
			unix.Kill(pid, unix.SIGKILL)
		}
	}
	if err := src.Scan(t.Context(), mnt(), sink); err == nil || !strings.Contains(err.Error(), "SIGKILL") {
		t.Error(err)
	}
	if err := src.Close(); err != nil {
		t.Errorf("Close: %v", err)
	}
	h.mustBeClean()
	// The connection is as good as before.
	if _, err := conn.Run(t.Context(), "true"); err != nil {
		t.Error(err)
	}
}

func TestCancelInTheMiddle(t *testing.T) {
	signer, key := newKey(t)
	h := startHead(t, headSpec{}, signer.PublicKey())
	h.fill(60, 1<<20)
	conn := dialHead(t, h.target("root"), options(t, h, key))
	src, err := Agent(t.Context(), conn, AgentOptions{Path: agentBinary})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("the user pressed ^C")
	var at time.Time
	sink := newTreeSink()
	sink.onBlock = func() {
		at = time.Now()
		cancel(why)
	}
	if err := src.Scan(ctx, mnt(), sink); !errors.Is(err, why) {
		t.Error(err)
	}
	if took := time.Since(at); took > grace {
		t.Errorf("it took %v to stop", took)
	}
	if err := src.Close(); err != nil {
		t.Errorf("Close: %v", err)
	}
	h.mustBeClean()
	if _, err := conn.Run(t.Context(), "true"); err != nil {
		t.Error(err)
	}
}

// A capture that is broken off before the agent runs cleans up as well,
// wherever it was.
func TestCancelDuringDelivery(t *testing.T) {
	signer, key := newKey(t)
	h := startHead(t, headSpec{}, signer.PublicKey())
	// Root's first session is all there is; alice's are the survey, sudo's
	// trial, and the delivery.
	for n, stage := range []string{"alice's survey", "sudo", "alice's delivery", "root's delivery"} {
		user := "alice"
		if n == 3 {
			user, n = "root", 0
		}
		conn := dialHead(t, h.target(user), options(t, h, key))
		ctx, cancel := context.WithCancel(t.Context())
		h.forgetLog()
		var waiting sync.WaitGroup
		waiting.Go(func() {
			defer cancel()
			h.waitLogs("Starting session:", n+1)
		})
		src, err := Agent(ctx, conn, AgentOptions{Path: agentBinary, Sudo: true})
		if err == nil {
			waiting.Wait()
			err = src.Scan(ctx, mnt(), newTreeSink())
			src.Close()
		}
		waiting.Wait()
		if !errors.Is(err, context.Canceled) {
			t.Errorf("%s: %v", stage, err)
		}
		conn.Close()
		h.mustBeClean()
	}
}
