package imaging

import (
	"context"
	"io"
)

// Tree is a file system to walk: the local one, or one behind SFTP. ScanTree
// goes through it from several goroutines; a Tree, its Dirs and Files stand
// concurrent use.
type Tree interface {
	// Root opens the root directory.
	Root(ctx context.Context) (Dir, error)
	// Mounts tells what is mounted below the root; nil means that it cannot
	// be told, and directories are then taken for what they look like.
	Mounts(ctx context.Context) (*Mounts, error)
}

// Dir is an open directory. No method follows a symbolic link in name, which
// is one element without slash. A name that is no longer there gives an error
// that is fs.ErrNotExist.
type Dir interface {
	// Names lists what is in the directory, without "." and "..", in any order.
	Names(ctx context.Context) ([]string, error)
	// Self tells about the directory itself.
	Self(ctx context.Context) (Node, error)
	// Stat tells about name. Of a regular file that is not empty it may leave out
	// extended attributes, inode flags and project, which File.Stat tells.
	Stat(ctx context.Context, name string) (Node, error)
	// Dir opens the directory name, and gives fs.ErrNotExist when name is no
	// longer a directory.
	Dir(ctx context.Context, name string) (Dir, error)
	// Open opens the regular file name, and gives fs.ErrNotExist when name is
	// no longer a regular file.
	Open(ctx context.Context, name string) (File, error)
	Close() error
}

// File is an open regular file.
type File interface {
	io.ReaderAt
	io.Closer
	// Stat tells about the open file, whatever its name leads to by now.
	Stat(ctx context.Context) (Node, error)
	// Extents tells which runs of the first size bytes hold data, in order,
	// neither overlapping nor touching; nil means all of them.
	Extents(ctx context.Context, size int64) ([]Extent, error)
}

// Node is what a Tree tells about one name: an Entry (without Path, content
// and class; its Kind never HardLink) and what marks the inode.
type Node struct {
	Entry
	Dev, Ino uint64 // zero: the tree has no such thing
	Links    uint64 // names of the inode
	CTime    Time
	Lost     string // what the tree cannot tell about this node, in words; a node of Kind zero is left out of the image
}

// same tells whether a and b are one file that nothing happened to between
// the two looks.
func (n *Node) same(b *Node) bool {
	return n.Dev == b.Dev && n.Ino == b.Ino && n.Size == b.Size && n.MTime == b.MTime && n.CTime == b.CTime
}
