package pxe

import (
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"

	"doppel/cluster"
	"doppel/dhcpd"
)

var update = flag.Bool("update", false, "write the golden files anew")

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := "testdata/" + name
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got == string(want) {
		return
	}
	g, w := strings.Split(got, "\n"), strings.Split(string(want), "\n")
	for i := range max(len(g), len(w)) {
		if i >= len(g) || i >= len(w) || g[i] != w[i] {
			t.Fatalf("%s, line %d: got %q, want %q", path, i+1, g[min(i, len(g)-1)], w[min(i, len(w)-1)])
		}
	}
}

func TestDecide(t *testing.T) {
	clients := []Client{
		{ArchUnknown, Plain}, {ArchBIOS, ROM}, {ArchX8664, ROM}, {ArchARM64, ROM}, {ArchOther, ROM},
		{ArchX8664, HTTP}, {ArchARM64, HTTP}, {ArchBIOS, HTTP}, {ArchOther, HTTP},
		{ArchBIOS, IPXE}, {ArchX8664, IPXE}, {ArchARM64, IPXE}, {ArchOther, IPXE},
	}
	var b strings.Builder
	row := func(machine string, in Input) {
		for _, c := range clients {
			in.Client = c
			client := c.Via.String()
			if c.Via != Plain {
				client += " " + c.Arch.String()
			}
			fmt.Fprintf(&b, "%-32s %-16s -> %s\n", machine, client, Decide(in))
		}
	}
	for _, collecting := range []bool{false, true} {
		for _, patient := range []bool{false, true} {
			how := ""
			if collecting {
				how += ", collection"
			}
			if patient {
				how += ", patient"
			}
			row("unknown"+how, Input{Collecting: collecting, Patient: patient})
			for _, s := range []cluster.State{cluster.Discovered, cluster.Assigned, cluster.Armed, cluster.Installing, cluster.Installed, cluster.Failed} {
				row(string(s)+how, Input{Node: true, State: s, Collecting: collecting, Patient: patient})
			}
		}
	}
	golden(t, "decide.txt", b.String())
}

// Whatever else is said, an installer goes to armed and installing nodes only,
// and an unknown machine outside collection hears nothing.
func TestDecideNeverInstallsUnarmed(t *testing.T) {
	states := []cluster.State{"", "Armed?", cluster.Discovered, cluster.Assigned, cluster.Armed, cluster.Installing, cluster.Installed, cluster.Failed}
	for _, s := range states {
		for bits := range 8 {
			for via := Plain; via <= IPXE; via++ {
				for arch := ArchOther; arch <= ArchUnknown; arch++ {
					in := Input{Node: bits&1 != 0, State: s, Collecting: bits&2 != 0, Patient: bits&4 != 0, Client: Client{arch, via}}
					d := Decide(in)
					armed := in.Node && (s == cluster.Armed || s == cluster.Installing)
					if (d.Action == Installer) != armed {
						t.Errorf("%+v: %s", in, d)
					}
					if !in.Node && !in.Collecting && (d.Address != NoAddress || d.File != NoFile) {
						t.Errorf("%+v: %s", in, d)
					}
					if d.Note != (via != Plain) {
						t.Errorf("%+v: %s", in, d)
					}
				}
			}
		}
	}
}

func TestClientOf(t *testing.T) {
	for _, c := range []struct {
		query dhcpd.Query
		want  Client
	}{
		{dhcpd.Query{}, Client{ArchUnknown, Plain}},
		{dhcpd.Query{PXE: true}, Client{ArchBIOS, ROM}},
		{dhcpd.Query{PXE: true, Arch: []uint16{0}}, Client{ArchBIOS, ROM}},
		{dhcpd.Query{PXE: true, Arch: []uint16{6}}, Client{ArchOther, ROM}},
		{dhcpd.Query{PXE: true, Arch: []uint16{7}}, Client{ArchX8664, ROM}},
		{dhcpd.Query{PXE: true, Arch: []uint16{9}}, Client{ArchX8664, ROM}},
		{dhcpd.Query{PXE: true, Arch: []uint16{6, 7}}, Client{ArchX8664, ROM}},
		{dhcpd.Query{PXE: true, Arch: []uint16{11}}, Client{ArchARM64, ROM}},
		{dhcpd.Query{HTTPBoot: true, Arch: []uint16{16}}, Client{ArchX8664, HTTP}},
		{dhcpd.Query{PXE: true, HTTPBoot: true, Arch: []uint16{19}}, Client{ArchARM64, HTTP}},
		{dhcpd.Query{PXE: true, IPXE: true, Arch: []uint16{0}}, Client{ArchBIOS, IPXE}},
		{dhcpd.Query{IPXE: true}, Client{ArchUnknown, IPXE}},
		{dhcpd.Query{PXE: true, Arch: []uint16{0xffff}}, Client{ArchOther, ROM}},
	} {
		if got := ClientOf(c.query); got != c.want {
			t.Errorf("%+v: %+v, want %+v", c.query, got, c.want)
		}
	}
}
