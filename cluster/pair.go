package cluster

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"
)

// UpFor is how long a node counts as up that was last heard from; agents say
// every five minutes that their node is up.
const UpFor = 11 * time.Minute

// UpAt tells whether the node was heard from lately.
func (n Node) UpAt(now time.Time) bool { return !n.LastUp.IsZero() && now.Sub(n.LastUp) < UpFor }

// Pair is two heads that are kept equal by one image: one of them, the active
// one, is captured, and the other follows. Which of them is which has a
// generation, so that who was told of a later turn can tell that an earlier one
// is over.
type Pair struct {
	Heads      [2]string `json:"heads"`      // names of nodes
	Active     string    `json:"active"`     // the one that is captured
	Generation uint64    `json:"generation"` // from 1; only grows
	Turned     time.Time `json:"turned"`     // when this generation began
	// Common is the version, NAME@VERSION, that both had in common when they
	// last parted, and Digest its identity; empty: they never have.
	Common string `json:"common,omitempty"`
	Digest string `json:"digest,omitempty"`
	// Was is the head that was the active one when the pair was ended: should it
	// be made again, that one still is.
	Was string `json:"was,omitempty"`
}

// Has tells whether a node is one of the two.
func (p *Pair) Has(node string) bool { return p != nil && slices.Contains(p.Heads[:], node) }

// Other is the one of the two that is not the node.
func (p *Pair) Other(node string) string {
	if p.Heads[0] == node {
		return p.Heads[1]
	}
	return p.Heads[0]
}

// Generation is that of the pair; 0: there is none.
func (v Sync) Generation() uint64 {
	if v.Pair == nil {
		return 0
	}
	return v.Pair.Generation
}

// Current tells whether the last good round, if any, was of the head that is
// the active one now; of an image without a pair, it was.
func (v Sync) Current() bool {
	return v.Pair == nil || v.Good != nil && v.Good.Generation == v.Pair.Generation
}

// Parted is what a head that was the active one has of its own, since it and
// the one that took over from it parted; or a machine that was enlisted, since
// it was captured.
type Parted struct {
	Image      string    `json:"image"`          // its name
	Base       string    `json:"base"`           // NAME@VERSION that both had in common
	Digest     string    `json:"digest"`         // its identity
	From       string    `json:"from,omitempty"` // the head that took over; empty: none has, it was enlisted
	Generation uint64    `json:"generation"`
	Since      time.Time `json:"since"`
	// Compared is when it became known what was changed here, by the first
	// update that succeeded since; zero: nobody knows yet.
	Compared time.Time `json:"compared,omitzero"`
	Own      int       `json:"own,omitempty"`  // paths that were changed here and are kept until somebody decides
	Both     int       `json:"both,omitempty"` // of them, that were changed on the other head as well
}

// Open tells whether something is undecided, or may be.
func (p *Parted) Open() bool { return p != nil && (p.Compared.IsZero() || p.Own > 0) }

// Kept says how many paths an update left as they are on a head that parted
// from its other.
type Kept struct {
	Own  int `json:"own"`
	Both int `json:"both"`
}

// PairSync makes two heads the pair of an image. The first is the active one,
// unless one of them is, or was when the pair was ended. Without names it ends the
// pair; its generation and direction are not forgotten.
type PairSync struct {
	Image string    `json:"image"`
	Heads [2]string `json:"heads"`
}

// TurnSync makes the other head of a pair the active one, with the next
// generation. From then on it is captured, and the one that was follows. With
// Force the active head itself may be named, which only begins a generation.
type TurnSync struct {
	Image string `json:"image"`
	To    string `json:"to"`
	// Known is the highest generation that the heads were told of; 0: the
	// state's own. The new one is above both.
	Known  uint64 `json:"known,omitempty"`
	Common string `json:"common"` // NAME@VERSION that To runs
	Digest string `json:"digest"` // its identity
	Force  bool   `json:"force,omitempty"`
}

func (PairSync) Kind() string { return "pair-sync" }
func (TurnSync) Kind() string { return "turn-sync" }

