package imaging

import (
	"context"
	"fmt"
	"path"
	"slices"
	"strings"
	"time"
)

// Adopt makes a new version of base's image: base, but for the paths named, from
// the root, with all that is below them, which are as other has them or, where
// it has nothing there, gone. When that is what the image's latest version is
// already, it gives that one, and fresh is false.
func (c *Catalog) Adopt(ctx context.Context, base, other Version, paths []string) (v Version, fresh bool, err error) {
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
	list, err := adopt(a, b, paths)
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

// adopt merges the entries of a and b: b's for the paths and what is below
// them, and for directories that lead there and a lacks; a's for all others.
func adopt(a, b *Manifest, paths []string) (Entries, error) {
	var clean []string
	for _, p := range paths {
		name := path.Clean("/" + p)[1:]
		if name == "" {
			return Entries{}, fmt.Errorf("%q is the whole tree: capture it as a version of its own", p)
		}
		_, inA := a.List.Find(name)
		if _, inB := b.List.Find(name); !inA && !inB {
			return Entries{}, fmt.Errorf("%q is neither in the version nor on the node", p)
		}
		clean = append(clean, name)
	}
	ways := map[string]bool{} // directories that are taken along
	for _, p := range clean {
		if _, ok := b.List.Find(p); !ok {
			continue // it goes
		}
		for dir := path.Dir(p); dir != "."; dir = path.Dir(dir) {
			switch e := a.List.Get(dir); {
			case e == nil:
				ways[dir] = true
			case e.Kind != Directory:
				return Entries{}, fmt.Errorf("%q is below %q, which is a %s in the version: name that", p, dir, e.Kind)
			}
		}
	}
	taken := func(p string) bool {
		return ways[p] || slices.ContainsFunc(clean, func(c string) bool { return p == c || strings.HasPrefix(p, c+"/") })
	}
	m := &merger{leaders: [2]map[string]string{{}, {}}}
	m.lead(0, &a.List, func(p string) bool { return !taken(p) })
	m.lead(1, &b.List, taken)
	for i, j := 0, 0; i < a.List.Len() || j < b.List.Len(); {
		fromB := i == a.List.Len() || j < b.List.Len() && ComparePath(b.List.Path(j), a.List.Path(i)) < 0
		if fromB {
			if p := b.List.Path(j); taken(p) {
				if err := m.add(1, &b.List, j); err != nil {
					return Entries{}, err
				}
			}
			j++
			continue
		}
		p := a.List.Path(i)
		same := j < b.List.Len() && b.List.Path(j) == p
		switch {
		case !taken(p):
			if err := m.add(0, &a.List, i); err != nil {
				return Entries{}, err
			}
		case same:
			if err := m.add(1, &b.List, j); err != nil {
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
