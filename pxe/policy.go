package pxe

import (
	"context"
	"fmt"
	"net/netip"

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

// Policy is what dhcpd asks. It implements dhcpd.Handler and dhcpd.Reserver.
type Policy struct {
	State   State
	Loaders Loaders
	Server  netip.AddrPort // of the plain HTTP service, as machines reach it
}

var (
	_ dhcpd.Handler  = (*Policy)(nil)
	_ dhcpd.Reserver = (*Policy)(nil)
)

// Policy implements dhcpd.Handler.
func (p *Policy) Policy(ctx context.Context, q dhcpd.Query) (dhcpd.Policy, error) {
	mac := cluster.MAC(q.MAC)
	c := ClientOf(q)
	if c.Via != Plain && !q.Acknowledge {
		// An OFFER and its ACK are one asking. Noted before anything is decided:
		// with automatic collection the note itself assigns the machine.
		err := p.State.Sight(ctx, cluster.Sighting{
			MAC: mac, Arch: c.Arch.String(), UUID: q.UUID, VendorClass: q.VendorClass, Interface: q.Interface,
		})
		if err != nil {
			return dhcpd.Policy{}, fmt.Errorf("noting %s: %w", mac, err)
		}
	}
	node, known := p.State.NodeByMAC(mac)
	d := Decide(Input{Node: known, State: node.State, Collecting: p.State.Collecting(), Client: c})
	return p.answer(d, c, node, mac), nil
}

// Reserved implements dhcpd.Reserver.
func (p *Policy) Reserved(addr netip.Addr) bool {
	_, ok := p.State.NodeByAddr(addr)
	return ok
}

// answer puts a decision into DHCP's fields.
func (p *Policy) answer(d Decision, c Client, node cluster.Node, mac cluster.MAC) dhcpd.Policy {
	var a dhcpd.Policy
	switch d.Address {
	case NoAddress:
		return a
	case PoolAddress:
		a.Pool = true
	case OwnAddress:
		a.Addr, a.Hostname = node.Addr, node.Name
		a.Gateway, a.Domain = node.Gateway, node.Domain
	}
	name := p.Loaders.name(c.Arch)
	switch {
	case d.File == Script:
		a.BootFile = scriptURL(p.Server, mac)
	case name == "":
		// No loader for this machine: an address, and its firmware goes on.
	case d.File == TFTPLoader:
		// Option 60 stays out: a PXE ROM that reads PXEClient there without the
		// discovery options of vendor option 43 goes looking for a boot server
		// instead of taking the file named here (PXE 2.1, section 2.2.1).
		a.BootFile = name
	case d.File == HTTPLoader:
		// A UEFI HTTP boot client takes an answer only when it says HTTPClient
		// itself (UEFI 2.10, section 24.7.3.1).
		a.BootFile, a.Vendor60 = fmt.Sprintf("http://%s/boot/%s", p.Server, name), "HTTPClient"
	}
	if a.BootFile != "" {
		a.NextServer = p.Server.Addr()
	}
	return a
}

// scriptURL is where iPXE finds its script. The MAC is written out, since
// ${net0/mac} is not the card that boots on a machine with several; iPXE fills
// in the rest itself. The whole stays below the 128 bytes of BOOTP's file
// field, which the longest address of all does too.
func scriptURL(server netip.AddrPort, mac cluster.MAC) string {
	return fmt.Sprintf("http://%s/boot/ipxe?mac=%s&uuid=${uuid}&platform=${platform}&buildarch=${buildarch}", server, mac)
}
