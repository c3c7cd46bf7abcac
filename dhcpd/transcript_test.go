package dhcpd

import (
	"bufio"
	"context"
	"encoding/hex"
	"flag"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
)

var update = flag.Bool("update", false, "write what the server does into testdata/transcripts")

// TestTranscripts plays testdata/transcripts to a server. In those files, a line
// that is indented is what the server did about the command above it.
func TestTranscripts(t *testing.T) {
	files, err := filepath.Glob("testdata/transcripts/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("%d transcripts, %v", len(files), err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			var got string
			synctest.Test(t, func(t *testing.T) { got = play(t, string(want)) })
			if got == string(want) {
				return
			}
			if *update {
				if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			t.Errorf("%s differs (go test -run Transcripts -update, then look at the difference):\n%s", file, got)
		})
	}
}

// play returns the transcript with what the server does now.
func play(t *testing.T, transcript string) string {
	s := &stage{t: t, book: newBook(), leases: newMemory(), log: &logBook{}, tape: newTape()}
	s.config = Config{
		ServerAddr: netip.MustParseAddr("10.77.0.1"),
		Subnet: Subnet{
			Prefix:  netip.MustParsePrefix("10.77.0.0/24"),
			Pool:    Range{netip.MustParseAddr("10.77.0.200"), netip.MustParseAddr("10.77.0.202")},
			Gateway: netip.MustParseAddr("10.77.0.254"),
			DNS:     []netip.Addr{netip.MustParseAddr("10.77.0.1"), netip.MustParseAddr("10.77.0.2")},
			Domain:  "cluster",
		},
		Relayed: []Subnet{{
			Prefix:  netip.MustParsePrefix("10.88.0.0/24"),
			Pool:    Range{netip.MustParseAddr("10.88.0.100"), netip.MustParseAddr("10.88.0.101")},
			Gateway: netip.MustParseAddr("10.88.0.1"),
		}},
		LeaseTime: time.Hour,
	}
	s.start()
	var b strings.Builder
	lines := bufio.NewScanner(strings.NewReader(transcript))
	for lines.Scan() {
		line := lines.Text()
		if strings.HasPrefix(line, "    ") {
			continue
		}
		fmt.Fprintln(&b, line)
		if line == "" || line[0] == '#' {
			continue
		}
		for _, did := range s.do(strings.Fields(line)) {
			fmt.Fprintln(&b, "    "+did)
		}
	}
	s.stop()
	return b.String()
}

// stage is a server and the hands around it.
type stage struct {
	t      *testing.T
	config Config
	book   *book
	leases *memory
	log    *logBook
	tape   *tape
	cancel context.CancelFunc
	ended  chan error
}

func (s *stage) start() {
	ctx, cancel := context.WithCancel(s.t.Context())
	s.cancel, s.ended = cancel, make(chan error, 1)
	server := &Server{Config: s.config, Handler: s.book, Leases: s.leases, Log: slog.New(s.log)}
	go func() { s.ended <- server.Serve(ctx, s.tape) }()
}

func (s *stage) stop() {
	s.cancel()
	if err := <-s.ended; err != nil {
		s.t.Errorf("Serve: %v", err)
	}
}

// do carries out a command and returns what came of it.
func (s *stage) do(words []string) []string {
	args := words[1:]
	switch words[0] {
	case "restart": // without the memory of the one before, but for the leases
		s.stop()
		s.tape = newTape()
		s.start()
	case "advance":
		d, err := time.ParseDuration(args[0])
		s.check(err)
		time.Sleep(d)
	case "policy":
		p := policyFrom(s.t, args[1:])
		if args[0] == "others" {
			s.book.set(MAC{}, p)
		} else {
			s.book.set(mac(s.t, args[0]), p)
		}
	case "reserve":
		s.book.reserved[netip.MustParseAddr(args[0])] = true
	case "user": // of an address, who answers ARP
		if len(args) == 1 {
			delete(s.tape.users, netip.MustParseAddr(args[0]))
		} else {
			s.tape.users[netip.MustParseAddr(args[0])] = mac(s.t, args[1])
		}
	case "disk":
		s.leases.broken = args[0] == "full"
	case "frames":
		s.tape.noMAC = args[0] == "fail"
	case "leases":
		return s.show()
	case "raw":
		b, err := hex.DecodeString(args[0])
		s.check(err)
		return s.send(b, true)
	default:
		return s.packet(words[0], args)
	}
	return nil
}

func (s *stage) check(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
}

func (s *stage) show() []string {
	leases, err := s.leases.All(s.t.Context())
	s.check(err)
	var out []string
	for _, l := range leases {
		line := fmt.Sprintf("%v %v for %v", l.Addr, l.MAC, time.Until(l.Expires).Round(time.Second))
		if l.Declined {
			line += " declined"
		}
		if l.Hostname != "" {
			line += " " + l.Hostname
		}
		out = append(out, line)
	}
	return out
}

func policyFrom(t *testing.T, args []string) Policy {
	var p Policy
	for _, arg := range args {
		k, v, _ := strings.Cut(arg, "=")
		switch k {
		case "none":
		case "addr":
			p.Addr = netip.MustParseAddr(v)
		case "pool":
			p.Pool = true
		case "host":
			p.Hostname = v
		case "boot":
			p.BootFile = v
		case "next":
			p.NextServer = netip.MustParseAddr(v)
		case "60":
			p.Vendor60 = v
		case "gateway":
			p.Gateway = netip.MustParseAddr(v)
		case "domain":
			p.Domain = v
		default:
			t.Fatalf("no policy %q", arg)
		}
	}
	return p
}

