package dhcpd

import (
	"fmt"
	"hash/fnv"
	"net/netip"
	"time"
)

// client is who a lease belongs to: a machine on a subnet. The machine is known
// by its Ethernet address alone. Its client identifier (option 61) changes on
// the way from firmware over iPXE to the operating system, and doubles of one
// head may share it; it is recorded and echoed, never trusted.
type client struct {
	mac    MAC
	subnet int
}

// offer is a pool address kept for a client that has not asked for it yet. Offers
// are not durable: a server that forgets one acknowledges the address all the
// same, if it is still free.
type offer struct {
	to    client
	until time.Time
}

// answer is what the segment said when it was asked who uses an address.
type answer struct {
	used bool
	by   MAC
	at   time.Time
}

// answerAge is for how long such an answer is believed.
const answerAge = 30 * time.Second

// table is all the server remembers. leases is what is durable or about to be; a lease
// past its time stays, so that its client finds the address again unless
// somebody needed it.
type table struct {
	config   *Config
	reserved func(netip.Addr) bool
	leases   map[netip.Addr]Lease
	held     map[client]netip.Addr
	offers   map[netip.Addr]offer
	offered  map[client]netip.Addr
	answers  map[netip.Addr]answer
}

// newTable remembers the leases of an earlier life.
func newTable(config *Config, reserved func(netip.Addr) bool, leases []Lease) *table {
	t := &table{
		config: config, reserved: reserved,
		leases: make(map[netip.Addr]Lease), held: make(map[client]netip.Addr),
		offers: make(map[netip.Addr]offer), offered: make(map[client]netip.Addr),
		answers: make(map[netip.Addr]answer),
	}
	for _, l := range leases {
		subnet := config.subnetWith(l.Addr)
		if subnet < 0 { // another interface's, or a subnet that is no more
			continue
		}
		t.leases[l.Addr] = l
		if l.Declined {
			continue
		}
		c := client{l.MAC, subnet}
		if other, ok := t.leases[t.held[c]]; !ok || other.Expires.Before(l.Expires) {
			t.held[c] = l.Addr
		}
	}
	return t
}

// lease is the client's lease, which may be past its time.
func (t *table) lease(c client) (Lease, bool) {
	addr, ok := t.held[c]
	return t.leases[addr], ok
}

// free says whether the client may have addr as far as the server remembers.
func (t *table) free(addr netip.Addr, c client, now time.Time) bool {
	if l, ok := t.leases[addr]; ok && l.Expires.After(now) && (l.Declined || l.MAC != c.mac) {
		return false
	}
	if o, ok := t.offers[addr]; ok && o.until.After(now) && o.to != c {
		return false
	}
	s := t.config.subnet(c.subnet)
	if addr == t.config.ServerAddr || addr == s.Gateway || !s.host(addr) {
		return false
	}
	return !t.reserved(addr)
}

// fromPool is the pool address for the client, the same one as ever where that
// can be: the one it had, the one it was offered, the one it asks for, one that
// nobody ever had, the one longest out of use. The zero Addr means there is none.
func (t *table) fromPool(c client, wanted netip.Addr, now time.Time) netip.Addr {
	pool := t.config.subnet(c.subnet).Pool
	for _, addr := range []netip.Addr{t.held[c], t.offered[c], wanted} {
		if pool.Contains(addr) && t.free(addr, c, now) {
			return addr
		}
	}
	size := pool.size()
	if size == 0 {
		return netip.Addr{}
	}
	// Starting where the MAC says makes it likely that a client finds its
	// address again even after the leases were lost.
	h := fnv.New32a()
	h.Write(c.mac[:])
	start := int(h.Sum32() % uint32(size))
	var oldest netip.Addr
	for i := range size {
		addr := pool.at((start + i) % size)
		if !t.free(addr, c, now) {
			continue
		}
		l, had := t.leases[addr]
		if !had {
			return addr
		}
		if !oldest.IsValid() || l.Expires.Before(t.leases[oldest].Expires) {
			oldest = addr
		}
	}
	return oldest
}

