package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// badServer answers with what a handler makes of the request's number, from 1
// on, and gives a client that does not wait long.
func badServer(t *testing.T, fn func(n int, w http.ResponseWriter, r *http.Request)) (*HTTP, *atomic.Int32) {
	t.Helper()
	var count atomic.Int32
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fn(int(count.Add(1)), w, r)
	}))
	t.Cleanup(srv.Close)
	h := NewHTTP(srv.URL, srv.Client())
	h.pause = time.Microsecond
	return h, &count
}

// cutAfter lets n bytes of a body through, then cuts the connection.
type cutAfter struct {
	http.ResponseWriter
	n int
}

func (c *cutAfter) Write(b []byte) (int, error) {
	if len(b) <= c.n {
		c.n -= len(b)
		return c.ResponseWriter.Write(b)
	}
	c.ResponseWriter.Write(b[:c.n])
	c.ResponseWriter.(http.Flusher).Flush()
	panic(http.ErrAbortHandler)
}

func openHTTP(h *HTTP, id ID, off, n int64) ([]byte, error) {
	r, err := h.Open(context.Background(), KindPack, id, off, n)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return io.ReadAll(r)
}

func TestHTTPResumes(t *testing.T) {
	m := NewMemory()
	want := testChunks(1, 1, 200_000)[0]
	id := putBytes(t, m, KindPack, want)
	for _, r := range [][2]int64{{0, -1}, {0, 200_000}, {777, 100_000}, {777, -1}} {
		h, count := badServer(t, func(n int, w http.ResponseWriter, r *http.Request) {
			Handler(m).ServeHTTP(&cutAfter{w, 30_000}, r)
		})
		end := r[0] + r[1]
		if r[1] < 0 {
			end = 200_000
		}
		got, err := openHTTP(h, id, r[0], r[1])
		if err != nil || !bytes.Equal(got, want[r[0]:end]) {
			t.Errorf("%d bytes from %d on: %d bytes, %v", r[1], r[0], len(got), err)
		}
		if least := (end - r[0]) / 30_000; int64(count.Load()) < least {
			t.Errorf("%d requests", count.Load())
		}
	}
}

// A body that ends early without the connection being cut (a proxy that lost
// its own) is resumed as well.
func TestHTTPResumesShortBody(t *testing.T) {
	want := testChunks(1, 1, 100_000)[0]
	h, _ := badServer(t, func(n int, w http.ResponseWriter, r *http.Request) {
		var from, last int
		fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-%d", &from, &last)
		w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, last, len(want)))
		w.WriteHeader(http.StatusPartialContent) // chunked: no length
		w.Write(want[from:min(last+1, from+10_000)])
	})
	got, err := openHTTP(h, Sum(want), 5, 90_000)
	if err != nil || !bytes.Equal(got, want[5:90_005]) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
}

