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
			list, err := adopt(a.m(), b.m(), c.paths)
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
	if _, err := adopt(a.m(), b2.m(), []string{"etc/motd/below"}); err == nil || !strings.Contains(err.Error(), "name that") {
		t.Errorf("below what is a file: %v", err)
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
