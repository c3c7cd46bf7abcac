package tarball

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	"doppel/imaging"
)

// Keywords of records about inode flags and quota projects. The first is
// libarchive's, after star: names of flags between commas. What it has no name
// for, and projects, of which no other archiver knows, have keywords of our
// own, as POSIX has it for vendors.
const (
	keyFlags     = "SCHILY.fflags"
	keyMoreFlags = "DOPPEL.fflags"
	keyProject   = "DOPPEL.project"
)

// fileFlag is a flag by the names that it has in archives. The first is written.
type fileFlag struct {
	bit   uint32
	names []string
	unset []string // what says that it is not set
}

// fileFlags are libarchive's names of Linux' flags (archive_entry.c), in the
// order in which it writes them.
var fileFlags = [...]fileFlag{
	{0x20, []string{"sappnd", "sappend"}, []string{"nosappnd", "nosappend"}},
	{0x10, []string{"schg", "schange", "simmutable"}, []string{"noschg", "noschange", "nosimmutable"}},
	{0x40, []string{"nodump"}, []string{"dump"}},
	{0x2, []string{"undel"}, []string{"noundel"}},
	{0x4, []string{"compress"}, []string{"nocompress"}},
	{0x80, []string{"noatime"}, []string{"atime"}},
	{0x10000, []string{"dirsync"}, []string{"nodirsync"}},
	{0x4000, []string{"journal-data", "journal"}, []string{"nojournal-data", "nojournal"}},
	{0x1, []string{"secdel", "securedeletion"}, []string{"nosecdel", "nosecuredeletion"}},
	{0x8, []string{"sync"}, []string{"nosync"}},
	{0x8000, []string{"notail"}, []string{"tail"}},
	{0x20000, []string{"topdir"}, []string{"notopdir"}},
	{0x800000, []string{"nocow"}, []string{"cow"}},
	{0x20000000, []string{"projinherit"}, []string{"noprojinherit"}},
}

// moreFlags are the flags that libarchive has no names for. To it, nocompress
// takes compress back and is not chattr's m.
var moreFlags = [...]fileFlag{
	{0x400, []string{"dontcompress"}, nil},
	{0x2000000, []string{"dax"}, nil},
}

// maxFlagText is more than the names of all flags come to.
const maxFlagText = 4 << 10

// flagNames writes flags.
func flagNames(table []fileFlag, flags uint32) string {
	var names []string
	for _, f := range table {
		if flags&f.bit != 0 {
			names = append(names, f.names[0])
		}
	}
	return strings.Join(names, ",")
}

// parseFlags reads names of flags. Those that Linux has no flag for, as archives
// of BSD or macOS have them, are told.
func parseFlags(table []fileFlag, text string) (flags uint32, unknown []string) {
	for name := range strings.FieldsFuncSeq(text, func(r rune) bool { return r == ',' || r == ' ' || r == '\t' }) {
		i := slices.IndexFunc(table, func(f fileFlag) bool { return slices.Contains(f.names, name) || slices.Contains(f.unset, name) })
		switch {
		case i < 0:
			unknown = append(unknown, name)
		case slices.Contains(table[i].names, name):
			flags |= table[i].bit
		default:
			flags &^= table[i].bit
		}
	}
	return flags, unknown
}

// paxFlags keeps the names of flags that a record has, when they can be any.
func paxFlags(to *string, value string) error {
	if len(value) > maxFlagText {
		return fmt.Errorf("%d bytes, more than the names of all flags", len(value))
	}
	*to = value
	return nil
}

// paxProject reads a project id; every one that is no 32 bits is refused.
func paxProject(v string) (uint32, error) {
	if v == "" {
		return 0, nil
	}
	n, err := strconv.ParseUint(v, 10, 32)
	if err != nil {
		return 0, fmt.Errorf("%.40q, which is no project (0 to %d)", v, uint32(math.MaxUint32))
	}
	return uint32(n), nil
}

// flagRecords are an entry's inode flags and project.
func flagRecords(e *imaging.Entry) []record {
	var list []record
	if names := flagNames(fileFlags[:], e.Flags); names != "" {
		list = append(list, record{keyFlags, names})
	}
	if names := flagNames(moreFlags[:], e.Flags); names != "" {
		list = append(list, record{keyMoreFlags, names})
	}
	if e.Project != 0 {
		list = append(list, record{keyProject, strconv.FormatUint(uint64(e.Project), 10)})
	}
	return list
}
