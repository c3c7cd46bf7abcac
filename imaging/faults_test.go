package imaging

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"doppel/imaging/faultfs"
	"doppel/imaging/store"
)

// storeChange is something that is done to a store.
type storeChange struct {
	from *Catalog // is copied first
	do   func(c *Catalog) error
	done func(t *testing.T, c *Catalog) // checks what is so once it is done
	kept []string                       // versions that stay, as they are
}

// A disk that fails at any change to the store, or fills up there, costs no
// version: what was begun fails with an error that says where, or is done, and
// can be done again once the disk works.
func TestStoreOnBadDisk(t *testing.T) {
	at, behind := t.TempDir(), memory(t)
	disk := faultfs.Mount(t, behind, at)
	root := t.TempDir()
	base, err := OpenCatalog(filepath.Join(memory(t), "state"), CatalogOptions{})
	must(t, err)
	takeDamageable(t, base, root)
	fill(t, root+"/new", noise(90<<10, 9))
	want := readAllVersions(t, base)
	captured := copyState(t, base.Dir())
	takeImage(t, captured, root, "x")
	want["x@4"] = readVersion(t, captured, "x@4")

	broken := copyState(t, base.Dir())
	pack := storeFiles(t, broken)[0]
	b, err := os.ReadFile(pack)
	must(t, err)
	b[len(b)/2] ^= 1
	must(t, os.Chmod(pack, 0o600), os.WriteFile(pack, b, 0o600))
	wantBroken := readable(t, broken, want)

	all := []string{"x@1", "x@2", "x@3", "y@1", "y@2", "y@3"}
	for name, c := range map[string]storeChange{
		"capture": {base, func(c *Catalog) error {
			_, err := Capture(t.Context(), c, NewLocal(root, WithClock(later)), CaptureOptions{Name: "x", Root: root})
			return err
		}, func(t *testing.T, c *Catalog) {
			if v, err := c.Resolve(t.Context(), "x"); err != nil || v.Number != 4 {
				t.Errorf("the latest is %v, %v", v, err)
			}
		}, all},
		"tag": {base, func(c *Catalog) error {
			_, err := c.Tag(t.Context(), "x@1", "golden")
			return err
		}, func(t *testing.T, c *Catalog) {
			if v, err := c.Resolve(t.Context(), "x@golden"); err != nil || v.Number != 1 {
				t.Errorf("x@golden is %v, %v", v, err)
			}
		}, all},
		"remove": {base, func(c *Catalog) error {
			_, err := c.Remove(t.Context(), "x@2")
			if errors.As(err, new(*UnknownImageError)) {
				return nil // it went before, and then the disk failed
			}
			return err
		}, func(t *testing.T, c *Catalog) {
			if _, err := c.Resolve(t.Context(), "x@2"); !errors.As(err, new(*UnknownImageError)) {
				t.Errorf("x@2: %v", err)
			}
		}, []string{"x@1", "x@3", "y@1", "y@2", "y@3"}},
		"prune": {base, func(c *Catalog) error {
			list, err := c.List(t.Context())
			old := slices.DeleteFunc(list, func(v Version) bool { return v.Number == 3 })
			if err == nil {
				_, err = c.Prune(t.Context(), PruneOptions{Remove: old, Repack: true})
			}
			return err
		}, func(t *testing.T, c *Catalog) {
			if list, err := c.List(t.Context()); err != nil || len(list) != 2 {
				t.Errorf("%d versions are left, %v", len(list), err)
			}
		}, []string{"x@3", "y@3"}},
		"repair": {broken, func(c *Catalog) error {
			_, err := c.Repair(t.Context(), RepairOptions{Depth: store.Bytes})
			return err
		}, func(t *testing.T, c *Catalog) {
			r, err := c.Repair(t.Context(), RepairOptions{Depth: store.Bytes})
			must(t, err)
			if len(r.Names)+len(r.Packs)+len(r.Linked) > 0 || len(r.Lost) == 0 {
				t.Errorf("there is more to repair: %+v", r)
			}
		}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			try := func(errno syscall.Errno) error {
				run(t, "cp", "-a", c.from.Dir(), filepath.Join(behind, "state"))
				dir := filepath.Join(at, "state")
				var log bytes.Buffer
				state, err := OpenCatalog(dir, CatalogOptions{Log: slog.New(slog.NewTextHandler(&log, nil))})
				must(t, err)
				failure := c.do(state)
				if disk.Pause(); failure == nil && disk.Lost() && !strings.Contains(log.String(), "level=WARN") {
					t.Error("a change was lost, and nobody is told of it")
				}
				if failure != nil && (!errors.Is(failure, errno) || !strings.Contains(failure.Error(), dir)) {
					t.Errorf("the error does not tell what is wrong with what: %v", failure)
				}
				// A look at it from behind is a quicker one.
				dir = filepath.Join(behind, "state")
				defer func() { must(t, os.RemoveAll(dir)) }()
				state, err = OpenCatalog(dir, CatalogOptions{})
				must(t, err)
				check := func() {
					if c.from == broken {
						sameFiles(t, readable(t, state, want), wantBroken)
					} else {
						sameVersions(t, state, want, c.kept...)
					}
				}
				check()
				if failure == nil {
					c.done(t, state)
				}
				must(t, c.do(state))
				c.done(t, state)
				check()
				if _, err := state.Sweep(t.Context()); err != nil && c.from != broken {
					t.Error(err)
				}
				left, err := filepath.Glob(filepath.Join(dir, "store", "*", ".*tmp*"))
				must(t, err)
				if len(left) > 0 {
					t.Errorf("temporary files are left: %q", left)
				}
				return failure
			}
			disk.EachFault(t, try)
		})
	}
}

