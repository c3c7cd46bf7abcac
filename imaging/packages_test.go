package imaging

import (
	"math/rand/v2"
	"os"
	"os/exec"
	"reflect"
	"slices"
	"strings"
	"testing"
)

const dpkgSample = `Package: bash
Status: install ok installed
Priority: required
Architecture: amd64
Version: 5.2.15-2+b7
Conffiles:
 /etc/bash.bashrc 89269e1298235f1b12b4c16e4065ad0d
 /etc/skel/.bashrc ee35a240758f374832e809ae0ea4883a
Description: GNU Bourne Again SHell
 Bash is an sh-compatible command language interpreter that
 .
 executes commands.

Package: gone
Status: deinstall ok config-files
Architecture: amd64
Version: 1

Package: never
Status: unknown ok not-installed
Architecture: amd64

Package: libc6
Status: install ok triggers-awaited
architecture: i386
version: 2.36-9+deb12u10
Multi-Arch: same
`

func TestParseDpkgStatus(t *testing.T) {
	list, err := parseDpkgStatus(strings.NewReader(dpkgSample), false)
	must(t, err)
	if want := []Package{{"bash", "amd64", "5.2.15-2+b7"}, {"libc6", "i386", "2.36-9+deb12u10"}}; !slices.Equal(list, want) {
		t.Errorf("%+v", list)
	}
	list, err = parseDpkgStatus(strings.NewReader("Package: tzdata\nVersion: 1\nArchitecture: all"), true)
	if want := []Package{{"tzdata", "all", "1"}}; err != nil || !slices.Equal(list, want) {
		t.Errorf("%+v, %v", list, err)
	}
	for text, want := range map[string]string{
		"Package: a\nVersion: 1\n":                       `line 1, of "a", says nothing of its state`,
		"\n\nStatus: install ok installed\nVersion: 1\n": "line 3 names no package",
		"Package: a\nStatus: install ok installed\n":     `line 1, of "a", has no version`,
		" goes on\n":             "line 1 goes on with a field",
		"Package: a\nno colon\n": "line 2 is no field",
		"Package: a\nDescription: " + strings.Repeat("x", 2<<20) + "\n": "line 2 is longer than 1 MiB",
	} {
		if _, err := parseDpkgStatus(strings.NewReader(text), false); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.40q: %v, want %s", text, err, want)
		}
	}
}

func FuzzParseDpkgStatus(f *testing.F) {
	f.Add(dpkgSample, false)
	f.Add("Package: tzdata\nVersion: 1\n", true)
	f.Add("Package: a\n\n b\n", false)
	f.Fuzz(func(t *testing.T, text string, installed bool) {
		list, err := parseDpkgStatus(strings.NewReader(text), installed)
		if err != nil && list != nil {
			t.Error("packages and an error")
		}
		for _, p := range list {
			if p.Name == "" || p.Version == "" {
				t.Errorf("%+v", p)
			}
			if compareDebVersions(p.Version, p.Version) != 0 {
				t.Errorf("%q is not like itself", p.Version)
			}
		}
		for _, c := range DiffPackages(list, nil) {
			if c.Kind != PackageRemoved {
				t.Errorf("%+v", c)
			}
		}
	})
}

