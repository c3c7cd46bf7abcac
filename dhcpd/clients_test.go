package dhcpd

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

const (
	blank = "52:54:00:00:00:01"
	other = "52:54:00:00:00:02"
)

// onWire is a server on a segment, and the hands around it.
type onWire struct {
	Server
	t      *testing.T
	lan    segment
	book   *book
	leases *memory
	log    *logBook
	stop   func()
}

// lanConfig is the configuration of a server with the address 10.N.0.1/24.
func lanConfig(n int) Config {
	addr := func(host byte) netip.Addr { return netip.AddrFrom4([4]byte{10, byte(n), 0, host}) }
	return Config{
		ServerAddr: addr(1),
		Subnet: Subnet{
			Prefix:  netip.PrefixFrom(addr(0), 24),
			Pool:    Range{addr(200), addr(209)},
			Gateway: addr(254), DNS: []netip.Addr{addr(1)}, Domain: "cluster",
		},
		LeaseTime: time.Hour,
	}
}

// newOnWire starts a server on a segment that it makes.
func newOnWire(t *testing.T, name string, c Config) *onWire {
	t.Helper()
	w := &onWire{
		t: t, book: newBook(), leases: newMemory(), log: &logBook{},
		lan: newSegment(t, name, c.ServerAddr.String()+"/24"),
	}
	w.Server = Server{Config: c, Handler: w.book, Leases: w.leases, Log: slog.New(w.log)}
	w.start()
	return w
}

func (w *onWire) start() {
	w.t.Helper()
	conn, err := Listen(w.t.Context(), string(w.lan))
	if err != nil {
		w.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(w.t.Context())
	ended := make(chan error, 1)
	go func() { ended <- w.Serve(ctx, conn) }()
	w.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			w.t.Errorf("Serve: %v", err)
		}
		if w.t.Failed() {
			w.t.Logf("the server on %s said:\n%s", w.lan, strings.Join(w.log.take(), "\n"))
		}
	})
	w.t.Cleanup(w.stop)
}

// script is what the clients run when they got or lost an address. It sets the
// address, as far as the host's namespace goes, and notes all that they know.
func script(t *testing.T) (path, notes string) {
	t.Helper()
	dir := t.TempDir()
	path, notes = filepath.Join(dir, "script"), filepath.Join(dir, "notes")
	text := fmt.Sprintf(`#!/bin/sh
addr=${new_ip_address:-$ip}
case ${reason:-$1} in
BOUND|RENEW|REBIND|REBOOT|bound|renew)
	ip addr flush dev eth0
	ip addr add $addr/24 dev eth0
	;;
deconfig|EXPIRE|STOP)
	ip addr flush dev eth0
	;;
esac
{ echo "event=${reason:-$1} address=$addr"; env; echo; } >> %s
`, notes)
	if err := os.WriteFile(path, []byte(text), 0o700); err != nil {
		t.Fatal(err)
	}
	return path, notes
}

// read returns what the clients noted.
func read(t *testing.T, notes string) string {
	t.Helper()
	b, err := os.ReadFile(notes)
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	return string(b)
}

func (w *onWire) awaitNote(notes, text string) {
	w.t.Helper()
	eventually(w.t, text+" by the client", func() bool { return strings.Contains(read(w.t, notes), text) })
}

// udhcpc gets a lease for the host, or the empty string, and what its script
// was told.
func udhcpc(t *testing.T, h host, args ...string) (addr, notes string) {
	t.Helper()
	path, file := script(t)
	args = append([]string{"udhcpc", "-f", "-n", "-q", "-t", "5", "-T", "2", "-i", "eth0", "-s", path}, args...)
	out, err := h.command(t, args...).CombinedOutput()
	notes = read(t, file)
	_, addr, ok := strings.Cut(notes, "event=bound address=")
	if !ok {
		return "", fmt.Sprintf("%v\n%s%s", err, out, notes)
	}
	addr, _, _ = strings.Cut(addr, "\n")
	return addr, notes
}

