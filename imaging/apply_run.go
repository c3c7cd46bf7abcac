package imaging

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// applier is one Apply at work.
type applier struct {
	ctx     context.Context
	o       ApplyOptions
	src     ChunkSource
	log     *slog.Logger
	workers int
	strict  bool // what cannot be set is an error, not a loss

	tree    *beneath
	index   *treeIndex
	content *content // what is to be written

	rights [HardLink]seen // what is right in all respects, by kind

	// What the survey found. Written by one goroutine, before any other runs.
	inodes    map[inodeKey]*inode
	extras    []*treeNode // to be deleted, in this order
	temps     []*treeNode // left behind by an Apply that was killed
	obstacles map[*treeNode][]*treeNode

	touched map[*treeNode]struct{} // roots of the file systems something was done on
	unmade  map[*treeNode]struct{} // devices that could not be made

	unfastened map[*treeNode]struct{} // right files whose flags were taken off to link to them

	mu       sync.Mutex // guards what follows
	report   *ApplyReport
	progress ApplyProgress
	told     time.Time

	unlockMu sync.Mutex
	unlocked map[*treeNode]uint32 // directories opened up to get in, with the modes they had
}

// run carries out the whole: look, decide, then change.
func (a *applier) run(m *Manifest, dir string) (err error) {
	if a.index, err = indexManifest(m); err != nil {
		return err
	}
	for k := range a.rights {
		a.rights[k] = seen{kind: Kind(k), nlink: 1, right: true, meta: true}
	}
	if err := a.index.selectPaths(a.o.Paths); err != nil {
		return err
	}
	if err := a.openRoot(dir); err != nil {
		return err
	}
	if a.tree == nil {
		return a.rehearseFromNothing()
	}
	defer a.tree.close()
	if !a.strict && !a.o.DryRun {
		a.tree.unlock = a.unlock
		defer func() { err = errors.Join(err, a.relock()) }()
	}
	if err := a.survey(); err != nil {
		return err
	}
	if err := a.verify(); err != nil {
		return err
	}
	a.resolve()
	if a.o.DryRun {
		a.rehearse()
		if err := a.gather(); err != nil {
			return err
		}
		return a.checkSpace()
	}
	if err := a.sweep(); err != nil {
		return err
	}
	if err := a.gather(); err != nil {
		return err
	}
	if err := a.checkSpace(); err != nil {
		return err
	}
	return a.change()
}

// openRoot opens the tree's root, for this Apply alone. A dry run of a root
// that is not there leaves a.tree nil.
func (a *applier) openRoot(dir string) error {
	_, err := os.Stat(dir)
	if errors.Is(err, fs.ErrNotExist) {
		if a.o.DryRun {
			return nil
		}
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return err
		}
	}
	if a.tree, err = openBeneath(dir); err != nil {
		return err
	}
	if a.o.DryRun {
		return nil
	}
	// Two at once would take each other's temporary files for litter.
	err = unix.Flock(a.tree.root, unix.LOCK_EX|unix.LOCK_NB)
	switch {
	case errors.Is(err, unix.EWOULDBLOCK):
		err = fmt.Errorf("another apply is at work in %s", dir)
	case errors.Is(err, unix.ENOSYS), errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.ENOLCK):
		err = nil // a network file system without locks
	}
	if err != nil {
		a.tree.close()
	}
	return err
}

// change does what was decided, in the order that leaves whole what is there
// whenever it is cut short.
func (a *applier) change() error {
	for _, step := range []func() error{a.makeDirs, a.prepare, a.fix, a.write, a.link, a.written, a.deleteExtras, a.fasten, a.finishDirs} {
		if err := a.ctx.Err(); err != nil {
			return context.Cause(a.ctx)
		}
		if err := step(); err != nil {
			return err
		}
	}
	a.tell(true)
	return a.sync()
}

// written tells the caller that nothing is left to be done but removals.
func (a *applier) written() error {
	if a.o.Written == nil {
		return nil
	}
	if err := a.sync(); err != nil {
		return err
	}
	return a.o.Written()
}

// sweep removes temporary files that a killed Apply left.
func (a *applier) sweep() error {
	for _, x := range a.temps {
		a.log.Info("removing a temporary file left behind", "path", x.path())
		if err := a.remove(x); err != nil {
			return err
		}
	}
	return nil
}

// makeDirs makes the directories that are not there, closed to others until
// they get their own mode at the end.
func (a *applier) makeDirs() error {
	for n := range a.active() {
		if n.act != actWrite || !n.isDir() {
			continue
		}
		if n.seen != nil {
			if err := a.remove(n); err != nil {
				return err
			}
		}
		a.touch(n.parent)
		dir, err := a.tree.hold(n.parent)
		if err != nil {
			return err
		}
		err = unix.Mkdirat(dir, n.name, 0o700)
		a.tree.release(n.parent)
		if err != nil {
			return &os.PathError{Op: "make directory", Path: n.path(), Err: err}
		}
		n.dirty = true
		a.did(n, ActWrite, 0)
	}
	return nil
}

// prepare marks the directories that something will happen in.
func (a *applier) prepare() error {
	for n := range a.active() {
		if (n.act == actWrite || n.act == actLink) && !n.isDir() {
			a.touch(n.parent)
		}
	}
	for _, x := range a.extras {
		a.touch(x.parent)
	}
	return nil
}

