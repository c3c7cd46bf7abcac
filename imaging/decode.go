package imaging

import (
	"encoding/binary"
	"fmt"
	"strings"
)

// Bounds on what a manifest may say of one entry, above anything that Linux
// can have: NAME_MAX is 255 bytes, but a vfat name of 255 UTF-16 units can be
// three times that in UTF-8; XATTR_NAME_MAX is 255, XATTR_SIZE_MAX 64 KiB; a
// path may be deeper than PATH_MAX, which limits one system call's argument
// and not a tree.
const (
	maxElement    = 1 << 10
	maxPath       = 1 << 20
	maxPaths      = 1 << 32 // all together
	maxTarget     = 1 << 16
	maxXattrName  = 1 << 8
	maxXattrValue = 1 << 16
	maxAbout      = 16 << 20
	maxSize       = 1<<63 - 1
	minEntry      = 6 // bytes that the shortest entry takes
)

func appendUint(b []byte, v uint64) []byte { return binary.AppendUvarint(b, v) }
func appendInt(b []byte, v int64) []byte   { return binary.AppendVarint(b, v) }

func appendString(b []byte, s string) []byte { return append(appendUint(b, uint64(len(s))), s...) }
func appendBytes(b, s []byte) []byte         { return append(appendUint(b, uint64(len(s))), s...) }

// commonPrefix tells how many bytes a and b begin with alike.
func commonPrefix(a, b string) int {
	n := min(len(a), len(b))
	for i := range n {
		if a[i] != b[i] {
			return i
		}
	}
	return n
}

// decoder takes bytes apart. The first fault sticks: everything after it reads
// as zero, and finish gives it.
type decoder struct {
	b     []byte
	err   error
	paths int // bytes of all paths so far
}

func (d *decoder) fail(format string, args ...any) { d.check(fmt.Errorf(format, args...)) }

func (d *decoder) check(err error) {
	if d.err == nil && err != nil {
		d.err = err
		d.b = nil
	}
}

// finish gives the first fault; bytes that are left over are one.
func (d *decoder) finish(what string) error {
	if len(d.b) > 0 {
		d.fail("%d bytes are left over", len(d.b))
	}
	if d.err != nil {
		return fmt.Errorf("%s: %w", what, d.err)
	}
	return nil
}

func (d *decoder) take(n int, what string) []byte {
	if n > len(d.b) {
		d.fail("it ends within %s", what)
		return nil
	}
	t := d.b[:n:n]
	d.b = d.b[n:]
	return t
}

func (d *decoder) byte() byte {
	if b := d.take(1, "an entry"); d.err == nil {
		return b[0]
	}
	return 0
}

func (d *decoder) magic(want string) {
	if got := d.take(len(want), "its first line"); d.err == nil && string(got) != want {
		d.fail("it does not begin with %q: written by another version of doppel, or no manifest", want)
	}
}

// uint reads a number of at most limit, in its shortest form.
func (d *decoder) uint(limit uint64, what string) uint64 {
	if d.err != nil {
		return 0
	}
	v, n := binary.Uvarint(d.b)
	switch {
	case n == 0:
		d.fail("it ends within %s", what)
		return 0
	case n < 0 || n > 1 && d.b[n-1] == 0:
		d.fail("%s is not a number in its shortest form", what)
		return 0
	case v > limit:
		d.fail("%s is %d, which is more than %d", what, v, limit)
		return 0
	}
	d.b = d.b[n:]
	return v
}

func (d *decoder) uint32(what string) uint32 { return uint32(d.uint(1<<32-1, what)) }

func (d *decoder) int(what string) int64 {
	u := d.uint(1<<64-1, what)
	return int64(u>>1) ^ -int64(u&1)
}

// count reads how many things of at least size bytes each follow; there cannot
// be more than the bytes that are left have room for.
func (d *decoder) count(size int, what string) int {
	return int(d.uint(uint64(len(d.b)/size)+1, "the count of "+what))
}

func (d *decoder) bytes(limit uint64, what string) []byte {
	return d.take(int(d.uint(limit, "the length of "+what)), what)
}

// path reads a path that begins like the last one.
func (d *decoder) path(last string, names *slab) string {
	shared := int(d.uint(uint64(len(last)), "the length of a path's beginning"))
	rest := d.bytes(maxPath, "a path")
	if d.err != nil {
		return ""
	}
	if shared < len(last) && len(rest) > 0 && last[shared] == rest[0] {
		d.fail("the path after %q is not as short as it could be", last)
		return ""
	}
	d.paths += shared + len(rest)
	if shared+len(rest) > maxPath || d.paths > maxPaths {
		d.fail("the paths are too long")
		return ""
	}
	return names.join(last[:shared], rest)
}

// slab makes many small strings out of few allocations; a nil one makes each on
// its own.
type slab struct{ b *strings.Builder }

const slabSize = 64 << 10

func (s *slab) join(a string, b []byte) string {
	if s == nil {
		return a + string(b)
	}
	n := len(a) + len(b)
	if s.b == nil || s.b.Cap()-s.b.Len() < n {
		s.b = new(strings.Builder)
		s.b.Grow(max(n, slabSize))
	}
	at := s.b.Len()
	s.b.WriteString(a)
	s.b.Write(b)
	return s.b.String()[at:]
}
