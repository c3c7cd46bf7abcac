package cluster

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"
)

const (
	maxText  = 4096 // bytes of an event's text or a reason
	maxField = 255  // bytes of a name or a reference that came from outside
)

func (c AddNodes) prepare(s *state, at time.Time) (Change, error) {
	if len(c.Nodes) == 0 {
		return nil, nil
	}
	if len(c.Nodes) > maxSeries {
		return nil, refuse("add them in parts", "%d nodes cannot be added at once", len(c.Nodes))
	}
	out := AddNodes{Nodes: make([]Node, 0, len(c.Nodes))}
	names := map[string]bool{}
	addrs := map[netip.Addr]string{}
	macs := map[MAC]string{}
	for _, from := range c.Nodes {
		n := Node{
			Name: from.Name, Role: cmp.Or(from.Role, Compute),
			Addr: from.Addr.Unmap(), Netmask: from.Netmask, Gateway: from.Gateway,
			Domain: from.Domain, Image: from.Image,
			Added: at, State: Discovered,
		}
		if n.Netmask == 0 && s.rules.Network.IsValid() {
			n.Netmask = s.rules.Network.Bits()
		}
		if err := checkName(n.Name); err != nil {
			return nil, err
		}
		if s.nodes[n.Name] != nil || names[n.Name] {
			return nil, refuse("choose another name, or doppel node rm "+n.Name+" first", "there is a node %s already", n.Name)
		}
		if err := s.checkNode(&n); err != nil {
			return nil, err
		}
		if other := addrs[n.Addr]; other != "" {
			return nil, refuse("give each node an address of its own", "%s and %s would both have %s", other, n.Name, n.Addr)
		}
		if from.MAC != nil {
			if err := s.checkMAC(*from.MAC, n.Name); err != nil {
				return nil, err
			}
			if other := macs[*from.MAC]; other != "" {
				return nil, refuse("a machine can be one node", "%s and %s would both be the machine %s", other, n.Name, from.MAC)
			}
			macs[*from.MAC] = n.Name
			imported(&n, &from)
		}
		names[n.Name], addrs[n.Addr] = true, n.Name
		out.Nodes = append(out.Nodes, n)
	}
	return out, nil
}

// imported takes over what a node has with its machine. What was armed or
// installing elsewhere is not so here: arming is an operator's act.
func imported(n, from *Node) {
	n.MAC = new(*from.MAC)
	n.Runs, n.UpFrom, n.Key = text(from.Runs, maxField), text(from.UpFrom, maxField), text(from.Key, maxField)
	n.Enlisted = from.Enlisted
	n.State = atRest(n)
}

// atRest is the state of a node that nobody wants to install.
func atRest(n *Node) State {
	switch {
	case n.MAC == nil:
		return Discovered
	case n.Runs != "" || !n.Enlisted.IsZero():
		return Installed
	}
	return Assigned
}

// checkNode checks what describes a node, and its address against all others.
func (s *state) checkNode(n *Node) error {
	if n.Role != Compute && n.Role != Head {
		return refuse("the roles are compute and head", "%q is not a role", n.Role)
	}
	if why := outside(n.Addr, s.rules.Network); why != "" {
		return refuse("give an address of the subnet that doppel serves", "%s cannot have %s, which %s", n.Name, addrText(n.Addr), why)
	}
	if n.Netmask < 1 || n.Netmask > 32 {
		return refuse("give the prefix length, as in 24", "%d is not a prefix length", n.Netmask)
	}
	own := netip.PrefixFrom(n.Addr, n.Netmask)
	if why := outside(n.Addr, own); why != "" {
		return refuse("give another address or prefix length", "%s cannot have %s, which %s", n.Name, own, why)
	}
	if s.rules.Server == n.Addr && n.Enlisted.IsZero() { // a head may be both
		return refuse("give another address", "%s cannot have %s, which is this server's own", n.Name, n.Addr)
	}
	if s.rules.inPool(n.Addr) {
		return refuse("give an address outside the pool, or move the pool in doppel.toml",
			"%s cannot have %s, which is in the pool %s-%s for machines not yet assigned", n.Name, n.Addr, s.rules.PoolFirst, s.rules.PoolLast)
	}
	if other := s.byAddr[n.Addr]; other != "" && other != n.Name {
		return refuse("give another address", "%s cannot have %s, which is %s's", n.Name, n.Addr, other)
	}
	if n.Gateway.IsValid() {
		if why := outside(n.Gateway, own); why != "" {
			return refuse("give a gateway in the node's own subnet", "%s cannot have the gateway %s, which %s", n.Name, n.Gateway, why)
		}
		if n.Gateway == n.Addr {
			return refuse("give the router's address", "%s cannot be its own gateway", n.Name)
		}
	}
	if n.Image != text(n.Image, maxField) || strings.ContainsAny(n.Image, " \t") {
		return refuse("see doppel image ls", "%s is not an image", quoteName(n.Image))
	}
	return checkDomain(n.Domain)
}

func addrText(a netip.Addr) string {
	if !a.IsValid() {
		return "no address"
	}
	return a.String()
}

// checkMAC refuses a MAC that cannot be a machine's, or is another node's.
func (s *state) checkMAC(m MAC, node string) error {
	if !m.Unicast() {
		return refuse("give the MAC of one NIC", "%s is a group address, no machine's own", m)
	}
	if other := s.byMAC[m]; other != "" && other != node {
		return refuse("doppel unassign "+other+" first", "%s is assigned to %s", m, other)
	}
	return nil
}

func (c AddNodes) apply(s *state, at time.Time) error {
	for i := range c.Nodes {
		n := c.Nodes[i].clone()
		if s.nodes[n.Name] != nil {
			return fmt.Errorf("node %s is there already", n.Name)
		}
		s.putNode(n.Name, &n)
		s.tell(at, "add", &n, fmt.Sprintf("%s added with %s", n.Name, n.Addr))
	}
	return nil
}

