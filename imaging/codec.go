package imaging

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"slices"

	"doppel/imaging/store"
)

// The encoding of a manifest, which FORMAT.md has byte by byte. Numbers are
// varints of the shortest form, signed ones zigzag; byte strings have their
// length in front.
//
// There is one encoding of a manifest only: the decoder refuses what the
// encoder would have written otherwise, so that equal trees have equal digests.
const (
	clusterMagic = "doppel manifest 2\n"
	headMagic    = "doppel manifest head 2\n"
	digestPrefix = "doppel manifest v2"
)

const (
	flagXattrs = 1 << iota
	flagOpaque
	flagInode
)

// secret tells whether the content of e is for heads only.
func (e *Entry) secret() bool { return e.Class.Audience() == store.Head }

// preamble encodes what comes before the entries. It counts Entries and Bytes
// anew.
func (m *Manifest) preamble() ([]byte, error) {
	h := m.Head
	h.Entries, h.Bytes = int64(m.List.Len()), m.List.Bytes()
	about, err := json.Marshal(h)
	if err != nil {
		return nil, fmt.Errorf("encode manifest: %w", err)
	}
	b := appendBytes([]byte(clusterMagic), about)
	return appendUint(b, uint64(m.List.Len())), nil
}

// headPart encodes what is known about the content of the entries that are for
// heads only.
func (m *Manifest) headPart() ([]byte, error) {
	if m.List.withheld {
		return nil, fmt.Errorf("encode manifest: the content of secrets is not known to this reader")
	}
	b := appendUint([]byte(headMagic), uint64(len(m.List.secrets)))
	return append(b, m.List.secret...), nil
}

// digest is the identity of the version: the SHA-256 of the words "doppel
// manifest v2", of the SHA-256 of its cluster part and of that of its head
// part. So who may not have the head part can check the identity all the same.
func (m *Manifest) digest(headSum store.ID) (store.ID, error) {
	preamble, err := m.preamble()
	if err != nil {
		return store.ID{}, err
	}
	h := sha256.New()
	h.Write(preamble)
	for _, part := range m.List.parts {
		h.Write(part)
	}
	return store.Sum(slices.Concat([]byte(digestPrefix), h.Sum(nil), headSum[:])), nil
}

// Digest is the manifest's identity, as a version has it. It takes a manifest
// of which nothing is withheld.
func (m *Manifest) Digest() (store.ID, error) {
	head, err := m.headPart()
	if err != nil {
		return store.ID{}, err
	}
	return m.digest(store.Sum(head))
}

// appendEntry appends all of an entry that is in the cluster part. last is the
// path of the entry before it; a hard link's target is back entries before it.
func appendEntry(b []byte, e *Entry, last string, back int) []byte {
	var flags byte
	if len(e.Xattrs) > 0 && e.Kind != HardLink {
		flags |= flagXattrs
	}
	if e.Opaque {
		flags |= flagOpaque
	}
	if e.Flags != 0 || e.Project != 0 {
		flags |= flagInode
	}
	b = append(b, byte(e.Kind)<<4|byte(e.Class), flags)
	shared := commonPrefix(last, e.Path)
	b = appendString(appendUint(b, uint64(shared)), e.Path[shared:])
	if e.Kind == HardLink {
		return appendUint(b, uint64(back))
	}
	b = appendUint(appendUint(appendUint(b, uint64(e.Mode)), uint64(e.UID)), uint64(e.GID))
	b = appendUint(appendInt(b, e.MTime.Sec), uint64(e.MTime.Nsec))
	switch e.Kind {
	case Regular:
		b = appendUint(b, uint64(e.Size))
		if !e.secret() {
			b = appendContent(b, e)
		}
	case Symlink:
		b = appendString(b, e.Target)
	case CharDevice, BlockDevice:
		b = appendUint(appendUint(b, uint64(e.Major)), uint64(e.Minor))
	}
	if flags&flagInode != 0 {
		b = appendUint(appendUint(b, uint64(e.Flags)), uint64(e.Project))
	}
	if flags&flagXattrs != 0 {
		b = appendXattrs(b, e.Xattrs)
	}
	return b
}

func appendXattrs(b []byte, list []Xattr) []byte {
	b = appendUint(b, uint64(len(list)))
	for _, x := range list {
		b = appendBytes(appendString(b, x.Name), x.Value)
	}
	return b
}