// dpkg itself says how versions are ordered.
func TestCompareDebVersions(t *testing.T) {
	dpkg, err := exec.LookPath("dpkg")
	if err != nil {
		t.Fatalf("%v: this needs a Debian", err)
	}
	random := rand.New(rand.NewPCG(3, 4))
	parts := []string{"0", "1", "00", "9", "10", "a", "b", "Z", "~", "+", ".", "~rc", "+deb12u", "-", "1:", "+b"}
	version := func() string {
		v := "1"
		for range random.IntN(6) {
			v += parts[random.IntN(len(parts))]
		}
		if strings.HasSuffix(v, "-") || strings.Count(v, ":") > 1 || strings.Contains(v, ":") && strings.IndexByte(v, ':') != 1 || strings.HasSuffix(v, ":") {
			return "1.0-1"
		}
		return v
	}
	pairs := [][2]string{
		{"1.0", "1.0-0"}, {"1.0~rc1", "1.0"}, {"1:0.1", "2.0"}, {"1.0+b1", "1.0"}, {"2.36-9+deb12u4", "2.36-9+deb12u10"}, {"1.2a", "1.2"}, {"1.2a", "1.2+"},
		{"1.02", "1.2"}, {"1.0-1", "1.0-1~bpo12+1"}, {"0:1", "1"}, {"1-1-2", "1-1-10"},
	}
	for range 250 {
		pairs = append(pairs, [2]string{version(), version()})
	}
	for _, p := range pairs {
		want := 0
		if exec.Command(dpkg, "--compare-versions", p[0], "lt", p[1]).Run() == nil {
			want = -1
		} else if exec.Command(dpkg, "--compare-versions", p[0], "gt", p[1]).Run() == nil {
			want = 1
		}
		if got := compareDebVersions(p[0], p[1]); got != want {
			t.Errorf("%s and %s: %d, dpkg says %d", p[0], p[1], got, want)
		}
		if got := compareDebVersions(p[1], p[0]); got != -want {
			t.Errorf("%s and %s: %d, dpkg says %d", p[1], p[0], got, -want)
		}
	}
}

func TestDiffPackages(t *testing.T) {
	a := []Package{{"a", "all", "1"}, {"b", "amd64", "1"}, {"b", "i386", "1"}, {"c", "amd64", "2"}, {"d", "all", "1"}, {"f", "amd64", "1"}}
	b := []Package{{"b", "amd64", "2"}, {"b", "i386", "1"}, {"c", "amd64", "1"}, {"d", "amd64", "1"}, {"e", "all", "1"}, {"f", "amd64", "1"}, {"f", "i386", "1"}}
	want := []PackageChange{
		{"a", "all", PackageRemoved, "1", ""}, {"b", "amd64", PackageUpgraded, "1", "2"}, {"c", "amd64", PackageDowngraded, "2", "1"},
		{"d", "amd64", PackageChanged, "1", "1"}, {"e", "all", PackageAdded, "", "1"}, {"f", "i386", PackageAdded, "", "1"},
	}
	if got := DiffPackages(a, b); !reflect.DeepEqual(got, want) {
		t.Errorf("%+v", got)
	}
	if got := DiffPackages(b, b); got != nil {
		t.Errorf("of itself: %+v", got)
	}
}

// The packages of an image with the database of this machine are those that dpkg
// lists.
func TestPackages(t *testing.T) {
	root := t.TempDir()
	c := openTestCatalog(t)
	status, err := os.ReadFile("/var/lib/dpkg/status")
	must(t, err)
	fill(t, root+"/var/lib/dpkg/status", status)
	fill(t, root+"/var/lib/dpkg/status.d/zzz", []byte("Package: zzz\nVersion: 2025b\nArchitecture: all\n"))
	fill(t, root+"/var/lib/dpkg/status.d/zzz.md5sums", []byte("d41d8cd98f00b204e9800998ecf8427e  usr/share/zzz\n"))
	fill(t, root+"/var/lib/dpkg/statuses", []byte("no status"))
	takeImage(t, c, root, "debian")
	m, vault := theManifest(t, c, "debian")
	list, err := Packages(t.Context(), m, vault)
	must(t, err)
	want := []Package{{"zzz", "all", "2025b"}}
	for line := range strings.Lines(run(t, "dpkg-query", "-W", "-f", "${db:Status-Status} ${Package} ${Architecture} ${Version}\n")) {
		if f := strings.Fields(line); len(f) == 4 && f[0] != "config-files" && f[0] != "not-installed" {
			want = append(want, Package{f[1], f[2], f[3]})
		}
	}
	slices.SortFunc(want, comparePackages)
	if len(list) < 50 || !slices.Equal(list, want) {
		t.Errorf("%d packages, dpkg says %d", len(list), len(want))
	}
	other := t.TempDir()
	fill(t, other+"/var/lib/rpm/rpmdb.sqlite", []byte("SQLite format 3\x00"))
	takeImage(t, c, other, "rocky")
	m, vault = theManifest(t, c, "rocky")
	if _, err := Packages(t.Context(), m, vault); err == nil || !strings.Contains(err.Error(), "var/lib/rpm/rpmdb.sqlite") {
		t.Errorf("of an RPM distribution: %v", err)
	}
}
