package wire

import (
	"fmt"

	"doppel/imaging"
	"doppel/imaging/store"
)

// Flags of an entry.
const (
	hasStamp   = 1 << iota // a stamp follows, with the entry's own path
	asCached               // the content is what the client answered for this path
	hasExtents             //
	hasXattrs              //
	runsBefore             // chunks and extents came in frames of their own, in front
	stampElse              // the stamp has a path of its own; without hasStamp: the stamp is the one that was asked about
	isOpaque               // a directory whose contents were left out
	hasFlags               // inode flags and project
)

// cachedContent is the content that stands, on the head, for what the client
// has from the last capture. A chunk has at least one byte, so this one occurs
// nowhere else; the encoder knows it again in an entry.
func cachedContent() *imaging.Content {
	return &imaging.Content{Chunks: []store.Chunk{{}}}
}

func isCachedContent(e *imaging.Entry) bool {
	return len(e.Chunks) == 1 && e.Chunks[0] == store.Chunk{}
}

// needsRuns tells whether the entry's content is too long for the frame that
// the entry is in.
func needsRuns(e *imaging.Entry) bool {
	return len(e.Chunks) > maxRun/16 || len(e.Extents) > maxRun/16
}

// stampAsked are the flags of an entry as cached whose stamp is that of the
// question.
const stampAsked = asCached | stampElse

// putEntry appends an entry. prev is the path of the one before it in the same
// frame; asked tells whether the client has its stamp from a question.
func putEntry(b []byte, prev string, e *imaging.Entry, s imaging.Stamp, asked bool) ([]byte, error) {
	if e.Kind < imaging.Regular || e.Kind > imaging.HardLink {
		return nil, fmt.Errorf("%s: %v", e.Path, e.Kind)
	}
	flags := byte(0)
	set := func(when bool, bit byte) {
		if when {
			flags |= bit
		}
	}
	cached, runs := isCachedContent(e), needsRuns(e)
	set(s != imaging.Stamp{}, hasStamp)
	set(s != imaging.Stamp{} && s.Path != e.Path, stampElse)
	set(cached, asCached)
	if asked && cached {
		flags = stampAsked
	}
	set(!cached && !runs && e.Extents != nil, hasExtents)
	set(len(e.Xattrs) > 0, hasXattrs)
	set(runs, runsBefore)
	set(e.Opaque, isOpaque)
	set(e.Flags != 0 || e.Project != 0, hasFlags)

	b = append(b, byte(e.Kind), flags, byte(e.Class))
	b = putPath(b, prev, e.Path)
	b = putUint(putUint(putUint(b, uint64(e.Mode)), uint64(e.UID)), uint64(e.GID))
	b = putTime(b, e.MTime)
	switch e.Kind {
	case imaging.Regular:
		b = putUint(b, uint64(e.Size))
		if !cached && !runs {
			b = putChunks(b, e.Chunks)
		}
		if flags&hasExtents != 0 {
			b = putExtents(b, e.Extents, 0)
		}
	case imaging.Symlink, imaging.HardLink:
		b = putString(b, e.Target)
	case imaging.CharDevice, imaging.BlockDevice:
		b = putUint(putUint(b, uint64(e.Major)), uint64(e.Minor))
	}
	if flags&hasFlags != 0 {
		b = putUint(putUint(b, uint64(e.Flags)), uint64(e.Project))
	}
	if flags&hasXattrs != 0 {
		b = putUint(b, uint64(len(e.Xattrs)))
		for _, x := range e.Xattrs {
			b = putString(putString(b, x.Name), string(x.Value))
		}
	}
	if flags&hasStamp != 0 {
		if flags&stampElse != 0 {
			b = putPath(b, e.Path, s.Path)
		}
		b = putStamp(b, s)
	}
	return b, nil
}

// runs are chunks and extents on their way to an entry too long for a frame.
type runs struct {
	chunks  []store.Chunk
	extents []imaging.Extent
}

func (r *runs) addChunks(p []byte) error {
	d := &decoder{b: p}
	r.chunks = append(r.chunks, d.chunks(maxRun, "chunks")...)
	if len(r.chunks) > maxEntryRuns {
		d.fail("an entry of more than %d chunks", maxEntryRuns)
	}
	return d.finish()
}

func (r *runs) addExtents(p []byte) error {
	d := &decoder{b: p}
	end := int64(0)
	if n := len(r.extents); n > 0 {
		end = r.extents[n-1].Offset + r.extents[n-1].Length
	}
	if r.extents == nil {
		r.extents = []imaging.Extent{}
	}
	r.extents = append(r.extents, d.extents(maxRun, end, "extents")...)
	if len(r.extents) > maxEntryRuns {
		d.fail("an entry of more than %d extents", maxEntryRuns)
	}
	return d.finish()
}

// entryDecoder decodes the frames that carry entries.
type entryDecoder struct {
	pending runs
	// cached gives, once, what was answered for a path.
	cached func(path string) (known, bool)
}

// known is what the client answered "cached" about.
type known struct {
	content *imaging.Content
	stamp   imaging.Stamp // as it was asked
}

