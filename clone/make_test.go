package clone

import (
	"errors"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"doppel/imaging"
)

var update = flag.Bool("update", false, "write the golden files anew")

// golden compares text with a file of testdata.
func golden(t *testing.T, name, got string) {
	t.Helper()
	name = filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(name, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(name)
	if err != nil {
		t.Fatalf("%v (make it with go test -update)", err)
	}
	if got != string(want) {
		t.Errorf("%s differs:\n--- got\n%s--- want\n%s", name, got, want)
	}
}

const testInstall = "0B5EC7ED-0000-4000-8000-00000000C10E"

// debianHead is what the image of a small Debian says of itself.
func debianHead() imaging.Head {
	return imaging.Head{
		Facts: imaging.Facts{Hostname: "head", Arch: "x86_64", OSRelease: map[string]string{"ID": "debian", "VERSION_ID": "12"}},
		Boot: imaging.Boot{
			Kernels: []imaging.Kernel{{Release: "6.1.0-1-amd64", Path: "boot/vmlinuz-6.1.0-1-amd64", Initrd: "boot/initrd.img-6.1.0-1-amd64", Modules: "usr/lib/modules/6.1.0-1-amd64"}},
			Loaders: []string{"grub-bios", "grub-uefi"},
			Tools: []string{"usr/sbin/grub-install", "usr/sbin/grub-mkconfig", "usr/sbin/mkfs.ext2", "usr/sbin/mkfs.ext3", "usr/sbin/mkfs.ext4",
				"usr/sbin/mkfs.vfat", "usr/sbin/mkfs.xfs", "usr/sbin/mkswap"},
			Network: "ifupdown",
		},
		Entries: 30_000,
		Bytes:   1 << 30,
	}
}

func testTarget() Target {
	return Target{
		Install: testInstall, Node: "node001", Domain: "cluster", Role: roleCompute, MAC: "52:54:00:AA:BB:01",
		Addr: netip.MustParsePrefix("10.77.0.11/24"), Gateway: netip.MustParseAddr("10.77.0.1"),
		DNS:    []netip.Addr{netip.MustParseAddr("10.77.0.1")},
		Server: "https://10.77.0.1:8443", Image: "head@3", ImageHead: debianHead(),
	}
}

func testHardware(fw Firmware, disks ...Disk) Hardware {
	return Hardware{Arch: "x86_64", Firmware: fw, Memory: 2<<30 - 30<<20, Disks: disks}
}

func vda(size int64) Disk {
	return Disk{Path: "/dev/vda", Size: size, Sector: 512, Bus: "virtio", Serial: "one"}
}

// headLayout is a head on a GPT disk of 20 GiB, with /home and swap.
func headLayout(esp bool) *imaging.Layout {
	l := &imaging.Layout{Table: "gpt", SectorSize: 512, DiskSize: 20 * gib, Partitions: []imaging.LayoutPartition{
		{Number: 1, Start: mib, Size: mib, Type: typeBIOSBoot, GUID: "AAAAAAAA-0000-4000-8000-000000000001", Name: "bios"},
		{Number: 2, Start: 2 * mib, Size: 8 * gib, Type: typeLinux, GUID: "AAAAAAAA-0000-4000-8000-000000000002", Name: "root",
			FS: &imaging.FileSystem{Type: "ext4", UUID: "11111111-0000-4000-8000-000000000002", Label: "root", Features: []string{"has_journal", "extent"}, Mount: "/", Options: "errors=remount-ro"}},
		{Number: 3, Start: 2*mib + 8*gib, Size: gib, Type: typeSwap, GUID: "AAAAAAAA-0000-4000-8000-000000000003",
			FS: &imaging.FileSystem{Type: "swap", UUID: "11111111-0000-4000-8000-000000000003", Options: "sw"}},
		{Number: 4, Start: 2*mib + 9*gib, Size: 11*gib - 4*mib, Type: typeLinux, GUID: "AAAAAAAA-0000-4000-8000-000000000004", Name: "home",
			FS: &imaging.FileSystem{Type: "xfs", UUID: "11111111-0000-4000-8000-000000000004", Features: []string{"crc=1"}, Mount: "/home", Options: "defaults"}},
	}}
	if esp {
		l.Partitions[0] = imaging.LayoutPartition{Number: 1, Start: mib, Size: 256 * mib, Type: typeESP, GUID: "AAAAAAAA-0000-4000-8000-000000000001", Name: "efi",
			FS: &imaging.FileSystem{Type: "vfat", UUID: "CAFE-0123", Features: []string{"fat32"}, Mount: "/boot/efi", Options: "umask=0077"}}
	}
	return l
}

func mbrLayout() *imaging.Layout {
	return &imaging.Layout{Table: "mbr", SectorSize: 512, DiskSize: 10 * gib, Partitions: []imaging.LayoutPartition{
		{Number: 1, Start: mib, Size: 9 * gib, Type: "0x83", GUID: "cafe0123-01",
			FS: &imaging.FileSystem{Type: "ext4", UUID: "11111111-0000-4000-8000-000000000001", Mount: "/", Options: "defaults"}},
		{Number: 2, Start: 9*gib + mib, Size: 100 * mib, Type: "0x8e", GUID: "cafe0123-02"},
		{Number: 5, Start: 9*gib + 101*mib, Size: 512 * mib, Type: "0x82", GUID: "cafe0123-05",
			FS: &imaging.FileSystem{Type: "swap", UUID: "11111111-0000-4000-8000-000000000005"}},
	}}
}

func TestMakePlanLayouts(t *testing.T) {
	layouts := []struct {
		name   string
		layout *imaging.Layout
	}{{"default", nil}, {"bios-head", headLayout(false)}, {"uefi-head", headLayout(true)}, {"mbr-head", mbrLayout()}}
	for _, l := range layouts {
		for _, fw := range []Firmware{BIOS, UEFI} {
			var text strings.Builder
			for _, size := range []int64{8 * gib, 20 * gib, 40*gib + 12345*512, 3 << 40} {
				target := testTarget()
				target.ImageHead.Layout = l.layout
				hw := testHardware(fw, vda(size))
				plan, err := MakePlan(target, hw)
				fmt.Fprintf(&text, "== %s, %s, disk of %s\n", l.name, fw, FormatBytes(size))
				if err != nil {
					fmt.Fprintf(&text, "%v\n", err)
					continue
				}
				text.WriteString(plan.String())
				checkPlan(t, plan)
				again, err := MakePlan(target, hw)
				if err != nil || !reflect.DeepEqual(plan, again) {
					t.Errorf("%s, %s: made twice, the plan is another: %v", l.name, fw, err)
				}
			}
			golden(t, fmt.Sprintf("plan-%s-%s.txt", l.name, fw), text.String())
		}
	}
}

// checkPlan sees that a plan's partitions lie on the disk, apart from each
// other, and that the firmware finds what it needs.
func checkPlan(t *testing.T, p *Plan) {
	t.Helper()
	end := firstByte
	boot, numbers, guids := false, map[int]bool{}, map[string]bool{}
	for _, q := range p.Partitions {
		if q.Start < end || q.Size <= 0 || q.Start%mib != 0 {
			t.Errorf("partition %+v begins before %d", q, end)
		}
		end = q.Start + q.Size
		if numbers[q.Number] || guids[q.GUID] || !guidForm.MatchString(q.GUID) {
			t.Errorf("partition %+v is named like another", q)
		}
		numbers[q.Number], guids[q.GUID] = true, true
		if q.FS != nil && q.FS.UUID == "" {
			t.Errorf("partition %+v has no UUID", q)
		}
		boot = boot || p.Firmware == BIOS && q.Type == typeBIOSBoot || p.Firmware == UEFI && q.Type == typeESP && q.FS.Mount != ""
	}
	if end > p.Disk.Size-lastBytes {
		t.Errorf("the last partition ends at %d of %d", end, p.Disk.Size)
	}
	if !boot {
		t.Errorf("%s firmware cannot start from %+v", p.Firmware, p.Partitions)
	}
	if p.FileSystemAt("/") == nil {
		t.Error("there is no root")
	}
}

func TestMakePlanDisks(t *testing.T) {
	fixed := func(path string, size int64) Disk {
		return Disk{Path: path, Size: size, Sector: 512, Bus: "sata", Serial: "S" + path[len(path)-1:], WWN: "0x500" + path[len(path)-1:], Links: []string{"/dev/disk/by-id/ata-" + path[len(path)-1:]}}
	}
	usb := fixed("/dev/sdu", 64*gib)
	usb.Bus = "usb"
	card := fixed("/dev/sdr", 64*gib)
	card.Removable = true
	locked := fixed("/dev/sdl", 64*gib)
	locked.ReadOnly = true
	mine := fixed("/dev/sdm", 64*gib)
	mine.GUID = strings.ToLower(testInstall)
	a, b, small := fixed("/dev/sda", 64*gib), fixed("/dev/sdb", 32*gib), fixed("/dev/sds", gib)

	var text strings.Builder
	for _, c := range []struct {
		what  string
		named string
		disks []Disk
	}{
		{"none", "", nil},
		{"one", "", []Disk{a}},
		{"one fit among others", "", []Disk{usb, card, locked, small, b}},
		{"two", "", []Disk{a, b}},
		{"two, and one carries the install", "", []Disk{a, mine}},
		{"one named, another carries the install", "/dev/sda", []Disk{a, mine}},
		{"too small", "", []Disk{small}},
		{"USB alone", "", []Disk{usb}},
		{"USB, named", "/dev/sdu", []Disk{usb, a}},
		{"by path without /dev", "sdb", []Disk{a, b}},
		{"by link", "/dev/disk/by-id/ata-b", []Disk{a, b}},
		{"by short link", "by-id/ata-b", []Disk{a, b}},
		{"by serial", "sb", []Disk{a, b}},
		{"by WWN", "500B", []Disk{a, b}},
		{"named, not there", "/dev/nvme0n1", []Disk{a, b}},
		{"named, too small", "/dev/sds", []Disk{a, small}},
		{"named, read-only", "/dev/sdl", []Disk{locked}},
	} {
		target := testTarget()
		target.Disk = c.named
		plan, err := MakePlan(target, testHardware(BIOS, c.disks...))
		if err != nil {
			var none *DiskError
			if !errors.As(err, &none) {
				t.Errorf("%s: the error is no *DiskError: %v", c.what, err)
			}
			fmt.Fprintf(&text, "%s: %v\n", c.what, err)
			continue
		}
		fmt.Fprintf(&text, "%s: %s, %s\n", c.what, plan.Disk, plan.DiskRule)
	}
	golden(t, "disks.txt", text.String())
}

func TestCheck(t *testing.T) {
	var text strings.Builder
	for _, c := range []struct {
		what   string
		change func(h *imaging.Head)
	}{
		{"all there", func(*imaging.Head) {}},
		{"no loaders", func(h *imaging.Head) { h.Boot.Loaders = nil }},
		{"no loaders on arm64", func(h *imaging.Head) { h.Boot.Loaders, h.Facts.Arch = nil, "aarch64" }},
		{"no kernel", func(h *imaging.Head) { h.Boot.Kernels = nil }},
		{"no initramfs", func(h *imaging.Head) { h.Boot.Kernels[0].Initrd = "" }},
		{"no tools", func(h *imaging.Head) { h.Boot.Tools = nil }},
		{"no xfs, needed for /home", func(h *imaging.Head) {
			h.Layout = headLayout(false)
			h.Boot.Tools = []string{"usr/sbin/grub-install", "sbin/mkfs.ext4", "sbin/mkswap", "sbin/mkfs.vfat"}
		}},
		{"nothing, on Red Hat's", func(h *imaging.Head) {
			h.Boot, h.Facts.OSRelease = imaging.Boot{}, map[string]string{"ID": "rocky", "ID_LIKE": "rhel centos fedora"}
		}},
	} {
		for _, fw := range []Firmware{BIOS, UEFI} {
			h := debianHead()
			c.change(&h)
			err := Check(h, fw)
			var refused *RefusedError
			if err != nil && !errors.As(err, &refused) {
				t.Errorf("%s: the error is no *RefusedError: %v", c.what, err)
			}
			fmt.Fprintf(&text, "%s, %s: %v\n", c.what, fw, err)
		}
	}
	golden(t, "check.txt", text.String())
}

func TestMakePlanRefuses(t *testing.T) {
	for what, change := range map[string]func(*Target, *Hardware){
		"architecture": func(_ *Target, hw *Hardware) { hw.Arch = "aarch64" },
		"firmware":     func(_ *Target, hw *Hardware) { hw.Firmware = "openfirmware" },
		"install":      func(tg *Target, _ *Hardware) { tg.Install = "../../x" },
		"role":         func(tg *Target, _ *Hardware) { tg.Role = "king" },
		"address":      func(tg *Target, _ *Hardware) { tg.Addr = netip.Prefix{} },
		"name":         func(tg *Target, _ *Hardware) { tg.Node = "" },
	} {
		target, hw := testTarget(), testHardware(BIOS, vda(8*gib))
		change(&target, &hw)
		if plan, err := MakePlan(target, hw); err == nil {
			t.Errorf("%s: made %v", what, plan)
		}
	}
}

func TestPartitionPath(t *testing.T) {
	for disk, want := range map[string]string{"/dev/vda": "/dev/vda3", "/dev/nvme0n1": "/dev/nvme0n1p3", "/dev/loop7": "/dev/loop7p3"} {
		if got := PartitionPath(disk, 3); got != want {
			t.Errorf("%s: got %s, want %s", disk, got, want)
		}
	}
}
