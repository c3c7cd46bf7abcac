package clone_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"doppel/clone"
	"doppel/imaging"
	"doppel/imaging/store"
	"doppel/lab"
	resync "doppel/sync"
)

// command runs a program that sets up or judges a test, and gives what it
// printed.
func command(t *testing.T, args ...string) string {
	t.Helper()
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Env = append(os.Environ(), "PATH=/usr/sbin:/usr/bin:/sbin:/bin")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(string(out))
}

// ownMounts runs a test in a mount namespace of its own, by starting this
// program again for it alone, and tells whether this is that run. What other
// tests at work on this machine clone of the mounts they find would otherwise
// keep ours in use long after we have taken them down.
func ownMounts(t *testing.T) bool {
	t.Helper()
	const mark = "DOPPEL_TEST_OWN_MOUNTS"
	if os.Geteuid() != 0 {
		t.Fatal("this test makes disks and mounts: run it as root")
	}
	if os.Getenv(mark) != "" {
		return true
	}
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v", "-test.count=1")
	cmd.Env = append(os.Environ(), mark+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return false
}

// loopDisk is a blank disk of size bytes on a loop device.
func loopDisk(t *testing.T, size int64) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "disk.img")
	if err := os.WriteFile(name, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(name, size); err != nil {
		t.Fatal(err)
	}
	// -P: what takes the device down then drops its partitions, too.
	loop := command(t, "losetup", "-P", "-f", "--show", name)
	t.Cleanup(func() { command(t, "losetup", "-d", loop) })
	return loop
}

// what of a Debian tree an install and a start do not need.
var bulk = []string{"usr/lib/gcc", "usr/lib/git-core", "usr/lib/python3", "usr/lib/python3.11", "usr/share/doc", "usr/share/locale",
	"usr/share/man", "usr/share/perl", "usr/share/vim", "usr/share/i18n", "usr/include", "usr/lib/modules/*/kernel", "usr/lib/x86_64-linux-gnu/*.a", "var/lib/apt", "var/cache"}

// debianImage captures the lab's Debian tree.
func debianImage(t *testing.T) (*imaging.Manifest, *store.Vault) {
	t.Helper()
	ctx := t.Context()
	tree, err := lab.DebianTree(ctx, func(s string) { t.Log(s) })
	if err != nil {
		t.Fatal(err)
	}
	return captureTree(t, tree, bulk...)
}

