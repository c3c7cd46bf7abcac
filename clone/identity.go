package clone

import (
	"fmt"
	"path"
	"slices"
	"strings"

	"doppel/imaging"
	"doppel/imaging/store"
)

// Why is why a path may differ between a node and its image.
type Why string

const (
	WhyIdentity Why = "identity" // says which machine this is
	WhyBoot     Why = "boot"     // says how this machine starts
	WhyAgent    Why = "agent"    // doppel's own on an installed node
	WhyRuntime  Why = "runtime"  // written by the machine as it runs
)

// Rule is one line of the table of identity files.
type Rule struct {
	Pattern string // a path below the root: * within an element, a closing /** for a directory and all below it
	Why     Why
	Role    string // the role it holds for; empty: every role
	Words   string // what it is, for people
	InPlace InPlace
}

// InPlace is what an update in place does with a path that may differ.
type InPlace string

const (
	Own     InPlace = ""        // the node keeps what it has; of what it lacks, directories alone are made
	Taken   InPlace = "taken"   // made as in the image; the node may change it afterwards
	Derived InPlace = "derived" // written anew from what the image has, for this node
)

// roleCompute and roleHead are the roles of plans.
const (
	roleCompute = "compute"
	roleHead    = "head"
)

// Table is the table of identity files for one role: the paths that may differ
// between a node and the image it was installed from. All else must be equal.
// An install writes by it, and drift, resync and tests look away by it.
type Table struct{ rules []Rule }

// Identity is the table for a role, compute or head.
func Identity(role string) Table {
	var t Table
	for _, r := range identityRules() {
		if r.Role == "" || r.Role == role {
			t.rules = append(t.rules, r)
		}
	}
	return t
}

// Permitted is an image as nodes of a role are given it: compute nodes get
// nothing that belongs to one machine or to heads only. What is left out and is
// on a node's disk all the same is one file too many there.
func Permitted(m *imaging.Manifest, role string) (*imaging.Manifest, error) {
	if role == roleHead {
		return m, nil
	}
	var list imaging.EntriesBuilder
	for _, e := range m.List.All() {
		if e.Class.Audience() != store.Cluster {
			continue
		}
		if err := list.Add(e); err != nil {
			return nil, fmt.Errorf("what a node of the role %s may have: %w", role, err)
		}
	}
	p := &imaging.Manifest{Head: m.Head}
	var err error
	p.List, err = list.Done()
	return p, err
}

// Rules are the table's lines, in the order in which they are tried.
func (t Table) Rules() []Rule { return slices.Clone(t.rules) }

// Match finds the rule for a path below the root.
func (t Table) Match(p string) (Rule, bool) {
	for _, r := range t.rules {
		if matchPattern(r.Pattern, p) {
			return r, true
		}
	}
	return Rule{}, false
}

// Keeps tells whether an update in place leaves what a node has at p.
func (t Table) Keeps(p string) bool {
	r, ok := t.Match(p)
	return ok && r.InPlace != Taken
}

// Holds tells whether the directory p holds paths of the table directly, so
// that its own modification time may differ when one of them was replaced.
func (t Table) Holds(p string) bool {
	for _, r := range t.rules {
		parent := path.Dir(strings.TrimSuffix(r.Pattern, "/**"))
		// lost+found, which may be in any directory, says nothing about it:
		// mkfs makes it, before the times are set.
		if path.Base(r.Pattern) != "lost+found" && matchElements(parent, p) {
			return true
		}
	}
	return false
}

// MatchAny tells whether a path below the root is meant by one of the patterns,
// which are as in Rule.
func MatchAny(patterns []string, p string) bool {
	return slices.ContainsFunc(patterns, func(pattern string) bool { return matchPattern(pattern, p) })
}

func matchPattern(pattern, p string) bool {
	dir, below := strings.CutSuffix(pattern, "/**")
	if !below {
		return matchElements(pattern, p)
	}
	// The directory itself, or anything whose leading elements match it.
	n := strings.Count(dir, "/") + 1
	elems := strings.SplitN(p, "/", n+1)
	if len(elems) < n {
		return false
	}
	return matchElements(dir, strings.Join(elems[:n], "/"))
}

// matchElements is path.Match, which sees * stop at slashes, for patterns that
// are known to be well formed.
func matchElements(pattern, p string) bool {
	if !strings.ContainsAny(pattern, "*?[\\") {
		return pattern == p
	}
	ok, err := path.Match(pattern, p)
	return ok && err == nil
}
