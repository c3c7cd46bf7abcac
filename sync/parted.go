package resync

import (
	"path"
	"slices"
	"strings"

	"doppel/imaging"
)

// How says what became of a path on a head since it parted from the other.
type How string

const (
	WasAdded   How = "added"
	WasChanged How = "changed"
	WasRemoved How = "removed"
)

// Own is a path that was changed on a head since it and the head that took over
// from it parted, and that is kept there until somebody decides.
type Own struct {
	Path string `json:"path"`
	How  How    `json:"how"`
	Both bool   `json:"both,omitempty"` // the other head has changed it as well, and differently
}

// ChangedSince sorts what differs between a tree and the version that it once
// was equal to into paths that were changed in the tree. elsewhere are the
// versions that the tree may have become in part since, by an update that was
// cut off or is about to begin, each by the paths at which the tree differs
// from it: what is as in one of them was not changed here.
//
// A path of which the time alone differs was not changed: nothing in it would be
// lost. allowed, if any, tells which paths may differ anyway.
func ChangedSince(differences []imaging.Difference, elsewhere []Differing, allowed func(path string) bool) []Own {
	var out []Own
	for i := 0; i < len(differences); {
		p, how, counts := differences[i].Path, WasChanged, false
		for ; i < len(differences) && differences[i].Path == p; i++ {
			switch differences[i].Kind {
			case imaging.DiffMissing:
				how = WasRemoved
			case imaging.DiffExtra:
				how = WasAdded
			case imaging.DiffMTime:
				continue
			}
			counts = true
		}
		if !counts || allowed != nil && allowed(p) {
			continue
		}
		if slices.ContainsFunc(elsewhere, func(d Differing) bool { return !d.At(p) }) {
			continue
		}
		out = append(out, Own{Path: p, How: how})
	}
	return out
}

// Differing is where a tree differs from a version.
type Differing struct {
	at    map[string]bool
	kinds map[string]bool // of them, where it has another kind of entry
}

// At tells whether the tree differs at a path. What is below a path at which it
// has another kind of entry differs, though it was not listed.
func (d Differing) At(p string) bool {
	if d.at[p] {
		return true
	}
	for dir := path.Dir(p); dir != "." && len(d.kinds) > 0; dir = path.Dir(dir) {
		if d.kinds[dir] {
			return true
		}
	}
	return false
}

// Paths are those at which differences were found.
func (d Differing) Paths() map[string]bool { return d.at }

// DifferAt sorts differences by their paths, those of which the time alone
// differs left out. In a tree that an update has left half
// done, directories are as the update made them, and get their mode and owner
// last: half leaves out those in which anything but their kind differs.
func DifferAt(m *imaging.Manifest, differences []imaging.Difference, half bool) Differing {
	if half {
		differences = slices.DeleteFunc(slices.Clone(differences), func(d imaging.Difference) bool {
			e := m.List.Get(d.Path)
			return e != nil && e.Kind == imaging.Directory && d.Kind != imaging.DiffMissing && d.Kind != imaging.DiffType
		})
	}
	d := Differing{at: map[string]bool{}, kinds: map[string]bool{}}
	for _, o := range ChangedSince(differences, nil, nil) {
		d.at[o.Path] = true
	}
	for _, v := range differences {
		if v.Kind == imaging.DiffType {
			d.kinds[v.Path] = true
		}
	}
	return d
}

// Joined are the paths of both lists, each once.
func Joined(a, b []Own) []Own {
	out, seen := slices.Clone(a), map[string]bool{}
	for _, o := range a {
		seen[o.Path] = true
	}
	for _, o := range b {
		if !seen[o.Path] {
			out = append(out, o)
		}
	}
	return out
}

// Merge is how an update brings a tree, parts of which are its own, what a
// version has: which paths stay as they are, and which are not looked at, with
// all that is below them.
type Merge struct {
	Own []Own // by path, with Both set
	own map[string]How
	// skip are directories that were removed here, and below which the version
	// has nothing else.
	skip map[string]bool
}

