package snapshot

import (
	"bytes"
	"context"
	_ "embed"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"doppel/imaging"
	"doppel/lab"
)

//go:embed guest.sh
var guestScript string

// guestVar tells this binary that it is in the machine.
const guestVar = "DOPPEL_SNAPSHOT_GUEST"

// TestLVM needs a kernel with device mapper: it runs once more, in a machine
// that has one.
func TestLVM(t *testing.T) {
	if os.Getenv(guestVar) == "" {
		inGuest(t)
		return
	}
	t.Run("thick", testThick)
	t.Run("thin", testThin)
	t.Run("killed", testVolumesKilled)
	t.Run("killed while one is taken", testKilledInCreate)
	t.Run("full snapshot", testFullSnapshot)
	t.Run("full group", testFullGroup)
}

var guestPackages = []string{"linux-image-cloud-amd64", "lvm2", "thin-provisioning-tools", "xfsprogs", "e2fsprogs", "busybox", "kmod"}

// inGuest boots a kernel with an initramfs that holds this test, and what it
// needs from a Debian tree, and wants the test to pass there.
func inGuest(t *testing.T) {
	tree, err := lab.DebianTreeOf(t.Context(), "minbase", guestPackages, func(s string) { t.Log(s) })
	must(t, err)
	root := filepath.Join(t.TempDir(), "root")
	for _, dir := range []string{"bin", "sbin", "proc", "sys", "dev", "run", "tmp", "etc/lvm", "mnt", "usr/bin", "usr/sbin"} {
		must(t, os.MkdirAll(filepath.Join(root, dir), 0o755))
	}
	build := exec.Command("go", "test", "-c", "-o", filepath.Join(root, "snapshot.test"), "doppel/imaging/snapshot")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, name := range []string{"bin/busybox", "usr/sbin/lvm", "usr/sbin/mke2fs", "usr/sbin/mkfs.xfs", "usr/sbin/thin_check"} {
		bring(t, tree, root, name)
	}
	must(t, os.Symlink("mke2fs", filepath.Join(root, "usr/sbin/mkfs.ext4")))
	bring(t, tree, root, "etc/mke2fs.conf")
	modules, err := filepath.Glob(filepath.Join(tree, "lib/modules/*"))
	if err != nil || len(modules) != 1 {
		t.Fatalf("kernels: %q", modules)
	}
	rel, _ := filepath.Rel(tree, modules[0])
	for _, part := range []string{"kernel/drivers/md", "kernel/drivers/block", "kernel/fs/xfs", "kernel/lib", "modules.dep", "modules.alias", "modules.builtin", "modules.symbols"} {
		must(t, os.MkdirAll(filepath.Dir(filepath.Join(root, rel, part)), 0o755))
		run(t, "cp", "-a", filepath.Join(modules[0], part), filepath.Join(root, rel, part))
	}
	write(t, filepath.Join(root, "etc/lvm/lvm.conf"), "activation {\nudev_sync = 0\nudev_rules = 0\n}\ndevices {\nobtain_device_list_from_udev = 0\nuse_devicesfile = 0\n}\n")
	must(t, os.WriteFile(filepath.Join(root, "init"), []byte(guestScript), 0o755))
	initrd := root + ".cpio"
	run(t, "sh", "-euc", `cd "$1"; find . | cpio --quiet -o -H newc >"$2"`, "sh", root, initrd)

	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	kernels, _ := filepath.Glob(filepath.Join(tree, "boot/vmlinuz-*"))
	cmd := exec.CommandContext(ctx, "qemu-system-x86_64", "-machine", "q35,accel=tcg", "-cpu", "max", "-smp", "2", "-m", "1024", "-nodefaults", "-display", "none",
		"-serial", "stdio", "-no-reboot", "-kernel", kernels[0], "-initrd", initrd, "-append", "console=ttyS0 quiet panic=-1 random.trust_cpu=on")
	cmd.SysProcAttr = &unix.SysProcAttr{Pdeathsig: unix.SIGKILL}
	var console bytes.Buffer
	cmd.Stdout, cmd.Stderr = &console, &console
	stdin, err := cmd.StdinPipe() // an open one, or QEMU sees the end of its console
	must(t, err)
	defer stdin.Close()
	if err := cmd.Run(); err != nil || !strings.Contains(console.String(), "the tests ended with 0\r") {
		t.Fatalf("%v\n%s", err, console.String())
	}
	t.Log(console.String())
}

