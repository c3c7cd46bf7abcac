package imaging

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"slices"

	"doppel/imaging/store"
)

// The encoding of a manifest. Numbers are varints of the shortest form, signed
// ones zigzag; byte strings have their length in front.
//
//	cluster part   "doppel manifest 1\n"
//	               length and JSON of the Head
//	               count of entries, entries
//	head part      "doppel manifest head 1\n"
//	               count of contents, contents: of the Regular entries of
//	               class node and head, in their order
//	entry          kind<<4 | class; flags (1 xattrs, 2 opaque)
//	               length of the path's beginning that is the last path's too,
//	               the rest of the path
//	               HardLink: how many entries back its target is, and no more
//	               mode, uid, gid, seconds (signed), nanoseconds
//	               Regular: size, and the content unless the class is node or head
//	               Symlink: target; devices: major, minor
//	               with flag 1: count of xattrs, names and values
//	content        0 for no Extents, else their count + 1 and for each the gap
//	               since the last one's end and its length
//	               count of chunks, for each the 32 bytes of its ID and its size
//
// There is one encoding of a manifest only: the decoder refuses what the
// encoder would have written otherwise, so that equal trees have equal digests.
const (
	clusterMagic = "doppel manifest 1\n"
	headMagic    = "doppel manifest head 1\n"
	digestPrefix = "doppel manifest v1"
)

const (
	flagXattrs = 1 << iota
	flagOpaque
)

// secret tells whether the content of e is for heads only.
func (e *Entry) secret() bool { return e.Class.Audience() == store.Head }

// Encode writes the manifest as its cluster part, which everyone in the
// cluster may read, and its head part, with what is known about the content of
// the entries that are for heads only. It counts Entries and Bytes anew.
func (m *Manifest) Encode() (cluster, head []byte, err error) {
	h := m.Head
	h.Entries, h.Bytes = int64(len(m.List)), 0
	var order checker
	for i := range m.List {
		e := &m.List[i]
		if e.Withheld {
			return nil, nil, fmt.Errorf("encode manifest: the content of %q is not known to this reader", e.Path)
		}
		if err := order.entry(e); err != nil {
			return nil, nil, fmt.Errorf("encode manifest: %w", err)
		}
		h.Bytes += e.Size
	}
	if err := order.end(); err != nil {
		return nil, nil, fmt.Errorf("encode manifest: %w", err)
	}
	about, err := json.Marshal(h)
	if err != nil {
		return nil, nil, fmt.Errorf("encode manifest: %w", err)
	}
	cluster = appendBytes([]byte(clusterMagic), about)
	cluster = appendUint(cluster, uint64(len(m.List)))
	var contents []byte
	var secrets uint64
	last := ""
	for i := range m.List {
		e := &m.List[i]
		if cluster, err = m.appendEntry(cluster, i, last); err != nil {
			return nil, nil, fmt.Errorf("encode manifest: %w", err)
		}
		if e.Kind == Regular && e.secret() {
			contents = appendContent(contents, e)
			secrets++
		}
		last = e.Path
	}
	head = appendUint([]byte(headMagic), secrets)
	return cluster, append(head, contents...), nil
}

