package imaging

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// LocalTree is the file system of this machine below a root directory. Every
// step goes from an open directory to one name in it and follows no symbolic
// link, so no path is too long, and nothing that is renamed on the way leads
// out of the tree.
type LocalTree struct {
	root  string
	pages pageCache
}

// NewLocalTree is the tree below root.
func NewLocalTree(root string) *LocalTree { return &LocalTree{root: root} }

// Root opens the root directory. Here alone a symbolic link is followed.
func (t *LocalTree) Root(ctx context.Context) (Dir, error) {
	fd, err := openRetry(unix.AT_FDCWD, t.root, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", t.root, err)
	}
	return newLocalDir(t, fd), nil
}

// Mounts reads the mount table of this process. A machine without /proc tells
// nothing.
func (t *LocalTree) Mounts(ctx context.Context) (*Mounts, error) {
	root, err := t.resolved()
	if err != nil {
		return nil, err
	}
	table, err := readMountinfo()
	if err != nil || table == nil {
		return nil, err
	}
	return ReadMounts(bytes.NewReader(table), root)
}

// resolved is the root's absolute path, without symbolic links.
func (t *LocalTree) resolved() (string, error) {
	root, err := filepath.Abs(t.root)
	if err != nil {
		return "", fmt.Errorf("find %s: %w", t.root, err)
	}
	if root, err = filepath.EvalSymlinks(root); err != nil {
		return "", fmt.Errorf("find %s: %w", t.root, err)
	}
	return root, nil
}

// readMountinfo reads the mount table of this process; nil: there is none.
func readMountinfo() ([]byte, error) {
	table, err := os.ReadFile("/proc/self/mountinfo")
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read mounts: %w", err)
	}
	return table, nil
}

// dir opens a directory of the tree.
func (t *LocalTree) dir(ctx context.Context, path string) (*localDir, error) {
	d, err := t.Root(ctx)
	if err != nil {
		return nil, err
	}
	for element := range elements(path) {
		next, err := d.Dir(ctx, element)
		d.Close()
		if err != nil {
			return nil, err
		}
		d = next
	}
	return d.(*localDir), nil
}

// openRetry is openat(2) with O_CLOEXEC, again when a signal came in between.
func openRetry(dir int, name string, flags int) (int, error) {
	for {
		fd, err := unix.Openat(dir, name, flags|unix.O_CLOEXEC|unix.O_NOCTTY, 0)
		if err != unix.EINTR {
			return fd, err
		}
	}
}

// openQuiet opens without leaving an access time, which only the owner of a
// file and root may ask for.
func openQuiet(dir int, name string, flags int) (int, error) {
	fd, err := openRetry(dir, name, flags|unix.O_NOFOLLOW|unix.O_NOATIME)
	if err == unix.EPERM {
		fd, err = openRetry(dir, name, flags|unix.O_NOFOLLOW)
	}
	return fd, err
}

// localDir is an open directory. The os.File around the descriptor is there to
// list it.
type localDir struct {
	tree *LocalTree
	f    *os.File
	fd   int
	mu   sync.Mutex // listing moves the file's position
}

func newLocalDir(t *LocalTree, fd int) *localDir {
	return &localDir{tree: t, f: os.NewFile(uintptr(fd), "."), fd: fd}
}

func (d *localDir) Close() error { return d.f.Close() }

func (d *localDir) Names(ctx context.Context) ([]string, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if _, err := d.f.Seek(0, io.SeekStart); err != nil {
		return nil, err
	}
	return d.f.Readdirnames(-1)
}

func (d *localDir) Self(ctx context.Context) (Node, error) { return flaggedNodeOf(d.fd) }

