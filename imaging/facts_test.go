package imaging

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

func TestParseOSRelease(t *testing.T) {
	got := ParseOSRelease([]byte("# remark\nID=debian\nPRETTY_NAME=\"Debian \\\"12\\\"\"\nNAME='One Two'\nnonsense\n1X=no\nEMPTY=\n"))
	want := map[string]string{"ID": "debian", "PRETTY_NAME": `Debian "12"`, "NAME": "One Two", "EMPTY": ""}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestFstabLine(t *testing.T) {
	for line, want := range map[string]FstabEntry{
		"UUID=\"ab\"  /a\\040b\text4 noatime,x=y 0 1": {Spec: "UUID=ab", Dir: "/a b", Type: "ext4", Options: "noatime,x=y"},
		"/dev/sda1 none swap":                         {Spec: "/dev/sda1", Dir: "none", Type: "swap", Options: "defaults"},
	} {
		got, ok := ParseFstabLine(line)
		if !ok || got != want {
			t.Errorf("%q: got %+v, %v", line, got, ok)
		}
	}
	for _, line := range []string{"", "# a b c d", "   ", "one two"} {
		if got, ok := ParseFstabLine(line); ok {
			t.Errorf("%q: got %+v", line, got)
		}
	}
}

func FuzzFstabLine(f *testing.F) {
	f.Add("UUID=x /a\\040b ext4 defaults 0 1")
	f.Add(`\`)
	f.Fuzz(func(t *testing.T, line string) {
		e, ok := ParseFstabLine(line)
		if !ok {
			return
		}
		again, ok := ParseFstabLine(EscapeFstab(e.Spec) + " " + EscapeFstab(e.Dir) + " " + EscapeFstab(e.Type) + " " + EscapeFstab(e.Options))
		if !ok || again.Dir != e.Dir || again.Options != e.Options {
			t.Errorf("%q: %+v became %+v, %v", line, e, again, ok)
		}
	})
}

func FuzzMountLine(f *testing.F) {
	f.Add("36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue")
	f.Fuzz(func(t *testing.T, line string) {
		if m, ok := parseMountLine(line); ok && (m.Dev == "" || m.Dir == "" || m.Type == "") {
			t.Errorf("%q: %+v", line, m)
		}
	})
}

func FuzzParseOSRelease(f *testing.F) {
	f.Add([]byte("ID=debian\nA='\\"))
	f.Fuzz(func(t *testing.T, b []byte) {
		for name := range ParseOSRelease(b) {
			if !isShellName(name) {
				t.Errorf("a name %q", name)
			}
		}
	})
}

func TestDescribeDirectory(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{"etc/hostname": "# no\nhead1\n", "usr/lib/os-release": "ID=debian\n"} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	facts, layout, err := DescribeLocal(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	if facts.Hostname != "head1" || facts.OSRelease["ID"] != "debian" || facts.Arch == "" {
		t.Errorf("facts %+v", facts)
	}
	if facts.Firmware != "" || facts.Cmdline != "" {
		t.Errorf("a directory has firmware %q and command line %q", facts.Firmware, facts.Cmdline)
	}
	if layout != nil || !strings.Contains(facts.LayoutNote, "directory") {
		t.Errorf("layout %+v, note %q", layout, facts.LayoutNote)
	}
}

// TestDescribePartition lays a tree out over the partitions of a loop device,
// as a running head has it, and reads the layout back.
func TestDescribePartition(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("this test mounts file systems: run it as root")
	}
	image := diskImage(t, 256<<20)
	tool(t, "", "sgdisk", "-n", "1:1M:+1M", "-t", "1:EF02", "-n", "2:2M:+100M", "-t", "2:8300", "-n", "3:102M:+16M", "-t", "3:8200", "-n", "4:118M:+100M", "-t", "4:8300", "-c", "4:home", image)
	// -P: what takes a loop device down then drops its partitions, too.
	loop := tool(t, "", "losetup", "-P", "-f", "--show", image)
	t.Cleanup(func() { tool(t, "", "losetup", "-d", loop) })
	// The kernel may not know GPT; BLKPG works all the same.
	for n, where := range map[string][2]string{"1": {"2048", "2048"}, "2": {"4096", "204800"}, "3": {"208896", "32768"}, "4": {"241664", "204800"}} {
		tool(t, "", "addpart", loop, n, where[0], where[1])
	}
	const rootID, homeID = "aaaaaaaa-89ab-4cde-8f01-23456789abcd", "bbbbbbbb-89ab-4cde-8f01-23456789abcd"
	tool(t, "", "mkfs.ext4", "-q", "-U", rootID, loop+"p2")
	tool(t, "", "mkswap", "-q", "-L", "aus", loop+"p3")
	tool(t, "", "mkfs.ext4", "-q", "-U", homeID, loop+"p4")
	root := filepath.Join(t.TempDir(), "root")
	if err := os.Mkdir(root, 0o755); err != nil {
		t.Fatal(err)
	}
	mount := func(source, dir string) {
		t.Helper()
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		tool(t, "", "mount", source, dir)
		t.Cleanup(func() { tool(t, "", "umount", dir) })
	}
	mount(loop+"p2", root)
	mount(loop+"p4", filepath.Join(root, "home"))
	if err := os.MkdirAll(filepath.Join(root, "etc"), 0o755); err != nil {
		t.Fatal(err)
	}
	fstab := "UUID=" + rootID + " / ext4 errors=remount-ro 0 1\nLABEL=aus none swap sw,pri=5 0 0\n"
	if err := os.WriteFile(filepath.Join(root, "etc/fstab"), []byte(fstab), 0o644); err != nil {
		t.Fatal(err)
	}
	facts, l, err := DescribeLocal(t.Context(), root)
	if err != nil || l == nil {
		t.Fatalf("layout %v, note %q, %v", l, facts.LayoutNote, err)
	}
	if l.Table != "gpt" || l.DiskSize != 256<<20 || l.SectorSize != 512 || len(l.Partitions) != 4 {
		t.Fatalf("layout %+v", l)
	}
	if l.Partitions[0].FS != nil {
		t.Errorf("the BIOS boot partition has %+v", l.Partitions[0].FS)
	}
	for i, want := range []FileSystem{
		{Type: "ext4", UUID: rootID, Mount: "/", Options: "errors=remount-ro"},
		{Type: "swap", Label: "aus", Options: "sw,pri=5"},
		{Type: "ext4", UUID: homeID, Mount: "/home"}, // by what is mounted: fstab is silent
	} {
		got := *l.Partitions[i+1].FS
		if want.UUID == "" {
			got.UUID = ""
		}
		got.Features = nil
		if !reflect.DeepEqual(got, want) {
			t.Errorf("partition %d: got %+v, want %+v", i+2, got, want)
		}
	}
	_, none, err := DescribeLocal(t.Context(), filepath.Join(root, "etc"))
	if err != nil || none != nil {
		t.Errorf("a directory of the tree has the layout %+v, %v", none, err)
	}
}
