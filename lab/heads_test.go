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

const (
	primaryAddr = "10.77.0.11"
	standbyAddr = "10.77.0.12"
)

// enlisted are the files that make a machine a node.
const enlisted = "/usr/lib/doppel /etc/doppel /etc/systemd/system/doppel-agent.service /etc/systemd/system/multi-user.target.wants/doppel-agent.service"

// TestHeads has two heads in two machines. The standby is installed by PXE; the
// primary, which no doppel knows, is enlisted over SSH and watched. The primary is
// changed (kernel, packages, users, a large file, deletions, a renamed tree), and
// the standby follows while it runs, is the primary then but for its identity, and
// starts with the new kernel. After a failover the standby is the active one: its
// changes flow back to the old primary, where what was changed on both stays until
// it is decided. Back again, the standby returns to its first version, and starts
// with the old kernel.
func TestHeads(t *testing.T) {
	b := newBenchWith(t, 60*time.Minute, `
[[sync]]
image = "head"
between = ["primary", "standby"]
interval = "6h"
watch = true
rescan_every = "24h"
keep_last = 100
keep = ["srv/own/**"]
`)
	primary := b.machine(MachineOptions{Name: "primary", Firmware: BIOS}, primaryAddr)
	standby := b.machine(MachineOptions{Name: "standby", Firmware: BIOS}, standbyAddr)
	b.doppel("node", "set", "primary", "--role", "head")
	b.doppel("node", "set", "standby", "--role", "head")
	b.doppel("sync", "pause") // a round of its own would make a version before the primary is enlisted
	b.doppel("deploy", "primary", "standby", "--image", "head@latest", "--watch", "--yes")
	first := b.node("standby").Runs
	before := b.enlistPrimary()
	b.doppel("sync", "resume")

	own := "hostname; cat /etc/machine-id; sha256sum /etc/ssh/ssh_host_*_key; cat /etc/fstab /etc/network/interfaces; cat /etc/doppel/node/node.key"
	identity := b.ssh(standbyAddr, own)
	b.ssh(standbyAddr, "mkdir -p /srv/own && echo mine >/srv/own/file && echo drift >>/etc/motd && rm -f /usr/bin/less")
	oldKernel := strings.TrimSpace(b.ssh(standbyAddr, "sed 's/.*BOOT_IMAGE=\\([^ ]*\\).*/\\1/' /proc/cmdline"))

	// A day's work on the primary.
	b.doppel("sync", "now")
	b.script(primaryAddr, changeHeadScript+"update-grub\n", "/")
	b.doppel("sync", "now")
	b.awaitLatest("standby")
	b.ssh(primaryAddr, "echo once more >/srv/once")
	b.doppel("sync", "now")
	if out := b.doppel("sync", "status"); !strings.Contains(out, "from node:primary every 6 h, watched") || strings.Contains(out, "everything was looked at") {
		t.Errorf("the primary is not watched: %s", out)
	}
	b.awaitLatest("standby")
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

	b.reboot(standby, standbyAddr)
	if cmdline := b.ssh(standbyAddr, "cat /proc/cmdline"); !strings.Contains(cmdline, "vmlinuz-6.1.0-99-cloud-amd64") {
		t.Errorf("the standby was started with %s", cmdline)
	}
	b.failover(primary)

	// The standby back to what it was, while it runs, without erasing anything.
	b.doppel("deploy", "standby", "--image", first, "--in-place", "--watch", "--yes")
	b.reboot(standby, standbyAddr)
	if cmdline := b.ssh(standbyAddr, "cat /proc/cmdline; ls /boot/vmlinuz-*; ! id alice"); !strings.Contains(cmdline, oldKernel+" ") || strings.Contains(cmdline, "6.1.0-99") {
		t.Errorf("after the rollback the standby was started with %s, not %s", cmdline, oldKernel)
	}
	b.off(standby, standbyAddr)
	b.compareAs(standby, first, "head", "srv/own")
	b.rsyncAs(standby, first, "head", "srv/own")
	if n := b.node("standby"); n.Runs != first {
		t.Errorf("the standby is said to run %s, not %s", n.Runs, first)
	}

	b.doppel("node", "enlist", "root@"+primaryAddr, "--undo")
	if out := b.ssh(primaryAddr, "ls -d "+enlisted+" 2>/dev/null; systemctl is-active doppel-agent; true"); out != "inactive\n" {
		t.Errorf("an enlistment that is taken back leaves %q", out)
	}
	if after := b.ssh(primaryAddr, listSystem); after != before {
		t.Errorf("in /etc and /usr/lib it leaves\n%s\nthere was\n%s", after, before)
	}
}

// listSystem lists where an enlistment puts files.
const listSystem = "find /etc/systemd/system /usr/lib -maxdepth 1 | sort"

