package imaging

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

func mkfifo(tb testing.TB, path string) {
	tb.Helper()
	must(tb, unix.Mkfifo(path, 0o600))
}

func run(tb testing.TB, name string, args ...string) string {
	tb.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		tb.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
	return string(out)
}

// mountAt mounts with mount(8) for as long as the test runs.
func mountAt(tb testing.TB, dir string, args ...string) {
	tb.Helper()
	needRoot(tb)
	run(tb, "mount", append(args, dir)...)
	tb.Cleanup(func() { run(tb, "umount", dir) })
}

// memory is a directory whose files are only in memory, where it is not the
// disk that a test is about.
func memory(tb testing.TB) string {
	tb.Helper()
	dir := tb.TempDir()
	mountAt(tb, dir, "-t", "tmpfs", "tmpfs")
	return dir
}

// image makes a file system in a file and mounts it.
func image(tb testing.TB, kind, size string) (dir, file string) {
	tb.Helper()
	top := tb.TempDir()
	dir, file = filepath.Join(top, "mnt"), filepath.Join(top, "image")
	must(tb, os.Mkdir(dir, 0o755))
	run(tb, "truncate", "-s", size, file)
	run(tb, "mkfs."+kind, "-q", file)
	mountAt(tb, dir, "-o", "loop", file)
	return dir, file
}

func TestApplyDoesNotFit(t *testing.T) {
	dir, _ := image(t, "ext4", "16M")
	x := newTree()
	x.file("big", strings.Repeat("x", 32<<20))
	_, err := Apply(t.Context(), x.m(), x.chunks, dir, ApplyOptions{Delete: true})
	var space *SpaceError
	if !errors.As(err, &space) || space.Need != 32<<20 || space.Have < 1<<20 || space.Have > 16<<20 || space.Path != dir {
		t.Errorf("error %v", err)
	}
	if x.chunks.given > 0 {
		t.Error("content was read before it was found not to fit")
	}

	x = newTree()
	for i := range 10_000 {
		x.file(fmt.Sprint("f", i), "")
	}
	_, err = Apply(t.Context(), x.m(), x.chunks, dir, ApplyOptions{Delete: true})
	if !errors.As(err, &space) || !space.Inodes {
		t.Errorf("error %v", err)
	}
}

// What replaces a file has to lie beside it for a moment. Statfs cannot say
// that there is no room for both.
func TestApplyRunsOutOfSpace(t *testing.T) {
	dir, _ := image(t, "ext4", "16M")
	x := newTree()
	x.file("big", strings.Repeat("x", 8<<20))
	x.file("small", "small")
	x.apply(t, dir, ApplyOptions{Delete: true})
	x.equal(t, dir)
	y := newTree()
	var content strings.Builder
	for i := range 1 << 20 {
		fmt.Fprintf(&content, "%07x\n", i)
	}
	y.file("big", content.String())
	_, err := Apply(t.Context(), y.m(), y.chunks, dir, ApplyOptions{Full: true})
	if !errors.Is(err, unix.ENOSPC) || !strings.Contains(err.Error(), "big") {
		t.Errorf("error %v", err)
	}
	if left := temps(t, dir); len(left) > 0 {
		t.Errorf("temporary files left: %q", left)
	}
	if read(t, filepath.Join(dir, "big")) != strings.Repeat("x", 8<<20) {
		t.Error("the old file is not whole any more")
	}
	x.apply(t, dir, ApplyOptions{Delete: true})
	x.equal(t, dir)
}

func TestApplyDeleteStaysOnItsMounts(t *testing.T) {
	needRoot(t)
	x, dir := sample(), t.TempDir()
	x.dir("data")
	x.dir("data/in")
	x.apply(t, dir, ApplyOptions{})
	in := func(name string) string { return filepath.Join(dir, name) }
	// One file system over a directory of the image, one below a directory
	// that the image lacks, and a bind mount, which has the same device.
	must(t, os.MkdirAll(in("extra/deep/mnt"), 0o755), os.MkdirAll(in("extra/bind"), 0o755))
	elsewhere := t.TempDir()
	write(t, filepath.Join(elsewhere, "precious"), "x")
	write(t, in("extra/goes"), "x")
	mountAt(t, in("data"), "-t", "tmpfs", "tmpfs")
	mountAt(t, in("extra/deep/mnt"), "-t", "tmpfs", "tmpfs")
	mountAt(t, in("extra/bind"), "--bind", elsewhere)
	write(t, in("data/precious"), "x")
	write(t, in("extra/deep/mnt/precious"), "x")
	dry := changes(t, x, dir, ApplyOptions{Delete: true, DryRun: true})
	got := changes(t, x, dir, ApplyOptions{Delete: true})
	if want := []string{"extra/goes"}; !slices.Equal(got[ActDelete], want) || !slices.Equal(dry[ActDelete], want) {
		t.Errorf("deleted %q, dry %q", got[ActDelete], dry[ActDelete])
	}
	for _, path := range []string{in("data/precious"), in("extra/deep/mnt/precious"), filepath.Join(elsewhere, "precious")} {
		read(t, path)
	}
	diffs, err := CompareTree(t.Context(), x.m(), dir, CompareOptions{})
	must(t, err)
	var extra []string
	for _, d := range diffs {
		extra = append(extra, string(d.Kind)+" "+d.Path)
	}
	want := []string{"extra data/precious", "extra extra", "extra extra/bind", "extra extra/bind/precious",
		"extra extra/deep", "extra extra/deep/mnt", "extra extra/deep/mnt/precious"}
	if !slices.Equal(extra, want) {
		t.Errorf("differences %q", extra)
	}
}

