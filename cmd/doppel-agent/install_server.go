package main

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
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"sync/atomic"
	"time"
)

// maxAnswer bounds what is read of an answer. Orders name every pack that a
// node may read: a hundred thousand of them are some 7 MiB.
const maxAnswer = 64 << 20

// head is the server, as a machine of the cluster talks to it.
type head struct {
	base   string
	client *http.Client
	ca     *x509.CertPool
	caCert *x509.Certificate
	now    func() time.Time
	own    atomic.Pointer[tls.Certificate] // what this machine proves itself with
	say    func(format string, args ...any)
}

// newHead trusts that CA alone.
func newHead(base string, caPEM []byte, now func() time.Time, say func(string, ...any)) (*head, error) {
	u, err := url.Parse(base)
	if err != nil || u.Scheme != "https" || u.Host == "" {
		return nil, fmt.Errorf("%q is not the address of a server: want https://ADDRESS:PORT", base)
	}
	block, _ := pem.Decode(caPEM)
	if block == nil {
		return nil, errors.New("the certificate of the cluster's CA is not PEM")
	}
	ca, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("reading the certificate of the cluster's CA: %w", err)
	}
	h := &head{base: base, ca: x509.NewCertPool(), caCert: ca, now: now, say: say}
	h.ca.AddCert(ca)
	h.client = &http.Client{
		Timeout: time.Minute,
		Transport: &http.Transport{
			DialContext:         (&net.Dialer{Timeout: 10 * time.Second}).DialContext,
			TLSHandshakeTimeout: 20 * time.Second,
			TLSClientConfig:     h.tls(u.Hostname()),
			ForceAttemptHTTP2:   true,
			IdleConnTimeout:     30 * time.Second,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	return h, nil
}

func (h *head) tls(host string) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		// The library's own check has one clock for all certificates, and must
		// know it before it sees any; judge does the same check with a clock
		// chosen by what it sees, and a connection that it refuses is not made.
		InsecureSkipVerify: true,
		VerifyConnection: func(cs tls.ConnectionState) error {
			return h.judge(cs.PeerCertificates, host)
		},
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			if c := h.own.Load(); c != nil {
				return c, nil
			}
			return &tls.Certificate{}, nil // none
		},
	}
}

// judge checks the server's certificate. A machine without a battery, or fresh
// from its box, believes that it is 1970 or the day its firmware was built;
// when that is before there was a CA at all, its clock is no witness, and the
// certificate is judged at the beginning of its own validity.
func (h *head) judge(certs []*x509.Certificate, host string) error {
	if len(certs) == 0 {
		return errors.New("the server showed no certificate")
	}
	now := h.now()
	if now.Before(h.caCert.NotBefore) {
		now = h.caCert.NotBefore
		if certs[0].NotBefore.After(now) {
			now = certs[0].NotBefore
		}
	}
	between := x509.NewCertPool()
	for _, c := range certs[1:] {
		between.AddCert(c)
	}
	_, err := certs[0].Verify(x509.VerifyOptions{
		Roots: h.ca, Intermediates: between, CurrentTime: now, DNSName: host,
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	})
	return err
}

// clockIsWrong tells whether this machine's clock is before the CA's time.
func (h *head) clockIsWrong() bool { return h.now().Before(h.caCert.NotBefore) }

// refusal is the server's no: asking again would not change it.
type refusal struct {
	status  int
	message string
	hint    string
}

func (r *refusal) Error() string {
	s := fmt.Sprintf("the head refuses: %s", r.message)
	if r.hint != "" {
		s += " (" + r.hint + ")"
	}
	return s
}

// post asks once. date is the server's clock.
func (h *head) post(ctx context.Context, path string, question, answer any) (date time.Time, err error) {
	body, err := json.Marshal(question)
	if err != nil {
		return date, fmt.Errorf("asking %s: %w", path, err)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, h.base+path, bytes.NewReader(body))
	if err != nil {
		return date, err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := h.client.Do(req)
	if err != nil {
		return date, err
	}
	defer resp.Body.Close() // read as far as it is wanted
	date, _ = http.ParseTime(resp.Header.Get("Date"))
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	switch {
	case err != nil:
		return date, fmt.Errorf("reading the answer of %s: %w", path, err)
	case len(b) > maxAnswer:
		return date, fmt.Errorf("reading the answer of %s: more than %d bytes", path, maxAnswer)
	case resp.StatusCode >= 400 && resp.StatusCode < 500 && resp.StatusCode != http.StatusTooManyRequests:
		return date, refusalOf(resp.StatusCode, b)
	case resp.StatusCode < 200 || resp.StatusCode > 299:
		return date, fmt.Errorf("asking %s: %s: %s", path, resp.Status, refusalOf(resp.StatusCode, b).message)
	case answer == nil, resp.StatusCode == http.StatusNoContent: // which says that there is nothing
		return date, nil
	}
	if err := json.Unmarshal(b, answer); err != nil {
		return date, fmt.Errorf("reading the answer of %s: %w", path, err)
	}
	return date, nil
}

func refusalOf(status int, body []byte) *refusal {
	var text struct{ Error, Hint string }
	if json.Unmarshal(body, &text) != nil || text.Error == "" {
		text.Error = http.StatusText(status)
	}
	return &refusal{status: status, message: text.Error, hint: text.Hint}
}

// ask posts until the server answers, and tells on the console what it waits
// for. A refusal is an answer.
func (h *head) ask(ctx context.Context, path string, question, answer any) (date time.Time, err error) {
	wait := time.Second
	var last string
	for {
		date, err = h.post(ctx, path, question, answer)
		var no *refusal
		if err == nil || errors.As(err, &no) {
			return date, err
		}
		if ctx.Err() != nil {
			return date, context.Cause(ctx)
		}
		if text := err.Error(); text != last {
			h.say("waiting for the head %s: %v", h.base, err)
			last = text
		}
		t := time.NewTimer(wait)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return date, context.Cause(ctx)
		}
		wait = min(2*wait, 30*time.Second)
	}
}

// newKey makes a key pair and a request for its certificate. The subject is
// left empty: the server writes it.
func newKey() (key *ecdsa.PrivateKey, csr []byte, err error) {
	if key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		return nil, nil, fmt.Errorf("making a key pair: %w", err)
	}
	if csr, err = x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key); err != nil {
		return nil, nil, fmt.Errorf("making a certificate request: %w", err)
	}
	return key, csr, nil
}

// wear has this machine prove itself with a certificate from now on.
func (h *head) wear(cert []byte, key *ecdsa.PrivateKey) error {
	leaf, err := x509.ParseCertificate(cert)
	if err != nil {
		return fmt.Errorf("reading the certificate that the head gave: %w", err)
	}
	if pub, ok := leaf.PublicKey.(*ecdsa.PublicKey); !ok || !pub.Equal(&key.PublicKey) {
		return errors.New("the certificate that the head gave is for another key")
	}
	h.own.Store(&tls.Certificate{Certificate: [][]byte{cert}, PrivateKey: key, Leaf: leaf})
	// Connections made without it would be used again.
	h.client.CloseIdleConnections()
	return nil
}
