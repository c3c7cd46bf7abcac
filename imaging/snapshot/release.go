package snapshot

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"doppel/imaging"

	"golang.org/x/sys/unix"
)

// spoiled tells why the snapshots were not good to the end; empty: they were.
// LVM's can run full: what was read of them then may be anything.
func (h *holder) spoiled(ctx context.Context) string {
	if len(h.taken) == 0 {
		return ""
	}
	list, err := volumesOf(ctx)
	if err != nil {
		return fmt.Sprintf("it cannot be told whether the snapshots were good to the end: %v", err)
	}
	var why []string
	for _, t := range h.taken {
		if s := lost(list, t.vg, t.name); t.read && s != "" {
			why = append(why, s)
		}
	}
	return strings.Join(why, "; ")
}

// release gives everything back, the last first. It goes on after an error.
func (h *holder) release(ctx context.Context) error {
	h.thawAll()
	for _, f := range h.frozen {
		unix.Close(f.fd)
	}
	h.frozen = nil
	var errs []error
	tops := map[string]bool{h.at(): true}
	for _, v := range h.volumes {
		tops[v.top] = true
	}
	for i := len(h.mounts) - 1; i >= 0; i-- {
		if !tops[h.mounts[i]] {
			errs = append(errs, unmount(h.mounts[i]))
		}
	}
	for _, v := range h.volumes {
		errs = append(errs, removeContainer(v.top, h.me.String()))
	}
	for i := len(h.mounts) - 1; i >= 0; i-- {
		if tops[h.mounts[i]] {
			errs = append(errs, unmount(h.mounts[i]))
		}
	}
	h.mounts, h.volumes = nil, nil
	for _, t := range h.taken {
		errs = append(errs, removeVolume(ctx, t.vg, t.name))
	}
	h.taken = nil
	return errors.Join(append(errs, removeRun(h.dir))...)
}

// unmount unmounts, lazily when somebody still has something open there: this
// process is the only one whose mounts these are.
func unmount(dir string) error {
	err := unix.Unmount(dir, unix.UMOUNT_NOFOLLOW)
	if err == unix.EBUSY {
		err = unix.Unmount(dir, unix.UMOUNT_NOFOLLOW|unix.MNT_DETACH)
	}
	if err != nil {
		return &os.PathError{Op: "unmount", Path: dir, Err: err}
	}
	return nil
}

// sweep removes what owners that live no more have left.
func (h *holder) sweep(ctx context.Context) error {
	errs := []error{sweepRun(), h.sweepBtrfs()}
	return errors.Join(append(errs, sweepVolumes(ctx))...)
}

// sweepBtrfs looks at every btrfs file system that is mounted.
func (h *holder) sweepBtrfs() error {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	defer f.Close()
	mounts, err := imaging.ReadMounts(f, "/")
	if err != nil {
		return err
	}
	var errs []error
	for i, m := range mounts.OfType("btrfs") {
		if m.ReadOnly {
			continue
		}
		top := h.at(fmt.Sprint("sweep", i))
		if err := mountTop(m.Source, top); err != nil {
			// One that cannot be looked at is no reason not to capture others:
			// if it is to be captured, there will be more to say about it.
			continue
		}
		errs = append(errs, sweepTop(top), unmount(top))
	}
	return errors.Join(errs...)
}
