package imaging

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// noLayoutError says why a tree has no layout.
type noLayoutError struct{ why string }

func (e *noLayoutError) Error() string { return e.why }

func noLayout(format string, args ...any) error {
	return &noLayoutError{fmt.Sprintf(format, args...)}
}

// mountLine is what a line of /proc/self/mountinfo says (proc_pid_mountinfo(5)).
type mountLine struct {
	Dev  string // major:minor
	Root string // of the mount within its file system
	Dir  string
	Type string
}

func parseMountLine(line string) (mountLine, bool) {
	before, after, ok := strings.Cut(line, " - ")
	f, g := strings.Fields(before), strings.Fields(after)
	if !ok || len(f) < 6 || len(g) < 1 {
		return mountLine{}, false
	}
	return mountLine{Dev: f[2], Root: unescapeOctal(f[3]), Dir: unescapeOctal(f[4]), Type: g[0]}, true
}

func readMountLines() ([]mountLine, error) {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if errors.Is(err, fs.ErrNotExist) {
		return nil, noLayout("/proc is not mounted, so that it cannot be told what the tree is mounted from")
	}
	if err != nil {
		return nil, err
	}
	var out []mountLine
	for line := range strings.Lines(string(b)) {
		if m, ok := parseMountLine(line); ok {
			out = append(out, m)
		}
	}
	return out, nil
}

// describeLayout reads the layout of the disk that the tree at the absolute
// path root is the root file system of.
func describeLayout(tree *os.Root, root string) (*Layout, error) {
	mounts, err := readMountLines()
	if err != nil {
		return nil, err
	}
	dir, err := rootPartition(mounts, root)
	if err != nil {
		return nil, err
	}
	disk, err := openWholeDisk(filepath.Dir(dir))
	if err != nil {
		return nil, err
	}
	defer disk.Close()
	table, err := ReadDiskTable(disk, disk.size, disk.sector)
	if err != nil {
		return nil, noLayout("the partition table of %s cannot be read: %v", disk.Name(), err)
	}
	if table.Kind == "" {
		return nil, noLayout("%s has neither a GPT nor an MBR partition table", disk.Name())
	}
	l := &Layout{Table: table.Kind, SectorSize: disk.sector, DiskSize: disk.size, Partitions: table.Partitions}
	for i := range l.Partitions {
		p := &l.Partitions[i]
		var foreign string
		p.FS, foreign, err = ProbeFileSystem(io.NewSectionReader(disk, p.Start, p.Size))
		if err != nil {
			return nil, fmt.Errorf("partition %d of %s: %w", p.Number, disk.Name(), err)
		}
		if foreign != "" && isPartition(dir, p.Number) {
			return nil, noLayout("the root file system is on %s, whose layout is not recorded", foreign)
		}
	}
	return l, placeMounts(tree, root, l, mounts, dir)
}

// rootPartition finds the sysfs directory of the partition that the tree is
// the whole file system of.
func rootPartition(mounts []mountLine, root string) (string, error) {
	var at *mountLine
	for i := range mounts { // the last one on a directory is the one that is seen
		if mounts[i].Dir == root {
			at = &mounts[i]
		}
	}
	switch {
	case at == nil:
		return "", noLayout("the tree is a directory of a larger file system, not a disk's own root")
	case at.Type == "btrfs" || at.Type == "zfs" || at.Type == "bcachefs":
		return "", noLayout("the root file system is %s, whose layout is not recorded", at.Type)
	case at.Root != "/":
		return "", noLayout("the tree is the directory %s of a larger file system, not a disk's own root", at.Root)
	case strings.HasPrefix(at.Dev, "0:"):
		return "", noLayout("the root file system is %s, which is on no disk", at.Type)
	}
	dir, err := filepath.EvalSymlinks("/sys/dev/block/" + at.Dev)
	if errors.Is(err, fs.ErrNotExist) {
		return "", noLayout("sysfs does not show the block device %s", at.Dev)
	}
	if err != nil {
		return "", err
	}
	name := filepath.Base(dir)
	if _, err := os.Stat(filepath.Join(dir, "partition")); err == nil {
		return dir, nil
	}
	if id, err := sysfs(dir, "dm/uuid"); err == nil {
		kind := "device mapper"
		switch {
		case strings.HasPrefix(id, "LVM-"):
			kind = "LVM"
		case strings.HasPrefix(id, "CRYPT-"):
			kind = "dm-crypt"
		}
		return "", noLayout("the root file system is on %s, whose layout is not recorded", kind)
	}
	if _, err := os.Stat(filepath.Join(dir, "md")); err == nil {
		return "", noLayout("the root file system is on md (software RAID), whose layout is not recorded")
	}
	return "", noLayout("the root file system is on the whole of %s, which is not a partition", name)
}

