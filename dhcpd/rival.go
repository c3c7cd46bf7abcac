package dhcpd

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/mdlayher/packet"
)

// Rival is another DHCP server on the segment.
type Rival struct {
	Server  netip.Addr // its server identifier
	MAC     MAC        // who sent the answer: the server, or a relay or router before it
	Offered netip.Addr // what it would have given
}

// String describes the rival for people.
func (r Rival) String() string {
	return fmt.Sprintf("DHCP server %v (%v), which offers %v", r.Server, r.MAC, r.Offered)
}

// probeTime is how long Probe listens. dnsmasq and others ping an address
// before they offer it, and wait three seconds for the answer.
const probeTime = 4 * time.Second

// Probe looks for other DHCP servers: it broadcasts a DISCOVER on the interface
// and collects the offers until ctx is done, for 4 s at most. It takes none of
// them. It asks in the name of a machine that does not exist, always the same
// one for an interface, so that rivals reserve one address at most. It must run
// before the server does, which would answer too. A server that gives known
// machines only cannot be found so.
func Probe(ctx context.Context, iface string) ([]Rival, error) {
	ifi, mac, err := ethernetInterface(iface)
	if err != nil {
		return nil, err
	}
	conn, err := packet.Listen(ifi, packet.Raw, etherTypeIPv4, nil)
	if err != nil {
		return nil, fmt.Errorf("opening a packet socket on %s: %w", iface, err)
	}
	defer conn.Close() // nothing was written that could be lost
	ctx, cancel := context.WithTimeout(ctx, probeTime)
	defer cancel()
	var xid dhcpv4.TransactionID
	if _, err := rand.Read(xid[:]); err != nil {
		return nil, fmt.Errorf("choosing a transaction: %w", err)
	}
	ghost := ghostOf(mac)
	discover, err := dhcpv4.NewDiscovery(net.HardwareAddr(ghost[:]),
		dhcpv4.WithTransactionID(xid), dhcpv4.WithBroadcast(true))
	if err != nil {
		return nil, fmt.Errorf("making a DISCOVER: %w", err)
	}
	frame := append(ethernet(mac, everyMAC, etherTypeIPv4), udpPacket(
		netip.AddrPortFrom(netip.IPv4Unspecified(), dhcpv4.ClientPort),
		netip.AddrPortFrom(everybody, dhcpv4.ServerPort),
		discover.ToBytes())...)
	var rivals []Rival
	for _, wait := range []time.Duration{time.Second, probeTime - time.Second} {
		err := ask(ctx, conn, frame, wait, func(frame []byte) bool {
			if r, ok := rivalIn(frame, mac, xid); ok && !slices.ContainsFunc(rivals, r.same) {
				rivals = append(rivals, r)
			}
			return false
		})
		if err != nil && ctx.Err() == nil {
			return rivals, fmt.Errorf("looking for DHCP servers on %s: %w", iface, err)
		}
	}
	return rivals, nil
}

// ask sends a frame to everybody and shows match what comes in, until it has
// seen enough, the wait is over (which is no error), or ctx is done.
func ask(ctx context.Context, conn *packet.Conn, frame []byte, wait time.Duration, match func([]byte) bool) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err := conn.SetReadDeadline(time.Now().Add(wait)); err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	if _, err := conn.WriteTo(frame, &packet.Addr{HardwareAddr: everyMAC[:]}); err != nil {
		return err
	}
	buf := make([]byte, 1<<16) // what the kernel has merged may be long
	for {
		n, _, err := conn.ReadFrom(buf)
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case errors.Is(err, os.ErrDeadlineExceeded):
			return nil
		case err != nil:
			return err
		}
		if match(buf[:n]) {
			return nil
		}
	}
}

// same says whether two answers are one server's.
func (r Rival) same(o Rival) bool { return r.Server == o.Server && r.MAC == o.MAC }

// ghostOf is the address of a machine that does not exist: mac with the bit of
// locally administered addresses, or where it has that already, another one.
func ghostOf(mac MAC) MAC {
	if mac[0]&2 != 0 {
		mac[5] ^= 0x80
	}
	mac[0] |= 2
	return mac
}

// rivalIn is the rival whose offer to our DISCOVER a frame carries.
func rivalIn(frame []byte, own MAC, xid dhcpv4.TransactionID) (Rival, bool) {
	payload, from, ok := udpPayload(frame, dhcpv4.ClientPort)
	if !ok || from == own || len(payload) > maxMessage {
		return Rival{}, false
	}
	msg, err := dhcpv4.FromBytes(payload)
	if err != nil || msg.OpCode != dhcpv4.OpcodeBootReply || msg.TransactionID != xid ||
		msg.MessageType() != dhcpv4.MessageTypeOffer {
		return Rival{}, false
	}
	return Rival{Server: addrFrom(msg.ServerIdentifier()), MAC: from, Offered: addrFrom(msg.YourIPAddr)}, true
}
