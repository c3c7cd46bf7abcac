package tarball

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"math"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"doppel/imaging"
)

// Bounds on extended headers. An honest one is large only by a map of a file's
// holes in the formats of before pax 1.0, or by many extended attributes.
const (
	maxName    = 1 << 20 // of a path; as a manifest has it
	maxTarget  = 1 << 16
	maxPAX     = 16 << 20
	maxRecords = 1 << 20
	maxXattrs  = 1 << 12 // Linux lists at most 64 KiB of names
	maxGlobal  = 1 << 10 // records about all members, and bytes of one
)

// pax is what the extended headers of one member say.
type pax struct {
	path, link  *string
	size        *int64
	uid, gid    *int64
	mtime       *imaging.Time
	major       *int64
	minor       *int64
	schily      map[string]string // extended attributes by their names as they stand there
	libarchive  map[string]string
	acl         [2]string // access, default
	selinux     string
	flags       [2]string // by the names that libarchive has, by ours
	project     uint32
	sparse      sparseRecords
	sparseNames bool // there was one of GNU.sparse.*
}

// records goes through the records of an extended header: their length in
// decimal, a blank, a keyword, an equals sign, a value, a newline.
func records(b []byte, each func(key, value string) error) error {
	for n := 0; len(b) > 0; n++ {
		digits := bytes.IndexByte(b[:min(len(b), 12)], ' ')
		if digits < 1 {
			return errors.New("its extended header has a record without a length")
		}
		size, err := strconv.ParseUint(string(b[:digits]), 10, 31)
		if err != nil || int(size) > len(b) || int(size) < digits+3 || b[size-1] != '\n' {
			return errors.New("its extended header has a record of another length than it says")
		}
		key, value, ok := strings.Cut(string(b[digits+1:size-1]), "=")
		if !ok || key == "" || strings.IndexByte(key, 0) >= 0 {
			return errors.New("its extended header has a record without a keyword")
		}
		if n >= maxRecords {
			return fmt.Errorf("its extended header has more than %d records", maxRecords)
		}
		if err := each(key, value); err != nil {
			return fmt.Errorf("its extended header says %.40s: %w", key, err)
		}
		b = b[size:]
	}
	return nil
}

// add takes a record. An empty value takes back what a global header said.
func (p *pax) add(key, value string) error {
	var err error
	switch key {
	case "path":
		p.path, err = paxText(value)
	case "linkpath":
		p.link, err = paxText(value)
	case "size":
		p.size, err = paxNumber(value)
	case "uid":
		p.uid, err = paxNumber(value)
	case "gid":
		p.gid, err = paxNumber(value)
	case "mtime":
		p.mtime, err = paxTime(value)
	case "SCHILY.devmajor":
		p.major, err = paxNumber(value)
	case "SCHILY.devminor":
		p.minor, err = paxNumber(value)
	case "SCHILY.acl.access":
		p.acl[0] = value
	case "SCHILY.acl.default":
		p.acl[1] = value
	case "RHT.security.selinux":
		p.selinux = value
	case keyFlags:
		err = paxFlags(&p.flags[0], value)
	case keyMoreFlags:
		err = paxFlags(&p.flags[1], value)
	case keyProject:
		p.project, err = paxProject(value)
	default:
		return p.addNamed(key, value)
	}
	return err
}

// addNamed takes a record whose keyword begins with what tells its kind. All
// others, as access times and comments, are none of ours.
func (p *pax) addNamed(key, value string) error {
	if name, ok := strings.CutPrefix(key, "SCHILY.xattr."); ok {
		return addXattr(&p.schily, name, value)
	}
	if name, ok := strings.CutPrefix(key, "LIBARCHIVE.xattr."); ok {
		return addXattr(&p.libarchive, name, value)
	}
	if name, ok := strings.CutPrefix(key, "GNU.sparse."); ok {
		p.sparseNames = true
		return p.sparse.add(name, value)
	}
	return nil
}

func addXattr(to *map[string]string, name, value string) error {
	if *to == nil {
		*to = make(map[string]string)
	}
	if len(*to) >= maxXattrs {
		return fmt.Errorf("more than %d extended attributes", maxXattrs)
	}
	(*to)[name] = value
	return nil
}

func paxText(v string) (*string, error) {
	switch {
	case v == "":
		return nil, nil
	case strings.IndexByte(v, 0) >= 0:
		return nil, errors.New("a name with a NUL in it")
	}
	return &v, nil
}

