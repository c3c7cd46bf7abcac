package pxe

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"doppel/clone"
)

// authority makes a CA and a server's certificate by it, valid for this year
// alone.
func authority(t *testing.T) (caPEM []byte, server tls.Certificate, issue func(pub any) []byte) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	ca := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test CA"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().AddDate(1, 0, 0),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, ca, ca, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	sign := func(c *x509.Certificate, pub any) []byte {
		c.SerialNumber, c.NotBefore, c.NotAfter = big.NewInt(time.Now().UnixNano()), ca.NotBefore.Add(time.Minute), ca.NotAfter
		b, err := x509.CreateCertificate(rand.Reader, c, ca, pub, key)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	leaf := sign(&x509.Certificate{
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		IPAddresses: []net.IP{net.IPv4(10, 0, 2, 2), net.IPv4(127, 0, 0, 1)},
	}, &key.PublicKey)
	issue = func(pub any) []byte {
		return sign(&x509.Certificate{ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}, pub)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		tls.Certificate{Certificate: [][]byte{leaf}, PrivateKey: key}, issue
}

// headOf answers a machine as the head does, up to a plan that it refuses.
type headOf struct {
	t     *testing.T
	issue func(pub any) []byte

	mu       sync.Mutex
	boot     string
	hardware clone.Hardware
	proved   bool
}

func (h *headOf) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h.mu.Lock()
	defer h.mu.Unlock()
	switch r.URL.Path {
	case "/v1/enrol":
		var q clone.Enrol
		if err := json.NewDecoder(r.Body).Decode(&q); err != nil {
			h.t.Error(err)
		}
		csr, err := x509.ParseCertificateRequest(q.CSR)
		if err != nil || csr.CheckSignature() != nil {
			h.t.Error("bad certificate request: ", err)
			return
		}
		h.boot = q.Boot
		json.NewEncoder(w).Encode(clone.Enrolled{Node: "node007", Certificate: h.issue(csr.PublicKey)})
	case "/v1/orders":
		h.proved = len(r.TLS.PeerCertificates) == 1
		if err := json.NewDecoder(r.Body).Decode(&h.hardware); err != nil {
			h.t.Error(err)
		}
		json.NewEncoder(w).Encode(clone.Orders{Refused: "this disk is too small for the image"})
	default:
		h.t.Errorf("the machine asked for %s", r.URL.Path)
		http.NotFound(w, r)
	}
}

// The installer of a real kernel starts in a machine that believes it is 1970,
// loads its drivers, gets an address, trusts the head by its CA alone, says
// what it is, and on a refusal shows the reason and starts again.
func TestInstallerBoots(t *testing.T) {
	m, chunks := debianImage(t)
	ca, cert, issue := authority(t)
	head := &headOf{t: t, issue: issue}
	server := httptest.NewUnstartedServer(head)
	server.TLS = &tls.Config{Certificates: []tls.Certificate{cert}, ClientAuth: tls.RequestClientCert}
	server.StartTLS()
	defer server.Close()
	_, port, _ := net.SplitHostPort(server.Listener.Addr().String())

	boot, err := BuildBoot(t.Context(), m, chunks, agentPath(t), ca, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	disk := filepath.Join(dir, "disk")
	if err := os.WriteFile(disk, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(disk, 64<<20); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), firmwareTime)
	defer cancel()
	var serial bytes.Buffer
	qemu := exec.CommandContext(ctx, "qemu-system-x86_64", "-machine", "q35,accel=tcg", "-cpu", "max", "-m", "512",
		"-nodefaults", "-display", "none", "-serial", "stdio", "-no-reboot", "-rtc", "base=1970-01-01T00:10:00",
		"-uuid", "0d0f0a1e-0000-4000-8000-00000000beef",
		"-netdev", "user,id=n,restrict=off", "-device", "virtio-net-pci,netdev=n,mac=52:54:00:00:00:07",
		"-drive", "if=none,id=d,format=raw,file="+disk, "-device", "virtio-blk-pci,drive=d,serial=LAB-7",
		"-device", "virtio-rng-pci",
		"-kernel", boot.Kernel, "-initrd", boot.Initrd,
		"-append", "doppel.server=https://10.0.2.2:"+port+" doppel.boot=NONCE doppel.mac=52:54:00:00:00:07 console=tty0 console=ttyS0,115200 loglevel=4 panic=30")
	qemu.Stdout, qemu.Stderr = &serial, &serial
	if err := qemu.Run(); err != nil {
		t.Fatalf("the machine did not come to its end: %v\n%s", err, serial.String())
	}
	for _, want := range []string{
		"asking for an address on eth0 (52:54:00:00:00:07)",
		"address 10.0.2.15/24 on eth0, from 10.0.2.2",
		"trying the head https://10.0.2.2:" + port,
		"this machine is node007",
		"this disk is too small for the image",
		"this machine starts again in 10s",
	} {
		if !strings.Contains(serial.String(), want) {
			t.Errorf("the serial line does not say %q", want)
		}
	}
	head.mu.Lock()
	defer head.mu.Unlock()
	if head.boot != "NONCE" || !head.proved {
		t.Errorf("boot %q, certificate shown: %v", head.boot, head.proved)
	}
	hw := head.hardware
	if hw.Arch != "x86_64" || hw.Firmware != clone.BIOS || hw.UUID != "0d0f0a1e-0000-4000-8000-00000000beef" ||
		len(hw.MACs) != 1 || hw.MACs[0] != "52:54:00:00:00:07" || hw.Memory < 400<<20 || len(hw.Disks) != 1 {
		t.Fatalf("hardware %+v", hw)
	}
	d := hw.Disks[0]
	if d.Path != "/dev/vda" || d.Size != 64<<20 || d.Sector != 512 || d.Serial != "LAB-7" || d.Bus != "virtio" || d.Removable || d.ReadOnly ||
		len(d.Links) == 0 || d.Links[0] != "by-id/virtio-LAB-7" {
		t.Errorf("disk %+v", d)
	}
	if t.Failed() || testing.Verbose() {
		t.Log(serial.String())
	}
}
