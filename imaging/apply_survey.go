package imaging

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// tempPrefix begins the names of files that are not whole yet; 16 hexadecimal
// digits follow. They are removed by whoever applies next.
const tempPrefix = ".doppel-"

func isTempName(name string) bool {
	rest, ok := strings.CutPrefix(name, tempPrefix)
	return ok && len(rest) == 16 && strings.Trim(rest, "0123456789abcdef") == ""
}

// seen is what is on disk under a name.
type seen struct {
	kind    Kind
	inode   inodeKey
	nlink   uint64
	room    int64 // bytes allocated
	right   bool  // content, target or device numbers are what the entry says
	check   bool  // a regular file of the right size, whose content is to be read
	meta    bool  // all metadata is what the entry says
	mounted bool  // a directory on a file system mounted below the root
	mount   bool  // a directory where a file system is mounted
}

type inodeKey struct{ dev, ino uint64 }

// inode is a file on disk with several names.
type inode struct {
	names uint64    // seen here that are right, or will be replaced or removed
	owner *treeNode // origin of the entries that keep it
}

// survey looks at everything that is wanted and at what is in its way, and
// changes nothing.
func (a *applier) survey() error {
	root := a.index.root
	o, err := openObject(a.tree.root, ".")
	if err != nil {
		return &os.PathError{Op: "stat", Path: a.tree.dir, Err: err}
	}
	defer o.close()
	var up unix.Stat_t
	if err := unix.Fstatat(a.tree.root, "..", &up, 0); err != nil {
		return &os.PathError{Op: "stat", Path: a.tree.dir + "/..", Err: err}
	}
	t, err := a.tree.traits(o.st.Dev, root)
	if err != nil {
		return err
	}
	root.seen = &seen{kind: Directory, inode: inodeKey{o.st.Dev, o.st.Ino}}
	root.seen.mount = isMountRoot(a.tree.root, o.st.Dev, up.Dev)
	d, err := diffMeta(a.index.entry(root), o, t, a.o.Full)
	if err != nil {
		return fmt.Errorf("reading the metadata of %s: %w", a.tree.dir, err)
	}
	root.seen.meta = d.none()
	if !a.admit(root) {
		return nil
	}
	return a.surveyDir(root)
}

// skips tells whether a path, with all that is below it, is none of Apply's
// business.
func (a *applier) skips(path string) bool { return a.o.Skip != nil && a.o.Skip(path) }

// keeps tells whether what is at a path is to stay as it is.
func (a *applier) keeps(path string) bool { return a.o.Keep != nil && a.o.Keep(path) }

// admitPresent is admit for a name that is on the disk. A directory that is
// kept is not dealt with, but looked into.
func (a *applier) admitPresent(n *treeNode) bool {
	if !a.admit(n) || !a.keeps(n.path()) {
		return n.active
	}
	n.active, n.kept = false, n.isDir()
	a.report.Skipped++
	return n.kept
}

// admitAbsent is admit for a name that is not on the disk.
func (a *applier) admitAbsent(n *treeNode) bool {
	if a.admit(n) && !n.isDir() && a.keeps(n.path()) {
		n.active = false
		a.report.Skipped++
	}
	return n.active
}

// admit decides whether a wanted entry is to be dealt with.
func (a *applier) admit(n *treeNode) bool {
	if n.wanted == notWanted {
		return false
	}
	a.report.Entries++
	if a.skips(n.path()) {
		a.report.Skipped++
		return false
	}
	if a.index.origin(n).withheld {
		a.report.Withheld = append(a.report.Withheld, n.path())
		return false
	}
	n.active = true
	return true
}

// surveyDir looks at what is in n, which is active.
func (a *applier) surveyDir(n *treeNode) error {
	if err := a.ctx.Err(); err != nil {
		return err
	}
	var dirs []*treeNode
	if n.seen == nil || n.seen.kind != Directory {
		if n.kept {
			return nil // something else is there, and stays
		}
		for c := a.index.child(n); c != nil; c = a.index.next(c) {
			if a.admitAbsent(c) && c.isDir() {
				dirs = append(dirs, c)
			}
		}
	} else {
		var err error
		if dirs, err = a.surveyNames(n); err != nil {
			return err
		}
	}
	for _, c := range dirs {
		if err := a.surveyDir(c); err != nil {
			return err
		}
	}
	return nil
}

