package dpkg

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// real are stanzas as Debian 12 has them: installed, held, waiting for a
// trigger, with an older version's configuration, removed but for the
// configuration, never installed, half way.
const real = `Package: adduser
Status: install ok installed
Priority: important
Section: admin
Installed-Size: 686
Maintainer: Debian Adduser Developers <adduser@packages.debian.org>
Architecture: all
Multi-Arch: foreign
Version: 3.134
Depends: passwd
Conffiles:
 /etc/adduser.conf 4a1a2ab3d86a9ed4d4a5a7d5b6b8b1a6
 /etc/deluser.conf 2f2c1e6c6f5bd5e7a1ee3cfcd9bdb9a5
Description: add and remove users and groups
 This package includes the 'adduser' and 'deluser' commands for creating
 and removing users.
 .
 Package: not this
Homepage: https://packages.debian.org/adduser

Package: libc6
Status: hold ok installed
Architecture: amd64
Multi-Arch: same
Source: glibc
Version: 2.36-9+deb12u10

Package: libc6
Status: install ok installed
Architecture: i386
Multi-Arch: same
Source: glibc
Version: 2.36-9+deb12u10

Package: man-db
Status: install ok triggers-pending
Architecture: amd64
Version: 2.11.2-2
Triggers-Pending: /usr/share/man

Package: nscd
Status: deinstall ok config-files
Architecture: amd64
Version: 2.36-9+deb12u9
Config-Version: 2.36-9+deb12u9

Package: slurmd
Status: install reinstreq half-installed
Architecture: amd64
Version: 22.05.8-4+deb12u2

Package: munge
Status: install ok unpacked
Architecture: amd64
Version: 0.5.15-2

Package: emacs
Status: unknown ok not-installed
Architecture: all
`

// updates are what a running dpkg had still to write into that.
var updates = []string{
	"Package: libc6\nStatus: hold ok installed\nArchitecture: amd64\nMulti-Arch: same\nVersion: 2.36-9+deb12u11\n",
	"Package: man-db\nStatus: deinstall ok half-configured\nArchitecture: amd64\nVersion: 2.11.2-2\n",
}

func read(t testing.TB, d *Database, kind File, text string) {
	t.Helper()
	if err := d.Read(strings.NewReader(text), kind); err != nil {
		t.Fatal(err)
	}
}

func names(d *Database) (list []string) {
	for _, p := range d.Packages() {
		list = append(list, fmt.Sprintf("%s:%s %s", p.Name, p.Architecture, p.Version))
	}
	return list
}

func TestRead(t *testing.T) {
	var d Database
	if len(d.Packages()) != 0 {
		t.Error("an empty database has packages")
	}
	read(t, &d, Status, "")
	read(t, &d, Status, "\n \n\t\r\n")
	if len(d.Packages()) != 0 {
		t.Error("nothing has packages")
	}
	read(t, &d, Status, real)
	want := []string{"adduser:all 3.134", "libc6:amd64 2.36-9+deb12u10", "libc6:i386 2.36-9+deb12u10", "man-db:amd64 2.11.2-2"}
	if got := names(&d); !slices.Equal(got, want) {
		t.Errorf("%q", got)
	}
	// What a running dpkg had still to write into it.
	for _, text := range updates {
		read(t, &d, Update, text)
	}
	// A control file of an image that no dpkg made, with its last line cut.
	read(t, &d, Part, "package: base-files\r\nVERSION:12.4+deb12u11  \r\nArchitecture: amd64\nDescription: Debian base system miscellaneous files")
	want = []string{"adduser:all 3.134", "base-files:amd64 12.4+deb12u11", "libc6:amd64 2.36-9+deb12u11", "libc6:i386 2.36-9+deb12u10"}
	if got := names(&d); !slices.Equal(got, want) {
		t.Errorf("after updates %q", got)
	}
	long := "Package: long\nStatus: install ok installed\nDepends: " + strings.Repeat("x, ", 200_000) + "\nVersion: 1\n"
	read(t, &d, Status, long)
	if got := names(&d); !slices.Contains(got, "long: 1") {
		t.Errorf("behind a long line %q", got)
	}
}