// Stat looks at what is no regular file, or an empty one, through a descriptor
// of the kind that opens nothing (O_PATH), so that all it tells is about one and
// the same inode. Most names are of files with something in them, which tell
// their extended attributes when they are opened, if they have to be.
func (d *localDir) Stat(ctx context.Context, name string) (Node, error) {
	var st unix.Stat_t
	if err := unix.Fstatat(d.fd, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return Node{}, err
	}
	if n := nodeOfStat(&st); n.Kind == Regular && n.Size > 0 {
		return n, nil
	}
	fd, err := openRetry(d.fd, name, unix.O_PATH|unix.O_NOFOLLOW)
	if err != nil {
		return Node{}, err
	}
	defer unix.Close(fd)
	n, err := nodeOf(fd)
	if err != nil || n.Kind != Regular || n.Size > 0 {
		return n, err
	}
	return n, n.readFlags(fd)
}

func (d *localDir) Dir(ctx context.Context, name string) (Dir, error) {
	fd, err := openQuiet(d.fd, name, unix.O_RDONLY|unix.O_DIRECTORY)
	if err == unix.ENOTDIR || err == unix.ELOOP {
		return nil, fmt.Errorf("%w: it is no longer a directory", fs.ErrNotExist)
	}
	if err != nil {
		return nil, err
	}
	return newLocalDir(d.tree, fd), nil
}

