package imaging

import (
	"container/list"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"
)

// This file is all of how Apply and CompareTree reach a tree: from the root's
// descriptor downwards, one element at a time, with O_NOFOLLOW. An element is
// never "..", never holds a slash, and never is a symbolic link that is
// followed, so nothing outside of the root can be reached, whatever is planted
// in it and whenever; it is what openat2 does with RESOLVE_BENEATH and
// RESOLVE_NO_SYMLINKS, and kernels before 5.6 can do it too. Since no path is
// ever given to the kernel as a whole, paths may be longer than PATH_MAX.

// maxOpenDirs bounds the directories held open. Several goroutines hold one or
// two each; the rest are kept only because they will be wanted again.
const maxOpenDirs = 256

// beneath holds the directories of one tree open.
type beneath struct {
	dir  string // as the user named it, for messages
	root int

	mu   sync.Mutex
	open map[*treeNode]*openDir
	idle *list.List          // of *openDir that nobody holds, the longest idle first
	kind map[uint64]fsTraits // by device number

	// unlock is called when a directory cannot be entered for want of
	// permission, and tells whether to try again.
	unlock func(n *treeNode, parent int) (bool, error)
}

// openDir is one open directory.
type openDir struct {
	fd   int
	node *treeNode
	uses int
	elem *list.Element // in idle, while uses is 0
}

// openBeneath opens the root of a tree. Symbolic links in dir itself are the
// user's own and are followed.
func openBeneath(dir string) (*beneath, error) {
	// Everything that has no system call taking a descriptor of the O_PATH
	// kind (chmod, extended attributes) goes through these names.
	if err := unix.Access("/proc/self/fd", unix.X_OK); err != nil {
		return nil, fmt.Errorf("/proc must be mounted: %w", os.NewSyscallError("access", err))
	}
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: dir, Err: err}
	}
	return &beneath{dir: dir, root: fd, open: map[*treeNode]*openDir{}, idle: list.New(), kind: map[uint64]fsTraits{}}, nil
}

func (b *beneath) close() {
	for _, d := range b.open {
		unix.Close(d.fd)
	}
	unix.Close(b.root)
}

// hold opens the directory of n, or takes the one that is open. It is to be
// let go with release.
func (b *beneath) hold(n *treeNode) (int, error) {
	if n.parent == nil {
		return b.root, nil
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if d := b.open[n]; d != nil {
		if d.elem != nil {
			b.idle.Remove(d.elem)
			d.elem = nil
		}
		d.uses++
		return d.fd, nil
	}
	fd, err := b.descend(n)
	if err != nil {
		return -1, err
	}
	b.open[n] = &openDir{fd: fd, node: n, uses: 1}
	for len(b.open) > maxOpenDirs && b.idle.Len() > 0 {
		b.drop(b.idle.Front().Value.(*openDir))
	}
	return fd, nil
}

func (b *beneath) release(n *treeNode) {
	if n.parent == nil {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	d := b.open[n]
	if d.uses--; d.uses == 0 {
		d.elem = b.idle.PushBack(d)
	}
}

// forget closes the directory of n, because it is about to be removed.
func (b *beneath) forget(n *treeNode) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if d := b.open[n]; d != nil && d.uses == 0 {
		b.drop(d)
	}
}

func (b *beneath) drop(d *openDir) {
	b.idle.Remove(d.elem)
	delete(b.open, d.node)
	unix.Close(d.fd)
}

// descend opens the directory of n from the nearest one that is open.
func (b *beneath) descend(n *treeNode) (int, error) {
	var way []*treeNode
	at := b.root
	for up := n; up.parent != nil; up = up.parent {
		if d := b.open[up]; d != nil {
			at = d.fd
			break
		}
		way = append(way, up)
	}
	owned := -1
	for _, step := range slices.Backward(way) {
		fd, err := b.enter(at, step)
		if owned >= 0 {
			unix.Close(owned)
		}
		if err != nil {
			return -1, &os.PathError{Op: "open directory", Path: step.path(), Err: err}
		}
		at, owned = fd, fd
	}
	return owned, nil
}

func (b *beneath) enter(at int, n *treeNode) (int, error) {
	const flags = unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW
	fd, err := openRetry(at, n.name, flags)
	if errors.Is(err, unix.EACCES) && b.unlock != nil {
		again, uerr := b.unlock(n, at)
		if uerr != nil {
			return -1, uerr
		}
		if again {
			return openRetry(at, n.name, flags)
		}
	}
	return fd, err
}

// listNames lists a directory, without "." and "..".
func listNames(fd int) ([]string, error) {
	if _, err := unix.Seek(fd, 0, unix.SEEK_SET); err != nil {
		return nil, err
	}
	var names []string
	buf := make([]byte, 64<<10)
	for {
		n, err := unix.ReadDirent(fd, buf)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return nil, err
		}
		if n <= 0 {
			return names, nil
		}
		_, _, names = unix.ParseDirent(buf[:n], -1, names)
	}
}

