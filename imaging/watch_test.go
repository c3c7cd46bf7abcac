package imaging

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// watchedTree is a tree that is captured again and again by a source that stays.
type watchedTree struct {
	t       *testing.T
	root    string
	c       *Catalog
	src     Source
	watch   *Watch
	exclude []string
}

func watchTree(t *testing.T, root string, exclude ...string) *watchedTree {
	needRoot(t)
	w := &watchedTree{t: t, root: root, c: openTestCatalog(t), src: NewLocal(root, WithClock(later)), watch: &Watch{RescanEvery: time.Hour}, exclude: exclude}
	t.Cleanup(func() { must(t, w.src.Close()) })
	return w
}

func (w *watchedTree) options(name string) CaptureOptions {
	return CaptureOptions{Name: name, Root: w.root, Exclude: w.exclude}
}

// capture captures the tree, and holds what comes of it against what another
// source says that knows nothing.
func (w *watchedTree) capture() *CaptureReport {
	w.t.Helper()
	o := w.options("watched")
	o.Watch = w.watch
	r, err := Capture(w.t.Context(), w.c, w.src, o)
	if err != nil {
		w.t.Fatal(err)
	}
	whole, err := Capture(w.t.Context(), w.c, NewLocal(w.root, WithClock(later)), w.options("whole"))
	must(w.t, err)
	if r.Digest != whole.Digest {
		a, _ := theManifest(w.t, w.c, "watched")
		b, _ := theManifest(w.t, w.c, "whole")
		diff := DiffManifests(b, a)
		w.t.Fatalf("the watched capture came to another tree: %+v\n%+v", r, diff[:min(len(diff), 10)])
	}
	if r.Entries != whole.Entries || r.BytesTotal != whole.BytesTotal || !slices.Equal(r.Secrets, whole.Secrets) {
		w.t.Errorf("the watched capture says %+v, the whole one %+v", r, whole)
	}
	return r
}

// watched is capture for when everything is known to be watched.
func (w *watchedTree) watched() *CaptureReport {
	w.t.Helper()
	r := w.capture()
	if !r.Watched || r.Rescan != "" {
		w.t.Errorf("everything was looked at: %q", r.Rescan)
	}
	return r
}

func (w *watchedTree) at(name string) string { return filepath.Join(w.root, name) }

// After random changes a watched capture comes to the same tree as one that
// knows nothing, with the same secrets.
func TestWatchRandomChanges(t *testing.T) {
	for _, kind := range []string{"ext4", "xfs", "btrfs"} {
		t.Run(kind, func(t *testing.T) {
			disk, _ := image(t, kind, "1G")
			m, vault := captured(t, nasty(t))
			root := filepath.Join(disk, "tree")
			_, err := Apply(t.Context(), m, vault, root, ApplyOptions{})
			must(t, err)
			fill(t, root+"/etc/munge/munge.key", noise(64, 1))
			fill(t, root+"/srv/hidden", []byte("-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n-----END OPENSSH PRIVATE KEY-----\n"))
			w := watchTree(t, root)
			w.capture()
			r := rand.New(rand.NewPCG(7, 7))
			watched := 0
			for range 6 {
				v := &vandal{t: t, dir: root, r: r, hit: map[string]bool{}}
				for path := range reachable(t, root) {
					v.names = append(v.names, path)
				}
				slices.Sort(v.names)
				for range 1 + r.IntN(8) {
					v.act()
				}
				if r.IntN(3) == 0 {
					v.link()
				}
				if w.capture().Watched {
					watched++
				}
				// What one capture of nothing new costs is asked elsewhere; here,
				// that it sees that there is nothing.
				if again := w.watched(); !again.Unchanged || again.BytesRead > 0 {
					t.Errorf("nothing has changed, and the capture says %+v", again)
				}
			}
			if watched < 3 {
				t.Errorf("only %d of 6 captures looked at what had changed alone", watched)
			}
		})
	}
}

