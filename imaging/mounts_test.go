package imaging

import (
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// inMountNamespace runs the test that calls it again in a mount namespace of
// its own, which ends with it and everything mounted there. It tells whether
// this is that run.
func inMountNamespace(t *testing.T) bool {
	t.Helper()
	needRoot(t)
	if os.Getenv("DOPPEL_TEST_NAMESPACE") == t.Name() {
		return true
	}
	cmd := exec.Command("/proc/self/exe", "-test.run=^"+t.Name()+"$", "-test.v")
	cmd.Env = append(os.Environ(), "DOPPEL_TEST_NAMESPACE="+t.Name())
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: unix.CLONE_NEWNS}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("in a mount namespace of its own: %v\n%s", err, out)
	}
	return false
}

func mountOn(t *testing.T, source, target, fs string, flags uintptr, data string) {
	t.Helper()
	must(t, os.MkdirAll(target, 0o755))
	if err := unix.Mount(source, target, fs, flags, data); err != nil {
		t.Fatalf("mount %s on %s: %v", source, target, err)
	}
}

// TestScanMounts walks a tree with real mounts in it.
func TestScanMounts(t *testing.T) {
	if !inMountNamespace(t) {
		return
	}
	root := t.TempDir()
	t.Cleanup(func() {
		for _, m := range []string{"stacked", "stacked", "again", "self", "inner", "outside", "bind/of tmpfs", "memory", "data/virtual"} {
			unix.Unmount(filepath.Join(root, m), unix.MNT_DETACH)
		}
	})
	elsewhere := t.TempDir()
	fill(t, elsewhere+"/file", []byte("from elsewhere on the same disk"))
	fill(t, root+"/data/sub/file", []byte("data"))
	fill(t, root+"/data/virtual/hidden", []byte("hidden by a mount"))
	fill(t, root+"/memory/hidden", []byte("hidden by a mount"))
	mountOn(t, "none", root+"/memory", "tmpfs", 0, "mode=0750,uid=5")
	fill(t, root+"/memory/file", []byte("x"))
	mountOn(t, "none", root+"/data/virtual", "proc", 0, "")
	mountOn(t, root+"/data", root+"/again", "", unix.MS_BIND, "")
	mountOn(t, root+"/data/sub", root+"/a bind before its origin", "", unix.MS_BIND, "")
	t.Cleanup(func() { unix.Unmount(root+"/a bind before its origin", unix.MNT_DETACH) })
	mountOn(t, elsewhere, root+"/outside", "", unix.MS_BIND, "")
	mountOn(t, root+"/memory", root+"/bind/of tmpfs", "", unix.MS_BIND, "")
	mountOn(t, elsewhere, root+"/stacked", "", unix.MS_BIND, "")
	mountOn(t, "none", root+"/stacked", "tmpfs", 0, "")

	c := scanDir(t, NewLocalTree(root), ScanRequest{})
	var files, opaque []string
	for _, e := range c.entries {
		if e.Kind == Regular {
			files = append(files, e.Path)
		}
		if e.Opaque {
			opaque = append(opaque, e.Path)
		}
	}
	if want := []string{"data/sub/file", "outside/file"}; !slices.Equal(files, want) {
		t.Errorf("files %q, want %q", files, want)
	}
	if want := []string{"a bind before its origin", "again", "bind/of tmpfs", "data/virtual", "memory", "stacked"}; !slices.Equal(opaque, want) {
		t.Errorf("left out %q, want %q", opaque, want)
	}
	if e := c.entry(t, "memory"); e.Mode != 0o750 || e.UID != 5 {
		t.Errorf("the mount point: %+v", e)
	}
	one := scanDir(t, NewLocalTree(root), ScanRequest{OneFileSystem: true})
	if e := one.entry(t, "outside"); !e.Opaque {
		t.Error("with one file system, another mount was entered")
	}
	// A root that is on tmpfs itself is taken all the same.
	memory := scanDir(t, NewLocalTree(root+"/memory"), ScanRequest{})
	if len(memory.entries) != 2 {
		t.Errorf("%d entries below a root on tmpfs", len(memory.entries))
	}
}

