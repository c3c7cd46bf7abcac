package clone_test

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"doppel/clone"
	"doppel/imaging"
)

// withoutGRUB is a real machine, but for GRUB, of which the test's tree has
// none: grub-mkconfig names the root and the kernel, and that is all.
type withoutGRUB struct {
	*clone.Linux
	root string // its UUID
}

func (m withoutGRUB) Run(ctx context.Context, c clone.Command) error {
	switch name := filepath.Base(c.Args[0]); {
	case name == "grub-mkconfig":
		text := "search --fs-uuid " + m.root + "\nlinux /boot/vmlinuz-6.1.0-1-amd64\n"
		return os.WriteFile(filepath.Join(c.Root, "boot/grub/grub.cfg"), []byte(text), 0o600)
	case strings.HasPrefix(name, "grub-"):
		return nil
	}
	return m.Linux.Run(ctx, c)
}

// toolTree is a tree that has what an install looks for: this machine's own
// programs that make file systems, with what they are loaded with.
func toolTree(t *testing.T) string {
	t.Helper()
	root := t.TempDir()
	put := func(name string, b []byte, mode os.FileMode) {
		t.Helper()
		at := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(at), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(at, b, mode); err != nil {
			t.Fatal(err)
		}
	}
	bring := func(name string) {
		t.Helper()
		b, err := os.ReadFile(name) // through links
		if err != nil {
			t.Fatal(err)
		}
		put(name, b, 0o755)
	}
	for _, tool := range []string{"/usr/sbin/mkfs.ext4", "/usr/sbin/mkfs.xfs", "/usr/sbin/mkswap"} {
		bring(tool)
		out, err := exec.Command("ldd", tool).CombinedOutput()
		if err != nil {
			t.Fatalf("ldd %s: %v\n%s", tool, err, out)
		}
		for _, word := range strings.Fields(string(out)) {
			if strings.HasPrefix(word, "/") {
				bring(word)
			}
		}
	}
	for name, text := range map[string]string{
		"boot/vmlinuz-6.1.0-1-amd64": "kernel", "boot/initrd.img-6.1.0-1-amd64": "initramfs", "boot/grub/grubenv": "",
		"usr/lib/modules/6.1.0-1-amd64/modules.dep": "", "usr/sbin/grub-install": "#!", "usr/sbin/grub-mkconfig": "#!",
		"usr/lib/grub/i386-pc/kernel.img": "", "usr/lib/grub/i386-pc/moddep.lst": "", "usr/lib/grub/i386-pc/normal.mod": "", "usr/lib/grub/i386-pc/boot.img": "",
		"etc/mke2fs.conf": "[fs_types]\n\text4 = {\n\t}\n", "etc/hostname": "head\n", "etc/hosts": "127.0.0.1 localhost\n", "etc/network/interfaces": "", "usr/sbin/ifup": "#!",
		"etc/systemd/system/keep": "", "etc/os-release": "ID=debian\n", "etc/shadow": "root:*:19000:0:99999:7:::\n",
		"etc/fstab":       "UUID=11111111-0000-4000-8000-000000000002 / ext4 errors=remount-ro 0 1\nUUID=11111111-0000-4000-8000-000000000003 none swap sw 0 0\nUUID=11111111-0000-4000-8000-000000000004 /home xfs nodev 0 2\n",
		"home/alice/note": "on XFS\n",
	} {
		put(name, []byte(text), 0o644)
	}
	if err := os.Chown(filepath.Join(root, "home/alice/note"), 1234, 4_000_000_000); err != nil {
		t.Fatal(err)
	}
	command(t, "setfacl", "-m", "u:99:rw", filepath.Join(root, "home/alice/note"))
	for _, dir := range []string{"dev", "proc", "sys", "run"} {
		if err := os.Mkdir(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

// TestInstallOwnLayout installs a head's own layout on a larger real disk: a
// root of ext4, swap, and a /home of XFS that grows, with the head's UUIDs and
// its fstab, judged by those who wrote the formats.
func TestInstallOwnLayout(t *testing.T) {
	if !ownMounts(t) {
		return
	}
	const mib, size = 1 << 20, 1 << 30
	tree := toolTree(t)
	image, vault := captureTree(t, tree)
	image.Layout = &imaging.Layout{Table: "gpt", SectorSize: 512, DiskSize: 640 * mib, Partitions: []imaging.LayoutPartition{
		{Number: 1, Start: mib, Size: mib, Type: "21686148-6449-6E6F-744E-656564454649", GUID: "AAAAAAAA-0000-4000-8000-000000000001", Name: "bios"},
		{Number: 2, Start: 2 * mib, Size: 200 * mib, Type: "0FC63DAF-8483-4772-8E79-3D69D8477DE4", GUID: "AAAAAAAA-0000-4000-8000-000000000002", Name: "root",
			FS: &imaging.FileSystem{Type: "ext4", UUID: "11111111-0000-4000-8000-000000000002", Label: "wurzel", Features: []string{"has_journal", "extent", "filetype", "sparse_super"}, Mount: "/", Options: "errors=remount-ro"}},
		{Number: 3, Start: 202 * mib, Size: 64 * mib, Type: "0657FD6D-A4AB-43C4-84E5-0933C84B4F4F", GUID: "AAAAAAAA-0000-4000-8000-000000000003", Name: "swap",
			FS: &imaging.FileSystem{Type: "swap", UUID: "11111111-0000-4000-8000-000000000003", Label: "aus", Options: "sw"}},
		{Number: 4, Start: 266 * mib, Size: 320 * mib, Type: "0FC63DAF-8483-4772-8E79-3D69D8477DE4", GUID: "AAAAAAAA-0000-4000-8000-000000000004", Name: "home",
			FS: &imaging.FileSystem{Type: "xfs", UUID: "11111111-0000-4000-8000-000000000004", Label: "heim", Features: []string{"crc=1", "reflink=0", "bigtime=0"}, Mount: "/home", Options: "nodev"}},
	}}
	disk := loopDisk(t, size)
	plan, err := clone.MakePlan(clone.Target{
		Install: "0B5EC7ED-0000-4000-8000-00000000C10E", Node: "node001", Domain: "cluster", Role: "compute", MAC: "52:54:00:aa:bb:01",
		Addr: netip.MustParsePrefix("10.77.0.11/24"), Server: "https://10.77.0.1:8443", Image: "head@1", ImageHead: image.Head,
	}, clone.Hardware{Arch: "x86_64", Firmware: clone.BIOS, Memory: 1 << 30, Disks: []clone.Disk{{Path: disk, Size: size, Sector: 512}}})
	if err != nil {
		t.Fatal(err)
	}
	err = clone.Install(t.Context(), withoutGRUB{clone.NewLinux(), plan.FileSystemAt("/").FS.UUID}, plan, image, vault, clone.InstallOptions{
		Work: t.TempDir(), Agent: []byte("#!/bin/sh\n"),
		Certificate: func(context.Context) (clone.Credentials, error) {
			return clone.Credentials{Certificate: []byte("crt"), Key: []byte("key"), CA: []byte("ca")}, nil
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	if said := command(t, "sgdisk", "-v", disk); !strings.Contains(said, "No problems found") {
		t.Errorf("sgdisk says:\n%s", said)
	}
	var found []string
	for n := 2; n <= 4; n++ {
		node := clone.PartitionPath(disk, n)
		tag := func(name string) string { return command(t, "blkid", "-p", "-o", "value", "-s", name, node) }
		found = append(found, fmt.Sprintf("%d %s %s %s", n, tag("TYPE"), tag("UUID"), tag("LABEL")))
	}
	want := []string{
		"2 ext4 11111111-0000-4000-8000-000000000002 wurzel", "3 swap 11111111-0000-4000-8000-000000000003 aus", "4 xfs 11111111-0000-4000-8000-000000000004 heim",
	}
	if fmt.Sprint(found) != fmt.Sprint(want) {
		t.Errorf("the disk holds %q, want %q", found, want)
	}
	root, home := clone.PartitionPath(disk, 2), clone.PartitionPath(disk, 4)
	command(t, "e2fsck", "-f", "-n", root)
	command(t, "xfs_repair", "-n", home)
	// What comes last on the disk takes what the head's disk did not have.
	for node, want := range map[string]int64{root: 200 * mib, home: size - 267*mib} {
		if got := command(t, "blockdev", "--getsize64", node); got != fmt.Sprint(want) {
			t.Errorf("%s has %s bytes, want %d", node, got, want)
		}
	}
	if info := command(t, "xfs_info", home); !strings.Contains(info, "reflink=0") || !strings.Contains(info, "bigtime=0") {
		t.Errorf("XFS has other features:\n%s", info)
	}
	dir, into := t.TempDir(), t.TempDir()
	mountReadOnly(t, root, dir, "ext4")
	defer unix.Unmount(dir, 0)
	mountReadOnly(t, home, into, "xfs")
	defer unix.Unmount(into, 0)
	if diff := command(t, "rsync", "-aAXHn", "--numeric-ids", "--checksum", "--delete", "--itemize-changes", "--filter=-x trusted.SGI_ACL_*", tree+"/home/", into+"/"); diff != "" {
		t.Errorf("/home differs:\n%s", diff)
	}
	if fstab, err := os.ReadFile(filepath.Join(dir, "etc/fstab")); err != nil || !strings.Contains(string(fstab), "UUID=11111111-0000-4000-8000-000000000004 /home xfs nodev") {
		t.Errorf("fstab is %q, %v", fstab, err)
	}
	if list, err := os.ReadDir(filepath.Join(dir, "home")); err != nil || len(list) > 0 {
		t.Errorf("beneath /home the root holds %v, %v", list, err)
	}
}

func mountReadOnly(t *testing.T, node, dir, kind string) {
	t.Helper()
	if err := unix.Mount(node, dir, kind, unix.MS_RDONLY, ""); err != nil {
		t.Fatalf("mount %s: %v", node, err)
	}
}
