package imaging

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// fanotify is an open fanotify(7) group that reports what changes by the handle
// of the directory and the name in it (Linux 5.9). The kernel queues an event
// before the call that caused it returns: who reads until nothing is left knows
// of every change that was made before. A write through a shared memory mapping
// is not reported, but for the closing of the file.
type fanotify struct {
	f   *os.File // not blocking, known to the runtime's poller
	raw syscall.RawConn
	buf []byte
}

// fanChanges are the events that tell of a change.
const fanChanges = unix.FAN_CREATE | unix.FAN_DELETE | unix.FAN_MOVED_FROM | unix.FAN_MOVED_TO |
	unix.FAN_MODIFY | unix.FAN_ATTRIB | unix.FAN_CLOSE_WRITE | unix.FAN_ONDIR

func openFanotify() (*fanotify, error) {
	const flags = unix.FAN_CLASS_NOTIF | unix.FAN_CLOEXEC | unix.FAN_NONBLOCK | unix.FAN_REPORT_FID | unix.FAN_REPORT_DIR_FID | unix.FAN_REPORT_NAME
	fd, err := unix.FanotifyInit(flags, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_LARGEFILE)
	if err != nil {
		return nil, fmt.Errorf("fanotify_init: %w", err)
	}
	n := &fanotify{f: os.NewFile(uintptr(fd), "fanotify"), buf: make([]byte, 64<<10)}
	if n.raw, err = n.f.SyscallConn(); err != nil {
		n.f.Close()
		return nil, fmt.Errorf("fanotify: %w", err)
	}
	return n, nil
}

// add has all changes in the file system of the directory dir reported, and
// tells by which identity events name it. The mark does not keep the file system
// from being unmounted.
func (n *fanotify) add(dir string) (fsid [8]byte, m handleMount, err error) {
	fd, err := openRetry(unix.AT_FDCWD, dir, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return fsid, m, fmt.Errorf("open %s: %w", dir, err)
	}
	defer unix.Close(fd)
	var st unix.Statfs_t
	var at unix.Stat_t
	if err := errors.Join(unix.Fstatfs(fd, &st), unix.Fstat(fd, &at)); err != nil {
		return fsid, m, fmt.Errorf("statfs %s: %w", dir, err)
	}
	m = handleMount{dir: dir, dev: uint64(at.Dev), fat: st.Type == unix.MSDOS_SUPER_MAGIC}
	for i, v := range st.Fsid.Val {
		binary.NativeEndian.PutUint32(fsid[4*i:], uint32(v))
	}
	err = n.control(func(group int) error {
		return unix.FanotifyMark(group, unix.FAN_MARK_ADD|unix.FAN_MARK_FILESYSTEM, fanChanges, fd, "")
	})
	if err != nil {
		return fsid, m, fmt.Errorf("fanotify_mark %s: %w", dir, err)
	}
	return fsid, m, nil
}

func (n *fanotify) control(fn func(fd int) error) error {
	var err error
	if cerr := n.raw.Control(func(fd uintptr) { err = fn(int(fd)) }); cerr != nil {
		return cerr
	}
	return err
}

// wait waits until there are events. It gives an error when the group is closed.
func (n *fanotify) wait() error {
	return n.raw.Read(func(fd uintptr) bool { return hasEvents(int(fd)) })
}

func hasEvents(fd int) bool {
	p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	k, err := unix.Poll(p, 0)
	return err == nil && k > 0
}

// read gives every event that is in the queue to fn.
func (n *fanotify) read(fn func(*fanEvent)) error {
	return n.control(func(fd int) error {
		for {
			k, err := unix.Read(fd, n.buf)
			switch {
			case err == unix.EINTR:
				continue
			case err == unix.EAGAIN:
				return nil
			case err != nil:
				return fmt.Errorf("read fanotify events: %w", err)
			}
			if err := parseFanEvents(n.buf[:k], fn); err != nil {
				return err
			}
		}
	})
}

func (n *fanotify) close() { n.f.Close() }

// fanEvent is one event.
type fanEvent struct {
	mask uint64
	dir  fileHandle // the directory; with the name ".", what happened to itself
	name string
	self fileHandle // what it happened to
}

// fileHandle names an inode for open_by_handle_at(2). The zero one names none.
type fileHandle struct {
	fsid  [8]byte
	kind  int32
	bytes string
}

var errFanEvents = errors.New("the kernel's fanotify events are not as fanotify(7) describes them")

// parseFanEvents reads what read(2) of a fanotify group gives: metadata, each
// followed by records of information.
func parseFanEvents(b []byte, fn func(*fanEvent)) error {
	const metadata = 24 // struct fanotify_event_metadata
	for len(b) > 0 {
		if len(b) < metadata {
			return errFanEvents
		}
		size, head := binary.NativeEndian.Uint32(b), binary.NativeEndian.Uint16(b[6:])
		if b[4] != unix.FANOTIFY_METADATA_VERSION || head < metadata || uint32(head) > size || uint64(size) > uint64(len(b)) {
			return errFanEvents
		}
		e := fanEvent{mask: binary.NativeEndian.Uint64(b[8:])}
		if err := e.parseInfo(b[head:size]); err != nil {
			return err
		}
		fn(&e)
		b = b[size:]
	}
	return nil
}

