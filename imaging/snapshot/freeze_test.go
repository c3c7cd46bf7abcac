package snapshot

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"doppel/imaging"
)

// frozen tells whether the file system mounted at dir is frozen.
func frozen(t testing.TB, dir string) bool {
	t.Helper()
	fd, err := openDir(dir)
	must(t, err)
	defer unix.Close(fd)
	err = unix.IoctlSetInt(fd, fiFreeze, 0)
	if err == unix.EBUSY {
		return true
	}
	must(t, err, thawAt(fd))
	return false
}

// plain makes a tree with a file system of its own at db, which holds enough to
// be read for a while.
func plain(t *testing.T, kind string) (root, db string) {
	t.Helper()
	device := disk(t, kind, "400M")
	root = t.TempDir()
	db = mount(t, filepath.Join(root, "db"), device)
	write(t, filepath.Join(root, "file"), "x")
	b := make([]byte, 64<<20)
	for i := range b {
		b[i] = byte(i * i >> 8)
	}
	for i := range len(b) / 4096 {
		copy(b[i*4096:], time.Duration(i).String()) // no two chunks are the same
	}
	write(t, filepath.Join(db, "large"), string(b))
	write(t, filepath.Join(db, "zz/small"), "x")
	return root, db
}

func TestFreeze(t *testing.T) {
	for _, kind := range []string{"ext4", "xfs"} {
		t.Run(kind, func(t *testing.T) {
			root, db := plain(t, kind)
			writer := exec.Command("touch", filepath.Join(db, "zz/new"))
			s := &sink{}
			s.onBlock = func(context.Context) {
				if writer.Process == nil {
					if !frozen(t, db) {
						t.Error("it is not frozen while it is read")
					}
					must(t, writer.Start())
				}
			}
			must(t, scan(t.Context(), root, imaging.Consistency{Freeze: []string{db}}, s))
			must(t, writer.Wait())
			if s.noted() != "frozen db" || s.entry("db/zz/new") != nil || s.content(t, "db/zz/small") != "x" {
				t.Errorf("notes: %s; entries: %s", s.noted(), s.paths())
			}
			if frozen(t, db) {
				t.Error("it is still frozen")
			}
			clean(t, "")

			// The same image as live, and with snapshots where there are any.
			c := catalog(t)
			capture(t, c, root, imaging.Consistency{})
			r := capture(t, c, root, imaging.Consistency{Freeze: []string{db}, Snapshot: imaging.SnapshotAuto})
			if !r.Unchanged || r.Partial() || len(r.Consistency) != 2 || r.Consistency[0].Kind != imaging.NoteLive || r.Consistency[1].Kind != imaging.NoteFrozen {
				t.Errorf("report %+v", r)
			}
		})
	}
}

// When the bound is over, it is thawed whatever the capture is doing, and the
// report says so.
func TestFreezeBound(t *testing.T) {
	root, db := plain(t, "ext4")
	s := &sink{}
	s.onBlock = func(context.Context) { await(t, "it is thawed", func() bool { return !frozen(t, db) }) }
	must(t, scan(t.Context(), root, imaging.Consistency{Freeze: []string{db}, FreezeFor: 300 * time.Millisecond}, s))
	if s.noted() != "thawed db" || !strings.HasPrefix(s.notes[0].Detail, "thawed after 300ms") {
		t.Errorf("notes: %+v", s.notes)
	}
	if s.entry("db/zz/small") == nil {
		t.Error("the capture did not go on")
	}
	r := &imaging.CaptureReport{Consistency: s.notes}
	if !r.Partial() {
		t.Error("the report calls that whole")
	}
	clean(t, "")
}