// surveyNames goes along the names on disk and those of the manifest side by
// side. It tells the active directories among the latter.
func (a *applier) surveyNames(n *treeNode) (dirs []*treeNode, err error) {
	names, err := a.tree.list(n)
	if err != nil {
		return nil, err
	}
	fd, err := a.tree.hold(n)
	if err != nil {
		return nil, err
	}
	defer a.tree.release(n)
	var found []looked
	c := a.index.child(n)
	for len(names) > 0 || c != nil {
		switch {
		case c == nil || len(names) > 0 && names[0] < c.name:
			if err := a.surveyUnknown(n, names[0]); err != nil {
				return nil, err
			}
			names = names[1:]
			continue
		case len(names) > 0 && names[0] == c.name:
			names = names[1:]
			if a.admitPresent(c) {
				found = append(found, looked{c: c, e: a.index.entry(c)})
			}
		default:
			a.admitAbsent(c)
		}
		if len(found) >= lookAhead {
			if err := a.lookAll(fd, found); err != nil {
				return nil, err
			}
			found = found[:0]
		}
		if (c.active || c.kept) && c.isDir() {
			dirs = append(dirs, c)
		}
		c = a.index.next(c)
	}
	return dirs, a.lookAll(fd, found)
}

const (
	lookAhead = 1024 // names of a directory that are looked at together
	lookLeast = 8    // names that are worth another goroutine
)

// looked is a name that is both in the manifest and on disk.
type looked struct {
	c *treeNode
	e *Entry
	s *seen // nil: gone by now
}

// lookAll looks at names in the directory dir, by several goroutines, and then
// notes what follows from it.
func (a *applier) lookAll(dir int, found []looked) error {
	g, _ := errgroup.WithContext(a.ctx)
	share := max(lookLeast, (len(found)+a.workers-1)/a.workers)
	for some := range slices.Chunk(found, share) {
		look := func() error {
			for i := range some {
				if err := a.look(dir, &some[i]); err != nil {
					return err
				}
			}
			return nil
		}
		if len(some) == len(found) {
			if err := look(); err != nil {
				return err
			}
			break
		}
		g.Go(look)
	}
	if err := g.Wait(); err != nil {
		return err
	}
	for _, f := range found {
		if f.s == nil {
			continue
		}
		f.c.seen = f.s
		switch {
		case f.s.kind == Directory && f.e.Kind != Directory:
			if err := a.surveyObstacle(f.c); err != nil {
				return err
			}
		case f.s.kind != Directory && f.s.nlink > 1:
			a.inodeOf(f.s).names++
		case f.s.right && f.s.meta && f.s.kind != Directory && !f.c.linked:
			f.c.seen = &a.rights[f.s.kind] // there is no more to know of it
		}
	}
	return nil
}

// look compares what is at a name with its entry, content of regular files
// aside. It changes nothing but f.s.
func (a *applier) look(dir int, f *looked) error {
	c, e := f.c, f.e
	o, err := openObject(dir, c.name)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return &os.PathError{Op: "stat", Path: c.path(), Err: err}
	}
	defer o.close()
	s := seenObject(o)
	f.s = s
	if s.kind == Directory {
		s.mount = isMountRoot(o.fd, o.st.Dev, c.parent.seen.inode.dev)
		s.mounted = s.mount && !slices.Contains(a.o.Mounts, "/"+c.path()) || c.parent.seen.mounted
	}
	if s.kind != e.Kind {
		return nil
	}
	t, err := a.tree.traits(o.st.Dev, c.parent)
	if err != nil {
		return err
	}
	d, err := diffMeta(e, o, t, a.o.Full)
	if err != nil {
		return fmt.Errorf("reading the metadata of %q: %w", c.path(), err)
	}
	s.meta = d.none()
	switch s.kind {
	case Regular:
		s.right = o.st.Size == e.Size && (e.Size == 0 || !d.mtime && !a.o.Full)
		s.check = o.st.Size == e.Size && !s.right
	case Symlink:
		target, err := readLink(o.fd)
		if err != nil {
			return &os.PathError{Op: "readlink", Path: c.path(), Err: err}
		}
		s.right = target == e.Target
	case CharDevice, BlockDevice:
		s.right = unix.Major(o.st.Rdev) == e.Major && unix.Minor(o.st.Rdev) == e.Minor
	default:
		s.right = true
	}
	return nil
}

