package imaging

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"doppel/imaging/store"
)

// Each case breaks a tree in one way, and CompareTree names that and nothing
// else. Times of directories are put back, so that they do not count.
func TestCompareTree(t *testing.T) {
	needRoot(t)
	cases := map[string]struct {
		spoil func(in func(string) string) error
		want  []string
	}{
		"nothing": {func(in func(string) string) error { return nil }, nil},
		"missing": {func(in func(string) string) error { return os.RemoveAll(in("var/lib")) },
			[]string{"missing var/lib", "missing var/lib/big", "missing var/lib/big2"}},
		"extra": {func(in func(string) string) error {
			must(t, os.MkdirAll(in("etc/new/sub"), 0o755))
			return os.WriteFile(in("etc/new/sub/f"), nil, 0o644)
		}, []string{"extra etc/new", "extra etc/new/sub", "extra etc/new/sub/f"}},
		"content":        {func(in func(string) string) error { return poke(in("var/same"), 65535, 'x') }, []string{"content var/same"}},
		"first byte":     {func(in func(string) string) error { return poke(in("var/same"), 0, 'x') }, []string{"content var/same"}},
		"written a hole": {func(in func(string) string) error { return poke(in("var/hole"), 3<<20, 'x') }, []string{"content var/hole"}},
		"zeros in a hole": {func(in func(string) string) error { return poke(in("var/hole"), 3<<20, 0) },
			nil},
		"after the last extent": {func(in func(string) string) error { return poke(in("var/void"), 1<<30-1, 'x') }, []string{"content var/void"}},
		"size":                  {func(in func(string) string) error { return growQuietly(in("etc/passwd")) }, []string{"size etc/passwd"}},
		"mode":                  {func(in func(string) string) error { return os.Chmod(in("var/pipe"), 0o600) }, []string{"mode var/pipe"}},
		"owner of a link":       {func(in func(string) string) error { return os.Lchown(in("var/link"), 5, 5) }, []string{"owner var/link", "owner var/link2"}},
		"mtime of the root": {func(in func(string) string) error {
			return unix.UtimesNanoAt(unix.AT_FDCWD, in("."), []unix.Timespec{{}, {Sec: 1}}, 0)
		}, []string{"mtime ."}},
		"xattrs": {func(in func(string) string) error {
			must(t, unix.Setxattr(in("etc/passwd"), "user.note", []byte("ho"), 0))
			return unix.Setxattr(in("etc/empty"), "user.more", nil, 0)
		}, []string{"xattr etc/empty", "xattr etc/passwd"}},
		"target": {func(in func(string) string) error {
			must(t, os.Remove(in("var/link2")), os.Remove(in("var/link")), os.Symlink("elsewhere", in("var/link")), os.Link(in("var/link"), in("var/link2")))
			return unix.UtimesNanoAt(unix.AT_FDCWD, in("var/link"), timesOf(sample().at("var/link")), unix.AT_SYMLINK_NOFOLLOW)
		}, []string{"target var/link", "target var/link2"}},
		"type": {func(in func(string) string) error {
			must(t, os.Remove(in("etc/empty")))
			return os.Mkdir(in("etc/empty"), 0o644)
		}, []string{"type etc/empty"}},
		"directory became a link": {func(in func(string) string) error {
			must(t, os.RemoveAll(in("var/lib")))
			return os.Symlink("/", in("var/lib"))
		}, []string{"missing var/lib/big", "missing var/lib/big2", "type var/lib"}},
		"link broken up": {func(in func(string) string) error {
			must(t, os.Remove(in("var/lib/big2")))
			b, err := os.ReadFile(in("var/lib/big"))
			must(t, err, os.WriteFile(in("var/lib/big2"), b, 0o644))
			return unix.UtimesNanoAt(unix.AT_FDCWD, in("var/lib/big2"), timesOf(sample().at("var/lib/big")), 0)
		}, []string{"links var/lib/big2"}},
		"strangers linked": {func(in func(string) string) error {
			must(t, os.Remove(in("var/pipe2")))
			return os.Link(in("var/pipe"), in("var/pipe2"))
		}, []string{"links var/pipe2"}},
		"device": {func(in func(string) string) error {
			must(t, os.Remove(in("var/null")), unix.Mknod(in("var/null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 5))))
			must(t, os.Chmod(in("var/null"), 0o666))
			return unix.UtimesNanoAt(unix.AT_FDCWD, in("var/null"), timesOf(differing().at("var/null")), 0)
		}, []string{"device var/null"}},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			x, dir := differing(), t.TempDir()
			x.apply(t, dir, ApplyOptions{})
			must(t, c.spoil(func(path string) string { return filepath.Join(dir, path) }))
			var got []string
			diffs, err := CompareTree(t.Context(), x.m(), dir, CompareOptions{})
			must(t, err)
			for _, d := range diffs {
				if d.Kind == DiffMTime && x.at(d.Path).Kind == Directory && d.Path != "." || d.Path == "." && name != "mtime of the root" {
					continue
				}
				// What is written to has its time moved, which is told too.
				if d.Kind == DiffMTime && slices.Contains(c.want, "content "+d.Path) {
					continue
				}
				if d.Want == "" || d.Have == "" {
					t.Errorf("%v does not say what it is about", d)
				}
				if name == "zeros in a hole" && d.Kind == DiffMTime {
					continue
				}
				got = append(got, string(d.Kind)+" "+d.Path)
			}
			slices.Sort(got)
			if !slices.Equal(got, c.want) {
				t.Errorf("differences %q, want %q", got, c.want)
			}
		})
	}
}

// differing is the sample with a few more kinds, of which a pair is alike.
func differing() *tree {
	x := sample()
	x.add(Entry{Path: "var/null", Kind: CharDevice, Mode: 0o666, Major: 1, Minor: 3, MTime: Time{Sec: 5}})
	pipe := *x.at("var/pipe")
	pipe.Path = "var/pipe2"
	x.add(pipe)
	sortEntries(x.list)
	return x
}

func timesOf(e *Entry) []unix.Timespec {
	return []unix.Timespec{{}, {Sec: e.MTime.Sec, Nsec: int64(e.MTime.Nsec)}}
}

// poke writes a byte and leaves the rest.
func poke(path string, off int64, b byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	if _, err := f.WriteAt([]byte{b}, off); err != nil {
		return err
	}
	return f.Close()
}

// growQuietly appends to the file and puts its time back.
func growQuietly(path string) error {
	if err := growFile(path, "more"); err != nil {
		return err
	}
	return unix.UtimesNanoAt(unix.AT_FDCWD, path, timesOf(sample().at("etc/passwd")), 0)
}

func TestCompareTreeTrust(t *testing.T) {
	x, dir := sample(), t.TempDir()
	x.apply(t, dir, ApplyOptions{})
	passwd := filepath.Join(dir, "etc/passwd")
	must(t, poke(passwd, 0, 'R'), unix.UtimesNanoAt(unix.AT_FDCWD, passwd, timesOf(x.at("etc/passwd")), 0))
	diffs, err := CompareTree(t.Context(), x.m(), dir, CompareOptions{Trust: true})
	if err != nil || len(diffs) > 0 {
		t.Errorf("differs: %v, %v", diffs, err)
	}
	var done, total int64
	diffs, err = CompareTree(t.Context(), x.m(), dir, CompareOptions{Progress: func(d, t int64) { done, total = d, t }})
	if err != nil || len(diffs) != 1 || diffs[0].Kind != DiffContent || done == 0 || total < done {
		t.Errorf("differs: %v, %v, after %d of %d bytes", diffs, err, done, total)
	}
}

func equalSize(a, b *int64) bool { return a == b || a != nil && b != nil && *a == *b }

func TestDiffManifests(t *testing.T) {
	a, b := sample(), sample()
	if changes := DiffManifests(a.m(), b.m()); len(changes) > 0 {
		t.Errorf("equal manifests differ: %v", changes)
	}
	b.at("etc/passwd").Mode = 0o600
	b.at("etc/passwd").UID = 77
	b.at("etc/empty").Xattrs = []Xattr{{"user.x", nil}}
	b.at("var/link").Target = "elsewhere"
	b.at("var/link").MTime.Nsec++
	b.at("var/lib/big").Chunks = slices.Clone(b.at("var/lib/big").Chunks)
	b.at("var/lib/big").Chunks[0] = b.chunks.add(store.Cluster, []byte(strings.Repeat("y", 65536)))
	b.at("var/hole").Extents = []Extent{{1 << 20, 12288}}
	b.at("var/sock").Kind = FIFO
	*b.at("var/lib/big2") = *b.at("var/lib/big")
	b.list[slices.IndexFunc(b.list, func(e Entry) bool { return e.Path == "var/lib/big" })+1].Path = "var/lib/big2"
	same := b.at("var/same")
	same.Path, same.Size, same.Chunks = "var/tiny", 1, []store.Chunk{b.chunks.add(store.Cluster, []byte("x"))}
	got := DiffManifests(a.m(), b.m())
	want := []Change{
		{Path: "etc/empty", Kind: Changed, What: []DifferenceKind{DiffXattr}, OldSize: new(int64(0)), NewSize: new(int64(0))},
		{Path: "etc/passwd", Kind: Changed, What: []DifferenceKind{DiffMode, DiffOwner}, OldSize: new(int64(11)), NewSize: new(int64(11))},
		{Path: "var/hole", Kind: Changed, What: []DifferenceKind{DiffContent}, OldSize: new(int64(10 << 20)), NewSize: new(int64(10 << 20))},
		{Path: "var/lib/big", Kind: Changed, What: []DifferenceKind{DiffContent}, OldSize: new(int64(320_000)), NewSize: new(int64(320_000))},
		{Path: "var/lib/big2", Kind: Changed, What: []DifferenceKind{DiffLinks, DiffContent}, NewSize: new(int64(320_000))},
		{Path: "var/link", Kind: Changed, What: []DifferenceKind{DiffTarget, DiffMTime}},
		{Path: "var/same", Kind: Removed, OldSize: new(int64(65536))},
		{Path: "var/sock", Kind: Changed, What: []DifferenceKind{DiffType}},
		{Path: "var/tiny", Kind: Added, NewSize: new(int64(1))},
	}
	for i := range max(len(got), len(want)) {
		switch {
		case i >= len(got):
			t.Errorf("missing %+v", want[i])
		case i >= len(want):
			t.Errorf("new %+v", got[i])
		case got[i].Path != want[i].Path || got[i].Kind != want[i].Kind || !slices.Equal(got[i].What, want[i].What) ||
			!equalSize(got[i].OldSize, want[i].OldSize) || !equalSize(got[i].NewSize, want[i].NewSize):
			t.Errorf("%+v, want %+v", got[i], want[i])
		}
	}
}