// dhclient starts one that keeps its lease in a file of the directory.
func dhclient(t *testing.T, h host, dir string) (notes string, stop func(os.Signal)) {
	t.Helper()
	path, notes := script(t)
	conf := filepath.Join(dir, "dhclient.conf")
	text := `send host-name "blank"; timeout 20; retry 5; reboot 3; initial-interval 1;` +
		` request subnet-mask, broadcast-address, routers, domain-name, domain-name-servers, host-name;`
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	stop = h.start(t, "dhclient", "-d", "-v", "-sf", path, "-cf", conf,
		"-lf", filepath.Join(dir, "leases"), "-pf", filepath.Join(dir, "pid"), "eth0")
	return notes, stop
}

func TestUdhcpc(t *testing.T) {
	w := newOnWire(t, "lan0", lanConfig(77))
	w.book.set(MAC{}, Policy{Pool: true})
	h := newHost(t, w.lan, blank)
	addr, notes := udhcpc(t, h)
	if !strings.HasPrefix(addr, "10.77.0.20") {
		t.Fatalf("address %q: %s", addr, notes)
	}
	for _, want := range []string{"subnet=255.255.255.0", "router=10.77.0.254", "dns=10.77.0.1", "domain=cluster", "serverid=10.77.0.1", "lease=3600"} {
		if !strings.Contains(notes, want+"\n") {
			t.Errorf("no %s in\n%s", want, notes)
		}
	}
	// The same again, and by broadcast (-B); then with a reservation.
	if again, notes := udhcpc(t, h, "-B"); again != addr {
		t.Errorf("another address, %q, the second time: %s", again, notes)
	}
	w.book.set(mac(t, blank), Policy{Addr: netip.MustParseAddr("10.77.0.11"), Hostname: "node001", BootFile: "undionly.kpxe"})
	addr, notes = udhcpc(t, h, "-O", "bootfile", "-O", "tftp")
	if addr != "10.77.0.11" {
		t.Errorf("address %q: %s", addr, notes)
	}
	for _, want := range []string{"hostname=node001", "boot_file=undionly.kpxe", "bootfile=undionly.kpxe", "tftp=10.77.0.1", "siaddr=10.77.0.1"} {
		if !strings.Contains(notes, want+"\n") {
			t.Errorf("no %s in\n%s", want, notes)
		}
	}
}

// A client that holds a lease of the pool is assigned: the next packet counts.
func TestReservationWhileLeased(t *testing.T) {
	w := newOnWire(t, "lan0", lanConfig(77))
	w.book.set(MAC{}, Policy{Pool: true})
	h := newHost(t, w.lan, blank)
	path, notes := script(t)
	signal := h.start(t, "udhcpc", "-f", "-t", "5", "-T", "2", "-i", "eth0", "-s", path)
	w.awaitNote(notes, "event=bound address=10.77.0.20")
	signal(syscall.SIGUSR1) // renew
	w.awaitNote(notes, "event=renew address=10.77.0.20")
	w.book.set(mac(t, blank), Policy{Addr: netip.MustParseAddr("10.77.0.11")})
	signal(syscall.SIGUSR1)
	w.awaitNote(notes, "event=nak")
	w.awaitNote(notes, "event=bound address=10.77.0.11")
	all, err := w.leases.All(t.Context())
	if err != nil || len(all) != 1 {
		t.Errorf("leases %v, %v", all, err)
	}
	signal(syscall.SIGUSR1)
	w.awaitNote(notes, "event=renew address=10.77.0.11")
	signal(syscall.SIGUSR2) // release
	eventually(t, "the lease to be released", func() bool {
		_, ok := w.leases.lease(netip.MustParseAddr("10.77.0.11"))
		return !ok
	})
}