// wholeDisk is a disk opened to be read.
type wholeDisk struct {
	*os.File
	size   int64
	sector int
}

// openWholeDisk opens the disk whose sysfs directory is dir.
func openWholeDisk(dir string) (*wholeDisk, error) {
	size, err := sysfsInt(dir, "size") // always in units of 512 bytes
	if err != nil {
		return nil, err
	}
	sector, err := sysfsInt(dir, "queue/logical_block_size")
	if err != nil {
		return nil, err
	}
	// Sysfs writes ! where the node's name has a slash (cciss!c0d0).
	name := strings.ReplaceAll(filepath.Base(dir), "!", "/")
	f, err := os.Open("/dev/" + name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, noLayout("the disk's node /dev/%s is not there", name)
	}
	if errors.Is(err, fs.ErrPermission) {
		return nil, noLayout("/dev/%s may not be read by this user", name)
	}
	if err != nil {
		return nil, err
	}
	return &wholeDisk{File: f, size: size * 512, sector: int(sector)}, nil
}

func sysfs(dir, name string) (string, error) {
	b, err := os.ReadFile(filepath.Join(dir, name))
	return strings.TrimSpace(string(b)), err
}

func sysfsInt(dir, name string) (int64, error) {
	s, err := sysfs(dir, name)
	if err != nil {
		return 0, err
	}
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("read %s: %w", filepath.Join(dir, name), err)
	}
	return n, nil
}

// isPartition tells whether dir, of sysfs, is that of the partition's number.
func isPartition(dir string, number int) bool {
	n, err := sysfsInt(dir, "partition")
	return err == nil && n == int64(number)
}

// placeMounts fills in where each file system belongs: by the tree's fstab,
// and where that is silent by what is mounted now.
func placeMounts(tree *os.Root, root string, l *Layout, mounts []mountLine, rootDir string) error {
	fstab, err := readIn(tree, "etc/fstab")
	if err != nil {
		return err
	}
	var entries []FstabEntry
	for line := range strings.Lines(string(fstab)) {
		if e, ok := ParseFstabLine(line); ok {
			entries = append(entries, e)
		}
	}
	devices, err := partitionNumbers(filepath.Dir(rootDir))
	if err != nil {
		return err
	}
	for i := range l.Partitions {
		p := &l.Partitions[i]
		if p.FS == nil {
			continue
		}
		if isPartition(rootDir, p.Number) {
			p.FS.Mount = "/"
		}
		for _, e := range entries {
			if !e.Names(*p) && devices[deviceOf(e.Spec)] != p.Number {
				continue
			}
			p.FS.Options = e.Options
			if p.FS.Type != "swap" && strings.HasPrefix(e.Dir, "/") && p.FS.Mount == "" {
				p.FS.Mount = filepath.Clean(e.Dir)
			}
			break
		}
		if p.FS.Mount == "" && p.FS.Type != "swap" {
			p.FS.Mount = mountedAt(mounts, devices, p.Number, root)
		}
	}
	return nil
}

// partitionNumbers maps the names and the major:minor numbers of a disk's
// partitions to their numbers.
func partitionNumbers(disk string) (map[string]int, error) {
	list, err := os.ReadDir(disk)
	if err != nil {
		return nil, err
	}
	out := make(map[string]int)
	for _, e := range list {
		dir := filepath.Join(disk, e.Name())
		n, err := sysfsInt(dir, "partition")
		if err != nil {
			continue // not a partition's directory
		}
		out["/dev/"+e.Name()] = int(n)
		if dev, err := sysfs(dir, "dev"); err == nil {
			out[dev] = int(n)
		}
	}
	return out, nil
}

// deviceOf follows a path in an fstab to a device node's name. Links below
// /dev are the running system's, whatever tree is described.
func deviceOf(spec string) string {
	if !strings.HasPrefix(spec, "/dev/") {
		return ""
	}
	if real, err := filepath.EvalSymlinks(spec); err == nil {
		return real
	}
	return spec
}

func mountedAt(mounts []mountLine, devices map[string]int, number int, root string) string {
	for _, m := range mounts {
		if m.Root != "/" || devices[m.Dev] != number {
			continue
		}
		if root == "/" {
			return m.Dir
		}
		if below, ok := strings.CutPrefix(m.Dir, root+"/"); ok {
			return "/" + below
		}
	}
	return ""
}
