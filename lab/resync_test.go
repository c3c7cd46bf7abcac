package lab

import (
	"bytes"
	_ "embed"
	"encoding/json"
	"errors"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"doppel/clone"
)

//go:embed testdata/change-head.sh
var changeHeadScript string

const standbyAddr = "10.77.0.12"

// TestResync installs a standby head by PXE, changes the primary (kernel,
// packages, users, a large file, deletions, a renamed tree), and has the
// standby follow while it runs: it then is the primary but for its identity,
// starts with the new kernel, and comes back to the version before when it is
// told to.
func TestResync(t *testing.T) {
	b := newBenchWith(t, 40*time.Minute, `
[[sync]]
image = "head"
source = "root@head"
nodes = ["@head"]
interval = "6h"
keep = ["srv/own/**"]
`)
	head := func(line string) {
		t.Helper()
		if out, err := exec.CommandContext(b.ctx, "sh", "-euc", line, "sh", b.Head.Tree).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", line, err, out)
		}
	}
	m, err := b.Machine(b.ctx, MachineOptions{Name: "standby", Firmware: BIOS})
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Start(b.ctx); err != nil {
		t.Fatal(err)
	}
	b.doppel("collect", "--for", "15m", "--count", "1")
	b.doppel("node", "add", "standby", "--ip", standbyAddr, "--role", "head")
	b.doppel("assign", m.MAC, "standby")
	b.doppel("deploy", "standby", "--image", "head@latest", "--watch", "--yes")
	first := b.node("standby").Runs
	b.doppel("sync", "status")

	own := "hostname; cat /etc/machine-id; sha256sum /etc/ssh/ssh_host_*_key; cat /etc/fstab /etc/network/interfaces; cat /etc/doppel/node/node.key"
	identity := b.ssh(standbyAddr, own)
	b.ssh(standbyAddr, "mkdir -p /srv/own && echo mine >/srv/own/file && echo drift >>/etc/motd && rm -f /usr/bin/less")
	oldKernel := strings.TrimSpace(b.ssh(standbyAddr, "sed 's/.*BOOT_IMAGE=\\([^ ]*\\).*/\\1/' /proc/cmdline"))

	head(changeHeadScript)
	b.doppel("sync", "now")
	b.awaitVersion("standby")
	b.doppel("sync", "status")
	if b.node("standby").Runs == first {
		t.Fatalf("the standby still runs %s", first)
	}
	if now := b.ssh(standbyAddr, own); now != identity {
		t.Errorf("the standby was\n%s\nand is\n%s", identity, now)
	}
	checks := "id -un alice; dpkg-query -W -f '${Version}\\n' doppel-test; cat /srv/own/file; ls /srv/renamed | wc -l; test ! -e /srv/tree; test ! -e /srv/gone; stat -c %s /srv/large; test -x /usr/bin/less; cat /etc/motd; grep storage /etc/hosts; grep standby /etc/hosts; ls /boot/vmlinuz-*"
	want := "alice\n1.0\nmine\n200\n52428800\n10.77.0.50\tstorage\n" + standbyAddr + "\tstandby.cluster standby\n/boot/vmlinuz-6.1.0-99-cloud-amd64\n"
	if got := b.ssh(standbyAddr, checks); strings.TrimSpace(got) != strings.TrimSpace(want) {
		t.Errorf("the standby has\n%s\nwant\n%s", got, want)
	}

	// What is changed on it by hand is found, and undone.
	b.drift("standby", "")
	b.ssh(standbyAddr, "echo by hand >>/etc/motd; mkdir /opt/trial; touch /opt/trial/file; rm /usr/share/doppel-test/file")
	b.drift("standby", "content etc/motd, extra opt/trial, extra opt/trial/file, missing usr/share/doppel-test/file")
	b.doppel("sync", "drift", "standby", "--revert", "/etc/motd", "--revert", "/opt/trial", "--revert", "usr/share/doppel-test", "--yes")
	b.drift("standby", "")

	b.reboot(m, standbyAddr)
	if cmdline := b.ssh(standbyAddr, "cat /proc/cmdline"); !strings.Contains(cmdline, "vmlinuz-6.1.0-99-cloud-amd64") {
		t.Errorf("the standby was started with %s", cmdline)
	}

	// And back, while it runs, without erasing anything.
	b.doppel("deploy", "standby", "--image", first, "--in-place", "--watch", "--yes")
	b.doppel("sync", "status")
	b.reboot(m, standbyAddr)
	if cmdline := b.ssh(standbyAddr, "cat /proc/cmdline; ls /boot/vmlinuz-*; ! id alice"); !strings.Contains(cmdline, oldKernel+" ") || strings.Contains(cmdline, "6.1.0-99") {
		t.Errorf("after the rollback the standby was started with %s, not %s", cmdline, oldKernel)
	}
	b.off(m, standbyAddr)
	b.compareAs(m, first, "head", "srv/own")
	b.rsyncAs(m, first, "head", "srv/own")
	if n := b.node("standby"); n.Runs != first {
		t.Errorf("the standby is said to run %s, not %s", n.Runs, first)
	}
}

