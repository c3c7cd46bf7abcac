package main

import (
	"bufio"
	"context"
	"errors"
	"strings"
	"testing"

	"doppel/clone"
)

// A machine that is somebody's is left alone; the same node may be enlisted
// again.
func TestMayBeEnlisted(t *testing.T) {
	ours, theirs := []byte("ours\n"), []byte("theirs\n")
	enlisted := &clone.NodeConfig{Server: "https://10.77.0.1:8443", Node: "head1", Enlisted: true}
	installed := &clone.NodeConfig{Server: "https://10.77.0.1:8443", Node: "head1"}
	for _, c := range []struct {
		name  string
		found clone.Found
		flags enlistFlags
		want  string // the refusal, and its remedy
		node  string
	}{
		{"nobody's", clone.Found{Hostname: "head1.cluster"}, enlistFlags{}, "", "head1"},
		{"nobody's, by a name", clone.Found{Hostname: "head1"}, enlistFlags{captureFlags: captureFlags{name: "primary"}}, "", "primary"},
		{"another agent", clone.Found{Hostname: "head1", Agent: "abc"}, enlistFlags{}, "lies another version of doppel's agent; install the same version", ""},
		{"another agent, to be undone", clone.Found{Hostname: "head1", Agent: "abc"}, enlistFlags{undo: true}, "", "head1"},
		{"again", clone.Found{Hostname: "x", Node: enlisted, CA: ours}, enlistFlags{}, "", "head1"},
		{"again, by the same name, with a newer agent", clone.Found{Agent: "abc", Node: enlisted, CA: ours}, enlistFlags{captureFlags: captureFlags{name: "head1"}}, "", "head1"},
		{"again, by another name", clone.Found{Node: enlisted, CA: ours}, enlistFlags{captureFlags: captureFlags{name: "head2"}}, "is the node head1 already; leave --name out", ""},
		{"installed", clone.Found{Node: installed, CA: ours}, enlistFlags{}, "which doppel installed; it has an agent", ""},
		{"installed, to be undone", clone.Found{Node: installed, CA: ours}, enlistFlags{undo: true}, "which doppel installed", ""},
		{"another doppel's", clone.Found{Node: enlisted, CA: theirs}, enlistFlags{}, "is the node head1 of another doppel, at https://10.77.0.1:8443; take it back there", ""},
		{"another doppel's, to be undone", clone.Found{Node: enlisted, CA: theirs}, enlistFlags{undo: true}, "of another doppel", ""},
	} {
		e := &enlisting{host: "root@host", found: c.found}
		err := e.mayBe(ours, &c.flags)
		if c.want == "" {
			if err != nil || c.flags.name != c.node {
				t.Errorf("%s: %q, %v", c.name, c.flags.name, err)
			}
			continue
		}
		what, remedy, _ := strings.Cut(c.want, "; ")
		if err == nil || !strings.Contains(err.Error(), what) || !strings.Contains(hint(err), remedy) {
			t.Errorf("%s: %v (%s)", c.name, err, hint(err))
		}
	}
}

// What a machine says is bounded.
func TestEnlistingHears(t *testing.T) {
	hear := func(said string) ([]byte, error) {
		e := &enlisting{in: bufio.NewReader(strings.NewReader(said))}
		return e.hear()
	}
	long := strings.Repeat("x", 100_000)
	if line, err := hear(long + "\nmore"); err != nil || string(line) != long+"\n" {
		t.Errorf("%d bytes, %v", len(line), err)
	}
	if _, err := hear(strings.Repeat("x", maxFound+8192)); err == nil || !strings.Contains(err.Error(), "more than it could have to") {
		t.Errorf("%v", err)
	}
	if _, err := hear("cut off"); err == nil {
		t.Error("a line that was cut off is one")
	}
}

// A turn ends the round under way, whose source is not the active head any more.
func TestTurnEndsTheRound(t *testing.T) {
	o := &oneSync{}
	s := &syncer{}
	s.forgetRounds(o) // none is
	ctx := o.turnable(t.Context())
	s.forgetRounds(o)
	if !errors.Is(context.Cause(ctx), errTurned) {
		t.Errorf("%v", context.Cause(ctx))
	}
}
