package dhcpd

import (
	"encoding/binary"
	"net/netip"
)

const (
	etherTypeIPv4 = 0x0800
	etherTypeARP  = 0x0806
	etherLen      = 14
	ipv4Len       = 20
	udpLen        = 8
	protocolUDP   = 17
)

var everyMAC = MAC{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}

// ethernet is a frame's header.
func ethernet(from, to MAC, etherType uint16) []byte {
	b := make([]byte, 0, etherLen+ipv4Len+udpLen+maxDatagram)
	b = append(b, to[:]...)
	b = append(b, from[:]...)
	return binary.BigEndian.AppendUint16(b, etherType)
}

// udpPacket is a UDP datagram in an IP packet, for clients that the kernel
// cannot reach: it would ask by ARP for an address they do not have yet.
func udpPacket(from, to netip.AddrPort, payload []byte) []byte {
	src, dst := from.Addr().As4(), to.Addr().As4()
	ip := make([]byte, ipv4Len+udpLen, ipv4Len+udpLen+len(payload))
	ip[0] = 0x45
	binary.BigEndian.PutUint16(ip[2:], uint16(ipv4Len+udpLen+len(payload)))
	ip[8] = 64
	ip[9] = protocolUDP
	copy(ip[12:], src[:])
	copy(ip[16:], dst[:])
	binary.BigEndian.PutUint16(ip[10:], checksum(sum(0, ip[:ipv4Len])))
	udp := ip[ipv4Len:]
	binary.BigEndian.PutUint16(udp[0:], from.Port())
	binary.BigEndian.PutUint16(udp[2:], to.Port())
	binary.BigEndian.PutUint16(udp[4:], uint16(udpLen+len(payload)))
	ip = append(ip, payload...)
	binary.BigEndian.PutUint16(ip[ipv4Len+6:], udpChecksum(src, dst, ip[ipv4Len:]))
	return ip
}

// udpChecksum is that of a datagram whose checksum field is zero. A result of
// zero is written as its complement: zero means "none" (RFC 768).
func udpChecksum(src, dst [4]byte, udp []byte) uint16 {
	pseudo := append(append(src[:], dst[:]...), 0, protocolUDP)
	pseudo = binary.BigEndian.AppendUint16(pseudo, uint16(len(udp)))
	if c := checksum(sum(sum(0, pseudo), udp)); c != 0 {
		return c
	}
	return 0xffff
}

// sum adds up b for the Internet checksum (RFC 1071). Only the last part of a
// message may be of odd length.
func sum(s uint32, b []byte) uint32 {
	for ; len(b) >= 2; b = b[2:] {
		s += uint32(b[0])<<8 | uint32(b[1])
	}
	if len(b) == 1 {
		s += uint32(b[0]) << 8
	}
	return s
}

func checksum(s uint32) uint16 {
	for s > 0xffff {
		s = s>>16 + s&0xffff
	}
	return ^uint16(s)
}

// udpPayload is what a frame carries to the UDP port, and from whom; false if
// it is some other frame. The checksum is not looked at: that of a packet from
// the same machine is still to be filled in by hardware that never sees it.
func udpPayload(frame []byte, port uint16) (payload []byte, from MAC, ok bool) {
	if len(frame) < etherLen+ipv4Len || binary.BigEndian.Uint16(frame[12:]) != etherTypeIPv4 {
		return nil, MAC{}, false
	}
	from = MAC(frame[6:12])
	ip := frame[etherLen:]
	header, total := int(ip[0]&15)*4, int(binary.BigEndian.Uint16(ip[2:]))
	fragment := binary.BigEndian.Uint16(ip[6:]) & 0x3fff
	if ip[0]>>4 != 4 || ip[9] != protocolUDP || fragment != 0 ||
		header < ipv4Len || total > len(ip) || total < header+udpLen {
		return nil, MAC{}, false
	}
	udp := ip[header:total]
	length := int(binary.BigEndian.Uint16(udp[4:]))
	if binary.BigEndian.Uint16(udp[2:]) != port || length < udpLen || length > len(udp) {
		return nil, MAC{}, false
	}
	return udp[udpLen:length], from, true
}

// arpProbe asks who uses addr, on behalf of no address, so that nobody's cache
// is changed by the question (RFC 5227 section 2.1.1).
func arpProbe(from MAC, addr netip.Addr) []byte {
	b := ethernet(from, everyMAC, etherTypeARP)
	b = append(b, 0, 1, 8, 0, 6, 4, 0, 1) // Ethernet, IPv4, their lengths, request
	b = append(b, from[:]...)
	b = append(b, 0, 0, 0, 0)
	b = append(b, 0, 0, 0, 0, 0, 0)
	return append(b, addr.AsSlice()...)
}

// arpSender is who a frame says uses which address; false if it is no ARP, or
// only a probe.
func arpSender(frame []byte) (MAC, netip.Addr, bool) {
	const arpLen = 28
	if len(frame) < etherLen+arpLen || binary.BigEndian.Uint16(frame[12:]) != etherTypeARP {
		return MAC{}, netip.Addr{}, false
	}
	arp := frame[etherLen:]
	if [6]byte(arp[:6]) != [6]byte{0, 1, 8, 0, 6, 4} {
		return MAC{}, netip.Addr{}, false
	}
	addr := netip.AddrFrom4([4]byte(arp[14:18]))
	return MAC(arp[8:14]), addr, !addr.IsUnspecified()
}