func TestApplyLeavesLostAndFound(t *testing.T) {
	dir, _ := image(t, "ext4", "16M")
	x := sample()
	x.apply(t, dir, ApplyOptions{Delete: true})
	x.equal(t, dir)
	if _, err := os.Lstat(filepath.Join(dir, "lost+found")); err != nil {
		t.Error(err)
	}
	// It is special only where a file system is mounted.
	sub := filepath.Join(dir, "etc")
	must(t, os.Mkdir(filepath.Join(sub, "lost+found"), 0o700))
	x.apply(t, dir, ApplyOptions{Delete: true})
	if _, err := os.Lstat(filepath.Join(sub, "lost+found")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("etc/lost+found is there: %v", err)
	}
}

// ext4 with inodes of 128 bytes has neither nanoseconds nor times after 2038:
// a loss that is listed, and no reason to write such files again and again.
func TestApplyTimesThatCannotBe(t *testing.T) {
	top := t.TempDir()
	dir, file := filepath.Join(top, "mnt"), filepath.Join(top, "image")
	must(t, os.Mkdir(dir, 0o755))
	run(t, "truncate", "-s", "16M", file)
	run(t, "mkfs.ext4", "-q", "-I", "128", file)
	mountAt(t, dir, "-o", "loop", file)
	x := newTree()
	x.file("late", "x").MTime = Time{Sec: 1 << 33}
	r := x.apply(t, dir, ApplyOptions{})
	if r.Lost == 0 || !slices.ContainsFunc(r.Losses, func(l Loss) bool { return l.Path == "late" && l.What == "mtime" }) {
		t.Errorf("report %+v", r)
	}
	if r = x.apply(t, dir, ApplyOptions{}); r.Written != 0 {
		t.Errorf("second report %+v", r)
	}
}

// unprivileged is the tree that TestApplyUnprivileged gives to its child.
func unprivileged() *tree {
	x := newTree()
	x.file("plain", "plain").UID = 12
	x.file("setgid", "x").Mode = 0o2755
	x.at("setgid").GID = 7
	x.file("caps", "x").Xattrs = []Xattr{{"security.capability", []byte("\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00")}, {"user.mine", []byte("1")}}
	x.at("caps").Mode = 0o444
	x.dir("closed").Mode = 0o500
	x.file("closed/in", "in")
	x.dir("shut").Mode = 0
	x.file("shut/in", "in")
	x.dir("shut/deeper").Mode = 0
	x.add(Entry{Path: "null", Kind: CharDevice, Mode: 0o666, Major: 1, Minor: 3})
	x.link("null2", "null")
	x.add(Entry{Path: "link", Kind: Symlink, Mode: 0o777, Target: "plain", UID: 12})
	sortEntries(x.list)
	return x
}

// TestApplyUnprivilegedChild does nothing unless TestApplyUnprivileged runs it
// as another user.
func TestApplyUnprivilegedChild(t *testing.T) {
	dir := os.Getenv("DOPPEL_TEST_UNPRIVILEGED")
	if dir == "" {
		return
	}
	r, err := Apply(t.Context(), unprivileged().m(), unprivileged().chunks, dir, ApplyOptions{Delete: true})
	must(t, err, json.NewEncoder(os.Stderr).Encode(r))
}

