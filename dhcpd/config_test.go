package dhcpd

import (
	"encoding/json"
	"net/netip"
	"strings"
	"testing"
	"time"
)

func TestMAC(t *testing.T) {
	want := MAC{0x52, 0x54, 0, 0x12, 0xab, 0xcd}
	for _, s := range []string{
		"52:54:00:12:ab:cd", "52:54:00:12:AB:CD", "52-54-00-12-ab-cd", "5254.0012.abcd", "52540012ABCD",
	} {
		if got, err := ParseMAC(s); err != nil || got != want {
			t.Errorf("ParseMAC(%q) = %v, %v", s, got, err)
		}
	}
	for _, s := range []string{
		"", "52:54:00:12:ab", "52:54:00:12:ab:cd:ef", "52:54:00:12:ab:cg", "5:254:00:12:ab:cd", "52:54-00:12:ab:cd",
		"52:54:00:12:ab:cd:", ":52:54:00:12:ab:cd", "5254.0012abcd", "52.54.00.12.ab.cd", "52:54:00:12:abcd", "52::54:00:12:ab",
	} {
		if got, err := ParseMAC(s); err == nil {
			t.Errorf("ParseMAC(%q) = %v", s, got)
		}
	}
	b, err := json.Marshal(map[MAC]MAC{want: want})
	if err != nil || string(b) != `{"52:54:00:12:ab:cd":"52:54:00:12:ab:cd"}` {
		t.Errorf("%s, %v", b, err)
	}
	var back map[MAC]MAC
	if err := json.Unmarshal(b, &back); err != nil || back[want] != want {
		t.Errorf("%v, %v", back, err)
	}
}

func FuzzMAC(f *testing.F) {
	for _, s := range []string{"52:54:00:12:34:56", "5254.0012.3456", "52-54-00-12-34-56", "525400123456", "::"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		m, err := ParseMAC(s)
		if err != nil {
			return
		}
		if again, err := ParseMAC(m.String()); err != nil || again != m {
			t.Errorf("%q is %v, which is %v, %v", s, m, again, err)
		}
	})
}

func TestParseRange(t *testing.T) {
	r, err := ParseRange("10.77.0.200-10.77.1.3")
	if err != nil || r.size() != 60 || r.at(59) != netip.MustParseAddr("10.77.1.3") || r.String() != "10.77.0.200-10.77.1.3" {
		t.Errorf("%v of %d, %v", r, r.size(), err)
	}
	if r, err := ParseRange(""); err != nil || r.size() != 0 || r.String() != "" || r.Contains(netip.Addr{}) {
		t.Errorf("%v, %v", r, err)
	}
	for _, s := range []string{"10.77.0.200", "10.77.0.200-", "-10.77.0.1", "10.77.0.9-10.77.0.1", "a-b", "fe80::1-fe80::2"} {
		if r, err := ParseRange(s); err == nil {
			t.Errorf("%q is %v", s, r)
		}
	}
}

func FuzzParseRange(f *testing.F) {
	f.Add("10.77.0.200-10.77.0.250")
	f.Add("-")
	f.Fuzz(func(t *testing.T, s string) {
		r, err := ParseRange(s)
		if err != nil || r.empty() {
			return
		}
		if again, err := ParseRange(r.String()); err != nil || again != r {
			t.Errorf("%q is %v, which is %v, %v", s, r, again, err)
		}
	})
}

func TestConfig(t *testing.T) {
	addr, prefix := netip.MustParseAddr, netip.MustParsePrefix
	good := func() Config {
		return Config{
			ServerAddr: addr("10.77.0.1"),
			Subnet:     Subnet{Prefix: prefix("10.77.0.1/24"), Pool: Range{addr("10.77.0.200"), addr("10.77.0.250")}},
		}
	}
	c, err := good().checked()
	if err != nil || c.LeaseTime != 12*time.Hour || c.ProbeTime != 300*time.Millisecond || c.Subnet.Prefix != prefix("10.77.0.0/24") {
		t.Errorf("%+v, %v", c, err)
	}
	for want, spoil := range map[string]func(*Config){
		"no IPv4 address":      func(c *Config) { c.ServerAddr = netip.Addr{} },
		"is not in its subnet": func(c *Config) { c.ServerAddr = addr("10.78.0.1") },
		"room for clients":     func(c *Config) { c.Subnet.Prefix = prefix("10.77.0.0/31") },
		"too short":            func(c *Config) { c.LeaseTime = time.Millisecond },
		"is not inside":        func(c *Config) { c.Subnet.Pool.Last = addr("10.77.0.255") },
		"the pool":             func(c *Config) { c.Subnet.Pool = Range{addr("10.77.0.9"), addr("10.77.0.2")} },
		"the gateway":          func(c *Config) { c.Subnet.Gateway = addr("10.78.0.1") },
		"the DNS server":       func(c *Config) { c.Subnet.DNS = []netip.Addr{addr("fe80::1")} },
		"overlap":              func(c *Config) { c.Relayed = []Subnet{{Prefix: prefix("10.77.0.128/25")}} },
		"at most 65536": func(c *Config) {
			c.Subnet = Subnet{Prefix: prefix("10.0.0.0/8"), Pool: Range{addr("10.0.0.1"), addr("10.9.0.0")}}
		},
		"is not an IPv4 subnet": func(c *Config) { c.Relayed = []Subnet{{Prefix: prefix("fe80::/64")}} },
		"the pool 10.88.0.1-10.9": func(c *Config) {
			c.Relayed = []Subnet{{Prefix: prefix("10.88.0.0/24"), Pool: Range{addr("10.88.0.1"), addr("10.90.0.1")}}}
		},
	} {
		c := good()
		spoil(&c)
		if _, err := c.checked(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("want %q, got %v", want, err)
		}
	}
}
