package imaging

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"doppel/imaging/store"
)

// sample is a small tree with most kinds of entries.
func sample() *tree {
	t := newTree()
	t.dir("etc")
	t.file("etc/passwd", "root:x:0:0\n").Xattrs = []Xattr{{"user.note", []byte("hi")}}
	t.file("etc/empty", "")
	t.dir("var")
	t.dir("var/lib")
	t.file("var/lib/big", strings.Repeat("0123456789abcdef", 20_000))
	t.link("var/lib/big2", "var/lib/big")
	t.file("var/same", strings.Repeat("0123456789abcdef", 4096)) // a chunk of big
	hole := t.add(Entry{Path: "var/hole", Kind: Regular, Mode: 0o600, Size: 10 << 20})
	hole.Extents = []Extent{{1 << 20, 4096}, {5 << 20, 8192}}
	hole.Chunks = []store.Chunk{t.chunks.add(store.Cluster, []byte(strings.Repeat("x", 12288)))}
	t.add(Entry{Path: "var/void", Kind: Regular, Mode: 0o600, Size: 1 << 30, Extents: []Extent{}})
	t.add(Entry{Path: "var/link", Kind: Symlink, Mode: 0o777, Target: "../etc/passwd"})
	t.link("var/link2", "var/link")
	t.add(Entry{Path: "var/pipe", Kind: FIFO, Mode: 0o622})
	t.add(Entry{Path: "var/sock", Kind: Socket, Mode: 0o755})
	sortEntries(t.list)
	return t
}

func TestApply(t *testing.T) {
	x := sample()
	dir := filepath.Join(t.TempDir(), "new", "root")
	r := x.apply(t, dir, ApplyOptions{})
	x.equal(t, dir)
	if want := int64(len(x.list)); r.Entries != want || r.Written+r.Fixed != want {
		t.Errorf("report %+v, want %d entries written or fixed", r, want)
	}
	var st unix.Stat_t
	must(t, unix.Stat(filepath.Join(dir, "var/void"), &st))
	if st.Blocks != 0 {
		t.Errorf("a file that is all hole has %d blocks", st.Blocks)
	}

	before := stamps(t, dir)
	r = x.apply(t, dir, ApplyOptions{Delete: true, Full: true})
	if r.Unchanged != r.Entries || r.Written != 0 || r.BytesWritten != 0 || r.Fixed != 0 || r.Deleted != 0 {
		t.Errorf("second apply did something: %+v", r)
	}
	if after := stamps(t, dir); !reflect.DeepEqual(before, after) {
		t.Errorf("second apply touched something:\n%v\n%v", before, after)
	}
}

