package web

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

func openTestCA(t *testing.T, dir string, hosts ...string) *CA {
	t.Helper()
	ca, err := OpenCA(dir, hosts)
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

func TestCAFiles(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "keys")
	first := openTestCA(t, dir, "10.77.0.1", "head.cluster")
	for _, name := range []string{"ca.crt", "ca.key", "server.crt", "server.key"} {
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode().Perm() != 0o600 {
			t.Errorf("%s has the mode %v", name, info.Mode())
		}
	}
	if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("the directory has the mode %v, %v", info.Mode(), err)
	}
	again := openTestCA(t, dir, "head.cluster", "10.77.0.1")
	if !bytes.Equal(first.PEM(), again.PEM()) || !bytes.Equal(first.server.Leaf.Raw, again.server.Leaf.Raw) {
		t.Error("opening again made new certificates")
	}
	moved := openTestCA(t, dir, "10.99.0.1")
	if !bytes.Equal(first.PEM(), moved.PEM()) {
		t.Error("another address made another authority")
	}
	if crt := moved.server.Leaf; len(crt.IPAddresses) != 1 || crt.IPAddresses[0].String() != "10.99.0.1" || len(crt.DNSNames) != 0 {
		t.Errorf("the server's certificate is for %v, %v", crt.IPAddresses, crt.DNSNames)
	}
	left, err := os.ReadDir(dir)
	if err != nil || len(left) != 4 {
		t.Errorf("the directory holds %v, %v", left, err)
	}
	block, _ := pem.Decode(first.PEM())
	crt, err := x509.ParseCertificate(block.Bytes)
	if err != nil || !crt.IsCA || !crt.NotBefore.Equal(epoch) || crt.NotAfter.Before(time.Now().AddDate(29, 0, 0)) {
		t.Errorf("the authority: %+v, %v", crt, err)
	}
}

// Whatever time a client takes within the authority's validity, the server's
// certificate is good.
func TestServerCertificateAtAnyTime(t *testing.T) {
	ca := openTestCA(t, t.TempDir(), "10.77.0.1")
	pool := x509.NewCertPool()
	pool.AddCert(ca.cert)
	for _, at := range []time.Time{ca.cert.NotBefore, ca.cert.NotBefore.Add(time.Second), time.Now(), ca.cert.NotAfter} {
		if _, err := ca.server.Leaf.Verify(x509.VerifyOptions{Roots: pool, CurrentTime: at, DNSName: "10.77.0.1"}); err != nil {
			t.Errorf("at %s: %v", at, err)
		}
	}
}

func TestCAOpenedByMany(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "keys")
	var group sync.WaitGroup
	pems := make([][]byte, 6)
	for i := range pems {
		group.Go(func() {
			ca, err := OpenCA(dir, []string{"10.77.0.1"})
			if err != nil {
				t.Error(err)
				return
			}
			pems[i] = ca.PEM()
		})
	}
	group.Wait()
	for _, p := range pems {
		if !bytes.Equal(p, pems[0]) {
			t.Error("two authorities were made")
		}
	}
}