// TestMounts reads tables of machines that a test cannot be.
func TestMounts(t *testing.T) {
	lines := func(l ...string) string { return strings.Join(l, "\n") + "\n" }
	ext4 := "1 0 8:1 / / rw - ext4 /dev/sda1 rw"
	for name, c := range map[string]struct {
		table, root string
		excluded    string
		want        []string
	}{
		"a head": {table: lines(ext4,
			"2 1 0:5 / /proc rw - proc proc rw", "3 1 0:6 / /dev rw - devtmpfs udev rw", "4 3 0:7 / /dev/shm rw - tmpfs tmpfs rw",
			"5 1 8:2 / /home rw - ext4 /dev/sda2 rw", "6 1 8:3 / /boot/efi rw - vfat /dev/sda3 rw",
			"7 1 0:40 / /nfs rw - nfs4 server:/x rw", "8 1 0:41 / /scratch rw - lustre mgs@tcp:/x rw", "9 1 0:42 / /mnt/ssh rw - fuse.sshfs u@h: rw",
			"10 1 0:43 / /misc rw - autofs auto.misc rw", "11 1 7:0 / /snap/core/1 ro - squashfs /dev/loop0 ro", "12 1 0:44 / /var/lib/docker/overlay2/x/merged rw - overlay overlay rw"),
			root: "/", want: []string{"dev", "dev/shm", "misc", "mnt/ssh", "nfs", "proc", "scratch", "snap/core/1", "var/lib/docker/overlay2/x/merged"}},
		"blanks in names": {table: lines(ext4, `2 1 0:5 / /a\040b\011c\134 rw - tmpfs tmpfs rw`), root: "/", want: []string{"a b\tc\\"}},
		"bind":            {table: lines(ext4, "2 1 8:1 /home/data /srv/nfs rw - ext4 /dev/sda1 rw"), root: "/", want: []string{"srv/nfs"}},
		"bind of what is excluded": {table: lines(ext4, "2 1 8:1 /tmp/data /srv/nfs rw - ext4 /dev/sda1 rw"),
			root: "/", excluded: "tmp", want: nil},
		"bind of what is hidden":  {table: lines(ext4, "2 1 8:1 /mnt/old /srv/old rw - ext4 /dev/sda1 rw", "3 1 8:2 / /mnt rw - ext4 /dev/sda2 rw"), root: "/", want: nil},
		"bind from another mount": {table: lines(ext4, "2 1 8:2 / /home rw - ext4 /dev/sda2 rw", "3 1 8:2 /x /srv/x rw - ext4 /dev/sda2 rw"), root: "/", want: []string{"srv/x"}},
		"mounted twice":           {table: lines(ext4, "2 1 8:2 / /data rw - xfs /dev/sdb1 rw", "3 1 8:2 / /again rw - xfs /dev/sdb1 rw"), root: "/", want: []string{"again"}},
		"btrfs subvolumes": {table: lines("1 0 0:30 /@ / rw - btrfs /dev/sda1 rw", "2 1 0:30 /@home /home rw - btrfs /dev/sda1 rw", "3 1 0:30 / /mnt/top rw - btrfs /dev/sda1 rw"),
			root: "/", want: []string{"mnt/top/@", "mnt/top/@home"}},
		"chroot below": {table: lines(ext4, "2 1 0:5 / /proc rw - proc proc rw", "3 1 0:6 / /srv/root/proc rw - proc proc rw", "4 1 8:1 /srv/root/a /srv/root/b rw - ext4 /dev/sda1 rw"),
			root: "/srv/root", want: []string{"b", "proc"}},
		"root is a bind": {table: lines(ext4, "2 1 8:1 /srv /mnt/x rw - ext4 /dev/sda1 rw", "3 2 8:1 /srv/a /mnt/x/b rw - ext4 /dev/sda1 rw"),
			root: "/mnt/x", want: []string{"b"}},
		"sibling with the same beginning": {table: lines(ext4, "2 1 0:5 / /srv/root2 rw - tmpfs x rw"), root: "/srv/root", want: nil},
		"hidden mount":                    {table: lines(ext4, "2 1 0:5 / /a/b rw - tmpfs x rw", "3 1 8:2 / /a rw - ext4 /dev/sda2 rw"), root: "/", want: nil},
		"unknown type from a device":      {table: lines(ext4, "2 1 9:9 / /a rw - newfs /dev/x rw"), root: "/", want: nil},
		"unknown type":                    {table: lines(ext4, "2 1 9:9 / /a rw - newfs server rw"), root: "/", want: []string{"a"}},
		"empty":                           {table: "", root: "/", want: nil},
	} {
		t.Run(name, func(t *testing.T) {
			m, err := ReadMounts(strings.NewReader(c.table), c.root)
			must(t, err)
			left := m.left(func(p string) bool {
				return c.excluded != "" && (p == c.excluded || strings.HasPrefix(p, c.excluded+"/"))
			})
			if got := slices.Sorted(maps.Keys(left)); !slices.Equal(got, c.want) {
				t.Errorf("left out %q, want %q", got, c.want)
			}
		})
	}
}

func FuzzReadMounts(f *testing.F) {
	table, err := os.ReadFile("/proc/self/mountinfo")
	must(f, err)
	f.Add(table, "/")
	f.Add([]byte("1 2 8:1 / / rw - ext4 x\n2 1 8:1 / / rw - ext4 x\n"), "/a")
	f.Add([]byte(`1 1 0:1 /\040 /\0 rw - a`), "/")
	f.Fuzz(func(t *testing.T, table []byte, root string) {
		m, err := ReadMounts(strings.NewReader(string(table)), root)
		if err != nil || len(m.list) > 200 {
			return
		}
		for p := range m.left(func(string) bool { return false }) {
			if p == "" || strings.HasPrefix(p, "/") {
				t.Errorf("left out: %q", p)
			}
		}
	})
}
