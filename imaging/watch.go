package imaging

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"path"
	"slices"
)

// Bounds on what is kept of what has changed. Beyond them, the next scan looks at
// everything.
const (
	maxChangedDirs  = 1 << 16
	maxChangedNames = 1 << 10 // of one directory; beyond it, it is looked into with all below
	maxAllNames     = 1 << 18 // of all of them
	maxLoose        = 1 << 16 // files whose directory is not told
	maxLinkedNames  = 1 << 17 // of files with several names
)

// watching is a local tree that is watched between scans: what the source must
// know for the next scan to be one of what has changed.
//
// A scan is told beforehand which directories to look into: those in which
// something happened, by the events; those on the way to them; and those with
// another name of a file in one of these, since an entry tells of all the names
// of its file. Whatever makes that uncertain leads to a scan of everything, with
// the reason: a queue that ran over, something mounted or unmounted, a file
// system or kernel that tells nothing.
type watching struct {
	tree  *LocalTree
	watch *watch // nil: there is none

	mark      Mark // of the scan that all below are of; zero: of none
	req       ScanRequest
	exclude   []glob
	mounts    *mounted
	moved     []string // where something not the tree's own is, and was not, or the other way round
	unwatched []string // where a file system is mounted that tells nothing
	seen      *remembered
}

// part says of what a scan is.
type part struct {
	need *need       // nil: of everything
	seen *remembered // takes what the next scan is to know
}

// clean tells whether a directory is as in the scan before, with all in it.
func (p *part) clean(dir string) bool { return p != nil && p.need != nil && p.need.clean(dir) }

func (p *part) opaque(path string) {
	if p != nil {
		p.seen.opaque[path] = struct{}{}
	}
}

func (p *part) link(n *Node) {
	if p != nil {
		p.seen.link([2]uint64{n.Dev, n.Ino}, n.Links, n.Path)
	}
}

// remembered is what is to be known of the scan before.
type remembered struct {
	opaque map[string]struct{} // directories without their contents
	links  map[[2]uint64]*linkedNames
	names  int  // in links
	full   bool // there are more than are kept
}

// linkedNames are the names that a file has in the tree.
type linkedNames struct {
	count uint64 // of all names it has, in the tree and elsewhere
	paths []string
}

func newRemembered() *remembered {
	return &remembered{opaque: map[string]struct{}{}, links: map[[2]uint64]*linkedNames{}}
}

func (s *remembered) link(inode [2]uint64, count uint64, path string) {
	if s.names >= maxLinkedNames {
		s.full = true
		return
	}
	l := s.links[inode]
	if l == nil {
		l = &linkedNames{}
		s.links[inode] = l
	}
	l.count, l.paths = count, append(l.paths, path)
	s.names++
}

// namesOf are the names that a file had in the tree, if it had several.
func (s *remembered) namesOf(f foundHandle) []string {
	if l := s.links[[2]uint64{f.dev, f.ino}]; l != nil {
		return slices.Clone(l.paths)
	}
	return nil
}

// without is what was seen but for what is in directories that are looked into.
func (s *remembered) without(n *need) *remembered {
	out := newRemembered()
	out.full = s.full
	for p := range s.opaque {
		if n.clean(parentPath(p)) {
			out.opaque[p] = struct{}{}
		}
	}
	for inode, l := range s.links {
		for _, p := range l.paths {
			if n.clean(parentPath(p)) {
				out.link(inode, l.count, p)
			}
		}
	}
	return out
}

// within tells whether a path is in a directory whose contents are left out.
func (s *remembered) within(path string) bool {
	for ; path != "."; path = parentPath(path) {
		if _, ok := s.opaque[path]; ok {
			return true
		}
	}
	return false
}

// quiet tells whether nothing has changed since the scan with that mark.
func (w *watching) quiet(since Mark) (bool, error) {
	if w.watch == nil || since == 0 || w.mark != since || len(w.unwatched) > 0 {
		return false, nil
	}
	now, err := w.survey()
	if err != nil || now == nil || !maps.Equal(now.own, w.mounts.own) || len(missing(now.lent, w.mounts.lent))+len(missing(w.mounts.lent, now.lent)) > 0 {
		return false, err
	}
	w.mounts = now
	list, why, err := w.watch.changes(w, false)
	return err == nil && why == "" && len(list) == 0, err
}

// ignored tells whether what happens at a path is no part of the tree.
func (w *watching) ignored(p string, dir bool) bool {
	return w.seen.within(parentPath(p)) || !dir && matchAny(w.exclude, p)
}

