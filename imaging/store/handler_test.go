package store

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

func TestHandler(t *testing.T) {
	for name, st := range map[string]Store{"dir": testDir(t), "memory": NewMemory()} {
		t.Run(name, func(t *testing.T) { testHandler(t, st) })
	}
}

func testHandler(t *testing.T, st Store) {
	id := putBytes(t, st, KindPack, []byte("0123456789"))
	srv := httptest.NewServer(http.StripPrefix("/store", Handler(st)))
	t.Cleanup(srv.Close)
	etag := `"` + id.String() + `"`
	ask := func(method, path string, header ...string) (*http.Response, string) {
		t.Helper()
		req, err := http.NewRequest(method, srv.URL+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		for i := 0; i < len(header); i += 2 {
			req.Header.Set(header[i], header[i+1])
		}
		res, err := srv.Client().Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		b, err := io.ReadAll(res.Body)
		if err != nil {
			t.Fatal(err)
		}
		return res, string(b)
	}
	path := "/store/packs/" + id.Hex()
	for _, c := range []struct {
		method string
		header []string
		status int
		body   string
		length int64
	}{
		{"GET", nil, 200, "0123456789", 10},
		{"HEAD", nil, 200, "", 10},
		{"GET", []string{"Range", "bytes=2-4"}, 206, "234", 3},
		{"GET", []string{"Range", "bytes=7-"}, 206, "789", 3},
		{"GET", []string{"Range", "bytes=-2"}, 206, "89", 2},
		{"GET", []string{"If-None-Match", etag}, 304, "", 0},
		{"GET", []string{"Range", "bytes=2-4", "If-Range", etag}, 206, "234", 3},
		{"GET", []string{"Range", "bytes=2-4", "If-Range", `"other"`}, 200, "0123456789", 10},
	} {
		res, body := ask(c.method, path, c.header...)
		if res.StatusCode != c.status || body != c.body || c.status != 304 && res.ContentLength != c.length {
			t.Errorf("%s %q: %s, %q, length %d", c.method, c.header, res.Status, body, res.ContentLength)
		}
		if res.Header.Get("ETag") != etag {
			t.Errorf("%s %q: ETag %s", c.method, c.header, res.Header.Get("ETag"))
		}
		if !strings.Contains(res.Header.Get("Cache-Control"), "immutable") {
			t.Errorf("%s %q: Cache-Control %s", c.method, c.header, res.Header.Get("Cache-Control"))
		}
	}
	if res, _ := ask("GET", path, "Range", "bytes=10-"); res.StatusCode != 416 || strings.Contains(res.Header.Get("Cache-Control"), "immutable") {
		t.Errorf("a range past the end: %s, %s", res.Status, res.Header.Get("Cache-Control"))
	}
	for _, p := range []string{
		"/store", "/store/", "/store/packs", "/store/packs/", "/store/manifests/", "/store/names/head",
		"/store/manifests/" + id.Hex(), "/store/packs/" + Sum(nil).Hex(), "/store/packs/" + id.String(),
		"/store/packs/" + strings.ToUpper(id.Hex()), path + "/", path + "/x", "/store/lock",
		"/store/packs/../packs/" + id.Hex(), "/store/packs/%2e%2e/lock", "/store//packs/" + id.Hex(),
	} {
		res, body := ask("GET", p)
		if res.StatusCode != http.StatusNotFound || strings.Contains(body, "0123456789") {
			t.Errorf("GET %s: %s", p, res.Status)
		}
	}
	for _, m := range []string{"PUT", "POST", "DELETE", "PATCH", "OPTIONS"} {
		if res, _ := ask(m, path); res.StatusCode != http.StatusMethodNotAllowed {
			t.Errorf("%s: %s", m, res.Status)
		}
	}
}

// brokenStore cannot be read, for a reason that is nobody's business.
type brokenStore struct{ Store }

func (brokenStore) Stat(context.Context, Kind, ID) (int64, error) {
	return 0, errors.New("reading /var/lib/secret/place: I/O error")
}

func TestHandlerTellsNothing(t *testing.T) {
	w := httptest.NewRecorder()
	Handler(brokenStore{}).ServeHTTP(w, httptest.NewRequest("GET", "/packs/"+Sum(nil).Hex(), nil))
	if w.Code != http.StatusInternalServerError || strings.Contains(w.Body.String(), "secret") {
		t.Errorf("%d %s", w.Code, w.Body)
	}
}
