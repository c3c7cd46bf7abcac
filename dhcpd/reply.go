package dhcpd

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
)

const (
	headerLen  = 240 // the fixed fields and the magic cookie
	fileLen    = 128 // of the file field
	minMessage = 300 // RFC 951; some relays drop what is shorter
	// A client that does not say more accepts a datagram of 576 bytes (RFC 2131
	// section 2), of which IP and UDP take 28. More than a frame is never sent.
	minMaxDatagram = 576
	maxDatagram    = 1500
	ipUDPLen       = 28
)

// pxeBootDirectly is option 43 for PXE firmware: discovery control (6) with bit
// 3, "take the boot file that this packet names". Without it some firmware goes
// looking for boot servers on port 4011.
var pxeBootDirectly = []byte{6, 1, 8, 255}

// option is one option of a reply.
type option struct {
	code byte
	data []byte
}

// options collects a reply's options, the most important ones first.
type options struct {
	list    []option
	request *request
}

// add adds the option if it has a value.
func (o *options) add(code dhcpv4.OptionCode, data []byte) {
	if len(data) > 0 {
		o.list = append(o.list, option{code.Code(), data})
	}
}

// addAsked adds the option if it has a value and the client asked for it.
func (o *options) addAsked(code dhcpv4.OptionCode, data []byte) {
	if o.request.msg.IsOptionRequested(code) {
		o.add(code, data)
	}
}

// echo adds the client's own option.
func (o *options) echo(code dhcpv4.OptionCode) {
	o.add(code, o.request.msg.Options.Get(code))
}

// message is the outcome's reply to r, as it goes on the wire.
func message(c *Config, s *Subnet, r *request, p Policy, o outcome) []byte {
	list := options{request: r}
	list.add(dhcpv4.OptionDHCPMessageType, []byte{byte(o.reply)})
	list.add(dhcpv4.OptionServerIdentifier, c.ServerAddr.AsSlice())
	list.echo(dhcpv4.OptionRelayAgentInformation) // RFC 3046 section 2.2
	list.echo(dhcpv4.OptionClientIdentifier)      // RFC 6842
	if o.reply == dhcpv4.MessageTypeNak {
		list.add(dhcpv4.OptionMessage, []byte(o.why))
		b := header(r, netip.Addr{}, netip.Addr{}, "")
		if r.giaddr.IsValid() {
			b[10] |= 0x80 // so that the relay broadcasts it (RFC 2131 section 4.3.2)
		}
		return list.marshal(b, r)
	}
	list.addConfig(s, p, o)
	var next netip.Addr
	if p.BootFile != "" {
		if next = p.NextServer; !next.IsValid() {
			next = c.ServerAddr
		}
		list.addBoot(p, next)
	}
	list.addTimes(s, o)
	return list.marshal(header(r, o.addr, next, p.BootFile), r)
}

// addConfig adds what every client needs to know of its network.
func (o *options) addConfig(s *Subnet, p Policy, out outcome) {
	if out.term > 0 {
		o.add(dhcpv4.OptionIPAddressLeaseTime, seconds(out.term))
	}
	mask := uint32(0xffffffff) << (32 - s.Prefix.Bits())
	o.add(dhcpv4.OptionSubnetMask, binary.BigEndian.AppendUint32(nil, mask))
	gateway, domain := s.Gateway, s.Domain
	if p.Gateway.Is4() {
		gateway = p.Gateway
	}
	if p.Domain != "" {
		domain = p.Domain
	}
	if gateway.IsValid() {
		o.addAsked(dhcpv4.OptionRouter, gateway.AsSlice())
	}
	o.addAsked(dhcpv4.OptionHostName, []byte(p.Hostname))
	o.addAsked(dhcpv4.OptionDomainName, []byte(domain))
	var dns []byte
	for _, d := range s.DNS {
		dns = append(dns, d.AsSlice()...)
	}
	o.addAsked(dhcpv4.OptionDomainNameServer, dns)
}

// addBoot adds where to boot from. Firmware gets these whether or not it asked:
// some does not ask for what it cannot do without.
func (o *options) addBoot(p Policy, next netip.Addr) {
	o.add(dhcpv4.OptionBootfileName, []byte(p.BootFile))
	o.add(dhcpv4.OptionClassIdentifier, []byte(p.Vendor60))
	if p.Vendor60 == "PXEClient" && strings.HasPrefix(string(o.request.msg.Options.Get(dhcpv4.OptionClassIdentifier)), "PXEClient") {
		o.add(dhcpv4.OptionVendorSpecificInformation, pxeBootDirectly)
	}
	// PXE 2.1 wants the client's own UUID back; some firmware insists.
	if v := o.request.msg.Options.Get(dhcpv4.OptionClientMachineIdentifier); len(v) == 17 {
		o.echo(dhcpv4.OptionClientMachineIdentifier)
	}
	o.add(dhcpv4.OptionTFTPServerName, []byte(next.String()))
}

