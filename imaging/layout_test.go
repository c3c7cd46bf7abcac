package imaging

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
)

// diskImage makes a sparse file of size bytes.
func diskImage(t *testing.T, size int64) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "disk.img")
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	return name
}

// tool runs a program that sets up a test, and gives what it printed.
func tool(t *testing.T, stdin string, args ...string) string {
	t.Helper()
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Stdin = strings.NewReader(stdin)
	cmd.Env = append(os.Environ(), "PATH=/usr/sbin:/usr/bin:/sbin:/bin")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(string(out))
}

func openImage(t *testing.T, name string) (*os.File, int64) {
	t.Helper()
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	fi, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	return f, fi.Size()
}

func TestReadGPT(t *testing.T) {
	name := diskImage(t, 64<<20)
	tool(t, "", "sgdisk", "-U", "11111111-2222-3333-4444-555555555555",
		"-n", "1:2048:4095", "-t", "1:EF02", "-u", "1:AAAAAAAA-0000-0000-0000-000000000001", "-c", "1:boot",
		"-n", "3:8192:0", "-t", "3:8300", "-u", "3:AAAAAAAA-0000-0000-0000-000000000003", "-c", "3:Wurzel ☃", "-A", "3:set:2", name)
	f, size := openImage(t, name)
	want := &DiskTable{Kind: "gpt", GUID: "11111111-2222-3333-4444-555555555555", Partitions: []LayoutPartition{
		{Number: 1, Start: 1 << 20, Size: 1 << 20, Type: "21686148-6449-6E6F-744E-656564454649", GUID: "AAAAAAAA-0000-0000-0000-000000000001", Name: "boot"},
		{Number: 3, Start: 4 << 20, Size: 64<<20 - 33*512 - 4<<20, Type: "0FC63DAF-8483-4772-8E79-3D69D8477DE4", GUID: "AAAAAAAA-0000-0000-0000-000000000003", Name: "Wurzel ☃", Attributes: 4},
	}}
	check := func(when string) {
		t.Helper()
		got, err := ReadDiskTable(f, size, 512)
		if err != nil {
			t.Fatalf("%s: %v", when, err)
		}
		// sgdisk ends partitions where the next MiB would begin.
		if last := &got.Partitions[1]; last.Size > want.Partitions[1].Size || last.Size < want.Partitions[1].Size-1<<20 {
			t.Errorf("%s: the last partition has %d bytes", when, last.Size)
		} else {
			last.Size = want.Partitions[1].Size
		}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("%s:\n got %+v\nwant %+v", when, got, want)
		}
	}
	check("whole")
	w, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	if _, err := w.WriteAt([]byte("broken"), 512); err != nil {
		t.Fatal(err)
	}
	check("first copy damaged")
	if _, err := w.WriteAt([]byte("broken"), size-512); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadDiskTable(f, size, 512); err == nil {
		t.Error("a disk with both copies damaged was read")
	}
}

func TestReadMBR(t *testing.T) {
	name := diskImage(t, 64<<20)
	tool(t, "label: dos\nlabel-id: 0xcafe0123\nstart=2048, size=8192, type=83, bootable\nstart=10240, type=5\nstart=12288, size=8192, type=82\nstart=22528, size=8192, type=83\n",
		"sfdisk", "-q", name)
	f, size := openImage(t, name)
	got, err := ReadDiskTable(f, size, 512)
	if err != nil {
		t.Fatal(err)
	}
	want := &DiskTable{Kind: "mbr", Partitions: []LayoutPartition{
		{Number: 1, Start: 1 << 20, Size: 4 << 20, Type: "0x83", GUID: "cafe0123-01"},
		{Number: 5, Start: 6 << 20, Size: 4 << 20, Type: "0x82", GUID: "cafe0123-05"},
		{Number: 6, Start: 11 << 20, Size: 4 << 20, Type: "0x83", GUID: "cafe0123-06"},
	}}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("\n got %+v\nwant %+v", got, want)
	}
}

