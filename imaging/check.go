package imaging

import (
	"fmt"
	"strings"

	"doppel/imaging/store"
)

// checker checks the entries of a manifest one after the other: that each is
// right in itself, that they are in canonical order without a path twice, and
// that each is in a directory that came before it.
type checker struct {
	last string
	dirs []string // the directory that the last entry is in, and all above it
}

// entry checks the next entry.
func (c *checker) entry(e *Entry) error {
	if err := checkPath(e.Path); err != nil {
		return err
	}
	switch {
	case c.last == "" && (e.Path != "." || e.Kind != Directory):
		return fmt.Errorf("%q comes first, which should be the root directory", e.Path)
	case c.last != "" && ComparePath(c.last, e.Path) == 0:
		return fmt.Errorf("%q is there twice", e.Path)
	case c.last != "" && ComparePath(c.last, e.Path) > 0:
		return fmt.Errorf("%q comes after %q", e.Path, c.last)
	}
	if e.Path != "." {
		parent := parentPath(e.Path)
		for len(c.dirs) > 0 && c.dirs[len(c.dirs)-1] != parent {
			c.dirs = c.dirs[:len(c.dirs)-1]
		}
		if len(c.dirs) == 0 {
			return fmt.Errorf("%q is in %q, which is no directory of the tree", e.Path, parent)
		}
	}
	if e.Kind == Directory {
		c.dirs = append(c.dirs, e.Path)
	}
	c.last = e.Path
	return checkFields(e)
}

// end checks that there was something.
func (c *checker) end() error {
	if c.last == "" {
		return fmt.Errorf("there are no entries, not even the root directory")
	}
	return nil
}

// checkPath checks that a path is relative and stays below the root whoever
// joins it to what.
func checkPath(path string) error {
	if path == "." {
		return nil
	}
	if len(path) > maxPath {
		return fmt.Errorf("a path is %d bytes long", len(path))
	}
	for element := range strings.SplitSeq(path, "/") {
		if element == "" || element == "." || element == ".." || len(element) > maxElement || strings.IndexByte(element, 0) >= 0 {
			return fmt.Errorf("%.300q is no path below the root", path)
		}
	}
	return nil
}

// checkFields checks what an entry says, all but where its path puts it.
func checkFields(e *Entry) error {
	var fault string
	switch {
	case e.Kind < Regular || e.Kind > HardLink:
		fault = "is of no kind that there is"
	case e.Class > ClassHead:
		fault = "is of no class that there is"
	case e.Class != ClassNone && e.Kind != Regular && e.Kind != HardLink:
		fault = "is of a class that only files have"
	case e.Opaque && e.Kind != Directory:
		fault = "is opaque without being a directory"
	case e.Flags&^KeptFlags != 0:
		fault = "has flags that no image keeps"
	case (e.Flags != 0 || e.Project != 0) && e.Kind != Regular && e.Kind != Directory:
		fault = "has flags or a project, which only files and directories have"
	case e.Mode > 0o7777:
		fault = "has more mode bits than there are"
	case e.MTime.Nsec > 999_999_999:
		fault = "has more nanoseconds than a second"
	case e.Kind == Symlink && (e.Target == "" || len(e.Target) > maxTarget || strings.IndexByte(e.Target, 0) >= 0):
		fault = "points to what no symlink can point to"
	case e.Kind != Regular && (e.Size != 0 || e.Extents != nil || e.Chunks != nil):
		fault = "has content, which only files have"
	}
	if fault != "" {
		return fmt.Errorf("%q %s", e.Path, fault)
	}
	for i, x := range e.Xattrs {
		if x.Name == "" || len(x.Name) > maxXattrName || strings.IndexByte(x.Name, 0) >= 0 || len(x.Value) > maxXattrValue {
			return fmt.Errorf("%q has an extended attribute that cannot be", e.Path)
		}
		if i > 0 && e.Xattrs[i-1].Name >= x.Name {
			return fmt.Errorf("the extended attributes of %q are out of order", e.Path)
		}
	}
	if e.Kind == Regular && !e.Withheld {
		return checkExtents(e)
	}
	return nil
}

// checkExtents checks that the chunks fill the extents, and these the file.
func checkExtents(e *Entry) error {
	if e.Size < 0 {
		return fmt.Errorf("%q has a negative size", e.Path)
	}
	room := e.Size
	if e.Extents != nil {
		room = 0
		end := int64(0)
		for i, x := range e.Extents {
			if x.Length <= 0 || x.Offset < end || i > 0 && x.Offset == end || x.Length > e.Size-x.Offset {
				return fmt.Errorf("the extents of %q overlap, touch, or lie outside it", e.Path)
			}
			end = x.Offset + x.Length
			room += x.Length
		}
	}
	for _, c := range e.Chunks {
		if c.Size == 0 || c.Size > store.MaxBlock || int64(c.Size) > room {
			return fmt.Errorf("the chunks of %q are not as long as its data", e.Path)
		}
		room -= int64(c.Size)
	}
	if room != 0 {
		return fmt.Errorf("the chunks of %q are not as long as its data", e.Path)
	}
	return nil
}
