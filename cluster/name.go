package cluster

import (
	"cmp"
	"fmt"
	"net/netip"
	"strings"
)

// checkName refuses what cannot be a node's name: one label of a host name by
// RFC 1123, section 2.1 (RFC 952 relaxed: a digit may come first), in lower
// case, because DNS compares without case and a file system with it.
func checkName(name string) error {
	if why := badLabel(name); why != "" {
		return refuse("give letters, digits and hyphens, at most 63, as in node001",
			"%q is not a host name: %s", name, why)
	}
	if name == "all" || name == "localhost" {
		return refuse("choose another name", "%q has a meaning of its own and cannot name a node", name)
	}
	return nil
}

// badLabel says what is wrong with one label of a host name.
func badLabel(s string) string {
	switch {
	case s == "":
		return "it is empty"
	case len(s) > 63:
		return fmt.Sprintf("it has %d characters, 63 are allowed", len(s))
	case s[0] == '-' || s[len(s)-1] == '-':
		return "it begins or ends with a hyphen"
	}
	for _, r := range s {
		switch {
		case r >= 'a' && r <= 'z', r >= '0' && r <= '9', r == '-':
		case r >= 'A' && r <= 'Z':
			return "it has capital letters"
		default:
			return fmt.Sprintf("%q is not allowed in it", r)
		}
	}
	return ""
}

func checkDomain(domain string) error {
	if domain == "" {
		return nil
	}
	// 253 octets is what fits the 255 of RFC 1035, 2.3.4; a node's label and
	// a dot take up to 64 of them.
	if len(domain) > 253-64 {
		return refuse("shorten it", "the domain %.40q… is too long", domain)
	}
	for label := range strings.SplitSeq(domain, ".") {
		if why := badLabel(label); why != "" {
			return refuse("give a name like cluster.example", "%q is not a domain: in %q, %s", domain, label, why)
		}
	}
	return nil
}

// CompareNames orders names as people count: node9 before node10.
func CompareNames(a, b string) int {
	x, y := a, b
	for x != "" && y != "" {
		dx, dy := digits(x), digits(y)
		if dx == 0 || dy == 0 {
			if x[0] != y[0] {
				return cmp.Compare(x[0], y[0])
			}
			x, y = x[1:], y[1:]
			continue
		}
		nx, ny := strings.TrimLeft(x[:dx], "0"), strings.TrimLeft(y[:dy], "0")
		if c := cmp.Or(cmp.Compare(len(nx), len(ny)), strings.Compare(nx, ny)); c != 0 {
			return c
		}
		x, y = x[dx:], y[dy:]
	}
	return cmp.Or(cmp.Compare(len(x), len(y)), strings.Compare(a, b))
}

// digits counts the digits that s begins with.
func digits(s string) int {
	n := 0
	for n < len(s) && s[n] >= '0' && s[n] <= '9' {
		n++
	}
	return n
}

// Series describes nodes that are alike but for a running number in the name
// and the address.
type Series struct {
	Base  string     `json:"base"`
	Count int        `json:"count"`
	Start int        `json:"start"`
	Pad   int        `json:"pad"` // digits of the number at least, with zeros before
	First netip.Addr `json:"first"`
}

// maxSeries bounds what one mistyped number can ask for.
const maxSeries = 1 << 16

// Expand makes the nodes of the series in the subnet. It refuses a series that
// runs out of the subnet, naming the first address that is not in it. Whether
// names and addresses are free is for Commit to say.
func (s Series) Expand(subnet netip.Prefix) ([]Node, error) {
	switch {
	case s.Count < 1 || s.Count > maxSeries:
		return nil, refuse(fmt.Sprintf("give a number from 1 to %d", maxSeries), "%d nodes cannot be added", s.Count)
	case s.Start < 0 || s.Start > 1<<31-1-maxSeries:
		return nil, refuse("give a start of 0 or more", "the series cannot start at %d", s.Start)
	case s.Pad < 0 || s.Pad > 10:
		return nil, refuse("give a pad from 0 to 10", "numbers cannot be padded to %d digits", s.Pad)
	case !s.First.IsValid():
		return nil, refuse("give the first node's address", "the series has no address")
	}
	nodes := make([]Node, 0, s.Count)
	addr := s.First
	for i := range s.Count {
		name := fmt.Sprintf("%s%0*d", s.Base, s.Pad, s.Start+i)
		if err := checkName(name); err != nil {
			return nil, err
		}
		if why := outside(addr, subnet); why != "" {
			return nil, refuse("give a lower first address or fewer nodes",
				"%s would get %s, which %s", name, addr, why)
		}
		nodes = append(nodes, Node{Name: name, Addr: addr})
		addr = addr.Next()
	}
	return nodes, nil
}

// outside says why a host of the subnet cannot have the address.
func outside(a netip.Addr, subnet netip.Prefix) string {
	switch {
	case !a.IsValid() || !a.Is4():
		return "is not an IPv4 address"
	case !subnet.IsValid():
		return ""
	case !subnet.Contains(a):
		return "is outside the subnet " + subnet.Masked().String()
	case subnet.Bits() > 30: // RFC 3021: no network or broadcast address
		return ""
	case a == subnet.Masked().Addr():
		return "is the address of the network itself"
	case a == broadcast(subnet):
		return "is the broadcast address"
	}
	return ""
}

func broadcast(p netip.Prefix) netip.Addr {
	a := p.Masked().Addr().As4()
	for bit := p.Bits(); bit < 32; bit++ {
		a[bit/8] |= 0x80 >> (bit % 8)
	}
	return netip.AddrFrom4(a)
}

func refuse(hint, format string, args ...any) error {
	return &RefusedError{What: fmt.Sprintf(format, args...), Hint: hint}
}
