package imaging

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"golang.org/x/sys/unix"
)

// need are the directories that a scan has to look into.
type need struct {
	look map[string]struct{} // these, and those on the way to them
	deep map[string]struct{} // these with all below
}

func (n *need) clean(dir string) bool {
	if _, ok := n.look[dir]; ok {
		return false
	}
	return !n.below(dir)
}

// below tells whether a directory is one of the deep ones, or in one.
func (n *need) below(dir string) bool {
	for {
		if _, ok := n.deep[dir]; ok {
			return true
		}
		if dir == "." {
			return false
		}
		dir = parentPath(dir)
	}
}

// add adds a directory, and tells whether it was not there.
func (n *need) add(dir string) bool {
	if !n.clean(dir) {
		return false
	}
	for n.look[dir] = struct{}{}; dir != "."; n.look[dir] = struct{}{} {
		dir = parentPath(dir)
	}
	return true
}

// needed tells which directories are to be looked into for these changes. Why is
// why that cannot be told.
func (w *watching) needed(ctx context.Context, list []changedDir) (n *need, why string, err error) {
	n = &need{look: map[string]struct{}{".": {}}, deep: map[string]struct{}{}}
	for _, p := range w.unwatched {
		n.add(parentPath(p))
		n.deep[p] = struct{}{}
	}
	if w.seen.full {
		return nil, fmt.Sprintf("there are more than %d names of files with several names, and which they are was not kept", maxLinkedNames), nil
	}
	for _, c := range list {
		if n.add(c.dir); c.deep {
			n.deep[c.dir] = struct{}{}
		}
		for _, name := range c.came {
			n.deep[joinPath(c.dir, name)] = struct{}{}
		}
	}
	accounted, err := w.withLinked(ctx, n)
	if err != nil {
		return nil, "", err
	}
	if !accounted {
		return nil, "a file has got another name, and where its first one is was not kept", nil
	}
	return n, "", nil
}

// withLinked adds the directories that hold other names of files in those that
// are looked into. It tells whether all these names are known.
func (w *watching) withLinked(ctx context.Context, n *need) (bool, error) {
	byDir := map[string][]*linkedNames{}
	for _, l := range w.seen.links {
		for _, p := range l.paths {
			byDir[parentPath(p)] = append(byDir[parentPath(p)], l)
		}
	}
	fresh := map[[2]uint64]uint64{} // names of files that had one name, or none, yet to be found
	c := closure{w: w, n: n, byDir: byDir, fresh: fresh, done: map[string]struct{}{}}
	for {
		todo := c.todo()
		if len(todo) == 0 {
			break
		}
		for _, dir := range todo {
			if err := c.look(ctx, dir); err != nil {
				return false, err
			}
		}
	}
	for _, left := range fresh {
		if left > 0 {
			return false, nil
		}
	}
	return true, nil
}

// closure is the search for directories that hold other names of files.
type closure struct {
	w     *watching
	n     *need
	byDir map[string][]*linkedNames
	fresh map[[2]uint64]uint64
	done  map[string]struct{}
}

// left tells whether the contents of a directory are not in the tree.
func (c *closure) left(dir string) bool {
	if _, lent := c.w.mounts.lent[dir]; lent {
		return true
	}
	return c.w.seen.within(dir) || isOwn(dir) || matchAny(c.w.exclude, dir)
}

// known adds the directories with other names of files that had one in dir.
func (c *closure) known(dir string) {
	for _, l := range c.byDir[dir] {
		c.add(l)
	}
}

func (c *closure) add(l *linkedNames) {
	for _, p := range l.paths {
		c.n.add(parentPath(p))
	}
}

// todo are the directories that were not looked into yet.
func (c *closure) todo() []string {
	var out []string
	for _, set := range []map[string]struct{}{c.n.look, c.n.deep} {
		for dir := range set {
			if _, ok := c.done[dir]; !ok {
				out = append(out, dir)
				c.done[dir] = struct{}{}
			}
		}
	}
	return out
}

// look looks for names in one directory; in a deep one, and those below.
func (c *closure) look(ctx context.Context, dir string) error {
	c.known(dir)
	if c.left(dir) {
		return nil
	}
	d, err := c.w.tree.dir(ctx, dir)
	if err != nil {
		return gone(err)
	}
	defer d.Close()
	return c.list(ctx, d, dir, c.n.below(dir))
}

// gone is the error but for a directory that is not there, or no directory.
func gone(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

func (c *closure) list(ctx context.Context, d *localDir, dir string, deep bool) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	names, err := d.Names(ctx)
	if err != nil {
		return gone(readError(dir, err))
	}
	for _, name := range names {
		if c.w.mounts.lent[joinPath(dir, name)].remote {
			continue // whose server may be gone
		}
		var st unix.Stat_t
		err := unix.Fstatat(d.fd, name, &st, unix.AT_SYMLINK_NOFOLLOW)
		if err != nil {
			if gone(err) != nil {
				return readError(joinPath(dir, name), err)
			}
			continue
		}
		if st.Mode&unix.S_IFMT == unix.S_IFDIR {
			if err := c.below(ctx, d, name, joinPath(dir, name), deep); err != nil {
				return err
			}
			continue
		}
		if st.Nlink > 1 {
			c.linked([2]uint64{uint64(st.Dev), st.Ino}, uint64(st.Nlink))
		}
	}
	return nil
}

// below looks into a directory below a deep one.
func (c *closure) below(ctx context.Context, d *localDir, name, path string, deep bool) error {
	if _, ok := c.done[path]; !deep || ok || c.left(path) {
		return nil
	}
	c.done[path] = struct{}{}
	c.known(path)
	next, err := d.Dir(ctx, name)
	if err != nil {
		return gone(readError(path, err))
	}
	defer next.Close()
	return c.list(ctx, next.(*localDir), path, true)
}

// linked takes a name of a file with several.
func (c *closure) linked(inode [2]uint64, count uint64) {
	if l := c.w.seen.links[inode]; l != nil {
		c.add(l)
		return
	}
	left, ok := c.fresh[inode]
	if !ok {
		left = count
	}
	if left > 0 {
		c.fresh[inode] = left - 1
	}
}
