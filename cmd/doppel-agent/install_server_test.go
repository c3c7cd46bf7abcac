package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"doppel/clone"
)

// testHead is a head with a CA of this year, which answers as told.
type testHead struct {
	*httptest.Server
	ca    []byte
	issue func(pub any) []byte
	mu    sync.Mutex
	calls []string
	do    func(w http.ResponseWriter, r *http.Request)
}

func newTestHead(t *testing.T, hosts ...string) *testHead {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().AddDate(1, 0, 0),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	sign := func(c *x509.Certificate, pub any) []byte {
		c.SerialNumber, c.NotBefore, c.NotAfter = big.NewInt(2), template.NotBefore.Add(time.Minute), template.NotAfter
		b, err := x509.CreateCertificate(rand.Reader, c, template, pub, key)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	leaf := &x509.Certificate{ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
	for _, h := range hosts {
		leaf.IPAddresses = append(leaf.IPAddresses, net.ParseIP(h))
	}
	h := &testHead{ca: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})}
	h.issue = func(pub any) []byte {
		return sign(&x509.Certificate{ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}, pub)
	}
	h.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h.mu.Lock()
		defer h.mu.Unlock()
		h.calls = append(h.calls, r.URL.Path)
		h.do(w, r)
	}))
	h.TLS = &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{sign(leaf, &key.PublicKey)}, PrivateKey: key}}, ClientAuth: tls.RequestClientCert}
	h.EnableHTTP2 = true
	h.Config.ErrorLog = nil
	h.StartTLS()
	t.Cleanup(h.Close)
	return h
}

// The server is judged by the CA alone, also by a machine whose clock says 1970.
func TestClocks(t *testing.T) {
	h := newTestHead(t, "127.0.0.1")
	h.do = func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "{}") }
	elsewhere, other := newTestHead(t, "10.0.0.1"), newTestHead(t, "127.0.0.1")
	at := func(base string, ca []byte, now time.Time) error {
		t.Helper()
		c, err := newHead(base, ca, func() time.Time { return now }, t.Logf)
		if err != nil {
			t.Fatal(err)
		}
		_, err = c.post(t.Context(), "/", struct{}{}, nil)
		c.client.CloseIdleConnections()
		return err
	}
	for _, now := range []time.Time{time.Unix(0, 0), time.Date(2001, 1, 1, 0, 0, 0, 0, time.UTC), time.Now()} {
		if err := at(h.URL, h.ca, now); err != nil {
			t.Errorf("at %v: %v", now, err)
		}
		if err := at(h.URL, other.ca, now); err == nil {
			t.Errorf("at %v: another CA's server is trusted", now)
		}
		if err := at(elsewhere.URL, elsewhere.ca, now); err == nil {
			t.Errorf("at %v: another address's certificate is taken", now)
		}
	}
	if err := at(h.URL, h.ca, time.Now().AddDate(5, 0, 0)); err == nil {
		t.Error("a certificate that is over is taken")
	}
}

// What the server refuses is an error with its hint; what it cannot do is
// asked again.
func TestAskAgain(t *testing.T) {
	h := newTestHead(t, "127.0.0.1")
	tries := 0
	h.do = func(w http.ResponseWriter, r *http.Request) {
		if tries++; tries == 1 {
			http.Error(w, `{"error":"not yet"}`, http.StatusInternalServerError)
			return
		}
		w.WriteHeader(http.StatusForbidden)
		fmt.Fprint(w, `{"error":"no install is permitted","hint":"doppel deploy node001"}`)
	}
	c, err := newHead(h.URL, h.ca, time.Now, t.Logf)
	if err != nil {
		t.Fatal(err)
	}
	_, err = c.ask(t.Context(), "/v1/enrol", clone.Enrol{}, nil)
	var no *refusal
	if !errors.As(err, &no) || no.status != 403 || err.Error() != "the head refuses: no install is permitted (doppel deploy node001)" || tries != 2 {
		t.Errorf("after %d tries: %v", tries, err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	h.do = func(w http.ResponseWriter, r *http.Request) {
		cancel(errors.New("enough"))
		w.WriteHeader(http.StatusBadGateway)
	}
	if _, err := c.ask(ctx, "/", nil, nil); err == nil || err.Error() != "enough" {
		t.Errorf("%v", err)
	}
}

// A machine proves itself with what it was given, also over a connection that
// was there before.
func TestWear(t *testing.T) {
	h := newTestHead(t, "127.0.0.1")
	shown := 0
	h.do = func(w http.ResponseWriter, r *http.Request) {
		shown = len(r.TLS.PeerCertificates)
		fmt.Fprint(w, "{}")
	}
	c, err := newHead(h.URL, h.ca, time.Now, t.Logf)
	if err != nil {
		t.Fatal(err)
	}
	post := func(want int) {
		t.Helper()
		if _, err := c.post(t.Context(), "/", nil, nil); err != nil || shown != want {
			t.Errorf("%d certificates shown, want %d; %v", shown, want, err)
		}
	}
	post(0)
	key, csr, err := newKey()
	if err != nil {
		t.Fatal(err)
	}
	if r, err := x509.ParseCertificateRequest(csr); err != nil || r.CheckSignature() != nil {
		t.Error("bad request", err)
	}
	other, _, err := newKey()
	if err != nil {
		t.Fatal(err)
	}
	if c.wear(h.issue(&other.PublicKey), key) == nil || c.wear([]byte("x"), key) == nil {
		t.Error("wears another's certificate")
	}
	if err := c.wear(h.issue(&key.PublicKey), key); err != nil {
		t.Fatal(err)
	}
	post(1)
}

// Stages arrive in order, progress at most twice a second, and a refusal ends
// the install.
func TestReporter(t *testing.T) {
	h := newTestHead(t, "127.0.0.1")
	got := make(chan clone.Report, 100)
	refuse := false
	h.do = func(w http.ResponseWriter, r *http.Request) {
		var w1 clone.Report
		json.NewDecoder(r.Body).Decode(&w1)
		if refuse = w1.Stage == clone.StageIdentity; refuse {
			http.Error(w, `{"error":"disarmed"}`, http.StatusForbidden)
			return
		}
		w.WriteHeader(http.StatusNoContent)
		got <- w1
	}
	c, err := newHead(h.URL, h.ca, time.Now, func(string, ...any) {})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	r := startReporter(ctx, c, "/v1/report", cancel)
	r.report(clone.Report{Stage: clone.StagePartition})
	r.report(clone.Report{Stage: clone.StageFormat})
	for i := range int64(1000) {
		r.report(clone.Report{Stage: clone.StageApply, Done: i + 1, Total: 1000})
	}
	var stages []string
	var done int64
	for done < 1000 {
		w := <-got
		if n := len(stages); n == 0 || stages[n-1] != string(w.Stage) {
			stages = append(stages, string(w.Stage))
		}
		done = w.Done
	}
	if s := strings.Join(stages, " "); s != "partition format apply" || len(h.calls) > 6 {
		t.Errorf("%s, in %d calls", s, len(h.calls))
	}
	r.report(clone.Report{Stage: clone.StageIdentity})
	<-ctx.Done()
	var no *refusal
	if cause := context.Cause(ctx); !errors.As(cause, &no) {
		t.Errorf("cause %v", cause)
	}
	<-r.ended
}