// addTimes adds what clients can work out for themselves.
func (o *options) addTimes(s *Subnet, out outcome) {
	if out.term > 0 {
		o.add(dhcpv4.OptionRenewTimeValue, seconds(out.term/2))
		o.add(dhcpv4.OptionRebindingTimeValue, seconds(out.term/8*7))
	}
	o.addAsked(dhcpv4.OptionBroadcastAddress, s.broadcast().AsSlice())
}

func seconds(d time.Duration) []byte {
	return binary.BigEndian.AppendUint32(nil, uint32(min(d/time.Second, 0xffffffff)))
}

// header is the fixed part of a reply (RFC 2131 table 3). The boot file goes in
// the file field too, where old firmware looks; a name that is too long for it
// is for clients that know option 67.
func header(r *request, yours, next netip.Addr, file string) []byte {
	b := make([]byte, headerLen, maxDatagram)
	b[0], b[1], b[2] = byte(dhcpv4.OpcodeBootReply), byte(r.msg.HWType), byte(len(r.mac))
	copy(b[4:8], r.msg.TransactionID[:])
	binary.BigEndian.PutUint16(b[10:], r.msg.Flags&0x8000) // the others must be zero
	if r.kind != dhcpv4.MessageTypeDiscover && yours.IsValid() || r.kind == dhcpv4.MessageTypeInform {
		put(b[12:16], r.ciaddr)
	}
	put(b[16:20], yours)
	put(b[20:24], next)
	put(b[24:28], r.giaddr)
	copy(b[28:], r.mac[:])
	if len(file) < fileLen {
		copy(b[108:108+fileLen], file)
	}
	copy(b[236:], []byte{99, 130, 83, 99})
	return b
}

func put(b []byte, a netip.Addr) {
	if a.Is4() {
		copy(b, a.AsSlice())
	}
}

// marshal writes the options behind the header: as many as the client can take,
// the message type first, then in the order in which the client asked for them,
// the relay's own last.
func (o *options) marshal(b []byte, r *request) []byte {
	room := minMaxDatagram
	if v, err := r.msg.MaxMessageSize(); err == nil {
		room = min(max(room, int(v)), maxDatagram)
	}
	room -= ipUDPLen + len(b) + 1 // the end option
	var kept []option
	for _, opt := range o.list {
		if size := opt.size(); size <= room {
			kept = append(kept, opt)
			room -= size
		}
	}
	place := make(map[byte]int)
	for i, code := range []dhcpv4.OptionCode{
		dhcpv4.OptionDHCPMessageType, dhcpv4.OptionServerIdentifier, dhcpv4.OptionIPAddressLeaseTime,
	} {
		place[code.Code()] = i - 3
	}
	for i, code := range r.msg.Options.Get(dhcpv4.OptionParameterRequestList) {
		if _, ok := place[code]; !ok {
			place[code] = i
		}
	}
	order := func(opt option) int {
		switch i, ok := place[opt.code]; {
		case opt.code == dhcpv4.OptionRelayAgentInformation.Code():
			return 1 << 20
		case ok:
			return i
		}
		return 1 << 16
	}
	slices.SortStableFunc(kept, func(a, b option) int { return order(a) - order(b) })
	for _, opt := range kept {
		b = opt.append(b)
	}
	b = append(b, dhcpv4.OptionEnd.Code())
	for len(b) < minMessage {
		b = append(b, dhcpv4.OptionPad.Code())
	}
	return b
}

// size is the option's length on the wire.
func (o option) size() int {
	return len(o.data) + 2*((len(o.data)+254)/255)
}

// append writes the option; one of more than 255 bytes in parts (RFC 3396).
func (o option) append(b []byte) []byte {
	for data := o.data; len(data) > 0; {
		part := data[:min(len(data), 255)]
		b = append(b, o.code, byte(len(part)))
		b = append(b, part...)
		data = data[len(part):]
	}
	return b
}

// everybody is the limited broadcast address.
var everybody = netip.AddrFrom4([4]byte{255, 255, 255, 255})

// destination is where a reply goes (RFC 2131 section 4.1).
func destination(c *Config, r *request, o outcome) Destination {
	d := Destination{From: c.ServerAddr}
	to := func(a netip.Addr, port uint16) Destination {
		d.Addr = netip.AddrPortFrom(a, port)
		return d
	}
	switch {
	case r.giaddr.IsValid():
		return to(r.giaddr, dhcpv4.ServerPort)
	case o.reply == dhcpv4.MessageTypeNak && !r.broadcast && c.subnetWith(r.ciaddr) > 0:
		// From behind a router, where a broadcast of ours is not heard.
		return to(r.ciaddr, dhcpv4.ClientPort)
	case o.reply == dhcpv4.MessageTypeNak:
		return to(everybody, dhcpv4.ClientPort)
	case r.ciaddr.IsValid() && (r.ciaddr == o.addr || r.kind == dhcpv4.MessageTypeInform):
		return to(r.ciaddr, dhcpv4.ClientPort)
	case r.msg.IsBroadcast() || !o.addr.IsValid():
		return to(everybody, dhcpv4.ClientPort)
	}
	d.MAC = r.mac
	return to(o.addr, dhcpv4.ClientPort)
}
