package cluster

import (
	"cmp"
	"fmt"
	"net/netip"
	"strings"
	"time"
)

// EnlistNode makes a machine a node that runs what it has, and was not
// installed by doppel. A node of that name that has no machine yet, or that was
// enlisted before, is that machine from then on.
type EnlistNode struct {
	Name    string     `json:"name"`
	Role    Role       `json:"role"`
	MAC     MAC        `json:"mac"`
	Addr    netip.Addr `json:"addr"`
	Netmask int        `json:"netmask"`
	Domain  string     `json:"domain,omitempty"`
	Runs    string     `json:"runs,omitempty"`   // NAME@VERSION that was captured from it last; empty: none
	Digest  string     `json:"digest,omitempty"` // the version's identity
	Key     string     `json:"key"`              // SHA-256 of its certificate's public key, in hexadecimal
}

func (EnlistNode) Kind() string { return "enlist-node" }

func (c EnlistNode) prepare(s *state, at time.Time) (Change, error) {
	if err := checkName(c.Name); err != nil {
		return nil, err
	}
	c.Role = cmp.Or(c.Role, Head)
	if c.Netmask == 0 && s.rules.Network.IsValid() {
		c.Netmask = s.rules.Network.Bits()
	}
	if (c.Runs == "") != (c.Digest == "") || c.Digest != text(c.Digest, maxField) {
		return nil, fmt.Errorf("enlisting %s: a version and its digest go together", c.Name)
	}
	if c.Key == "" || c.Key != text(c.Key, maxField) || c.Runs != text(c.Runs, maxField) || strings.ContainsAny(c.Runs, " \t") {
		return nil, fmt.Errorf("enlisting %s: its key or its version cannot be", c.Name)
	}
	if n := s.nodes[c.Name]; n != nil {
		switch {
		case n.State == Armed || n.State == Installing:
			return nil, refuse("doppel disarm "+n.Name+" first", "%s is %s", n.Name, strings.ToLower(string(n.State)))
		case n.Key != "" && n.Enlisted.IsZero():
			return nil, refuse("it needs no enlisting; or choose another name", "%s is a node that doppel installed", n.Name)
		case n.MAC != nil && *n.MAC != c.MAC:
			return nil, refuse("doppel node rm "+n.Name+" first, or choose another name", "%s is the machine %s, and not %s", n.Name, n.MAC, c.MAC)
		}
	}
	if other := s.byMAC[c.MAC]; other != "" && other != c.Name {
		return nil, refuse("doppel node rm "+other+" first", "this machine is the node %s already, by its NIC %s", other, c.MAC)
	}
	if err := s.checkMAC(c.MAC, c.Name); err != nil {
		return nil, err
	}
	if err := s.checkNode(c.node(nil, at)); err != nil {
		return nil, err
	}
	return c, nil
}

// node is the node that comes of it, from the one there is, if any.
func (c EnlistNode) node(n *Node, at time.Time) *Node {
	if n == nil {
		n = &Node{Name: c.Name, Added: at}
	}
	n.Role, n.Addr, n.Netmask, n.Domain = c.Role, c.Addr.Unmap(), c.Netmask, cmp.Or(c.Domain, n.Domain)
	n.MAC, n.Key, n.State, n.Reason, n.Enlisted = new(c.MAC), c.Key, Installed, "", at
	n.Install = nil
	if n.Runs == "" {
		n.Runs = c.Runs
	}
	return n
}

func (c EnlistNode) apply(s *state, at time.Time) error {
	old := s.nodes[c.Name]
	var n *Node
	if old != nil {
		n = new(old.clone())
	}
	n = c.node(n, at)
	c.part(s, n, old, at)
	s.putNode(n.Name, n)
	runs := "nothing was captured from it yet"
	if n.Runs != "" {
		runs = "it was captured last as " + n.Runs
	}
	s.tell(at, "enlist", n, fmt.Sprintf("%s (%s, %s) is a node that doppel did not install; %s", n.Name, n.Addr, n.MAC, runs))
	return nil
}

// part says since when the machine may have changes of its own: since it was
// captured, or since it was the active head of a pair. What it has then stays
// there over its first update.
func (c EnlistNode) part(s *state, n, old *Node, at time.Time) {
	if old != nil && !old.Enlisted.IsZero() {
		return // it is the same, and known
	}
	image, _, _ := strings.Cut(n.Runs, "@")
	d := &Parted{Image: image, Base: n.Runs, Digest: c.Digest, Since: at}
	for name, v := range s.syncs {
		if p := v.Pair; p.Has(n.Name) && p.Active != n.Name && p.Common != "" {
			n.Runs = p.Common
			d = &Parted{Image: name, Base: p.Common, Digest: p.Digest, From: p.Active, Generation: p.Generation, Since: p.Turned}
		}
	}
	if d.Base != "" {
		n.Parted = d
	}
}
