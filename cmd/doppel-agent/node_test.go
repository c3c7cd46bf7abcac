package main

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"doppel/clone"
)

// A node says that it is up until it is heard, and then again.
func TestNodeStaysUp(t *testing.T) {
	h := newTestHead(t, "127.0.0.1")
	dir := t.TempDir()
	key, _, err := newKey()
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	config, err := json.Marshal(clone.NodeConfig{Server: h.URL, Node: "node001", Install: "I"})
	if err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string][]byte{
		"ca.crt": h.ca, "node.json": config, "node.key": pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}),
		"node.crt": pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: h.issue(&key.PublicKey)}),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	n, err := openNode(dir, t.Logf)
	if err != nil {
		t.Fatal(err)
	}
	n.every = time.Millisecond
	n.up = func(context.Context) (clone.Up, error) {
		return clone.Up{Hostname: "node001", BootID: "b", DiskGUID: "g", Kernel: "k"}, nil
	}
	heard := make(chan clone.Up, 100)
	first := true
	h.do = func(w http.ResponseWriter, r *http.Request) {
		var up clone.Up
		json.NewDecoder(r.Body).Decode(&up)
		if len(r.TLS.PeerCertificates) != 1 || first {
			first = false
			w.WriteHeader(http.StatusForbidden)
			return
		}
		w.WriteHeader(http.StatusNoContent)
		select {
		case heard <- up:
		default:
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { n.stayUp(ctx, slog.New(slog.DiscardHandler)) })
	for range 2 {
		if up := <-heard; up != (clone.Up{Hostname: "node001", BootID: "b", DiskGUID: "g", Kernel: "k"}) {
			t.Errorf("%+v", up)
		}
	}
	cancel()
	wg.Wait()
	if _, err := openNode(t.TempDir(), t.Logf); err == nil || !strings.Contains(err.Error(), "not installed by doppel") {
		t.Errorf("%v", err)
	}
}

func TestNotify(t *testing.T) {
	path := filepath.Join(t.TempDir(), "notify")
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	t.Setenv("NOTIFY_SOCKET", path)
	if err := notify("READY=1"); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 100)
	if n, err := c.Read(b); err != nil || string(b[:n]) != "READY=1" {
		t.Errorf("%q, %v", b[:n], err)
	}
	t.Setenv("NOTIFY_SOCKET", "")
	if err := notify("READY=1"); err != nil {
		t.Error(err)
	}
}
