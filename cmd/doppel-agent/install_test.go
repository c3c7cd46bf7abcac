package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"doppel/clone"
)

func TestParseCmdline(t *testing.T) {
	good := "vmlinuz initrd=initrd doppel.server=https://10.77.0.1:8443 doppel.boot=ABC doppel.mac=52:54:00:00:00:01 console=tty0"
	p, err := parseCmdline(good)
	if err != nil || p.server != "https://10.77.0.1:8443" || p.boot != "ABC" || p.mac.String() != "52:54:00:00:00:01" {
		t.Errorf("%+v, %v", p, err)
	}
	if p, err := parseCmdline("doppel.server=https://[fd00::1]:8443 doppel.boot=A"); err != nil || p.mac != nil {
		t.Errorf("%+v, %v", p, err)
	}
	for _, bad := range []string{
		"", "quiet", "doppel.server=https://10.77.0.1:8443", "doppel.boot=A", "doppel.server=http://x doppel.boot=A",
		"doppel.server=https://u@x doppel.boot=A", "doppel.server=https://x/y doppel.boot=A", "doppel.server=https:// doppel.boot=A",
		"doppel.server=https://x doppel.boot=A doppel.mac=1", "doppel.server=https://x doppel.boot=A doppel.mac=00:00:00:00:fe:80:00:00",
	} {
		if p, err := parseCmdline(bad); err == nil {
			t.Errorf("%q: %+v", bad, p)
		}
	}
}

func FuzzParseCmdline(f *testing.F) {
	f.Add("doppel.server=https://10.77.0.1:8443 doppel.boot=ABC doppel.mac=52:54:00:00:00:01")
	f.Add("doppel.server= doppel.boot doppel.mac=x")
	f.Fuzz(func(t *testing.T, s string) {
		p, err := parseCmdline(s)
		if err == nil && (!strings.HasPrefix(p.server, "https://") || p.boot == "" || p.mac != nil && len(p.mac) != 6) {
			t.Fatalf("%q: %+v", s, p)
		}
	})
}

// Nobody's own machine is installed by calling this by hand.
func TestInstallRefusesElsewhere(t *testing.T) {
	for _, args := range [][]string{nil, {"--child"}, {"--force"}} {
		if err := runInstall(t.Context(), args); !errors.Is(err, errNoInstaller) {
			t.Errorf("%q: %v", args, err)
		}
	}
	if inInitramfs() {
		t.Error("this is an initramfs")
	}
}

func TestMatchAlias(t *testing.T) {
	for _, x := range []struct {
		pattern, s string
		want       bool
	}{
		{"virtio:d00000001v*", "virtio:d00000001v00001AF4", true},
		{"virtio:d00000001v*", "virtio:d00000002v00001AF4", false},
		{"pci:v00008086d000010D3sv*sd*bc*sc*i*", "pci:v00008086d000010D3sv00001AF4sd00001100bc02sc00i00", true},
		{"pci:v*d*sv*sd*bc01sc06i01*", "pci:v00008086d00002922sv00001AF4sd00001100bc01sc06i01", true},
		{"acpi*:PNP0A03:*", "acpi:PNP0A08:PNP0A03:", true},
		{"usb:v*p*d*dc*dsc*dp*ic08isc06ip50in*", "usb:v46F4p0001d0000dc00dsc00dp00ic08isc06ip50in00", true},
		{"dmi:*:svnACME*:pn*", "dmi:bvnX:bd01/01/2020:svnACMEInc.:pnBox:", true},
		{"x[0-9a]z?", "x7zq", true}, {"x[0-9a]z?", "xaz", false}, {"x[!0-9]z", "x7z", false}, {"x[^0-9]z", "xqz", true},
		{"*", "", true}, {"", "", true}, {"", "a", false}, {"a*", "a", true}, {"[", "[", true}, {`\*`, "*", true}, {`\*`, "a", false},
	} {
		if got := matchAlias(x.pattern, x.s); got != x.want {
			t.Errorf("%q with %q: %v", x.pattern, x.s, got)
		}
	}
}

