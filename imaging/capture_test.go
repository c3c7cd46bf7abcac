package imaging

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"doppel/imaging/store"
)

func openTestCatalog(t *testing.T) *Catalog {
	t.Helper()
	c, err := OpenCatalog(filepath.Join(t.TempDir(), "state"), CatalogOptions{})
	must(t, err)
	return c
}

// takeImage captures a directory, under a clock for which nothing changed lately.
func takeImage(t *testing.T, c *Catalog, root, name string) *CaptureReport {
	t.Helper()
	r, err := Capture(t.Context(), c, NewLocal(root, WithClock(later)), CaptureOptions{Name: name, Root: root})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// verifyAll checks every byte of every version.
func verifyAll(t *testing.T, c *Catalog) {
	t.Helper()
	err := c.Verify(t.Context(), nil, true, func(f ImageFault) { t.Errorf("fault: %v", f) })
	must(t, err)
}

// theManifest gives what a version is, and where its content is.
func theManifest(t *testing.T, c *Catalog, ref string) (*Manifest, *store.Vault) {
	t.Helper()
	v, err := c.Resolve(t.Context(), ref)
	must(t, err)
	m, err := c.Manifest(t.Context(), v)
	must(t, err)
	vault, err := c.Vault(t.Context())
	must(t, err)
	return m, vault
}

// readVersion reads all files of a version.
func readVersion(t *testing.T, c *Catalog, ref string) map[string]string {
	t.Helper()
	m, vault := theManifest(t, c, ref)
	files := make(map[string]string)
	for ref := range m.Refs() {
		b, err := vault.Chunk(t.Context(), ref.Ref)
		must(t, err)
		files[ref.Entry.Path] += string(b)
	}
	return files
}

func TestCapture(t *testing.T) {
	root := t.TempDir()
	fill(t, root+"/etc/hostname", []byte("head\n"))
	fill(t, root+"/etc/shadow", []byte("root:x"))
	fill(t, root+"/etc/machine-id", []byte("0123"))
	fill(t, root+"/opt/key.pem", []byte("-----BEGIN PRIVATE KEY-----\n"+base64Lines))
	fill(t, root+"/data/big", noise(6<<20, 1))
	fill(t, root+"/data/same", noise(6<<20, 1))
	c := openTestCatalog(t)
	r := takeImage(t, c, root, "head")
	if r.Image != "head" || r.Version != 1 || r.Unchanged || r.BytesTotal < 12<<20 || r.BytesRead != r.BytesTotal || r.BytesSent < 6<<20 || r.BytesSent > 7<<20 || r.BytesAdded < 6<<20 || r.Partial() {
		t.Errorf("first: %+v", r)
	}
	want := []SecretFile{{"etc/machine-id", "node", false}, {"etc/shadow", "cluster", false}, {"opt/key.pem", "head", true}}
	if !slices.Equal(r.Secrets, want) {
		t.Errorf("secrets: %v", r.Secrets)
	}
	again := takeImage(t, c, root, "head")
	// The key that no rule knows is looked into every time.
	if !again.Unchanged || again.Version != 1 || again.Digest != r.Digest || again.BytesRead > 1000 || again.BytesSent != 0 || again.BytesAdded != 0 {
		t.Errorf("again: %+v", again)
	}
	fill(t, root+"/data/big", append(noise(6<<20, 1), "more"...))
	third := takeImage(t, c, root, "head")
	if third.Unchanged || third.Version != 2 || third.BytesRead < 6<<20 || third.BytesSent > 600<<10 {
		t.Errorf("after a change: %+v", third)
	}
	verifyAll(t, c)
	if files := readVersion(t, c, "head@1"); files["data/big"] != string(noise(6<<20, 1)) || files["etc/hostname"] != "head\n" {
		t.Error("version 1 is another tree")
	}
	if files := readVersion(t, c, "head"); !strings.HasSuffix(files["data/big"], "more") {
		t.Error("version 2 is not the tree")
	}
	b, err := json.Marshal(r)
	must(t, err)
	for _, key := range []string{"image", "version", "digest", "unchanged", "entries", "bytes_total", "bytes_read", "bytes_sent", "bytes_added", "seconds", "unstable", "lost", "secrets"} {
		if !strings.Contains(string(b), `"`+key+`":`) || strings.Contains(string(b), `"`+key+`":null`) {
			t.Errorf("the report has no %s: %s", key, b)
		}
	}
	for _, file := range []string{"keys/cluster.key", "keys/head.key", "keys", "store/names/head"} {
		info, err := os.Stat(filepath.Join(c.Dir(), file))
		must(t, err)
		if info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s has the mode %v", file, info.Mode())
		}
	}
}

