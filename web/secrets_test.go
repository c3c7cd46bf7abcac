package web

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"doppel/imaging/store"
)

// secrets gives every key of a bench, in the forms that it could leak in.
func (b *bench) secrets(machines ...*machine) map[string][]string {
	b.t.Helper()
	raw := map[string][]byte{
		"the cluster's key":       b.machines.Keys.Cluster[:],
		"the heads' key":          b.machines.Keys.Head[:],
		"the CA's key":            scalar(b.t, b.ca.key),
		"the server's key":        scalar(b.t, b.ca.server.PrivateKey),
		"the CA's key, PKCS #8":   pkcs8(b.t, b.ca.key),
		"the server's key, PKCS8": pkcs8(b.t, b.ca.server.PrivateKey),
	}
	for i, m := range machines {
		raw[fmt.Sprintf("the key of machine %d", i)] = scalar(b.t, m.key)
	}
	out := map[string][]string{}
	for name, k := range raw {
		out[name] = []string{
			string(k), hex.EncodeToString(k), strings.ToUpper(hex.EncodeToString(k)), fmt.Sprint(k),
			base64.StdEncoding.EncodeToString(k), base64.RawURLEncoding.EncodeToString(k), strconv.Quote(string(k)),
		}
	}
	return out
}

func scalar(t *testing.T, k crypto.PrivateKey) []byte {
	t.Helper()
	key, ok := k.(*ecdsa.PrivateKey)
	if !ok {
		t.Fatalf("%T is no ECDSA key", k)
	}
	b, err := key.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func pkcs8(t *testing.T, k crypto.PrivateKey) []byte {
	t.Helper()
	b, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// The plain door of a whole state directory, crawled for anything that is not
// for everyone.
func TestPlainDoorHasNoSecrets(t *testing.T) {
	b := newBench(t)
	dir := filepath.Dir(b.keys)
	if err := store.WriteKey(filepath.Join(b.keys, "cluster.key"), *b.machines.Keys.Cluster); err != nil {
		t.Fatal(err)
	}
	_, own, _ := b.installed("node001", 11)
	st, err := store.OpenDir(filepath.Join(dir, "store"))
	if err != nil {
		t.Fatal(err)
	}
	blob := []byte("sealed bytes")
	id := store.Sum(blob)
	if err := st.Put(t.Context(), store.KindPack, id, bytes.NewReader(blob)); err != nil {
		t.Fatal(err)
	}
	boot := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/boot/ipxe" {
			http.NotFound(w, r)
			return
		}
		io.WriteString(w, "#!ipxe\n")
	})
	s := httptest.NewServer(Plain(store.Handler(st), boot))
	defer s.Close()

	get := func(path string) (int, []byte) {
		t.Helper()
		req, err := http.NewRequest(http.MethodGet, s.URL, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.URL.Opaque = path // as it is, without cleaning
		res, err := http.DefaultTransport.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		b, err := io.ReadAll(res.Body)
		if err != nil {
			t.Fatal(err)
		}
		return res.StatusCode, b
	}
	if status, got := get("/store/packs/" + id.Hex()); status != 200 || !bytes.Equal(got, blob) {
		t.Errorf("a pack: %d, %q", status, got)
	}
	if status, got := get("/boot/ipxe?mac=x"); status != 200 || string(got) != "#!ipxe\n" {
		t.Errorf("a script: %d, %q", status, got)
	}
	secrets := b.secrets(own)
	var paths []string
	for _, root := range []string{"", "/store", "/boot", "/store/packs", "/store/manifests"} {
		for _, up := range []string{"/", "/../", "/../../", "/../../../", "//", "/./", "/%2e%2e/", "/%2e%2e/%2e%2e/", "/..%2f", "/..%2f..%2f", "/%2f", "/..\\", "/%00/", "/packs/../../"} {
			for _, name := range []string{"", "keys/ca.key", "keys/server.key", "keys/cluster.key", "keys/ca.crt", "cluster.db", "doppel.sock", "store/names/head", "names/head", "lock", "etc/shadow", "v1/orders", "v1/nodes", "v1/enrol"} {
				paths = append(paths, root+up+name)
			}
		}
	}
	paths = append(paths, filepath.Join(b.keys, "ca.key"), "*", "/boot", "/store", "/debug/pprof/", "/metrics")
	for _, p := range paths {
		status, body := get(p)
		if status != 404 && status != 400 {
			t.Errorf("%s: %d, %q", p, status, body)
		}
		for name, forms := range secrets {
			for _, form := range forms {
				if bytes.Contains(body, []byte(form)) {
					t.Errorf("%s gives %s", p, name)
				}
			}
		}
		if bytes.Contains(body, []byte("PRIVATE")) {
			t.Errorf("%s gives %q", p, body)
		}
	}
	for _, method := range []string{http.MethodPost, http.MethodPut, http.MethodDelete, http.MethodPatch, http.MethodOptions, http.MethodConnect} {
		req, err := http.NewRequest(method, s.URL+"/store/packs/"+id.Hex(), strings.NewReader("x"))
		if err != nil {
			t.Fatal(err)
		}
		res, err := http.DefaultTransport.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		if res.StatusCode != http.StatusMethodNotAllowed {
			t.Errorf("%s: %d", method, res.StatusCode)
		}
	}
}

// Files go out whole, in ranges, and in more parts than one.
func TestPlainDoorFiles(t *testing.T) {
	dir := t.TempDir()
	content := bytes.Repeat([]byte("0123456789abcdef"), 3<<16+5)
	if err := os.WriteFile(filepath.Join(dir, "initrd"), content, 0o600); err != nil {
		t.Fatal(err)
	}
	boot := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/boot/memory" {
			w.Write(content)
			return
		}
		http.ServeFile(w, r, filepath.Join(dir, "initrd"))
	})
	s := httptest.NewServer(Plain(http.NotFoundHandler(), boot))
	defer s.Close()
	for _, path := range []string{"/boot/x/initrd", "/boot/memory"} {
		res, err := http.Get(s.URL + path)
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(res.Body)
		res.Body.Close()
		if err != nil || !bytes.Equal(got, content) {
			t.Errorf("%s: %d bytes, %v", path, len(got), err)
		}
	}
	req, err := http.NewRequest(http.MethodGet, s.URL+"/boot/x/initrd", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Range", "bytes=5-2000004")
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	got, err := io.ReadAll(res.Body)
	if err != nil || res.StatusCode != http.StatusPartialContent || !bytes.Equal(got, content[5:2000005]) {
		t.Errorf("a range: %d, %d bytes, %v", res.StatusCode, len(got), err)
	}
}