func (c SetNode) prepare(s *state, at time.Time) (Change, error) {
	n, err := s.editing(c.Name)
	if err != nil {
		return nil, err
	}
	old := n.clone()
	c.set(n)
	if nodesEqual(n, &old) {
		return nil, nil
	}
	if err := s.checkNode(n); err != nil {
		return nil, err
	}
	onlyImage := old
	onlyImage.Image = n.Image
	if n.State == Installing && !nodesEqual(n, &onlyImage) {
		return nil, refuse("wait for the install, or doppel disarm "+n.Name, "%s is installing with what it was", n.Name)
	}
	return c, nil
}

func (c SetNode) set(n *Node) {
	setTo(&n.Role, c.Role)
	setTo(&n.Addr, c.Addr)
	setTo(&n.Netmask, c.Netmask)
	setTo(&n.Gateway, c.Gateway)
	setTo(&n.Domain, c.Domain)
	setTo(&n.Image, c.Image)
}

func setTo[T any](field, to *T) {
	if to != nil {
		*field = *to
	}
}

// nodesEqual compares what describes two nodes.
func nodesEqual(a, b *Node) bool {
	return a.Name == b.Name && a.Role == b.Role && a.Addr == b.Addr && a.Netmask == b.Netmask &&
		a.Gateway == b.Gateway && a.Domain == b.Domain && a.Image == b.Image
}

func (c SetNode) apply(s *state, at time.Time) error {
	n, err := s.editing(c.Name)
	if err != nil {
		return err
	}
	c.set(n)
	s.putNode(n.Name, n)
	s.tell(at, "set", n, n.Name+" changed: "+c.summary())
	return nil
}

func (c SetNode) summary() string {
	var words []string
	add := func(what string, value any, set bool) {
		if set {
			words = append(words, fmt.Sprintf("%s %v", what, value))
		}
	}
	add("role", deref(c.Role), c.Role != nil)
	add("address", deref(c.Addr), c.Addr != nil)
	add("netmask", deref(c.Netmask), c.Netmask != nil)
	add("gateway", deref(c.Gateway), c.Gateway != nil)
	add("domain", deref(c.Domain), c.Domain != nil)
	add("image", deref(c.Image), c.Image != nil)
	return strings.Join(words, ", ")
}

func deref[T any](p *T) T {
	if p == nil {
		var zero T
		return zero
	}
	return *p
}

func (c RemoveNode) prepare(s *state, at time.Time) (Change, error) {
	n, err := s.node(c.Name)
	if err != nil {
		return nil, err
	}
	if n.State == Armed || n.State == Installing {
		return nil, refuse("doppel disarm "+n.Name+" first", "%s is %s", n.Name, strings.ToLower(string(n.State)))
	}
	return c, nil
}

func (c RemoveNode) apply(s *state, at time.Time) error {
	n, err := s.node(c.Name)
	if err != nil {
		return err
	}
	s.tell(at, "remove", n, n.Name+" removed")
	s.putNode(c.Name, nil)
	return nil
}

func (c Assign) prepare(s *state, at time.Time) (Change, error) {
	n, err := s.node(c.Node)
	if err != nil {
		return nil, err
	}
	if n.MAC != nil && *n.MAC == c.MAC {
		return nil, nil
	}
	if err := s.checkMAC(c.MAC, c.Node); err != nil {
		return nil, err
	}
	if n.MAC != nil {
		return nil, refuse("doppel unassign "+n.Name+" first", "%s is the machine %s already", n.Name, n.MAC)
	}
	return c, nil
}

func (c Assign) apply(s *state, at time.Time) error {
	n, err := s.editing(c.Node)
	if err != nil {
		return err
	}
	n.MAC = new(c.MAC)
	n.State = atRest(n)
	s.putNode(n.Name, n)
	s.tell(at, "assign", n, fmt.Sprintf("%s is %s (%s)", c.MAC, n.Name, n.Addr))
	return nil
}

func (c AutoAssign) prepare(s *state, at time.Time) (Change, error) {
	if !s.collection.Auto || !s.collection.Open(at) || s.byMAC[c.MAC] != "" {
		return nil, nil
	}
	nodes := s.sorted()
	i := slices.IndexFunc(nodes, func(n *Node) bool { return n.MAC == nil })
	if i < 0 {
		return nil, nil
	}
	return Assign{MAC: c.MAC, Node: nodes[i].Name}.prepare(s, at)
}

func (c AutoAssign) apply(*state, time.Time) error {
	return fmt.Errorf("an auto-assign is never applied itself")
}

func (c Unassign) prepare(s *state, at time.Time) (Change, error) {
	n, err := s.node(c.Node)
	if err != nil {
		return nil, err
	}
	if n.MAC == nil {
		return nil, nil
	}
	if n.State == Installing {
		return nil, refuse("wait for the install, or doppel disarm "+n.Name+" first", "%s is installing", n.Name)
	}
	return c, nil
}

func (c Unassign) apply(s *state, at time.Time) error {
	n, err := s.editing(c.Node)
	if err != nil {
		return err
	}
	mac := deref(n.MAC)
	*n = Node{
		Name: n.Name, Role: n.Role, Addr: n.Addr, Netmask: n.Netmask, Gateway: n.Gateway,
		Domain: n.Domain, Image: n.Image, Added: n.Added, State: Discovered,
	}
	s.putNode(n.Name, n)
	s.tellEvent(Event{Time: at, Kind: "unassign", Node: n.Name, MAC: &mac, Text: fmt.Sprintf("%s is no longer %s", mac, n.Name)})
	return nil
}
