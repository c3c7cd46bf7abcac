package tftpd

import (
	"bytes"
	"errors"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"
)

// onWire runs a server on the test's end of a wire to a host.
func onWire(t *testing.T, wire string, files Files) (host, *log) {
	t.Helper()
	h := newHost(t, wire, "10.99.0.1/24", "10.99.0.2/24")
	conn, err := Listen(t.Context(), wire, netip.MustParseAddrPort("10.99.0.1:0"))
	if err != nil {
		t.Fatal(err)
	}
	l, _ := serve(t, conn, files)
	return h, l
}

// fetchers are real clients. Each fetches a name into a file.
var fetchers = map[string]func(name, into string) []string{
	"curl": func(name, into string) []string {
		return []string{"curl", "-sS", "--max-time", "60", "-o", into, "tftp://10.99.0.1/" + name}
	},
	"curl, large blocks": func(name, into string) []string {
		return []string{"curl", "-sS", "--max-time", "60", "--tftp-blksize", "1428", "-o", into, "tftp://10.99.0.1/" + name}
	},
	"curl, no options": func(name, into string) []string {
		return []string{"curl", "-sS", "--max-time", "60", "--tftp-no-options", "-o", into, "tftp://10.99.0.1/" + name}
	},
	"atftp": func(name, into string) []string {
		return []string{"atftp", "-g", "-r", name, "-l", into, "10.99.0.1"}
	},
	"atftp, all options": func(name, into string) []string {
		return []string{"atftp", "--option", "blksize 1428", "--option", "tsize", "--option", "windowsize 8", "-g", "-r", name, "-l", into, "10.99.0.1"}
	},
	"atftp, blocks beyond the MTU": func(name, into string) []string {
		return []string{"atftp", "--option", "blksize 9000", "-g", "-r", name, "-l", into, "10.99.0.1"}
	},
	"tftp-hpa": func(name, into string) []string {
		return []string{"tftp", "-m", "octet", "10.99.0.1", "-c", "get", name, into}
	},
	"tftp-hpa, netascii": func(name, into string) []string {
		return []string{"tftp", "-m", "netascii", "10.99.0.1", "-c", "get", name, into}
	},
}

func TestRealClients(t *testing.T) {
	content := append(random(100_000), "\r\n\n\r"...)
	h, l := onWire(t, "tftp0", Files{"boot/loader": file(content)})
	for client, command := range fetchers {
		into := filepath.Join(t.TempDir(), "got")
		h.run(t, command("boot/loader", into)...)
		if got, err := os.ReadFile(into); err != nil || !bytes.Equal(got, content) {
			t.Errorf("%s: %d bytes that are not the file's: %v", client, len(got), err)
		}
	}
	l.await(t, "file sent")
	for _, name := range []string{"../../etc/shadow", "/etc/shadow", "//etc/shadow", "boot/../../../etc/shadow"} {
		into := filepath.Join(t.TempDir(), "got")
		out, err := h.command(t, "curl", "-sS", "--path-as-is", "--max-time", "20", "-o", into, "tftp://10.99.0.1/"+name).CombinedOutput()
		if got, _ := os.ReadFile(into); err == nil || len(got) > 0 {
			t.Errorf("%s: got %q, %s", name, got, out)
		}
	}
	from := filepath.Join(t.TempDir(), "put")
	if err := os.WriteFile(from, []byte("hello"), 0o600); err != nil {
		t.Fatal(err)
	}
	out := h.run(t, "tftp", "-m", "octet", "10.99.0.1", "-c", "put", from, "boot/loader")
	if !strings.Contains(out, "Error code 2: this server is read-only") {
		t.Errorf("tftp put: %q", out)
	}
	const accessViolation = 69 // of curl's exit codes
	err := h.command(t, "curl", "-sS", "--max-time", "20", "-T", from, "tftp://10.99.0.1/boot/loader").Run()
	if exit := (*exec.ExitError)(nil); !errors.As(err, &exit) || exit.ExitCode() != accessViolation {
		t.Errorf("curl -T: %v", err)
	}
}

// A wire that loses packets both ways.
func TestLoss(t *testing.T) {
	content := random(30_000)
	h, _ := onWire(t, "tftp0", Files{"loader": file(content)})
	// Each end loses what comes in. (What is dropped on its way out is an error
	// to its sender.) It is every 29th packet, and one client at a time: atftp
	// acknowledges a block that comes again once, and ignores it from then on,
	// so it hangs by itself when chance takes that one, too.
	for _, end := range [][]string{{"ip", "netns", "exec", h.ns}, nil} {
		run(t, append(end, "nft", "add table ip lossy; add chain ip lossy c { type filter hook input priority 0; }; "+
			"add counter ip lossy lost; add rule ip lossy c numgen inc mod 29 == 0 counter name lost drop")...)
	}
	t.Cleanup(func() { undo(t, "nft", "delete table ip lossy") })
	for _, client := range []string{"curl, large blocks", "atftp", "tftp-hpa"} {
		into := filepath.Join(t.TempDir(), "got")
		out, err := h.command(t, fetchers[client]("loader", into)...).CombinedOutput()
		if got, _ := os.ReadFile(into); err != nil || !bytes.Equal(got, content) {
			t.Errorf("%s: %d bytes, %v, %s", client, len(got), err, out)
		}
	}
	if got := run(t, "nft", "list", "counter", "ip", "lossy", "lost"); strings.Contains(got, "packets 0 ") {
		t.Errorf("nothing was lost: %s", got)
	}
}

// The library closes a socket only after its last packet has gone out. When that
// fails the descriptor is left to the garbage collector, which closes it.
func TestDescriptorsWhenSendingFails(t *testing.T) {
	h, l := onWire(t, "tftp0", Files{})
	run(t, "nft", "add table ip mute; add chain ip mute c { type filter hook output priority 0; }; "+
		"add rule ip mute c oifname tftp0 udp dport > 1023 drop")
	t.Cleanup(func() { undo(t, "nft", "delete table ip mute") })
	before := descriptors(t)
	for range 20 {
		// It waits for an answer in vain, and is ended.
		cmd := h.command(t, "timeout", "0.05", "curl", "-s", "tftp://10.99.0.1/nothing")
		_ = cmd.Run()
	}
	l.await(t, "no such file")
	eventually(t, "descriptors to be closed", func() bool {
		runtime.GC()
		return descriptors(t) <= before
	})
}

// Packets of another interface do not reach the server, whatever their
// destination.
func TestOnlyItsInterface(t *testing.T) {
	h, _ := onWire(t, "tftp0", Files{"loader": file([]byte("x"))})
	other := newHost(t, "tftp1", "10.98.0.1/24", "10.98.0.2/24")
	other.run(t, "ip", "route", "add", "default", "via", "10.98.0.1")
	into := filepath.Join(t.TempDir(), "got")
	h.run(t, fetchers["curl"]("loader", into)...)
	start := time.Now()
	out, err := other.command(t, "curl", "-sS", "--max-time", "3", "tftp://10.99.0.1/loader").CombinedOutput()
	if err == nil {
		t.Errorf("a client of another interface got %q", out)
	}
	if time.Since(start) > 10*time.Second {
		t.Errorf("curl did not keep its time")
	}
}
