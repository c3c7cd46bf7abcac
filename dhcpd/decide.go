package dhcpd

import (
	"log/slog"
	"net/netip"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
)

// outcome is what is to be done about a packet: changes are made durable, then
// the reply is sent. A reply of type None is silence. Where ask is valid nothing
// is decided yet: the segment has to be asked about that address first.
type outcome struct {
	reply   dhcpv4.MessageType
	addr    netip.Addr    // yiaddr
	term    time.Duration // for how long; 0 in answer to INFORM
	changes []Change
	ask     netip.Addr
	why     string     // of a NAK, of silence, of a declined address
	level   slog.Level // of the log line
}

func silence(level slog.Level, why string) outcome {
	return outcome{level: level, why: why}
}

func nak(why string) outcome {
	return outcome{reply: dhcpv4.MessageTypeNak, why: why, level: slog.LevelInfo}
}

// decide is the server: what the packet r of client c gets under policy p. It
// looks at no clock and touches nothing but the table.
func (t *table) decide(r *request, c client, p Policy, now time.Time) outcome {
	switch {
	case r.elsewhere(t.config):
		t.withdraw(c)
		return silence(slog.LevelDebug, "it means another server")
	case r.kind == dhcpv4.MessageTypeDecline:
		return t.decline(r, c, now)
	case r.kind == dhcpv4.MessageTypeRelease:
		return t.release(r, c, now)
	}
	if !p.Addr.IsValid() && !p.Pool {
		return silence(slog.LevelDebug, "nothing for this client")
	}
	switch r.kind {
	case dhcpv4.MessageTypeDiscover:
		return t.discover(r, c, p, now)
	case dhcpv4.MessageTypeRequest:
		return t.request(r, c, p, now)
	case dhcpv4.MessageTypeInform:
		return t.inform(r, c)
	}
	return silence(slog.LevelDebug, "not a message for a server")
}

// discover offers an address (RFC 2131 section 4.3.1).
func (t *table) discover(r *request, c client, p Policy, now time.Time) outcome {
	offered := outcome{reply: dhcpv4.MessageTypeOffer, addr: p.Addr, term: t.term(r), level: slog.LevelDebug}
	if p.Addr.IsValid() {
		ask, why := t.reservation(c, p.Addr, now)
		switch {
		case ask:
			return outcome{ask: p.Addr}
		case why != "":
			return silence(slog.LevelWarn, why)
		}
		return offered
	}
	addr := t.fromPool(c, r.requested, now)
	if !addr.IsValid() {
		return silence(slog.LevelWarn, "the pool has no free address")
	}
	t.offer(c, addr, now)
	if t.ask(addr, c, now) {
		return outcome{ask: addr}
	}
	offered.addr = addr
	return offered
}

// state is the client's, by what its REQUEST says (RFC 2131 section 4.3.2).
type state int

const (
	selecting  state = iota // it took an offer
	initReboot              // it had a lease before it was restarted
	renewing                // it asks the server that gave its lease to extend it
	rebinding               // it asks any server to
)

// elsewhere says whether the packet is for another server: the client took the
// other's offer, or gives back what it had from it.
func (r *request) elsewhere(c *Config) bool {
	return r.server.IsValid() && r.server != c.ServerAddr
}

func (r *request) state() state {
	switch {
	case r.server.IsValid():
		return selecting
	case !r.ciaddr.IsValid():
		return initReboot
	case r.broadcast:
		return rebinding
	}
	return renewing
}

// request answers a REQUEST.
func (t *table) request(r *request, c client, p Policy, now time.Time) outcome {
	wanted := r.requested
	if !wanted.IsValid() {
		wanted = r.ciaddr
	}
	if !wanted.IsValid() {
		return silence(slog.LevelDebug, "a REQUEST for no address")
	}
	if !t.config.subnet(c.subnet).host(wanted) {
		return nak("the address is not one of this network")
	}
	if p.Addr.IsValid() {
		return t.requestReserved(r, c, p, wanted, now)
	}
	return t.requestPool(r, c, wanted, now)
}

