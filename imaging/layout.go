package imaging

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"hash/crc32"
	"io"
	"strings"
	"unicode/utf16"
)

// DiskTable is the partition table of a whole disk.
type DiskTable struct {
	Kind       string // gpt or mbr; empty: none
	GUID       string // of the disk, upper case; GPT only
	Partitions []LayoutPartition
}

// Bounds on what a table may say of itself, far above anything real: a GPT has
// 128 entries of 128 bytes, Linux shows at most 255 partitions of a disk.
const (
	maxTableEntries = 1024
	maxTableBytes   = 1 << 20
	maxLogical      = 256
)

// ReadDiskTable reads the partition table of a disk of size bytes with the
// given sector size. A disk without one has an empty Kind. A GPT whose first
// copy is damaged is read from the second at the disk's end; a disk that says
// it has a GPT and has no valid copy is an error.
func ReadDiskTable(r io.ReaderAt, size int64, sector int) (*DiskTable, error) {
	if sector < 512 || sector > 65536 || sector&(sector-1) != 0 {
		return nil, fmt.Errorf("a sector size of %d bytes makes no sense", sector)
	}
	mbr := make([]byte, 512)
	if n, err := r.ReadAt(mbr, 0); n < len(mbr) {
		if err == io.EOF {
			return &DiskTable{}, nil
		}
		return nil, fmt.Errorf("read the first sector: %w", err)
	}
	first, ferr := readGPT(r, 1, size, sector)
	if ferr == nil {
		return first, nil
	}
	if mbr[510] != 0x55 || mbr[511] != 0xAA {
		return &DiskTable{}, nil
	}
	if !protective(mbr) {
		return readMBR(r, mbr, size, sector)
	}
	second, serr := readGPT(r, uint64(size/int64(sector))-1, size, sector)
	if serr == nil {
		return second, nil
	}
	return nil, fmt.Errorf("both copies of the partition table are damaged: %w; %w", ferr, serr)
}

// protective tells whether an MBR says that a GPT follows it.
func protective(mbr []byte) bool {
	for i := range 4 {
		if mbr[446+16*i+4] == 0xEE {
			return true
		}
	}
	return false
}

// readGPT reads the copy of a GPT whose header is in sector lba (UEFI
// specification, section 5.3).
func readGPT(r io.ReaderAt, lba uint64, size int64, sector int) (*DiskTable, error) {
	if size < int64(sector)*3 {
		return nil, fmt.Errorf("a disk of %d bytes holds no GPT", size)
	}
	h := make([]byte, sector)
	if n, err := r.ReadAt(h, int64(lba)*int64(sector)); n < len(h) {
		return nil, fmt.Errorf("read the GPT header in sector %d: %w", lba, err)
	}
	le := binary.LittleEndian
	if string(h[:8]) != "EFI PART" {
		return nil, fmt.Errorf("sector %d holds no GPT header", lba)
	}
	hsize := le.Uint32(h[12:])
	if hsize < 92 || int(hsize) > sector {
		return nil, fmt.Errorf("the GPT header in sector %d says that it is %d bytes long", lba, hsize)
	}
	sum := le.Uint32(h[16:])
	clear(h[16:20])
	if crc32.ChecksumIEEE(h[:hsize]) != sum {
		return nil, fmt.Errorf("the GPT header in sector %d has a wrong checksum", lba)
	}
	if le.Uint64(h[24:]) != lba {
		return nil, fmt.Errorf("the GPT header in sector %d says that it is in sector %d", lba, le.Uint64(h[24:]))
	}
	sectors := uint64(size) / uint64(sector)
	at, count, each := le.Uint64(h[72:]), le.Uint32(h[80:]), le.Uint32(h[84:])
	if count > maxTableEntries || each < 128 || each%8 != 0 || uint64(count)*uint64(each) > maxTableBytes || at >= sectors {
		return nil, fmt.Errorf("the GPT header in sector %d says that %d entries of %d bytes are in sector %d", lba, count, each, at)
	}
	list := make([]byte, uint64(count)*uint64(each))
	if n, err := r.ReadAt(list, int64(at)*int64(sector)); n < len(list) {
		return nil, fmt.Errorf("read the GPT entries: %w", err)
	}
	if crc32.ChecksumIEEE(list) != le.Uint32(h[88:]) {
		return nil, fmt.Errorf("the GPT entries in sector %d have a wrong checksum", at)
	}
	t := &DiskTable{Kind: "gpt", GUID: formatGUID(h[56:72])}
	for i := range int(count) {
		e := list[i*int(each):][:128]
		if bytes.Equal(e[:16], make([]byte, 16)) {
			continue
		}
		from, to := le.Uint64(e[32:]), le.Uint64(e[40:])
		if from > to || to >= sectors {
			return nil, fmt.Errorf("partition %d reaches from sector %d to %d on a disk of %d", i+1, from, to, sectors)
		}
		t.Partitions = append(t.Partitions, LayoutPartition{
			Number:     i + 1,
			Start:      int64(from) * int64(sector),
			Size:       int64(to-from+1) * int64(sector),
			Type:       formatGUID(e[:16]),
			GUID:       formatGUID(e[16:32]),
			Attributes: le.Uint64(e[48:]),
			Name:       utf16Name(e[56:128]),
		})
	}
	return t, nil
}

