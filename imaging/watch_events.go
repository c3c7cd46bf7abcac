package imaging

import (
	"fmt"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// gatherFor is how long events are left in the kernel's queue, which joins
// those that are alike: a program that writes a line a millisecond is to wake
// nobody a thousand times a second.
const gatherFor = 50 * time.Millisecond

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
	names int                   // in dirs
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
	w := &watch{fan: fan, root: root, closed: make(chan struct{}), resolver: handleResolver{mounts: map[[8]byte][]handleMount{}}}
	w.clear()
	w.reading.Go(w.gather)
	return w, nil
}

// add watches the file system that dir is in.
func (w *watch) add(dir string) error {
	fsid, m, err := w.fan.add(dir)
	if err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.resolver.add(fsid, m)
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
	w.dirs, w.loose, w.names, w.lost = map[fileHandle]*changedNames{}, map[fileHandle]uint64{}, 0, ""
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
			w.loosen(e)
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
	before := len(c.names)
	c.add(e)
	if w.names += len(c.names) - before; w.names > maxAllNames {
		w.lose(fmt.Sprintf("more than %d names have changed", maxAllNames))
	}
}

// loosen notes what happened to a file whose directory is not told. Each file that
// is removed anywhere is among them: once they are many, those are let go.
func (w *watch) loosen(e *fanEvent) {
	if _, ok := w.loose[e.self]; !ok && len(w.loose) >= maxLoose {
		for h := range w.loose {
			if found, err := w.resolver.find(h); err == nil && len(found) == 0 {
				delete(w.loose, h)
			}
		}
		w.resolver.close()
		if len(w.loose) > maxLoose/2 {
			w.lose(fmt.Sprintf("more than %d files have got or lost names, or were opened by their handles", maxLoose/2))
			return
		}
	}
	w.loose[e.self] |= e.mask
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
		d, err := w.changedAt(h, c, of)
		if err != nil {
			return nil, "", err
		}
		if len(d) == 0 {
			w.names -= len(c.names)
			delete(w.dirs, h)
		}
		list = append(list, d...)
	}
	return list, "", nil
}

// changedAt tells what of the changes in a directory matters, wherever it is seen.
func (w *watch) changedAt(h fileHandle, c *changedNames, of *watching) (list []changedDir, err error) {
	found, err := w.resolver.find(h)
	if err != nil {
		return nil, err
	}
	for _, f := range found {
		dir, ok := w.below(f.path)
		switch {
		case !ok || f.nowhere:
		case f.lost:
			list = append(list, changedDir{dir: dir, deep: true})
		default:
			list = append(list, c.of(dir, of.ignored)...)
		}
	}
	return list, nil
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
	for range maxTries {
		found, err := w.resolver.find(h)
		if err != nil || len(found) == 0 {
			return nil, true, err
		}
		for _, f := range found {
			d, known := w.dirsAt(f, mask, of)
			dirs, sure = append(dirs, d...), sure || known
		}
		if sure {
			break
		}
		dirs = nil // it was renamed or removed since, perhaps
	}
	return dirs, sure, nil
}

// dirsAt is dirsOf for what one mount shows; not known: the kernel has no path for
// it there, and gives any.
func (w *watch) dirsAt(f foundHandle, mask uint64, of *watching) (dirs []changedDir, known bool) {
	if f.lost {
		if dir, ok := w.below(f.path); ok {
			dirs = append(dirs, changedDir{dir: dir, deep: true})
		}
		return dirs, true
	}
	var st unix.Stat_t
	if err := unix.Lstat(f.path, &st); err != nil || uint64(st.Dev) != f.dev || st.Ino != f.ino {
		return nil, false
	}
	names := of.seen.namesOf(f)
	if p, ok := w.below(f.path); ok {
		names = append(names, p)
	} else if len(names) == 0 {
		// What changed with a name outside is of no name inside, unless it got
		// that name after the last scan and was written to by its handle.
		return nil, st.Nlink == 1 || mask == unix.FAN_ATTRIB
	}
	for _, p := range names {
		if !of.ignored(p, false) {
			dirs = append(dirs, changedDir{dir: parentPath(p)})
		}
	}
	return dirs, true
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
