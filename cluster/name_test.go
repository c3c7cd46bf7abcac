package cluster

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
)

func TestCheckName(t *testing.T) {
	for _, s := range []string{"n", "node001", "3com", "a-b", strings.Repeat("x", 63), "0"} {
		if err := checkName(s); err != nil {
			t.Errorf("checkName(%q): %v", s, err)
		}
	}
	for _, s := range []string{
		"", "-n", "n-", "n.m", "n_m", "Node", "n m", "n/m", "nöde", strings.Repeat("x", 64), "all", "localhost", "n\x00", "../n", "@compute",
	} {
		if err := checkName(s); !isRefused(err) {
			t.Errorf("checkName(%q) = %v, want a refusal", s, err)
		}
	}
}

func TestCheckDomain(t *testing.T) {
	for _, s := range []string{"", "cluster", "hpc.example.org"} {
		if err := checkDomain(s); err != nil {
			t.Errorf("checkDomain(%q): %v", s, err)
		}
	}
	for _, s := range []string{".", "a..b", ".a", "a.", "a_b", "A.b", strings.Repeat("abcdefg.", 30) + "x"} {
		if err := checkDomain(s); !isRefused(err) {
			t.Errorf("checkDomain(%q) = %v, want a refusal", s, err)
		}
	}
}

func TestCompareNames(t *testing.T) {
	want := []string{"1", "2", "10", "head", "n", "n01", "n1", "n1-ib", "n2", "n9", "n10", "n10a", "n010b", "node001", "node002", "node100"}
	for range 20 {
		got := slices.Clone(want)
		rand.Shuffle(len(got), func(i, j int) { got[i], got[j] = got[j], got[i] })
		slices.SortFunc(got, CompareNames)
		if !slices.Equal(got, want) {
			t.Fatalf("sorted: %v\n  want: %v", got, want)
		}
	}
}

func FuzzCompareNames(f *testing.F) {
	f.Add("n1", "n01", "n10")
	f.Add("a0", "a00", "a")
	f.Add("99999999999999999999", "9", "x")
	f.Fuzz(func(t *testing.T, a, b, c string) {
		if x, y := CompareNames(a, b), CompareNames(b, a); x != -y {
			t.Fatalf("%q and %q compare %d and %d", a, b, x, y)
		}
		if CompareNames(a, b) == 0 && a != b {
			t.Fatalf("%q and %q are held equal", a, b)
		}
		s := []string{a, b, c}
		slices.SortFunc(s, CompareNames)
		if CompareNames(s[0], s[2]) > 0 {
			t.Fatalf("the order of %q is not one", s)
		}
	})
}

func TestSeriesExpand(t *testing.T) {
	subnet := netip.MustParsePrefix("10.77.0.0/24")
	first := netip.MustParseAddr("10.77.0.11")
	nodes, err := Series{Base: "node", Count: 3, Start: 1, Pad: 3, First: first}.Expand(subnet)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, n := range nodes {
		got = append(got, n.Name+" "+n.Addr.String())
	}
	want := []string{"node001 10.77.0.11", "node002 10.77.0.12", "node003 10.77.0.13"}
	if !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	wide := netip.MustParsePrefix("10.0.0.0/8")
	nodes, err = Series{Base: "n", Count: 2, Start: 9, First: netip.MustParseAddr("10.0.0.255")}.Expand(wide)
	if err != nil || nodes[1].Name != "n10" || nodes[1].Addr != netip.MustParseAddr("10.0.1.0") {
		t.Errorf("got %v, %v", nodes, err)
	}
}

func TestSeriesExpandRefuses(t *testing.T) {
	subnet := netip.MustParsePrefix("10.77.0.0/24")
	at := func(s string) netip.Addr { return netip.MustParseAddr(s) }
	for _, test := range []struct {
		name   string
		series Series
		says   string
	}{
		{"runs into the broadcast address", Series{Base: "n", Count: 10, Start: 1, First: at("10.77.0.250")}, "n6 would get 10.77.0.255, which is the broadcast address"},
		{"begins outside", Series{Base: "n", Count: 1, First: at("10.78.0.1")}, "10.78.0.1, which is outside the subnet 10.77.0.0/24"},
		{"begins at the network", Series{Base: "n", Count: 1, First: at("10.77.0.0")}, "the network itself"},
		{"IPv6", Series{Base: "n", Count: 1, First: at("fe80::1")}, "not an IPv4 address"},
		{"no address", Series{Base: "n", Count: 1}, "no address"},
		{"no nodes", Series{Base: "n", Count: 0, First: at("10.77.0.1")}, "0 nodes"},
		{"less than none", Series{Base: "n", Count: -5, First: at("10.77.0.1")}, "-5 nodes"},
		{"far too many", Series{Base: "n", Count: 1 << 30, First: at("10.77.0.1")}, "cannot be added"},
		{"bad base", Series{Base: "n_", Count: 1, First: at("10.77.0.1")}, "not a host name"},
		{"negative start", Series{Base: "n", Count: 1, Start: -1, First: at("10.77.0.1")}, "cannot start"},
		{"too much padding", Series{Base: "n", Count: 1, Pad: 1000, First: at("10.77.0.1")}, "padded"},
	} {
		t.Run(test.name, func(t *testing.T) {
			nodes, err := test.series.Expand(subnet)
			if !isRefused(err) || !strings.Contains(err.Error(), test.says) {
				t.Errorf("got %d nodes, %v; want a refusal with %q", len(nodes), err, test.says)
			}
		})
	}
}