func (c PairSync) prepare(s *state, _ time.Time) (Change, error) {
	if err := checkImage(c.Image); err != nil {
		return nil, err
	}
	p := s.syncs[c.Image].Pair
	if c.Heads == ([2]string{}) {
		if p.Has("") || p == nil {
			return nil, nil
		}
		return c, nil
	}
	for _, name := range c.Heads {
		if err := checkName(name); err != nil {
			return nil, err
		}
	}
	if c.Heads[0] == c.Heads[1] {
		return nil, refuse("name two", "%s cannot be both heads of a pair", c.Heads[0])
	}
	if p.Has(c.Heads[0]) && p.Has(c.Heads[1]) {
		return nil, nil
	}
	return c, nil
}

func (c PairSync) apply(s *state, at time.Time) error {
	v := s.syncs[c.Image].clone()
	v.Image = c.Image
	p := &Pair{Heads: c.Heads, Active: c.Heads[0], Generation: 1, Turned: at}
	if old := v.Pair; old != nil {
		p.Generation = old.Generation + 1
		was := cmp.Or(old.Active, old.Was)
		switch {
		case c.Heads == [2]string{}:
			p.Was, p.Common, p.Digest = was, old.Common, old.Digest
		case p.Has(was):
			p.Active, p.Common, p.Digest = was, old.Common, old.Digest
		}
	}
	v.Pair = p
	s.putSync(v)
	if p.Active == "" {
		s.tell(at, "turn", nil, fmt.Sprintf("%s is no longer kept between two heads", c.Image))
		return nil
	}
	s.tell(at, "turn", nil, fmt.Sprintf("%s and %s are a pair: %s is captured as %s, and %s follows (generation %d)", p.Heads[0], p.Heads[1], p.Active, c.Image, p.Other(p.Active), p.Generation))
	return nil
}

// pair finds the pair of an image.
func (s *state) pair(image string) (*Pair, error) {
	if err := checkImage(image); err != nil {
		return nil, err
	}
	if p := s.syncs[image].Pair; p != nil && p.Active != "" {
		return p, nil
	}
	return nil, refuse("give its [[sync]] between = [\"HEAD1\", \"HEAD2\"] instead of source, and start doppel serve again", "%s is not kept between two heads, so there is no direction to turn", image)
}

func (c TurnSync) prepare(s *state, at time.Time) (Change, error) {
	p, err := s.pair(c.Image)
	if err != nil {
		return nil, err
	}
	if !p.Has(c.To) {
		return nil, refuse(fmt.Sprintf("name %s or %s", p.Heads[0], p.Heads[1]), "%s is none of the two heads of %s", quoteName(c.To), c.Image)
	}
	n, err := s.node(c.To)
	if err != nil {
		return nil, err
	}
	if n.State != Installed || n.Key == "" {
		return nil, refuse("install it with doppel deploy, or make it a node with doppel node enlist", "%s is not a node with an agent", n.Name)
	}
	if c.To == p.Active {
		if !c.Force {
			return nil, refuse("doppel sync status shows the direction", "%s is captured already: there is nothing to turn", c.To)
		}
		return c, nil
	}
	image, _, _ := strings.Cut(n.Runs, "@")
	switch {
	case image != c.Image:
		return nil, refuse("let it become a version of "+c.Image+" first: doppel deploy "+n.Name+" --image "+c.Image,
			"%s never had a version of %s, so nothing tells what it and %s have in common", n.Name, c.Image, p.Active)
	case c.Common != n.Runs || c.Digest == "" || c.Digest != text(c.Digest, maxField):
		return nil, refuse("try again", "%s runs %s by now", n.Name, n.Runs)
	case c.Force:
		return c, nil
	}
	if err := s.mayTurn(c.Image, p, n, at); err != nil {
		return nil, err
	}
	return c, nil
}