// appendContent appends where e's content is. Extents that say no more than
// nil would are written as nil.
func appendContent(b []byte, e *Entry) []byte {
	ext := e.Extents
	if len(ext) == 1 && ext[0] == (Extent{0, e.Size}) || e.Size == 0 {
		ext = nil
	}
	if ext == nil {
		b = append(b, 0)
	} else {
		b = appendUint(b, uint64(len(ext))+1)
		end := int64(0)
		for _, x := range ext {
			b = appendUint(appendUint(b, uint64(x.Offset-end)), uint64(x.Length))
			end = x.Offset + x.Length
		}
	}
	b = appendUint(b, uint64(len(e.Chunks)))
	for _, c := range e.Chunks {
		b = appendUint(append(b, c.ID[:]...), uint64(c.Size))
	}
	return b
}

// manifestDecoder takes a manifest in as its pieces come: the preamble, parts
// of whole entries, the head part.
type manifestDecoder struct {
	m     Manifest
	b     EntriesBuilder
	count uint64 // of entries, as the preamble says
	names slab
	paths int
}

// preamble reads what comes before the entries, and gives what follows it.
func (x *manifestDecoder) preamble(b []byte) (rest []byte, err error) {
	d := decoder{b: b}
	d.magic(clusterMagic)
	about := d.bytes(maxAbout, "the facts")
	if d.err == nil {
		if err := json.Unmarshal(about, &x.m.Head); err != nil {
			d.fail("the facts: %v", err)
		}
	}
	if d.err == nil {
		again, err := json.Marshal(x.m.Head)
		if err != nil || !bytes.Equal(about, again) {
			d.fail("the facts are not written as they should be")
		}
	}
	x.count = d.uint(1<<32-1, "the count of entries")
	rest = d.b
	if d.err != nil {
		return nil, fmt.Errorf("decode manifest: %w", d.err)
	}
	return rest, nil
}

// part takes some more entries, whole ones, and keeps b.
func (x *manifestDecoder) part(b []byte) error {
	l := &x.b.list
	if len(b) == 0 {
		return nil
	}
	l.parts = append(l.parts, b)
	d := decoder{b: b, paths: x.paths}
	for len(d.b) > 0 && d.err == nil {
		x.b.mark(len(b) - len(d.b))
		x.entry(&d)
	}
	x.paths = d.paths
	if d.err == nil && uint64(l.count) > x.count {
		d.fail("it has more than the %d entries it says", x.count)
	}
	if d.err != nil {
		return fmt.Errorf("decode manifest: %w", d.err)
	}
	return nil
}

// entry checks one entry that is in the list's bytes already.
func (x *manifestDecoder) entry(d *decoder) {
	l := &x.b.list
	var e Entry
	back := decodeEntry(d, x.b.last, &x.names, &e)
	if d.err != nil {
		return
	}
	if e.Kind == HardLink {
		if back == 0 || back > uint64(l.count) {
			d.fail("%q is a hard link to no earlier file", e.Path)
			return
		}
		first := l.At(l.count - int(back))
		if first.Kind == Directory || first.Kind == HardLink {
			d.fail("%q is a hard link to no earlier file", e.Path)
			return
		}
		e.Target = first.Path
	}
	if e.Kind == Regular && e.secret() {
		// The content comes with the head part, if this reader may have it.
		e.Withheld = true
		l.secrets = append(l.secrets, secretMark{entry: uint32(l.count)})
	}
	d.check(x.b.order.entry(&e))
	if d.err == nil {
		x.b.took(&e)
	}
}

// head takes the head part; a reader that may not have it leaves it out.
func (x *manifestDecoder) head(b []byte) error {
	l := &x.b.list
	d := decoder{b: b}
	d.magic(headMagic)
	n := d.uint(1<<32-1, "the count of contents")
	if d.err == nil && n != uint64(len(l.secrets)) {
		d.fail("it is about %d files, and there are %d secrets", n, len(l.secrets))
	}
	l.withheld = false
	l.secret = d.b
	for i := range l.secrets {
		l.secrets[i].off = uint32(len(l.secret) - len(d.b))
		e := l.sized(int(l.secrets[i].entry))
		decodeContent(&d, e)
		if d.err == nil {
			d.check(checkExtents(e))
		}
		if d.err != nil {
			break
		}
	}
	if err := d.finish("head part"); err != nil {
		return fmt.Errorf("decode manifest: %w", err)
	}
	return nil
}

// sized gives the i-th entry without its content.
func (l *Entries) sized(i int) *Entry {
	blind := *l
	blind.withheld = true
	e := blind.At(i)
	e.Withheld = false
	return e
}

