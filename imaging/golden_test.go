package imaging

import (
	"flag"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"doppel/imaging/store"
)

var update = flag.Bool("update", false, "write the golden store anew; stores in the field stay as they are, so think twice")

// goldenFiles are the contents of the golden image's regular files.
var goldenFiles = map[string]string{
	"a/\x01\xfe": "hello",
	"key":        "a key of one machine",
	"key2":       "ke" + "y of a head",
	"munge":      "a key of all",
	"sparse":     strings.Repeat("z", 51),
	"text":       strings.Repeat("some text that compresses\n", 100),
}

// goldenEntries are the entries of the golden image: of every kind, with all
// that an entry can have.
func goldenEntries() []Entry {
	chunk := func(path string, cuts ...int) (list []store.Chunk) {
		text := goldenFiles[path]
		for _, n := range append(cuts, len(text)) {
			n = min(n, len(text))
			list = append(list, chunkOf(text[:n]))
			text = text[n:]
		}
		return list
	}
	list := sampleEntries()
	for i := range list {
		e := &list[i]
		switch e.Path {
		case "key2":
			e.Extents, e.Chunks = []Extent{{10, 2}, {100, 11}}, chunk("key2", 2)
		case "a/\x01\xfe", "key", "munge", "sparse":
			e.Chunks = chunk(e.Path)
			if e.Extents == nil {
				e.Size = int64(len(goldenFiles[e.Path]))
			}
		}
	}
	return append(list, Entry{Path: "text", Kind: Regular, Mode: 0o644, MTime: Time{1_700_000_000, 5}, Size: 2600, Chunks: chunk("text", 1000)})
}

// makeGolden makes the golden store.
func makeGolden(t *testing.T, dir string) {
	t.Helper()
	c, err := OpenCatalog(dir, CatalogOptions{})
	must(t, err, c.Create(t.Context()))
	vault, err := c.Vault(t.Context())
	must(t, err)
	w := vault.NewWriter()
	m := describe(manifestOf(goldenEntries()...))
	for _, aud := range []store.Audience{store.Cluster, store.Head} {
		var chunks [][]byte
		for _, e := range m.List.All() {
			text := goldenFiles[e.Path]
			for _, k := range e.Chunks {
				if e.Class.Audience() == aud {
					chunks = append(chunks, []byte(text[:k.Size]))
				}
				text = text[k.Size:]
			}
		}
		b, err := store.BuildBlock(aud, chunks)
		must(t, err, w.Add(t.Context(), b))
	}
	must(t, w.Commit(t.Context()), w.Close())
	st, err := c.Store()
	must(t, err)
	keys, err := c.Keys()
	must(t, err)
	v := Version{Image: "golden", Time: time.Unix(1_700_000_000, 0).UTC(), Entries: m.Head.Entries, Bytes: m.Head.Bytes, Source: "root@head", Tags: []string{"first"}}
	blob, digest, err := WriteManifest(t.Context(), st, keys, m)
	must(t, err)
	v.Blob, v.Digest = blob, digest.String()
	_, err = c.Add(t.Context(), v)
	must(t, err)
}

// Stores of every version of the format stay readable.
func TestGolden(t *testing.T) {
	golden := filepath.Join("testdata", "golden", "v2")
	if *update {
		must(t, os.RemoveAll(golden))
		makeGolden(t, golden)
	}
	c := copyState(t, golden)
	for _, key := range []string{"cluster.key", "head.key"} { // which git does not keep private
		must(t, os.Chmod(filepath.Join(c.Dir(), "keys", key), 0o600))
	}
	verifyAll(t, c)
	v, err := c.Resolve(t.Context(), "golden@first")
	must(t, err)
	m, err := c.Manifest(t.Context(), v)
	must(t, err)
	if got, want := entriesOf(m), goldenEntries(); !reflect.DeepEqual(got, want) {
		t.Errorf("its entries are\n%+v, want\n%+v", got, want)
	}
	for path, text := range readVersion(t, c, "golden@1") {
		if goldenFiles[path] != text {
			t.Errorf("%q holds %q", path, text)
		}
	}
	if v.Number != 1 || v.Source != "root@head" || v.Time.Unix() != 1_700_000_000 {
		t.Errorf("its version is %+v", v)
	}
	// Whoever has the key of the cluster alone reads it as well.
	must(t, os.Remove(filepath.Join(c.Dir(), "keys", "head.key")))
	st, err := c.Store()
	must(t, err)
	key, err := store.ReadKey(filepath.Join(c.Dir(), "keys", "cluster.key"))
	must(t, err)
	m, digest, err := ReadManifest(t.Context(), st, store.Keys{Cluster: &key}, v.Blob)
	must(t, err)
	if digest.String() != v.Digest || !m.List.Get("key2").Withheld || m.List.Get("munge").Withheld {
		t.Errorf("with one key it is %s", digest)
	}
}
