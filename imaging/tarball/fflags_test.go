package tarball

import (
	"bytes"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"doppel/imaging"
)

// lsattr is what lsattr(1) tells of a tree: projects and flags, but for how a
// file system stores a file.
func lsattr(t *testing.T, dir string) map[string]string {
	t.Helper()
	all := map[string]string{}
	for line := range strings.Lines(run(t, "lsattr", "-Rap", dir)) {
		project, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
		flags, path, ok := strings.Cut(rest, " ")
		if !ok || strings.HasSuffix(path, "/..") {
			continue
		}
		rel, err := filepath.Rel(dir, path)
		must(t, err)
		all[rel] = project + " " + strings.NewReplacer("-", "", "e", "", "I", "", "N", "").Replace(flags)
	}
	return all
}

// flagged makes a tree of files and directories with flags.
func flagged(t *testing.T, root string, files, dirs string) {
	t.Helper()
	for _, f := range files {
		fill(t, filepath.Join(root, "file-"+string(f)), []byte("content"))
	}
	for _, f := range dirs {
		dir := filepath.Join(root, "dir-"+string(f))
		must(t, os.Mkdir(dir, 0o755))
		if strings.ContainsRune("iaTP", f) { // of the others, what is made there inherits
			fill(t, filepath.Join(dir, "in"), []byte("content"))
		}
	}
	fill(t, filepath.Join(root, "linked"), []byte("linked"))
	must(t, os.Link(filepath.Join(root, "linked"), filepath.Join(root, "linked again")))
	for _, f := range files {
		run(t, "chattr", "+"+string(f), filepath.Join(root, "file-"+string(f)))
	}
	for _, f := range dirs {
		run(t, "chattr", "+"+string(f), filepath.Join(root, "dir-"+string(f)))
	}
	run(t, "chattr", "+iAd", filepath.Join(root, "linked"))
}

// Flags that bsdtar packs are those of the tree, and those that it unpacks of
// an export.
func TestFlagsOfBsdtar(t *testing.T) {
	top := disk(t)
	t.Cleanup(func() { run(t, "chattr", "-R", "-f", "-ia", top) })
	root := filepath.Join(top, "tree")
	flagged(t, root, "suScdAait", "scdAaiDTSP")
	c := openCatalog(t)
	m := capture(t, c, root, "tree")
	var seen uint32
	for _, e := range m.List.All() {
		seen |= e.Flags
	}
	if want := uint32(0x200380ff); seen != want {
		t.Fatalf("the tree has the flags %#x, not %#x", seen, want)
	}

	packed := run(t, "bsdtar", "--format=pax", "--xattrs", "--acls", "-C", root, "-cf", "-", ".")
	r, err := importBytes(t, c, "packed", []byte(packed))
	must(t, err)
	got, vault := manifest(t, c, "packed")
	if diff := changes(m, got); len(diff) > 0 || len(r.Notes) > 0 {
		t.Errorf("bsdtar packs it with the changes %q, notes %+v", diff, r.Notes)
	}

	file := filepath.Join(top, "export.tar")
	exportTo(t, c, "tree", file, ExportOptions{})
	want := lsattr(t, root)
	for name, unpacks := range map[string]func(dir string){
		"bsdtar": func(dir string) {
			must(t, os.Mkdir(dir, 0o755))
			unpack(t, "bsdtar", "--numeric-owner", "-xpf", file, "-C", dir)
		},
		"doppel": func(dir string) {
			_, err := imaging.Apply(t.Context(), got, vault, dir, imaging.ApplyOptions{})
			must(t, err)
		},
	} {
		dir := filepath.Join(top, name)
		unpacks(dir)
		if have := lsattr(t, dir); !maps.Equal(have, want) {
			t.Errorf("%s unpacks\n%v, of\n%v", name, have, want)
		}
	}
}

// Projects, which no other archiver knows, come back where doppel imports what
// it exported.
func TestProjects(t *testing.T) {
	dir := diskOf(t, "xfs", "320M")
	root := filepath.Join(dir, "tree")
	fill(t, root+"/home/ada/file", []byte("content"))
	fill(t, root+"/home/none", []byte("content"))
	run(t, "chattr", "-R", "-p", "4294967294", root+"/home/ada")
	run(t, "chattr", "+P", root+"/home/ada")
	c := openCatalog(t)
	m := capture(t, c, root, "tree")
	if e := entry(t, m, "home/ada"); e.Project != 4294967294 || e.Flags == 0 {
		t.Fatalf("project %d, flags %#x", e.Project, e.Flags)
	}
	var out bytes.Buffer
	_, err := Export(t.Context(), c, "tree", &out, ExportOptions{})
	must(t, err)
	r, err := importBytes(t, c, "again", out.Bytes())
	must(t, err)
	again, vault := manifest(t, c, "again")
	if diff := changes(m, again); len(diff) > 0 || len(r.Notes) > 0 {
		t.Errorf("changes %q, notes %+v", diff, r.Notes)
	}
	copied := filepath.Join(dir, "copy")
	_, err = imaging.Apply(t.Context(), again, vault, copied, imaging.ApplyOptions{})
	must(t, err)
	if have, want := lsattr(t, copied), lsattr(t, root); !maps.Equal(have, want) {
		t.Errorf("a restore has\n%v, the tree\n%v", have, want)
	}
}

