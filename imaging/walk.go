package imaging

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"sync/atomic"
)

// item is one entry on its way through a scan.
type item struct {
	node  Node
	name  string  // in dir
	dir   *dirRef // where to open it; nil when there is nothing to open
	link  *linked // it has several names
	also  bool    // it is not the first of them
	gone  bool    // vanished: there is no entry, only notes
	same  bool    // a directory that is as in the scan before, with all in it
	loose bool    // it was not still while it was read: not to be known by its stamp
	notes []Note

	known   bool     // a rule knows the path, no need to look inside
	secret  bool     // something in it is for heads only
	content *Content // from the last capture

	memory int64         // of the read-ahead
	done   chan struct{} // closed when a reader is through with it
	read   *reading      // what the reader read; nil: it was too large after all
}

// linked is a file with several names in the tree.
type linked struct {
	left   uint64 // names not yet seen; the walk's
	path   string // the name that stands for the file; the collector's
	class  Class  // likewise
	broken bool   // the name no longer leads to this file: likewise
}

// wanted tells whether the item's content is to be read from the tree.
func (it *item) wanted() bool {
	return it.node.Kind == Regular && !it.also && !it.gone && it.content == nil && it.node.Size > 0
}

// letGo closes the item's directory when nothing else needs it. A scan that is
// broken off lets go of items that a reader still has in hand.
func (it *item) letGo() {
	if it.done != nil {
		<-it.done
	}
	if it.dir != nil {
		it.dir.release()
		it.dir = nil
	}
}

// dirRef is an open directory that the walk and items share.
type dirRef struct {
	open Dir
	refs atomic.Int32
}

func newDirRef(d Dir) *dirRef {
	r := &dirRef{open: d}
	r.refs.Store(1)
	return r
}

func (d *dirRef) keep() *dirRef {
	d.refs.Add(1)
	return d
}

func (d *dirRef) release() {
	if d.refs.Add(-1) == 0 {
		d.open.Close() // it was only read from
	}
}

// level is a directory that the walk is in.
type level struct {
	dir      *dirRef // nil: closed for now, to bound what is open
	path     string
	dev, ino uint64
	names    []string // sorted, those still to come
}

// walker is the first stage.
type walker struct {
	*scan
	levels []*level
	open   int // levels with their directory open
	batch  []*item
	dirs   map[*dirRef]struct{} // that the batch holds open
	links  map[[2]uint64]*linked
}

