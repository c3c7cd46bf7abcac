package pxe

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"doppel/cluster"
	"doppel/dhcpd"
	"doppel/tftpd"
)

// segment is a network with a head on it: doppel's own DHCP, TFTP and HTTP
// servers on one end of a tap, a machine on the other.
type segment struct {
	t       *testing.T
	cluster *cluster.Cluster
	serial  *watched
	scripts chan string // what iPXE was told
	// asROM has iPXE's first question taken for that of a boot ROM, since QEMU
	// has no other.
	asROM bool
}

// firmwareTime is how long a step of a machine may take: it is emulated, and
// often beside others.
const firmwareTime = 4 * time.Minute

const machineMAC = "52:54:00:00:00:07"

// leaseFile is the cluster's leases as dhcpd sees them.
type leaseFile struct{ *cluster.Cluster }

func (l leaseFile) All(context.Context) ([]dhcpd.Lease, error) { return nil, nil }
func (l leaseFile) Put(ctx context.Context, x dhcpd.Lease) error {
	return l.Commit(ctx, cluster.PutLease{Lease: cluster.Lease{Addr: x.Addr, MAC: cluster.MAC(x.MAC), ClientID: x.ClientID, Expires: x.Expires, Declined: x.Declined}})
}
func (l leaseFile) Delete(ctx context.Context, a netip.Addr) error {
	return l.Commit(ctx, cluster.DeleteLease{Addr: a})
}

// romOnce makes a ROM of a client that has fetched no loader yet.
type romOnce struct {
	dhcpd.Handler
	loaded func() bool
}

func (r romOnce) Policy(ctx context.Context, q dhcpd.Query) (dhcpd.Policy, error) {
	if !r.loaded() {
		q.IPXE = false
	}
	return r.Handler.Policy(ctx, q)
}

// watched is a serial line that can be waited for.
type watched struct {
	mu   sync.Mutex
	text bytes.Buffer
	news chan struct{}
}

func (w *watched) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.text.Write(p)
	select {
	case w.news <- struct{}{}:
	default:
	}
	return len(p), nil
}

func (w *watched) String() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.text.String()
}

// await waits until the line has said something.
func (w *watched) await(t *testing.T, want string, most time.Duration) {
	t.Helper()
	end := time.NewTimer(most)
	defer end.Stop()
	for !strings.Contains(w.String(), want) {
		select {
		case <-w.news:
		case <-end.C:
			s := w.String()
			t.Fatalf("the machine did not say %q within %v; it said: …%s", want, most, s[max(0, len(s)-2500):])
		}
	}
}

// inside tells a test's process that it is in a network of its own.
const inside = "DOPPEL_PXE_TEST_AGENT"

// ownNetwork runs the test again, alone, in a process with a network namespace
// of its own, and tells whether it is that process. What needs the outer
// network (the kernel's package) is made first.
func ownNetwork(t *testing.T) bool {
	t.Helper()
	if os.Getenv(inside) != "" {
		return true
	}
	if os.Geteuid() != 0 {
		t.Fatal("this test makes a network namespace: run it as root")
	}
	if _, err := debianKernel(); err != nil {
		t.Fatal("this test needs Debian's linux-image-cloud-amd64: ", err)
	}
	cmd := exec.Command("/proc/self/exe", "-test.run=^"+t.Name()+"$", "-test.v", "-test.timeout=8m")
	cmd.Env = append(os.Environ(), inside+"="+agentPath(t))
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	runtime.LockOSThread() // the signal comes when this thread ends
	defer runtime.UnlockOSThread()
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	return false
}

func command(t *testing.T, args ...string) {
	t.Helper()
	if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v: %s", strings.Join(args, " "), err, out)
	}
}

// newSegment starts the servers.
func newSegment(t *testing.T, asROM bool) *segment {
	t.Helper()
	s := &segment{t: t, serial: &watched{news: make(chan struct{}, 1)}, scripts: make(chan string, 100), asROM: asROM}
	for _, line := range []string{"link set lo up", "tuntap add tap0 mode tap", "addr add 10.77.0.1/24 dev tap0", "link set tap0 up"} {
		command(t, append([]string{"ip"}, strings.Fields(line)...)...)
	}
	var err error
	s.cluster, err = cluster.Open(filepath.Join(t.TempDir(), "cluster.db"), cluster.Options{
		Network: netip.MustParsePrefix("10.77.0.0/24"), Server: plain.Addr(), PoolFirst: pooled, PoolLast: netip.MustParseAddr("10.77.0.250")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.cluster.Close(); err != nil {
			t.Error(err)
		}
	})
	s.serve()
	return s
}