// mayTurn refuses a turn to a node that would be regretted, though it can be
// forced.
func (s *state) mayTurn(image string, p *Pair, n *Node, at time.Time) error {
	forced := "; or add --force: "
	switch d := n.Parted; {
	case d.Open() && d.Compared.IsZero():
		return refuse("wait until "+n.Name+" is equal, see doppel sync status"+forced+"what was changed on "+p.Active+" since "+d.Base+" is then kept there, and decided there",
			"%s has not had anything from %s yet, and may have changes of its own since %s", n.Name, p.Active, d.Base)
	case d.Open():
		return refuse(fmt.Sprintf("decide with doppel sync drift %s --adopt or --revert%s%s then goes by what %s has at those paths; the other side's stay in the versions of %s", n.Name, forced, p.Active, n.Name, image),
			"%s has %s of its own, %d changed on both sides, that nobody has decided on", n.Name, counted(d.Own, "path"), d.Both)
	case n.Update.Pending():
		return refuse("wait for its end, see doppel sync status"+forced+"the update is then taken back, and what it brought counts as changed on "+n.Name,
			"%s is becoming %s at this moment", n.Name, n.Update.Image)
	}
	old := s.nodes[p.Active]
	if old == nil || !old.UpAt(at) {
		return nil // there is nothing to be had from it now
	}
	wait := "doppel sync now " + image + ", and wait until " + n.Name + " is equal; or, if " + p.Active + " is gone for good, add --force"
	good := s.syncs[image].Good
	switch {
	case good == nil || good.Generation != p.Generation:
		return refuse(wait, "nothing was captured from %s since it is the active one, and it is up", p.Active)
	case good.Version != n.Runs:
		return refuse(wait, "%s runs %s, and %s, which is up, is at %s", n.Name, n.Runs, p.Active, good.Version)
	}
	return nil
}

func counted(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

func (c TurnSync) apply(s *state, at time.Time) error {
	v := s.syncs[c.Image].clone()
	if v.Pair == nil {
		return fmt.Errorf("turning %s: it has no pair", c.Image)
	}
	old := v.Pair.Active
	v.Pair = &Pair{Heads: v.Pair.Heads, Active: c.To, Generation: max(v.Pair.Generation, c.Known) + 1, Turned: at, Common: v.Pair.Common, Digest: v.Pair.Digest}
	if c.To == old {
		s.putSync(v)
		s.tell(at, "turn", s.nodes[c.To], fmt.Sprintf("%s stays the head that is captured as %s (generation %d)", c.To, c.Image, v.Pair.Generation))
		return nil
	}
	v.Pair.Common, v.Pair.Digest = c.Common, c.Digest
	v.Failures = 0
	s.putSync(v)
	n, err := s.editing(c.To)
	if err != nil {
		return err
	}
	n.Parted = nil
	takeBack(n, at)
	s.putNode(n.Name, n)
	how := ""
	if c.Force {
		how = ", by force"
	}
	s.tell(at, "turn", n, fmt.Sprintf("%s is captured as %s from now on, and %s follows (generation %d)%s; they parted with %s in common", c.To, c.Image, old, v.Pair.Generation, how, c.Common))
	o, err := s.editing(old)
	if err != nil {
		return nil // it is no node any more
	}
	if o.State == Installed && o.Key != "" {
		o.Runs, o.Held = c.Common, false
		o.Parted = &Parted{Image: c.Image, Base: c.Common, Digest: c.Digest, From: c.To, Generation: v.Pair.Generation, Since: at}
		takeBack(o, at)
		s.putNode(o.Name, o)
	}
	return nil
}

// takeBack ends an update that has not ended.
func takeBack(n *Node, at time.Time) {
	if n.Update.Pending() {
		n.Update.Ended, n.Update.Failed = at, "the direction was turned"
	}
}

// settle takes over what an update says of what it left as it is on a head that
// parted, and tells when nothing is left.
func (n *Node) settle(s *state, kept *Kept, at time.Time) {
	p := n.Parted
	if p == nil || kept == nil {
		return
	}
	p = new(*p)
	news := p.Compared.IsZero() || p.Own != kept.Own
	if p.Compared.IsZero() {
		p.Compared = at
	}
	p.Own, p.Both = max(kept.Own, 0), max(kept.Both, 0)
	n.Parted = p
	switch {
	case p.Own == 0:
		n.Parted = nil
		s.tell(at, "equal", n, fmt.Sprintf("nothing on %s is its own any more: it is equal to %s but for its identity", n.Name, n.Runs))
	case news:
		s.tell(at, "parted", n, fmt.Sprintf("%s keeps %s changed there since %s, %d of them on both sides: doppel sync drift %s lists them", n.Name, counted(p.Own, "path"), p.Base, p.Both, n.Name))
	}
}
