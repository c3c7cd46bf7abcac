package imaging

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// What is immutable or append only cannot be changed, renamed, linked or
// removed, and nothing can be done in such a directory. So these flags are
// taken off what is to be changed, and set when nothing else is to come: of
// files when all names are in place, of directories last of all. A kill in
// between leaves them off, and the next Apply sets them.

// unfasten takes the flags off o that forbid changes, and tells whether there
// were any. Where that is not allowed, the change itself will say so.
func unfasten(o *object) bool {
	if k := o.kind(); k != Regular && k != Directory {
		return false
	}
	if flags, _ := quickFlags(o.fd); flags&lockFlags == 0 {
		return false
	}
	fd, err := reopen(o.fd)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	flags, _, err := inodeFlags(fd)
	return err == nil && setInodeFlags(fd, flags&^lockFlags) == nil
}

// unfastenName is unfasten for what has a name, if anything has it.
func unfastenName(dir int, name string) bool {
	o, err := openObject(dir, name)
	if err != nil {
		return false
	}
	defer o.close()
	return unfasten(o)
}

// setFlags makes o's inode flags and project what e says. What the file system
// does not have is a loss.
func (a *applier) setFlags(path string, e *Entry, o *object, t fsTraits) error {
	if t.bare {
		return nil
	}
	have, err := diffFlags(e, o, t, true)
	if err != nil {
		return &os.PathError{Op: "read inode flags of", Path: path, Err: err}
	}
	if lost := e.Flags &^ t.flags; lost != 0 && !e.Opaque {
		a.lose(path, "flags", fmt.Sprintf("the file system cannot hold %s", flagLetters(lost)))
	}
	if have == nil {
		return nil
	}
	fd, err := reopen(o.fd)
	if err != nil {
		return a.tolerate(path, "inode flags", err)
	}
	defer unix.Close(fd)
	if have.project != e.Project {
		if err := a.setAttribute(path, "project", setProject(fd, e.Project)); err != nil {
			return err
		}
	}
	return a.setAttribute(path, "flags", setInodeFlags(fd, e.Flags&t.flags|have.flags&^t.flags))
}

// setAttribute makes a loss of what the file system does not have.
func (a *applier) setAttribute(path, what string, err error) error {
	if hasNoFlags(err) {
		a.lose(path, what, "the file system does not have it: "+err.Error())
		return nil
	}
	return a.tolerate(path, what, err)
}

// birthFlags gives a file that was just made the flags that matter before
// there is content, such as no copying on write, in place of those that it got
// from its directory.
func (a *applier) birthFlags(fd int, t *target) error {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return fmt.Errorf("stat: %w", err)
	}
	traits, err := a.tree.traits(st.Dev, t.n.parent)
	if err != nil || traits.bare {
		return err
	}
	have, project, err := inodeFlags(fd)
	if err != nil {
		return err
	}
	// What cannot be set is told of by setFlags.
	if want := t.e.Flags & traits.flags &^ lockFlags; have != want {
		_ = setInodeFlags(fd, want)
	}
	if project != t.e.Project {
		_ = setProject(fd, t.e.Project)
	}
	return nil
}

// fasten sets the inode flags of files, now that all their names are in place.
func (a *applier) fasten() error {
	for n := range a.active() {
		_, unfastened := a.unfastened[n]
		changed := n.act == actWrite && a.index.origin(n).flagged || n.act == actFix
		if n.isDir() || a.index.origin(n).kind != Regular || !changed && !unfastened {
			continue
		}
		if err := a.fastenOne(n); err != nil {
			return err
		}
	}
	return nil
}

func (a *applier) fastenOne(n *treeNode) error {
	dir, err := a.tree.hold(n.parent)
	if err != nil {
		return err
	}
	defer a.tree.release(n.parent)
	o, err := openObject(dir, n.name)
	if err != nil {
		return &os.PathError{Op: "stat", Path: n.path(), Err: err}
	}
	defer o.close()
	t, err := a.tree.traits(o.st.Dev, n.parent)
	if err != nil {
		return err
	}
	return a.setFlags(n.path(), a.index.entry(n), o, t)
}
