package web

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"
)

// Every certificate is valid from here on, so that it does not matter whether
// the clocks of the machines that look at it are right.
var epoch = time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC)

const (
	caYears      = 30
	bootValidity = 7 * 24 * time.Hour // of one boot's certificate: the longest install there may be
	renewBefore  = 365 * 24 * time.Hour
)

// CA is the cluster's certificate authority, and the server's certificate by
// it.
type CA struct {
	cert   *x509.Certificate
	key    crypto.Signer
	server tls.Certificate
	now    func() time.Time
}

// OpenCA reads the authority from the directory (DIR/keys), or makes it, and
// sees to it that the server has a certificate for exactly these hosts, names
// or addresses. It may be called by several processes at once.
func OpenCA(dir string, hosts []string) (*CA, error) {
	return openCA(dir, hosts, time.Now)
}

func openCA(dir string, hosts []string, now func() time.Time) (_ *CA, err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("making the certificate authority's directory: %w", err)
	}
	unlock, err := lockDir(dir)
	if err != nil {
		return nil, fmt.Errorf("opening the certificate authority: %w", err)
	}
	defer func() { err = errors.Join(err, unlock()) }()
	ca := &CA{now: now}
	if err := ca.open(filepath.Join(dir, "ca.crt"), filepath.Join(dir, "ca.key")); err != nil {
		return nil, fmt.Errorf("opening the certificate authority: %w", err)
	}
	if err := ca.openServer(filepath.Join(dir, "server.crt"), filepath.Join(dir, "server.key"), hosts); err != nil {
		return nil, fmt.Errorf("opening the server's certificate: %w", err)
	}
	return ca, nil
}

// lockDir keeps other processes from making the same files.
func lockDir(dir string) (unlock func() error, err error) {
	d, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(d.Fd()), syscall.LOCK_EX); err != nil {
		return nil, errors.Join(fmt.Errorf("locking %s: %w", dir, err), d.Close())
	}
	return d.Close, nil
}

// clock is the time to judge and to issue by: a head whose battery died says
// 1970 until it has found a time server.
func (ca *CA) clock() time.Time {
	if t := ca.now(); t.After(epoch) {
		return t
	}
	return epoch.Add(time.Hour)
}

func (ca *CA) open(crtPath, keyPath string) error {
	pair, err := readPair(crtPath, keyPath)
	if errors.Is(err, fs.ErrNotExist) {
		if _, statErr := os.Lstat(keyPath); statErr == nil {
			// Made in part, or lost in part. By the same key and name, what
			// was issued before stays good.
			return ca.create(crtPath, keyPath)
		}
		if _, statErr := os.Lstat(crtPath); statErr == nil {
			return fmt.Errorf("%s is there, but its key is not: restore %s from a backup (a new authority would lock out every installed node): %w", crtPath, keyPath, err)
		}
		return ca.create(crtPath, keyPath)
	}
	if err != nil {
		return err
	}
	ca.cert = pair.Leaf
	ca.key, _ = pair.PrivateKey.(crypto.Signer)
	if !ca.cert.IsCA || ca.key == nil {
		return fmt.Errorf("%s is not a certificate authority's", crtPath)
	}
	return nil
}

// create makes the authority, with the key that is there or a new one. The key
// is in place before the certificate.
func (ca *CA) create(crtPath, keyPath string) error {
	key, err := readKey(keyPath)
	if errors.Is(err, fs.ErrNotExist) {
		key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	}
	if err != nil {
		return err
	}
	template := &x509.Certificate{
		Subject:               pkix.Name{CommonName: "doppel cluster authority"},
		NotBefore:             epoch,
		NotAfter:              ca.clock().AddDate(caYears, 0, 0),
		IsCA:                  true,
		BasicConstraintsValid: true,
		MaxPathLenZero:        true,
		KeyUsage:              x509.KeyUsageCertSign,
	}
	ca.cert, ca.key = template, key
	der, err := ca.sign(template, key.Public())
	if err != nil {
		return err
	}
	if ca.cert, err = x509.ParseCertificate(der); err != nil {
		return err
	}
	return writePair(crtPath, keyPath, der, key)
}

