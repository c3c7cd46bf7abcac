package imaging

import (
	"maps"
	"path/filepath"
	"testing"
)

// TestRoundTrip captures a tree with everything in it, applies it to an empty
// directory, and lets find, getfattr, rsync and a second capture judge.
func TestRoundTrip(t *testing.T) {
	needRoot(t)
	root := nastyTree(t)
	fill(t, root+"/etc/ssh/ssh_host_rsa_key", []byte("a key of the class node"))
	deepTree(t, root, 45)
	c := openTestCatalog(t)
	first := takeImage(t, c, root, "x")
	v, err := c.Resolve(t.Context(), "x")
	must(t, err)
	m, err := c.Manifest(t.Context(), v)
	must(t, err)
	vault, err := c.Vault(t.Context())
	must(t, err)
	dir := filepath.Join(t.TempDir(), "copy")
	report, err := Apply(t.Context(), m, vault, dir, ApplyOptions{Delete: true})
	must(t, err)
	if report.Lost > 0 || len(report.Withheld) > 0 {
		t.Errorf("applied: %+v", report)
	}

	want, got := findAll(t, root), findAll(t, dir)
	for path, w := range want {
		g := got[path]
		w.inode, g.inode = "", ""
		if w.kind == "d" {
			w.size, g.size = "", "" // of the directory itself, which tells what was in it once
		}
		if g != w {
			t.Errorf("%q:\n got %+v\nwant %+v", path, g, w)
		}
	}
	if len(got) != len(want) {
		t.Errorf("%d names, want %d", len(got), len(want))
	}
	if a, b := namesByInode(want), namesByInode(got); !maps.Equal(a, b) {
		t.Errorf("hard links: %v, want %v", b, a)
	}
	compareToGetfattr(t, dir, entriesOf(m))
	if out := output(t, "rsync", "-aHAXni", "--checksum", "--delete", "--exclude", "level-*", root+"/", dir+"/"); out != "" {
		t.Errorf("rsync would still change:\n%s", out)
	}
	if again := takeImage(t, c, dir, "copy"); again.Digest != first.Digest {
		t.Errorf("the copy's digest is %s, the tree's %s", again.Digest, first.Digest)
	}
}

// namesByInode tells for every name the first name of its inode.
func namesByInode(all map[string]found) map[string]string {
	first := make(map[string]string)
	for path, f := range all {
		if p, ok := first[f.inode]; !ok || ComparePath(path, p) < 0 {
			first[f.inode] = path
		}
	}
	names := make(map[string]string)
	for path, f := range all {
		names[path] = first[f.inode]
	}
	return names
}
