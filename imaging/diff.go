package imaging

import (
	"bytes"
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
	OldSize int64            `json:"old_size,omitempty"` // of a regular file, before; a hard link has none of its own
	NewSize int64            `json:"new_size,omitempty"` // and after
}

// DiffManifests lists in what b differs from a, in the order of their paths.
func DiffManifests(a, b *Manifest) []Change {
	x, y := sortedEntries(a), sortedEntries(b)
	firstX, firstY := firstNames(x), firstNames(y)
	var changes []Change
	for len(x) > 0 || len(y) > 0 {
		order := 0
		switch {
		case len(y) == 0:
			order = -1
		case len(x) == 0:
			order = 1
		default:
			order = ComparePath(x[0].Path, y[0].Path)
		}
		switch {
		case order < 0:
			changes = append(changes, Change{Path: x[0].Path, Kind: Removed, OldSize: x[0].Size})
			x = x[1:]
		case order > 0:
			changes = append(changes, Change{Path: y[0].Path, Kind: Added, NewSize: y[0].Size})
			y = y[1:]
		default:
			if what := diffEntries(x[0], y[0], firstX, firstY); len(what) > 0 {
				changes = append(changes, Change{Path: x[0].Path, Kind: Changed, What: what, OldSize: x[0].Size, NewSize: y[0].Size})
			}
			x, y = x[1:], y[1:]
		}
	}
	return changes
}

// sortedEntries are m's entries in canonical order, which they are in already
// when a codec read them.
func sortedEntries(m *Manifest) []*Entry {
	list := make([]*Entry, len(m.List))
	for i := range m.List {
		list[i] = &m.List[i]
	}
	byPath := func(a, b *Entry) int { return ComparePath(a.Path, b.Path) }
	if !slices.IsSortedFunc(list, byPath) {
		slices.SortStableFunc(list, byPath)
	}
	return list
}

// firstNames are the files that hard links point at.
func firstNames(list []*Entry) map[string]*Entry {
	targets := map[string]*Entry{}
	for _, e := range list {
		if e.Kind == HardLink {
			targets[e.Target] = nil
		}
	}
	for _, e := range list {
		if _, wanted := targets[e.Path]; wanted {
			targets[e.Path] = e
		}
	}
	return targets
}

// diffEntries tells in what two entries of one path differ. A name that
// became a hard link, or ceased to be one, is compared by what it leads to.
func diffEntries(a, b *Entry, firstA, firstB map[string]*Entry) []DifferenceKind {
	var what []DifferenceKind
	if (a.Kind == HardLink || b.Kind == HardLink) && (a.Kind != b.Kind || a.Target != b.Target) {
		what = append(what, DiffLinks)
	}
	if a.Kind == HardLink && b.Kind == HardLink {
		return what // the first name speaks for what it holds
	}
	if a.Kind == HardLink && firstA[a.Target] != nil {
		a = firstA[a.Target]
	}
	if b.Kind == HardLink && firstB[b.Target] != nil {
		b = firstB[b.Target]
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
