package imaging

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// Of a large file the most is found in the one before it, whether its chunks
// are where they were or have been shifted, beside holes, and in a file that
// was cut off.
func TestApplyReusesLargeFiles(t *testing.T) {
	base := noise(24<<20, 30)
	for name, c := range map[string]struct {
		change func([]byte) []byte
		most   int64 // bytes from the store
	}{
		"changed in place":      {func(b []byte) []byte { copy(b[12<<20:], "eight b."); copy(b[20<<20:], "again"); return b }, 1 << 20},
		"appended to":           {func(b []byte) []byte { return append(b, noise(1<<20, 31)...) }, 2 << 20},
		"shifted":               {func(b []byte) []byte { return slices.Concat([]byte("something before it"), b) }, 1 << 20},
		"shifted in the middle": {func(b []byte) []byte { return slices.Insert(b, 8<<20, 'x') }, 1 << 20},
		"shifted near the end":  {func(b []byte) []byte { return slices.Insert(b, 23<<20, 'x') }, 2 << 20},
		"cut off":               {func(b []byte) []byte { return b[:17<<20+5] }, 1 << 20},
		"parts changed places":  {func(b []byte) []byte { return slices.Concat(b[12<<20:], b[:12<<20]) }, 1 << 20},
		"grown a hole":          {func(b []byte) []byte { copy(b[4<<20:], make([]byte, 4<<20)); return b }, 2 << 20},
	} {
		t.Run(name, func(t *testing.T) {
			root := filepath.Join(t.TempDir(), "tree")
			fill(t, root+"/large", base)
			cat := openTestCatalog(t)
			takeImage(t, cat, root, "x")
			m, vault := latestImage(t, cat, "x")
			dir := filepath.Join(t.TempDir(), "copy")
			_, err := Apply(t.Context(), m, vault, dir, ApplyOptions{})
			must(t, err)

			fill(t, root+"/large", c.change(bytes.Clone(base)))
			takeImage(t, cat, root, "x")
			m, vault = latestImage(t, cat, "x")
			source := &counted{ChunkSource: vault}
			r, err := Apply(t.Context(), m, source, dir, ApplyOptions{})
			must(t, err)
			if took := source.bytes.Load(); took > c.most || r.BytesReused+took > r.BytesWritten || r.BytesReused < 12<<20 {
				t.Errorf("%d bytes from the store, %d from the tree, of %d", took, r.BytesReused, r.BytesWritten)
			}
			have, err := os.ReadFile(dir + "/large")
			must(t, err)
			if want, err := os.ReadFile(root + "/large"); err != nil || !bytes.Equal(have, want) {
				t.Errorf("the file is another: %v", err)
			}
			if diffs, err := CompareTree(t.Context(), m, dir, CompareOptions{}); err != nil || len(diffs) > 0 {
				t.Errorf("differences %v, %v", diffs, err)
			}
		})
	}
}