// bring copies a file of the tree, and the libraries it is linked with.
func bring(t *testing.T, tree, root, name string) {
	t.Helper()
	copyOf := func(name string) {
		real := name // links in the tree are followed in the tree
		for range 10 {
			target, err := os.Readlink(filepath.Join(tree, real))
			if err != nil {
				break
			}
			if filepath.IsAbs(target) {
				real = target
			} else {
				real = filepath.Join(filepath.Dir(real), target)
			}
		}
		to := filepath.Join(root, name)
		must(t, os.MkdirAll(filepath.Dir(to), 0o755))
		run(t, "cp", filepath.Join(tree, real), to)
	}
	copyOf(name)
	out, _ := exec.Command("chroot", tree, "ldd", "/"+name).CombinedOutput() // it fails for what is no program
	for word := range strings.FieldsSeq(string(out)) {
		if strings.HasPrefix(word, "/lib") && !strings.HasSuffix(word, ":") {
			copyOf(strings.TrimPrefix(word, "/"))
		}
	}
}

// group makes a volume group of so many MiB on a loop device over memory.
func group(t *testing.T, name string, mib int) {
	t.Helper()
	file := filepath.Join("/tmp", name)
	run(t, "truncate", "-s", fmt.Sprintf("%dM", mib), file)
	device := strings.TrimSpace(run(t, "losetup", "-f"))
	run(t, "losetup", device, file)
	run(t, "lvm", "vgcreate", "--yes", name, device)
	t.Cleanup(func() {
		run(t, "lvm", "vgremove", "--yes", "--force", name)
		run(t, "losetup", "-d", device)
		must(t, os.Remove(file))
	})
}

// thick makes a logical volume with a file system and mounts it.
func thick(t *testing.T, vg, name, fs string, mib int, dir string) string {
	t.Helper()
	run(t, "lvm", "lvcreate", "--yes", "--size", fmt.Sprintf("%dM", mib), "--name", name, vg)
	run(t, "mkfs."+fs, "-q", "/dev/"+vg+"/"+name)
	return mount(t, dir, "-t", fs, "/dev/"+vg+"/"+name)
}

// noVolumes fails the test when a snapshot is left.
func noVolumes(t *testing.T) {
	t.Helper()
	if list := run(t, "lvm", "lvs", "--all"); strings.Contains(list, prefix) {
		t.Errorf("volumes are left:\n%s", list)
	}
	if list, _ := filepath.Glob("/sys/block/dm-*/dm/name"); len(list) > 0 {
		for _, name := range list {
			if b, _ := os.ReadFile(name); strings.Contains(string(b), "doppel") {
				t.Errorf("%s is left", b)
			}
		}
	}
	clean(t, "")
}

// ordered writes a number into a and then into z, again and again, until the
// function it gives is called.
func ordered(t *testing.T, root string) (stop func()) {
	ctx, cancel := context.WithCancel(t.Context())
	var writing sync.WaitGroup
	names := [2]string{filepath.Join(root, "a"), filepath.Join(root, "z")}
	write(t, names[0], "0")
	write(t, names[1], "0")
	writing.Go(func() {
		for n := 1; ctx.Err() == nil; n++ {
			for _, name := range names {
				if err := os.WriteFile(name+".new", []byte(strconv.Itoa(n)), 0o644); err == nil {
					_ = os.Rename(name+".new", name) // what is there is in order, whatever fails
				}
			}
		}
	})
	return func() { cancel(); writing.Wait() }
}

