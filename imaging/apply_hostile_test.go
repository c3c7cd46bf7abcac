package imaging

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"doppel/imaging/store"
)

// Manifests that no codec would let through: nothing may be written, neither
// outside of the tree nor in it.
func TestApplyHostileManifests(t *testing.T) {
	data := []store.Chunk{{ID: store.Sum([]byte("data")), Size: 4}}
	file := func(path string) Entry { return Entry{Path: path, Kind: Regular, Size: 4, Chunks: data} }
	dir := func(path string) Entry { return Entry{Path: path, Kind: Directory, Mode: 0o755} }
	symlink := func(path, target string) Entry { return Entry{Path: path, Kind: Symlink, Target: target} }
	cases := map[string][]Entry{
		"no root":                     {file("a")},
		"nothing":                     {},
		"root is a file":              {file(".")},
		"root twice":                  {dir("."), dir(".")},
		"parent of the root":          {dir("."), file("..")},
		"up from the root":            {dir("."), dir(".."), file("../out/evil")},
		"up from below":               {dir("."), dir("a"), dir("a/.."), dir("a/../.."), file("a/../../out/evil")},
		"absolute":                    {dir("."), file("/out/evil")},
		"absolute with parents":       {dir("."), dir(""), dir("/out"), file("/out/evil")},
		"empty element":               {dir("."), dir("a"), dir("a/"), file("a//evil")},
		"dot":                         {dir("."), dir("./a"), file("./a/evil")},
		"NUL":                         {dir("."), file("a\x00b")},
		"no parent":                   {dir("."), file("a/evil")},
		"below a file":                {dir("."), file("a"), file("a/evil")},
		"through a symbolic link":     {dir("."), symlink("a", "../out"), file("a/evil")},
		"link, then directory":        {dir("."), symlink("a", "../out"), dir("a"), file("a/evil")},
		"directory, then link":        {dir("."), dir("a"), symlink("a", "../out"), file("a/evil")},
		"below a hard link":           {dir("."), dir("b"), {Path: "a", Kind: HardLink, Target: "b"}, file("a/evil")},
		"hard link to the outside":    {dir("."), {Path: "a", Kind: HardLink, Target: "../out/secret"}},
		"hard link to a directory":    {dir("."), dir("b"), {Path: "a", Kind: HardLink, Target: "b"}},
		"hard link to itself":         {dir("."), {Path: "a", Kind: HardLink, Target: "a"}},
		"hard link to a hard link":    {dir("."), file("c"), {Path: "b", Kind: HardLink, Target: "c"}, {Path: "a", Kind: HardLink, Target: "b"}},
		"symbolic link to nothing":    {dir("."), symlink("a", "")},
		"unknown kind":                {dir("."), {Path: "a", Kind: 99}},
		"mode":                        {dir("."), {Path: "a", Kind: FIFO, Mode: 0o100644}},
		"time":                        {dir("."), {Path: "a", Kind: FIFO, MTime: Time{Nsec: 1_000_000_000}}},
		"attribute without name":      {dir("."), {Path: "a", Kind: FIFO, Xattrs: []Xattr{{}}}},
		"size below zero":             {dir("."), {Path: "a", Kind: Regular, Size: -1}},
		"chunks short of the size":    {dir("."), {Path: "a", Kind: Regular, Size: 5, Chunks: data}},
		"chunks longer than the size": {dir("."), {Path: "a", Kind: Regular, Size: 3, Chunks: data}},
		"chunks without size":         {dir("."), {Path: "a", Kind: Regular, Chunks: data}},
		"extent beyond the size":      {dir("."), {Path: "a", Kind: Regular, Size: 8, Chunks: data, Extents: []Extent{{6, 4}}}},
		"extent before the file":      {dir("."), {Path: "a", Kind: Regular, Size: 8, Chunks: data, Extents: []Extent{{-4, 4}}}},
		"extent that overflows":       {dir("."), {Path: "a", Kind: Regular, Size: 8, Chunks: data, Extents: []Extent{{4, 1<<63 - 1}}}},
		"extents that overlap":        {dir("."), {Path: "a", Kind: Regular, Size: 8, Chunks: data, Extents: []Extent{{0, 2}, {1, 2}}}},
		"enormous chunk": {dir("."), {Path: "a", Kind: Regular, Size: 1 << 31,
			Chunks: []store.Chunk{{ID: data[0].ID, Size: 1 << 31}}}},
	}
	for name, list := range cases {
		t.Run(name, func(t *testing.T) {
			top := t.TempDir()
			root, out := filepath.Join(top, "root"), filepath.Join(top, "out")
			must(t, os.Mkdir(root, 0o755), os.Mkdir(out, 0o755))
			write(t, filepath.Join(out, "secret"), "secret")
			src := newMemoryChunks()
			src.add(store.Cluster, []byte("data"))
			before := stamps(t, top)
			// There is no way for such entries into a manifest, and so none to Apply.
			if entries, err := NewEntries(list...); err == nil {
				t.Error("it is a manifest")
				_, err := Apply(t.Context(), &Manifest{List: entries}, src, root, ApplyOptions{Delete: true})
				t.Logf("applied: %v", err)
			}
			if _, err := Apply(t.Context(), &Manifest{}, src, root, ApplyOptions{Delete: true}); err == nil {
				t.Error("no entries at all are applied")
			}
			after := stamps(t, top)
			for path := range after {
				if after[path] != before[path] {
					t.Errorf("%s was touched", path)
				}
			}
		})
	}
}