func seenObject(o *object) *seen {
	return &seen{
		kind:  o.kind(),
		inode: inodeKey{o.st.Dev, o.st.Ino},
		nlink: uint64(o.st.Nlink),
		room:  o.st.Blocks * 512,
	}
}

func (a *applier) inodeOf(s *seen) *inode {
	i := a.inodes[s.inode]
	if i == nil {
		i = &inode{}
		a.inodes[s.inode] = i
	}
	return i
}

// surveyUnknown looks at a name that the manifest does not have in n.
func (a *applier) surveyUnknown(n *treeNode, name string) error {
	x := &treeNode{name: name, parent: n, at: strange}
	if a.skips(x.path()) {
		return nil
	}
	if isTempName(name) {
		a.temps = append(a.temps, x)
		return nil
	}
	if a.keeps(x.path()) || !a.o.Delete || n.wanted != wantedAll || n.seen.mounted || n.opaque {
		return nil
	}
	// mkfs makes it, and fsck wants it.
	if name == "lost+found" && n.seen.mount {
		return nil
	}
	_, err := a.surveyExtra(x, &a.extras)
	return err
}

// surveyExtra collects x and what is below it, children first, but for what
// has to stay: what Skip says, mount points, and the directories of either.
// It tells whether x stays.
func (a *applier) surveyExtra(x *treeNode, into *[]*treeNode) (stays bool, err error) {
	if err := a.lookExtra(x); err != nil || x.seen == nil {
		return false, err
	}
	switch {
	case x.seen.mount:
		return true, nil
	case x.seen.kind == Directory:
		if stays, err = a.surveyBelow(x, into); err != nil || stays {
			return stays, err
		}
	case x.seen.nlink > 1:
		a.inodeOf(x.seen).names++
	}
	*into = append(*into, x)
	return false, nil
}

func (a *applier) lookExtra(x *treeNode) error {
	dir, err := a.tree.hold(x.parent)
	if err != nil {
		return err
	}
	defer a.tree.release(x.parent)
	o, err := openObject(dir, x.name)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return &os.PathError{Op: "stat", Path: x.path(), Err: err}
	}
	defer o.close()
	x.seen = seenObject(o)
	if x.seen.kind == Directory {
		x.seen.mount = isMountRoot(o.fd, o.st.Dev, x.parent.seen.inode.dev)
	}
	return nil
}

// surveyBelow collects what is in the directory x.
func (a *applier) surveyBelow(x *treeNode, into *[]*treeNode) (stays bool, err error) {
	if err := a.ctx.Err(); err != nil {
		return false, err
	}
	names, err := a.tree.list(x)
	if err != nil {
		return false, err
	}
	for _, name := range names {
		c := &treeNode{name: name, parent: x, at: strange}
		if a.skips(c.path()) || a.keeps(c.path()) {
			stays = true
			continue
		}
		kept, err := a.surveyExtra(c, into)
		if err != nil {
			return false, err
		}
		stays = stays || kept
	}
	return stays, nil
}

// surveyObstacle looks at a directory where the manifest has none. It gives
// way when that loses nothing the caller did not ask to lose.
func (a *applier) surveyObstacle(c *treeNode) error {
	kind := a.index.origin(c).kind
	if c.seen.mount {
		return fmt.Errorf("%q is a mount point, and a %s in the image", c.path(), kind)
	}
	var below []*treeNode
	stays, err := a.surveyBelow(c, &below)
	switch {
	case err != nil:
		return err
	case stays:
		return fmt.Errorf("%q is a directory with something in it that is to be kept, and a %s in the image", c.path(), kind)
	case len(below) > 0 && (!a.o.Delete || c.seen.mounted):
		return fmt.Errorf("%q is a directory that is not empty, and a %s in the image: remove it, or let what the image lacks be deleted", c.path(), kind)
	}
	a.obstacles[c] = below
	return nil
}
