package tarball

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"doppel/imaging"
)

// disk is an ext4 file system, which has everything that a tree can have.
func disk(tb testing.TB) string { return diskOf(tb, "ext4", "2G") }

// diskOf makes a file system of a kind and mounts it for the test.
func diskOf(tb testing.TB, kind, size string) string {
	tb.Helper()
	needRoot(tb)
	top := tb.TempDir()
	dir, file := filepath.Join(top, "mnt"), filepath.Join(top, "disk")
	must(tb, os.Mkdir(dir, 0o755))
	run(tb, "truncate", "-s", size, file)
	run(tb, "mkfs."+kind, "-q", file)
	run(tb, "mount", "-o", "loop", file, dir)
	tb.Cleanup(func() { run(tb, "umount", dir) })
	return dir
}

// capture captures a directory.
func capture(tb testing.TB, c *imaging.Catalog, dir, name string) *imaging.Manifest {
	tb.Helper()
	_, err := imaging.Capture(tb.Context(), c, imaging.NewLocal(dir), imaging.CaptureOptions{Name: name, Root: dir})
	must(tb, err)
	m, _ := manifest(tb, c, name)
	return m
}

// beyond are the paths of the nasty tree that no tar carries: a socket, and
// what is deeper than PATH_MAX with what is linked to it.
var beyond = []string{"kinds/socket", "deep", "links/top"}

// judge compares two trees with the tools that everybody uses, all but what is
// left out.
func judge(t *testing.T, want, have string, leave ...string) {
	t.Helper()
	// rsync knows no way beyond PATH_MAX, and reads the gigabytes of a hole.
	args := []string{"-aHAXn", "--numeric-ids", "--checksum", "--delete", "--itemize-changes", "--exclude=/holes/far", "--exclude=/deep", "--exclude=/links/top"}
	prune := []string{"."}
	for _, path := range leave {
		args = append(args, "--exclude=/"+path)
		prune = append(prune, "-path", "./"+path, "-prune", "-o")
	}
	if out := run(t, "rsync", append(args, want+"/", have+"/")...); out != "" {
		t.Errorf("rsync sees differences:\n%.4000s", out)
	}
	for _, look := range [][]string{
		{"-type", "d", "-printf", `%p %y %m %U %G %T@\0`},
		{"!", "-type", "d", "-printf", `%p %y %m %U %G %s %T@ %n %l\0`},
		{"-execdir", "getfattr", "-h", "-d", "-m-", "-e", "hex", "--", "{}", "+"},
		{"-type", "f", "-size", "-100M", "-execdir", "sha256sum", "-z", "--", "{}", "+"},
		{"(", "-type", "b", "-o", "-type", "c", ")", "-execdir", "stat", "-c", "%n %t:%T", "--", "{}", "+"},
	} {
		list := append(slices.Clone(prune), look...)
		a, b := findOutput(t, want, list), findOutput(t, have, list)
		if slices.Equal(a, b) {
			continue
		}
		lacks := slices.DeleteFunc(slices.Clone(a), func(r string) bool { _, ok := slices.BinarySearch(b, r); return ok })
		has := slices.DeleteFunc(slices.Clone(b), func(r string) bool { _, ok := slices.BinarySearch(a, r); return ok })
		t.Errorf("%q: is missing %.1000q, is new %.1000q", look, lacks, has)
	}
}

// findOutput are the records that find prints in dir, sorted.
func findOutput(t *testing.T, dir string, args []string) []string {
	t.Helper()
	cmd := exec.Command("find", args...)
	cmd.Dir = dir
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("find %q in %s: %v\n%.2000s", args, dir, err, stderr.String())
	}
	separator := "\x00"
	switch {
	case slices.Contains(args, "getfattr"):
		separator = "\n\n"
	case slices.Contains(args, "stat"):
		separator = "\n"
	}
	records := strings.Split(string(out), separator)
	slices.Sort(records)
	return records
}

// changes are the differences between two versions, as lines, all but below
// what is left out.
func changes(a, b *imaging.Manifest, leave ...string) []string {
	var list []string
	for _, d := range imaging.DiffManifests(a, b) {
		if !slices.ContainsFunc(leave, func(p string) bool { return d.Path == p || strings.HasPrefix(d.Path, p+"/") }) {
			list = append(list, fmt.Sprint(d.Path, " ", strings.Trim(fmt.Sprint(d.What), "[]")))
		}
	}
	return list
}

