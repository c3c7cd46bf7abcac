package imaging

import (
	"iter"
	"strings"
)

// ComparePath is the canonical order of paths: element by element, each
// element in byte order, a parent before all that is in it. So "a" < "a/b" <
// "a/c" < "a-b" < "b", though "-" sorts before "/": what is in a directory
// follows it without anything in between, which is what lets a walk, an apply
// and a comparison of two trees go in one pass. The root, ".", is first.
func ComparePath(a, b string) int {
	x, y := relative(a), relative(b)
	n := min(len(x), len(y))
	for i := range n {
		if x[i] == y[i] {
			continue
		}
		switch {
		case x[i] == '/':
			return -1
		case y[i] == '/':
			return 1
		case x[i] < y[i]:
			return -1
		}
		return 1
	}
	switch {
	case len(x) < len(y):
		return -1
	case len(x) > len(y):
		return 1
	}
	// "" is no path; for the order to be total it comes just before ".".
	return strings.Compare(a, b)
}

// relative writes the root as the empty path, which everything is below.
func relative(p string) string {
	if p == "." {
		return ""
	}
	return p
}

// parentPath is the directory that path is in; the root is in itself.
func parentPath(path string) string {
	if i := strings.LastIndexByte(path, '/'); i >= 0 {
		return path[:i]
	}
	return "."
}

// joinPath is the path of name in the directory dir.
func joinPath(dir, name string) string {
	if dir == "." {
		return name
	}
	return dir + "/" + name
}

// elements are the names on the way from the root to path.
func elements(path string) iter.Seq[string] {
	if path == "." {
		return func(func(string) bool) {}
	}
	return strings.SplitSeq(path, "/")
}