// Each case breaks a tree that was right and says what Apply may touch.
func TestApplyInPlace(t *testing.T) {
	in := func(dir, name string) string { return filepath.Join(dir, name) }
	cases := []struct {
		name    string
		break_  func(t *testing.T, dir string)
		written []string
		fixed   []string
		deleted []string
		full    bool
	}{
		{name: "content of another size",
			break_:  func(t *testing.T, dir string) { write(t, in(dir, "etc/passwd"), "other") },
			written: []string{"etc/passwd"}},
		{name: "content of the same size",
			break_:  func(t *testing.T, dir string) { write(t, in(dir, "etc/passwd"), "root:x:0:1\n") },
			written: []string{"etc/passwd"}},
		{name: "time alone",
			break_: func(t *testing.T, dir string) { write(t, in(dir, "etc/passwd"), "root:x:0:0\n") },
			fixed:  []string{"etc/passwd"}},
		{name: "content with the time put back",
			break_: func(t *testing.T, dir string) {
				var st unix.Stat_t
				must(t, unix.Stat(in(dir, "etc/passwd"), &st))
				write(t, in(dir, "etc/passwd"), "root:x:0:1\n")
				must(t, unix.UtimesNano(in(dir, "etc/passwd"), []unix.Timespec{st.Atim, st.Mtim}))
			},
			written: []string{"etc/passwd"}, full: true},
		{name: "mode", break_: func(t *testing.T, dir string) { must(t, os.Chmod(in(dir, "etc/passwd"), 0o600)) },
			fixed: []string{"etc/passwd"}},
		{name: "mode of a directory", break_: func(t *testing.T, dir string) { must(t, os.Chmod(in(dir, "etc"), 0o700)) },
			fixed: []string{"etc"}},
		{name: "mode of the root", break_: func(t *testing.T, dir string) { must(t, os.Chmod(dir, 0o700)) },
			fixed: []string{"."}},
		{name: "owner", break_: func(t *testing.T, dir string) { must(t, os.Chown(in(dir, "etc/passwd"), 7, 8)) },
			fixed: []string{"etc/passwd"}},
		{name: "owner of a symbolic link", break_: func(t *testing.T, dir string) { must(t, os.Lchown(in(dir, "var/link"), 7, 8)) },
			fixed: []string{"var/link"}},
		{name: "extended attributes",
			break_: func(t *testing.T, dir string) {
				must(t, unix.Setxattr(in(dir, "etc/passwd"), "user.note", []byte("ho"), 0), unix.Setxattr(in(dir, "etc/empty"), "user.more", nil, 0))
			},
			fixed: []string{"etc/passwd", "etc/empty"}},
		{name: "a name gone", break_: func(t *testing.T, dir string) { must(t, os.Remove(in(dir, "var/lib/big2"))) },
			written: []string{"var/lib/big2"}, fixed: []string{"var/lib"}},
		{name: "first name gone", break_: func(t *testing.T, dir string) { must(t, os.Remove(in(dir, "var/lib/big"))) },
			written: []string{"var/lib/big"}, fixed: []string{"var/lib"}},
		{name: "link broken up",
			break_: func(t *testing.T, dir string) {
				must(t, os.Remove(in(dir, "var/lib/big2")))
				write(t, in(dir, "var/lib/big2"), read(t, in(dir, "var/lib/big")))
			},
			written: []string{"var/lib/big2"}, fixed: []string{"var/lib"}},
		{name: "strangers linked",
			break_: func(t *testing.T, dir string) {
				must(t, os.Remove(in(dir, "etc/empty")), os.Link(in(dir, "etc/passwd"), in(dir, "etc/empty")))
			},
			written: []string{"etc/empty"}, fixed: []string{"etc"}},
		{name: "target", break_: func(t *testing.T, dir string) {
			must(t, os.Remove(in(dir, "var/link2")), os.Symlink("elsewhere", in(dir, "var/link2")))
		}, written: []string{"var/link2"}, fixed: []string{"var"}},
		{name: "file where a directory was",
			break_: func(t *testing.T, dir string) {
				must(t, os.RemoveAll(in(dir, "var/lib")))
				write(t, in(dir, "var/lib"), "")
			},
			written: []string{"var/lib", "var/lib/big", "var/lib/big2"}, fixed: []string{"var"}},
		{name: "directory where a file was",
			break_: func(t *testing.T, dir string) {
				must(t, os.Remove(in(dir, "etc/passwd")), os.MkdirAll(in(dir, "etc/passwd/a/b"), 0o755))
				write(t, in(dir, "etc/passwd/a/b/c"), "")
			},
			written: []string{"etc/passwd"}, fixed: []string{"etc"}},
		{name: "extras",
			break_: func(t *testing.T, dir string) {
				must(t, os.MkdirAll(in(dir, "var/a/b"), 0o755))
				write(t, in(dir, "var/a/b/c"), "x")
				must(t, os.Link(in(dir, "etc/passwd"), in(dir, "var/a/hard")))
			},
			deleted: []string{"var/a/b/c", "var/a/b", "var/a/hard", "var/a"}, fixed: []string{"var"}},
		{name: "time of a FIFO", break_: func(t *testing.T, dir string) {
			must(t, unix.UtimesNano(in(dir, "var/pipe"), []unix.Timespec{{}, {}}))
		}, fixed: []string{"var/pipe"}},
	}
	needRoot(t)
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			x, dir := sample(), t.TempDir()
			x.apply(t, dir, ApplyOptions{})
			before := stamps(t, dir)
			c.break_(t, dir)
			broken := stamps(t, dir)
			dry := changes(t, x, dir, ApplyOptions{Delete: true, Full: c.full, DryRun: true})
			if !reflect.DeepEqual(broken, stamps(t, dir)) {
				t.Error("the dry run touched something")
			}
			got := changes(t, x, dir, ApplyOptions{Delete: true, Full: c.full})
			want := map[Act][]string{ActWrite: c.written, ActFix: c.fixed, ActDelete: c.deleted}
			for act, paths := range want {
				slices.Sort(paths)
				if !slices.Equal(got[act], paths) {
					t.Errorf("%s: %q, want %q", act, got[act], paths)
				}
				if !slices.Equal(dry[act], got[act]) {
					t.Errorf("%s: the dry run said %q, and it was %q", act, dry[act], got[act])
				}
			}
			x.equal(t, dir)
			touched := append(slices.Concat(c.written, c.fixed), parents(c.written, c.deleted)...)
			for path, s := range stamps(t, dir) {
				// A name that was linked or unlinked moves the ctime of
				// the inode that all its names share.
				shared := slices.Contains([]string{"var/lib/big", "var/lib/big2", "var/link", "var/link2", "etc/passwd"}, path)
				if s != before[path] && s != broken[path] && !slices.Contains(touched, path) && !(shared && s.ino == before[path].ino) {
					t.Errorf("%q was right and was touched", path)
				}
			}
			if left := temps(t, dir); len(left) > 0 {
				t.Errorf("temporary files left: %q", left)
			}
		})
	}
}

