package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/dhcpv4/nclient4"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// How long the card that the machine booted from is waited for before any
// other is tried. A driver with firmware of its own takes seconds to show its
// cards, a switch with spanning tree half a minute to open a port.
const (
	cardPatience   = 30 * time.Second
	serverPatience = 4 // tries in which only the server's own offer is taken
)

// network brings up the card that the machine booted from, and gives it the
// address that DHCP says.
type network struct {
	mac    net.HardwareAddr // nil: any card
	server netip.Addr       // of the head, by its URL; invalid when that is a name
	say    func(format string, args ...any)
}

func serverAddr(base string) netip.Addr {
	u, err := url.Parse(base)
	if err != nil {
		return netip.Addr{}
	}
	a, _ := netip.ParseAddr(u.Hostname())
	return a
}

// up returns when the machine has an address.
func (n *network) up(ctx context.Context) error {
	if lo, err := netlink.LinkByName("lo"); err == nil {
		netlink.LinkSetUp(lo) // nothing here depends on it
	}
	// Every try ends when cards have come or gone, or after a while, so that a
	// card that shows up late is taken in.
	updates, done := make(chan netlink.LinkUpdate, 64), make(chan struct{})
	defer close(done)
	if err := netlink.LinkSubscribe(updates, done); err != nil {
		return fmt.Errorf("watching for network cards: %w", err)
	}
	start, told := time.Now(), false
	for {
		cards, err := n.cards(time.Since(start) > cardPatience)
		if err != nil {
			return err
		}
		if len(cards) > 0 {
			err := n.race(ctx, cards)
			if err == nil || ctx.Err() != nil {
				return err
			}
			n.say("no address yet: %v", err)
		} else if !told {
			told = true
			n.say("waiting for the network card %s", n.mac)
		}
		if err := n.pause(ctx, updates, len(cards) == 0); err != nil {
			return err
		}
	}
}

