package snapshot

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"unsafe"

	"golang.org/x/sys/unix"
)

// From linux/btrfs.h. The arguments of all but GETFLAGS are 4096 bytes long.
const (
	iocSnapDestroy    = 1<<30 | 4096<<16 | 0x94<<8 | 15
	iocSnapCreateV2   = 1<<30 | 4096<<16 | 0x94<<8 | 23
	iocSubvolGetflags = 2<<30 | 8<<16 | 0x94<<8 | 25
	iocSubvolRootref  = 3<<30 | 4096<<16 | 0x94<<8 | 61
	iocInoLookupUser  = 3<<30 | 4096<<16 | 0x94<<8 | 62

	subvolReadOnly = 1 << 1
	subvolumeInode = 256 // of the root of every subvolume
	stubInode      = 2   // of the empty directory in a snapshot where a subvolume was nested
)

// args are the arguments of an ioctl of btrfs, in the machine's order.
type args [4096]byte

func (a *args) put(at int, v uint64) { binary.NativeEndian.PutUint64(a[at:], v) }
func (a *args) get(at int) uint64    { return binary.NativeEndian.Uint64(a[at:]) }
func (a *args) text(from, to int) string {
	b, _, _ := bytes.Cut(a[from:to], []byte{0})
	return string(b)
}

func (a *args) ioctl(fd int, request uint) error {
	for {
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), uintptr(request), uintptr(unsafe.Pointer(a)))
		if errno == unix.EINTR {
			continue
		}
		if errno != 0 {
			return errno
		}
		return nil
	}
}

// openDir opens a directory without following a link in its last element.
func openDir(name string) (int, error) {
	fd, err := unix.Open(name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, &os.PathError{Op: "open", Path: name, Err: err}
	}
	return fd, nil
}

// createSnapshot makes a read-only snapshot, name in the directory dir, of the
// subvolume whose root is at source.
func createSnapshot(source, dir, name string) error {
	from, err := openDir(source)
	if err != nil {
		return err
	}
	defer unix.Close(from)
	to, err := openDir(dir)
	if err != nil {
		return err
	}
	defer unix.Close(to)
	var a args
	a.put(0, uint64(from))
	a.put(16, subvolReadOnly)
	copy(a[56:], name)
	if err := a.ioctl(to, iocSnapCreateV2); err != nil {
		return &os.PathError{Op: "take a snapshot of", Path: source, Err: err}
	}
	return nil
}

// destroySnapshot removes a subvolume from the directory dir.
func destroySnapshot(dir, name string) error {
	fd, err := openDir(dir)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	var a args
	copy(a[8:len(a)-1], name)
	if err := a.ioctl(fd, iocSnapDestroy); err != nil && err != unix.ENOENT {
		return &os.PathError{Op: "remove the snapshot", Path: path.Join(dir, name), Err: err}
	}
	return nil
}

// isReadOnly tells whether the subvolume at dir cannot be written to.
func isReadOnly(dir string) (bool, error) {
	fd, err := openDir(dir)
	if err != nil {
		return false, err
	}
	defer unix.Close(fd)
	var a args
	if err := a.ioctl(fd, iocSubvolGetflags); err != nil {
		return false, &os.PathError{Op: "look at the subvolume", Path: dir, Err: err}
	}
	return a.get(0)&subvolReadOnly != 0, nil
}

// childSubvolumes lists the subvolumes that are nested in the one dir is in, as
// paths from dir; not those in subvolumes in turn, nor those beside dir.
func childSubvolumes(dir string) ([]string, error) {
	fd, err := openDir(dir)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	var out []string
	for next := uint64(0); ; {
		var refs args // btrfs_ioctl_get_subvol_rootref_args
		refs.put(0, next)
		err := refs.ioctl(fd, iocSubvolRootref)
		if err != nil && err != unix.EOVERFLOW {
			return nil, fmt.Errorf("list subvolumes: %w", err)
		}
		n := int(refs[8+255*16])
		for i := range n {
			tree, inode := refs.get(8+16*i), refs.get(16+16*i)
			var name args // btrfs_ioctl_ino_lookup_user_args
			name.put(0, inode)
			name.put(8, tree)
			switch err := name.ioctl(fd, iocInoLookupUser); err {
			case nil:
				out = append(out, path.Join(name.text(16+256, len(name)), name.text(16, 16+256)))
			case unix.ENOENT, unix.EACCES:
				// Removed since, or not below dir.
			default:
				return nil, fmt.Errorf("find subvolume %d: %w", tree, err)
			}
			next = tree + 1
		}
		if err == nil || n == 0 {
			slices.Sort(out)
			return out, nil
		}
	}
}