func (t *table) requestReserved(r *request, c client, p Policy, wanted netip.Addr, now time.Time) outcome {
	if wanted != p.Addr && r.state() == selecting && t.offered[c] == wanted && t.offers[wanted].until.After(now) {
		// The reservation came between our offer and the client's answer to
		// it. OVMF that is refused then gives up IPv4 PXE for this boot; so the
		// offer stands, and the loader's own DHCP gets the new address.
		return t.requestPool(r, c, wanted, now)
	}
	if wanted != p.Addr {
		// The reservation is newer than the lease. The machine is to let go
		// of the address it has; nobody waits for its time to run out.
		o := nak("another address is reserved for this machine")
		o.changes = t.drop(c, p.Addr)
		return o
	}
	ask, why := t.reservation(c, wanted, now)
	switch {
	case ask:
		return outcome{ask: wanted}
	case why != "" && r.state() != selecting:
		return nak(why)
	case why != "":
		return silence(slog.LevelWarn, why)
	}
	return t.acknowledge(r, c, wanted, now)
}

func (t *table) requestPool(r *request, c client, wanted netip.Addr, now time.Time) outcome {
	mine, known := t.lease(c)
	if known && mine.Addr != wanted && mine.Expires.After(now) && r.state() == initReboot {
		return nak("the client's lease is of another address")
	}
	if !t.free(wanted, c, now) {
		o := nak("the address is another's")
		if known && mine.Addr == wanted {
			o.changes = t.drop(c, netip.Addr{})
		}
		return o
	}
	if offered, ok := t.offered[c]; ok && offered != wanted && r.state() == selecting {
		return nak("the client was offered another address")
	}
	record := known && mine.Addr == wanted || t.offered[c] == wanted
	// A server without a record of the client must be silent, because another
	// may have one (RFC 2131 section 4.3.2), unless it is certain that the
	// client means this one.
	certain := r.state() == selecting || r.state() == renewing
	switch inPool := t.config.subnet(c.subnet).Pool.Contains(wanted); {
	case inPool && (record || certain):
		return t.acknowledge(r, c, wanted, now)
	case record || certain:
		o := nak("the address is no longer one of the pool")
		if known && mine.Addr == wanted {
			o.changes = t.drop(c, netip.Addr{})
		}
		return o
	}
	return silence(slog.LevelDebug, "no record of this client")
}

// acknowledge gives the client the address.
func (t *table) acknowledge(r *request, c client, addr netip.Addr, now time.Time) outcome {
	term := t.term(r)
	l := Lease{
		Addr: addr, MAC: c.mac, Expires: now.Add(term),
		ClientID: r.msg.Options.Get(dhcpv4.OptionClientIdentifier),
		Hostname: printable(r.msg.Options.Get(dhcpv4.OptionHostName)),
	}
	return outcome{
		reply: dhcpv4.MessageTypeAck, addr: addr, term: term,
		changes: t.grant(c, l), level: slog.LevelInfo,
	}
}

// term is for how long the client gets an address: as long as it likes, up to
// what is configured. Less than a minute is nobody's wish.
func (t *table) term(r *request) time.Duration {
	if wish := r.msg.IPAddressLeaseTime(0); wish >= time.Minute && wish < t.config.LeaseTime {
		return wish
	}
	return t.config.LeaseTime
}

// decline takes an address out of use: the client found that somebody else has
// it (RFC 2131 section 4.3.3). Only the client it was given to may say so.
func (t *table) decline(r *request, c client, now time.Time) outcome {
	if !r.requested.IsValid() || t.held[c] != r.requested && t.offered[c] != r.requested {
		return silence(slog.LevelDebug, "it declined an address it was not given")
	}
	return outcome{
		addr: r.requested, changes: t.quarantine(r.requested, c.mac, now),
		level: slog.LevelWarn, why: "the client found its address in use",
	}
}

// release ends a lease (RFC 2131 section 4.3.4). The client is remembered, so
// that it finds the address again unless somebody else needed it.
func (t *table) release(r *request, c client, now time.Time) outcome {
	l, ok := t.lease(c)
	if !ok || l.Addr != r.ciaddr {
		return silence(slog.LevelDebug, "it released an address it was not given")
	}
	if l.Expires.After(now) {
		l.Expires = now
	}
	t.leases[l.Addr] = l
	return outcome{
		addr: l.Addr, changes: []Change{{Lease: l, Gone: true}},
		level: slog.LevelInfo, why: "the client released its address",
	}
}

// inform tells a client that has an address by other means what else there is
// to know (RFC 2131 section 4.3.5). The reply goes to that address, so it must
// be one of ours: nobody is to aim replies elsewhere.
func (t *table) inform(r *request, c client) outcome {
	if !t.config.subnet(c.subnet).host(r.ciaddr) {
		return silence(slog.LevelDebug, "an INFORM from no address of this network")
	}
	return outcome{reply: dhcpv4.MessageTypeAck, level: slog.LevelDebug}
}
