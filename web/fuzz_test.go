package web

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"

	"doppel/cluster"
)

// FuzzQuery asks the socket for anything with any parameters. The caller of a
// stream has gone already, so that it ends.
func FuzzQuery(f *testing.F) {
	paths := []string{pathVersion, pathStatus, pathNodes, pathNodes + "/node001", pathExport, pathSightings, pathCollection, pathEvents, "/"}
	for i := range paths {
		for _, q := range []string{"", "node=all", "node=node[001-003]&node=@compute&follow=true", "since=-1", "since=18446744073709551615&kind=add&follow=1", "follow=maybe", "node=[", "%zz&=;", "node=%00"} {
			f.Add(uint8(i), q)
		}
	}
	c, err := cluster.Open(filepath.Join(f.TempDir(), "cluster.db"), cluster.Options{})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() {
		if err := c.Close(); err != nil {
			f.Error(err)
		}
	})
	if err := c.Commit(f.Context(), cluster.AddNodes{Nodes: []cluster.Node{{Name: "node001", Addr: addrOf(11), Netmask: 24}}}, cluster.Assign{MAC: mac(11), Node: "node001"}); err != nil {
		f.Fatal(err)
	}
	h := (&Admin{Cluster: c, CheckDeploy: checkDeploy, Log: slog.New(slog.DiscardHandler)}).Handler()
	f.Fuzz(func(t *testing.T, which uint8, query string) {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		r := httptest.NewRequestWithContext(ctx, "GET", "/", nil)
		r.URL = &url.URL{Path: paths[int(which)%len(paths)], RawQuery: query}
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		if w.Code >= 500 {
			t.Fatalf("%s?%s: %d %s", r.URL.Path, query, w.Code, w.Body)
		}
		d := json.NewDecoder(w.Body)
		for {
			var v any
			if err := d.Decode(&v); err == io.EOF {
				break
			} else if err != nil {
				t.Fatalf("%s?%s: %v", r.URL.Path, query, err)
			}
		}
	})
}

// FuzzAnswers gives the client anything for an answer.
func FuzzAnswers(f *testing.F) {
	for _, s := range []string{`{"version":"1","nodes":[{"name":"node001","mac":"52:54:00:00:00:01","addr":"10.0.0.1","state":"Armed"}]}`, `{"nodes":[{"state":"Odd"}]}`,
		`{"seq":1}` + "\n" + `{"seq":"x"}`, `{"error":"no","hint":"why"}`, `[[[[`, "\x00", ""} {
		f.Add(uint16(200), []byte(s))
		f.Add(uint16(409), []byte(s))
	}
	path := filepath.Join(f.TempDir(), "doppel.sock")
	l, err := ListenUnix(path)
	if err != nil {
		f.Fatal(err)
	}
	type say struct {
		status int
		body   []byte
	}
	var says atomic.Pointer[say]
	s := &httptest.Server{Listener: l, Config: &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		a := says.Load()
		w.WriteHeader(a.status)
		w.Write(a.body)
	})}}
	s.Start()
	c := NewClient(path)
	f.Cleanup(func() {
		c.Close()
		s.Close()
	})
	f.Fuzz(func(t *testing.T, status uint16, body []byte) {
		a := say{200 + int(status)%400, body}
		says.Store(&a)
		_, err := c.Status(t.Context())
		if err == nil && a.status >= 300 {
			t.Fatalf("%d %q is taken for an answer", a.status, body)
		}
		err = c.Events(t.Context(), EventFilter{}, func(cluster.Event) error { return nil })
		if err == nil && a.status >= 300 {
			t.Fatalf("%d %q is taken for events", a.status, body)
		}
	})
}

// FuzzPEM reads keys and certificates that were damaged on the disk.
func FuzzPEM(f *testing.F) {
	dir := f.TempDir()
	if _, err := OpenCA(dir, []string{"127.0.0.1"}); err != nil {
		f.Fatal(err)
	}
	good := map[string][]byte{}
	for _, name := range []string{"ca.crt", "ca.key", "server.crt", "server.key"} {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			f.Fatal(err)
		}
		good[name] = b
	}
	other, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good["server.crt"], good["server.key"])
	f.Add(good["server.crt"], good["ca.key"])
	f.Add(good["server.key"], good["server.crt"])
	f.Add(bytes.Repeat(good["ca.crt"], 3), good["ca.key"][:40])
	f.Add([]byte("-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n"), []byte(nil))
	f.Fuzz(func(t *testing.T, crt, key []byte) {
		dir := t.TempDir()
		for name, b := range map[string][]byte{"x.crt": crt, "x.key": key} {
			if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if k, err := readKey(filepath.Join(dir, "x.key")); err == nil && (k == nil || k.Equal(other)) {
			t.Fatalf("%q is a key", key)
		}
		pair, err := readPair(filepath.Join(dir, "x.crt"), filepath.Join(dir, "x.key"))
		if err == nil && (len(pair.Certificate) == 0 || pair.PrivateKey == nil) {
			t.Fatalf("%q and %q are a pair", crt, key)
		}
	})
}