// What GNU tar and bsdtar unpack of an export is the tree that was captured,
// but for what no archive can hold and they cannot unpack.
func TestExportFidelity(t *testing.T) {
	top := disk(t)
	source := filepath.Join(top, "source")
	must(t, os.Mkdir(source, 0o755))
	run(t, "python3", "../testdata/nasty.py", source)
	c := openCatalog(t)
	m := capture(t, c, source, "nasty")
	file := filepath.Join(top, "export.tar")
	r := exportTo(t, c, "nasty", file, ExportOptions{})
	if len(r.LeftOut) != 1 || r.LeftOut[0].Path != "kinds/socket" || r.LeftOut[0].Kind != LeftSocket || r.Entries != int64(m.List.Len())-1 {
		t.Errorf("report %+v", r)
	}

	t.Run("doppel", func(t *testing.T) {
		f, err := os.Open(file)
		must(t, err)
		defer f.Close()
		report, err := Import(t.Context(), c, f, ImportOptions{Name: "again"})
		must(t, err)
		if report.Partial() || len(report.Notes) > 0 {
			t.Errorf("report %+v", report)
		}
		again, _ := manifest(t, c, "again")
		if got := changes(m, again); !slices.Equal(got, []string{"kinds/socket "}) {
			t.Errorf("%d changes: %.2000q", len(got), got)
		}
	})
	t.Run("GNU tar", func(t *testing.T) {
		dir := filepath.Join(top, "gnu")
		must(t, os.Mkdir(dir, 0o755))
		unpack(t, "tar", "--xattrs", "--xattrs-include=*", "--acls", "-S", "--numeric-owner", "--warning=no-unknown-keyword", "--warning=no-timestamp", "-xpf", file, "-C", dir)
		judge(t, source, dir, beyond...)
		if got := changes(m, capture(t, c, dir, "gnu"), beyond...); len(got) > 0 {
			t.Errorf("%d changes: %.2000q", len(got), got)
		}
	})
	t.Run("bsdtar", func(t *testing.T) {
		dir := filepath.Join(top, "bsd")
		must(t, os.Mkdir(dir, 0o755))
		unpack(t, "bsdtar", "--xattrs", "--acls", "--numeric-owner", "-xpf", file, "-C", dir)
		got := changes(m, capture(t, c, dir, "bsd"), beyond...)
		// It has its own way with fractions of seconds before 1970, and never
		// sets the time of the directory that it unpacks in.
		got = slices.DeleteFunc(got, func(s string) bool { return s == ". mtime" || strings.HasSuffix(s, " mtime") && before1970(m, s) })
		if len(got) > 0 {
			t.Errorf("%d changes: %.2000q", len(got), got)
		}
	})
}

func before1970(m *imaging.Manifest, change string) bool {
	e := m.List.Get(strings.TrimSuffix(change, " mtime"))
	return e != nil && e.MTime.Sec < 0 && e.MTime.Nsec > 0
}

// unpack lets a program complain about nothing but what is too deep for it.
func unpack(t *testing.T, name string, args ...string) {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Env = append(os.Environ(), "LC_ALL=C.UTF-8")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	err := cmd.Run()
	var failed *exec.ExitError
	if err != nil && !errors.As(err, &failed) {
		t.Fatal(err)
	}
	for line := range strings.Lines(stderr.String()) {
		if !strings.Contains(line, "deep/") && !strings.Contains(line, "links/top") && !strings.Contains(line, "previous errors") && !strings.Contains(line, "exit delayed") &&
			!strings.Contains(line, "converted from UTF-8") { // bsdtar, of names that are none, which it unpacks all the same
			t.Errorf("%s says: %.300s", name, line)
		}
	}
}

// exportTo exports into a file.
func exportTo(tb testing.TB, c *imaging.Catalog, ref, path string, o ExportOptions) *ExportReport {
	tb.Helper()
	f, err := os.Create(path)
	must(tb, err)
	r, err := Export(tb.Context(), c, ref, f, o)
	must(tb, err, f.Close())
	return r
}

// What is imported from the archives of GNU tar and bsdtar and restored is the
// tree that they were made of.
func TestImportFidelity(t *testing.T) {
	top := disk(t)
	source := filepath.Join(top, "source")
	must(t, os.Mkdir(source, 0o755))
	run(t, "python3", "../testdata/nasty.py", source)
	must(t, os.Remove(filepath.Join(source, "kinds/socket")))
	// GNU tar makes two of a FIFO or a device with two names, bsdtar of a device.
	must(t, os.Remove(filepath.Join(source, "links/b/fifo")), os.Remove(filepath.Join(source, "links/b/null")))
	c := openCatalog(t)
	m := capture(t, c, source, "source")
	whole := []string{"tar", "--format=pax", "--xattrs", "--xattrs-include=*", "--acls", "-S", "--numeric-owner"}
	for name, args := range map[string][]string{
		"1.0":    whole,
		"0.0":    append(slices.Clone(whole), "--sparse-version=0.0"),
		"0.1":    append(slices.Clone(whole), "--sparse-version=0.1"),
		"dense":  slices.DeleteFunc(slices.Clone(whole), func(s string) bool { return s == "-S" }),
		"bsdtar": {"bsdtar", "--format=pax", "--xattrs", "--acls"},
	} {
		t.Run(name, func(t *testing.T) {
			archived := source
			if name == "dense" {
				archived = filepath.Join(source, "content") // not the gigabytes of holes
			}
			cmd := exec.Command(args[0], append(args[1:], "-C", archived, "-cf", "-", ".")...)
			cmd.Env = append(os.Environ(), "LC_ALL=C.UTF-8")
			out, err := cmd.StdoutPipe()
			must(t, err)
			must(t, cmd.Start())
			r, err := Import(t.Context(), c, out, ImportOptions{Name: "x"})
			must(t, err, ignoreExit(cmd.Wait(), name == "bsdtar")) // which warns of names that are not UTF-8
			if r.Partial() || len(r.Notes) > 0 {
				t.Errorf("report %+v", r)
			}
			got, vault := manifest(t, c, "x")
			if name == "dense" {
				dir := filepath.Join(top, name)
				_, err = imaging.Apply(t.Context(), got, vault, dir, imaging.ApplyOptions{})
				must(t, err)
				judge(t, archived, dir)
				return
			}
			diff := changes(m, got)
			if name == "bsdtar" {
				diff = slices.DeleteFunc(diff, func(s string) bool { return strings.HasSuffix(s, " mtime") && before1970(m, s) })
			}
			if len(diff) > 0 {
				t.Errorf("%d changes: %.2000q", len(diff), diff)
			}
			if name == "1.0" {
				dir := filepath.Join(top, name)
				_, err = imaging.Apply(t.Context(), got, vault, dir, imaging.ApplyOptions{})
				must(t, err)
				judge(t, source, dir)
			}
		})
	}
}