// enlistPrimary makes the primary a machine like any other, and then a node.
func (b *bench) enlistPrimary() (before string) {
	b.t.Helper()
	b.ssh(primaryAddr, "systemctl disable --now doppel-agent.service; rm -rf "+enlisted+"; systemctl daemon-reload")
	b.doppel("node", "rm", "primary", "--yes")
	before = b.ssh(primaryAddr, listSystem)
	b.doppel("capture", "root@"+primaryAddr, "--name", "head", "--accept-new")
	b.doppel("node", "enlist", "root@"+primaryAddr, "--name", "primary")
	if n := b.node("primary"); n.State != "Installed" || n.Runs != "head@2" {
		b.t.Fatalf("%+v", n)
	}
	if out := b.ssh(primaryAddr, "systemctl is-active doppel-agent; systemctl is-enabled doppel-agent"); out != "active\nenabled\n" {
		b.t.Errorf("its unit is %q", out)
	}
	return before
}

// failover makes the standby the active head and then the primary again, with
// changes on both.
func (b *bench) failover(primary *Machine) {
	t := b.t
	t.Helper()
	b.doppel("sync", "now")
	b.awaitLatest("standby")
	b.ssh(primaryAddr, "echo ours >/etc/motd; echo not captured any more >/srv/only")
	b.doppel("sync", "turn", "--to", "standby", "--yes")
	b.ssh(standbyAddr, "echo theirs >/etc/motd; echo new >/srv/new; rm -r /srv/renamed; useradd -m bob")
	b.doppel("sync", "now")
	b.awaitLatest("primary")
	if got := b.ssh(primaryAddr, "cat /etc/motd /srv/only /srv/new; id -un bob; hostname; test ! -e /srv/renamed"); got != "ours\nnot captured any more\nnew\nbob\nprimary\n" {
		t.Errorf("the old primary has %q", got)
	}
	if got := b.ssh(standbyAddr, "cat /etc/motd; test ! -e /srv/only"); got != "theirs\n" {
		t.Errorf("the new one has %q", got)
	}
	var out bytes.Buffer
	cmd := b.Doppel(b.ctx, "sync", "drift", "primary")
	cmd.Stdout, cmd.Stderr = &out, &logWriter{t: t}
	_ = cmd.Run() // it exits with 4, as there is something
	t.Logf("what is the primary's own:\n%s", out.String())
	for _, want := range []string{`changed \(on both heads\) +/etc/motd`, `added +/srv/only`} {
		if !regexp.MustCompile(want).Match(out.Bytes()) {
			t.Errorf("drift does not say %s", want)
		}
	}
	if out, err := b.Run(b.ctx, "sync", "turn", "--to", "primary", "--yes"); err == nil {
		t.Errorf("turned back though nobody has decided: %s", out)
	}
	b.doppel("sync", "drift", "primary", "--adopt", "/srv/only", "--yes")
	b.doppel("sync", "now")
	b.awaitLatest("primary")
	revert := []string{"sync", "drift", "primary", "--yes"}
	for _, dir := range []string{"boot", "etc", "home", "opt", "root", "srv", "usr", "var"} {
		revert = append(revert, "--revert", "/"+dir)
	}
	b.doppel(revert...)
	if got := b.ssh(primaryAddr, "cat /etc/motd /srv/only"); got != "theirs\nnot captured any more\n" {
		t.Errorf("after the decisions the old primary has %q", got)
	}
	if got := b.ssh(standbyAddr, "cat /srv/only"); got != "not captured any more\n" {
		t.Errorf("what was adopted is on the active head as %q", got)
	}
	b.reboot(primary, primaryAddr)
	b.doppel("sync", "turn", "--to", "primary", "--yes")
	b.ssh(primaryAddr, "echo again >/srv/again")
	b.doppel("sync", "now")
	b.awaitLatest("standby")
	if got := b.ssh(standbyAddr, "cat /srv/again"); got != "again\n" {
		t.Errorf("after the failback the standby has %q", got)
	}
}

// script runs a shell script on a node.
func (b *bench) script(addr, script, arg string) {
	b.t.Helper()
	cmd := b.SSH(b.ctx, netip.MustParseAddr(addr), "sh -eus "+arg)
	cmd.Stdin = strings.NewReader(script)
	if out, err := cmd.CombinedOutput(); err != nil {
		b.t.Fatalf("a script on %s: %v\n%s", addr, err, out)
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

// awaitLatest waits until a node has become the latest version of the heads'
// image.
func (b *bench) awaitLatest(name string) {
	b.t.Helper()
	var list []struct{ Latest string }
	if err := json.Unmarshal([]byte(b.doppel("sync", "status", "--json")), &list); err != nil || len(list) != 1 {
		b.t.Fatalf("%v: %+v", err, list)
	}
	if b.node(name).Runs == list[0].Latest {
		return
	}
	follow := b.Doppel(b.ctx, "events", "-f", "--node", name, "--json")
	latest := regexp.QuoteMeta(list[0].Latest)
	if err := awaitLine(follow, regexp.MustCompile(`"kind":"updated".*`+latest+`\b|"kind":"update-failed".*`+latest+`\b`)); err != nil {
		b.t.Fatal(err)
	}
	if n := b.node(name); n.Runs != list[0].Latest {
		b.t.Fatalf("%s runs %s, not %s: %s", name, n.Runs, list[0].Latest, b.doppel("events", "--node", name, "--kind", "update-failed"))
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
