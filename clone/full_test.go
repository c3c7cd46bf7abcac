package clone

import (
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"doppel/imaging"
)

// smallDisk is a Recorder that mounts a real file system, smaller than its
// plan says, where the node's root is to be.
type smallDisk struct {
	*Recorder
	node   string // what is mounted
	mounts []string
}

func (s *smallDisk) Mount(ctx context.Context, mt Mount) error {
	if err := s.Recorder.Mount(ctx, mt); err != nil || mt.Type != "ext4" {
		return err
	}
	if err := unix.Mount(s.node, mt.Dir, "ext4", 0, ""); err != nil {
		return err
	}
	s.mounts = append(s.mounts, mt.Dir)
	return nil
}

func (s *smallDisk) Unmount(ctx context.Context, dir string) error {
	if err := s.Recorder.Unmount(ctx, dir); err != nil {
		return err
	}
	if n := len(s.mounts); n > 0 && s.mounts[n-1] == dir {
		s.mounts = s.mounts[:n-1]
		return unix.Unmount(dir, 0)
	}
	return nil
}

// smallLoop is an ext4 of 16 MiB on a loop device, with so much of it taken
// (by no zeros, which mkfs leaves out).
func smallLoop(t *testing.T, taken int) string {
	t.Helper()
	needRoot(t)
	do := func(args ...string) string {
		t.Helper()
		out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %v\n%s", args, err, out)
		}
		return strings.TrimSpace(string(out))
	}
	top := t.TempDir()
	file, with := filepath.Join(top, "disk"), filepath.Join(top, "with")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(file, 16<<20); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(with, "lost+found"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(with, "lost+found", "taken"), []byte(strings.Repeat("y", taken)), 0o600); err != nil {
		t.Fatal(err)
	}
	do("mkfs.ext4", "-q", "-m", "0", "-d", with, file)
	loop := do("losetup", "-f", "--show", file)
	t.Cleanup(func() {
		do("e2fsck", "-f", "-n", loop)
		do("losetup", "-d", loop)
	})
	return loop
}

// A disk that turns out to be full ends an install with the stage, the place
// and the reason, and nothing stays mounted: what is known beforehand before a
// byte is written, what is not in the midst of it.
func TestInstallDiskFull(t *testing.T) {
	var space *imaging.SpaceError
	for _, c := range []struct {
		name   string
		taken  int
		late   bool // the image fits, GRUB does not any more
		stage  Stage
		reason string
		is     func(error) bool
	}{
		{"the image does not fit", 8 << 20, false, StageApply, "bytes free and", func(err error) bool { return errors.As(err, &space) && space.Need > space.Have }},
		{"full at last", 0, true, StageBootloader, "no space left on device", func(err error) bool { return errors.Is(err, unix.ENOSPC) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			files := debianFiles()
			if !c.late {
				files["opt/big"] = strings.Repeat("x", 12<<20)
			}
			image := newImage(debianHead(), files)
			target := testTarget()
			target.ImageHead = image.Head
			plan := mustPlan(t, target, testHardware(BIOS, vda(20*gib)))
			work := t.TempDir()
			disk := &smallDisk{Recorder: &Recorder{Out: io.Discard}, node: smallLoop(t, c.taken)}
			disk.Ran = func(cmd Command) error {
				if !c.late || !strings.HasSuffix(cmd.Args[0], "grub-install") {
					return nil
				}
				// As grub-install does: it copies its modules until no more go in.
				return os.WriteFile(filepath.Join(cmd.Root, "boot/grub/modules"), make([]byte, 32<<20), 0o644)
			}
			err := Install(t.Context(), disk, plan, &image.Manifest, image, testOptions(work, nil))
			var where *StageError
			if !errors.As(err, &where) || where.Stage != c.stage || !c.is(err) || !strings.Contains(err.Error(), c.reason) {
				t.Errorf("got %v", err)
			}
			if len(disk.mounts) > 0 {
				t.Errorf("left mounted: %q", disk.mounts)
			}
			mounts, err := os.ReadFile("/proc/self/mountinfo")
			if err != nil || strings.Contains(string(mounts), work) {
				t.Errorf("left mounted: %v\n%s", err, mounts)
			}
		})
	}
}