// volume is a btrfs file system with its top level mounted where only this
// process sees it.
type volume struct {
	top   string // where
	owner owner
	taken map[string]int // the subvolume's path from top: the number of its snapshot
}

func (v *volume) container() string { return path.Join(v.top, v.owner.String()) }

func (v *volume) snapshot(sub string) string {
	return path.Join(v.container(), strconv.Itoa(v.taken[sub]))
}

// mountTop mounts the top level of a file system at dir.
func mountTop(source, dir string) error {
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	if err := unix.Mount(source, dir, "btrfs", unix.MS_NOATIME|unix.MS_NODEV|unix.MS_NOSUID|unix.MS_NOEXEC, "subvolid=5"); err != nil {
		return fmt.Errorf("mount the top level of the file system on %s: %w", source, err)
	}
	return nil
}

// unseen does something to the entries of the directory dir that is to leave no
// new time on it.
func unseen(dir string, do func() error) error {
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		return &os.PathError{Op: "stat", Path: dir, Err: err}
	}
	err := do()
	times := []unix.Timespec{{Nsec: unix.UTIME_OMIT}, {Sec: st.Mtim.Sec, Nsec: st.Mtim.Nsec}}
	if e := unix.UtimesNanoAt(unix.AT_FDCWD, dir, times, unix.AT_SYMLINK_NOFOLLOW); e != nil {
		err = errors.Join(err, &os.PathError{Op: "set the time of", Path: dir, Err: e})
	}
	return err
}

// begin makes the directory in which the snapshots are.
func (v *volume) begin() error {
	return unseen(v.top, func() error { return os.Mkdir(v.container(), 0o700) })
}

// locate finds the subvolume that the directory root of the file system is in,
// and where in it that is. live is where it is mounted, to be sure that it is
// the same.
func (v *volume) locate(root, live string) (sub, rest string, err error) {
	var here, there unix.Stat_t
	if err := unix.Lstat(path.Join(v.top, root), &here); err != nil {
		return "", "", &os.PathError{Op: "look for", Path: root, Err: err}
	}
	if err := unix.Lstat(live, &there); err != nil {
		return "", "", &os.PathError{Op: "look at", Path: live, Err: err}
	}
	if here.Dev != there.Dev || here.Ino != there.Ino {
		return "", "", fmt.Errorf("what is mounted at %s is not %s of its file system any more", live, root)
	}
	for sub = path.Clean("/" + root); ; sub = path.Dir(sub) {
		var st unix.Stat_t
		if err := unix.Lstat(path.Join(v.top, sub), &st); err != nil {
			return "", "", &os.PathError{Op: "look at", Path: sub, Err: err}
		}
		if st.Ino == subvolumeInode && st.Dev == here.Dev {
			rest, err := filepath.Rel(sub, path.Clean("/"+root))
			return sub, rest, err
		}
		if sub == "/" {
			return "", "", fmt.Errorf("%s is in no subvolume", root)
		}
	}
}

// take takes a snapshot of the subvolume sub, once.
func (v *volume) take(sub string) error {
	if _, ok := v.taken[sub]; ok {
		return nil
	}
	n := len(v.taken)
	if err := createSnapshot(path.Join(v.top, sub), v.container(), strconv.Itoa(n)); err != nil {
		return err
	}
	v.taken[sub] = n
	return nil
}

// removeContainer removes the directory of an owner's snapshots and what is in it.
func removeContainer(top, name string) error {
	dir := path.Join(top, name)
	list, err := os.ReadDir(dir)
	if os.IsNotExist(err) {
		return nil
	}
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range list {
		errs = append(errs, destroySnapshot(dir, e.Name()))
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	return unseen(top, func() error {
		if err := os.Remove(dir); err != nil && !os.IsNotExist(err) {
			return err
		}
		return nil
	})
}

// sweepTop removes what dead owners have left on a file system.
func sweepTop(top string) error {
	list, err := os.ReadDir(top)
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range list {
		if o, ok := parseOwner(e.Name()); ok && e.IsDir() && !o.alive() {
			errs = append(errs, removeContainer(top, e.Name()))
		}
	}
	return errors.Join(errs...)
}
