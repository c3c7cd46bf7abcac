package tarball

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"

	"doppel/imaging"
)

// blockSize is what everything in an archive is padded to.
const blockSize = 512

// The types of members (POSIX pax, "ustar Interchange Format"; capital letters
// are vendors': GNU tar's src/tar.h, Solaris' X).
const (
	typeRegular    = '0'
	typeOld        = 0 // v7's regular files
	typeLink       = '1'
	typeSymlink    = '2'
	typeChar       = '3'
	typeBlock      = '4'
	typeDirectory  = '5'
	typeFIFO       = '6'
	typeContiguous = '7'
	typePAX        = 'x'
	typeGlobal     = 'g'
	typeSolaris    = 'X' // extended header of Solaris before there was pax
	typeLongName   = 'L'
	typeLongLink   = 'K'
	typeSparse     = 'S'
	typeDump       = 'D' // a directory of an incremental dump, with the list of what it held
	typeLabel      = 'V'
)

// header is one block of 512 bytes that says what follows it.
type header [blockSize]byte

// dialect is who wrote a header: it decides what lies behind the magic.
type dialect uint8

const (
	dialectV7    dialect = iota
	dialectUSTAR         // and pax
	dialectGNU
	dialectStar
)

func (h *header) field(off, n int) []byte { return h[off : off+n : off+n] }

func (h *header) mode() []byte     { return h.field(100, 8) }
func (h *header) uid() []byte      { return h.field(108, 8) }
func (h *header) gid() []byte      { return h.field(116, 8) }
func (h *header) size() []byte     { return h.field(124, 12) }
func (h *header) mtime() []byte    { return h.field(136, 12) }
func (h *header) checksum() []byte { return h.field(148, 8) }
func (h *header) kind() byte       { return h[156] }
func (h *header) link() string     { return cstring(h.field(157, 100)) }
func (h *header) major() []byte    { return h.field(329, 8) }
func (h *header) minor() []byte    { return h.field(337, 8) }

// dialect tells who wrote the header. GNU's magic and version are one word,
// "ustar  "; star has a word of its own at the end of the block.
func (h *header) dialect() dialect {
	switch magic := string(h.field(257, 8)); {
	case magic == "ustar  \x00":
		return dialectGNU
	case strings.HasPrefix(magic, "ustar\x00") && string(h.field(508, 4)) == "tar\x00":
		return dialectStar
	case strings.HasPrefix(magic, "ustar\x00"):
		return dialectUSTAR
	}
	return dialectV7
}

// name is the member's name, where no extended header has a longer one.
func (h *header) name() string {
	name := cstring(h.field(0, 100))
	prefix := ""
	switch h.dialect() {
	case dialectUSTAR:
		prefix = cstring(h.field(345, 155))
	case dialectStar:
		prefix = cstring(h.field(345, 131))
	}
	if prefix != "" {
		return prefix + "/" + name
	}
	return name
}

// isZero tells whether the block is one of those that end an archive.
func (h *header) isZero() bool { return *h == header{} }

// sums are the two checksums that a header may have: of unsigned bytes as all
// write it today, and of signed ones as some old tars did.
func (h *header) sums() (unsigned, signed int64) {
	for i, b := range h {
		if i >= 148 && i < 156 {
			b = ' ' // the checksum counts as blanks
		}
		unsigned += int64(b)
		signed += int64(int8(b))
	}
	return unsigned, signed
}

// intact tells whether the header's checksum is right.
func (h *header) intact() bool {
	want, err := parseNumber(h.checksum())
	if err != nil {
		return false
	}
	unsigned, signed := h.sums()
	return want == unsigned || want == signed
}

// cstring is what comes before the first NUL.
func cstring(b []byte) string {
	if i := bytes.IndexByte(b, 0); i >= 0 {
		b = b[:i]
	}
	return string(b)
}

var errNumber = errors.New("is no number")

// parseNumber reads a number of a header: octal digits between blanks or NULs,
// or with the highest bit set a big-endian two's complement (GNU, star).
func parseNumber(b []byte) (int64, error) {
	if b[0]&0x80 != 0 {
		return parseBinary(b)
	}
	text := strings.Trim(string(b), " \x00")
	if i := strings.IndexByte(text, 0); i >= 0 {
		text = text[:i]
	}
	if text == "" {
		return 0, nil
	}
	n, err := strconv.ParseUint(text, 8, 63)
	if err != nil {
		return 0, errNumber
	}
	return int64(n), nil
}