// TestCaptureFull reads everything and comes to the same.
func TestCaptureFull(t *testing.T) {
	root := t.TempDir()
	fill(t, root+"/file", noise(100<<10, 1))
	c := openTestCatalog(t)
	first := takeImage(t, c, root, "x")
	r, err := Capture(t.Context(), c, NewLocal(root, WithClock(later)), CaptureOptions{Name: "x", Root: root, Full: true})
	must(t, err)
	if !r.Unchanged || r.BytesRead != 100<<10 || r.Digest != first.Digest {
		t.Errorf("%+v", r)
	}
	if r := takeImage(t, c, root, "x"); r.BytesRead != 0 {
		t.Errorf("after a full capture, the next read %d bytes", r.BytesRead)
	}
}

// TestCaptureOwnState: the state directory within the tree is left out.
func TestCaptureOwnState(t *testing.T) {
	root := t.TempDir()
	fill(t, root+"/file", []byte("x"))
	c, err := OpenCatalog(root+"/srv/[doppel]", CatalogOptions{})
	must(t, err)
	takeImage(t, c, root, "x")
	if r := takeImage(t, c, root, "x"); !r.Unchanged {
		t.Errorf("a capture changes what the next finds: %+v", r)
	}
	v, err := c.Resolve(t.Context(), "x")
	must(t, err)
	m, err := c.Manifest(t.Context(), v)
	must(t, err)
	if i, ok := m.List.Find("srv/[doppel]"); !ok || !m.List.At(i).Opaque || i != m.List.Len()-1 {
		t.Error("the state directory is part of the image")
	}
}

// TestCaptureCache: a cache that is damaged, or is of other rules, is not used.
func TestCaptureCache(t *testing.T) {
	root := t.TempDir()
	for i := range 20 {
		fill(t, fmt.Sprintf("%s/%d", root, i), noise(1000, byte(i)))
	}
	c := openTestCatalog(t)
	first := takeImage(t, c, root, "x")
	paths, err := filepath.Glob(filepath.Join(c.Dir(), "cache/capture/*"))
	if err != nil || len(paths) != 1 {
		t.Fatal(paths, err)
	}
	good, err := os.ReadFile(paths[0])
	must(t, err)
	for name, cache := range map[string][]byte{
		"empty":       {},
		"cut":         good[:len(good)-1],
		"cut short":   good[:10],
		"longer":      append(slices.Clone(good), 0),
		"bit flipped": append(append(slices.Clone(good[:len(good)/2]), good[len(good)/2]^4), good[len(good)/2+1:]...),
	} {
		must(t, os.WriteFile(paths[0], cache, 0o600))
		r := takeImage(t, c, root, "x")
		if !r.Unchanged || r.BytesRead != 20_000 || r.Digest != first.Digest {
			t.Errorf("%s: %+v", name, r)
		}
		if r := takeImage(t, c, root, "x"); r.BytesRead != 0 {
			t.Errorf("%s: not mended", name)
		}
	}
	// What the cache knows must still be in the store.
	st, err := c.Store()
	must(t, err)
	must(t, st.List(t.Context(), store.KindPack, func(id store.ID, _ int64) error { return st.Delete(t.Context(), store.KindPack, id) }))
	if r := takeImage(t, c, root, "x"); r.BytesRead != 20_000 || r.Version != 1 {
		t.Errorf("with an empty store: %+v", r)
	}
	verifyAll(t, c)
}

func FuzzCache(f *testing.F) {
	dir := f.TempDir()
	w, err := createCache(dir + "/cache")
	must(f, err)
	for i, e := range sampleEntries() {
		if e.Kind == Regular {
			w.add(&record{entry: Entry{Path: e.Path, MTime: e.MTime, Size: e.Size, Class: e.Class, Extents: e.Extents, Chunks: e.Chunks}, ino: uint64(i)})
		}
	}
	must(f, w.commit())
	b, err := os.ReadFile(dir + "/cache")
	must(f, err)
	records := b[len(cacheMagic)+32 : len(b)-32]
	f.Add(records)
	f.Add([]byte{0})
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 0x0f})
	f.Fuzz(func(t *testing.T, records []byte) {
		// The digest is made to fit, so that what is behind it is reached.
		path := t.TempDir() + "/cache"
		rules := rulesDigest()
		body := slices.Concat([]byte(cacheMagic), rules[:], records)
		sum := store.Sum(body)
		must(t, os.WriteFile(path, append(body, sum[:]...), 0o600))
		c, err := openCache(path)
		for err == nil && c.last != nil {
			if e := checkExtents(&c.last.entry); e != nil {
				t.Errorf("a record that cannot be: %v", e)
			}
			err = c.next()
		}
		c.close()
	})
}

