package imaging

import (
	"context"
	"os"
	"slices"

	"golang.org/x/sys/unix"

	"doppel/imaging/store"
)

const (
	shareLeast = 64 << 10 // a smaller file is written as fast as shared
	twinsAsked = 16       // files that begin alike, before a file is taken for one without an equal
)

// shared notes that n is to share the blocks of a file of the same content that
// is to be written too, if there is one and the file system can.
func (a *applier) shared(n *treeNode, e *Entry) bool {
	if e.Size < shareLeast || len(e.Chunks) == 0 {
		return false
	}
	c := a.content
	number, ok := c.src.Find(store.Ref{Audience: e.Class.Audience(), ID: e.Chunks[0].ID})
	if !ok || int(number) >= len(c.first) {
		return false
	}
	asked := 0
	for i := c.first[number]; i >= 0 && asked < twinsAsked; i = c.pieces[i].next {
		p := &c.pieces[i]
		if p.extent != 0 || p.off != 0 {
			continue
		}
		asked++
		twin := &a.index.nodes[p.node]
		if !a.canShare(twin, n) || !sameContent(a.index.entryNow(twin), e) {
			continue
		}
		c.copies[p.node] = append(c.copies[p.node], n.at)
		c.doubles[n.at] = true
		return true
	}
	return false
}

// sameContent tells whether two files of one audience hold the same.
func sameContent(a, b *Entry) bool {
	const onlyWhenEmpty = 0x800000 // no copy on write: blocks are shared among such files only
	return a.Size == b.Size && (a.Flags^b.Flags)&onlyWhenEmpty == 0 && slices.Equal(a.Chunks, b.Chunks) && slices.Equal(a.Data(), b.Data())
}

// canShare tells whether two files are to be on one file system that can share
// blocks.
func (a *applier) canShare(x, y *treeNode) bool {
	at, other := existing(x), existing(y)
	if at.seen.inode.dev != other.seen.inode.dev {
		return false
	}
	t, err := a.tree.traits(at.seen.inode.dev, at)
	return err == nil && t.shares
}

// existing is the nearest directory above n that is there.
func existing(n *treeNode) *treeNode {
	at := n.parent
	for at.parent != nil && (at.seen == nil || at.seen.kind != Directory) {
		at = at.parent
	}
	return at
}

// share makes a file that has the same content as t, which is whole and still
// under its temporary name in dir.
func (a *applier) share(ctx context.Context, t *target, dir int, node int32, whole chan<- *target) error {
	from, err := openRetry(dir, t.temp, unix.O_RDONLY|unix.O_NOFOLLOW)
	if err != nil {
		return &os.PathError{Op: "open", Path: t.n.path(), Err: err}
	}
	defer unix.Close(from)
	double := a.target(a.content, node)
	at, err := a.tree.hold(double.n.parent)
	if err != nil {
		return err
	}
	defer a.tree.release(double.n.parent)
	to, err := a.create(double, at)
	if err != nil {
		return &os.PathError{Op: "create", Path: double.n.path(), Err: err}
	}
	if err = unix.IoctlFileClone(to, from); err == nil {
		a.mu.Lock()
		a.report.BytesShared += double.bytes
		a.mu.Unlock()
	} else {
		// The file system as a whole can, and these two cannot.
		err = copyData(ctx, double, from, to)
	}
	if cerr := unix.Close(to); err == nil {
		err = cerr
	}
	if err != nil {
		return &os.PathError{Op: "write", Path: double.n.path(), Err: err}
	}
	return a.complete(ctx, double, at, whole)
}

// copyData gives the empty file to the size and data of t's entry, from a file
// that has them.
func copyData(ctx context.Context, t *target, from, to int) error {
	if err := t.shape(to); err != nil {
		return err
	}
	buf := make([]byte, 1<<20)
	for _, x := range t.e.Data() {
		for x.Length > 0 {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			b := buf[:min(x.Length, int64(len(buf)))]
			if _, err := preadAll(from, b, x.Offset); err != nil {
				return err
			}
			if err := pwriteAll(to, b, x.Offset); err != nil {
				return err
			}
			x.Offset, x.Length = x.Offset+int64(len(b)), x.Length-int64(len(b))
		}
	}
	return nil
}
