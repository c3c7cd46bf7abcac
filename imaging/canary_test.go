package imaging

import (
	"bytes"
	"context"
	"encoding/asn1"
	"encoding/binary"
	"encoding/pem"
	"fmt"
	"io"
	"io/fs"
	"math/big"
	"os"
	"path"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"doppel/imaging/store"
)

// samplePath is a path that the pattern of a rule stands for.
func samplePath(pattern string) string {
	elements := strings.Split(pattern, "/")
	for i, e := range elements {
		switch {
		case e == "**" && i == 0:
			elements[i] = "data/users/someone"
		case e == "**":
			elements[i] = "deep/er"
		default:
			elements[i] = strings.NewReplacer("*", "x", "?", "x").Replace(e)
		}
	}
	return strings.Join(elements, "/")
}

// detectable are files that no rule knows, with the canary within the secret or
// beside it.
func detectable(canary string) map[string][]byte {
	line := func(kind, more string) []byte {
		return []byte(more + "-----BEGIN " + kind + "-----\n" + base64Lines + "-----END " + kind + "-----\n" + canary + "\n")
	}
	files := map[string][]byte{
		"bom.pem":            append([]byte("\xef\xbb\xbf"), line("PRIVATE KEY", "")...),
		"crlf.pem":           bytes.ReplaceAll(line("RSA PRIVATE KEY", ""), []byte("\n"), []byte("\r\n")),
		"text before.pem":    line("PRIVATE KEY", "subject=CN = head\n\n"),
		"bag attributes.pem": line("ENCRYPTED PRIVATE KEY", "Bag Attributes\n    friendlyName: x\nKey Attributes: <No Attributes>\n"),
		"proc type.pem":      []byte("-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,00\n\n" + base64Lines + canary),
		"bundle.pem":         line("EC PRIVATE KEY", strings.Repeat("-----BEGIN CERTIFICATE-----\n"+strings.Repeat(base64Lines, 20)+"-----END CERTIFICATE-----\n", 100)),
		"large bundle.pem":   line("PRIVATE KEY", strings.Repeat("-----BEGIN CERTIFICATE-----\n"+strings.Repeat(base64Lines, 20)+"-----END CERTIFICATE-----\n", 2000)),
		"mail spool":         append(noise(3<<20, 7), append(line("OPENSSH PRIVATE KEY", "\n"), noise(2<<20, 8)...)...),
		"one line.env":       []byte("KEY=-----BEGIN PRIVATE KEY-----" + strings.ReplaceAll(base64Lines, "\n", "") + canary),
		"tool.yaml":          []byte("key: |\n    -----BEGIN RSA PRIVATE KEY-----\n    " + base64Lines + canary),
		"tool.json":          []byte(`{"key": "-----BEGIN PRIVATE KEY-----\n` + base64Lines[:60] + `", "x": "` + canary + `"}`),
		"kubelet.kubeconfig": []byte("client-key-data: LS0tLS1CRUdJTiBSU0EgUFJJVkFURSBLRVktLS0tLQpNSUlFcEFJQkFBS0NBUUVBd1ZQd1ZQd1ZQd1ZQd1ZQd1ZQd1ZQd1ZQd1ZQd1ZQd1ZQd1ZQ\n" + canary),
		"ssh2":               []byte("---- BEGIN SSH2 ENCRYPTED PRIVATE KEY ----\nComment: \"rsa\"\n" + base64Lines + canary),
		"ssh1":               []byte("SSH PRIVATE KEY FILE FORMAT 1.1\n\x00" + canary),
		"key.ppk.bak":        []byte("PuTTY-User-Key-File-2: ssh-rsa\r\nComment: " + canary),
		"age.txt":            []byte("# created: 2026\nAGE-SECRET-KEY-1" + strings.Repeat("QPZRY9X8GF2TVDW0S3JN54KHCE6MUA7L", 2)[:58] + "\n" + canary),
		"identity.age":       []byte("age-encryption.org/v1\n-> scrypt x 18\n" + canary),
		"openvpn.key":        []byte("-----BEGIN OpenVPN Static key V1-----\n" + canary),
		"wg0.conf":           []byte("# at home\n[Interface]\nAddress = 10.0.0.1/24\nPrivateKey = YAnz5TF+lXXJte14tji3zlMNq+hd2rYUIgJBgB3fBmk=\n" + canary),
		"wg0.netdev":         []byte("[NetDev]\nKind=wireguard\n[WireGuard]\nPrivateKey=YAnz5TF+lXXJte14tji3zlMNq+hd2rYUIgJBgB3fBmk=\n" + canary),
		"jwk.json":           []byte(`{"keys": [{"kty":"EC","crv":"P-256","x":"f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU","d": "jpsQnnGQmL-YBIffH1136cspYG6-0iY7X1fCE9-E9LI"}]}` + canary),
		"oct.json":           []byte(`[{"kty":"oct","k":"AyM1SysPpbyDfgZld3umj1qzKObwVMkoqQ"}]` + canary),
		"tsig":               []byte("key \"dhcp\" {\n\talgorithm hmac-sha256;\n\tsecret \"bWFyeSBoYWQgYSBsaXR0bGUgbGFtYiBtYXJ5\";\n};\n" + canary),
		"Kexample.private":   []byte("Private-key-format: v1.3\nAlgorithm: 13\n" + canary),
		"minisign.key":       []byte("untrusted comment: minisign encrypted secret key\n" + canary),
		"tor":                []byte("== ed25519v1-secret: type0 ==\x00\x00\x00" + canary),
		"passwords.kdbx":     []byte("\x03\xd9\xa2\x9a\x67\xfb\x4b\xb5" + canary),
		"libgcrypt":          []byte("(21:protected-private-key(3:rsa" + canary),
		"krb5cc_0":           []byte("\x05\x04\x00\x0c\x00\x01\x00\x08" + canary),
		"saved.kt~":          append([]byte("\x05\x02\x00\x00\x00\x10\x00\x02\x00\x07EXAMPLE"), canary...),
		"core":               append(append([]byte("\x7fELF\x02\x01\x01\x00"), make([]byte, 8)...), "\x04\x00"+canary...),
		"vmcore":             []byte("KDUMP   " + canary),
		"app.jks":            []byte("\xfe\xed\xfe\xed\x00\x00\x00\x02\x00\x00\x00\x01\x00\x00\x00\x01\x00\x30" + canary),
		"app.jceks":          []byte("\xce\xce\xce\xce\x00\x00\x00\x02\x00\x00\x00\x01\x00\x00\x00\x03\x00\x30" + canary),
		"secret.pgp":         append([]byte("\x95\x01\x00\x04\x65\x00\x00\x00\x16"), canary...),
	}
	swap := make([]byte, 8192)
	copy(swap[4096-10:], "SWAPSPACE2"+canary)
	files["swapfile"] = swap
	der := func(v any) []byte {
		b, err := asn1.Marshal(v)
		if err != nil {
			panic(err)
		}
		return b
	}
	type algorithm struct{ OID asn1.ObjectIdentifier }
	long := []byte(canary + strings.Repeat("x", 64))
	n := new(big.Int).SetBytes(long)
	small := big.NewInt(65537)
	files["pkcs8.der"] = der(struct {
		V int
		A algorithm
		K []byte
	}{0, algorithm{asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 1}}, long})
	files["pkcs8 encrypted.der"] = der(struct {
		A algorithm
		K []byte
	}{algorithm{asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 5, 13}}, long})
	files["pkcs1.der.dpkg-old"] = der(struct {
		V                           int
		N, E, D, P, Q, DP, DQ, QInv *big.Int
	}{0, n, small, n, n, n, n, n, n})
	files["sec1.der"] = der(struct {
		V int
		K []byte
	}{1, []byte(canary)})
	files["pkcs12"] = der(struct {
		V   int
		A   algorithm
		Bag algorithm
		K   []byte
	}{3, algorithm{asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 1}}, algorithm{asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 12, 10, 1, 2}}, long})
	named := make(map[string][]byte)
	for name, b := range files {
		named["opt/app/"+name] = b
	}
	return named
}

