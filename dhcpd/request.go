package dhcpd

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/iana"
)

// maxMessage is the longest packet that is looked at. Messages travel in one
// Ethernet frame; a longer one is no client's.
const maxMessage = 1500

// The options the library has no name for, and those used as bare numbers.
const (
	optOverload  = 52  // RFC 2132 section 9.3: which fields hold options too
	optIPXE      = 175 // iPXE's own encapsulated options
	subLinkIPv4  = 5   // RFC 3527: of option 82, the client's subnet
	maxUserClass = 255
)

// request is a client's packet, taken apart. Addresses that are zero in the
// packet are invalid here.
type request struct {
	msg       *dhcpv4.DHCPv4
	kind      dhcpv4.MessageType
	mac       MAC
	ciaddr    netip.Addr // what the client says it has
	giaddr    netip.Addr // the relay it came through
	link      netip.Addr // an address of the client's subnet, by the relay's word
	requested netip.Addr // option 50
	server    netip.Addr // option 54
	broadcast bool       // it was sent to all
}

// parse takes a packet apart, or says why it is nobody's request.
func parse(b []byte, broadcast bool) (*request, error) {
	if len(b) > maxMessage {
		return nil, fmt.Errorf("%d bytes are too long for a DHCP message", len(b))
	}
	msg, err := dhcpv4.FromBytes(b)
	if err != nil {
		return nil, fmt.Errorf("parsing %d bytes: %w", len(b), err)
	}
	if msg.OpCode != dhcpv4.OpcodeBootRequest {
		return nil, errors.New("not a request")
	}
	if msg.HWType != iana.HWTypeEthernet || len(msg.ClientHWAddr) != len(MAC{}) {
		return nil, fmt.Errorf("hardware type %d with %d octets of address is not Ethernet", msg.HWType, len(msg.ClientHWAddr))
	}
	if msg.HopCount > 16 { // RFC 1542 section 4.1.1
		return nil, fmt.Errorf("relayed %d times", msg.HopCount)
	}
	r := &request{
		msg: msg, mac: MAC(msg.ClientHWAddr), broadcast: broadcast,
		ciaddr: addrFrom(msg.ClientIPAddr), giaddr: addrFrom(msg.GatewayIPAddr),
	}
	if !r.mac.unicast() {
		return nil, fmt.Errorf("%v is not a machine's address", r.mac)
	}
	if err := overloaded(b, msg.Options); err != nil {
		return nil, err
	}
	if r.kind = msg.MessageType(); r.kind == dhcpv4.MessageTypeNone {
		return nil, errors.New("no message type: BOOTP, or not DHCP at all")
	}
	if r.requested, err = r.addrOption(dhcpv4.OptionRequestedIPAddress); err != nil {
		return nil, err
	}
	if r.server, err = r.addrOption(dhcpv4.OptionServerIdentifier); err != nil {
		return nil, err
	}
	if r.giaddr.IsValid() {
		r.broadcast = true // relays carry nothing else
		r.link = r.giaddr
		if link := r.linkSelection(); link.IsValid() {
			r.link = link
		}
	}
	return r, nil
}

// overloaded adds the options a client put in the file and sname fields, in
// the order RFC 2131 section 4.1 gives.
func overloaded(b []byte, options dhcpv4.Options) error {
	v := options[optOverload]
	if len(v) != 1 {
		return nil
	}
	if v[0]&1 != 0 {
		if err := options.FromBytes(b[108:236]); err != nil {
			return fmt.Errorf("parsing the options in the file field: %w", err)
		}
	}
	if v[0]&2 != 0 {
		if err := options.FromBytes(b[44:108]); err != nil {
			return fmt.Errorf("parsing the options in the sname field: %w", err)
		}
	}
	return nil
}

func addrFrom(ip net.IP) netip.Addr {
	a, ok := netip.AddrFromSlice(ip.To4())
	if !ok || a.IsUnspecified() {
		return netip.Addr{}
	}
	return a
}

func (r *request) addrOption(code dhcpv4.OptionCode) (netip.Addr, error) {
	v := r.msg.Options.Get(code)
	if v == nil {
		return netip.Addr{}, nil
	}
	if len(v) != net.IPv4len {
		return netip.Addr{}, fmt.Errorf("option %d has %d bytes, not an address", code.Code(), len(v))
	}
	return addrFrom(v), nil
}