// pause waits for news of a card, or a moment.
func (n *network) pause(ctx context.Context, updates <-chan netlink.LinkUpdate, idle bool) error {
	wait := time.NewTimer(2 * time.Second)
	defer wait.Stop()
	for {
		select {
		case <-updates:
			if idle {
				return nil
			}
		case <-wait.C:
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// cards are the ones to try: that with the MAC, or all Ethernet cards when it
// was not told, or is not there after a while (a bridge, or firmware that boots
// with an address that the driver does not know).
func (n *network) cards(any bool) ([]netlink.Link, error) {
	links, err := netlink.LinkList()
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return nil, fmt.Errorf("looking for network cards: %w", err)
	}
	var all []netlink.Link
	for _, l := range links {
		a := l.Attrs()
		if a.EncapType != "ether" || len(a.HardwareAddr) != 6 || l.Type() != "device" {
			continue
		}
		if n.mac != nil && bytes.Equal(a.HardwareAddr, n.mac) {
			return []netlink.Link{l}, nil
		}
		all = append(all, l)
	}
	if n.mac == nil || any {
		return all, nil
	}
	return nil, nil
}

// race asks on all cards at once; the first answer wins, and the other cards
// go down again.
func (n *network) race(ctx context.Context, cards []netlink.Link) error {
	type result struct {
		link netlink.Link
		ack  *dhcpv4.DHCPv4
		err  error
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	results := make(chan result)
	for _, l := range cards {
		go func() {
			ack, err := n.ask(ctx, l)
			results <- result{l, ack, err}
		}()
	}
	var errs []error
	var won *result
	for range cards {
		r := <-results
		switch {
		case r.err == nil && won == nil:
			won = &r
			cancel()
		case r.err != nil:
			errs = append(errs, fmt.Errorf("%s: %w", r.link.Attrs().Name, r.err))
			netlink.LinkSetDown(r.link)
		default:
			netlink.LinkSetDown(r.link)
		}
	}
	if won == nil {
		return errors.Join(errs...)
	}
	return n.configure(won.link, won.ack)
}

// ask takes one card through a whole exchange, several times. The client of
// the library can miss an offer that came while it was not looking, so every
// try is a new one with a new transaction.
func (n *network) ask(ctx context.Context, l netlink.Link) (*dhcpv4.DHCPv4, error) {
	a := l.Attrs()
	if err := netlink.LinkSetUp(l); err != nil {
		return nil, fmt.Errorf("bringing it up: %w", err)
	}
	if err := waitCarrier(ctx, a.Index); err != nil {
		return nil, err
	}
	n.say("asking for an address on %s (%s)", a.Name, a.HardwareAddr)
	var err error
	for try := 0; try < 2*serverPatience && ctx.Err() == nil; try++ {
		var ack *dhcpv4.DHCPv4
		if ack, err = n.exchange(ctx, a, try < serverPatience); err == nil {
			return ack, nil
		}
	}
	return nil, errors.Join(err, ctx.Err())
}

// exchange is DISCOVER to ACK. While the head is asked for, offers of other
// servers on the segment are passed over: the address they give is not the
// one that the head knows this machine by.
func (n *network) exchange(ctx context.Context, a *netlink.LinkAttrs, headOnly bool) (*dhcpv4.DHCPv4, error) {
	c, err := nclient4.New(a.Name, nclient4.WithTimeout(2*time.Second), nclient4.WithRetry(1))
	if err != nil {
		return nil, err
	}
	defer c.Close()
	// The client identifier is the one that iPXE sends, so that the server
	// knows the machine again.
	id := dhcpv4.WithOption(dhcpv4.OptClientIdentifier(append([]byte{unix.ARPHRD_ETHER}, a.HardwareAddr...)))
	ask := dhcpv4.WithRequestedOptions(dhcpv4.OptionSubnetMask, dhcpv4.OptionRouter, dhcpv4.OptionDomainNameServer)
	discover, err := dhcpv4.NewDiscovery(a.HardwareAddr, id, ask)
	if err != nil {
		return nil, err
	}
	match := nclient4.IsMessageType(dhcpv4.MessageTypeOffer)
	if headOnly && n.server.IsValid() {
		match = nclient4.IsAll(match, nclient4.IsCorrectServer(n.server.AsSlice()))
	}
	offer, err := c.SendAndRead(ctx, nclient4.DefaultServers, discover, match)
	if err != nil {
		return nil, fmt.Errorf("no DHCP offer: %w", err)
	}
	lease, err := c.RequestFromOffer(ctx, offer, id, ask)
	if err != nil {
		return nil, fmt.Errorf("the DHCP server %s did not acknowledge: %w", offer.ServerIdentifier(), err)
	}
	return lease.ACK, nil
}

// waitCarrier waits until the card has a link.
func waitCarrier(ctx context.Context, index int) error {
	ctx, cancel := context.WithTimeoutCause(ctx, time.Minute, errors.New("no link: is the cable in?"))
	defer cancel()
	updates, done := make(chan netlink.LinkUpdate, 16), make(chan struct{})
	defer close(done)
	// The listing comes first through the same channel, so nothing is missed.
	err := netlink.LinkSubscribeWithOptions(updates, done, netlink.LinkSubscribeOptions{ListExisting: true})
	if err != nil {
		return fmt.Errorf("watching the link: %w", err)
	}
	for {
		select {
		case u, ok := <-updates:
			if !ok {
				return errors.New("watching the link: the kernel stopped telling")
			}
			if int(u.Index) == index && u.IfInfomsg.Flags&unix.IFF_RUNNING != 0 {
				return nil
			}
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// addressOf is the address that a server gave, which must be a machine's own. A
// mask that is missing or has gaps, which the kernel would take for none at
// all, is that of the address's class.
func addressOf(ack *dhcpv4.DHCPv4) (*net.IPNet, error) {
	ip, mask := ack.YourIPAddr.To4(), ack.SubnetMask()
	if ip == nil || !ip.IsGlobalUnicast() {
		return nil, fmt.Errorf("the DHCP server gave no address that a machine can have: %v", ack.YourIPAddr)
	}
	if ones, bits := mask.Size(); ones == 0 || bits != 32 {
		mask = ip.DefaultMask()
	}
	if mask == nil { // 240.0.0.0/4 has no class
		return nil, fmt.Errorf("the DHCP server gave %v without a mask", ip)
	}
	return &net.IPNet{IP: ip, Mask: mask}, nil
}

// configure gives a card what DHCP said. The lease is not renewed: an install
// is shorter, and the address is the node's own.
func (n *network) configure(l netlink.Link, ack *dhcpv4.DHCPv4) error {
	given, err := addressOf(ack)
	if err != nil {
		return err
	}
	addr := &netlink.Addr{IPNet: given}
	if err := netlink.AddrReplace(l, addr); err != nil {
		return fmt.Errorf("giving %s the address %s: %w", l.Attrs().Name, addr.IPNet, err)
	}
	if r := ack.Router(); len(r) > 0 && !r[0].IsUnspecified() {
		route := &netlink.Route{LinkIndex: l.Attrs().Index, Gw: r[0]}
		if err := netlink.RouteReplace(route); err != nil {
			// The head may be on this very segment, and then none is needed.
			n.say("no route through %s: %v", r[0], err)
		}
	}
	n.say("address %s on %s, from %s", addr.IPNet, l.Attrs().Name, ack.ServerIdentifier())
	return nil
}
