package tftpd

import (
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"testing"
)

// inside is set in the environment of tests that have a network of their own.
const inside = "DOPPEL_TEST_NETWORK"

// TestMain runs the tests of root in a network namespace of their own, which
// ends with them. Others' namespaces, for clients, are made by newHost.
func TestMain(m *testing.M) {
	if os.Getenv(inside) != "" {
		if out, err := exec.Command("ip", "link", "set", "lo", "up").CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "ip link set lo up: %v\n%s", err, out)
			os.Exit(1)
		}
	}
	if os.Getuid() != 0 || os.Getenv(inside) != "" {
		os.Exit(m.Run())
	}
	runtime.LockOSThread() // Pdeathsig goes by thread
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), inside+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	err := cmd.Run()
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		os.Exit(exit.ExitCode())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "making a network for the tests:", err)
		os.Exit(1)
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
