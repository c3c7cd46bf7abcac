package web

import (
	"bytes"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http/httptest"
	"net/netip"
	"path/filepath"
	"testing"
	"time"

	"doppel/clone"
	"doppel/cluster"
	"doppel/imaging/store"
)

// FuzzWords gives the machines' door any words from any kind of caller: every
// answer is one that it may give, and nobody but an armed node's boot is given
// keys.
func FuzzWords(f *testing.F) {
	c, err := cluster.Open(filepath.Join(f.TempDir(), "cluster.db"), cluster.Options{})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() {
		if err := c.Close(); err != nil {
			f.Error(err)
		}
	})
	ca, err := OpenCA(f.TempDir(), []string{"127.0.0.1"})
	if err != nil {
		f.Fatal(err)
	}
	var key store.Key
	rand.Read(key[:])
	m := &Machines{
		Cluster: c, CA: ca, Images: &bench{}, Keys: store.Keys{Cluster: &key}, Log: slog.New(slog.DiscardHandler), Patience: time.Millisecond,
		Plan: func(t clone.Target, hw clone.Hardware) (*clone.Plan, error) {
			if len(hw.Disks) == 0 {
				return nil, errors.New("no disk")
			}
			return &clone.Plan{ID: t.Install}, nil
		},
	}
	const id = "11111111-1111-4111-8111-111111111111"
	changes := []cluster.Change{
		cluster.AddNodes{Nodes: []cluster.Node{{Name: "node001", Addr: addrOf(11), Netmask: 24}}}, cluster.Assign{MAC: mac(11), Node: "node001"},
		cluster.Arm{Node: "node001", Install: id, Image: "head@1", Digest: digest, After: "reboot"}, cluster.BeginBoot{Node: "node001", Boot: boot1},
	}
	if err := c.Commit(f.Context(), changes...); err != nil {
		f.Fatal(err)
	}
	csr := newCSR(f)
	boot := certificate(f, ca, csr, Identity{Boot: true, Node: "node001", Install: id})
	own := certificate(f, ca, csr, Identity{Node: "node001"})
	paths := []string{"/v1/enrol", "/v1/orders", "/v1/report", "/v1/certificate", "/v1/up", "/v1/task", "/v1/update", "/v1/pair"}
	for i, v := range []any{
		clone.Enrol{Boot: boot1, CSR: csr}, hardware(11), clone.Report{Install: id, Stage: clone.StageApply, Done: 1}, clone.Enrol{CSR: csr},
		clone.Up{Hostname: "node001", BootID: "b"}, clone.Idle{BootID: "b"}, clone.UpdateWord{Report: clone.Report{Install: "U", Stage: clone.StageApply}},
		clone.PairAnswer{ID: "Q", PairWord: clone.PairWord{Image: "head", Generation: 1}},
	} {
		b, err := json.Marshal(v)
		if err != nil {
			f.Fatal(err)
		}
		for caller := range uint8(3) {
			f.Add(uint8(i), caller, b)
		}
	}
	h := m.Handler()
	f.Fuzz(func(t *testing.T, which, caller uint8, body []byte) {
		r := httptest.NewRequest("POST", paths[int(which)%len(paths)], bytes.NewReader(body))
		r.RemoteAddr = netip.AddrPortFrom(addrOf(11), 1234).String()
		r.TLS = &tls.ConnectionState{}
		switch caller % 3 {
		case 1:
			r.TLS.VerifiedChains = [][]*x509.Certificate{{boot}}
		case 2:
			r.TLS.VerifiedChains = [][]*x509.Certificate{{own}}
		}
		before, _ := c.Node("node001")
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		switch w.Code {
		case 200, 204, 400, 401, 403, 413:
		default:
			t.Fatalf("%s with %q: %d %s", r.URL.Path, body, w.Code, w.Body)
		}
		if w.Code != 204 && !json.Valid(w.Body.Bytes()) {
			t.Fatalf("%s with %q answers %q", r.URL.Path, body, w.Body)
		}
		var o clone.Orders
		if json.Unmarshal(w.Body.Bytes(), &o) == nil && o.Cluster != nil && (caller%3 != 1 || before.State != cluster.Armed && before.State != cluster.Installing) {
			t.Fatalf("%s with %q gives keys away", r.URL.Path, body)
		}
	})
}

func certificate(f *testing.F, ca *CA, csr []byte, id Identity) *x509.Certificate {
	f.Helper()
	der, err := ca.issue(csr, id, time.Now().Add(time.Hour))
	if err != nil {
		f.Fatal(err)
	}
	crt, err := x509.ParseCertificate(der)
	if err != nil {
		f.Fatal(err)
	}
	return crt
}
