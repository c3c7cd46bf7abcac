package imaging

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Bounds on what is kept of what has changed. Beyond them, the next scan looks at
// everything.
const (
	maxChangedDirs  = 1 << 16
	maxChangedNames = 1 << 10 // of one directory; beyond it, it is looked into with all below
	maxLinkedNames  = 1 << 17 // of files with several names
)

// gatherFor is how long events are left in the kernel's queue, which joins
// those that are alike: a program that writes a line a millisecond is to wake
// nobody a thousand times a second.
const gatherFor = 50 * time.Millisecond

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
	mountinfo []byte
	places    string          // that are watched
	left      map[string]left // what of the tree is not its own, by the mounts
	moved     []string        // of these, those that were not before, and those that were
	unwatched []string        // where a file system is mounted that tells nothing
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

// quiet tells whether nothing has changed since the scan with that mark.
func (w *watching) quiet(since Mark) (bool, error) {
	if w.watch == nil || since == 0 || w.mark != since || len(w.unwatched) > 0 {
		return false, nil
	}
	now, err := readMountinfo()
	if err != nil || !bytes.Equal(now, w.mountinfo) {
		return false, err // it may be nothing of the tree: the scan will tell
	}
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

// arm sees to it that all file systems of the tree are watched, and tells
// whether they are others than before. Why is why they cannot be.
func (w *watching) arm(req ScanRequest) (moved bool, why string, err error) {
	if w.mountinfo, err = readMountinfo(); err != nil || w.mountinfo == nil {
		return false, "the mount table cannot be read", err
	}
	root, err := w.tree.resolved()
	if err != nil {
		return false, "", err
	}
	m, err := ReadMounts(bytes.NewReader(w.mountinfo), root)
	if err != nil {
		return false, "", err
	}
	s := scan{exclude: w.exclude}
	places, lent := m.survey(s.excludedWithin)
	w.moved = slices.Concat(missing(lent, w.left), missing(w.left, lent))
	w.left = lent
	if len(places) == 0 {
		return false, "the mount table does not tell what is mounted", nil
	}
	key := root
	for _, p := range places {
		key += fmt.Sprintf("\x00%d %s %s %s", m.list[p.index].id, m.list[p.index].dev, p.path, p.root)
	}
	if w.watch != nil && key == w.places {
		return false, "", nil
	}
	moved = w.watch != nil
	w.stop()
	w.places, w.unwatched = key, nil
	watch, err := startWatch(root)
	if err != nil {
		return moved, "it cannot be watched: " + err.Error(), nil
	}
	w.watch = watch
	for _, p := range places {
		if req.OneFileSystem && p.path != "." {
			continue
		}
		if err := watch.add(path.Join(root, p.path)); err != nil {
			if p.path == "." {
				return moved, "it cannot be watched: " + err.Error(), nil
			}
			w.unwatched = append(w.unwatched, p.path)
		}
	}
	return moved, "", nil
}

// missing are the paths of a that b lacks.
func missing(a, b map[string]left) []string {
	var out []string
	for at := range a {
		if _, ok := b[at]; !ok {
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

// watch gathers what happens in the file systems of a tree.
type watch struct {
	fan      *fanotify
	root     string
	resolver handleResolver
	reading  sync.WaitGroup
	closed   chan struct{}

	mu    sync.Mutex
	dirs  map[fileHandle]*changedNames
	loose map[fileHandle]uint64 // what happened to files in no directory that is told
	lost  string                // why not all that happened is known
}

// changedNames are what has changed in a directory.
type changedNames struct {
	names map[string]nameChange
	self  bool // it itself
	many  bool // more names than are kept
}

// nameChange is what happened to a name.
type nameChange uint8

const (
	fileChanged nameChange = 1 << iota
	dirChanged             // it is, or was, a directory
	dirCame                // it is one that was not there before
)

func startWatch(root string) (*watch, error) {
	fan, err := openFanotify()
	if err != nil {
		return nil, err
	}
	w := &watch{fan: fan, root: root, closed: make(chan struct{}), resolver: handleResolver{dirs: map[[8]byte]string{}}}
	w.clear()
	w.reading.Go(w.gather)
	return w, nil
}

// add watches the file system that dir is in.
func (w *watch) add(dir string) error {
	fsid, err := w.fan.add(dir)
	if err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if _, ok := w.resolver.dirs[fsid]; !ok {
		w.resolver.dirs[fsid] = dir
	}
	return nil
}

func (w *watch) close() {
	close(w.closed)
	w.fan.close()
	w.reading.Wait()
}

// gather empties the kernel's queue whenever there is something in it.
func (w *watch) gather() {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-timer.C:
		case <-w.closed:
			return
		}
		if w.fan.wait() != nil {
			return // closed
		}
		w.mu.Lock()
		w.drain()
		w.mu.Unlock()
		timer.Reset(gatherFor)
	}
}

// drain takes all events up to now.
func (w *watch) drain() {
	if err := w.fan.read(w.note); err != nil && w.lost == "" {
		w.lose(err.Error())
	}
}

func (w *watch) lose(why string) {
	w.clear()
	w.lost = why
}

func (w *watch) clear() {
	w.dirs, w.loose, w.lost = map[fileHandle]*changedNames{}, map[fileHandle]uint64{}, ""
}

func (w *watch) note(e *fanEvent) {
	switch {
	case w.lost != "":
		return
	case e.mask&unix.FAN_Q_OVERFLOW != 0:
		w.lose("more happened at once than the kernel's queue of events holds (fs.fanotify.max_queued_events)")
		return
	case e.dir == fileHandle{}:
		// A file that has got or lost a name is told of so, besides what is told
		// of the directory; and one that was opened by its handle, as the NFS
		// server does it, when the kernel knows of no directory that it is in.
		if e.self != (fileHandle{}) {
			w.loose[e.self] |= e.mask
		}
		return
	}
	c := w.dirs[e.dir]
	if c == nil {
		if len(w.dirs) >= maxChangedDirs {
			w.lose(fmt.Sprintf("more than %d directories have changed", maxChangedDirs))
			return
		}
		c = &changedNames{}
		w.dirs[e.dir] = c
	}
	c.add(e)
}

func (c *changedNames) add(e *fanEvent) {
	if e.name == "." || e.name == "" {
		c.self = true
		return
	}
	if c.many {
		return
	}
	what := fileChanged
	if e.mask&unix.FAN_ONDIR != 0 {
		what = dirChanged
		if e.mask&(unix.FAN_CREATE|unix.FAN_MOVED_TO) != 0 {
			what |= dirCame
		}
	}
	if _, ok := c.names[e.name]; !ok && len(c.names) >= maxChangedNames {
		c.many, c.names = true, nil
		return
	}
	if c.names == nil {
		c.names = map[string]nameChange{}
	}
	c.names[e.name] |= what
}

// changedDir is a directory in which something has changed.
type changedDir struct {
	dir  string   // below the root
	came []string // directories in it that were not there before
	deep bool     // all below it is to be looked at
}

// changes tells what has changed so far, and forgets what does not matter; with
// take, all of it. Why is why what has changed cannot be told.
func (w *watch) changes(of *watching, take bool) (list []changedDir, why string, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.drain()
	if take {
		defer w.clear()
	}
	if w.lost != "" {
		return nil, w.lost, nil
	}
	defer w.resolver.close()
	for h, mask := range w.loose {
		dirs, sure, err := w.dirsOf(h, mask, of)
		switch {
		case err != nil:
			return nil, "", err
		case !sure:
			return nil, "a file was changed of which the kernel does not tell the directory, as it is with those that the NFS server opens", nil
		case len(dirs) == 0:
			delete(w.loose, h)
		}
		list = append(list, dirs...)
	}
	for h, c := range w.dirs {
		found, err := w.resolver.find(h)
		if err != nil {
			return nil, "", err
		}
		var d []changedDir
		if dir, ok := w.below(found.path); ok {
			d = c.of(dir, of.ignored)
		}
		if len(d) == 0 {
			delete(w.dirs, h)
		}
		list = append(list, d...)
	}
	return list, "", nil
}

// below gives the path from the root of an absolute one.
func (w *watch) below(p string) (string, bool) {
	rel, ok := within(w.root, p)
	if rel == "" {
		rel = "."
	}
	return rel, ok
}

// dirsOf finds the directories that have names of a file; none, when it is no
// more or not in the tree. Not sure: it may have others there.
func (w *watch) dirsOf(h fileHandle, mask uint64, of *watching) (dirs []changedDir, sure bool, err error) {
	var found foundHandle
	var st unix.Stat_t
	for range maxTries {
		found, err = w.resolver.find(h)
		if err != nil || found.path == "" {
			return nil, true, err
		}
		// The kernel may know the inode under no name at all, and then the path
		// is anything; or it was renamed since.
		err := unix.Lstat(found.path, &st)
		if sure = err == nil && uint64(st.Dev) == found.dev && st.Ino == found.ino; sure {
			break
		}
	}
	if !sure {
		return nil, false, nil
	}
	names := of.seen.namesOf(found)
	if p, ok := w.below(found.path); ok {
		names = append(names, p)
	} else if len(names) == 0 {
		// What changed with a name outside is of no name inside, unless it got
		// that name after the last scan and was written to by its handle.
		return nil, st.Nlink == 1 || mask == unix.FAN_ATTRIB, nil
	}
	for _, p := range names {
		if !of.ignored(p, false) {
			dirs = append(dirs, changedDir{dir: parentPath(p)})
		}
	}
	return dirs, true, nil
}

// of tells what of the changes in the directory dir matters.
func (c *changedNames) of(dir string, ignored func(path string, dir bool) bool) (out []changedDir) {
	if ignored(dir, true) {
		return nil
	}
	if c.self {
		out = append(out, changedDir{dir: parentPath(dir)})
	}
	if ignored(joinPath(dir, "."), true) {
		return out // its contents are left out
	}
	if c.self || c.many {
		out = append(out, changedDir{dir: dir, deep: c.many})
	}
	d := changedDir{dir: dir}
	matters := false
	for name, what := range c.names {
		if ignored(joinPath(dir, name), what&dirChanged != 0) {
			continue
		}
		matters = true
		if what&dirCame != 0 {
			d.came = append(d.came, name)
		}
	}
	if matters {
		out = append(out, d)
	}
	return out
}

// forget forgets all that happened up to now.
func (w *watch) forget() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.drain()
	w.clear()
}
