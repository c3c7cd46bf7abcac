package imaging

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// comparer is one CompareTree at work.
type comparer struct {
	ctx    context.Context
	o      CompareOptions
	tree   *beneath
	index  *treeIndex
	names  []*treeNode // of the manifest, that are in the tree and no directories
	toRead []*treeNode
	diffs  []Difference

	mu    sync.Mutex // guards what follows
	read  int64
	total int64
	told  time.Time
}

func (c *comparer) run() error {
	x := c.index
	o, err := openObject(c.tree.root, ".")
	if err != nil {
		return err
	}
	defer o.close()
	var up unix.Stat_t
	if err := unix.Fstatat(c.tree.root, "..", &up, 0); err != nil {
		return err
	}
	x.root.seen = seenObject(o)
	x.root.seen.mount = isMountRoot(c.tree.root, o.st.Dev, up.Dev)
	if c.skip(x.root) {
		return nil
	}
	if err := c.metadata(x.root, o); err != nil {
		return err
	}
	if err := c.directory(x.root); err != nil {
		return err
	}
	c.links()
	return c.contents()
}

func (c *comparer) skip(n *treeNode) bool { return c.o.Skip != nil && c.o.Skip(n.path()) }

func (c *comparer) differ(n *treeNode, kind DifferenceKind, want, have string) {
	c.diffs = append(c.diffs, Difference{Path: n.path(), Kind: kind, Want: want, Have: have})
}

// directory compares what is in n, a directory here and there.
func (c *comparer) directory(n *treeNode) error {
	if err := c.ctx.Err(); err != nil {
		return context.Cause(c.ctx)
	}
	names, err := c.tree.list(n)
	if err != nil {
		return err
	}
	child := c.index.child(n)
	var below []*treeNode
	for len(names) > 0 || child != nil {
		switch {
		case child == nil || len(names) > 0 && names[0] < child.name:
			if err := c.extra(&treeNode{name: names[0], parent: n, at: strange}); err != nil {
				return err
			}
			names = names[1:]
			continue
		case len(names) > 0 && names[0] == child.name:
			names = names[1:]
			if err := c.entry(child); err != nil {
				return err
			}
		default:
			c.missing(child)
		}
		if s := child.seen; s != nil && s.kind == Directory && child.isDir() {
			below = append(below, child)
		}
		child = c.index.next(child)
	}
	for _, child := range below {
		if err := c.directory(child); err != nil {
			return err
		}
	}
	return nil
}

// missing notes n, and all that is below it, as not being there.
func (c *comparer) missing(n *treeNode) {
	first := c.index.origin(n)
	if c.skip(n) || first.withheld {
		return
	}
	c.differ(n, DiffMissing, first.kind.String(), "nothing")
	c.missingBelow(n)
}

func (c *comparer) missingBelow(n *treeNode) {
	for child := c.index.child(n); child != nil; child = c.index.next(child) {
		c.missing(child)
	}
}

// extra notes x, and all that is below it, as being there without being in the
// manifest.
func (c *comparer) extra(x *treeNode) error {
	if x.parent.opaque || c.skip(x) || x.name == "lost+found" && x.parent.seen.mount {
		return nil
	}
	if err := c.look(x, func(*object) error { return nil }); err != nil || x.seen == nil {
		return err
	}
	c.differ(x, DiffExtra, "nothing", x.seen.kind.String())
	if x.seen.kind != Directory {
		return nil
	}
	if err := c.ctx.Err(); err != nil {
		return context.Cause(c.ctx)
	}
	names, err := c.tree.list(x)
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := c.extra(&treeNode{name: name, parent: x, at: strange}); err != nil {
			return err
		}
	}
	return nil
}

// look takes hold of n for as long as fn runs. What is gone by now is as if it
// had not been listed.
func (c *comparer) look(n *treeNode, fn func(*object) error) error {
	dir, err := c.tree.hold(n.parent)
	if err != nil {
		return err
	}
	defer c.tree.release(n.parent)
	o, err := openObject(dir, n.name)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return &os.PathError{Op: "stat", Path: n.path(), Err: err}
	}
	defer o.close()
	n.seen = seenObject(o)
	if n.seen.kind == Directory {
		n.seen.mount = isMountRoot(o.fd, o.st.Dev, n.parent.seen.inode.dev)
	}
	return fn(o)
}

// entry compares one name that is both here and there; content is read later.
func (c *comparer) entry(n *treeNode) error {
	if c.skip(n) || c.index.origin(n).withheld {
		return nil
	}
	err := c.look(n, func(o *object) error { return c.object(n, o) })
	if err == nil && n.seen == nil {
		c.missing(n)
	}
	return err
}

func (c *comparer) object(n *treeNode, o *object) error {
	e := c.index.entry(n)
	if n.seen.kind != e.Kind {
		c.differ(n, DiffType, e.Kind.String(), n.seen.kind.String())
		c.missingBelow(n)
		return nil
	}
	if n.seen.kind != Directory {
		c.names = append(c.names, n)
	}
	switch n.seen.kind {
	case Regular:
		trusted := c.o.Trust && o.mtime() == e.MTime
		if o.st.Size != e.Size {
			c.differ(n, DiffSize, strconv.FormatInt(e.Size, 10), strconv.FormatInt(o.st.Size, 10))
		} else if !trusted && e.Size > 0 {
			c.toRead = append(c.toRead, n)
		}
	case Symlink:
		target, err := readLink(o.fd)
		if err != nil {
			return &os.PathError{Op: "readlink", Path: n.path(), Err: err}
		}
		if target != e.Target {
			c.differ(n, DiffTarget, strconv.Quote(e.Target), strconv.Quote(target))
		}
	case CharDevice, BlockDevice:
		if major, minor := unix.Major(o.st.Rdev), unix.Minor(o.st.Rdev); major != e.Major || minor != e.Minor {
			c.differ(n, DiffDevice, fmt.Sprintf("%d:%d", e.Major, e.Minor), fmt.Sprintf("%d:%d", major, minor))
		}
	}
	return c.metadata(n, o)
}

