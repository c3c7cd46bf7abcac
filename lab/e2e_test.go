package lab

import (
	"bufio"
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

var binDir string

func TestMain(m *testing.M) {
	os.Exit(func() int {
		if binDir = os.Getenv("DOPPEL_BIN"); binDir == "" {
			dir, err := os.MkdirTemp("", "doppel-bin-")
			if err != nil {
				fmt.Fprintln(os.Stderr, err)
				return 1
			}
			defer os.RemoveAll(dir)
			build := exec.Command("go", "build", "-o", dir+"/", "doppel/cmd/doppel", "doppel/cmd/doppel-agent")
			build.Env = append(os.Environ(), "CGO_ENABLED=0")
			if out, err := build.CombinedOutput(); err != nil {
				fmt.Fprintf(os.Stderr, "building doppel: %v\n%s", err, out)
				return 1
			}
			binDir = dir
		}
		return m.Run()
	}())
}

// bench is a rig under test, with what all end-to-end tests do on it.
type bench struct {
	*Rig
	t   *testing.T
	ctx context.Context
}

// logWriter shows output in the test's log, a line at a time.
type logWriter struct {
	t    *testing.T
	line []byte
}

func (w *logWriter) Write(p []byte) (int, error) {
	for _, c := range p {
		if c != '\n' {
			w.line = append(w.line, c)
			continue
		}
		w.t.Log(string(w.line))
		w.line = w.line[:0]
	}
	return len(p), nil
}

// bulk is what of the head's tree neither an install nor a start needs; the
// demo installs it, the tests save its time.
var bulk = []string{"usr/lib/gcc", "usr/libexec/gcc", "usr/share/doc", "usr/share/man", "usr/share/locale", "usr/share/perl", "usr/include", "usr/share/i18n", "usr/share/vim"}

// newBench makes a rig with a daemon that serves and an image, head@1.
func newBench(t *testing.T, limit time.Duration) *bench {
	b := newRigBench(t, limit)
	b.doppel("init", "--interface", "eth0")
	if err := b.Serve(b.ctx); err != nil {
		t.Fatal(err)
	}
	b.doppel("capture", "root@head", "--name", "head", "--accept-new")
	return b
}

// newRigBench makes a rig.
func newRigBench(t *testing.T, limit time.Duration) *bench {
	ctx, cancel := context.WithTimeoutCause(t.Context(), limit, fmt.Errorf("the test took longer than %v", limit))
	t.Cleanup(cancel)
	r, err := NewRig(ctx, t.TempDir(), binDir, &logWriter{t: t})
	if err != nil {
		t.Fatal(err)
	}
	b := &bench{r, t, ctx}
	t.Cleanup(func() {
		if t.Failed() {
			b.logs()
		}
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
	for _, dir := range bulk {
		if err := os.RemoveAll(filepath.Join(r.Head.Tree, dir)); err != nil {
			t.Fatal(err)
		}
	}
	return b
}

func (b *bench) logs() {
	for _, m := range b.machines {
		b.t.Logf("the console of %s ends with:\n%s", m.Name, m.Console.Tail(4000))
	}
	if log := b.DaemonLog(); log != nil {
		b.t.Logf("the daemon's log ends with:\n%s", log.Tail(4000))
	}
}

// doppel runs a command that must succeed.
func (b *bench) doppel(args ...string) string {
	b.t.Helper()
	out, err := b.Run(b.ctx, args...)
	if err != nil {
		b.t.Fatal(err)
	}
	return out
}

// ssh runs a command on a node that must succeed.
func (b *bench) ssh(addr, line string) string {
	b.t.Helper()
	out, err := b.SSH(b.ctx, netip.MustParseAddr(addr), line).CombinedOutput()
	if err != nil {
		b.t.Fatalf("ssh %s %q: %v\n%s", addr, line, err, out)
	}
	return string(out)
}

// machine switches a blank machine on and collects and assigns it.
func (b *bench) machine(o MachineOptions, addr string) *Machine {
	b.t.Helper()
	m, err := b.Machine(b.ctx, o)
	if err != nil {
		b.t.Fatal(err)
	}
	if err := m.Start(b.ctx); err != nil {
		b.t.Fatal(err)
	}
	b.doppel("collect", "--for", "15m", "--count", "1")
	b.doppel("node", "add", m.Name, "--ip", addr)
	b.doppel("assign", m.MAC, m.Name)
	return m
}

// off shuts a node down by itself.
func (b *bench) off(m *Machine, addr string) {
	b.t.Helper()
	_ = b.SSH(b.ctx, netip.MustParseAddr(addr), "systemctl poweroff").Run() // it cuts the connection
	if err := m.Wait(b.ctx); err != nil {
		b.t.Fatal(err)
	}
}

// compare compares a node's disk with the version it runs.
func (b *bench) compare(m *Machine, ref string) {
	b.t.Helper()
	err := OnDisk(b.ctx, m.Disk, filepath.Join(b.Dir, "mnt"), &logWriter{t: b.t},
		filepath.Join(b.Bin, "doppel"), "--state", b.State, "image", "compare", ref, "@ROOT@", "--role", "compute")
	if err != nil {
		b.t.Errorf("the disk of %s is not %s: %v", m.Name, ref, err)
	}
}

// node reads doppel node show.
func (b *bench) node(name string) (n nodeShown) {
	b.t.Helper()
	if err := json.Unmarshal([]byte(b.doppel("node", "show", name, "--json")), &n); err != nil {
		b.t.Fatal(err)
	}
	return n
}

// TestBadDays installs a machine under SeaBIOS, first from a store with a
// flipped bit, which stops the install, then with the power cut in the middle,
// after which the machine boots into the same plan and finishes it.
func TestBadDays(t *testing.T) {
	b := newBench(t, 20*time.Minute)
	m := b.machine(MachineOptions{Name: "node001", Firmware: BIOS}, "10.77.0.11")
	b.corruptChunk(m)

	from := m.Console.Len()
	b.doppel("deploy", "node001", "--image", "head@latest", "--yes")
	if err := m.Console.Await(b.ctx, from, regexp.MustCompile(`doppel: apply: .*\([3-9]\d%\)`)); err != nil {
		t.Fatal(err)
	}
	if err := m.Cut(); err != nil {
		t.Fatal(err)
	}
	before := b.node("node001")
	if before.State != "Installing" {
		t.Errorf("after the power cut the node is %s, want Installing", before.State)
	}
	cut := m.Console.Len()
	if err := m.Start(b.ctx); err != nil {
		t.Fatal(err)
	}
	follow := b.Doppel(b.ctx, "events", "-f", "--node", "node001", "--json")
	if err := awaitLine(follow, regexp.MustCompile(`"kind":"up"`)); err != nil {
		t.Fatal(err)
	}
	after := b.node("node001")
	if after.Install.ID != before.Install.ID {
		t.Errorf("the install was %s before the cut and %s after it", before.Install.ID, after.Install.ID)
	}
	if text := m.Console.Tail(m.Console.Len() - cut); strings.Contains(text, "doppel: format ext4") {
		t.Errorf("the file systems were made again after the cut:\n%s", text)
	}
	if got := strings.TrimSpace(b.ssh("10.77.0.11", "hostname")); got != "node001" {
		t.Errorf("the node's name is %q", got)
	}
	b.off(m, "10.77.0.11")
	b.compare(m, after.Runs)
}

// corruptChunk deploys a machine while a bit of a pack is wrong, which must
// fail the node with the chunk's name, and rights the bit.
func (b *bench) corruptChunk(m *Machine) {
	b.t.Helper()
	pack, err := largest(filepath.Join(b.State, "store", "packs"))
	if err != nil {
		b.t.Fatal(err)
	}
	if err := flip(pack); err != nil {
		b.t.Fatal(err)
	}
	if out, err := b.Run(b.ctx, "deploy", m.Name, "--image", "head@latest", "--watch", "--yes"); err == nil {
		b.t.Fatalf("a machine was installed from a corrupt store:\n%s", out)
	}
	n := b.node(m.Name)
	if n.State != "Failed" || !regexp.MustCompile(`chunk sha256:[0-9a-f]{64}`).MatchString(n.Reason) {
		b.t.Errorf("the node is %s: %q; want Failed, naming the chunk", n.State, n.Reason)
	}
	if status := b.doppel("status"); !strings.Contains(status, n.Reason) {
		b.t.Errorf("status does not give the reason:\n%s", status)
	}
	if err := flip(pack); err != nil {
		b.t.Fatal(err)
	}
}

func largest(dir string) (string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return "", err
	}
	name, size := "", int64(-1)
	for _, e := range entries {
		info, err := e.Info()
		if err != nil {
			return "", err
		}
		if info.Size() > size {
			name, size = filepath.Join(dir, e.Name()), info.Size()
		}
	}
	return name, nil
}

// flip inverts a bit in the middle of a file.
func flip(name string) error {
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	info, err := f.Stat()
	if err != nil {
		return errors.Join(err, f.Close())
	}
	var b [1]byte
	at := info.Size() / 2
	if _, err := f.ReadAt(b[:], at); err != nil {
		return errors.Join(err, f.Close())
	}
	b[0] ^= 0x10
	_, err = f.WriteAt(b[:], at)
	return errors.Join(err, f.Close())
}

// awaitLine runs a command until it prints a line that matches.
func awaitLine(cmd *exec.Cmd, re *regexp.Regexp) error {
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	defer func() {
		_ = cmd.Process.Kill() // it follows for ever
		_ = cmd.Wait()
	}()
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		if re.MatchString(lines.Text()) {
			return nil
		}
	}
	return errors.Join(fmt.Errorf("the command ended without a line that matches %s", re), lines.Err())
}

//go:embed testdata/split-home.sh
var splitHomeScript string

// TestCloneOfADouble installs a double under OVMF, gives its disk a layout of
// its own (a separate /home), changes it, starts it from that disk, captures
// it while it runs, and clones that, layout and all.
func TestCloneOfADouble(t *testing.T) {
	b := newBench(t, 25*time.Minute)
	first := b.machine(MachineOptions{Name: "node001", Firmware: UEFI}, "10.77.0.11")
	b.doppel("deploy", "node001", "--image", "head@latest", "--watch", "--yes")
	b.ssh("10.77.0.11", "test -d /sys/firmware/efi && useradd -m -s /bin/bash alice && echo changed > /home/alice/note && echo alice > /etc/owner")
	b.off(first, "10.77.0.11")
	b.compareFirst(first)

	if out, err := exec.CommandContext(b.ctx, "sh", "-euc", splitHomeScript, "split-home.sh", first.Disk, filepath.Join(b.Dir, "split")).CombinedOutput(); err != nil {
		t.Fatalf("giving the disk a /home: %v\n%s", err, out)
	}
	from := first.Console.Len()
	first.DiskFirst = true // network boot has been seen to lead there
	if err := first.Start(b.ctx); err != nil {
		t.Fatal(err)
	}
	if err := first.Console.Await(b.ctx, from, regexp.MustCompile(`node001 login:`)); err != nil {
		t.Fatal(err)
	}
	if got := b.ssh("10.77.0.11", "findmnt -no FSTYPE /home; cat /home/alice/note"); got != "ext4\nchanged\n" {
		t.Fatalf("the changed double has at /home: %q", got)
	}
	b.doppel("capture", "root@10.77.0.11", "--name", "second", "--accept-new")
	b.doppel("image", "show", "second@latest")
	b.off(first, "10.77.0.11")
	_, want, err := ReadDisk(b.ctx, first.Disk)
	if err != nil {
		t.Fatal(err)
	}

	double := b.machine(MachineOptions{Name: "node002", Firmware: UEFI, DiskSize: 9_000_000_000}, "10.77.0.12")
	b.doppel("deploy", "node002", "--image", "second@latest", "--watch", "--yes")
	if got := b.ssh("10.77.0.12", "hostname; findmnt -no FSTYPE /home; cat /home/alice/note /etc/owner; swapon --noheadings --show=TYPE"); got != "node002\next4\nchanged\nalice\npartition\n" {
		t.Errorf("the double of the double says %q", got)
	}
	b.off(double, "10.77.0.12")
	_, have, err := ReadDisk(b.ctx, double.Disk)
	if err != nil {
		t.Fatal(err)
	}
	sameLayout(t, have, want)
	b.compare(double, b.node("node002").Runs)
}

// compareFirst compares the first double, to which the test has added a user.
func (b *bench) compareFirst(m *Machine) {
	b.t.Helper()
	var out strings.Builder
	err := OnDisk(b.ctx, m.Disk, filepath.Join(b.Dir, "mnt"), &out,
		filepath.Join(b.Bin, "doppel"), "--state", b.State, "image", "compare", "head@1", "@ROOT@", "--role", "compute")
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 4 {
		b.t.Fatalf("a changed double compares as: %v\n%s", err, out.String())
	}
	for line := range strings.Lines(out.String()) {
		if strings.HasPrefix(line, "DIFFERS") && !regexp.MustCompile(`alice|etc/(owner|passwd|group|subuid|subgid)|DIFFERS +"(etc|home)"`).MatchString(line) {
			b.t.Errorf("the double differs in what the test did not change: %s", line)
		}
	}
}

// sameLayout compares the disk of a double with that of what it doubles:
// the same partitions with the same file systems; only the root may be larger.
func sameLayout(t *testing.T, have, want []DiskPartition) {
	t.Helper()
	if len(have) != len(want) {
		t.Fatalf("%d partitions, want %d:\n%+v\n%+v", len(have), len(want), have, want)
	}
	for i, w := range want {
		h := have[i]
		if h.Type != w.Type || h.FS != w.FS || h.UUID != w.UUID {
			t.Errorf("partition %d is %s %s %s, want %s %s %s", h.Number, h.Type, h.FS, h.UUID, w.Type, w.FS, w.UUID)
		}
	}
}
