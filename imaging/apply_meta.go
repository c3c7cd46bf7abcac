package imaging

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// metaDiff is what of an object's metadata is not as an entry says.
type metaDiff struct {
	owner, mode, mtime bool
	set                []Xattr  // missing, or of another value
	remove             []string // not in the entry
	flags              *inodeState
}

// inodeState are the inode flags and the project of what is not as its entry.
type inodeState struct{ flags, project uint32 }

func (d *metaDiff) none() bool {
	return !d.owner && !d.mode && !d.mtime && len(d.set) == 0 && len(d.remove) == 0 && d.flags == nil
}

// diffMeta compares all of o's metadata with e. Inode flags and projects, which
// are told of open files alone, are compared where the entry has some, and
// where deep says so; otherwise those that statx(2) knows.
func diffMeta(e *Entry, o *object, t fsTraits, deep bool) (metaDiff, error) {
	// Something happens all the time in what was left out of an image.
	d := metaDiff{mtime: !e.Opaque && !t.sameTime(e.MTime, o.mtime())}
	if t.bare {
		return d, nil
	}
	d.owner = o.st.Uid != e.UID || o.st.Gid != e.GID
	d.mode = modeDiffers(e, o)
	have, err := readXattrs(o.fd)
	if err != nil {
		return d, err
	}
	d.set, d.remove = diffXattrs(e.Xattrs, have)
	if !t.btrfs {
		d.set = slices.DeleteFunc(d.set, func(x Xattr) bool { return strings.HasPrefix(x.Name, btrfsProperty) })
	}
	d.flags, err = diffFlags(e, o, t, deep)
	return d, err
}

// diffFlags compares inode flags and project. What the file system cannot hold
// is no difference.
func diffFlags(e *Entry, o *object, t fsTraits, deep bool) (*inodeState, error) {
	if e.Kind != Regular && e.Kind != Directory || e.Opaque || o.kind() != e.Kind {
		return nil, nil
	}
	if !deep && e.Flags == 0 && e.Project == 0 {
		if flags, _ := quickFlags(o.fd); flags&t.flags == 0 {
			return nil, nil
		}
	}
	fd, err := reopen(o.fd)
	if errors.Is(err, unix.EACCES) || errors.Is(err, unix.EPERM) {
		return nil, nil // who may not look may not set it either
	}
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	var have inodeState
	if have.flags, have.project, err = inodeFlags(fd); err != nil {
		return nil, err
	}
	if (have.flags^e.Flags)&t.flags == 0 && have.project == e.Project {
		return nil, nil
	}
	return &have, nil
}

// modeDiffers leaves symbolic links out: Linux has no mode for them.
func modeDiffers(e *Entry, o *object) bool {
	return o.kind() != Symlink && o.st.Mode&0o7777 != e.Mode
}

// diffXattrs merges two lists in the order of their names.
func diffXattrs(want, have []Xattr) (set []Xattr, remove []string) {
	for len(want) > 0 || len(have) > 0 {
		switch {
		case len(want) > 0 && isShadow(want[0].Name):
			want = want[1:]
		case len(have) > 0 && isShadow(have[0].Name):
			have = have[1:]
		case len(have) == 0 || len(want) > 0 && want[0].Name < have[0].Name:
			set = append(set, want[0])
			want = want[1:]
		case len(want) == 0 || have[0].Name < want[0].Name:
			if !ownedByKernel(have[0].Name) {
				remove = append(remove, have[0].Name)
			}
			have = have[1:]
		default:
			if !bytes.Equal(want[0].Value, have[0].Value) {
				set = append(set, want[0])
			}
			want, have = want[1:], have[1:]
		}
	}
	return set, remove
}

// isShadow tells of attributes that are others in disguise: XFS shows root the
// ACLs a second time in the form that they have on the disk. Setting these
// elsewhere would mean nothing, and removing them would remove the ACLs.
func isShadow(name string) bool {
	return name == "trusted.SGI_ACL_FILE" || name == "trusted.SGI_ACL_DEFAULT"
}

// ownedByKernel tells of attributes that a kernel with SELinux, IMA or EVM
// gives to every file by itself, and that cannot be removed while it runs.
// Where an entry has them they are compared and set like any other.
func ownedByKernel(name string) bool {
	return name == "security.selinux" || name == "security.ima" || name == "security.evm"
}

