package clone

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"unicode/utf16"
	"unsafe"

	"github.com/diskfs/go-diskfs/partition/gpt"
	"golang.org/x/sys/unix"
)

// WriteTable wipes and partitions a disk. The table is written last, and its
// first copy last of all (see go-diskfs's Table.Write), so that the plan's id
// on the disk means that all before it was done.
//
// Opening with O_EXCL is the kernel's own guard: it fails while the disk or a
// partition of it is mounted, or part of a RAID or a volume group.
func (l *Linux) WriteTable(_ context.Context, plan *Plan) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("partition %s: %w", plan.Disk.Path, err)
		}
	}()
	f, err := os.OpenFile(plan.Disk.Path, os.O_RDWR|unix.O_EXCL, 0)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	size, sector, err := geometry(f)
	if err != nil {
		return err
	}
	table, err := gptOf(plan, size, sector)
	if err != nil {
		return err
	}
	if err := dropPartitions(f, plan.Disk.Path, nil); err != nil {
		return err
	}
	// Superblocks of what was here before are at the beginning of a partition
	// or, of md and ZFS, at its end.
	regions := []Partition{{Start: 0, Size: size}}
	regions = append(regions, plan.Partitions...)
	for _, p := range regions {
		if err := zero(f, p.Start, min(mib, p.Size)); err != nil {
			return err
		}
		if err := zero(f, p.Start+max(0, p.Size-mib), min(mib, p.Size)); err != nil {
			return err
		}
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := table.Write(f, size); err != nil {
		return err
	}
	// A disk of more sectors than 32 bits count is said to have as many as
	// they do count (UEFI specification, table 5-4).
	if sectors := size/int64(sector) - 1; sectors > 0xffffffff {
		if _, err := f.WriteAt([]byte{0xff, 0xff, 0xff, 0xff}, 446+12); err != nil {
			return err
		}
	}
	return f.Sync()
}

// gptOf is a plan's table for a disk of this geometry.
func gptOf(plan *Plan, size int64, sector int) (*gpt.Table, error) {
	t := &gpt.Table{LogicalSectorSize: sector, PhysicalSectorSize: sector, GUID: plan.ID, ProtectiveMBR: true}
	end := firstByte
	for _, p := range plan.Partitions {
		if p.Start < end || p.Size <= 0 || p.Start+p.Size > size-lastBytes || p.Start%int64(sector) != 0 || p.Size%int64(sector) != 0 {
			return nil, fmt.Errorf("partition %d of the plan, %d bytes at %d, does not fit the disk of %d bytes", p.Number, p.Size, p.Start, size)
		}
		end = p.Start + p.Size
		t.Partitions = append(t.Partitions, &gpt.Partition{
			Index:      p.Number,
			Start:      uint64(p.Start) / uint64(sector),
			End:        uint64(p.Start+p.Size)/uint64(sector) - 1,
			Type:       gpt.Type(p.Type),
			GUID:       p.GUID,
			Name:       tableName(p.Name),
			Attributes: p.Attributes,
		})
	}
	return t, nil
}

// tableName cuts a name to the 36 UTF-16 units that a GPT entry has room for.
func tableName(s string) string {
	n := 0
	for i, r := range s {
		if n += utf16.RuneLen(r); n > 36 {
			return s[:i]
		}
	}
	return s
}

func zero(f *os.File, at, n int64) error {
	_, err := f.WriteAt(make([]byte, n), at)
	return err
}

// OpenPartitions tells the kernel of the plan's partitions one by one (BLKPG).
// Asking it to read the table itself (BLKRRPART) would need a kernel with
// support for GPT, and a disk that nothing has open.
func (l *Linux) OpenPartitions(_ context.Context, plan *Plan) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("show the partitions of %s: %w", plan.Disk.Path, err)
		}
	}()
	f, err := os.Open(plan.Disk.Path)
	if err != nil {
		return err
	}
	defer f.Close()
	have, err := kernelPartitions(plan.Disk.Path)
	if err != nil {
		return err
	}
	if err := dropPartitions(f, plan.Disk.Path, plan); err != nil {
		return err
	}
	for _, p := range plan.Partitions {
		if k, ok := have[p.Number]; !ok || k.Start != p.Start || k.Size != p.Size {
			if err := blkpg(f, unix.BLKPG_ADD_PARTITION, p); err != nil {
				return fmt.Errorf("partition %d: %w", p.Number, err)
			}
		}
		if err := ensureNode(plan.Disk.Path, p.Number); err != nil {
			return err
		}
	}
	return nil
}

// dropPartitions makes the kernel forget a disk's partitions that are not
// exactly those of the plan; all of them when there is none.
func dropPartitions(f *os.File, disk string, plan *Plan) error {
	have, err := kernelPartitions(disk)
	if err != nil {
		return err
	}
	keep := make(map[int]Partition)
	if plan != nil {
		for _, p := range plan.Partitions {
			keep[p.Number] = p
		}
	}
	for _, k := range have {
		if p, ok := keep[k.Number]; ok && p.Start == k.Start && p.Size == k.Size {
			continue
		}
		if err := blkpg(f, unix.BLKPG_DEL_PARTITION, k); err != nil {
			return fmt.Errorf("partition %d is in use: %w", k.Number, err)
		}
	}
	return nil
}

