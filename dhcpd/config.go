package dhcpd

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"
)

// Config is what a server needs to know of the segment it serves. Zero
// durations mean their defaults.
type Config struct {
	// ServerAddr is the interface's own address: the server identifier
	// (option 54), and the source of every reply.
	ServerAddr netip.Addr
	// Subnet is the segment the interface is on.
	Subnet Subnet
	// Relayed are the subnets whose clients come through a relay.
	Relayed []Subnet
	// LeaseTime is for how long an address is given; default 12 h.
	LeaseTime time.Duration
	// OfferTime is for how long an offered pool address is kept for the client
	// that has not asked for it yet; default 1 min.
	OfferTime time.Duration
	// Quarantine is for how long an address that somebody else was found to
	// use is left alone; default 10 min.
	Quarantine time.Duration
	// ProbeTime is how long the server waits for somebody to defend a pool
	// address before it offers it; default 300 ms, negative: it does not ask.
	ProbeTime time.Duration
}

// Subnet is an IPv4 subnet and what its clients are told.
type Subnet struct {
	Prefix  netip.Prefix
	Pool    Range        // for clients without a reservation; zero: none
	Gateway netip.Addr   // option 3; invalid: none
	DNS     []netip.Addr // option 6
	Domain  string       // option 15
}

// Range is the addresses from First to Last, both included. The zero Range is
// empty.
type Range struct{ First, Last netip.Addr }

// ParseRange reads 10.77.0.200-10.77.0.250, and "" as the empty range.
func ParseRange(s string) (Range, error) {
	if s == "" {
		return Range{}, nil
	}
	first, last, _ := strings.Cut(s, "-")
	var r Range
	var err error
	if r.First, err = netip.ParseAddr(strings.TrimSpace(first)); err != nil {
		return Range{}, fmt.Errorf("address range %q: want FIRST-LAST, as in 10.77.0.200-10.77.0.250", s)
	}
	if r.Last, err = netip.ParseAddr(strings.TrimSpace(last)); err != nil {
		return Range{}, fmt.Errorf("address range %q: want FIRST-LAST, as in 10.77.0.200-10.77.0.250", s)
	}
	if !r.First.Is4() || !r.Last.Is4() || r.Last.Less(r.First) {
		return Range{}, fmt.Errorf("address range %q: want two IPv4 addresses, the lower one first", s)
	}
	return r, nil
}

// String writes the range as ParseRange reads it.
func (r Range) String() string {
	if r.empty() {
		return ""
	}
	return r.First.String() + "-" + r.Last.String()
}

func (r Range) empty() bool { return !r.First.IsValid() }

// Contains says whether addr is in the range.
func (r Range) Contains(addr netip.Addr) bool {
	return !r.empty() && addr.Is4() && !addr.Less(r.First) && !r.Last.Less(addr)
}

// size is how many addresses the range has.
func (r Range) size() int {
	if r.empty() {
		return 0
	}
	return int(number(r.Last)-number(r.First)) + 1
}

// at is the i-th address of the range.
func (r Range) at(i int) netip.Addr {
	return addrOf(number(r.First) + uint32(i))
}

func number(a netip.Addr) uint32 {
	b := a.As4()
	return binary.BigEndian.Uint32(b[:])
}

func addrOf(n uint32) netip.Addr {
	var b [4]byte
	binary.BigEndian.PutUint32(b[:], n)
	return netip.AddrFrom4(b)
}

// broadcast is the subnet's directed broadcast address.
func (s Subnet) broadcast() netip.Addr {
	return addrOf(number(s.Prefix.Addr()) | 1<<(32-s.Prefix.Bits()) - 1)
}

// host says whether a machine of the subnet can have addr.
func (s Subnet) host(addr netip.Addr) bool {
	return s.Prefix.Contains(addr) && addr != s.Prefix.Masked().Addr() && addr != s.broadcast()
}

// checked is the Config with its defaults, or what is wrong with it.
func (c Config) checked() (Config, error) {
	for value, fallback := range map[*time.Duration]time.Duration{
		&c.LeaseTime: 12 * time.Hour, &c.OfferTime: time.Minute,
		&c.Quarantine: 10 * time.Minute, &c.ProbeTime: 300 * time.Millisecond,
	} {
		if *value == 0 {
			*value = fallback
		}
	}
	if !c.ServerAddr.Is4() {
		return c, errors.New("the DHCP server has no IPv4 address of its own")
	}
	if c.LeaseTime < time.Second || c.OfferTime < 0 || c.Quarantine < 0 {
		return c, fmt.Errorf("a lease of %v is too short (at least a second)", c.LeaseTime)
	}
	if !c.Subnet.Prefix.Contains(c.ServerAddr) {
		return c, fmt.Errorf("the server's address %v is not in its subnet %v", c.ServerAddr, c.Subnet.Prefix)
	}
	c.Relayed = append([]Subnet(nil), c.Relayed...)
	seen := []netip.Prefix{}
	for _, s := range append([]*Subnet{&c.Subnet}, pointers(c.Relayed)...) {
		if err := s.check(); err != nil {
			return c, err
		}
		for _, other := range seen {
			if other.Overlaps(s.Prefix) {
				return c, fmt.Errorf("the subnets %v and %v overlap", other, s.Prefix)
			}
		}
		seen = append(seen, s.Prefix)
	}
	return c, nil
}

func pointers(subnets []Subnet) []*Subnet {
	var p []*Subnet
	for i := range subnets {
		p = append(p, &subnets[i])
	}
	return p
}

// maxPool bounds the search for a free address, which holds the lock.
const maxPool = 1 << 16

func (s *Subnet) check() error {
	if !s.Prefix.IsValid() || !s.Prefix.Addr().Is4() || s.Prefix.Bits() > 30 {
		return fmt.Errorf("%v is not an IPv4 subnet with room for clients", s.Prefix)
	}
	s.Prefix = s.Prefix.Masked()
	p := s.Pool
	switch {
	case p.empty():
	case !s.host(p.First) || !s.host(p.Last) || p.Last.Less(p.First):
		return fmt.Errorf("the pool %v is not inside the subnet %v", p, s.Prefix)
	case p.size() > maxPool:
		return fmt.Errorf("the pool %v has %d addresses; at most %d are supported", p, p.size(), maxPool)
	}
	if s.Gateway.IsValid() && !s.host(s.Gateway) {
		return fmt.Errorf("the gateway %v is not in the subnet %v", s.Gateway, s.Prefix)
	}
	for _, d := range s.DNS {
		if !d.Is4() {
			return fmt.Errorf("the DNS server %v is not an IPv4 address", d)
		}
	}
	return nil
}
