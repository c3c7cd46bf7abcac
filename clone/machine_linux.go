package clone

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"doppel/imaging"
)

// Linux is the machine this process runs on. It needs root, /proc, /sys and a
// devtmpfs on /dev; no udev and no programs.
type Linux struct{}

// NewLinux is the machine this process runs on.
func NewLinux() *Linux { return &Linux{} }

var _ Machine = (*Linux)(nil)

// ReadDiskGUID is the GUID of a disk's GPT, in upper case; empty when it has
// none that is whole.
func ReadDiskGUID(ctx context.Context, disk string) (string, error) {
	t, err := NewLinux().ReadTable(ctx, disk)
	if err != nil || t == nil {
		return "", err
	}
	return t.GUID, nil
}

func (l *Linux) ReadTable(_ context.Context, disk string) (*PartitionTable, error) {
	f, err := os.Open(disk)
	if err != nil {
		return nil, fmt.Errorf("read the partition table: %w", err)
	}
	defer f.Close()
	size, sector, err := geometry(f)
	if err != nil {
		return nil, fmt.Errorf("read the partition table of %s: %w", disk, err)
	}
	t, err := imaging.ReadDiskTable(f, size, sector)
	if err != nil || t.Kind != "gpt" {
		// A damaged table is none that can be continued with.
		return nil, readError(f, err)
	}
	out := &PartitionTable{GUID: t.GUID}
	for _, p := range t.Partitions {
		out.Partitions = append(out.Partitions, Partition{
			Number: p.Number, Start: p.Start, Size: p.Size, Type: p.Type, GUID: p.GUID, Name: p.Name, Attributes: p.Attributes,
		})
	}
	return out, nil
}

// readError tells a disk that cannot be read from one with a damaged table.
func readError(f *os.File, err error) error {
	if errno := syscall.Errno(0); errors.As(err, &errno) {
		return fmt.Errorf("read the partition table of %s: %w", f.Name(), err)
	}
	return nil
}

// geometry is the size of a disk, or of an image of one, and of its logical
// sectors, in bytes.
func geometry(f *os.File) (size int64, sector int, err error) {
	if size, err = f.Seek(0, io.SeekEnd); err != nil {
		return 0, 0, err
	}
	fi, err := f.Stat()
	if err != nil {
		return 0, 0, err
	}
	if fi.Mode()&fs.ModeDevice == 0 {
		return size, 512, nil
	}
	sector, err = unix.IoctlGetInt(int(f.Fd()), unix.BLKSSZGET)
	return size, sector, err
}

func (l *Linux) FileSystem(_ context.Context, part string) (*imaging.FileSystem, error) {
	f, err := os.Open(part)
	if err != nil {
		return nil, fmt.Errorf("look for a file system: %w", err)
	}
	defer f.Close()
	found, _, err := imaging.ProbeFileSystem(f)
	if err != nil {
		return nil, fmt.Errorf("look for a file system on %s: %w", part, err)
	}
	return found, nil
}

func (l *Linux) Mount(_ context.Context, mt Mount) error {
	if err := os.MkdirAll(mt.Dir, 0o755); err != nil {
		return fmt.Errorf("mount %s: %w", mt.Source, err)
	}
	if err := unix.Mount(mt.Source, mt.Dir, mt.Type, 0, mt.Options); err != nil {
		if errors.Is(err, unix.ENODEV) {
			return fmt.Errorf("mount %s: the running kernel knows no %s file system (its module was not loaded)", mt.Source, mt.Type)
		}
		return fmt.Errorf("mount %s as %s on %s: %w", mt.Source, mt.Type, mt.Dir, err)
	}
	return nil
}

// busyPatience is how long a file system that is in use is waited for. The
// kernel tells nobody when the last user of one goes, and a process that has
// ended can keep its files for a moment longer, when another reads about it in
// /proc.
const busyPatience = 5 * time.Second

func (l *Linux) Unmount(ctx context.Context, dir string) error {
	ctx, cancel := context.WithTimeout(ctx, busyPatience)
	defer cancel()
	again := time.NewTicker(50 * time.Millisecond)
	defer again.Stop()
	for {
		err := unix.Unmount(dir, unix.UMOUNT_NOFOLLOW)
		switch {
		case err == nil, errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOENT):
			return nil // or is no mount point: done already
		case !errors.Is(err, unix.EBUSY):
			return fmt.Errorf("unmount %s: %w", dir, err)
		}
		select {
		case <-again.C:
		case <-ctx.Done():
			return fmt.Errorf("unmount %s: %w", dir, err)
		}
	}
}

func (l *Linux) Sync(context.Context) error {
	unix.Sync()
	return nil
}

// Run runs a program chrooted. What it says goes into the error alone.
func (l *Linux) Run(ctx context.Context, c Command) error {
	var said bytes.Buffer
	cmd := exec.CommandContext(ctx, c.Args[0], c.Args[1:]...)
	cmd.Path, cmd.Err = c.Args[0], nil // a path beneath the new root: nothing to look up here
	cmd.Dir = "/"
	cmd.Env = append([]string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C", "HOME=/root"}, c.Env...)
	cmd.Stdin = c.Stdin
	cmd.Stdout, cmd.Stderr = &said, &said
	// A group of its own, so that cancelling ends what the program started, too.
	cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: c.Root, Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = 5 * time.Second
	if err := runHiding(cmd, c); err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return fmt.Errorf("run %s: %w%s", strings.Join(c.Args, " "), err, lastWords(said.String()))
	}
	return nil
}