func TestDhclient(t *testing.T) {
	c := lanConfig(77)
	c.LeaseTime = 8 * time.Second
	w := newOnWire(t, "lan0", c)
	w.book.set(MAC{}, Policy{Pool: true})
	h := newHost(t, w.lan, blank)
	dir := t.TempDir()
	notes, stop := dhclient(t, h, dir)
	w.awaitNote(notes, "event=BOUND address=10.77.0.20")
	w.awaitNote(notes, "event=RENEW address=10.77.0.20")
	for _, want := range []string{"new_subnet_mask=255.255.255.0", "new_broadcast_address=10.77.0.255", "new_routers=10.77.0.254", "new_domain_name=cluster", "new_domain_name_servers=10.77.0.1"} {
		if !strings.Contains(read(t, notes), want+"\n") {
			t.Errorf("no %s in\n%s", want, read(t, notes))
		}
	}
	// Restarted, client and server: INIT-REBOOT, and the lease is still known.
	stop(syscall.SIGKILL)
	w.stop()
	w.start()
	notes, stop = dhclient(t, h, dir)
	w.awaitNote(notes, "event=REBOOT address=10.77.0.20")
	stop(syscall.SIGKILL)
	// Assigned while it was off: NAK, then the new address.
	w.book.set(mac(t, blank), Policy{Addr: netip.MustParseAddr("10.77.0.11")})
	notes, _ = dhclient(t, h, dir)
	w.awaitNote(notes, "event=BOUND address=10.77.0.11")
	if l, _ := w.leases.lease(netip.MustParseAddr("10.77.0.11")); l.Hostname != "blank" {
		t.Errorf("the lease is %+v", l)
	}
}

// An address that somebody has without asking: found by ARP before it is
// offered, and where that is off, by the client, which declines it.
func TestAddressInUse(t *testing.T) {
	first, second := netip.MustParseAddr("10.77.0.200"), netip.MustParseAddr("10.77.0.201")
	for found, probe := range map[string]time.Duration{other: 0, blank: -1} {
		t.Run("found by "+found, func(t *testing.T) {
			c := lanConfig(77)
			c.Subnet.Pool.Last = second
			c.ProbeTime = probe
			w := newOnWire(t, "lan0", c)
			w.book.set(MAC{}, Policy{Pool: true})
			squatter, h := newHost(t, w.lan, other), newHost(t, w.lan, blank)
			squatter.run(t, "ip", "addr", "add", first.String()+"/24", "dev", "eth0")
			if got, notes := udhcpc(t, h, "-a", "-A", "1", "-r", first.String()); got != second.String() {
				t.Errorf("%v is in use, and the client has %q: %s", first, got, notes)
			}
			if l, _ := w.leases.lease(first); !l.Declined || l.MAC != mac(t, found) {
				t.Errorf("the lease of the address in use is %+v", l)
			}
		})
	}
}

// Two interfaces, and a server for the one, then for each.
func TestOnlyItsInterface(t *testing.T) {
	w := newOnWire(t, "lan0", lanConfig(77))
	w.book.set(MAC{}, Policy{Pool: true})
	second := newSegment(t, "lan1", "10.78.0.1/24")
	h, far := newHost(t, w.lan, blank), newHost(t, second, other)
	if addr, notes := udhcpc(t, far, "-t", "2", "-T", "1"); addr != "" {
		t.Errorf("a client of another interface got %s: %s", addr, notes)
	}
	if asked := w.book.asked(); len(asked) != 0 {
		t.Errorf("the server heard of %v", asked)
	}
	if _, err := Listen(t.Context(), "lan0"); err == nil || !strings.Contains(err.Error(), "another DHCP server runs on this machine") {
		t.Errorf("a second server on the interface: %v", err)
	}
	w2 := &onWire{t: t, book: newBook(), leases: newMemory(), log: &logBook{}, lan: second}
	w2.book.set(MAC{}, Policy{Pool: true})
	w2.Server = Server{Config: lanConfig(78), Handler: w2.book, Leases: w2.leases, Log: slog.New(w2.log)}
	w2.start()
	if addr, notes := udhcpc(t, far); !strings.HasPrefix(addr, "10.78.0.") {
		t.Errorf("address %q: %s", addr, notes)
	}
	if addr, notes := udhcpc(t, h); !strings.HasPrefix(addr, "10.77.0.") {
		t.Errorf("address %q: %s", addr, notes)
	}
}

