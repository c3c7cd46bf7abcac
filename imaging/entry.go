package imaging

import (
	"fmt"

	"doppel/imaging/store"
)

// Kind is the kind of an entry.
type Kind uint8

const (
	Regular Kind = 1 + iota
	Directory
	Symlink
	CharDevice
	BlockDevice
	FIFO
	Socket
	HardLink // another name of the Regular (or other) entry at Target
)

func (k Kind) String() string {
	names := [...]string{"", "file", "directory", "symlink", "character device", "block device", "fifo", "socket", "hard link"}
	if k == 0 || int(k) >= len(names) {
		return fmt.Sprintf("kind(%d)", uint8(k))
	}
	return names[k]
}

// Class says who may have what a file holds.
type Class uint8

const (
	ClassNone    Class = iota // everyone in the cluster
	ClassCluster              // a secret that every node needs (munge.key)
	ClassNode                 // belongs to one machine; regenerated on compute nodes, kept by heads
	ClassHead                 // heads only; skipped elsewhere
)

func (c Class) String() string {
	names := [...]string{"none", "cluster", "node", "head"}
	if int(c) >= len(names) {
		return fmt.Sprintf("class(%d)", uint8(c))
	}
	return names[c]
}

// Audience is the audience that content of the class is sealed for.
func (c Class) Audience() store.Audience {
	if c == ClassNode || c == ClassHead {
		return store.Head
	}
	return store.Cluster
}

// Time is an instant with nanoseconds, also far outside what time.Duration
// arithmetic stands: seconds since 1970 and nanoseconds within the second.
type Time struct {
	Sec  int64
	Nsec uint32
}

// Xattr is one extended attribute, name with its namespace
// ("security.capability", "system.posix_acl_access", "user.x").
type Xattr struct {
	Name  string
	Value []byte
}

// Extent is a run of bytes that holds data; what lies between extents is hole.
type Extent struct {
	Offset, Length int64
}

// Entry is one name in a tree with all its metadata. Path is relative to the
// root, slash-separated, without "." or ".." elements; any byte but NUL and
// slash may occur in an element; the root itself is ".". The content of a
// Regular file is its Chunks one after the other laid into its Extents; nil
// Extents mean one extent over the whole Size, and Extents that are there but
// empty mean that all of the file is hole (Data says both alike).
type Entry struct {
	Path    string
	Kind    Kind
	Mode    uint32 // permission, setuid, setgid and sticky bits: 0o7777
	UID     uint32
	GID     uint32
	MTime   Time
	Size    int64   // Regular
	Target  string  // Symlink: where it points; HardLink: the Path of the first name
	Major   uint32  // CharDevice, BlockDevice
	Minor   uint32  // CharDevice, BlockDevice
	Flags   uint32  // Regular, Directory: as of chattr(1), those of KeptFlags
	Project uint32  // Regular, Directory: quota project
	Xattrs  []Xattr // sorted by Name
	Extents []Extent
	Chunks  []store.Chunk
	Class   Class

	// Opaque says of a Directory that what is in it was left out of the image:
	// excluded, or another file system is mounted there. Its MTime is zero.
	Opaque bool

	// Withheld says that this reader of the manifest may not know the content:
	// the entry is of class node or head and came without Extents and Chunks.
	Withheld bool
}

// KeptFlags are the inode flags (ioctl_iflags(2), FS_IOC_GETFLAGS) that an entry
// keeps: those that a user sets and that a copy can have. The others say how a
// file system stores a file (extents, inline data, an index), or are not given
// by setting a bit (encryption, verity).
const KeptFlags = 0x1 | // secure deletion, s
	0x2 | // undeletion, u
	0x4 | // compress, c
	0x8 | // synchronous, S
	0x10 | // immutable, i
	0x20 | // append only, a
	0x40 | // not dumped, d
	0x80 | // no access time, A
	0x400 | // not compressed, m
	0x4000 | // journaled data, j
	0x8000 | // no tail merging, t
	0x10000 | // directory changes synchronous, D
	0x20000 | // top of a directory hierarchy, T
	0x800000 | // no copy on write, C
	0x2000000 | // direct access, x
	0x20000000 // children inherit the project, P

// Data are the runs of the file that hold data, also where Extents is nil.
func (e *Entry) Data() []Extent {
	if e.Extents != nil || e.Size == 0 {
		return e.Extents
	}
	return []Extent{{0, e.Size}}
}