// fix sets metadata of what is right otherwise, in place.
func (a *applier) fix() error {
	for n := range a.active() {
		if n.act == actFix && !n.isDir() {
			if err := a.setAt(n); err != nil {
				return err
			}
			a.touchFS(n.parent)
			a.did(n, ActFix, 0)
		}
	}
	return nil
}

// setAt sets all metadata of n, where it is.
func (a *applier) setAt(n *treeNode) error {
	at, name := n.parent, n.name
	if at == nil {
		at, name = n, "."
	}
	dir, err := a.tree.hold(at)
	if err != nil {
		return err
	}
	defer a.tree.release(at)
	o, err := openObject(dir, name)
	if err != nil {
		return &os.PathError{Op: "stat", Path: n.path(), Err: err}
	}
	defer o.close()
	t, err := a.tree.traits(o.st.Dev, at)
	if err != nil {
		return err
	}
	unfasten(o)
	e := a.index.entry(n)
	if err := a.setMeta(n.path(), e, o, t); err != nil || !n.isDir() {
		return err
	}
	return a.setFlags(n.path(), e, o, t)
}

// deleteExtras removes what the manifest does not have.
func (a *applier) deleteExtras() error {
	for _, x := range a.extras {
		if err := a.ctx.Err(); err != nil {
			return context.Cause(a.ctx)
		}
		err := a.remove(x)
		switch {
		case errors.Is(err, unix.EBUSY):
			// A mount point of this or another namespace.
			a.log.Warn("left alone: something is mounted there", "path", x.path())
			continue
		case errors.Is(err, unix.ENOTEMPTY):
			a.log.Warn("left alone: something was put into it meanwhile", "path", x.path())
			continue
		case err != nil && !a.strict && (errors.Is(err, unix.EACCES) || errors.Is(err, unix.EPERM)):
			a.lose(x.path(), "deletion", err.Error())
			continue
		case err != nil:
			return err
		}
		a.did(x, ActDelete, 0)
	}
	return nil
}

// finishDirs sets the metadata of directories, the deepest first: nothing
// happens in them any more that would change their times, and those above can
// still be entered.
func (a *applier) finishDirs() error {
	for n := range a.backward() {
		if !n.isDir() || n.act == actNone && !n.dirty && !a.wasUnlocked(n) {
			continue
		}
		if err := a.setAt(n); err != nil {
			return err
		}
		a.touchFS(n)
		a.locked(n)
		if n.act == actFix {
			a.did(n, ActFix, 0)
		}
	}
	return nil
}

// rehearse counts what would be done.
func (a *applier) rehearse() {
	for n := range a.active() {
		switch n.act {
		case actWrite:
			var bytes int64
			if a.index.origin(n).kind == Regular {
				bytes = dataLength(a.index.entry(n))
			}
			a.did(n, ActWrite, bytes)
		case actLink:
			a.did(n, ActWrite, 0)
		case actFix:
			a.did(n, ActFix, 0)
		}
	}
	for _, x := range a.extras {
		a.did(x, ActDelete, 0)
	}
}

// rehearseFromNothing is a dry run into a directory that is not there.
func (a *applier) rehearseFromNothing() error {
	root := a.index.root
	if !a.admit(root) {
		return nil
	}
	if err := a.surveyDir(root); err != nil {
		return err
	}
	a.resolve()
	a.rehearse()
	return nil
}

// dataLength is how much of a file is no hole.
func dataLength(e *Entry) int64 {
	var length int64
	for _, x := range e.Data() {
		length += x.Length
	}
	return length
}

// active are the nodes that are dealt with, directories before what is in them.
func (a *applier) active() iter.Seq[*treeNode] {
	return func(yield func(*treeNode) bool) {
		for i := range a.index.nodes {
			if n := &a.index.nodes[i]; n.active && !yield(n) {
				return
			}
		}
	}
}

// backward is active from the end.
func (a *applier) backward() iter.Seq[*treeNode] {
	return func(yield func(*treeNode) bool) {
		for i := len(a.index.nodes) - 1; i >= 0; i-- {
			if n := &a.index.nodes[i]; n.active && !yield(n) {
				return
			}
		}
	}
}

// did counts what was done and tells of it; bytes are of content.
func (a *applier) did(n *treeNode, act Act, bytes int64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	switch act {
	case ActWrite:
		a.report.Written++
		a.report.BytesWritten += bytes
	case ActFix:
		a.report.Fixed++
	case ActDelete:
		a.report.Deleted++
	}
	if a.o.Change != nil {
		a.o.Change(ApplyChange{Path: n.path(), Act: act})
	}
}

// advance moves the progress on.
func (a *applier) advance(files, bytes int64) {
	a.mu.Lock()
	a.progress.Files += files
	a.progress.Bytes += bytes
	a.mu.Unlock()
	a.tell(false)
}

// tell gives progress to whoever wants it, five times a second at most.
func (a *applier) tell(last bool) {
	if a.o.Progress == nil {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if now := time.Now(); last || now.Sub(a.told) >= 200*time.Millisecond {
		a.told = now
		a.o.Progress(a.progress)
	}
}

// display is the path of a directory as the user would write it.
func (a *applier) display(n *treeNode) string { return filepath.Join(a.tree.dir, n.path()) }
