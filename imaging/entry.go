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

// Data are the runs of the file that hold data, also where Extents is nil.
func (e *Entry) Data() []Extent {
	if e.Extents != nil || e.Size == 0 {
		return e.Extents
	}
	return []Extent{{0, e.Size}}
}