func parents(lists ...[]string) []string {
	var all []string
	for _, path := range slices.Concat(lists...) {
		all = append(all, parentPath(path))
	}
	return all
}

// changes applies and tells what was done, by kind.
func changes(t *testing.T, x *tree, dir string, o ApplyOptions) map[Act][]string {
	t.Helper()
	got := map[Act][]string{}
	o.Change = func(c ApplyChange) { got[c.Act] = append(got[c.Act], c.Path) }
	r := x.apply(t, dir, o)
	for _, paths := range got {
		slices.Sort(paths)
	}
	if r.Written != int64(len(got[ActWrite])) || r.Fixed != int64(len(got[ActFix])) || r.Deleted != int64(len(got[ActDelete])) {
		t.Errorf("report %+v, changes %q", r, got)
	}
	if r.Unchanged+r.Written+r.Fixed+r.Skipped+int64(len(r.Withheld)) != r.Entries {
		t.Errorf("the counts of the report do not add up: %+v", r)
	}
	return got
}

func TestApplyKeepsWithoutDelete(t *testing.T) {
	x, dir := sample(), t.TempDir()
	must(t, os.MkdirAll(filepath.Join(dir, "etc/mine"), 0o755))
	write(t, filepath.Join(dir, "etc/mine/file"), "mine")
	write(t, filepath.Join(dir, "etc/"+newTempName()), "litter of a killed apply")
	write(t, filepath.Join(dir, "etc/.doppel-notes"), "mine too")
	x.apply(t, dir, ApplyOptions{})
	read(t, filepath.Join(dir, "etc/mine/file"))
	if got := temps(t, dir); !slices.Equal(got, []string{"etc/.doppel-notes"}) {
		t.Errorf("left are %q", got)
	}

	must(t, os.Remove(filepath.Join(dir, "etc/passwd")), os.Mkdir(filepath.Join(dir, "etc/passwd"), 0o755))
	write(t, filepath.Join(dir, "etc/passwd/mine"), "mine")
	if _, err := Apply(t.Context(), x.m(), x.chunks, dir, ApplyOptions{}); err == nil || !strings.Contains(err.Error(), `"etc/passwd" is a directory that is not empty`) {
		t.Errorf("error %v", err)
	}
	read(t, filepath.Join(dir, "etc/passwd/mine"))
}

