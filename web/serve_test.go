package web

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestListenUnix(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state", "doppel.sock")
	l, err := ListenUnix(path)
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode() != os.ModeSocket|0o600 {
		t.Errorf("its mode is %v, %v", info.Mode(), err)
	}
	if second, err := ListenUnix(path); !errors.Is(err, ErrRunning) || !strings.Contains(err.Error(), path) {
		t.Errorf("a second: %v, %v", second, err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	left, err := os.ReadDir(filepath.Dir(path))
	if err != nil || len(left) != 0 {
		t.Errorf("closing left %v, %v", left, err)
	}
}

// A daemon that was killed leaves its socket, and a half-made one.
func TestListenUnixStale(t *testing.T) {
	path := filepath.Join(t.TempDir(), "doppel.sock")
	for _, name := range []string{path, path + ".new"} {
		dead, err := net.ListenUnix("unix", &net.UnixAddr{Name: name, Net: "unix"})
		if err != nil {
			t.Fatal(err)
		}
		dead.SetUnlinkOnClose(false)
		if err := dead.Close(); err != nil {
			t.Fatal(err)
		}
	}
	l, err := ListenUnix(path)
	if err != nil {
		t.Fatal(err)
	}
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	if err := l.Close(); err != nil {
		t.Error(err)
	}
}

func TestListenUnixRefuses(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if l, err := ListenUnix(file); err == nil {
		t.Errorf("a file was replaced: %v", l)
	}
	if b, err := os.ReadFile(file); err != nil || string(b) != "precious" {
		t.Errorf("the file is %q, %v", b, err)
	}
	if l, err := ListenUnix(filepath.Join(dir, strings.Repeat("x", 120))); err == nil || !strings.Contains(err.Error(), "shorter --state") {
		t.Errorf("a long path: %v, %v", l, err)
	}
}

func listenTCP(t *testing.T) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// When serving ends, an answer under way is finished, and a stream is cut.
func TestServeEnds(t *testing.T) {
	ctx, stop := context.WithCancel(t.Context())
	begun, finish := make(chan struct{}, 2), make(chan struct{})
	slow := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		begun <- struct{}{}
		select {
		case <-finish:
			io.WriteString(w, "done")
		case <-r.Context().Done():
			io.WriteString(w, "cut")
		}
	})
	answers, streams := listenTCP(t), listenTCP(t)
	ended := make(chan error, 1)
	go func() {
		ended <- Serve(ctx, slog.New(slog.DiscardHandler),
			Door{Name: "answers", Listener: answers, Handler: slow}, Door{Name: "streams", Listener: streams, Handler: slow, Streams: true})
	}()
	get := func(l net.Listener) <-chan string {
		got := make(chan string, 1)
		go func() {
			res, err := http.Get("http://" + l.Addr().String())
			if err != nil {
				got <- err.Error()
				return
			}
			defer res.Body.Close()
			b, err := io.ReadAll(res.Body)
			if err != nil {
				b = []byte(err.Error())
			}
			got <- string(b)
		}()
		return got
	}
	a, s := get(answers), get(streams)
	<-begun
	<-begun
	stop()
	if got := <-s; got != "cut" {
		t.Errorf("the stream ended with %q", got)
	}
	close(finish)
	if got := <-a; got != "done" {
		t.Errorf("the answer was %q", got)
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if _, err := net.DialTimeout("tcp", answers.Addr().String(), time.Second); err == nil {
		t.Error("it still listens")
	}
}

// One door that fails ends them all, and says which.
func TestServeFails(t *testing.T) {
	bad, good := listenTCP(t), listenTCP(t)
	if err := bad.Close(); err != nil {
		t.Fatal(err)
	}
	err := Serve(t.Context(), slog.New(slog.DiscardHandler),
		Door{Name: "bad", Listener: bad, Handler: http.NotFoundHandler()}, Door{Name: "good", Listener: good, Handler: http.NotFoundHandler()})
	if !errors.Is(err, net.ErrClosed) || !strings.Contains(err.Error(), "serving bad") {
		t.Errorf("got %v", err)
	}
}
