package clone

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"syscall"

	"doppel/imaging"
)

// goner is something on the node that is to go because the orders name it, or
// something above it, and the image lacks it.
type goner struct {
	name  string
	named string // by the orders
	file  bool   // a regular file
}

// goners are all there is to go of what the orders name and the image lacks,
// what is in a directory before that. As in an apply, what the node keeps stays,
// and what is mounted, and the directories of either. Nothing is touched.
func (u *updater) goners(names []string, mounts map[string]bool) (list []goner, err error) {
	if len(names) == 0 {
		return nil, nil
	}
	tree, err := os.OpenRoot(u.target)
	if err != nil {
		return nil, err
	}
	defer tree.Close()
	stays := func(name string) bool {
		_, mounted := mounts[name]
		return mounted || u.keeps(name) || u.o.Own != nil && u.o.Own(name) || u.o.Skip != nil && u.o.Skip(name)
	}
	for _, named := range slices.Sorted(slices.Values(names)) { // entries of a boot menu before kernels
		there, err := within(tree, named)
		if err == nil && there {
			_, err = walkGoners(tree, named, stays, func(name string, mode fs.FileMode) {
				list = append(list, goner{name: name, named: named, file: mode.IsRegular()})
			})
		}
		if err != nil {
			return nil, err
		}
	}
	return list, nil
}

// walkGoners gives what is at a name and below it to found, but for what stays.
// It tells whether something does.
func walkGoners(tree *os.Root, name string, stays func(string) bool, found func(string, fs.FileMode)) (stayed bool, err error) {
	if stays(name) {
		return true, nil
	}
	fi, err := tree.Lstat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	if fi.IsDir() {
		below, err := fs.ReadDir(tree.FS(), name)
		if err != nil {
			return false, err
		}
		for _, e := range below {
			left, err := walkGoners(tree, name+"/"+e.Name(), stays, found)
			if err != nil {
				return false, err
			}
			stayed = stayed || left
		}
	}
	if !stayed {
		found(name, fi.Mode())
	}
	return stayed, nil
}

// within tells whether directories lead to a name. What a link leads to has
// another name, by which it may be the node's own.
func within(tree *os.Root, name string) (bool, error) {
	for i, c := range name {
		if c != '/' {
			continue
		}
		fi, err := tree.Lstat(name[:i])
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
			return false, nil
		}
		if err != nil || !fi.IsDir() {
			return false, err
		}
	}
	return true, nil
}

// beforeRemovals makes the boot menu, when something in it has changed or is
// about to: without the kernels that the apply is about to remove, and without
// those of the goners.
func (u *updater) beforeRemovals(ctx context.Context, leaving []string, gone []goner) error {
	u.menu = u.menu || len(leaving) > 0
	for _, g := range gone {
		if !strings.HasPrefix(g.name, "boot/") {
			continue
		}
		u.menu = true
		if g.file && path.Dir(g.name) == "boot" {
			leaving = append(leaving, g.name)
		}
	}
	if !u.menu || u.leavesBoot() {
		return nil
	}
	slices.Sort(leaving)
	return u.bootMenu(ctx, slices.Compact(leaving)...)
}

// remove removes the goners.
func (u *updater) remove(ctx context.Context, gone []goner) error {
	if len(gone) == 0 {
		return nil
	}
	tree, err := os.OpenRoot(u.target)
	if err != nil {
		return err
	}
	defer tree.Close()
	for _, g := range gone {
		if err := context.Cause(ctx); err != nil {
			return err
		}
		// The apply has made links and files of directories, it may be.
		there, err := within(tree, g.name)
		if err == nil && !there {
			continue
		}
		if err == nil {
			err = tree.Remove(g.name)
		}
		switch {
		case errors.Is(err, fs.ErrNotExist):
			continue
		case errors.Is(err, syscall.EBUSY), errors.Is(err, syscall.ENOTEMPTY):
			u.o.Log.Warn("left alone: something was mounted there or put into it meanwhile", "path", g.name)
			continue
		case err != nil:
			return err
		}
		if err := u.setTime(tree, path.Dir(g.name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if !slices.Contains(u.result.Removed, g.named) {
			u.result.Removed = append(u.result.Removed, g.named)
		}
		u.changed(imaging.ApplyChange{Path: g.name, Act: imaging.ActDelete})
	}
	return nil
}
