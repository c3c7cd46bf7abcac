package imaging

import (
	"bytes"
	"iter"
	"slices"
)

// ChangeKind is how an entry differs between two manifests.
type ChangeKind string

const (
	Added   ChangeKind = "added"
	Removed ChangeKind = "removed"
	Changed ChangeKind = "changed"
)

// Change is one entry that two manifests do not have alike.
type Change struct {
	Path    string           `json:"path"`
	Kind    ChangeKind       `json:"kind"`
	What    []DifferenceKind `json:"what,omitempty"`     // Changed: in what
	OldSize *int64           `json:"old_size,omitempty"` // of a regular file, before; a hard link has none of its own
	NewSize *int64           `json:"new_size,omitempty"` // and after
}

// DiffManifests lists in what b differs from a, in the order of their paths.
func DiffManifests(a, b *Manifest) []Change {
	nextX, stopX := iter.Pull2(a.List.All())
	defer stopX()
	nextY, stopY := iter.Pull2(b.List.All())
	defer stopY()
	_, x, moreX := nextX()
	_, y, moreY := nextY()
	var changes []Change
	for moreX || moreY {
		order := 0
		switch {
		case !moreY:
			order = -1
		case !moreX:
			order = 1
		default:
			order = ComparePath(x.Path, y.Path)
		}
		switch {
		case order < 0:
			changes = append(changes, Change{Path: x.Path, Kind: Removed, OldSize: fileSize(x)})
		case order > 0:
			changes = append(changes, Change{Path: y.Path, Kind: Added, NewSize: fileSize(y)})
		default:
			if what := diffEntries(x, y, &a.List, &b.List); len(what) > 0 {
				changes = append(changes, Change{Path: x.Path, Kind: Changed, What: what, OldSize: fileSize(x), NewSize: fileSize(y)})
			}
		}
		if order <= 0 {
			_, x, moreX = nextX()
		}
		if order >= 0 {
			_, y, moreY = nextY()
		}
	}
	return changes
}

// fileSize is the size of a regular file; nil: e is none.
func fileSize(e *Entry) *int64 {
	if e.Kind != Regular {
		return nil
	}
	return new(e.Size)
}

// diffEntries tells in what two entries of one path differ. A name that
// became a hard link, or ceased to be one, is compared by what it leads to.
func diffEntries(a, b *Entry, inA, inB *Entries) []DifferenceKind {
	var what []DifferenceKind
	if (a.Kind == HardLink || b.Kind == HardLink) && (a.Kind != b.Kind || a.Target != b.Target) {
		what = append(what, DiffLinks)
	}
	if a.Kind == HardLink && b.Kind == HardLink {
		return what // the first name speaks for what it holds
	}
	if a.Kind == HardLink {
		a = inA.Get(a.Target)
	}
	if b.Kind == HardLink {
		b = inB.Get(b.Target)
	}
	if a.Kind != b.Kind {
		return append(what, DiffType)
	}
	note := func(differs bool, kind DifferenceKind) {
		if differs {
			what = append(what, kind)
		}
	}
	note(a.Size != b.Size, DiffSize)
	note(a.Opaque != b.Opaque || a.Withheld != b.Withheld || contentDiffers(a, b), DiffContent)
	note(a.Kind == Symlink && a.Target != b.Target, DiffTarget)
	note(a.Major != b.Major || a.Minor != b.Minor, DiffDevice)
	note(a.Mode != b.Mode, DiffMode)
	note(a.UID != b.UID || a.GID != b.GID, DiffOwner)
	note(a.MTime != b.MTime, DiffMTime)
	note(a.Flags != b.Flags, DiffFlags)
	note(a.Project != b.Project, DiffProject)
	note(!slices.EqualFunc(a.Xattrs, b.Xattrs, func(x, y Xattr) bool {
		return x.Name == y.Name && bytes.Equal(x.Value, y.Value)
	}), DiffXattr)
	return what
}

// contentDiffers compares chunks, and where holes are. A content of the same
// bytes that another chunker cut counts as changed.
func contentDiffers(a, b *Entry) bool {
	return !slices.Equal(a.Chunks, b.Chunks) || !slices.Equal(a.Data(), b.Data()) && !a.Withheld
}
