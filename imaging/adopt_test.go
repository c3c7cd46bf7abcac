package imaging

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"doppel/imaging/store"
)

// listing is a manifest's entries, one line each.
func listing(m *Entries) string {
	var b strings.Builder
	for _, e := range m.All() {
		b.WriteString(e.Path + " " + e.Kind.String())
		if e.Target != "" {
			b.WriteString(" -> " + e.Target)
		}
		if e.Kind == Regular {
			for _, c := range e.Chunks {
				b.WriteString(" " + c.ID.String()[:15])
			}
		}
		b.WriteByte('\n')
	}
	return b.String()
}

func TestAdopt(t *testing.T) {
	a := newTree()
	a.dir("etc")
	a.file("etc/hosts", "a")
	a.file("etc/motd", "a")
	a.dir("lib")
	a.file("lib/one", "shared by a")
	a.link("lib/three", "lib/one")
	a.link("lib/two", "lib/one")
	a.dir("opt")
	a.file("opt/old", "a")
	sortEntries(a.list)
	b := newTree()
	b.dir("etc")
	b.file("etc/hosts", "b")
	b.file("etc/motd", "b")
	b.dir("etc/new")
	b.dir("etc/new/deep")
	b.file("etc/new/deep/file", "b")
	b.dir("lib")
	b.file("lib/one", "b alone")
	b.file("lib/three", "shared by b")
	b.link("lib/two", "lib/three")
	sortEntries(b.list)
	ref := func(content string) string { return store.Sum([]byte(content)).String()[:15] }
	for _, c := range []struct {
		name  string
		paths []string
		want  string
		err   string
	}{
		{name: "a file", paths: []string{"/etc/motd"}, want: "etc/motd file " + ref("b") + "|etc/hosts file " + ref("a")},
		{name: "a directory, and the way to it", paths: []string{"etc/new/deep"}, want: "etc/new directory|etc/new/deep/file file " + ref("b")},
		{name: "what is gone", paths: []string{"opt"}, want: "!opt|!opt/old|etc/motd file " + ref("a")},
		{name: "the first name of a file", paths: []string{"lib/one"}, want: "lib/one file " + ref("b alone") + "|lib/three file " + ref("shared by a") + "|lib/two hard link -> lib/three"},
		{name: "another name of it", paths: []string{"lib/two"}, want: "lib/two file " + ref("shared by b") + "|lib/three hard link -> lib/one"},
		{name: "two names of it", paths: []string{"lib/two", "lib/three"}, want: "lib/one file " + ref("shared by a") + "|lib/three file " + ref("shared by b") + "|lib/two hard link -> lib/three"},
		{name: "all", paths: []string{"etc", "lib", "opt"}, want: "lib/two hard link -> lib/three|etc/hosts file " + ref("b") + "|!opt"},
		{name: "nowhere", paths: []string{"etc/none"}, err: "neither in the version nor on the node"},
		{name: "everything", paths: []string{"/"}, err: "the whole tree"},
		{name: "below a file", paths: []string{"etc/new/deep/file"}, want: "etc/new/deep directory"},
	} {
		t.Run(c.name, func(t *testing.T) {
			list, err := adopted(a.m(), b.m(), c.paths, false)
			if c.err != "" {
				if err == nil || !strings.Contains(err.Error(), c.err) {
					t.Errorf("%v", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			have := "\n" + listing(&list)
			for w := range strings.SplitSeq(c.want, "|") {
				gone, not := strings.CutPrefix(w, "!")
				if not && strings.Contains(have, "\n"+gone+" ") || !not && !strings.Contains(have, "\n"+w) {
					t.Errorf("%q: there is\n%s", w, have)
				}
			}
		})
	}
	b2 := newTree()
	b2.dir("etc")
	b2.dir("etc/motd")
	b2.file("etc/motd/below", "b")
	sortEntries(b2.list)
	if _, err := adopted(a.m(), b2.m(), []string{"etc/motd/below"}, false); err == nil || !strings.Contains(err.Error(), "name that") {
		t.Errorf("below what is a file: %v", err)
	}
}

func adopted(a, b *Manifest, paths []string, alone bool) (Entries, error) {
	ad, err := newAdoption(&a.List, &b.List, paths, alone)
	if err != nil {
		return Entries{}, err
	}
	return ad.merge()
}

// lists insists on lines of a listing; those with ! before them may not be there.
func lists(t *testing.T, list *Entries, lines ...string) {
	t.Helper()
	have := "\n" + listing(list)
	for _, w := range lines {
		gone, not := strings.CutPrefix(w, "!")
		if not == strings.Contains(have, "\n"+gone) {
			t.Errorf("%q: there is\n%s", w, have)
		}
	}
}

// What one of the two has left out stays as the base has it, whatever the other
// has there.
func TestAdoptOpaque(t *testing.T) {
	ref := func(content string) string { return store.Sum([]byte(content)).String()[:15] }
	a := newTree()
	a.dir("var")
	a.dir("var/lib")
	a.file("var/lib/app", "a")
	a.file("var/lib/cache", "a")
	a.dir("var/lib/both").Opaque = true
	a.dir("var/lib/gone").Opaque = true
	a.dir("var/lib/here")
	a.file("var/lib/here/one", "a")
	a.dir("var/lib/mysql").Opaque = true
	sortEntries(a.list)
	b := newTree()
	b.dir("var")
	b.dir("var/lib")
	b.file("var/lib/app", "b")
	b.dir("var/lib/both").Opaque = true
	b.at("var/lib/both").Mode = 0o700
	b.dir("var/lib/here").Opaque = true
	b.dir("var/lib/mysql")
	b.file("var/lib/mysql/live", "b")
	sortEntries(b.list)
	list, err := adopted(a.m(), b.m(), []string{"var/lib"}, false)
	must(t, err)
	lists(t, &list, "var/lib/app file "+ref("b"), "!var/lib/cache", "!var/lib/mysql/live", "var/lib/mysql directory", "var/lib/gone directory", "var/lib/here/one file "+ref("a"))
	for p, opaque := range map[string]bool{"var/lib/mysql": true, "var/lib/gone": true, "var/lib/here": false, "var/lib/both": true} {
		if e := list.Get(p); e == nil || e.Opaque != opaque {
			t.Errorf("%s is %+v", p, e)
		}
	}
	if e := list.Get("var/lib/both"); e.Mode != 0o700 {
		t.Errorf("var/lib/both has mode %o", e.Mode)
	}
	for _, p := range []string{"var/lib/mysql", "var/lib/mysql/live", "var/lib/here/one"} {
		if _, err := adopted(a.m(), b.m(), []string{p}, false); err == nil || !strings.Contains(err.Error(), "was left out") {
			t.Errorf("%s: %v", p, err)
		}
	}
	// A directory that is gone stays for what was left out in it.
	none := newTree()
	list, err = adopted(a.m(), none.m(), []string{"var"}, false)
	must(t, err)
	lists(t, &list, "var/lib directory", "var/lib/mysql directory", "!var/lib/app", "!var/lib/here")
	none.file("var", "b")
	if _, err := adopted(a.m(), none.m(), []string{"var"}, false); err == nil || !strings.Contains(err.Error(), "is to stay") {
		t.Errorf("a file in its place: %v", err)
	}
}

// Paths that are meant alone leave all that is beside and below them, and Apply
// with the order makes the one tree of the other.
func TestAdoptOnly(t *testing.T) {
	ref := func(content string) string { return store.Sum([]byte(content)).String()[:15] }
	a, b := newTree(), newTree()
	b.chunks = a.chunks
	for _, dir := range []string{"etc", "etc/app", "old", "old/sub", "part", "turned"} {
		a.dir(dir)
	}
	a.file("etc/app/mine", "a")
	a.file("etc/app/newer", "a, newer")
	a.file("old/sub/f", "a")
	a.file("part/gone", "a")
	a.file("part/newer", "a, newer")
	a.file("turned/f", "a")
	for _, dir := range []string{"etc", "etc/app", "new", "new/sub"} {
		b.dir(dir)
	}
	b.at("etc").Mode = 0o700
	b.file("etc/app/mine", "b")
	b.file("etc/app/newer", "older")
	b.file("new/sub/f", "b")
	b.file("new/late", "b")
	b.file("turned", "b")
	sortEntries(a.list)
	sortEntries(b.list)
	paths := []string{"etc", "etc/app/mine", "new", "new/sub", "new/sub/f", "old", "old/sub", "old/sub/f", "part", "part/gone", "turned", "turned/f", "never"}
	am, bm := a.m(), b.m()
	ad, err := newAdoption(&am.List, &bm.List, paths, true)
	must(t, err)
	list, err := ad.merge()
	must(t, err)
	lists(t, &list, "etc/app/mine file "+ref("b"), "etc/app/newer file "+ref("a, newer"), "new/sub/f file", "!new/late", "!old", "part directory", "!part/gone", "part/newer file", "turned file "+ref("b"))
	if e := list.Get("etc"); e.Mode != 0o700 {
		t.Errorf("etc has mode %o", e.Mode)
	}
	order := ad.order()
	if have := strings.Join(order, " "); have != "etc/. etc/app/mine new old part/gone turned" {
		t.Errorf("the order is %q", have)
	}
	if _, err := newAdoption(&am.List, &bm.List, []string{"turned"}, true); err == nil || !strings.Contains(err.Error(), "is to stay") {
		t.Errorf("a file in the place of what stays: %v", err)
	}
	// On a tree that has become newer than a meanwhile.
	dir := t.TempDir()
	a.apply(t, dir, ApplyOptions{})
	write(t, filepath.Join(dir, "etc/app/newer"), "newest")
	write(t, filepath.Join(dir, "etc/app/newest"), "newest")
	m := &Manifest{Head: am.Head, List: list}
	for _, name := range []string{"old", "part/gone"} { // as an update does, of what the version lacks
		must(t, os.RemoveAll(filepath.Join(dir, name)))
	}
	_, err = Apply(t.Context(), m, a.chunks, dir, ApplyOptions{Delete: true, Paths: []string{"etc/.", "new", "turned", "etc/app/mine"}})
	must(t, err)
	for name, want := range map[string]string{"etc/app/mine": "b", "etc/app/newer": "newest", "etc/app/newest": "newest", "part/newer": "a, newer", "new/sub/f": "b", "turned": "b"} {
		if have := read(t, filepath.Join(dir, name)); have != want {
			t.Errorf("%s is %q", name, have)
		}
	}
	if fi, err := os.Stat(filepath.Join(dir, "etc")); err != nil || fi.Mode().Perm() != 0o700 {
		t.Errorf("etc: %v, %v", fi.Mode(), err)
	}
}

// What is adopted is another version of the image, wholly there, and the same
// once more makes none.
func TestCatalogAdopt(t *testing.T) {
	base, node := t.TempDir(), t.TempDir()
	for _, dir := range []string{base, node} {
		fill(t, filepath.Join(dir, "etc/motd"), []byte("the image's"))
		fill(t, filepath.Join(dir, "etc/other"), []byte("the image's"))
	}
	fill(t, filepath.Join(node, "etc/motd"), []byte("the node's"))
	fill(t, filepath.Join(node, "etc/other"), []byte("the node's, too"))
	fill(t, filepath.Join(node, "opt/tool"), []byte("new"))
	c, err := OpenCatalog(t.TempDir(), CatalogOptions{})
	must(t, err)
	version := func(name, dir string) Version {
		t.Helper()
		_, err := Capture(t.Context(), c, NewLocal(dir), CaptureOptions{Name: name, Root: dir, Origin: name})
		must(t, err)
		v, err := c.Resolve(t.Context(), name)
		must(t, err)
		return v
	}
	a, b := version("compute", base), version("drift-node001", node)
	v, fresh, err := c.Adopt(t.Context(), a, b, []string{"etc/motd", "opt"})
	if err != nil || !fresh || v.Ref() != "compute@2" || !strings.Contains(v.Source, "compute@1 with etc/motd, opt of drift-node001") {
		t.Fatalf("%+v, %v, %v", v, fresh, err)
	}
	if again, fresh, err := c.Adopt(t.Context(), a, b, []string{"opt", "etc/motd"}); err != nil || fresh || again.Ref() != "compute@2" {
		t.Errorf("%+v, %v, %v", again, fresh, err)
	}
	_, err = c.Remove(t.Context(), b.Ref())
	must(t, err)
	m, err := c.Manifest(t.Context(), v)
	must(t, err)
	vault, err := c.Vault(t.Context())
	must(t, err)
	dir := t.TempDir()
	_, err = Apply(t.Context(), m, vault, dir, ApplyOptions{})
	must(t, err)
	for name, want := range map[string]string{"etc/motd": "the node's", "etc/other": "the image's", "opt/tool": "new"} {
		if have, err := os.ReadFile(filepath.Join(dir, name)); err != nil || string(have) != want {
			t.Errorf("%s is %q, %v", name, have, err)
		}
	}
}
