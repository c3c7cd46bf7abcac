package imaging

import (
	"context"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"
	"time"
)

// Adopt makes a new version of base's image: base, but for the paths named, from
// the root, with all that is below them, which are as other has them or, where
// it has nothing there, gone. What is in a directory that either of the two has
// as Opaque stays as in base. When all that is what the image's latest version
// is already, it gives that one, and fresh is false.
func (c *Catalog) Adopt(ctx context.Context, base, other Version, paths []string) (v Version, fresh bool, err error) {
	return c.adopt(ctx, base, other, paths, false, nil)
}

// AdoptOnly is Adopt for the paths alone, without what is below them; those that
// neither has are passed over. Before anything is written, may is given the
// paths for which Apply makes of base what the new version is, and may refuse.
func (c *Catalog) AdoptOnly(ctx context.Context, base, other Version, paths []string, may func(order []string) error) (v Version, order []string, err error) {
	v, _, err = c.adopt(ctx, base, other, paths, true, func(o []string) error {
		order = o
		return may(o)
	})
	return v, order, err
}

func (c *Catalog) adopt(ctx context.Context, base, other Version, paths []string, alone bool, may func([]string) error) (v Version, fresh bool, err error) {
	st, err := c.Store()
	if err != nil {
		return v, false, err
	}
	release, err := st.LockShared(ctx)
	if err != nil {
		return v, false, err
	}
	defer release()
	keys, err := c.Keys()
	if err != nil {
		return v, false, err
	}
	a, err := c.Manifest(ctx, base)
	if err != nil {
		return v, false, err
	}
	b, err := c.Manifest(ctx, other)
	if err != nil {
		return v, false, err
	}
	ad, err := newAdoption(&a.List, &b.List, paths, alone)
	if err != nil {
		return v, false, err
	}
	if may != nil {
		if err := may(ad.order()); err != nil {
			return v, false, err
		}
	}
	list, err := ad.merge()
	if err != nil {
		return v, false, err
	}
	m := &Manifest{Head: Head{Facts: a.Facts, Layout: a.Layout, Boot: DetectBoot(&list)}, List: list}
	digest, err := m.Digest()
	if err != nil {
		return v, false, err
	}
	last, err := c.Resolve(ctx, base.Image+"@"+latest)
	if err != nil || last.Digest == digest.String() {
		return last, false, err
	}
	v = Version{
		Image: base.Image, Digest: digest.String(), Time: time.Now().UTC(), Entries: int64(list.Len()), Bytes: list.Bytes(),
		Source: fmt.Sprintf("%s with %s of %s", base.Ref(), strings.Join(paths, ", "), other.Source),
	}
	if len(v.Source) > maxSource {
		v.Source = fmt.Sprintf("%s with %d paths of %s", base.Ref(), len(paths), other.Source)
	}
	if v.Blob, _, err = WriteManifest(ctx, st, keys, m); err != nil {
		return v, false, c.explain(err)
	}
	v, err = c.Add(ctx, v)
	return v, err == nil, err
}

// maxSource is how long the word on where a version comes from may be.
const maxSource = 200

// adoption merges the entries of a and b: b's for the paths named, and for
// directories that lead there and a lacks; a's for all others.
type adoption struct {
	a, b  *Entries
	alone bool            // what is below the paths named is not meant
	named map[string]bool // from the root, clean
	ways  map[string]bool // directories that are taken along
	left  map[string]bool // directories in which one of the two has nothing only because it was left out
	held  map[string]bool // directories that b lacks, but that have something in them which stays
}

func newAdoption(a, b *Entries, paths []string, alone bool) (*adoption, error) {
	ad := &adoption{a: a, b: b, alone: alone, named: map[string]bool{}, ways: map[string]bool{}, left: map[string]bool{}, held: map[string]bool{}}
	ad.findLeft()
	for _, p := range paths {
		name := path.Clean("/" + p)[1:]
		if name == "" {
			return nil, fmt.Errorf("%q is the whole tree: capture it as a version of its own", p)
		}
		_, inA := a.Find(name)
		_, inB := b.Find(name)
		left := ad.leftAt(name)
		switch {
		case alone && (!inA && !inB || left != ""):
			continue
		case left != "":
			return nil, fmt.Errorf("%q cannot be taken: what is in %q was left out of the version, or is not read on the node", p, left)
		case !inA && !inB:
			return nil, fmt.Errorf("%q is neither in the version nor on the node", p)
		}
		ad.named[name] = true
	}
	if err := ad.hold(); err != nil {
		return nil, err
	}
	return ad, ad.findWays()
}

// findLeft finds the directories whose contents only one of the two has.
func (ad *adoption) findLeft() {
	for _, e := range ad.a.All() {
		if o := ad.b.Get(e.Path); e.Opaque && (o == nil || !o.Opaque) {
			ad.left[e.Path] = true
		}
	}
	for _, e := range ad.b.All() {
		if o := ad.a.Get(e.Path); e.Opaque && o != nil && o.Kind == Directory && !o.Opaque {
			ad.left[e.Path] = true
		}
	}
}

