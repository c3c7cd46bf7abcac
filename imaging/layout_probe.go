package imaging

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"
)

// ProbeFileSystem tells what a partition holds by its superblock. What doppel
// cannot lay out again (LVM, md, LUKS, btrfs, …) comes as foreign, in words.
// Both are empty when nothing known is there.
func ProbeFileSystem(r io.ReaderAt) (fs *FileSystem, foreign string, err error) {
	// One read holds every superblock: btrfs keeps the farthest, at 64 KiB,
	// swap on 64 KiB pages the next.
	b := make([]byte, 68<<10)
	n, err := r.ReadAt(b, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, "", fmt.Errorf("read the superblock: %w", err)
	}
	clear(b[n:])
	if foreign = probeForeign(b); foreign != "" {
		return nil, foreign, nil
	}
	for _, probe := range []func([]byte) *FileSystem{probeXFS, probeExt, probeSwap, probeVFAT} {
		if fs := probe(b); fs != nil {
			return fs, "", nil
		}
	}
	return nil, "", nil
}

func probeForeign(b []byte) string {
	switch {
	case string(b[:6]) == "LUKS\xba\xbe":
		return "dm-crypt (LUKS)"
	case string(b[0x10040:0x10048]) == "_BHRfS_M":
		return "btrfs"
	case binary.LittleEndian.Uint32(b[0:]) == 0xa92b4efc, binary.LittleEndian.Uint32(b[4096:]) == 0xa92b4efc:
		return "md (software RAID)"
	}
	for sector := range 4 {
		if s := b[sector*512:]; string(s[:8]) == "LABELONE" && string(s[24:32]) == "LVM2 001" {
			return "LVM"
		}
	}
	return ""
}

// extFeatures are the feature bits of ext2, ext3 and ext4 by the names that
// mke2fs -O takes. Bits that only say what state a file system is in
// (needs_recovery, orphan_present), or that no tool sets at mkfs time, have no
// name here.
var extFeatures = []struct {
	word int // offset in the superblock
	bit  uint32
	name string
}{
	{0x5C, 0x0004, "has_journal"},
	{0x5C, 0x0008, "ext_attr"},
	{0x5C, 0x0010, "resize_inode"},
	{0x5C, 0x0020, "dir_index"},
	{0x5C, 0x0200, "sparse_super2"},
	{0x5C, 0x0400, "fast_commit"},
	{0x5C, 0x0800, "stable_inodes"},
	{0x5C, 0x1000, "orphan_file"},
	{0x60, 0x0002, "filetype"},
	{0x60, 0x0010, "meta_bg"},
	{0x60, 0x0040, "extent"},
	{0x60, 0x0080, "64bit"},
	{0x60, 0x0100, "mmp"},
	{0x60, 0x0200, "flex_bg"},
	{0x60, 0x0400, "ea_inode"},
	{0x60, 0x2000, "metadata_csum_seed"},
	{0x60, 0x4000, "large_dir"},
	{0x60, 0x8000, "inline_data"},
	{0x60, 0x10000, "encrypt"},
	{0x60, 0x20000, "casefold"},
	{0x64, 0x0001, "sparse_super"},
	{0x64, 0x0002, "large_file"},
	{0x64, 0x0008, "huge_file"},
	{0x64, 0x0010, "uninit_bg"},
	{0x64, 0x0020, "dir_nlink"},
	{0x64, 0x0040, "extra_isize"},
	{0x64, 0x0100, "quota"},
	{0x64, 0x0200, "bigalloc"},
	{0x64, 0x0400, "metadata_csum"},
	{0x64, 0x2000, "project"},
	{0x64, 0x8000, "verity"},
}

// probeExt reads the superblock of ext2, ext3 and ext4, 1024 bytes from the
// start (kernel: Documentation/filesystems/ext4/super.rst).
func probeExt(b []byte) *FileSystem {
	s := b[1024:2048]
	le := binary.LittleEndian
	const journalDevice = 0x0008
	if le.Uint16(s[0x38:]) != 0xEF53 || le.Uint32(s[0x60:])&journalDevice != 0 {
		return nil
	}
	fs := &FileSystem{Type: "ext2", UUID: formatUUID(s[0x68:0x78]), Label: cString(s[0x78:0x88])}
	if le.Uint32(s[0x5C:])&0x0004 != 0 {
		fs.Type = "ext3"
	}
	// What ext3 does not know makes it ext4, as libblkid tells them apart.
	const ext3Incompat, ext3ROCompat = 0x0002 | 0x0004 | 0x0010, 0x0001 | 0x0002 | 0x0004
	if le.Uint32(s[0x60:])&^ext3Incompat != 0 || le.Uint32(s[0x64:])&^ext3ROCompat != 0 {
		fs.Type = "ext4"
	}
	for _, f := range extFeatures {
		if le.Uint32(s[f.word:])&f.bit != 0 {
			fs.Features = append(fs.Features, f.name)
		}
	}
	return fs
}