func (c *comparer) metadata(n *treeNode, o *object) error {
	e := c.index.entry(n)
	at := n.parent
	if at == nil {
		at = n
	}
	t, err := c.tree.traits(o.st.Dev, at)
	if err != nil {
		return err
	}
	d, err := diffMeta(e, o, t, !c.o.Trust)
	if err != nil {
		return fmt.Errorf("reading the metadata of %q: %w", n.path(), err)
	}
	if d.owner {
		c.differ(n, DiffOwner, fmt.Sprintf("%d:%d", e.UID, e.GID), fmt.Sprintf("%d:%d", o.st.Uid, o.st.Gid))
	}
	if d.mode {
		c.differ(n, DiffMode, fmt.Sprintf("%04o", e.Mode), fmt.Sprintf("%04o", o.st.Mode&0o7777))
	}
	if d.mtime {
		c.differ(n, DiffMTime, e.MTime.display(), o.mtime().display())
	}
	for _, x := range d.set {
		c.differ(n, DiffXattr, x.Name+"="+strconv.Quote(string(x.Value)), x.Name+" absent or of another value")
	}
	if have := d.flags; have != nil {
		if want := e.Flags & t.flags; have.flags != want {
			c.differ(n, DiffFlags, flagLetters(want), flagLetters(have.flags))
		}
		if have.project != e.Project {
			c.differ(n, DiffProject, strconv.FormatUint(uint64(e.Project), 10), strconv.FormatUint(uint64(have.project), 10))
		}
	}
	for _, name := range d.remove {
		c.differ(n, DiffXattr, "no "+name, name)
	}
	return nil
}

// display writes a time for people.
func (t Time) display() string {
	return time.Unix(t.Sec, int64(t.Nsec)).UTC().Format("2006-01-02T15:04:05.000000000Z")
}

// links compares which names lead to one inode.
func (c *comparer) links() {
	holder := map[inodeKey]*treeNode{}  // the first name seen of each inode
	leader := map[*treeNode]*treeNode{} // the first name seen of each file of the manifest
	slices.SortStableFunc(c.names, func(a, b *treeNode) int { return ComparePath(a.path(), b.path()) })
	for _, n := range c.names {
		origin := c.index.origin(n)
		first := leader[origin]
		if first == nil {
			leader[origin] = n
		} else if first.seen.inode != n.seen.inode {
			c.differ(n, DiffLinks, fmt.Sprintf("the same file as %q", first.path()), "another file")
			continue
		}
		if other := holder[n.seen.inode]; other == nil {
			holder[n.seen.inode] = n
		} else if c.index.origin(other) != origin {
			c.differ(n, DiffLinks, "a file of its own", fmt.Sprintf("the same file as %q", other.path()))
		}
	}
}

// contents reads what has to be read, several files at a time.
func (c *comparer) contents() error {
	type judged struct {
		inode  inodeKey
		origin *treeNode
	}
	once := map[judged]bool{}
	for _, n := range c.toRead {
		c.total += dataLength(c.index.entry(n))
	}
	workers := c.o.Workers
	if workers <= 0 {
		workers = runtime.GOMAXPROCS(0)
	}
	g, ctx := errgroup.WithContext(c.ctx)
	g.SetLimit(workers)
	for _, n := range c.toRead {
		// Names of one inode are read once; the first speaks for them all.
		if key := (judged{n.seen.inode, c.index.origin(n)}); n.seen.nlink > 1 {
			if once[key] {
				continue
			}
			once[key] = true
		}
		g.Go(func() error { return c.content(ctx, n) })
	}
	return g.Wait()
}

func (c *comparer) content(ctx context.Context, n *treeNode) error {
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	dir, err := c.tree.hold(n.parent)
	if err != nil {
		return err
	}
	defer c.tree.release(n.parent)
	fd, err := openQuiet(dir, n.name, unix.O_RDONLY|unix.O_NONBLOCK)
	if err != nil {
		return &os.PathError{Op: "open", Path: n.path(), Err: err}
	}
	defer unix.Close(fd)
	at, err := differsAt(ctx, fd, c.index.entryNow(n), c.advance)
	if err != nil {
		return &os.PathError{Op: "read", Path: n.path(), Err: err}
	}
	if at >= 0 {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.differ(n, DiffContent, "the content of the image", fmt.Sprintf("other bytes at %d or after", at))
	}
	return nil
}

func (c *comparer) advance(n int64) {
	if c.o.Progress == nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.read += n
	if now := time.Now(); now.Sub(c.told) >= 200*time.Millisecond {
		c.told = now
		c.o.Progress(c.read, c.total)
	}
}

// sorted are the differences by path, and by kind within a path.
func (c *comparer) sorted() []Difference {
	slices.SortStableFunc(c.diffs, func(a, b Difference) int {
		return cmp.Or(ComparePath(a.Path, b.Path), cmp.Compare(a.Kind, b.Kind))
	})
	return c.diffs
}