// object is one existing name, held with O_PATH: looked at and changed without
// opening it, whatever it is, and the same inode from the first look to the
// last change.
type object struct {
	dir  int
	name string
	fd   int
	st   unix.Stat_t
}

// openObject takes hold of name in dir.
func openObject(dir int, name string) (*object, error) {
	fd, err := openRetry(dir, name, unix.O_PATH|unix.O_NOFOLLOW)
	if err != nil {
		return nil, err
	}
	o := &object{dir: dir, name: name, fd: fd}
	if err := o.stat(); err != nil {
		o.close()
		return nil, err
	}
	return o, nil
}

func (o *object) close() { unix.Close(o.fd) }

func (o *object) stat() error { return unix.Fstat(o.fd, &o.st) }

// proc is a name that leads to the inode itself, also where that is a
// symbolic link: such names in /proc are not followed any further.
func (o *object) proc() string { return "/proc/self/fd/" + strconv.Itoa(o.fd) }

func (o *object) kind() Kind { return nodeOfStat(&o.st).Kind }

func (o *object) mtime() Time { return Time{Sec: o.st.Mtim.Sec, Nsec: uint32(o.st.Mtim.Nsec)} }

// isMountRoot tells whether something is mounted at the directory fd, bind
// mounts of the same file system included. Kernels before 5.8 do not say it;
// there a change of the device must do.
func isMountRoot(fd int, dev, parentDev uint64) bool {
	var sx unix.Statx_t
	err := unix.Statx(fd, "", unix.AT_EMPTY_PATH|unix.AT_STATX_DONT_SYNC, 0, &sx)
	if err == nil && sx.Attributes_mask&unix.STATX_ATTR_MOUNT_ROOT != 0 {
		return sx.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0
	}
	return dev != parentDev
}

// fsTraits are what a file system can hold, and what not.
type fsTraits struct {
	bare    bool   // neither owners, modes nor extended attributes: FAT
	step    int64  // nanoseconds that mtimes are rounded down to
	squeeze bool   // content may take less room than its size
	flags   uint32 // inode flags
	btrfs   bool   // it has the attributes that only btrfs has
	shares  bool   // files can share blocks (ioctl_ficlone(2))
}

func traitsOf(fd int) (fsTraits, error) {
	var st unix.Statfs_t
	if err := unix.Fstatfs(fd, &st); err != nil {
		return fsTraits{}, os.NewSyscallError("fstatfs", err)
	}
	const zfs = 0x2fc12fc1
	switch uint32(st.Type) {
	case unix.MSDOS_SUPER_MAGIC:
		return fsTraits{bare: true, step: 2e9}, nil
	case unix.EXFAT_SUPER_MAGIC:
		return fsTraits{bare: true, step: 1e7}, nil
	case unix.BTRFS_SUPER_MAGIC:
		return fsTraits{squeeze: true, flags: btrfsFlags, btrfs: true, shares: true}, nil
	case zfs:
		return fsTraits{squeeze: true, flags: KeptFlags}, nil
	case unix.EXT4_SUPER_MAGIC:
		return fsTraits{flags: extFlags}, nil
	case unix.XFS_SUPER_MAGIC:
		return fsTraits{flags: xfsFlags, shares: xfsShares(fd)}, nil
	case unix.F2FS_SUPER_MAGIC:
		return fsTraits{flags: f2fsFlags}, nil
	case unix.TMPFS_MAGIC:
		return fsTraits{flags: tmpfsFlags}, nil
	}
	return fsTraits{flags: KeptFlags}, nil
}

// traits are those of the file system with the number dev, on which something
// in the directory at was found.
func (b *beneath) traits(dev uint64, at *treeNode) (fsTraits, error) {
	b.mu.Lock()
	t, known := b.kind[dev]
	b.mu.Unlock()
	if known {
		return t, nil
	}
	fd, err := b.hold(at)
	if err != nil {
		return t, err
	}
	defer b.release(at)
	if t, err = traitsOf(fd); err != nil {
		return t, err
	}
	b.mu.Lock()
	b.kind[dev] = t
	b.mu.Unlock()
	return t, nil
}

// list lists the directory of n.
func (b *beneath) list(n *treeNode) ([]string, error) {
	fd, err := b.hold(n)
	if err != nil {
		return nil, err
	}
	defer b.release(n)
	names, err := listNames(fd)
	if err != nil {
		return nil, &os.PathError{Op: "list", Path: n.path(), Err: err}
	}
	slices.Sort(names)
	return names, nil
}

// sameTime tells whether have is what the file system makes of want.
func (t fsTraits) sameTime(want, have Time) bool {
	switch {
	case t.step == 0:
		return want == have
	case t.step > 1e9:
		n := t.step / 1e9
		return want.Sec-want.Sec%n == have.Sec-have.Sec%n
	}
	return want.Sec == have.Sec && int64(want.Nsec)/t.step == int64(have.Nsec)/t.step
}