// dpkg-query tells the same of these stanzas, and of this machine's own.
func TestReadAsDpkgQuery(t *testing.T) {
	if _, err := exec.LookPath("dpkg-query"); err != nil {
		t.Fatal("this test asks dpkg-query: run it on a Debian, or install dpkg")
	}
	dir := t.TempDir()
	if err := errors.Join(os.Mkdir(filepath.Join(dir, "updates"), 0o755), os.WriteFile(filepath.Join(dir, "status"), []byte(real), 0o644)); err != nil {
		t.Fatal(err)
	}
	for i, text := range updates {
		if err := os.WriteFile(filepath.Join(dir, "updates", fmt.Sprintf("%04d", i)), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, admin := range []string{dir, "/var/lib/dpkg"} {
		var complaint strings.Builder
		cmd := exec.Command("dpkg-query", "--admindir="+admin, "-W", "-f", "${db:Status-Status} ${Package}:${Architecture} ${Version}\n")
		cmd.Stderr = &complaint
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("%v: %s", err, complaint.String())
		}
		var want []string
		for line := range strings.Lines(string(out)) {
			status, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
			if status == "installed" || strings.HasPrefix(status, "triggers-") {
				want = append(want, rest)
			}
		}
		files, err := filepath.Glob(filepath.Join(admin, "updates", "[0-9]*"))
		if err != nil {
			t.Fatal(err)
		}
		var d Database
		for i, file := range append([]string{filepath.Join(admin, "status")}, files...) {
			b, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			read(t, &d, []File{Status, Update}[min(i, 1)], string(b))
		}
		got := names(&d)
		slices.Sort(want)
		slices.Sort(got)
		if !slices.Equal(got, want) || len(got) == 0 {
			t.Errorf("%s: %d packages, of dpkg-query's %d:\n%.2000q\n%.2000q", admin, len(got), len(want), got, want)
		}
	}
}

func TestReadErrors(t *testing.T) {
	const head = "Package: a\nStatus: install ok installed\nVersion: 1\n\n"
	for text, want := range map[string]string{
		head + "Package: b\nStatus: install ok installed\n":               "line 5: the stanza that begins here has no field Version, and b is installed",
		head + "\nStatus: install ok installed\nVersion: 1\n":             "line 6: the stanza that begins here has no field Package",
		head + "Package: b\nVersion: 1\n":                                 "line 5: the stanza that begins here has no Status of three words",
		head + "Package: b\nStatus: installed\n":                          "no Status of three words",
		head + "Package: a\nStatus: install ok installed\nVersion: 2\n":   "line 5: the stanza that begins here has another version of a, 2, than the one that came before: 1",
		head + " continued\n":                                             "line 5: it goes on with a field, and there is none before it",
		head + "Package: b\n c\n":                                         "line 6: the field Package takes several lines",
		head + "Package: b\nPackage: c\n":                                 "line 6: the field Package is there twice",
		head + "Package\n":                                                `line 5: it is no field, NAME: VALUE: "Package"`,
		head + "Pack age: x\n":                                            "line 5: it is no field",
		head + "# remark: x\n":                                            "line 5: it is no field",
		"\x00\x00\x00\x00\n":                                              "line 1: it is no field",
		head + "Package: b c\nStatus: install ok installed\nVersion: 1\n": `line 5: the stanza that begins here has the name "b c"`,
		head + "Package: b\nArchitecture: \x1b[2J\nStatus: install ok installed\nVersion: 1\n":          `has the architecture "\x1b[2J"`,
		head + "Package: b\nStatus: install ok installed\nVersion: x:1\n":                               "epoch is no number",
		head + "Package: b\nStatus: install ok installed\nVersion: 99999999999:1\n":                     "epoch is no number",
		head + "Package: b\nStatus: install ok installed\nVersion: 1:\n":                                "a version without a number",
		head + "Package: b\nStatus: install ok installed\nVersion:\n":                                   "a version without a number",
		head + "Package: b\nStatus: install ok installed\nVersion: " + strings.Repeat("1", 2000) + "\n": "line 7: the field Version takes more than 1024 bytes",
		head + "Depends: " + strings.Repeat("x", 2<<20) + "\n":                                          "line 5: it is longer than 1048576 bytes",
		head + "Package: b\nStatus: unknown ok not-inst":                                                "line 6: the file ends within this line",
		head + "Depends: " + strings.Repeat("x", 100<<10):                                               "line 5: the file ends within this line",
	} {
		var d Database
		err := d.Read(strings.NewReader(text), Status)
		var bad *SyntaxError
		if !errors.As(err, &bad) || !strings.Contains(err.Error(), want) {
			t.Errorf("%.100q:\n%v, want %s", text, err, want)
		}
	}
	broken := errors.New("broken")
	var d Database
	if err := d.Read(io.MultiReader(strings.NewReader(head), failing{broken}), Status); !errors.Is(err, broken) {
		t.Errorf("a reader that fails: %v", err)
	}
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

// What is remembered has a bound, however long the database is.
func TestReadBound(t *testing.T) {
	r, w := io.Pipe()
	go func() {
		b := bufio.NewWriter(w)
		var err error
		for i := 0; err == nil; i++ {
			_, err = fmt.Fprintf(b, "Package: %d%s\nStatus: install ok installed\nVersion: 1\n\n", i, strings.Repeat("x", 900))
		}
		_ = w.CloseWithError(err) // its reader is gone
	}()
	defer r.Close() // which ends the writer
	var d Database
	err := d.Read(r, Status)
	var bad *SyntaxError
	if !errors.As(err, &bad) || !strings.Contains(bad.What, "more than 64 MiB") || bad.Line < 200_000 {
		t.Errorf("an endless database: %v", err)
	}
}

func TestDiff(t *testing.T) {
	of := func(list ...string) *Database {
		var d Database
		for _, p := range list {
			f := strings.Fields(p)
			read(t, &d, Part, "Package: "+f[0]+"\nArchitecture: "+f[1]+"\nVersion: "+f[2]+"\n")
		}
		return &d
	}
	a := of("same amd64 1", "gone amd64 1", "up amd64 1.9", "down all 2:1", "equal amd64 1.0", "libc6 amd64 1", "libc6 i386 1", "one amd64 1", "cross amd64 1", "crossup amd64 1")
	b := of("same amd64 1", "new all 1", "up amd64 1.10", "down all 3", "equal amd64 1.0-0", "libc6 amd64 2", "one amd64 1", "one i386 1", "cross all 1", "crossup all 2", "wine i386 8")
	want := []Change{
		{Kind: Changed, Package: "cross", Architecture: "all", OldArchitecture: "amd64", Old: "1", New: "1"},
		{Kind: Upgraded, Package: "crossup", Architecture: "all", OldArchitecture: "amd64", Old: "1", New: "2"},
		{Kind: Downgraded, Package: "down", Architecture: "all", Old: "2:1", New: "3"},
		{Kind: Changed, Package: "equal", Architecture: "amd64", Old: "1.0", New: "1.0-0"},
		{Kind: Removed, Package: "gone", Architecture: "amd64", Old: "1"},
		{Kind: Upgraded, Package: "libc6", Architecture: "amd64", Old: "1", New: "2", Marked: true},
		{Kind: Removed, Package: "libc6", Architecture: "i386", Old: "1", Marked: true},
		{Kind: Added, Package: "new", Architecture: "all", New: "1"},
		{Kind: Added, Package: "one", Architecture: "i386", New: "1", Marked: true},
		{Kind: Upgraded, Package: "up", Architecture: "amd64", Old: "1.9", New: "1.10"},
		{Kind: Added, Package: "wine", Architecture: "i386", New: "8", Marked: true},
	}
	if got := Diff(a, b); !slices.Equal(got, want) {
		t.Errorf("%+v", got)
	}
	if got := Diff(a, a); len(got) > 0 {
		t.Errorf("one and the same: %+v", got)
	}
	if got := Diff(&Database{}, of("a all 1")); len(got) != 1 || got[0].Kind != Added {
		t.Errorf("from nothing: %+v", got)
	}
}

// FuzzRead: whatever a database is, it is refused with a line that there is, or
// what is taken of it is read the same when it is written again.
func FuzzRead(f *testing.F) {
	f.Add([]byte(real), uint8(Status))
	f.Add([]byte("Package: base-files\nVersion: 12.4\nArchitecture: amd64\n"), uint8(Part))
	f.Add([]byte("Package: a\nStatus: deinstall ok config-files\n\nPackage: a\nStatus: install ok installed\nVersion: 1:2-3\n"), uint8(Update))
	f.Add([]byte("Package: a\nVersion: 1"), uint8(Part))
	f.Add([]byte(" x\n:\n\n#\n-a: b\nPackage:\n\tb"), uint8(Status))
	f.Fuzz(func(t *testing.T, b []byte, kind uint8) {
		var d Database
		err := d.Read(strings.NewReader(string(b)), File(kind%3))
		if err != nil {
			var bad *SyntaxError
			if !errors.As(err, &bad) || bad.Line < 1 || bad.Line > strings.Count(string(b), "\n")+1 || bad.What == "" {
				t.Fatalf("%v", err)
			}
			return
		}
		var text strings.Builder
		for _, p := range d.Packages() {
			fmt.Fprintf(&text, "Package: %s\nStatus: install ok installed\nVersion: %s\nArchitecture: %s\n\n", p.Name, p.Version, p.Architecture)
		}
		var again Database
		read(t, &again, Status, text.String())
		if !slices.Equal(again.Packages(), d.Packages()) {
			t.Fatalf("%q becomes %q", names(&d), names(&again))
		}
		if changes := Diff(&d, &again); len(changes) > 0 {
			t.Fatalf("%+v", changes)
		}
	})
}
