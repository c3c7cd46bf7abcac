package clone

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"

	"doppel/imaging"
)

// refreshBoot makes the loader, where it has changed, and the boot menu fit
// what is there now.
func (u *updater) refreshBoot(ctx context.Context) error {
	u.result.Boot = true
	if u.loader {
		install := u.bios
		if u.plan.Firmware == UEFI {
			install = u.uefi
		}
		if err := install(ctx); err != nil {
			return err
		}
	}
	return u.bootMenu(ctx)
}

// bootMenu takes the image's grub.cfg where it is as true here as on the head,
// and makes one where it is not. Kernels that are leaving are not in it: GRUB
// starts the newest one by itself, and waits for somebody at the console when
// that is gone.
func (u *updater) bootMenu(ctx context.Context, leaving ...string) error {
	name := u.configName()
	if u.keepsConfig(name) {
		names := []string{name}
		for _, e := range u.image.List.All() {
			if strings.HasPrefix(e.Path, "boot/loader/entries/") && e.Kind == imaging.Regular {
				names = append(names, e.Path)
			}
		}
		if _, err := u.carry(ctx, names, nil); err != nil {
			return err
		}
		if u.checkConfig(name) == nil {
			return nil
		}
	}
	// grub-mkconfig copies the menu to its place, and somebody may take the
	// power meanwhile: it is given another one.
	fresh := name + ".doppel"
	if err := u.makeConfig(ctx, fresh, leaving...); err != nil {
		return err
	}
	if err := u.checkConfig(fresh); err != nil {
		return err
	}
	return u.replace(fresh, name)
}

// replace puts a file of the node in the place of another, durably.
func (u *updater) replace(from, to string) error {
	tree, err := os.OpenRoot(u.target)
	if err != nil {
		return err
	}
	defer tree.Close()
	f, err := tree.Open(from)
	if err == nil {
		err = errors.Join(f.Sync(), f.Close())
	}
	if err == nil {
		err = tree.Rename(from, to)
	}
	if err == nil {
		f, err = tree.Open(path.Dir(to))
	}
	if err == nil {
		err = errors.Join(f.Sync(), f.Close())
	}
	if err != nil {
		return fmt.Errorf("put %s in its place: %w", to, err)
	}
	return nil
}

// leaving are the files in /boot that the apply is about to remove, once
// nothing names them any more.
func (u *updater) leaving(paths []string, stays func(string) bool) []string {
	meant := func(name string) bool {
		return len(paths) == 0 || slices.ContainsFunc(paths, func(p string) bool { return name == p || strings.HasPrefix(name, p+"/") })
	}
	tree, err := os.OpenRoot(u.target)
	if err != nil {
		return nil
	}
	defer tree.Close()
	list, err := fs.ReadDir(tree.FS(), "boot")
	if err != nil {
		return nil // and so nothing to start
	}
	var names []string
	for _, e := range list {
		if name := "boot/" + e.Name(); e.Type().IsRegular() && !u.index.has(name) && !stays(name) && meant(name) {
			names = append(names, name)
		}
	}
	return names
}
