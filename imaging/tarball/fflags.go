package tarball

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"doppel/imaging"
)

// projectKey is the keyword of a quota project, for which nobody else has one.
const projectKey = "DOPPEL.project"

// fflags are the names of inode flags in SCHILY.fflags, by their bits. The first
// name of each is the one that is written, as libarchive does on Linux; it knows
// no name for the two that are not in its table (archive_entry.c, fileflags).
var fflags = []struct {
	bit   uint32
	names []string
}{
	{0x20, []string{"sappnd", "sappend"}},
	{0x10, []string{"schg", "schange", "simmutable"}},
	{0x40, []string{"nodump"}},
	{0x2, []string{"undel"}},
	{0x4, []string{"compress"}},
	{0x80, []string{"noatime"}},
	{0x10000, []string{"dirsync"}},
	{0x4000, []string{"journal-data", "journal"}},
	{0x1, []string{"secdel", "securedeletion"}},
	{0x8, []string{"sync"}},
	{0x8000, []string{"notail"}},
	{0x20000, []string{"topdir"}},
	{0x800000, []string{"nocow"}},
	{0x20000000, []string{"projinherit"}},
	{0x2000000, []string{"dax"}}, // not in libarchive's table
	{0x400, []string{"nocomp"}},  // nor this
}

// flagsText writes inode flags as names with commas in between.
func flagsText(flags uint32) string {
	var names []string
	for _, f := range fflags {
		if flags&f.bit != 0 {
			names = append(names, f.names[0])
		}
	}
	return strings.Join(names, ",")
}

// parseFlags reads what flagsText or libarchive wrote. Flags that Linux does not
// have, as those of a BSD, come back by their names.
func parseFlags(text string) (flags uint32, unknown []string) {
names:
	for _, name := range strings.FieldsFunc(text, func(r rune) bool { return r == ',' || r == ' ' || r == '\t' }) {
		for _, f := range fflags {
			if slices.Contains(f.names, name) {
				flags |= f.bit
				continue names
			}
		}
		unknown = append(unknown, name)
	}
	return flags, unknown
}

// inodeFlags takes the flags and the project of a member, as far as a file of
// its kind can have them on Linux.
func (t *tree) inodeFlags(path string, m *Member) (flags, project uint32, err error) {
	if m.project < 0 || m.project >= 1<<32-1 {
		return 0, 0, errors.New("it has a quota project that Linux does not have")
	}
	flags, unknown := parseFlags(m.fflags)
	if len(unknown) > 0 {
		t.note(path, "Linux has no such file flags as %.100q: they were left out", strings.Join(unknown, ","))
	}
	if (flags != 0 || m.project != 0) && m.Kind != imaging.Regular && m.Kind != imaging.Directory {
		t.note(path, "a %v on Linux cannot have file flags or a quota project: they were left out", m.Kind)
		return 0, 0, nil
	}
	return flags, uint32(m.project), nil
}

// flagRecords are the inode flags and the project of an entry.
func flagRecords(e *imaging.Entry) []record {
	var list []record
	if e.Flags != 0 {
		list = append(list, record{"SCHILY.fflags", flagsText(e.Flags)})
	}
	if e.Project != 0 {
		list = append(list, record{projectKey, fmt.Sprint(e.Project)})
	}
	return list
}
