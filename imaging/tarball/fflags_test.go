package tarball

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"doppel/imaging"
)

// Inode flags go out and come in as bsdtar writes and reads them.
func TestInodeFlags(t *testing.T) {
	top := disk(t)
	t.Cleanup(func() { run(t, "chattr", "-R", "-f", "-ia", top) })
	source := filepath.Join(top, "source")
	must(t, os.MkdirAll(source+"/directory", 0o755))
	// Without the one that keeps others out, bsdtar could not make what is in it.
	for name, flags := range map[string]string{
		"immutable": "i", "append": "a", "quiet": "Ad", "wiped": "su", "sync": "S", "both": "iA", "tail": "t", "pressed": "c", "none": "", "direct": "x",
	} {
		fill(t, filepath.Join(source, name), []byte(name))
		if flags != "" {
			run(t, "chattr", "+"+flags, filepath.Join(source, name))
		}
	}
	must(t, os.Link(source+"/none", source+"/again"))
	run(t, "chattr", "+DT", source+"/directory")
	c := openCatalog(t)
	m := capture(t, c, source, "source")
	file := filepath.Join(top, "export.tar")
	exportTo(t, c, "source", file, ExportOptions{})
	imported := func(name string, archive []byte) *imaging.Manifest {
		t.Helper()
		r, err := importBytes(t, c, name, archive)
		must(t, err)
		if r.Partial() || len(r.Notes) > 0 {
			t.Errorf("%s: report %+v", name, r)
		}
		m, _ := manifest(t, c, name)
		return m
	}
	b, err := os.ReadFile(file)
	must(t, err)
	if got := changes(m, imported("doppel", b)); len(got) > 0 {
		t.Errorf("out and in again: %q", got)
	}

	dir := filepath.Join(top, "unpacked")
	must(t, os.Mkdir(dir, 0o755))
	unpack(t, "bsdtar", "--fflags", "--numeric-owner", "-xpf", file, "-C", dir)
	const dax = "direct flags" // the one of these that bsdtar has no name for
	if got := changes(m, capture(t, c, dir, "unpacked"), "."); strings.Join(got, "; ") != dax {
		t.Errorf("unpacked by bsdtar: %q", got)
	}
	packed, err := exec.Command("bsdtar", "--format=pax", "--fflags", "-C", source, "-cf", "-", ".").Output()
	must(t, err)
	if got := changes(m, imported("bsdtar", packed)); strings.Join(got, "; ") != dax {
		t.Errorf("packed by bsdtar: %q", got)
	}
}

// Flags of other systems and of what can have none are left out, and the report
// says so; a quota project is kept.
func TestFlagsAndProjects(t *testing.T) {
	c := openCatalog(t)
	b := archive(raw{name: "./", kind: '5'},
		paxed(raw{name: "f", kind: '0', data: "x"}, record{"SCHILY.fflags", "uchg,schange nodump,hidden"}, record{projectKey, "4294967294"}),
		paxed(raw{name: "l", kind: '2', link: "f"}, record{"SCHILY.fflags", "schg"}, record{projectKey, "7"}),
		paxed(raw{name: "p", kind: '0'}, record{projectKey, "7"}))
	r, err := importBytes(t, c, "x", b)
	must(t, err)
	var notes []string
	for _, n := range r.Notes {
		notes = append(notes, n.Path+": "+n.Detail)
	}
	if got := strings.Join(notes, "\n"); len(notes) != 2 || !strings.Contains(got, `f: Linux has no such file flags as "uchg,hidden"`) || !strings.Contains(got, "l: a symlink on Linux cannot have file flags") {
		t.Errorf("notes %q", got)
	}
	m, _ := manifest(t, c, "x")
	for path, want := range map[string][2]uint32{"f": {0x50, 1<<32 - 2}, "l": {}, "p": {0, 7}} {
		if e := entry(t, m, path); e.Flags != want[0] || e.Project != want[1] {
			t.Errorf("%s has the flags %#x and the project %d", path, e.Flags, e.Project)
		}
	}
	var out bytes.Buffer
	_, err = Export(t.Context(), c, "x", &out, ExportOptions{})
	must(t, err)
	if !bytes.Contains(out.Bytes(), []byte(" SCHILY.fflags=schg,nodump\n")) || !bytes.Contains(out.Bytes(), []byte(" DOPPEL.project=4294967294\n")) {
		t.Error("they are not in the archive that comes of it")
	}
	for _, project := range []string{"-1", "4294967295", "many"} {
		_, err := importBytes(t, c, "x", archive(paxed(raw{name: "f", kind: '0'}, record{projectKey, project})))
		if err == nil || !strings.Contains(err.Error(), "f") {
			t.Errorf("the project %s: %v", project, err)
		}
	}
}

// Each flag that is kept has a name, and comes back by each of its names.
func TestFlagNames(t *testing.T) {
	all := uint32(0)
	for _, f := range fflags {
		all |= f.bit
		for _, name := range f.names {
			if flags, unknown := parseFlags(name); flags != f.bit || unknown != nil {
				t.Errorf("%s is %#x, %q", name, flags, unknown)
			}
		}
	}
	if all != imaging.KeptFlags {
		t.Errorf("there are names for %#x, and flags %#x", all, imaging.KeptFlags)
	}
	if flags, unknown := parseFlags(flagsText(all)); flags != all || unknown != nil {
		t.Errorf("all of them: %#x, %q", flags, unknown)
	}
}
