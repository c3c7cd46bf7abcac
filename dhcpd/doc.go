// Package dhcpd is a DHCPv4 server (RFC 2131) for one segment and the relays
// that lead to it. What a client may have is decided by a Handler, anew for every
// packet; what was given is kept by Leases.
//
// # Words
//
// A client is a machine on a subnet, known by its Ethernet address alone: its
// client identifier changes between firmware, iPXE and the operating system, and
// doubles of one head may share it. A Query is what a packet says of it, a Policy
// what it may have: an address reserved for it, one of the pool, or nothing, and
// what to boot. A lease is an address given for a time. An offer is an address of
// the pool kept for a client that has not asked for it yet; it is not durable. An
// address that is found in use by somebody else is in quarantine: nobody gets it
// for a while. A rival is another DHCP server on the segment.
//
// # Steps
//
//	Conn → parse → Handler.Policy → decide → Leases → message → destination → Conn
//
// Read takes packets in and lines them up by client (lines), so that each client
// is served in order and none waits for another. The table decides, under a lock
// and looking at nothing but itself and the time; where it wants to know whether
// somebody uses an address, the segment is asked by ARP without the lock and the
// packet decided again. The changes are made durable, many at once where Leases
// can (Batch); then the client is told.
//
// Listen opens the sockets of an interface: one for UDP that is bound to it, and
// one for frames to clients that have no address yet. A client that asked for a
// broadcast gets one, a relay gets all for its clients, and so on as in RFC 2131
// section 4.1.
//
// # Guarantees
//
//   - Only the interface of the Conn is answered on.
//   - No address is acknowledged before its lease is durable, and none is given to
//     two clients. Leases, and addresses in quarantine, survive a restart.
//   - A changed Policy is in force with the client's next packet: a client that
//     holds another address than the one reserved for it is told to let go of it.
//     A reservation beats another machine's lease, unless that machine is there.
//   - No address of the pool is given that is reserved for a machine (Reserver), in
//     quarantine, or used by somebody who answers to ARP.
//   - Clients find the address they had, as long as nobody needed it.
//   - Malformed packets change nothing, and are logged at a limited rate.
//   - Serve ends when its context does, after it has answered what it had read.
//
// # Not guaranteed
//
//   - DHCP has no authentication: a machine that says it is another, is.
//   - Somebody who makes up addresses can empty the pool. Machines with
//     reservations are served all the same.
//   - Whether an address is in use is not asked behind relays, nor of addresses
//     that are reserved and not leased to another.
//   - Probe does not find rivals that give known machines only.
//   - Boot server discovery on port 4011 is not answered; PXE firmware is told not
//     to go looking for it. BOOTP without DHCP is not answered.
package dhcpd
