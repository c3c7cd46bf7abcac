package tarball

import (
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"

	"doppel/imaging"
)

// maxRuns bounds the map of a file's holes: 16 MiB of memory.
const maxRuns = 1 << 20

// sparseRecords are the GNU.sparse records of an extended header. There have
// been three formats:
//
//	0.0  GNU.sparse.size, .numblocks, and .offset and .numbytes for each run
//	0.1  GNU.sparse.size, .numblocks, .map with all of them, .name
//	1.0  GNU.sparse.major, .minor, .realsize, .name; the map is the
//	     beginning of the data
type sparseRecords struct {
	major, minor string
	name         string
	size         *int64 // of the whole file
	runs         []imaging.Extent
	begun        bool // an offset came, its length did not
}

func (s *sparseRecords) add(key, value string) error {
	switch key {
	case "major":
		s.major = value
	case "minor":
		s.minor = value
	case "name":
		name, err := paxText(value)
		set(&s.name, name)
		return err
	case "size", "realsize":
		n, err := paxNumber(value)
		s.size = n
		return err
	case "offset":
		n, err := runNumber(value)
		if err == nil && s.begun {
			err = errors.New("two offsets without a length between them")
		}
		s.runs = append(s.runs, imaging.Extent{Offset: n})
		s.begun = true
		return err
	case "numbytes":
		n, err := runNumber(value)
		if err == nil && !s.begun {
			err = errors.New("a length without an offset before it")
		}
		if err != nil {
			return err
		}
		s.runs[len(s.runs)-1].Length = n
		s.begun = false
	case "map":
		var err error
		s.runs, err = parseMap(value)
		return err
	}
	return nil // numblocks says nothing that is not known
}

// parseMap reads the map of format 0.1: offsets and lengths between commas.
func parseMap(text string) ([]imaging.Extent, error) {
	if text == "" {
		return nil, nil
	}
	if strings.Count(text, ",") > 2*maxRuns {
		return nil, fmt.Errorf("more than %d runs of data", maxRuns)
	}
	var runs []imaging.Extent
	for text != "" {
		var off, length string
		off, text, _ = strings.Cut(text, ",")
		length, text, _ = strings.Cut(text, ",")
		a, err := runNumber(off)
		if err != nil {
			return nil, err
		}
		b, err := runNumber(length)
		if err != nil {
			return nil, err
		}
		runs = append(runs, imaging.Extent{Offset: a, Length: b})
	}
	return runs, nil
}

func runNumber(s string) (int64, error) {
	n, err := strconv.ParseUint(s, 10, 63)
	if err != nil {
		return 0, fmt.Errorf("%.40q, where a number of a map of data should be", s)
	}
	return int64(n), nil
}

// sparseMap is where the data of a member with holes goes.
type sparseMap struct {
	size int64 // of the whole file
	runs []imaging.Extent
}

// findSparse finds out whether the member has holes, and where. What of the
// map is not in the headers is read from the archive.
func (r *Reader) findSparse(h *header, p *pax, m *Member) error {
	if m.kind == typeSparse && h.dialect() == dialectGNU {
		return r.oldSparse(h, m)
	}
	if !p.sparseNames {
		return nil
	}
	s := &p.sparse
	if s.name != "" {
		m.Name = s.name
	}
	if s.size == nil || s.begun {
		return errors.New("it says that it has holes, and not all about them")
	}
	m.sparse = &sparseMap{size: *s.size, runs: s.runs}
	if s.major == "" && s.minor == "" || s.major == "0" {
		return nil
	}
	if s.major != "1" || s.minor != "0" {
		return fmt.Errorf("its holes are written in the format %.10s.%.10s, which is not known", s.major, s.minor)
	}
	return r.mapInData(m)
}