// recording is a Source that remembers which chunks went to the store for whom.
type recording struct {
	Source
	mu   sync.Mutex
	refs []store.Ref
}

type recordingSink struct {
	Sink
	r *recording
}

func (s *recordingSink) Block(ctx context.Context, b store.Block) error {
	s.r.mu.Lock()
	for _, c := range b.Chunks {
		s.r.refs = append(s.r.refs, store.Ref{Audience: b.Audience, ID: c.ID})
	}
	s.r.mu.Unlock()
	return s.Sink.Block(ctx, b)
}

func (r *recording) Scan(ctx context.Context, req ScanRequest, sink Sink) error {
	return r.Source.Scan(ctx, req, &recordingSink{sink, r})
}

// TestCanaries puts a canary into each kind of place where secrets are, captures
// the tree, and restores it with the key that a compute node has. No canary of
// what is for heads is in that tree, nor anywhere in the store where that key
// opens anything; those that every node needs are.
func TestCanaries(t *testing.T) {
	root := t.TempDir()
	type place struct {
		class    Class
		detected bool
		canary   []byte
	}
	places := make(map[string]*place)
	put := func(class Class, p string, content func(canary string) []byte) {
		if places[p] != nil {
			return // two rules know it
		}
		canary := fmt.Sprintf("canary-%04d-of-%v", len(places), class)
		places[p] = &place{class: class, canary: []byte(canary)}
		fill(t, path.Join(root, p), content(canary))
	}
	plain := func(canary string) []byte { return []byte("password = " + canary + "\n") }
	for i, r := range secretRules {
		p := samplePath(r.pattern)
		put(r.class, p, plain)
		if r.class == ClassNone || places[p].class == ClassNone {
			continue
		}
		dir, base := path.Split(p)
		copies := []string{p + []string{"~", ".bak", ".dpkg-old", "-20260101", ".rpmsave"}[i%5]}
		if base[0] == '.' { // as vim names them
			copies = append(copies, p+".swp")
		} else {
			copies = append(copies, dir+"."+base+".swp")
		}
		for _, copied := range copies {
			class := ClassHead
			if r := rules.find(copied); r != nil { // all that is in a directory, say
				class = r.class
			}
			put(class, copied, plain)
		}
	}
	for name := range detectable("") {
		put(ClassHead, name, func(canary string) []byte { return detectable(canary)[name] })
		places[name].detected = true
	}
	put(ClassNone, "etc/motd", plain)

	c := openTestCatalog(t)
	src := &recording{Source: NewLocal(root, WithClock(later))}
	r, err := Capture(t.Context(), c, src, CaptureOptions{Name: "x", Root: root})
	must(t, err)
	reported := make(map[string]SecretFile)
	for _, s := range r.Secrets {
		reported[s.Path] = s
	}
	for p, place := range places {
		s, listed := reported[p]
		if listed != (place.class != ClassNone) || listed && (s.Class != place.class.String() || s.Detected != place.detected) {
			t.Errorf("%q, which is of class %v, is reported as %+v", p, place.class, s)
		}
	}

	// All that the key of every node opens.
	st, err := c.Store()
	must(t, err)
	keys, err := c.Keys()
	must(t, err)
	keys.Head = nil
	vault, err := store.OpenVault(t.Context(), st, keys, nil)
	must(t, err)
	v, err := c.Resolve(t.Context(), "x")
	must(t, err)
	blob, err := store.ParseID(v.Blob.String())
	must(t, err)
	m, _, err := ReadManifest(t.Context(), st, keys, blob)
	must(t, err)
	var opened bytes.Buffer
	for _, ref := range src.refs {
		b, err := vault.Chunk(t.Context(), ref)
		if (err == nil) != (ref.Audience == store.Cluster) {
			t.Errorf("with the cluster's key alone, a chunk for %v: %v", ref.Audience, err)
		}
		opened.Write(b)
	}
	dir := filepath.Join(t.TempDir(), "node")
	_, err = Apply(t.Context(), m, vault, dir, ApplyOptions{})
	must(t, err)
	var restored bytes.Buffer
	must(t, filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		b, err := os.ReadFile(p)
		restored.Write(b)
		return err
	}))
	inStore, inTree := canariesIn(opened.Bytes()), canariesIn(restored.Bytes())
	for p, place := range places {
		public := place.class.Audience() == store.Cluster
		if inStore[string(place.canary)] != public || inTree[string(place.canary)] != public {
			t.Errorf("%q, of class %v: in what a node can open: %v; in its tree: %v", p, place.class, inStore[string(place.canary)], inTree[string(place.canary)])
		}
	}
	if len(places) < 2*len(secretRules) {
		t.Errorf("%d places for %d rules", len(places), len(secretRules))
	}

	// A capture that knows the files again knows their classes.
	again := takeImage(t, c, root, "x")
	if !again.Unchanged || len(again.Secrets) != len(r.Secrets) {
		t.Errorf("captured again: %+v", again)
	}
}

