package dhcpd

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"syscall"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/mdlayher/packet"
	"golang.org/x/net/bpf"
	"golang.org/x/net/ipv4"
	"golang.org/x/sys/unix"
)

// Socket is the Conn of an interface: a UDP socket that is bound to it, and a
// packet socket for frames.
type Socket struct {
	iface  *net.Interface
	udp    *ipv4.PacketConn
	frames *packet.Conn
}

var _ Conn = (*Socket)(nil)

// Listen opens the DHCP server's sockets on one interface. Packets of other
// interfaces do not reach them, whatever they are addressed to.
func Listen(ctx context.Context, iface string) (*Socket, error) {
	ifi, _, err := ethernetInterface(iface)
	if err != nil {
		return nil, err
	}
	// Bound to the interface before the address: the kernel then lets a server
	// of another interface have the same port, but refuses a second one here.
	config := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		return control(c, func(fd int) error {
			return os.NewSyscallError("setsockopt SO_BINDTODEVICE", unix.BindToDevice(fd, iface))
		})
	}}
	conn, err := config.ListenPacket(ctx, "udp4", fmt.Sprintf("0.0.0.0:%d", dhcpv4.ServerPort))
	switch {
	case errors.Is(err, unix.EADDRINUSE):
		return nil, fmt.Errorf("listening for DHCP on %s: another DHCP server runs on this machine (ss -lunp 'sport = :67' shows which; stop it first): %w", iface, err)
	case err != nil:
		return nil, fmt.Errorf("listening for DHCP on %s: %w", iface, err)
	}
	udp := ipv4.NewPacketConn(conn)
	if err := udp.SetControlMessage(ipv4.FlagDst, true); err != nil {
		return nil, errors.Join(fmt.Errorf("asking for the destinations of packets on %s: %w", iface, err), conn.Close())
	}
	// This socket only sends: it is to hear nothing.
	deaf, err := bpf.Assemble([]bpf.Instruction{bpf.RetConstant{Val: 0}})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("assembling a filter: %w", err), conn.Close())
	}
	// Datagram: the kernel writes the frame's header, with the address that the
	// interface has then. A bridge's changes with its ports.
	frames, err := packet.Listen(ifi, packet.Datagram, etherTypeIPv4, &packet.Config{Filter: deaf})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("opening a packet socket on %s: %w", iface, err), conn.Close())
	}
	return &Socket{iface: ifi, udp: udp, frames: frames}, nil
}

// ethernetInterface finds an interface that DHCP can be spoken on.
func ethernetInterface(name string) (*net.Interface, MAC, error) {
	ifi, err := net.InterfaceByName(name)
	if err != nil {
		return nil, MAC{}, fmt.Errorf("looking for the interface %q (ip link shows them): %w", name, err)
	}
	if len(ifi.HardwareAddr) != len(MAC{}) || ifi.Flags&net.FlagBroadcast == 0 {
		return nil, MAC{}, fmt.Errorf("%s is not an Ethernet interface", name)
	}
	if ifi.Flags&net.FlagUp == 0 {
		return nil, MAC{}, fmt.Errorf("%s is down (ip link set %s up)", name, name)
	}
	return ifi, MAC(ifi.HardwareAddr), nil
}

func control(c syscall.RawConn, set func(fd int) error) error {
	var failed error
	if err := c.Control(func(fd uintptr) { failed = set(int(fd)) }); err != nil {
		return err
	}
	return failed
}

// Interface implements Conn.
func (s *Socket) Interface() string { return s.iface.Name }

// Read implements Conn.
func (s *Socket) Read(ctx context.Context, buf []byte) (Arrival, error) {
	stop := context.AfterFunc(ctx, func() { _ = s.udp.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	n, control, from, err := s.udp.ReadFrom(buf)
	if err != nil {
		return Arrival{}, fmt.Errorf("reading from %s: %w", s.iface.Name, err)
	}
	a := Arrival{N: n}
	if udp, ok := from.(*net.UDPAddr); ok {
		a.From = udp.AddrPort().Addr().Unmap()
	}
	if control != nil {
		a.Broadcast = control.Dst.Equal(net.IPv4bcast) || s.directed(control.Dst)
	}
	return a, nil
}

// directed says whether dst is the broadcast address of a subnet of the
// interface, as it is now.
func (s *Socket) directed(dst net.IP) bool {
	d, ok := netip.AddrFromSlice(dst.To4())
	if !ok || d.As4()[3]&1 == 0 { // broadcast addresses end in a one
		return false
	}
	addrs, err := s.iface.Addrs()
	if err != nil {
		return false
	}
	for _, a := range addrs {
		if p, err := netip.ParsePrefix(a.String()); err == nil && p.Addr().Is4() && p.Bits() < 31 {
			if (Subnet{Prefix: p}).broadcast() == d {
				return true
			}
		}
	}
	return false
}

// Send implements Conn.
func (s *Socket) Send(message []byte, to Destination) error {
	if to.MAC != (MAC{}) {
		from := netip.AddrPortFrom(to.From, dhcpv4.ServerPort)
		if _, err := s.frames.WriteTo(udpPacket(from, to.Addr, message), &packet.Addr{HardwareAddr: to.MAC[:]}); err != nil {
			return fmt.Errorf("sending a frame to %v on %s: %w", to.MAC, s.iface.Name, err)
		}
		return nil
	}
	cm := &ipv4.ControlMessage{Src: to.From.AsSlice(), IfIndex: s.iface.Index}
	if _, err := s.udp.WriteTo(message, cm, net.UDPAddrFromAddrPort(to.Addr)); err != nil {
		return fmt.Errorf("sending to %v on %s: %w", to.Addr, s.iface.Name, err)
	}
	return nil
}

// InUse implements Conn by ARP (RFC 5227): who has the address answers.
func (s *Socket) InUse(ctx context.Context, addr netip.Addr, wait time.Duration) (MAC, bool, error) {
	ifi, mac, err := ethernetInterface(s.iface.Name)
	if err != nil {
		return MAC{}, false, err
	}
	if own(addr) {
		return mac, true, nil
	}
	conn, err := packet.Listen(ifi, packet.Raw, etherTypeARP, nil)
	if err != nil {
		return MAC{}, false, fmt.Errorf("opening a packet socket for ARP on %s: %w", s.iface.Name, err)
	}
	defer conn.Close() // nothing was written that could be lost
	var by MAC
	var used bool
	// A second question half-way, since one frame may be lost.
	for range 2 {
		err := ask(ctx, conn, arpProbe(mac, addr), wait/2, func(frame []byte) bool {
			sender, of, ok := arpSender(frame)
			if ok && of == addr && sender != mac {
				by, used = sender, true
			}
			return used
		})
		if err != nil {
			return MAC{}, false, fmt.Errorf("asking for %v on %s: %w", addr, s.iface.Name, err)
		}
		if used {
			break
		}
	}
	return by, used, nil
}

// own says whether addr is this machine's, which does not answer its own ARP.
func own(addr netip.Addr) bool {
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return false
	}
	for _, a := range addrs {
		if p, err := netip.ParsePrefix(a.String()); err == nil && p.Addr() == addr {
			return true
		}
	}
	return false
}

// Close implements Conn.
func (s *Socket) Close() error {
	return errors.Join(s.udp.Close(), s.frames.Close())
}