// broken is a Source that is cut off when so many blocks have come.
type broken struct {
	Source
	blocks int
}

var errCut = errors.New("connection lost")

type brokenSink struct {
	Sink
	left int
}

func (s *brokenSink) Block(ctx context.Context, b store.Block) error {
	if s.left--; s.left < 0 {
		return errCut
	}
	return s.Sink.Block(ctx, b)
}

func (b *broken) Scan(ctx context.Context, req ScanRequest, sink Sink) error {
	return b.Source.Scan(ctx, req, &brokenSink{sink, b.blocks})
}

// TestCaptureInterrupted: what has come before the connection was cut is not
// sent again, and no version names what is not there.
func TestCaptureInterrupted(t *testing.T) {
	root := t.TempDir()
	for i := range 40 {
		fill(t, fmt.Sprintf("%s/%02d", root, i), noise(1<<20, byte(i)))
	}
	c := openTestCatalog(t)
	for _, blocks := range []int{3, 2} {
		_, err := Capture(t.Context(), c, &broken{NewLocal(root, WithClock(later)), blocks}, CaptureOptions{Name: "x", Root: root})
		if !errors.Is(err, errCut) {
			t.Fatalf("cut off: %v", err)
		}
		if list, err := c.List(t.Context()); err != nil || len(list) > 0 {
			t.Fatalf("there are versions: %v %v", list, err)
		}
	}
	r := takeImage(t, c, root, "x")
	if r.BytesSent > 21<<20 || r.BytesSent < 15<<20 {
		t.Errorf("40 MiB, of them 20 sent before: sent %d again", r.BytesSent)
	}
	verifyAll(t, c)
}

// lossy is a Source that forgets to send a block.
type lossy struct{ Source }

type lossySink struct {
	Sink
	dropped bool
}

func (s *lossySink) Block(ctx context.Context, b store.Block) error {
	if !s.dropped {
		s.dropped = true
		return nil
	}
	return s.Sink.Block(ctx, b)
}

func (l *lossy) Scan(ctx context.Context, req ScanRequest, sink Sink) error {
	return l.Source.Scan(ctx, req, &lossySink{Sink: sink})
}

func TestCaptureOfSourceThatLies(t *testing.T) {
	root := t.TempDir()
	for i := range 10 {
		fill(t, fmt.Sprintf("%s/%02d", root, i), noise(1<<20, byte(i)))
	}
	c := openTestCatalog(t)
	_, err := Capture(t.Context(), c, &lossy{NewLocal(root)}, CaptureOptions{Name: "x", Root: root})
	var missing *store.MissingError
	if !errors.As(err, &missing) {
		t.Errorf("a block was never sent: %v", err)
	}
	if list, _ := c.List(t.Context()); len(list) > 0 {
		t.Error("and there is a version")
	}
}

func TestCaptureRefuses(t *testing.T) {
	c := openTestCatalog(t)
	root := t.TempDir()
	for _, name := range []string{"", ".x", "-x", "a/b", "a b", "a@1", "ä", strings.Repeat("x", 129)} {
		if _, err := Capture(t.Context(), c, NewLocal(root), CaptureOptions{Name: name, Root: root}); err == nil {
			t.Errorf("%q is taken for a name", name)
		}
	}
	if _, err := os.Stat(c.Dir()); !os.IsNotExist(err) {
		t.Error("a refused capture made the state directory")
	}
	if _, err := Capture(t.Context(), c, NewLocal(root+"/none"), CaptureOptions{Name: "x", Root: root + "/none"}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a root that is not there: %v", err)
	}
}

// TestKeysAreNotReplaced: a store whose key is lost gets no new one.
func TestKeysAreNotReplaced(t *testing.T) {
	root := t.TempDir()
	fill(t, root+"/file", []byte("x"))
	c := openTestCatalog(t)
	takeImage(t, c, root, "x")
	must(t, os.Remove(filepath.Join(c.Dir(), "keys/head.key")))
	_, err := Capture(t.Context(), c, NewLocal(root), CaptureOptions{Name: "x", Root: root})
	if err == nil || !strings.Contains(err.Error(), "backup") {
		t.Errorf("with a lost key: %v", err)
	}
	if _, err := os.Stat(filepath.Join(c.Dir(), "keys/head.key")); err == nil {
		t.Error("the key was replaced")
	}
	// Who may not have the head's key can still read the rest.
	if files := readVersion(t, c, "x"); files["file"] != "x" {
		t.Error("the image cannot be read without the head's key")
	}
}
