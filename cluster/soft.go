package cluster

import (
	"context"
	"maps"
	"slices"
	"time"
)

// soft is what counts on so often that it is written only now and then. It
// lies over the state that readers see.
type soft struct {
	sightings map[MAC]Sighting
	progress  map[string]progress     // by node
	updates   map[string]ReportUpdate // by node; never written
}

type progress struct {
	ReportStage
	at time.Time
}

func newSoft() soft {
	return soft{sightings: map[MAC]Sighting{}, progress: map[string]progress{}, updates: map[string]ReportUpdate{}}
}

// Sight notes that a machine was seen asking to boot; First, Last and Count
// are not read. The first sighting is durable when Sight returns; a machine
// that comes again as it was is counted in memory, and written every few
// seconds. While a collection that assigns is open, Sight ties a machine that
// is no node's to the next free node.
func (c *Cluster) Sight(ctx context.Context, v Sighting) error {
	at := c.options.now()
	v.clean()
	v.First, v.Last, v.Count = at, at, 1
	changes, known := c.sightAgain(v, at)
	if known && len(changes) == 0 {
		c.markDirty()
		return nil
	}
	return c.Commit(ctx, changes...)
}

// sightAgain counts a machine that is known, and says what has to be committed
// at once.
func (c *Cluster) sightAgain(v Sighting, at time.Time) (changes []Change, known bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	last, known := c.sighting(v.MAC)
	if known {
		v.First, v.Count = last.First, last.Count+1
	}
	same := v.Arch == last.Arch && v.UUID == last.UUID && v.VendorClass == last.VendorClass && v.Interface == last.Interface
	if known && same {
		c.soft.sightings[v.MAC] = v
	} else {
		if !known {
			changes = append(changes, makeRoom{})
		}
		changes = append(changes, Sight{v})
	}
	if c.seen.collection.Auto && c.seen.collection.Open(at) && c.seen.byMAC[v.MAC] == "" && c.seen.unassigned() {
		changes = append(changes, AutoAssign{MAC: v.MAC})
	}
	return changes, known
}

// sighting finds a machine as it was last seen, written or not; c.mu is held.
func (c *Cluster) sighting(mac MAC) (Sighting, bool) {
	if v, ok := c.soft.sightings[mac]; ok {
		return v, true
	}
	v, ok := c.seen.sightings[mac]
	return v, ok
}

// unassigned tells whether there is a node without a machine.
func (s *state) unassigned() bool { return len(s.byMAC) < len(s.nodes) }

// Progress takes an installing node's word on its stage. A new stage is
// durable when Progress returns; more of the same stage is kept in memory, and
// written every few seconds.
func (c *Cluster) Progress(ctx context.Context, r ReportStage) error {
	if c.countOn(r) {
		c.markDirty()
		return nil
	}
	return c.Commit(ctx, r)
}

func (c *Cluster) countOn(r ReportStage) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := c.seen.nodes[r.Node]
	if n == nil || n.State != Installing || n.Install == nil || n.Install.ID != r.Install || n.Install.Stage != r.Stage || r.Writes && n.Runs != "" {
		return false
	}
	r.Detail, r.Done, r.Total = text(r.Detail, maxText), max(r.Done, 0), max(r.Total, 0)
	c.soft.progress[r.Node] = progress{ReportStage: r, at: c.options.now()}
	c.notify()
	return true
}

// over lays the progress not yet written over a copy of a node; c.mu is held.
func (c *Cluster) over(n Node) Node {
	if p, ok := c.soft.progress[n.Name]; ok && p.of(&n) {
		p.into(&n, p.at)
	}
	if r, ok := c.soft.updates[n.Name]; ok && r.of(&n) {
		r.into(&n)
	}
	return n
}

// of tells whether the node is still in the stage of the progress.
func (p progress) of(n *Node) bool {
	return n.State == Installing && n.Install != nil && n.Install.ID == p.Install && n.Install.Stage == p.Stage
}

// outdate forgets what is soft about machines whose sightings have been
// written, or forgotten, with a later count.
func (s soft) outdate(by *state) {
	for mac := range by.journal.sightings {
		if v, ok := by.sightings[mac]; !ok || v.Count >= s.sightings[mac].Count {
			delete(s.sightings, mac)
		}
	}
}

func (c *Cluster) markDirty() {
	select {
	case c.dirty <- struct{}{}:
	default:
	}
}

// flush writes what is soft. Only the writer calls it.
func (c *Cluster) flush() error {
	c.mu.RLock()
	written := soft{sightings: maps.Clone(c.soft.sightings), progress: maps.Clone(c.soft.progress)}
	c.mu.RUnlock()
	var requests []*request
	for _, mac := range slices.SortedFunc(maps.Keys(written.sightings), func(a, b MAC) int { return slices.Compare(a[:], b[:]) }) {
		requests = append(requests, &request{changes: []Change{Sight{written.sightings[mac]}}})
	}
	for _, name := range slices.Sorted(maps.Keys(written.progress)) {
		p := written.progress[name]
		if n := c.work.nodes[name]; n == nil || !p.of(n) {
			continue // the node has moved on
		}
		requests = append(requests, &request{changes: []Change{p.ReportStage}})
	}
	if len(requests) > 0 {
		c.commit(requests)
	}
	for _, r := range requests {
		if r.err != nil {
			return r.err
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	maps.DeleteFunc(c.soft.sightings, func(mac MAC, v Sighting) bool { return v == written.sightings[mac] })
	maps.DeleteFunc(c.soft.progress, func(name string, p progress) bool { return p == written.progress[name] })
	return nil
}
