package clone

import (
	"cmp"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"doppel/imaging"
)

// Partition types of GPT, and what MBR types become on it.
const (
	typeBIOSBoot = "21686148-6449-6E6F-744E-656564454649"
	typeESP      = "C12A7328-F81F-11D2-BA4B-00A0C93EC93B"
	typeLinux    = "0FC63DAF-8483-4772-8E79-3D69D8477DE4"
	typeSwap     = "0657FD6D-A4AB-43C4-84E5-0933C84B4F4F"
)

const (
	mib = int64(1) << 20
	gib = int64(1) << 30

	// firstByte leaves the first MiB to the table and to doppel's record, and
	// lets every partition begin where flash and RAID stripes like it.
	firstByte = mib
	// lastBytes are kept free for the second copy of the table.
	lastBytes = mib

	biosBootSize = mib
	espSize      = 512 * mib
	leastSwap    = 256 * mib
)

// draft is a layout before it meets a disk.
type draft struct {
	wants    []want
	notes    []string
	swap     int64 // of a default layout: the most that swap may take, 0 none
	recorded bool  // made after the head's own
}

// want is a partition of a draft. Its size may change between least and
// anything when flexible.
type want struct {
	Partition
	least int64
}

// draftLayout is the head's own layout where it has one, made to start by the
// machine's firmware; else root, and swap, and what the firmware needs.
func draftLayout(t Target, hw Hardware) *draft {
	d := &draft{}
	need := contentSize(t.ImageHead)
	if l := t.ImageHead.Layout; l != nil && layoutRoot(l) != nil {
		d.fromHead(l, need, hw.Firmware)
	} else {
		d.byDefault(t.ImageHead, need, hw.Memory)
	}
	d.addBoot(hw.Firmware)
	return d
}

// contentSize is the least size of a file system that holds the whole tree:
// content, half a block a file, metadata, the 5 % that ext4 keeps for root,
// and room for a first boot to write.
func contentSize(h imaging.Head) int64 {
	n := h.Bytes + h.Bytes/8 + h.Entries*4096 + 256*mib
	// mke2fs makes an inode for every 16 KiB.
	if inodes := h.Entries * 18 << 10; inodes > n {
		n = inodes
	}
	return alignUp(n)
}

func layoutRoot(l *imaging.Layout) *imaging.LayoutPartition {
	for i := range l.Partitions {
		if fs := l.Partitions[i].FS; fs != nil && fs.Mount == "/" {
			return &l.Partitions[i]
		}
	}
	return nil
}

func (d *draft) byDefault(h imaging.Head, need, memory int64) {
	root := 2
	if hasTool(h.Boot, "mkswap") {
		// What a kernel shows of the memory varies a little from boot to
		// boot; the plan may not.
		memory = (memory + 256*mib - 1) / (256 * mib) * (256 * mib)
		d.swap = min(memory, 4*gib)
		d.wants = append(d.wants, want{Partition: Partition{
			Number: 2, Type: typeSwap, Name: "swap", FS: &imaging.FileSystem{Type: "swap", Options: "sw"},
		}})
		root = 3
	}
	d.wants = append(d.wants, want{least: need, Partition: Partition{
		Number: root, Type: typeLinux, Name: "root", FS: &imaging.FileSystem{Type: rootType(h.Boot), Mount: "/", Options: "defaults"},
	}})
}

// rootType is ext4 unless the image can only make XFS.
func rootType(b imaging.Boot) string {
	if !hasTool(b, "mkfs.ext4") && hasTool(b, "mkfs.xfs") {
		return "xfs"
	}
	return "ext4"
}

var guidForm = regexp.MustCompile(`^[0-9A-F]{8}(-[0-9A-F]{4}){3}-[0-9A-F]{12}$`)

func (d *draft) fromHead(l *imaging.Layout, need int64, fw Firmware) {
	d.recorded = true
	if l.Table == "mbr" {
		d.notes = append(d.notes, "the head's MBR partition table becomes a GPT, which carries the install's id")
	}
	parts := slices.Clone(l.Partitions)
	slices.SortStableFunc(parts, func(a, b imaging.LayoutPartition) int { return cmp.Compare(a.Start, b.Start) })
	for _, p := range parts {
		w := want{Partition: Partition{
			Number: p.Number, Size: alignUp(p.Size), Type: gptType(p.Type), GUID: p.GUID, Name: p.Name, Attributes: p.Attributes,
		}}
		if !guidForm.MatchString(w.GUID) {
			w.GUID = ""
		}
		w.least = w.Size
		switch {
		case p.FS != nil:
			fs := *p.FS
			fs.Features = slices.Clone(fs.Features)
			w.FS = &fs
			if w.holdsTree() {
				// Where the tree's bytes lie is not known: any of its file
				// systems may hold nearly all of them.
				w.least = min(w.Size, need)
			}
		case w.Type == typeESP:
			if fw != UEFI {
				d.drop(p)
				continue
			}
			w.FS = &imaging.FileSystem{Type: "vfat", Features: []string{"fat32"}}
		case w.Type == typeBIOSBoot:
		default:
			d.drop(p)
			continue
		}
		if w.Type == typeESP && w.FS.Mount == "" && fw == UEFI {
			w.FS.Mount, w.FS.Options = "/boot/efi", "umask=0077"
		}
		d.wants = append(d.wants, w)
	}
	d.roomForAll(need)
}