// done gives the manifest.
func (x *manifestDecoder) done() (*Manifest, error) {
	list, err := x.b.Done()
	if err == nil && (uint64(list.count) != x.count || x.m.Entries != int64(list.count) || x.m.Bytes != list.bytes) {
		err = fmt.Errorf("it says %d entries and %d bytes, and has %d and %d", x.m.Entries, x.m.Bytes, list.count, list.bytes)
	}
	if err != nil {
		return nil, fmt.Errorf("decode manifest: %w", err)
	}
	x.m.List = list
	return &x.m, nil
}

func newManifestDecoder() *manifestDecoder {
	x := &manifestDecoder{}
	x.b.list.withheld = true // until head is called
	return x
}

// decodeEntry reads an entry of the cluster part; last is the path before it.
// Of a hard link it tells how many entries back the target is.
func decodeEntry(d *decoder, last string, names *slab, e *Entry) (back uint64) {
	*e = Entry{}
	what, flags := d.byte(), d.byte()
	e.Kind, e.Class = Kind(what>>4), Class(what&15)
	if flags&^(flagXattrs|flagOpaque|flagInode) != 0 {
		d.fail("unknown flags %#x", flags)
	}
	e.Opaque = flags&flagOpaque != 0
	e.Path = d.path(last, names)
	if e.Kind == HardLink {
		if flags&(flagXattrs|flagInode) != 0 {
			d.fail("%q is a hard link with extended attributes or flags of its own", e.Path)
		}
		return d.uint(1<<32-1, "the distance of a hard link's target")
	}
	e.Mode = uint32(d.uint(0o7777, "mode"))
	e.UID, e.GID = d.uint32("uid"), d.uint32("gid")
	e.MTime.Sec = d.int("time")
	e.MTime.Nsec = uint32(d.uint(999_999_999, "nanoseconds"))
	switch e.Kind {
	case Regular:
		e.Size = int64(d.uint(maxSize, "size"))
		if !e.secret() {
			decodeContent(d, e)
		}
	case Symlink:
		e.Target = string(d.bytes(maxTarget, "link target"))
	case CharDevice, BlockDevice:
		e.Major, e.Minor = d.uint32("major number"), d.uint32("minor number")
	}
	if flags&flagInode != 0 {
		e.Flags, e.Project = d.uint32("inode flags"), d.uint32("project")
		if d.err == nil && e.Flags == 0 && e.Project == 0 {
			d.fail("%q says it has inode flags and has none", e.Path)
		}
	}
	if flags&flagXattrs != 0 {
		decodeXattrs(d, e)
		if d.err == nil && len(e.Xattrs) == 0 {
			d.fail("%q says it has extended attributes and has none", e.Path)
		}
	}
	return 0
}

func decodeXattrs(d *decoder, e *Entry) {
	n := d.count(2, "extended attributes")
	if n == 0 {
		return
	}
	e.Xattrs = make([]Xattr, n)
	for i := range e.Xattrs {
		e.Xattrs[i].Name = string(d.bytes(maxXattrName, "extended attribute's name"))
		e.Xattrs[i].Value = bytes.Clone(d.bytes(maxXattrValue, "extended attribute"))
		if len(e.Xattrs[i].Value) == 0 {
			e.Xattrs[i].Value = nil
		}
	}
}

// decodeContent reads what appendContent wrote.
func decodeContent(d *decoder, e *Entry) {
	if n := d.count(2, "extents"); n > 0 {
		if e.Size == 0 {
			d.fail("%q is empty and has extents", e.Path)
			return
		}
		e.Extents = make([]Extent, n-1)
		end := int64(0)
		for i := range e.Extents {
			x := &e.Extents[i]
			x.Offset = end + int64(d.uint(uint64(e.Size-end), "an extent's offset"))
			x.Length = int64(d.uint(uint64(e.Size-x.Offset), "an extent's length"))
			end = x.Offset + x.Length
		}
		if len(e.Extents) == 1 && e.Extents[0] == (Extent{0, e.Size}) {
			d.fail("%q has an extent that says nothing", e.Path)
		}
	}
	n := d.count(len(store.ID{})+1, "chunks")
	if n == 0 {
		return
	}
	e.Chunks = make([]store.Chunk, n)
	for i := range e.Chunks {
		copy(e.Chunks[i].ID[:], d.take(len(store.ID{}), "a chunk's digest"))
		e.Chunks[i].Size = uint32(d.uint(store.MaxBlock, "a chunk's size"))
	}
}
