package wire

import (
	"encoding/binary"
	"math"
	"strings"

	"doppel/imaging"
	"doppel/imaging/store"
)

// The encoding: unsigned numbers as varints, signed ones zigzag, byte strings
// with their length in front, digests as they are.

func putUint(b []byte, v uint64) []byte { return binary.AppendUvarint(b, v) }
func putInt(b []byte, v int64) []byte   { return binary.AppendVarint(b, v) }

func putString(b []byte, s string) []byte {
	return append(putUint(b, uint64(len(s))), s...)
}

func putTime(b []byte, t imaging.Time) []byte {
	return putUint(putInt(b, t.Sec), uint64(t.Nsec))
}

// putPath writes a path as what differs from the path before it, which saves
// most of the bytes in a sorted list.
func putPath(b []byte, prev, path string) []byte {
	n := 0
	for n < len(prev) && n < len(path) && prev[n] == path[n] {
		n++
	}
	return putString(putUint(b, uint64(n)), path[n:])
}

func putChunks(b []byte, chunks []store.Chunk) []byte {
	b = putUint(b, uint64(len(chunks)))
	for _, c := range chunks {
		b = putUint(append(b, c.ID[:]...), uint64(c.Size))
	}
	return b
}

// putExtents writes extents as the gap since the last one and the length.
func putExtents(b []byte, extents []imaging.Extent, end int64) []byte {
	b = putUint(b, uint64(len(extents)))
	for _, e := range extents {
		b = putUint(putUint(b, uint64(e.Offset-end)), uint64(e.Length))
		end = e.Offset + e.Length
	}
	return b
}

// decoder takes a payload apart. The first fault sticks: after it everything
// reads as zero, and finish gives the error.
type decoder struct {
	b   []byte
	err error
}

func (d *decoder) fail(format string, args ...any) {
	if d.err == nil {
		d.err = violation(format, args...)
	}
	d.b = nil
}

// finish gives the error, if any: also that bytes are left over.
func (d *decoder) finish() error {
	if d.err == nil && len(d.b) > 0 {
		d.fail("%d bytes follow the end of a message", len(d.b))
	}
	return d.err
}

func (d *decoder) uint(max uint64, what string) uint64 {
	v, n := binary.Uvarint(d.b)
	switch {
	case d.err != nil:
		return 0
	case n <= 0:
		d.fail("a message ends in the middle of %s", what)
		return 0
	case v > max:
		d.fail("%s is %d, the limit is %d", what, v, max)
		return 0
	}
	d.b = d.b[n:]
	return v
}

func (d *decoder) int(what string) int64 {
	v, n := binary.Varint(d.b)
	if d.err != nil {
		return 0
	}
	if n <= 0 {
		d.fail("a message ends in the middle of %s", what)
		return 0
	}
	d.b = d.b[n:]
	return v
}

// count reads how many things follow, each at least size bytes long: a count
// that the rest of the payload cannot hold is refused before anything is
// allocated for it.
func (d *decoder) count(max, size int, what string) int {
	n := int(d.uint(uint64(max), what))
	if n*size > len(d.b) {
		d.fail("%s is %d, but only %d bytes follow", what, n, len(d.b))
		return 0
	}
	return n
}

func (d *decoder) byte(what string) byte {
	if d.err == nil && len(d.b) == 0 {
		d.fail("a message ends in the middle of %s", what)
	}
	if d.err != nil {
		return 0
	}
	v := d.b[0]
	d.b = d.b[1:]
	return v
}

func (d *decoder) bytes(max int, what string) []byte {
	n := d.count(max, 1, what)
	v := d.b[:n:n]
	d.b = d.b[n:]
	return v
}

func (d *decoder) string(max int, what string) string { return string(d.bytes(max, what)) }

func (d *decoder) id(what string) (id store.ID) {
	if len(d.b) < len(id) {
		d.fail("a message ends in the middle of %s", what)
		return id
	}
	copy(id[:], d.b)
	d.b = d.b[len(id):]
	return id
}

func (d *decoder) time(what string) imaging.Time {
	return imaging.Time{Sec: d.int(what), Nsec: uint32(d.uint(999_999_999, what))}
}

func (d *decoder) length(what string) int64 { return int64(d.uint(math.MaxInt64, what)) }

// path reads what putPath wrote and refuses what is no path of a tree.
func (d *decoder) path(prev, what string) string {
	n := int(d.uint(maxPath, what))
	if n > len(prev) {
		d.fail("%s shares %d bytes with a path of %d", what, n, len(prev))
		return ""
	}
	rest := d.bytes(maxPath, what)
	if d.err != nil {
		return ""
	}
	if n+len(rest) > maxPath {
		d.fail("%s is %d bytes long, the limit is %d", what, n+len(rest), maxPath)
		return ""
	}
	path := prev[:n] + string(rest)
	if !validPath(path) {
		d.fail("%s %q is not a path below a root", what, path)
		return ""
	}
	return path
}

// validPath tells whether the path is one that an entry may have.
func validPath(path string) bool {
	if path == "." {
		return true
	}
	if strings.IndexByte(path, 0) >= 0 {
		return false
	}
	for element := range strings.SplitSeq(path, "/") {
		if element == "" || element == "." || element == ".." {
			return false
		}
	}
	return true
}

func (d *decoder) chunks(max int, what string) []store.Chunk {
	n := d.count(max, len(store.ID{})+1, what)
	if n == 0 {
		return nil
	}
	chunks := make([]store.Chunk, n)
	for i := range chunks {
		chunks[i].ID = d.id(what)
		chunks[i].Size = uint32(d.uint(store.MaxBlock, what))
		if chunks[i].Size == 0 {
			d.fail("%s: a chunk of no bytes", what)
			return nil
		}
	}
	return chunks
}

// extents reads what putExtents wrote, in order and without overlaps. No
// extents at all (a file that is one hole) differ from nil (a file without
// holes).
func (d *decoder) extents(max int, end int64, what string) []imaging.Extent {
	n := d.count(max, 2, what)
	extents := make([]imaging.Extent, n)
	for i := range extents {
		gap, length := d.length(what), d.length(what)
		if gap > math.MaxInt64-end || length > math.MaxInt64-end-gap {
			d.fail("%s reach beyond the largest file", what)
			return nil
		}
		if length == 0 {
			d.fail("%s: an extent of no bytes", what)
			return nil
		}
		extents[i] = imaging.Extent{Offset: end + gap, Length: length}
		end += gap + length
	}
	return extents
}

func putBits(b []byte, bits []bool) []byte {
	b = putUint(b, uint64(len(bits)))
	at := len(b)
	b = append(b, make([]byte, (len(bits)+7)/8)...)
	for i, set := range bits {
		if set {
			b[at+i/8] |= 1 << (i % 8)
		}
	}
	return b
}

func (d *decoder) bits(max int, what string) []bool {
	n := int(d.uint(uint64(max), what))
	size := (n + 7) / 8
	if size > len(d.b) {
		d.fail("%s is %d, but only %d bytes follow", what, n, len(d.b))
		return nil
	}
	bits := make([]bool, n)
	for i := range bits {
		bits[i] = d.b[i/8]&(1<<(i%8)) != 0
	}
	if n%8 != 0 && d.b[size-1]>>(n%8) != 0 {
		d.fail("%s: bits are set after the last one", what)
		return nil
	}
	d.b = d.b[size:]
	return bits
}