// setMeta makes o's metadata what e says, touching only what differs, inode
// flags and project aside, which setFlags sets when nothing else is to come. The
// order matters: a change of owner drops setuid, setgid and capabilities, so
// it goes first; an access ACL carries permission bits, and a process without
// privileges needs write permission to set user.* attributes, so the mode
// comes after them; the time is last.
func (a *applier) setMeta(path string, e *Entry, o *object, t fsTraits) error {
	d, err := diffMeta(e, o, t, false)
	if err != nil {
		return fmt.Errorf("reading the metadata of %q: %w", path, err)
	}
	if d.owner {
		if err := a.setOwner(path, e, o); err != nil {
			return err
		}
		if err := o.stat(); err != nil {
			return &os.PathError{Op: "stat", Path: path, Err: err}
		}
		if d, err = diffMeta(e, o, t, false); err != nil {
			return fmt.Errorf("reading the metadata of %q: %w", path, err)
		}
	}
	if err := a.setXattrs(path, o, d); err != nil {
		return err
	}
	for _, x := range e.Xattrs {
		if strings.HasPrefix(x.Name, btrfsProperty) && !t.btrfs {
			a.lose(path, "xattr "+x.Name, "only btrfs has it")
		}
	}
	if len(d.set)+len(d.remove) > 0 {
		if err := o.stat(); err != nil {
			return &os.PathError{Op: "stat", Path: path, Err: err}
		}
	}
	if !t.bare && modeDiffers(e, o) {
		if err := a.setMode(path, e, o); err != nil {
			return err
		}
	}
	if d.mtime {
		return a.setMTime(path, e, o, t)
	}
	return nil
}

func (a *applier) setOwner(path string, e *Entry, o *object) error {
	err := unix.Fchownat(o.dir, o.name, int(e.UID), int(e.GID), unix.AT_SYMLINK_NOFOLLOW)
	if err != nil && !a.strict {
		// The owner of a file may at least give it to a group of his own.
		_ = unix.Fchownat(o.dir, o.name, -1, int(e.GID), unix.AT_SYMLINK_NOFOLLOW)
	}
	return a.tolerate(path, "owner", err)
}

// btrfsProperty begins the names of attributes that are btrfs's alone.
const btrfsProperty = "btrfs."

func (a *applier) setXattrs(path string, o *object, d metaDiff) error {
	for _, name := range d.remove {
		err := unix.Removexattr(o.proc(), name)
		if errors.Is(err, unix.ENODATA) {
			err = nil
		}
		if err := a.tolerate(path, "xattr "+name, err); err != nil {
			return err
		}
	}
	for _, x := range d.set {
		if err := a.tolerate(path, "xattr "+x.Name, unix.Setxattr(o.proc(), x.Name, x.Value, 0)); err != nil {
			return err
		}
	}
	return nil
}

// setMode sets the mode. A program that could not be given its owner is not
// made setuid or setgid: it would lend the rights of whoever restores it.
func (a *applier) setMode(path string, e *Entry, o *object) error {
	mode := e.Mode
	if o.st.Uid != e.UID {
		mode &^= unix.S_ISUID
	}
	if o.st.Gid != e.GID && o.kind() != Directory {
		mode &^= unix.S_ISGID
	}
	if mode != o.st.Mode&0o7777 {
		if err := unix.Fchmodat(unix.AT_FDCWD, o.proc(), mode, 0); err != nil {
			return a.tolerate(path, "mode", err)
		}
	}
	if a.strict {
		return nil
	}
	// The kernel too drops setgid without a word when the group is not one
	// of the caller's.
	if err := o.stat(); err != nil {
		return &os.PathError{Op: "stat", Path: path, Err: err}
	}
	if modeDiffers(e, o) {
		a.lose(path, "mode", fmt.Sprintf("is %04o instead of %04o", o.st.Mode&0o7777, e.Mode))
	}
	return nil
}

func (a *applier) setMTime(path string, e *Entry, o *object, t fsTraits) error {
	times := []unix.Timespec{{Nsec: unix.UTIME_OMIT}, {Sec: e.MTime.Sec, Nsec: int64(e.MTime.Nsec)}}
	if err := unix.UtimesNanoAt(o.dir, o.name, times, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return a.tolerate(path, "mtime", err)
	}
	if err := o.stat(); err != nil {
		return &os.PathError{Op: "stat", Path: path, Err: err}
	}
	// A file system keeps the nearest time it has: ext4 with small inodes and
	// XFS without bigtime end in 2038.
	if have := o.mtime(); !t.sameTime(e.MTime, have) {
		a.lose(path, "mtime", fmt.Sprintf("the file system made it %d.%09d", have.Sec, have.Nsec))
	}
	return nil
}

// tolerate makes what a process without privileges may not do a loss, and any
// other trouble an error.
func (a *applier) tolerate(path, what string, err error) error {
	if err == nil {
		return nil
	}
	var errno unix.Errno
	if !a.strict && errors.As(err, &errno) {
		switch errno {
		case unix.EPERM, unix.EACCES, unix.EOPNOTSUPP, unix.EINVAL:
			a.lose(path, what, errno.Error())
			return nil
		}
	}
	return &os.PathError{Op: "set " + what + " of", Path: path, Err: err}
}

func (a *applier) lose(path, what, reason string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.report.Lost++
	if len(a.report.Losses) < maxLosses {
		a.report.Losses = append(a.report.Losses, Loss{Path: path, What: what, Reason: reason})
	}
}
