package imaging

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"
)

// counted counts what a ChunkSource is asked for.
type counted struct {
	ChunkSource
	bytes atomic.Int64
}

func (c *counted) StreamNumbers(ctx context.Context, numbers []uint32, workers int, fn func(uint32, []byte) error) error {
	return c.ChunkSource.StreamNumbers(ctx, numbers, workers, func(number uint32, b []byte) error {
		c.bytes.Add(int64(len(b)))
		return fn(number, b)
	})
}

// Ten files of 48 MiB that are equal fit where there is room for six.
func TestApplyShares(t *testing.T) {
	for _, kind := range []string{"xfs", "btrfs"} {
		t.Run(kind, func(t *testing.T) {
			x := newTree()
			content := string(noise(48<<20, 7))
			for i := range 10 {
				x.dir("d" + string(rune('0'+i)))
				x.file("d"+string(rune('0'+i))+"/equal", content).Mode = 0o600 + uint32(i)
			}
			x.file("other", content[:32<<20]+"and an end of its own")
			top, _ := image(t, kind, "320M")
			dir := filepath.Join(top, "copy")
			r := x.apply(t, dir, ApplyOptions{})
			if r.BytesShared != 9*48<<20 {
				t.Errorf("%d bytes share their blocks", r.BytesShared)
			}
			x.equal(t, dir)
			// They are files of their own all the same.
			f, err := os.OpenFile(dir+"/d3/equal", os.O_WRONLY, 0)
			must(t, err)
			_, err = f.WriteAt([]byte("changed"), 1<<20)
			must(t, err, f.Close())
			if diffs, err := CompareTree(t.Context(), x.m(), dir, CompareOptions{}); err != nil || len(diffs) != 2 { // content and time
				t.Errorf("differences %v, %v", diffs, err)
			}
		})
	}
}

// Files that cannot share blocks are copied, though their file system could.
func TestApplySharesNothing(t *testing.T) {
	top, _ := image(t, "xfs", "320M")
	var st unix.Stat_t
	must(t, unix.Stat(top, &st))
	content := noise(1<<20, 8)
	from, to := filepath.Join(top, "from"), filepath.Join(top, "to")
	must(t, os.WriteFile(from, append(append([]byte{}, content...), make([]byte, 1<<20)...), 0o600))
	must(t, os.WriteFile(to, nil, 0o600))
	a, err := os.Open(from)
	must(t, err)
	defer a.Close()
	b, err := os.OpenFile(to, os.O_RDWR, 0)
	must(t, err)
	defer b.Close()
	e := &Entry{Kind: Regular, Size: 2 << 20, Extents: []Extent{{0, 4096}, {8192, 1<<20 - 8192}}}
	must(t, copyData(t.Context(), &target{e: e}, int(a.Fd()), int(b.Fd())))
	got := []byte(read(t, to))
	copy(content[4096:8192], make([]byte, 4096))
	if !bytes.Equal(got[:1<<20], content) || !bytes.Equal(got[1<<20:], make([]byte, 1<<20)) {
		t.Error("the copy is another")
	}
}

// What a tree has already is not taken from the store: the most of a large file
// that was changed, and all of a renamed one.
func TestApplyReuses(t *testing.T) {
	root := filepath.Join(t.TempDir(), "tree")
	large, moved, gone := noise(24<<20, 20), noise(8<<20, 21), noise(4<<20, 22)
	fill(t, root+"/large", large)
	fill(t, root+"/old/name", moved)
	fill(t, root+"/gone", gone)
	fill(t, root+"/root/.ssh/id_rsa", moved[:1<<20]) // of another audience
	c := openTestCatalog(t)
	takeImage(t, c, root, "x")
	m, vault := latestImage(t, c, "x")
	dir := filepath.Join(t.TempDir(), "copy")
	_, err := Apply(t.Context(), m, vault, dir, ApplyOptions{})
	must(t, err)

	copy(large[12<<20:], "eight b.")
	fill(t, root+"/large", append(large, noise(100<<10, 23)...))
	must(t, os.MkdirAll(root+"/new", 0o755))
	must(t, os.Rename(root+"/old/name", root+"/new/name"), os.Remove(root+"/gone"))
	takeImage(t, c, root, "x")
	m, vault = latestImage(t, c, "x")
	source := &counted{ChunkSource: vault}
	r, err := Apply(t.Context(), m, source, dir, ApplyOptions{Delete: true})
	must(t, err)
	if took := source.bytes.Load(); took > 1<<20 || r.BytesReused+took != r.BytesWritten || r.BytesReused < 31<<20 {
		t.Errorf("%d bytes from the store, %d from the tree, of %d", took, r.BytesReused, r.BytesWritten)
	}
	if diffs, err := CompareTree(t.Context(), m, dir, CompareOptions{}); err != nil || len(diffs) > 0 {
		t.Errorf("differences %v, %v", diffs, err)
	}
}