func TestCADamaged(t *testing.T) {
	for _, test := range []struct {
		name string
		do   func(t *testing.T, dir string)
		says string // empty: it can be mended
	}{
		{"the key is lost", func(t *testing.T, dir string) { remove(t, dir, "ca.key") }, "restore"},
		{"others may read the key", func(t *testing.T, dir string) { chmod(t, dir, "ca.key", 0o644) }, "chmod 0600"},
		{"the certificate is damaged", func(t *testing.T, dir string) { write(t, dir, "ca.crt", "nonsense") }, "ca.crt"},
		{"the key is damaged", func(t *testing.T, dir string) { write(t, dir, "ca.key", "nonsense") }, "ca.key"},
		{"another's key", func(t *testing.T, dir string) {
			other := t.TempDir()
			openTestCA(t, other, "10.77.0.1")
			b, err := os.ReadFile(filepath.Join(other, "ca.key"))
			if err != nil {
				t.Fatal(err)
			}
			write(t, dir, "ca.key", string(b))
		}, "ca.key"},
		{"a server's certificate in its place", func(t *testing.T, dir string) {
			for _, kind := range []string{"crt", "key"} {
				b, err := os.ReadFile(filepath.Join(dir, "server."+kind))
				if err != nil {
					t.Fatal(err)
				}
				write(t, dir, "ca."+kind, string(b))
			}
		}, "is not a certificate authority's"},
		{"the certificate is lost", func(t *testing.T, dir string) { remove(t, dir, "ca.crt") }, ""},
		{"the server's key is lost", func(t *testing.T, dir string) { remove(t, dir, "server.key") }, ""},
		{"the server's certificate is damaged", func(t *testing.T, dir string) { write(t, dir, "server.crt", "nonsense") }, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			dir := t.TempDir()
			before := openTestCA(t, dir, "10.77.0.1")
			test.do(t, dir)
			after, err := OpenCA(dir, []string{"10.77.0.1"})
			if test.says != "" {
				if err == nil || !strings.Contains(err.Error(), test.says) {
					t.Errorf("got %v, want %q", err, test.says)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			// Machines that know the authority from before know the server.
			pool := x509.NewCertPool()
			pool.AddCert(before.cert)
			if _, err := after.server.Leaf.Verify(x509.VerifyOptions{Roots: pool, DNSName: "10.77.0.1"}); err != nil {
				t.Error(err)
			}
		})
	}
}

func remove(t *testing.T, dir, name string) {
	t.Helper()
	if err := os.Remove(filepath.Join(dir, name)); err != nil {
		t.Fatal(err)
	}
}

func chmod(t *testing.T, dir, name string, mode os.FileMode) {
	t.Helper()
	if err := os.Chmod(filepath.Join(dir, name), mode); err != nil {
		t.Fatal(err)
	}
}

func write(t *testing.T, dir, name, content string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

// A head whose own clock says 1970 makes certificates that are good, and takes
// them.
func TestCAWithoutClock(t *testing.T) {
	ca, err := openCA(t.TempDir(), []string{"10.77.0.1"}, func() time.Time { return time.Unix(100, 0) })
	if err != nil {
		t.Fatal(err)
	}
	der, err := ca.IssueBoot(newCSR(t), "node001", "I")
	if err != nil {
		t.Fatal(err)
	}
	crt, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	_, err = crt.Verify(x509.VerifyOptions{
		Roots: ca.TLS().ClientCAs, CurrentTime: ca.TLS().Time(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
	if err != nil {
		t.Error(err)
	}
}

func newCSR(t testing.TB) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{DNSNames: []string{"evil.example"}}, key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func TestIssue(t *testing.T) {
	ca := openTestCA(t, t.TempDir(), "10.77.0.1")
	csr := newCSR(t)
	for name, test := range map[string]struct {
		issue func() ([]byte, error)
		want  Identity
		until time.Time
	}{
		"boot": {func() ([]byte, error) { return ca.IssueBoot(csr, "node001", "AAAA-BB") }, Identity{Boot: true, Node: "node001", Install: "AAAA-BB"}, time.Now().Add(bootValidity)},
		"node": {func() ([]byte, error) { return ca.IssueNode(csr, "node001") }, Identity{Node: "node001"}, ca.cert.NotAfter},
	} {
		der, err := test.issue()
		if err != nil {
			t.Fatal(err)
		}
		crt, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		if id, err := identify(crt); err != nil || id != test.want {
			t.Errorf("%s: %+v, %v", name, id, err)
		}
		if crt.IsCA || len(crt.DNSNames) != 0 || crt.Subject.CommonName != "node001" || crt.NotBefore.After(epoch) || crt.NotAfter.After(test.until.Add(time.Second)) {
			t.Errorf("%s: %+v", name, crt)
		}
		if len(crt.ExtKeyUsage) != 1 || crt.ExtKeyUsage[0] != x509.ExtKeyUsageClientAuth {
			t.Errorf("%s is good for %v", name, crt.ExtKeyUsage)
		}
	}
}

func TestIssueRefuses(t *testing.T) {
	ca := openTestCA(t, t.TempDir(), "10.77.0.1")
	spoiled := newCSR(t)
	spoiled[len(spoiled)-1] ^= 1
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	rsaCSR, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		t.Fatal(err)
	}
	for name, csr := range map[string][]byte{"nothing": nil, "nonsense": []byte("nonsense"), "a bad signature": spoiled, "RSA": rsaCSR} {
		_, err := ca.IssueBoot(csr, "node001", "I")
		if _, ok := errors.AsType[*RequestError](err); !ok {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func FuzzCertificateRequest(f *testing.F) {
	ca, err := OpenCA(f.TempDir(), []string{"10.77.0.1"})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(newCSR(f))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, csr []byte) {
		der, err := ca.IssueBoot(csr, "node001", "I")
		if err != nil {
			return
		}
		crt, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		if id, err := identify(crt); err != nil || id.Node != "node001" || crt.IsCA {
			t.Fatalf("%+v, %v", id, err)
		}
	})
}

func FuzzIdentify(f *testing.F) {
	for _, s := range []string{"doppel:boot:node001:ID", "doppel:node:node001", "doppel:node:", "doppel:boot:a:b:c", "https://x/y", "doppel://node/x"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		u, err := url.Parse(s)
		if err != nil {
			return
		}
		id, err := identify(&x509.Certificate{URIs: []*url.URL{u}})
		if err != nil {
			return
		}
		if again, err := identify(&x509.Certificate{URIs: []*url.URL{id.uri()}}); err != nil || again != id {
			t.Fatalf("%q is %+v, which is %+v, %v", s, id, again, err)
		}
	})
}