// NewMerge prepares an update to target of a tree that was equal to base once,
// and has paths of its own. It adds to those what cannot be brought without
// changing them: the other names of their files, and what the version has in
// the place of a directory that one of them is in.
func NewMerge(base, target *imaging.Manifest, own []Own) *Merge {
	m := &Merge{own: map[string]How{}, skip: map[string]bool{}}
	for _, o := range own {
		m.own[o.Path] = o.How
	}
	m.addNames(&base.List)
	m.addNames(&target.List)
	m.skipRemoved(target)
	theirs := map[string]bool{}
	for _, c := range imaging.DiffManifests(base, target) {
		if len(c.What) == 1 && c.What[0] == imaging.DiffMTime {
			continue
		}
		theirs[c.Path] = true
	}
	m.addWays(target)
	for p, how := range m.own {
		m.Own = append(m.Own, Own{Path: p, How: how, Both: theirs[p] || m.gone(base, target, p)})
	}
	slices.SortFunc(m.Own, func(a, b Own) int { return imaging.ComparePath(a.Path, b.Path) })
	return m
}

// Keeps tells whether the tree keeps a path as it is.
func (m *Merge) Keeps(p string) bool { _, ok := m.own[p]; return ok }

// Skips tells whether a path is not looked at, nor what is below it.
func (m *Merge) Skips(p string) bool { return m.skip[p] }

// addNames keeps all names of a file of which one is kept: what is written to
// one of them would be written to all.
func (m *Merge) addNames(l *imaging.Entries) {
	kept := map[string]bool{} // first names of files of which a name is kept
	for _, e := range l.All() {
		if how, ok := m.own[e.Path]; !ok || how == WasRemoved {
			continue
		}
		switch e.Kind {
		case imaging.HardLink:
			kept[e.Target] = true
		case imaging.Regular:
			kept[e.Path] = true
		}
	}
	if len(kept) == 0 {
		return
	}
	for _, e := range l.All() {
		if e.Kind == imaging.HardLink && kept[e.Target] || kept[e.Path] {
			if _, ok := m.own[e.Path]; !ok {
				m.own[e.Path] = WasChanged
			}
		}
	}
}

// addWays keeps the directories that lead to what is kept, where the version
// has something else in their place.
func (m *Merge) addWays(target *imaging.Manifest) {
	ways := map[string]bool{}
	for p, how := range m.own {
		if how == WasRemoved {
			continue
		}
		for dir := path.Dir(p); dir != "." && !ways[dir]; dir = path.Dir(dir) {
			ways[dir] = true
		}
	}
	for dir := range ways {
		if e := target.List.Get(dir); e != nil && e.Kind != imaging.Directory {
			if _, ok := m.own[dir]; !ok {
				m.own[dir] = WasChanged
			}
		}
	}
}

// skipRemoved finds what stays removed: the version has nothing below it that
// was not removed here.
func (m *Merge) skipRemoved(target *imaging.Manifest) {
	needed := map[string]bool{}
	for _, e := range target.List.All() {
		if m.own[e.Path] == WasRemoved {
			continue
		}
		for dir := path.Dir(e.Path); dir != "." && !needed[dir]; dir = path.Dir(dir) {
			needed[dir] = true
		}
	}
	for p, how := range m.own {
		switch {
		case how != WasRemoved:
		case needed[p]:
			delete(m.own, p) // it is made again, for what is in it
		default:
			m.skip[p] = true
		}
	}
}

// gone tells whether a directory that the path is in was removed on the other
// head.
func (m *Merge) gone(base, target *imaging.Manifest, p string) bool {
	for dir := path.Dir(p); dir != "."; dir = path.Dir(dir) {
		b, t := base.List.Get(dir), target.List.Get(dir)
		if b != nil && b.Kind == imaging.Directory && (t == nil || t.Kind != imaging.Directory) {
			return true
		}
	}
	return false
}

// Below tells whether a path is one of those named, or below one that is not
// meant alone.
func Below(p string, named []string) bool {
	return slices.ContainsFunc(named, func(n string) bool {
		alone := strings.HasSuffix(n, imaging.Alone)
		n = path.Clean("/" + n)[1:]
		return n == "" || p == n || !alone && strings.HasPrefix(p, n+"/")
	})
}

// Both counts the paths that both heads have changed.
func Both(own []Own) int {
	n := 0
	for _, o := range own {
		if o.Both {
			n++
		}
	}
	return n
}