func TestHTTPGivesUp(t *testing.T) {
	m := NewMemory()
	want := testChunks(1, 1, 100_000)[0]
	id := putBytes(t, m, KindPack, want)
	t.Run("cut without progress", func(t *testing.T) {
		h, count := badServer(t, func(n int, w http.ResponseWriter, r *http.Request) {
			keep := 0
			if n == 1 {
				keep = 5000
			}
			Handler(m).ServeHTTP(&cutAfter{w, keep}, r)
		})
		got, err := openHTTP(h, id, 0, -1)
		if err == nil || len(got) != 5000 {
			t.Errorf("%d bytes, %v", len(got), err)
		}
		if n := int(count.Load()); n != 1+h.Tries-1 && n != 1+h.Tries {
			t.Errorf("%d requests", n)
		}
	})
	t.Run("always 503", func(t *testing.T) {
		h, count := badServer(t, func(n int, w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(http.StatusServiceUnavailable)
		})
		if _, err := openHTTP(h, id, 0, -1); err == nil || !strings.Contains(err.Error(), "503") {
			t.Errorf("error: %v", err)
		}
		if int(count.Load()) != h.Tries {
			t.Errorf("%d requests", count.Load())
		}
	})
	t.Run("nobody there", func(t *testing.T) {
		srv := httptest.NewServer(nil)
		h := NewHTTP(srv.URL, nil)
		h.pause = time.Microsecond
		srv.Close()
		if _, err := openHTTP(h, id, 0, -1); err == nil {
			t.Error("no error")
		}
	})
	t.Run("stalls", func(t *testing.T) {
		h, _ := badServer(t, func(n int, w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", "100000")
			w.Write(want[:10])
			w.(http.Flusher).Flush()
			<-r.Context().Done()
		})
		h.stall, h.Tries = 20*time.Millisecond, 2
		if _, err := openHTTP(h, id, 0, -1); !errors.Is(err, errStalled) && (err == nil || !strings.Contains(err.Error(), "ignores ranges")) {
			t.Errorf("error: %v", err)
		}
	})
	t.Run("never answers", func(t *testing.T) {
		h, _ := badServer(t, func(n int, w http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
		h.stall, h.Tries = 20*time.Millisecond, 2
		if _, err := openHTTP(h, id, 0, -1); !errors.Is(err, errStalled) {
			t.Errorf("error: %v", err)
		}
	})
	t.Run("called off", func(t *testing.T) {
		ctx, cancel := context.WithCancelCause(context.Background())
		why := errors.New("enough")
		h, _ := badServer(t, func(n int, w http.ResponseWriter, r *http.Request) {
			cancel(why)
			<-r.Context().Done()
		})
		if _, err := h.Open(ctx, KindPack, id, 0, -1); !errors.Is(err, why) {
			t.Errorf("error: %v", err)
		}
	})
}

func TestHTTPRecoversFrom503(t *testing.T) {
	m := NewMemory()
	id := putBytes(t, m, KindPack, []byte("bytes"))
	h, _ := badServer(t, func(n int, w http.ResponseWriter, r *http.Request) {
		if n < 4 {
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		Handler(m).ServeHTTP(w, r)
	})
	if got, err := openHTTP(h, id, 1, 3); err != nil || string(got) != "yte" {
		t.Errorf("%q, %v", got, err)
	}
}

// Servers that do not do what was asked are refused at once.
func TestHTTPRefusesLies(t *testing.T) {
	body := testChunks(1, 1, 10_000)[0]
	partial := func(w http.ResponseWriter, rng string, b []byte) {
		w.Header().Set("Content-Range", rng)
		w.Header().Set("Content-Length", strconv.Itoa(len(b)))
		w.WriteHeader(http.StatusPartialContent)
		w.Write(b)
	}
	for name, answer := range map[string]func(w http.ResponseWriter){
		"the whole":            func(w http.ResponseWriter) { w.Header().Set("Content-Length", "10000"); w.Write(body) },
		"another range":        func(w http.ResponseWriter) { partial(w, "bytes 0-99/10000", body[:100]) },
		"a shorter range":      func(w http.ResponseWriter) { partial(w, "bytes 100-149/10000", body[100:150]) },
		"a longer range":       func(w http.ResponseWriter) { partial(w, "bytes 100-299/10000", body[100:300]) },
		"another length":       func(w http.ResponseWriter) { partial(w, "bytes 100-199/10000", body[100:210]) },
		"no range":             func(w http.ResponseWriter) { partial(w, "", body[100:200]) },
		"nonsense":             func(w http.ResponseWriter) { partial(w, "bytes a-b/c", body[100:200]) },
		"a range past its end": func(w http.ResponseWriter) { partial(w, "bytes 100-199/150", body[100:200]) },
		"more than announced": func(w http.ResponseWriter) {
			w.Header().Set("Content-Range", "bytes 100-199/10000")
			w.WriteHeader(http.StatusPartialContent)
			w.Write(body[100:200])
			w.(http.Flusher).Flush()
			w.Write(body[200:300])
		},
		"compressed": func(w http.ResponseWriter) {
			w.Header().Set("Content-Encoding", "br")
			partial(w, "bytes 100-199/10000", body[100:200])
		},
		"a redirect to nowhere": func(w http.ResponseWriter) { w.WriteHeader(http.StatusNotModified) },
		"forbidden":             func(w http.ResponseWriter) { w.WriteHeader(http.StatusForbidden) },
	} {
		t.Run(name, func(t *testing.T) {
			h, count := badServer(t, func(_ int, w http.ResponseWriter, r *http.Request) { answer(w) })
			if _, err := openHTTP(h, Sum(body), 100, 100); err == nil {
				t.Error("no error")
			}
			if count.Load() != 1 {
				t.Errorf("%d requests", count.Load())
			}
		})
	}
}

// A blob that changes its length between two requests is not patched together.
func TestHTTPRefusesChangingLength(t *testing.T) {
	body := testChunks(1, 1, 10_000)[0]
	h, _ := badServer(t, func(n int, w http.ResponseWriter, r *http.Request) {
		b := body
		if n > 1 {
			b = body[:9000]
		}
		http.ServeContent(&cutAfter{w, 4000}, r, "", time.Time{}, bytes.NewReader(b))
	})
	if _, err := openHTTP(h, Sum(body), 0, -1); err == nil || !strings.Contains(err.Error(), "10000") {
		t.Errorf("error: %v", err)
	}
}

func TestHTTPStatNeedsLength(t *testing.T) {
	h, _ := badServer(t, func(n int, w http.ResponseWriter, r *http.Request) {
		w.(http.Flusher).Flush()
	})
	if _, err := h.Stat(context.Background(), KindPack, ID{1}); err == nil {
		t.Error("no error")
	}
}