// roomForAll makes the root larger where the head kept a part of its tree on
// what is not laid out again (a volume group, another disk): that part goes
// into the root.
func (d *draft) roomForAll(need int64) {
	var root *want
	for i := range d.wants {
		w := &d.wants[i]
		if !w.holdsTree() {
			continue
		}
		need -= w.least
		if w.FS.Mount == "/" {
			root = w
		}
	}
	if need > 0 && root != nil {
		root.least += need
		root.Size = max(root.Size, root.least)
	}
}

// holdsTree tells whether a partition takes a part of the tree that can be
// large.
func (w *want) holdsTree() bool {
	return w.FS != nil && w.FS.Mount != "" && w.Type != typeESP && w.FS.Type != "vfat"
}

func (d *draft) drop(p imaging.LayoutPartition) {
	d.notes = append(d.notes, fmt.Sprintf("the head's partition %d (type %s, %s) holds no file system that doppel lays out: left out", p.Number, p.Type, FormatBytes(p.Size)))
}

// gptType gives an MBR type its place in GPT.
func gptType(t string) string {
	switch strings.ToLower(t) {
	case "0x82":
		return typeSwap
	case "0xef":
		return typeESP
	}
	if strings.HasPrefix(t, "0x") {
		return typeLinux
	}
	return t
}

// addBoot puts before all others what the firmware starts from, unless it is
// there.
func (d *draft) addBoot(fw Firmware) {
	boot := want{Partition: Partition{Type: typeBIOSBoot, Name: "bios-boot", Size: biosBootSize}}
	why := "has no BIOS boot partition, which GRUB needs on a GPT when the firmware is BIOS"
	if fw == UEFI {
		boot.Partition = Partition{Type: typeESP, Name: "esp", Size: espSize,
			FS: &imaging.FileSystem{Type: "vfat", Features: []string{"fat32"}, Mount: "/boot/efi", Options: "umask=0077"}}
		why = "has no EFI system partition, which UEFI firmware needs"
	}
	numbers := make(map[int]bool)
	for _, w := range d.wants {
		if w.Type == boot.Type {
			return
		}
		numbers[w.Number] = true
	}
	for boot.Number = 1; numbers[boot.Number]; boot.Number++ {
	}
	boot.least = boot.Size
	if d.recorded {
		d.notes = append(d.notes, fmt.Sprintf("the head's layout %s: added as partition %d", why, boot.Number))
	}
	d.wants = append([]want{boot}, d.wants...)
}

// least is the smallest disk that the draft fits.
func (d *draft) least() int64 {
	n := firstByte + lastBytes
	for _, w := range d.wants {
		n += w.least
	}
	return n
}

// place lays the draft out on a disk of size bytes, which is at least least().
func (d *draft) place(id string, size int64) ([]Partition, []string) {
	room := (size-lastBytes)/mib*mib - firstByte
	d.sizeDefaults(room, size)
	d.fit(room)
	at := firstByte
	out := make([]Partition, 0, len(d.wants))
	taken := make(map[string]bool)
	for _, w := range d.wants {
		p := w.Partition
		what := fmt.Sprintf("partition %d", p.Number)
		if p.GUID == "" || taken[p.GUID] {
			p.GUID = strings.ToUpper(deriveUUID(id, what))
		}
		taken[p.GUID] = true
		if p.FS != nil && p.FS.UUID == "" {
			p.FS.UUID = deriveUUID(id, "file system of "+what)
			if p.FS.Type == "vfat" {
				p.FS.UUID = deriveSerial(id, "file system of "+what)
			}
		}
		p.Start, at = at, at+p.Size
		out = append(out, p)
	}
	return out, d.notes
}

// sizeDefaults gives swap its part of the disk, and root the rest.
func (d *draft) sizeDefaults(room, disk int64) {
	for i := range d.wants {
		w := &d.wants[i]
		if w.Size != 0 {
			continue
		}
		w.Size = w.least
		if w.FS.Type != "swap" {
			continue
		}
		spare := room
		for _, o := range d.wants {
			spare -= o.least
		}
		w.Size = min(d.swap, disk/8, spare) / mib * mib
	}
	// A swap partition too small to be of use is none.
	d.wants = slices.DeleteFunc(d.wants, func(w want) bool { return w.FS != nil && w.FS.Type == "swap" && w.least == 0 && w.Size < leastSwap })
}

// fit gives the difference between the draft and the disk to the partition
// that has most room: the largest that holds a part of the tree. What it
// cannot give up is taken from the next.
func (d *draft) fit(room int64) {
	spare := room
	var flexible []*want
	for i := range d.wants {
		w := &d.wants[i]
		spare -= w.Size
		if w.holdsTree() {
			flexible = append(flexible, w)
		}
	}
	slices.SortStableFunc(flexible, func(a, b *want) int {
		if a.Size != b.Size {
			return cmp.Compare(b.Size, a.Size)
		}
		return cmp.Compare(len(a.FS.Mount), len(b.FS.Mount)) // the root before others
	})
	for _, w := range flexible {
		if spare >= 0 {
			w.Size += spare
			return
		}
		give := min(-spare, w.Size-w.least)
		w.Size -= give
		spare += give
	}
}

func alignUp(n int64) int64 { return (n + mib - 1) / mib * mib }