// mapInData reads the map of format 1.0: a line with the number of runs, then
// two lines for each; padded to a block.
func (r *Reader) mapInData(m *Member) error {
	l := &lineReader{r: r, left: m.stored}
	n, err := l.number()
	if err != nil {
		return err
	}
	if n > maxRuns {
		return fmt.Errorf("it has %d runs of data; more than %d are not taken", n, maxRuns)
	}
	for range n {
		var x imaging.Extent
		if x.Offset, err = l.number(); err == nil {
			x.Length, err = l.number()
		}
		if err != nil {
			return err
		}
		m.sparse.runs = append(m.sparse.runs, x)
	}
	m.stored = l.left
	return nil
}

// lineReader reads lines from whole blocks of a member's data.
type lineReader struct {
	r     *Reader
	left  int64 // bytes of the data behind the blocks that were read
	block [blockSize]byte
	rest  []byte
}

// number reads a line with a number.
func (l *lineReader) number() (int64, error) {
	var digits [20]byte
	for n := 0; n < len(digits); n++ {
		if len(l.rest) == 0 {
			if l.left < blockSize {
				return 0, errors.New("its data ends within the map of its holes")
			}
			if err := l.r.block(l.block[:]); err != nil {
				return 0, err
			}
			l.left -= blockSize
			l.rest = l.block[:]
		}
		c := l.rest[0]
		l.rest = l.rest[1:]
		if c == '\n' {
			return runNumber(string(digits[:n]))
		}
		digits[n] = c
	}
	return 0, errors.New("there is no number where one of the map of its holes should be")
}

// oldSparse reads the map of GNU tar's own format: four runs in the header,
// and 21 in each of the blocks that may follow it.
func (r *Reader) oldSparse(h *header, m *Member) error {
	size, err := parseNumber(h.field(483, 12))
	if err != nil {
		return fmt.Errorf("its size with holes %w", err)
	}
	m.sparse = &sparseMap{size: size}
	more, err := m.sparse.addBinary(h.field(386, 4*24), h[482])
	for err == nil && more {
		var next header
		if err = r.block(next[:]); err == nil {
			more, err = m.sparse.addBinary(next.field(0, 21*24), next[504])
		}
	}
	return err
}

// addBinary takes offsets and lengths of 12 bytes each; more tells whether a
// further block of them follows.
func (s *sparseMap) addBinary(b []byte, extended byte) (more bool, err error) {
	for ; len(b) >= 24 && b[0] != 0 && b[12] != 0; b = b[24:] {
		off, err := parseNumber(b[:12])
		if err == nil {
			var length int64
			length, err = parseNumber(b[12:24])
			s.runs = append(s.runs, imaging.Extent{Offset: off, Length: length})
		}
		if err != nil {
			return false, fmt.Errorf("a number of the map of its holes %w", err)
		}
	}
	if len(s.runs) > maxRuns {
		return false, fmt.Errorf("it has more than %d runs of data", maxRuns)
	}
	return extended != 0, nil
}

// extents checks the map against the data there is, and makes of it what an
// entry has: runs in order that do not touch, none of them empty, and nil when
// there is no hole.
func (s *sparseMap) extents(stored int64) ([]imaging.Extent, error) {
	if s.size < 0 {
		return nil, fmt.Errorf("its size with holes is %d", s.size)
	}
	list := []imaging.Extent{}
	var end int64
	for _, x := range s.runs {
		if x.Offset < end || x.Length < 0 || x.Offset > s.size || x.Length > s.size-x.Offset {
			return nil, errors.New("the runs of its data overlap or lie outside of it")
		}
		end = x.Offset + x.Length
		if x.Length == 0 {
			continue
		}
		if x.Length > stored {
			return nil, errors.New("the map of its holes tells of more data than there is")
		}
		stored -= x.Length
		if last := len(list) - 1; last >= 0 && list[last].Offset+list[last].Length == x.Offset {
			list[last].Length += x.Length
		} else {
			list = append(list, x)
		}
	}
	if stored != 0 {
		return nil, errors.New("the map of its holes tells of less data than there is")
	}
	if s.size == 0 || len(list) == 1 && list[0] == (imaging.Extent{Length: s.size}) {
		return nil, nil
	}
	return list, nil
}

var errCut = fmt.Errorf("the archive ends within it: it was cut off: %w", io.ErrUnexpectedEOF)
