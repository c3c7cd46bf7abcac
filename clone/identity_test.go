package clone

import (
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"

	"doppel/imaging"
)

func TestIdentityTable(t *testing.T) {
	compute, head := Identity(roleCompute), Identity(roleHead)
	for p, want := range map[string]Why{
		"etc/hostname": WhyIdentity, "etc/ssh/ssh_host_rsa_key.pub": WhyIdentity, "boot/grub/i386-pc/core.img": WhyBoot, "boot/grub": WhyBoot,
		"usr/lib/doppel/doppel-agent": WhyAgent, "etc/doppel/node/node.key": WhyAgent, "var/log/a/b/c": WhyRuntime, "tmp": WhyRuntime,
		"home/lost+found": WhyRuntime, "etc/systemd/network/50-lan.network": WhyIdentity,
		"etc": "", "etc/hostname.old": "", "usr/bin/bash": "", "etc/ssh/sshd_config": "", "boot/vmlinuz-6.1": "", "boot/grubby": "",
		"etc/systemd/network/bond0.netdev": "", "root/.ssh/authorized_keys": "", "etc/passwd": "", ".": "", "varlog": "",
	} {
		r, ok := compute.Match(p)
		if r.Why != want || ok != (want != "") {
			t.Errorf("%s: %+v, %v; want %q", p, r, ok, want)
		}
	}
	for _, p := range []string{"etc/ssh/ssh_host_rsa_key", "etc/shadow"} {
		if r, ok := head.Match(p); ok {
			t.Errorf("a head may differ in %s: %+v", p, r)
		}
	}
	for p, want := range map[string]bool{"etc": true, "etc/ssh": true, ".": true, "var/lib": true, "usr/bin": false, "home": false, "etc/apt": false} {
		if got := compute.Holds(p); got != want {
			t.Errorf("%s holds identity files: %v", p, got)
		}
	}
	for _, r := range compute.Rules() {
		if r.Words == "" || r.Pattern == "" || strings.HasPrefix(r.Pattern, "/") {
			t.Errorf("the rule %+v", r)
		}
	}
}

