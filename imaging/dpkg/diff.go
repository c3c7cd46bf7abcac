package dpkg

import (
	"cmp"
	"maps"
	"slices"
	"strings"
)

// ChangeKind is what became of a package.
type ChangeKind string

const (
	Added      ChangeKind = "added"
	Removed    ChangeKind = "removed"
	Upgraded   ChangeKind = "upgraded"
	Downgraded ChangeKind = "downgraded"
	Changed    ChangeKind = "changed" // dpkg makes no difference between the versions, or the architecture is another
)

// Change is a package that two systems do not have alike.
type Change struct {
	Kind            ChangeKind `json:"kind"`
	Package         string     `json:"package"`
	Architecture    string     `json:"architecture"`
	OldArchitecture string     `json:"old_architecture,omitempty"` // where it was another
	Old             string     `json:"old"`                        // version; empty: added
	New             string     `json:"new"`                        // empty: removed

	// Marked says that the name alone does not tell which package it is: it is
	// there for several architectures, or for another than most are.
	Marked bool `json:"-"`
}

// Packages are the packages that are installed, by name and architecture.
func (d *Database) Packages() []Package {
	list := make([]Package, 0, len(d.versions))
	for p, version := range d.versions {
		p.Version = version
		list = append(list, p)
	}
	slices.SortFunc(list, func(a, b Package) int {
		return cmp.Or(strings.Compare(a.Name, b.Name), strings.Compare(a.Architecture, b.Architecture))
	})
	return list
}

// Diff tells what became of packages between two systems, by name and
// architecture.
func Diff(a, b *Database) []Change {
	before, after := byName(a), byName(b)
	native := nativeArchitecture(a, b)
	names := make(map[string]bool)
	for name := range before {
		names[name] = true
	}
	for name := range after {
		names[name] = true
	}
	var changes []Change
	for _, name := range slices.Sorted(maps.Keys(names)) {
		old, now := before[name], after[name]
		several := len(old) > 1 || len(now) > 1
		for _, c := range diffName(old, now) {
			c.Package = name
			c.Marked = several || c.Architecture != "all" && c.Architecture != "" && c.Architecture != native
			changes = append(changes, c)
		}
	}
	return changes
}

// diffName compares what two systems have of one name.
func diffName(old, now []Package) []Change {
	if len(old) == 1 && len(now) == 1 {
		c, differs := compare(old[0], now[0])
		if !differs {
			return nil
		}
		return []Change{c}
	}
	var changes []Change
	for len(old) > 0 || len(now) > 0 {
		order := 0
		switch {
		case len(now) == 0:
			order = -1
		case len(old) == 0:
			order = 1
		default:
			order = strings.Compare(old[0].Architecture, now[0].Architecture)
		}
		switch {
		case order < 0:
			changes = append(changes, Change{Kind: Removed, Architecture: old[0].Architecture, Old: old[0].Version})
		case order > 0:
			changes = append(changes, Change{Kind: Added, Architecture: now[0].Architecture, New: now[0].Version})
		default:
			if c, differs := compare(old[0], now[0]); differs {
				changes = append(changes, c)
			}
		}
		if order <= 0 {
			old = old[1:]
		}
		if order >= 0 {
			now = now[1:]
		}
	}
	return changes
}

// compare compares a package with what came in its place.
func compare(old, now Package) (c Change, differs bool) {
	if old == now {
		return Change{}, false
	}
	c = Change{Kind: Changed, Architecture: now.Architecture, Old: old.Version, New: now.Version}
	if old.Architecture != now.Architecture {
		c.OldArchitecture = old.Architecture
	}
	switch order := CompareVersions(old.Version, now.Version); {
	case order < 0:
		c.Kind = Upgraded
	case order > 0:
		c.Kind = Downgraded
	}
	return c, true
}

// byName are the packages of each name, in the order of their architectures.
func byName(d *Database) map[string][]Package {
	all := make(map[string][]Package)
	for _, p := range d.Packages() {
		all[p.Name] = append(all[p.Name], p)
	}
	return all
}

// nativeArchitecture is the one that most packages of both systems are for.
func nativeArchitecture(list ...*Database) string {
	count := make(map[string]int)
	for _, d := range list {
		for p := range d.versions {
			if p.Architecture != "all" {
				count[p.Architecture]++
			}
		}
	}
	most := ""
	for _, name := range slices.Sorted(maps.Keys(count)) {
		if count[name] > count[most] {
			most = name
		}
	}
	return most
}
