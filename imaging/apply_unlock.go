package imaging

import (
	"errors"
	"maps"
	"os"
	"slices"

	"golang.org/x/sys/unix"
)

// A process without privileges cannot enter its own directories of mode 0555
// or 0000, nor make anything in them. It opens them up for as long as it works.

// unlock opens a directory up for its owner, who could not get in.
func (a *applier) unlock(n *treeNode, parent int) (bool, error) {
	a.unlockMu.Lock()
	defer a.unlockMu.Unlock()
	o, err := openObject(parent, n.name)
	if err != nil {
		return false, err
	}
	defer o.close()
	if o.kind() != Directory || o.st.Uid != uint32(os.Geteuid()) || o.st.Mode&0o700 == 0o700 {
		return false, nil
	}
	if err := unix.Fchmodat(unix.AT_FDCWD, o.proc(), o.st.Mode&0o7777|0o700, 0); err != nil {
		return false, err
	}
	if _, known := a.unlocked[n]; !known {
		a.unlocked[n] = o.st.Mode & 0o7777
	}
	return true, nil
}

// unlockForWriting opens up a directory that can be entered, but not written.
// Where that is not allowed, what is to be made in it will fail and say so.
func (a *applier) unlockForWriting(n *treeNode) {
	fd, err := a.tree.hold(n)
	if err != nil {
		return
	}
	defer a.tree.release(n)
	var st unix.Stat_t
	if unix.Fstat(fd, &st) != nil || st.Uid != uint32(os.Geteuid()) || st.Mode&0o700 == 0o700 {
		return
	}
	a.unlockMu.Lock()
	defer a.unlockMu.Unlock()
	if _, known := a.unlocked[n]; !known && unix.Fchmod(fd, st.Mode&0o7777|0o700) == nil {
		a.unlocked[n] = st.Mode & 0o7777
	}
}

func (a *applier) wasUnlocked(n *treeNode) bool {
	a.unlockMu.Lock()
	defer a.unlockMu.Unlock()
	_, unlocked := a.unlocked[n]
	return unlocked
}

// locked notes that a directory has its final mode.
func (a *applier) locked(n *treeNode) {
	a.unlockMu.Lock()
	defer a.unlockMu.Unlock()
	delete(a.unlocked, n)
}

// relock gives directories that are still opened up the modes they had.
func (a *applier) relock() error {
	a.tree.unlock = nil
	var all error
	// The deepest first: those above can then still be entered.
	nodes := slices.SortedFunc(maps.Keys(a.unlocked), func(x, y *treeNode) int { return len(y.path()) - len(x.path()) })
	for _, n := range nodes {
		fd, err := a.tree.hold(n)
		if err == nil {
			err = unix.Fchmod(fd, a.unlocked[n])
			a.tree.release(n)
		}
		if err != nil && !errors.Is(err, unix.ENOENT) {
			all = errors.Join(all, &os.PathError{Op: "chmod", Path: n.path(), Err: err})
		}
	}
	return all
}