func TestNoTable(t *testing.T) {
	name := diskImage(t, 16<<20)
	f, size := openImage(t, name)
	for _, what := range []string{"empty", "vfat"} {
		if what == "vfat" {
			tool(t, "", "mkfs.vfat", name)
		}
		got, err := ReadDiskTable(f, size, 512)
		if err != nil || got.Kind != "" || len(got.Partitions) != 0 {
			t.Errorf("%s: %+v, %v", what, got, err)
		}
	}
}

func TestProbeFileSystem(t *testing.T) {
	const id = "01234567-89ab-4cde-8f01-23456789abcd"
	for _, c := range []struct {
		name     string
		argv     string
		want     FileSystem
		features string // that must be among them
		without  string
	}{
		{"ext4", "mkfs.ext4 -q -F -L wurzel -U " + id, FileSystem{Type: "ext4", UUID: id, Label: "wurzel"}, "has_journal extent 64bit metadata_csum flex_bg", "quota"},
		{"ext4 without checksums", "mkfs.ext4 -q -F -O ^metadata_csum,^64bit,quota -U " + id, FileSystem{Type: "ext4", UUID: id}, "extent quota", "metadata_csum 64bit"},
		{"ext3", "mkfs.ext3 -q -F -U " + id, FileSystem{Type: "ext3", UUID: id}, "has_journal dir_index", "extent"},
		{"ext2", "mkfs.ext2 -q -F -U " + id, FileSystem{Type: "ext2", UUID: id}, "dir_index filetype", "has_journal"},
		{"xfs", "mkfs.xfs -q -f -L data -m uuid=" + id, FileSystem{Type: "xfs", UUID: id, Label: "data"}, "crc=1 ftype=1 reflink=1 finobt=1", ""},
		{"xfs without reflink", "mkfs.xfs -q -f -m reflink=0,bigtime=0,uuid=" + id, FileSystem{Type: "xfs", UUID: id}, "crc=1 reflink=0 bigtime=0", ""},
		{"fat32", "mkfs.vfat -F 32 -i CAFE0123 -n EFI", FileSystem{Type: "vfat", UUID: "CAFE-0123", Label: "EFI"}, "fat32", ""},
		{"fat16", "mkfs.vfat -F 16 -i 0000BEEF", FileSystem{Type: "vfat", UUID: "0000-BEEF"}, "fat16", ""},
		{"swap", "mkswap -q -L aus -U " + id, FileSystem{Type: "swap", UUID: id, Label: "aus"}, "", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			name := diskImage(t, 320<<20)
			tool(t, "", append(strings.Fields(c.argv), name)...)
			f, _ := openImage(t, name)
			got, foreign, err := ProbeFileSystem(f)
			if err != nil || foreign != "" || got == nil {
				t.Fatalf("got %v, %q, %v", got, foreign, err)
			}
			for _, want := range strings.Fields(c.features) {
				if !slices.Contains(got.Features, want) {
					t.Errorf("features %v lack %s", got.Features, want)
				}
			}
			for _, bad := range strings.Fields(c.without) {
				if slices.Contains(got.Features, bad) {
					t.Errorf("features %v have %s", got.Features, bad)
				}
			}
			// The judge of type, UUID and label is libblkid.
			for tag, have := range map[string]string{"TYPE": got.Type, "UUID": got.UUID} {
				if said := tool(t, "", "blkid", "-p", "-o", "value", "-s", tag, name); said != have {
					t.Errorf("%s is %q, blkid says %q", tag, have, said)
				}
			}
			got.Features = nil
			if !reflect.DeepEqual(*got, c.want) {
				t.Errorf("got %+v, want %+v", *got, c.want)
			}
		})
	}
}

