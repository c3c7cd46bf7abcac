package pxe

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"doppel/cluster"
	"doppel/dhcpd"
	"doppel/imaging/store"
)

var (
	known   = cluster.MAC{0x52, 0x54, 0, 0, 0, 1}
	unknown = cluster.MAC{0x52, 0x54, 0, 0, 0, 2}
	ownAddr = netip.MustParseAddr("10.77.0.11")
	pooled  = netip.MustParseAddr("10.77.0.200")
	plain   = netip.MustParseAddrPort("10.77.0.1:8480")
	secure  = netip.MustParseAddrPort("10.77.0.1:8443")
)

const install = "6B7A9D5E-0000-4000-8000-0123456789AB"

// testCluster is a cluster with one node, node001, that has a machine, and
// leases for it and for an unknown machine. now moves its clock.
func testCluster(t testing.TB) (c *cluster.Cluster, now *time.Time) {
	t.Helper()
	now = new(time.Date(2026, 5, 4, 3, 2, 1, 0, time.UTC))
	c, err := cluster.Open(filepath.Join(t.TempDir(), "cluster.db"), cluster.Options{
		Network: netip.MustParsePrefix("10.77.0.0/24"), Server: plain.Addr(),
		PoolFirst: pooled, PoolLast: netip.MustParseAddr("10.77.0.250"), Now: func() time.Time { return *now },
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	commit(t, c,
		cluster.AddNodes{Nodes: []cluster.Node{{Name: "node001", Role: cluster.Compute, Addr: ownAddr, Netmask: 24}}},
		cluster.Assign{MAC: known, Node: "node001"},
		cluster.PutLease{Lease: cluster.Lease{Addr: ownAddr, MAC: known, Expires: now.Add(12 * time.Hour)}},
		cluster.PutLease{Lease: cluster.Lease{Addr: pooled, MAC: unknown, Expires: now.Add(12 * time.Hour)}},
	)
	return c, now
}

func commit(t testing.TB, c *cluster.Cluster, changes ...cluster.Change) {
	t.Helper()
	if err := c.Commit(t.Context(), changes...); err != nil {
		t.Fatal(err)
	}
}

func arm(t testing.TB, c *cluster.Cluster) {
	t.Helper()
	armAs(t, c, install)
}

func armAs(t testing.TB, c *cluster.Cluster, id string) {
	t.Helper()
	commit(t, c, cluster.Arm{Node: "node001", Install: id, Image: "head@3", Digest: store.Sum([]byte("head")).String(), After: "reboot"})
}

// installers is an Installers of one boot, or an error.
type installers struct {
	boot Boot
	err  error
}

func (i installers) Installer(ctx context.Context, _, _ string) (Boot, error) {
	return i.boot, i.err
}

func testHandler(t testing.TB, c *cluster.Cluster) *Handler {
	t.Helper()
	dir := t.TempDir()
	b := Boot{Release: "6.1.0", Machine: "x86_64", KernelDigest: store.Sum([]byte("a kernel")), InitrdDigest: store.Sum([]byte("an initrd"))}
	b.place(dir)
	for path, content := range map[string]string{b.Kernel: "a kernel", b.Initrd: "an initrd", filepath.Join(dir, "snp"): "a loader"} {
		if err := keep(path, []byte(content)); err != nil {
			t.Fatal(err)
		}
	}
	return &Handler{State: c, Installers: installers{boot: b}, Loaders: Loaders{ArchX8664: filepath.Join(dir, "snp")}, Dir: dir, HTTP: plain, TLS: secure}
}

func get(h http.Handler, from netip.Addr, target string, header ...string) *http.Response {
	r := httptest.NewRequest(http.MethodGet, target, nil)
	r.RemoteAddr = netip.AddrPortFrom(from, 4711).String()
	for i := 0; i+1 < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w.Result()
}

func body(t *testing.T, r *http.Response) string {
	t.Helper()
	b, err := io.ReadAll(r.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func ask(mac cluster.MAC, more string) string {
	return "/boot/ipxe?mac=" + mac.String() + "&uuid=&platform=efi&buildarch=x86_64" + more
}

var nonceWord = regexp.MustCompile(`doppel\.boot=(\S+)`)

// Every script there is, as iPXE gets it.
func TestScripts(t *testing.T) {
	c, now := testCluster(t)
	h := testHandler(t, c)
	var b strings.Builder
	show := func(what string, from netip.Addr, target string) {
		t.Helper()
		r := get(h, from, target)
		text := nonceWord.ReplaceAllString(body(t, r), "doppel.boot=NONCE")
		fmt.Fprintf(&b, "## %s\n%s\n%s\n", what, r.Status, text)
	}
	bios := "/boot/ipxe?mac=" + known.String() + "&uuid=&platform=pcbios&buildarch=i386"
	show("unknown, no collection", pooled, ask(unknown, ""))
	commit(t, c, cluster.OpenCollection{Until: now.Add(time.Hour)})
	show("unknown, collection", pooled, ask(unknown, ""))
	commit(t, c, cluster.CloseCollection{})
	show("unknown, waiting, collection over", pooled, ask(unknown, "&since=1777860000"))
	show("assigned, UEFI", ownAddr, ask(known, ""))
	show("assigned, BIOS", ownAddr, bios)
	show("assigned while it waited", ownAddr, ask(known, fmt.Sprintf("&since=%d", now.Unix()-60)))
	show("assigned, its patience at its end", ownAddr, ask(known, fmt.Sprintf("&since=%d", now.Add(-Patience).Unix())))
	show("assigned, since in the future", ownAddr, ask(known, "&since=99999999999"))
	arm(t, c)
	show("armed", ownAddr, ask(known, ""))
	show("armed, another architecture", ownAddr, "/boot/ipxe?mac="+known.String()+"&platform=efi&buildarch=arm64")
	armAs(t, c, "6B7A9D5E-0000-4000-8000-000000000002")
	made := h.Installers
	h.Installers = installers{err: errors.New("no ${kernel} in the image || reboot")}
	show("no installer", ownAddr, ask(known, ""))
	if n, _ := c.NodeByMAC(known); n.State != cluster.Failed || n.Reason != "the head cannot make the installer: no ${kernel} in the image || reboot" {
		t.Errorf("without an installer the node is %s: %q", n.State, n.Reason)
	}
	const again = "6B7A9D5E-0000-4000-8000-000000000003"
	armAs(t, c, again)
	h.Installers = installers{err: context.DeadlineExceeded}
	show("installer not ready", ownAddr, ask(known, ""))
	h.Installers = made
	commit(t, c, cluster.BeginInstall{Node: "node001", Install: again},
		cluster.ReportStage{Node: "node001", Install: again, Stage: "apply"})
	show("installing", ownAddr, bios)
	commit(t, c, cluster.Fail{Node: "node001", Install: again, Reason: "apply: chunk sha256:" + strings.Repeat("0123456789abcdef", 4) +
		" is corrupt\n|| reboot\nsanboot ${x} && \"ü\" -n --help # `"})
	show("failed", ownAddr, ask(known, ""))
	golden(t, "scripts.txt", b.String())
}

func TestEveryBootHasItsNonce(t *testing.T) {
	c, _ := testCluster(t)
	h := testHandler(t, c)
	arm(t, c)
	seen := map[string]bool{}
	for range 3 {
		m := nonceWord.FindStringSubmatch(body(t, get(h, ownAddr, ask(known, ""))))
		if m == nil || seen[m[1]] || len(m[1]) < 20 {
			t.Fatalf("nonce %q", m)
		}
		seen[m[1]] = true
		n, _ := c.Node("node001")
		if n.Install.Boot != m[1] || n.Install.Enrolled {
			t.Fatalf("the cluster knows %q, the machine was told %q", n.Install.Boot, m[1])
		}
	}
}

// A MAC is believed only from the address that is leased to it.
func TestScriptRefused(t *testing.T) {
	c, now := testCluster(t)
	h := testHandler(t, c)
	arm(t, c)
	for _, x := range []struct {
		from   netip.Addr
		target string
		want   int
	}{
		{pooled, ask(known, ""), http.StatusForbidden},
		{netip.MustParseAddr("10.77.0.99"), ask(known, ""), http.StatusForbidden},
		{ownAddr, ask(unknown, ""), http.StatusForbidden},
		{ownAddr, "/boot/ipxe", http.StatusBadRequest},
		{ownAddr, "/boot/ipxe?mac=zz", http.StatusBadRequest},
		{netip.AddrFrom16(ownAddr.As16()), ask(known, ""), http.StatusOK},
	} {
		if r := get(h, x.from, x.target); r.StatusCode != x.want {
			t.Errorf("%s from %s: %s, want %d", x.target, x.from, r.Status, x.want)
		}
	}
	*now = now.Add(13 * time.Hour)
	if r := get(h, ownAddr, ask(known, "")); r.StatusCode != http.StatusForbidden {
		t.Errorf("with a lease that is over: %s", r.Status)
	}
	r := httptest.NewRequest(http.MethodHead, ask(known, ""), nil)
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	if w.Code != http.StatusMethodNotAllowed {
		t.Errorf("HEAD of a script: %d", w.Code)
	}
}

func TestBootFiles(t *testing.T) {
	c, _ := testCluster(t)
	h := testHandler(t, c)
	b := h.Installers.(installers).boot
	kernel := "/boot/" + b.KernelDigest.Hex() + "/vmlinuz"
	r := get(h, pooled, kernel)
	if got := body(t, r); r.StatusCode != 200 || got != "a kernel" || r.Header.Get("Content-Length") != "8" {
		t.Errorf("%s: %s %q %v", kernel, r.Status, got, r.Header)
	}
	r = get(h, pooled, kernel, "Range", "bytes=2-")
	if got := body(t, r); r.StatusCode != 206 || got != "kernel" || r.Header.Get("Content-Range") != "bytes 2-7/8" {
		t.Errorf("range: %s %q %v", r.Status, got, r.Header)
	}
	if got := body(t, get(h, pooled, "/boot/snponly.efi")); got != "a loader" {
		t.Errorf("loader: %q", got)
	}
	for _, target := range []string{
		"/boot/", "/boot/undionly.kpxe", "/boot/snp", "/etc/passwd", "/boot/../../etc/passwd", "/boot/" + b.KernelDigest.Hex() + "/initrd",
		"/boot/" + b.KernelDigest.Hex() + "/../../inputs", "/boot/" + strings.ToUpper(b.KernelDigest.Hex()) + "/vmlinuz",
		"/boot/sha256:" + b.KernelDigest.Hex() + "/vmlinuz", "/boot/inputs/vmlinuz", "/boot/" + store.ID{}.Hex() + "/vmlinuz",
	} {
		if r := get(h, pooled, target); r.StatusCode != http.StatusNotFound {
			t.Errorf("%s: %s", target, r.Status)
		}
	}
	if err := os.Remove(b.Kernel); err != nil {
		t.Fatal(err)
	}
	if r := get(h, pooled, kernel); r.StatusCode != http.StatusNotFound {
		t.Errorf("a file that is gone: %s", r.Status)
	}
}

func TestPolicy(t *testing.T) {
	c, now := testCluster(t)
	p := &Policy{State: c, Server: plain, Loaders: Loaders{ArchBIOS: "/x", ArchX8664: "/y"}}
	ask := func(q dhcpd.Query) dhcpd.Policy {
		t.Helper()
		a, err := p.Policy(t.Context(), q)
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
	rom := func(mac cluster.MAC, arch uint16) dhcpd.Query {
		return dhcpd.Query{MAC: dhcpd.MAC(mac), Interface: "eth1", PXE: true, Arch: []uint16{arch}, VendorClass: "PXEClient:Arch:00007", UUID: "u"}
	}
	own := dhcpd.Policy{Addr: ownAddr, Hostname: "node001", BootFile: "snponly.efi", NextServer: plain.Addr()}
	if got := ask(rom(known, 7)); got != own {
		t.Errorf("UEFI: %+v", got)
	}
	own.BootFile = "undionly.kpxe"
	if got := ask(rom(known, 0)); got != own {
		t.Errorf("BIOS: %+v", got)
	}
	own.BootFile, own.NextServer = "", netip.Addr{}
	if got := ask(rom(known, 11)); got != own {
		t.Errorf("Arm without a loader: %+v", got)
	}
	if got := ask(dhcpd.Query{MAC: dhcpd.MAC(known)}); got != own {
		t.Errorf("an operating system: %+v", got)
	}
	q := rom(known, 16)
	q.PXE, q.HTTPBoot = false, true
	if got := ask(q); got.BootFile != "http://10.77.0.1:8480/boot/snponly.efi" || got.Vendor60 != "HTTPClient" {
		t.Errorf("HTTP boot: %+v", got)
	}
	q = rom(known, 7)
	q.IPXE = true
	if got := ask(q); got.BootFile != "http://10.77.0.1:8480/boot/ipxe?mac=52:54:00:00:00:01&uuid=${uuid}&platform=${platform}&buildarch=${buildarch}" || got.Vendor60 != "" {
		t.Errorf("iPXE: %+v", got)
	}
	if got := ask(rom(unknown, 0)); got != (dhcpd.Policy{}) {
		t.Errorf("unknown: %+v", got)
	}
	s, ok := c.Sighting(unknown)
	if !ok || s.Arch != "bios" || s.UUID != "u" || s.Interface != "eth1" || s.Count != 1 {
		t.Errorf("sighting %+v", s)
	}
	q = rom(unknown, 0)
	q.Acknowledge = true
	ask(q)
	if s, _ := c.Sighting(unknown); s.Count != 1 {
		t.Errorf("OFFER and ACK were noted as %d askings", s.Count)
	}
	commit(t, c, cluster.OpenCollection{Until: now.Add(time.Minute)})
	if got := ask(rom(unknown, 0)); got != (dhcpd.Policy{Pool: true, BootFile: "undionly.kpxe", NextServer: plain.Addr()}) {
		t.Errorf("unknown in collection: %+v", got)
	}
	if got := ask(dhcpd.Query{MAC: dhcpd.MAC(unknown)}); got != (dhcpd.Policy{}) {
		t.Errorf("unknown operating system in collection: %+v", got)
	}
	// A reservation is in force with the next packet.
	commit(t, c, cluster.AddNodes{Nodes: []cluster.Node{{Name: "node002", Role: cluster.Compute, Addr: netip.MustParseAddr("10.77.0.12"), Netmask: 24,
		Gateway: netip.MustParseAddr("10.77.0.254"), Domain: "rack1"}}}, cluster.Assign{MAC: unknown, Node: "node002"})
	if got := ask(rom(unknown, 0)); got.Addr != netip.MustParseAddr("10.77.0.12") || got.Hostname != "node002" || got.Domain != "rack1" || got.Gateway != netip.MustParseAddr("10.77.0.254") {
		t.Errorf("once assigned: %+v", got)
	}
	if !p.Reserved(ownAddr) || p.Reserved(pooled) {
		t.Error("reserved addresses")
	}
}

// Automatic collection assigns a machine by the very packet it is seen with.
func TestPolicyAutoAssigns(t *testing.T) {
	c, now := testCluster(t)
	commit(t, c,
		cluster.AddNodes{Nodes: []cluster.Node{{Name: "node002", Role: cluster.Compute, Addr: netip.MustParseAddr("10.77.0.12"), Netmask: 24}}},
		cluster.OpenCollection{Until: now.Add(time.Minute), Auto: true})
	p := &Policy{State: c, Server: plain, Loaders: Loaders{ArchBIOS: "/x"}}
	got, err := p.Policy(t.Context(), dhcpd.Query{MAC: dhcpd.MAC(unknown), PXE: true, Arch: []uint16{0}})
	if err != nil || got.Hostname != "node002" {
		t.Errorf("%+v, %v", got, err)
	}
}

// The longest script address there is fits BOOTP's file field, with its NUL.
func TestScriptURLFits(t *testing.T) {
	u := scriptURL(netip.MustParseAddrPort("255.255.255.255:65535"), cluster.MAC{})
	if len(u) > 127 {
		t.Errorf("%q has %d bytes", u, len(u))
	}
}

func FuzzClean(f *testing.F) {
	for _, s := range []string{"", "plain text", "${net0/mac} || reboot && # -n", "\x00\xff\n\r\tü", strings.Repeat("x", 500)} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		sc := newScript()
		sc.say("%s", s)
		text := sc.b.String()
		if strings.ContainsAny(text[len("#!ipxe\n"):], "$#|&{}\\\x00\r\t") {
			t.Fatalf("%q", text)
		}
		for _, l := range strings.Split(strings.TrimSuffix(text, "\n"), "\n")[1:] {
			if !strings.HasPrefix(l, "echo doppel: ") || len(l) > 100 {
				t.Fatalf("%q", l)
			}
		}
		if strings.Count(text, "\n") > 7 {
			t.Fatalf("too many lines: %q", text)
		}
	})
}
