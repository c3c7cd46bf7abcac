package imaging

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
	OldSize int64            `json:"old_size,omitempty"` // of a regular file, before
	NewSize int64            `json:"new_size,omitempty"` // and after
}

// DiffManifests lists in what b differs from a, by path.
func DiffManifests(a, b *Manifest) []Change {
	return nil
}
