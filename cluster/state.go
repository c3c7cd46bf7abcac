package cluster

import (
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
)

// state is everything of a cluster but its history. Nodes are never altered in
// place, so that two states may share them.
type state struct {
	rules      Options
	seq        uint64 // of the last entry
	eventSeq   uint64 // of the last event
	nodes      map[string]*Node
	byMAC      map[MAC]string
	byAddr     map[netip.Addr]string
	sightings  map[MAC]Sighting
	leases     map[netip.Addr]Lease
	collection Collection
	syncs      map[string]Sync // by image; replaced as a whole

	// What happened since the last commit; see journal.go.
	journal journal
}

func newState(o Options) *state {
	return &state{
		rules:     o,
		nodes:     map[string]*Node{},
		byMAC:     map[MAC]string{},
		byAddr:    map[netip.Addr]string{},
		sightings: map[MAC]Sighting{},
		leases:    map[netip.Addr]Lease{},
		journal:   newJournal(),
	}
}

// node finds a node or says that there is none.
func (s *state) node(name string) (*Node, error) {
	if n := s.nodes[name]; n != nil {
		return n, nil
	}
	return nil, &RefusedError{What: "there is no node " + quoteName(name), Hint: "see doppel node ls", Unknown: true}
}

// editing finds a node and makes a copy that may be altered and put back.
func (s *state) editing(name string) (*Node, error) {
	n, err := s.node(name)
	if err != nil {
		return nil, err
	}
	return new(n.clone()), nil
}

// putNode puts a node in the place of the one with its name, or removes that
// one when n is nil.
func (s *state) putNode(name string, n *Node) {
	old := s.nodes[name]
	s.journal.undo = append(s.journal.undo, func() { s.replaceNode(name, old) })
	s.journal.nodes[name] = struct{}{}
	s.replaceNode(name, n)
}

func (s *state) replaceNode(name string, n *Node) {
	if old := s.nodes[name]; old != nil {
		if old.MAC != nil && s.byMAC[*old.MAC] == name {
			delete(s.byMAC, *old.MAC)
		}
		if s.byAddr[old.Addr] == name {
			delete(s.byAddr, old.Addr)
		}
	}
	if n == nil {
		delete(s.nodes, name)
		return
	}
	s.nodes[name] = n
	if n.MAC != nil {
		s.byMAC[*n.MAC] = name
	}
	s.byAddr[n.Addr] = name
}

func (s *state) putSighting(mac MAC, to *Sighting) {
	old, had := s.sightings[mac]
	s.journal.undo = append(s.journal.undo, func() { put(s.sightings, mac, old, had) })
	s.journal.sightings[mac] = struct{}{}
	if to == nil {
		delete(s.sightings, mac)
		return
	}
	s.sightings[mac] = *to
}

func (s *state) putLease(addr netip.Addr, to *Lease) {
	old, had := s.leases[addr]
	s.journal.undo = append(s.journal.undo, func() { put(s.leases, addr, old, had) })
	s.journal.leases[addr] = struct{}{}
	if to == nil {
		delete(s.leases, addr)
		return
	}
	s.leases[addr] = *to
}

func put[K comparable, V any](m map[K]V, k K, v V, there bool) {
	if there {
		m[k] = v
		return
	}
	delete(m, k)
}

func (s *state) putCollection(c Collection) {
	old := s.collection
	s.journal.undo = append(s.journal.undo, func() { s.collection = old })
	s.collection = c
}

// tell notes an event about a node (or none).
func (s *state) tell(at time.Time, kind string, n *Node, text string) {
	e := Event{Time: at, Kind: kind, Text: text}
	if n != nil {
		e.Node = n.Name
		if n.MAC != nil {
			e.MAC = new(*n.MAC)
		}
	}
	s.tellEvent(e)
}

func (s *state) tellEvent(e Event) {
	s.eventSeq++
	e.Seq = s.eventSeq
	s.journal.undo = append(s.journal.undo, func() {
		s.eventSeq--
		s.journal.events = s.journal.events[:len(s.journal.events)-1]
	})
	s.journal.events = append(s.journal.events, e)
}

// sorted lists the nodes as people count.
func (s *state) sorted() []*Node {
	return slices.SortedFunc(maps.Values(s.nodes), func(a, b *Node) int { return CompareNames(a.Name, b.Name) })
}

// clone copies the node with all it points to.
func (n *Node) clone() Node {
	c := *n
	if n.MAC != nil {
		c.MAC = new(*n.MAC)
	}
	if n.Install != nil {
		c.Install = new(*n.Install)
	}
	if n.Update != nil {
		c.Update = new(*n.Update)
		c.Update.Paths = slices.Clone(n.Update.Paths)
	}
	if n.Parted != nil {
		c.Parted = new(*n.Parted)
	}
	return c
}

func (l Lease) clone() Lease {
	l.ClientID = slices.Clone(l.ClientID)
	return l
}

// text makes a string that came from outside fit to keep: valid UTF-8 without
// control characters, of bounded length.
func text(s string, limit int) string {
	s = strings.Map(func(r rune) rune {
		switch {
		case r == '\n' || r == '\t':
			return ' '
		case r < ' ' || r == 0x7f || r == 0x2028 || r == 0x2029 || r >= 0x80 && r < 0xa0:
			return -1
		}
		return r
	}, strings.ToValidUTF8(s, "\uFFFD"))
	if len(s) > limit {
		s = strings.ToValidUTF8(s[:limit], "") // a rune cut in two goes
	}
	return s
}

// quoteName quotes a name that may be anything, in bounded length.
func quoteName(name string) string { return strconv.Quote(text(name, 80)) }
