package imaging

import (
	"fmt"
	"os"
	"testing"
)

// A directory with very many entries is captured, made, found to be equal, and
// emptied. Most are hard links, each group of them beside the last: what finds one
// must not have to find those before it.
func TestHugeDirectory(t *testing.T) {
	const names = 30_000
	t.Setenv("TMPDIR", memory(t))
	root, dir := t.TempDir(), t.TempDir()
	fill(t, root+"/queue/000000", nil)
	for i := 1; i < names; i++ {
		// Links of a few: a file system has only so many for one file.
		if i%50 != 0 {
			must(t, os.Link(fmt.Sprintf("%s/queue/%06d", root, i-i%50), fmt.Sprintf("%s/queue/%06d", root, i)))
			continue
		}
		must(t, os.Symlink(fmt.Sprint(i), fmt.Sprintf("%s/queue/%06d", root, i)))
	}
	c := openTestCatalog(t)
	r := takeImage(t, c, root, "x")
	if r.Entries != names+2 {
		t.Errorf("%d entries", r.Entries)
	}
	m, vault := theManifest(t, c, "x")
	apply := func() {
		t.Helper()
		if _, err := Apply(t.Context(), m, vault, dir, ApplyOptions{Delete: true}); err != nil {
			t.Fatal(err)
		}
		differences, err := CompareTree(t.Context(), m, dir, CompareOptions{})
		must(t, err)
		if len(differences) > 0 {
			t.Errorf("%d differences, the first: %v", len(differences), differences[0])
		}
	}
	apply()
	must(t, os.RemoveAll(root+"/queue"), os.Mkdir(root+"/queue", 0o755))
	takeImage(t, c, root, "x")
	m, vault = theManifest(t, c, "x")
	apply()
}