// canariesIn finds all canaries.
func canariesIn(b []byte) map[string]bool {
	found := make(map[string]bool)
	for {
		i := bytes.Index(b, []byte("canary-"))
		if i < 0 {
			return found
		}
		b = b[i:]
		end := len("canary-0000-of-")
		for end < len(b) && b[end] >= 'a' && b[end] <= 'z' {
			end++
		}
		// Of what follows the word without a break, the class is the beginning.
		for _, class := range []Class{ClassNone, ClassCluster, ClassNode, ClassHead} {
			if word := b[:len("canary-0000-of-")]; bytes.HasPrefix(b[len(word):], []byte(class.String())) {
				found[string(word)+class.String()] = true
			}
		}
		b = b[1:]
	}
}

// TestDetectFiles: what other programs write, with keys and without.
func TestDetectFiles(t *testing.T) {
	public := map[string]bool{"certificate.der": true, "certificates.p12": true, "public.der": true, "public.gpg": true, "trusted.jks": true, "trusted.p12": true}
	files, err := os.ReadDir("testdata/secrets")
	must(t, err)
	for _, f := range files {
		b, err := os.ReadFile("testdata/secrets/" + f.Name())
		must(t, err)
		if got := DetectSecret(b); got == public[f.Name()] {
			t.Errorf("%s: %v", f.Name(), got)
		}
		if clear, _ := pem.Decode(b); clear != nil {
			t.Errorf("%s is text", f.Name())
		}
	}
	if len(files) < 15 {
		t.Errorf("%d files", len(files))
	}
}