// What is looked at is what has changed.
func TestWatchLooksAtChangesAlone(t *testing.T) {
	disk, _ := image(t, "ext4", "64M")
	root := filepath.Join(disk, "tree")
	fill(t, disk+"/outside/file", nil)
	for _, name := range []string{"a/one", "a/b/two", "c/three", "c/d/four", "tmp/x", "log/messages", "log/keep/x"} {
		fill(t, filepath.Join(root, name), []byte(name))
	}
	w := watchTree(t, root, "log/mess*", "c/d")
	w.capture()
	looked := func() []string {
		t.Helper()
		c := &collected{chunks: nil, cached: func(Stamp) *Content { return &Content{} }}
		req := ScanRequest{Root: root, Exclude: w.exclude, Since: w.watch.mark, Mark: w.watch.mark}
		must(t, w.src.Scan(t.Context(), req, c))
		var out []string
		for _, e := range c.entries {
			out = append(out, e.Path)
		}
		return out
	}
	quiet := func(want bool) {
		t.Helper()
		got, err := w.src.(Watcher).Quiet(t.Context(), w.watch.mark)
		must(t, err)
		if got != want {
			t.Errorf("quiet: %v", got)
		}
	}
	quiet(true)
	for _, name := range []string{"tmp/x", "tmp/new", "log/messages", "c/d/four"} {
		fill(t, w.at(name), []byte("other"))
	}
	must(t, os.MkdirAll(w.at("tmp/deep/deeper"), 0o755), os.Rename(w.at("tmp/deep"), w.at("tmp/moved")), os.Chmod(w.at("log/messages"), 0o600))
	must(t, os.Link(disk+"/outside/file", disk+"/outside/link"), os.Remove(disk+"/outside/file"), os.Chmod(disk+"/outside/link", 0o600))
	quiet(true) // nothing of that is in the image
	must(t, os.Chmod(w.at("a/b/two"), 0o600))
	quiet(false)
	if got := looked(); !slices.Equal(got, []string{".", "a", "a/b", "a/b/two", "a/one", "tmp"}) {
		t.Errorf("looked at %q", got)
	}
	must(t, os.Chmod(w.at("c/d"), 0o700))
	quiet(false)
	if got := looked(); !slices.Contains(got, "c/d") || slices.Contains(got, "a/one") {
		t.Errorf("looked at %q", got)
	}
	must(t, os.Rename(w.at("a/b"), w.at("log/b")))
	if got := looked(); !slices.Contains(got, "log/b/two") || slices.Contains(got, "a/b") || slices.Contains(got, "c/three") {
		t.Errorf("looked at %q", got)
	}
	// By another mark than the last scan's, everything.
	w.watch.mark++
	quiet(false)
	if got := looked(); !slices.Contains(got, "c/three") {
		t.Errorf("looked at %q", got)
	}
}

// Names of one file are told of together, wherever they are.
func TestWatchHardLinks(t *testing.T) {
	root, _ := image(t, "ext4", "64M")
	fill(t, root+"/a/one", []byte("one"))
	fill(t, root+"/b/x", []byte("b"))
	fill(t, root+"/c/single", []byte("single"))
	must(t, os.Mkdir(root+"/z", 0o755), os.Link(root+"/a/one", root+"/z/two"), os.Mkdir(root+"/d", 0o755))
	w := watchTree(t, root)
	w.capture()
	must(t, growFile(w.at("z/two"), " more")) // a/one is the one that has the content
	w.watched()
	must(t, os.Link(w.at("z/two"), w.at("b/three")))
	w.watched()
	must(t, os.Remove(w.at("a/one"))) // b/three comes first now
	w.watched()
	must(t, os.RemoveAll(w.at("z")), os.Remove(w.at("b/three")))
	w.watched()
	must(t, os.Link(w.at("c/single"), w.at("d/second")))
	w.capture() // by the event of the file itself, or by looking at everything
	must(t, os.Rename(w.at("c"), w.at("e")))
	w.watched()
	must(t, os.Remove(w.at("d/second")))
	w.watched()
}

