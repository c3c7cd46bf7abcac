package imaging

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/google/renameio/v2"
)

// A capture cache says of every file of the last capture by what it was known
// and which chunks it came to. It is one file, records in canonical order, so
// that it is read and written alongside a walk:
//
//	"doppel capture cache 2\n", the digest of the rules about secrets
//	records: their length, then
//	  length of the path's beginning that is the last path's too, the rest,
//	  inode, modification and change time, size, class, inode flags, project,
//	  count of extended attributes, names and values; content
//	a zero in place of a length, SHA-256 of all before it
//
// The device is not part of it: its number changes from boot to boot. A cache
// that is not whole is as good as none.
const cacheMagic = "doppel capture cache 2\n"

// maxRecord bounds one record: a file of some 2 TiB in chunks of the least size
// that is probable.
const maxRecord = 1 << 30

// record is what a cache says of one file. Its entry has Path, MTime, Size,
// Class, Flags, Project, Xattrs, Extents and Chunks.
type record struct {
	entry Entry
	ino   uint64
	ctime Time
}

// knows tells whether the stamp is of the file that the record is about, in
// the state it had then.
func (r *record) knows(s *Stamp) bool {
	return r.ino == s.Ino && r.entry.Size == s.Size && r.entry.MTime == s.MTime && r.ctime == s.CTime
}

func (r *record) append(b []byte, last string) []byte {
	shared := commonPrefix(last, r.entry.Path)
	b = appendString(appendUint(b, uint64(shared)), r.entry.Path[shared:])
	b = appendUint(b, r.ino)
	for _, t := range []Time{r.entry.MTime, r.ctime} {
		b = appendUint(appendInt(b, t.Sec), uint64(t.Nsec))
	}
	b = append(appendUint(b, uint64(r.entry.Size)), byte(r.entry.Class))
	b = appendUint(appendUint(b, uint64(r.entry.Flags)), uint64(r.entry.Project))
	b = appendXattrs(b, r.entry.Xattrs)
	return appendContent(b, &r.entry)
}

func decodeRecord(b []byte, last string) (*record, error) {
	d := decoder{b: b}
	r := &record{}
	r.entry.Kind = Regular
	r.entry.Path = d.path(last, nil)
	r.ino = d.uint(1<<64-1, "inode")
	for _, t := range []*Time{&r.entry.MTime, &r.ctime} {
		t.Sec = d.int("time")
		t.Nsec = uint32(d.uint(999_999_999, "nanoseconds"))
	}
	r.entry.Size = int64(d.uint(maxSize, "size"))
	r.entry.Class = Class(d.byte())
	r.entry.Flags, r.entry.Project = d.uint32("inode flags"), d.uint32("project")
	decodeXattrs(&d, &r.entry)
	decodeContent(&d, &r.entry)
	if err := d.finish("record"); err != nil {
		return nil, err
	}
	if err := checkPath(r.entry.Path); err != nil {
		return nil, err
	}
	return r, checkFields(&r.entry)
}

// cacheReader reads a cache in its order.
type cacheReader struct {
	f    *os.File
	r    *bufio.Reader
	last *record // the one that was read last; nil at the end
	size int64   // of all records
	buf  []byte
}

var errCacheDamaged = errors.New("the capture cache is damaged")

// openCache opens a cache after having read it once to see that it is whole.
// One that is not there is one that is empty. An error comes with an empty
// cache too: it is there to be remarked upon.
func openCache(path string) (*cacheReader, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return &cacheReader{}, nil
	}
	if err != nil {
		return &cacheReader{}, fmt.Errorf("open capture cache: %w", err)
	}
	c := &cacheReader{f: f}
	ok, err := c.begin()
	if err == nil && ok {
		return c, nil
	}
	c.close()
	return &cacheReader{}, err
}

