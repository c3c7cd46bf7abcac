package imaging

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// DescribeLocal tells what the host of the tree at root is and how its disk is
// laid out. A tree that is not the whole root file system of a partition has
// no Layout; Facts.LayoutNote then says why.
//
// The firmware and the kernel's command line are only told when the kernel
// that runs is the tree's own: a chroot on a build host says nothing about how
// its copy will start.
func DescribeLocal(ctx context.Context, root string) (Facts, *Layout, error) {
	var f Facts
	root, err := filepath.Abs(root)
	if err != nil {
		return f, nil, fmt.Errorf("find the tree to describe: %w", err)
	}
	tree, err := os.OpenRoot(root)
	if err != nil {
		return f, nil, fmt.Errorf("open the tree to describe: %w", err)
	}
	defer tree.Close()

	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		return f, nil, fmt.Errorf("ask the kernel for its name: %w", err)
	}
	f.Arch = unix.ByteSliceToString(uts.Machine[:])
	if f.Hostname, err = hostname(tree); err != nil {
		return f, nil, err
	}
	if f.Hostname == "" && root == "/" {
		f.Hostname = unix.ByteSliceToString(uts.Nodename[:])
	}
	if f.OSRelease, err = osRelease(tree); err != nil {
		return f, nil, err
	}
	if ownKernel(tree, root, unix.ByteSliceToString(uts.Release[:])) {
		f.Firmware = "bios"
		if _, err := os.Stat("/sys/firmware/efi"); err == nil {
			f.Firmware = "uefi"
		}
		line, err := os.ReadFile("/proc/cmdline")
		if err != nil {
			return f, nil, fmt.Errorf("read the kernel's command line: %w", err)
		}
		f.Cmdline = strings.TrimSpace(string(line))
	}
	if err := ctx.Err(); err != nil {
		return f, nil, context.Cause(ctx)
	}
	layout, err := describeLayout(tree, root)
	var none *noLayoutError
	if errors.As(err, &none) {
		f.LayoutNote = none.why
		return f, nil, nil
	}
	if err != nil {
		return f, nil, fmt.Errorf("read the disk's layout: %w", err)
	}
	return f, layout, nil
}

// hostname is the first word of etc/hostname, as hostname(5) reads it: lines
// that start with # do not count.
func hostname(tree *os.Root) (string, error) {
	b, err := readIn(tree, "etc/hostname")
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(b)) {
		line = strings.TrimSpace(line)
		if line != "" && !strings.HasPrefix(line, "#") {
			return line, nil
		}
	}
	return "", nil
}

func osRelease(tree *os.Root) (map[string]string, error) {
	// Some trees have the file in usr/lib alone, with a link from etc that
	// was lost: os-release(5) names both places.
	for _, name := range []string{"etc/os-release", "usr/lib/os-release"} {
		b, err := readIn(tree, name)
		if err != nil {
			return nil, err
		}
		if b != nil {
			return ParseOSRelease(b), nil
		}
	}
	return map[string]string{}, nil
}

// readIn reads a file beneath tree; nil when there is none, or when it is a
// link that leads out of the tree.
func readIn(tree *os.Root, name string) ([]byte, error) {
	b, err := tree.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		if fi, lerr := tree.Lstat(name); lerr == nil && fi.Mode()&fs.ModeSymlink != 0 {
			return nil, nil
		}
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	if b == nil {
		b = []byte{}
	}
	return b, nil
}

// ownKernel tells whether the running kernel was started from this tree: it is
// the root of the first process, and holds the modules of that kernel.
func ownKernel(tree *os.Root, root, release string) bool {
	if root != "/" {
		return false
	}
	here, err := os.Stat("/")
	if err != nil {
		return false
	}
	// In a chroot the first process has another root.
	first, err := os.Stat("/proc/1/root/.")
	if err != nil || !os.SameFile(here, first) {
		return false
	}
	for _, dir := range []string{"lib/modules/", "usr/lib/modules/"} {
		if _, err := tree.Stat(dir + release); err == nil {
			return true
		}
	}
	return false
}