func parseBinary(b []byte) (int64, error) {
	var invert byte
	if b[0]&0x40 != 0 {
		invert = 0xff
	}
	var n uint64
	for i, c := range b {
		c ^= invert
		if i == 0 {
			c &= 0x7f
		}
		if n>>56 > 0 {
			return 0, errNumber
		}
		n = n<<8 | uint64(c)
	}
	if n > math.MaxInt64 {
		return 0, errNumber
	}
	if invert == 0xff {
		return ^int64(n), nil
	}
	return int64(n), nil
}

// Bounds on what a member may say of itself. Linux has device numbers of 12
// and 20 bits (MKDEV), and the owner 2^32-1 means "leave it" to chown(2).
const (
	maxOwner = math.MaxUint32 - 1
	maxMajor = 1<<12 - 1
	maxMinor = 1<<20 - 1
)

// plain puts what the header itself says into a member.
func (h *header) plain(m *Member) error {
	var mode, uid, gid, major, minor int64
	for _, f := range []struct {
		what string
		b    []byte
		to   *int64
	}{
		{"mode", h.mode(), &mode}, {"owner", h.uid(), &uid}, {"group", h.gid(), &gid},
		{"size", h.size(), &m.stored}, {"modification time", h.mtime(), &m.MTime.Sec},
	} {
		n, err := parseNumber(f.b)
		if err != nil {
			return fmt.Errorf("its %s %w: %q", f.what, err, f.b)
		}
		*f.to = n
	}
	m.kind = h.kind()
	m.Name, m.Link = h.name(), h.link()
	m.Mode = uint32(mode & 0o7777) // some write the kind into the mode, as stat(2) has it
	if m.kind == typeChar || m.kind == typeBlock {
		var err error
		if major, err = parseNumber(h.major()); err != nil {
			return fmt.Errorf("its major number %w: %q", err, h.major())
		}
		if minor, err = parseNumber(h.minor()); err != nil {
			return fmt.Errorf("its minor number %w: %q", err, h.minor())
		}
	}
	m.uid, m.gid, m.major, m.minor = uid, gid, major, minor
	return nil
}

// settle checks what header and extended headers together came to.
func (m *Member) settle() error {
	switch {
	case m.uid < 0 || m.uid > maxOwner:
		return fmt.Errorf("its owner is %d, which nobody can be", m.uid)
	case m.gid < 0 || m.gid > maxOwner:
		return fmt.Errorf("its group is %d, which nobody can be", m.gid)
	case m.stored < 0:
		return fmt.Errorf("its size is %d", m.stored)
	case m.major < 0 || m.major > maxMajor || m.minor < 0 || m.minor > maxMinor:
		return fmt.Errorf("its device number is %d:%d, which Linux does not have", m.major, m.minor)
	}
	m.UID, m.GID, m.Major, m.Minor = uint32(m.uid), uint32(m.gid), uint32(m.major), uint32(m.minor)
	directory := strings.HasSuffix(m.Name, "/") // how v7, which had no such type, marked directories
	switch m.kind {
	case typeRegular, typeOld, typeContiguous, typeSparse:
		m.Kind = imaging.Regular
		if directory && m.sparse == nil {
			m.Kind = imaging.Directory
		}
	case typeLink:
		m.Kind = imaging.HardLink
	case typeSymlink:
		m.Kind = imaging.Symlink
	case typeChar:
		m.Kind = imaging.CharDevice
	case typeBlock:
		m.Kind = imaging.BlockDevice
	case typeDirectory, typeDump:
		m.Kind = imaging.Directory
	case typeFIFO:
		m.Kind = imaging.FIFO
	default:
		return fmt.Errorf("it is of the type %q, which is none of tar's for files", m.kind)
	}
	if m.Kind != imaging.Regular && m.kind != typeDump {
		m.stored = 0 // some write a link's target's size, or a directory's, and no data
	}
	return m.settleLink()
}

func (m *Member) settleLink() error {
	switch {
	case m.Name == "":
		return errors.New("it has no name")
	case len(m.Name) > maxName || len(m.Link) > maxName:
		return errors.New("its name or its target is longer than any path")
	case strings.IndexByte(m.Name, 0) >= 0 || strings.IndexByte(m.Link, 0) >= 0:
		return errors.New("there is a NUL in its name or its target")
	case m.Kind == imaging.Symlink && (m.Link == "" || len(m.Link) > maxTarget):
		return errors.New("it is a symbolic link to what no symbolic link can point to")
	case m.Kind == imaging.HardLink && m.Link == "":
		return errors.New("it is a hard link to nothing")
	}
	if m.Kind != imaging.Symlink && m.Kind != imaging.HardLink {
		m.Link = ""
	}
	return nil
}