func TestBroadcast(t *testing.T) {
	for p, want := range map[string]string{
		"10.0.0.0/8": "10.255.255.255", "10.77.0.5/24": "10.77.0.255", "10.77.0.64/26": "10.77.0.127", "10.1.2.3/32": "10.1.2.3",
	} {
		if got := broadcast(netip.MustParsePrefix(p)).String(); got != want {
			t.Errorf("broadcast(%s) = %s, want %s", p, got, want)
		}
	}
}

func TestText(t *testing.T) {
	for in, want := range map[string]string{
		"plain": "plain", "a\nb\tc": "a b c", "\x1b[31mred": "[31mred", "bad\xffbyte": "bad\uFFFDbyte", "a\x00b": "ab", "zażółć": "zażółć",
		"\u2028": "", "\u009b31m": "31m",
	} {
		if got := text(in, 100); got != want {
			t.Errorf("text(%q) = %q, want %q", in, got, want)
		}
	}
	if got := text("ééé", 3); got != "é" {
		t.Errorf("text cut to %q", got)
	}
}

func FuzzText(f *testing.F) {
	f.Add("a\xffé\u2028", 3)
	f.Add(strings.Repeat("\xc3", 40), 10)
	f.Fuzz(func(t *testing.T, s string, limit int) {
		limit = min(max(limit, 0), 1<<12)
		got := text(s, limit)
		if len(got) > limit {
			t.Fatalf("text(%q, %d) has %d bytes", s, limit, len(got))
		}
		if again := text(got, limit); again != got {
			t.Fatalf("text(%q) = %q, and of that %q", s, got, again)
		}
	})
}

func TestExpandNames(t *testing.T) {
	for in, want := range map[string]string{
		"node001":        "node001",
		"n[001-003]":     "n001 n002 n003",
		"n[1-3,7]":       "n1 n2 n3 n7",
		"n[08-11]":       "n08 n09 n10 n11",
		"rack1-n[1-2]-x": "rack1-n1-x rack1-n2-x",
		"[1-2]":          "1 2",
	} {
		got, err := ExpandNames(in)
		if err != nil || strings.Join(got, " ") != want {
			t.Errorf("ExpandNames(%q) = %v, %v; want %s", in, got, err, want)
		}
	}
	for _, in := range []string{"", "n[", "n]", "n[]", "n[1", "n[1-]", "n[-1]", "n[3-1]", "n[1-2][3-4]", "n[[1]]", "n[1]]", "n[a-b]", "n[1-999999999]", "n[1,,2]", "n[99999999999999999999]"} {
		if got, err := ExpandNames(in); !isRefused(err) {
			t.Errorf("ExpandNames(%q) = %d names, %v; want a refusal", in, len(got), err)
		}
	}
}

func FuzzExpandNames(f *testing.F) {
	for _, s := range []string{"n[001-016,20]", "n[0-65535]", "n[1-2]-[3]", "[]", "n[18446744073709551615]"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		names, err := ExpandNames(s)
		if err == nil && len(names) == 0 {
			t.Fatalf("%q names nothing, without an error", s)
		}
		if len(names) > 2*maxSeries {
			t.Fatalf("%q names %d", s, len(names))
		}
	})
}

func TestSelect(t *testing.T) {
	var nodes []Node
	for i := range 3 {
		nodes = append(nodes, Node{Name: fmt.Sprintf("n%d", i+1), Role: Compute, Image: "head@latest"})
	}
	nodes = append(nodes, Node{Name: "standby", Role: Head, Runs: "head@2"}, Node{Name: "other", Role: Compute, Runs: "old@1"})
	names := func(ns []Node) string {
		var out []string
		for _, n := range ns {
			out = append(out, n.Name)
		}
		return strings.Join(out, " ")
	}
	for in, want := range map[string]string{
		"all": "n1 n2 n3 standby other", "@head": "standby", "@compute": "n1 n2 n3 other", "n[2-3] n1 n2": "n2 n3 n1",
		"@image:head": "n1 n2 n3 standby", "@image:head@2": "standby", "@image:old": "other", "standby all": "standby n1 n2 n3 other",
	} {
		got, err := Select(nodes, strings.Fields(in)...)
		if err != nil || names(got) != want {
			t.Errorf("Select(%s) = %s, %v; want %s", in, names(got), err, want)
		}
	}
	for _, in := range []string{"n9", "n[1-9]", "@rack", "@image:", "@image:none", "n1,n2", "nobody"} {
		if got, err := Select(nodes, in); !isRefused(err) {
			t.Errorf("Select(%s) = %s, %v; want a refusal", in, names(got), err)
		}
	}
	if _, err := Select(nil, "all"); !isRefused(err) {
		t.Errorf("all of no nodes: %v, want a refusal", err)
	}
	if c := cmp.Compare(len(nodes), 5); c != 0 {
		t.Error("the nodes were altered")
	}
}
