package imaging

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// nodeOf tells all about the inode that fd is open at, with O_PATH or
// otherwise.
func nodeOf(fd int) (Node, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return Node{}, fmt.Errorf("stat: %w", err)
	}
	n := nodeOfStat(&st)
	var err error
	if n.Kind == Symlink {
		if n.Target, err = readLink(fd); err != nil {
			return n, fmt.Errorf("read the link: %w", err)
		}
	}
	if n.Xattrs, err = readXattrs(fd); err != nil {
		return n, fmt.Errorf("read extended attributes: %w", err)
	}
	return n, nil
}

// flaggedNodeOf is nodeOf for a regular file or directory that is open for
// reading, with inode flags and project.
func flaggedNodeOf(fd int) (Node, error) {
	n, err := nodeOf(fd)
	if err == nil {
		n.Flags, n.Project, err = inodeFlags(fd)
	}
	return n, err
}

// readFlags reads the inode flags and the project of the file that path, open
// with O_PATH, is. A file that may not be opened has none that could be read.
func (n *Node) readFlags(path int) error {
	fd, err := reopen(path)
	if errors.Is(err, unix.EACCES) || errors.Is(err, unix.EPERM) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	n.Flags, n.Project, err = inodeFlags(fd)
	return err
}

// reopen opens for reading what is open with O_PATH, a regular file or a
// directory.
func reopen(path int) (int, error) {
	name := "/proc/self/fd/" + strconv.Itoa(path)
	const flags = unix.O_RDONLY | unix.O_NONBLOCK
	fd, err := openRetry(unix.AT_FDCWD, name, flags|unix.O_NOATIME)
	if err == unix.EPERM {
		fd, err = openRetry(unix.AT_FDCWD, name, flags)
	}
	return fd, err
}

func nodeOfStat(st *unix.Stat_t) Node {
	n := Node{
		Entry: Entry{
			Mode:  st.Mode & 0o7777,
			UID:   st.Uid,
			GID:   st.Gid,
			MTime: Time{Sec: int64(st.Mtim.Sec), Nsec: uint32(st.Mtim.Nsec)},
		},
		Dev:   uint64(st.Dev),
		Ino:   st.Ino,
		Links: uint64(st.Nlink),
		CTime: Time{Sec: int64(st.Ctim.Sec), Nsec: uint32(st.Ctim.Nsec)},
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		n.Kind, n.Size = Regular, st.Size
	case unix.S_IFDIR:
		n.Kind = Directory
	case unix.S_IFLNK:
		n.Kind = Symlink
	case unix.S_IFCHR:
		n.Kind = CharDevice
	case unix.S_IFBLK:
		n.Kind = BlockDevice
	case unix.S_IFIFO:
		n.Kind = FIFO
	case unix.S_IFSOCK:
		n.Kind = Socket
	default:
		n.Lost = fmt.Sprintf("an inode of the unknown type %#o", st.Mode&unix.S_IFMT)
	}
	if n.Kind == CharDevice || n.Kind == BlockDevice {
		n.Major, n.Minor = unix.Major(uint64(st.Rdev)), unix.Minor(uint64(st.Rdev))
	}
	return n
}

// readLink reads the symbolic link that fd is open at with O_PATH, as Linux
// allows with an empty name (readlinkat(2)).
func readLink(fd int) (string, error) {
	for size := 256; ; size *= 2 {
		b := make([]byte, size)
		n, err := unix.Readlinkat(fd, "", b)
		if err != nil {
			return "", err
		}
		if n < size {
			return string(b[:n]), nil
		}
	}
}

// readXattrs reads all extended attributes that may be listed. What is open
// with O_PATH has no fgetxattr, but its name below /proc/self/fd has getxattr,
// also for symbolic links: the magic link leads to the inode itself.
func readXattrs(fd int) ([]Xattr, error) {
	path := fmt.Sprintf("/proc/self/fd/%d", fd)
	names, err := growing(func(b []byte) (int, error) { return unix.Listxattr(path, b) })
	if errors.Is(err, unix.ENOENT) {
		// The file is open, so it is not this that is missing.
		return nil, errors.New("/proc is not mounted")
	}
	if errors.Is(err, unix.EOPNOTSUPP) || len(names) == 0 && err == nil {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var list []Xattr
	for name := range strings.SplitSeq(strings.TrimSuffix(string(names), "\x00"), "\x00") {
		if isShadow(name) {
			continue
		}
		value, err := growing(func(b []byte) (int, error) { return unix.Getxattr(path, name, b) })
		if errors.Is(err, unix.ENODATA) || errors.Is(err, unix.EOPNOTSUPP) {
			continue // gone since, or listed though it is not there (some file systems do)
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		list = append(list, Xattr{Name: name, Value: value})
	}
	slices.SortFunc(list, func(a, b Xattr) int { return strings.Compare(a.Name, b.Name) })
	return list, nil
}

// growing calls a system call that tells how long its answer is until the
// buffer fits. An empty answer is nil.
func growing(call func([]byte) (int, error)) ([]byte, error) {
	var first [512]byte
	b := first[:]
	for {
		n, err := call(b)
		switch {
		case err == unix.ERANGE:
			if n, err = call(nil); err != nil {
				return nil, err
			}
			b = make([]byte, n+64)
		case err != nil:
			return nil, err
		case n == 0:
			return nil, nil
		default:
			return bytes.Clone(b[:n]), nil
		}
	}
}