// captureTree captures a tree, without what is named.
func captureTree(t *testing.T, tree string, without ...string) (*imaging.Manifest, *store.Vault) {
	t.Helper()
	ctx := t.Context()
	dir := filepath.Join(t.TempDir(), "state")
	for _, name := range []string{"cluster.key", "head.key"} {
		key, err := store.GenerateKey()
		if err != nil {
			t.Fatal(err)
		}
		if err := os.MkdirAll(filepath.Join(dir, "keys"), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := store.WriteKey(filepath.Join(dir, "keys", name), key); err != nil {
			t.Fatal(err)
		}
	}
	c, err := imaging.OpenCatalog(dir, imaging.CatalogOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := imaging.Capture(ctx, c, imaging.NewLocal(tree), imaging.CaptureOptions{Name: "head", Root: tree, Exclude: without}); err != nil {
		t.Fatal(err)
	}
	v, err := c.Resolve(ctx, "head@latest")
	if err != nil {
		t.Fatal(err)
	}
	m, err := c.Manifest(ctx, v)
	if err != nil {
		t.Fatal(err)
	}
	vault, err := c.Vault(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return m, vault
}

// TestInstallOnDisk installs a Debian on a real disk, cut off in each of its
// stages and continued, and has the disk judged by other programs.
func TestInstallOnDisk(t *testing.T) {
	if !ownMounts(t) {
		return
	}
	image, vault := debianImage(t)
	disk := loopDisk(t, 3<<30)
	plan, err := clone.MakePlan(clone.Target{
		Install: "0B5EC7ED-0000-4000-8000-00000000C10E", Node: "node001", Domain: "cluster", Role: "compute", MAC: "52:54:00:aa:bb:01",
		Addr: netip.MustParsePrefix("10.77.0.11/24"), Server: "https://10.77.0.1:8443", Image: "head@1", ImageHead: image.Head,
	}, clone.Hardware{Arch: "x86_64", Firmware: clone.BIOS, Memory: 1 << 30, Disks: []clone.Disk{{Path: disk, Size: 3 << 30, Sector: 512}}})
	if err != nil {
		t.Fatal(err)
	}
	work := t.TempDir()
	for _, stop := range []clone.Stage{clone.StagePartition, clone.StageFormat, clone.StageApply, clone.StageBootloader, ""} {
		cut := errors.New("the power is cut")
		ctx, cancel := context.WithCancelCause(t.Context())
		err := clone.Install(ctx, clone.NewLinux(), plan, image, vault, clone.InstallOptions{
			Work: work, Agent: []byte("#!/bin/sh\n"),
			Certificate: func(context.Context) (clone.Credentials, error) {
				return clone.Credentials{Certificate: []byte("crt"), Key: []byte("key"), CA: []byte("ca")}, nil
			},
			Report: func(r clone.Report) {
				// In the midst of it: after a file system, after some files.
				if r.Stage == stop && (r.Detail != "" || stop == clone.StagePartition || stop == clone.StageBootloader) && (stop != clone.StageApply || r.Done > r.Total/3) {
					cancel(cut)
				}
			},
		})
		cancel(nil)
		if stop == "" && err != nil {
			t.Fatal(err)
		}
		if stop != "" && !errors.Is(err, cut) {
			t.Fatalf("cut at stage %s: %v", stop, err)
		}
		if mounts := command(t, "findmnt", "-rno", "TARGET"); strings.Contains(mounts, work) {
			t.Fatalf("cut at stage %q: left mounted:\n%s", stop, mounts)
		}
	}
	judgeDisk(t, disk, plan)
	judgeTree(t, disk, plan, image)
}

// judgeDisk has the table and the superblocks read by those who wrote the
// formats.
func judgeDisk(t *testing.T, disk string, plan *clone.Plan) {
	t.Helper()
	if said := command(t, "sgdisk", "-v", disk); !strings.Contains(said, "No problems found") {
		t.Errorf("sgdisk says:\n%s", said)
	}
	if said := command(t, "sgdisk", "-p", disk); !strings.Contains(said, plan.ID) {
		t.Errorf("the disk's GUID is not %s:\n%s", plan.ID, said)
	}
	for _, p := range plan.Partitions {
		node := clone.PartitionPath(disk, p.Number)
		if p.FS == nil {
			continue
		}
		if id := command(t, "blkid", "-p", "-o", "value", "-s", "UUID", node); id != p.FS.UUID {
			t.Errorf("%s has the UUID %s, want %s", node, id, p.FS.UUID)
		}
		if p.FS.Type == "ext4" {
			command(t, "e2fsck", "-f", "-n", node)
		}
	}
	// GRUB's first sector leads to its core in the BIOS boot partition.
	f, err := os.Open(disk)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	boot := make([]byte, 440)
	if _, err := f.ReadAt(boot, 0); err != nil {
		t.Fatal(err)
	}
	core := make([]byte, 64<<10)
	if _, err := f.ReadAt(core, plan.Partitions[0].Start); err != nil {
		t.Fatal(err)
	}
	if !bytes.Contains(boot, []byte("GRUB")) || !bytes.Contains(core[:512], []byte("loading")) {
		t.Error("GRUB is not on the disk")
	}
}

// judgeTree compares what is on the disk with the image: equal but for the
// table of identity files.
func judgeTree(t *testing.T, disk string, plan *clone.Plan, image *imaging.Manifest) {
	t.Helper()
	dir := t.TempDir()
	root := plan.FileSystemAt("/")
	if err := unix.Mount(clone.PartitionPath(disk, root.Number), dir, "ext4", unix.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := clone.NewLinux().Unmount(context.WithoutCancel(t.Context()), dir); err != nil {
			t.Error(err)
		}
	}()
	table := clone.Identity("compute")
	r, err := resync.Drift(t.Context(), image, dir, func(p string, d imaging.Difference) (string, bool) {
		rule, ok := table.Match(p)
		return rule.Words, ok || d.Kind == imaging.DiffMTime && table.Holds(p)
	}, imaging.CompareOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range r.Differences {
		t.Errorf("differs: %+v", d)
	}
	for name, want := range map[string]string{
		"etc/hostname":           "node001\n",
		"etc/fstab":              "UUID=" + root.FS.UUID + " / ext4 defaults 0 1",
		"boot/grub/grub.cfg":     "root=UUID=" + root.FS.UUID,
		"etc/doppel/node/ca.crt": "ca",
		"etc/systemd/system/multi-user.target.wants/doppel-agent.service": "ExecStart=/usr/lib/doppel/doppel-agent node",
	} {
		if strings.Contains(name, ".wants/") {
			to, err := os.Readlink(filepath.Join(dir, name))
			if err != nil {
				t.Error(err)
				continue
			}
			name = strings.TrimPrefix(to, "/")
		}
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil || !strings.Contains(string(b), want) {
			t.Errorf("%s lacks %q: %v\n%s", name, want, err, b)
		}
	}
	if kernels, err := filepath.Glob(filepath.Join(dir, "boot/grub/i386-pc/*.mod")); err != nil || len(kernels) < 100 {
		t.Errorf("GRUB has %d modules, %v", len(kernels), err)
	}
	for _, key := range []string{"rsa", "ecdsa", "ed25519"} {
		command(t, "ssh-keygen", "-l", "-f", filepath.Join(dir, "etc/ssh/ssh_host_"+key+"_key"))
	}
}

// TestWriteTable writes the tables of every kind of plan to a disk full of
// other things, and has them judged.
func TestWriteTable(t *testing.T) {
	if !ownMounts(t) {
		return
	}
	m := clone.NewLinux()
	disk := loopDisk(t, 512<<20)
	command(t, "mkfs.ext4", "-q", "-F", disk)
	plan := &clone.Plan{ID: "0B5EC7ED-0000-4000-8000-00000000C10E", Disk: clone.Disk{Path: disk, Size: 512 << 20, Sector: 512}, Partitions: []clone.Partition{
		{Number: 1, Start: 1 << 20, Size: 1 << 20, Type: "21686148-6449-6E6F-744E-656564454649", GUID: "AAAAAAAA-0000-4000-8000-000000000001", Name: strings.Repeat("☃", 40)},
		{Number: 3, Start: 2 << 20, Size: 509 << 20, Type: "0FC63DAF-8483-4772-8E79-3D69D8477DE4", GUID: "AAAAAAAA-0000-4000-8000-000000000003", Name: "root", Attributes: 4},
	}}
	ctx := t.Context()
	if guid, err := clone.ReadDiskGUID(ctx, disk); err != nil || guid != "" {
		t.Fatalf("a disk without a table has the GUID %q, %v", guid, err)
	}
	for range 2 {
		if err := m.WriteTable(ctx, plan); err != nil {
			t.Fatal(err)
		}
		if err := m.OpenPartitions(ctx, plan); err != nil {
			t.Fatal(err)
		}
		if err := m.OpenPartitions(ctx, plan); err != nil {
			t.Fatalf("a second time: %v", err)
		}
	}
	if said := command(t, "sgdisk", "-v", disk); !strings.Contains(said, "No problems found") {
		t.Errorf("sgdisk says:\n%s", said)
	}
	if size := command(t, "blockdev", "--getsize64", clone.PartitionPath(disk, 3)); size != fmt.Sprint(509<<20) {
		t.Errorf("the kernel shows a partition of %s bytes", size)
	}
	guid, err := clone.ReadDiskGUID(ctx, disk)
	if err != nil || guid != plan.ID {
		t.Errorf("the GUID is %q, %v", guid, err)
	}
	// The record survives on the disk, and goes with the next table.
	want := clone.Record{Plan: plan.ID, Formatted: []string{"one", "two"}}
	if err := m.WriteRecord(ctx, plan, want); err != nil {
		t.Fatal(err)
	}
	if got, err := m.ReadRecord(ctx, plan); err != nil || !slices.Equal(got.Formatted, want.Formatted) {
		t.Errorf("the record is %+v, %v", got, err)
	}
	if err := m.WriteTable(ctx, plan); err != nil {
		t.Fatal(err)
	}
	if got, err := m.ReadRecord(ctx, plan); err != nil || len(got.Formatted) != 0 {
		t.Errorf("after a new table the record is %+v, %v", got, err)
	}
	if err := m.OpenPartitions(ctx, plan); err != nil {
		t.Fatal(err)
	}
	// A disk in use is not touched.
	dir := t.TempDir()
	node := clone.PartitionPath(disk, 3)
	command(t, "mkfs.ext4", "-q", node)
	if err := unix.Mount(node, dir, "ext4", 0, ""); err != nil {
		t.Fatal(err)
	}
	err = m.WriteTable(ctx, plan)
	if uerr := m.Unmount(ctx, dir); uerr != nil {
		t.Fatal(uerr)
	}
	if !errors.Is(err, unix.EBUSY) {
		t.Errorf("a mounted disk was partitioned: %v", err)
	}
	command(t, "e2fsck", "-f", "-n", node)
}