func paxNumber(v string) (*int64, error) {
	if v == "" {
		return nil, nil
	}
	n, err := strconv.ParseInt(v, 10, 64)
	if err != nil {
		return nil, fmt.Errorf("%.40q, which is no number", v)
	}
	return &n, nil
}

// paxTime reads decimal seconds with a fraction. -1.25 is 1.25 seconds before
// 1970. Digits beyond nanoseconds are cut off, towards the past.
func paxTime(v string) (*imaging.Time, error) {
	if v == "" {
		return nil, nil
	}
	bad := fmt.Errorf("%.40q, which is no time", v)
	whole, fraction, _ := strings.Cut(v, ".")
	sec, err := strconv.ParseInt(whole, 10, 64)
	if whole == "-" || whole == "" {
		sec, err = 0, nil
	}
	if err != nil || strings.Trim(fraction, "0123456789") != "" || sec == math.MinInt64 {
		return nil, bad
	}
	more := len(fraction) > 9 && strings.Trim(fraction[9:], "0") != ""
	nsec, err := strconv.ParseInt((fraction + "000000000")[:9], 10, 64)
	if err != nil {
		return nil, bad
	}
	if strings.HasPrefix(v, "-") {
		if more {
			nsec++
		}
		if nsec > 0 {
			sec, nsec = sec-1, 1_000_000_000-nsec
		}
	}
	return &imaging.Time{Sec: sec, Nsec: uint32(nsec)}, nil
}

// apply puts what the extended headers say into the member.
func (p *pax) apply(m *Member) error {
	set(&m.Name, p.path)
	set(&m.Link, p.link)
	set(&m.stored, p.size)
	set(&m.uid, p.uid)
	set(&m.gid, p.gid)
	set(&m.MTime, p.mtime)
	set(&m.major, p.major)
	set(&m.minor, p.minor)
	m.acl = p.acl
	m.Project = p.project
	more, strange := parseFlags(moreFlags[:], p.flags[1])
	m.Flags, m.unknown = parseFlags(fileFlags[:], p.flags[0])
	m.Flags |= more
	m.unknown = append(m.unknown, strange...)
	var err error
	m.Xattrs, err = p.xattrs()
	return err
}

func set[T any](to *T, from *T) {
	if from != nil {
		*to = *from
	}
}

// gnuNames undoes what GNU tar does to the names of extended attributes, since
// a keyword ends at its first equals sign (xheader.c, xattr_decode_keyword).
var gnuNames = strings.NewReplacer("%3D", "=", "%25", "%")

// xattrs brings together the two ways of writing extended attributes. bsdtar
// uses both for each; its own can hold any name.
func (p *pax) xattrs() ([]imaging.Xattr, error) {
	all := make(map[string]string)
	for name, value := range p.schily {
		all[gnuNames.Replace(name)] = value
	}
	for coded := range p.libarchive {
		// The same attribute, its name coded or not: by version.
		delete(all, gnuNames.Replace(coded))
		if name, err := url.PathUnescape(coded); err == nil {
			delete(all, gnuNames.Replace(name))
		}
	}
	for coded, value := range p.libarchive {
		name, err := url.PathUnescape(coded)
		if err != nil {
			return nil, fmt.Errorf("it has an extended attribute with the name %.100q, which is not written as it should be", coded)
		}
		raw, err := base64.RawStdEncoding.DecodeString(strings.TrimRight(value, "=\n"))
		if err != nil {
			return nil, fmt.Errorf("its extended attribute %.100q is no base64", name)
		}
		all[name] = string(raw)
	}
	if p.selinux != "" {
		// The kernel's label ends with a NUL, GNU tar's does not.
		if _, ok := all["security.selinux"]; !ok {
			all["security.selinux"] = p.selinux + "\x00"
		}
	}
	var list []imaging.Xattr
	for name, value := range all {
		if name == "" || len(name) > 255 || strings.IndexByte(name, 0) >= 0 || len(value) > 1<<16 {
			return nil, fmt.Errorf("it has an extended attribute that no file system can hold: %.100q, %d bytes", name, len(value))
		}
		x := imaging.Xattr{Name: name}
		if value != "" {
			x.Value = []byte(value)
		}
		list = append(list, x)
	}
	slices.SortFunc(list, func(a, b imaging.Xattr) int { return strings.Compare(a.Name, b.Name) })
	return list, nil
}
