package dhcpd

import (
	"context"
	"net/netip"
	"time"
)

// MAC is an Ethernet address, comparable.
type MAC [6]byte

// Query is what a client's packet says about the client, in plain fields.
type Query struct {
	MAC         MAC
	ClientID    []byte     // option 61
	Interface   string     // the interface that received the packet
	Relay       netip.Addr // giaddr, invalid when there is none
	Arch        []uint16   // option 93, RFC 4578
	VendorClass string     // option 60
	UserClass   string     // option 77 (both framings)
	UUID        string     // option 97, in the machine's own notation
	Hostname    string     // option 12
	PXE         bool       // the client asks to boot from the network
	IPXE        bool       // the client is iPXE already
	HTTPBoot    bool       // the client is a UEFI HTTP boot client
	Acknowledge bool       // the reply will be an ACK (REQUEST, INFORM), not an OFFER
}

// Policy is what a client may have. The zero Policy means: say nothing.
type Policy struct {
	Addr       netip.Addr // the address reserved for the client; invalid: none
	Pool       bool       // with no Addr: may have an address of the pool
	Hostname   string
	BootFile   string // option 67 and the file field; empty: no boot
	NextServer netip.Addr
	Vendor60   string     // option 60 of the reply, which PXE ("PXEClient") and HTTP boot clients want
	Gateway    netip.Addr // the client's own router; invalid: the subnet's
	Domain     string     // the client's own domain; empty: the subnet's
}

// Handler decides who gets what. Its answer is taken anew for every packet, so
// a changed reservation is in force with the next one. It must be quick: the
// server waits for it.
type Handler interface {
	Policy(ctx context.Context, q Query) (Policy, error)
}

// Reserver is an optional part of a Handler. A Handler that has it is asked
// about each address of the pool before a client gets it, so reservations may
// lie inside the pool. It must be quicker still: the server holds its lock.
type Reserver interface {
	// Reserved says whether addr belongs to a machine, present or not.
	Reserved(addr netip.Addr) bool
}

// Lease is an address given to a client for a time.
type Lease struct {
	Addr     netip.Addr
	MAC      MAC
	ClientID []byte
	Hostname string
	Expires  time.Time
	Declined bool // a client found the address in use: nobody gets it until Expires
}

// Leases keeps leases where they survive a restart. Put is durable when it
// returns; the server acknowledges to no client before.
type Leases interface {
	All(ctx context.Context) ([]Lease, error)
	Put(ctx context.Context, l Lease) error
	Delete(ctx context.Context, addr netip.Addr) error
}

// Batch is an optional part of Leases: many changes, made durable in order and
// at once. Where fsync is slow, it is what lets many machines boot together.
type Batch interface {
	Apply(ctx context.Context, changes []Change) error
}

// Change is one change to the leases.
type Change struct {
	Lease Lease
	Gone  bool // the lease of Lease.Addr is to be deleted; else Lease is to be put
}
