package dhcpd

import (
	"crypto/rand"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

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

// eventually waits until ok.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited in vain for: %s", what)
		}
	}
}

// segment is an Ethernet that the test's own namespace is on, by an interface
// of the same name.
type segment string

// newSegment makes one, with the address that the test has on it.
func newSegment(t *testing.T, name, addr string) segment {
	t.Helper()
	if os.Getuid() != 0 {
		t.Fatal("this test makes network namespaces: run it as root")
	}
	run(t, "ip", "link", "add", name, "type", "bridge")
	t.Cleanup(func() { undo(t, "ip", "link", "del", name) })
	if addr != "" {
		run(t, "ip", "addr", "add", addr, "dev", name)
	}
	run(t, "ip", "link", "set", name, "up")
	return segment(name)
}

// host is a network namespace on a segment, by its interface eth0.
type host struct{ ns, mac string }

func newHost(t *testing.T, s segment, mac string) host {
	t.Helper()
	h := host{"doppel-" + strings.ToLower(rand.Text()[:8]), mac}
	run(t, "ip", "netns", "add", h.ns)
	t.Cleanup(func() { undo(t, "ip", "netns", "del", h.ns) })
	h.run(t, "ip", "link", "set", "lo", "up")
	h.plug(t, s, "eth0")
	h.run(t, "ip", "link", "set", "eth0", "down")
	h.run(t, "ip", "link", "set", "eth0", "address", mac)
	h.run(t, "ip", "link", "set", "eth0", "up")
	return h
}

// plug gives the host an interface on a segment.
func (h host) plug(t *testing.T, s segment, iface string) {
	t.Helper()
	port := "p" + strings.ToLower(rand.Text()[:10])
	run(t, "ip", "link", "add", port, "type", "veth", "peer", "name", iface, "netns", h.ns)
	t.Cleanup(func() { _ = exec.Command("ip", "link", "del", port).Run() }) // gone with the namespace, usually
	run(t, "ip", "link", "set", port, "master", string(s), "up")
	h.run(t, "ip", "link", "set", iface, "up")
}

// onHost is a command on the host, with an environment of its own.
func (h host) onHost(args []string) []string {
	return append([]string{"netns", "exec", h.ns, "env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin"}, args...)
}

// command is a command on the host.
func (h host) command(t *testing.T, args ...string) *exec.Cmd {
	return exec.CommandContext(t.Context(), "ip", h.onHost(args)...)
}

func (h host) run(t *testing.T, args ...string) string {
	t.Helper()
	return run(t, append([]string{"ip"}, h.onHost(args)...)...)
}

// start starts a command on the host that runs until the test is over, or the
// returned function is called.
func (h host) start(t *testing.T, args ...string) (stop func(os.Signal)) {
	t.Helper()
	cmd := exec.Command("ip", h.onHost(args)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := os.Create(filepath.Join(t.TempDir(), "output"))
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { _ = cmd.Wait(); close(ended) }()
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-ended
		if t.Failed() {
			b, err := os.ReadFile(out.Name())
			t.Logf("%s: %v\n%s", strings.Join(args, " "), err, b)
		}
	})
	return func(s os.Signal) {
		if err := cmd.Process.Signal(s); err != nil {
			t.Errorf("%v to %s: %v", s, args[0], err)
		}
		if s != syscall.SIGUSR1 && s != syscall.SIGUSR2 {
			<-ended
		}
	}
}

// in runs f in the host's network.
func (h host) in(t *testing.T, f func() error) {
	t.Helper()
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		ns, err := os.Open("/run/netns/" + h.ns)
		if err != nil {
			done <- err
			return
		}
		defer ns.Close()
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			done <- err
			return
		}
		done <- f()
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}
