package dpkg

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"strings"
)

// Bounds on a database. Debian's longest fields, the dependencies of large
// metapackages, take some ten kilobytes, its longest versions fifty bytes.
const (
	maxLine   = 1 << 20
	maxField  = 64 << 10 // of a line, what is looked at
	maxWord   = 1 << 10
	maxMemory = 64 << 20
)

// File is a kind of file of a database.
type File uint8

const (
	Status File = iota // var/lib/dpkg/status
	Update             // var/lib/dpkg/updates/NNNN
	Part               // var/lib/dpkg/status.d/NAME
)

// Package is a package that is installed.
type Package struct {
	Name         string
	Architecture string // as amd64, all; empty: its stanza does not say
	Version      string
}

// Database is what the files of a database say is installed. The zero one is
// of a system without packages.
type Database struct {
	versions map[Package]string // by packages without their version
	used     int                // of maxMemory
}

// SyntaxError is what is wrong with a file of a database.
type SyntaxError struct {
	Line int // from 1
	What string
}

func (e *SyntaxError) Error() string { return fmt.Sprintf("line %d: %s", e.Line, e.What) }

// stanza is what is looked at of a stanza.
type stanza struct {
	line   int // of its beginning; 0: there is nothing yet
	values [len(fields)]string
	has    [len(fields)]bool
}

var fields = [...]string{"Package", "Status", "Architecture", "Version"}

const (
	fieldPackage = iota
	fieldStatus
	fieldArchitecture
	fieldVersion
	fieldOther
)

// Read adds what a file of the database says. Updates come after the Status
// that they are of, in the order of their names.
func (d *Database) Read(r io.Reader, kind File) error {
	lines := lineReader{r: bufio.NewReaderSize(r, maxField)}
	var s stanza
	field := -1 // that a line with a blank at its beginning goes on with
	for {
		line, err := lines.next()
		if err != nil && err != io.EOF {
			return err
		}
		if lines.cut && kind != Part {
			return &SyntaxError{lines.n, "the file ends within this line: it was cut off"} // as dpkg has it
		}
		blank := len(bytes.TrimRight(line, " \t\r")) == 0
		if (blank || err == io.EOF) && s.line > 0 {
			if err := d.add(&s, kind); err != nil {
				return err
			}
			s, field = stanza{}, -1
		}
		if err == io.EOF {
			return nil
		}
		if blank {
			continue
		}
		if s.line == 0 {
			s.line = lines.n
		}
		if field, err = s.take(line, field, lines.n); err != nil {
			return err
		}
	}
}

// take takes a line and tells which field it is of.
func (s *stanza) take(line []byte, field, n int) (int, error) {
	if line[0] == ' ' || line[0] == '\t' {
		switch {
		case field < 0:
			return field, &SyntaxError{n, "it goes on with a field, and there is none before it"}
		case field < fieldOther:
			return field, &SyntaxError{n, fmt.Sprintf("the field %s takes several lines", fields[field])}
		}
		return field, nil
	}
	name, value, ok := bytes.Cut(line, []byte(":"))
	if !ok || len(name) == 0 || line[0] == '-' || line[0] == '#' || bytes.ContainsFunc(name, func(c rune) bool { return c <= ' ' || c > '~' }) {
		return field, &SyntaxError{n, fmt.Sprintf("it is no field, NAME: VALUE: %.80q", line)}
	}
	for i, known := range fields {
		if !strings.EqualFold(known, string(name)) {
			continue
		}
		if s.has[i] {
			return field, &SyntaxError{n, fmt.Sprintf("the field %s is there twice", known)}
		}
		if len(value) > maxWord {
			return field, &SyntaxError{n, fmt.Sprintf("the field %s takes more than %d bytes", known, maxWord)}
		}
		s.has[i], s.values[i] = true, string(bytes.Trim(value, " \t\r"))
		return i, nil
	}
	return fieldOther, nil
}

// add takes a stanza that is complete.
func (d *Database) add(s *stanza, kind File) error {
	bad := func(format string, args ...any) error {
		return &SyntaxError{s.line, "the stanza that begins here has " + fmt.Sprintf(format, args...)}
	}
	p := Package{Name: s.values[fieldPackage], Architecture: s.values[fieldArchitecture]}
	if !s.has[fieldPackage] {
		return bad("no field Package")
	}
	if err := checkWord("name", p.Name); err != nil {
		return bad("%v", err)
	}
	if p.Architecture != "" {
		if err := checkWord("architecture", p.Architecture); err != nil {
			return bad("%v", err)
		}
	}
	installed, ok := s.installed(kind)
	if !ok {
		return bad("no Status of three words, as in: install ok installed")
	}
	if !installed {
		if kind == Update {
			delete(d.versions, p)
		}
		return nil
	}
	version := s.values[fieldVersion]
	if !s.has[fieldVersion] {
		return bad("no field Version, and %s is installed", p.Name)
	}
	if err := checkVersion(version); err != nil {
		return bad("%v", err)
	}
	if old, ok := d.versions[p]; ok && old != version && kind != Update {
		return bad("another version of %s, %s, than the one that came before: %s", p.Name, version, old)
	}
	if d.used += len(p.Name) + len(p.Architecture) + len(version) + 96; d.used > maxMemory {
		return &SyntaxError{s.line, fmt.Sprintf("with this package, they take more than %d MiB to remember", maxMemory>>20)}
	}
	if d.versions == nil {
		d.versions = make(map[Package]string)
	}
	d.versions[p] = version
	return nil
}

// installed tells whether the package is installed: what dpkg was asked to do,
// whether that went wrong, and what has become of it (dpkg-query(1)).
func (s *stanza) installed(kind File) (installed, ok bool) {
	if !s.has[fieldStatus] && kind == Part {
		return true, true
	}
	words := strings.Fields(s.values[fieldStatus])
	if len(words) != 3 {
		return false, false
	}
	switch words[2] {
	case "installed", "triggers-awaited", "triggers-pending":
		return true, true
	}
	return false, true
}

// lineReader reads lines without the bytes that end them.
type lineReader struct {
	r   *bufio.Reader
	n   int  // of the line that was read last
	cut bool // that was the last one, and nothing ended it
}

// next gives a line, or the beginning of one that is longer than what is
// looked at. It is good until the next one.
func (l *lineReader) next() ([]byte, error) {
	l.n++
	line, err := l.r.ReadSlice('\n')
	if err == io.EOF && len(line) > 0 {
		l.cut = true
		return line, nil
	}
	if err == bufio.ErrBufferFull {
		line = bytes.Clone(line)
		for size := len(line); err == bufio.ErrBufferFull; {
			var more []byte
			more, err = l.r.ReadSlice('\n')
			if size += len(more); size > maxLine {
				return nil, &SyntaxError{l.n, fmt.Sprintf("it is longer than %d bytes", maxLine)}
			}
		}
		if err == io.EOF {
			l.cut, err = true, nil
		}
	}
	return bytes.TrimSuffix(line, []byte("\n")), err
}
