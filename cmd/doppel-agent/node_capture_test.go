package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"testing"
	"time"

	"doppel/clone"
	"doppel/imaging"
	"doppel/imaging/wire"
)

// TestMain lets the tests' program be the agent's far end of a capture.
func TestMain(m *testing.M) {
	if len(os.Args) == 2 && os.Args[1] == "capture" {
		if err := runCapture(context.Background(), nil); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// giveStreams has a node's head hand out a capture, and gives the streams that
// come of it.
func (n *testNode) giveStreams(t *testing.T) <-chan net.Conn {
	t.Helper()
	streams, given := make(chan net.Conn), false
	before := n.do
	n.do = func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/v1/task":
			if given {
				before(w, r)
				return
			}
			given = true
			json.NewEncoder(w).Encode(clone.Task{Capture: &clone.CaptureOrders{ID: "C1"}})
		case "/v1/stream":
			if r.URL.Query().Get("id") != "C1" || r.Header.Get("Upgrade") != wire.Protocol || len(r.TLS.PeerCertificates) > 1 {
				t.Errorf("asked for a stream: %s %v", r.URL, r.Header)
			}
			c, _, err := http.NewResponseController(w).Hijack()
			if err != nil {
				t.Error(err)
				return
			}
			io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: "+wire.Protocol+"\r\n\r\n")
			c.SetDeadline(time.Time{})
			streams <- c
		default:
			before(w, r)
		}
	}
	return streams
}

// doesOtherWork gives the node an update and waits for its end.
func (n *testNode) doesOtherWork(t *testing.T) {
	t.Helper()
	access := imageOf(t, headFiles(nil))
	n.order(&clone.UpdateOrders{ID: "U1", Image: "head@2", Access: access})
	if w := n.last(t); w.Install != "U1" || w.Stage != clone.StageFinish {
		t.Errorf("%+v", w)
	}
}

// A node that is asked to is captured through its own connection to the head,
// and asks for other work when that has ended.
func TestNodeIsCaptured(t *testing.T) {
	n := newTestNode(t)
	n.self = "/proc/self/exe"
	streams := n.giveStreams(t)
	n.obeying(t)
	src, err := wire.NewNetSource(t.Context(), <-streams, "test")
	if err != nil {
		t.Fatal(err)
	}
	catalog, err := imaging.OpenCatalog(t.TempDir(), imaging.CatalogOptions{})
	if err != nil {
		t.Fatal(err)
	}
	r, err := imaging.Capture(t.Context(), catalog, src, imaging.CaptureOptions{Name: "node001", Root: n.root})
	if err != nil {
		t.Fatal(err)
	}
	if err := src.Close(); err != nil {
		t.Error(err)
	}
	v, err := catalog.Resolve(t.Context(), r.Digest)
	if err != nil {
		t.Fatal(err)
	}
	m, err := catalog.Manifest(t.Context(), v)
	if err != nil {
		t.Fatal(err)
	}
	differences, err := imaging.CompareTree(t.Context(), m, n.root, imaging.CompareOptions{})
	if err != nil || len(differences) > 0 || r.Entries < 10 {
		t.Errorf("%d entries; %v, %v", r.Entries, differences, err)
	}
	n.doesOtherWork(t)
}

// A head that goes away in the middle of a capture ends it on the node; one
// that does not want it any more says so.
func TestNodeCaptureCut(t *testing.T) {
	n := newTestNode(t)
	n.self = "/proc/self/exe"
	streams := n.giveStreams(t)
	n.obeying(t)
	c := <-streams
	if _, err := c.Read(make([]byte, 16)); err != nil { // it has begun to greet
		t.Fatal(err)
	}
	c.Close()
	n.doesOtherWork(t)

	h := newTestHead(t, "127.0.0.1")
	h.do = func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(http.StatusForbidden)
		io.WriteString(w, `{"error":"nobody waits for it","hint":"wait"}`)
	}
	hd, err := newHead(h.URL, h.ca, time.Now, t.Logf)
	if err != nil {
		t.Fatal(err)
	}
	var no *wire.RefusedError
	if _, err := hd.stream(t.Context(), "/v1/stream"); !errors.As(err, &no) || no.What != "nobody waits for it" || no.Hint != "wait" || no.Status != 403 {
		t.Errorf("%v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := hd.stream(ctx, "/v1/stream"); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	began := time.Now()
	(&node{head: hd, self: "/proc/self/exe", rest: sleep}).serveCapture(t.Context(), slog.New(slog.DiscardHandler), &clone.CaptureOrders{}, nil)
	if time.Since(began) > streamPause/2 {
		t.Error("it waits though nobody wants the capture any more")
	}
}

// A node that gets no stream, and is not told that nobody wants it, does not ask
// for the same capture again at once.
func TestNodeCapturePauses(t *testing.T) {
	for _, answer := range []string{"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n", ""} {
		n := newTestNode(t)
		rested := n.rests(t)
		given := 0
		n.do = func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/v1/task" {
				given++
				json.NewEncoder(w).Encode(clone.Task{Capture: &clone.CaptureOrders{ID: "C1"}})
				return
			}
			c, _, err := http.NewResponseController(w).Hijack()
			if err != nil {
				t.Error(err)
				return
			}
			io.WriteString(c, answer)
			c.Close()
		}
		stop := n.obeying(t)
		d := rested()
		stop()
		if given != 1 || d != streamPause {
			t.Errorf("%q: it was given the capture %d times, and then rested for %v", answer, given, d)
		}
	}
}