// drift asks a node in what it differs, by content, and wants these differences
// of content and names, those in the bulk of what a running node writes aside.
func (b *bench) drift(name, want string) {
	b.t.Helper()
	var out bytes.Buffer
	cmd := b.Doppel(b.ctx, "sync", "drift", name, "--full", "--json")
	cmd.Stdout, cmd.Stderr = &out, &logWriter{t: b.t}
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && (!errors.As(err, &exit) || exit.ExitCode() != 4) {
		b.t.Fatalf("doppel sync drift: %v", err)
	}
	var report struct {
		Differences []struct{ Path, Kind, Want, Have string }
		Packages    map[string][]string
	}
	if err := json.Unmarshal(out.Bytes(), &report); err != nil {
		b.t.Fatalf("%v in %s", err, out.Bytes())
	}
	var have []string
	for _, d := range report.Differences {
		b.t.Logf("drift: %+v", d)
		switch d.Kind {
		case "content", "size":
			have = append(have, "content "+d.Path)
		case "extra", "missing":
			have = append(have, d.Kind+" "+d.Path)
		}
	}
	if got := strings.Join(have, ", "); got != want {
		b.t.Errorf("%s differs in %q, want %q", name, got, want)
	}
	if strings.Contains(want, "doppel-test/") && len(report.Packages["doppel-test"]) != 1 {
		b.t.Errorf("by package: %v", report.Packages)
	}
}

// awaitVersion waits until a node has become the latest version.
func (b *bench) awaitVersion(name string) {
	b.t.Helper()
	follow := b.Doppel(b.ctx, "events", "-f", "--node", name, "--json")
	if err := awaitLine(follow, regexp.MustCompile(`"kind":"update(d|-failed)"`)); err != nil {
		b.t.Fatal(err)
	}
	out := b.doppel("events", "--node", name, "--kind", "update-failed")
	if out != "" {
		b.t.Fatalf("the update failed: %s", out)
	}
}

// reboot starts a node anew from its own disk and waits until it can be logged
// in to.
func (b *bench) reboot(m *Machine, addr string) {
	b.t.Helper()
	from := m.Console.Len()
	_ = b.SSH(b.ctx, netip.MustParseAddr(addr), "systemctl reboot").Run() // it cuts the connection
	if err := m.Console.Await(b.ctx, from, regexp.MustCompile(m.Name+` login:`)); err != nil {
		b.t.Fatal(err)
	}
}

// compareAs compares a node's disk with a version, but for its identity in a
// role and what a policy keeps.
func (b *bench) compareAs(m *Machine, ref, role, kept string) {
	b.t.Helper()
	var out strings.Builder
	err := OnDisk(b.ctx, m.Disk, filepath.Join(b.Dir, "mnt"), &out,
		filepath.Join(b.Bin, "doppel"), "--state", b.State, "image", "compare", ref, "@ROOT@", "--role", role)
	b.t.Logf("image compare %s: %v\n%s", ref, err, out.String())
	for line := range strings.Lines(out.String()) {
		if strings.HasPrefix(line, "DIFFERS") && !strings.Contains(line, `"`+kept) && !strings.Contains(line, `"`+filepath.Dir(kept)+`"`) {
			b.t.Errorf("the standby is not %s: %s", ref, line)
		}
	}
}

// rsyncAs has rsync say, by checksums, in what a node's disk differs from a
// version, but for the table of identity files and what a policy keeps. Times of
// directories in which those lie are not its to judge.
func (b *bench) rsyncAs(m *Machine, ref, role, kept string) {
	b.t.Helper()
	restored, exclude := filepath.Join(b.Dir, "restored"), filepath.Join(b.Dir, "exclude")
	b.doppel("image", "restore", ref, restored)
	patterns := "/" + kept + "\n"
	for _, r := range clone.Identity(role).Rules() {
		patterns += "/" + strings.TrimSuffix(r.Pattern, "/**") + "\n"
	}
	if err := os.WriteFile(exclude, []byte(patterns), 0o600); err != nil {
		b.t.Fatal(err)
	}
	var out strings.Builder
	err := OnDisk(b.ctx, m.Disk, filepath.Join(b.Dir, "mnt"), &out, "rsync", "-aHAXnci", "--delete", "--exclude-from="+exclude, restored+"/", "@ROOT@/")
	if err != nil {
		b.t.Fatalf("rsync: %v\n%s", err, out.String())
	}
	seen := false
	for line := range strings.Lines(out.String()) {
		if !strings.HasPrefix(line, ".d..t......") {
			b.t.Errorf("rsync would change: %s", line)
		}
		seen = true
	}
	b.t.Logf("rsync of %s found times of directories that differ: %v", ref, seen)
}

// newBenchWith is newBench with more configuration, which is in force from the
// daemon's start: the first capture comes before it.
func newBenchWith(t *testing.T, limit time.Duration, config string) *bench {
	b := newRigBench(t, limit)
	b.doppel("init", "--interface", "eth0")
	f, err := os.OpenFile(b.Config, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString(config); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.CommandContext(b.ctx, "sh", "-euc", `cd "$1"; mkdir -p srv/tree srv/gone; for i in $(seq 200); do echo "$i" >srv/tree/file$i; echo "$i" >srv/gone/file$i; done; : >etc/motd`, "sh", b.Head.Tree).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	b.doppel("capture", "root@head", "--name", "head", "--accept-new")
	if err := b.Serve(b.ctx); err != nil {
		t.Fatal(err)
	}
	return b
}
