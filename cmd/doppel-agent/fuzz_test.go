package main

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/insomniacslk/dhcp/dhcpv4"
)

// FuzzModuleIndex loads modules by any index, for any device: nothing is
// loaded twice, or from outside of the index, and circles end.
func FuzzModuleIndex(f *testing.F) {
	f.Add([]byte(`{"modules":[{"name":"a","file":"a.ko","needs":["b"]},{"name":"b","file":"b.ko","needs":["a"],"wants":["b","a"]}],
		"aliases":[{"pattern":"pci:v*d[0-9]*","module":"a"},{"pattern":"","module":"b"}],"always":["a","c"]}`), "pci:v1d2")
	f.Add([]byte(`{"modules":[{"name":"a"},{"name":"a","file":"x"}],"aliases":[{"pattern":"*","module":"a"}]}`), "*")
	f.Add([]byte(`{"modules":null,"always":[""]}`), "")
	f.Add([]byte(`[]`), "x")
	f.Fuzz(func(t *testing.T, text []byte, modalias string) {
		loaded := map[string]bool{}
		l := &moduleLoader{dir: "/m", say: func(string, ...any) {}}
		files := map[string]int{}
		l.insert = func(path string) error {
			if files[path]--; files[path] < 0 {
				t.Fatalf("%s is loaded too often", path)
			}
			loaded[path] = true
			return nil
		}
		if l.read(text) != nil {
			return
		}
		for _, m := range l.modules {
			files[filepath.Join("/m", m.file)]++
		}
		l.loadAlways()
		l.serve(modalias)
		l.serve(modalias)
		for p := range loaded {
			if files[p] < 0 {
				t.Fatalf("%s is loaded", p)
			}
		}
	})
}

// FuzzAddressOf reads what any DHCP server gives.
func FuzzAddressOf(f *testing.F) {
	for _, x := range []struct{ ip, mask net.IP }{
		{net.IPv4(10, 77, 0, 11), net.IPv4(255, 255, 255, 0)}, {net.IPv4(10, 77, 0, 11), net.IPv4(255, 0, 255, 0)}, {net.IPv4(10, 77, 0, 11), net.IPv4zero},
		{net.IPv4zero, nil}, {net.IPv4(127, 0, 0, 1), nil}, {net.IPv4bcast, net.IPv4(255, 255, 255, 255)}, {net.IPv4(224, 0, 0, 1), nil}, {net.IPv4(250, 1, 1, 1), nil},
	} {
		ack, err := dhcpv4.New(dhcpv4.WithMessageType(dhcpv4.MessageTypeAck), dhcpv4.WithYourIP(x.ip))
		if err != nil {
			f.Fatal(err)
		}
		if x.mask != nil {
			ack.UpdateOption(dhcpv4.OptSubnetMask(net.IPMask(x.mask.To4())))
		}
		f.Add(ack.ToBytes())
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		ack, err := dhcpv4.FromBytes(b)
		if err != nil {
			return
		}
		got, err := addressOf(ack)
		if err != nil {
			return
		}
		if ones, bits := got.Mask.Size(); ones == 0 || bits != 32 || !got.IP.IsGlobalUnicast() || got.IP.To4() == nil {
			t.Fatalf("%v is taken for %v", ack, got)
		}
	})
}

// FuzzRefusal reads what a head answers with an error.
func FuzzRefusal(f *testing.F) {
	f.Add(403, []byte(`{"error":"no install is permitted","hint":"doppel deploy node001"}`))
	f.Add(500, []byte(`<html>`))
	f.Add(0, []byte(`{"error":7}`))
	f.Fuzz(func(t *testing.T, status int, body []byte) {
		if r := refusalOf(status, body); !strings.Contains(r.Error(), "the head refuses: ") || r.status != status {
			t.Fatalf("%d %q: %v", status, body, r)
		}
	})
}

// FuzzNodeFiles opens an installed node whose files were tampered with.
func FuzzNodeFiles(f *testing.F) {
	pair := func(f *testing.F) (string, string) {
		key, csr, err := newKey()
		if err != nil || key == nil {
			f.Fatal(err)
		}
		return string(csr), "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"
	}
	csr, key := pair(f)
	f.Add(`{"server":"https://10.77.0.1:8443","node":"node001","install":"x"}`, "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", csr, key)
	f.Add(`{"server":"http://10.77.0.1"}`, "", "", "")
	f.Add(`{`, "\x00", "\xff", "-----BEGIN")
	f.Fuzz(func(t *testing.T, about, ca, crt, key string) {
		dir := t.TempDir()
		for name, text := range map[string]string{"node.json": about, "ca.crt": ca, "node.crt": crt, "node.key": key} {
			if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		n, err := openNode(dir, func(string, ...any) {})
		if err == nil && (n == nil || n.head == nil || n.head.own.Load() == nil) {
			t.Fatalf("%q: opened without credentials", about)
		}
	})
}
