package clone

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"doppel/imaging"
)

// FuzzLibraryDirs reads an ld.so.conf, and one that it includes, as an image
// may have them: two that include each other, and themselves, too.
func FuzzLibraryDirs(f *testing.F) {
	f.Add("include /etc/ld.so.conf.d/*.conf\n", "/usr/local/lib # ours\n")
	f.Add("include ld.so.conf.d/*\n/opt/lib\n", "include /etc/ld.so.conf\ninclude ../ld.so.conf\ninclude *.conf\n")
	f.Add("include [\n../../../../etc\n", "include "+strings.Repeat("*/", 40)+"\n\x00\n")
	f.Fuzz(func(t *testing.T, top, below string) {
		root := t.TempDir()
		for name, text := range map[string]string{"etc/ld.so.conf": top, "etc/ld.so.conf.d/a.conf": below, "etc/ld.so.conf.d/b.conf": below} {
			at := filepath.Join(root, name)
			if err := os.MkdirAll(filepath.Dir(at), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(at, []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		dirs := libraryDirs(root)
		for i, d := range dirs {
			if !filepath.IsLocal(d) || slices.Contains(dirs[:i], d) {
				t.Fatalf("%q is no directory to look through: %q", d, dirs)
			}
		}
	})
}

// A hundred files that all include each other are read once each.
func TestLibraryDirsInCircles(t *testing.T) {
	root := t.TempDir()
	dir := filepath.Join(root, "etc/ld.so.conf.d")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for i := range 100 {
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("%02d.conf", i)), fmt.Appendf(nil, "/opt/%02d\ninclude *.conf\n", i), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(root, "etc/ld.so.conf"), []byte("include ld.so.conf.d/*.conf\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if dirs := libraryDirs(root); len(dirs) != 108 || dirs[0] != "opt/00" && dirs[0] != "opt/99" {
		t.Errorf("%d directories: %q", len(dirs), dirs)
	}
}

// FuzzNeeds reads what a program of an image is loaded with.
func FuzzNeeds(f *testing.F) {
	b, err := os.ReadFile("/usr/sbin/mkswap")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add(b[:4096])
	for _, at := range []int{0x20, 0x28} { // where the headers of segments and sections are
		spoilt := bytes.Clone(b)
		binary.LittleEndian.PutUint64(spoilt[at:], 1<<63)
		f.Add(spoilt)
	}
	f.Add([]byte("#!/bin/sh\n"))
	image := newImage(imaging.Head{}, map[string]string{
		"lib64/ld-linux-x86-64.so.2": "elf", "usr/lib/x86_64-linux-gnu/libc.so.6": "elf", "usr/lib/x86_64-linux-gnu/libblkid.so.1": "elf",
	})
	index := manifestIndex{&image.List}
	f.Fuzz(func(t *testing.T, b []byte) {
		root := t.TempDir()
		if err := os.WriteFile(filepath.Join(root, "tool"), b, 0o755); err != nil {
			t.Fatal(err)
		}
		k := &toolkit{index: index, seen: map[string]bool{}, dirs: []string{"usr/lib/x86_64-linux-gnu"}}
		_ = k.needs(root, "tool") // an error, or none
		for _, p := range k.paths {
			if !index.has(p) {
				t.Fatalf("%q is not in the image", p)
			}
		}
	})
}

// FuzzBootOrder: whatever firmware keeps, its entries keep their order, and the
// new one is there once.
func FuzzBootOrder(f *testing.F) {
	f.Add([]byte{1, 0, 0, 0, 2, 0}, uint16(7), []byte{0, 0})
	f.Add([]byte{1, 0, 0}, uint16(1), []byte(nil))
	f.Add([]byte{}, uint16(0xffff), []byte{1})
	f.Fuzz(func(t *testing.T, order []byte, n uint16, current []byte) {
		got := bootOrderWith(order, n, current)
		entry := binary.LittleEndian.AppendUint16(nil, n)
		var rest, want [][]byte
		found := 0
		for i := 0; i+1 < len(order); i += 2 {
			want = append(want, order[i:i+2])
		}
		there := slices.ContainsFunc(want, func(e []byte) bool { return bytes.Equal(e, entry) })
		for i := 0; i+1 < len(got); i += 2 {
			if bytes.Equal(got[i:i+2], entry) {
				found++
				if !there {
					continue
				}
			}
			rest = append(rest, got[i:i+2])
		}
		if found == 0 || !there && found != 1 || !slices.EqualFunc(rest, want, bytes.Equal) {
			t.Fatalf("%x with %d behind %x is %x", order, n, current, got)
		}
	})
}

// FuzzBootEntries puts an entry beside any others that firmware keeps.
func FuzzBootEntries(f *testing.F) {
	good := efiOption{Attributes: efiActive, Label: "Debian", Path: []byte{0x7f, 0xff, 4, 0}}.marshal()
	f.Add("Boot0000", append([]byte{7, 0, 0, 0}, good...), []byte{7, 0, 0, 0, 0, 0})
	f.Add("BootZZZZ", []byte{7, 0, 0, 0}, []byte{7, 0, 0, 0, 1})
	f.Add("Boot0001", append([]byte{7, 0, 0, 0}, good[:7]...), []byte{7})
	plan := &Plan{ID: testInstall, Disk: Disk{Path: "/dev/vda", Sector: 512}, Partitions: []Partition{{Number: 1, Start: mib, Size: 256 * mib, Type: typeESP, GUID: "AAAAAAAA-0000-4000-8000-000000000001"}}}
	entry := BootEntry{Label: "doppel node001", Partition: 1, Loader: "EFI/BOOT/BOOTX64.EFI"}
	f.Fuzz(func(t *testing.T, name string, value, order []byte) {
		dir := t.TempDir()
		if len(name) != 8 || !filepath.IsLocal(name) || strings.ContainsAny(name, "/\x00") {
			return
		}
		for n, b := range map[string][]byte{name: value, "BootOrder": order} {
			if err := os.WriteFile(filepath.Join(dir, n+"-"+efiGlobal), b, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		if err := addBootEntry(dir, plan, entry); err != nil {
			return
		}
		before, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		// Once more adds nothing.
		if err := addBootEntry(dir, plan, entry); err != nil {
			t.Fatal(err)
		}
		if after, err := os.ReadDir(dir); err != nil || len(after) != len(before) {
			t.Fatalf("%d variables, then %d: %v", len(before), len(after), err)
		}
	})
}

// FuzzNetworkFile reads a systemd.network of an image.
func FuzzNetworkFile(f *testing.F) {
	f.Add([]byte("[Network]\nAddress = 10.0.0.1/24\n"))
	f.Add([]byte("[Network]\nDHCP=yes\n"))
	f.Add([]byte("=\n\x00Address=\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if hasStaticAddress(b) && !bytes.Contains(b, []byte("=")) {
			t.Fatalf("%q gives an address", b)
		}
	})
}