// kernelPartitions are the partitions of a disk that the kernel shows.
func kernelPartitions(disk string) (map[int]Partition, error) {
	dir, err := sysfsOf(disk)
	if err != nil {
		return nil, err
	}
	list, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	out := make(map[int]Partition)
	for _, e := range list {
		at := filepath.Join(dir, e.Name())
		number, err := sysfsInt(filepath.Join(at, "partition"))
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
			continue
		}
		if err != nil {
			return nil, err
		}
		start, err := sysfsInt(filepath.Join(at, "start"))
		if err != nil {
			return nil, err
		}
		size, err := sysfsInt(filepath.Join(at, "size"))
		if err != nil {
			return nil, err
		}
		// Sysfs counts in 512 bytes, whatever the disk's sectors are.
		out[int(number)] = Partition{Number: int(number), Start: start * 512, Size: size * 512}
	}
	return out, nil
}

// sysfsOf is the directory of a block device in sysfs.
func sysfsOf(node string) (string, error) {
	var st unix.Stat_t
	if err := unix.Stat(node, &st); err != nil {
		return "", fmt.Errorf("look at %s: %w", node, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFBLK {
		return "", fmt.Errorf("%s is not a block device", node)
	}
	return filepath.EvalSymlinks(fmt.Sprintf("/sys/dev/block/%d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev)))
}

// blkpg is the BLKPG ioctl, for one partition (linux/blkpg.h).
func blkpg(f *os.File, op int32, p Partition) error {
	part := unix.BlkpgPartition{Start: p.Start, Length: p.Size, Pno: int32(p.Number)}
	arg := unix.BlkpgIoctlArg{Op: op, Datalen: int32(unsafe.Sizeof(part)), Data: (*byte)(unsafe.Pointer(&part))}
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), unix.BLKPG, uintptr(unsafe.Pointer(&arg)))
	if errno != 0 {
		return errno
	}
	return nil
}

// ensureNode sees that a partition's node is there. devtmpfs has made it by
// the time BLKPG returns; where /dev is an ordinary directory it is made here.
func ensureNode(disk string, number int) error {
	node := PartitionPath(disk, number)
	dir, err := sysfsOf(disk)
	if err != nil {
		return err
	}
	// Sysfs has ! where the node's name has a slash (cciss/c0d0p1).
	name := strings.ReplaceAll(strings.TrimPrefix(node, "/dev/"), "/", "!")
	b, err := os.ReadFile(filepath.Join(dir, name, "dev"))
	if err != nil {
		return fmt.Errorf("partition %d is not shown: %w", number, err)
	}
	var major, minor uint32
	if _, err := fmt.Sscanf(strings.TrimSpace(string(b)), "%d:%d", &major, &minor); err != nil {
		return fmt.Errorf("read the device number of partition %d: %w", number, err)
	}
	dev := unix.Mkdev(major, minor)
	var st unix.Stat_t
	if err := unix.Stat(node, &st); err == nil && st.Rdev == dev {
		return nil
	}
	if err := os.Remove(node); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return mknod(node, unix.S_IFBLK|0o660, dev)
}

// recordAt is where on the disk the record of formatted partitions is: behind
// the table, which ends before 24 KiB, and before the first partition at 1 MiB.
const (
	recordAt    = 512 << 10
	recordBytes = 16 << 10
)

func (l *Linux) ReadRecord(_ context.Context, plan *Plan) (Record, error) {
	none := Record{Plan: plan.ID}
	f, err := os.Open(plan.Disk.Path)
	if err != nil {
		return none, fmt.Errorf("read the install's record: %w", err)
	}
	defer f.Close()
	b := make([]byte, recordBytes)
	if _, err := f.ReadAt(b, recordAt); err != nil {
		return none, fmt.Errorf("read the install's record from %s: %w", plan.Disk.Path, err)
	}
	r, ok := decodeRecord(b)
	if !ok || r.Plan != plan.ID {
		return none, nil
	}
	return r, nil
}

// WriteRecord makes durable what was written to the partitions before it says
// so: fsync of a block device also empties the disk's own cache.
func (l *Linux) WriteRecord(_ context.Context, plan *Plan, r Record) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("write the install's record to %s: %w", plan.Disk.Path, err)
		}
	}()
	b, err := encodeRecord(r)
	if err != nil {
		return err
	}
	unix.Sync()
	f, err := os.OpenFile(plan.Disk.Path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if err := f.Sync(); err != nil {
		return err
	}
	if _, err := f.WriteAt(b, recordAt); err != nil {
		return err
	}
	return f.Sync()
}
