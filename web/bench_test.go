package web

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"doppel/clone"
	"doppel/cluster"
	"doppel/imaging"
	"doppel/imaging/store"
)

// bench is a TLS door with a cluster behind it. Its nodes live in 127/8, all
// of which is loopback, so that every machine has an address of its own.
type bench struct {
	t        *testing.T
	cluster  *cluster.Cluster
	ca       *CA
	keys     string // the CA's directory
	machines *Machines
	url      string
	log      *lockedBuffer
	head     imaging.Head // what the image says of itself
	asked    func()       // called when the image is looked for
	imageErr error
	planErr  error
	targets  []clone.Target
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(b)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

const (
	boot1  = "nonce-of-the-first-boot"
	boot2  = "nonce-of-the-second-boot"
	digest = "sha256:1111"
)

func mac(last byte) cluster.MAC { return cluster.MAC{0x52, 0x54, 0, 0, 0, last} }

func addrOf(last byte) netip.Addr { return netip.AddrFrom4([4]byte{127, 77, 0, last}) }

func openCluster(t *testing.T) *cluster.Cluster {
	t.Helper()
	c, err := cluster.Open(filepath.Join(t.TempDir(), "cluster.db"), cluster.Options{
		Network: netip.MustParsePrefix("127.77.0.0/24"), Server: addrOf(1),
		PoolFirst: addrOf(200), PoolLast: addrOf(250),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

func commit(t *testing.T, c *cluster.Cluster, changes ...cluster.Change) {
	t.Helper()
	if err := c.Commit(context.Background(), changes...); err != nil {
		t.Fatal(err)
	}
}

func newBench(t *testing.T) *bench {
	t.Helper()
	b := &bench{t: t, cluster: openCluster(t), keys: filepath.Join(t.TempDir(), "keys"), head: imaging.Head{Entries: 7}, log: &lockedBuffer{}}
	var err error
	if b.ca, err = OpenCA(b.keys, []string{"127.0.0.1"}); err != nil {
		t.Fatal(err)
	}
	var clusterKey, headKey store.Key
	rand.Read(clusterKey[:])
	rand.Read(headKey[:])
	log := slog.New(slog.NewJSONHandler(b.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	b.machines = &Machines{
		Cluster: b.cluster, CA: b.ca, Images: b, Plan: b.plan,
		Keys:   store.Keys{Cluster: &clusterKey, Head: &headKey},
		Server: "https://127.0.0.1:8443", Blobs: "http://127.0.0.1:8480/store",
		Gateway: addrOf(254), DNS: []netip.Addr{addrOf(53)}, Domain: "cluster", Log: log,
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	b.url = "https://" + l.Addr().String()
	serving(t, log, Door{Name: "tls", Listener: l, Handler: b.machines.Handler(), TLS: b.ca.TLS()})
	return b
}

// serving serves doors until the test ends.
func serving(t *testing.T, log *slog.Logger, doors ...Door) {
	t.Helper()
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- Serve(ctx, log, doors...) }()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func (b *bench) Head(_ context.Context, d string, role cluster.Role) (Version, error) {
	if b.asked != nil {
		b.asked()
	}
	if b.imageErr != nil {
		return Version{}, b.imageErr
	}
	v := Version{Head: b.head, Manifest: store.Sum([]byte(d)), Packs: []store.ID{store.Sum([]byte("pack"))}}
	if role == cluster.Head {
		v.Packs = append(v.Packs, store.Sum([]byte("head's pack")))
	}
	return v, nil
}

func (b *bench) plan(t clone.Target, hw clone.Hardware) (*clone.Plan, error) {
	b.targets = append(b.targets, t)
	if b.planErr != nil {
		return nil, b.planErr
	}
	return &clone.Plan{ID: t.Install, Node: t.Node, Role: t.Role, Image: t.Image, Disk: hw.Disks[0], DiskRule: "the only disk", Server: t.Server, After: t.After}, nil
}

// arm adds a node with a machine and arms it.
func (b *bench) arm(name string, last byte, role cluster.Role) string {
	b.t.Helper()
	if _, ok := b.cluster.Node(name); !ok {
		commit(b.t, b.cluster, cluster.AddNodes{Nodes: []cluster.Node{{Name: name, Addr: addrOf(last), Role: role}}},
			cluster.Assign{MAC: mac(last), Node: name})
	}
	id := newInstall()
	commit(b.t, b.cluster, cluster.Arm{Node: name, Install: id, Image: "head@1", Digest: digest, After: "reboot"})
	return id
}

func (b *bench) node(name string) cluster.Node {
	b.t.Helper()
	n, ok := b.cluster.Node(name)
	if !ok {
		b.t.Fatalf("no node %s", name)
	}
	return n
}

// machine is a caller from an address of its own, whose clock says 1970.
type machine struct {
	b    *bench
	addr netip.Addr
	key  *ecdsa.PrivateKey
	cert []byte // DER
}

func (b *bench) machine(addr netip.Addr) *machine {
	b.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		b.t.Fatal(err)
	}
	return &machine{b: b, addr: addr, key: key}
}

func (m *machine) csr() []byte {
	m.b.t.Helper()
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, m.key)
	if err != nil {
		m.b.t.Fatal(err)
	}
	return der
}

// client judges the server as ARCHITECTURE.md says: by the CA alone, at a time
// inside its validity when the clock is before it.
func (m *machine) client() *http.Client {
	m.b.t.Helper()
	block, _ := pem.Decode(m.b.ca.PEM())
	ca, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		m.b.t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(ca)
	config := &tls.Config{RootCAs: pool, Time: func() time.Time {
		clock := time.Unix(60, 0)
		if clock.Before(ca.NotBefore) {
			return ca.NotBefore
		}
		return clock
	}}
	if m.cert != nil {
		config.Certificates = []tls.Certificate{{Certificate: [][]byte{m.cert}, PrivateKey: m.key}}
	}
	dialer := &net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(m.addr, 0))}
	return &http.Client{Transport: &http.Transport{TLSClientConfig: config, DialContext: dialer.DialContext, DisableKeepAlives: true, ForceAttemptHTTP2: true}}
}

// ask posts words, reads the answer into into, and gives the status and the
// error's text.
func (m *machine) ask(path string, words, into any) (int, string) {
	m.b.t.Helper()
	b, err := json.Marshal(words)
	if err != nil {
		m.b.t.Fatal(err)
	}
	return m.send(path, b, into)
}

func (m *machine) send(path string, body []byte, into any) (int, string) {
	m.b.t.Helper()
	res, err := m.client().Post(m.b.url+path, "application/json", bytes.NewReader(body))
	if err != nil {
		return 0, err.Error()
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		m.b.t.Fatal(err)
	}
	if res.StatusCode >= 300 {
		var p struct{ Error, Hint string }
		if err := json.Unmarshal(b, &p); err != nil || p.Error == "" {
			m.b.t.Errorf("%s answers %d with %q, which is no error", path, res.StatusCode, b)
		}
		return res.StatusCode, p.Error
	}
	if into != nil && res.StatusCode != http.StatusNoContent {
		if err := json.Unmarshal(b, into); err != nil {
			m.b.t.Fatalf("%s answers %q: %v", path, b, err)
		}
	}
	return res.StatusCode, ""
}

// enrol boots the machine and gets its certificate.
func (m *machine) enrol(node, boot string) {
	m.b.t.Helper()
	commit(m.b.t, m.b.cluster, cluster.BeginBoot{Node: node, Boot: boot})
	var e clone.Enrolled
	if status, why := m.ask("/v1/enrol", clone.Enrol{Boot: boot, CSR: m.csr()}, &e); status != 200 || e.Node != node {
		m.b.t.Fatalf("enrolling: %d, %s, %+v", status, why, e)
	}
	m.cert = e.Certificate
}

func hardware(last byte) clone.Hardware {
	return clone.Hardware{
		MACs: []string{"02:00:00:00:00:99", strings.ToUpper(mac(last).String())}, Arch: "x86_64", Firmware: clone.UEFI, Memory: 1 << 30,
		Disks: []clone.Disk{{Path: "/dev/vda", Size: 8 << 30, Sector: 512}},
	}
}

// own asks for the node's own certificate and gives a machine that has it.
func (m *machine) own() *machine {
	m.b.t.Helper()
	n := m.b.machine(m.addr)
	var e clone.Enrolled
	if status, why := m.ask("/v1/certificate", clone.Enrol{CSR: n.csr()}, &e); status != 200 {
		m.b.t.Fatalf("the node's own certificate: %d, %s", status, why)
	}
	n.cert = e.Certificate
	return n
}

// installed goes through a whole install and gives both ends' machines.
func (b *bench) installed(name string, last byte) (boot, own *machine, id string) {
	b.t.Helper()
	id = b.arm(name, last, cluster.Compute)
	boot = b.machine(addrOf(last))
	boot.enrol(name, boot1)
	if status, why := boot.ask("/v1/orders", hardware(last), nil); status != 200 {
		b.t.Fatalf("orders: %d, %s", status, why)
	}
	own = boot.own()
	if status, why := boot.ask("/v1/report", clone.Report{Install: id, Stage: clone.StageFinish}, nil); status != 204 {
		b.t.Fatalf("finish: %d, %s", status, why)
	}
	return boot, own, id
}