func (e *fanEvent) parseInfo(b []byte) error {
	for len(b) > 0 {
		if len(b) < 4 { // struct fanotify_event_info_header
			return errFanEvents
		}
		kind, size := b[0], binary.NativeEndian.Uint16(b[2:])
		if size < 4 || int(size) > len(b) {
			return errFanEvents
		}
		info := b[4:size]
		b = b[size:]
		switch kind {
		case unix.FAN_EVENT_INFO_TYPE_FID, unix.FAN_EVENT_INFO_TYPE_DFID, unix.FAN_EVENT_INFO_TYPE_DFID_NAME:
		default:
			continue // none that was asked for
		}
		h, rest, err := parseFID(info)
		if err != nil {
			return err
		}
		if kind == unix.FAN_EVENT_INFO_TYPE_FID {
			e.self = h
			continue
		}
		e.dir = h
		if kind == unix.FAN_EVENT_INFO_TYPE_DFID_NAME {
			name, _, ok := bytes.Cut(rest, []byte{0})
			if !ok || len(name) == 0 || bytes.IndexByte(name, '/') >= 0 {
				return errFanEvents
			}
			e.name = string(name)
		}
	}
	return nil
}

// parseFID reads the body of a struct fanotify_event_info_fid, and gives what
// follows the handle.
func parseFID(b []byte) (h fileHandle, rest []byte, err error) {
	if len(b) < 16 {
		return h, nil, errFanEvents
	}
	copy(h.fsid[:], b)
	size := binary.NativeEndian.Uint32(b[8:])
	h.kind = int32(binary.NativeEndian.Uint32(b[12:]))
	if uint64(size) > uint64(len(b)-16) {
		return h, nil, errFanEvents
	}
	h.bytes = string(b[16 : 16+size])
	return h, b[16+size:], nil
}

// handleMount is a directory through which handles are looked up: where a file
// system is mounted, or is part of a tree.
type handleMount struct {
	dir string
	dev uint64
	fat bool // whose handles are good for as long as the inode is in memory
}

// handleResolver finds the paths of handles.
type handleResolver struct {
	mounts map[[8]byte][]handleMount // of each file system, all that are in the tree
	open   map[string]int
}

// add adds a mount. Two file systems that events cannot tell from one another,
// as copies of one disk are, cannot both be.
func (r *handleResolver) add(fsid [8]byte, m handleMount) error {
	for _, other := range r.mounts[fsid] {
		if other.dev != m.dev {
			return fmt.Errorf("%s and %s are file systems with one identity", other.dir, m.dir)
		}
	}
	r.mounts[fsid] = append(r.mounts[fsid], m)
	return nil
}

func (r *handleResolver) close() {
	for _, fd := range r.open {
		unix.Close(fd)
	}
	r.open = nil
}

// foundHandle is what a handle names now, as it is seen through one mount.
type foundHandle struct {
	path     string
	dev, ino uint64
	lost     bool // where in that mount it is cannot be told
	nowhere  bool // no path in that mount leads there, or none that the kernel knows
}

// mount opens the directory of a mount. It is to stay open for no longer than it
// takes: it keeps the file system from being unmounted.
func (r *handleResolver) mount(dir string) (fd int, err error) {
	if fd, ok := r.open[dir]; ok {
		return fd, nil
	}
	if fd, err = openRetry(unix.AT_FDCWD, dir, unix.O_RDONLY|unix.O_DIRECTORY); err != nil {
		return -1, fmt.Errorf("open %s: %w", dir, err)
	}
	if r.open == nil {
		r.open = map[string]int{}
	}
	r.open[dir] = fd
	return fd, nil
}

// find finds where an inode is, as each of the mounts shows it; none do: it is no
// more. The path of a directory is its only one there; that
// of a file is one of its names, or nothing to rely on.
func (r *handleResolver) find(h fileHandle) (found []foundHandle, err error) {
	for _, m := range r.mounts[h.fsid] {
		f, ok, err := r.findIn(m, h)
		if err != nil {
			return nil, err
		}
		if ok {
			found = append(found, f)
		}
	}
	return found, nil
}

func (r *handleResolver) findIn(m handleMount, h fileHandle) (f foundHandle, ok bool, err error) {
	mount, err := r.mount(m.dir)
	if err != nil {
		return f, false, err
	}
	fd, err := unix.OpenByHandleAt(mount, unix.NewFileHandle(h.kind, []byte(h.bytes)), unix.O_PATH|unix.O_CLOEXEC)
	if errors.Is(err, unix.ESTALE) || errors.Is(err, unix.ENOENT) {
		return foundHandle{path: m.dir, lost: true}, m.fat, nil
	}
	if err != nil {
		return f, false, fmt.Errorf("open_by_handle_at in %s: %w", m.dir, err)
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return f, false, fmt.Errorf("stat: %w", err)
	}
	if st.Nlink == 0 {
		return f, false, nil
	}
	path, err := os.Readlink("/proc/self/fd/" + strconv.Itoa(fd))
	if err != nil {
		return f, false, fmt.Errorf("find the path of a handle: %w", err)
	}
	// Of an inode in a part of the file system that is not mounted there, the
	// kernel gives any path.
	_, in := within(m.dir, path)
	return foundHandle{path: path, dev: uint64(st.Dev), ino: st.Ino, nowhere: !in}, true, nil
}
