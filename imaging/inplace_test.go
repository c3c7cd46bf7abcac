package imaging

import (
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// vandal changes a tree at random, as those do who work in it.
type vandal struct {
	t     *testing.T
	dir   string
	r     *rand.Rand
	names []string // relative, of what can be named by a path
	hit   map[string]bool
}

// pick chooses a name that is still there and not in what was hit before.
func (v *vandal) pick(want func(fs.FileMode) bool) (string, bool) {
	for range 1000 {
		name := v.names[v.r.IntN(len(v.names))]
		info, err := os.Lstat(filepath.Join(v.dir, name))
		if err == nil && name != "." && want(info.Mode()) && !v.below(name) {
			return name, true
		}
	}
	return "", false
}

func (v *vandal) below(name string) bool {
	for ; name != "."; name = filepath.Dir(name) {
		if v.hit[name] {
			return true
		}
	}
	return false
}

func anyMode(fs.FileMode) bool     { return true }
func isRegular(m fs.FileMode) bool { return m.IsRegular() }
func isDir(m fs.FileMode) bool     { return m.IsDir() }

// act does one thing to one entry. What it did to is noted in hit.
func (v *vandal) act() {
	acts := []struct {
		want func(fs.FileMode) bool
		do   func(path string) error
	}{
		{isRegular, func(p string) error { return growFile(p, "more") }},
		{isRegular, func(p string) error { return os.WriteFile(p, []byte("other"), 0) }},
		{isRegular, func(p string) error { return os.Truncate(p, 0) }},
		{isRegular, func(p string) error { return spoilFile(p) }},
		{anyMode, os.RemoveAll},
		{anyMode, func(p string) error { return os.Lchown(p, v.r.IntN(5), v.r.IntN(5)) }},
		{func(m fs.FileMode) bool { return m&fs.ModeSymlink == 0 }, func(p string) error { return os.Chmod(p, fs.FileMode(v.r.IntN(0o1000))) }},
		{anyMode, func(p string) error {
			return unix.UtimesNanoAt(unix.AT_FDCWD, p, []unix.Timespec{{}, {Sec: v.r.Int64N(1e9)}}, unix.AT_SYMLINK_NOFOLLOW)
		}},
		{isRegular, func(p string) error { return unix.Lsetxattr(p, "user.vandal", []byte("was here"), 0) }},
		{isDir, func(p string) error {
			return errors.Join(os.MkdirAll(p+"/vandal/deep", 0o700), os.WriteFile(p+"/vandal/deep/x", nil, 0o600), os.Symlink("/", p+"/vandal/out"))
		}},
		{anyMode, func(p string) error { return errors.Join(os.RemoveAll(p), os.Symlink("/etc", p)) }},
		{anyMode, func(p string) error { return errors.Join(os.RemoveAll(p), os.MkdirAll(p+"/a/b", 0o755)) }},
		{anyMode, func(p string) error { return errors.Join(os.RemoveAll(p), os.WriteFile(p, []byte("file"), 0o644)) }},
		{anyMode, func(p string) error { return errors.Join(os.RemoveAll(p), unix.Mkfifo(p, 0o600)) }},
		{anyMode, v.rename},
	}
	act := acts[v.r.IntN(len(acts))]
	name, found := v.pick(act.want)
	if !found {
		return
	}
	if err := act.do(filepath.Join(v.dir, name)); err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, fs.ErrExist) {
		v.t.Fatal(err)
	}
	v.hit[name] = true
}

func (v *vandal) rename(path string) error {
	to := fmt.Sprintf("%s/renamed-%d", filepath.Dir(path), v.r.Uint64())
	rel, err := filepath.Rel(v.dir, to)
	v.hit[rel] = true
	return errors.Join(err, os.Rename(path, to))
}

// link makes a name lead to the inode of another file.
func (v *vandal) link() {
	from, a := v.pick(isRegular)
	to, b := v.pick(isRegular)
	if a && b && from != to {
		must(v.t, os.Remove(filepath.Join(v.dir, to)), os.Link(filepath.Join(v.dir, from), filepath.Join(v.dir, to)))
		v.hit[from], v.hit[to] = true, true
	}
}

