package imaging

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"doppel/imaging/store"

	"golang.org/x/sys/unix"
)

// meddled is the local tree with something done to it at chosen instants: when
// a file has been opened, and while it is read.
type meddled struct {
	*LocalTree
	opened func(name string, try int) // after open and fstat
	read   func(name string, try int) // after the first read
	listed func(name string)          // after the names of a directory were listed
	mu     sync.Mutex
	tries  map[string]int
}

// directory is Dir by a name that leaves its method Dir to be embedded.
type directory = Dir

type meddledDir struct {
	directory
	tree *meddled
	name string
}

type meddledFile struct {
	File
	tree   *meddled
	name   string
	try    int
	stated bool
	done   bool
}

func (m *meddled) Root(ctx context.Context) (Dir, error) {
	d, err := m.LocalTree.Root(ctx)
	return &meddledDir{d, m, "."}, err
}

func (d *meddledDir) Names(ctx context.Context) ([]string, error) {
	names, err := d.directory.Names(ctx)
	if d.tree.listed != nil {
		d.tree.listed(d.name)
	}
	return names, err
}

func (d *meddledDir) Open(ctx context.Context, name string) (File, error) {
	f, err := d.directory.Open(ctx, name)
	if err != nil {
		return nil, err
	}
	d.tree.mu.Lock()
	defer d.tree.mu.Unlock()
	d.tree.tries[name]++
	return &meddledFile{File: f, tree: d.tree, name: name, try: d.tree.tries[name]}, nil
}

func (f *meddledFile) Stat(ctx context.Context) (Node, error) {
	n, err := f.File.Stat(ctx)
	if !f.stated && f.tree.opened != nil {
		f.tree.opened(f.name, f.try)
	}
	f.stated = true
	return n, err
}

func (f *meddledFile) ReadAt(b []byte, off int64) (int, error) {
	n, err := f.File.ReadAt(b, off)
	if !f.done && f.tree.read != nil {
		f.tree.read(f.name, f.try)
	}
	f.done = true
	return n, err
}

// meddle scans a tree that has the file "file" with the content, and what
// else there is to set up.
func meddle(t *testing.T, root string, m *meddled) *collected {
	t.Helper()
	m.LocalTree, m.tries = NewLocalTree(root), make(map[string]int)
	return scanDir(t, m, ScanRequest{})
}

func appendTo(t *testing.T, path string, data []byte) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
	must(t, err)
	_, err = f.Write(data)
	must(t, errors.Join(err, f.Close()))
}

func kinds(notes []Note) []NoteKind {
	var k []NoteKind
	for _, n := range notes {
		k = append(k, n.Kind)
	}
	return k
}

// TestScanGrowing: a log that grows is kept as long as it was when opened.
func TestScanGrowing(t *testing.T) {
	for _, size := range []int{1000, smallFile + 1000} {
		root := t.TempDir()
		path := filepath.Join(root, "file")
		fill(t, path, noise(size, 1))
		c := meddle(t, root, &meddled{
			opened: func(string, int) { appendTo(t, path, []byte("after the look")) },
			read:   func(string, int) { appendTo(t, path, []byte("after the first read")) },
		})
		e := c.entry(t, "file")
		if e.Size != int64(size) || !bytes.Equal(c.content(t, e), noise(size, 1)) {
			t.Errorf("it has %d bytes, and had %d when it was opened", e.Size, size)
		}
		if len(c.notes) > 0 {
			t.Errorf("notes: %v", c.notes)
		}
	}
}

// TestScanGrewTooLarge: a file that is small when listed and large when opened.
func TestScanGrewTooLarge(t *testing.T) {
	root := t.TempDir()
	path := filepath.Join(root, "file")
	fill(t, path, noise(1000, 1))
	c := meddle(t, root, &meddled{listed: func(string) {}})
	if c.entry(t, "file").Size != 1000 {
		t.Error("not as it was")
	}
	// Its stat comes from the walk, which is before any open.
	m := &meddled{}
	m.LocalTree, m.tries = NewLocalTree(root), make(map[string]int)
	c = &collected{chunks: make(map[store.Ref][]byte), cached: func(Stamp) *Content {
		fill(t, path, noise(2*smallFile, 2))
		return nil
	}}
	rescan(t, m, ScanRequest{}, c)
	if e := c.entry(t, "file"); !bytes.Equal(c.content(t, e), noise(2*smallFile, 2)) {
		t.Error("a file that grew before it was opened was not read as it was then")
	}
}

