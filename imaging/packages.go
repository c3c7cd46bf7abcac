package imaging

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"path"
	"slices"
	"strings"

	"doppel/imaging/store"
)

// Package is a package of the distribution that is installed in a tree.
type Package struct {
	Name         string
	Architecture string // amd64; all
	Version      string // deb-version(7)
}

// PackageChange is a package that two trees do not have alike.
type PackageChange struct {
	Package      string            `json:"package"`
	Architecture string            `json:"architecture"` // after; of what is removed, before
	Kind         PackageChangeKind `json:"kind"`
	Old          string            `json:"old,omitempty"` // version before
	New          string            `json:"new,omitempty"` // and after
}

// PackageChangeKind is how a package differs between two trees.
type PackageChangeKind string

const (
	PackageAdded      PackageChangeKind = "added"
	PackageRemoved    PackageChangeKind = "removed"
	PackageUpgraded   PackageChangeKind = "upgraded"
	PackageDowngraded PackageChangeKind = "downgraded"
	PackageChanged    PackageChangeKind = "changed" // the version is the same: the architecture is another
)

// NoPackagesError says that an image has no database of packages that can be
// read.
type NoPackagesError struct {
	Found string // a database of another kind; "" there is none
}

func (e *NoPackagesError) Error() string {
	if e.Found != "" {
		return fmt.Sprintf("its packages are in %s, which is not read: only Debian's are, in %s", e.Found, dpkgStatus)
	}
	return fmt.Sprintf("it has no database of packages: there is no %s", dpkgStatus)
}

const (
	dpkgStatus = "var/lib/dpkg/status"
	dpkgParts  = "var/lib/dpkg/status.d" // of images without dpkg, a file for each package
)

// otherPackages are where other distributions have their packages.
var otherPackages = []string{
	"usr/lib/sysimage/rpm/rpmdb.sqlite", "var/lib/rpm/rpmdb.sqlite", "usr/lib/sysimage/rpm/Packages.db", "var/lib/rpm/Packages.db", "var/lib/rpm/Packages",
	"lib/apk/db/installed", "usr/lib/apk/db/installed", "var/lib/pacman/local",
}

// Packages reads which packages are installed in an image, by name and
// architecture. Without a database that it knows the error is a
// *NoPackagesError.
func Packages(ctx context.Context, m *Manifest, vault *store.Vault) ([]Package, error) {
	var list []Package
	found := false
	read := func(e *Entry, installed bool) error {
		if e.Kind == HardLink {
			e = m.List.Get(e.Target)
		}
		if e.Kind != Regular {
			return nil
		}
		found = true
		var b bytes.Buffer // a few MB
		if err := CopyContent(ctx, &b, vault, e); err != nil {
			return err
		}
		packages, err := parseDpkgStatus(&b, installed)
		if err != nil {
			return fmt.Errorf("%q: %w", e.Path, err)
		}
		list = append(list, packages...)
		return nil
	}
	if e := m.List.Get(dpkgStatus); e != nil {
		if err := read(e, false); err != nil {
			return nil, err
		}
	}
	if i, ok := m.List.Find(dpkgParts); ok {
		for _, e := range m.List.From(i + 1) {
			if path.Dir(e.Path) != dpkgParts {
				break
			}
			if strings.HasSuffix(e.Path, ".md5sums") {
				continue
			}
			if err := read(e, true); err != nil {
				return nil, err
			}
		}
	}
	if !found {
		none := &NoPackagesError{}
		for _, other := range otherPackages {
			if m.List.Get(other) != nil {
				none.Found = other
				break
			}
		}
		return nil, none
	}
	slices.SortFunc(list, comparePackages)
	return list, nil
}

func comparePackages(a, b Package) int {
	return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.Architecture, b.Architecture))
}

// DiffPackages lists in what b differs from a, by name. Both are in the order
// that Packages gives them.
func DiffPackages(a, b []Package) []PackageChange {
	var changes []PackageChange
	for x, y := range packageGroups(a, b) {
		// Those of one architecture belong together, and then what is left: a
		// package that became one for all architectures is the same package.
		for i := 0; i < len(x); i++ {
			j := slices.IndexFunc(y, func(p Package) bool { return p.Architecture == x[i].Architecture })
			if j < 0 {
				continue
			}
			if x[i].Version != y[j].Version {
				changes = append(changes, changeOf(&x[i], &y[j]))
			}
			x, y = slices.Delete(x, i, i+1), slices.Delete(y, j, j+1)
			i--
		}
		for i := range max(len(x), len(y)) {
			var old, now *Package
			if i < len(x) {
				old = &x[i]
			}
			if i < len(y) {
				now = &y[i]
			}
			changes = append(changes, changeOf(old, now))
		}
	}
	return changes
}

// packageGroups goes through both lists by name. What it yields is the caller's
// own.
func packageGroups(a, b []Package) iter.Seq2[[]Package, []Package] {
	return func(yield func(x, y []Package) bool) {
		for len(a) > 0 || len(b) > 0 {
			name := ""
			if len(b) == 0 || len(a) > 0 && a[0].Name < b[0].Name {
				name = a[0].Name
			} else {
				name = b[0].Name
			}
			take := func(list *[]Package) []Package {
				n := 0
				for n < len(*list) && (*list)[n].Name == name {
					n++
				}
				group := slices.Clone((*list)[:n])
				*list = (*list)[n:]
				return group
			}
			if !yield(take(&a), take(&b)) {
				return
			}
		}
	}
}