func (x *entryDecoder) decode(p []byte) ([]imaging.Entry, []imaging.Stamp, error) {
	d := &decoder{b: p}
	const least = 10 // bytes of the smallest entry
	n := d.count(maxControl/least, least, "entries")
	// What an entry takes in memory is many times its least encoding: grow
	// with what is truly there.
	entries, stamps := make([]imaging.Entry, 0, min(n, 1024)), make([]imaging.Stamp, 0, min(n, 1024))
	prev := ""
	for range n {
		e, s := x.entry(d, prev)
		if d.err != nil {
			return nil, nil, d.err
		}
		entries, stamps = append(entries, e), append(stamps, s)
		prev = e.Path
	}
	return entries, stamps, d.finish()
}

func (x *entryDecoder) entry(d *decoder, prev string) (e imaging.Entry, s imaging.Stamp) {
	e.Kind = imaging.Kind(d.byte("kind"))
	if d.err == nil && (e.Kind < imaging.Regular || e.Kind > imaging.HardLink) {
		d.fail("an entry of kind %d", e.Kind)
	}
	flags := d.byte("flags")
	asked := flags&(hasStamp|stampAsked) == stampAsked
	if flags&stampElse != 0 && flags&hasStamp == 0 && !asked {
		d.fail("an entry has the path of a stamp, and none")
	}
	e.Class = d.class()
	e.Path = d.path(prev, "path")
	e.Mode = uint32(d.uint(0o7777, "mode"))
	e.UID = uint32(d.uint(1<<32-1, "owner"))
	e.GID = uint32(d.uint(1<<32-1, "group"))
	e.MTime = d.time("mtime")
	switch e.Kind {
	case imaging.Regular:
		e.Size = d.length("size")
		k := x.content(d, &e, flags)
		if asked {
			s = k.stamp
		}
	case imaging.Symlink:
		e.Target = d.string(maxPath, "target")
	case imaging.HardLink:
		e.Target = d.string(maxPath, "target")
		if d.err == nil && !validPath(e.Target) {
			d.fail("target %q is not a path below a root", e.Target)
		}
	case imaging.CharDevice, imaging.BlockDevice:
		e.Major = uint32(d.uint(1<<32-1, "major"))
		e.Minor = uint32(d.uint(1<<32-1, "minor"))
	}
	if e.Kind != imaging.Regular && flags&(asCached|hasExtents|runsBefore) != 0 {
		d.fail("a %v with content", e.Kind)
	}
	if e.Opaque = flags&isOpaque != 0; e.Opaque && e.Kind != imaging.Directory {
		d.fail("a %v with contents left out", e.Kind)
	}
	if flags&hasFlags != 0 {
		e.Flags = uint32(d.uint(1<<32-1, "inode flags"))
		e.Project = uint32(d.uint(1<<32-1, "project"))
		if d.err == nil && (e.Kind != imaging.Regular && e.Kind != imaging.Directory || e.Flags&^imaging.KeptFlags != 0) {
			d.fail("a %v with the inode flags %#x and the project %d", e.Kind, e.Flags, e.Project)
		}
	}
	if flags&hasXattrs != 0 {
		if flags&asCached != 0 {
			d.fail("an entry with its extended attributes twice")
		}
		e.Xattrs = d.xattrs()
	}
	if flags&hasStamp != 0 {
		path := e.Path
		if flags&stampElse != 0 {
			path = d.path(e.Path, "path of a stamp")
		}
		s = d.stamp(path)
	}
	if x.cached != nil && flags&asCached == 0 {
		x.cached(e.Path) // the file was read all the same: the answer has had its use
	}
	return e, s
}

// content reads what a file holds, or takes it from what was answered.
func (x *entryDecoder) content(d *decoder, e *imaging.Entry, flags byte) (k known) {
	switch {
	case flags&asCached != 0:
		if flags&(runsBefore|hasExtents) != 0 {
			d.fail("an entry with its content twice")
			return k
		}
		if x.cached == nil || d.err != nil {
			d.fail("an entry as cached, and nothing is cached")
			return k
		}
		var ok bool
		if k, ok = x.cached(e.Path); !ok {
			d.fail("%q is as cached, but was not said to be", e.Path)
			return k
		}
		c := k.content
		e.Chunks, e.Extents = c.Chunks, c.Extents
		e.Flags, e.Project, e.Xattrs = c.Flags, c.Project, c.Xattrs
	case flags&runsBefore != 0:
		e.Chunks, e.Extents = x.pending.chunks, x.pending.extents
		x.pending = runs{}
	default:
		e.Chunks = d.chunks(maxRun, "chunks")
		if flags&hasExtents != 0 {
			e.Extents = d.extents(maxRun, 0, "extents")
		}
	}
	if n := len(e.Extents); n > 0 && d.err == nil {
		if last := e.Extents[n-1]; last.Offset+last.Length > e.Size {
			d.fail("%q has data beyond its end", e.Path)
		}
	}
	return k
}

func (d *decoder) xattrs() []imaging.Xattr {
	n := d.count(maxXattrs, 2, "extended attributes")
	xattrs := make([]imaging.Xattr, 0, min(n, 64))
	for range n {
		x := imaging.Xattr{Name: d.string(maxXattrName, "attribute's name")}
		x.Value = append([]byte(nil), d.bytes(maxXattrValue, "attribute's value")...)
		if d.err != nil {
			return nil
		}
		xattrs = append(xattrs, x)
	}
	return xattrs
}
