package imaging

import (
	"crypto/sha256"
	"fmt"
	"path"
	"strings"
)

// compiledRule is a rule ready to match. The lowest number decides.
type compiledRule struct {
	number int
	class  Class
	glob   glob
}

// compiledRules are the rules by what they are found by, as no file is to be
// held against all of them: the directories that a pattern begins with, up to its
// first wildcard; or for those that count from anywhere, their first element
// without one, or the ending.
type compiledRules struct {
	below   rulesBelow
	element map[string][]compiledRule
	first   [256]bool      // bytes that the elements begin with
	dot     []compiledRule // of names with a dot in front, and wildcards: .*_history
	ending  map[string][]compiledRule
}

// rulesBelow are the rules whose patterns have their first wildcard, or their
// end, in one directory, and those of the directories in it.
type rulesBelow struct {
	rules []compiledRule
	in    map[string]*rulesBelow
}

var rules = compileRules()

func compileRules() *compiledRules {
	c := &compiledRules{element: make(map[string][]compiledRule), ending: make(map[string][]compiledRule)}
	for i, r := range secretRules {
		g := glob(strings.Split(r.pattern, "/"))
		compiled := compiledRule{i, r.class, g}
		ending, isEnding := strings.CutPrefix(g[len(g)-1], "*")
		switch {
		case g[0] != "**":
			at := &c.below
			for _, element := range g {
				if strings.ContainsAny(element, "*?[") {
					break
				}
				if at.in[element] == nil {
					if at.in == nil {
						at.in = make(map[string]*rulesBelow)
					}
					at.in[element] = &rulesBelow{}
				}
				at = at.in[element]
			}
			at.rules = append(at.rules, compiled)
		case !strings.ContainsAny(g[1], "*?["):
			c.element[g[1]] = append(c.element[g[1]], compiled)
			c.first[g[1][0]] = true
		case isEnding && len(g) == 2 && path.Ext(ending) == ending:
			c.ending[ending] = append(c.ending[ending], compiled)
		default:
			c.dot = append(c.dot, compiled)
		}
	}
	return c
}

// find gives the first rule that fits; nil: none does.
func (c *compiledRules) find(p string) *compiledRule {
	f := finding{path: p}
	below := &c.below
	for start := 0; start < len(p); {
		end := len(p)
		if i := strings.IndexByte(p[start:], '/'); i >= 0 {
			end = start + i
		}
		element := p[start:end]
		if below != nil {
			if below = below.in[element]; below != nil {
				f.try(below.rules)
			}
		}
		if element != "" && c.first[element[0]] {
			f.try(c.element[element])
		}
		if end == len(p) && element != "" && element[0] == '.' {
			f.try(c.dot)
		}
		start = end + 1
	}
	f.try(c.ending[path.Ext(p)])
	return f.rule
}

// finding is the search for the rule of one path.
type finding struct {
	path string
	rule *compiledRule
}

func (f *finding) try(list []compiledRule) {
	for i := range list {
		if r := &list[i]; (f.rule == nil || r.number < f.rule.number) && r.glob.match(f.path) {
			f.rule = r
		}
	}
}

// rulesDigest changes with the rules and with how Chunker.Secret decides: what a
// capture knew under others is not relied on.
func rulesDigest() [sha256.Size]byte {
	return sha256.Sum256(fmt.Appendf(nil, "detect 3 %v", secretRules))
}

// Classify tells the class of the regular file at path by the table of
// secrets, and whether a rule knows the path at all. A file that none knows is
// to be looked into with Chunker.Secret.
//
// A copy beside a secret, by its name, is for heads only: no node needs it, nor
// is it made anew or locked there.
func Classify(p string) (c Class, known bool) {
	if r := rules.find(p); r != nil {
		return r.class, true
	}
	if isCopy(p) {
		return ClassHead, true
	}
	return ClassNone, false
}

// isCopy tells whether the name of a file is that of a secret with something
// behind it, as editors, packages and people name what they keep from before:
// munge.key.bak, munge.key~, munge.key-2019, .munge.key.swp. Below usr, where
// most files are, only usr/local is anyone's to copy in.
func isCopy(p string) bool {
	if strings.HasPrefix(p, "usr/") && !strings.HasPrefix(p, "usr/local/") {
		return false
	}
	dir, base := path.Split(p)
	if isCopyOf(dir, base) {
		return true
	}
	hidden := strings.HasPrefix(path.Ext(base), ".sw") || strings.HasSuffix(base, "#")
	return hidden && isCopyOf(dir, strings.TrimLeft(base, ".#"))
}

func isCopyOf(dir, base string) bool {
	for i := len(base) - 1; i > 0; i-- {
		if strings.IndexByte(".-_~#", base[i]) >= 0 {
			if r := rules.find(dir + base[:i]); r != nil {
				return r.class != ClassNone
			}
		}
	}
	return false
}