// runHiding runs a program with a device in the place of the files that it is
// not to find, in a mount namespace of its own.
func runHiding(cmd *exec.Cmd, c Command) error {
	if len(c.Hide) == 0 {
		return cmd.Run()
	}
	started := make(chan error)
	go func() {
		// What is started from this thread has its namespace, and nobody else
		// ever does: it is not unlocked, so it ends with this function.
		runtime.LockOSThread()
		err := hide(c)
		if err == nil {
			err = cmd.Start()
		}
		started <- err
	}()
	if err := <-started; err != nil {
		return err
	}
	return cmd.Wait()
}

// hide gives the thread that calls it a mount namespace of its own, without a
// command's hidden files.
func hide(c Command) error {
	if err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("make a mount namespace: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make a mount namespace: %w", err)
	}
	for _, name := range c.Hide {
		if err := unix.Mount("/dev/null", filepath.Join(c.Root, name), "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("hide %s: %w", name, err)
		}
	}
	return nil
}

// maxWords bounds the words of a program in an error, in bytes: the head keeps the
// first 4096 of a reason.
const maxWords = 2048

// lastWords are the last lines a program said, for an error. What draws a bar
// ends its lines with carriage returns.
func lastWords(said string) string {
	lines := strings.FieldsFunc(said, func(r rune) bool { return r == '\n' || r == '\r' })
	if len(lines) > 6 {
		lines = lines[len(lines)-6:]
	}
	text := strings.TrimSpace(strings.Join(lines, "; "))
	if text == "" {
		return ""
	}
	if len(text) > maxWords {
		text = "…" + strings.ToValidUTF8(text[len(text)-maxWords:], "")
	}
	return ": " + text
}

// charDevices are what programs expect in /dev, by their numbers (kernel:
// Documentation/admin-guide/devices.txt).
var charDevices = []struct {
	name         string
	mode         uint32
	major, minor uint32
}{
	{"null", 0o666, 1, 3}, {"zero", 0o666, 1, 5}, {"full", 0o666, 1, 7},
	{"random", 0o666, 1, 8}, {"urandom", 0o666, 1, 9}, {"tty", 0o666, 5, 0}, {"console", 0o600, 5, 1},
}

// Devices gives a root directory a /dev with the plan's disk alone, so that
// nothing run in there can find, or touch, another. The links by UUID are what
// udev would have made: grub-mkconfig only names the root by UUID when it finds
// the link.
func (l *Linux) Devices(ctx context.Context, plan *Plan, dir string) error {
	dev := filepath.Join(dir, "dev")
	for _, m := range []Mount{
		{"tmpfs", dev, "tmpfs", "mode=755,size=4m"},
		{"proc", filepath.Join(dir, "proc"), "proc", ""},
		{"sysfs", filepath.Join(dir, "sys"), "sysfs", ""},
		{"tmpfs", filepath.Join(dir, "run"), "tmpfs", "mode=755,size=64m"},
	} {
		if err := l.Mount(ctx, m); err != nil {
			return err
		}
	}
	for _, d := range charDevices {
		if err := mknod(filepath.Join(dev, d.name), unix.S_IFCHR|d.mode, unix.Mkdev(d.major, d.minor)); err != nil {
			return err
		}
	}
	for name, to := range map[string]string{"fd": "/proc/self/fd", "stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1", "stderr": "/proc/self/fd/2"} {
		if err := os.Symlink(to, filepath.Join(dev, name)); err != nil {
			return err
		}
	}
	if err := copyNode(plan.Disk.Path, dir); err != nil {
		return err
	}
	for _, p := range plan.Partitions {
		node := PartitionPath(plan.Disk.Path, p.Number)
		if err := copyNode(node, dir); err != nil {
			return err
		}
		links := map[string]string{"by-partuuid": strings.ToLower(p.GUID)}
		if p.FS != nil {
			links["by-uuid"] = p.FS.UUID
		}
		for by, name := range links {
			at := filepath.Join(dev, "disk", by)
			if err := os.MkdirAll(at, 0o755); err != nil {
				return err
			}
			if err := os.Symlink("../../"+strings.TrimPrefix(node, "/dev/"), filepath.Join(at, name)); err != nil {
				return err
			}
		}
	}
	return nil
}

// copyNode makes below dir the node of a block device that is here.
func copyNode(node, dir string) error {
	var st unix.Stat_t
	if err := unix.Stat(node, &st); err != nil {
		return fmt.Errorf("look at %s: %w", node, err)
	}
	return mknod(filepath.Join(dir, node), unix.S_IFBLK|0o660, st.Rdev)
}

// mknod makes a device with exactly its mode.
func mknod(name string, mode uint32, dev uint64) error {
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return err
	}
	if err := unix.Mknod(name, mode, int(dev)); err != nil {
		return fmt.Errorf("make the device %s: %w", name, err)
	}
	return os.Chmod(name, fs.FileMode(mode&0o777))
}

// sysfsInt reads a number of sysfs.
func sysfsInt(name string) (int64, error) {
	b, err := os.ReadFile(name)
	if err != nil {
		return 0, err
	}
	n, err := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
	if err != nil {
		return 0, fmt.Errorf("read %s: %w", name, err)
	}
	return n, nil
}
