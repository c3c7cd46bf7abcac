package dhcpd

import (
	"context"
	"errors"
	"net/netip"
)

// Rival is another DHCP server on the segment.
type Rival struct {
	Server  netip.Addr // its server identifier
	MAC     MAC        // who sent the answer
	Offered netip.Addr // what it would have given
}

// Probe broadcasts a DISCOVER on the interface, from an address of its own that
// no machine has, and collects the answers until ctx is done, for 4 s at most:
// dnsmasq pings for three seconds before it offers.
func Probe(ctx context.Context, iface string) ([]Rival, error) { return nil, errors.New("not yet") }
