package tarball

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"doppel/imaging"
)

// maxMemory bounds what is remembered of an archive's members. It is what a
// manifest may come to.
const maxMemory = 1 << 30

// ownDirs hold doppel's own state and secrets, which are in no image.
var ownDirs = [...]string{"var/lib/doppel", "etc/doppel"}

// inode is what names in the tree stand for: a file, whatever its kind. Unlike
// an entry it does not know its names.
type inode struct {
	entry    imaging.Entry // without Path and Class
	acl      [2]string
	detected bool          // its content looks like a secret
	stored   imaging.Class // its content was stored under, but
	early    int           // so many chunks for everyone
	offset   int64         // of its member
	children int           // names in it, of a directory
	made     bool          // no member told of the directory
	pending  string        // a hard link to a member that is still to come
	first    string        // its first name in canonical order, when all are known
}

// tree is what unpacking the members one after the other would come to.
type tree struct {
	names    map[string]*inode
	used     int64 // of maxMemory
	notes    []imaging.Note
	stripped bool // a leading slash was taken off
}

func newTree() *tree { return &tree{names: make(map[string]*inode)} }

func (t *tree) note(path, format string, args ...any) {
	t.notes = append(t.notes, imaging.Note{Path: path, Kind: NoteChanged, Detail: fmt.Sprintf(format, args...)})
}

// NoteChanged is the kind of a note that says what of a member is otherwise in
// the version than in the archive.
const NoteChanged imaging.NoteKind = "changed"

// cleanPath makes a path below the root of a member's name.
func cleanPath(name string) (path string, absolute bool, err error) {
	absolute = strings.HasPrefix(name, "/")
	var elements []string
	clean := true // nothing to take out: the usual case
	for element := range strings.SplitSeq(name, "/") {
		switch {
		case element == "" || element == ".":
			clean = false
		case element == "..":
			return "", absolute, errors.New("its name leads out of the tree by its .. elements")
		case len(element) > 255*4: // a vfat name of 255 characters
			return "", absolute, errors.New("its name has an element longer than any file system allows")
		}
	}
	if clean {
		return name, absolute, nil
	}
	for element := range strings.SplitSeq(name, "/") {
		if element != "" && element != "." {
			elements = append(elements, element)
		}
	}
	if len(elements) == 0 {
		return ".", absolute, nil
	}
	return strings.Join(elements, "/"), absolute, nil
}

func parentPath(path string) string {
	if i := strings.LastIndexByte(path, '/'); i >= 0 {
		return path[:i]
	}
	return "."
}

// spend counts memory.
func (t *tree) spend(n int) error {
	if t.used += int64(n); t.used > maxMemory {
		return fmt.Errorf("names, attributes and contents of the members so far take more than %d bytes to remember", maxMemory)
	}
	return nil
}

// own tells whether the path is in one of doppel's own directories, or is one.
func own(path string) (in, is bool) {
	for _, dir := range ownDirs {
		if path == dir {
			return false, true
		}
		if strings.HasPrefix(path, dir) && path[len(dir)] == '/' {
			return true, false
		}
	}
	return false, false
}

// add takes a member. It gives the inode whose content is to be read, if the
// member is a file.
func (t *tree) add(m *Member) (*inode, error) {
	path, absolute, err := cleanPath(m.Name)
	if err != nil {
		return nil, err
	}
	if absolute && !t.stripped {
		t.stripped = true
		t.note(m.Name, "the slash that names begin with was taken off")
	}
	in, is := own(path)
	if in {
		return nil, nil
	}
	cost := 256 + len(m.Name) + len(m.Link) + 16*len(m.Extents) + len(m.acl[0]) + len(m.acl[1])
	for _, x := range m.Xattrs {
		cost += 64 + len(x.Name) + len(x.Value)
	}
	if len(m.unknown) > 0 {
		cost += 1024 // the note that tells of them
	}
	if err := t.spend(cost); err != nil {
		return nil, err
	}
	if m.Kind == imaging.HardLink {
		return nil, t.link(path, m)
	}
	if err := t.attributes(path, m); err != nil {
		return nil, err
	}
	t.flags(path, m)
	ino := &inode{acl: m.acl, offset: m.Offset, entry: imaging.Entry{
		Kind: m.Kind, Mode: m.Mode, UID: m.UID, GID: m.GID, MTime: m.MTime, Size: m.Size,
		Extents: m.Extents, Major: m.Major, Minor: m.Minor, Flags: m.Flags, Project: m.Project, Xattrs: m.Xattrs,
	}}
	switch m.Kind {
	case imaging.Symlink:
		ino.entry.Target = m.Link
		ino.entry.Mode = 0o777 // Linux' symbolic links have no other
	case imaging.Directory:
		if is {
			ino.entry.Opaque, ino.entry.MTime = true, imaging.Time{}
			t.note(path, "doppel's own state is in no image: what is in this directory was left out")
		}
	}
	if err := t.put(path, ino); err != nil {
		return nil, err
	}
	if m.Kind == imaging.Regular {
		return ino, nil
	}
	return nil, nil
}

// attributes takes off what no file of the member's kind can have on Linux
// (xattr(7)), as what was packed on another system may bring.
func (t *tree) attributes(path string, m *Member) error {
	file := m.Kind == imaging.Regular || m.Kind == imaging.Directory
	var kept []imaging.Xattr
	for _, x := range m.Xattrs {
		space, _, _ := strings.Cut(x.Name, ".")
		can := space == "trusted" || space == "security" || space == "system" || space == "user" && file
		if x.Name == aclAccess || x.Name == aclDefault {
			list, ok := decodeACL(x.Value)
			if !ok || checkACL(list) != nil {
				return errors.New("it has an ACL that no kernel would take")
			}
			can = x.Name == aclAccess && m.Kind != imaging.Symlink || m.Kind == imaging.Directory
		}
		if can {
			kept = append(kept, x)
		} else {
			t.note(path, "a %v on Linux cannot have the extended attribute %q: it was left out", m.Kind, x.Name)
		}
	}
	m.Xattrs = kept
	return nil
}

