package dhcpd

import (
	"context"
	"net/netip"
	"time"
)

// Conn is where packets come from and go to. Listen opens one on an interface.
type Conn interface {
	// Interface is the name of the interface.
	Interface() string
	// Read waits for a packet, or until ctx is done.
	Read(ctx context.Context, buf []byte) (Arrival, error)
	// Send sends a DHCP message.
	Send(message []byte, to Destination) error
	// InUse asks the segment, for at most wait, who uses addr. It says false
	// when nobody answered.
	InUse(ctx context.Context, addr netip.Addr, wait time.Duration) (MAC, bool, error)
	Close() error
}

// Arrival is how a packet came.
type Arrival struct {
	N         int        // its bytes
	Broadcast bool       // it was sent to all, not to the server alone
	From      netip.Addr // the source address; 0.0.0.0 of a client that has none
}

// Destination is where a reply goes, and the address it is sent from. With a valid MAC it is a frame to that
// address, for a client that has no IP address yet and so does not answer ARP
// (RFC 2131 section 4.1).
type Destination struct {
	From netip.Addr
	Addr netip.AddrPort
	MAC  MAC
}
