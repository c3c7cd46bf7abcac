package pxe

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"time"

	"doppel/cluster"
	"doppel/dhcpd"
)

// Names of the loaders on the wire, for TFTP's map of names and below /boot/.
const (
	LoaderBIOS  = "undionly.kpxe"
	LoaderUEFI  = "snponly.efi"
	LoaderARM64 = "snponly-arm64.efi"
)

// Loaders are the files of the iPXE loaders by architecture; one that is not
// there (ARM64 usually) leaves machines of that architecture without a file.
type Loaders map[Arch]string

// name is what a loader is called on the wire.
func (l Loaders) name(a Arch) string {
	if l[a] == "" {
		return ""
	}
	switch a {
	case ArchBIOS:
		return LoaderBIOS
	case ArchX8664:
		return LoaderUEFI
	case ArchARM64:
		return LoaderARM64
	}
	return ""
}

// TFTP is the map of names for the TFTP server.
func (l Loaders) TFTP() map[string]string {
	m := make(map[string]string)
	for a, path := range l {
		if n := l.name(a); n != "" {
			m[n] = path
		}
	}
	return m
}

// Policy is what dhcpd asks. It implements dhcpd.Handler.
type Policy struct {
	State   State
	Loaders Loaders
	Server  netip.AddrPort // of the plain HTTP service, as machines reach it
	Log     *slog.Logger
	Now     func() time.Time // nil: time.Now
}

var _ dhcpd.Handler = (*Policy)(nil)

// Policy implements dhcpd.Handler.
func (p *Policy) Policy(ctx context.Context, q dhcpd.Query) (dhcpd.Policy, error) {
	now := time.Now
	if p.Now != nil {
		now = p.Now
	}
	mac := cluster.MAC(q.MAC)
	in := Input{Client: ClientOf(q)}
	if in.Client.Via != Plain && !q.Acknowledge {
		// An OFFER and its ACK are one asking. Noted before anything is decided:
		// with automatic collection the note itself may assign the machine.
		err := p.State.Sight(ctx, cluster.Sighting{
			MAC: mac, Arch: in.Client.Arch.String(), UUID: q.UUID,
			VendorClass: q.VendorClass, Interface: q.Interface, Last: now(),
		})
		if err != nil {
			return dhcpd.Policy{}, fmt.Errorf("noting %x: %w", mac, err)
		}
	}
	node, known, err := p.State.NodeByMAC(ctx, mac)
	if err != nil {
		return dhcpd.Policy{}, fmt.Errorf("looking for the node of %x: %w", mac, err)
	}
	in.Node, in.State = known, node.State
	if !known {
		c, err := p.State.Collection(ctx)
		if err != nil {
			return dhcpd.Policy{}, fmt.Errorf("looking whether collection is open: %w", err)
		}
		in.Collecting = c.Until.After(now())
	}
	return p.answer(Decide(in), in.Client, node, q), nil
}

// answer puts a decision into DHCP's fields.
func (p *Policy) answer(d Decision, c Client, node cluster.Node, q dhcpd.Query) dhcpd.Policy {
	var a dhcpd.Policy
	switch d.Address {
	case NoAddress:
		return a
	case PoolAddress:
		a.Pool = true
	case OwnAddress:
		a.Addr, a.Hostname = node.Addr, node.Name
	}
	switch d.File {
	case TFTPLoader:
		a.BootFile = p.Loaders.name(c.Arch)
	case HTTPLoader:
		// UEFI 2.10, 24.7.3.1: a client takes an answer for HTTP boot only when
		// it says HTTPClient itself.
		a.Vendor60 = "HTTPClient"
		if n := p.Loaders.name(c.Arch); n != "" {
			a.BootFile = fmt.Sprintf("http://%s/boot/%s", p.Server, n)
		}
	case Script:
		a.BootFile = scriptURL(p.Server, cluster.MAC(q.MAC))
	}
	if a.BootFile != "" {
		a.NextServer = p.Server.Addr()
	} else {
		a.Vendor60 = ""
	}
	return a
}

// scriptURL is where iPXE finds its script. The MAC is written out, since
// ${net0/mac} is not the card that boots on a machine with several; iPXE fills
// in the rest itself. The whole stays below the 128 bytes of BOOTP's file
// field, which the longest address of all does too.
func scriptURL(server netip.AddrPort, mac cluster.MAC) string {
	return fmt.Sprintf("http://%s/boot/ipxe?mac=%s&uuid=${uuid}&platform=${platform}&buildarch=${buildarch}", server, macString(mac))
}

func macString(m cluster.MAC) string {
	return fmt.Sprintf("%02x:%02x:%02x:%02x:%02x:%02x", m[0], m[1], m[2], m[3], m[4], m[5])
}