// flags takes off the inode flags and the project that no file of the member's
// kind can have on Linux (ioctl_iflags(2)), and tells of flags that it has not.
func (t *tree) flags(path string, m *Member) {
	if len(m.unknown) > 0 {
		t.note(path, "Linux has no file flags of these names: %.200q: they were left out", strings.Join(m.unknown, ","))
	}
	if m.Kind == imaging.Regular || m.Kind == imaging.Directory {
		return
	}
	if m.Flags != 0 || m.Project != 0 {
		t.note(path, "a %v on Linux cannot have file flags or a project: they were left out", m.Kind)
	}
	m.Flags, m.Project = 0, 0
}

// link takes a hard link.
func (t *tree) link(path string, m *Member) error {
	target, absolute, err := cleanPath(m.Link)
	if err != nil {
		return fmt.Errorf("it is a hard link to %.300q, outside of the tree", m.Link)
	}
	if absolute && !t.stripped {
		t.stripped = true
		t.note(m.Link, "the slash that names begin with was taken off")
	}
	to := t.names[target]
	switch {
	case to == nil && target == path:
		return errors.New("it is a hard link to itself")
	case to == nil:
		to = &inode{pending: target, offset: m.Offset}
	case to.entry.Kind == imaging.Directory:
		return fmt.Errorf("it is a hard link to %.300q, which is a directory", m.Link)
	case t.names[path] == to:
		return nil
	}
	return t.put(path, to)
}

// put makes path a name of ino, in place of what was there, as tar would.
func (t *tree) put(path string, ino *inode) error {
	if err := t.parents(path); err != nil {
		return err
	}
	old := t.names[path]
	switch {
	case path == "." && ino.entry.Kind != imaging.Directory:
		return fmt.Errorf("it is the root of the tree, and a %v", ino.kind())
	case old == nil:
		if path != "." {
			t.names[parentPath(path)].children++
		}
	case old.entry.Kind == imaging.Directory && ino.entry.Kind == imaging.Directory:
		ino.children = old.children
	case old.entry.Kind == imaging.Directory && old.children > 0:
		return fmt.Errorf("it is a %v in place of a directory that is not empty", ino.kind())
	}
	t.names[path] = ino
	return nil
}

func (i *inode) kind() imaging.Kind {
	if i.pending != "" {
		return imaging.HardLink
	}
	return i.entry.Kind
}

// parents makes the directories that path is in, where no member told of them.
func (t *tree) parents(path string) error {
	if path == "." {
		return nil
	}
	var missing []string
	for at := parentPath(path); ; at = parentPath(at) {
		if dir := t.names[at]; dir != nil {
			if dir.entry.Kind != imaging.Directory {
				return fmt.Errorf("it is below %.300q, which is a %v and no directory", at, dir.kind())
			}
			break
		}
		if err := t.spend(256 + len(at)); err != nil {
			return err
		}
		missing = append(missing, at)
		if at == "." {
			break
		}
	}
	for _, at := range slices.Backward(missing) {
		t.names[at] = &inode{made: true, entry: imaging.Entry{Kind: imaging.Directory, Mode: 0o755}}
		if at != "." {
			t.names[parentPath(at)].children++
		}
	}
	return nil
}

// settle finds what hard links lead to, now that all members are known, and
// gives the names in canonical order.
func (t *tree) settle() ([]string, error) {
	if len(t.names) == 0 {
		return nil, &MemberError{Err: errors.New("there is nothing in it"), Remedy: "an image has one file at least; was the archive made of the right directory?"}
	}
	paths := make([]string, 0, len(t.names))
	for path := range t.names {
		paths = append(paths, path)
	}
	slices.SortFunc(paths, imaging.ComparePath)
	for _, path := range paths {
		if t.names[path].pending != "" {
			if err := t.resolve(path); err != nil {
				return nil, err
			}
		}
	}
	made := 0
	for _, path := range paths {
		ino := t.names[path]
		if ino.first == "" {
			ino.first = path
		}
		if ino.made {
			if made++; made <= 20 {
				t.note(path, "the archive does not have this directory: it is root's, with the mode 0755")
			}
		}
	}
	if made > 20 {
		t.note("", "%d more directories that the archive does not have were made likewise", made-20)
	}
	return paths, nil
}

// resolve finds what the hard link at path leads to, by way of others that came
// before their targets.
func (t *tree) resolve(path string) error {
	link := t.names[path]
	hops := []string{path}
	seen := map[*inode]bool{link: true}
	at := link.pending
	to := t.names[at]
	for to != nil && to.pending != "" && !seen[to] {
		seen[to] = true
		hops = append(hops, at)
		at = to.pending
		to = t.names[at]
	}
	var what string
	switch {
	case to == nil:
		what = "which is not in the archive"
	case to.pending != "":
		what = "which leads back to itself"
	case to.entry.Kind == imaging.Directory:
		what = "which is a directory"
	default:
		t.names[path] = to
		for _, hop := range hops {
			t.names[hop] = to
		}
		return nil
	}
	return &MemberError{Name: path, Offset: link.offset, Err: fmt.Errorf("it is a hard link to %.300q, %s", link.pending, what),
		Remedy: "pack again what the archive was made of, with the file and all its names: tar --xattrs --acls --sparse --format=pax -cf F.tar -C DIR ."}
}
