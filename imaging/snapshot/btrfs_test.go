package snapshot

import (
	"context"
	"errors"
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
)

// furnish gives a tree of btrfs what makes it hard: nested subvolumes, one in
// the other, one read-only, one mounted over; files with several names; mounts
// of other kinds; a directory mounted in two places.
func furnish(t *testing.T, root string) {
	t.Helper()
	in := func(name string) string { return filepath.Join(root, name) }
	for i := range 50 {
		write(t, in(fmt.Sprintf("etc/file%d", i)), strings.Repeat(strconv.Itoa(i), 1000*i))
	}
	write(t, in("home/user/file"), "home")
	for _, sub := range []string{"srv", "srv/data", "srv/data/deep", "var", "over"} {
		must(t, os.MkdirAll(filepath.Dir(in(sub)), 0o755))
		run(t, "btrfs", "-q", "subvolume", "create", in(sub))
		write(t, in(sub+"/in"), sub)
	}
	run(t, "btrfs", "-q", "subvolume", "snapshot", "-r", in("var"), in("fixed"))
	must(t, os.Mkdir(in("dir"), 0o750), os.Link(in("etc/file3"), in("dir/linked")), os.Symlink("etc/file1", in("link")))
	must(t, unix.Setxattr(in("dir"), "user.test", []byte("x"), 0))
	mount(t, in("memory"), "-t", "tmpfs", "-o", "mode=0711", "tmpfs")
	write(t, in("memory/not"), "in the image")
	mount(t, in("over"), "-t", "tmpfs", "-o", "mode=0700", "tmpfs")
	mount(t, in("again"), "--bind", in("etc"))
	mount(t, in("bind/deep"), "--bind", in("srv/data"))
}

// A tree that is quiet gives the same image, live and through snapshots, knows
// its files again either way, and is left as it was.
func TestSameImage(t *testing.T) {
	root, top := btrfs(t)
	furnish(t, root)
	for name, dir := range map[string]string{"root subvolume": root, "directory in it": filepath.Join(root, "srv"), "top level": top} {
		t.Run(name, func(t *testing.T) {
			c := catalog(t)
			live := capture(t, c, dir, imaging.Consistency{})
			for last := time.Now(); ; {
				settled := time.Since(last) > 3*time.Second // what changed lately is read again
				r := capture(t, c, dir, require)
				if !r.Unchanged || r.BytesRead != 0 && settled || r.Entries != live.Entries {
					a, b := &sink{}, &sink{}
					must(t, scan(t.Context(), dir, imaging.Consistency{}, a), scan(t.Context(), dir, require, b))
					for i := range min(len(a.entries), len(b.entries)) {
						if x, y := fmt.Sprintf("%+v", a.entries[i]), fmt.Sprintf("%+v", b.entries[i]); x != y {
							t.Errorf("live %s\nsnap %s", x, y)
						}
					}
					t.Errorf("unchanged: %v, read %d, %d entries, live %d", r.Unchanged, r.BytesRead, r.Entries, live.Entries)
				}
				if len(r.Consistency) == 0 || r.Partial() {
					t.Errorf("notes: %+v", r.Consistency)
				}
				if settled || t.Failed() {
					break
				}
			}
			if r := capture(t, c, dir, imaging.Consistency{}); !r.Unchanged {
				t.Error("the captures have changed the tree")
			}
			clean(t, top)
		})
	}
}

// Nothing is seen that comes after the snapshots, and what is written in order
// is so in the image.
func TestInstant(t *testing.T) {
	root, top := btrfs(t)
	// In the order of the scan, with enough between them.
	first, last := filepath.Join(root, "a"), filepath.Join(root, "z")
	write(t, first, "0")
	write(t, last, "0")
	for i := range 200 {
		write(t, filepath.Join(root, fmt.Sprintf("m/%d", i)), strings.Repeat(fmt.Sprint(i, " "), 5000))
	}
	ctx, stop := context.WithCancel(t.Context())
	var writing sync.WaitGroup
	writing.Go(func() {
		for n := 1; ctx.Err() == nil; n++ {
			for _, name := range []string{first, last} {
				if err := errors.Join(os.WriteFile(name+".new", []byte(strconv.Itoa(n)), 0o644), os.Rename(name+".new", name)); err != nil {
					t.Error(err)
				}
			}
		}
	})
	defer writing.Wait()
	defer stop()
	broken := func(s *sink) bool {
		a, err := strconv.Atoi(s.content(t, "a"))
		must(t, err)
		z, err := strconv.Atoi(s.content(t, "z"))
		must(t, err)
		if z > a {
			t.Logf("a is %d, z is %d", a, z)
		}
		return z > a
	}
	for range 10 {
		s := &sink{}
		must(t, scan(t.Context(), root, require, s))
		if broken(s) {
			t.Error("the image is of no instant")
		}
		if s.noted() != "snapshot ., snapshot home, instant ." {
			t.Errorf("notes: %s", s.noted())
		}
		if strings.Contains(s.paths(), prefix) {
			t.Error("the snapshot is in the image")
		}
	}
	// Read live, it would be.
	torn := false
	for range 20 {
		s := &sink{}
		must(t, scan(t.Context(), root, imaging.Consistency{}, s))
		torn = torn || broken(s)
		if torn {
			break
		}
	}
	if !torn {
		t.Error("this test cannot fail: not even live captures are torn")
	}
	stop()
	writing.Wait()
	clean(t, top)
}

