package clone

import (
	"bytes"
	"encoding/hex"
	"os"
	"path/filepath"
	"testing"
)

// TestEFIOption compares a boot entry with what the tables of the UEFI
// specification say, field by field.
func TestEFIOption(t *testing.T) {
	part := Partition{Number: 1, Start: 2048 * 512, Size: 1048576 * 512, GUID: "01020304-0506-0708-090A-0B0C0D0E0F10"}
	path, err := efiDevicePath(part, 512, "EFI/BOOT/BOOTX64.EFI")
	if err != nil {
		t.Fatal(err)
	}
	o := efiOption{Attributes: efiActive, Label: "doppel", Path: path}
	const want = "01000000" + "5e00" + "64006f007000700065006c000000" +
		"04012a00" + "01000000" + "0008000000000000" + "0000100000000000" + "0403020106050807090a0b0c0d0e0f10" + "0202" +
		"04043000" + "5c004500460049005c0042004f004f0054005c0042004f004f0054005800360034002e004500460049000000" + "7fff0400"
	if got := hex.EncodeToString(o.marshal()); got != want {
		t.Errorf("\n got %s\nwant %s", got, want)
	}
	back, err := parseEFIOption(o.marshal())
	if err != nil || back.Label != o.Label || !bytes.Equal(back.Path, o.Path) {
		t.Errorf("read back %+v, %v", back, err)
	}
}

func TestAddBootEntry(t *testing.T) {
	dir := t.TempDir()
	set := func(name string, value ...byte) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name+"-"+efiGlobal), append([]byte{7, 0, 0, 0}, value...), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	set("Boot0000", efiOption{Attributes: 1, Label: "UEFI PXEv4"}.marshal()...)
	set("Boot0001", efiOption{Attributes: 1, Label: "old disk"}.marshal()...)
	set("BootOrder", 0, 0, 1, 0)
	set("BootCurrent", 0, 0)
	plan := &Plan{Disk: Disk{Sector: 512}, Partitions: []Partition{{Number: 1, Start: mib, Size: espSize, GUID: "01020304-0506-0708-090A-0B0C0D0E0F10"}}}
	e := BootEntry{Label: "doppel node001", Partition: 1, Loader: "EFI/BOOT/BOOTX64.EFI"}
	for range 2 { // a second time changes nothing
		if err := addBootEntry(dir, plan, e); err != nil {
			t.Fatal(err)
		}
		order, err := readEFIVar(dir, "BootOrder")
		if err != nil || !bytes.Equal(order, []byte{0, 0, 2, 0, 1, 0}) {
			t.Errorf("the order is %v, %v", order, err)
		}
		value, err := readEFIVar(dir, "Boot0002")
		if err != nil {
			t.Fatal(err)
		}
		if o, err := parseEFIOption(value); err != nil || o.Label != e.Label {
			t.Errorf("the entry is %+v, %v", o, err)
		}
	}
	// Another ESP: the entry is renewed in its place.
	plan.Partitions[0].GUID = "11020304-0506-0708-090A-0B0C0D0E0F10"
	if err := addBootEntry(dir, plan, e); err != nil {
		t.Fatal(err)
	}
	if names, err := filepath.Glob(filepath.Join(dir, "Boot0*")); err != nil || len(names) != 3 {
		t.Errorf("entries %v, %v", names, err)
	}
	// What the machine was not started from has no place to go behind.
	set("BootOrder", 1, 0, 0, 0)
	set("BootCurrent", 9, 0)
	if err := addBootEntry(dir, plan, e); err != nil {
		t.Fatal(err)
	}
	if order, err := readEFIVar(dir, "BootOrder"); err != nil || !bytes.Equal(order, []byte{1, 0, 0, 0, 2, 0}) {
		t.Errorf("the order is %v, %v", order, err)
	}
	// A machine without any order gets one.
	if err := os.Remove(filepath.Join(dir, "BootOrder-"+efiGlobal)); err != nil {
		t.Fatal(err)
	}
	if err := addBootEntry(dir, plan, e); err != nil {
		t.Fatal(err)
	}
	if order, err := readEFIVar(dir, "BootOrder"); err != nil || !bytes.Equal(order, []byte{2, 0}) {
		t.Errorf("the order is %v, %v", order, err)
	}
	if err := addBootEntry(dir, plan, BootEntry{Label: "x", Partition: 9}); err == nil {
		t.Error("an entry for a partition that is not there was added")
	}
}

func FuzzParseEFIOption(f *testing.F) {
	f.Add(efiOption{Attributes: 1, Label: "Linux", Path: []byte{0x7f, 0xff, 4, 0}, Data: []byte("x")}.marshal())
	f.Add([]byte{1, 0, 0, 0, 255, 255, 0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		o, err := parseEFIOption(b)
		if err != nil {
			return
		}
		again, err := parseEFIOption(o.marshal())
		if err != nil || !bytes.Equal(again.Path, o.Path) || !bytes.Equal(again.Data, o.Data) {
			t.Errorf("%+v became %+v, %v", o, again, err)
		}
	})
}