func growFile(path, s string) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(s)
	return errors.Join(err, f.Close())
}

// spoilFile changes the first byte and nothing of the size.
func spoilFile(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	b := []byte{0}
	if _, err := f.ReadAt(b, 0); err == nil {
		b[0]++
		_, err = f.WriteAt(b, 0)
		return errors.Join(err, f.Close())
	}
	return f.Close()
}

// After random changes an apply in place gives the tree back exactly, and
// touches neither inode nor ctime of anything that was right.
func TestApplyAfterRandomChanges(t *testing.T) {
	source := nasty(t)
	m, vault := captured(t, source)
	entries := map[string]*Entry{}
	for _, e := range m.List.All() {
		entries[e.Path] = e
	}
	disk, _ := image(t, "ext4", "1G")
	dir := filepath.Join(disk, "tree")
	_, err := Apply(t.Context(), m, vault, dir, ApplyOptions{})
	must(t, err)
	for seed := range uint64(3) {
		v := &vandal{t: t, dir: dir, r: rand.New(rand.NewPCG(seed, 0)), hit: map[string]bool{}}
		for path := range reachable(t, dir) {
			v.names = append(v.names, path)
		}
		slices.Sort(v.names)
		for range 120 {
			v.act()
		}
		for range 5 {
			v.link()
		}
		damaged := reachable(t, dir)
		changed := map[string]bool{}
		_, err := Apply(t.Context(), m, vault, dir, ApplyOptions{Delete: true, Change: func(c ApplyChange) { changed[c.Path] = true }})
		must(t, err)
		for path, s := range reachable(t, dir) {
			if s == damaged[path] || changed[path] {
				continue
			}
			// The time of a directory in which something changed was put
			// back, and so the ctime moved; of a file, a link count.
			e := entries[path]
			if s.ino != damaged[path].ino || e.Kind != Directory && !shared(m, path) && !v.hit[path] {
				t.Errorf("seed %d: %q was touched and nothing was said of it", seed, path)
			}
		}
		for path := range changed {
			if !v.explains(m, path) {
				t.Errorf("seed %d: %q was right, and was changed", seed, path)
			}
		}
		judge(t, source, dir)
		if t.Failed() {
			t.Fatalf("seed %d", seed)
		}
	}
}

// reachable are the stamps of all that a path can name.
func reachable(t *testing.T, dir string) map[string]stamp {
	t.Helper()
	all := map[string]stamp{}
	for _, record := range findOutput(t, dir, []string{".", "-path", "./deep/*/*/*", "-prune", "-o", "-printf", `%i %C@ %P\0`}) {
		var s stamp
		var ctime string
		if _, err := fmt.Sscanf(record, "%d %s", &s.ino, &ctime); err != nil {
			continue
		}
		seconds, nanos, _ := strings.Cut(ctime, ".")
		_, err := fmt.Sscan(seconds+" "+nanos[:9], &s.ctime.Sec, &s.ctime.Nsec)
		must(t, err)
		path := strings.SplitN(record, " ", 3)[2]
		if path == "" {
			path = "."
		}
		all[path] = s
	}
	return all
}

// shared tells whether path is one of several names of a file.
func shared(m *Manifest, path string) bool {
	return len(namesOf(m, path)) > 1
}

// namesOf are all names of the file at path.
func namesOf(m *Manifest, path string) []string {
	first := path
	if e := m.List.Get(path); e != nil && e.Kind == HardLink {
		first = e.Target
	}
	all := []string{first}
	for _, e := range m.List.All() {
		if e.Kind == HardLink && e.Target == first {
			all = append(all, e.Path)
		}
	}
	return all
}

// explains tells whether something that was done to the tree is a reason to
// change path: it was hit itself, is in or around something that was, or
// shares its inode with it.
func (v *vandal) explains(m *Manifest, path string) bool {
	for _, name := range namesOf(m, path) {
		if v.below(name) {
			return true
		}
	}
	for hit := range v.hit {
		if filepath.Dir(hit) == path {
			return true
		}
		for _, name := range namesOf(m, hit) {
			if name == path || filepath.Dir(name) == path {
				return true
			}
		}
	}
	return false
}
