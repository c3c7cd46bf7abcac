package clone

import (
	"bytes"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"doppel/imaging"
)

func testFound() Found {
	return Found{
		Hostname: "primary", Hardware: Hardware{Arch: "x86_64", Firmware: BIOS}, Root: "UUID=1111-11",
		Layout: &imaging.Layout{Table: "mbr", Partitions: []imaging.LayoutPartition{
			{Number: 1, Type: "0x83", Start: 1 << 20, Size: 1 << 30, FS: &imaging.FileSystem{Type: "ext4", UUID: "1111-11", Mount: "/"}},
			{Number: 2, Type: "0x82", FS: &imaging.FileSystem{Type: "swap", UUID: "9999"}},
		}},
		Trees: []FoundTree{{Mount: "/", Type: "ext4", UUID: "1111-11"}, {Mount: "/srv", Type: "xfs", UUID: "2222"}},
	}
}

func foundTarget() Target {
	return Target{Install: "I", Node: "head1", Role: roleHead, MAC: "52:54:00:00:00:01", Addr: netip.MustParsePrefix("10.77.0.2/24"), Server: "https://10.77.0.1:8443", Image: "head@3"}
}

// The plan of a machine as it was found has its own file systems, on whatever
// disks, and its EFI system partition by where that is mounted.
func TestFoundPlan(t *testing.T) {
	p, err := FoundPlan(testFound(), foundTarget())
	if err != nil {
		t.Fatal(err)
	}
	if mounts := strings.Join(p.mounts(), " "); mounts != "/srv" || p.FileSystemAt("/").Number != 1 || p.ESP() != nil || p.Found.Root != "UUID=1111-11" {
		t.Errorf("mounts %s: %+v", mounts, p)
	}
	b, err := EncodePlan(p)
	if err != nil {
		t.Fatal(err)
	}
	if back, err := DecodePlan(b); err != nil || back.Found == nil || *back.Found != *p.Found {
		t.Errorf("%+v, %v", back, err)
	}
	lvm := testFound()
	lvm.Layout, lvm.Note, lvm.Firmware = nil, "the root file system is on LVM, whose layout is not recorded", UEFI
	lvm.Trees = append(lvm.Trees, FoundTree{Mount: "/boot", Type: "ext4", UUID: "3333"}, FoundTree{Mount: "/boot/efi", Type: "vfat", UUID: "AAAA-BBBB"})
	if p, err = FoundPlan(lvm, foundTarget()); err != nil || p.ESP() == nil || p.ESP().FS.Mount != "/boot/efi" || p.FileSystemAt("/boot") == nil || p.Found.Note == "" {
		t.Errorf("%+v, %v", p, err)
	}
	none := testFound()
	none.Layout, none.Trees = nil, nil
	var no *RefusedError
	if _, err := FoundPlan(none, foundTarget()); !errors.As(err, &no) || !strings.Contains(no.What, "primary cannot be made a node") {
		t.Errorf("%v", err)
	}
}

