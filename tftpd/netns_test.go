package tftpd

import (
	"crypto/rand"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"doppel/lab"
)

// TestMain runs the tests of root in a network namespace of their own, which
// ends with them. Others' namespaces, for clients, are made by newHost.
func TestMain(m *testing.M) {
	if code, done := lab.Isolate(); done {
		os.Exit(code)
	}
	os.Exit(m.Run())
}

// What needs no network passes without privileges, too.
func TestWithoutRoot(t *testing.T) {
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe", "-test.run=^FuzzName$")
	cmd.Env = []string{"HOME=/nonexistent"} // not isolated
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

// run runs a command that must succeed.
func run(t *testing.T, args ...string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), args[0], args[1:]...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// undo runs a command that cleans up; the test's context is over by then.
func undo(t *testing.T, args ...string) {
	if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
		t.Errorf("%s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

// host is a network namespace with one wire to the test's own.
type host struct{ ns string }

// newHost makes a host whose interface eth0 has the address there, wired to the
// test's interface named wire, which has the address here.
func newHost(t *testing.T, wire, here, there string) host {
	t.Helper()
	if os.Getuid() != 0 {
		t.Fatal("this test makes network namespaces: run it as root")
	}
	h := host{"doppel-" + strings.ToLower(rand.Text()[:8])}
	run(t, "ip", "netns", "add", h.ns)
	t.Cleanup(func() { undo(t, "ip", "netns", "del", h.ns) })
	run(t, "ip", "link", "add", wire, "type", "veth", "peer", "name", "eth0", "netns", h.ns)
	t.Cleanup(func() { _ = exec.Command("ip", "link", "del", wire).Run() }) // gone with the namespace, usually
	run(t, "ip", "addr", "add", here, "dev", wire)
	run(t, "ip", "link", "set", wire, "up")
	h.run(t, "ip", "link", "set", "lo", "up")
	h.run(t, "ip", "addr", "add", there, "dev", "eth0")
	h.run(t, "ip", "link", "set", "eth0", "up")
	return h
}

// command is a command on the host.
func (h host) command(t *testing.T, args ...string) *exec.Cmd {
	return exec.CommandContext(t.Context(), "ip", append([]string{"netns", "exec", h.ns}, args...)...)
}

func (h host) run(t *testing.T, args ...string) string {
	t.Helper()
	return run(t, append([]string{"ip", "netns", "exec", h.ns}, args...)...)
}
