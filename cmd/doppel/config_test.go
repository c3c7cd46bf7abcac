package main

import (
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestParseConfigNamesEveryProblem(t *testing.T) {
	for _, tt := range []struct {
		name, text string
		want       []string // parts of the problems, in any order
	}{
		{"unknown keys", "[network]\ninterface = \"eth1\"\nintreface = \"x\"\n[sreve]\nhttp = \":1\"\n",
			[]string{`line 3, column 1: unknown key "network.intreface"`, `unknown key "sreve`}},
		{"not TOML", "[network\n", []string{"line 1"}},
		{"wrong type", "[network]\ninterface = 7\n", []string{"line 2", "network.interface has a value of the wrong type"}},
		{"everything", "[network]\naddress = \"x\"\npool = \"1-2\"\ngateway = \"::1\"\ndns = [\"y\"]\nlease = \"soon\"\n[serve]\nhttp = \"80\"\ntls = \":0\"\n[ipxe]\nmips = \"z\"\n",
			[]string{"network.interface:", "network.address:", "network.pool:", "network.gateway:", "network.dns:", "network.lease:", "serve.http:", "serve.tls:", "ipxe.mips:"}},
		{"one port twice", "[network]\ninterface = \"e\"\n[serve]\nhttp = \":8443\"\n", []string{"same port"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, problems := parseConfig([]byte(tt.text))
			all := strings.Join(problems, "\n")
			for _, w := range tt.want {
				if !strings.Contains(all, w) {
					t.Errorf("no problem says %q:\n%s", w, all)
				}
			}
		})
	}
}

func TestWrittenConfigIsRead(t *testing.T) {
	for _, chosen := range []netip.Addr{{}, netip.MustParseAddr("10.1.0.1")} {
		path := filepath.Join(t.TempDir(), "etc", "doppel.toml")
		if err := writeConfig(path, segment{"eth1", netip.MustParsePrefix("10.1.0.1/24")}, chosen); err != nil {
			t.Fatal(err)
		}
		c, err := loadConfig(path)
		if err != nil {
			b, _ := os.ReadFile(path)
			t.Fatalf("%v\n%s", err, b)
		}
		if c.Interface != "eth1" || c.Address != chosen || c.Pool.String() != "10.1.0.191-10.1.0.254" {
			t.Errorf("read back as %+v", c)
		}
	}
}

func TestDefaultPool(t *testing.T) {
	for server, want := range map[string]string{
		"10.1.0.1/24":     "10.1.0.191-10.1.0.254",
		"10.1.0.200/24":   "10.1.0.64-10.1.0.127",
		"192.168.8.1/29":  "192.168.8.5-192.168.8.6",
		"172.16.0.1/12":   "172.31.255.191-172.31.255.254",
		"10.1.255.254/16": "10.1.64.0-10.1.64.63",
	} {
		p := netip.MustParsePrefix(server)
		first, last, err := defaultPool(p)
		if err != nil {
			t.Fatal(err)
		}
		if got := first.String() + "-" + last.String(); got != want {
			t.Errorf("%s: %s, want %s", server, got, want)
		}
		if !p.Contains(first) || !p.Contains(last) || (!p.Addr().Less(first) && !last.Less(p.Addr())) {
			t.Errorf("%s: the pool %s-%s leaves the subnet or holds the server", server, first, last)
		}
	}
	if _, _, err := defaultPool(netip.MustParsePrefix("10.0.0.1/30")); err == nil {
		t.Error("a /30 is too small, and was taken")
	}
}

func FuzzParseConfig(f *testing.F) {
	f.Add([]byte("[network]\ninterface = \"eth1\"\npool = \"10.0.0.1-10.0.0.9\"\n"))
	f.Add([]byte("[ipxe]\nbios = \"/x\"\n"))
	f.Add([]byte("[serve]\nhttp = \":99999\"\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		c, problems := parseConfig(b)
		if len(problems) == 0 && (c == nil || c.Interface == "" || c.HTTPPort == 0 || slices.Contains([]uint16{0, c.HTTPPort}, c.TLSPort)) {
			t.Errorf("accepted as %+v", c)
		}
	})
}