// Every flag that an entry can have goes out and comes back, alone and with all
// others.
func TestFlagNames(t *testing.T) {
	written := func(flags uint32) []record { return flagRecords(&imaging.Entry{Flags: flags}) }
	all := written(imaging.KeptFlags)
	want := []record{{"SCHILY.fflags", "sappnd,schg,nodump,undel,compress,noatime,dirsync,journal-data,secdel,sync,notail,topdir,nocow,projinherit"}, {"DOPPEL.fflags", "dontcompress,dax"}}
	if !slices.Equal(all, want) {
		t.Errorf("all flags are written %q", all)
	}
	list := []any{raw{name: "./", kind: '5'}, paxed(raw{name: "all", kind: '0'}, all...)}
	for bit := uint32(1); bit != 0; bit <<= 1 {
		if bit&imaging.KeptFlags == 0 {
			continue
		}
		one := written(bit)
		if len(one) != 1 {
			t.Errorf("%#x is written %q", bit, one)
		}
		var p pax
		must(t, p.add(one[0].key, one[0].value))
		var m Member
		must(t, p.apply(&m))
		if m.Flags != bit || len(m.unknown) > 0 {
			t.Errorf("%q is %#x, not %#x", one, m.Flags, bit)
		}
	}
	c := openCatalog(t)
	_, err := importBytes(t, c, "x", archive(list...))
	must(t, err)
	m, _ := manifest(t, c, "x")
	if e := entry(t, m, "all"); e.Flags != imaging.KeptFlags {
		t.Errorf("flags %#x", e.Flags)
	}
	var out bytes.Buffer
	_, err = Export(t.Context(), c, "x", &out, ExportOptions{})
	must(t, err)
	_, err = importBytes(t, c, "y", out.Bytes())
	must(t, err)
	again, _ := manifest(t, c, "y")
	if diff := changes(m, again); len(diff) > 0 {
		t.Errorf("changes %q", diff)
	}
}

// What a flag may be called, what takes it back, and what is told of the rest.
func TestFlagsOfOthers(t *testing.T) {
	file := func(name string, kind byte, records ...record) []byte {
		return paxed(raw{name: name, kind: kind, link: map[byte]string{'1': "names", '2': "to"}[kind]}, records...)
	}
	c := openCatalog(t)
	r, err := importBytes(t, c, "x", archive(
		raw{name: "./", kind: '5'},
		file("names", '0', record{keyFlags, "simmutable, sappend securedeletion,,journal"}),
		file("back", '0', record{keyFlags, "schg,sync,dump,tail,noschg"}),
		file("bsd", '5', record{keyFlags, "uchg,hidden,nodump"}, record{keyMoreFlags, "new"}),
		file("link", '2', record{keyFlags, "schg"}),
		file("fifo", '6', record{keyProject, "7"}),
		file("hard", '1', record{keyFlags, "nodump"}, record{keyProject, "8"}),
		file("none", '0', record{keyFlags, ""}, record{keyProject, ""}),
	))
	must(t, err)
	m, _ := manifest(t, c, "x")
	for path, want := range map[string]uint32{"names": 0, "hard": 0x10 | 0x20 | 0x1 | 0x4000, "back": 0x8, "bsd": 0x40, "link": 0, "fifo": 0, "none": 0} {
		e := entry(t, m, path)
		if path == "names" { // the second name: hard is first in order
			if e.Kind != imaging.HardLink {
				t.Errorf("names is a %v", e.Kind)
			}
			continue
		}
		if e.Flags != want || e.Project != 0 {
			t.Errorf("%s: flags %#x, project %d", path, e.Flags, e.Project)
		}
	}
	var notes []string
	for _, n := range r.Notes {
		notes = append(notes, n.Path+": "+n.Detail)
	}
	if want := []string{
		`bsd: Linux has no file flags of these names: "uchg,hidden,new": they were left out`,
		"link: a symlink on Linux cannot have file flags or a project: they were left out",
		"fifo: a fifo on Linux cannot have file flags or a project: they were left out",
	}; !slices.Equal(notes, want) {
		t.Errorf("notes %q", notes)
	}
	for _, bad := range []record{{keyProject, "-1"}, {keyProject, "4294967296"}, {keyProject, "seven"}, {keyFlags, strings.Repeat("schg,", 1000)}} {
		_, err := importBytes(t, c, "bad", archive(raw{name: "./", kind: '5'}, file("f", '0', bad)))
		if err == nil || !strings.Contains(err.Error(), bad.key) || !strings.Contains(err.Error(), "at byte 512 of the archive") {
			t.Errorf("%.20s: %v", bad, err)
		}
	}
}

// FuzzFlags: whatever names there are, what is taken of them is written and
// read the same.
func FuzzFlags(f *testing.F) {
	f.Add("schg,sappnd,nodump")
	f.Add("noschg dump,uchg,,\xff")
	f.Add("dontcompress,dax,nocompress")
	f.Fuzz(func(t *testing.T, text string) {
		for _, table := range [][]fileFlag{fileFlags[:], moreFlags[:]} {
			flags, _ := parseFlags(table, text)
			again, unknown := parseFlags(table, flagNames(table, flags))
			if again != flags || len(unknown) > 0 || flags&^imaging.KeptFlags != 0 {
				t.Fatalf("%q is %#x, written again %#x, unknown %q", text, flags, again, unknown)
			}
		}
	})
}