// Whatever makes it uncertain what has changed leads to a look at everything,
// with the reason, and the capture after that is watched again.
func TestWatchFallsBack(t *testing.T) {
	root, _ := image(t, "ext4", "256M")
	fill(t, root+"/a/one", []byte("one"))
	fill(t, root+"/mnt/x", nil)
	fill(t, root+"/many/x", nil)
	w := watchTree(t, root)
	w.capture()
	fallsBack := func(t *testing.T, why string) {
		t.Helper()
		w.t = t
		if r := w.capture(); r.Watched || !strings.Contains(r.Rescan, why) {
			t.Errorf("watched: %v, because %q, not %q", r.Watched, r.Rescan, why)
		}
		fill(t, w.at("a/one"), noise(100, byte(time.Now().UnixNano())))
		w.watched()
	}

	t.Run("overflow", func(t *testing.T) {
		queued, err := os.ReadFile("/proc/sys/fs/fanotify/max_queued_events")
		must(t, err)
		var n int
		fmt.Sscan(string(queued), &n)
		live := w.src.(*local).watch.watch
		live.mu.Lock() // so that nobody takes events
		for i := range n + 10 {
			if err := os.WriteFile(w.at(fmt.Sprintf("many/%d", i)), nil, 0o600); err != nil {
				live.mu.Unlock()
				t.Fatal(err)
			}
		}
		live.mu.Unlock()
		fallsBack(t, "max_queued_events")
	})
	t.Run("mount", func(t *testing.T) {
		other, file := image(t, "ext4", "16M")
		fill(t, other+"/inside", []byte("inside"))
		run(t, "umount", other)
		t.Cleanup(func() { run(t, "mount", "-o", "loop", file, other) }) // image unmounts it
		run(t, "mount", "-o", "loop", file, w.at("mnt"))
		fallsBack(t, "mounted")
		fill(t, w.at("mnt/inside"), []byte("other"))
		w.watched()
		run(t, "umount", w.at("mnt")) // the watch does not hold it
		fallsBack(t, "mounted")
	})
	t.Run("what is not the tree's own", func(t *testing.T) {
		w.t = t
		fill(t, w.at("p/q/r/s"), []byte("hidden for a while"))
		w.watched()
		run(t, "mount", "-t", "tmpfs", "tmpfs", w.at("p/q/r"))
		if r := w.watched(); r.Unchanged {
			t.Error("a directory is hidden by a mount, and nothing had changed")
		}
		w.watched()
		run(t, "umount", w.at("p/q/r"))
		if r := w.watched(); r.Unchanged {
			t.Error("it is there again, and nothing had changed")
		}
	})
	t.Run("another request", func(t *testing.T) {
		w.exclude = []string{"many"}
		fallsBack(t, "")
	})
	t.Run("a capture that failed", func(t *testing.T) {
		w.t = t
		fill(t, w.at("a/one"), []byte("changed before the capture that fails"))
		o := w.options("watched")
		o.Watch = w.watch
		broken := &brokenSource{Source: w.src}
		if _, err := Capture(t.Context(), w.c, broken, o); err == nil {
			t.Fatal("it did not fail")
		}
		if r := w.capture(); r.Watched {
			t.Error("after a capture that failed nothing is known")
		}
	})
	t.Run("another version", func(t *testing.T) {
		w.t = t
		w.watched()
		_, err := w.c.Remove(t.Context(), "watched@latest")
		must(t, err)
		o := w.options("watched")
		o.Watch = w.watch
		r, err := Capture(t.Context(), w.c, w.src, o)
		if err == nil && r.Unchanged {
			t.Error("the version it was equal to is gone, and it is said to be unchanged")
		}
	})
}

// brokenSource scans, and then fails.
type brokenSource struct{ Source }

func (b *brokenSource) Scan(ctx context.Context, req ScanRequest, sink Sink) error {
	return errors.Join(b.Source.Scan(ctx, req, sink), errors.New("the wire broke"))
}

func (b *brokenSource) Quiet(context.Context, Mark) (bool, error) { return false, nil }