func FuzzMatchAlias(f *testing.F) {
	f.Add("pci:v*d*sv*", "pci:v1d2sv3")
	f.Add("[a-", "\\")
	f.Add(strings.Repeat("*a", 20), strings.Repeat("a", 40))
	f.Fuzz(func(t *testing.T, pattern, s string) {
		matchAlias(pattern, s)
		if !matchAlias("*", s) || !strings.ContainsAny(s, `*?[\`) && !matchAlias(s, s) {
			t.Fatalf("%q does not match itself", s)
		}
	})
}

// Modules are loaded once, after what they need, and after what they want as
// far as that can be.
func TestModuleLoader(t *testing.T) {
	var loaded []string
	l := &moduleLoader{dir: "/m", say: t.Logf, insert: func(path string) error {
		loaded = append(loaded, filepath.Base(path))
		if strings.Contains(path, "intel") {
			return unix.ENODEV
		}
		return nil
	}}
	err := l.read([]byte(`{"modules":[{"name":"net_failover","file":"nf.ko","needs":["failover"]},{"name":"failover","file":"f.ko"},
		{"name":"virtio_net","file":"vn.ko","needs":["failover","net_failover","virtio"]},{"name":"crc","file":"crc.ko","wants":["intel","loop"]},
		{"name":"intel","file":"intel.ko"},{"name":"needy","file":"needy.ko","needs":["intel"]},{"name":"loop","file":"loop.ko","wants":["crc"]}],
		"aliases":[{"pattern":"virtio:d00000001v*","module":"virtio_net"},{"pattern":"pci:*","module":"needy"}],"always":["crc"]}`))
	if err != nil {
		t.Fatal(err)
	}
	l.loadAlways()
	l.serve("virtio:d00000001v00001AF4")
	l.serve("virtio:d00000001v00001AF4")
	l.serve("virtio:d00000009v00001AF4")
	l.serve("")
	l.serve("pci:v1")
	if got, want := strings.Join(loaded, " "), "intel.ko loop.ko crc.ko f.ko nf.ko vn.ko"; got != want {
		t.Errorf("loaded %s, want %s", got, want)
	}
}

func TestParseUevent(t *testing.T) {
	action, modalias := parseUevent([]byte("add@/devices/x\x00ACTION=add\x00DEVPATH=/devices/x\x00MODALIAS=virtio:d1v2\x00SEQNUM=7\x00"))
	if action != "add" || modalias != "virtio:d1v2" {
		t.Errorf("%q %q", action, modalias)
	}
}

func FuzzParseUevent(f *testing.F) {
	f.Add([]byte("add@/x\x00ACTION=add\x00MODALIAS=a\x00"))
	f.Add([]byte("\x00\x00==\x00"))
	f.Fuzz(func(t *testing.T, b []byte) { parseUevent(b) })
}

// fakeSys lays out a /sys of what the test says.
func fakeSys(t *testing.T, files map[string]string, links map[string]string) sysfs {
	t.Helper()
	root := t.TempDir()
	for name, content := range files {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for name, to := range links {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.MkdirAll(filepath.Join(root, to), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(filepath.Join(root, to), path); err != nil {
			t.Fatal(err)
		}
	}
	return sysfs(root)
}

func TestDisks(t *testing.T) {
	vda := "devices/pci0000:00/0000:00:04.0/virtio1/block/vda"
	nvme := "devices/pci0000:00/0000:01:00.0/nvme/nvme0/nvme0n1"
	sda := "devices/pci0000:00/0000:00:1f.2/ata1/host0/target0:0:0/0:0:0:0/block/sda"
	usb := "devices/pci0000:00/0000:00:14.0/usb2/2-1/2-1:1.0/host6/target6:0:0/6:0:0:0/block/sdb"
	s := fakeSys(t, map[string]string{
		vda + "/size": "16777216\n", vda + "/serial": "LAB 7\n", vda + "/queue/logical_block_size": "512\n",
		nvme + "/size": "1000\n", nvme + "/wwid": "eui.0025385b71b0a1c2\n", nvme + "/device/model": "Samsung SSD 980 \n", nvme + "/device/serial": "S5GX\n", nvme + "/queue/logical_block_size": "4096\n",
		sda + "/size": "2000\n", sda + "/device/model": "ST1000\n", sda + "/device/vpd_pg80": "\x00\x80\x00\x08  Z1D3\x00", sda + "/device/wwid": "naa.5000c500a1b2c3d4\n", sda + "/ro": "1\n",
		usb + "/size": "3000\n", usb + "/removable": "1\n", usb + "/device/vendor": "Kingston\n", usb + "/device/model": "DT\n",
		"devices/virtual/block/loop0/size": "99\n", "devices/virtual/block/sr0/size": "99\n", "devices/x/block/sdc/size": "0\n", "devices/x/block/mmcblk0boot0/size": "8\n",
	}, map[string]string{"block/vda": vda, "block/nvme0n1": nvme, "block/sda": sda, "block/sdb": usb,
		"block/loop0": "devices/virtual/block/loop0", "block/sr0": "devices/virtual/block/sr0", "block/sdc": "devices/x/block/sdc", "block/mmcblk0boot0": "devices/x/block/mmcblk0boot0"})
	want := []clone.Disk{
		{Path: "/dev/nvme0n1", Size: 512000, Sector: 4096, Model: "Samsung SSD 980", Serial: "S5GX", WWN: "eui.0025385b71b0a1c2", Bus: "nvme",
			Links: []string{"by-id/nvme-Samsung_SSD_980_S5GX", "by-id/nvme-eui.0025385b71b0a1c2", "by-path/pci-0000:01:00.0-nvme-1"}},
		{Path: "/dev/sda", Size: 1024000, Sector: 512, Model: "ST1000", Serial: "Z1D3", WWN: "0x5000c500a1b2c3d4", ReadOnly: true, Bus: "sata",
			Links: []string{"by-id/ata-ST1000_Z1D3", "by-id/wwn-0x5000c500a1b2c3d4"}},
		{Path: "/dev/sdb", Size: 1536000, Sector: 512, Model: "DT", Removable: true, Bus: "usb"},
		{Path: "/dev/vda", Size: 8 << 30, Sector: 512, Serial: "LAB 7", Bus: "virtio",
			Links: []string{"by-id/virtio-LAB_7", "by-path/pci-0000:00:04.0", "by-path/virtio-pci-0000:00:04.0"}},
	}
	got := s.disks()
	if g, w := fmt.Sprintf("%+v", got), fmt.Sprintf("%+v", want); g != w {
		t.Errorf("got  %s\nwant %s", g, w)
	}
}

func TestRootDisk(t *testing.T) {
	var st unix.Stat_t
	if err := unix.Stat("/", &st); err != nil {
		t.Fatal(err)
	}
	dev := fmt.Sprintf("dev/block/%d:%d", unix.Major(st.Dev), unix.Minor(st.Dev))
	s := fakeSys(t, map[string]string{"devices/p/block/vda/vda2/partition": "2\n"},
		map[string]string{dev: "devices/virtual/block/dm-0", "devices/virtual/block/dm-0/slaves/vda2": "devices/p/block/vda/vda2"})
	if got, err := rootDisk("/", s); err != nil || got != "/dev/vda" {
		t.Errorf("%q, %v", got, err)
	}
	if got, err := rootDisk("/", sysfs(t.TempDir())); err == nil {
		t.Errorf("%q", got)
	}
}

func TestPrintable(t *testing.T) {
	if got := printable("a\x1b[2Jb\nü\u009b"); got != "a?[2Jb\nü?" {
		t.Errorf("%q", got)
	}
	for n, want := range map[int64]string{0: "0 B", 1023: "1023 B", 1536: "1.5 KiB", 5 << 30: "5.0 GiB"} {
		if got := bytesText(n); got != want {
			t.Errorf("%d: %q", n, got)
		}
	}
}
