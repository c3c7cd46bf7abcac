package dhcpd

import (
	"bytes"
	"net/netip"
	"testing"

	"golang.org/x/net/ipv4"
)

var (
	macA = MAC{2, 0, 0, 0, 0, 0xa}
	macB = MAC{2, 0, 0, 0, 0, 0xb}
)

// udpFrame is a datagram in a frame from A to B.
func udpFrame(from, to netip.AddrPort, payload []byte) []byte {
	return append(ethernet(macA, macB, etherTypeIPv4), udpPacket(from, to, payload)...)
}

func TestUDPFrame(t *testing.T) {
	from, to := netip.MustParseAddrPort("10.77.0.1:67"), netip.MustParseAddrPort("10.77.0.11:68")
	for _, n := range []int{0, 1, 2, 300, 301, 1472} {
		payload := bytes.Repeat([]byte{0xa5}, n)
		frame := udpFrame(from, to, payload)
		h, err := ipv4.ParseHeader(frame[etherLen:])
		if err != nil || h.Dst.String() != "10.77.0.11" || h.Src.String() != "10.77.0.1" || h.TotalLen != len(frame)-etherLen {
			t.Errorf("header %v, %v", h, err)
		}
		// A sum over a message with its right checksum is all ones (RFC 1071).
		if c := checksum(sum(0, frame[etherLen:etherLen+ipv4Len])); c != 0 {
			t.Errorf("%d bytes: checksum of the header is off by %x", n, c)
		}
		src, dst := from.Addr().As4(), to.Addr().As4()
		if c := udpChecksum(src, dst, frame[etherLen+ipv4Len:]); c != 0xffff {
			t.Errorf("%d bytes: checksum of the datagram is off by %x", n, c)
		}
		got, sender, ok := udpPayload(frame, 68)
		if !ok || sender != macA || !bytes.Equal(got, payload) {
			t.Errorf("%d bytes came back as %d from %v, %v", n, len(got), sender, ok)
		}
		if _, _, ok := udpPayload(frame, 67); ok {
			t.Error("a datagram for another port was taken")
		}
	}
}

// The packet that RFC 5227 calls a probe, byte by byte.
func TestARPProbe(t *testing.T) {
	want := []byte{
		0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 0, 0xa, 8, 6,
		0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0, 0xa, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 10, 77, 0, 200,
	}
	frame := arpProbe(macA, netip.MustParseAddr("10.77.0.200"))
	if !bytes.Equal(frame, want) {
		t.Errorf("% x", frame)
	}
	if _, _, ok := arpSender(frame); ok {
		t.Error("a probe was taken for a claim")
	}
	reply := bytes.Clone(frame)
	reply[21] = 2
	copy(reply[22:], macB[:])
	copy(reply[28:], []byte{10, 77, 0, 200})
	if by, addr, ok := arpSender(reply); !ok || by != macB || addr != netip.MustParseAddr("10.77.0.200") {
		t.Errorf("%v has %v, %v", by, addr, ok)
	}
}

func FuzzFrames(f *testing.F) {
	from, to := netip.MustParseAddrPort("10.77.0.1:67"), netip.MustParseAddrPort("10.77.0.11:68")
	f.Add(udpFrame(from, to, []byte("payload")))
	f.Add(arpProbe(macA, to.Addr()))
	for _, b := range captures(f) {
		b[0] = 2
		f.Add(udpFrame(from, to, b))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if payload, _, ok := udpPayload(b, 68); ok && len(payload) > len(b) {
			t.Errorf("%d bytes of payload in a frame of %d", len(payload), len(b))
		}
		arpSender(b)
		rivalIn(b, macA, [4]byte{1, 2, 3, 4})
	})
}