func (d *localDir) Open(ctx context.Context, name string) (File, error) {
	// O_NONBLOCK: a FIFO that has taken the file's place must not hold us up.
	fd, err := openQuiet(d.fd, name, unix.O_RDONLY|unix.O_NONBLOCK)
	if err == unix.ELOOP || err == unix.ENXIO {
		return nil, fmt.Errorf("%w: it is no longer a regular file", fs.ErrNotExist)
	}
	if err != nil {
		return nil, err
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFREG {
		unix.Close(fd)
		if err != nil {
			return nil, err
		}
		return nil, fmt.Errorf("%w: it is no longer a regular file", fs.ErrNotExist)
	}
	return &localFile{fd: fd, cold: d.tree.pages.coldRuns(fd, &st)}, nil
}

// localFile is an open regular file. It is not an os.File, whose finalizer and
// poller cost more than most files of a system are long.
type localFile struct {
	fd   int
	cold []Extent     // was not in the page cache before
	back atomic.Int64 // up to where that has been given back
}

func (f *localFile) Close() error {
	// From the start once more: a large folio is dropped as a whole or not at
	// all, so some of those in the middle were not.
	dropPages(f.fd, f.cold, 0, math.MaxInt64)
	return unix.Close(f.fd)
}

func (f *localFile) Stat(ctx context.Context) (Node, error) { return flaggedNodeOf(f.fd) }

func (f *localFile) ReadAt(b []byte, off int64) (int, error) {
	n := 0
	for n < len(b) {
		m, err := unix.Pread(f.fd, b[n:], off+int64(n))
		switch {
		case err == unix.EINTR:
			continue
		case err != nil:
			return n, err
		case m == 0:
			return n, io.EOF
		}
		n += m
	}
	if f.cold != nil {
		f.leaveBehind(off + int64(n))
	}
	return n, nil
}

// leaveBehind gives back what was read up to end, so that a file larger than
// the memory does not fill it while it is read.
func (f *localFile) leaveBehind(end int64) {
	back := f.back.Load()
	if end-back >= dropBehind && f.back.CompareAndSwap(back, end) {
		dropPages(f.fd, f.cold, back, end)
	}
}

// Extents asks with SEEK_DATA and SEEK_HOLE. A file system that does not know
// them says that all is data.
func (f *localFile) Extents(ctx context.Context, size int64) ([]Extent, error) {
	ext := []Extent{}
	for at := int64(0); at < size; {
		start, err := unix.Seek(f.fd, at, unix.SEEK_DATA)
		if err == unix.ENXIO {
			return ext, nil // all that is left is hole
		}
		if err == unix.EINVAL || err == unix.EOPNOTSUPP {
			return nil, nil
		}
		if err != nil {
			return nil, fmt.Errorf("look for holes: %w", err)
		}
		if start >= size {
			return ext, nil
		}
		end, err := unix.Seek(f.fd, start, unix.SEEK_HOLE)
		if err != nil && err != unix.ENXIO {
			return nil, fmt.Errorf("look for holes: %w", err)
		}
		if err == unix.ENXIO {
			return ext, nil // it was cut off while we looked; reading will tell
		}
		end = min(end, size)
		if start == 0 && end == size {
			return nil, nil
		}
		if last := len(ext) - 1; last >= 0 && ext[last].Offset+ext[last].Length == start {
			ext[last].Length += end - start
		} else {
			ext = append(ext, Extent{start, end - start})
		}
		at = end
	}
	return ext, nil
}

// LocalOption changes what NewLocal makes.
type LocalOption func(*local)

// WithClock replaces the clock by which a file counts as changed too lately to
// be known again by its times.
func WithClock(now func() time.Time) LocalOption { return func(l *local) { l.now = now } }

// Around surrounds a scan of this machine's tree. It calls scan at most once,
// with the tree to read in place of the live one, and with sink, to which it
// may give notes before and after. It gives scan's error, or its own.
type Around func(ctx context.Context, live *LocalTree, req ScanRequest, sink Sink, scan func(context.Context, Tree) error) error

// WithAround has every scan surrounded. Without it, a scan is refused that is
// asked to keep anything still.
func WithAround(a Around) LocalOption { return func(l *local) { l.around = a } }

type local struct {
	root   string
	now    func() time.Time
	around Around
	watch  *watching // nil: nothing was ever watched
}

var _ Watcher = (*local)(nil)

// NewLocal is the Source of this machine's tree at root. It is a Watcher, where
// the kernel can (fanotify(7) with directory handles and names, Linux 5.9) and
// the process may (root).
func NewLocal(root string, opts ...LocalOption) Source {
	l := &local{root: root, now: time.Now}
	for _, o := range opts {
		o(l)
	}
	return l
}

func (l *local) Describe(ctx context.Context, root string) (Facts, *Layout, error) {
	return DescribeLocal(ctx, l.path(root))
}

func (l *local) Scan(ctx context.Context, req ScanRequest, sink Sink) error {
	// What changes from here on is not to be known by its times, though it may be
	// a while until the reading begins.
	begun := l.now()
	live := NewLocalTree(l.path(req.Root))
	part, err := l.part(ctx, live, req, sink)
	if err != nil {
		return err
	}
	scan := func(ctx context.Context, tree Tree) error {
		tree, sink, undo := req.Limits.held(tree, sink)
		defer undo()
		return scanTree(ctx, tree, req, sink, func() time.Time { return begun }, part)
	}
	switch {
	case l.around != nil:
		err = l.around(ctx, live, req, sink, scan)
	case req.Consistency.Wanted():
		err = errors.New("nothing here takes snapshots or freezes file systems")
	default:
		err = scan(ctx, live)
	}
	if part != nil {
		l.watch.end(req, part, err)
	}
	return err
}

// part says of what a scan is, when it is to be watched; nil: it is not.
func (l *local) part(ctx context.Context, live *LocalTree, req ScanRequest, sink Sink) (p *part, err error) {
	if req.Mark == 0 {
		return nil, nil
	}
	why := "what is kept still while it is read is not watched"
	if !req.Consistency.Wanted() {
		if l.watch == nil {
			l.watch = &watching{}
		}
		l.watch.tree = live
		if p, why, err = l.watch.begin(ctx, req); err != nil {
			return nil, err
		}
	}
	if why != "" {
		err = sink.Note(ctx, Note{Kind: NoteRescan, Detail: why})
	}
	return p, err
}

func (l *local) Quiet(ctx context.Context, since Mark) (bool, error) {
	if l.watch == nil {
		return false, nil
	}
	return l.watch.quiet(since)
}

func (l *local) Close() error {
	if l.watch != nil {
		l.watch.stop()
	}
	return nil
}

// path is where root is: the one asked for, or by default the source's own.
func (l *local) path(root string) string {
	if root == "" {
		return l.root
	}
	return root
}
