package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"strings"
	"text/tabwriter"

	"doppel/imaging"
	"doppel/imaging/dpkg"
	"doppel/imaging/store"
)

// diffPackages prints which packages two versions do not have alike.
func diffPackages(ctx context.Context, g *globals, refA, refB string, out io.Writer) error {
	c, a, inA, release, err := g.reading(ctx, refA)
	if err != nil {
		return err
	}
	defer release()
	b, err := c.Resolve(ctx, refB)
	if err != nil {
		return err
	}
	inB, err := c.Manifest(ctx, b)
	if err != nil {
		return err
	}
	vault, err := c.Vault(ctx)
	if err != nil {
		return err
	}
	before, err := readPackages(ctx, vault, a, inA)
	if err != nil {
		return err
	}
	after, err := readPackages(ctx, vault, b, inB)
	if err != nil {
		return err
	}
	changes := dpkg.Diff(before, after)
	if g.json {
		if changes == nil {
			changes = []dpkg.Change{}
		}
		return printJSON(out, changes)
	}
	return printPackages(out, changes)
}

func printPackages(w io.Writer, changes []dpkg.Change) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, c := range changes {
		name, before, after := c.Package, cmp.Or(c.Old, "-"), cmp.Or(c.New, "-")
		switch {
		case c.OldArchitecture != "":
			before += " (" + c.OldArchitecture + ")"
			after += " (" + c.Architecture + ")"
		case c.Marked:
			name += ":" + c.Architecture
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\n", c.Kind, name, before, after)
	}
	return t.Flush()
}

// Where dpkg's database is (dpkg(1)).
const (
	dpkgStatus  = "var/lib/dpkg/status"
	dpkgUpdates = "var/lib/dpkg/updates"
	dpkgParts   = "var/lib/dpkg/status.d"
)

// readPackages reads dpkg's database of a version.
func readPackages(ctx context.Context, vault *store.Vault, v imaging.Version, m *imaging.Manifest) (*dpkg.Database, error) {
	d := &dpkg.Database{}
	status, parts := m.List.Lookup(dpkgStatus), m.List.Lookup(dpkgParts)
	if (status == nil || status.Kind != imaging.Regular) && (parts == nil || parts.Kind != imaging.Directory) {
		return nil, noPackages(v, m)
	}
	read := func(e *imaging.Entry, kind dpkg.File) error {
		err := d.Read(readEntry(ctx, vault, e), kind)
		var bad *dpkg.SyntaxError
		if errors.As(err, &bad) {
			return &hintError{fmt.Errorf("%s: %s: %w", v.Ref(), printable(e.Path), err),
				"put it right on the captured host (dpkg --audit finds faults) and capture again; without --packages, the entries are compared"}
		}
		if err != nil {
			return fmt.Errorf("read the packages of %s: %w", v.Ref(), err)
		}
		return nil
	}
	if status != nil && status.Kind == imaging.Regular {
		if err := read(status, dpkg.Status); err != nil {
			return nil, err
		}
	}
	for name, e := range filesIn(m, dpkgUpdates) {
		if strings.Trim(name, "0123456789") == "" { // as dpkg knows them
			if err := read(e, dpkg.Update); err != nil {
				return nil, err
			}
		}
	}
	for name, e := range filesIn(m, dpkgParts) {
		if !strings.HasSuffix(name, ".md5sums") { // of the files of the package
			if err := read(e, dpkg.Part); err != nil {
				return nil, err
			}
		}
	}
	return d, nil
}

// filesIn are the names that a directory has, in their order, with the regular
// files that they lead to.
func filesIn(m *imaging.Manifest, dir string) iter.Seq2[string, *imaging.Entry] {
	return func(yield func(string, *imaging.Entry) bool) {
		d := m.List.Lookup(dir)
		if d == nil || d.Kind != imaging.Directory {
			return
		}
		for e := range entriesBelow(m, d.Path) {
			name := strings.TrimPrefix(e.Path, d.Path+"/")
			if e.Path == d.Path || strings.Contains(name, "/") {
				continue
			}
			if e = m.List.Lookup(e.Path); e != nil && e.Kind == imaging.Regular && !yield(name, e) {
				return
			}
		}
	}
}

// noPackages says that a version has no database of dpkg's, and which other.
func noPackages(v imaging.Version, m *imaging.Manifest) error {
	what := "has no " + dpkgStatus + " and no " + dpkgParts
	for _, other := range [][2]string{
		{"usr/lib/sysimage/rpm/rpmdb.sqlite", "RPM"}, {"usr/lib/sysimage/rpm/Packages.db", "RPM"}, {"usr/lib/sysimage/rpm/Packages", "RPM"},
		{"var/lib/rpm/rpmdb.sqlite", "RPM"}, {"var/lib/rpm/Packages.db", "RPM"}, {"var/lib/rpm/Packages", "RPM"},
		{"lib/apk/db/installed", "apk"}, {"usr/lib/apk/db/installed", "apk"}, {"var/lib/pacman/local", "pacman"},
	} {
		if e := m.List.Lookup(other[0]); e != nil {
			what = fmt.Sprintf("has its packages in a database of %s (%s), which --packages does not read", other[1], printable(e.Path))
			break
		}
	}
	return &hintError{fmt.Errorf("%s %s", v.Ref(), what), "--packages reads dpkg's database alone; doppel image diff without it compares the entries of any two versions"}
}