var kinds = map[string]dhcpv4.MessageType{
	"discover": dhcpv4.MessageTypeDiscover, "request": dhcpv4.MessageTypeRequest,
	"decline": dhcpv4.MessageTypeDecline, "release": dhcpv4.MessageTypeRelease,
	"inform": dhcpv4.MessageTypeInform, "bootp": dhcpv4.MessageTypeNone, "ack": dhcpv4.MessageTypeAck,
}

// packet sends the server a message of a client.
func (s *stage) packet(kind string, args []string) []string {
	k, ok := kinds[kind]
	if !ok {
		s.t.Fatalf("no command %q", kind)
	}
	m := mac(s.t, args[0])
	msg, err := dhcpv4.New(dhcpv4.WithHwAddr(net.HardwareAddr(m[:])), dhcpv4.WithTransactionID(dhcpv4.TransactionID{1, 2, 3, 4}))
	s.check(err)
	if k != dhcpv4.MessageTypeNone {
		msg.UpdateOption(dhcpv4.OptMessageType(k))
	}
	broadcast := true
	for _, arg := range args[1:] {
		key, v, _ := strings.Cut(arg, "=")
		switch key {
		case "unicast":
			broadcast = false
		case "flag":
			msg.SetBroadcast()
		case "ciaddr":
			msg.ClientIPAddr = net.ParseIP(v)
		case "giaddr":
			msg.GatewayIPAddr, broadcast = net.ParseIP(v), false
		default:
			s.option(msg, key, v)
		}
	}
	return s.send(msg.ToBytes(), broadcast)
}

// option adds an option: NUMBER=VALUE, which is hexadecimal, an address where
// that is what it holds, or text.
func (s *stage) option(msg *dhcpv4.DHCPv4, key, v string) {
	code, err := strconv.ParseUint(key, 10, 8)
	if err != nil {
		s.t.Fatalf("no packet with %q", key)
	}
	b, err := hex.DecodeString(v)
	switch {
	case code == 50 || code == 54:
		b = netip.MustParseAddr(v).AsSlice()
	case err != nil || code == 12 || code == 60 || code == 77:
		b = []byte(v)
	}
	msg.UpdateOption(dhcpv4.OptGeneric(dhcpv4.GenericOptionCode(code), b))
}

// send sends the server a packet and tells what it did.
func (s *stage) send(b []byte, broadcast bool) []string {
	s.tape.in <- arrived{b, broadcast}
	// The server may wait for ARP; two seconds are enough for all it may ask.
	time.Sleep(2 * time.Second)
	synctest.Wait()
	out, asked := s.tape.take()
	var did []string
	for _, addr := range asked {
		did = append(did, "who has "+addr.String())
	}
	for _, line := range s.log.take() {
		if len(out) == 0 || strings.HasPrefix(line, "WARN") || strings.HasPrefix(line, "ERROR") {
			did = append(did, line)
		}
	}
	for _, o := range out {
		did = append(did, describe(s.t, o)...)
	}
	return did
}

// describe tells what a reply says, its options in the order they have.
func describe(t *testing.T, o sent) []string {
	msg, err := dhcpv4.FromBytes(o.message)
	if err != nil {
		t.Fatalf("the server sent %x: %v", o.message, err)
	}
	to := fmt.Sprint(o.to.Addr)
	if o.to.MAC != (MAC{}) {
		to += " at " + o.to.MAC.String()
	}
	fields := ""
	for _, f := range []struct {
		name string
		ip   net.IP
	}{{"yiaddr", msg.YourIPAddr}, {"ciaddr", msg.ClientIPAddr}, {"siaddr", msg.ServerIPAddr}, {"giaddr", msg.GatewayIPAddr}} {
		if !f.ip.IsUnspecified() {
			fields += " " + f.name + "=" + f.ip.String()
		}
	}
	if msg.BootFileName != "" {
		fields += " file=" + msg.BootFileName
	}
	if msg.IsBroadcast() {
		fields += " broadcast"
	}
	lines := []string{fmt.Sprintf("%v from %v to %v", msg.MessageType(), o.to.From, to)}
	if fields != "" {
		lines = append(lines, "fields"+fields)
	}
	options := ""
	for b := o.message[headerLen:]; b[0] != 255; b = b[2+int(b[1]):] {
		options += " " + optionText(b[0], b[2:2+int(b[1])])
	}
	if len(o.message) < minMessage || len(o.message) > maxDatagram-ipUDPLen {
		t.Errorf("a message of %d bytes", len(o.message))
	}
	return append(lines, "options"+options)
}

func optionText(code byte, v []byte) string {
	text := hex.EncodeToString(v)
	switch code {
	case 1, 3, 6, 28, 54:
		var addrs []string
		for ; len(v) >= 4; v = v[4:] {
			addrs = append(addrs, netip.AddrFrom4([4]byte(v)).String())
		}
		text = strings.Join(addrs, ",")
	case 51, 58, 59:
		n, _ := strconv.ParseUint(text, 16, 32)
		text = (time.Duration(n) * time.Second).String()
	case 12, 15, 56, 60, 66, 67:
		text = strconv.Quote(string(v))
	}
	return fmt.Sprintf("%d=%s", code, text)
}
