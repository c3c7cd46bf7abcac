package dhcpd

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/mdlayher/packet"
)

// Thousands of spoilt packets, while a real client gets its lease.
func TestSpoiltPackets(t *testing.T) {
	w := newOnWire(t, "lan0", lanConfig(77))
	w.book.set(mac(t, blank), Policy{Addr: netip.MustParseAddr("10.77.0.11")})
	w.book.set(MAC{}, Policy{Pool: true})
	enemy, h := newHost(t, w.lan, other), newHost(t, w.lan, blank)
	var good [][]byte
	for _, b := range captures(t) {
		good = append(good, b)
	}
	slices.SortFunc(good, slices.Compare)
	enemy.in(t, func() error {
		ifi, err := net.InterfaceByName("eth0")
		if err != nil {
			return err
		}
		conn, err := packet.Listen(ifi, packet.Raw, etherTypeIPv4, nil)
		if err != nil {
			return err
		}
		t.Cleanup(func() { conn.Close() })
		flooded := make(chan error, 1)
		stop := make(chan struct{})
		go func() { flooded <- flood(conn, good, stop) }()
		for range 3 {
			if addr, notes := udhcpc(t, h); addr != "10.77.0.11" {
				t.Errorf("address %q: %s", addr, notes)
			}
		}
		close(stop)
		return <-flooded
	})
	if addr, notes := udhcpc(t, h); addr != "10.77.0.11" {
		t.Errorf("afterwards: address %q: %s", addr, notes)
	}
	if n := len(w.log.take()); n > 1000 {
		t.Errorf("%d lines in the log", n)
	}
}

// flood sends 3000 packets at least, and goes on until stop.
func flood(conn *packet.Conn, good [][]byte, stop <-chan struct{}) error {
	r := rand.New(rand.NewPCG(1, 2))
	from := netip.AddrPortFrom(netip.IPv4Unspecified(), dhcpv4.ClientPort)
	to := netip.AddrPortFrom(everybody, dhcpv4.ServerPort)
	for i := 0; ; i++ {
		select {
		case <-stop:
			if i >= 3000 {
				return nil
			}
		default:
		}
		frame := udpFrame(from, to, spoilt(r, good[r.IntN(len(good))]))
		copy(frame, everyMAC[:])
		if _, err := conn.WriteTo(frame, &packet.Addr{HardwareAddr: everyMAC[:]}); err != nil {
			return err
		}
		if i%50 == 0 {
			time.Sleep(10 * time.Millisecond) // a flood, but one that leaves the machine to others
		}
	}
}

// spoilt is a good packet after an accident.
func spoilt(r *rand.Rand, good []byte) []byte {
	b := slices.Clone(good)
	switch r.IntN(4) {
	case 0:
		return b[:r.IntN(len(b))]
	case 1:
		for i := range b {
			b[i] = byte(r.Uint32())
		}
	default:
		for range 1 + r.IntN(20) {
			b[r.IntN(len(b))] = byte(r.Uint32())
		}
	}
	return b
}

// A pool that strangers have emptied: known machines are served as ever, the
// others met with silence, and the log says why, not too often.
func TestPoolExhausted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &stage{t: t, book: newBook(), leases: newMemory(), log: &logBook{}, tape: newTape(), config: lanConfig(77)}
		s.config.ProbeTime = -1
		s.book.set(MAC{}, Policy{Pool: true})
		s.book.set(mac(t, blank), Policy{Addr: netip.MustParseAddr("10.77.0.11")})
		s.start()
		for i := range 500 {
			s.tape.in <- arrived{message4(t, MAC{2, 0, 0, 0, byte(i >> 8), byte(i)}, dhcpv4.MessageTypeDiscover), true}
		}
		synctest.Wait()
		offers, _ := s.tape.take()
		if len(offers) != 10 {
			t.Errorf("%d offers from a pool of 10", len(offers))
		}
		full := 0
		for _, line := range s.log.take() {
			if strings.Contains(line, "the pool has no free address") {
				full++
			}
		}
		if full == 0 || full > 2*logBurst {
			t.Errorf("%d lines say that the pool is empty", full)
		}
		s.tape.in <- arrived{message4(t, mac(t, blank), dhcpv4.MessageTypeDiscover), true}
		synctest.Wait()
		if offers, _ := s.tape.take(); len(offers) != 1 {
			t.Errorf("%d offers to a known machine", len(offers))
		}
		s.stop()
	})
}

func message4(t *testing.T, m MAC, kind dhcpv4.MessageType, options ...dhcpv4.Modifier) []byte {
	t.Helper()
	msg, err := dhcpv4.New(append(options, dhcpv4.WithHwAddr(net.HardwareAddr(m[:])), dhcpv4.WithMessageType(kind))...)
	if err != nil {
		t.Fatal(err)
	}
	return msg.ToBytes()
}

// Five hundred machines are switched on together. Nobody's lease waits for a
// disk write of its own, and no address is given twice.
func TestManyClientsTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const machines = 500
		leases := batched{newMemory(), 10 * time.Millisecond}
		s := &stage{t: t, book: newBook(), leases: leases.memory, log: &logBook{}, tape: newTape(), config: lanConfig(77)}
		s.config.Subnet.Prefix = netip.MustParsePrefix("10.77.0.0/16")
		s.config.Subnet.Pool = Range{netip.MustParseAddr("10.77.4.0"), netip.MustParseAddr("10.77.6.0")}
		s.book.set(MAC{}, Policy{Pool: true})
		server := &Server{Config: s.config, Handler: s.book, Leases: leases}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- server.Serve(ctx, s.tape) }()
		start := time.Now()
		for i := range machines {
			s.tape.in <- arrived{message4(t, MAC{2, 0, 0, 0, byte(i >> 8), byte(i)}, dhcpv4.MessageTypeDiscover), true}
		}
		time.Sleep(time.Second)
		offers, _ := s.tape.take()
		for _, o := range offers {
			offer, err := dhcpv4.FromBytes(o.message)
			if err != nil {
				t.Fatal(err)
			}
			s.tape.in <- arrived{message4(t, MAC(offer.ClientHWAddr), dhcpv4.MessageTypeRequest,
				dhcpv4.WithOption(dhcpv4.OptRequestedIPAddress(offer.YourIPAddr)),
				dhcpv4.WithOption(dhcpv4.OptServerIdentifier(offer.ServerIdentifier()))), true}
		}
		time.Sleep(time.Second)
		acks, _ := s.tape.take()
		given := make(map[string]bool)
		for _, a := range acks {
			if ack, err := dhcpv4.FromBytes(a.message); err != nil || ack.MessageType() != dhcpv4.MessageTypeAck {
				t.Errorf("%v, %v", ack, err)
			}
			given[fmt.Sprint(a.to.Addr)] = true
		}
		if len(given) != machines || time.Since(start) > 3*time.Second {
			t.Errorf("%d machines have addresses of their own after %v", len(given), time.Since(start))
		}
		if leases.writes > 20 {
			t.Errorf("%d writes for %d leases", leases.writes, machines)
		}
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
}