// identityTree writes files below a directory.
func identityTree(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		at := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(at), 0o755); err != nil {
			t.Fatal(err)
		}
		var err error
		if to, link := strings.CutPrefix(text, "-> "); link {
			err = os.Symlink(to, at)
		} else if !strings.HasSuffix(name, "/") {
			err = os.WriteFile(at, []byte(text), 0o644)
		} else {
			err = os.MkdirAll(at, 0o755)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// show prints a tree of small files.
func show(t *testing.T, dir string) string {
	t.Helper()
	var b strings.Builder
	err := filepath.WalkDir(dir, func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		rel, err := filepath.Rel(dir, name)
		if err != nil {
			return err
		}
		fi, err := d.Info()
		if err != nil {
			return err
		}
		fmt.Fprintf(&b, "-- %s %v\n", rel, fi.Mode())
		switch {
		case fi.Mode()&fs.ModeSymlink != 0:
			to, err := os.Readlink(name)
			fmt.Fprintln(&b, to)
			return err
		case strings.Contains(rel, "ssh_host_"), strings.HasSuffix(rel, "random-seed"), strings.HasSuffix(rel, "initiatorname.iscsi"):
			fmt.Fprintln(&b, "(random)")
			return nil
		}
		text, err := os.ReadFile(name)
		b.Write(text)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// headFiles are what every style's tree has besides its network.
func headFiles() map[string]string {
	return map[string]string{
		"etc/hostname":                  "head\n",
		"etc/hosts":                     "127.0.0.1\tlocalhost head\n127.0.1.1\thead.cluster head # Debian\n::1 localhost ip6-localhost\n10.77.0.1 head.cluster head\n10.77.0.11 old\n10.77.0.99 node001 storage\n# the end\n",
		"etc/machine-id":                "0123456789abcdef0123456789abcdef\n",
		"etc/mailname":                  "head.cluster\n",
		"etc/fstab":                     "# static\nUUID=dead-beef / ext4 noatime 0 1\n/dev/mapper/vg-home /home xfs defaults 0 0\ntmpfs /tmp tmpfs nosuid 0 0\nnas:/export /data nfs _netdev 0 0\nUUID=swap none swap sw,pri=3 0 0\n",
		"etc/ssh/sshd_config":           "",
		"etc/ssh/ssh_host_rsa_key":      "the head's",
		"etc/shadow":                    "root:$y$hash:1::::::\ndaemon:*:1::::::\nlocked:!:1::::::\nwas:!$6$x:1::::::\n",
		"etc/resolv.conf":               "nameserver 192.0.2.1\n",
		"etc/iscsi/initiatorname.iscsi": "InitiatorName=iqn.1993-08.org.debian:01:head\n",
		"var/lib/dbus/machine-id":       "-> /etc/machine-id",
		"var/lib/dhcp/dhclient.leases":  "lease {}",
		"var/lib/systemd/random-seed":   "seed",
	}
}

func TestWriteIdentity(t *testing.T) {
	needRoot(t)
	styles := []struct {
		name, style, role string
		files             map[string]string
	}{
		{"ifupdown", "ifupdown", roleCompute, map[string]string{"etc/network/interfaces": "auto ens3\niface ens3 inet static\n  address 10.77.0.1/24\n"}},
		{"head", "ifupdown", roleHead, map[string]string{"etc/network/interfaces": "auto ens3\niface ens3 inet static\n  address 10.77.0.1/24\n"}},
		{"networkmanager", "networkmanager", roleCompute, map[string]string{
			"etc/NetworkManager/system-connections/eno1.nmconnection": "[ipv4]\naddress1=10.77.0.1/24\n",
			"etc/sysconfig/network-scripts/ifcfg-eno1":                "IPADDR=10.77.0.1\n", "etc/sysconfig/network-scripts/ifcfg-lo": "lo\n"}},
		{"networkd", "systemd-networkd", roleCompute, map[string]string{
			"etc/systemd/network/10-lan.network": "[Network]\nAddress = 10.77.0.1/24\n", "etc/systemd/network/80-dhcp.network": "[Match]\nName=en*\n[Network]\nDHCP=yes\n"}},
		{"netplan", "netplan", roleCompute, map[string]string{
			"etc/netplan/50-cloud-init.yaml": "network:\n  renderer: NetworkManager\n  ethernets:\n    ens3:\n      addresses: [10.77.0.1/24]\n", "etc/cloud/cloud.cfg.d/": ""}},
		{"none", "", roleCompute, map[string]string{"usr/lib/systemd/systemd-networkd": "elf"}},
	}
	for _, s := range styles {
		t.Run(s.name, func(t *testing.T) {
			files := headFiles()
			for name, text := range s.files {
				files[name] = text
			}
			dir := identityTree(t, files)
			head := debianHead()
			head.Boot.Network = s.style
			image := newImage(head, files)
			target := testTarget()
			target.Role = s.role
			plan := mustPlan(t, target, testHardware(BIOS, vda(20*gib)))
			for range 2 { // a second time comes to the same
				if err := WriteIdentity(dir, plan, &image.Manifest); err != nil {
					t.Fatal(err)
				}
				golden(t, "identity-"+s.name+".txt", show(t, dir))
			}
			judgeHostKeys(t, dir, s.role)
			err := filepath.WalkDir(dir, func(name string, d fs.DirEntry, err error) error {
				if err == nil && d.Type().IsRegular() {
					var b []byte
					b, err = os.ReadFile(name)
					if strings.Contains(string(b), "10.77.0.1/24") {
						t.Errorf("%s still has the head's address", name)
					}
				}
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
		})
	}
}

// judgeHostKeys has OpenSSH read the keys.
func judgeHostKeys(t *testing.T, dir, role string) {
	t.Helper()
	name := filepath.Join(dir, "etc/ssh/ssh_host_rsa_key")
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if role == roleHead {
		if string(b) != "the head's" {
			t.Error("a head's host key was replaced")
		}
		return
	}
	if out, err := exec.Command("ssh-keygen", "-y", "-f", name).CombinedOutput(); err != nil {
		t.Errorf("ssh-keygen: %v\n%s", err, out)
	}
	key, err := ssh.ParsePrivateKey(b)
	if err != nil {
		t.Fatal(err)
	}
	public, err := os.ReadFile(name + ".pub")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(string(public), strings.TrimSpace(string(ssh.MarshalAuthorizedKey(key.PublicKey())))) {
		t.Error("the public key is another")
	}
}

func TestWriteIdentityStaysInside(t *testing.T) {
	needRoot(t)
	outside := filepath.Join(t.TempDir(), "outside")
	if err := os.WriteFile(outside, []byte("untouched"), 0o644); err != nil {
		t.Fatal(err)
	}
	files := headFiles()
	files["etc/hostname"] = "-> " + outside
	files["var/lib/systemd/random-seed"] = "-> ../../../../../../../../" + outside
	dir := identityTree(t, files)
	image := newImage(debianHead(), files)
	plan := mustPlan(t, testTarget(), testHardware(BIOS, vda(20*gib)))
	if err := WriteIdentity(dir, plan, &image.Manifest); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(outside); err != nil || string(b) != "untouched" {
		t.Errorf("a file outside the tree is %q, %v", b, err)
	}
	// A directory that leads outside is an error, not a way.
	files = headFiles()
	files["etc/network"] = "-> " + filepath.Dir(outside)
	dir = identityTree(t, files)
	if err := WriteIdentity(dir, plan, &image.Manifest); err == nil {
		t.Error("a directory that leads out of the tree was written to")
	}
}

func TestFstabOfSameLayoutStays(t *testing.T) {
	old := "# as the head has it\nUUID=11111111-0000-4000-8000-000000000002 /   ext4   errors=remount-ro 0 1\n" +
		"PARTUUID=aaaaaaaa-0000-4000-8000-000000000004\t/home xfs defaults 0 2\nUUID=11111111-0000-4000-8000-000000000003 none swap sw 0 0\n\ntmpfs /tmp tmpfs defaults 0 0\n"
	target := testTarget()
	target.ImageHead.Layout = headLayout(false)
	plan := mustPlan(t, target, testHardware(BIOS, vda(40*gib)))
	if got := string(rewriteFstab([]byte(old), plan)); got != old {
		t.Errorf("the fstab became:\n%s", got)
	}
}

func FuzzRewriteFstab(f *testing.F) {
	f.Add("UUID=x / ext4 defaults 0 1\n/dev/sda2 none swap sw\n")
	f.Add("\x00\n#")
	plan, err := MakePlan(testTarget(), testHardware(UEFI, vda(20*gib)))
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, old string) {
		once := rewriteFstab([]byte(old), plan)
		if twice := rewriteFstab(once, plan); string(once) != string(twice) {
			t.Errorf("%q became %q and then %q", old, once, twice)
		}
		found := false
		for line := range strings.Lines(string(once)) {
			e, ok := imaging.ParseFstabLine(line)
			found = found || ok && e.Spec == "UUID="+plan.FileSystemAt("/").FS.UUID
		}
		if !found {
			t.Errorf("%q became %q, without a root", old, once)
		}
	})
}

func FuzzRewriteHosts(f *testing.F) {
	f.Add("127.0.1.1 head\n10.0.0.1 head # x\n")
	f.Add("::1%lo localhost\n\r\n")
	plan := &Plan{Node: "node001", Domain: "cluster", Addr: netip.MustParsePrefix("10.77.0.11/24")}
	f.Fuzz(func(t *testing.T, old string) {
		once := rewriteHosts([]byte(old), "head", plan)
		if twice := rewriteHosts(once, "head", plan); string(once) != string(twice) {
			t.Errorf("%q became %q and then %q", old, once, twice)
		}
	})
}

func FuzzLockPasswords(f *testing.F) {
	f.Add("root:$y$x:1:\n")
	f.Fuzz(func(t *testing.T, old string) {
		for line := range strings.Lines(string(lockPasswords([]byte(old)))) {
			if strings.Count(line, ":") >= 2 && strings.Contains(strings.SplitN(line, ":", 3)[1], "$") {
				t.Errorf("%q kept a hash: %q", old, line)
			}
		}
	})
}

func TestPermitted(t *testing.T) {
	m := &imaging.Manifest{List: entriesOf([]imaging.Entry{
		{Path: ".", Kind: imaging.Directory},
		{Path: "a", Kind: imaging.Regular},
		{Path: "b", Kind: imaging.Regular, Class: imaging.ClassCluster},
		{Path: "c", Kind: imaging.Regular, Class: imaging.ClassNode},
		{Path: "d", Kind: imaging.Regular, Class: imaging.ClassHead},
		{Path: "e", Kind: imaging.HardLink, Target: "d", Class: imaging.ClassHead},
	}...)}
	permitted := func(role string) int {
		p, err := Permitted(m, role)
		if err != nil {
			t.Fatal(err)
		}
		return p.List.Len()
	}
	if got := permitted("compute"); got != 3 {
		t.Errorf("a compute node is permitted %d entries, want 3", got)
	}
	if got := permitted("head"); got != 6 {
		t.Errorf("a head is permitted %d entries, want 6", got)
	}
	if m.List.Len() != 6 {
		t.Error("the manifest was changed")
	}
}