func inOrder(t *testing.T, s *sink) {
	t.Helper()
	a, err := strconv.Atoi(s.content(t, "a"))
	must(t, err)
	z, err := strconv.Atoi(s.content(t, "z"))
	must(t, err)
	if z > a {
		t.Errorf("a is %d, z is %d: the image is of no instant", a, z)
	}
}

func fillTree(t *testing.T, root string) {
	t.Helper()
	for i := range 40 {
		write(t, filepath.Join(root, fmt.Sprintf("m/%d", i)), strings.Repeat(fmt.Sprint(i, " "), 5000))
	}
}

// ext4 and XFS on volumes of one group: the same image as live, and of one
// instant each while somebody writes.
func testThick(t *testing.T) {
	group(t, "vg", 900)
	root := thick(t, "vg", "root", "ext4", 100, "/mnt/root")
	thick(t, "vg", "data", "xfs", 320, "/mnt/root/data")
	fillTree(t, root)
	fillTree(t, root+"/data")
	c := catalog(t)
	live := capture(t, c, root, imaging.Consistency{})
	r := capture(t, c, root, require)
	if !r.Unchanged || r.Digest != live.Digest || len(r.Consistency) != 2 || r.Partial() {
		t.Errorf("%+v", r)
	}
	t.Log(r.Consistency)
	noVolumes(t)

	stop := ordered(t, root)
	defer stop()
	s := &sink{}
	must(t, scan(t.Context(), root, require, s))
	inOrder(t, s)
	stop = join(stop, ordered(t, root+"/data"))
	s = &sink{}
	must(t, scan(t.Context(), root+"/data", require, s))
	inOrder(t, s)
	stop()
	noVolumes(t)
}

func join(a, b func()) func() { return func() { a(); b() } }

func testThin(t *testing.T) {
	group(t, "vg", 300)
	run(t, "lvm", "lvcreate", "--yes", "--type", "thin-pool", "--size", "200M", "--poolmetadatasize", "8M", "--name", "pool", "vg")
	run(t, "lvm", "lvcreate", "--yes", "--thin", "--virtualsize", "400M", "--name", "root", "vg/pool")
	run(t, "mkfs.ext4", "-q", "/dev/vg/root")
	root := mount(t, "/mnt/thin", "-t", "ext4", "/dev/vg/root")
	fillTree(t, root)
	c := catalog(t)
	live := capture(t, c, root, imaging.Consistency{})
	r := capture(t, c, root, require)
	if !r.Unchanged || r.Digest != live.Digest || len(r.Consistency) != 1 || r.Consistency[0].Detail != "the thin volume vg/root" {
		t.Errorf("%+v", r)
	}
	stop := ordered(t, root)
	defer stop()
	s := &sink{}
	must(t, scan(t.Context(), root, require, s))
	inOrder(t, s)
	stop()
	noVolumes(t)
}

func testVolumesKilled(t *testing.T) {
	group(t, "vg", 200)
	root := thick(t, "vg", "root", "ext4", 100, "/mnt/killed")
	fillTree(t, root)
	spec := workSpec{Root: root, How: require, Until: "instant"}

	w := startWorker(t, spec)
	kill(t, w.cmd.Process.Pid)
	w.wait(t)
	awaitEnd(t, w.keeper)
	noVolumes(t)

	w = startWorker(t, spec)
	kill(t, w.keeper)
	if said := w.wait(t); !strings.Contains(said, "the process that keeps snapshots has ended") {
		t.Errorf("the worker said %q", said)
	}
	noVolumes(t)

	w = startWorker(t, spec)
	must(t, unix.Kill(w.cmd.Process.Pid, unix.SIGSTOP))
	kill(t, w.keeper, w.cmd.Process.Pid)
	w.wait(t)
	awaitEnd(t, w.keeper)
	if list := run(t, "lvm", "lvs"); !strings.Contains(list, prefix) {
		t.Error("nothing was left that could be removed")
	}
	must(t, scan(t.Context(), root, require, &sink{}))
	noVolumes(t)
}