// TestExtFeaturesAreMkfsArguments makes a file system anew from the features
// that were read, and compares them.
func TestExtFeaturesAreMkfsArguments(t *testing.T) {
	for _, options := range []string{"", "-O ^metadata_csum,^64bit", "-O inline_data,project,quota,casefold", "-O bigalloc,metadata_csum_seed,sparse_super2"} {
		name := diskImage(t, 64<<20)
		tool(t, "", append(append([]string{"mkfs.ext4", "-q", "-F"}, strings.Fields(options)...), name)...)
		f, _ := openImage(t, name)
		first, _, err := ProbeFileSystem(f)
		if err != nil {
			t.Fatal(err)
		}
		tool(t, "", "mkfs.ext4", "-q", "-F", "-O", "none,"+strings.Join(first.Features, ","), name)
		second, _, err := ProbeFileSystem(f)
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(first.Features, second.Features) {
			t.Errorf("%q: %v became %v", options, first.Features, second.Features)
		}
	}
}

func TestProbeForeign(t *testing.T) {
	for what, at := range map[string]struct {
		off  int
		mark string
	}{
		"dm-crypt (LUKS)":    {0, "LUKS\xba\xbe"},
		"md (software RAID)": {4096, "\xfc\x4e\x2b\xa9"},
		"btrfs":              {0x10040, "_BHRfS_M"},
	} {
		b := make([]byte, 0x11000)
		copy(b[at.off:], at.mark)
		if got, foreign, err := ProbeFileSystem(bytes.NewReader(b)); got != nil || foreign != what || err != nil {
			t.Errorf("%s: %v, %q, %v", what, got, foreign, err)
		}
	}
	lvm := make([]byte, 4096)
	copy(lvm[512:], "LABELONE")
	copy(lvm[512+24:], "LVM2 001")
	if got, foreign, err := ProbeFileSystem(bytes.NewReader(lvm)); got != nil || foreign != "LVM" || err != nil {
		t.Errorf("LVM: %v, %q, %v", got, foreign, err)
	}
	if got, foreign, err := ProbeFileSystem(bytes.NewReader(nil)); got != nil || foreign != "" || err != nil {
		t.Errorf("nothing: %v, %q, %v", got, foreign, err)
	}
}

func FuzzReadDiskTable(f *testing.F) {
	gpt := make([]byte, 96*512)
	copy(gpt[512:], "EFI PART")
	gpt[510], gpt[511], gpt[450] = 0x55, 0xAA, 0xEE
	f.Add(gpt)
	mbr := make([]byte, 4096)
	mbr[510], mbr[511] = 0x55, 0xAA
	mbr[446+4], mbr[446+8], mbr[446+12] = 0x83, 1, 2
	mbr[462+4], mbr[462+8], mbr[462+12] = 0x05, 3, 2
	f.Add(mbr)
	f.Fuzz(func(t *testing.T, b []byte) {
		table, err := ReadDiskTable(bytes.NewReader(b), int64(len(b)), 512)
		if err != nil {
			return
		}
		for _, p := range table.Partitions {
			if p.Start < 0 || p.Size < 0 || p.Start+p.Size > int64(len(b)) {
				t.Errorf("partition %+v on a disk of %d bytes", p, len(b))
			}
		}
	})
}

func FuzzProbeFileSystem(f *testing.F) {
	ext := make([]byte, 4096)
	ext[1024+0x38], ext[1024+0x39] = 0x53, 0xEF
	f.Add(ext)
	f.Add(append([]byte("XFSB\x00\x00\x10\x00"), make([]byte, 4096)...))
	swap := make([]byte, 4096)
	copy(swap[4086:], "SWAPSPACE2")
	f.Add(swap)
	fat := make([]byte, 4096)
	fat[12], fat[16], fat[510], fat[511] = 2, 2, 0x55, 0xAA
	copy(fat[0x52:], "FAT32")
	f.Add(fat)
	f.Fuzz(func(t *testing.T, b []byte) {
		got, foreign, err := ProbeFileSystem(bytes.NewReader(b))
		if err != nil {
			t.Errorf("bytes in memory cannot be read: %v", err)
		}
		if got != nil && (foreign != "" || got.Type == "" || got.UUID == "") {
			t.Errorf("got %+v and %q", got, foreign)
		}
	})
}