// offer keeps addr for the client.
func (t *table) offer(c client, addr netip.Addr, now time.Time) {
	t.withdraw(c)
	if o, ok := t.offers[addr]; ok {
		t.withdraw(o.to)
	}
	t.offers[addr] = offer{c, now.Add(t.config.OfferTime)}
	t.offered[c] = addr
}

// withdraw forgets what the client was offered.
func (t *table) withdraw(c client) {
	if addr, ok := t.offered[c]; ok {
		delete(t.offers, addr)
		delete(t.offered, c)
	}
}

// grant gives the client addr and takes from it what it had. It returns the
// changes that must be durable before the client hears of it.
func (t *table) grant(c client, l Lease) []Change {
	changes := t.drop(c, l.Addr)
	if other := (client{t.leases[l.Addr].MAC, c.subnet}); t.held[other] == l.Addr {
		delete(t.held, other)
	}
	t.withdraw(c)
	t.leases[l.Addr] = l
	t.held[c] = l.Addr
	return append(changes, Change{Lease: l})
}

// drop takes the client's lease from it, unless it is of the address it keeps.
func (t *table) drop(c client, keep netip.Addr) []Change {
	l, ok := t.lease(c)
	if !ok || l.Addr == keep {
		return nil
	}
	delete(t.leases, l.Addr)
	delete(t.held, c)
	return []Change{{Lease: l, Gone: true}}
}

// quarantine keeps addr from everybody, because by was found to use it.
func (t *table) quarantine(addr netip.Addr, by MAC, now time.Time) []Change {
	if o, ok := t.offers[addr]; ok {
		t.withdraw(o.to)
	}
	if l, ok := t.leases[addr]; ok {
		if c := (client{l.MAC, t.config.subnetWith(addr)}); t.held[c] == addr {
			delete(t.held, c)
		}
	}
	l := Lease{Addr: addr, MAC: by, Expires: now.Add(t.config.Quarantine), Declined: true}
	t.leases[addr] = l
	delete(t.answers, addr)
	return []Change{{Lease: l}}
}

// ask says whether the segment must be asked about addr before the client gets
// it. Only the server's own segment can be: ARP does not pass a relay.
func (t *table) ask(addr netip.Addr, c client, now time.Time) bool {
	if t.config.ProbeTime < 0 || c.subnet != 0 {
		return false
	}
	if l, ok := t.leases[addr]; ok && !l.Declined && l.MAC == c.mac && l.Expires.After(now) {
		return false
	}
	a, ok := t.answers[addr]
	return !ok || now.Sub(a.at) >= answerAge
}

// answered takes in what the segment said of an address that was to be c's. A
// client that has kept the address itself is no reason against it. An address
// of the pool that somebody uses is nobody's for a while.
func (t *table) answered(addr netip.Addr, c client, a answer, p Policy) []Change {
	a.used = a.used && a.by != c.mac
	t.answers[addr] = a
	if a.used && p.Addr != addr {
		return t.quarantine(addr, a.by, a.at)
	}
	return nil
}

// reservation says whether the client may have the address reserved for it:
// yes (""), not before the segment has been asked, or why not. A reservation
// beats another client's lease, so that a machine that was replaced does not
// lock its successor out, but not another machine that still uses the address.
func (t *table) reservation(c client, addr netip.Addr, now time.Time) (ask bool, why string) {
	if s := t.config.subnet(c.subnet); !s.host(addr) || addr == t.config.ServerAddr {
		return false, fmt.Sprintf("its reserved address is not one of the subnet %v it is on", s.Prefix)
	}
	l, ok := t.leases[addr]
	if !ok || !l.Expires.After(now) || !l.Declined && l.MAC == c.mac {
		return false, ""
	}
	if l.Declined {
		return false, fmt.Sprintf("its reserved address was found in use and is in quarantine until %s", l.Expires.Format(time.RFC3339))
	}
	if t.ask(addr, c, now) {
		return true, ""
	}
	if a, ok := t.answers[addr]; ok && a.used && now.Sub(a.at) < answerAge {
		return false, fmt.Sprintf("its reserved address is leased to %v and used by %v", l.MAC, a.by)
	}
	return false, ""
}