// leftAt is the directory of those that a path is, or is in; empty: none.
func (ad *adoption) leftAt(p string) string { return upFrom(p, ad.left) }

// upFrom is the nearest of dirs that a path is, or is in; empty: none.
func upFrom(p string, dirs map[string]bool) string {
	for ; len(dirs) > 0 && p != "."; p = path.Dir(p) {
		if dirs[p] {
			return p
		}
	}
	return ""
}

// taken tells whether a path becomes as b has it.
func (ad *adoption) taken(p string) bool {
	if ad.ways[p] {
		return true
	}
	if ad.alone && !ad.named[p] || !ad.alone && upFrom(p, ad.named) == "" {
		return false
	}
	return !ad.held[p] && ad.leftAt(p) == ""
}

// hold finds the directories that b lacks, and that stay for what is in them.
func (ad *adoption) hold() error {
	seen := map[string]bool{}
	for _, e := range ad.a.All() {
		if ad.taken(e.Path) {
			continue
		}
		for dir := path.Dir(e.Path); dir != "." && !seen[dir]; dir = path.Dir(dir) {
			seen[dir] = true
			switch o := ad.b.Get(dir); {
			case !ad.taken(dir) || o != nil && o.Kind == Directory:
			case o == nil:
				ad.held[dir] = true
			default:
				return fmt.Errorf("%q is a %s on the node, and a directory in the version in which %q is to stay: leave it out", dir, o.Kind, e.Path)
			}
		}
	}
	return nil
}

// findWays finds the directories that lead to what is taken, and that a lacks.
func (ad *adoption) findWays() error {
	for p := range ad.named {
		if _, ok := ad.b.Find(p); !ok {
			continue // it goes
		}
		for dir := path.Dir(p); dir != "."; dir = path.Dir(dir) {
			switch e := ad.a.Get(dir); {
			case ad.taken(dir):
			case e == nil:
				ad.ways[dir] = true
			case e.Kind != Directory:
				return fmt.Errorf("%q is below %q, which is a %s in the version: name that", p, dir, e.Kind)
			}
		}
	}
	return nil
}

// order lists the paths for which Apply makes of a what merge gives, and changes
// nothing else: of a tree that a has nothing of, or b, the first alone.
func (ad *adoption) order() []string {
	var out []string
	whole := map[string]bool{}
	for _, p := range slices.SortedFunc(maps.Keys(ad.named), ComparePath) {
		if !ad.taken(p) || upFrom(path.Dir(p), whole) != "" {
			continue
		}
		was, is := ad.a.Get(p), ad.b.Get(p)
		if was != nil && is != nil && was.Kind == Directory && is.Kind == Directory && ad.alone {
			out = append(out, p+Alone)
			continue
		}
		whole[p] = true
		out = append(out, p)
	}
	return out
}

func (ad *adoption) merge() (Entries, error) {
	m := &merger{leaders: [2]map[string]string{{}, {}}}
	m.lead(0, ad.a, func(p string) bool { return !ad.taken(p) })
	m.lead(1, ad.b, ad.taken)
	for i, j := 0, 0; i < ad.a.Len() || j < ad.b.Len(); {
		fromB := i == ad.a.Len() || j < ad.b.Len() && ComparePath(ad.b.Path(j), ad.a.Path(i)) < 0
		if fromB {
			if p := ad.b.Path(j); ad.taken(p) {
				if err := m.add(1, ad.b, j); err != nil {
					return Entries{}, err
				}
			}
			j++
			continue
		}
		p := ad.a.Path(i)
		same := j < ad.b.Len() && ad.b.Path(j) == p
		switch {
		case !ad.taken(p):
			if err := m.add(0, ad.a, i); err != nil {
				return Entries{}, err
			}
		case same:
			if err := m.add(1, ad.b, j); err != nil {
				return Entries{}, err
			}
		}
		i++
		if same {
			j++
		}
	}
	return m.list.Done()
}

// merger puts entries of two lists together. A file's names that come from one
// list stay names of one file: the first of them, whichever that is now, has
// the content.
type merger struct {
	list    EntriesBuilder
	leaders [2]map[string]string // by list: first name there → first name here
}

// lead finds the first names here of the files that have several in a list.
func (m *merger) lead(which int, l *Entries, here func(string) bool) {
	for _, e := range l.All() {
		if e.Kind != HardLink || !here(e.Path) || m.leaders[which][e.Target] != "" {
			continue
		}
		m.leaders[which][e.Target] = e.Path
		if here(e.Target) {
			m.leaders[which][e.Target] = e.Target
		}
	}
}

func (m *merger) add(which int, l *Entries, i int) error {
	e := l.At(i)
	if e.Kind == HardLink {
		switch first := m.leaders[which][e.Target]; first {
		case e.Path:
			name := e.Path
			e = l.Get(e.Target)
			e.Path = name
		default:
			e.Target = first
		}
	}
	return m.list.Add(e)
}