// TestScanRewritten: a file that changes while it is read is read again.
func TestScanRewritten(t *testing.T) {
	for _, size := range []int{1000, smallFile + 1000} {
		root := t.TempDir()
		path := filepath.Join(root, "file")
		fill(t, path, noise(size, 1))
		c := meddle(t, root, &meddled{read: func(_ string, try int) {
			if try < maxTries {
				fill(t, path, noise(size, byte(1+try)))
			}
		}})
		if e := c.entry(t, "file"); !bytes.Equal(c.content(t, e), noise(size, maxTries)) {
			t.Error("the content is not that of the last, quiet reading")
		}
		if len(c.notes) > 0 {
			t.Errorf("notes: %v", c.notes)
		}
	}
}

// TestScanUnstable: a file that never holds still is said to be so.
func TestScanUnstable(t *testing.T) {
	for _, size := range []int{1000, smallFile + 1000} {
		root := t.TempDir()
		path := filepath.Join(root, "file")
		fill(t, path, noise(size, 1))
		c := meddle(t, root, &meddled{read: func(_ string, try int) { fill(t, path, noise(size, byte(1+try))) }})
		if !slices.Equal(kinds(c.notes), []NoteKind{NoteUnstable}) || c.notes[0].Path != "file" {
			t.Errorf("notes: %v", c.notes)
		}
		c.content(t, c.entry(t, "file"))
		for i := range c.entries {
			if c.entries[i].Path == "file" && c.stamps[i] != (Stamp{}) {
				t.Error("what is unstable is to be known again")
			}
		}
	}
}

// TestScanCutOff: a file that is cut off each time it is read is kept as far as
// there was something to read.
func TestScanCutOff(t *testing.T) {
	for _, size := range []int{1000, 2*smallFile + 1000} {
		root := t.TempDir()
		path := filepath.Join(root, "file")
		fill(t, path, noise(size, 1))
		c := meddle(t, root, &meddled{opened: func(string, int) {
			info, err := os.Stat(path)
			must(t, err)
			must(t, os.Truncate(path, info.Size()-100))
		}})
		e := c.entry(t, "file")
		if want := size - maxTries*100; e.Size != int64(want) || !bytes.Equal(c.content(t, e), noise(size, 1)[:want]) {
			t.Errorf("it has %d bytes, want %d", e.Size, want)
		}
		if !slices.Equal(kinds(c.notes), []NoteKind{NoteUnstable}) {
			t.Errorf("notes: %v", c.notes)
		}
	}
}

// TestScanReplaced: the file that was listed makes way for another one, as
// when a package is upgraded; what is recorded is one of them as a whole.
func TestScanReplaced(t *testing.T) {
	root := t.TempDir()
	path := filepath.Join(root, "file")
	fill(t, path, []byte("old"))
	must(t, os.Link(path, root+"/second name"))
	c := meddle(t, root, &meddled{listed: func(string) {
		fill(t, path+".new", []byte("new!"))
		must(t, os.Chmod(path+".new", 0o600))
		must(t, os.Rename(path+".new", path))
	}})
	// The directory was listed before, so that file is the new one for the walk.
	if e := c.entry(t, "file"); e.Mode != 0o600 || string(c.content(t, e)) != "new!" {
		t.Errorf("%+v", e)
	}
	if e := c.entry(t, "second name"); e.Kind != Regular || string(c.content(t, e)) != "old" {
		t.Errorf("%+v", e)
	}
	// And now between the walk's look and the reader's.
	c = &collected{chunks: make(map[store.Ref][]byte)}
	must(t, os.Remove(root+"/second name"))
	must(t, os.Link(path, root+"/second name"))
	must(t, os.Link(path, root+"/third name"))
	c.cached = func(s Stamp) *Content {
		fill(t, path+".new", []byte("newer!"))
		must(t, os.Rename(path+".new", path))
		return nil
	}
	rescan(t, NewLocalTree(root), ScanRequest{}, c)
	if e := c.entry(t, "file"); string(c.content(t, e)) != "newer!" {
		t.Errorf("%+v", e)
	}
	if e := c.entry(t, "second name"); e.Kind != Regular || string(c.content(t, e)) != "new!" {
		t.Errorf("a hard link to what is no longer there: %+v", e)
	}
	if e := c.entry(t, "third name"); e.Kind != HardLink || e.Target != "second name" {
		t.Errorf("the third name: %+v", e)
	}
}