func changeOf(old, now *Package) PackageChange {
	switch {
	case old == nil:
		return PackageChange{Package: now.Name, Architecture: now.Architecture, Kind: PackageAdded, New: now.Version}
	case now == nil:
		return PackageChange{Package: old.Name, Architecture: old.Architecture, Kind: PackageRemoved, Old: old.Version}
	}
	c := PackageChange{Package: now.Name, Architecture: now.Architecture, Old: old.Version, New: now.Version}
	switch order := compareDebVersions(now.Version, old.Version); {
	case order > 0:
		c.Kind = PackageUpgraded
	case order < 0:
		c.Kind = PackageDowngraded
	default:
		c.Kind = PackageChanged
	}
	return c
}

// parseDpkgStatus reads dpkg's status file: the paragraphs of deb-control(5), of
// which it takes those that are installed, be it only unpacked. Of a file that
// has one installed package and says nothing of its state, installed is true.
func parseDpkgStatus(r io.Reader, installed bool) ([]Package, error) {
	var list []Package
	p, state := Package{}, ""
	number, begun := 0, 0 // lines
	end := func() error {
		if begun == 0 {
			return nil
		}
		switch {
		case p.Name == "":
			return fmt.Errorf("the paragraph in line %d names no package", begun)
		case state == "" && !installed:
			return fmt.Errorf("the paragraph in line %d, of %q, says nothing of its state", begun, p.Name)
		case !notInstalled(state):
			if p.Version == "" {
				return fmt.Errorf("the paragraph in line %d, of %q, has no version", begun, p.Name)
			}
			list = append(list, p)
		}
		p, state, begun = Package{}, "", 0
		return nil
	}
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		number++
		line := lines.Text()
		switch {
		case strings.TrimSpace(line) == "":
			if err := end(); err != nil {
				return nil, err
			}
			continue
		case line[0] == ' ' || line[0] == '\t': // goes on with the field before
			if begun == 0 {
				return nil, fmt.Errorf("line %d goes on with a field, and there is none", number)
			}
			continue
		}
		name, value, ok := strings.Cut(line, ":")
		if !ok {
			return nil, fmt.Errorf("line %d is no field: there is no colon", number)
		}
		if begun == 0 {
			begun = number
		}
		value = strings.TrimSpace(value)
		switch strings.ToLower(name) {
		case "package":
			p.Name = value
		case "architecture":
			p.Architecture = value
		case "version":
			p.Version = value
		case "status":
			state = value
		}
	}
	if err := lines.Err(); errors.Is(err, bufio.ErrTooLong) {
		return nil, fmt.Errorf("line %d is longer than 1 MiB", number+1)
	} else if err != nil {
		return nil, err
	}
	return list, end()
}

// notInstalled tells whether a Status (what is wanted, a flag, the state) says
// that at most the configuration of the package is there.
func notInstalled(status string) bool {
	words := strings.Fields(status)
	if len(words) == 0 {
		return false
	}
	state := words[len(words)-1]
	return state == "not-installed" || state == "config-files"
}

// compareDebVersions orders versions as deb-version(7) says: by epoch, upstream
// version and revision.
func compareDebVersions(a, b string) int {
	x, y := splitDebVersion(a), splitDebVersion(b)
	return cmp.Or(compareDebParts(x[0], y[0]), compareDebParts(x[1], y[1]), compareDebParts(x[2], y[2]))
}

func splitDebVersion(v string) (parts [3]string) {
	if epoch, rest, ok := strings.Cut(v, ":"); ok {
		parts[0], v = epoch, rest
	}
	if i := strings.LastIndexByte(v, '-'); i >= 0 {
		v, parts[2] = v[:i], v[i+1:]
	}
	parts[1] = v
	return parts
}

// compareDebParts compares by turns what is no digit, letters before all else
// and a tilde even before the end, and numbers.
func compareDebParts(a, b string) int {
	weight := func(s string, i int) int {
		switch {
		case i == len(s) || s[i] >= '0' && s[i] <= '9':
			return 0
		case s[i] == '~':
			return -1
		case s[i] >= 'a' && s[i] <= 'z' || s[i] >= 'A' && s[i] <= 'Z':
			return int(s[i])
		}
		return int(s[i]) + 256
	}
	for a != "" || b != "" {
		i := 0
		for ; ; i++ {
			x, y := weight(a, min(i, len(a))), weight(b, min(i, len(b)))
			if x != y {
				return cmp.Compare(x, y)
			}
			if x == 0 {
				break
			}
		}
		a, b = a[i:], b[i:]
		m, n := digits(a), digits(b)
		x, y := strings.TrimLeft(a[:m], "0"), strings.TrimLeft(b[:n], "0")
		if c := cmp.Or(cmp.Compare(len(x), len(y)), cmp.Compare(x, y)); c != 0 {
			return c
		}
		a, b = a[m:], b[n:]
	}
	return 0
}
