package dhcpd

import (
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
)

// captures are packets as real clients sent them.
func captures(t testing.TB) map[string][]byte {
	t.Helper()
	files, err := filepath.Glob("testdata/packets/*.bin")
	if err != nil || len(files) == 0 {
		t.Fatalf("%d captures, %v", len(files), err)
	}
	all := make(map[string][]byte)
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		all[strings.TrimSuffix(filepath.Base(file), ".bin")] = b
	}
	return all
}

// TestQueries: what a Handler is told of the packets of real clients.
func TestQueries(t *testing.T) {
	for name, b := range captures(t) {
		r, err := parse(b, true)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		got, err := json.MarshalIndent(r.query("eth1"), "", "\t")
		if err != nil {
			t.Fatal(err)
		}
		golden := "testdata/packets/" + name + ".json"
		if *update {
			if err := os.WriteFile(golden, append(got, '\n'), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(golden)
		if err != nil {
			t.Fatal(err)
		}
		if strings.TrimSpace(string(want)) != string(got) {
			t.Errorf("%s: %s", name, got)
		}
	}
}

func TestUserClass(t *testing.T) {
	for in, want := range map[string]string{
		"":                "",
		"iPXE":            "iPXE", // bare, as iPXE sends it
		"\x04iPXE":        "iPXE", // RFC 3004
		"\x04iPXE\x03abc": "iPXE,abc",
		"gPXE":            "gPXE",
		"\x04iPX":         "?iPX",
		"\x00":            "",
		"a\x1b[2J":        "a?[2J",
	} {
		if got := userClass([]byte(in)); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
	if got := userClass([]byte(strings.Repeat("\x01a", 300))); len(got) > maxUserClass {
		t.Errorf("a user class of %d bytes", len(got))
	}
}

func TestUUID(t *testing.T) {
	for in, want := range map[string]string{
		"0044454c4c300010358052b4c04f4a3332":   "4c4c4544-0030-3510-8052-b4c04f4a3332",
		"0000000000000000000000000000000000":   "",
		"00ffffffffffffffffffffffffffffffff":   "",
		"0144454c4c300010358052b4c04f4a3332":   "",
		"0044454c4c300010358052b4c04f4a3332ff": "",
		"":                                     "",
	} {
		b, err := hex.DecodeString(in)
		if err != nil {
			t.Fatal(err)
		}
		if got := uuid(b); got != want {
			t.Errorf("%s: %q, want %q", in, got, want)
		}
	}
}

func TestArchs(t *testing.T) {
	if got := archs([]byte{0, 7, 0, 9, 1}); len(got) != 2 || got[0] != 7 || got[1] != 9 {
		t.Errorf("%v", got)
	}
	if got := archs(make([]byte, 250)); len(got) != 16 {
		t.Errorf("%d kinds of machine in one", len(got))
	}
}

// A client may put options into the file and sname fields (RFC 2132 section 9.3).
func TestOverload(t *testing.T) {
	msg, err := dhcpv4.New(dhcpv4.WithHwAddr(net.HardwareAddr{0x52, 0x54, 0, 0, 0, 1}),
		dhcpv4.WithGeneric(dhcpv4.GenericOptionCode(optOverload), []byte{3}))
	if err != nil {
		t.Fatal(err)
	}
	b := msg.ToBytes()
	copy(b[108:], []byte{53, 1, byte(dhcpv4.MessageTypeRequest), 255})
	copy(b[44:], []byte{50, 4, 10, 77, 0, 11, 255})
	r, err := parse(b, true)
	if err != nil || r.kind != dhcpv4.MessageTypeRequest || r.requested != netip.MustParseAddr("10.77.0.11") {
		t.Errorf("%+v, %v", r, err)
	}
	copy(b[108:], []byte{53, 200})
	if _, err := parse(b, true); err == nil {
		t.Error("an option longer than the field it is in was taken")
	}
}

// FuzzParse: whatever comes in, there is a query or an error, and what the
// server answers is a message that a client can read.
func FuzzParse(f *testing.F) {
	for _, b := range captures(f) {
		f.Add(b, true)
		f.Add(b[:len(b)-1], false)
		withRelay := append([]byte(nil), b...)
		copy(withRelay[24:], []byte{10, 77, 0, 9})
		f.Add(withRelay, false)
		request := append([]byte(nil), b...)
		request[242] = byte(dhcpv4.MessageTypeRequest)
		copy(request[12:], []byte{10, 77, 0, 200})
		f.Add(request, false)
	}
	config, err := Config{
		ServerAddr: netip.MustParseAddr("10.77.0.1"),
		Subnet: Subnet{
			Prefix: netip.MustParsePrefix("10.77.0.0/24"),
			Pool:   Range{netip.MustParseAddr("10.77.0.200"), netip.MustParseAddr("10.77.0.202")},
		},
	}.checked()
	if err != nil {
		f.Fatal(err)
	}
	policy := Policy{Pool: true, Hostname: "node", BootFile: "undionly.kpxe", Vendor60: "PXEClient"}
	f.Fuzz(func(t *testing.T, b []byte, broadcast bool) {
		r, err := parse(b, broadcast)
		if err != nil {
			return
		}
		q := r.query("eth1")
		for _, s := range []string{q.VendorClass, q.UserClass, q.Hostname} {
			if len(s) > 1024 || strings.ContainsAny(s, "\x00\x1b\n") {
				t.Errorf("text %q", s)
			}
		}
		subnet := config.subnetOf(r)
		if subnet < 0 {
			return
		}
		table := newTable(&config, func(netip.Addr) bool { return false }, nil)
		now := time.Unix(1e9, 0)
		o := table.decide(r, client{r.mac, subnet}, policy, now)
		if o.ask.IsValid() {
			table.answered(o.ask, client{r.mac, subnet}, answer{at: now}, policy)
			o = table.decide(r, client{r.mac, subnet}, policy, now)
		}
		if o.reply == dhcpv4.MessageTypeNone {
			return
		}
		checkReply(t, &config, r, policy, o)
	})
}

// checkReply says what is wrong with a reply to r.
func checkReply(t *testing.T, config *Config, r *request, p Policy, o outcome) {
	reply := message(config, config.subnet(0), r, p, o)
	limit := minMaxDatagram
	if v := r.msg.Options.Get(dhcpv4.OptionMaximumDHCPMessageSize); len(v) == 2 {
		limit = min(max(limit, int(binary.BigEndian.Uint16(v))), maxDatagram)
	}
	if len(reply) < minMessage || len(reply) > limit-ipUDPLen {
		t.Errorf("%d bytes, where the client takes a datagram of %d", len(reply), limit)
	}
	msg, err := dhcpv4.FromBytes(reply)
	if err != nil {
		t.Fatalf("the reply %x: %v", reply, err)
	}
	if msg.MessageType() != o.reply || msg.TransactionID != r.msg.TransactionID || MAC(msg.ClientHWAddr) != r.mac {
		t.Errorf("%v in answer to %v", msg, r.msg)
	}
	to := destination(config, r, o)
	if !to.Addr.IsValid() || to.From != config.ServerAddr {
		t.Errorf("sent to %v from %v", to.Addr, to.From)
	}
	// Nobody may aim replies at addresses that are not this network's.
	if a := to.Addr.Addr(); a != everybody && a != r.giaddr && !config.Subnet.Prefix.Contains(a) {
		t.Errorf("sent to %v", a)
	}
}
