package web

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"net/url"
	"strings"
)

// Identity is whom a certificate was issued to.
type Identity struct {
	Boot    bool // one boot of an install; else an installed node
	Node    string
	Install string // Boot only
}

// uri writes the identity as the certificate's one URI: doppel:boot:NODE:INSTALL
// or doppel:node:NODE.
func (id Identity) uri() *url.URL {
	opaque := "node:" + id.Node
	if id.Boot {
		opaque = "boot:" + id.Node + ":" + id.Install
	}
	return &url.URL{Scheme: "doppel", Opaque: opaque}
}

// identify reads whom a certificate was issued to.
func identify(crt *x509.Certificate) (Identity, error) {
	if len(crt.URIs) == 1 && crt.URIs[0].Scheme == "doppel" {
		switch p := strings.Split(crt.URIs[0].Opaque, ":"); {
		case len(p) == 3 && p[0] == "boot" && p[1] != "" && p[2] != "":
			return Identity{Boot: true, Node: p[1], Install: p[2]}, nil
		case len(p) == 2 && p[0] == "node" && p[1] != "":
			return Identity{Node: p[1]}, nil
		}
	}
	return Identity{}, errors.New("the certificate names no boot and no node")
}

// keyDigest names a certificate's public key.
func keyDigest(crt *x509.Certificate) string {
	sum := sha256.Sum256(crt.RawSubjectPublicKeyInfo)
	return hex.EncodeToString(sum[:])
}