// A keeper that is killed while lvcreate runs leaves it running, and what it
// makes is found.
func testKilledInCreate(t *testing.T) {
	group(t, "vg", 200)
	root := thick(t, "vg", "root", "ext4", 100, "/mnt/create")
	fillTree(t, root)
	// An lvm that stops at lvcreate until it is let go on.
	must(t, unix.Mkfifo("/tmp/begun", 0o600), unix.Mkfifo("/tmp/go", 0o600), os.MkdirAll("/real", 0o755), os.Rename("/usr/sbin/lvm", "/real/lvm"))
	defer func() { must(t, os.Rename("/real/lvm", "/usr/sbin/lvm")) }()
	must(t, os.WriteFile("/usr/sbin/lvm", []byte("#!/bin/sh\nif [ $1 = lvcreate ]; then echo >/tmp/begun; read x </tmp/go; fi\nexec /real/lvm \"$@\"\n"), 0o755))
	failed := make(chan error, 1)
	go func() { failed <- scan(context.Background(), root, require, &sink{}) }()
	begun := make(chan error, 1)
	go func() {
		_, err := os.ReadFile("/tmp/begun")
		begun <- err
	}()
	select {
	case err := <-begun:
		must(t, err)
	case err := <-failed:
		t.Fatalf("there was no lvcreate: %v", err)
	}
	k := keepers()
	if len(k) != 1 {
		t.Fatalf("keepers: %v", k)
	}
	kill(t, k[0])
	awaitEnd(t, k[0])
	select {
	case err := <-failed:
		t.Errorf("it did not wait for lvcreate: %v", err)
	default:
	}
	must(t, os.WriteFile("/tmp/go", []byte("\n"), 0))
	if err := <-failed; err == nil || !strings.Contains(err.Error(), "the process that keeps snapshots has ended") {
		t.Errorf("error %v", err)
	}
	noVolumes(t)
}

// A snapshot that has no more room holds anything: there is no image of it.
func testFullSnapshot(t *testing.T) {
	group(t, "vg", 200)
	root := thick(t, "vg", "root", "ext4", 100, "/mnt/full")
	fillTree(t, root)
	write(t, root+"/old", strings.Repeat("x", 40<<20))
	unix.Sync()
	s := &sink{}
	s.onNote = func(_ context.Context, n imaging.Note) {
		if n.Kind == imaging.NoteInstant {
			f, err := os.OpenFile(root+"/old", os.O_WRONLY, 0)
			must(t, err)
			_, err = f.Write(bytes.Repeat([]byte("y"), 40<<20))
			must(t, err, f.Sync(), f.Close())
		}
	}
	err := scan(t.Context(), root, require, s)
	if err == nil || !strings.Contains(err.Error(), "was full before it was read") || !strings.Contains(err.Error(), "nothing was captured") {
		t.Errorf("error %v", err)
	}
	noVolumes(t)
}

func testFullGroup(t *testing.T) {
	group(t, "vg", 104)
	root := thick(t, "vg", "root", "ext4", 100, "/mnt/group")
	fillTree(t, root)
	err := scan(t.Context(), root, require, &sink{})
	if err == nil || !strings.Contains(err.Error(), "no snapshot of "+root+": the volume group vg has 0 MiB free, too little for a snapshot of vg/root") {
		t.Errorf("error %v", err)
	}
	s := &sink{}
	must(t, scan(t.Context(), root, auto, s))
	if s.noted() != "live ., instant ." || s.entry("m/1") == nil {
		t.Errorf("notes: %s", s.noted())
	}
	noVolumes(t)
}
