package imaging

import (
	"context"
	"fmt"
)

// DifferenceKind is in what a tree differs from its manifest.
type DifferenceKind string

const (
	DiffMissing DifferenceKind = "missing" // in the manifest, not in the tree
	DiffExtra   DifferenceKind = "extra"   // in the tree, not in the manifest
	DiffType    DifferenceKind = "type"    // another kind of entry
	DiffSize    DifferenceKind = "size"
	DiffContent DifferenceKind = "content" // same size, other bytes
	DiffTarget  DifferenceKind = "target"  // of a symbolic link
	DiffDevice  DifferenceKind = "device"  // major and minor number
	DiffMode    DifferenceKind = "mode"
	DiffOwner   DifferenceKind = "owner"
	DiffMTime   DifferenceKind = "mtime"
	DiffXattr   DifferenceKind = "xattr" // ACLs and capabilities too
	DiffFlags   DifferenceKind = "flags" // of chattr(1)
	DiffProject DifferenceKind = "project"
	DiffLinks   DifferenceKind = "links" // names that should share an inode do not, or the reverse
)

// Difference is one way in which a path of a tree differs from the manifest.
type Difference struct {
	Path string         `json:"path"`
	Kind DifferenceKind `json:"kind"`
	Want string         `json:"want,omitempty"` // what the manifest says
	Have string         `json:"have,omitempty"` // what the tree has
}

func (d Difference) String() string {
	return fmt.Sprintf("%q: %s: want %s, have %s", d.Path, d.Kind, d.Want, d.Have)
}

// CompareOptions say how to compare. The zero value compares everything.
type CompareOptions struct {
	Skip     func(path string) bool  // true: not looked at, nor what is below it
	Trust    bool                    // trust the content of files whose size and mtime are right
	Workers  int                     // 0: as many as there are CPUs
	Progress func(done, total int64) // bytes read of those to read; a few times a second
}

// CompareTree compares the tree beneath dir with m, contents and metadata, and
// follows into file systems mounted below. The differences come by path; what
// is below something that is missing or extra is listed too. No differences
// are: a lost+found that the file system made and the manifest lacks, what is
// in an Opaque directory, withheld entries, and how much of a hole is filled
// with zeros.
func CompareTree(ctx context.Context, m *Manifest, dir string, o CompareOptions) ([]Difference, error) {
	c := &comparer{ctx: ctx, o: o}
	var err error
	if c.index, err = indexManifest(m); err != nil {
		return nil, err
	}
	if c.tree, err = openBeneath(dir); err != nil {
		return nil, err
	}
	defer c.tree.close()
	if err := c.run(); err != nil {
		return nil, fmt.Errorf("comparing %s: %w", dir, err)
	}
	return c.sorted(), nil
}