// serve runs the servers until the test ends.
func (s *segment) serve() {
	t := s.t
	m, chunks := debianImage(t)
	cache := t.TempDir()
	boot, err := BuildBoot(t.Context(), m, chunks, agentPath(t), []byte("-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n"), cache)
	if err != nil {
		t.Fatal(err)
	}
	loaders := Loaders{ArchBIOS: "/usr/lib/ipxe/undionly.kpxe", ArchX8664: "/usr/lib/ipxe/snponly.efi"}
	files := tftpd.Files{}
	fetched := make(chan struct{})
	var once sync.Once
	for name, path := range loaders.TFTP() {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal("this test needs Debian's package ipxe: ", err)
		}
		files[name] = tftpd.File{Content: bytes.NewReader(b), Size: int64(len(b))}
	}
	lookup := func(name string) (tftpd.File, bool) {
		f, ok := files.Lookup(name)
		once.Do(func() { close(fetched) })
		return f, ok
	}
	policy := &Policy{State: s.cluster, Loaders: loaders, Server: plain}
	var handler dhcpd.Handler = policy
	if s.asROM {
		handler = romOnce{policy, func() bool {
			select {
			case <-fetched:
				return true
			default:
				return false
			}
		}}
	}
	pages := &Handler{State: s.cluster, Installers: installers{boot: boot}, Loaders: loaders, Dir: cache, HTTP: plain, TLS: secure}
	web := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		tee := &teeing{ResponseWriter: w}
		pages.ServeHTTP(tee, r)
		if strings.HasPrefix(r.URL.Path, "/boot/ipxe") {
			t.Logf("iPXE was told: %s", tee.text.String())
			s.scripts <- tee.text.String()
		}
	})}
	ctx, cancel := context.WithCancel(context.Background())
	conn, e1 := dhcpd.Listen(ctx, "tap0")
	udp, e2 := tftpd.Listen(ctx, "tap0", netip.AddrPortFrom(plain.Addr(), 0))
	tcp, e3 := net.Listen("tcp", plain.String())
	if err := errors.Join(e1, e2, e3); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		d := dhcpd.Server{Log: slog.New(slog.NewTextHandler(t.Output(), nil)), Handler: handler, Leases: leaseFile{s.cluster}, Config: dhcpd.Config{ServerAddr: plain.Addr(),
			Subnet: dhcpd.Subnet{Prefix: netip.MustParsePrefix("10.77.0.0/24"), Pool: dhcpd.Range{First: pooled, Last: netip.MustParseAddr("10.77.0.250")}}}}
		if err := d.Serve(ctx, conn); err != nil {
			t.Error(err)
		}
	})
	wg.Go(func() {
		if err := (&tftpd.Server{Lookup: lookup, Log: slog.New(slog.NewTextHandler(t.Output(), nil))}).Serve(ctx, udp); err != nil {
			t.Error(err)
		}
	})
	wg.Go(func() {
		if err := web.Serve(tcp); !errors.Is(err, http.ErrServerClosed) {
			t.Error(err)
		}
	})
	t.Cleanup(func() {
		cancel()
		web.Close()
		wg.Wait()
	})
}

// teeing keeps a small answer's text.
type teeing struct {
	http.ResponseWriter
	text bytes.Buffer
}

func (t *teeing) Write(p []byte) (int, error) {
	if t.text.Len() < 1<<16 {
		t.text.Write(p)
	}
	return t.ResponseWriter.Write(p)
}

// power starts a machine that has its card before its disk in the boot order.
func (s *segment) power(uefi bool, disk string) {
	s.t.Helper()
	args := []string{"-machine", "q35,accel=tcg", "-cpu", "max", "-m", "768", "-nodefaults", "-display", "none", "-serial", "stdio",
		"-netdev", "tap,id=n,ifname=tap0,script=no,downscript=no", "-device", "virtio-rng-pci",
		"-drive", "if=none,id=d,format=raw,file=" + disk, "-device", "virtio-blk-pci,drive=d,bootindex=1"}
	card := "virtio-net-pci,netdev=n,bootindex=0,mac=" + machineMAC
	if uefi {
		vars := filepath.Join(s.t.TempDir(), "vars")
		b, err := os.ReadFile("/usr/share/OVMF/OVMF_VARS_4M.fd")
		if err == nil {
			err = os.WriteFile(vars, b, 0o600)
		}
		if err != nil {
			s.t.Fatal("this test needs Debian's package ovmf: ", err)
		}
		// Without the card's ROM, OVMF boots with its own PXE stack, which is
		// told to leave IPv6 alone: each version is another minute.
		card += ",romfile="
		args = append(args, "-drive", "if=pflash,format=raw,readonly=on,file=/usr/share/OVMF/OVMF_CODE_4M.fd", "-drive", "if=pflash,format=raw,file="+vars,
			"-fw_cfg", "name=opt/org.tianocore/IPv6PXESupport,string=n")
	}
	cmd := exec.Command("qemu-system-x86_64", append(args, "-device", card)...)
	cmd.Stdout = s.serial
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	stdin, err := cmd.StdinPipe() // stays open: QEMU watches its console
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
		stdin.Close()
		if s.t.Failed() && stderr.Len() > 0 {
			s.t.Log(stderr.String())
		}
	})
}

// script waits until iPXE is given a script that holds the words.
func (s *segment) script(words string, most time.Duration) {
	s.t.Helper()
	end := time.NewTimer(most)
	defer end.Stop()
	for {
		select {
		case text := <-s.scripts:
			if strings.Contains(text, words) {
				return
			}
		case <-end.C:
			s.t.Fatalf("iPXE was not told %q within %v", words, most)
		}
	}
}