// begin checks the cache's digest and reads its beginning; not ok: it was
// written under other rules about secrets.
func (c *cacheReader) begin() (ok bool, err error) {
	info, err := c.f.Stat()
	if err != nil {
		return false, fmt.Errorf("open capture cache: %w", err)
	}
	rules := rulesDigest()
	start := int64(len(cacheMagic) + len(rules))
	body := info.Size() - sha256.Size
	if body < start+1 {
		return false, errCacheDamaged
	}
	sum := sha256.New()
	if _, err := io.Copy(sum, io.NewSectionReader(c.f, 0, body)); err != nil {
		return false, fmt.Errorf("read capture cache: %w", err)
	}
	var want [sha256.Size]byte
	if _, err := c.f.ReadAt(want[:], body); err != nil {
		return false, fmt.Errorf("read capture cache: %w", err)
	}
	if !bytes.Equal(sum.Sum(nil), want[:]) {
		return false, errCacheDamaged
	}
	head := make([]byte, start)
	if _, err := c.f.ReadAt(head, 0); err != nil {
		return false, fmt.Errorf("read capture cache: %w", err)
	}
	if string(head[:len(cacheMagic)]) != cacheMagic || !bytes.Equal(head[len(cacheMagic):], rules[:]) {
		return false, nil
	}
	c.r = bufio.NewReaderSize(io.NewSectionReader(c.f, start, body-start), 1<<20)
	c.size = body - start
	return true, c.next()
}

// next reads the next record into last.
func (c *cacheReader) next() error {
	before := ""
	if c.last != nil {
		before = c.last.entry.Path
	}
	c.last = nil
	n, err := binary.ReadUvarint(c.r)
	if err != nil || n > maxRecord || n > uint64(c.size) {
		return errCacheDamaged
	}
	if n == 0 {
		return nil
	}
	if uint64(cap(c.buf)) < n {
		c.buf = make([]byte, n)
	}
	c.buf = c.buf[:n]
	if _, err := io.ReadFull(c.r, c.buf); err != nil {
		return errCacheDamaged
	}
	r, err := decodeRecord(c.buf, before)
	if err != nil || before != "" && ComparePath(before, r.entry.Path) >= 0 {
		return errCacheDamaged
	}
	c.last = r
	return nil
}

// lookup finds the record of path. Paths must be asked for in canonical order.
func (c *cacheReader) lookup(path string) (*record, error) {
	for c.last != nil && ComparePath(c.last.entry.Path, path) < 0 {
		if err := c.next(); err != nil {
			return nil, err
		}
	}
	if c.last != nil && c.last.entry.Path == path {
		return c.last, nil
	}
	return nil, nil
}

func (c *cacheReader) close() {
	if c.f != nil {
		c.f.Close() // it was only read from
	}
}

// cacheWriter writes the cache of the next capture.
type cacheWriter struct {
	f    *renameio.PendingFile
	w    *bufio.Writer
	sum  hash.Hash
	last string
	buf  []byte
}

func createCache(path string) (*cacheWriter, error) {
	if err := makeDirs(filepath.Dir(path)); err != nil {
		return nil, fmt.Errorf("write capture cache: %w", err)
	}
	f, err := renameio.NewPendingFile(path, renameio.WithTempDir(filepath.Dir(path)), renameio.WithStaticPermissions(0o600))
	if err != nil {
		return nil, fmt.Errorf("write capture cache: %w", err)
	}
	c := &cacheWriter{f: f, sum: sha256.New()}
	c.w = bufio.NewWriterSize(io.MultiWriter(f, c.sum), 1<<20)
	rules := rulesDigest()
	c.w.WriteString(cacheMagic) // a bufio.Writer keeps its error until Flush
	c.w.Write(rules[:])
	return c, nil
}

func (c *cacheWriter) add(r *record) {
	c.buf = r.append(c.buf[:0], c.last)
	c.w.Write(appendUint(nil, uint64(len(c.buf))))
	c.w.Write(c.buf)
	c.last = r.entry.Path
}

// commit puts the cache in place of the last one.
func (c *cacheWriter) commit() error {
	c.w.WriteByte(0)
	err := c.w.Flush()
	if err == nil {
		_, err = c.f.Write(c.sum.Sum(nil))
	}
	if err == nil {
		err = c.f.CloseAtomicallyReplace()
	}
	if err != nil {
		return fmt.Errorf("write capture cache: %w", errors.Join(err, c.f.Cleanup()))
	}
	return nil
}

func (c *cacheWriter) discard() { c.f.Cleanup() }
