package lab

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// nsPrefix begins the names of all namespaces of labs: doppel-PID-ID-HOST.
const nsPrefix = "doppel-lab-"

// Lab is a virtual cluster. It is not safe for concurrent use, but for what
// its Hosts and Machines say of themselves.
type Lab struct {
	Dir string // scratch space, removed by Close

	id       string
	hosts    []*Host
	machines []*Machine
	closers  []func() error
}

// New makes a lab with an empty switch. Dir is made below parent.
func New(ctx context.Context, parent string) (*Lab, error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("a lab needs root, for network namespaces: run it with sudo")
	}
	sweep(ctx)
	var b [3]byte
	if _, err := rand.Read(b[:]); err != nil {
		return nil, err
	}
	l := &Lab{id: strconv.Itoa(os.Getpid()) + "-" + hex.EncodeToString(b[:])}
	if err := os.MkdirAll(parent, 0o755); err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp(parent, "lab-"+l.id+"-")
	if err != nil {
		return nil, err
	}
	l.Dir = dir
	if err := l.makeSwitch(ctx); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

// sweep removes namespaces of labs whose process is gone.
func sweep(ctx context.Context) {
	out, err := exec.CommandContext(ctx, "ip", "netns", "list").Output()
	if err != nil {
		return
	}
	for line := range strings.Lines(string(out)) {
		name, _, _ := strings.Cut(strings.TrimSpace(line), " ")
		rest, ok := strings.CutPrefix(name, nsPrefix)
		if !ok {
			continue
		}
		pid, _, _ := strings.Cut(rest, "-")
		n, err := strconv.Atoi(pid)
		if err != nil || syscall.Kill(n, 0) == nil {
			continue
		}
		_ = run(ctx, "ip", "netns", "del", name)
		_ = os.RemoveAll(filepath.Join("/etc/netns", name))
	}
}

func (l *Lab) ns(name string) string { return nsPrefix + l.id + "-" + name }

func (l *Lab) makeSwitch(ctx context.Context) error {
	sw := l.ns("switch")
	if err := run(ctx, "ip", "netns", "add", sw); err != nil {
		return err
	}
	l.onClose(func() error { return run(context.Background(), "ip", "netns", "del", sw) })
	return runAll(ctx,
		"ip -n "+sw+" link set lo up",
		"ip -n "+sw+" link add br0 type bridge stp_state 0 forward_delay 0",
		"ip -n "+sw+" link set br0 up",
	)
}

func (l *Lab) onClose(f func() error) { l.closers = append(l.closers, f) }

// Close ends everything the lab started and removes its directory.
func (l *Lab) Close() error {
	var errs []error
	for i := len(l.closers) - 1; i >= 0; i-- {
		errs = append(errs, l.closers[i]())
	}
	l.closers = nil
	errs = append(errs, os.RemoveAll(l.Dir))
	return errors.Join(errs...)
}

// Host is a network namespace on the switch, with one interface, eth0.
type Host struct {
	Name string
	Addr netip.Prefix

	ns string
}

// Host adds a host to the switch. Names given in hosts resolve on it, through
// an /etc/hosts of its own.
func (l *Lab) Host(ctx context.Context, name string, addr netip.Prefix, hosts map[string]netip.Addr) (*Host, error) {
	h := &Host{Name: name, Addr: addr, ns: l.ns(name)}
	if err := run(ctx, "ip", "netns", "add", h.ns); err != nil {
		return nil, err
	}
	l.onClose(func() error { return run(context.Background(), "ip", "netns", "del", h.ns) })
	etc := filepath.Join("/etc/netns", h.ns)
	if err := os.MkdirAll(etc, 0o755); err != nil {
		return nil, err
	}
	l.onClose(func() error { return os.RemoveAll(etc) })
	text := "127.0.0.1 localhost\n"
	for n, a := range hosts {
		text += a.String() + " " + n + "\n"
	}
	if err := os.WriteFile(filepath.Join(etc, "hosts"), []byte(text), 0o644); err != nil {
		return nil, err
	}
	port := fmt.Sprintf("h%d", len(l.hosts))
	if err := runAll(ctx,
		"ip -n "+h.ns+" link set lo up",
		"ip -n "+h.ns+" link add eth0 type veth peer name "+port+" netns "+l.ns("switch"),
		"ip -n "+l.ns("switch")+" link set "+port+" master br0 up",
		"ip -n "+h.ns+" addr add "+addr.String()+" dev eth0",
		"ip -n "+h.ns+" link set eth0 up",
	); err != nil {
		return nil, err
	}
	l.hosts = append(l.hosts, h)
	return h, nil
}

// Namespace is the name of the host's network namespace.
func (h *Host) Namespace() string { return h.ns }

// Command is a command that will run on the host. It dies with this process.
func (h *Host) Command(ctx context.Context, name string, args ...string) *exec.Cmd {
	return inNamespace(ctx, h.ns, name, args...)
}

func inNamespace(ctx context.Context, ns, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "ip", append([]string{"netns", "exec", ns, name}, args...)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return cmd
}

// run runs a command and, when it fails, says which and what it printed.
func run(ctx context.Context, name string, args ...string) error {
	out, err := exec.CommandContext(ctx, name, args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	return nil
}

// runAll runs commands without quoting, one a line.
func runAll(ctx context.Context, lines ...string) error {
	for _, line := range lines {
		f := strings.Fields(line)
		if err := run(ctx, f[0], f[1:]...); err != nil {
			return err
		}
	}
	return nil
}
