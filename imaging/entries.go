package imaging

import (
	"fmt"
	"iter"
	"sort"
	"strings"

	"doppel/imaging/store"
)

// Entries are all entries of one tree, in canonical order, kept as the bytes
// in which a manifest encodes them: a million take some 90 MB and next to no
// pointers, where as Go values they would take four times that. There are no
// Entries that a manifest could not have: each was checked when it came.
//
// They never change once they are made; any number of goroutines may read
// them. The zero value is no entries at all.
type Entries struct {
	parts   [][]byte // encoded entries, whole ones in each
	marks   []entryMark
	count   int
	bytes   int64  // of regular files, hard links counted once
	secret  []byte // encoded contents of the secrets, or nothing when withheld
	secrets []secretMark

	withheld bool // this reader may not know the contents of secrets
}

// entryMark is where an entry begins, of every markEvery-th.
type entryMark struct {
	part, off uint32
	before    string // the path of the entry before it
}

// secretMark is where in secret the content of an entry is.
type secretMark struct {
	entry uint32
	off   uint32
}

const (
	markEvery = 16
	partSize  = 1 << 20 // encoded bytes at which a part ends
)

// Len is how many there are.
func (l *Entries) Len() int { return l.count }

// Bytes is how long the regular files are together, hard links counted once.
func (l *Entries) Bytes() int64 { return l.bytes }

// All goes through the entries. What it yields is the caller's own.
func (l *Entries) All() iter.Seq2[int, *Entry] { return l.From(0) }

// From goes through the entries from the i-th on.
func (l *Entries) From(i int) iter.Seq2[int, *Entry] {
	return func(yield func(int, *Entry) bool) {
		c := l.cursor(i)
		c.names = &slab{}
		for c.i < l.count {
			e := &Entry{}
			at := c.i
			c.next(e)
			if !yield(at, e) {
				return
			}
		}
	}
}

// At gives the i-th entry, the caller's own.
func (l *Entries) At(i int) *Entry {
	c := l.cursor(i)
	e := &Entry{}
	c.next(e)
	return e
}

// Path is the path of the i-th entry.
func (l *Entries) Path(i int) string {
	c := l.cursor(i)
	var e Entry
	c.step(&e)
	return e.Path
}

// Find finds an entry by its path; if there is none, the place where it would
// be.
func (l *Entries) Find(path string) (i int, ok bool) {
	// The last mark whose entries may be as far.
	mark := sort.Search(len(l.marks), func(k int) bool { return k > 0 && ComparePath(l.marks[k].before, path) >= 0 }) - 1
	if mark < 0 {
		return 0, false
	}
	c := l.cursor(mark * markEvery)
	var e Entry
	for c.i < l.count {
		at := c.i
		c.step(&e)
		if order := ComparePath(e.Path, path); order >= 0 {
			return at, order == 0
		}
	}
	return l.count, false
}

// Get gives the entry of that path, the caller's own; nil: there is none.
func (l *Entries) Get(path string) *Entry {
	if i, ok := l.Find(path); ok {
		return l.At(i)
	}
	return nil
}

// cursor goes through entries one after the other.
type cursor struct {
	l      *Entries
	i      int // of the entry that next gives
	part   int
	d      decoder
	last   string
	secret int   // in l.secrets
	names  *slab // nil: not many paths will come
}

// cursor stands at the i-th entry.
func (l *Entries) cursor(i int) *cursor {
	c := &cursor{l: l, i: l.count}
	if i >= l.count {
		return c
	}
	m := l.marks[i/markEvery]
	c.i, c.part, c.last = i/markEvery*markEvery, int(m.part), m.before
	c.d.b = l.parts[m.part][m.off:]
	c.secret = sort.Search(len(l.secrets), func(k int) bool { return int(l.secrets[k].entry) >= c.i })
	var e Entry
	for c.i < i {
		c.step(&e)
	}
	return c
}