// Through a real relay, which adds option 82; then past it, to renew.
func TestRelay(t *testing.T) {
	if _, err := exec.LookPath("dhcrelay"); err != nil {
		t.Fatal("this test needs dhcrelay (apt-get install isc-dhcp-relay)")
	}
	c := lanConfig(77)
	c.Relayed = []Subnet{{
		Prefix:  netip.MustParsePrefix("10.88.0.0/24"),
		Pool:    Range{netip.MustParseAddr("10.88.0.100"), netip.MustParseAddr("10.88.0.110")},
		Gateway: netip.MustParseAddr("10.88.0.1"),
	}}
	w := newOnWire(t, "lan0", c)
	w.book.set(MAC{}, Policy{Pool: true})
	far := newSegment(t, "far0", "")
	relay := newHost(t, w.lan, "52:54:00:00:00:fe")
	relay.plug(t, far, "eth1")
	relay.run(t, "ip", "addr", "add", "10.77.0.254/24", "dev", "eth0")
	relay.run(t, "ip", "addr", "add", "10.88.0.1/24", "dev", "eth1")
	relay.run(t, "sysctl", "-q", "-w", "net.ipv4.ip_forward=1")
	run(t, "ip", "route", "add", "10.88.0.0/24", "via", "10.77.0.254")
	relay.start(t, "dhcrelay", "-4", "-d", "-a", "-id", "eth1", "-iu", "eth0", "-pf", filepath.Join(t.TempDir(), "pid"), "10.77.0.1")
	h := newHost(t, far, blank)
	path, notes := script(t)
	signal := h.start(t, "udhcpc", "-f", "-t", "20", "-T", "1", "-i", "eth0", "-s", path)
	w.awaitNote(notes, "event=bound address=10.88.0.1")
	h.run(t, "ip", "route", "add", "default", "via", "10.88.0.1")
	if q := w.book.asked()[0]; q.Relay != netip.MustParseAddr("10.88.0.1") || q.MAC != mac(t, blank) {
		t.Errorf("the handler was asked about %+v", q)
	}
	signal(syscall.SIGUSR1)
	w.awaitNote(notes, "event=renew address=10.88.0.1")
	w.book.set(mac(t, blank), Policy{Addr: netip.MustParseAddr("10.88.0.11")})
	h.run(t, "ip", "route", "replace", "default", "via", "10.88.0.1")
	signal(syscall.SIGUSR1)
	w.awaitNote(notes, "event=bound address=10.88.0.11")
}

// Rivals that ping before they offer, and none.
func TestProbe(t *testing.T) {
	lan := newSegment(t, "lan0", "10.77.0.1/24")
	if rivals, err := Probe(t.Context(), "lan0"); err != nil || len(rivals) != 0 {
		t.Errorf("on an empty segment: %v, %v", rivals, err)
	}
	for i, addr := range []string{"10.77.0.5", "10.77.0.6"} {
		h := newHost(t, lan, fmt.Sprintf("52:54:00:00:00:0%d", i+5))
		h.run(t, "ip", "addr", "add", addr+"/24", "dev", "eth0")
		log := filepath.Join(t.TempDir(), "log")
		h.start(t, "dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--port=0", "--user=root",
			"--interface=eth0", "--bind-interfaces", "--pid-file=", "--log-facility="+log,
			"--dhcp-leasefile="+filepath.Join(t.TempDir(), "leases"), "--dhcp-range=10.77.0.100,10.77.0.120,1h")
		eventually(t, "dnsmasq to be ready", func() bool {
			b, _ := os.ReadFile(log)
			return strings.Contains(string(b), "DHCP, IP range")
		})
	}
	rivals, err := Probe(t.Context(), "lan0")
	if err != nil || len(rivals) != 2 {
		t.Fatalf("%v, %v", rivals, err)
	}
	for _, r := range rivals {
		want := map[string]MAC{"10.77.0.5": mac(t, "52:54:00:00:00:05"), "10.77.0.6": mac(t, "52:54:00:00:00:06")}
		if want[r.Server.String()] != r.MAC || !r.Offered.IsValid() {
			t.Errorf("%v", r)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	start := time.Now()
	if _, err := Probe(ctx, "lan0"); err != nil || time.Since(start) > 2*time.Second {
		t.Errorf("with little time: %v, after %v", err, time.Since(start))
	}
	for name, want := range map[string]string{"nothing0": "looking for the interface", "lo": "not an Ethernet interface"} {
		if _, err := Probe(t.Context(), name); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