func TestKilledWhileFrozen(t *testing.T) {
	for _, kind := range []string{"ext4", "xfs"} {
		t.Run(kind, func(t *testing.T) {
			root, db := plain(t, kind)
			spec := workSpec{Root: root, How: imaging.Consistency{Freeze: []string{db}, FreezeFor: imaging.MaxFreeze}, Until: "block"}
			start := func() *worker {
				t.Helper()
				w := startWorker(t, spec)
				if !frozen(t, db) {
					t.Error("it is not frozen")
				}
				return w
			}
			w := start()
			kill(t, w.cmd.Process.Pid)
			w.wait(t)
			awaitEnd(t, w.keeper)
			if frozen(t, db) {
				t.Error("it is frozen after the worker was killed")
			}
			clean(t, "")

			w = start()
			kill(t, w.keeper)
			if said := w.wait(t); !strings.Contains(said, "the process that keeps snapshots has ended (signal: killed)") {
				t.Errorf("the worker said %q", said)
			}
			if frozen(t, db) {
				t.Error("it is frozen after the keeper was killed")
			}
			clean(t, "")

			w = start()
			must(t, unix.Kill(w.cmd.Process.Pid, unix.SIGSTOP))
			kill(t, w.keeper, w.cmd.Process.Pid)
			w.wait(t)
			awaitEnd(t, w.keeper)
			if !frozen(t, db) {
				t.Error("nobody was left to thaw it, and yet it is")
			}
			// The next capture, whatever it is asked for.
			must(t, scan(t.Context(), root, imaging.Consistency{}, &sink{}))
			if frozen(t, db) {
				t.Error("it is frozen after the next capture")
			}
			clean(t, "")
		})
	}
}

// What somebody else has frozen stays so.
func TestFrozenByOthers(t *testing.T) {
	root, db := plain(t, "ext4")
	run(t, "fsfreeze", "--freeze", db)
	err := scan(t.Context(), root, imaging.Consistency{Freeze: []string{db}}, &sink{})
	if err == nil || !strings.Contains(err.Error(), "freeze "+db+": it is frozen already, by somebody else") {
		t.Errorf("error %v", err)
	}
	if !frozen(t, db) {
		t.Error("it was thawed")
	}
	run(t, "fsfreeze", "--unfreeze", db)
	clean(t, "")
}

func TestFreezeRefused(t *testing.T) {
	root, db := plain(t, "ext4")
	tree, _ := btrfs(t)
	home := filepath.Join(tree, "home")
	memory := mount(t, filepath.Join(root, "memory"), "-t", "tmpfs", "tmpfs")
	for dir, c := range map[string]struct {
		root  string
		needs []string
		long  time.Duration
		want  string
	}{
		"/":                            {root: "/", want: "which the capture and logins need"},
		root:                           {root: root, want: "which the capture and logins need"}, // the same file system
		filepath.Join(root, "nothing"): {root: root, want: "no such file or directory"},
		filepath.Join(db, "zz"):        {root: root, want: "no file system of the tree is mounted there"},
		memory:                         {root: root, want: "the capture leaves out what is in it"},
		home:                           {root: tree, want: "it is btrfs, which has snapshots"},
		db:                             {root: root, needs: []string{filepath.Join(db, "zz")}, want: db + "/zz is on that file system"},
		db + "/":                       {root: root, long: time.Hour, want: "1h0m0s is no time to freeze"},
	} {
		k := testKeeper()
		k.Needs = c.needs
		src := imaging.NewLocal(c.root, imaging.WithAround(k.Around))
		err := src.Scan(t.Context(), imaging.ScanRequest{Root: c.root, Consistency: imaging.Consistency{Freeze: []string{dir}, FreezeFor: c.long}}, &sink{})
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("freeze %s: %v, want %q", dir, err, c.want)
		}
	}
	// What this process writes to, too.
	f, err := os.Create(filepath.Join(db, "log"))
	must(t, err)
	defer f.Close()
	err = scan(t.Context(), root, imaging.Consistency{Freeze: []string{db}}, &sink{})
	if err == nil || !strings.Contains(err.Error(), db+"/log is on that file system") {
		t.Errorf("error %v", err)
	}
	clean(t, "")
}

// What was frozen satisfies those who require snapshots.
func TestFreezeWhereSnapshotsAreRequired(t *testing.T) {
	root, _ := btrfs(t)
	db := mount(t, filepath.Join(root, "db"), disk(t, "xfs", "320M"))
	write(t, filepath.Join(db, "file"), "x")
	s := &sink{}
	must(t, scan(t.Context(), root, imaging.Consistency{Snapshot: imaging.SnapshotRequire, Freeze: []string{db}}, s))
	if s.noted() != "snapshot ., snapshot home, instant ., frozen db" {
		t.Errorf("notes: %s", s.noted())
	}
	clean(t, "")
}
