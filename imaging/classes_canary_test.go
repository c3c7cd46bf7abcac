package imaging

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"doppel/imaging/store"
)

// privateKeys are private keys in the formats that DetectSecret knows, as far as
// they can be made here, and beginnings of the others.
func privateKeys(t *testing.T) map[string]string {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	must(t, err)
	_, edwards, err := ed25519.GenerateKey(rand.Reader)
	must(t, err)
	curve, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	must(t, err)
	small, err := x509.MarshalPKCS8PrivateKey(edwards)
	must(t, err)
	pkcs8EC, err := x509.MarshalPKCS8PrivateKey(curve)
	must(t, err)
	sec1, err := x509.MarshalECPrivateKey(curve)
	must(t, err)
	cert := "-----BEGIN CERTIFICATE-----\n" + base64Lines + "-----END CERTIFICATE-----\n"
	pem := "-----BEGIN PRIVATE KEY-----\n" + base64Lines + "-----END PRIVATE KEY-----\n"
	der := func(tag byte, parts ...[]byte) []byte {
		body := bytes.Join(parts, nil)
		return append(binary.BigEndian.AppendUint16([]byte{tag, 0x82}, uint16(len(body))), body...)
	}
	pkcs5 := []byte{6, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 5, 13}
	data := []byte{6, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 7, 1}
	zeros := make([]byte, 100)
	return map[string]string{
		"pem":                 pem,
		"pem, CRLF":           strings.ReplaceAll(pem, "\n", "\r\n"),
		"pem, byte order":     "\ufeff" + pem,
		"pem, in a bundle":    strings.Repeat(cert, 1000) + pem,
		"pem, openvpn":        "#\n# 2048 bit OpenVPN static key\n#\n-----BEGIN OpenVPN Static key V1-----\n0123456789abcdef0123456789abcdef\n",
		"pem, openssh":        "-----BEGIN OPENSSH PRIVATE KEY-----\n" + base64Lines,
		"pem, pgp":            "-----BEGIN PGP PRIVATE KEY BLOCK-----\nVersion: 2\n\n" + base64Lines,
		"ssh.com":             "---- BEGIN SSH2 ENCRYPTED PRIVATE KEY ----\nComment: x\nP2/56wAAA\n",
		"putty":               "PuTTY-User-Key-File-3: ssh-ed25519\nEncryption: none\n",
		"age":                 "# public key: age1x\nAGE-SECRET-KEY-1" + strings.Repeat("QPZRY9X8GF2TVDW0S3JN54KHCE6MUA7L", 2)[:58] + "\n",
		"der, pkcs1":          string(x509.MarshalPKCS1PrivateKey(key)),
		"der, pkcs8":          string(pkcs8),
		"der, pkcs8, ed25519": string(small),
		"der, pkcs8, ec":      string(pkcs8EC),
		"der, sec1":           string(sec1),
		"der, encrypted":      string(der(0x30, der(0x30, pkcs5, zeros), zeros)),
		"pkcs12":              string(der(0x30, []byte{2, 1, 3}, der(0x30, data, zeros))),
		"jks":                 "\xfe\xed\xfe\xed\x00\x00\x00\x02\x00\x00\x00\x01\x00\x00\x00\x01" + string(zeros),
		"jceks":               "\xce\xce\xce\xce\x00\x00\x00\x02\x00\x00\x00\x01\x00\x00\x00\x03" + string(zeros),
		"keytab":              "\x05\x02\x00\x00\x00\x4a\x00\x02\x00\x07EXAMPLE\x00\x04host\x00\x04head" + string(zeros),
		"openpgp":             "\x95\x03\x98\x04\x60\x00\x00\x00\x01\x08\x00" + string(zeros),
		"openpgp, new":        "\xc5\x58\x04\x60\x00\x00\x00\x16\x08\x00" + string(zeros),
		"gnupg":               "(21:protected-private-key(3:rsa(1:n257:",
		"gnupg, extended":     "Created: 20260101T000000\nKey: (protected-private-key (rsa\n",
		"wireguard":           "[Interface]\nAddress = 10.0.0.1/24\nPrivateKey = " + base64.StdEncoding.EncodeToString(zeros[:32]) + "\n",
		"jwk":                 `{"kty": "EC", "crv": "P-256", "x": "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU", "d": "jpsQnnGQmL-YBIffH1136cspYG6-0iY7X1fCE9-E9LI"}`,
		"jwk, symmetric":      "{\"keys\":[{\"k\" : \"AyM1SysPpbyDfgZld3umj1qzKObwVMkoqQ-EstJQLr_T\",\"kty\":\"oct\"}]}",
		"bind":                "Private-key-format: v1.3\nAlgorithm: 13 (ECDSAP256SHA256)\nPrivateKey: x\n",
		"borg":                "BORG_KEY 0123456789abcdef\nhqlhbGdvcml0aG0=\n",
		"minisign":            "untrusted comment: minisign encrypted secret key\n" + base64Lines,
		"luks":                "LUKS\xba\xbe\x00\x02" + string(zeros),
	}
}