// xfsFeatures are the features of a version 5 XFS by the names of mkfs.xfs's
// options, each with whether it is set. Those at the end are younger than
// version 5 itself, so that a mkfs.xfs may not know them.
var xfsFeatures = []struct {
	word int
	bit  uint32
	name string
}{
	{212, 0x1, "finobt"},
	{212, 0x2, "rmapbt"},
	{212, 0x4, "reflink"},
	{216, 0x2, "sparse"},
	{212, 0x8, "inobtcount"},
	{216, 0x8, "bigtime"},
	{216, 0x20, "nrext64"},
	{216, 0x40, "exchange"},
	{216, 0x80, "parent"},
	{216, 0x100, "metadir"},
}

// probeXFS reads the first superblock of an XFS (xfsprogs: xfs_dsb). All its
// numbers are big endian. Features are NAME=0 or NAME=1.
func probeXFS(b []byte) *FileSystem {
	be := binary.BigEndian
	if string(b[:4]) != "XFSB" {
		return nil
	}
	block := be.Uint32(b[4:])
	version := be.Uint16(b[100:]) & 0xf
	if block < 512 || block > 65536 || block&(block-1) != 0 || version < 1 || version > 5 {
		return nil
	}
	fs := &FileSystem{Type: "xfs", UUID: formatUUID(b[32:48]), Label: cString(b[108:120])}
	set := func(name string, on bool) {
		v := "0"
		if on {
			v = "1"
		}
		fs.Features = append(fs.Features, name+"="+v)
	}
	if version < 5 {
		set("crc", false)
		set("ftype", be.Uint32(b[200:])&0x200 != 0)
		return fs
	}
	set("crc", true)
	set("ftype", be.Uint32(b[216:])&0x1 != 0)
	for _, f := range xfsFeatures {
		set(f.name, be.Uint32(b[f.word:])&f.bit != 0)
	}
	return fs
}

// probeSwap looks for the mark at the end of the first page. Its size is that
// of the machine that made it: 4 KiB, and 16 or 64 on some arm64.
func probeSwap(b []byte) *FileSystem {
	for _, page := range []int{4 << 10, 16 << 10, 64 << 10} {
		if string(b[page-10:page]) == "SWAPSPACE2" {
			return &FileSystem{Type: "swap", UUID: formatUUID(b[1036:1052]), Label: cString(b[1052:1068])}
		}
	}
	return nil
}

// probeVFAT reads a FAT boot sector. FAT32 moved the serial number and the
// label behind its own fields.
func probeVFAT(b []byte) *FileSystem {
	le := binary.LittleEndian
	sector := le.Uint16(b[11:])
	if b[510] != 0x55 || b[511] != 0xAA || sector < 512 || sector > 4096 || sector&(sector-1) != 0 || b[16] == 0 {
		return nil
	}
	var serial, label []byte
	var width string
	switch {
	case string(b[0x52:0x57]) == "FAT32":
		serial, label, width = b[0x43:0x47], b[0x47:0x52], "fat32"
	case string(b[0x36:0x3B]) == "FAT16":
		serial, label, width = b[0x27:0x2B], b[0x2B:0x36], "fat16"
	case string(b[0x36:0x3B]) == "FAT12":
		serial, label, width = b[0x27:0x2B], b[0x2B:0x36], "fat12"
	default:
		return nil
	}
	fs := &FileSystem{
		Type:     "vfat",
		UUID:     fmt.Sprintf("%04X-%04X", le.Uint16(serial[2:]), le.Uint16(serial)),
		Label:    strings.TrimRight(cString(label), " "),
		Features: []string{width},
	}
	if fs.Label == "NO NAME" {
		fs.Label = ""
	}
	return fs
}

func cString(b []byte) string {
	if i := bytes.IndexByte(b, 0); i >= 0 {
		b = b[:i]
	}
	return string(b)
}