func (r *request) linkSelection() netip.Addr {
	sub := dhcpv4.Options{}
	if sub.FromBytes(r.msg.Options.Get(dhcpv4.OptionRelayAgentInformation)) != nil {
		return netip.Addr{}
	}
	if v := sub[subLinkIPv4]; len(v) == net.IPv4len {
		return addrFrom(v)
	}
	return netip.Addr{}
}

// query is the packet in the plain fields a Handler gets.
func (r *request) query(iface string) Query {
	o := r.msg.Options
	q := Query{
		MAC:         r.mac,
		ClientID:    o.Get(dhcpv4.OptionClientIdentifier),
		Interface:   iface,
		Relay:       r.giaddr,
		Arch:        archs(o.Get(dhcpv4.OptionClientSystemArchitectureType)),
		VendorClass: printable(o.Get(dhcpv4.OptionClassIdentifier)),
		UserClass:   userClass(o.Get(dhcpv4.OptionUserClassInformation)),
		UUID:        uuid(o.Get(dhcpv4.OptionClientMachineIdentifier)),
		Hostname:    printable(o.Get(dhcpv4.OptionHostName)),
		Acknowledge: r.kind == dhcpv4.MessageTypeRequest || r.kind == dhcpv4.MessageTypeInform,
	}
	q.HTTPBoot = strings.HasPrefix(q.VendorClass, "HTTPClient")
	_, own := o[optIPXE]
	q.IPXE = own || q.UserClass == "iPXE"
	q.PXE = q.HTTPBoot || q.IPXE || strings.HasPrefix(q.VendorClass, "PXEClient")
	return q
}

// archs reads option 93. RFC 4578 section 2.1 lets a client name several.
func archs(v []byte) []uint16 {
	var list []uint16
	for len(v) >= 2 && len(list) < 16 {
		list = append(list, binary.BigEndian.Uint16(v))
		v = v[2:]
	}
	return list
}

// userClass reads option 77. RFC 3004 wants each class to follow its length,
// but iPXE and Microsoft send the bare text.
func userClass(v []byte) string {
	if len(v) > maxUserClass {
		v = v[:maxUserClass]
	}
	var classes []string
	for rest := v; ; {
		if len(rest) == 0 {
			return strings.Join(classes, ",")
		}
		n := int(rest[0])
		if n == 0 || n >= len(rest) {
			return printable(v)
		}
		classes = append(classes, printable(rest[1:1+n]))
		rest = rest[1+n:]
	}
}

// uuid reads option 97 as SMBIOS and dmidecode write it: on the wire, the first
// three fields are little-endian, as in EFI. Firmware without one sends all
// zeros or all ones.
func uuid(v []byte) string {
	if len(v) != 17 || v[0] != 0 {
		return ""
	}
	u := [16]byte(v[1:])
	same := true
	for _, b := range u {
		same = same && b == u[0]
	}
	if same && (u[0] == 0 || u[0] == 0xff) {
		return ""
	}
	u[0], u[1], u[2], u[3] = u[3], u[2], u[1], u[0]
	u[4], u[5] = u[5], u[4]
	u[6], u[7] = u[7], u[6]
	s := hex.EncodeToString(u[:])
	return s[:8] + "-" + s[8:12] + "-" + s[12:16] + "-" + s[16:20] + "-" + s[20:]
}

// printable is text of the network that may be shown on a terminal. Some
// firmware ends its strings with NULs.
func printable(v []byte) string {
	if len(v) > 255 {
		v = v[:255]
	}
	s := strings.TrimRight(string(v), "\x00")
	return strings.Map(func(c rune) rune {
		if c < ' ' || c > '~' {
			return '?'
		}
		return c
	}, s)
}

// subnetOf says which subnet the client is on: the relay's, or that of the
// address a client extends by a packet to the server alone (which a router may
// have carried), or else the interface's own. It is -1 when nothing is known of
// the subnet.
func (c *Config) subnetOf(r *request) int {
	if r.link.IsValid() {
		return c.subnetWith(r.link)
	}
	if r.ciaddr.IsValid() && !r.broadcast {
		if i := c.subnetWith(r.ciaddr); i >= 0 {
			return i
		}
	}
	return 0
}

// subnetWith is the number of the subnet that addr is in: 0 is the interface's
// own, the relayed ones follow.
func (c *Config) subnetWith(addr netip.Addr) int {
	for i := range 1 + len(c.Relayed) {
		if c.subnet(i).Prefix.Contains(addr) {
			return i
		}
	}
	return -1
}

func (c *Config) subnet(i int) *Subnet {
	if i == 0 {
		return &c.Subnet
	}
	return &c.Relayed[i-1]
}