// What a watch cannot see is found by the look at everything, which says that
// it was missed.
func TestWatchMisses(t *testing.T) {
	root, _ := image(t, "ext4", "64M")
	fill(t, root+"/db", bytes.Repeat([]byte("x"), 1<<16))
	fill(t, root+"/other", nil)
	w := watchTree(t, root)
	f, err := os.OpenFile(w.at("db"), os.O_RDWR, 0)
	must(t, err)
	defer f.Close()
	b, err := unix.Mmap(int(f.Fd()), 0, 1<<16, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	must(t, err)
	defer unix.Munmap(b)
	w.capture()
	copy(b, "changed through memory")
	must(t, unix.Msync(b, unix.MS_SYNC))
	o := w.options("watched")
	o.Watch = w.watch
	r, err := Capture(t.Context(), w.c, w.src, o)
	must(t, err)
	if !r.Unchanged {
		t.Fatal("this kernel tells of writes through memory: the limits in ARCHITECTURE.md say that none does")
	}
	w.watch.RescanEvery = 0
	if r := w.capture(); r.Watched || r.Unchanged || !slices.Equal(r.Missed, []string{"db"}) {
		t.Errorf("looking at everything found %+v", r)
	}
	if r := w.capture(); len(r.Missed) > 0 || !r.Unchanged {
		t.Errorf("once more: %+v", r)
	}
}

// A file that is opened by its handle, as the NFS server opens files, may have
// no directory that the kernel knows of.
func TestWatchFileOpenedByHandle(t *testing.T) {
	root, file := image(t, "ext4", "64M")
	fill(t, root+"/a/one", []byte("one"))
	h, _, err := unix.NameToHandleAt(unix.AT_FDCWD, root+"/a/one", 0)
	must(t, err)
	run(t, "umount", root) // so that the kernel knows no name of it
	run(t, "mount", "-o", "loop", file, root)
	w := watchTree(t, root)
	o := w.options("watched")
	o.Watch = w.watch
	_, err = Capture(t.Context(), w.c, w.src, o)
	must(t, err)
	run(t, "sh", "-c", "echo 2 > /proc/sys/vm/drop_caches")
	mount, err := unix.Open(root, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	must(t, err)
	fd, err := unix.OpenByHandleAt(mount, h, unix.O_WRONLY)
	must(t, err, unix.Close(mount))
	_, err = unix.Write(fd, []byte("ONE"))
	must(t, err, unix.Close(fd))
	if quiet, err := w.src.(Watcher).Quiet(t.Context(), w.watch.mark); err != nil || quiet {
		t.Errorf("a file has changed: quiet %v, %v", quiet, err)
	}
	w.capture()
}

// Where nothing can be watched, everything is looked at, and nothing is wrong.
func TestWatchRefused(t *testing.T) {
	base, top, work, merged := t.TempDir(), t.TempDir(), "", t.TempDir()
	work = filepath.Join(top, "work")
	must(t, os.MkdirAll(work, 0o755), os.MkdirAll(top+"/upper", 0o755))
	fill(t, base+"/a/one", []byte("one"))
	needRoot(t)
	mountAt(t, merged, "-t", "overlay", "overlay", "-o", "lowerdir="+base+",upperdir="+top+"/upper,workdir="+work)
	w := watchTree(t, merged)
	for range 3 {
		if r := w.capture(); r.Watched || !strings.Contains(r.Rescan, "cannot be watched") {
			t.Errorf("%+v", r)
		}
		must(t, growFile(w.at("a/one"), "more"))
	}
}

func FuzzFanEvents(f *testing.F) {
	// As the kernel gives them, of a file that is made, written to and removed
	// in a directory, and of the directory's own mode.
	root := f.TempDir()
	fan, err := openFanotify()
	if err == nil {
		defer fan.close()
		if _, _, err := fan.add(root); err == nil {
			must(f, os.WriteFile(root+"/file", []byte("x"), 0o600), os.Chmod(root, 0o755), os.Remove(root+"/file"))
			b := make([]byte, 64<<10)
			must(f, fan.control(func(fd int) error {
				n, err := unix.Read(fd, b)
				b = b[:max(n, 0)]
				return err
			}))
			f.Add(b)
		}
	}
	f.Add([]byte{})
	f.Add(make([]byte, 24))
	f.Fuzz(func(t *testing.T, b []byte) {
		err := parseFanEvents(b, func(e *fanEvent) {
			if strings.ContainsAny(e.name, "/\x00") {
				t.Errorf("a name %q", e.name)
			}
		})
		if err != nil && !errors.Is(err, errFanEvents) {
			t.Error(err)
		}
	})
}

// A tree that is renamed is looked into with all below, and what is elsewhere of
// its files' names too.
func TestWatchRenamedTree(t *testing.T) {
	root, _ := image(t, "ext4", "64M")
	fill(t, root+"/old/p/q/file", []byte("file"))
	fill(t, root+"/old/p/q/r/deep", []byte("deep"))
	fill(t, root+"/elsewhere/x", nil)
	must(t, os.Link(root+"/old/p/q/r/deep", root+"/zz-link"), os.Link(root+"/old/p/q/file", root+"/elsewhere/name"))
	w := watchTree(t, root)
	w.capture()
	must(t, os.Rename(w.at("old"), w.at("aaa"))) // before its other names, which were after it
	w.watched()
	must(t, os.MkdirAll(w.at("n/e/w"), 0o755), os.Rename(w.at("aaa/p"), w.at("n/e/w/p")), os.Rename(w.at("n"), w.at("m")))
	w.watched()
	must(t, os.RemoveAll(w.at("m/e/w/p/q/r")))
	w.watched()
	for i := range maxChangedNames + 10 {
		fill(t, w.at(fmt.Sprintf("elsewhere/%d/x", i)), nil)
	}
	w.watched()
	must(t, os.RemoveAll(w.at("elsewhere")), os.WriteFile(w.at("elsewhere"), nil, 0o600))
	w.watched()
}

// A file system that cannot be watched is looked into each time; the rest is
// watched all the same.
func TestWatchPartOfTheTree(t *testing.T) {
	root, _ := image(t, "ext4", "64M")
	_, file := image(t, "btrfs", "128M")
	fill(t, root+"/a/one", []byte("one"))
	must(t, os.Mkdir(root+"/sub", 0o755))
	whole := t.TempDir()
	mountAt(t, whole, "-o", "loop", file)
	run(t, "btrfs", "-q", "subvolume", "create", whole+"/inner")
	fill(t, whole+"/inner/x/y", []byte("in a subvolume"))
	mountAt(t, root+"/sub", "-o", "loop,subvol=inner", file)
	w := watchTree(t, root)
	w.capture()
	fill(t, w.at("sub/x/y"), []byte("other"))
	w.watched()
	fill(t, w.at("a/one"), []byte("other"))
	fill(t, w.at("sub/x/new"), []byte("new"))
	w.watched()
	w.watched()
}

// A file system that is seen in several places is watched in all of them.
func TestWatchBindMounts(t *testing.T) {
	root, _ := image(t, "ext4", "64M")
	for _, name := range []string{"a/one", "b/c/two", "home/user/three"} {
		fill(t, filepath.Join(root, name), []byte(name))
	}
	must(t, os.MkdirAll(root+"/export/home", 0o755))
	mountAt(t, root+"/b", "--bind", root+"/b")
	mountAt(t, root+"/export/home", "--bind", root+"/home")
	for range 4 { // which of the mounts is asked first is by chance
		w := watchTree(t, root, "home")
		w.capture()
		for i, name := range []string{"a/one", "b/c/two", "b/c/new", "home/user/three", "export/home/user/four"} {
			fill(t, w.at(name), noise(100, byte(time.Now().UnixNano())+byte(i)))
			if r := w.watched(); r.Unchanged {
				t.Errorf("%s was changed, and nothing had", name)
			}
		}
		must(t, w.src.Close())
	}
}

// What changes while a watched capture runs is in the next one.
func TestWatchChangesMeanwhile(t *testing.T) {
	root, _ := image(t, "ext4", "64M")
	fill(t, root+"/a/one", []byte("one"))
	fill(t, root+"/a/b/two", []byte("two"))
	fill(t, root+"/file", nil)
	meanwhile := func() {}
	src := NewLocal(root, WithClock(later), WithAround(func(ctx context.Context, live *LocalTree, _ ScanRequest, _ Sink, scan func(context.Context, Tree) error) error {
		meanwhile()
		return scan(ctx, live)
	}))
	w := watchTree(t, root)
	w.src = src
	w.capture()
	fill(t, w.at("a/one"), []byte("ONE"))
	meanwhile = func() {
		fill(t, w.at("a/new/file"), []byte("new"))
		must(t, os.Rename(w.at("a/b"), w.at("c")), os.Remove(w.at("file")))
		fill(t, w.at("file/now a directory"), nil)
	}
	o := w.options("watched")
	o.Watch = w.watch
	if r, err := Capture(t.Context(), w.c, w.src, o); err != nil || !r.Watched {
		t.Fatalf("%+v, %v", r, err)
	}
	meanwhile = func() {}
	w.watched()
}

// What is kept of what happens is bounded, also when nobody asks for long.
func TestWatchForgets(t *testing.T) {
	root, _ := image(t, "ext4", "64M")
	fill(t, root+"/a/one", []byte("one"))
	w := watchTree(t, root)
	w.capture()
	live := w.src.(*local).watch.watch
	gone := func(i int) *fanEvent {
		var h fileHandle
		for fsid := range live.resolver.mounts {
			h.fsid = fsid
		}
		h.kind, h.bytes = 1, string([]byte{byte(i), byte(i >> 8), byte(i >> 16), 9, 1, 1, 1, 1}) // of an inode that there is not
		return &fanEvent{mask: unix.FAN_ATTRIB, self: h}
	}
	live.mu.Lock()
	for i := range 3 * maxLoose {
		live.note(gone(i))
	}
	n, lost := len(live.loose), live.lost
	live.mu.Unlock()
	if n > maxLoose || lost != "" {
		t.Errorf("%d files that are gone are kept, %q", n, lost)
	}
	w.watched()
	live.mu.Lock()
	for i := range maxAllNames/maxChangedNames + 2 {
		e := gone(i)
		e.dir, e.self = e.self, fileHandle{}
		for j := range maxChangedNames {
			e.name = fmt.Sprint(j)
			live.note(e)
		}
	}
	n = len(live.dirs)
	live.mu.Unlock()
	if n > 0 {
		t.Errorf("%d directories are kept, of more names than are to be", n)
	}
	if r := w.capture(); r.Watched || !strings.Contains(r.Rescan, "names have changed") {
		t.Errorf("%+v", r)
	}
	w.watched()
}