// TestScanVanished: what goes away while the tree is walked is remarked upon
// and left out.
func TestScanVanished(t *testing.T) {
	root := t.TempDir()
	for _, p := range []string{"dir/a", "file", "other", "two", "z/kept"} {
		fill(t, filepath.Join(root, p), []byte(p))
	}
	must(t, os.Link(root+"/two", root+"/zwei"))
	c := &collected{chunks: make(map[store.Ref][]byte), cached: func(s Stamp) *Content {
		os.Remove(root + "/other") // listed, looked at, and gone when opened
		os.Remove(root + "/two")
		return nil
	}}
	m := &meddled{LocalTree: NewLocalTree(root), tries: make(map[string]int), listed: func(name string) {
		os.RemoveAll(root + "/dir") // listed, and gone when looked at
		os.Remove(root + "/file")
		os.Symlink("/etc/passwd", root+"/file.link")
	}}
	rescan(t, m, ScanRequest{}, c)
	var paths, gone []string
	for _, e := range c.entries {
		paths = append(paths, e.Path)
	}
	for _, n := range c.notes {
		if n.Kind == NoteVanished {
			gone = append(gone, n.Path)
		}
	}
	if want := []string{".", "z", "z/kept", "zwei"}; !slices.Equal(paths, want) {
		t.Errorf("entries %q, want %q", paths, want)
	}
	if want := []string{"dir", "file", "other", "two"}; !slices.Equal(gone, want) {
		t.Errorf("vanished: %q, want %q", gone, want)
	}
	if e := c.entry(t, "zwei"); e.Kind != Regular || string(c.content(t, e)) != "two" {
		t.Errorf("the name that is left: %+v", e)
	}
}

// TestScanFollowsNoLink: a directory and a file that are replaced by symbolic
// links between the look and the opening lead nowhere.
func TestScanFollowsNoLink(t *testing.T) {
	outside := t.TempDir()
	fill(t, outside+"/file", []byte("outside"))
	root := t.TempDir()
	fill(t, root+"/dir/file", []byte("inside"))
	fill(t, root+"/file", []byte("inside"))
	d, err := NewLocalTree(root).Root(t.Context())
	must(t, err)
	defer d.Close()
	must(t, os.RemoveAll(root+"/dir"))
	must(t, os.Remove(root+"/file"))
	must(t, os.Symlink(outside, root+"/dir"))
	must(t, os.Symlink(outside+"/file", root+"/file"))
	if x, err := d.Dir(t.Context(), "dir"); !errors.Is(err, fs.ErrNotExist) {
		t.Error("a symbolic link was opened as a directory:", x, err)
	}
	if x, err := d.Open(t.Context(), "file"); !errors.Is(err, fs.ErrNotExist) {
		t.Error("a symbolic link was opened as a file:", x, err)
	}
	must(t, os.Remove(root+"/file"))
	must(t, unix.Mkfifo(root+"/file", 0o600))
	if x, err := d.Open(t.Context(), "file"); !errors.Is(err, fs.ErrNotExist) {
		t.Error("a FIFO was opened as a file:", x, err)
	}
}

// failing is a tree in which one file cannot be read.
type failing struct {
	*LocalTree
	open, read error
}

type failingDir struct {
	directory
	f *failing
}

type failingFile struct {
	File
	err error
}

func (f *failing) Root(ctx context.Context) (Dir, error) {
	d, err := f.LocalTree.Root(ctx)
	return &failingDir{d, f}, err
}

func (d *failingDir) Open(ctx context.Context, name string) (File, error) {
	if d.f.open != nil {
		return nil, d.f.open
	}
	f, err := d.directory.Open(ctx, name)
	return &failingFile{f, d.f.read}, err
}

func (f *failingFile) ReadAt([]byte, int64) (int, error) { return 0, f.err }

// TestScanUnreadable: a file that cannot be read makes no image without it.
func TestScanUnreadable(t *testing.T) {
	root := t.TempDir()
	fill(t, root+"/the file", []byte("x"))
	for _, tree := range []*failing{{open: unix.EACCES}, {open: unix.EIO}, {read: unix.EIO}} {
		tree.LocalTree = NewLocalTree(root)
		err := ScanTree(t.Context(), tree, ScanRequest{}, &collected{chunks: make(map[store.Ref][]byte)})
		want := errors.Join(tree.open, tree.read)
		if err == nil || !errors.Is(want, errors.Unwrap(err)) || !strings.Contains(err.Error(), `"the file"`) {
			t.Errorf("%v: %v", want, err)
		}
		if errors.Is(err, fs.ErrPermission) && !strings.Contains(err.Error(), "root") {
			t.Errorf("no remedy: %v", err)
		}
	}
}