// readMBR reads a table of the PC's kind: four entries, one of which may lead
// to a chain of extended boot records, each with one logical partition and the
// place of the next record. Linux numbers logical partitions from 5.
func readMBR(r io.ReaderAt, mbr []byte, size int64, sector int) (*DiskTable, error) {
	le := binary.LittleEndian
	t := &DiskTable{Kind: "mbr"}
	disk := le.Uint32(mbr[440:])
	sectors := size / int64(sector)
	add := func(n int, e []byte, base int64) error {
		start, length := base+int64(le.Uint32(e[8:])), int64(le.Uint32(e[12:]))
		if start+length > sectors {
			return fmt.Errorf("partition %d reaches from sector %d to %d on a disk of %d", n, start, start+length-1, sectors)
		}
		t.Partitions = append(t.Partitions, LayoutPartition{
			Number: n,
			Start:  start * int64(sector),
			Size:   length * int64(sector),
			Type:   fmt.Sprintf("0x%02x", e[4]),
			GUID:   fmt.Sprintf("%08x-%02x", disk, n),
		})
		return nil
	}
	var extended int64
	for i := range 4 {
		e := mbr[446+16*i:][:16]
		// A file system's boot sector ends in 55AA too; its code there does
		// not look like entries.
		if e[0] != 0 && e[0] != 0x80 {
			return &DiskTable{}, nil
		}
		switch e[4] {
		case 0:
		case 0x05, 0x0f, 0x85:
			if extended == 0 {
				extended = int64(le.Uint32(e[8:]))
			}
		default:
			if le.Uint32(e[12:]) == 0 {
				continue
			}
			if err := add(i+1, e, 0); err != nil {
				return nil, err
			}
		}
	}
	if err := readLogical(r, extended, sector, add); err != nil {
		return nil, err
	}
	if len(t.Partitions) == 0 {
		return &DiskTable{}, nil
	}
	return t, nil
}

// readLogical follows the chain of extended boot records from the sector where
// the extended partition begins; 0: there is none.
func readLogical(r io.ReaderAt, extended int64, sector int, add func(n int, entry []byte, base int64) error) error {
	le := binary.LittleEndian
	ebr := make([]byte, 512)
	for at, n := extended, 5; at != 0; n++ {
		if n-5 >= maxLogical {
			return fmt.Errorf("the chain of logical partitions does not end")
		}
		if got, err := r.ReadAt(ebr, at*int64(sector)); got < len(ebr) {
			return fmt.Errorf("read the extended boot record in sector %d: %w", at, err)
		}
		if ebr[510] != 0x55 || ebr[511] != 0xAA {
			break
		}
		if e := ebr[446:][:16]; e[4] != 0 && le.Uint32(e[12:]) != 0 {
			if err := add(n, e, at); err != nil {
				return err
			}
		}
		next := ebr[462:][:16]
		if next[4] == 0 || le.Uint32(next[8:]) == 0 {
			break
		}
		at = extended + int64(le.Uint32(next[8:]))
	}
	return nil
}

// formatGUID writes a GUID as GPT keeps it: the first three fields are little
// endian.
func formatGUID(b []byte) string {
	s := []byte{b[3], b[2], b[1], b[0], b[5], b[4], b[7], b[6]}
	return strings.ToUpper(fmt.Sprintf("%x-%x-%x-%x-%x", s[:4], s[4:6], s[6:8], b[8:10], b[10:16]))
}

// formatUUID writes a UUID as ext, XFS and swap keep it and blkid shows it.
func formatUUID(b []byte) string {
	h := hex.EncodeToString(b)
	return h[:8] + "-" + h[8:12] + "-" + h[12:16] + "-" + h[16:20] + "-" + h[20:]
}

func utf16Name(b []byte) string {
	u := make([]uint16, 0, len(b)/2)
	for i := 0; i+1 < len(b); i += 2 {
		c := binary.LittleEndian.Uint16(b[i:])
		if c == 0 {
			break
		}
		u = append(u, c)
	}
	return string(utf16.Decode(u))
}