func TestDetectKeys(t *testing.T) {
	for name, content := range privateKeys(t) {
		if !DetectSecret([]byte(content)) {
			t.Errorf("%s: is not detected", name)
		}
	}
	public := elliptic.Marshal(elliptic.P256(), elliptic.P256().Params().Gx, elliptic.P256().Params().Gy)
	spki := append([]byte{0x30, 0x59, 0x30, 0x13, 6, 7, 0x2a, 0x86, 0x48, 0xce, 0x3d, 2, 1, 6, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 3, 1, 7, 3, 0x42, 0}, public...)
	for name, content := range map[string]string{
		"truststore":     "\xfe\xed\xfe\xed\x00\x00\x00\x02\x00\x00\x00\x89\x00\x00\x00\x02" + strings.Repeat("\x00", 100),
		"public key":     string(spki),
		"certificate":    "\x30\x82\x03\x0b\x30\x82\x01\xf3\xa0\x03\x02\x01\x02\x02\x14" + strings.Repeat("x", 800),
		"credentials":    "\x05\x04\x00\x0c\x00\x01\x00\x08" + strings.Repeat("\x00", 100),
		"wireguard peer": "[Peer]\nPublicKey = " + base64.StdEncoding.EncodeToString(make([]byte, 32)) + "\n",
		"netdev man":     "       PrivateKey=\n           The Base64 encoded private key for the interface.\n",
		"jwk, public":    `{"kty": "EC", "crv": "P-256", "x": "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU"}`,
		"signature":      "untrusted comment: signature from minisign secret key",
		"zip":            "PK\x03\x04" + strings.Repeat("\x00", 100),
		"short":          "\x30\x82",
		"nothing":        "\x95",
	} {
		if DetectSecret([]byte(content)) {
			t.Errorf("%s: is taken for a private key", name)
		}
	}
}