// begin says of what the next scan is. Where it is of everything though the
// request would have a part, or no watch is kept, it says why.
func (w *watching) begin(ctx context.Context, req ScanRequest) (p *part, why string, err error) {
	last := w.mark
	w.mark = 0
	p = &part{seen: newRemembered()}
	if w.exclude, err = parseGlobs(req.Exclude); err != nil {
		return nil, "", fmt.Errorf("exclude: %w", err)
	}
	moved, why, err := w.arm(req)
	if err != nil || why != "" {
		w.stop()
		return p, why, err
	}
	switch {
	case moved && req.Since != 0:
		why = "what is mounted has changed"
	case req.Since == 0:
	case last != req.Since || !sameTree(w.req, req):
		why = "the scan before was another one"
	default:
		// What happens from here on is for the scan after this one.
		list, why, err := w.watch.changes(w, true)
		if err != nil {
			return p, "", err
		}
		for _, at := range w.moved {
			if !w.ignored(at, true) {
				list = append(list, changedDir{dir: parentPath(at), came: []string{path.Base(at)}})
			}
		}
		if why == "" {
			p.need, why, err = w.needed(ctx, list)
		}
		if p.need != nil {
			p.seen = w.seen.without(p.need)
		}
		return p, why, err
	}
	w.watch.forget()
	return p, why, nil
}

// sameTree tells whether two requests are for the same entries.
func sameTree(a, b ScanRequest) bool {
	return a.Root == b.Root && a.OneFileSystem == b.OneFileSystem && slices.Equal(a.Exclude, b.Exclude)
}

// end takes what came of the scan that begin began.
func (w *watching) end(req ScanRequest, p *part, err error) {
	if err != nil || w.watch == nil {
		return
	}
	w.mark, w.req, w.seen = req.Mark, req, p.seen
}

// mounted is what the mount table says of a tree.
type mounted struct {
	table []byte            // as it was read
	own   map[string]string // what the tree consists of: where a file system is, and which
	lent  map[string]left   // what is mounted in it and not its own
}

// survey reads the mount table; nil: it tells nothing.
func (w *watching) survey() (*mounted, error) {
	table, err := readMountinfo()
	if err != nil || table == nil {
		return nil, err
	}
	if w.mounts != nil && bytes.Equal(table, w.mounts.table) {
		return w.mounts, nil
	}
	root, err := w.tree.resolved()
	if err != nil {
		return nil, err
	}
	m, err := ReadMounts(bytes.NewReader(table), root)
	if err != nil {
		return nil, err
	}
	s := scan{exclude: w.exclude}
	places, lent := m.survey(s.excludedWithin)
	if len(places) == 0 {
		return nil, nil
	}
	now := &mounted{table: table, own: map[string]string{}, lent: lent}
	for _, p := range places {
		now.own[p.path] = fmt.Sprintf("%s %d %s %s", root, m.list[p.index].id, m.list[p.index].dev, p.root)
	}
	return now, nil
}

// arm sees to it that all file systems of the tree are watched, and tells
// whether they are others than before. Why is why they cannot be.
func (w *watching) arm(req ScanRequest) (moved bool, why string, err error) {
	before := w.mounts
	if w.mounts, err = w.survey(); err != nil || w.mounts == nil {
		return false, "the mount table does not tell what is mounted", err
	}
	w.moved = nil
	if before != nil {
		w.moved = slices.Concat(missing(w.mounts.lent, before.lent), missing(before.lent, w.mounts.lent))
	}
	if w.watch != nil && maps.Equal(before.own, w.mounts.own) {
		return false, "", nil
	}
	moved = w.watch != nil
	w.stop()
	root, err := w.tree.resolved()
	if err != nil {
		return moved, "", err
	}
	if w.watch, err = startWatch(root); err != nil {
		return moved, "it cannot be watched: " + err.Error(), nil
	}
	w.unwatched = nil
	for at := range w.mounts.own {
		if req.OneFileSystem && at != "." {
			continue
		}
		if err := w.watch.add(path.Join(root, at)); err != nil {
			if at == "." {
				return moved, "it cannot be watched: " + err.Error(), nil
			}
			w.unwatched = append(w.unwatched, at)
		}
	}
	return moved, "", nil
}

// missing are the paths at which a has what b lacks.
func missing(a, b map[string]left) []string {
	var out []string
	for at, v := range a {
		if other, ok := b[at]; !ok || other != v {
			out = append(out, at)
		}
	}
	return out
}

// stop ends the watch.
func (w *watching) stop() {
	if w.watch != nil {
		w.watch.close()
		w.watch = nil
	}
}