// A subvolume that is made after the plan is left out, not shown empty.
func TestNestedSubvolumeThatCameLate(t *testing.T) {
	root, top := btrfs(t)
	write(t, filepath.Join(root, "file"), "x")
	k := testKeeper()
	mounts, err := imaging.NewLocalTree(root).Mounts(t.Context())
	must(t, err)
	p, err := k.makePlan(t.Context(), mounts, imaging.ScanRequest{Root: root, Consistency: auto})
	must(t, err)
	run(t, "btrfs", "-q", "subvolume", "create", filepath.Join(root, "late"))
	write(t, filepath.Join(root, "late/file"), "x")
	session, err := k.start(t.Context(), p)
	must(t, err)
	s := &sink{}
	must(t, session.run(t.Context(), mounts, s, func(ctx context.Context, tree imaging.Tree) error {
		return imaging.ScanTree(ctx, tree, imaging.ScanRequest{Root: root}, s)
	}))
	if s.entry("late") != nil || !strings.Contains(s.noted(), "vanished late") {
		t.Errorf("entries: %s; notes: %s", s.paths(), s.noted())
	}
	clean(t, top)
}

func TestExcludedSubvolumesAreNotSnapshotted(t *testing.T) {
	root, top := btrfs(t)
	furnish(t, root)
	mounts, err := imaging.NewLocalTree(root).Mounts(t.Context())
	must(t, err)
	p, err := testKeeper().makePlan(t.Context(), mounts, imaging.ScanRequest{Root: root, Exclude: []string{"srv/data"}, Consistency: auto})
	must(t, err)
	var got []string
	for _, e := range p.Parts {
		if e.FS == "btrfs" {
			got = append(got, fmt.Sprintf("%s:%v:%v", e.Path, e.Nested, e.Read))
		}
	}
	want := ".:false:true fixed:true:true srv:true:true var:true:true srv/data:true:false home:false:true again:false:false bind/deep:false:true bind/deep/deep:true:true"
	if strings.Join(got, " ") != want {
		t.Errorf("parts\n%s, want\n%s", strings.Join(got, " "), want)
	}
	clean(t, top)
}

// Whoever is killed, nothing is left: at once, or when both are, after the next
// capture.
func TestKilled(t *testing.T) {
	root, top := btrfs(t)
	furnish(t, root)
	spec := workSpec{Root: root, How: require, Until: "instant"}

	w := startWorker(t, spec)
	kill(t, w.cmd.Process.Pid)
	w.wait(t)
	awaitEnd(t, w.keeper)
	clean(t, top)

	w = startWorker(t, spec)
	kill(t, w.keeper)
	if said := w.wait(t); !strings.Contains(said, "the process that keeps snapshots has ended (signal: killed)") {
		t.Errorf("the worker said %q", said)
	}
	clean(t, top)

	// The end of the capturing end is that of the input.
	w = startWorker(t, spec)
	must(t, w.stdin.Close())
	if said := w.wait(t); said != "context canceled" {
		t.Errorf("the worker said %q", said)
	}
	clean(t, top)

	w = startWorker(t, spec)
	must(t, unix.Kill(w.keeper, unix.SIGTERM))
	if said := w.wait(t); !strings.Contains(said, "has ended") {
		t.Errorf("the worker said %q", said)
	}
	clean(t, top)

	w = startWorker(t, spec)
	must(t, unix.Kill(w.cmd.Process.Pid, unix.SIGSTOP)) // so that it cannot do anything about the other
	kill(t, w.keeper, w.cmd.Process.Pid)
	w.wait(t)
	awaitEnd(t, w.keeper)
	if left, _ := filepath.Glob(filepath.Join(top, prefix+"*", "*")); len(left) == 0 {
		t.Error("nothing was left that could be removed")
	}
	s := &sink{}
	must(t, scan(t.Context(), root, require, s))
	clean(t, top)
	if strings.Contains(s.noted(), string(imaging.NoteLeft)) {
		t.Errorf("notes: %s", s.noted())
	}
}

