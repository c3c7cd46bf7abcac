package imaging

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Inode flags and projects are read and set through an open descriptor only
// (ioctl_iflags(2), ioctl_xfs_fsgetxattr(2)).

// lockFlags are the inode flags that forbid changes: immutable, append only.
const lockFlags = unix.STATX_ATTR_IMMUTABLE | unix.STATX_ATTR_APPEND

// What file systems can hold of KeptFlags, as Linux 6.12 says it.
const (
	extFlags   = 0x2003c0ff // EXT4_FL_USER_MODIFIABLE
	xfsFlags   = 0x220000f8
	btrfsFlags = 0x008104fc
	f2fsFlags  = 0x200104fc // F2FS_FL_USER_MODIFIABLE
	tmpfsFlags = 0x000000f0 // SHMEM_FL_USER_MODIFIABLE
)

// flagLetters writes inode flags as lsattr(1) and chattr(1) do.
func flagLetters(flags uint32) string {
	letters := []struct {
		bit    uint32
		letter byte
	}{
		{0x1, 's'}, {0x2, 'u'}, {0x8, 'S'}, {0x10000, 'D'}, {0x10, 'i'}, {0x20, 'a'}, {0x40, 'd'}, {0x80, 'A'}, {0x4, 'c'},
		{0x4000, 'j'}, {0x8000, 't'}, {0x20000, 'T'}, {0x800000, 'C'}, {0x2000000, 'x'}, {0x20000000, 'P'}, {0x400, 'm'},
	}
	var b strings.Builder
	for _, l := range letters {
		if flags&l.bit != 0 {
			b.WriteByte(l.letter)
		}
	}
	if b.Len() == 0 {
		return "none"
	}
	return b.String()
}

// fsxattr is struct fsxattr of linux/fs.h.
type fsxattr struct {
	xflags, extsize, nextents, projid, cowextsize uint32
	_                                             [8]byte
}

// FS_IOC_FSGETXATTR and FS_IOC_FSSETXATTR: _IOR and _IOW of ('X', 31 and 32).
const (
	fsGetXattr = 0x801c581f
	fsSetXattr = 0x401c5820
)

func ioctlFsxattr(fd int, request uintptr, x *fsxattr) error {
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), request, uintptr(unsafe.Pointer(x)))
	if errno != 0 {
		return errno
	}
	return nil
}

// hasNoFlags tells whether err says that the file system has no such flags, or
// no projects.
func hasNoFlags(err error) bool {
	return errors.Is(err, unix.ENOTTY) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EINVAL)
}

// inodeFlags reads the kept flags and the project of what fd is open at, a
// regular file or a directory. A file system that has neither has none set.
func inodeFlags(fd int) (flags, project uint32, err error) {
	all, err := unix.IoctlGetUint32(fd, unix.FS_IOC_GETFLAGS)
	if err != nil && !hasNoFlags(err) {
		return 0, 0, fmt.Errorf("read inode flags: %w", err)
	}
	if err == nil {
		flags = all & KeptFlags
	}
	var x fsxattr
	if err := ioctlFsxattr(fd, fsGetXattr, &x); err == nil {
		project = x.projid
	} else if !hasNoFlags(err) {
		return 0, 0, fmt.Errorf("read the project: %w", err)
	}
	return flags, project, nil
}

// setInodeFlags sets the kept flags and leaves the others as they are.
func setInodeFlags(fd int, flags uint32) error {
	have, err := unix.IoctlGetUint32(fd, unix.FS_IOC_GETFLAGS)
	if err != nil {
		return err
	}
	want := have&^KeptFlags | flags
	if want == have {
		return nil
	}
	return unix.IoctlSetPointerInt(fd, unix.FS_IOC_SETFLAGS, int(want))
}

func setProject(fd int, project uint32) error {
	var x fsxattr
	if err := ioctlFsxattr(fd, fsGetXattr, &x); err != nil {
		return err
	}
	if x.projid == project {
		return nil
	}
	x.projid = project
	return ioctlFsxattr(fd, fsSetXattr, &x)
}

// xfsShares asks XFS whether it was made with reflinks: XFS_IOC_FSGEOMETRY_V1,
// struct xfs_fsop_geom_v1 and XFS_FSOP_GEOM_FLAGS_REFLINK of xfs_fs.h.
func xfsShares(fd int) bool {
	const request, flagsAt, reflink = 0x80705864, 92, 1 << 20
	var geometry [112]byte
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), request, uintptr(unsafe.Pointer(&geometry)))
	return errno == 0 && binary.NativeEndian.Uint32(geometry[flagsAt:])&reflink != 0
}

// quickFlags are the flags that statx(2) tells, of what is open in whatever way:
// those of them that the file system tells, and which these are.
func quickFlags(fd int) (flags, told uint32) {
	const all = unix.STATX_ATTR_COMPRESSED | unix.STATX_ATTR_IMMUTABLE | unix.STATX_ATTR_APPEND | unix.STATX_ATTR_NODUMP
	var sx unix.Statx_t
	if unix.Statx(fd, "", unix.AT_EMPTY_PATH|unix.AT_STATX_DONT_SYNC, 0, &sx) != nil {
		return 0, 0
	}
	told = uint32(sx.Attributes_mask & all)
	return uint32(sx.Attributes) & told, told
}