// walk goes through the tree in canonical order.
func (s *scan) walk(ctx context.Context) error {
	w := &walker{scan: s, dirs: make(map[*dirRef]struct{}), links: make(map[[2]uint64]*linked)}
	defer w.close()
	root, err := s.tree.Root(ctx)
	if err != nil {
		return err
	}
	if err := w.enter(ctx, root, "."); err != nil {
		return err
	}
	for len(w.levels) > 0 {
		top := w.levels[len(w.levels)-1]
		if len(top.names) == 0 {
			w.leave(top)
			continue
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if top.dir == nil {
			if err := w.reopen(ctx, top); err != nil {
				return err
			}
			continue
		}
		name := top.names[0]
		top.names = top.names[1:]
		if err := w.visit(ctx, top, name); err != nil {
			return err
		}
	}
	return w.flush(ctx)
}

// close lets go of what the walk holds when it ends early.
func (w *walker) close() {
	for _, l := range w.levels {
		if l.dir != nil {
			l.dir.release()
		}
	}
	for _, it := range w.batch {
		it.letGo()
	}
}

// leave ends a level.
func (w *walker) leave(l *level) {
	if l.dir != nil {
		l.dir.release()
		w.open--
	}
	w.levels = w.levels[:len(w.levels)-1]
}

// enter makes the open directory d, at path, the level to go on with, and
// gives on its entry.
func (w *walker) enter(ctx context.Context, d Dir, path string) error {
	ref := newDirRef(d)
	var names []string
	self, err := d.Self(ctx)
	if err == nil {
		names, err = d.Names(ctx)
	}
	if errors.Is(err, fs.ErrNotExist) && path != "." {
		ref.release()
		return w.vanished(ctx, path, "") // removed since it was opened
	}
	if err != nil {
		ref.release()
		return readError(path, err)
	}
	slices.Sort(names)
	if path == "." {
		w.rootDev = self.Dev
	}
	self.Path = path
	own, err := isState(ctx, d, names)
	if err != nil {
		ref.release()
		return readError(path, err)
	}
	if own && path != "." {
		ref.release()
		return w.addOpaque(ctx, self)
	}
	// What has no more names to come need not be kept open: so a chain of
	// single directories, however deep, holds two of them.
	for len(w.levels) > 0 && len(w.levels[len(w.levels)-1].names) == 0 {
		w.leave(w.levels[len(w.levels)-1])
	}
	w.levels = append(w.levels, &level{ref, path, self.Dev, self.Ino, names})
	w.open++
	w.thin()
	return w.add(ctx, &item{node: self})
}

// isState tells whether a directory is the state of a doppel, wherever it was
// put: its keys beside its packs.
func isState(ctx context.Context, d Dir, names []string) (bool, error) {
	for _, in := range [][2]string{{"keys", "cluster.key"}, {"store", "packs"}} {
		if _, found := slices.BinarySearch(names, in[0]); !found {
			return false, nil
		}
		below, err := d.Dir(ctx, in[0])
		if err == nil {
			_, err = below.Stat(ctx, in[1])
			err = errors.Join(err, below.Close())
		}
		if errors.Is(err, fs.ErrNotExist) {
			return false, nil
		}
		if err != nil {
			return false, err
		}
	}
	return true, nil
}

// thin closes directories far up when too many are open.
func (w *walker) thin() {
	for _, l := range w.levels {
		if w.open <= openDirs {
			return
		}
		if l.dir != nil {
			l.dir.release()
			l.dir = nil
			w.open--
		}
	}
}

// reopen opens the directory of a level again, one element after the other
// from the root. When another directory is there by now, what was still to
// come of it has vanished.
func (w *walker) reopen(ctx context.Context, l *level) error {
	d, err := w.tree.Root(ctx)
	if err != nil {
		return err
	}
	for element := range elements(l.path) {
		next, err := d.Dir(ctx, element)
		d.Close()
		if errors.Is(err, fs.ErrNotExist) {
			return w.abandon(ctx, l)
		}
		if err != nil {
			return readError(l.path, err)
		}
		d = next
	}
	self, err := d.Self(ctx)
	if err != nil {
		d.Close()
		return readError(l.path, err)
	}
	if self.Dev != l.dev || self.Ino != l.ino {
		d.Close()
		return w.abandon(ctx, l)
	}
	l.dir = newDirRef(d)
	w.open++
	return nil
}

func (w *walker) abandon(ctx context.Context, l *level) error {
	n := len(l.names)
	l.names = nil
	return w.vanished(ctx, l.path, fmt.Sprintf("the directory was moved or removed with %d names in it still to read", n))
}

func (w *walker) vanished(ctx context.Context, path, detail string) error {
	it := &item{gone: true}
	it.node.Path = path
	it.note(NoteVanished, detail)
	return w.add(ctx, it)
}

func (it *item) note(kind NoteKind, detail string) {
	it.notes = append(it.notes, Note{Path: it.node.Path, Kind: kind, Detail: detail})
}

// visit looks at one name.
func (w *walker) visit(ctx context.Context, l *level, name string) error {
	path := joinPath(l.path, name)
	why, isLeft := w.scan.left[path]
	if isLeft && why.remote {
		// Its server may be gone, and then even stat(2) never returns. What is
		// known is that it is a directory.
		return w.addOpaque(ctx, Node{Entry: Entry{Path: path, Kind: Directory, Mode: 0o755}})
	}
	n, err := l.dir.open.Stat(ctx, name)
	if errors.Is(err, fs.ErrNotExist) {
		return w.vanished(ctx, path, "")
	}
	if err != nil {
		return readError(path, err)
	}
	n.Path = path
	excluded := matchAny(w.exclude, path)
	if n.Kind == Directory {
		if excluded || isLeft || isOwn(path) || w.otherFileSystem(&n) {
			return w.addOpaque(ctx, n)
		}
		if w.part.clean(path) {
			it := &item{same: true}
			it.node.Path = path
			return w.add(ctx, it)
		}
		d, err := l.dir.open.Dir(ctx, name)
		if errors.Is(err, fs.ErrNotExist) {
			return w.vanished(ctx, path, "")
		}
		if err != nil {
			return readError(path, err)
		}
		return w.enter(ctx, d, path)
	}
	if excluded {
		return nil
	}
	return w.leaf(ctx, l, name, n)
}

// otherFileSystem tells whether the directory is on another file system and
// the request is for one.
func (w *walker) otherFileSystem(n *Node) bool {
	return w.req.OneFileSystem && (n.Dev != w.rootDev || w.mounts != nil && w.mounts.mounted(n.Path))
}

// addOpaque adds a directory without its contents, and without the time of its
// last change, which would tell about them alone and be another every time.
func (w *walker) addOpaque(ctx context.Context, n Node) error {
	n.Opaque = true
	n.MTime = Time{}
	w.part.opaque(n.Path)
	return w.add(ctx, &item{node: n})
}

// leaf takes what is no directory.
func (w *walker) leaf(ctx context.Context, l *level, name string, n Node) error {
	it := &item{node: n, name: name}
	if n.Lost != "" {
		it.note(NoteLost, n.Lost)
	}
	if n.Kind == 0 {
		it.gone = true
		return w.add(ctx, it)
	}
	if n.Kind == Regular {
		it.node.Class, it.known = Classify(n.Path)
		if n.Size > 0 {
			it.dir = l.dir.keep()
		}
	}
	if n.Links > 1 && n.Ino != 0 {
		w.part.link(&n)
		key := [2]uint64{n.Dev, n.Ino}
		if it.link = w.links[key]; it.link != nil {
			it.also = true
			if it.link.left--; it.link.left == 0 {
				delete(w.links, key)
			}
		} else {
			it.link = &linked{left: n.Links - 1, path: n.Path, class: it.node.Class}
			w.links[key] = it.link
		}
	}
	return w.add(ctx, it)
}

// add puts an item into the batch.
func (w *walker) add(ctx context.Context, it *item) error {
	w.batch = append(w.batch, it)
	if it.dir != nil {
		w.dirs[it.dir] = struct{}{}
	}
	if len(w.batch) >= batchItems || len(w.dirs) >= batchDirs {
		return w.flush(ctx)
	}
	return nil
}

// flush hands the batch on.
func (w *walker) flush(ctx context.Context) error {
	if err := send(ctx, w.walked, w.batch); err != nil {
		return err
	}
	w.batch = make([]*item, 0, batchItems)
	clear(w.dirs)
	return nil
}

// ask asks the sink which files of each batch it knows, while the walk goes on.
func (s *scan) ask(ctx context.Context) error {
	for batch := range s.walked {
		err := s.askBatch(ctx, batch)
		if err == nil {
			err = send(ctx, s.batches, batch)
		}
		if err != nil {
			for _, it := range batch {
				it.letGo()
			}
			return err
		}
	}
	return nil
}

func (s *scan) askBatch(ctx context.Context, batch []*item) error {
	var asked []*item
	var classes []Class
	var stamps []Stamp
	for _, it := range batch {
		if it.wanted() {
			asked = append(asked, it)
			classes = append(classes, it.node.Class)
			stamps = append(stamps, it.node.stamp())
		}
	}
	if len(asked) > 0 {
		known, err := s.sink.Cached(ctx, classes, stamps)
		if err != nil {
			return err
		}
		if len(known) != len(asked) {
			return fmt.Errorf("asked about %d files, the sink answered about %d", len(asked), len(known))
		}
		for i, it := range asked {
			it.content = known[i]
		}
	}
	for _, it := range batch {
		if it.content != nil && !it.also {
			it.letGo()
		}
	}
	return nil
}

// stamp is what the node is known by next time.
func (n *Node) stamp() Stamp {
	return Stamp{Path: n.Path, Dev: n.Dev, Ino: n.Ino, Size: n.Size, MTime: n.MTime, CTime: n.CTime}
}

// readError says which path could not be read, and what helps.
func readError(path string, err error) error {
	if errors.Is(err, fs.ErrPermission) {
		return fmt.Errorf("read %q: %w (a whole image takes root: capture as root, or with --sudo; or leave it out with --exclude)", path, err)
	}
	return fmt.Errorf("read %q: %w", path, err)
}
