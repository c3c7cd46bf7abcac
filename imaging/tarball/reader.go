package tarball

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"

	"doppel/imaging"
)

// Member is one member of an archive with all that its headers say.
type Member struct {
	Offset  int64 // of its first header in the archive, bytes
	Name    string
	Link    string // HardLink: the name of another member; Symlink: where it points
	Kind    imaging.Kind
	Mode    uint32
	UID     uint32
	GID     uint32
	MTime   imaging.Time
	Size    int64 // of the file with its holes
	Extents []imaging.Extent
	Major   uint32
	Minor   uint32
	Flags   uint32 // inode flags, as an entry has them
	Project uint32
	Xattrs  []imaging.Xattr // sorted by name

	acl          [2]string // access, default; in words
	unknown      []string  // names of flags that Linux does not have
	kind         byte
	stored       int64 // bytes of data in the archive
	uid, gid     int64
	major, minor int64
	sparse       *sparseMap
}

// MemberError says what is wrong with a member of an archive.
type MemberError struct {
	Name   string // empty: its header could not be read
	Offset int64  // of its header, in bytes of the archive as it is without compression
	Err    error
	Remedy string // empty: the usual one
}

func (e *MemberError) Error() string {
	if e.Name == "" {
		return fmt.Sprintf("at byte %d of the archive: %v", e.Offset, e.Err)
	}
	return fmt.Sprintf("member %.300q, at byte %d of the archive: %v", e.Name, e.Offset, e.Err)
}

func (e *MemberError) Unwrap() error { return e.Err }

// Hint tells what helps.
func (e *MemberError) Hint() string {
	if e.Remedy != "" {
		return e.Remedy
	}
	return "nothing was imported; where the archive is whole, unpack it with the program that made it and pack it again: tar --xattrs --acls --sparse --format=pax -cf F.tar -C DIR ."
}

// Reader reads an archive that is not compressed: v7, ustar, pax, GNU tar's
// and star's. It takes memory for one member's headers at most.
type Reader struct {
	ctx    context.Context
	r      *bufio.Reader
	at     int64 // of the archive, where r stands
	left   int64 // data of the member still to be read
	pad    int64 // and what fills its last block
	global map[string]string
	any    bool // there was a header
}

// NewReader reads the archive r. The end of ctx ends the reading.
func NewReader(ctx context.Context, r io.Reader) *Reader {
	return &Reader{ctx: ctx, r: bufio.NewReaderSize(r, 1<<20)}
}

// block reads one block of 512 bytes that must be there.
func (r *Reader) block(b []byte) error {
	n, err := io.ReadFull(r.r, b)
	r.at += int64(n)
	if err == io.EOF || err == io.ErrUnexpectedEOF {
		return errCut
	}
	return err
}

// Next goes to the next member; io.EOF says that there is none. What was not
// read of the last one is skipped.
func (r *Reader) Next() (*Member, error) {
	if err := r.skip(); err != nil {
		return nil, r.fault("", r.at, err)
	}
	m := &Member{Offset: r.at}
	err := r.next(m)
	if err == nil || err == io.EOF {
		return m, err
	}
	return nil, r.fault(m.Name, m.Offset, err)
}

// fault says where in the archive something went wrong, unless the error knows
// better.
func (r *Reader) fault(name string, offset int64, err error) error {
	var known *MemberError
	var packed *CompressionError
	var disk *fs.PathError
	switch {
	case errors.As(err, &known) || errors.As(err, &packed) || r.ctx.Err() != nil:
		return err
	case errors.As(err, &disk):
		return fmt.Errorf("read the archive at byte %d: %w", offset, err)
	}
	return &MemberError{Name: name, Offset: offset, Err: err}
}

func (r *Reader) skip() error {
	n, err := io.Copy(io.Discard, io.LimitReader(r.r, r.left+r.pad))
	r.at += n
	if err == nil && n < r.left+r.pad {
		err = errCut
	}
	r.left, r.pad = 0, 0
	return err
}

// next reads headers until there is one of a file.
func (r *Reader) next(m *Member) error {
	p, err := r.fromGlobal()
	if err != nil {
		return err
	}
	var longName, longLink string
	for {
		if r.ctx.Err() != nil {
			return context.Cause(r.ctx)
		}
		at := r.at
		var h header
		if err := r.header(&h); err != nil {
			return err
		}
		size, err := parseNumber(h.size())
		if err != nil {
			return fmt.Errorf("its size %w: %q", err, h.size())
		}
		switch h.kind() {
		case typePAX, typeSolaris:
			if p, err = r.fromGlobal(); err == nil {
				err = r.extended(size, p.add)
			}
		case typeGlobal:
			if err = r.extended(size, r.addGlobal); err == nil {
				p, err = r.fromGlobal()
			}
		case typeLongName:
			longName, err = r.long(size)
		case typeLongLink:
			longLink, err = r.long(size)
		case typeLabel: // a name of the whole archive
		default:
			return r.member(&h, m, p, longName, longLink)
		}
		if err != nil {
			return r.fault(h.name(), at, err)
		}
	}
}

