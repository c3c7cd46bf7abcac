package imaging

import (
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// What is whole gets its name in batches: one syncfs makes the data of all of
// them durable, and only then are they renamed. So at no instant, power cuts
// included, does a final name lead to a file whose data is not on the disk.
// One fsync a file would say the same, ten times slower.
const (
	maxBatch      = 16384     // files
	maxBatchBytes = 512 << 20 // of content
)

// settle collects what is whole, puts it in place, and tells placed of it.
func (a *applier) settle(ctx context.Context, whole <-chan *target, placed func(*target)) error {
	var batch []*target
	var bytes int64
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case t, more := <-whole:
			if more {
				batch = append(batch, t)
				bytes += t.bytes
			}
			if len(batch) > 0 && (!more || len(batch) >= maxBatch || bytes >= maxBatchBytes) {
				if err := a.settleBatch(ctx, batch, placed); err != nil {
					return err
				}
				batch, bytes = batch[:0], 0
			}
			if !more {
				return nil
			}
		}
	}
}

func (a *applier) settleBatch(ctx context.Context, batch []*target, placed func(*target)) error {
	if err := a.sync(); err != nil {
		return err
	}
	for _, t := range batch {
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		if err := a.place(t); err != nil {
			return err
		}
		placed(t)
	}
	return nil
}

// place gives a whole file its name, and what bore it before gives way.
func (a *applier) place(t *target) error {
	if err := a.clear(t.n); err != nil {
		return err
	}
	dir, err := a.tree.hold(t.n.parent)
	if err != nil {
		return err
	}
	defer a.tree.release(t.n.parent)
	if t.n.seen != nil {
		unfastenName(dir, t.n.name)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := unix.Renameat(dir, t.temp, dir, t.n.name); err != nil {
		return &os.PathError{Op: "put in place", Path: t.n.path(), Err: err}
	}
	t.temp = ""
	a.did(t.n, ActWrite, t.bytes)
	if t.regular {
		a.advance(1, 0)
	}
	return nil
}

// clear removes a directory that stands where something else belongs.
func (a *applier) clear(n *treeNode) error {
	below, there := a.obstacles[n]
	if !there {
		return nil
	}
	for _, x := range append(below, n) {
		if err := a.remove(x); err != nil {
			return err
		}
	}
	delete(a.obstacles, n)
	return nil
}

// link gives names to inodes that have others: after content, since a name
// is linked to what is whole.
func (a *applier) link() error {
	for n := range a.active() {
		if n.act != actLink {
			continue
		}
		if _, unmade := a.unmade[a.index.links[n].keeper]; unmade {
			a.lose(n.path(), "hard link", "what it links to could not be made")
			continue
		}
		if err := a.linkOne(n); err != nil {
			return &os.PathError{Op: "link", Path: n.path(), Err: err}
		}
		a.did(n, ActWrite, 0)
	}
	return nil
}

func (a *applier) linkOne(n *treeNode) error {
	if err := a.clear(n); err != nil {
		return err
	}
	keeper := a.index.links[n].keeper
	from, err := a.tree.hold(keeper.parent)
	if err != nil {
		return err
	}
	defer a.tree.release(keeper.parent)
	to, err := a.tree.hold(n.parent)
	if err != nil {
		return err
	}
	defer a.tree.release(n.parent)
	if unfastenName(from, keeper.name) {
		a.unfastened[keeper] = struct{}{}
	}
	if n.seen != nil {
		unfastenName(to, n.name)
	}
	temp := newTempName()
	if err := unix.Linkat(from, keeper.name, to, temp, 0); err != nil {
		return err
	}
	if err := unix.Renameat(to, temp, to, n.name); err != nil {
		return errors.Join(err, unix.Unlinkat(to, temp, 0))
	}
	return nil
}

// remove removes one name; a directory must be empty by now.
func (a *applier) remove(x *treeNode) error {
	a.touch(x.parent)
	dir, err := a.tree.hold(x.parent)
	if err != nil {
		return err
	}
	defer a.tree.release(x.parent)
	flags := 0
	unfastenName(dir, x.name)
	if x.seen != nil && x.seen.kind == Directory {
		flags = unix.AT_REMOVEDIR
		a.tree.forget(x)
	}
	err = unix.Unlinkat(dir, x.name, flags)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return &os.PathError{Op: "remove", Path: x.path(), Err: err}
	}
	return nil
}

// touch notes that something happens in the directory n: its time is to be set
// again, and its file system to be synced.
func (a *applier) touch(n *treeNode) {
	if n.dirty {
		return
	}
	n.dirty = true
	a.touchFS(n)
	if n.seen == nil {
		return // it was just made
	}
	if fd, err := a.tree.hold(n); err == nil {
		unfastenName(fd, ".")
		a.tree.release(n)
	}
	if !a.strict {
		a.unlockForWriting(n)
	}
}

// touchFS notes that something happens on the file system that n is on.
func (a *applier) touchFS(n *treeNode) {
	for n.parent != nil && (n.seen == nil || !n.seen.mount) {
		n = n.parent
	}
	a.touched[n] = struct{}{}
}

// sync makes everything durable that was done so far on every file system
// that something was done on. Since Linux 5.8 it also tells of data that was
// lost on the way to the disk.
func (a *applier) sync() error {
	for n := range a.touched {
		fd, err := a.tree.hold(n)
		if err != nil {
			return err
		}
		err = unix.Syncfs(fd)
		a.tree.release(n)
		if err != nil {
			return fmt.Errorf("syncing the file system at %s: %w", a.display(n), err)
		}
	}
	return nil
}
