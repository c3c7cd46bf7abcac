package imaging

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// target is a name that is being made, under a temporary name until it is
// whole.
type target struct {
	n       *treeNode
	e       *Entry       // that holds its content and metadata; nil once it is whole
	left    atomic.Int64 // pieces of content still to come
	bytes   int64        // of content
	regular bool

	mu   sync.Mutex
	temp string // its name now; empty: not there (yet, or any more)
}

func newTempName() string {
	var b [8]byte
	_, _ = rand.Read(b[:]) // never fails
	return tempPrefix + hex.EncodeToString(b[:])
}

// allocateFrom is the size from which a file that comes in pieces gets its
// room before them, so that the order they come in does not scatter it.
const allocateFrom = 1 << 20

// open opens the temporary file of t for writing and makes it first if need be.
func (a *applier) open(t *target, dir int) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	const flags = unix.O_RDWR | unix.O_NOFOLLOW
	if t.temp != "" {
		return openRetry(dir, t.temp, flags)
	}
	fd, err := a.create(t, dir)
	if err != nil {
		return -1, err
	}
	if err := t.shape(fd); err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// create makes the temporary file.
func (a *applier) create(t *target, dir int) (int, error) {
	temp := newTempName()
	fd, err := unix.Openat(dir, temp, unix.O_RDWR|unix.O_NOFOLLOW|unix.O_CREAT|unix.O_EXCL|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return -1, err
	}
	t.temp = temp
	if err := a.birthFlags(fd, t); err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// shape gives the empty file its size and large ones their room.
func (t *target) shape(fd int) error {
	data := t.e.Data()
	whole := len(data) > 0 && data[len(data)-1].Offset+data[len(data)-1].Length == t.e.Size
	if !whole || len(data) > 1 || len(t.e.Chunks) > 1 {
		if err := unix.Ftruncate(fd, t.e.Size); err != nil {
			return fmt.Errorf("truncate: %w", err)
		}
	}
	if t.e.Size < allocateFrom || len(t.e.Chunks) < 2 || len(data) > 1024 {
		return nil
	}
	for _, x := range data {
		err := unix.Fallocate(fd, unix.FALLOC_FL_KEEP_SIZE, x.Offset, x.Length)
		if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOSYS) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("allocate: %w", err)
		}
	}
	return nil
}

// makeSpecial makes a symbolic link, device, FIFO or socket under a temporary
// name. A mode is given later, with the rest.
func (t *target) makeSpecial(dir int) error {
	temp := newTempName()
	var err error
	switch t.e.Kind {
	case Symlink:
		err = unix.Symlinkat(t.e.Target, dir, temp)
	case CharDevice:
		err = unix.Mknodat(dir, temp, unix.S_IFCHR|0o600, int(unix.Mkdev(t.e.Major, t.e.Minor)))
	case BlockDevice:
		err = unix.Mknodat(dir, temp, unix.S_IFBLK|0o600, int(unix.Mkdev(t.e.Major, t.e.Minor)))
	case FIFO:
		err = unix.Mknodat(dir, temp, unix.S_IFIFO|0o600, 0)
	case Socket:
		err = unix.Mknodat(dir, temp, unix.S_IFSOCK|0o600, 0)
	}
	if err != nil {
		return err
	}
	t.temp = temp
	return nil
}

// finish gives the temporary file all its metadata. Nothing is written to it
// any more: its time would change.
func (a *applier) finish(t *target, dir int) error {
	o, err := openObject(dir, t.temp)
	if err != nil {
		return &os.PathError{Op: "stat", Path: t.n.path(), Err: err}
	}
	defer o.close()
	traits, err := a.tree.traits(o.st.Dev, t.n.parent)
	if err != nil {
		return err
	}
	return a.setMeta(t.n.path(), t.e, o, traits)
}

// discard removes the temporary file, if it is there.
func (a *applier) discard(t *target) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.temp == "" {
		return
	}
	dir, err := a.tree.hold(t.n.parent)
	if err != nil {
		a.log.Warn("temporary file left behind", "path", t.n.parent.path(), "name", t.temp, "error", err)
		return
	}
	defer a.tree.release(t.n.parent)
	if err := unix.Unlinkat(dir, t.temp, 0); err != nil && !errors.Is(err, unix.ENOENT) {
		a.log.Warn("temporary file left behind", "path", t.n.parent.path(), "name", t.temp, "error", err)
	}
	t.temp = ""
}