// openServer reads the server's certificate, or issues another when it is not
// there, not ours, not for these hosts, or soon at its end.
func (ca *CA) openServer(crtPath, keyPath string, hosts []string) error {
	ips, names := splitHosts(hosts)
	if len(ips)+len(names) == 0 {
		return errors.New("no address or name to issue it for")
	}
	pair, err := readPair(crtPath, keyPath)
	if err == nil && ca.serves(pair.Leaf, ips, names) {
		ca.server = pair
		return nil
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	der, err := ca.sign(&x509.Certificate{
		Subject:     pkix.Name{CommonName: "doppel"},
		NotBefore:   ca.cert.NotBefore,
		NotAfter:    ca.cert.NotAfter, // a client may judge at any time within the CA's validity
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		IPAddresses: ips,
		DNSNames:    names,
	}, key.Public())
	if err != nil {
		return err
	}
	if err := writePair(crtPath, keyPath, der, key); err != nil {
		return err
	}
	ca.server, err = readPair(crtPath, keyPath)
	return err
}

func splitHosts(hosts []string) (ips []net.IP, names []string) {
	for _, h := range hosts {
		if ip := net.ParseIP(h); ip != nil {
			ips = append(ips, ip)
		} else {
			names = append(names, h)
		}
	}
	return ips, names
}

func (ca *CA) serves(crt *x509.Certificate, ips []net.IP, names []string) bool {
	sameIPs := len(ips) == len(crt.IPAddresses)
	for _, ip := range ips {
		sameIPs = sameIPs && slices.ContainsFunc(crt.IPAddresses, ip.Equal)
	}
	sameNames := len(names) == len(crt.DNSNames)
	for _, n := range names {
		sameNames = sameNames && slices.Contains(crt.DNSNames, n)
	}
	return sameIPs && sameNames && crt.CheckSignatureFrom(ca.cert) == nil && ca.clock().Add(renewBefore).Before(crt.NotAfter)
}

// sign completes and signs a certificate.
func (ca *CA) sign(template *x509.Certificate, public any) ([]byte, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, err
	}
	template.SerialNumber = serial
	if template.NotAfter.After(ca.cert.NotAfter) {
		template.NotAfter = ca.cert.NotAfter
	}
	if ca.clock().After(ca.cert.NotAfter) {
		return nil, fmt.Errorf("the certificate authority ended on %s", ca.cert.NotAfter.Format(time.DateOnly))
	}
	der, err := x509.CreateCertificate(rand.Reader, template, ca.cert, public, ca.key)
	if err != nil {
		return nil, fmt.Errorf("signing a certificate: %w", err)
	}
	return der, nil
}

// PEM is the authority's certificate, by which machines know this server.
func (ca *CA) PEM() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.cert.Raw})
}

// TLS is the configuration of the door for machines: a client need not have a
// certificate, but one that it has must be ours and in its time.
func (ca *CA) TLS() *tls.Config {
	pool := x509.NewCertPool()
	pool.AddCert(ca.cert)
	return &tls.Config{
		MinVersion:             tls.VersionTLS13,
		Certificates:           []tls.Certificate{ca.server},
		ClientAuth:             tls.VerifyClientCertIfGiven,
		ClientCAs:              pool,
		Time:                   ca.clock,
		SessionTicketsDisabled: true, // every connection shows its certificate anew
		NextProtos:             []string{"h2", "http/1.1"},
	}
}

// IssueBoot gives a machine a certificate for one boot of an install. The
// request's subject is ignored. While this clock is known to be wrong it does
// not say when the certificate ends: it may be put right during the install.
func (ca *CA) IssueBoot(csr []byte, node, install string) ([]byte, error) {
	until := ca.clock().Add(bootValidity)
	if !ca.now().After(epoch) {
		until = ca.cert.NotAfter
	}
	return ca.issue(csr, Identity{Boot: true, Node: node, Install: install}, until)
}

// IssueNode gives a node its own certificate.
func (ca *CA) IssueNode(csr []byte, node string) ([]byte, error) {
	return ca.issue(csr, Identity{Node: node}, ca.cert.NotAfter)
}

// RequestError says that a certificate request is not one that can be signed.
type RequestError struct{ Why string }

func (e *RequestError) Error() string { return "the certificate request cannot be used: " + e.Why }

func (ca *CA) issue(csr []byte, id Identity, until time.Time) ([]byte, error) {
	req, err := x509.ParseCertificateRequest(csr)
	if err != nil {
		return nil, &RequestError{Why: err.Error()}
	}
	// Only ECDSA: verifying an RSA key of any size that a stranger sends
	// costs the stranger's choice of time.
	public, ok := req.PublicKey.(*ecdsa.PublicKey)
	if !ok || public.Curve != elliptic.P256() && public.Curve != elliptic.P384() {
		return nil, &RequestError{Why: "its key is not ECDSA P-256 or P-384"}
	}
	if err := req.CheckSignature(); err != nil {
		return nil, &RequestError{Why: err.Error()}
	}
	return ca.sign(&x509.Certificate{
		Subject:     pkix.Name{CommonName: id.Node},
		NotBefore:   ca.cert.NotBefore,
		NotAfter:    until,
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		URIs:        []*url.URL{id.uri()},
	}, public)
}
