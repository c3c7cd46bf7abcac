package lab

import (
	"strings"
	"testing"
	"time"
)

// TestEnlist makes a machine that nobody's doppel knows, with a systemd, a GRUB
// and a disk of its own, a node over SSH; updates it in place, with another set
// of kernels; starts it from its own disk; and takes the enlistment back, which
// leaves nothing.
func TestEnlist(t *testing.T) {
	b := newBenchWith(t, 30*time.Minute, "")
	m := b.machine(MachineOptions{Name: "primary", Firmware: BIOS}, standbyAddr)
	b.doppel("node", "set", "primary", "--role", "head")
	b.doppel("deploy", "primary", "--image", "head@latest", "--watch", "--yes")
	// All that made it a node goes: it is a machine like any other.
	ours := "/usr/lib/doppel /etc/doppel /etc/systemd/system/doppel-agent.service /etc/systemd/system/multi-user.target.wants/doppel-agent.service"
	b.ssh(standbyAddr, "systemctl disable --now doppel-agent.service; rm -rf "+ours+"; systemctl daemon-reload; cp /boot/vmlinuz-6.1* /boot/vmlinuz-6.1.0-98-other; update-grub")
	b.doppel("node", "rm", "primary", "--yes")
	everything := "find / -xdev ! -path '/tmp/*' ! -path '/var/*' ! -path '/root/*' ! -path '/run/*' | sort"
	before := b.ssh(standbyAddr, everything)

	b.doppel("capture", "root@"+standbyAddr, "--name", "head", "--accept-new")
	b.doppel("node", "enlist", "root@"+standbyAddr, "--name", "primary")
	n := b.node("primary")
	if n.State != "Installed" || n.Runs != "head@2" {
		t.Fatalf("%+v", n)
	}
	if out := b.ssh(standbyAddr, "systemctl is-active doppel-agent; systemctl is-enabled doppel-agent"); out != "active\nenabled\n" {
		t.Errorf("its unit is %q", out)
	}
	b.doppel("capture", "node:primary", "--name", "through")
	b.doppel("node", "enlist", "root@"+standbyAddr) // again

	// The version before has no such kernel.
	b.doppel("deploy", "primary", "--image", "head@1", "--in-place", "--watch", "--yes")
	if out := b.ssh(standbyAddr, "ls /boot; grep -c 6.1.0-98 /boot/grub/grub.cfg || true"); strings.Contains(out, "6.1.0-98") || !strings.HasSuffix(out, "\n0\n") {
		t.Errorf("its boot menu has what is not there: %s", out)
	}
	b.reboot(m, standbyAddr)
	b.drift("primary", "")

	b.doppel("node", "enlist", "root@"+standbyAddr, "--undo")
	if out := b.ssh(standbyAddr, "ls -d "+ours+" 2>/dev/null; systemctl is-active doppel-agent; true"); out != "inactive\n" {
		t.Errorf("it leaves %q", out)
	}
	after := b.ssh(standbyAddr, everything)
	for line := range strings.Lines(after) {
		if !strings.Contains(before, line) && !strings.Contains(line, "/boot/grub") {
			t.Errorf("it leaves %s", line)
		}
	}
}