// next reads the next entry into e, of which nothing is kept.
func (c *cursor) next(e *Entry) {
	if target := c.step(e); e.Kind == HardLink {
		e.Target = c.l.Path(target)
	}
}

// step is next but for the target of a hard link, of which it gives the place:
// to follow one at each step would come to follow one on the way to the other.
func (c *cursor) step(e *Entry) (target int) {
	for len(c.d.b) == 0 && c.part < len(c.l.parts)-1 {
		c.part++
		c.d.b = c.l.parts[c.part]
	}
	back := decodeEntry(&c.d, c.last, c.names, e)
	target = c.i - int(back)
	if e.Kind == Regular && e.secret() {
		if c.l.withheld {
			e.Withheld = true
		} else {
			d := decoder{b: c.l.secret[c.l.secrets[c.secret].off:]}
			decodeContent(&d, e)
		}
		c.secret++
	}
	c.last = e.Path
	c.i++
	return target
}

// EntriesBuilder makes Entries of entries that come in canonical order.
type EntriesBuilder struct {
	list  Entries
	order checker
	last  string
}

// Add adds the next entry, of which nothing is kept. One that cannot be in a
// manifest, or not at this place, is an error and changes nothing.
func (b *EntriesBuilder) Add(e *Entry) error {
	if e.Withheld {
		return fmt.Errorf("the content of %q is not known to this reader", e.Path)
	}
	back := 0
	if e.Kind == HardLink {
		at, ok := b.list.Find(e.Target)
		if ok {
			k := b.list.At(at).Kind
			ok = k != Directory && k != HardLink
		}
		if !ok {
			return fmt.Errorf("%q is a hard link to %q, which is no earlier file", e.Path, e.Target)
		}
		back = b.list.count - at
	}
	if err := b.order.entry(e); err != nil {
		return err
	}
	l := &b.list
	if n := len(l.parts); n == 0 || len(l.parts[n-1]) >= partSize {
		l.parts = append(l.parts, nil)
	}
	part := &l.parts[len(l.parts)-1]
	b.mark(len(*part))
	*part = appendEntry(*part, e, b.last, back)
	if e.Kind == Regular && e.secret() {
		l.secrets = append(l.secrets, secretMark{uint32(l.count), uint32(len(l.secret))})
		l.secret = appendContent(l.secret, e)
	}
	b.took(e)
	return nil
}

// mark notes where the next entry begins, off in the last part.
func (b *EntriesBuilder) mark(off int) {
	if l := &b.list; l.count%markEvery == 0 {
		l.marks = append(l.marks, entryMark{uint32(len(l.parts) - 1), uint32(off), strings.Clone(b.last)})
	}
}

func (b *EntriesBuilder) took(e *Entry) {
	b.list.count++
	b.list.bytes += e.Size
	b.last = e.Path
}

// Len is how many entries were added.
func (b *EntriesBuilder) Len() int { return b.list.count }

// Done gives what was added.
func (b *EntriesBuilder) Done() (Entries, error) {
	if err := b.order.end(); err != nil {
		return Entries{}, err
	}
	return b.list, nil
}

// NewEntries makes Entries of a list in canonical order.
func NewEntries(list ...Entry) (Entries, error) {
	var b EntriesBuilder
	for i := range list {
		if err := b.Add(&list[i]); err != nil {
			return Entries{}, err
		}
	}
	return b.Done()
}

// Refs are the chunks that the manifest needs, in the order of its entries and
// their contents; one that is needed several times comes several times.
func (m *Manifest) Refs() iter.Seq[EntryRef] {
	return func(yield func(EntryRef) bool) {
		for _, e := range m.List.All() {
			aud := e.Class.Audience()
			for _, c := range e.Chunks {
				if !yield(EntryRef{store.Ref{Audience: aud, ID: c.ID}, c.Size, e}) {
					return
				}
			}
		}
	}
}