// An update of a machine that is as it was found is refused before anything is
// touched when it could not be started afterwards, unless it keeps its kernels.
func TestUpdateFound(t *testing.T) {
	image := newImage(debianHead(), debianFiles())
	for _, c := range []struct {
		name  string
		alter func(*Plan)
		disk  string
		keep  []string
		want  string
	}{
		{"plain", func(*Plan) {}, "/dev/vda", nil, ""},
		{"no GRUB on a disk", func(*Plan) {}, "", nil, "no disk that is started by GRUB"},
		{"no GRUB, kernels kept", func(*Plan) {}, "", []string{"boot/**", "usr/lib/modules/**"}, ""},
		{"LVM", func(p *Plan) { p.Found.Note = "the root file system is on LVM" }, "/dev/vda", nil, "was not laid out by doppel (the root file system is on LVM)"},
		{"LVM, half kept", func(p *Plan) { p.Found.Note = "LVM" }, "/dev/vda", []string{"boot/**"}, "was not laid out by doppel"},
		{"LVM, kernels kept", func(p *Plan) { p.Found.Note = "LVM" }, "/dev/vda", []string{"boot/**", "usr/lib/modules/**"}, ""},
	} {
		root, plan := node(t, image, roleHead)
		plan.Found = &FoundMachine{Root: "/dev/mapper/vg-root"}
		c.alter(plan)
		before := contents(t, root)
		to := upgraded()
		rec := &bytes.Buffer{}
		r, err := Update(t.Context(), &Recorder{Out: rec, Ran: menu(plan)}, plan, &to.Manifest, to, UpdateOptions{
			Root: root, Work: t.TempDir(), Disk: c.disk, Orders: UpdateOrders{Image: "head@4", Keep: c.keep},
		})
		var no *RefusedError
		if c.want != "" {
			if !errors.As(err, &no) || !strings.Contains(no.What, c.want) || !strings.Contains(no.Hint, "usr/lib/modules/**") {
				t.Errorf("%s: %v", c.name, err)
			}
			if after := contents(t, root); !slices.Equal(before, after) {
				t.Errorf("%s: it was touched", c.name)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		kernel := readFile(t, root, "boot/vmlinuz-6.1.0-2-amd64") != ""
		if kept := c.keep != nil; kept == kernel || r.Boot == kept {
			t.Errorf("%s: the new kernel is there: %v; the boot menu was made: %v", c.name, kernel, r.Boot)
		}
		if strings.Contains(rec.String(), "boot entry") || readFile(t, root, "etc/default/grub.d/doppel.cfg") != "" && c.keep == nil && strings.Contains(rec.String(), "doppel.cfg") {
			t.Errorf("%s: more than its own was touched: %s", c.name, rec)
		}
	}
}

// What enlisting puts on a machine goes again, and nothing else; both may be
// done again after they were cut off.
func TestEnlistAndDelist(t *testing.T) {
	needRoot(t)
	root := t.TempDir()
	for _, dir := range []string{"etc/systemd/system/multi-user.target.wants", "etc/doppel", "usr/lib", "var/lib"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(root, "etc/doppel/doppel.toml"), []byte("own"), 0o600); err != nil {
		t.Fatal(err)
	}
	before := contents(t, root)
	plan, err := FoundPlan(testFound(), foundTarget())
	if err != nil {
		t.Fatal(err)
	}
	e := Enlistment{Plan: plan, Certificate: []byte("crt"), CA: []byte("ca")}
	for _, key := range []string{"key", "another"} {
		if _, err := Enlist(root, []byte("agent"), []byte(key), e); err != nil {
			t.Fatal(err)
		}
		for name, want := range map[string]string{"usr/lib/doppel/doppel-agent": "agent", "etc/doppel/node/node.key": key, "etc/doppel/node/node.crt": "crt", "etc/doppel/node/ca.crt": "ca"} {
			if have := readFile(t, root, name); have != want {
				t.Errorf("%s is %q", name, have)
			}
		}
		for _, name := range []string{"node.key", "node.json", "plan.json"} {
			if fi, err := os.Stat(filepath.Join(root, nodeDir, name)); err != nil || fi.Mode().Perm() != 0o600 {
				t.Errorf("%s: %v, %v", name, fi, err)
			}
		}
	}
	for _, name := range []string{"etc/doppel/node/pair.json", "etc/doppel/node/parted.json", "etc/doppel/node/updating", "var/lib/doppel/tables/0f/aa"} { // what the agent keeps
		if err := errors.Join(os.MkdirAll(filepath.Dir(filepath.Join(root, name)), 0o755), os.WriteFile(filepath.Join(root, name), nil, 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Remove(filepath.Join(root, agentPath)); err != nil { // it was cut off before
		t.Fatal(err)
	}
	for range 2 {
		if left, err := Delist(root); err != nil || len(left) > 0 {
			t.Errorf("%q, %v", left, err)
		}
		if after := contents(t, root); !slices.Equal(before, after) {
			t.Errorf("it leaves\n%q\nof\n%q", after, before)
		}
	}

	// An agent that was there before stays; a node that was installed is not
	// taken back so.
	if err := errors.Join(os.MkdirAll(filepath.Join(root, "usr/lib/doppel"), 0o755), os.WriteFile(filepath.Join(root, agentPath), []byte("a package's"), 0o755)); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if _, err := Enlist(root, []byte("agent"), []byte("key"), e); err != nil {
			t.Fatal(err)
		}
	}
	if left, err := Delist(root); err != nil || len(left) != 1 || readFile(t, root, agentPath) != "a package's" {
		t.Errorf("%q, %v", left, err)
	}
	installed, plan2 := node(t, newImage(debianHead(), debianFiles()), roleHead)
	var no *RefusedError
	if _, err := Delist(installed); !errors.As(err, &no) || readFile(t, installed, "etc/doppel/node/node.key") == "" || plan2.Found != nil {
		t.Errorf("%v", err)
	}
}

// An enlistment that is cut off at any of its files, by a disk that is full, and
// is taken back then, or done again and taken back, still knows whether the
// agent was there before.
func TestEnlistCut(t *testing.T) {
	needRoot(t)
	plan, err := FoundPlan(testFound(), foundTarget())
	if err != nil {
		t.Fatal(err)
	}
	for _, before := range []string{"", "a package's"} {
		root := t.TempDir()
		if err := unix.Mount("tmpfs", root, "tmpfs", 0, "size=256k"); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = unix.Unmount(root, unix.MNT_DETACH) })
		files := map[string]string{"etc/doppel/doppel.toml": "own", "var/lib/doppel/cluster.db": "a daemon's", "etc/systemd/system/multi-user.target.wants/other": "", "usr/lib/other": ""}
		if before != "" {
			files[agentPath] = before
		}
		for name, text := range files {
			if err := errors.Join(os.MkdirAll(filepath.Dir(filepath.Join(root, name)), 0o755), os.WriteFile(filepath.Join(root, name), []byte(text), 0o600)); err != nil {
				t.Fatal(err)
			}
		}
		want := contents(t, root)
		takeBack := func(when string) {
			t.Helper()
			for range 2 {
				left, err := Delist(root)
				if err != nil || (len(left) == 1) != (before != "") {
					t.Errorf("%q there before, %s: it left %q, %v", before, when, left, err)
				}
				if have := contents(t, root); !slices.Equal(have, want) {
					t.Errorf("%q there before, %s: it leaves\n%q\nof\n%q", before, when, have, want)
				}
			}
		}
		takeBack("before anything was done")
		for _, file := range []string{"the agent", "node.key", "node.crt", "ca.crt"} {
			for _, again := range []bool{false, true} {
				enlist := func(cut bool) error {
					content := func(name string) []byte {
						if cut && name == file {
							return make([]byte, 1<<20)
						}
						return []byte(name)
					}
					_, err := Enlist(root, content("the agent"), content("node.key"), Enlistment{Plan: plan, Certificate: content("node.crt"), CA: content("ca.crt")})
					return err
				}
				if err := enlist(true); !errors.Is(err, unix.ENOSPC) && (before == "" || file != "the agent") {
					t.Fatalf("it was not cut off at %s: %v", file, err)
				}
				when := "cut off at " + file
				if again {
					when += ", and done again"
					if err := enlist(false); err != nil {
						t.Fatal(err)
					}
				}
				takeBack(when)
			}
		}
	}
}