func TestApplyUnprivileged(t *testing.T) {
	needRoot(t)
	const nobody = 65534
	dir := filepath.Join(t.TempDir(), "root")
	must(t, os.Chmod(filepath.Dir(filepath.Dir(dir)), 0o755), os.Mkdir(dir, 0o755), os.Chown(dir, nobody, nobody))
	apply := func() ApplyReport {
		t.Helper()
		cmd := exec.Command("/proc/self/exe", "-test.run=^TestApplyUnprivilegedChild$")
		cmd.Env = append(os.Environ(), "DOPPEL_TEST_UNPRIVILEGED="+dir)
		cmd.Dir = "/"
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
		var stderr strings.Builder
		cmd.Stderr = &stderr
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("as nobody: %v\n%s%s", err, out, stderr.String())
		}
		var r ApplyReport
		if err := json.Unmarshal([]byte(stderr.String()), &r); err != nil {
			t.Fatalf("report %q: %v", stderr.String(), err)
		}
		return r
	}
	for round := range 2 {
		r := apply()
		got := map[string]bool{}
		for _, l := range r.Losses {
			got[l.Path+" "+l.What] = true
		}
		for _, want := range []string{"plain owner", "caps xattr security.capability", "null character device", "null2 hard link", "link owner", "setgid owner", "setgid mode"} {
			if !got[want] {
				t.Errorf("round %d: %q is not among the losses %v", round, want, r.Losses)
			}
		}
		if r.Lost != int64(len(r.Losses)) || round > 0 && (r.BytesWritten > 0 || r.Deleted > 0) {
			t.Errorf("round %d: report %+v", round, r)
		}
		// Nothing but what had to be lost is different: owners here are
		// those of this test, which are not the child's.
		diffs, err := CompareTree(t.Context(), unprivileged().m(), dir, CompareOptions{})
		must(t, err)
		for _, d := range diffs {
			if d.Kind != DiffOwner && !got[d.Path+" "+string(d.Kind)] && d.Path != "caps" && !strings.HasPrefix(d.Path, "null") {
				t.Errorf("round %d: differs: %v", round, d)
			}
		}
	}
}

// A ramfs, which an initramfs may be, has no extended attributes at all.
func TestApplyLossy(t *testing.T) {
	x, dir := newTree(), t.TempDir()
	mountAt(t, dir, "-t", "ramfs", "ramfs")
	x.file("file", "x").Xattrs = []Xattr{{"security.capability", []byte("\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00")}}
	_, err := Apply(t.Context(), x.m(), x.chunks, dir, ApplyOptions{})
	if !errors.Is(err, unix.EOPNOTSUPP) || !strings.Contains(err.Error(), "security.capability of file") {
		t.Errorf("error %v", err)
	}
	r := x.apply(t, dir, ApplyOptions{Lossy: true})
	if r.Lost != 1 || read(t, filepath.Join(dir, "file")) != "x" {
		t.Errorf("report %+v", r)
	}
}

// TestApplyOwnersBeforeModes: a change of owner drops what makes a program
// privileged, so it must not come last.
func TestApplyOwnersBeforeModes(t *testing.T) {
	needRoot(t)
	x, dir := newTree(), t.TempDir()
	capability := Xattr{"security.capability", []byte("\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00")}
	sudo := x.file("sudo", "sudo")
	sudo.Mode, sudo.UID, sudo.GID, sudo.Xattrs = 0o6755, 3, 4, []Xattr{capability}
	x.apply(t, dir, ApplyOptions{})
	x.equal(t, dir)
	must(t, os.Chown(filepath.Join(dir, "sudo"), 9, 9))
	must(t, os.Chmod(filepath.Join(dir, "sudo"), 0o6755|os.ModeSetuid|os.ModeSetgid))
	must(t, unix.Setxattr(filepath.Join(dir, "sudo"), capability.Name, capability.Value, 0))
	if r := x.apply(t, dir, ApplyOptions{}); r.Fixed != 1 || r.Written != 0 {
		t.Errorf("report %+v", r)
	}
	x.equal(t, dir)
}

// Default ACLs are passed on to what is made in a directory, temporary files
// included, and have to be taken away again.
func TestApplyInDirectoryWithDefaultACL(t *testing.T) {
	needRoot(t)
	x, dir := sample(), t.TempDir()
	must(t, os.Mkdir(filepath.Join(dir, "etc"), 0o755))
	run(t, "setfacl", "-d", "-m", "u:7:rwx,g:8:rx", filepath.Join(dir, "etc"))
	x.apply(t, dir, ApplyOptions{})
	x.equal(t, dir)
	if acl := run(t, "getfacl", "-cps", filepath.Join(dir, "etc/passwd")); strings.Contains(acl, "user:7") {
		t.Errorf("the file has the ACL %s", acl)
	}
}