func ignoreExit(err error, ignore bool) error {
	var failed *exec.ExitError
	if ignore && errors.As(err, &failed) {
		return nil
	}
	return err
}

// The formats that can hold less, each with what it can hold; and every
// compression, by programs that are not ours.
func TestImportFormats(t *testing.T) {
	top := disk(t)
	source := filepath.Join(top, "source")
	fill(t, source+"/dir/file", noise(100_000, 1))
	fill(t, source+"/other", []byte("other"))
	must(t, os.Link(source+"/dir/file", source+"/a link"), os.Symlink("dir/file", source+"/soft"))
	run(t, "mkfifo", source+"/fifo")
	run(t, "mknod", source+"/null", "c", "1", "3")
	run(t, "touch", "-h", "-d", "@1700000000", source+"/soft")
	run(t, "find", source, "-exec", "touch", "-h", "-d", "@1700000000", "{}", "+")
	c := openCatalog(t)
	plain := capture(t, c, source, "plain")
	must(t, os.Truncate(source+"/other", 3<<20))
	run(t, "touch", "-d", "@1700000000", source+"/other")
	holes := capture(t, c, source, "holes")
	v7 := func(m *imaging.Manifest) *imaging.Manifest {
		var list []imaging.Entry
		for _, e := range m.List.All() {
			if e.Kind != imaging.FIFO && e.Kind != imaging.CharDevice {
				list = append(list, *e)
			}
		}
		entries, err := imaging.NewEntries(list...)
		must(t, err)
		return &imaging.Manifest{List: entries}
	}
	for _, k := range []struct {
		args []string
		pipe []string
		want *imaging.Manifest
	}{
		{[]string{"tar", "--format=gnu", "-S"}, nil, holes},
		{[]string{"tar", "--format=oldgnu", "-S"}, nil, holes},
		{[]string{"tar", "--format=ustar"}, nil, nil},
		{[]string{"tar", "--format=v7"}, nil, nil},
		{[]string{"bsdtar", "--format=ustar"}, nil, nil},
		{[]string{"bsdtar", "--format=gnutar"}, nil, nil},
		{[]string{"tar", "--format=gnu", "-S"}, []string{"gzip", "-c"}, holes},
		{[]string{"tar", "--format=gnu", "-S"}, []string{"zstd", "-c", "-19"}, holes},
		{[]string{"tar", "--format=gnu", "-S"}, []string{"xz", "-c", "-9"}, holes},
		{[]string{"tar", "--format=gnu", "-S"}, []string{"bzip2", "-c"}, holes},
	} {
		t.Run(strings.Join(append(k.args, k.pipe...), " "), func(t *testing.T) {
			cmd := exec.Command(k.args[0], append(k.args[1:], "--numeric-owner", "-C", source, "-cf", "-", ".")...)
			b, err := cmd.Output()
			must(t, ignoreExit(err, k.want == nil)) // where it says what it cannot hold
			if k.pipe != nil {
				pack := exec.Command(k.pipe[0], k.pipe[1:]...)
				pack.Stdin = bytes.NewReader(b)
				b, err = pack.Output()
				must(t, err)
			}
			_, err = importBytes(t, c, "x", b)
			must(t, err)
			got, vault := manifest(t, c, "x")
			if k.want != nil {
				if diff := changes(k.want, got); len(diff) > 0 {
					t.Errorf("changes %q", diff)
				}
				return
			}
			want := v7(plain)
			if k.args[1] != "--format=v7" {
				want = plain
			}
			if diff := changes(want, got, "other"); len(diff) > 0 {
				t.Errorf("changes %q", diff)
			}
			if s := content(t, got, vault, "other"); len(s) != 3<<20 || !strings.HasPrefix(s, "other\x00") {
				t.Errorf("a file of %d bytes", len(s))
			}
		})
	}
	_, err := Import(t.Context(), c, io.LimitReader(bytes.NewReader(nil), 0), ImportOptions{Name: "x"})
	if err == nil || !strings.Contains(err.Error(), "it is empty") {
		t.Errorf("nothing: %v", err)
	}
}
