package cluster

import (
	"bytes"
	"context"
	"maps"
	"net/netip"
	"slices"
	"sort"
	"time"
)

// Node finds a node by its name.
func (c *Cluster) Node(name string) (Node, bool) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.copyOf(name)
}

// NodeByMAC finds the node that a machine is assigned to.
func (c *Cluster) NodeByMAC(mac MAC) (Node, bool) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.copyOf(c.seen.byMAC[mac])
}

// NodeByAddr finds the node that an address is reserved for.
func (c *Cluster) NodeByAddr(addr netip.Addr) (Node, bool) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.copyOf(c.seen.byAddr[addr.Unmap()])
}

// NodeAt finds the node of the machine that has an address now: by its
// reservation, or by the lease its machine still has from before it was
// assigned.
func (c *Cluster) NodeAt(addr netip.Addr) (Node, bool) {
	addr = addr.Unmap()
	at := c.options.now()
	c.mu.RLock()
	defer c.mu.RUnlock()
	if l, ok := c.seen.leases[addr]; ok && !l.Declined && at.Before(l.Expires) {
		// Whoever holds the address by a lease is not the one it may be
		// reserved for since.
		return c.copyOf(c.seen.byMAC[l.MAC])
	}
	return c.copyOf(c.seen.byAddr[addr])
}

func (c *Cluster) copyOf(name string) (Node, bool) {
	n := c.seen.nodes[name]
	if n == nil {
		return Node{}, false
	}
	return c.over(n.clone()), true
}

// Nodes lists the inventory, in the order in which people count.
func (c *Cluster) Nodes() []Node {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.nodes()
}

func (c *Cluster) nodes() []Node {
	out := make([]Node, 0, len(c.seen.nodes))
	for _, n := range c.seen.sorted() {
		out = append(out, c.over(n.clone()))
	}
	return out
}

// Sightings lists the machines seen, the first seen first.
func (c *Cluster) Sightings() []Sighting {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.sightings()
}

func (c *Cluster) sightings() []Sighting {
	all := maps.Clone(c.seen.sightings)
	maps.Copy(all, c.soft.sightings)
	return slices.SortedFunc(maps.Values(all), func(a, b Sighting) int {
		if d := a.First.Compare(b.First); d != 0 {
			return d
		}
		return bytes.Compare(a.MAC[:], b.MAC[:])
	})
}

// Sighting finds a machine seen by its MAC.
func (c *Cluster) Sighting(mac MAC) (Sighting, bool) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.sighting(mac)
}

// Leases lists all leases by address, expired ones too.
func (c *Cluster) Leases() []Lease {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.leases()
}

func (c *Cluster) leases() []Lease {
	out := make([]Lease, 0, len(c.seen.leases))
	for _, l := range c.seen.leases {
		out = append(out, l.clone())
	}
	slices.SortFunc(out, func(a, b Lease) int { return a.Addr.Compare(b.Addr) })
	return out
}

// Lease finds the lease of an address.
func (c *Cluster) Lease(addr netip.Addr) (Lease, bool) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	l, ok := c.seen.leases[addr.Unmap()]
	return l.clone(), ok
}

// Collection tells the window for unknown machines. It may have passed; see
// Collection.Open.
func (c *Cluster) Collection() Collection {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.seen.collection
}

// Collecting tells whether the window for unknown machines is open now.
func (c *Cluster) Collecting() bool { return c.Collection().Open(c.options.now()) }

// Now is the time by the cluster's clock.
func (c *Cluster) Now() time.Time { return c.options.now() }

// Options tells the rules the cluster is kept by, with their defaults.
func (c *Cluster) Options() Options { return c.options }

// Filter chooses events; its zero value chooses all.
type Filter struct {
	Node string // only this node's, and those of the machine it has
	Kind string
}

// Events lists the events after the one numbered since, oldest first. Only the
// last Options.KeepEvents are there.
func (c *Cluster) Events(since uint64, f Filter) []Event {
	c.mu.RLock()
	defer c.mu.RUnlock()
	var mac *MAC
	if n := c.seen.nodes[f.Node]; n != nil {
		mac = n.MAC
	}
	from := sort.Search(len(c.events), func(i int) bool { return c.events[i].Seq > since })
	var out []Event
	for _, e := range c.events[from:] {
		byMAC := mac != nil && e.MAC != nil && e.Node == "" && *e.MAC == *mac
		if (f.Node == "" || e.Node == f.Node || byMAC) && (f.Kind == "" || e.Kind == f.Kind) {
			out = append(out, e.clone())
		}
	}
	return out
}

func (e Event) clone() Event {
	if e.MAC != nil {
		e.MAC = new(*e.MAC)
	}
	return e
}

// LastEvent is the number of the newest event.
func (c *Cluster) LastEvent() uint64 {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.seen.eventSeq
}

// Snapshot is everything of a cluster at one moment.
type Snapshot struct {
	Seq        uint64     `json:"seq"` // of the last entry in it
	Nodes      []Node     `json:"nodes"`
	Sightings  []Sighting `json:"sightings"`
	Leases     []Lease    `json:"leases"`
	Collection Collection `json:"collection"`
	Syncs      []Sync     `json:"syncs"`
	Events     []Event    `json:"events"`
}

// Snapshot copies everything at one moment.
func (c *Cluster) Snapshot() Snapshot {
	c.mu.RLock()
	defer c.mu.RUnlock()
	s := Snapshot{
		Seq: c.seen.seq, Nodes: c.nodes(), Sightings: c.sightings(), Leases: c.leases(),
		Collection: c.seen.collection, Syncs: c.syncs(), Events: make([]Event, 0, len(c.events)),
	}
	for _, e := range c.events {
		s.Events = append(s.Events, e.clone())
	}
	return s
}

// Seq is the number of the last entry.
func (c *Cluster) Seq() uint64 {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.seen.seq
}

// Watch gives a channel that holds a token whenever something has changed
// since the last one was taken. It is closed when ctx ends or the cluster is
// closed.
func (c *Cluster) Watch(ctx context.Context) <-chan struct{} {
	ch := make(chan struct{}, 1)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.watchers == nil {
		close(ch)
		return ch
	}
	c.watchers[ch] = struct{}{}
	context.AfterFunc(ctx, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		if _, ok := c.watchers[ch]; ok {
			delete(c.watchers, ch)
			close(ch)
		}
	})
	return ch
}

// notify leaves a token with every watcher; c.mu is held.
func (c *Cluster) notify() {
	for ch := range c.watchers {
		select {
		case ch <- struct{}{}:
		default:
		}
	}
}

func (c *Cluster) endWatches() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for ch := range c.watchers {
		close(ch)
	}
	c.watchers = nil
}
