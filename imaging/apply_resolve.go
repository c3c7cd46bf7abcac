package imaging

import (
	"errors"
	"math"
	"os"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// act is what is to be done to an entry.
type act uint8

const (
	actNone  act = iota // is right
	actFix              // set metadata
	actWrite            // make, or replace whole
	actLink             // give keeper's inode this name too
)

// verify reads the regular files of the right size whose time is another (or
// all, where so wished) and finds out whether their content is right.
func (a *applier) verify() error {
	type judged struct {
		inode  inodeKey
		origin *treeNode
	}
	leaders := map[judged]*seen{} // names of one inode are read once
	type follower struct{ leader, s *seen }
	var followers []follower
	g, ctx := errgroup.WithContext(a.ctx)
	g.SetLimit(a.workers)
	for n := range a.active() {
		if n.seen == nil || !n.seen.check {
			continue
		}
		if n.seen.nlink > 1 {
			key := judged{n.seen.inode, a.index.origin(n)}
			if l := leaders[key]; l != nil {
				followers = append(followers, follower{l, n.seen})
				continue
			}
			leaders[key] = n.seen
		}
		g.Go(func() error {
			if err := ctx.Err(); err != nil {
				return err
			}
			same, err := a.verifyFile(n, a.index.entryNow(n))
			n.seen.right = same
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	for _, f := range followers {
		f.s.right = f.leader.right
	}
	return nil
}

// verifyFile tells whether n's content is what e says. What may not be read
// is written anew.
func (a *applier) verifyFile(n *treeNode, e *Entry) (bool, error) {
	dir, err := a.tree.hold(n.parent)
	if err != nil {
		return false, err
	}
	defer a.tree.release(n.parent)
	fd, err := openQuiet(dir, n.name, unix.O_RDONLY|unix.O_NONBLOCK)
	if errors.Is(err, unix.EACCES) || errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ELOOP) {
		return false, nil
	}
	if err != nil {
		return false, &os.PathError{Op: "open", Path: n.path(), Err: err}
	}
	defer unix.Close(fd)
	at, err := differsAt(a.ctx, fd, e, nil)
	if err != nil {
		return false, &os.PathError{Op: "read", Path: n.path(), Err: err}
	}
	return at < 0, nil
}

// resolve decides what is to be done to each active entry.
func (a *applier) resolve() {
	done := map[*names]bool{}
	for n := range a.active() {
		switch {
		case n.isDir():
			switch {
			case n.seen == nil || n.seen.kind != Directory:
				n.act = actWrite
			case !n.seen.meta:
				n.act = actFix
			}
		case !n.linked:
			a.resolveGroup(nil, n)
		case !done[a.index.links[n]]:
			all := a.index.links[n]
			done[all] = true
			a.resolveGroup(all, all.active()...)
		}
	}
	for n := range a.active() {
		if n.act == actNone {
			a.report.Unchanged++
		}
	}
}

// active are those names of a file that are dealt with.
func (all *names) active() []*treeNode {
	var list []*treeNode
	for _, n := range append([]*treeNode{all.first}, all.others...) {
		if n.active {
			list = append(list, n)
		}
	}
	return list
}

// resolveGroup decides for all active names of one file; all is nil when there
// is only one. A name that is right keeps its inode, and the others become
// links to it.
func (a *applier) resolveGroup(all *names, list ...*treeNode) {
	keeper := list[0]
	keeper.act = actWrite
	for _, n := range list {
		if n.seen != nil && n.seen.right && a.claim(n) {
			keeper = n
			list[0].act = actNone
			if !n.seen.meta {
				n.act = actFix
			}
			break
		}
	}
	for _, n := range list {
		if n == keeper || keeper.act != actWrite && n.seen != nil && n.seen.inode == keeper.seen.inode {
			continue
		}
		n.act = actLink
	}
	if all != nil {
		all.keeper = keeper
	}
}

// claim tells whether the file may keep the inode that n leads to now: it has
// no names that the manifest says are another file, and if its metadata is
// not right, none that are nobody's business here.
func (a *applier) claim(n *treeNode) bool {
	if n.seen.nlink <= 1 {
		return true
	}
	i := a.inodeOf(n.seen)
	if i.owner != nil && i.owner != a.index.origin(n) || !n.seen.meta && n.seen.nlink > i.names {
		return false
	}
	i.owner = a.index.origin(n)
	return true
}

// checkSpace says when what is to be written cannot fit, so far as that can be
// told before it is written.
func (a *applier) checkSpace() error {
	type demand struct {
		at            *treeNode // a directory that is there
		bytes, inodes int64
	}
	demands := map[uint64]*demand{}
	for n := range a.active() {
		if n.act != actWrite {
			continue
		}
		at := n
		for at.parent != nil && (at == n || at.seen == nil || at.seen.kind != Directory) {
			at = at.parent
		}
		d := demands[at.seen.inode.dev]
		if d == nil {
			d = &demand{at: at}
			demands[at.seen.inode.dev] = d
		}
		if n.seen == nil {
			d.inodes++
		} else if n.seen.nlink == 1 {
			d.bytes -= n.seen.room
		}
		if a.index.origin(n).kind == Regular && !a.content.doubles[n.at] {
			for _, x := range a.index.entry(n).Data() {
				d.bytes += roundUp(x.Length, 4096)
			}
		}
		if n.isDir() {
			d.bytes += 4096
		}
	}
	for _, d := range demands {
		if err := a.fits(d.at, d.bytes, d.inodes); err != nil {
			return err
		}
	}
	return nil
}

func roundUp(n, unit int64) int64 { return (n + unit - 1) / unit * unit }

// fits asks the file system that the directory at is on.
func (a *applier) fits(at *treeNode, bytes, inodes int64) error {
	fd, err := a.tree.hold(at)
	if err != nil {
		return err
	}
	defer a.tree.release(at)
	var st unix.Statfs_t
	if err := unix.Fstatfs(fd, &st); err != nil {
		return &os.PathError{Op: "statfs", Path: at.path(), Err: err}
	}
	t, err := a.tree.traits(at.seen.inode.dev, at)
	if err != nil {
		return err
	}
	// A tmpfs without limit, and a ramfs, tell of no blocks at all.
	if st.Blocks > 0 && !t.squeeze {
		free := st.Bavail
		if a.strict {
			free = st.Bfree // what ext4 reserves is reserved for root
		}
		unit := uint64(max(st.Frsize, 1))
		have := int64(min(free, math.MaxInt64/unit) * unit)
		if bytes > have {
			return &SpaceError{Path: a.display(at), Need: bytes, Have: have}
		}
	}
	if st.Files > 0 && inodes > 0 && uint64(inodes) > st.Ffree {
		return &SpaceError{Path: a.display(at), Need: inodes, Have: int64(st.Ffree), Inodes: true}
	}
	return nil
}