// Trees in which something was planted that leads out of them.
func TestApplyHostileTrees(t *testing.T) {
	cases := map[string]func(t *testing.T, root, out string){
		"symbolic link where a directory should be": func(t *testing.T, root, out string) {
			must(t, os.Symlink(out, filepath.Join(root, "etc")))
		},
		"relative symbolic link deeper": func(t *testing.T, root, out string) {
			must(t, os.Mkdir(filepath.Join(root, "var"), 0o755), os.Symlink("../../out", filepath.Join(root, "var/lib")))
		},
		"symbolic link where a file should be": func(t *testing.T, root, out string) {
			must(t, os.Mkdir(filepath.Join(root, "etc"), 0o755), os.Symlink(filepath.Join(out, "secret"), filepath.Join(root, "etc/passwd")))
		},
		"dangling symbolic link where a file should be": func(t *testing.T, root, out string) {
			must(t, os.Mkdir(filepath.Join(root, "etc"), 0o755), os.Symlink(filepath.Join(out, "new"), filepath.Join(root, "etc/passwd")))
		},
		"hard link to a file outside": func(t *testing.T, root, out string) {
			must(t, os.Mkdir(filepath.Join(root, "etc"), 0o755), os.Link(filepath.Join(out, "secret"), filepath.Join(root, "etc/passwd")))
		},
		"hard link to a file outside that has the right content": func(t *testing.T, root, out string) {
			write(t, filepath.Join(out, "secret"), "root:x:0:0\n")
			must(t, os.Mkdir(filepath.Join(root, "etc"), 0o755), os.Link(filepath.Join(out, "secret"), filepath.Join(root, "etc/passwd")))
		},
		"symbolic link among what is to be deleted": func(t *testing.T, root, out string) {
			must(t, os.Mkdir(filepath.Join(root, "extra"), 0o755), os.Symlink(out, filepath.Join(root, "extra/out")), os.Symlink(out, filepath.Join(root, "out")))
		},
		"FIFO where a file should be": func(t *testing.T, root, out string) {
			must(t, os.Mkdir(filepath.Join(root, "etc"), 0o755))
			mkfifo(t, filepath.Join(root, "etc/passwd"))
		},
	}
	for name, plant := range cases {
		t.Run(name, func(t *testing.T) {
			top, x := t.TempDir(), sample()
			root, out := filepath.Join(top, "root"), filepath.Join(top, "out")
			must(t, os.Mkdir(root, 0o755), os.Mkdir(out, 0o755))
			write(t, filepath.Join(out, "secret"), "secret")
			plant(t, root, out)
			before, secret := stamps(t, out), read(t, filepath.Join(out, "secret"))
			x.apply(t, root, ApplyOptions{Delete: true, Full: true})
			x.equal(t, root)
			if got := read(t, filepath.Join(out, "secret")); got != secret {
				t.Errorf("the file outside holds %q", got)
			}
			for path, s := range stamps(t, out) {
				// Losing its name in the tree moves the ctime of a file.
				if s.ino != before[path].ino || s != before[path] && !strings.HasPrefix(name, "hard link") {
					t.Errorf("%s outside was touched", path)
				}
			}
		})
	}
}

// While content is written, somebody moves a directory away and puts a link to
// the outside in its place.
func TestApplyHostileRace(t *testing.T) {
	top, x := t.TempDir(), newTree()
	root, out := filepath.Join(top, "root"), filepath.Join(top, "out")
	must(t, os.Mkdir(root, 0o755), os.Mkdir(out, 0o755))
	x.dir("d")
	for _, name := range strings.Split("abcdefghij", "") {
		x.dir("d/" + name)
		x.file("d/"+name+"/file", strings.Repeat(name, 100_000))
	}
	swapped := false
	x.chunks.before = func(store.Ref) error {
		if swapped {
			return nil
		}
		swapped = true
		return errors.Join(
			os.Rename(filepath.Join(root, "d"), filepath.Join(top, "moved")),
			os.Symlink(out, filepath.Join(root, "d")))
	}
	_, err := Apply(t.Context(), x.m(), x.chunks, root, ApplyOptions{Delete: true, Workers: 1})
	if names, rerr := os.ReadDir(out); rerr != nil || len(names) > 0 {
		t.Errorf("outside are %v, %v (apply said: %v)", names, rerr, err)
	}
	x.chunks.before = nil
	x.apply(t, root, ApplyOptions{Delete: true})
	x.equal(t, root)
	if names, err := os.ReadDir(out); err != nil || len(names) > 0 {
		t.Errorf("outside are %v, %v", names, err)
	}
}
