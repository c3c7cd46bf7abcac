package imaging

// LocalTree is the file system of this machine below a root directory.
type LocalTree struct{ root string }

// NewLocalTree is the tree below root.
func NewLocalTree(root string) *LocalTree { return &LocalTree{root} }

// NewLocal is the Source of this machine's tree at root.
func NewLocal(root string) Source { return nil }
