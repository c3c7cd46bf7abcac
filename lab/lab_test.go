package lab

import (
	"context"
	"net/netip"
	"os/exec"
	"strings"
	"testing"
	"time"
)

func TestHeadAnswersOverSSH(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	l, err := New(ctx, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	h, err := l.Head(ctx, "head", netip.MustParsePrefix("10.77.0.1/24"), func(s string) { t.Log(s) })
	if err != nil {
		t.Fatal(err)
	}
	s, err := l.Host(ctx, "server", netip.MustParsePrefix("10.77.0.2/24"), map[string]netip.Addr{"head": h.Addr.Addr()})
	if err != nil {
		t.Fatal(err)
	}
	out, err := s.Command(ctx, "ssh", "-i", h.Key, "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null",
		"-o", "LogLevel=ERROR", "root@head", "hostname; wc -l < /var/log/app.log").CombinedOutput()
	if err != nil || !strings.HasPrefix(string(out), "head\n") {
		t.Fatalf("%v: %s", err, out)
	}
	id := l.id
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	left, err := exec.Command("ip", "netns", "list").Output()
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(left), id) {
		t.Errorf("namespaces left after Close:\n%s", left)
	}
}