// A canary in each place that the table knows and in each format that the
// detector knows: those of the classes node and head come to no compute node,
// and cannot be had with the key of the cluster; those of the class cluster come
// to all.
func TestCanaries(t *testing.T) {
	root := t.TempDir()
	canaries := map[string]Class{} // by what is looked for
	place := func(path, content string, class Class) {
		t.Helper()
		canary := fmt.Sprintf("canary-%04d-%s", len(canaries), strings.Repeat("c", 20))
		fill(t, filepath.Join(root, path), []byte(content+"\n"+canary+"\n"))
		canaries[canary] = class
	}
	used := map[string]bool{}
	for _, r := range secretRules {
		path := strings.NewReplacer("**", "deep/er", "*", "some").Replace(r.pattern)
		if class, known := Classify(path); r.class == ClassNone || !known || class != r.class {
			if r.class != ClassNone {
				t.Errorf("%s is of class %v, not %v", path, class, r.class)
			}
			continue
		}
		if used[path] {
			continue
		}
		used[path] = true
		place(path, "a secret by its place", r.class)
	}
	n := 0
	for name, content := range privateKeys(t) {
		n++
		place(fmt.Sprintf("opt/app%d/%s.bak", n, name), content, ClassHead)
	}
	place("usr/bin/program", "nothing that is secret", ClassNone)
	if len(canaries) < 250 {
		t.Errorf("%d canaries", len(canaries))
	}
	c := openTestCatalog(t)
	report := takeImage(t, c, root, "x")
	listed := map[string]bool{}
	for _, s := range report.Secrets {
		listed[s.Path] = s.Detected
	}
	if len(listed) != len(canaries)-1 {
		t.Errorf("%d secrets are listed, of %d", len(listed), len(canaries)-1)
	}
	for path, detected := range listed {
		if detected != strings.HasPrefix(path, "opt/app") {
			t.Errorf("%s: detected %v", path, detected)
		}
	}

	key, err := store.ReadKey(filepath.Join(c.Dir(), "keys", "cluster.key"))
	must(t, err)
	st, err := c.Store()
	must(t, err)
	v, err := c.Resolve(t.Context(), "x")
	must(t, err)
	m, _, err := ReadManifest(t.Context(), st, store.Keys{Cluster: &key}, v.Blob)
	must(t, err)
	vault, err := store.OpenVault(t.Context(), st, store.Keys{Cluster: &key}, nil)
	must(t, err)
	node := filepath.Join(t.TempDir(), "node")
	_, err = Apply(t.Context(), m, vault, node, ApplyOptions{})
	must(t, err)
	var restored bytes.Buffer
	must(t, filepath.WalkDir(node, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			b, rerr := os.ReadFile(path)
			restored.Write(b)
			err = rerr
		}
		return err
	}))
	readable := everyChunk(t, c, &key)
	digests := m.preambleAndParts(t)
	for canary, class := range canaries {
		secret := class.Audience() == store.Head
		if got := bytes.Contains(restored.Bytes(), []byte(canary)); got == secret {
			t.Errorf("%s of class %v: on a compute node %v", canary, class, got)
		}
		if got := bytes.Contains(readable, []byte(canary)); got == secret {
			t.Errorf("%s of class %v: readable with the cluster's key %v", canary, class, got)
		}
	}
	must(t, filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		b, err := os.ReadFile(path)
		rel, _ := filepath.Rel(root, path)
		e := m.List.Get(rel)
		sum := store.Sum(b)
		if got := bytes.Contains(digests, sum[:]); got == (e.Class.Audience() == store.Head) {
			t.Errorf("%s of class %v: its digest can be read %v", rel, e.Class, got)
		}
		return err
	}))
}

// preambleAndParts is all of a manifest that its reader has.
func (m *Manifest) preambleAndParts(t *testing.T) []byte {
	t.Helper()
	b, err := m.preamble()
	must(t, err)
	return append(b, bytes.Join(m.List.parts, nil)...)
}

// everyChunk is all that can be read in a store with the key of the cluster,
// whether a manifest names it or not, and the files of the store as they are.
func everyChunk(t *testing.T, c *Catalog, key *store.Key) (all []byte) {
	t.Helper()
	for _, path := range storeFiles(t, c) {
		b, err := os.ReadFile(path)
		must(t, err)
		all = append(all, b...)
		if filepath.Base(filepath.Dir(path)) != "packs" {
			continue
		}
		id, err := store.ParseID(filepath.Base(path))
		must(t, err)
		st, err := c.Store()
		must(t, err)
		_, err = store.Salvage(t.Context(), st, store.Keys{Cluster: key}, id, func(b store.Block) error {
			plain, err := store.DecodeBlock(b)
			all = append(all, plain...)
			return err
		})
		must(t, err)
	}
	return all
}