// fromGlobal is what global headers say of every member.
func (r *Reader) fromGlobal() (*pax, error) {
	p := &pax{}
	for key, value := range r.global {
		if err := p.add(key, value); err != nil {
			return nil, err
		}
	}
	return p, nil
}

// header reads a header; io.EOF says that the archive ends in order.
func (r *Reader) header(h *header) error {
	if _, err := r.r.Peek(1); err == io.EOF {
		if !r.any {
			return &MemberError{Offset: r.at, Err: errors.New("it is empty"), Remedy: "give the archive itself: a program that was to write it may have failed"}
		}
		return &MemberError{Offset: r.at, Err: errors.New("it ends without the two blocks of zeros that end an archive: it was cut off, or its writer never finished"),
			Remedy: "make or transfer it again; if you know that it is whole, add its end: head -c 1024 /dev/zero >>F.tar"}
	}
	if err := r.block(h[:]); err != nil {
		return err
	}
	if h.isZero() {
		return io.EOF
	}
	if !h.intact() {
		if !r.any {
			return &MemberError{Offset: 0, Err: errors.New("it is no tar archive"), Remedy: "doppel image import takes tar, plain or compressed with gzip, zstd, xz or bzip2"}
		}
		return errors.New("there is no header of a member where one should be: the archive is damaged")
	}
	r.any = true
	return nil
}

// extended reads an extended header.
func (r *Reader) extended(size int64, add func(key, value string) error) error {
	b, err := r.meta(size, maxPAX)
	if err != nil {
		return err
	}
	return records(b, add)
}

// addGlobal takes a record that is about all members to come.
func (r *Reader) addGlobal(key, value string) error {
	switch {
	case key == "path" || key == "linkpath" || key == "size" || strings.HasPrefix(key, "GNU.sparse."):
		return errors.New("the same for all members, which cannot be meant")
	case value == "":
		delete(r.global, key)
		return nil
	case len(r.global) >= maxGlobal || len(key)+len(value) > maxGlobal:
		return errors.New("more than is taken for all members")
	}
	if r.global == nil {
		r.global = make(map[string]string)
	}
	r.global[key] = value
	return nil
}

// long reads a name that did not fit into a header of GNU tar's.
func (r *Reader) long(size int64) (string, error) {
	b, err := r.meta(size, maxName+1)
	return cstring(b), err
}

// meta reads data that is about a member.
func (r *Reader) meta(size, limit int64) ([]byte, error) {
	if size < 0 || size > limit {
		return nil, fmt.Errorf("an extended header of %d bytes; more than %d are not taken", size, limit)
	}
	// As it comes: a header may claim more than there is.
	var b bytes.Buffer
	n, err := io.Copy(&b, io.LimitReader(r.r, size))
	r.at += n
	if err == nil && n < size {
		err = errCut
	}
	if err != nil {
		return nil, err
	}
	r.pad = -size & (blockSize - 1)
	return b.Bytes(), r.skip()
}

// member brings together what all headers of a member say.
func (r *Reader) member(h *header, m *Member, p *pax, longName, longLink string) error {
	m.Name = h.name() // for what may be said about it
	if err := h.plain(m); err != nil {
		return err
	}
	if longName != "" {
		m.Name = longName
	}
	if longLink != "" {
		m.Link = longLink
	}
	if err := p.apply(m); err != nil {
		return err
	}
	if m.stored < 0 {
		return fmt.Errorf("its size is %d", m.stored)
	}
	if err := r.findSparse(h, p, m); err != nil {
		return err
	}
	if err := m.settle(); err != nil {
		return err
	}
	if m.Kind == imaging.Regular {
		m.Size = m.stored
		if m.sparse != nil {
			var err error
			if m.Extents, err = m.sparse.extents(m.stored); err != nil {
				return err
			}
			m.Size = m.sparse.size
		}
	}
	m.sparse = nil
	r.left, r.pad = m.stored, -m.stored&(blockSize-1)
	if m.kind == typeDump {
		return r.skip() // what the directory held is what its members are
	}
	return nil
}

// Read reads the data of the member: what lies in its Extents, one after the
// other.
func (r *Reader) Read(b []byte) (int, error) {
	if r.ctx.Err() != nil {
		return 0, context.Cause(r.ctx)
	}
	if r.left == 0 {
		return 0, io.EOF
	}
	n, err := r.r.Read(b[:min(int64(len(b)), r.left)])
	r.at += int64(n)
	r.left -= int64(n)
	if err == io.EOF {
		err = errCut
	}
	return n, err
}

// Rest reads to the end of what comes behind the archive's end, which a
// decompressor and a pipe are owed, and tells whether it is more than zeros.
func (r *Reader) Rest() (more bool, err error) {
	buf := make([]byte, 64<<10)
	for {
		if r.ctx.Err() != nil {
			return more, context.Cause(r.ctx)
		}
		n, err := r.r.Read(buf)
		more = more || len(bytes.Trim(buf[:n], "\x00")) > 0
		if err == io.EOF {
			return more, nil
		}
		if err != nil {
			return more, fmt.Errorf("read to the end of the archive: %w", err)
		}
	}
}
