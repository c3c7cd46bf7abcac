package imaging

import (
	"fmt"
	"path"
	"strings"
)

// treeNode is one name: of a manifest, or one that is on disk and in no
// manifest. Of a million names it is the most that Apply has in memory for
// each: what the entry says is read from the manifest when it is needed.
type treeNode struct {
	name   string
	parent *treeNode
	seen   *seen // what is on disk; nil: nothing
	at     int32 // of the entry in the manifest; strange: in no manifest
	end    int32 // behind the last entry below it
	kind   Kind  // of the entry
	class  Class // likewise

	wanted   wanted
	act      act  // what is to be done
	active   bool // wanted, and neither skipped, kept nor withheld
	kept     bool // a directory that is left as it is, and may lack others
	opaque   bool // what is in it was left out
	withheld bool // the content is not for this reader
	linked   bool // it has other names in the manifest
	flagged  bool // it has inode flags or a project
	dirty    bool // a directory in which something was done
}

// strange is the place of a name that is in no manifest.
const strange = -1

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
	if n.parent == nil {
		return "."
	}
	size := -1
	for up := n; up.parent != nil; up = up.parent {
		size += len(up.name) + 1
	}
	b := make([]byte, size)
	for up := n; up.parent != nil; up = up.parent {
		size -= copy(b[size-len(up.name):], up.name)
		if size > 0 {
			size--
			b[size] = '/'
		}
	}
	return string(b)
}

func (n *treeNode) isDir() bool { return n.at != strange && n.kind == Directory }

// names are all names of one file of a manifest.
type names struct {
	first  *treeNode // the one whose entry holds metadata and content
	others []*treeNode
	keeper *treeNode // the one whose inode the others are to share, once that is decided
}

// treeIndex is a manifest as a tree. Every name in it is one element that leads
// downwards, every parent a directory of the manifest itself: Entries that
// are otherwise there cannot be.
type treeIndex struct {
	list   *Entries
	root   *treeNode
	nodes  []treeNode
	links  map[*treeNode]*names // of nodes that are linked
	recent *cursor              // where entry read last
}

// indexManifest makes the tree of m.
func indexManifest(m *Manifest) (*treeIndex, error) {
	x := &treeIndex{list: &m.List, nodes: make([]treeNode, m.List.Len()), links: map[*treeNode]*names{}}
	if len(x.nodes) == 0 {
		return nil, fmt.Errorf("the manifest has no entries")
	}
	x.root = &x.nodes[0]
	var dirs []*treeNode // the directory that the last entry is in, and all above it
	var e Entry
	var names slab
	at := ""
	for c := x.list.cursor(0); c.i < len(x.nodes); {
		n := &x.nodes[c.i]
		n.at = int32(c.i)
		c.next(&e)
		n.kind, n.class, n.opaque, n.withheld = e.Kind, e.Class, e.Opaque, e.Withheld
		n.flagged = e.Flags != 0 || e.Project != 0
		if n != x.root {
			parent := parentPath(e.Path)
			for ; at != parent; at = parentPath(at) {
				dirs = dirs[:len(dirs)-1]
			}
			n.parent = dirs[len(dirs)-1]
			n.name = names.join(e.Path[strings.LastIndexByte(e.Path, '/')+1:], nil)
		}
		if e.Kind == Directory {
			dirs, at = append(dirs, n), e.Path
		}
		if e.Kind == HardLink {
			if err := x.link(n, &e); err != nil {
				return nil, err
			}
		}
	}
	for i := len(x.nodes) - 1; i >= 0; i-- {
		n := &x.nodes[i]
		n.end = max(n.end, n.at+1)
		if n.parent != nil {
			n.parent.end = max(n.parent.end, n.end)
		}
	}
	return x, nil
}

// link ties a hard link to its first name.
func (x *treeIndex) link(n *treeNode, e *Entry) error {
	i, ok := x.list.Find(e.Target)
	if !ok {
		return fmt.Errorf("manifest entry %q: is a hard link to %q, which is no file of the manifest", e.Path, e.Target)
	}
	first := &x.nodes[i]
	all := x.links[first]
	if all == nil {
		all = &names{first: first}
		x.links[first] = all
		first.linked = true
	}
	all.others = append(all.others, n)
	x.links[n] = all
	n.linked = true
	return nil
}

// origin is the node whose entry holds the metadata and content of n.
func (x *treeIndex) origin(n *treeNode) *treeNode {
	if n.kind == HardLink && n.at != strange {
		return x.links[n].first
	}
	return n
}

// entry reads the entry that holds the metadata and content of n. One
// goroutine at a time may ask, in whatever order; it is cheap for one that goes
// forward.
func (x *treeIndex) entry(n *treeNode) *Entry {
	at := int(x.origin(n).at)
	if x.recent == nil || at < x.recent.i || at >= x.recent.i+markEvery {
		x.recent = x.list.cursor(at)
	}
	e := &Entry{}
	for c := x.recent; c.i <= at; {
		c.next(e)
	}
	return e
}

// entryNow is entry for any goroutine.
func (x *treeIndex) entryNow(n *treeNode) *Entry { return x.list.At(int(x.origin(n).at)) }

// child is the first entry in the directory n, in the order of their names;
// nil: there is none.
func (x *treeIndex) child(n *treeNode) *treeNode {
	if n.at != strange && n.at+1 < n.end {
		return &x.nodes[n.at+1]
	}
	return nil
}

// next is the entry that follows n in its directory; nil: it is the last.
func (x *treeIndex) next(n *treeNode) *treeNode {
	if n.parent != nil && n.end < n.parent.end {
		return &x.nodes[n.end]
	}
	return nil
}

// selectPaths marks what is wanted: everything, or the given paths with what
// is below them, the directories that lead there, and the first names of
// hard links among them. Of a path with Alone at its end nothing below is.
func (x *treeIndex) selectPaths(paths []string) error {
	if len(paths) == 0 {
		x.want(x.root)
		return nil
	}
	for _, p := range paths {
		clean := path.Clean("/" + p)[1:]
		if clean == "" {
			clean = "."
		}
		i, ok := x.list.Find(clean)
		if !ok {
			return fmt.Errorf("%q is not in the image", p)
		}
		if n := &x.nodes[i]; n.isDir() && strings.HasSuffix(p, Alone) {
			n.wayTo()
			continue
		}
		x.want(&x.nodes[i])
	}
	// A first name may itself be wanted only because of its link, and marks
	// only itself: it is no directory and no link, so one pass is enough.
	for n, all := range x.links {
		if n.wanted != notWanted && n != all.first {
			x.want(all.first)
		}
	}
	return nil
}

// want marks n, what is below it, and the way to it.
func (x *treeIndex) want(n *treeNode) {
	n.parent.wayTo()
	for i := n.at; i < n.end; i++ {
		x.nodes[i].wanted = wantedAll
	}
}

// wayTo marks n and the way to it, unless they are wanted already.
func (n *treeNode) wayTo() {
	for ; n != nil && n.wanted == notWanted; n = n.parent {
		n.wanted = wantedWay
	}
}