func TestApplySkip(t *testing.T) {
	x, dir := sample(), t.TempDir()
	must(t, os.MkdirAll(filepath.Join(dir, "etc/keep/deep"), 0o755), os.MkdirAll(filepath.Join(dir, "var/gone"), 0o755))
	write(t, filepath.Join(dir, "etc/passwd"), "my own")
	write(t, filepath.Join(dir, "etc/keep/deep/own"), "my own")
	write(t, filepath.Join(dir, "etc/keep/deep/other"), "goes")
	skip := func(path string) bool {
		return path == "etc/passwd" || path == "etc/keep/deep/own" || path == "var/lib"
	}
	r := x.apply(t, dir, ApplyOptions{Delete: true, Skip: skip})
	if read(t, filepath.Join(dir, "etc/passwd")) != "my own" || read(t, filepath.Join(dir, "etc/keep/deep/own")) != "my own" {
		t.Error("what was to be left alone was written")
	}
	for _, gone := range []string{"etc/keep/deep/other", "var/gone", "var/lib"} {
		if _, err := os.Lstat(filepath.Join(dir, gone)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is there: %v", gone, err)
		}
	}
	if r.Skipped != 2 || r.Deleted != 2 {
		t.Errorf("report %+v", r)
	}
	diffs, err := CompareTree(t.Context(), x.m(), dir, CompareOptions{Skip: func(p string) bool { return skip(p) || p == "etc/keep" }})
	if err != nil || len(diffs) > 0 {
		t.Errorf("differs: %v, %v", diffs, err)
	}
}

func TestApplyPaths(t *testing.T) {
	x, dir := sample(), t.TempDir()
	must(t, os.Mkdir(filepath.Join(dir, "var"), 0o700), os.Mkdir(filepath.Join(dir, "var/mine"), 0o700))
	r := x.apply(t, dir, ApplyOptions{Delete: true, Paths: []string{"/var/link2", "./etc//passwd"}})
	var got []string
	for path := range stamps(t, dir) {
		got = append(got, path)
	}
	slices.Sort(got)
	want := []string{".", "etc", "etc/passwd", "var", "var/link", "var/link2", "var/mine"}
	if !slices.Equal(got, want) || r.Entries != 6 {
		t.Errorf("there are %q, report %+v", got, r)
	}
	x.apply(t, dir, ApplyOptions{Delete: true, Paths: []string{"var/lib"}})
	if read(t, filepath.Join(dir, "var/lib/big2")) != strings.Repeat("0123456789abcdef", 20_000) {
		t.Error("a directory did not come with what is in it")
	}
	if _, err := Apply(t.Context(), x.m(), x.chunks, dir, ApplyOptions{Paths: []string{"no/such"}}); err == nil || !strings.Contains(err.Error(), `"no/such" is not in the image`) {
		t.Errorf("error %v", err)
	}
	// A link alone brings the name that it points at.
	dir = t.TempDir()
	x.apply(t, dir, ApplyOptions{Paths: []string{"var/lib/big2"}})
	read(t, filepath.Join(dir, "var/lib/big"))
}

func TestApplyWithheld(t *testing.T) {
	x, dir := newTree(), t.TempDir()
	x.file("a", "secret").Class = ClassHead
	x.link("b", "a")
	x.file("c", "c")
	write(t, filepath.Join(dir, "a"), "own")
	cluster, _ := encode(t, describe(x.m()))
	m, err := decode(cluster, nil)
	must(t, err)
	r, err := Apply(t.Context(), m, x.chunks, dir, ApplyOptions{Delete: true})
	must(t, err)
	if !slices.Equal(r.Withheld, []string{"a", "b"}) || read(t, filepath.Join(dir, "a")) != "own" {
		t.Errorf("report %+v", r)
	}
	diffs, err := CompareTree(t.Context(), m, dir, CompareOptions{})
	if err != nil || len(diffs) > 0 {
		t.Errorf("%v, %v", diffs, err)
	}
}

func TestApplyOpaque(t *testing.T) {
	x, dir := newTree(), t.TempDir()
	x.add(Entry{Path: "proc", Kind: Directory, Mode: 0o555, Opaque: true})
	must(t, os.Mkdir(filepath.Join(dir, "proc"), 0o555))
	write(t, filepath.Join(dir, "proc/x"), "x")
	x.apply(t, dir, ApplyOptions{Delete: true})
	x.equal(t, dir)
	read(t, filepath.Join(dir, "proc/x"))
}