func (s *segment) commit(changes ...cluster.Change) {
	s.t.Helper()
	commit(s.t, s.cluster, changes...)
}

// A BIOS machine with an empty disk: waits while it is unknown and while it is
// assigned, and goes on without a reboot once it is armed; the installer has
// the node's own address. Once installed, it boots its own disk.
func TestBIOSMachine(t *testing.T) {
	t.Parallel()
	if !ownNetwork(t) {
		return
	}
	s := newSegment(t, true)
	disk := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(disk, biosDisk(), 0o600); err != nil {
		t.Fatal(err)
	}
	mac, err := cluster.ParseMAC(machineMAC)
	if err != nil {
		t.Fatal(err)
	}
	s.commit(cluster.OpenCollection{Until: time.Now().Add(time.Hour)},
		cluster.AddNodes{Nodes: []cluster.Node{{Name: "node001", Role: cluster.Compute, Addr: ownAddr, Netmask: 24}}})
	s.power(false, disk)
	for range 2 {
		s.script("waits to be assigned: "+machineMAC+" (bios)", firmwareTime)
	}
	s.commit(cluster.CloseCollection{}, cluster.Assign{MAC: mac, Node: "node001"})
	s.script("doppel deploy node001", firmwareTime)
	arm(t, s.cluster)
	s.script("node001 is installed with head@3", firmwareTime)
	s.serial.await(t, "address "+ownAddr.String()+"/24 on eth0, from 10.77.0.1", firmwareTime)
	// Whom to trust is nonsense here, so the installer fails and starts again.
	s.serial.await(t, "the certificate of the cluster's CA", firmwareTime)
	s.commit(cluster.BeginInstall{Node: "node001", Install: install},
		cluster.Fail{Node: "node001", Install: install, Reason: "-n --help || ${x} # && reboot"})
	for range 2 {
		s.script("installing head@3 failed", firmwareTime)
	}
	s.commit(cluster.Disarm{Node: "node001"})
	s.script("boots its own disk", firmwareTime)
	s.serial.await(t, "OWN DISK", firmwareTime)
}

// A UEFI machine with OVMF's own PXE: the installer starts by the kernel's EFI
// stub. Once that is taken back, iPXE gives the word back and the firmware goes
// on to its next entry, which is its own HTTP boot, with the same end.
func TestUEFIMachine(t *testing.T) {
	t.Parallel()
	if !ownNetwork(t) {
		return
	}
	s := newSegment(t, false)
	disk := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(disk, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	mac, err := cluster.ParseMAC(machineMAC)
	if err != nil {
		t.Fatal(err)
	}
	s.commit(cluster.AddNodes{Nodes: []cluster.Node{{Name: "node001", Role: cluster.Compute, Addr: ownAddr, Netmask: 24}}}, cluster.Assign{MAC: mac, Node: "node001"})
	arm(t, s.cluster)
	s.power(true, disk)
	s.script("node001 is installed with head@3", firmwareTime)
	s.serial.await(t, "address "+ownAddr.String()+"/24 on eth0, from 10.77.0.1", firmwareTime)
	if strings.Contains(s.serial.String(), "no access to UEFI's variables") {
		t.Error("the installer could not mount efivarfs")
	}
	sight, _ := s.cluster.Sighting(mac)
	if sight.Arch != "uefi-x86_64" {
		t.Errorf("sighting %+v", sight)
	}
	s.commit(cluster.Disarm{Node: "node001"})
	s.script("boots its own disk", firmwareTime)
	s.serial.await(t, "failed to start Boot", firmwareTime)
	s.serial.await(t, "HTTP Boot over IPv4", firmwareTime)
	s.script("boots its own disk", firmwareTime)
}

// biosDisk is a disk whose boot sector says so on the serial line.
func biosDisk() []byte {
	code := []byte{
		0xfa, 0x31, 0xc0, 0x8e, 0xd8, // cli; xor ax,ax; mov ds,ax
		0xbe, 0, 0, // mov si, text
		0xac, 0x84, 0xc0, 0x74, 0, // next: lodsb; test al,al; jz end
		0x88, 0xc4, 0xba, 0xfd, 0x03, // mov ah,al; mov dx,0x3fd
		0xec, 0xa8, 0x20, 0x74, 0xfb, // busy: in al,dx; test al,0x20; jz busy
		0x88, 0xe0, 0xba, 0xf8, 0x03, 0xee, // mov al,ah; mov dx,0x3f8; out dx,al
		0xeb, 0, // jmp next
		0xf4, 0xeb, 0xfd, // end: hlt; jmp end
	}
	end := len(code) - 3
	code[12], code[end-1] = byte(end-13), byte(8-end)
	binary.LittleEndian.PutUint16(code[6:], 0x7c00+uint16(len(code)))
	disk := make([]byte, 1<<20)
	copy(disk, append(code, "\r\nOWN DISK\r\n\x00"...))
	disk[510], disk[511] = 0x55, 0xaa
	return disk
}
