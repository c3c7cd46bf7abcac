package cluster

import "net/netip"

// journal is what changed in a state since the last commit: enough to write
// it, to show it to readers, and to take it back.
type journal struct {
	undo      []func() // to be called from the last to the first
	entries   []Entry
	events    []Event
	nodes     map[string]struct{}
	sightings map[MAC]struct{}
	leases    map[netip.Addr]struct{}
}

func newJournal() journal {
	return journal{
		nodes:     map[string]struct{}{},
		sightings: map[MAC]struct{}{},
		leases:    map[netip.Addr]struct{}{},
	}
}

// mark is a point to go back to.
type mark struct {
	undo, entries int
	seq           uint64
}

func (s *state) mark() mark {
	return mark{undo: len(s.journal.undo), entries: len(s.journal.entries), seq: s.seq}
}

// rollback takes back everything since the mark. Keys that were touched stay
// marked as such: writing what is there already does no harm.
func (s *state) rollback(m mark) {
	for len(s.journal.undo) > m.undo {
		last := len(s.journal.undo) - 1
		s.journal.undo[last]()
		s.journal.undo = s.journal.undo[:last]
	}
	s.journal.entries = s.journal.entries[:m.entries]
	s.seq = m.seq
}

// follow makes s, which readers see, equal to from, whose journal has become
// durable.
func (s *state) follow(from *state) {
	for name := range from.journal.nodes {
		s.replaceNode(name, from.nodes[name])
	}
	for mac := range from.journal.sightings {
		v, ok := from.sightings[mac]
		put(s.sightings, mac, v, ok)
	}
	for addr := range from.journal.leases {
		v, ok := from.leases[addr]
		put(s.leases, addr, v, ok)
	}
	s.collection, s.syncs, s.seq, s.eventSeq = from.collection, from.syncs, from.seq, from.eventSeq
}