func TestApplyHeadContent(t *testing.T) {
	x := newTree()
	secret := x.file("key", "not yet")
	secret.Class = ClassHead
	secret.Size = 6
	secret.Chunks = []store.Chunk{x.chunks.add(store.Head, []byte("secret"))}
	x.file("same", "secret")
	dir := t.TempDir()
	x.apply(t, dir, ApplyOptions{})
	x.equal(t, dir)
}

func TestApplyBadChunks(t *testing.T) {
	x, dir := sample(), t.TempDir()
	big := x.at("var/lib/big")
	ref := store.Ref{Audience: store.Cluster, ID: big.Chunks[0].ID}
	check := func(t *testing.T, want any) {
		t.Helper()
		_, err := Apply(t.Context(), x.m(), x.chunks, dir, ApplyOptions{})
		if err == nil || !errors.As(err, want) || !strings.Contains(err.Error(), ref.ID.String()) || !strings.Contains(err.Error(), `"var/`) {
			t.Errorf("error %v", err)
		}
		for _, path := range []string{"var/lib/big", "var/lib/big2", "var/same"} {
			if _, err := os.Lstat(filepath.Join(dir, path)); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("%s is there: %v", path, err)
			}
		}
		if left := temps(t, dir); len(left) > 0 {
			t.Errorf("temporary files left: %q", left)
		}
	}
	x.chunks.bad[ref] = &store.CorruptError{What: "chunk", ID: ref.ID, Detail: "its bytes have another digest"}
	check(t, new(*store.CorruptError))
	delete(x.chunks.bad, ref)
	good := x.chunks.chunks[ref]
	delete(x.chunks.chunks, ref)
	check(t, new(*store.MissingError))
	x.chunks.chunks[ref] = good[1:] // a source that does not verify
	check(t, new(*store.CorruptError))
	x.chunks.chunks[ref] = good
	x.apply(t, dir, ApplyOptions{})
	x.equal(t, dir)
}

func TestApplyCancelled(t *testing.T) {
	x, dir := sample(), t.TempDir()
	ctx, cancel := context.WithCancelCause(t.Context())
	cause := errors.New("the power button")
	x.chunks.before = func(store.Ref) error { cancel(cause); return nil }
	if _, err := Apply(ctx, x.m(), x.chunks, dir, ApplyOptions{}); !errors.Is(err, cause) && !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
	if left := temps(t, dir); len(left) > 0 {
		t.Errorf("temporary files left: %q", left)
	}
	x.chunks.before = nil
	x.apply(t, dir, ApplyOptions{Delete: true})
	x.equal(t, dir)
}

func TestApplyAlone(t *testing.T) {
	x, dir := sample(), t.TempDir()
	x.chunks.before = func(store.Ref) error {
		_, err := Apply(t.Context(), x.m(), x.chunks, dir, ApplyOptions{})
		return err
	}
	if _, err := Apply(t.Context(), x.m(), x.chunks, dir, ApplyOptions{}); err == nil || !strings.Contains(err.Error(), "another apply is at work") {
		t.Errorf("error %v", err)
	}
}

func TestApplyDryRunOfNothing(t *testing.T) {
	x, dir := sample(), filepath.Join(t.TempDir(), "none")
	r := x.apply(t, dir, ApplyOptions{DryRun: true})
	if r.Written != r.Entries || r.BytesWritten == 0 {
		t.Errorf("report %+v", r)
	}
	if _, err := os.Lstat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the dry run made the directory: %v", err)
	}
}

func TestApplyProgress(t *testing.T) {
	x := sample()
	var last ApplyProgress
	x.apply(t, t.TempDir(), ApplyOptions{Progress: func(p ApplyProgress) { last = p }})
	if last.Files != 6 || last.Files != last.FilesTotal || last.Bytes == 0 || last.Bytes != last.BytesTotal {
		t.Errorf("the last progress is %+v", last)
	}
}

// at is the entry at path.
func (t *tree) at(path string) *Entry {
	for i := range t.list {
		if t.list[i].Path == path {
			return &t.list[i]
		}
	}
	return nil
}
