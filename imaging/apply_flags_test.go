package imaging

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// flagsOf are the inode flags and projects of a tree, as lsattr(1) tells them.
// How a file system stores a file is left out.
func flagsOf(t *testing.T, dir string) map[string]string {
	t.Helper()
	all := map[string]string{}
	for line := range strings.Lines(output(t, "lsattr", "-Rap", dir)) {
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

// unfastenAll makes what is below dir removable again when the test ends.
func unfastenAll(t *testing.T, dir string) {
	t.Cleanup(func() { output(t, "chattr", "-R", "-f", "-ia", dir) })
}

// flagTree is a tree of files and directories with inode flags.
func flagTree(t *testing.T, kind string) string {
	t.Helper()
	top, _ := image(t, kind, "320M")
	root := filepath.Join(top, "tree")
	unfastenAll(t, top)
	flags := map[string]string{
		"immutable":         "i",
		"append":            "a",
		"quiet":             "Ad",
		"empty":             "id",
		"sync":              "S",
		"locked/in":         "",
		"locked/in locked":  "ia",
		"growing/log":       "a",
		"plain/none":        "",
		"linked/one":        "i",
		"directory/of/some": "",
	}
	if kind == "btrfs" {
		flags["nocow"], flags["compressed"], flags["raw"] = "C", "c", "m"
	}
	if kind == "ext4" {
		flags["wiped"] = "su"
	}
	for path, f := range flags {
		name := filepath.Join(root, path)
		must(t, os.MkdirAll(filepath.Dir(name), 0o755))
		must(t, os.WriteFile(name, nil, 0o644))
		if f == "C" {
			output(t, "chattr", "+C", name) // which has to come before content
		}
		if path != "empty" {
			must(t, os.WriteFile(name, []byte("content of "+path), 0o644))
		}
	}
	must(t, os.Link(filepath.Join(root, "linked/one"), filepath.Join(root, "linked/two")))
	if kind == "xfs" {
		output(t, "chattr", "-p", "77", filepath.Join(root, "plain/none"), filepath.Join(root, "directory"))
		output(t, "chattr", "+P", filepath.Join(root, "directory"))
	}
	for path, f := range flags {
		if f != "" && f != "C" {
			output(t, "chattr", "+"+f, filepath.Join(root, path))
		}
	}
	output(t, "chattr", "+dA", filepath.Join(root, "directory"))
	output(t, "chattr", "+i", filepath.Join(root, "locked"))
	output(t, "chattr", "+a", filepath.Join(root, "growing"))
	return root
}

func TestInodeFlags(t *testing.T) {
	for _, kind := range []string{"ext4", "xfs", "btrfs"} {
		t.Run(kind, func(t *testing.T) {
			root := flagTree(t, kind)
			c := openTestCatalog(t)
			first := takeImage(t, c, root, "x")
			m, vault := latestImage(t, c, "x")
			top, _ := image(t, kind, "320M")
			unfastenAll(t, top)
			dir := filepath.Join(top, "copy")
			if r, err := Apply(t.Context(), m, vault, dir, ApplyOptions{}); err != nil || r.Lost > 0 {
				t.Fatalf("applied %+v, %v", r, err)
			}
			want := flagsOf(t, root)
			if have := flagsOf(t, dir); !maps.Equal(have, want) || len(want) < 15 {
				t.Errorf("the copy's flags are\n%v, those of the tree\n%v", have, want)
			}
			if again := takeImage(t, c, dir, "copy"); again.Digest != first.Digest {
				t.Errorf("the copy's digest is %s, the tree's %s", again.Digest, first.Digest)
			}
			inPlace(t, m, vault, dir, want)
			changeFastened(t, c, root, dir)
		})
	}
}

// latestImage is the latest version of an image.
func latestImage(t *testing.T, c *Catalog, name string) (*Manifest, ChunkSource) {
	t.Helper()
	v, err := c.Resolve(t.Context(), name)
	must(t, err)
	m, err := c.Manifest(t.Context(), v)
	must(t, err)
	vault, err := c.Vault(t.Context())
	must(t, err)
	return m, vault
}

// inPlace changes flags of a copy and has them put right.
func inPlace(t *testing.T, m *Manifest, src ChunkSource, dir string, want map[string]string) {
	t.Helper()
	for _, full := range []bool{false, true} {
		r, err := Apply(t.Context(), m, src, dir, ApplyOptions{Delete: true, Full: full})
		if err != nil || r.Unchanged != r.Entries {
			t.Errorf("applied again, full %v: %+v, %v", full, r, err)
		}
	}
	// What statx(2) tells, and what the image has flags of, is seen by a quick
	// look; all else by a full one.
	output(t, "chattr", "-i", dir+"/immutable", dir+"/locked")
	output(t, "chattr", "+i", dir+"/plain")
	output(t, "chattr", "-A", dir+"/quiet")
	output(t, "chattr", "+S", dir+"/plain/none")
	differ := func(o CompareOptions) int {
		diffs, err := CompareTree(t.Context(), m, dir, o)
		must(t, err)
		for _, d := range diffs {
			if d.Kind != DiffFlags {
				t.Errorf("difference %v", d)
			}
		}
		return len(diffs)
	}
	quick, full := 4, 5
	if strings.HasPrefix(want["plain/none"], "77") {
		quick = 5 // it is looked at because of its project
	}
	if q, f := differ(CompareOptions{Trust: true}), differ(CompareOptions{}); q != quick || f != full {
		t.Errorf("%d and %d differences", q, f)
	}
	if r, err := Apply(t.Context(), m, src, dir, ApplyOptions{Full: true}); err != nil || r.Fixed != 5 || r.Written > 0 {
		t.Errorf("applied in place: %+v, %v", r, err)
	}
	if have := flagsOf(t, dir); !maps.Equal(have, want) {
		t.Errorf("after that the flags are\n%v, want\n%v", have, want)
	}
}

// changeFastened changes in the tree what cannot be changed, and brings the
// copy up to it.
func changeFastened(t *testing.T, c *Catalog, root, dir string) {
	t.Helper()
	output(t, "chattr", "-R", "-ia", root)
	must(t, os.WriteFile(root+"/immutable", []byte("another content"), 0o644))
	must(t, os.WriteFile(root+"/append", []byte("a line\nanother line\n"), 0o644))
	must(t, os.Chmod(root+"/empty", 0o600))
	must(t, os.Remove(root+"/locked/in"))
	must(t, os.Remove(root+"/locked/in locked"))
	must(t, os.WriteFile(root+"/locked/new", nil, 0o644))
	must(t, os.Link(root+"/linked/one", root+"/linked/three"))
	must(t, os.Rename(root+"/growing/log", root+"/growing/log.1"))
	output(t, "chattr", "+i", root+"/immutable", root+"/empty", root+"/locked/new", root+"/linked/one", root+"/locked")
	output(t, "chattr", "+a", root+"/growing", root+"/growing/log.1")
	r := takeImage(t, c, root, "x")
	m, vault := latestImage(t, c, "x")
	if _, err := Apply(t.Context(), m, vault, dir, ApplyOptions{Delete: true}); err != nil {
		t.Fatal(err)
	}
	if want, have := flagsOf(t, root), flagsOf(t, dir); !maps.Equal(have, want) {
		t.Errorf("the copy's flags are\n%v, those of the tree\n%v", have, want)
	}
	if again := takeImage(t, c, dir, "copy"); again.Digest != r.Digest {
		diffs, err := CompareTree(t.Context(), m, dir, CompareOptions{})
		t.Errorf("the copy is not what it was brought up to: %v, %v", diffs, err)
	}
}

// A flag that changes is noticed by the next capture, which reads that file
// alone, and known by the one after it.
func TestCaptureKnowsFlags(t *testing.T) {
	root := flagTree(t, "ext4")
	c := openTestCatalog(t)
	first := takeImage(t, c, root, "x")
	if r := takeImage(t, c, root, "x"); !r.Unchanged || r.BytesRead > 0 {
		t.Errorf("captured again: %+v", r)
	}
	output(t, "chattr", "+A", root+"/plain/none")
	r := takeImage(t, c, root, "x")
	if r.Unchanged || r.BytesRead != int64(len("content of plain/none")) || r.Digest == first.Digest {
		t.Errorf("captured with another flag: %+v", r)
	}
	m, _ := latestImage(t, c, "x")
	if e := m.List.Get("plain/none"); flagLetters(e.Flags) != "A" {
		t.Errorf("its flags are %s", flagLetters(e.Flags))
	}
	if e := m.List.Get("immutable"); flagLetters(e.Flags) != "i" {
		t.Errorf("known from the last time, its flags are %s", flagLetters(e.Flags))
	}
}

// What a file system does not have is told of, and no difference.
func TestInodeFlagsLost(t *testing.T) {
	root := flagTree(t, "btrfs")
	c := openTestCatalog(t)
	takeImage(t, c, root, "x")
	m, vault := latestImage(t, c, "x")
	top, _ := image(t, "ext4", "64M")
	unfastenAll(t, top)
	dir := filepath.Join(top, "copy")
	r, err := Apply(t.Context(), m, vault, dir, ApplyOptions{})
	must(t, err)
	lost := map[string]string{}
	for _, l := range r.Losses {
		lost[l.Path] = l.What
	}
	if want := map[string]string{"nocow": "flags", "raw": "flags", "compressed": "xattr btrfs.compression"}; fmt.Sprint(lost) != fmt.Sprint(want) {
		t.Errorf("lost %v, want %v", lost, want)
	}
	if diffs, err := CompareTree(t.Context(), m, dir, CompareOptions{}); err != nil || len(diffs) > 0 {
		t.Errorf("%v, %v", diffs, err)
	}
	if r, err = Apply(t.Context(), m, vault, dir, ApplyOptions{Full: true}); err != nil || r.Unchanged != r.Entries {
		t.Errorf("applied again: %+v, %v", r, err)
	}
}