// A node whose disk is too small for an update, or fills up in the midst of it,
// says so, can still start, and is updated when there is room.
func TestUpdateDiskFull(t *testing.T) {
	old := newImage(debianHead(), debianFiles())
	target := testTarget()
	target.ImageHead = old.Head
	plan := mustPlan(t, target, testHardware(BIOS, vda(20*gib)))
	work := t.TempDir()
	disk := &smallDisk{Recorder: &Recorder{Out: io.Discard, Ran: menu(plan)}, node: smallLoop(t, 0)}
	if err := Install(t.Context(), disk, plan, &old.Manifest, old, testOptions(work, nil)); err != nil {
		t.Fatal(err)
	}
	root := filepath.Join(work, "target")
	if err := unix.Mount(disk.node, root, "ext4", 0, ""); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := unix.Unmount(root, 0); err != nil {
			t.Error(err)
		}
	}()
	if err := os.WriteFile(filepath.Join(root, "ballast"), []byte(strings.Repeat("y", 8<<20)), 0o600); err != nil {
		t.Fatal(err)
	}
	image := upgraded()
	big := newImage(image.Head, map[string]string{"opt/big": strings.Repeat("x", 7<<20)})
	list := image.List
	var merged imaging.EntriesBuilder
	for _, e := range list.All() {
		if e.Path == "proc" { // in the order of paths, opt comes before it
			for _, name := range []string{"opt", "opt/big"} {
				if err := merged.Add(big.List.Get(name)); err != nil {
					t.Fatal(err)
				}
			}
		}
		if err := merged.Add(e); err != nil {
			t.Fatal(err)
		}
	}
	var err error
	if image.List, err = merged.Done(); err != nil {
		t.Fatal(err)
	}
	for _, ref := range big.refs {
		if image.chunks[ref] == nil {
			image.refs, image.chunks[ref] = append(image.refs, ref), big.chunks[ref]
		}
	}
	update := func(keep ...string) error {
		rec := &Recorder{Out: io.Discard, Ran: menu(plan)}
		_, err := Update(t.Context(), rec, plan, &image.Manifest, image, UpdateOptions{Root: root, Work: t.TempDir(), Disk: "/dev/vda", Orders: UpdateOrders{Keep: keep}})
		return err
	}
	var space *imaging.SpaceError
	if err := update("ballast"); !errors.As(err, &space) || space.Need <= space.Have {
		t.Errorf("no room: %v", err)
	}
	if !starts(t, root) || readFile(t, root, "home/user/notes") != "text" {
		t.Error("what cannot fit was begun")
	}
	// GRUB finds no room at the end.
	full := &Recorder{Out: io.Discard, Ran: func(c Command) error {
		return os.WriteFile(filepath.Join(c.Root, "boot/grub/modules"), make([]byte, 32<<20), 0o644)
	}}
	if err := os.Remove(filepath.Join(root, "ballast")); err != nil {
		t.Fatal(err)
	}
	_, err = Update(t.Context(), full, plan, &image.Manifest, image, UpdateOptions{Root: root, Work: t.TempDir(), Disk: "/dev/vda"})
	if !errors.Is(err, unix.ENOSPC) || !starts(t, root) {
		t.Errorf("full at last: %v; it starts: %v", err, starts(t, root))
	}
	if err := os.Remove(filepath.Join(root, "boot/grub/modules")); err != nil {
		t.Fatal(err)
	}
	if err := update(); err != nil || !starts(t, root) || len(readFile(t, root, "opt/big")) != 7<<20 || readFile(t, root, "boot/vmlinuz-6.1.0-1-amd64") != "" {
		t.Errorf("with room again: %v", err)
	}
}
