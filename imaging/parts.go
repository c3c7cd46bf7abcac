package imaging

import (
	"cmp"
	"fmt"
	"path"
	"slices"
	"strings"
)

// Part is a mount that a scan of a tree comes to.
type Part struct {
	Path     string // below the tree's root; "." is the root
	Root     string // the directory of the file system that is there
	Dev      string // major:minor of the file system, as in mountinfo
	FS       string // type
	Source   string // the device, for what is on one
	ReadOnly bool   // the whole file system is
	Read     bool   // its contents are part of the tree; else only its root directory is looked at
}

// Root is the absolute path of the tree's root.
func (m *Mounts) Root() string { return m.root }

// Device is the major:minor of the file system that the absolute path p,
// symbolic links resolved, is on; empty when the table does not tell.
func (m *Mounts) Device(p string) string {
	if i := m.at(p); i >= 0 {
		return m.list[i].dev
	}
	return ""
}

// Parts lists the mounts that a scan comes to, each after those it is in, and
// gives a function that tells whether a directory's contents are scanned. Not
// listed are those that the scan does not look at: within what it leaves out,
// and on file systems whose servers may not answer.
func (m *Mounts) Parts(req ScanRequest) ([]Part, func(path string) bool, error) {
	s := scan{}
	var err error
	if s.exclude, err = parseGlobs(req.Exclude); err != nil {
		return nil, nil, fmt.Errorf("exclude: %w", err)
	}
	left := m.left(s.excludedWithin)
	entered := func(p string) bool {
		if s.excludedWithin(p) {
			return false
		}
		for ; p != "."; p = parentPath(p) {
			if _, ok := left[p]; ok || req.OneFileSystem && m.mounted(p) {
				return false
			}
		}
		return true
	}
	if m.base < 0 {
		return nil, entered, nil
	}
	base := m.list[m.base]
	rest, _ := within(base.dir, m.root)
	parts := []Part{base.part(".", path.Join(base.root, rest), true)}
	for i, e := range m.list {
		rel, ok := within(m.root, e.dir)
		if !ok || rel == "" || m.at(e.dir) != i || left[rel].remote || !entered(parentPath(rel)) {
			continue
		}
		parts = append(parts, e.part(rel, e.root, entered(rel)))
	}
	slices.SortStableFunc(parts, func(a, b Part) int { return cmp.Compare(depth(a.Path), depth(b.Path)) })
	return parts, entered, nil
}

func (e *mount) part(path, root string, read bool) Part {
	return Part{Path: path, Root: root, Dev: e.dev, FS: e.fs, Source: e.source, ReadOnly: e.readOnly, Read: read}
}

// depth is how many directories lead to a path.
func depth(p string) int {
	if p == "." {
		return 0
	}
	return 1 + strings.Count(p, "/")
}

// OfType lists the mounts of one type of file system, wherever they are, one
// of each file system.
func (m *Mounts) OfType(fs string) []Part {
	var out []Part
	for _, e := range m.list {
		if e.fs == fs && !slices.ContainsFunc(out, func(p Part) bool { return p.Dev == e.dev }) {
			out = append(out, e.part(e.dir, e.root, false))
		}
	}
	return out
}