// appendEntry appends the entry at i, all of it that is in the cluster part.
func (m *Manifest) appendEntry(b []byte, i int, last string) ([]byte, error) {
	e := &m.List[i]
	var flags byte
	if len(e.Xattrs) > 0 && e.Kind != HardLink {
		flags |= flagXattrs
	}
	if e.Opaque {
		flags |= flagOpaque
	}
	b = append(b, byte(e.Kind)<<4|byte(e.Class), flags)
	shared := commonPrefix(last, e.Path)
	b = appendString(appendUint(b, uint64(shared)), e.Path[shared:])
	if e.Kind == HardLink {
		at, ok := find(m.List[:i], e.Target)
		if !ok || m.List[at].Kind == Directory || m.List[at].Kind == HardLink {
			return nil, fmt.Errorf("%q is a hard link to %q, which is no earlier file", e.Path, e.Target)
		}
		return appendUint(b, uint64(i-at)), nil
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
	if flags&flagXattrs != 0 {
		b = appendUint(b, uint64(len(e.Xattrs)))
		for _, x := range e.Xattrs {
			b = appendBytes(appendString(b, x.Name), x.Value)
		}
	}
	return b, nil
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

// find finds the entry of that path in a list in canonical order.
func find(list []Entry, path string) (int, bool) {
	return slices.BinarySearchFunc(list, path, func(e Entry, p string) int { return ComparePath(e.Path, p) })
}

// ManifestDigest is the identity of a version: the SHA-256 of the words
// "doppel manifest v1", of the SHA-256 of its cluster part and of that of its
// head part. So who may not have the head part can check the identity all the
// same.
func ManifestDigest(cluster []byte, head store.ID) store.ID {
	c := sha256.Sum256(cluster)
	return store.Sum(slices.Concat([]byte(digestPrefix), c[:], head[:]))
}

// DecodeManifest reads what Encode wrote. head is nil for a reader that may
// not have it: the entries that it is about come Withheld.
func DecodeManifest(cluster, head []byte) (*Manifest, error) {
	d := decoder{b: cluster}
	m := &Manifest{}
	m.decodeAbout(&d)
	m.decodeEntries(&d, head != nil)
	if err := d.finish("cluster part"); err != nil {
		return nil, fmt.Errorf("decode manifest: %w", err)
	}
	if head != nil {
		h := decoder{b: head}
		m.decodeContents(&h)
		if err := h.finish("head part"); err != nil {
			return nil, fmt.Errorf("decode manifest: %w", err)
		}
	}
	var total int64
	for i := range m.List {
		total += m.List[i].Size
	}
	if m.Entries != int64(len(m.List)) || m.Bytes != total {
		return nil, fmt.Errorf("decode manifest: it says %d entries and %d bytes, and has %d and %d", m.Entries, m.Bytes, len(m.List), total)
	}
	return m, nil
}

// decodeAbout reads what comes before the entries.
func (m *Manifest) decodeAbout(d *decoder) {
	d.magic(clusterMagic)
	about := d.bytes(maxAbout, "the facts")
	if d.err != nil {
		return
	}
	if err := json.Unmarshal(about, &m.Head); err != nil {
		d.fail("the facts: %v", err)
		return
	}
	again, err := json.Marshal(m.Head)
	if err != nil || !bytes.Equal(about, again) {
		d.fail("the facts are not written as they should be")
	}
}

// decodeEntries reads the entries; whole says that the head part will follow.
func (m *Manifest) decodeEntries(d *decoder, whole bool) {
	n := d.count(minEntry, "entries")
	m.List = make([]Entry, 0, n)
	var order checker
	var names slab
	for range n {
		m.List = append(m.List, Entry{})
		m.decodeEntry(d, len(m.List)-1, &names)
		e := &m.List[len(m.List)-1]
		if e.Kind == Regular && e.secret() {
			// Until decodeContents has filled it in, if it may.
			e.Withheld = true
		}
		if d.err == nil {
			d.check(order.entry(e))
		}
		if d.err != nil {
			return
		}
		e.Withheld = e.Withheld && !whole
	}
	d.check(order.end())
}

// decodeEntry reads the entry at i.
func (m *Manifest) decodeEntry(d *decoder, i int, names *slab) {
	e := &m.List[i]
	what, flags := d.byte(), d.byte()
	e.Kind, e.Class = Kind(what>>4), Class(what&15)
	if flags&^(flagXattrs|flagOpaque) != 0 {
		d.fail("unknown flags %#x", flags)
	}
	e.Opaque = flags&flagOpaque != 0
	last := ""
	if i > 0 {
		last = m.List[i-1].Path
	}
	e.Path = d.path(last, names)
	if e.Kind == HardLink {
		back := d.uint(uint64(i), "the distance of a hard link's target")
		if d.err == nil && (back == 0 || m.List[i-int(back)].Kind == Directory || m.List[i-int(back)].Kind == HardLink) {
			d.fail("%q is a hard link to no earlier file", e.Path)
		}
		if flags&flagXattrs != 0 {
			d.fail("%q is a hard link with extended attributes of its own", e.Path)
		}
		if d.err == nil {
			e.Target = m.List[i-int(back)].Path
		}
		return
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
	if flags&flagXattrs == 0 {
		return
	}
	e.Xattrs = make([]Xattr, d.count(2, "extended attributes"))
	if d.err == nil && len(e.Xattrs) == 0 {
		d.fail("%q says it has extended attributes and has none", e.Path)
	}
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

// decodeContents reads the head part into the entries it is about.
func (m *Manifest) decodeContents(d *decoder) {
	d.magic(headMagic)
	n := d.uint(uint64(len(m.List)), "the count of contents")
	for i := range m.List {
		e := &m.List[i]
		if e.Kind != Regular || !e.secret() {
			continue
		}
		if n == 0 {
			d.fail("the head part says nothing of %q", e.Path)
		}
		n--
		decodeContent(d, e)
		if d.err == nil {
			d.check(checkExtents(e))
		}
		if d.err != nil {
			return
		}
	}
	if n > 0 {
		d.fail("the head part is about more files than there are")
	}
}