// TestDetectAcrossReads: wherever a key is in a file that is read piece by piece,
// it is found before the chunk that it begins in is given to anyone, and the
// file is cut into the chunks that it is always cut into.
func TestDetectAcrossReads(t *testing.T) {
	key := []byte("-----BEGIN OPENSSH PRIVATE KEY-----\n" + base64Lines)
	data := noise(2*chunkerBuffer+maxChunk, 3)
	var want []int
	var c Chunker
	for c.Reset(bytes.NewReader(data)); ; {
		b, err := c.Next()
		if err != nil {
			break
		}
		want = append(want, len(b))
	}
	for _, at := range []int{0, 1, 63, chunkerBuffer - 200, chunkerBuffer - 60, chunkerBuffer - 20, chunkerBuffer - 1, chunkerBuffer, chunkerBuffer + 3, 2*chunkerBuffer - 30, len(data) - len(key)} {
		with := bytes.Clone(data)
		copy(with[at:], key)
		given := 0
		for c.Reset(&uneven{b: with}); !c.Secret(); {
			b, err := c.Next()
			if err != nil {
				t.Fatalf("a key at %d is not found", at)
			}
			if c.Secret() {
				break
			}
			if given += len(b); given > at {
				t.Fatalf("of a file with a key at %d, %d bytes were given away", at, given)
			}
		}
	}
	var got []int
	for c.Reset(&uneven{b: data}); !c.Secret(); {
		b, err := c.Next()
		if err != nil {
			break
		}
		got = append(got, len(b))
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("chunks of %d, want %d", got, want)
	}
}

// uneven reads pieces of all lengths.
type uneven struct {
	b []byte
	n int
}

func (u *uneven) Read(b []byte) (int, error) {
	if len(u.b) == 0 {
		return 0, io.EOF
	}
	u.n = (u.n*7 + 4099) % 70_000
	n := copy(b[:min(len(b), u.n+1)], u.b)
	u.b = u.b[n:]
	return n, nil
}

// TestDetectNothing: what only looks like a secret to a careless eye.
func TestDetectNothing(t *testing.T) {
	elf := "\x7fELF\x02\x01\x01\x00" + strings.Repeat("\x00", 8) + "\x03\x00"
	jks := make([]byte, 16)
	binary.BigEndian.PutUint32(jks, 0xfeedfeed)
	for name, s := range map[string]string{
		"library that tests itself": elf + "-----BEGIN RSA PRIVATE KEY-----\n" + base64Lines,
		"empty keystore":            string(jks),
		"wireguard without a key":   "[Interface]\nPrivateKey = # see wg genkey\n[Peer]\nPublicKey = YAnz5TF+lXXJte14tji3zlMNq+hd2rYUIgJBgB3fBmk=\n",
		"public jwk":                `{"keys":[{"kty":"RSA","n":"AyM1SysPpbyDfgZld3umj1qzKObwVMkoqQ","e":"AQAB"}]}`,
		"json":                      `{"d": "AyM1SysPpbyDfgZld3umj1qzKObwVMkoqQ"}`,
		"certificate in base64":     "certificate-authority-data: LS0tLS1CRUdJTiBDRVJUSUZJQ0FURS0tLS0tCk1JSUVwQUlCQUFLQ0FRRUF3VlB3VlB3VlB3VlA\n",
		"DER that goes on":          "\x30\x03\x02\x01\x03 and so on",
		"short":                     "\x05\x02",
		"age's recipients":          "age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kudwqg6fq3yl6v\n",
	} {
		if DetectSecret([]byte(s)) {
			t.Errorf("%s is taken for a secret", name)
		}
	}
}