// What the host unmounts meanwhile, though it is no part of the tree, is not held
// by the keeper; and what it mounts is not seen.
func TestHostUnmounts(t *testing.T) {
	root, top := btrfs(t)
	write(t, filepath.Join(root, "file"), "x")
	shared := mount(t, t.TempDir(), "-t", "tmpfs", "tmpfs")
	run(t, "mount", "--make-shared", shared)
	usb := filepath.Join(shared, "usb")
	must(t, os.Mkdir(usb, 0o755))
	run(t, "mount", "-t", "tmpfs", "tmpfs", usb)
	w := startWorker(t, workSpec{Root: root, How: require, Until: "instant"})
	table := func() string {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", w.keeper))
		must(t, err)
		return string(b)
	}
	if !strings.Contains(table(), " "+usb+" ") {
		t.Errorf("the keeper does not see %s:\n%s", usb, table())
	}
	run(t, "umount", usb)
	if strings.Contains(table(), " "+usb+" ") {
		t.Errorf("the keeper holds %s:\n%s", usb, table())
	}
	must(t, w.stdin.Close())
	w.wait(t)
	clean(t, top)
}

// A capture of the live tree does not see what others have left or have.
func TestLiveCaptureSeesNoSnapshots(t *testing.T) {
	root, top := btrfs(t)
	write(t, filepath.Join(root, "file"), "x")
	w := startWorker(t, workSpec{Root: root, How: require, Until: "instant"})
	s := &sink{}
	must(t, scan(t.Context(), top, imaging.Consistency{}, s))
	if strings.Contains(s.paths(), prefix) || s.entry("@/file") == nil {
		t.Errorf("entries: %s", s.paths())
	}
	must(t, w.stdin.Close())
	w.wait(t)
	clean(t, top)
}

// What another capture has is not taken away from it.
func TestTwoAtOnce(t *testing.T) {
	root, top := btrfs(t)
	write(t, filepath.Join(root, "file"), "x")
	w := startWorker(t, workSpec{Root: root, How: require, Until: "instant"})
	s := &sink{}
	must(t, scan(t.Context(), top, require, s))
	if strings.Contains(s.paths(), prefix) {
		t.Errorf("the snapshots of one are in the image of the other: %s", s.paths())
	}
	if list := run(t, "btrfs", "subvolume", "list", top); !strings.Contains(list, prefix) {
		t.Error("the snapshots were taken away")
	}
	must(t, w.stdin.Close())
	w.wait(t)
	clean(t, top)
}

func TestRequireNamesWhatHasNone(t *testing.T) {
	root, top := btrfs(t)
	device := disk(t, "ext4", "32M")
	mount(t, filepath.Join(root, "srv/plain"), device)
	write(t, filepath.Join(root, "srv/plain/file"), "x")
	err := scan(t.Context(), root, require, &sink{})
	if err == nil || !strings.Contains(err.Error(), "no snapshot of "+root+"/srv/plain: ext4 on "+device+", which is neither btrfs nor a logical volume") || !strings.Contains(err.Error(), "--exclude") {
		t.Errorf("error %v", err)
	}
	clean(t, top)

	s := &sink{}
	must(t, scan(t.Context(), root, auto, s))
	if s.noted() != "snapshot ., snapshot home, live srv/plain, instant ." || s.content(t, "srv/plain/file") != "x" {
		t.Errorf("notes: %s", s.noted())
	}
	clean(t, top)
}

// What a scan that fails has is given back, too.
func TestScanThatFails(t *testing.T) {
	root, top := btrfs(t)
	why := errors.New("the disk is full")
	src := imaging.NewLocal(root, imaging.WithAround(func(ctx context.Context, live *imaging.LocalTree, req imaging.ScanRequest, sink imaging.Sink, scan func(context.Context, imaging.Tree) error) error {
		return testKeeper().Around(ctx, live, req, sink, func(context.Context, imaging.Tree) error { return why })
	}))
	if err := src.Scan(t.Context(), imaging.ScanRequest{Consistency: require}, &sink{}); err != why {
		t.Errorf("error %v", err)
	}
	clean(t, top)
}

// Where no keeper can be had, as in a container whose root may not mount, auto
// reads the live tree and says why.
func TestNoKeeper(t *testing.T) {
	root := t.TempDir()
	write(t, filepath.Join(root, "file"), "x")
	k := &Keeper{Command: []string{"/nonexistent"}}
	for how, want := range map[imaging.SnapshotMode]string{imaging.SnapshotAuto: "live ., instant .", imaging.SnapshotRequire: "start the keeper of snapshots, with mounts of its own"} {
		s := &sink{}
		err := imaging.NewLocal(root, imaging.WithAround(k.Around)).Scan(t.Context(), imaging.ScanRequest{Consistency: imaging.Consistency{Snapshot: how}}, s)
		got := s.noted()
		if err != nil {
			got = err.Error()
		}
		if !strings.Contains(got, want) || (err == nil) != (s.entry("file") != nil) {
			t.Errorf("%v: %s", how, got)
		}
	}
}

func TestKeeperByHand(t *testing.T) {
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), roleVar+"="+keeperRole)
	out, err := cmd.CombinedOutput()
	if err == nil || !strings.Contains(string(out), "of no use by hand") {
		t.Errorf("%v: %s", err, out)
	}
}