// sameFiles holds the files of versions that can be read against those that
// could be.
func sameFiles(t *testing.T, got, want map[string]map[string]string) {
	t.Helper()
	for ref, files := range want {
		if !maps.Equal(got[ref], files) {
			t.Errorf("%s is another", ref)
		}
	}
}

// A disk that fails at any change that Apply makes, or fills up there, leaves a
// tree in which every file is as it was or whole, and that the next Apply
// finishes.
func TestApplyOnBadDisk(t *testing.T) {
	at, behind := t.TempDir(), memory(t)
	disk := faultfs.Mount(t, behind, at)
	before, after := faultTree(1), faultTree(2)
	root := filepath.Join(at, "root")
	disk.EachFault(t, func(errno syscall.Errno) error {
		disk.Pause()
		defer func() { must(t, os.RemoveAll(filepath.Join(behind, "root"))) }()
		before.apply(t, root, ApplyOptions{})
		write(t, filepath.Join(root, "extra"), "extra")
		disk.Resume()
		_, err := Apply(t.Context(), after.m(), after.chunks, root, ApplyOptions{Delete: true})
		disk.Pause()
		if err != nil && (!errors.Is(err, errno) || !strings.Contains(err.Error(), root)) {
			t.Errorf("the error does not tell what is wrong with what: %v", err)
		}
		for path := range stamps(t, root) {
			if strings.HasPrefix(filepath.Base(path), "f") {
				whole(t, root, path, before, after)
			}
		}
		if err != nil {
			after.apply(t, root, ApplyOptions{Delete: true})
		}
		after.equal(t, root)
		if left := temps(t, root); len(left) > 0 {
			t.Errorf("temporary files are left: %q", left)
		}
		return err
	})
}

// faultTree is a small tree with all that Apply makes; two versions of it differ
// in everything.
func faultTree(version byte) *tree {
	x := newTree()
	x.dir("d")
	x.file("d/f1", string(noise(70<<10, version)))
	x.file("d/f2", strings.Repeat("text", 100+int(version)))
	x.file("f3", "")
	for _, f := range []string{"d/f1", "d/f2", "f3"} {
		x.at(f).MTime = Time{Sec: testSec + int64(version)}
	}
	x.at("d/f2").Mode = 0o600 | uint32(version)
	x.at("d/f1").UID = uint32(version)
	x.at("d/f1").Xattrs = []Xattr{{Name: "user.version", Value: []byte{version}}}
	x.link("d/hard", "d/f1")
	x.add(Entry{Path: "d/soft", Kind: Symlink, Mode: 0o777, Target: fmt.Sprint(version)})
	x.add(Entry{Path: fmt.Sprintf("pipe%d", version), Kind: FIFO, Mode: 0o600})
	return x
}
