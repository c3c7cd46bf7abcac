package imaging

import (
	"fmt"
	"path"
	"strings"
)

// glob is a pattern for paths below a root, element by element: in an element
// *, ? and [] stand for what they stand for in path.Match, and the element **
// stands for any number of elements, also none.
type glob []string

// parseGlob reads a pattern, which counts from the root whether it begins with
// a slash or not.
func parseGlob(s string) (glob, error) {
	t := strings.Trim(s, "/")
	if _, err := path.Match(t, ""); err != nil || t == "" {
		return nil, fmt.Errorf("%q is no pattern: want a path below the root, with *, ? and [a-z] for parts of a name and ** for any number of directories", s)
	}
	g := glob(strings.Split(t, "/"))
	for _, element := range g {
		if element == "" || element == "." || element == ".." {
			return nil, fmt.Errorf("%q is no pattern: it has the element %q, which no path below the root has", s, element)
		}
		if _, err := path.Match(element, ""); err != nil {
			return nil, fmt.Errorf("%q is no pattern: %q: %w", s, element, err)
		}
	}
	return g, nil
}

// parseGlobs reads several.
func parseGlobs(list []string) ([]glob, error) {
	var globs []glob
	for _, s := range list {
		g, err := parseGlob(s)
		if err != nil {
			return nil, err
		}
		globs = append(globs, g)
	}
	return globs, nil
}

// match tells whether the pattern stands for the whole of p.
func (g glob) match(p string) bool {
	for len(g) > 0 {
		if g[0] == "**" {
			if len(g) == 1 {
				return true
			}
			for {
				if g[1:].match(p) {
					return true
				}
				i := strings.IndexByte(p, '/')
				if i < 0 {
					return false
				}
				p = p[i+1:]
			}
		}
		if p == "" {
			return false
		}
		element, rest, more := strings.Cut(p, "/")
		if ok, err := path.Match(g[0], element); err != nil || !ok {
			return false
		}
		if !more && len(g) > 1 {
			// Only ** can stand for nothing.
			for _, e := range g[1:] {
				if e != "**" {
					return false
				}
			}
			return true
		}
		if more && len(g) == 1 {
			return false
		}
		g, p = g[1:], rest
	}
	return p == ""
}

// matchAny tells whether one of the patterns stands for p.
func matchAny(globs []glob, p string) bool {
	for _, g := range globs {
		if g.match(p) {
			return true
		}
	}
	return false
}

// quoteGlob makes a pattern of a path that stands for it alone.
func quoteGlob(p string) string {
	return strings.NewReplacer(`\`, `\\`, "*", `\*`, "?", `\?`, "[", `\[`).Replace(p)
}
