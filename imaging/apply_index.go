package imaging

import (
	"fmt"
	"path"
	"slices"
	"strings"

	"doppel/imaging/store"
)

// treeNode is one name: of a manifest, or (e is nil) one that is on disk and
// in no manifest.
type treeNode struct {
	e        *Entry
	name     string
	parent   *treeNode
	children []*treeNode // by name
	first    *treeNode   // of a hard link: the node its entry points at
	links    []*treeNode // of a first name: its other names
	wanted   wanted
	active   bool      // wanted, and neither skipped nor withheld
	seen     *seen     // what is on disk; nil: nothing
	act      act       // what is to be done
	keeper   *treeNode // actLink: the name whose inode this one is to share
	dirty    bool      // a directory in which something was done
}

// wanted tells whether an entry is to be looked at.
type wanted uint8

const (
	notWanted wanted = iota
	wantedWay        // only to lead to what is wanted
	wantedAll        // with all that is below
)

// path is built on demand: a chain of directories whose paths go far beyond
// PATH_MAX is no reason to keep them all.
func (n *treeNode) path() string {
	if n.e != nil {
		return n.e.Path
	}
	if n.parent == nil {
		return "."
	}
	return joinPath(n.parent.path(), n.name)
}

// origin is the node whose entry holds the metadata and content of n.
func (n *treeNode) origin() *treeNode {
	if n.first != nil {
		return n.first
	}
	return n
}

func (n *treeNode) isDir() bool { return n.e != nil && n.e.Kind == Directory }

// invalidError says why a manifest cannot be a tree.
func invalidError(path, format string, args ...any) error {
	return fmt.Errorf("manifest entry %q: %s", path, fmt.Sprintf(format, args...))
}

// treeIndex is a manifest as a tree. It does not rely on the codec having
// looked at the entries, nor on their order: every name in it is one element
// that leads downwards, every parent a directory of the manifest itself.
type treeIndex struct {
	root  *treeNode
	nodes []treeNode
	at    map[string]*treeNode
}

// indexManifest makes the tree of m, or says which entry cannot be in one.
func indexManifest(m *Manifest) (*treeIndex, error) {
	x := &treeIndex{nodes: make([]treeNode, len(m.List)), at: make(map[string]*treeNode, len(m.List))}
	for i := range m.List {
		e, n := &m.List[i], &x.nodes[i]
		if x.at[e.Path] != nil {
			return nil, invalidError(e.Path, "is there twice")
		}
		if err := checkFields(e); err != nil {
			return nil, fmt.Errorf("manifest: %w", err)
		}
		for _, c := range e.Chunks {
			if c.Size > store.MaxBlock {
				return nil, invalidError(e.Path, "has a chunk of %d bytes", c.Size)
			}
		}
		x.at[e.Path] = n
		n.e = e
	}
	x.root = x.at["."]
	if x.root == nil || !x.root.isDir() {
		return nil, invalidError(".", "a tree needs a directory as its root")
	}
	for i := range x.nodes {
		if err := x.place(&x.nodes[i]); err != nil {
			return nil, err
		}
	}
	for i := range x.nodes {
		slices.SortFunc(x.nodes[i].children, func(a, b *treeNode) int { return strings.Compare(a.name, b.name) })
	}
	return x, nil
}

// place ties a node to its parent and a hard link to its first name.
func (x *treeIndex) place(n *treeNode) error {
	e := n.e
	if n != x.root {
		n.name = e.Path[strings.LastIndexByte(e.Path, '/')+1:]
		if err := checkPath(e.Path); err != nil {
			return fmt.Errorf("manifest: %w", err)
		}
		n.parent = x.at[parentPath(e.Path)]
		if n.parent == nil || !n.parent.isDir() {
			return invalidError(e.Path, "is in no directory of the manifest")
		}
		n.parent.children = append(n.parent.children, n)
	}
	if e.Kind == HardLink {
		n.first = x.at[e.Target]
		if n.first == nil || n.first.e.Kind == Directory || n.first.e.Kind == HardLink {
			return invalidError(e.Path, "is a hard link to %q, which is no file of the manifest", e.Target)
		}
		n.first.links = append(n.first.links, n)
	}
	return nil
}

// selectPaths marks what is wanted: everything, or the given paths with what
// is below them, the directories that lead there, and the first names of
// hard links among them.
func (x *treeIndex) selectPaths(paths []string) error {
	if len(paths) == 0 {
		x.root.want()
		return nil
	}
	for _, p := range paths {
		clean := path.Clean("/" + p)[1:]
		if clean == "" {
			clean = "."
		}
		n := x.at[clean]
		if n == nil {
			return fmt.Errorf("%q is not in the image", p)
		}
		n.want()
	}
	// A first name may itself be wanted only because of its link, and marks
	// only itself: it is no directory and no link, so one pass is enough.
	for i := range x.nodes {
		if n := &x.nodes[i]; n.wanted != notWanted && n.first != nil {
			n.first.want()
		}
	}
	return nil
}

// want marks n, what is below it, and the way to it.
func (n *treeNode) want() {
	for up := n.parent; up != nil && up.wanted == notWanted; up = up.parent {
		up.wanted = wantedWay
	}
	for stack := []*treeNode{n}; len(stack) > 0; {
		n := stack[len(stack)-1]
		stack = stack[:len(stack)-1]
		if n.wanted == wantedAll {
			continue
		}
		n.wanted = wantedAll
		stack = append(stack, n.children...)
	}
}
